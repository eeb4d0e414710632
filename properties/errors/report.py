"""``growproof report``: a stored run, or its comparison with a baseline, to be read.

One list of sections is rendered as a terminal table, as Markdown for a pull request,
and as one HTML page that needs no network. The verdict is the one of
``pytest --errors-compare``: 0, 1 where something is worse, gone or not comparable, and 4
for input that cannot be read. A FILE or ``--benchmarks`` may be pytest-benchmark's JSON,
whose ``extra_info`` may hold ratio, ulps, relative and budget.

The plot through the layers shows laws called ``NAME[original]`` and ``NAME[grown]``, each
measured against the same truth, as two lines; a law without either name counts as grown.
"""

from __future__ import annotations

import argparse
import html
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import comparison, storage
from .comparison import Change
from .ledger import Key, Ledger, LedgerError, Record

FORWARD = (
    "embedding input_norm query key value query_rotated key_rotated scores probabilities "
    "context attention post_norm gate up activated mlp residual norm logits"
)
LADDER, LAWS = "The article's ladder", "Laws, the least headroom first"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table, or with ``stacked`` a list whose first two columns are its heads."""

    title: str
    note: str
    header: str  # the columns, a word each
    rows: Sequence[Sequence[str]]
    limit: int = 30
    stacked: bool = False

    @property
    def columns(self) -> list[str]:
        return self.header.split()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the three forms show."""

    ledger: Ledger
    base: Ledger | None
    changes: Sequence[Change]
    factor: float
    history: Sequence[Ledger]
    benchmarks: Sequence[dict[str, Any]]

    @property
    def failed(self) -> bool:
        return any(change.failed for change in self.changes)

    @property
    def verdict(self) -> str:
        return comparison.counts(self.changes) if self.base else "no baseline"


# --- sections -----------------------------------------------------------------------


def _g(x: float | None, unit: str = "") -> str:
    return "-" if x is None else f"{x:.3g}{unit}" if math.isfinite(x) else "not finite"


def _percent(x: float) -> str:
    return f"{x:+.2%}" if abs(x) >= 5e-5 else f"{x:+.1e}"


def _grouped(records: Iterable[Record]) -> list[Record]:
    """The records of each law, dtype and kernel as one; the least headroom first."""
    groups: dict[Key, Record] = {}
    for r in records:
        key = (r.key[0], r.key[3], r.key[4])
        groups.setdefault(key, Record(key=key)).merge(r)
    return sorted(groups.values(), key=_tightness)


def _tightness(r: Record) -> tuple[float, float]:
    return (math.inf if r.headroom is None else r.headroom, -r.ratio)


def _laws(report: Report) -> Section:
    rows = [
        [*r.key, f"{r.cases}", _g(r.quantile(0.5)), _g(r.ratio), _g(r.ulps),
         _g(r.budget), _g(r.headroom, " x")]
        for r in _grouped(report.ledger.records.values())
    ]  # fmt: skip
    header = "law dtype kernel cases median max ulps budget headroom"
    return Section(
        title=LAWS,
        note="Errors in units of u·√n·scale; headroom = budget / largest error.",
        header=header,
        rows=rows,
    )


def _changed(report: Report) -> Section:
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
        note=f"{report.verdict}; worse is beyond {report.factor:g} times the baseline.",
        header="state key what",
        rows=gone + rows,
        stacked=True,
    )


def _losses(report: Report) -> Section:
    rows = [
        [x.name, x.model, x.dtype, x.kernel, f"{x.original:.5g}", f"{x.grown:.5g}",
         _percent(x.relative), "-" if x.published is None else _percent(x.published)]
        for x in report.ledger.losses.values()
    ]  # fmt: skip
    header = "step model dtype kernel original grown change article"
    note = "The loss before and after growing, and the change that the article reports."
    return Section(title=LADDER, note=note, header=header, rows=rows)


def _worst(report: Report) -> Section:
    records = sorted(report.ledger.records.values(), key=_tightness)
    rows = [
        [_g(r.headroom, " x"), f"{r.key[0]}: {r.name}",
         f"{_g(r.ratio)} of {_g(r.budget)}, {_g(r.ulps)} ulps", r.example]
        for r in records[:10]
    ]  # fmt: skip
    return Section(
        title="Worst cases",
        note="The ten keys with the least headroom, and the case to run again.",
        header="headroom key error example",
        rows=rows,
        stacked=True,
    )


def _speed(report: Report) -> Section:
    rows = [
        [b["name"], f"{1e3 * b['median']:.3g} ms",
         *(_g(_extra(b, n)) for n in ("ratio", "ulps", "relative", "budget"))]
        for b in report.benchmarks
    ]  # fmt: skip
    header = "benchmark median ratio ulps relative budget"
    note = "Time and error of the same call."
    return Section(title="Benchmarks", note=note, header=header, rows=rows)


