"""The pytest plugin: choose a grower, draw its domain, judge it, and print a score.

    pytest properties --grower mypackage:grow --without layers --hypothesis-profile thorough

`growproof check` is this. Promises are markers, so -m selects them.
"""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import math
import os
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis.errors import Unsatisfiable
from transformers.utils import logging

from ..errors.ledger import ledger_of, recording
from ..laws import registry
from ..laws.domain import DOMAIN
from ..laws.examples import Seen, watching
from ..laws.grown import Grown
from ..laws.models import Case
from ..laws.registry import PROMISES, law_of, reference
from ..laws.strategies import profile
from ..laws.world import kept
from . import ending, findings, guarded, options, score, xfails
from .domain import MORE, OURS, UnknownName, narrow
from .judged import Judged
from .loading import DEFAULT, BrokenGrower, Grower, command_grower, load_grower, probe

SUITE = __name__.rsplit(".", 2)[0]  # properties, or growproof.properties
pytest_plugins = (f"{SUITE}.errors.plugin",)

pytest_addoption = options.add_options


def pytest_configure(config: pytest.Config) -> None:
    if registry.LAWS:
        raise pytest.UsageError(
            "laws take the Hypothesis profile of their import: it came too early"
        )
    settings.load_profile(config.option.hypothesis_profile or "quick")
    for name, text in options.MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # small tensors: threads cost more than they bring
    gc.freeze()  # models come and go by the thousand; what is imported does not
    gc.set_threshold(20_000, 20, 50)  # some of them at a time
    try:
        config.pluginmanager.register(Gate(config), "growproof")
        guarded.tell("started", "yes")
    except (BrokenGrower, UnknownName, xfails.XfailError) as error:
        raise pytest.UsageError(str(error)) from None


# As functions: a session fixture that is a method is an error from pytest 9.2 on.
@pytest.fixture(scope="session")
def grower(pytestconfig: pytest.Config) -> Judged:
    """The grower under test."""
    return gate(pytestconfig).judged


@pytest.fixture(scope="session", name="reference_grow")
def reference_grower() -> Callable[..., Grown]:
    """growproof's own grower with its options, on a case."""
    return reference_grow


def gate(config: pytest.Config) -> Gate:
    """The one Gate of this run."""
    found = config.pluginmanager.get_plugin("growproof")
    assert isinstance(found, Gate)
    return found


