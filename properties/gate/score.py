"""The score page: promise × family × axis, at the end of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest

from ..errors.ledger import ledger_of
from ..laws.registry import law_of

COLUMNS = ("passed", "failed", "expected", "skipped")


def properties(item: pytest.Item) -> list[tuple[str, object]]:
    """What a report must carry to be scored, through xdist and into JUnit."""
    law = law_of(getattr(item, "function", None))
    if law is None:
        return []
    params: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return [
        ("law", law.name),
        ("promise", law.promise.name),
        ("family", str(params.get("family", "all"))),
        ("axis", str(params.get("axis", "all"))),
        ("tier", law.tier),
    ]


def page(reporter: Any) -> None:
    """Print the score page of this run's reports."""
    rows: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    tiers: dict[tuple[str, ...], set[str]] = defaultdict(set)
    laws: dict[tuple[str, ...], set[str]] = defaultdict(set)
    shares = []
    for column, outcome in zip(
        COLUMNS, ("passed", "failed", "xfailed", "skipped"), strict=True
    ):
        for report in reporter.stats.get(outcome, []):
            found = dict(getattr(report, "user_properties", ()))
            if not found.get("promise"):
                continue
            key = (found["promise"], found["family"], found["axis"])
            rows[key][column] += 1
            tiers[key].add(found["tier"])
            laws[key].add(found["law"])
            shares += [v for k, v in report.user_properties if k == "share"]
    if not rows:
        return
    reporter.section("score")
    line = "{:<13}{:<9}{:<29}{:>7}{:>7}{:>9}{:>8}  {:<19}{:>10}"
    reporter.line(
        line.format("promise", "family", "axis", *COLUMNS, "tier", "max error")
    )
    errors = ledger_of(reporter.config)
    worst = {law: max(r.ratio for r in rs) for law, rs in errors.laws.items()}
    for key in sorted(rows):
        error = max((worst.get(law, 0.0) for law in laws[key]), default=0.0)
        cells = (rows[key][column] for column in COLUMNS)
        names = ", ".join(sorted(tiers[key]))
        reporter.line(
            line.format(*key, *cells, names, f"{error:.2g}" if error else "–")
        )
    if shares:
        moving, total = (sum(s[i] for s in shares) for i in (0, 1))
        reporter.line(
            f"new parameters with a gradient at the first step: {moving / total:.1%}"
        )
