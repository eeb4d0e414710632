"""What a report shows, in order: tables and charts, for every form of it.

The verdict and the failures come first, then the comparison, then what was measured.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import charts
from .charts import Bars, Grid, Lines
from .ledger import Failure, Key, Record
from .verdict import Report

UNIT = (
    "An error of 1 unit is √n times what rounding every weight once does to the same "
    "value, n the terms of the longest sum behind it. Headroom is budget / largest error."
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A chart, a table, or with `stacked` a list whose first two columns are its heads.

    scripts: (name, text) of files that belong to it.
    """

    title: str
    note: str
    header: str = ""  # the columns, a word each
    rows: Sequence[Sequence[str]] = ()
    limit: int = 30
    stacked: bool = False
    opened: bool = False  # in Markdown, where sections are folded
    chart: Bars | Grid | Lines | None = None
    scripts: Sequence[tuple[str, str]] = ()

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return self.header.split()


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is rendered: a verdict, facts as name and value, and sections."""

    heading: str
    verdict: str
    failed: bool
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def page_of(report: Report) -> Page:
    """The page of a run: the sections that have something to say."""
    (_, verdict), *facts = summary(report)
    return Page(
        heading="growproof report",
        verdict=verdict,
        failed=report.failed,
        facts=facts,
        sections=[s for make in MAKERS if (s := make(report)).rows or s.chart],
    )


def summary(report: Report) -> list[tuple[str, str]]:
    """What ran and where, as name and value; the verdict first."""
    book, e = report.ledger, report.ledger.environment
    pairs = [("verdict", report.verdict)]
    if not book.records and not book.losses and not book.run.tests:
        return pairs
    tight = min(book.records.values(), key=tightness, default=None)
    commit = (e["commit"] or "no git")[:12]
    tests = (
        f"{book.run.tests} tests, {book.run.failed} failed, "
        f"{book.run.growths} models grown"
    )
    where = f"{e['profile'] or 'no profile'}, seed {e['seed']}, {commit}"
    return [
        *pairs,
        ("grower", e["grower"] or "not named"),
        ("comparisons", f"{sum(r.count for r in book.records.values()):,}"),
        ("keys", f"{len(book.records)} of {len(book.laws)} laws"),
        ("least headroom", number(tight.headroom, " x") if tight else "-"),
        ("run", f"{tests}; {where}"),
        ("on", f"{e['gpu'] or e['cpu']}, {e['cpu_capability']}, {e['threads']} threads"),
        ("with", f"torch {e['torch']}, {e['blas']}, transformers {e['transformers']}"),
        *[(f"accepted {a['date'][:10]}", f"{a['reason']} ({a['summary']})")
          for a in book.accepted],
    ]  # fmt: skip


# --- what failed ----------------------------------------------------------------------


def failed(report: Report) -> Section:
    """The laws that do not hold: one entry a cause, or a law where no cause is known."""
    book = report.ledger
    causes: dict[str, list[Failure]] = {}
    for law, failures in book.broken.items():
        for f in failures:
            causes.setdefault(f.cause or law, []).append(f)
    rows = [_cause(group, book.environment) for group in causes.values()]
    for r in sorted(report.over, key=tightness):
        if r.key[0] not in book.broken:
            where = f"{number(r.ratio)} units of {number(r.budget)}; e.g. {r.example}"
            rows.append(["over", f"{r.key[0]}: {r.name}", where])
    rows += [
        ["over", f"loss: {' '.join(x.key)}",
         f"changed by {percent(x.relative)}, tolerance {percent(x.tolerance or 0)}"]
        for x in report.lost
    ]  # fmt: skip
    return Section(
        title="What failed",
        note="The laws that do not hold, the smallest case, and how to repeat it.",
        header="state law what",
        rows=rows,
        stacked=True,
        opened=True,
    )


def _cause(group: list[Failure], environment: dict[str, Any]) -> list[str]:
    """The failures of one cause: its laws, the smallest case, and how to repeat it."""
    first = min(group, key=lambda f: (not f.case, len(f.case), f.test))
    laws = list(dict.fromkeys(f.law for f in group))
    tests = f" ({len(group)} tests)" if len(group) > 1 else ""
    parts = [
        first.message,
        first.cause and f"cause: {first.cause}",
        first.case and f"case: {first.case}",
        f"repeat: {first.repeat or _command(first, environment)}",
    ]
    return ["failed", ", ".join(laws) + tests, "\n".join(p for p in parts if p)]


def _command(failure: Failure, environment: dict[str, Any]) -> str:
    """A command that runs the test again, on the same examples."""
    grower, seed = environment["grower"], environment["seed"]
    command = ["growproof", "check"] if grower else ["pytest"]
    command += [grower] if grower else []
    command += ["-k", _selected(failure.test or failure.law)]
    if environment["profile"] not in (None, "quick"):
        command.append(f"--hypothesis-profile={environment['profile']}")
    if seed not in (None, "derandomized"):
        command.append(f"--hypothesis-seed={seed}")
    return shlex.join(command)


def _selected(test: str) -> str:
    """What -k takes for a test's name: its words where it holds a comma or a space."""
    if re.fullmatch(r"[\w\[\].:+-]+", test):
        return test
    return " and ".join(re.findall(r"[\w.+-]+", test))


def score(report: Report) -> Section:
    """Promise × family × axis: how many items came to what."""
    found = sorted(report.ledger.run.score, key=lambda row: -row.failed - row.errors)
    counts = ["failed", "passed"] + [
        name
        for name in ("errors", "declined", "skipped", "expected")
        if any(vars(row)[name] for row in found)
    ]
    names = ["promise", "family", "axis", *counts]
    return Section(
        title="Score",
        note="Tests by what the grower promises, the family and the axis that grows.",
        header=" ".join(names),
        rows=[[str(vars(row)[name]) for name in names] for row in found],
    )


