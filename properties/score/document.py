"""A score as a file: what a run says of a grower, by the schema beside this module.

The file may end in a digest of all its other letters, so that a change of one of them is
seen by whoever has the file alone. It tells a change, not who wrote the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growproof.reading import BadInput, text_in

from ..errors.ledger import LedgerError
from ..errors.storage import MOST_BYTES, checked, read_json

FORMAT, VERSION = "growproof-score", 1
SCHEMA = json.loads(Path(__file__).with_name("score.schema.json").read_text("utf-8"))
NO_DIGEST = "sha256:" + 64 * "0"
DIGEST = re.compile(r'"digest": "(sha256:[0-9a-f]{64})"\n}\n\Z')
COUNTS = ("passed", "failed", "errors", "expected", "declined", "skipped")


@dataclass(frozen=True, kw_only=True)
class JudgedLaw:
    """A law that was run, and what became of each of its items."""

    name: str
    version: int
    source: str  # the hash of its code
    promise: str
    tier: str
    sentence: str
    items: dict[str, str]  # its arguments → one of COUNTS


@dataclass(frozen=True, kw_only=True)
class Row:
    """Promise × family × axis × tier: how many items came to what."""

    promise: str
    family: str
    axis: str
    tier: str
    passed: int = 0
    failed: int = 0
    errors: int = 0
    expected: int = 0
    declined: int = 0
    skipped: int = 0
    worst: float | None = None  # the largest error, in units; None: none, or not finite


@dataclass(frozen=True, kw_only=True)
class Error:
    """The largest error of a law, in units of rounding the weights once."""

    law: str
    dtype: str
    kernel: str
    cases: int
    largest: float | None  # None: not finite
    ulps: float | None
    budget: float | None
    example: str


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What is wrong, the laws that found it, and a script that repeats it."""

    cause: str
    laws: list[str]
    promise: str
    sentence: str
    message: str
    tap: str
    case: str
    repeat: str
    script: str = ""


@dataclass(frozen=True, kw_only=True)
class Besides:
    """What failed and is no law: errors that grew, an expected failure out of date."""

    test: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A failure that the run expected."""

    law: str
    reason: str
    link: str = ""
    expires: str = ""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Something that was not judged, and how often."""

    what: str
    times: int


@dataclass(frozen=True, kw_only=True)
class Missed:
    """A known-bad grower that this run would have let pass."""

    grower: str
    says: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Power:
    """What the suite is worth where this run used it: of known-bad growers.

    found: by the law that each names. outside: known by an example of something that is
    not claimed, so that nothing is said of them. by_dtype: dtype → found, of how many, in
    all of the suite.
    """

    growers: int
    found: int
    outside: int
    missed: list[Missed]
    by_dtype: dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One run on one grower, as it is published.

    whole: whether every law of what is claimed was run. shared: the hash of what laws
    share. claims: families, axes, options, promises, and what is left out for good.
    domain: what was drawn. run: tests, growths, the profile, examples a law, the seed.
    """

    grower: str
    conforms: bool
    verdict: str
    created: str
    edition: str
    whole: bool
    command: str
    claims: dict[str, list[str]]
    laws: list[JudgedLaw]
    shared: str
    score: list[Row]
    errors: list[Error]
    causes: list[Cause]
    besides: list[Besides]
    expected: list[Expected]
    declined: list[Count]
    left_out: list[Count]
    domain: dict[str, Any]
    power: Power
    run: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, str]
    digest: str = field(default="", compare=False)


def dumps(score: Score, *, sign: bool = False) -> str:
    """JSON, a line for each law, row, error, …; with a digest of itself at its end."""
    told = {"format": FORMAT, "schema_version": VERSION, **dataclasses.asdict(score)}
    del told["digest"]
    lines = [f'"{name}": {_lines(value)}' for name, value in told.items()]
    if sign:
        lines.append(f'"digest": "{NO_DIGEST}"')
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    return digest_of(text).join(text.rsplit(NO_DIGEST, 1)) if sign else text


def _lines(value: Any) -> str:
    """A value as JSON; the objects of a list stand on lines of their own."""

    def one(x: Any) -> str:
        return json.dumps(x, allow_nan=False, ensure_ascii=False)

    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(one, value)) + "\n]"
    return one(value)


def digest_of(text: str) -> str:
    """The digest of a score's text, in which zeros stand for the digest."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def problem(text: str) -> str:
    """Why this text is not the one that was signed; "" where it is."""
    found = DIGEST.search(text)
    if not found:
        return (
            "it ends in no digest: it was written without --sign, or was changed since"
        )
    at, end = found.span(1)
    made = digest_of(text[:at] + NO_DIGEST + text[end:])
    if made != found[1]:
        return (
            f"it was changed since it was signed: its digest is {found[1]}, and that of "
            f"what it says is {made}"
        )
    return ""


def is_score(text: str) -> bool:
    """Whether a text says that it is a score, near its beginning."""
    return f'"format": "{FORMAT}"' in text[:200]


def loads(text: str) -> Score:
    """A score from what `dumps` made of it. LedgerError for anything else."""
    data = checked(read_json(text), "a score", FORMAT, VERSION, SCHEMA)
    kinds = {
        "laws": JudgedLaw, "score": Row, "errors": Error, "causes": Cause,
        "besides": Besides, "expected": Expected, "declined": Count, "left_out": Count,
    }  # fmt: skip
    lists = {n: [kind(**row) for row in data[n]] for n, kind in kinds.items()}
    missed = [Missed(**row) for row in data["power"]["missed"]]
    made: dict[str, Any] = data | lists
    made["power"] = Power(**data["power"] | {"missed": missed})
    refuse_more(made["power"])
    del made["format"], made["schema_version"]
    return Score(**made)


def refuse_more(power: Power) -> None:
    """Raise LedgerError where more known-bad growers are found than there are."""
    pairs = [(power.found + power.outside, power.growers), *power.by_dtype.values()]
    for found, of in pairs:
        if found > of:
            raise LedgerError(
                f"at $.power: {found} of {of} known-bad growers are found"
            )


def text_of(path: str) -> str:
    """The text of a file. LedgerError where it cannot be read."""
    try:
        return text_in(Path(path), MOST_BYTES)
    except BadInput as error:
        raise LedgerError(f"cannot read the score {error}") from None


def load(path: str) -> Score:
    """The score in a file. LedgerError, with the path, if it holds none."""
    try:
        return loads(text_of(path))
    except LedgerError as error:
        said = str(error)
        raise LedgerError(
            said
            if said.startswith("cannot")
            else f"cannot read the score {path}: {said}"
        ) from None
