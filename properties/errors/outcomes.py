"""What became of the items of a run: the failures and the score of its ledger.

All is read off pytest's reports, which come through xdist. A report may carry, as
`user_properties`: promise, family and axis, for the score; and of a failure law, case,
cause and repeat (a command), and reason, its first line.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from .ledger import Failure, Key, Score

LONGEST = 500  # characters of a message


class Outcomes:
    """The failures and the score, as reports come in."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.rows: dict[Key, Score] = {}

    @property
    def score(self) -> list[Score]:
        """The score page, in order."""
        return [row for _, row in sorted(self.rows.items())]

    def add(self, report: pytest.TestReport) -> None:
        """Count a report of setup, call or teardown."""
        name = outcome(report)
        if name is None:
            return
        said: dict[str, Any] = dict(report.user_properties)
        if name in ("failed", "errors", "expected"):
            self.failures.append(failure(report, said))
        if said.get("promise"):
            key = tuple(str(said.get(n, "")) for n in ("promise", "family", "axis"))
            row = self.rows.setdefault(
                key, Score(promise=key[0], family=key[1], axis=key[2])
            )
            self.rows[key] = dataclasses.replace(row, **{name: vars(row)[name] + 1})


def outcome(report: pytest.TestReport) -> str | None:
    """The column of the score that a report counts in; None for a setup that passed."""
    if report.failed:
        return "failed" if report.when == "call" else "errors"
    if report.skipped:
        if hasattr(report, "wasxfail"):
            return "expected"
        return "declined" if "declined" in reason(report) else "skipped"
    return "passed" if report.when == "call" else None


def reason(report: pytest.TestReport) -> str:
    """Why an item was skipped, or the last line of why it failed."""
    found = report.longrepr
    if isinstance(found, tuple):
        return str(found[2])
    crash = getattr(found, "reprcrash", None)
    return str(crash.message if crash else found or "")


def failure(report: pytest.TestReport, said: dict[str, Any]) -> Failure:
    """The failure that a report tells of."""
    test = report.nodeid.rpartition("::")[2]
    text = str(said.get("reason") or reason(report)).strip()
    return Failure(
        law=str(said.get("law") or test.partition("[")[0].removeprefix("test_")),
        test=test,
        message=text.partition("\n")[0][:LONGEST],
        expected=str(getattr(report, "wasxfail", "")),
        **{name: str(said.get(name, "")) for name in ("case", "cause", "repeat")},
    )
