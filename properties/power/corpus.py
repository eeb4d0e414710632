"""What long runs found: the worst cases, which `quick` replays, and that none failed.

    python -m properties.power.runs runs                 # ten seeds, hours
    python -m properties.power.corpus runs/*/errors.json

adds the runs of these ledgers to runs.json, and to worst.json, for each law, the cases
with the largest errors of all runs so far.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import storage
from ..errors.ledger import KEY, Ledger
from ..laws.examples import Example, from_json
from ..laws.models import Case
from ..laws.registry import Item, items
from .detection import RESULTS, by_line

PATH = Path(__file__).with_name("worst.json")
RUNS = Path(__file__).with_name("runs.json")
KEPT = 2  # per law


class Worst(NamedTuple):
    """One case, the law that it is bad for, and how bad it was when it was found."""

    law: str  # the item, as pytest names it
    ratio: float
    case: Case

    def to_json(self) -> dict[str, Any]:
        """The entry, as it is stored."""
        return {**self._asdict(), "case": self.case.to_json()}


def load() -> list[Worst]:
    """The committed corpus."""
    return [
        Worst(w["law"], w["ratio"], Case.from_json(w["case"]))
        for w in json.loads(PATH.read_text())
    ]


def faulty() -> Iterator[tuple[dict[str, Any], Example]]:
    """The cells of the committed detection table in float64, with their examples."""
    for cell in json.loads(RESULTS.read_text()):
        if cell["dtype"] == "float64":
            yield cell, from_json(cell["example"])


def runs() -> list[dict[str, Any]]:
    """The committed runs."""
    return json.loads(RUNS.read_text())


def merged(worst: Iterable[Worst]) -> list[Worst]:
    """The worst KEPT cases of each law, each case once."""
    best: dict[tuple[str, Case], Worst] = {}
    for w in sorted(worst, key=lambda w: (-w.ratio, w.case.text)):
        best.setdefault((w.law, w.case), w)
    laws = sorted({w.law for w in best.values()})
    return [
        w for law in laws for w in [w for w in best.values() if w.law == law][:KEPT]
    ]


def found_in(book: Ledger) -> list[Worst]:
    """The worst case of each key, where it is one of a law that takes a grower."""
    found = []
    for r in book.records.values():
        item = item_of(dict(zip(KEY, r.key, strict=True)))
        if item and 0 < r.ratio < float("inf"):
            case = Case.from_json(json.loads(r.example))
            found.append(Worst(item.name, round(r.ratio, 4), case))
    return found


def item_of(key: dict[str, str]) -> Item | None:
    """The item that records this key: of a law's items, the one that says most of it."""
    own = [item for item in items().values() if item.law.name == key["law"]]
    said = set(key.values())
    return max(own, key=lambda i: len(said & set(i.arguments.values())), default=None)


def summary(book: Ledger) -> dict[str, Any]:
    """A line of runs.json: what ran, in what, and each law's largest error."""
    told = ("grower", "profile", "seed", "commit", "torch", "transformers", "cpu")
    worst = {law: max(r.ratio for r in rs) for law, rs in book.laws.items()}
    return {
        **{name: book.environment[name] for name in told},
        **{name: vars(book.run)[name] for name in ("tests", "failed", "growths")},
        "worst_ratio": {law: round(ratio, 4) for law, ratio in worst.items()},
    }


def main(paths: list[str]) -> None:
    """Add the ledgers of these paths; a run of the same grower and seed is replaced."""
    known = {(r["grower"], r["profile"], r["seed"]): r for r in runs()}
    worst = load()
    for path in paths:
        book = storage.load(path)
        line = summary(book)
        known[line["grower"], line["profile"], line["seed"]] = line
        worst += found_in(book)
    PATH.write_text(by_line(w.to_json() for w in merged(worst)))
    lines = sorted(known.values(), key=lambda r: int(r["seed"]))
    RUNS.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