def _extra(benchmark: dict[str, Any], name: str) -> float | None:
    info = benchmark.get("extra_info", {})
    value = {**info, **info.get("errors", {})}.get(name)
    return float(value) if isinstance(value, int | float) else None


def sections(report: Report) -> list[Section]:
    """Those that have something to say."""
    makers = (_changed, _laws, _losses, _worst, _speed)
    return [s for make in makers if (s := make(report)).rows]


def _summary(report: Report) -> list[tuple[str, str]]:
    book, e = report.ledger, report.ledger.environment
    pairs = [("verdict", report.verdict)] if report.base else []
    if not book.records and not book.losses:
        return pairs
    tight = min(book.records.values(), key=_tightness, default=None)
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
        ("least headroom", _g(tight.headroom, " x") if tight else "-"),
        ("run", f"{tests}; {where}"),
        ("on", f"{e['gpu'] or e['cpu']}, {e['cpu_capability']}, {e['threads']} threads"),
        ("with", f"torch {e['torch']}, {e['blas']}, transformers {e['transformers']}"),
        *[(f"accepted {a['date'][:10]}", f"{a['reason']} ({a['summary']})")
          for a in book.accepted],
    ]  # fmt: skip


# --- terminal and Markdown ----------------------------------------------------------


def terminal(report: Report, console: Console) -> None:
    for name, value in _summary(report):
        console.print(Text(f"{name + ':':<16}{value}"))
    for section in sections(report):
        shown = section.rows[: section.limit]
        title = f"\n{section.title}: {section.note}"
        console.print(Text(title, "bold"))
        if section.stacked:
            for head, *rest in shown:
                console.print(Text(f"  {head:<9}", _colour(head)), Text(rest[0]))
                console.print(Padding(Text("\n".join(rest[1:])), (0, 0, 0, 12)))
        else:
            console.print(_grid(section, shown))
        if (more := len(section.rows) - section.limit) > 0:
            console.print(f"  and {more} more")


def _grid(section: Section, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(section.columns):
        table.add_column(name, overflow="fold", justify=_side(section, i))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _side(section: Section, column: int) -> Any:
    numeric = all(re.match(r"[-+\d.]|not finite", row[column]) for row in section.rows)
    return "right" if numeric else "left"


def _colour(cell: str) -> str:
    colours = {"improved": "green", "new": "cyan"} | dict.fromkeys(
        comparison.FAILING, "red"
    )
    return colours.get(cell, "")


def markdown(report: Report) -> str:
    """Fits a pull-request comment: the changes open, everything else folded."""
    badge = "❌" if report.failed else "✅"
    lines = [f"### {badge} growproof errors: {report.verdict}", ""]
    lines += [f"- **{name}**: {_md(value)}" for name, value in _summary(report)]
    for section in sections(report):
        shown, more = section.rows[: section.limit], len(section.rows) - section.limit
        opened = " open" if section.columns[0] == "state" else ""
        lines += ["", f"<details{opened}><summary>{section.title}</summary>", ""]
        lines += [section.note, "", "|" + "|".join(section.columns) + "|"]
        lines += ["|" + "---|" * len(section.columns)]
        lines += ["|" + "|".join(_md(c[:200]) for c in row) + "|" for row in shown]
        lines += [f"\nand {more} more"] if more > 0 else []
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _md(text: str) -> str:
    escaped = html.escape(text, quote=False).replace("\n", " ")
    return re.sub(r"([|\\`*_\[\]])", r"\\\1", escaped)


# --- HTML ---------------------------------------------------------------------------

COLOURS = ("#3b82c4", "#e08214", "#2a9d74", "#b45fb0", "#8c8c8c", "#c94f4f")

STYLE = """
:root{color-scheme:light dark;--bg:#fbfaf8;--fg:#24292f;--dim:#667079;--card:#fff;
--line:#e3e0da;--good:#2a9d74;--bad:#c4423d;--bar:#3b82c4}
@media(prefers-color-scheme:dark){:root{--bg:#15181c;--fg:#dfe3e8;--dim:#949da7;
--card:#1d2126;--line:#30363d;--good:#4cc08f;--bad:#f0716b;--bar:#5b9fdc}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:0}
p{margin:.2rem 0 .8rem;color:var(--dim)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:1rem;margin-top:1rem}
.verdict{font-weight:600;color:var(--good)}.verdict.failed{color:var(--bad)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:0}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.85rem}
th,td{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line);
vertical-align:top}th{color:var(--dim);font-weight:500;white-space:nowrap}
td.right,th.right{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
li b{margin-right:.6rem;white-space:nowrap}summary{cursor:pointer}.key{display:flex;flex-wrap:wrap;
gap:.1rem 1.2rem;font-size:.85rem;margin-bottom:.5rem}
.key i{display:inline-block;width:1.4rem;border-top:3px solid;margin:0 .4rem .25rem 0}
li p{margin:0;font-size:.85rem;overflow-wrap:anywhere}
.worse,.gone,.not{color:var(--bad)}
.improved{color:var(--good)}
ul{list-style:none;margin:0;padding:0}li{margin:.55rem 0}
li div{overflow-wrap:anywhere}li .row{display:flex;flex-wrap:wrap;gap:0 1rem;
justify-content:space-between}li small{color:var(--dim);font-variant-numeric:tabular-nums}
.bar{height:6px;border-radius:3px;background:var(--line);overflow:hidden}
.bar i{display:block;height:100%;background:var(--bar)}.bar i.over{background:var(--bad)}
.js-plotly-plot svg text:not(.hoverlayer text){fill:var(--fg)!important}
.js-plotly-plot .gridlayer path{stroke:var(--line)!important}
.js-plotly-plot .zerolinelayer path{stroke:var(--dim)!important}
"""


def _figure(height: int, **layout: Any) -> go.Figure:
    axis = {
        "showline": False,
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
    }
    return go.Figure(
        layout={
            "height": height,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"size": 12},
            "colorway": COLOURS,
            "showlegend": False,
            "xaxis": axis | layout.pop("xaxis", {}),
            "yaxis": axis | layout.pop("yaxis", {}),
            **layout,
        }
    )


