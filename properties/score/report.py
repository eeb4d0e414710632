"""`growproof report` for scores: the page, what changed since another, the digest.

A file that is no score is left to the report of stored runs.
"""

from __future__ import annotations

import argparse
import sys

from ..errors import report
from ..errors.ledger import LedgerError, Tally
from ..errors.report import Shown
from ..laws.promises import PROMISES
from . import document, edition
from .changes import changes
from .document import COUNTS, Score
from .sections import page_of


def shown(args: argparse.Namespace) -> Shown:
    """The page of a score, or of a stored run. LedgerError where it cannot be read."""
    try:
        is_score = document.is_score(document.text_of(args.file))
    except LedgerError:
        is_score = False  # the other reader says what is wrong
    if not is_score:
        return report.shown(args)
    if args.history or args.benchmarks or len(args.base) > 1:
        raise LedgerError(
            f"{args.file} is a score: one earlier score may stand behind it, and "
            "neither --history nor --benchmarks"
        )
    now = document.load(args.file)
    base = document.load(args.base[0]) if args.base else None
    found = changes(base, now, across=args.across_growers) if base else []
    return Shown(
        page=page_of(now, base, found),
        badge=badge(now),
        annotations=[
            report.annotation(", ".join(c.laws[:1]), c.cause, c.repeat)
            for c in now.causes
        ]
        + [report.annotation(x.test, x.why, now.command) for x in now.besides],
    )


def badge(score: Score) -> str:
    """The verdict for a README; one of a part of the laws says so."""
    rows = [
        Tally(promise=row.promise, family=row.family, axis=row.axis,
              **{name: vars(row)[name] for name in COUNTS})
        for row in score.score if row.promise in PROMISES
    ]  # fmt: skip
    label = f"growproof {score.edition}".strip()
    return report.badge(
        not score.conforms, rows, label if score.whole else f"{label} (in part)"
    )


def check(path: str) -> int:
    """0 where a signed score is as it was signed, and its laws are its edition's."""
    text = document.text_of(path)
    said = document.problem(text)
    score = None
    if not said:
        score = document.load(path)
        said = not_its_edition(score)
    if said or score is None:
        print(f"{path}: {said}")
        return 1
    versions = ", ".join(f"{name} {v}" for name, v in score.versions.items())
    laws = f"{len(score.laws)} laws"
    print(f"{path}: as it was signed, {score.digest}")
    print(score.verdict)
    print(
        f"by {laws}{f' of edition {score.edition}' * bool(score.edition)}; {versions}"
    )
    print("(a digest shows a change, not who wrote the file)")
    return 0


def not_its_edition(score: Score) -> str:
    """Why the laws are not those of the edition that a score names; "" where they are."""
    if not score.edition:
        return ""
    try:
        wanted = edition.edition(score.edition)
    except ValueError as error:
        return f"it is of edition {score.edition}, and {error}: a newer growproof knows"
    for law in score.laws:
        if wanted.get(law.name) != (law.version, law.source):
            return f"it says edition {score.edition}, and its {law.name} is not that edition's"
    return ""


def main(argv: list[str] | None = None) -> int:
    """0 for a green report, 1 for a red one, 4 for bad input."""
    words = sys.argv[1:] if argv is None else argv
    if "--check" not in words:
        return report.main(words, shown)
    try:
        args = report.parser().parse_args(words)
        if args.base:
            raise LedgerError("--check takes one file")
        return check(args.file)
    except SystemExit as error:
        return 4 if error.code else 0
    except LedgerError as error:
        print(f"growproof report: {error}", file=sys.stderr)
        return 4


if __name__ == "__main__":
    sys.exit(main())
