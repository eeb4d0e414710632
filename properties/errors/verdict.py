"""The verdict of a stored run: red where the run was red, with a baseline or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import comparison
from .comparison import Change
from .ledger import Ledger, Loss, Record


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the three forms show."""

    ledger: Ledger
    base: Ledger | None = None
    changes: Sequence[Change] = ()
    factor: float = comparison.FACTOR
    history: Sequence[Ledger] = ()
    benchmarks: Sequence[dict[str, Any]] = ()

    @property
    def over(self) -> list[Record]:
        """The records over their budget, but of laws that were expected to fail."""
        expected = {f.law for f in self.ledger.run.failures if f.expected}
        return [
            r for r in self.ledger.records.values()
            if r.over and r.key[0] not in expected - self.ledger.broken.keys()
        ]  # fmt: skip

    @property
    def lost(self) -> list[Loss]:
        """The losses beyond their tolerance."""
        return [x for x in self.ledger.losses.values() if x.over]

    @property
    def problems(self) -> list[str]:
        """What makes the run red: tests, then budgets, then the comparison."""
        run, over = self.ledger.run, {r.key[0] for r in self.over}
        problems = []
        if run.failed or self.ledger.broken:
            failed = run.failed or sum(map(len, self.ledger.broken.values()))
            problems.append(f"{failed} of {max(run.tests, failed)} tests failed")
        if over:
            problems.append(f"{_many(len(over), 'law')} over budget")
        if self.lost:
            problems.append(f"{_many(len(self.lost), 'loss', 'losses')} over tolerance")
        if any(change.failed for change in self.changes):
            problems.append(f"against the baseline {self.compared}")
        return problems

    @property
    def failed(self) -> bool:
        """Whether the report is red, and its exit code 1."""
        return bool(self.problems)

    @property
    def compared(self) -> str:
        """E.g. "2 worse, 40 same"."""
        return comparison.counts(self.changes) if self.base else "no baseline"

    @property
    def verdict(self) -> str:
        """One sentence, for the first line of every form."""
        grower = self.ledger.environment.get("grower") or "the run"
        if not self.failed:
            return f"{grower} conforms: {'; '.join(self._kept())}; {self.compared}"
        promises = {row.promise for row in self.ledger.run.score if row.failed}
        named = f" violates {', '.join(sorted(promises))}" if promises else " fails"
        problems = "; ".join(self.problems)
        told = "" if self.compared in problems else f"; {self.compared}"
        return f"{grower}{named}: {problems}{told}"

    def _kept(self) -> list[str]:
        """What a green run says of itself."""
        run = self.ledger.run
        expected = sum(bool(f.expected) for f in run.failures)
        said = [f"none of {run.tests} tests failed"] if run.tests else []
        said += [f"{_many(expected, 'failure')} as expected"] if expected else []
        judged = any(r.budget is not None for r in self.ledger.records.values())
        return said + (["every error is within its budget"] if judged else [])


def _many(n: int, one: str, more: str = "") -> str:
    """ "1 law", "2 laws"."""
    return f"{n} {one if n == 1 else more or one + 's'}"
