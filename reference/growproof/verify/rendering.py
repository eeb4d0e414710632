"""The table of what was compared, and the verdict in a sentence or two."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from growproof.verify.outcome import Check, Verification

MARKS = {True: "[green]ok[/]  ", False: "[red]NO[/]  ", None: "[yellow]note[/]"}
TERMS = {
    "entries": "entries: each stored number, against the one the sizes ask for",
    "ε": "variance ÷ ε: a norm divides by the root of their sum, so that the ratio stays",
    "float64": "float64: growproof's own eager decoder; transformers: the stock one",
    "logits": "error of budget: the budget is 4 times what rounding once the weights "
    "that had to change does",
}


def render(result: Verification, console: Console | None = None) -> None:
    """Print what was compared, one check a line, what it found below, and the verdict."""
    console = console or Console(highlight=False)
    console.print(f"source       {escape(result.source)}", soft_wrap=True)
    console.print(f"destination  {escape(result.destination)}", soft_wrap=True)
    on = f"{result.tokens} tokens of {result.text}" if result.tokens else result.text
    console.print(f"run on       {escape(on)}\n")
    for c in result.checks:
        console.print(f"{MARKS[c.passed]}  {escape(c.name)}{numbers(c)}")
        if c.found:
            indented = Padding(escape(c.found), (0, 0, 0, 6), expand=False)
            console.print(indented, overflow="fold")
    console.print()
    named = " ".join(c.name for c in result.checks)
    for term, said in TERMS.items():
        if term in named:
            console.print(f"[dim]{escape(said)}[/]")
    console.print()
    for line in verdict(result):
        console.print(escape(line))


def numbers(c: Check) -> str:
    """The error and its budget, where there are both."""
    if c.error is None or c.budget is None:
        return ""
    return f": {c.error:.1e} of {c.budget:.1e}"


def verdict(result: Verification) -> Sequence[str]:
    """The outcome in a sentence or two."""
    if result.same:
        return [
            result.verdict
            or "The same function on this text, within the rounding of its stored weights."
        ]
    lines = [f"NOT the same function: {'; '.join(grouped(result.reasons))}."]
    lines += [result.verdict] if result.verdict else []
    return lines + ([f"First parting: {result.parting}."] if result.parting else [])


def grouped(names: Sequence[str]) -> list[str]:
    """What was measured more than once is said once: loss (float64, transformers)."""
    found: dict[str, list[str]] = {}
    for name in names:
        what, _, how = name.partition(", ")
        found.setdefault(what, []).append(how)
    ways: dict[tuple[str, ...], list[str]] = {}
    for what, hows in found.items():
        ways.setdefault(tuple(hows), []).append(what)
    return [
        ", ".join(same) + (f" ({'; '.join(hows)})" if any(hows) else "")
        for hows, same in ways.items()
    ]
