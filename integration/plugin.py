"""The options of the integration tests: which StableLm the ladder grows."""

from __future__ import annotations

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