def _place(tap: str) -> tuple[float, int, str]:
    """Where in the forward pass a tap is."""
    layer = re.match(r"layers\.(\d+)\.", tap)
    name = tap[layer.end() :] if layer else tap
    order = FORWARD.split()
    rank = order.index(name) if name in order else len(order)
    outside = -1 if name == "embedding" else math.inf
    return (int(layer[1]) if layer else outside, rank, name)


def _decades(figure: go.Figure, title: str) -> go.Figure:
    """Give it a log axis of whole decades, and show 0, which has no logarithm, below."""
    traces: Any = figure.data
    some = [y for trace in traces for y in trace.y if y] or [1.0]
    low, high = math.floor(math.log10(min(some))), math.ceil(math.log10(max(some)))
    powers = range(low, max(high, low + 1) + 1, 1 + (high - low) // 9)
    for trace in traces:
        trace.y = [10.0 ** (low - 1) if y == 0 else y for y in trace.y]
    exact = any(min(filter(None, trace.y), default=1) < 10.0**low for trace in traces)
    figure.update_yaxes(
        type="log",
        title=title,
        tickvals=[10.0 ** (low - 1), *(10.0**p for p in powers)],
        ticktext=["exact", *(f"1e{p}" for p in powers)],
        range=[low - (1.3 if exact else 0.1), powers[-1] + 0.2],
    )
    return figure


def _through_layers(report: Report) -> go.Figure | None:
    """Relative error by tap, in forward order: a colour a dtype, dashes the original."""
    lines: dict[tuple[str, str], dict[str, float]] = {}
    for r in report.ledger.records.values():
        who = "original" if r.key[0].endswith("[original]") else "grown"
        line = lines.setdefault((r.key[3], who), {})
        line[r.key[1]] = max(line.get(r.key[1], 0.0), r.relative)
    taps = sorted({tap for line in lines.values() for tap in line}, key=_place)
    if len(taps) < 2:
        return None
    starts = {_place(tap)[0]: tap for tap in reversed(taps)}
    names = {-1: " ", math.inf: "out"}
    figure = _figure(
        400,
        xaxis={"categoryarray": taps, "tickvals": list(starts.values()), "tickangle": 0,
               "ticktext": [names.get(i) or f"{i:.0f}" for i in starts],
               "type": "category", "showgrid": False, "title": "layer"},
    )  # fmt: skip
    dtypes = sorted({dtype for dtype, _ in lines})
    for (dtype, who), line in sorted(lines.items()):
        x = [tap for tap in taps if tap in line]
        colour = COLOURS[dtypes.index(dtype) % len(COLOURS)]
        figure.add_scatter(
            x=x,
            y=[line[tap] if math.isfinite(line[tap]) else None for tap in x],
            name=f"{dtype} {who}",
            mode="lines+markers",
            marker={"size": 5},
            line={"color": colour} | ({"dash": "dot"} if who == "original" else {}),
        )
    return _decades(figure, "relative error")


def _trend(report: Report) -> go.Figure | None:
    """The largest error of the six tightest laws over the stored runs."""
    books = [*report.history, *([report.base] if report.base else []), report.ledger]
    books.sort(key=lambda book: book.created)
    if len(books) < 2:
        return None
    when = [f"{i + 1}: {b.created[:10]}" for i, b in enumerate(books)]
    figure = _figure(340, xaxis={"type": "category", "showgrid": False})
    groups = [{r.key: r for r in _grouped(b.records.values())} for b in books]
    for r in _grouped(report.ledger.records.values())[:6]:
        y = [g[r.key].quantile(0.9) if r.key in g else None for g in groups]
        figure.add_scatter(x=when, y=y, name=" ".join(r.key), mode="lines+markers")
    return _decades(figure, "90 % quantile of the error")


def _ladder(report: Report) -> go.Figure | None:
    losses = [x for x in report.ledger.losses.values() if math.isfinite(x.relative)]
    if not losses:
        return None
    names = [f"{x.name}<br>{x.model} {x.dtype}" for x in losses]
    figure = _figure(
        90 + 62 * len(losses),
        xaxis={"type": "log", "title": "|change|, log scale",
               "tickformat": ".0e", "nticks": 6},
        yaxis={"autorange": "reversed", "showgrid": False},
        barmode="group",
    )  # fmt: skip
    for label, values in (
        ("measured", [x.relative for x in losses]),
        ("article", [x.published for x in losses]),
    ):
        figure.add_bar(
            orientation="h",
            name=label,
            y=names,
            x=[None if v is None else max(abs(v), 1e-9) for v in values],
            text=["" if v is None else _percent(v) for v in values],
            textposition="auto",
        )
    return figure


def _bars(report: Report) -> str:
    items = []
    for r in _grouped(report.ledger.records.values())[:40]:
        used = min(r.ratio / r.budget, 1.0) if r.budget else 0.0
        over = ' class="over"' if r.budget and r.ratio > r.budget else ""
        name = _breakable(" ".join(r.key))
        of = (
            f"of {_g(r.budget)}: {_g(r.headroom)} x headroom"
            if r.budget
            else "no budget"
        )
        note = (
            f"{_g(r.quantile(0.5))}, at most {_g(r.ratio)} {of}" if r.ratio else "exact"
        )
        bar = f'<div class="bar"><i{over} style="width:{used:.1%}"></i></div>'
        head = f'<div class="row"><span>{name}</span><small>{note}</small></div>'
        items.append(f"<li>{head}{bar}</li>")
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _breakable(text: str) -> str:
    return re.sub(r"([_.=/])", r"\1<wbr>", html.escape(text))


def _folded(line: str) -> str:
    """A long case behind its first words."""
    if len(line) < 300:
        return line
    head = line[:90].rpartition(" ")[0]
    return f"<details><summary>{head} …</summary>{line}</details>"


def _stack(section: Section) -> str:
    items: list[str] = []
    for head, key, *rest in (
        [_breakable(c) for c in row] for row in section.rows[:500]
    ):
        lines = "".join(f"<p>{_folded(line)}</p>" for line in rest)
        items.append(f'<li><div><b class="{head}">{head}</b>{key}</div>{lines}</li>')
    shown, folded = items[:12], items[12:]
    more = f"<details><summary>{len(section.rows) - 12} more</summary>"
    return f"<ul>{''.join(shown)}</ul>" + (
        f"{more}<ul>{''.join(folded)}</ul></details>" if folded else ""
    )


def _table(section: Section) -> str:
    if section.stacked:
        return _stack(section)
    sides = [f' class="{_side(section, i)}"' for i in range(len(section.columns))]
    rows = [[html.escape(cell) for cell in row] for row in section.rows[:200]]

    def line(tag: str, cells: Sequence[str]) -> str:
        pairs = zip(sides, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in pairs) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>{line("th", section.columns)}{body}</table></div>'


def _card(title: str, note: str, *parts: str) -> str:
    """Nothing, for a part that has nothing to show."""
    if not any(parts):
        return ""
    note = f"<p>{html.escape(note)}</p>"
    return f"<section><h2>{html.escape(title)}</h2>{note}{''.join(parts)}</section>"


def _plot(figure: go.Figure | None) -> str:
    """The figure under a legend of our own, which wraps on a phone."""
    if figure is None:
        return ""
    key = ""
    for i, trace in enumerate(figure.to_plotly_json()["data"]):
        line = trace.get("line", {})
        colour = line.get("color", COLOURS[i % len(COLOURS)])
        style = f"border-top-style:{'dotted' if line.get('dash') else 'solid'}"
        chip = f'<i style="{style};border-top-color:{colour}"></i>'
        key += f"<span>{chip}{_breakable(trace['name'])}</span>"
    config = {"responsive": True, "displayModeBar": False}
    plot = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    return f'<div class="key">{key}</div>{plot}'


def page(report: Report) -> str:
    """The HTML page; its policy forbids the browser every request."""
    cards = [
        _card("Error through the layers", "The largest relative error at each tap.",
              _plot(_through_layers(report))),
        _card("Errors against their budgets",
              "The share of its budget that each law uses, in units of u·√n·scale.",
              _bars(report)),
        _card("Trend", "The laws with the least headroom, over the stored runs.",
              _plot(_trend(report))),
    ]  # fmt: skip
    tables = [
        _card(
            s.title,
            s.note,
            _plot(_ladder(report)) if s.title == LADDER else "",
            _table(s),
        )
        for s in sections(report)
        if s.title != LAWS
    ]
    first = 1 if report.changes and tables else 0
    cards = [*tables[:first], *cards, *tables[first:]]
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in _summary(report)
        if name != "verdict"
    )
    failed = " failed" if report.failed else ""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}; img-src data:">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>growproof errors</title><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head>
