"""How a run ends on the terminal: what was left out, what is wrong, and the last line."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from ..laws.domain import known_families
from . import score, verdict

if TYPE_CHECKING:
    from .plugin import Gate


def summary(gate: Gate, reporter: Any) -> None:
    """What was left out, the score, and what is wrong."""
    width = reporter._tw.fullwidth

    def tell(text: str) -> None:
        for line in verdict.wrapped(text, width, "", "  "):
            reporter.line(line)

    if gate.option.verbose < 0:
        for text in gate.pytest_report_header():
            tell(text)
    if gate.deselected:
        counts = (f"{n} {reason}" for reason, n in summed(gate.deselected))
        tell("left out: " + ", ".join(counts))
    score.page(reporter, gate.judged.asked)
    if gate.findings:
        reporter.section("what is wrong")
        for line in verdict.blocks(gate.findings, width):
            reporter.line(line)
    told = {finding["test"] for finding in gate.findings}
    others = [
        report.nodeid.rpartition("::")[2]
        for report in gate.stats().get("failed", [])
        if "outdated" not in dict(report.user_properties)
    ]
    if rest := [name for name in others if name not in told]:
        reporter.section("failed besides, of growproof itself")
        tell(", ".join(rest))
    if gate.outdated:
        reporter.section("expected failures that are out of date")
        for text in gate.outdated:
            tell(text)


def summed(deselected: Counter[str]) -> list[tuple[str, int]]:
    """Why laws were left out, and how many: those of the same sort of family at once."""
    found = Counter[str]()
    for reason, n in deselected.items():
        found["of other families" if reason in known_families() else reason] += n
    return found.most_common()


def sentence(gate: Gate) -> str:
    """What the run says of the grower; "" where it says nothing of it."""
    stats, name = gate.stats(), gate.chosen.name
    if gate.nothing:
        return gate.nothing
    if said := stopped(gate):
        return said
    if gate.findings:
        return verdict.violated(name, gate.findings)
    if gate.outdated:
        return f"{name}: its expected failures are out of date"
    if not stats.get("passed") or stats.get("failed") or stats.get("error"):
        return ""
    told = (dict(r.user_properties) for r in stats["passed"])
    held = {str(found["promise"]) for found in told if "promise" in found}
    return verdict.conforms(name, held) if held else ""


def stopped(gate: Gate) -> str:
    """How far a run came that did not end by itself; "" for one that did."""
    how = {
        pytest.ExitCode.INTERRUPTED: "interrupted",
        pytest.ExitCode.INTERNAL_ERROR: "an internal error",
    }
    stats, session = gate.stats(), gate.session
    if session is None or session.exitstatus not in how or stats.get("error"):
        return ""
    done, failed = score.judged(stats), len(stats.get("failed", []))
    return (
        f"no verdict: {how[pytest.ExitCode(session.exitstatus)]} after {done} of "
        f"{session.testscollected} tests, of which {failed} failed"
    )
