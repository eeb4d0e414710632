"""What the integration tests share: which StableLm the ladder grows, small checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("growproof integration")
    group.addoption(
        "--stablelm",
        metavar="PATH_OR_ID",
        help="the StableLm that the article's ladder grows, e.g. "
        "stabilityai/stablelm-2-1_6b, also $GROWPROOF_STABLELM (default: the shipped one)",
    )


def pytest_report_header(config: Any) -> str:
    from .ladder import VARIABLE, chosen  # not before the options are known

    if path := chosen(config.option.stablelm):
        return f"ladder: on {path}, with the article's growths"
    return (
        "ladder: on the shipped model integration/stablelm, not on the article's; for "
        f"that: --stablelm stabilityai/stablelm-2-1_6b, or ${VARIABLE}"
    )


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small Llama, to be read only."""
    from .small import llama, saved

    return saved(llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def stablelm_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small StableLm, to be read only."""
    from .small import saved, stablelm

    return saved(stablelm(), tmp_path_factory.mktemp("models") / "stablelm")