<body><main><h1>growproof errors</h1>
<p class="verdict{failed}">{html.escape(report.verdict)}</p>
<section><dl>{facts}</dl></section>{"".join(cards)}</main></body></html>
"""


# --- command ------------------------------------------------------------------------


def _benchmarks(path: str) -> list[dict[str, Any]] | None:
    """pytest-benchmark's list, or None for another JSON."""
    try:
        data = storage.read_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, LedgerError) as error:
        raise LedgerError(f"cannot read {path}: {error}") from None
    found = data.get("benchmarks") if isinstance(data, dict) else None
    if found is None:
        return None
    if not found:
        raise LedgerError(f"cannot read {path}: it holds no benchmark")
    try:
        return [{**b, "median": float(b["stats"]["median"])} for b in found]
    except (TypeError, KeyError, ValueError):
        raise LedgerError(f"cannot read {path}: a benchmark without a median") from None


def _read(args: argparse.Namespace) -> Report:
    benchmarks = _benchmarks(args.file)
    if benchmarks is not None and args.base:
        raise LedgerError(f"{args.file} holds benchmarks; a baseline needs a ledger")
    book = Ledger() if benchmarks is not None else storage.load(args.file)
    if args.benchmarks:
        more = _benchmarks(args.benchmarks)
        if more is None:
            raise LedgerError(f"{args.benchmarks} is not pytest-benchmark's JSON")
        benchmarks = [*(benchmarks or []), *more]
    bases = [storage.load(path) for path in args.base]
    alike = (b for b in bases if not comparison.differences(b, book))
    base = next(alike, bases[0] if bases else None)
    changes = []
    if base:
        factor, across = args.errors_fail, args.across_growers
        changes = comparison.compare(base, book, factor=factor, across=across)
    history = [storage.load(path) for path in args.history]
    return Report(
        ledger=book,
        base=base,
        changes=changes,
        factor=args.errors_fail,
        history=[*history, *(b for b in bases if b is not base)],
        benchmarks=benchmarks or [],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "growproof report", description="Show stored errors."
    )
    add = parser.add_argument
    add("file", help="a file of --errors-save, or of --benchmark-json")
    add("base", nargs="*", help="baselines: the first one of this environment is used")
    add("--html", metavar="OUT", help="write one self-contained page")
    add("--markdown", metavar="OUT", help="write Markdown, for a pull request")
    add("--errors-fail", type=float, default=comparison.FACTOR, metavar="RATIO",
        help="the factor that counts as worse (default: 2)")  # fmt: skip
    add("--across-growers", action="store_true", help="compare two growers")
    add(
        "--history", nargs="+", default=[], metavar="FILE", help="earlier runs, to plot"
    )
    add("--benchmarks", metavar="FILE", help="a file of --benchmark-json, to add")
    return parser


def main(argv: list[str] | None = None) -> int:
    """0, 1 where something is worse, gone or not comparable, 4 for bad input."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as error:
        return 4 if error.code else 0
    try:
        report = _read(args)
        forms = ((args.html, page), (args.markdown, markdown))
        texts = [(path, form(report)) for path, form in forms if path]
        for path, text in texts:
            storage.write(path, text)
    except (LedgerError, OSError) as error:
        print(f"growproof report: {error}", file=sys.stderr)
        return 4
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 100
    terminal(report, console)
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
