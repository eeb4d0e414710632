"""Charts as numbers: where on the page each bar, dot and tick stands, as shares of 1.

The page draws them with markup alone, so that it needs no script and no library. Every
axis of errors is logarithmic; an exact 0, which has no logarithm, stands at its foot.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .ledger import Key, Loss, Record

FORWARD = [
    "input_norm",
    "query",
    "key",
    "value",
    "query_rotated",
    "key_rotated",
    "scores",
    "probabilities",
    "context",
    "attention",
    "post_norm",
    "gate",
    "up",
    "activated",
    "mlp",
    "residual",
]


@dataclass(frozen=True)
class Axis:
    """log₁₀ from `low` to `high`, whole decades."""

    low: int
    high: int

    @classmethod
    def over(cls, values: Iterable[float]) -> Axis:
        """The decades that hold these values, at least one."""
        found = [math.log10(x) for x in values if x and math.isfinite(x)]
        low = math.floor(min(found, default=0.0))
        return cls(low, max(math.ceil(max(found, default=0.0)), low + 1))

    def share(self, x: float) -> float:
        """Where x stands: 0 at the foot, 1 at the end, and beyond neither."""
        if not x:
            return 0.0
        at = (math.log10(x) - self.low) / (self.high - self.low)
        return min(max(at, 0.0), 1.0)

    def decades(self, most: int = 9) -> list[int]:
        """At most `most` powers of ten, evenly apart."""
        step = 1 + (self.high - self.low) // most
        return list(range(self.low, self.high + 1, step))


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A label on an axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a row; kind: a class of the style, e.g. "over"."""

    share: float
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A label, what stands beside it, and its bars."""

    label: str
    note: str
    bars: Sequence[Bar]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Rows of bars on one axis; line: where the budget is."""

    rows: Sequence[Row]
    ticks: Sequence[Tick]
    line: float | None = None
    kinds: Sequence[tuple[str, str]] = ()  # the legend: kind, what it is


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points (x, y) as shares, y from below; dotted: the original model."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    dotted: bool = False

    @property
    def path(self) -> str:
        """An SVG path through the points, in thousandths of the plot."""
        return "M" + "L".join(
            f"{1e3 * x:.0f} {1e3 - 1e3 * y:.0f}" for x, y in self.points
        )

    @property
    def dots(self) -> str:
        """An SVG path of no length at each point, which a round cap makes a dot."""
        return "".join(f"M{1e3 * x:.0f} {1e3 - 1e3 * y:.0f}h0" for x, y in self.points)


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines over two axes."""

    lines: Sequence[Line]
    x: Sequence[Tick]
    y: Sequence[Tick]
    x_name: str
    y_name: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a grid; kind: a class of the style, e.g. "kept"."""

    text: str = ""
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A table of a grid: its columns, and rows of a label and a cell for each."""

    name: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Tables of coloured cells."""

    parts: Sequence[Part]
    kinds: Sequence[tuple[str, str]] = ()  # the legend: kind, what it is


def budgets(rows: Sequence[tuple[Record, str]]) -> Bars | None:
    """How much of its budget each record uses: 7 of 6 is just beyond the line."""
    used = [r.ratio / r.budget for r, _ in rows if r.budget]
    if not used:
        return None
    axis = Axis.over([max(x, 1e-3) for x in used] + [1e-3, 10.0])
    near = 0.2 * (axis.high - axis.low)  # labels this far apart do not touch
    far = [p for p in axis.decades(4) if p > near]
    ticks = [Tick(at=axis.share(0.01), label="1 %")] if near < 2 else []
    ticks += [Tick(at=axis.share(1), label="budget")]
    return Bars(
        rows=[
            Row(
                label=" ".join(r.key),
                note=note,
                bars=[Bar(share=axis.share(x), kind="over" if r.over else "")],
            )
            for (r, note), x in zip(rows, used, strict=True)
        ],
        ticks=ticks + [Tick(at=axis.share(10.0**p), label=f"× 1e{p}") for p in far],
        line=axis.share(1),
    )


