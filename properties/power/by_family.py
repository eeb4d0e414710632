"""Fault × family: which law finds each known-bad grower in each family.

    growproof power --families --json by_family.json     # goes on where it was stopped

What `check --family F` draws in `quick` is drawn once for each law and family, and each
fault is replayed on it: the law that the fault names first, then the others, until one
rejects it. A family that has not what a fault needs (`Fault.needs`) has no such fault: it
is `absent` there, and its law is seen to reject nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from growproof.families import FAMILIES
from growproof.models import plan_model
from torch import Tensor
from tqdm import tqdm

from ..gate.domain import narrow
from ..gate.guarded import forget
from ..gate.loading import Grower
from ..growers.known_bad import BY_NAME, FAULTS, Fault, rebuilt
from ..growers.needs import has
from ..laws import examples
from ..laws.domain import DOMAIN
from ..laws.examples import Example
from ..laws.models import Case
from ..laws.promises import PROMISES
from ..laws.registry import Item
from ..laws.world import kept
from .detection import by_line
from .trials import claimed, named

RESULTS = Path(__file__).with_name("by_family.json")
Outcome = Literal["found", "absent", "missed"]


@dataclass(frozen=True)
class Cell:
    """One fault in one family. law: that found it, after so many examples; message: its.

    crash: what else than a violation came of it, first.
    """

    fault: str
    family: str
    outcome: Outcome
    law: str = ""
    after: int = 0
    message: str = ""
    crash: str = ""


# of a test with arguments: Hypothesis's plugin seeds its draws by its name, too
SEED = "_hypothesis_internal_add_digest"


def name_in_check(item: Item) -> bytes:
    """The item as pytest names it in a checkout."""
    place = item.law.test.__module__.replace(".", "/")
    return f"{place}.py::{item.name}".encode()


class Asked(BaseException):
    """A grower was called: what an example holds has been drawn."""


_DRAWN: dict[tuple[str, frozenset[str]], list[Example]] = {}


def drawn(item: Item) -> list[Example]:
    """The examples on which `quick` runs an item in the domain at hand, without running it."""
    key = item.name, frozenset(DOMAIN.features)
    if key not in _DRAWN:
        _DRAWN[key] = draw(item)
    return _DRAWN[key]


def draw(item: Item) -> list[Example]:
    """As above: the body of the law's test is left as soon as it asks the grower."""
    test: Any = item.law.test
    if not hasattr(test, "hypothesis"):
        return [{}]
    found: list[Example] = []
    body = test.hypothesis.inner_test

    def ask(model: Any, target: Mapping[str, int]) -> Any:
        plan_model(model.config, target)  # what growproof declines is not an example
        found.append(dict(examples.current()))
        raise Asked

    @functools.wraps(body)
    def until_asked(**given: Any) -> None:
        with contextlib.suppress(Asked):
            body(**given)

    if item.arguments:
        setattr(until_asked, SEED, name_in_check(item))
    test.hypothesis.inner_test = until_asked
    try:
        with examples.watching():
            test(grower=ask, **item.arguments)
    finally:
        test.hypothesis.inner_test = body
    return found


def asked(fault: Fault) -> tuple[list[Item], list[Item]]:
    """The items of the fault's own law, and of the others, in the domain at hand.

    Of the others those of the same promise first, and those that more faults name.
    """
    popular = Counter(f.law.__name__ for f in FAULTS)
    own = named(fault)
    rest = [item for item in claimed(fault) if item.law is not own[0].law]
    rest.sort(
        key=lambda item: (
            item.law.promise is not own[0].law.promise,
            -popular[item.law.test.__name__],
        )
    )

    def judges(item: Item) -> bool:
        needs = {*item.law.needs} - {*PROMISES}
        return needs <= DOMAIN.features and not DOMAIN.lacks(item.arguments)

    return [*filter(judges, own)], [*filter(judges, rest)]


def tried(fault: Fault, family: str, items: list[Item], *, rarely: bool) -> Cell:
    """The first of these items that rejects the fault, on the examples of `quick`.

    rarely: leave out the examples whose weights are as they should be.
    """
    crash = ""
    for item in items:
        for i, example in enumerate(drawn(item), 1):
            if rarely and unharmed(fault, item, example):
                continue
            try:
                with kept():
                    rejecting(item, Grower(fault.name, fault), fresh(example))
            except AssertionError as error:
                message = (str(error).splitlines() or [""])[0][:120]
                return Cell(
                    fault.name, family, "found", item.law.name, i, message, crash
                )
            except Exception as error:  # of a fault that this family has no room for
                crash = crash or f"{item.law.name}: {error!r}"[:300]
                break
    return Cell(fault.name, family, "missed", crash=crash)


def fresh(example: Example) -> Example:
    """The same, with a config of its own: laws and faults may write into that."""
    return examples.from_json(copy.deepcopy(examples.to_json(example)))


