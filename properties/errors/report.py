"""`growproof report`: a stored run, or its comparison with a baseline, to be read.

One list of sections is rendered as a terminal table, as Markdown for a pull request,
and as one HTML page that needs no network. A red run makes a red report: 1 where a test
failed, an error was over its budget, or something is worse, gone or not comparable, as
`pytest --errors-compare` judges it; 4 for input that cannot be read. A FILE or
`--benchmarks` may be pytest-benchmark's JSON, whose `extra_info` may hold ratio, ulps,
relative and budget.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from growproof.reading import BadInput, text_in
from rich.console import Console

from . import comparison, storage
from .ledger import Ledger, LedgerError
from .page import page
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


def badge(report: Report) -> str:
    """The verdict as an endpoint of shields.io reads it."""
    score = report.ledger.run.score
    broken = {row.promise for row in score if row.failed or row.errors}
    kept = {row.promise for row in score if row.passed} - broken
    said = "violates " + ", ".join(sorted(broken)) if broken else "fails"
    message = said if report.failed else ", ".join(sorted(kept)) or "conforms"
    colour = "red" if report.failed else "brightgreen"
    told = {"label": "growproof", "message": message, "color": colour}
    return json.dumps({"schemaVersion": 1, **told}) + "\n"


def annotated(report: Report) -> list[str]:
    """A line for each failed law, as a workflow command of GitHub Actions."""
    found = []
    for law, failures in report.ledger.broken.items():
        first = failures[0]
        said = " ".join((first.cause or first.message or "it failed").split())
        escaped = f"{said} Repeat: {first.repeat}".replace("%", "%25")
        found.append(f"::error title=growproof {law}::{escaped}")
    return found


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "growproof report", description="Show stored errors."
    )
    add = parser.add_argument
    add("file", help="a file of --errors-save, or of --benchmark-json")
    add("base", nargs="*", help="baselines: the first one of this environment is used")
    add("--html", metavar="OUT", help="write one self-contained page")
    add("--markdown", metavar="OUT", help="write Markdown, for a pull request")
    add("--badge", metavar="OUT", help="write JSON for a badge of shields.io")
    add("--annotations", action="store_true",
        help="print each failure as GitHub Actions annotates it")  # fmt: skip
    add("--errors-fail", type=float, default=comparison.FACTOR, metavar="RATIO",
        help="the factor that counts as worse (default: 2)")  # fmt: skip
    add("--across-growers", action="store_true", help="compare two growers")
    add(
        "--history", nargs="+", default=[], metavar="FILE", help="earlier runs, to plot"
    )
    add("--benchmarks", metavar="FILE", help="a file of --benchmark-json, to add")
    return parser


def main(argv: list[str] | None = None) -> int:
    """0 for a green report, 1 for a red one, 4 for bad input."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as error:
        return 4 if error.code else 0
    try:
        report = _read(args)
        forms = ((args.html, page), (args.markdown, markdown), (args.badge, badge))
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
    if args.annotations:
        print("\n".join(annotated(report)))
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
