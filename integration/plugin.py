"""What the integration tests share: which StableLm the ladder grows, small checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from . import warm


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("growproof integration")
    group.addoption(
        "--stablelm",
        metavar="PATH_OR_ID",
        help="the StableLm that the article's ladder grows, e.g. "
        "stabilityai/stablelm-2-1_6b, also $GROWPROOF_STABLELM (default: the shipped one)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """In a run that is spread, what tests start is forked from one process.

    And has one thread, as the tests have: two for each core wait for each other, busily.
    """
    if os.environ.get(warm.VARIABLE):
        sys.executable = f"{os.environ[warm.VARIABLE]}/python"
    elif getattr(config.option, "numprocesses", None) and warm.possible():
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        stack = ExitStack()
        stack.enter_context(warm.served())
        config.add_cleanup(stack.close)


def pytest_report_header(config: Any) -> str:
    from .ladder import VARIABLE, chosen  # not before the options are known

    if path := chosen(config.option.stablelm):
        return f"ladder: on {path}, with the article's growths"
    return (
        "ladder: on the shipped model integration/stablelm, not on the article's; for "
        f"that: --stablelm stabilityai/stablelm-2-1_6b, or ${VARIABLE}"
    )


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories with a small Llama and a small StableLm, which all tests share."""
    from .small import llama, saved, stablelm

    at = tmp_path_factory.mktemp("models")
    made = {"llama": llama, "stablelm": stablelm}
    return {name: saved(make(), at / name) for name, make in made.items()}


def unchanged(directory: Path) -> Iterator[Path]:
    """Hand out a shared directory; fail the test that writes into it, not a later one."""

    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}

    before = stamps()
    yield directory
    said = f"{directory} is shared by all tests: copy it to write into it"
    assert stamps() == before, said


@pytest.fixture
def source(small_models: dict[str, Path]) -> Iterator[Path]:
    """A directory with a small Llama, to be read only."""
    yield from unchanged(small_models["llama"])


@pytest.fixture
def stablelm_source(small_models: dict[str, Path]) -> Iterator[Path]:
    """A directory with a small StableLm, to be read only."""
    yield from unchanged(small_models["stablelm"])
