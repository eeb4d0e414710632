"""The score page: promise × family × axis, at the end of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from ..errors.ledger import Comparison, Ledger, Loss, Tally
from ..laws.domain import AXES
from ..laws.registry import PROMISES, law_of
from .judged import Asked
from .verdict import wrapped

COLUMNS = ("passed", "failed", "errors", "expected", "declined", "skipped")
OUTCOMES = {"error": "errors", "xfailed": "expected"}  # pytest's words
DECLINED = "declined: "


class Watched(Ledger):
    """A ledger that hands everything on to that of the run, and keeps the largest ratio."""

    def __init__(self, book: Ledger) -> None:
        super().__init__(run=book.run)
        self.book, self.worst = book, 0.0

    def add(self, comparison: Comparison) -> None:
        """Hand a comparison on."""
        self.worst = max(self.worst, comparison.ratio)
        self.book.add(comparison)

    def add_loss(self, loss: Loss) -> None:
        """Hand a loss on."""
        self.book.add_loss(loss)


def properties(item: pytest.Item) -> list[tuple[str, object]]:
    """What a report must carry to be scored, through xdist and into JUnit."""
    law = law_of(getattr(item, "function", None))
    if law is None:
        return []
    params: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    axis = str(params.get("axis", ""))
    promises = (*PROMISES, law.promise.name)  # what replays a law is marked as that one
    return [
        ("law", law.name),
        ("promise", next(p for p in promises if item.get_closest_marker(p))),
        ("family", str(params.get("family", "all"))),
        ("axis", axis if axis in AXES else "all"),
        ("tier", law.tier),
    ]


def nothing_judged(stats: dict[str, list[Any]], asked: Asked) -> str | None:
    """Why this run is no verdict, in a sentence, or None where it is one."""
    errors = [r for r in stats.get("error", []) if hasattr(r, "when")]
    if stats.get("failed"):
        return None
    if errors:
        first = errors[0]
        return (
            f"no verdict: {len(errors)} tests could not be set up, the first of them "
            f"{first.nodeid.rpartition('::')[2]} ({first.when}): that is a fault of the "
            "suite or of its environment, not of the grower"
        )
    if asked.declined and not asked.calls["growths"]:
        reason, n = asked.declined.most_common(1)[0]
        return (
            f"no verdict: the grower declined all {asked.declined.total()} growths, {n} "
            f"times with: {reason}. Leave out what it does not claim, --without FEATURE"
        )
    return None


def column(report: Any, outcome: str) -> str:
    """The column that a report is counted in."""
    if outcome == "skipped" and DECLINED in str(report.longrepr):
        return "declined"
    return OUTCOMES.get(outcome, outcome)


def judged(stats: dict[str, list[Any]]) -> int:
    """How many tests came to an end, whatever it was."""
    return sum(
        len(stats.get(outcome, []))
        for outcome in ("passed", "failed", "skipped", "xfailed", "xpassed")
    )


Key = tuple[str, str, str]  # promise, family, axis


def scored(
    stats: dict[str, list[Any]],
) -> Iterator[tuple[str, dict[str, Any], pytest.TestReport]]:
    """(column, properties, report) of every report that is counted."""
    for outcome in ("passed", "failed", "error", "xfailed", "skipped"):
        for report in stats.get(outcome, []):
            told = dict(getattr(report, "user_properties", ()))
            if told.get("promise"):
                yield column(report, outcome), told, report


def rows(stats: dict[str, list[Any]]) -> dict[Key, list[tuple[str, dict[str, Any]]]]:
    """promise, family, axis → (column, properties) of every report, in order."""
    found: dict[Key, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for name, told, _ in scored(stats):
        found[told["promise"], told["family"], told["axis"]].append((name, told))
    return dict(sorted(found.items()))


def tallies(stats: dict[str, list[Any]]) -> list[Tally]:
    """The score page as the ledger keeps it."""
    return [
        Tally(promise=p, family=f, axis=a, **Counter(name for name, _ in reports))
        for (p, f, a), reports in rows(stats).items()
    ]


def merged(table: dict[Key, list[Any]]) -> dict[tuple[str, str], list[Any]]:
    """The rows of all axes together."""
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for (promise, family, _), reports in table.items():
        found[promise, family] += reports
    return found


def page(reporter: Any, asked: Asked) -> None:
    """Print the score page of this run's reports, each row with its own largest error."""
    table = rows(reporter.stats)
    if not table:
        return
    reporter.section("score")
    used = {name for reports in table.values() for name, _ in reports}
    shown = [name for name in COLUMNS if name == "passed" or name in used]
    wide = reporter._tw.fullwidth >= 80
    line = "{:<13}{:<9}" + "{:>9}" * len(shown) + "{:>11}"
    head = ("promise", "family", *shown, "max error")
    reporter.line(line.format(*head) + "  tier" * wide)
    for (promise, family), reports in merged(table).items():
        counts = Counter(name for name, _ in reports)
        tiers = ", ".join(sorted({told["tier"] for _, told in reports}))
        worst = max(told.get("worst", 0.0) for _, told in reports)
        error = f"{worst:.2g}" if worst else "–"
        cells = [counts[name] for name in shown]
        text = line.format(promise, family, *cells, error)
        reporter.line(text + f"  {tiers}" * wide)
    for text in domain(asked):
        for part in wrapped(text, reporter._tw.fullwidth, "", "  "):
            reporter.line(part)
    shares = [told["share"] for r in table.values() for _, told in r if "share" in told]
    if new := sum(total for _, total in shares):
        moving = sum(moving for moving, _ in shares)
        reporter.line(
            f"new parameters with a gradient at the first step: {moving / new:.1%}"
        )


def domain(asked: Asked) -> list[str]:
    """What was drawn: a verdict is told with its domain."""
    lines = []
    if asked.calls:
        axes = ", ".join(f"{axis} {n}" for axis, n in asked.axes.items() if n)
        sizes = ", ".join(f"{name} {n}" for name, n in asked.largest.items())
        lines = [
            f"domain: {', '.join(sorted(asked.families))} in "
            f"{', '.join(sorted(asked.dtypes))}, up to {sizes}",
            f"growths judged: {asked.calls['growths']}"
            f"{f', of {axes}' if axes else ''}; nothing to grow in "
            f"{asked.calls['nothing to grow']} more",
        ]
    for reason, n in asked.declined.most_common(3):
        lines.append(f"declined {n}: {reason}")
    if len(asked.declined) > 3:
        lines.append(f"declined for {len(asked.declined) - 3} other reasons as well")
    return lines
