"""The ladder as one SVG picture: how far each step is from the original's loss."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator

from properties.errors.ledger import Ledger, Loss
from properties.power.picture import text

COLOURS = {"bfloat16": "#c2410c", "float32": "#1d4ed8", "float64": "#047857"}
ARTICLE = "#111827"
HEADS = {
    "1": "Solution 1: more heads",
    "2": "Solution 2: larger head_dim",
    "3": "Solution 3: both",
}
LEFT, RIGHT, TOP, ROW, WIDTH = 250, 30, 92, 22, 900
DECADES = (-16, 2)  # of |Δ loss|; anything smaller is drawn at the left edge
NEVER = "but"  # steps of the "centred, but ..." kind are not part of the ladder


def picture(book: Ledger) -> str:
    """A dot for each loss, |relative change| on a log axis, and the article's diamonds."""
    losses = [x for x in book.losses.values() if f", {NEVER} " not in x.name]
    lines = list(dict.fromkeys(x.name for x in losses))
    places: dict[str, int] = {}
    heads: list[tuple[int, str]] = []
    y = TOP
    for solution in "213":
        y += ROW // 2
        heads.append((y + ROW, HEADS[solution]))
        y += int(1.2 * ROW)
        for name in (n for n in lines if n[0] == solution):
            y += ROW
            places[name] = y
    height = y + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">',
        "<title>Change of the loss by growing</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *legend(losses),
        *axis(TOP + 10, y + 12),
        *(text(14, at, title, weight="bold") for at, title in heads),
        *(text(28, at, name[3:]) for name, at in places.items()),
        *(dot(x, places[x.name]) for x in losses),
        *(diamond(size(x.published or 0), places[x.name]) for x in losses if shown(x)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def shown(x: Loss) -> bool:
    """One diamond a step: the article measured in bfloat16 what it states."""
    return x.published is not None and x.dtype == "bfloat16" and x.kernel == "eager"


def size(relative: float) -> float:
    """The x coordinate of |relative| on the log axis, kept inside it."""
    first, last = DECADES
    decade = math.log10(abs(relative)) if relative else first
    part = (min(max(decade, first), last) - first) / (last - first)
    return LEFT + part * (WIDTH - LEFT - RIGHT)


def dot(x: Loss, y: float) -> str:
    """A loss; the kernels of one dtype lie a little apart."""
    where = ["eager", "sdpa_math", "torch_flash"]
    shift = 5 * (where.index(x.kernel) - 1) if x.kernel in where else 0
    title = f"{x.name}, {x.dtype} on {x.kernel}: {x.relative:+.3g}"
    return (
        f'<circle cx="{size(x.relative):.1f}" cy="{y - 4 + shift:.1f}" r="3.6" '
        f'fill="{COLOURS[x.dtype]}" fill-opacity="0.75">'
        f"<title>{html.escape(title)}</title></circle>"
    )


def diamond(x: float, y: float) -> str:
    """A figure of the article."""
    y -= 4
    corners = f"{x:.1f},{y - 8:.1f} {x + 8:.1f},{y:.1f} {x:.1f},{y + 8:.1f} {x - 8:.1f},{y:.1f}"
    return f'<polygon points="{corners}" fill="none" stroke="{ARTICLE}" stroke-width="1.5"/>'


def axis(top: float, bottom: float) -> Iterator[str]:
    """Decades, with the names that a reader knows."""
    names = {0: "100 %", -2: "1 %", -4: "0.01 %", -6: "10⁻⁶", -9: "10⁻⁹", -12: "10⁻¹²"}
    for decade in range(DECADES[0], DECADES[1] + 1):
        x = size(10.0**decade)
        strong = decade in names
        colour = "#9ca3af" if strong else "#e5e7eb"
        yield f'<path d="M{x:.1f} {top} V{bottom:.1f}" stroke="{colour}" stroke-width="1"/>'
        if strong:
            yield text(x, bottom + 18, names[decade], anchor="middle")
    yield text(size(10.0 ** DECADES[0]), bottom + 18, "equal", anchor="middle")
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield text(middle, bottom + 38, "|relative change of the loss|", anchor="middle")


def legend(losses: list[Loss]) -> Iterator[str]:
    yield text(
        14,
        26,
        f"What each step of growing does to the loss of {losses[0].model}",
        weight="bold",
    )
    x = 14.0
    for dtype in sorted({x.dtype for x in losses}):
        colour = COLOURS[dtype]
        yield f'<circle cx="{x + 4}" cy="48" r="4.5" fill="{colour}"/>'
        yield text(x + 14, 52, dtype)
        x += 95
    kernels = ", ".join(dict.fromkeys(x.kernel for x in losses))
    yield diamond(x + 6, 52)
    yield text(x + 20, 52, "the article (another model, bfloat16)")
    yield text(
        14, 76, f"A dot for each attention kernel, one above the other: {kernels}"
    )