class Gate:
    """One run of the suite on one grower."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.option
        self.config, self.option = config, option
        self.worker = hasattr(config, "workerinput")
        own = option.grower in (None, DEFAULT) and not option.grower_command
        self.left_out = narrow(
            option.without, option.with_features, option.family, own=own
        )
        self.first: list[tuple[Case, Any]] = []
        self.chosen = self.choose()
        self.judged = Judged(self.chosen, self.first)
        self.expected = xfails.load(Path(option.xfails)) if option.xfails else {}
        self.failures: dict[str, xfails.Expected] = {}
        self.deselected: Counter[str] = Counter()
        self.nothing: str | None = None
        self.ended = ""  # how a process of the run ended before the run did
        self.session: pytest.Session | None = None
        self.scripted = False  # whether each failure carries the script that repeats it
        self.seen = Seen()
        self.known: dict[str, dict[str, Any]] = {}
        self.looked = None if option.verbose > 0 else Counter[tuple[str, str]]()
        self.findings: list[dict[str, Any]] = []
        self.outdated: list[str] = []
        for path in filter(None, (option.write_xfails, getattr(option, "score", None))):
            if not Path(path).absolute().parent.is_dir():
                raise xfails.XfailError(f"{path}: there is no such directory")
        if option.write_xfails and Path(option.write_xfails).exists():
            raise xfails.XfailError(
                f"{option.write_xfails} exists: name another file, or remove it"
            )
        name = option.hypothesis_profile or "quick"
        fixed = settings.get_profile(name).derandomize
        ledger_of(config).environment.update(
            grower=self.chosen.name,
            profile=name,
            seed="derandomized" if fixed else option.hypothesis_seed,
        )

    def choose(self) -> Grower:
        """The grower under test. Raises BrokenGrower if it cannot grow anything."""
        named, command = self.option.grower, self.option.grower_command
        if named and command and named != os.environ.get("GROWPROOF_GROWER"):
            raise BrokenGrower("choose --grower or --grower-command, not both")
        grower = (
            command_grower(command, self.option.grower_timeout)
            if command
            else load_grower(named or DEFAULT)
        )
        self.is_reference = grower.name == DEFAULT
        self.first = probe(grower)
        return grower

    def pytest_report_header(self) -> list[str]:
        versions = ", ".join(
            f"{name} {version(name)}"
            for name in ("growproof", "torch", "transformers", "hypothesis")
        )
        out = ", ".join(self.left_out) or "nothing"
        chosen = self.option.markexpr
        promises = chosen if chosen not in ("", "law") else "all"
        claims = ", ".join(sorted(DOMAIN.features & set(MORE))) or "nothing"
        return [
            f"grower: {self.chosen.name} ({versions})",
            f"{self.option.hypothesis_profile or 'quick'} "
            f"({profile().max_examples} examples a law); promises: {promises}; "
            f"without: {out}; with: {claims}",
        ]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        """Leave out what is not claimed; after -k and -m, add what xfails lack."""
        known = {item.name for item in items}
        kept, dropped = [], []
        for item in items:
            relabel(item)
            reason = self.left_out_by(item)
            (dropped if reason else kept).append(item)
            if reason:
                self.deselected[reason] += 1
        if dropped:
            self.config.hook.pytest_deselected(items=dropped)
        # a sentence about one example says more of a cause than one about all weights
        items[:] = sorted(kept, key=is_certificate)
        yield
        today = datetime.date.today()
        for entry in self.expected.values():
            problem = entry.problem(known, today)
            if problem:
                items.append(
                    xfails.Stale.from_parent(session, name=entry.law, problem=problem)
                )

    def left_out_by(self, item: pytest.Item) -> str | None:
        """The feature for want of which an item is not run."""
        law = law_of(getattr(item, "function", None))
        if not self.is_reference and (law is None or law.promise is reference):
            return OURS
        needed = {p for mark in item.iter_markers("needs") for p in mark.args}
        needed |= {p for p in PROMISES if item.get_closest_marker(p)}
        for feature in self.left_out:
            if feature in needed or item.get_closest_marker(feature):
                return feature
        if unclaimed := sorted(needed & {*MORE} - DOMAIN.features):
            return unclaimed[0]
        params: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        return DOMAIN.lacks(params)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.judged.begin()
        item.user_properties += score.properties(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Keep the item's own largest error; a law that found no example is declined."""
        watched = score.Watched(ledger_of(self.config))
        with recording(watched), watching() as self.seen, kept():
            try:
                return (yield)
            except Unsatisfiable:
                refusals = self.judged.refusals
                if not refusals:
                    raise
                pytest.skip(f"{score.DECLINED}{refusals.most_common(1)[0][0]}")
            finally:
                item.user_properties.append(("worst", watched.worst))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when != "call" or report.skipped:
            return report
        entry = self.expected.get(item.name)
        if self.seen.counts:
            share = (self.seen.counts["moving"], self.seen.counts["total"])
            report.user_properties.append(("share", share))
        if report.failed and call.excinfo is not None:
            self.tell(item, call.excinfo.value, report)
        if isinstance(item, xfails.Stale):
            xfails.outdated(report, str(report.longrepr))
        elif entry is not None:
            xfails.expect(report, entry)
        return report

    def tell(
        self, item: pytest.Item, error: BaseException, report: pytest.TestReport
    ) -> None:
        """Add what was found, the error's size and the script to a failed report."""
        report.user_properties.append(("ratio", getattr(error, "ratio", math.nan)))
        law = law_of(getattr(item, "function", None))
        if law is None or law.promise is reference:
            return
        item_of = registry.items().get(within(item))
        example = drawn = self.seen.failed[-1] if self.seen.failed else {}
        if not drawn and self.seen.case:  # a law that draws nothing: no other example
            example = {"case": self.seen.case}
        found = findings.found(
            law, item_of if drawn else None, example, error, self.judged, self.known,
            self.looked,
        )  # fmt: skip
        if item_of and example.get("case") and self.option.repro_dir:
            path = findings.write_script(
                Path(self.option.repro_dir), item_of, drawn, self.judged
            )
            found["repeat"] = f"python {path}"
        if item_of and example.get("case") and self.scripted:
            found["script"] = findings.script(Path(), item_of, drawn, self.judged)
        found["test"] = item.name
        told = {
            "reason": found["message"], "cause": findings.cause(found),
            "case": found["case"], "repeat": found["repeat"], "finding": found,
        }  # fmt: skip
        report.user_properties += told.items()
        report.longrepr = findings.told(found, error)
        report.sections = [s for s in report.sections if s[0] == "Captured stdout call"]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = dict(report.user_properties)
        finding: Any = found.get("finding")
        if "outdated" in found and not self.worker:
            self.outdated.append(str(found["outdated"]))
        if report.when != "call" or self.worker or not finding:
            return
        if report.failed:
            ratio = float(found["ratio"])  # pyright: ignore[reportArgumentType]
            ceiling = ratio if math.isfinite(ratio) else None
            expires = datetime.date.today() + datetime.timedelta(days=90)
            self.findings.append(finding)
            self.failures[finding["test"]] = xfails.Expected(
                finding["test"], findings.cause(finding), "", expires, ceiling
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Leave the score in the ledger, before it is stored."""
        result = yield
        if not self.worker:
            ledger_of(self.config).run.score = score.tallies(self.stats())
        return result

    def stats(self) -> dict[str, list[Any]]:
        """pytest's word for an outcome → its reports."""
        reporter: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        return reporter.stats

    @pytest.hookimpl(wrapper=True, trylast=True)  # around all that store something
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, object, object]:
        """The outcome; it is none where what was asked for could not be stored."""
        self.finish(session, exitstatus)
        try:
            result = yield
            if self.option.write_xfails and not self.worker:
                xfails.dump(self.failures.values(), Path(self.option.write_xfails))
            return result
        except OSError as error:
            what = error.filename or "a file that was asked for"
            self.nothing = f"no verdict: {what} was not written: {error.strerror}"
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            return None

    def finish(self, session: pytest.Session, exitstatus: int) -> None:
        """The outcome."""
        asked, self.session = self.judged.asked, session
        if self.worker:
            vars(self.config)["workeroutput"]["growproof_asked"] = asked.plain()
            return
        self.nothing = score.nothing_judged(self.stats(), asked)
        if self.ended:
            self.nothing = (
                "no verdict: a process of the run, and of the grower, ended before the run "
                f"did ({self.ended}); -n 0 runs in one"
            )
        if self.nothing and exitstatus in (0, pytest.ExitCode.TESTS_FAILED):
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        if error:
            self.ended = str(error)
        found = getattr(node, "workeroutput", {}).get("growproof_asked")
        if found is not None:
            self.judged.asked.merge(found)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        ending.summary(self, terminalreporter)

    def pytest_unconfigure(self) -> None:
        """The last line: a sentence; and the verdict, for who supervises the run."""
        if not self.worker:
            code = int(self.session.exitstatus) if self.session else "as it ends"
            guarded.tell("verdict", str(code))
        reporter: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        if self.worker or reporter is None or self.config.option.collectonly:
            return
        if said := ending.sentence(self):
            reporter.write_line(said)


def is_certificate(item: pytest.Item) -> bool:
    """Whether a law speaks of all weights of a shape."""
    law = law_of(getattr(item, "function", None))
    return law is not None and law.tier == "certified"


def relabel(item: pytest.Item) -> None:
    """Mark what replays a law with the promise of that law, not of the corpus."""
    own = law_of(getattr(item, "function", None))
    if own is None or within(item) == item.name:
        return
    replayed = registry.items()[within(item)].law
    item.own_markers[:] = [m for m in item.own_markers if m.name != own.promise.name]
    item.add_marker(replayed.promise.name)


def within(item: pytest.Item) -> str:
    """The name of the law's item that this one runs: itself, or what a corpus replays."""
    params: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return str(params.get("name") or getattr(params.get("worst"), "law", item.name))


def version(package: str) -> str:
    """The installed version of a package, or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def reference_grow(case: Any, **options: Any) -> Grown:
    """The case, grown by growproof with the given options."""
    import growproof

    source = case.model()
    return Grown(case, source, growproof.grow(source, case.target, **options))
