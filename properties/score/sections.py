"""What a score page shows, in order: what is wrong, what was kept, how far that reaches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..errors import charts
from ..errors.charts import Bar, Bars, Cell, Grid, Part, Tick
from ..errors.ledger import Record
from ..errors.sections import UNIT, Page, Section, number
from ..laws.domain import AXES, known_families
from ..laws.promises import PROMISES
from .changes import Changed
from .document import COUNTS, Row, Score

KINDS = (
    ("bad", "violated"),
    ("kept", "kept"),
    ("known", "expected to fail"),
    ("none", "declined or not judged"),
)
LABELS = ("all", *AXES)


def page_of(score: Score, base: Score | None, found: Sequence[Changed]) -> Page:
    """The page of a score, and of what changed since an earlier one."""
    made = [
        changed(base, found), causes(score), kept(score), errors(score), expected(score),
        outside(score), power(score), missed(score), laws(score),
    ]  # fmt: skip
    return Page(
        heading=f"growproof score{f', edition {score.edition}' * bool(score.edition)}",
        verdict=score.verdict + " (a part of the laws was run)" * (not score.whole),
        failed=not score.conforms,
        facts=facts(score, base, found),
        sections=[section for section in made if section.rows or section.chart],
    )


def facts(
    score: Score, base: Score | None, found: Sequence[Changed]
) -> list[tuple[str, str]]:
    """Name and value: what is claimed, what was drawn, how to repeat it."""
    claims, domain = score.claims, score.domain
    largest = ", ".join(f"{name} {n}" for name, n in domain["largest"].items())
    versions = {n: v.partition("+")[0] for n, v in score.versions.items()}
    install = " ".join(f"{n}=={v}" for n, v in versions.items() if n != "python")
    commit = score.machine.get("commit", "")
    told = [
        ("grower", score.grower + f", commit {commit[:12]}" * bool(commit)),
        ("promises", listed(claims["promises"])),
        ("families", listed(claims["families"])),
        ("axes", listed(claims["axes"])),
        ("options", listed(claims["options"])),
        ("never claimed", listed(claims["without"])),
        ("laws", f"{len(score.laws)}, {edition_of(score)}"),
        ("run", f"{score.run['tests']} tests, {score.run['growths']} models grown; "
         f"{score.run['profile']}, {score.run['examples']} examples a law, seed "
         f"{score.run['seed']}"),
        ("drawn", f"{listed(domain['dtypes'])}; up to {largest or 'nothing'}"),
        ("on", ", ".join(f"{n} {v}" for n, v in score.machine.items() if n != "commit")),
        ("when", score.created),
        ("install", f"Python {score.versions['python']}, pip install {install}"),
        ("repeat", score.command),
    ]  # fmt: skip
    if score.digest:
        told.append(("digest", f"{score.digest}, verified by growproof report --check"))
    if base:
        counts = Counter(change.label for change in found)
        by = ", ".join(f"{n} by {label}" for label, n in counts.items())
        said = f"{sum(counts.values())} changed: {by}" if counts else "none changed"
        told.append(("verdicts since", f"{base.created}: {said}"))
    return told


def listed(words: Sequence[str]) -> str:
    """Words with commas, or that there is none."""
    return ", ".join(words) or "nothing"


def edition_of(score: Score) -> str:
    """Whose laws they are."""
    if score.edition:
        return f"those of edition {score.edition}"
    return "of no edition" if score.whole else "a part of the suite's"


# --- verdicts -------------------------------------------------------------------------


def changed(base: Score | None, found: Sequence[Changed]) -> Section:
    """The changed verdicts, and whose doing each is."""
    return Section(
        title="Verdicts that changed",
        note="Your code: the laws are the same, and say otherwise. Our laws: the law is "
        "another one than it was. Your claim: it was asked in one of the two runs only.",
        header="whose law what",
        rows=[
            [c.label, c.item, f"{c.before} → {c.now}{f'; {c.why}' * bool(c.why)}"]
            for c in found
        ],
        stacked=True,
        opened=True,
    )


def causes(score: Score) -> Section:
    """What is wrong, each cause once, with a script."""
    rows: list[list[str]] = []
    for cause in score.causes:
        laws = ", ".join(cause.laws[:6])
        more = f" and {len(cause.laws) - 6} more" if len(cause.laws) > 6 else ""
        told = {
            "law": cause.sentence, "seen": cause.message * (cause.message != cause.cause),
            "first wrong": cause.tap, "found by": laws + more, "smallest": cause.case,
            "repeat": cause.repeat,
        }  # fmt: skip
        lines = [f"{name}: {text}" for name, text in told.items() if text]
        rows.append(["failed", cause.cause, "\n".join(lines)])
    rows += [["failed", x.test, x.why] for x in score.besides]
    scripts = [
        (f"repeat_{i}.py: {cause.cause}", cause.script)
        for i, cause in enumerate(score.causes, 1)
        if cause.script
    ]
    return Section(
        title="What is wrong",
        note="One entry a cause, as the weights, the config and the buffers show it. A "
        "script, kept where the check was run, ends in 1 while the failure is there.",
        header="state cause evidence",
        rows=rows,
        stacked=True,
        opened=True,
        scripts=scripts[:12],
    )


def kept(score: Score) -> Section:
    """Promise × family × axis × tier, as a table, and as a picture."""
    used = [name for name in COUNTS if any(vars(row)[name] for row in score.score)]
    names = ["promise", "family", "axis", *used]
    rows = [
        [*(str(vars(row)[name]) for name in names), number(row.worst or None), row.tier]
        for row in score.score
    ]
    return Section(
        title="What was kept",
        note="Tests by promise, family, growing axis and tier (how far a yes reaches: "
        "certified is one shape and all weights, sampled is random cases). max: the "
        "largest error, in units of what rounding the weights once does.",
        header=" ".join([*names, "max", "tier"]),
        rows=rows,
        limit=200,
        opened=True,
        chart=grid(score.score),
    )


def grid(rows: Sequence[Row]) -> Grid | None:
    """A table for each promise: a row a family and tier, a column an axis."""
    parts: list[Part] = []
    for promise in (name for name in PROMISES if any(r.promise == name for r in rows)):
        own = [row for row in rows if row.promise == promise]
        columns = [axis for axis in LABELS if any(row.axis == axis for row in own)]
        places = dict.fromkeys((row.family, row.tier) for row in own)
        table = [
            (f"{family} {tier}", [
                cell([r for r in own if (r.family, r.tier, r.axis) == (family, tier, axis)])
                for axis in columns
            ])
            for family, tier in places
        ]  # fmt: skip
        parts.append(Part(name=promise, columns=columns, rows=table))
    return Grid(parts=parts, kinds=KINDS) if parts else None


def cell(rows: Sequence[Row]) -> Cell:
    """The worst that became of the items of a cell, and how many they are."""
    bad = sum(row.failed + row.errors for row in rows)
    passed, known = (sum(getattr(r, n) for r in rows) for n in ("passed", "expected"))
    if bad:
        return Cell(text=f"✗ {bad} of {bad + passed + known}", kind="bad")
    if known:
        return Cell(text=f"{known} of {passed + known}", kind="known")
    if passed:
        return Cell(text=f"✓ {passed}", kind="kept")
    return Cell(text="–" if rows else "", kind="none" if rows else "")


def errors(score: Score) -> Section:
    """The largest errors, the least headroom first."""
    rows = [
        [e.law, e.dtype, e.kernel, str(e.cases),
         number(e.largest) if e.largest is not None else "not finite",
         number(e.budget),
         number(e.budget / e.largest if e.budget and e.largest else None, " x")]
        for e in score.errors
    ]  # fmt: skip
    records = [
        Record(
            key=(e.law, e.dtype, e.kernel),
            ratio=float("inf") if e.largest is None else e.largest, budget=e.budget,
        )
        for e in score.errors if e.budget
    ]  # fmt: skip
    worst = [(r, f"{number(r.ratio)} of {number(r.budget)}") for r in records[:25]]
    return Section(
        title="Worst errors against their budgets",
        note=UNIT,
        header="law dtype kernel cases max budget headroom",
        rows=rows,
        chart=charts.budgets(worst),
    )


# --- how far it reaches ---------------------------------------------------------------


def expected(score: Score) -> Section:
    """The failures that were expected."""
    return Section(
        title="Expected to fail",
        note="These fail, and are known to.",
        header="state law why",
        rows=[
            ["expected", e.law, "\n".join(filter(None, (
                e.reason, e.link, f"until {e.expires}" * bool(e.expires))))]
            for e in score.expected
        ],
        stacked=True,
    )  # fmt: skip


def outside(score: Score) -> Section:
    """What the verdict does not speak of."""
    rows = [["declined", c.what, str(c.times)] for c in score.declined]
    families = {*known_families(), *(f"{f} (not claimed)" for f in known_families())}
    others = [c for c in score.left_out if c.what in families]
    rows += [
        ["left out", c.what, str(c.times)] for c in score.left_out if c not in others
    ]
    if others:
        names = (
            "the family " + others[0].what
            if len(others) == 1
            else f"{len(others)} families"
        )
        rows.append(["left out", names, str(sum(c.times for c in others))])
    return Section(
        title="Not judged",
        note="Declined: the grower refused the growth, for this reason. Left out: tests "
        "that were not run, for want of this.",
        header="how what times",
        rows=rows,
    )


def power(score: Score) -> Section:
    """How many known-bad growers the suite finds."""
    p, inside = score.power, score.power.growers - score.power.outside
    rows = [
        ["this run", f"{p.found} of {inside}",
         f"{p.outside} more are known by an example of something that is not claimed"],
        *[[f"all of the suite, {dtype}", f"{found} of {of}",
           "" if found == of else "rounding hides the others"]
          for dtype, (found, of) in p.by_dtype.items()],
    ]  # fmt: skip
    bars = [
        charts.Row(label=name, note=text, bars=[Bar(share=share(text))])
        for name, text, _ in rows
    ]
    ticks = [Tick(at=0.5, label="half"), Tick(at=1.0, label="all")]
    return Section(
        title="What such a page is worth",
        note=f"{p.growers} growers with one fault each were given to the laws of this "
        "growproof: how many the law that each names rejects, for its reason.",
        header="laws found note",
        rows=rows,
        chart=Bars(rows=bars, ticks=ticks),
    )


def share(text: str) -> float:
    """3 of 4: 0.75."""
    found, of = map(int, text.split(" of "))
    return found / of if of else 0.0


def missed(score: Score) -> Section:
    """The known-bad growers that this run would have let pass."""
    return Section(
        title="What this page would have missed",
        note="Faults that lie in what is claimed, and whose own law did not see them here; "
        "another law may have.",
        header="state grower why",
        rows=[["missed", f"{m.grower}: {m.says}", m.why] for m in score.power.missed],
        stacked=True,
    )


def laws(score: Score) -> Section:
    """Each law: version, verdicts, what it says, and the hash of its code."""
    rows: list[list[str]] = []
    for law in score.laws:
        counts = Counter(law.items.values())
        said = ", ".join(f"{counts[name]} {name}" for name in COUNTS if counts[name])
        head = f"{law.name}, version {law.version} ({law.promise}, {law.tier})"
        state = "failed" if counts["failed"] + counts["errors"] else "law"
        rows.append([state, head, f"{law.sentence}\n{said}; source {law.source[:16]}"])
    return Section(
        title="The laws",
        note="Each with its version, what became of its tests, and its code's hash.",
        header="state law says",
        rows=rows,
        limit=100,
        stacked=True,
    )
