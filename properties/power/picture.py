"""Which law finds which fault, as one SVG picture: a row a fault, a column a law."""

from __future__ import annotations

import html

from ..growers.known_bad import FAULTS

# fault -> law -> how many examples it took, for the laws that find it
Matrix = dict[str, dict[str, int]]
LEFT, RIGHT, TOP, CELL, ROW = 190, 120, 230, 21, 15
NAMED, OTHER, GRID, INK = "#1d4ed8", "#93c5fd", "#e5e7eb", "#111827"


def picture(matrix: Matrix, dtype: str) -> str:
    """Dark where a fault names the law, light where another law finds it as well."""
    columns = list(
        dict.fromkeys(base(law) for found in matrix.values() for law in found)
    )
    columns.sort(key=lambda law: -sum(law in map(base, f) for f in matrix.values()))
    rows = [fault for fault in FAULTS if fault.name in matrix]
    width, height = LEFT + CELL * len(columns) + RIGHT, TOP + ROW * len(rows) + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        "<title>Which law finds which known-bad grower</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(10, 20, f"Which law finds which fault ({dtype}, quick)", weight="bold"),
        f'<rect x="10" y="32" width="12" height="11" fill="{NAMED}"/>',
        text(27, 42, "the law that the fault names"),
        f'<rect x="10" y="50" width="12" height="11" fill="{OTHER}"/>',
        text(27, 60, "finds it too"),
    ]
    for i, law in enumerate(columns):
        x = LEFT + CELL * i + CELL / 2 + 4
        parts.append(text(x, TOP - 8, law.replace("_", " "), turn=-60))
        total = sum(law in map(base, found) for found in matrix.values())
        parts.append(text(x - 4, height - 26, str(total), anchor="middle"))
    parts.append(text(LEFT - 8, height - 26, "faults found", anchor="end"))
    parts.append(text(width - RIGHT + 8, height - 26, "laws"))
    for j, fault in enumerate(rows):
        y = TOP + ROW * j
        found: dict[str, int] = {}
        for law, examples in matrix[fault.name].items():
            found[base(law)] = min(examples, found.get(base(law), examples))
        parts.append(text(LEFT - 8, y + 11, fault.name.replace("_", " "), anchor="end"))
        parts.append(f'<path d="M{LEFT} {y + ROW} H{width - RIGHT}" stroke="{GRID}"/>')
        for law, examples in found.items():
            colour = NAMED if law == base(fault.law.__name__) else OTHER
            title = f"{fault.says}: {law}, after {examples} examples"
            parts.append(
                f'<rect x="{LEFT + CELL * columns.index(law) + 2}" y="{y + 2}" '
                f'width="{CELL - 4}" height="{ROW - 4}" fill="{colour}">'
                f"<title>{html.escape(title)}</title></rect>"
            )
        parts.append(text(width - RIGHT + 8, y + 11, str(len(found))))
    return "\n".join([*parts, "</svg>"]) + "\n"


def base(law: str) -> str:
    """A law without its parameters."""
    return law.split("[")[0].removeprefix("test_")


def text(
    x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal",
    turn: int = 0,
) -> str:  # fmt: skip
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{INK}"{turned}>{html.escape(words)}</text>'
    )
