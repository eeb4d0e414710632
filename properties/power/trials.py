"""Known-bad growers on trial before the laws, and known-good ones.

Laws take the Hypothesis settings that are in force when they are imported, and the
faults name their laws: who wants other settings sets them before importing this.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..errors.ledger import Ledger, recording
from ..gate.explain import describe
from ..gate.guarded import forget
from ..gate.loading import Grower
from ..growers.known_bad import BY_NAME, FAULTS, Fault
from ..growers.known_good import GROWERS, REFERENCE, Good
from ..laws import examples
from ..laws.domain import CORE, DOMAIN, USUAL, Domain
from ..laws.registry import Item, items, law_of, trainable
from ..laws.strategies import profile
from ..laws.world import kept
from .detection import DTYPES, by_line
from .picture import Matrix, picture


@dataclass(frozen=True)
class Cell:
    """One law on one fault: whether it was found, after how many examples, and why.

    example: the arguments that it was found with, as JSON; shrunk, if that was asked for.
    """

    fault: str
    law: str
    dtype: str
    found: bool
    examples: int
    seconds: float
    message: str
    example: dict[str, Any] = field(default_factory=dict)


def run(fault: Fault, laws: list[Item], dtype: str) -> Cell:
    """The first of these laws that finds the fault, or the last one, that did not."""
    forget()
    DOMAIN.dtype = getattr(torch, dtype)
    DOMAIN.features = {*CORE, *fault.with_features}
    started, calls, message, found = time.perf_counter(), 0, "", False
    item = laws[-1]
    with examples.watching() as seen, kept():  # a fault may be one of torch's state

        def counted(model: Any, target: Any) -> Any:
            nonlocal calls
            calls += not seen.failed  # what comes after the first is shrinking
            return fault(model, target)

        for item in laws:
            try:
                item.judge(Grower(fault.name, counted))
            except Exception as error:
                crash = not isinstance(error, AssertionError)
                kind = f"{type(error).__name__}: " if crash else ""
                message, found = kind + (str(error).splitlines() or [""])[0], True
                break
    DOMAIN.dtype, DOMAIN.features = torch.float64, set(CORE)
    seconds = round(time.perf_counter() - started, 2)
    example = examples.to_json(seen.failed[-1]) if seen.failed else {}
    return Cell(fault.name, item.name, dtype, found, calls, seconds, message, example)


def named(fault: Fault) -> list[Item]:
    """The items of the law that a fault names."""
    law = law_of(fault.law)
    assert law, f"{fault.name} names {fault.law.__name__}, which is not a law"
    return law.items


def claimed(fault: Fault) -> list[Item]:
    """Every law, but for `trainable`: that is a promise of faults that break it alone."""
    own = law_of(fault.law)
    return [
        item
        for item in items().values()
        if item.law.promise is not trainable or item.law is own
    ]


def right_reason(fault: Fault, cell: Cell) -> bool:
    """Rejected by an assertion that says what the fault says, not by a crash."""
    crash = re.match(r"\w+(Error|Exception): ", cell.message)
    return (
        cell.found and not crash and re.search(fault.reason, cell.message) is not None
    )


def asked_of(good: Good, family: str) -> set[str]:
    """The features of the domain that a known-good grower is asked for in a family."""
    return {*CORE, *good.with_features, family} - ({*USUAL} - {family})


def promised(good: Good, family: str) -> list[Item]:
    """The laws that a known-good grower promises to keep, on what it is asked for."""
    asked = asked_of(good, family)
    kept, domain = {*good.promises, *asked}, Domain(asked)
    return [
        item
        for item in items().values()
        if {item.law.promise.name, *item.law.needs} <= kept
        and not domain.lacks(item.arguments)
    ]


def false_alarms(most: int, store: Path | None) -> int:
    """Laws on known-good growers that promise them, in llama or stablelm; 1 on an alarm.

    Which, is by chance: as many as come to about `most` examples. What was run is
    counted and stored, added to what lies there from earlier runs.
    """
    growers = (REFERENCE, *GROWERS)
    pairs = [(good, family, item) for good in growers for family in USUAL
             for item in promised(good, family)]  # fmt: skip
    jobs = random.sample(pairs, min(1 + most // profile().max_examples, len(pairs)))
    record = Ledger()
    counts: Counter[str] = Counter()
    alarms: list[dict[str, str]] = []
    started = time.perf_counter()
    for good, family, item in tqdm(jobs, unit="law", disable=None):

        def counted(model: Any, target: Any, good: Good = good) -> Any:
            counts[good.name] += 1
            return good(model, target)

        forget()
        DOMAIN.features = asked_of(good, family)
        try:
            with recording(record):
                item.judge(Grower(good.name, counted))
        except Exception as error:
            told = {"grower": good.name, "family": family, "law": item.name,
                    "message": str(error)}  # fmt: skip
            alarms.append(told)
            print("FALSE ALARM {grower} {family} {law}: {message}".format(**told))
    DOMAIN.features = set(CORE)
    worst = {law: max(r.ratio for r in rs) for law, rs in record.laws.items()}
    result = {
        "examples": counts.total(),
        "by_grower": dict(counts),
        "laws": len({item.name for _, _, item in jobs}),
        "families": len({family for _, family, _ in jobs}),
        "alarms": alarms,
        "worst_ratio": {law: round(ratio, 4) for law, ratio in worst.items()},
        "seconds": round(time.perf_counter() - started),
    }
    if store and store.exists():
        result = together(json.loads(store.read_text()), result)
    print(json.dumps(result, indent=1))
    if store:
        store.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return int(bool(alarms))


def together(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two records of runs as one: what is counted is added, the worst is the worst of both."""
    worst = a["worst_ratio"], b["worst_ratio"]
    return {
        **{name: a[name] + b[name] for name in ("examples", "alarms", "seconds")},
        **{name: max(a[name], b[name]) for name in ("laws", "families")},
        "by_grower": dict(Counter(a["by_grower"]) + Counter(b["by_grower"])),
        "worst_ratio": {
            law: max(w.get(law, 0.0) for w in worst) for law in worst[0] | worst[1]
        },
    }


