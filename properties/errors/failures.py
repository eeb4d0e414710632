"""What failed in a run, read off pytest's reports, which come through xdist.

A report may carry, as `user_properties` of a failure: law, case, cause, repeat (a
command), and reason, which is its first line.
"""

from __future__ import annotations

from typing import Any

import pytest

from .ledger import Failure

LONGEST = 500  # characters of a message


def failure_of(report: pytest.TestReport) -> Failure | None:
    """The failure that a report of setup, call or teardown tells of, if it does."""
    expected = report.skipped and hasattr(report, "wasxfail")
    if not report.failed and not expected:
        return None
    told: dict[str, Any] = dict(report.user_properties)
    test = report.nodeid.rpartition("::")[2]
    text = str(told.get("reason") or _reason(report)).strip()
    return Failure(
        law=str(told.get("law") or test.partition("[")[0].removeprefix("test_")),
        test=test,
        message=text.partition("\n")[0][:LONGEST],
        expected=str(getattr(report, "wasxfail", "") or "xfail") if expected else "",
        **{name: str(told.get(name, "")) for name in ("case", "cause", "repeat")},
    )


def _reason(report: pytest.TestReport) -> str:
    """Why an item failed, as pytest has it."""
    found = report.longrepr
    crash = getattr(found, "reprcrash", None)
    return str(crash.message if crash else found or "")
