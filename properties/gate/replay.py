"""One law on one example, without a search: what a script repeats, and what is made smaller.

In a run, a law meets a grower behind thousands of other calls, in memory that they left.
A script is a fresh process, so it calls the grower in each of these surroundings.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ..laws import examples
from ..laws.domain import DOMAIN, table
from ..laws.examples import Example
from ..laws.given import halved
from ..laws.registry import Item, items
from ..laws.strategies import least_case
from ..laws.world import filled
from .loading import BrokenGrower, Grower, command_grower, load_grower

MENDED, FAILS, BROKEN = 0, 1, 2
MOST = 100  # calls before: a second
Grow = Callable[[Any, Mapping[str, int]], Any]


def run(item: Item, grower: Any, example: Example) -> BaseException | None:
    """What the law says of an example; None: that it holds."""
    try:
        item.replay(grower, example)
    except Exception as error:
        return error
    return None


def as_it_is(grow: Grow) -> Grow:
    """The grower itself."""
    return grow


def in_filled_memory(grow: Grow) -> Grow:
    """The grower where fresh memory is full of NaN: what it never writes shows."""

    def growing(model: Any, target: Mapping[str, int]) -> Any:
        with filled():
            return grow(model, target)

    return growing


def after_another(grow: Grow) -> Grow:
    """The grower, each time after a model of the same sizes: what it remembers shows.

    Each has other weights than the one before, or a law that compares two growths would
    find what is remembered of the one and of the other alike.
    """
    times = itertools.cycle((1, 2, 3))

    def growing(model: Any, target: Mapping[str, int]) -> Any:
        other = model
        for _ in range(next(times)):
            other = halved(other)
        grow(other, dict(target))
        return grow(model, target)

    return growing


# What a grower remembers is of the first call: that with other weights goes first.
SURROUNDINGS: dict[str, Callable[[Grow], Grow]] = {
    "after a call with other weights": after_another,
    "where fresh memory is full of NaN": in_filled_memory,
    "": as_it_is,
}


def failures(
    item: Item, grower: Grower, calls: int, example: Example
) -> dict[str, BaseException]:
    """The surroundings in which the law fails, the plainest first, and what it says there.

    calls: how many there were before, in the run. Where it holds in all surroundings, as
    many are made, up to MOST.
    """
    found: dict[str, BaseException] = {}
    for where, around in SURROUNDINGS.items():
        grower.calls = calls
        if error := run(item, around(grower), example):
            found = {where: error} | found
    if not found:
        given = example.get("case")
        family = given.family if given else DOMAIN.families[0]
        least, grower.calls = least_case(family), 0
        model = least.model()
        while grower.calls < min(calls, MOST):
            with contextlib.suppress(Exception):  # what other laws are there to judge
                grower(model, dict(least.target))
        if error := run(item, grower, example):
            found[f"after {min(calls, MOST)} other calls"] = error
    return found


def readable(example: Example) -> Example:
    """The example with its case. Raises BrokenGrower where this growproof has no such."""
    try:
        given = examples.from_json(example)
        if given:
            table(given["case"].family)  # which may not be installed
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenGrower(f"this growproof has no such case: {error}") from None
    return given


def main(
    folder: Path, spec: str, command: bool, limit: float | None, calls: int, test: str,
    example: Example, claimed: Collection[str],
) -> int:  # fmt: skip
    """Run the law on the example, and say what it says."""
    DOMAIN.features = {*claimed}
    os.chdir(folder)
    sys.path.insert(0, str(folder.resolve()))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    item = items().get(test)
    try:
        grower = command_grower(spec, limit) if command else load_grower(spec)
        if item is None:
            raise BrokenGrower(f"this growproof has no law {test}")
        given = readable(example)
    except BrokenGrower as error:
        print(f"cannot be run: {error}")
        return BROKEN
    print(item.law.sentence)
    found = failures(item, grower, calls, given)
    if not found:
        print("it holds on this example")
        return MENDED
    where, error = next(iter(found.items()))
    if isinstance(error, NotImplementedError):
        print(f"cannot be run: the grower declines this example: {error}")
        return BROKEN
    print(f"{type(error).__name__}: {error}{where and f' ({where})'}")
    return FAILS
