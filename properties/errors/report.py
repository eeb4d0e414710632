"""`growproof report`: a stored run, or its comparison with a baseline, to be read.

One list of sections is rendered as a terminal table, as Markdown for a pull request, as
LaTeX, and as one HTML page that needs no network. A red run makes a red report: 1 where a test
failed, an error was over its budget, or something is worse, gone or not comparable, as
`pytest --errors-compare` judges it; 4 for input that cannot be read. A FILE or
`--benchmarks` may be pytest-benchmark's JSON, whose `extra_info` may hold ratio, ulps,
relative and budget.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growproof.reading import BadInput, text_in
from rich.console import Console

from . import comparison, storage
from .latex import latex
from .ledger import Ledger, LedgerError, Tally
from .page import page
from .sections import Page, page_of
from .text import markdown, terminal
from .verdict import Report


def _benchmarks(path: str) -> list[dict[str, Any]] | None:
    """pytest-benchmark's list, or None for another JSON."""
    try:
        data = storage.read_json(text_in(Path(path), storage.MOST_BYTES))
    except (BadInput, LedgerError) as error:
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
    """The files that the arguments name. LedgerError where one cannot be read."""
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


def badge(failed: bool, score: Iterable[Tally], label: str = "growproof") -> str:
    """The verdict as an endpoint of shields.io reads it."""
    score = list(score)
    broken = {row.promise for row in score if row.failed or row.errors}
    kept = {row.promise for row in score if row.passed} - broken
    said = "violates " + ", ".join(sorted(broken)) if broken else "fails"
    message = said if failed else ", ".join(sorted(kept)) or "conforms"
    colour = "red" if failed else "brightgreen"
    told = {"label": label, "message": message, "color": colour}
    return json.dumps({"schemaVersion": 1, **told}) + "\n"


def annotation(title: str, said: str, repeat: str) -> str:
    """A failure as a workflow command of GitHub Actions."""
    told = f"{' '.join(said.split())} Repeat: {repeat}".replace("%", "%25")
    return f"::error title=growproof {title}::{told}"


def annotated(book: Ledger) -> list[str]:
    """A line for each failed law."""
    firsts = ((law, failures[0]) for law, failures in book.broken.items())
    return [
        annotation(law, first.cause or first.message or "it failed", first.repeat)
        for law, first in firsts
    ]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a command shows: the page, and what is made of it beside."""

    page: Page
    badge: str
    annotations: Sequence[str]


def shown(args: argparse.Namespace) -> Shown:
    """The stored run that the arguments name. LedgerError where it cannot be read."""
    report = _read(args)
    return Shown(
        page=page_of(report),
        badge=badge(report.failed, report.ledger.run.score),
        annotations=annotated(report.ledger),
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "growproof report", description="Show a stored run, or a score page."
    )
    add = parser.add_argument
    add("file", help="a file of --score, of --errors-save, or of --benchmark-json")
    add("base", nargs="*", default=[], help="earlier ones: of baselines, the first one of this "
        "environment is used")  # fmt: skip
    add("--html", metavar="OUT", help="write one self-contained page")
    add("--markdown", metavar="OUT", help="write Markdown, for a pull request")
    add("--latex", metavar="OUT", help="write a LaTeX document")
    add("--badge", metavar="OUT", help="write JSON for a badge of shields.io")
    add("--annotations", action="store_true",
        help="print each failure as GitHub Actions annotates it")  # fmt: skip
    add("--check", action="store_true",
        help="instead: was FILE changed since --score FILE --sign wrote it?")  # fmt: skip
    add("--errors-fail", type=float, default=comparison.FACTOR, metavar="RATIO",
        help="the factor that counts as worse (default: 2)")  # fmt: skip
    add("--across-growers", action="store_true", help="compare two growers")
    add(
        "--history", nargs="+", default=[], metavar="FILE", help="earlier runs, to plot"
    )
    add("--benchmarks", metavar="FILE", help="a file of --benchmark-json, to add")
    return parser


def main(
    argv: list[str] | None = None, show: Callable[[argparse.Namespace], Shown] = shown
) -> int:
    """0 for a green report, 1 for a red one, 4 for bad input."""
    try:
        args = parser().parse_args(argv)
    except SystemExit as error:
        return 4 if error.code else 0
    try:
        found = show(args)
        made = found.page
        forms = ((args.html, page), (args.markdown, markdown), (args.latex, latex))
        texts = [(path, form(made)) for path, form in forms if path]
        texts += [(args.badge, found.badge)] if args.badge else []
        for path, text in texts:
            storage.write(path, text)
    except (LedgerError, OSError) as error:
        print(f"growproof report: {error}", file=sys.stderr)
        return 4
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 100
    terminal(made, console)
    if args.annotations:
        print("\n".join(found.annotations))
    return int(made.failed)


if __name__ == "__main__":
    sys.exit(main())