def ladder(losses: Sequence[Loss], percent: Callable[[float], str]) -> Bars | None:
    """|change of the loss|: measured, and the article's."""
    shown = [x for x in losses if math.isfinite(x.relative)]
    if not shown:
        return None
    sizes = [abs(v) for x in shown for v in (x.relative, x.published) if v is not None]
    axis = Axis.over([x for size in sizes for x in (size, max(size, 1e-9) / 10)])
    rows = []
    for x in shown:
        bars, said = [Bar(share=axis.share(abs(x.relative)))], percent(x.relative)
        if x.published is not None:
            bars.append(Bar(share=axis.share(abs(x.published)), kind="article"))
            said += f", article {percent(x.published)}"
        rows.append(Row(label=f"{x.name} {x.model} {x.dtype}", note=said, bars=bars))
    ticks = [Tick(at=axis.share(10.0**p), label=f"1e{p}") for p in axis.decades(5)]
    return Bars(
        rows=rows, ticks=ticks, kinds=[("", "measured"), ("article", "article")]
    )


def layers(records: Iterable[Record]) -> Lines | None:
    """Relative error by tap inside the layers: a colour a dtype, dots the original.

    A law NAME[original] measures the original model, all others measure the grown one.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for r in records:
        if place(r.key[1]) is not None:
            who = "original" if r.key[0].endswith("[original]") else "grown"
            line = found.setdefault((r.key[3], who), {})
            line[r.key[1]] = max(line.get(r.key[1], 0.0), r.relative)
    taps = sorted({tap for line in found.values() for tap in line}, key=str)
    taps.sort(key=lambda tap: place(tap) or (0, 0))
    if len(taps) < 2:
        return None
    at = {tap: i / (len(taps) - 1) for i, tap in enumerate(taps)}
    axis = Axis.over(v for line in found.values() for v in line.values())
    dtypes = sorted({dtype for dtype, _ in found})
    first = {tap.split(".")[1]: at[tap] for tap in reversed(taps)}
    return Lines(
        lines=[
            Line(
                name=f"{dtype} {who}",
                colour=dtypes.index(dtype),
                points=[(at[t], _raised(axis, line[t])) for t in taps if t in line],
                dotted=who == "original",
            )
            for (dtype, who), line in sorted(found.items())
        ],
        x=[Tick(at=x, label=layer) for layer, x in reversed(first.items())],
        y=_ticks(axis),
        x_name="layer",
        y_name="relative error",
    )


def place(tap: str) -> tuple[int, int] | None:
    """(layer, step of the forward pass) of a tap inside a layer."""
    found = re.fullmatch(r"layers\.(\d+)\.(\w+)", tap)
    if not found:
        return None
    rank = FORWARD.index(found[2]) if found[2] in FORWARD else len(FORWARD)
    return int(found[1]), rank


def trend(
    dates: Sequence[str], runs: Sequence[Mapping[Key, Record]], keys: Sequence[Key]
) -> Lines | None:
    """The 90 % quantile of these keys in each run."""
    if len(runs) < 2:
        return None
    values = [
        [r[key].quantile(0.9) if key in r else None for r in runs] for key in keys
    ]
    axis = Axis.over(v for row in values for v in row if v)
    steps = [i / (len(runs) - 1) for i in range(len(runs))]
    return Lines(
        lines=[
            Line(
                name=" ".join(key),
                colour=i,
                points=[
                    (x, _raised(axis, v))
                    for x, v in zip(steps, row, strict=True)
                    if v is not None
                ],
            )
            for i, (key, row) in enumerate(zip(keys, values, strict=True))
        ],
        x=[Tick(at=x, label=date) for x, date in zip(steps, dates, strict=True)],
        y=_ticks(axis),
        x_name="run",
        y_name="units, 90 % quantile",
    )


FOOT = 0.08  # of a plot's height, where exact zeros stand


def _raised(axis: Axis, x: float) -> float:
    """The height of x, above the foot; 0 stands on it."""
    return FOOT + (1 - FOOT) * axis.share(x) if x else 0.0


def _ticks(axis: Axis) -> list[Tick]:
    """Of a vertical axis: "exact" at its foot, then decades."""
    decades = [Tick(at=_raised(axis, 10.0**p), label=f"1e{p}") for p in axis.decades()]
    return [Tick(at=0.0, label="exact"), *decades]
