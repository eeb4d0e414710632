"""pytest's side of the score page: --score, --sign and --edition.

The gate judges; here what it found is collected when the run ends, in the controller
under xdist, and stored.
"""

from __future__ import annotations

import importlib.metadata
import shlex
from collections import Counter, defaultdict
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from ..errors import storage
from ..errors.failures import failure_of
from ..errors.ledger import ledger_of
from ..errors.sections import grouped
from ..errors.storage import finite
from ..gate import ending, verdict
from ..gate import score as counted
from ..gate.domain import OURS
from ..gate.loading import DEFAULT
from ..laws.domain import AXES, DOMAIN, EXTRAS, OPTIONS
from ..laws.registry import PROMISES, SUITE, law_of, reference
from . import edition
from .document import (
    Besides,
    Cause,
    Count,
    Error,
    Expected,
    JudgedLaw,
    Row,
    Score,
    dumps,
)

if TYPE_CHECKING:
    from ..gate.plugin import Gate

pytest_plugins = (f"{SUITE}.gate.plugin",)
ABSENT = "laws in files that were not named"
LIBRARIES = ("growproof", "torch", "transformers", "hypothesis", "pytest", "numpy")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("growproof score")
    group.addoption(
        "--score", metavar="FILE",
        help="write what this run says of the grower, as JSON for `growproof report`",
    )  # fmt: skip
    group.addoption(
        "--sign", action="store_true",
        help="with a digest, that `growproof report --check FILE` verifies",
    )  # fmt: skip
    group.addoption(
        "--edition", metavar="YEAR",
        help="the laws of an edition and no other, e.g. 2027",
    )  # fmt: skip


@pytest.hookimpl(trylast=True)  # the gate is there by then
def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    if option.sign and not option.score:
        raise pytest.UsageError("--sign needs --score FILE: it is that file's digest")
    if option.edition:
        try:
            edition.edition(option.edition)
        except ValueError as error:
            raise pytest.UsageError(f"--edition: {error}") from None
    if option.score or option.edition:
        config.pluginmanager.register(Collector(config), "growproof-score")