def rejecting(item: Item, grower: Grower, example: Example) -> None:
    """The item on this example, or as it is if it draws none."""
    item.replay(grower, example) if example else item.judge(grower)


def unharmed(fault: Fault, item: Item, example: Example) -> bool:
    """Whether weights and config are as they should be; False where others are edited."""
    if "case" not in example or fault.does or fault.model not in (None, rebuilt):
        return False
    if not (fault.table or fault.state or fault.config):
        return False
    dtype = item.arguments.get("dtype") or example.get("dtype", "float64")
    case, plain = example["case"], replace(fault, table=None, state=None, config=None)
    options = json.dumps(fault.chosen(case.hf_config, case.target))
    source, wanted, config = right(case, dtype, options, plain)
    _, new, told = fault.edited(source, dict(case.target))
    return told.to_dict() == config and all(
        torch.equal(w, new[name]) for name, w in wanted.items()
    )


_RIGHT: dict[tuple[Case, str, str], tuple[Any, dict[str, Tensor], dict[str, Any]]] = {}


def right(
    case: Case, dtype: str, options: str, plain: Fault
) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """The source of a case, and the weights and the config that it should be grown to."""
    key = case, dtype, options
    if key not in _RIGHT:
        source = case.model(getattr(torch, dtype))
        _, weights, config = plain.edited(source, dict(case.target))
        _RIGHT[key] = source, weights, config.to_dict()
    return _RIGHT[key]


def run(fault: Fault, family: str) -> Cell:
    """The law that finds a fault in a family, or that it is none there."""
    forget()
    narrow((), fault.with_features, (family,))
    own, others = asked(fault)
    applies = has(family, fault.needs)
    cell = tried(fault, family, own, rarely=not applies)
    if cell.outcome == "found":
        return cell
    if not applies:
        return replace(cell, outcome="absent")
    # a law may ask for another config than that of the case
    found = tried(fault, family, others, rarely=fault.config is None)
    return replace(found, crash=cell.crash or found.crash)


# --- the table ------------------------------------------------------------------------


def told(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """A fault a line: law → family → examples that it took; where it is no fault; missed."""
    lines: dict[str, Any] = {
        f.name: {"fault": f.name, "found": {}, "absent": [], "missed": []}
        for f in FAULTS
    }
    order = list(FAMILIES)
    for cell in sorted(cells, key=lambda c: order.index(c.family)):
        line = lines[cell.fault]
        if cell.outcome == "found":
            line["found"].setdefault(cell.law, {})[cell.family] = cell.after
        else:
            line[cell.outcome].append(cell.family)
    return [
        line
        for line in lines.values()
        if line["found"] or line["absent"] or line["missed"]
    ]


def load(path: Path = RESULTS) -> list[Cell]:
    """The cells of a stored table."""
    return [
        cell
        for line in json.loads(path.read_text("utf-8"))
        for cell in (
            *(Cell(line["fault"], family, "found", law, after)
              for law, families in line["found"].items()
              for family, after in families.items()),
            *(Cell(line["fault"], family, outcome)
              for outcome in ("absent", "missed") for family in line[outcome]),
        )
    ]  # fmt: skip


def judged(
    faults: Iterable[Fault], families: Iterable[str], path: Path | None
) -> Iterator[Cell]:
    """A cell for each fault in each family; those that lie at `path` are taken from there."""
    kept = path.read_text("utf-8").splitlines() if path and path.exists() else []
    done = {(c.fault, c.family): c for c in (Cell(**json.loads(line)) for line in kept)}
    jobs = [(fault, family) for family in families for fault in faults]
    for fault, family in tqdm(jobs, unit="cell", disable=None):
        cell = done.get((fault.name, family))
        if cell is None:
            cell = run(fault, family)
            if path:
                with path.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(asdict(cell)) + "\n")
        yield cell


def main(options: argparse.Namespace) -> int:
    """Run the faults in every family, store the table; exit 1 where one is missed.

    A run that is stopped goes on where it was: beside the table, a line a cell. What the
    table says of other faults than these stays.
    """
    faults = [BY_NAME[name] for name in options.faults] or FAULTS
    families = [name for name, family in FAMILIES.items() if not family.draws]
    path = options.json.with_suffix(".jsonl") if options.json else None
    cells = [*judged(faults, families, path)]
    if options.faults and path and options.json.exists():
        names = {fault.name for fault in faults}
        cells += [c for c in load(options.json) if c.fault not in names]
    counts = Counter(c.outcome for c in cells)
    print(", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
    for c in cells:
        if c.outcome == "missed":
            print(f"MISSED {c.fault} in {c.family} {c.crash}")
    if path:
        options.json.write_text(by_line(told(cells)), "utf-8")
        path.unlink()
    return int(counts["missed"] > 0)
