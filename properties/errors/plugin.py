"""pytest's side of the error ledger: options, xdist, and the comparison as test items.

Each law of the baseline or of this run becomes one item, ``errors::LAW``, which runs
after all others, in the controller under xdist, so that a regression is a failed test
in the terminal, in JUnit and in the exit code. A ledger that is incomplete (a worker
lost, a run stopped early) is neither compared nor stored.
"""

from __future__ import annotations

import textwrap
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from . import comparison, storage
from .comparison import Change
from .environment import environment
from .failures import failure_of
from .ledger import PLUGIN, Ledger, LedgerError, recording


def pytest_addoption(parser: pytest.Parser) -> None:
    """--errors-save, --errors-compare, --errors-fail, --errors-accept."""
    group = parser.getgroup("growproof errors")
    group.addoption(
        "--errors-save",
        metavar="FILE",
        help="store this run's errors as JSON, e.g. errors.json; never over a file",
    )
    group.addoption(
        "--errors-compare",
        metavar="FILE",
        help="compare with the errors stored there: an item errors::LAW fails where "
        "they grew, or where a comparison is gone or not comparable",
    )
    group.addoption(
        "--errors-fail",
        type=float,
        default=comparison.FACTOR,
        metavar="RATIO",
        help="the factor by which errors must have grown to fail (default: 2)",
    )
    group.addoption(
        "--errors-accept",
        metavar="REASON",
        help="store this run over the file of --errors-compare, or over an existing "
        "file of --errors-save; the reason, the date and the changes are kept in it",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make the run's ledger, whose environment takes the grower, profile and seed."""
    worker = hasattr(config, "workerinput")
    config.pluginmanager.register((Worker if worker else Controller)(config), PLUGIN)


class Worker:
    """Sends its ledger to the controller."""

    def __init__(self, config: pytest.Config) -> None:
        self.output: dict[str, Any] = vars(config)["workeroutput"]
        self.ledger = Ledger()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Record what the tests measure."""
        with recording(self.ledger):
            return (yield)

    def pytest_sessionfinish(self) -> None:
        """Hand the ledger over, as text."""
        self.ledger.environment = environment(**self.ledger.environment)
        self.output["growproof_errors"] = storage.dumps(self.ledger)


class ErrorsItem(pytest.Item):
    """A verdict on the errors; fails with its problem, if any."""

    problem: str | None = None

    def runtest(self) -> None:
        """Fail with the problem."""
        if self.problem:
            pytest.fail(self.problem, pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where its report stands: errors::LAW."""
        return self.config.rootpath / "errors", None, self.name


class Controller:
    """Merges, compares and stores; the whole of it where there are no workers."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.option
        self.save: str | None = option.errors_save
        self.compare: str | None = option.errors_compare
        self.factor: float = option.errors_fail
        self.reason: str | None = option.errors_accept
        self.ledger = Ledger()
        self.base: Ledger | None = None
        self.workers: dict[str, bool] = {}  # whether the ledger arrived
        self.changes: list[Change] = []
        self.notes: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Everything that can be wrong with the options is an error before the run."""
        try:
            self._check()
        except LedgerError as error:
            raise pytest.UsageError(str(error)) from None

    def _check(self) -> None:
        """The options, against each other and the files they name. Or LedgerError."""
        if self.reason is not None and not self.reason.strip():
            raise LedgerError("--errors-accept needs a reason, and got an empty one")
        if self.reason and not (self.save or self.compare):
            raise LedgerError("--errors-accept needs --errors-compare or --errors-save")
        for path in filter(None, (self.save, self.compare)):
            if not Path(path).absolute().parent.is_dir():
                raise LedgerError(f"{path}: there is no such directory")
        self.ledger.environment = environment(**self.ledger.environment)
        if self.compare:
            self.base = storage.load(self.compare)
        elif self.save and Path(self.save).exists() and self.reason:
            self.base = storage.load(self.save)
        if self.base:  # another grower or a bad factor is seen before the run
            comparison.compare(self.base, self.ledger, factor=self.factor)
        if self.save and Path(self.save).exists() and not self.reason:
            raise LedgerError(
                f"{self.save} exists: --errors-save overwrites it only with "
                "--errors-accept REASON"
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        """Expect a ledger of this worker."""
        self.workers[node.gateway.id] = False

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Merge what the worker hands over; a crashed one hands over nothing."""
        text = getattr(node, "workeroutput", {}).get("growproof_errors")
        if text is not None:
            self.ledger.merge(storage.loads(text))
            self.workers[node.gateway.id] = True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(
        self, session: pytest.Session
    ) -> Generator[None, object, object]:
        """Record, then compare and store, so that a verdict counts in the exit code."""
        try:
            with recording(self.ledger):
                result = yield
        except BaseException:
            if self.save or self.compare:
                self.notes.append("the run stopped early: not compared, not stored")
            raise
        if (self.save or self.compare) and not session.config.option.collectonly:
            self._finish(session)
        return result

    def _finish(self, session: pytest.Session) -> None:
        """Judge a run that came to its end."""
        failed = self.ledger.run.failed = session.testsfailed
        self.ledger.run.tests = session.testscollected
        self.ledger.created = storage.now()
        if problem := self._incomplete():
            self._run(session, {"complete": problem})
            return
        if self.base:
            self.changes = comparison.compare(
                self.base, self.ledger, factor=self.factor
            )
        if self.compare and not self.reason:
            self._run(session, self._problems())
        if self.reason and failed:
            self._run(session, {"accept": f"not accepted: {failed} tests failed"})
            return
        self._store()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure, for the report."""
        if found := failure_of(report):
            self.ledger.run.failures.append(found)

    def _incomplete(self) -> str | None:
        """Why the ledger is not the whole of the run, if it is not."""
        if lost := [name for name, arrived in self.workers.items() if not arrived]:
            return (
                f"the ledgers of {', '.join(lost)} are lost: not compared, not stored"
            )
        if not self.ledger.records and not self.ledger.losses:
            return "the run recorded no comparison: nothing to compare or store"
        return None

    def _problems(self) -> dict[str, str | None]:
        """law → what failed in it; a law whose own test failed has had its item."""
        laws: dict[str, list[Change]] = {}
        broken = self.ledger.broken
        for change in self.changes:
            if change.law not in broken:
                laws.setdefault(change.law, []).append(change)
        return {law: _problem(rows) for law, rows in sorted(laws.items())}

    def _run(self, session: pytest.Session, problems: dict[str, str | None]) -> None:
        """An item for each, which fails with its problem, if any."""
        session.testscollected += len(problems)
        for name, problem in problems.items():
            item = ErrorsItem.from_parent(session, name=name, nodeid=f"errors::{name}")
            item.problem = problem
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=None)

    def _store(self) -> None:
        """Write the files that the options name."""
        if self.reason and self.base:
            comparison.accept(self.base, self.ledger, self.reason, self.factor)
        over = self.compare if self.reason else None
        for path in dict.fromkeys(filter(None, (self.save, over))):
            storage.write(path, storage.dumps(self.ledger))
            self.notes.append(f"stored in {path}")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What was measured, the least headroom, and the comparison in a line."""
        records = self.ledger.records.values()
        if not records and not self.notes:
            return
        terminalreporter.section("errors")
        total = sum(r.count for r in records)
        grown = self.ledger.run.growths
        terminalreporter.line(
            f"{grown} models grown, {total} comparisons in {len(records)} keys"
        )
        tight = [(r.headroom, r) for r in records if r.headroom is not None]
        if not self.ledger.run.failures:  # which have been told of
            for headroom, r in sorted(tight, key=lambda pair: pair[0])[:3]:
                words = f"  headroom {headroom:.3g}: {r.key[0]} {r.name}".split()
                rows = textwrap.wrap(
                    " ".join(words), terminalreporter._tw.fullwidth,
                    initial_indent="  ", subsequent_indent="    ",
                    break_long_words=False, break_on_hyphens=False,
                )  # fmt: skip
                terminalreporter.write("\n".join(rows) + "\n")
        if self.changes:
            state = "accepted" if self.reason else "compared"
            terminalreporter.line(f"{state}: {comparison.counts(self.changes)}")
        for note in self.notes:
            terminalreporter.line(note)


def _problem(rows: list[Change]) -> str | None:
    """What failed among the changes of one law, the worst first."""
    failed = [row for row in rows if row.failed]
    if not failed:
        return None
    lines = [f"{comparison.counts(rows)}", *(f"  {row}" for row in failed[:20])]
    if len(failed) > 20:
        lines.append(f"  and {len(failed) - 20} more: growproof report shows them all")
    return "\n".join(lines)