def matrix(cells: list[Cell], store: Path | None, drawn: Path | None) -> int:
    """What --all-laws stores, and draws of its first dtype.

    Exit 1 if there is a fault that no law finds in float64.
    """
    found: dict[str, Matrix] = {}
    for c in cells:
        laws_of = found.setdefault(c.dtype, {}).setdefault(c.fault, {})
        if c.found:
            laws_of[c.law] = c.examples
    if store:
        store.write_text(json.dumps(found, indent=1) + "\n")
    if drawn:
        dtype, faults = next(iter(found.items()))
        drawn.write_text(picture(faults, dtype))
    for dtype, faults in found.items():
        least = min(faults, key=lambda fault: len(faults[fault]))
        print(f"{dtype}: found by the fewest laws, {len(faults[least])}: {least}")
    return int(not all(found.get("float64", {}).values()))


def table(cells: list[Cell], *, smallest: bool = False) -> str:
    """The detection table as text, 100 columns; below each line the smallest case."""
    lines = [f"{'fault':<26}{'law':<46}{'dtype':<10}{'found':<7}{'after':>5}{'s':>7}"]
    for c in cells:
        found = "yes" if c.found else "no"
        law = c.law.removeprefix("test_")[:44]
        lines.append(
            f"{c.fault:<26}{law:<46}{c.dtype:<10}{found:<7}{c.examples:>5}{c.seconds:>7.1f}"
        )
        if smallest and c.found:
            lines.append(f"    {describe(examples.from_json(c.example)['case'])}")
    return "\n".join(lines)


def stored(cell: Cell) -> dict[str, Any]:
    """What is told of it: not how long it took, which is another each time, and the
    example in float64 alone, in which it is replayed.
    """
    left = {"seconds"} if cell.dtype == "float64" else {"seconds", "example"}
    return {name: value for name, value in asdict(cell).items() if name not in left}


def detect(options: argparse.Namespace) -> int:
    """The table of these options; exit 1 if float64 hides a fault from its law."""
    jobs = [
        (fault, laws, dtype)
        for fault in [BY_NAME[name] for name in options.faults] or FAULTS
        for dtype in options.dtype or DTYPES
        for laws in (
            [[item] for item in claimed(fault)] if options.all_laws else [named(fault)]
        )
    ]
    cells = [run(*job) for job in tqdm(jobs, unit="cell", disable=None)]
    print(table(cells, smallest=options.smallest))
    if options.all_laws:
        return matrix(cells, options.json, options.picture)
    if options.json:
        options.json.write_text(by_line(map(stored, cells)))
    truth = [c for c in cells if c.dtype == "float64"]
    missed = [c for c in truth if not right_reason(BY_NAME[c.fault], c)]
    for c in missed:
        wanted = f"{c.law} to say {BY_NAME[c.fault].reason!r}"
        print(f"MISSED {c.fault}: expected {wanted}, got {c.message or 'nothing'}")
    print(
        f"{len(truth) - len(missed)} of {len(truth)} found in float64, for their reason"
    )
    return int(bool(missed))
