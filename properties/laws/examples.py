"""An example: what a law was tested on, seen when it fails, stored, and tested again."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from hypothesis.errors import UnsatisfiedAssumption

from .models import Case

Example = dict[str, Any]  # argument → a Case, or what JSON has
PLAIN = (Case, str, int, float, bool)


@dataclass
class Seen:
    """What laws have to tell: the example at hand, those that they failed on, in order,
    so that the last one is shrunk, and what they counted. case: the last that was grown.
    """

    example: Example = field(default_factory=dict)
    case: Case | None = None
    failed: list[Example] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


_seen: ContextVar[Seen | None] = ContextVar("seen", default=None)


@contextmanager
def watching() -> Iterator[Seen]:
    """What the laws that are run meanwhile tell."""
    token = _seen.set(seen := Seen())
    try:
        yield seen
    finally:
        _seen.reset(token)


def count(**numbers: int) -> None:
    """Add to the counts of whoever is watching."""
    if seen := _seen.get():
        seen.counts.update(numbers)


def growing(case: Case) -> None:
    """Note the case that a law has grown, drawn or not."""
    if seen := _seen.get():
        seen.case = case


def current() -> Example:
    """The example at hand, if someone is watching."""
    return seen.example if (seen := _seen.get()) else {}


def to_json(example: Example) -> dict[str, Any]:
    """The example as JSON has it."""
    return {k: x.to_json() if isinstance(x, Case) else x for k, x in example.items()}


def from_json(data: Mapping[str, Any]) -> Example:
    """The inverse."""
    return {k: Case.from_json(x) if isinstance(x, dict) else x for k, x in data.items()}


def recorded(body: Callable[..., Any], chosen: Mapping[str, Any]) -> Callable[..., Any]:
    """The body of a law's test, whose failing examples are seen by who is watching.

    chosen: the arguments that are pytest's, and no part of the example.
    """

    @functools.wraps(body)
    def run(**given: Any) -> Any:
        __tracebackhide__ = True
        example = {
            name: x
            for name, x in given.items()
            if isinstance(x, PLAIN) and name not in chosen
        }
        if "data" in given:
            given["data"] = Drawn(given["data"], example)
        seen = _seen.get() or Seen()
        seen.example = example
        try:
            return body(**given)
        except UnsatisfiedAssumption:  # a grower that declines: no failure
            raise
        except Exception:
            seen.failed.append(example)
            raise

    return run


def replay(body: Callable[..., Any], example: Example, **rest: Any) -> None:
    """The body of a law's test, on this example."""
    interactive = "data" in signature(body).parameters
    body(**({"data": Redrawn(example)} if interactive else example), **rest)


class Drawn:
    """`st.data()`: what is drawn becomes part of the example, under its label."""

    def __init__(self, data: Any, example: Example) -> None:
        self.data, self.example = data, example

    def draw(self, strategy: Any, label: str) -> Any:
        """A value that Hypothesis draws."""
        self.example[label] = self.data.draw(strategy, label)
        return self.example[label]


class Redrawn:
    """`st.data()` of a replay: what is drawn is that of the example."""

    def __init__(self, example: Example) -> None:
        self.example = example

    def draw(self, strategy: Any, label: str) -> Any:
        """The value of this label."""
        del strategy
        return self.example[label]
