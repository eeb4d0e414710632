"""A law is declared once, at its own test: promise, claim, proof, budget, tier, version.

    @law(zero_padding, claim=claims.LINEAR, proof="linear_padded", budget="block")
    @given(case=cases())
    def test_projections_are_padded(grower, case: Case) -> None: ...

Whatever speaks of laws (ledger, score page, claims table, detection, corpus) reads them
here. While a law runs, `checks.close` asks `running()` which one it is.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import pytest

from . import examples
from .examples import Example
from .promises import PROMISES, Promise
from .promises import hygiene as hygiene  # a law's test takes these from here
from .promises import lossless as lossless
from .promises import reference as reference
from .promises import trainable as trainable
from .promises import zero_padding as zero_padding

Budget = Literal["block", "decoder", "stock", "low", "weights"]  # of checks.BUDGETS
Tier = Literal["proved", "certified", "exhaustive", "sampled", "measured"]
Test = Callable[..., Any]
SUITE, ROOM = __name__.rsplit(".", 2)[0], __name__.rpartition(".")[0]


@dataclass(frozen=True)
class Claim:
    """One sentence of the table of claims. theorems: those that no law cites."""

    sentence: str
    theorems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Law:
    """One property, one test, one sentence.

    proof: the main theorems that prove it of the reference. tier: how far the test's own
    yes reaches. needs: what a grower must claim besides the promise. over: the argument
    names and values that pytest goes through. version: raised where it asks for
    something else than before; editions name it.
    """

    name: str
    promise: Promise
    claim: Claim
    proof: tuple[str, ...]
    budget: Budget | None
    tier: Tier
    needs: tuple[str, ...]
    over: Mapping[str, Sequence[str]]
    test: Test
    version: int = 1

    @property
    def sentence(self) -> str:
        """The first line of the test's docstring: the equation."""
        return (inspect.getdoc(self.test) or "no docstring").splitlines()[0]

    @property
    def promises(self) -> set[str]:
        """All promises without which a grower is not judged by this law."""
        return {self.promise.name, *self.needs} & set(PROMISES)

    @property
    def items(self) -> list[Item]:
        """The test with each of its arguments."""
        values = itertools.product(*self.over.values())
        return [Item(self, dict(zip(self.over, v, strict=True))) for v in values]

    @property
    def marks(self) -> Iterator[pytest.MarkDecorator]:
        """What pytest is told of it."""
        yield pytest.mark.law
        yield getattr(pytest.mark, self.promise.name)
        if self.needs:
            yield pytest.mark.needs(*self.needs)
        if self.over:
            values = [tuple(item.arguments.values()) for item in self.items]
            ids = ["-".join(v) for v in values]
            yield pytest.mark.parametrize(tuple(self.over), values, ids=ids)


@dataclass(frozen=True)
class Item:
    """A law with one choice of its arguments: what pytest calls an item."""

    law: Law
    arguments: Mapping[str, str]

    @property
    def name(self) -> str:
        """As pytest has it: `test_name[argument-argument]`."""
        chosen = f"[{'-'.join(self.arguments.values())}]" if self.arguments else ""
        return self.law.test.__name__ + chosen

    def judge(self, grower: Any) -> None:
        """The test on examples that Hypothesis draws. Raises as the test does."""
        test = self.law.test
        if not hasattr(test, "hypothesis"):  # else its inner test is known already
            test = known(self.law, test)
        test(grower=grower, **self.arguments)

    def replay(self, grower: Any, example: Example) -> None:
        """The test on one example; one that draws none as it is. Raises as the test does."""
        drawn: Any = self.law.test
        if not hasattr(drawn, "hypothesis"):
            self.judge(grower)
            return
        body = drawn.hypothesis.inner_test
        examples.replay(body, example, grower=grower, **self.arguments)


LAWS: dict[str, Law] = {}
_running: ContextVar[Law] = ContextVar("law")


def law(
    promise: Promise,
    *,
    claim: Claim,
    proof: str | tuple[str, ...] = (),
    budget: Budget | None = None,
    tier: Tier = "sampled",
    needs: tuple[str, ...] = (),
    version: int = 1,
    **over: Sequence[str],
) -> Callable[[Test], Test]:
    """Declare the test to be a law: the outermost decorator, as above.

    over: one argument for pytest to go through each, such as family=FAMILIES.
    """

    def declare(test: Test) -> Test:
        this = Law(
            name=test.__name__.removeprefix("test_"),
            promise=promise, claim=claim, budget=budget, tier=tier, needs=needs,
            proof=(proof,) if isinstance(proof, str) else proof, over=over, test=test,
            version=version,
        )  # fmt: skip
        other = LAWS.setdefault(this.name, this)
        if other is not this:
            places = [law.test.__module__ for law in (other, this)]
            raise ValueError(f"two laws are called {this.name}: in {places}")
        drawn: Any = getattr(test, "hypothesis", None)
        if drawn is None:
            test = known(this, test)
        else:
            drawn.inner_test = known(this, examples.recorded(drawn.inner_test, over))
        for mark in this.marks:
            test = mark(test)
        return test

    return declare


def known(law: Law, body: Test) -> Test:
    """The body of a law's test, which law it is known to `running` meanwhile."""

    @functools.wraps(body)
    def run(*arguments: Any, **drawn: Any) -> Any:
        __tracebackhide__ = True
        token = _running.set(law)
        try:
            return body(*arguments, **drawn)
        finally:
            _running.reset(token)

    return run


def running() -> Law:
    """The law whose test is being run. Raises LookupError outside of one."""
    try:
        return _running.get()
    except LookupError:
        raise LookupError(
            "no law is running: decorate the test with @law(…), or say law= and budget="
        ) from None


def law_of(test: Test | None) -> Law | None:
    """The law that a test declares, if it does."""
    found = LAWS.get(test.__name__.removeprefix("test_")) if test else None
    return found if found and found.test.__module__ == test.__module__ else None


def modules(room: str) -> Iterator[ModuleType]:
    """The test modules of a room and the rooms below it, imported, in order of name."""
    for found in pkgutil.walk_packages(import_module(room).__path__, f"{room}."):
        if found.name.rpartition(".")[2].startswith("test_"):
            yield import_module(found.name)


@functools.cache
def laws(room: str = ROOM) -> dict[str, Law]:
    """All laws of a room by name, in the order of its files."""
    return {
        law.name: law
        for module in modules(room)
        for law in LAWS.values()
        if law.test.__module__ == module.__name__
    }


def items(room: str = ROOM) -> dict[str, Item]:
    """Every item of the laws that judge a grower, by its name."""
    judging = [law for law in laws(room).values() if law.promise is not reference]
    return {item.name: item for law in judging for item in law.items}


def item_of(test: Test, *arguments: str) -> Item:
    """A law, named by its own test, with these arguments."""
    law = law_of(test)
    assert law, f"{test.__name__} declares no law"
    return Item(law, dict(zip(law.over, arguments, strict=True)))