def changed(report: Report) -> Section:
    """What became worse, is gone, new or improved; a law that is gone is one line."""
    laws, lost = report.ledger.laws, Counter[str]()
    rows: list[list[str]] = []
    for c in report.changes:
        if c.state == "gone" and c.law not in laws and c.law != "losses":
            lost[c.law] += 1
        elif c.state != "same":
            rows.append([c.state, f"{c.law}: {c.name}", c.note])
    gone = [["gone", f"{law}, the whole law", f"{n} keys"] for law, n in lost.items()]
    return Section(
        title="Changes against the baseline",
        note=f"{report.compared}; worse is beyond {report.factor:g} times the baseline.",
        header="state key what",
        rows=gone + rows,
        stacked=True,
        opened=True,
    )


# --- what was measured ----------------------------------------------------------------


def laws(report: Report) -> Section:
    """Each law's errors, the least headroom first."""
    groups = grouped(report.ledger.records.values())
    rows = [
        [*r.key, f"{r.cases}", number(r.quantile(0.5)), number(r.ratio), number(r.ulps),
         number(r.budget), number(r.headroom, " x")]
        for r in groups
    ]  # fmt: skip
    return Section(
        title="Errors against their budgets, the least headroom first",
        note=UNIT,
        header="law dtype kernel cases median max ulps budget headroom",
        rows=rows,
        chart=charts.budgets([(r, _used(r)) for r in groups[:40] if r.budget]),
    )


def _used(r: Record) -> str:
    """What stands beside a bar."""
    largest = f"{number(r.ratio)} units of {number(r.budget)}" if r.ratio else "exact"
    return f"{largest}, over budget" if r.over else largest


def layers(report: Report) -> Section:
    """The chart of the errors inside the layers."""
    return Section(
        title="Error through the layers",
        note="The largest relative error at each tap inside the layers, over all laws.",
        chart=charts.layers(report.ledger.records.values()),
    )


def ladder(report: Report) -> Section:
    """The losses before and after growing, beside the article's."""
    losses = list(report.ledger.losses.values())
    rows = [
        [x.name, x.model, x.dtype, x.kernel, f"{x.original:.5g}", f"{x.grown:.5g}",
         percent(x.relative), "-" if x.published is None else percent(x.published)]
        for x in losses
    ]  # fmt: skip
    return Section(
        title="The article's ladder",
        note="The loss before and after growing, and the change that the article reports.",
        header="step model dtype kernel original grown change article",
        rows=rows,
        chart=charts.ladder(losses, percent),
    )


def worst(report: Report) -> Section:
    """The ten keys with the least headroom, and the case to run again."""
    records = sorted(report.ledger.records.values(), key=tightness)
    rows = [
        [number(r.headroom, " x"), f"{r.key[0]}: {r.name}",
         f"{number(r.ratio)} of {number(r.budget)}, {number(r.ulps)} ulps\n{r.example}"]
        for r in records[:10]
    ]  # fmt: skip
    return Section(
        title="Worst cases",
        note="The ten keys with the least headroom, and the case to run again.",
        header="headroom key error",
        rows=rows,
        stacked=True,
    )


def trend(report: Report) -> Section:
    """The chart of the tightest laws over the stored runs."""
    books = [*report.history, *([report.base] if report.base else []), report.ledger]
    books.sort(key=lambda book: book.created)
    tight = [r.key for r in grouped(report.ledger.records.values())[:6]]
    groups = [{r.key: r for r in grouped(b.records.values())} for b in books]
    return Section(
        title="Trend",
        note="The 90 % quantile of the tightest laws, in units, over the stored runs.",
        chart=charts.trend([b.created[:10] for b in books], groups, tight),
    )


def speed(report: Report) -> Section:
    """pytest-benchmark's medians, with the errors of the same calls."""
    rows = [
        [b["name"], f"{1e3 * b['median']:.3g} ms",
         *(number(_extra(b, n)) for n in ("ratio", "ulps", "relative", "budget"))]
        for b in report.benchmarks
    ]  # fmt: skip
    header = "benchmark median ratio ulps relative budget"
    note = "Time and error of the same call."
    return Section(title="Benchmarks", note=note, header=header, rows=rows)


def _extra(benchmark: dict[str, Any], name: str) -> float | None:
    """A number that a benchmark carries along."""
    info = benchmark.get("extra_info", {})
    value = {**info, **info.get("errors", {})}.get(name)
    return float(value) if isinstance(value, int | float) else None


MAKERS: tuple[Callable[[Report], Section], ...] = (
    failed, score, changed, laws, layers, ladder, worst, trend, speed,
)  # fmt: skip


# --- numbers and order ----------------------------------------------------------------


def number(x: float | None, unit: str = "") -> str:
    """Three digits, "-" for none."""
    return "-" if x is None else f"{x:.3g}{unit}" if math.isfinite(x) else "not finite"


def percent(x: float) -> str:
    """+0.50%, or +1.2e-09 where two decimals would be zero."""
    return f"{x:+.2%}" if abs(x) >= 5e-5 else f"{x:+.1e}"


def grouped(records: Iterable[Record]) -> list[Record]:
    """The records of each law, dtype and kernel as one; the least headroom first."""
    groups: dict[Key, Record] = {}
    for r in records:
        key = (r.key[0], r.key[3], r.key[4])
        groups.setdefault(key, Record(key=key)).merge(r)
    return sorted(groups.values(), key=tightness)


def tightness(r: Record) -> tuple[float, float]:
    """Orders records by headroom, the least first."""
    return (math.inf if r.headroom is None else r.headroom, -r.ratio)
