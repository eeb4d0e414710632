"""The worst cases ever found, kept: `quick` replays them for every grower.

    growproof check --hypothesis-profile thorough --errors-save errors.json
    python -m properties.corpus errors.json     # adds this run's worst to worst.json

A ledger names the example of each key's largest ratio; the corpus keeps, for each law,
the few with the largest ratios of all runs.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from . import ledger
from .strategies import Case

PATH = Path(__file__).with_name("worst.json")
KEPT = 3  # per law


class Worst(NamedTuple):
    """One case, the law that it is bad for, and how bad it was when it was found."""

    law: str
    ratio: float
    case: str


def parse(text: str) -> Case:
    """The Case whose repr this is. Raises ValueError for anything but literals."""
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Case":
        raise ValueError(f"expected Case(...), got {text[:60]!r}")
    fields: dict[str, Any] = {
        str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords
    }
    return Case(**fields)


def load() -> list[Worst]:
    """The committed corpus."""
    return [Worst(**entry) for entry in json.loads(PATH.read_text())]


def merged(kept: list[Worst], found: list[Worst]) -> list[Worst]:
    """The worst KEPT cases of each law, each case once."""
    best: dict[tuple[str, str], Worst] = {}
    for worst in sorted((*kept, *found), key=lambda w: -w.ratio):
        best.setdefault((worst.law, worst.case), worst)
    laws = dict.fromkeys(sorted(w.law for w in best.values()))
    return [
        w for law in laws for w in [w for w in best.values() if w.law == law][:KEPT]
    ]


def found_in(path: Path) -> list[Worst]:
    """The worst case of each key of a stored ledger, where the case is a Case."""
    records = ledger.load(path).records.values()
    return [
        Worst(r.key[0], round(r.ratio, 4), r.example)
        for r in records
        if r.example.startswith("Case(") and 0 < r.ratio < float("inf")
    ]


if __name__ == "__main__":
    stored = load() if PATH.exists() else []
    for name in sys.argv[1:]:
        stored = merged(stored, found_in(Path(name)))
    PATH.write_text(json.dumps([w._asdict() for w in stored], indent=1) + "\n")
