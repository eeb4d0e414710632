"""Expected failures: `law | reason | link | expires | ceiling`, one a line.

    # test_eps_grows_along | eps is shared with q/k layernorm | issue 7 | 2027-01-31 | 40

law: a test's name as pytest prints it, with its parameters. reason: needed. link,
expires (YYYY-MM-DD) and ceiling (the largest error that is still expected, in the units
of the budgets) may be empty. An entry that passes, matches nothing, has expired, or got
worse than its ceiling fails the run.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import pytest
from growproof.reading import BadInput, text_in


class XfailError(ValueError):
    """A line that is not an expected failure."""


@dataclass(frozen=True)
class Expected:
    """One expected failure."""

    law: str
    reason: str
    link: str = ""
    expires: datetime.date | None = None
    ceiling: float | None = None

    def problem(self, known: set[str], today: datetime.date) -> str | None:
        """Why this entry fails the run whatever the law does, if it does."""
        if self.law not in known:
            return f"matches no law: {self.law}"
        if self.expires and today > self.expires:
            return f"expired on {self.expires}: {self.law} ({self.reason})"
        return None

    def line(self) -> str:
        """The entry as a line of the file."""
        ceiling = "" if self.ceiling is None else rounded_up(self.ceiling)
        expires = self.expires.isoformat() if self.expires else ""
        reason = self.reason.replace("|", "/")
        return " | ".join((self.law, reason, self.link, expires, ceiling))


def rounded_up(x: float) -> str:
    """Three digits, not below x: what a run was seen at is within its ceiling.

    >>> rounded_up(1.23401), rounded_up(100.0), rounded_up(12345.6)
    ('1.24', '100', '1.24e+04')
    """
    exact = Decimal(x)
    last = Decimal(1).scaleb(exact.adjusted() - 2) if x else Decimal(1)
    return f"{float(exact.quantize(last, ROUND_CEILING)):.3g}"


def parse(line: str, where: str) -> Expected:
    """One line. Raises XfailError naming the place and what is wrong."""
    fields = [field.strip() for field in line.split("|")]
    if len(fields) > 5 or len(fields) < 2 or not fields[0] or not fields[1]:
        raise XfailError(
            f"{where}: expected `law | reason | link | expires | ceiling`, got {line!r}"
        )
    law, reason, link, expires, ceiling = (*fields, "", "", "")[:5]
    try:
        date = datetime.date.fromisoformat(expires) if expires else None
        bound = float(ceiling) if ceiling else None
    except ValueError as error:
        raise XfailError(f"{where}: {error}") from error
    if bound is not None and not math.isfinite(bound):
        raise XfailError(f"{where}: the ceiling must be finite, got {ceiling}")
    return Expected(law, reason, link, date, bound)


def load(path: Path) -> dict[str, Expected]:
    """The expected failures of a file, by law. Raises XfailError."""
    try:
        lines = text_in(path).splitlines()
    except BadInput as error:
        raise XfailError(f"cannot read {error}") from None
    found: dict[str, Expected] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        entry = parse(line, f"{path}:{number}")
        if entry.law in found:
            raise XfailError(f"{path}:{number}: {entry.law} is listed twice")
        found[entry.law] = entry
    return found


def dump(entries: Iterable[Expected], path: Path) -> None:
    """Write a new file. Raises XfailError if there is one already."""
    text = "# law | reason | link | expires | ceiling\n"
    text += "".join(entry.line() + "\n" for entry in entries)
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError as error:
        raise XfailError(f"{path} exists: name another file, or remove it") from error


# --- in a run -------------------------------------------------------------------------


class Stale(pytest.Item):
    """An expected failure that is none any more."""

    problem = ""

    def __init__(self, *, problem: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.problem = problem

    def runtest(self) -> None:
        pytest.fail(f"expected failure {self.problem}", pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.config.rootpath, None, f"xfails::{self.name}"


def outdated(report: pytest.TestReport, why: str) -> None:
    """Fail the report of an entry that must be mended, and say why."""
    report.outcome = "failed"
    report.user_properties.append(("outdated", why))


def expect(report: pytest.TestReport, entry: Expected) -> None:
    """The report of an item that was expected to fail."""
    if report.passed:
        why = f"{entry.law} was expected to fail ({entry.reason}), and passes: remove its line"
        report.longrepr = why
        outdated(report, why)
        return
    ratio = float(dict(report.user_properties).get("ratio", math.nan))  # pyright: ignore[reportArgumentType]
    if entry.ceiling is not None and not ratio <= entry.ceiling:
        why = f"worse than its ceiling: {ratio:.3g} > {entry.ceiling:.3g}"
        report.sections.append(("expected failure", why))
        outdated(report, f"{entry.law} got {why}")
        return
    report.outcome = "skipped"
    report.wasxfail = entry.reason  # pyright: ignore[reportAttributeAccessIssue]