class Collector:
    """Keeps to the edition that is asked for, and writes the score."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.option = config, config.option
        self.worker = hasattr(config, "workerinput")
        self.gate: Gate = config.pluginmanager.get_plugin("growproof")  # pyright: ignore[reportAttributeAccessIssue]
        self.gate.scripted = bool(self.option.score)
        # what was not run → how many: left out by the claim, cut by other arguments
        self.left_out: dict[str, int] = {}
        self.cut: dict[str, int] = {}
        self.note = ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        """Leave out what is not of the edition, and count what else is left out."""
        if self.option.edition:
            self.keep_to_edition(items)
        wanted = set(edition.edition(self.option.edition) if self.option.edition
                     else edition.judging())  # fmt: skip
        there = [(item, law_of(getattr(item, "function", None))) for item in items]
        absent = wanted - {law.name for _, law in there if law}
        claimed = {item for item, law in there
                   if law and law.name in wanted and not self.gate.left_out_by(item)}  # fmt: skip
        yield
        o = self.option
        asked = {"-k": o.keyword, "-m": o.markexpr if o.markexpr != "law" else ""}
        words = " ".join(f"{name} {value!r}" for name, value in asked.items() if value)
        cut = {
            f"not selected by {words}": len(claimed - {*items}),
            ABSENT: len(absent),
        }
        self.cut = {what: n for what, n in cut.items() if n}
        self.left_out = dict(self.gate.deselected)
        self.left_out.pop(OURS, None)

    def keep_to_edition(self, items: list[pytest.Item]) -> None:
        """Drop all other laws. Raises UsageError where one is not as the edition has it."""
        name = self.option.edition
        wanted = edition.edition(name)
        if changed := edition.differences(edition.present(), wanted):
            more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise pytest.UsageError(
                f"these are not the laws of edition {name}: {'; '.join(changed[:3])}{more}."
                " Install the growproof that a page of that edition names"
            )
        laws = [law_of(getattr(item, "function", None)) for item in items]
        kept = [law is not None and law.name in wanted for law in laws]
        dropped = [item for item, keep in zip(items, kept, strict=True) if not keep]
        if dropped:
            self.config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item, keep in zip(items, kept, strict=True) if keep]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Store the score of a run that came to a verdict."""
        if self.worker:
            told = {"left_out": self.left_out, "cut": self.cut}
            vars(self.config)["workeroutput"]["growproof_score"] = told
        if self.worker or not self.option.score:
            return
        code = session.exitstatus
        if code not in (0, 1) or session.shouldstop or session.shouldfail:
            self.note = "no score was written: the run came to no verdict"
            return
        made = self.score(conforms=code == 0)
        storage.write(self.option.score, dumps(made, sign=self.option.sign))
        name = shlex.quote(self.option.score)
        self.note = f"score in {name}: growproof report {name} --html score.html"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Every worker collects the same."""
        found = getattr(node, "workeroutput", {}).get("growproof_score", {})
        vars(self).update(found)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Where the score is."""
        if self.note:
            terminalreporter.line(self.note)

    # --- the parts of a score ---------------------------------------------------------

    def score(self, *, conforms: bool) -> Score:
        """All of it."""
        from .missed import power  # its laws take the settings of the run

        judge, book = self.gate, ledger_of(self.config)
        asked, laws = judge.judged.asked, self.judged_laws()
        examples = settings.get_profile(book.environment["profile"]).max_examples
        besides, name = self.besides(), judge.chosen.name
        first = f": {besides[0].test}: {besides[0].why}" if besides else ""
        return Score(
            grower=name,
            conforms=conforms,
            verdict=ending.sentence(judge) or f"{name} does not conform{first}",
            created=storage.now(),
            edition="" if self.cut else self.edition(),
            whole=not self.cut,
            command=self.command(),
            claims=self.claims(),
            laws=laws,
            shared=edition.shared(),
            score=self.rows(),
            errors=self.errors(),
            causes=self.causes(),
            besides=besides,
            expected=self.expected(),
            declined=[Count(what=w, times=n) for w, n in asked.declined.most_common()],
            left_out=[
                Count(what=what, times=n)
                for what, n in sorted(
                    (self.left_out | self.cut).items(), key=lambda x: -x[1]
                )
            ],
            domain={
                "families": sorted(asked.families),
                "dtypes": sorted(asked.dtypes),
                "largest": dict(asked.largest),
                "grown": {axis: n for axis, n in asked.axes.items() if n},
            },
            power=power({law.name: law.items for law in laws}, examples),
            run={
                "tests": sum(len(law.items) for law in laws),
                "growths": asked.calls["growths"],
                "profile": book.environment["profile"],
                "examples": examples,
                "seed": str(book.environment["seed"]),
            },
            versions=versions(book.environment["python"]),
            machine={
                name: str(book.environment[name])
                for name in (
                    "cpu",
                    "cpu_capability",
                    "gpu",
                    "threads",
                    "blas",
                    "commit",
                )
                if book.environment[name] is not None
            },
        )

    def judged_laws(self) -> list[JudgedLaw]:
        """Every law with an item that was run, in the order of the suite."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for column, told, report in counted.scored(self.gate.stats()):
            test = report.nodeid.rpartition("::")[2]
            if told["promise"] != reference.name:
                found[told["law"]][test.partition("[")[2].removesuffix("]")] = column
        return [
            JudgedLaw(
                name=name,
                version=law.version,
                source=edition.source(law),
                promise=law.promise.name,
                tier=law.tier,
                sentence=law.sentence,
                items=dict(sorted(found[name].items())),
            )
            for name, law in edition.judging().items()
            if name in found
        ]

    def edition(self) -> str:
        """The edition whose laws these are, where all of them were asked."""
        return self.option.edition or edition.edition_of(edition.present())

    def claims(self) -> dict[str, list[str]]:
        """What the grower is said to keep, and of what."""
        out = self.gate.left_out
        return {
            "families": DOMAIN.families,
            "axes": [axis for axis in AXES if DOMAIN.has(axis)],
            "options": [x for x in (*OPTIONS, *EXTRAS) if DOMAIN.has(x)],
            "promises": [
                p.name
                for p in PROMISES.values()
                if p.name not in out and (not p.asked_for or DOMAIN.has(p.name))
            ],
            "without": out,
        }

    def rows(self) -> list[Row]:
        """Promise × family × axis × tier."""
        found: dict[tuple[str, ...], list[tuple[str, float]]] = defaultdict(list)
        for column, told, _ in counted.scored(self.gate.stats()):
            key = tuple(str(told[n]) for n in ("promise", "family", "axis", "tier"))
            found[key].append((column, float(told.get("worst", 0.0))))
        return [
            Row(
                promise=p, family=f, axis=a, tier=t, **Counter(name for name, _ in seen),
                worst=finite(max(worst for _, worst in seen)),
            )
            for (p, f, a, t), seen in sorted(found.items())
        ]  # fmt: skip

    def errors(self) -> list[Error]:
        """The largest error of each law, dtype and kernel, the least headroom first."""
        return [
            Error(
                law=r.key[0], dtype=r.key[1], kernel=r.key[2], cases=r.cases,
                largest=finite(r.ratio), ulps=finite(r.ulps), budget=r.budget,
                example=r.example,
            )
            for r in grouped(ledger_of(self.config).records.values())
        ]  # fmt: skip

    def causes(self) -> list[Cause]:
        """Each cause, told by the failure that tells most."""
        made: list[Cause] = []
        for cause, found in verdict.by_cause(self.gate.findings).items():
            first = verdict.first_of(found)
            laws = list(dict.fromkeys(finding["law"] for finding in found))
            same = ("promise", "sentence", "message", "tap", "case", "repeat")
            told = {name: str(first[name]) for name in same}
            script = str(first.get("script", ""))
            made.append(Cause(cause=cause, laws=laws, script=script, **told))
        return made

    def besides(self) -> list[Besides]:
        """What failed beside the laws, or could not be set up."""
        told, stats = (
            {finding["test"] for finding in self.gate.findings},
            self.gate.stats(),
        )
        return [
            Besides(test=test, why=(failed.message.splitlines() or [""])[0])
            for outcome in ("failed", "error")
            for report in stats.get(outcome, [])
            if isinstance(report, pytest.TestReport) and (failed := failure_of(report))
            if (test := report.nodeid.rpartition("::")[2]) not in told
        ]

    def expected(self) -> list[Expected]:
        """The failures that were expected, with why, and until when."""
        found: list[Expected] = []
        for column, _, report in counted.scored(self.gate.stats()):
            entry = self.gate.expected.get(report.nodeid.rpartition("::")[2])
            if column == "expected" and entry:
                date = entry.expires.isoformat() if entry.expires else ""
                found.append(
                    Expected(law=entry.law, reason=entry.reason, link=entry.link,
                             expires=date)
                )  # fmt: skip
        return found

    def command(self) -> str:
        """The command that repeats the run."""
        o, words = self.option, ["growproof", "check"]
        if o.grower_command:
            words += ["--grower-command", o.grower_command]
        elif self.gate.chosen.name != DEFAULT:
            words.append(self.gate.chosen.name)
        for name, given in (
            ("--family", o.family), ("--without", o.without), ("--with", o.with_features),
        ):  # fmt: skip
            words += [name, ",".join(given)] if given else []
        for name, value in (
            ("-m", o.markexpr if o.markexpr != "law" else ""), ("-k", o.keyword),
            ("--edition", o.edition), ("--xfails", o.xfails),
            ("--hypothesis-profile", o.hypothesis_profile),
            ("--hypothesis-seed", o.hypothesis_seed),
        ):  # fmt: skip
            words += [name, str(value)] if value else []
        return shlex.join(words)


def versions(python: str) -> dict[str, str]:
    """What the verdict depends on: Python, and the libraries."""
    found = {"python": python}
    for name in LIBRARIES:
        found[name] = importlib.metadata.version(name)
    return found
