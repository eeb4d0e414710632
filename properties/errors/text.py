"""The report as text: for the terminal, and as Markdown for a pull request."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .comparison import FAILING
from .sections import Page, Section

LONGEST = 400  # characters of a cell


def terminal(page: Page, console: Console) -> None:
    """Print the page, the verdict first."""
    for name, value in (("verdict", page.verdict), *page.facts):
        red = page.failed and name == "verdict"
        console.print(Text(f"{name + ':':<16}{value}", "bold red" if red else ""))
    for section in page.sections:
        if section.rows:
            _print(section, console)


def _print(section: Section, console: Console) -> None:
    """A section with its title."""
    shown = section.rows[: section.limit]
    console.print(Text(f"\n{section.title}: {section.note}", "bold"))
    if section.stacked:
        for head, key, *rest in shown:
            console.print(Text(f"  {head:<12}", _colour(head)), Text(key))
            lines = Text("\n".join(shortened(cell) for cell in rest))
            console.print(Padding(lines, (0, 0, 0, 15)))
    else:
        console.print(_grid(section, shown))
    if (more := len(section.rows) - section.limit) > 0:
        console.print(f"  and {more} more")


def _grid(section: Section, rows: Sequence[Sequence[str]]) -> Table:
    """The rows as a table without lines between them."""
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(section.columns):
        table.add_column(name, overflow="fold", justify=side(section, i))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def side(section: Section, column: int) -> Any:
    """The side at which a column's cells stand: numbers at the right."""
    numeric = all(
        re.match(r"[-+\d.]|not finite", row[column] or "-") for row in section.rows
    )
    return "right" if numeric else "left"


def _colour(cell: str) -> str:
    """The colour of a state."""
    colours = {"improved": "green", "new": "cyan"}
    return (colours | dict.fromkeys((*FAILING, "over"), "red")).get(cell, "")


def shortened(text: str) -> str:
    """Each line of a cell, cut where it is too long to be read."""
    return "\n".join(
        line if len(line) <= LONGEST else f"{line[:LONGEST]} …"
        for line in text.split("\n")
    )


def markdown(page: Page) -> str:
    """Fits a pull-request comment: the changes open, everything else folded."""
    badge = "❌" if page.failed else "✅"
    lines = [f"### {badge} {_md(page.verdict)}", ""]
    lines += [f"- **{name}**: {_md(value)}" for name, value in page.facts]
    for section in page.sections:
        lines += _details(section) if section.rows else []
    return "\n".join(lines) + "\n"


def _details(section: Section) -> list[str]:
    """A section as a table to unfold."""
    shown, more = section.rows[: section.limit], len(section.rows) - section.limit
    opened = " open" if section.opened else ""
    return [
        "", f"<details{opened}><summary>{section.title}</summary>", "",
        section.note, "", "|" + "|".join(section.columns) + "|",
        "|" + "---|" * len(section.columns),
        *("|" + "|".join(_md(shortened(c)) for c in row) + "|" for row in shown),
        *([f"\nand {more} more"] if more > 0 else []),
        *(line for name, text in section.scripts for line in _script(name, text)),
        "", "</details>",
    ]  # fmt: skip


def _script(name: str, text: str) -> list[str]:
    """A file as a block to unfold; its fence is longer than any that it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return ["", f"<details><summary><code>{html.escape(name)}</code></summary>", "",
            f"{fence}python", text.rstrip("\n"), fence, "", "</details>"]  # fmt: skip


def _md(text: str) -> str:
    """Text inside a table's cell, where nothing is markup."""
    escaped = html.escape(text, quote=False)
    return re.sub(r"([|\\`*_\[\]])", r"\\\1", escaped).replace("\n", "<br>")
