"""`pytest --pyargs growproof.properties`: the laws bring their plugin, and only they.

A package that is named so has no conftest that pytest would read in time for its
options. This is the entry point that pytest loads in every run; it does nothing else.
"""

from typing import Any

import pytest

LAWS = "growproof.properties"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: Any, args: list[str]) -> None:
    """Load the gate where the installed laws are among the arguments."""
    places = (word.split("::")[0] for word in args)
    if any(place == LAWS or place.startswith(f"{LAWS}.") for place in places):
        early_config.pluginmanager.import_plugin(f"{LAWS}.score.plugin")
