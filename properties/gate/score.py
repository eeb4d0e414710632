"""The score page: promise × family × axis, at the end of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest

from ..errors.ledger import ledger_of

COLUMNS = ("passed", "failed", "expected", "skipped")


def properties(item: pytest.Item) -> list[tuple[str, object]]:
    """What a report must carry to be scored, through xdist and into JUnit."""
    params: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    markers = [m.name for m in item.iter_markers()]
    promise = next(
        (
            p
            for p in ("reference", "lossless", "zero_padding", "hygiene", "trainable")
            if p in markers
        ),
        "",
    )
    return [
        ("promise", promise),
        ("family", str(params.get("family", "all"))),
        ("axis", str(params.get("axis", "all"))),
        ("tier", tier(item)),
    ]


def tier(item: pytest.Item) -> str:
    """The claim tier of a law: how far its yes reaches."""
    if item.name.split("[")[0].endswith("_exhaustive"):
        return "exhaustive"
    if "certif" in item.nodeid:
        return "certified"
    if "integration" in item.nodeid:
        return "measured"
    return (
        "sampled"
        if hasattr(getattr(item, "function", None), "hypothesis")
        else "tested"
    )


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
            laws[key].add(
                report.nodeid.rpartition("::")[2].split("[")[0].removeprefix("test_")
            )
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
