"""What a run ends in: a block for each cause, and one sentence for the whole of it."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..laws.domain import AXES
from ..laws.registry import PROMISES

LAYERS = r" of layers? \d+(?:, \d+)*"
# which layers, dtypes, and numbers
NUMBER = re.compile(rf"{LAYERS}|\bb?float\d+|\d[\d.e+-]*")
NAME, EVERY = r"\w+(?:\.bias)?", "every parameter"
NAMED = re.compile(
    rf"({EVERY}|{NAME}(?:, {NAME})*(?: and {NAME})?)(?:{LAYERS})? (?:is|are|holds?|differs?|shares?|went)\b"
)
LOST = "right in memory, lost when saved: "
# how, and in which state of the model, a fault shows: it is the same fault
SHOWS = re.compile(
    rf"^{LOST}| \((in [\w ]+, not in [\w ]+|where parameters are frozen, not elsewhere)\)$"
)
SHOWN = 3  # causes that are told, the first of them in full
Finding = Mapping[str, Any]  # of findings.found: what is known of one failed law


def by_cause(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """cause → the failures that show it, those that most laws show first.

    Causes that differ in their numbers, or of which one names more parameters, are one.
    A failure that names no part stands for itself only where none of the others does.
    """
    named = [finding for finding in findings if finding["causes"]]
    groups: dict[str, list[tuple[str, Finding]]] = {}
    for finding in named or findings:
        for cause in finding["causes"] or [finding["message"]]:
            like = next((known for known in groups if same_fault(known, cause)), cause)
            groups.setdefault(like, []).append((cause, finding))
    ranked = sorted(groups.values(), key=lambda found: rank([f for _, f in found]))
    return {usual(c for c, _ in found): [f for _, f in found] for found in ranked}


def usual(causes: Iterable[str]) -> str:
    """The sentence that is said most often."""
    return Counter(causes).most_common(1)[0][0]


def rank(findings: Sequence[Finding]) -> tuple[int, int]:
    """Causes that break the strongest promise come first, then those that most laws show."""
    return order_of(first_of(findings)), -len(findings)


def order_of(finding: Finding) -> int:
    """The place of its promise among the promises."""
    order = list(PROMISES)
    promise = finding["promise"]
    return order.index(promise) if promise in order else len(order)


def same_but_numbers(a: str, b: str) -> bool:
    """Whether two sentences differ in their numbers alone."""
    return NUMBER.sub("", a) == NUMBER.sub("", b)


def same_fault(a: str, b: str) -> bool:
    """The same but for numbers, and of one parameter at least: a case has not all.

    A weight and its bias are one: in some cases one of the two shows nothing. So are
    what is lost when saved, and wrong already where rounding hides what was right.
    """
    a, b = SHOWS.sub("", a), SHOWS.sub("", b)
    if same_but_numbers(a, b):
        return True
    one, two = NAMED.match(a), NAMED.match(b)
    if not one or not two:
        return False
    names, others = (
        {name.removesuffix(".bias") for name in re.split(", | and ", m[1])}
        for m in (one, two)
    )
    rest = a[one.end() :], b[two.end() :]
    alike = names & others or EVERY in names | others
    return bool(alike) and same_but_numbers(*rest)


def first_of(findings: Sequence[Finding]) -> Finding:
    """The failure that tells most: of the strongest promise, with the smallest case."""
    return min(findings, key=lambda finding: (order_of(finding), finding["size"]))


def block(
    cause: str, findings: Sequence[Finding], width: int, *, short: bool
) -> list[str]:
    """The cause, its evidence, the laws that found it, and how to repeat it.

    short: without the evidence, which other causes of the same case would repeat.
    """
    first = first_of(findings)
    laws = list(dict.fromkeys(finding["law"] for finding in findings))
    more = f", and {len(laws) - 3} more" if len(laws) > 3 else ""
    rows = {
        "law": first["sentence"],
        "seen": first["message"] if first["message"] != cause else "",
        "first wrong": first["tap"],
        "found by": f"{len(laws)} law{'s' * (len(laws) > 1)}: {', '.join(laws[:3])}{more}",
        "smallest": first["case"],
        "repeat": first["repeat"],
    }
    lines = wrapped(cause, width, "", "  ")
    for name, text in rows.items():
        if text and not (short and name not in ("found by", "repeat")):
            most = None if name == "repeat" else 3  # a command is of no use in part
            lines += wrapped(text, width, f"  {name:<12}", 14 * " ", most)
    return lines


def wrapped(
    text: str, width: int, first: str, rest: str, most: int | None = None
) -> list[str]:
    """Lines of a width, that break between words and never within a name.

    most: how many there may be; … stands for what is left out.
    """
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False, max_lines=most, placeholder=" …",
    )  # fmt: skip


def blocks(findings: Sequence[Finding], width: int) -> list[str]:
    """Every cause in a block of its own, the first few; the rest is counted."""
    lines: list[str] = []
    groups = by_cause(findings)
    for i, (cause, found) in enumerate(list(groups.items())[:SHOWN]):
        lines += ["", *block(cause, found, width, short=i > 0)]
    if len(groups) > SHOWN:
        lines += [
            "",
            f"and {plural(len(groups) - SHOWN)}: with -v each failure is shown above",
        ]
    told = {id(finding) for found in groups.values() for finding in found}
    rest = [finding for finding in findings if id(finding) not in told]
    if rest:
        laws = ", ".join(dict.fromkeys(finding["law"] for finding in rest))
        more = f"{len(rest)} more failure{'s' * (len(rest) > 1)}"
        text = f"{more} (with -v each is shown above): {laws}"
        lines += ["", *wrapped(text, width, "", "  ")]
    return lines


def plural(n: int) -> str:
    """1 more cause, 2 more causes."""
    return f"{n} more cause{'s' * (n > 1)}"


def violated(grower: str, findings: Sequence[Finding]) -> str:
    """somebody:grow violates lossless on llama head_dim: √(K'/K) is missing from …"""
    groups = by_cause(findings)
    firsts = [first_of(found) for found in list(groups.values())[:3]]
    families = dict.fromkeys(first["family"] for first in firsts if first["family"])
    grown = {a for first in firsts for a in first["axes"].split(", ")}
    axes = ", ".join(axis for axis in AXES if axis in grown)
    where = " and ".join(families) + f" {axes}" * bool(axes)
    promise = first_of(findings)["promise"]
    causes = "; ".join(list(groups)[:3])
    more = f"; and {len(groups) - 3} more" if len(groups) > 3 else ""
    return f"{grower} violates {promise}{f' on {where}' * bool(where.strip())}: {causes}{more}"


def conforms(grower: str, promises: Iterable[str]) -> str:
    """somebody:grow conforms: lossless, hygiene, on this domain."""
    kept = [name for name in PROMISES if name in set(promises)]
    return f"{grower} conforms: {', '.join(kept) or 'its laws hold'}, on this domain"
