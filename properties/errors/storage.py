"""The ledger as a file: JSON by the schema beside this module, read strictly."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema.exceptions
import jsonschema.validators
from growproof.reading import BadInput, parsed, text_in

from .ledger import (
    KEY,
    TOP,
    ZERO,
    Failure,
    Ledger,
    LedgerError,
    Loss,
    Record,
    Run,
    Tally,
)

SCHEMA = json.loads(Path(__file__).with_name("ledger.schema.json").read_text())
VERSION = 1
MOST_BYTES = 256 << 20
DRAFT = jsonschema.Draft202012Validator
# JSON Schema takes 1.0 and −0.0 for integers, and who counts with them does not
STRICT: Any = jsonschema.validators.extend(
    DRAFT,
    type_checker=DRAFT.TYPE_CHECKER.redefine("integer", lambda _, x: type(x) is int),
)


def now() -> str:
    """This second, as a ledger dates itself."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def finite(x: float | None) -> float | None:
    """x, or null in JSON for what is not finite."""
    return x if x is not None and math.isfinite(x) else None


def pack(r: Record) -> dict[str, Any]:
    """A record as JSON; quantiles and headroom are for readers."""
    return {
        **dict(zip(KEY, r.key, strict=True)),
        "count": r.count,
        "cases": r.cases,
        "nonfinite": r.nonfinite,
        "ratio": finite(r.ratio),
        "ulps": finite(r.ulps),
        "relative": finite(r.relative),
        **{f"p{p}": finite(r.quantile(p / 100)) for p in (50, 90, 99)},
        "budget": r.budget,
        "headroom": finite(r.headroom),
        "example": r.example,
        "sketch": " ".join(f"{b}:{n}" for b, n in sorted(r.bins.items())),
        "digest": f"{r.digest:016x}",
    }


def _unpack(data: Mapping[str, Any]) -> Record:
    """A record from JSON that keeps the schema."""
    split = (pair.split(":") for pair in data["sketch"].split())
    pairs = [(int(b), int(n)) for b, n in split]
    if outside := [b for b, _ in pairs if not ZERO <= b <= TOP]:
        raise LedgerError(f"a sketch has bins from {ZERO} to {TOP}, got {outside[0]}")
    numbers = {n: data[n] for n in ("ratio", "ulps", "relative")}
    return Record(
        key=tuple(data[name] for name in KEY),
        **{n: math.inf if x is None else x for n, x in numbers.items()},
        **{n: data[n] for n in ("count", "nonfinite", "budget", "example")},
        bins=Counter(dict(pairs)),
        digest=int(data["digest"], 16),
    )


def dumps(ledger: Ledger) -> str:
    """JSON with finite numbers only, and one line for each record."""
    head = {
        "format": "growproof-errors",
        "schema_version": VERSION,
        "created": ledger.created,
        "environment": ledger.environment,
        "run": dataclasses.asdict(ledger.run),
        "accepted": ledger.accepted,
    }
    records = [pack(r) for _, r in sorted(ledger.records.items())]
    losses = [dataclasses.asdict(x) for x in ledger.losses.values()]
    for loss in losses:
        loss.update({n: finite(loss[n]) for n in ("original", "grown", "relative")})
    lines = [f"{json.dumps(k)}: {json.dumps(v, indent=1)}" for k, v in head.items()]
    for name, rows in (("comparisons", records), ("losses", losses)):
        body = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        lines.append(f'"{name}": [\n{body}\n]')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _number(text: str) -> float:
    """A finite number."""
    if not math.isfinite(value := float(text)):
        raise LedgerError(f"it holds {text}, and a ledger holds finite numbers only")
    return value


def _integer(text: str) -> int:
    """A whole number that a float can hold, too."""
    _number(text)
    return int(text)


def read_json(text: str) -> Any:
    """Parse strictly: no NaN, no infinity, and an error that says what is wrong."""
    how = {"parse_constant": _number, "parse_float": _number, "parse_int": _integer}
    try:
        return parsed(text, "", **how)
    except BadInput as error:
        raise LedgerError(f"got {error.got}, expected {error.expected}") from None


def loads(text: str) -> Ledger:
    """A ledger from what `dumps` made of it. LedgerError for anything else."""
    data = checked(
        read_json(text), "an error ledger", "growproof-errors", VERSION, SCHEMA
    )
    try:
        return _ledger(data)
    except (ValueError, OverflowError) as error:
        raise LedgerError(f"a number of it is past all sizes: {error}") from None


def _ledger(data: Mapping[str, Any]) -> Ledger:
    """A ledger from JSON that keeps the schema."""
    ledger = Ledger(**{n: data[n] for n in ("environment", "accepted", "created")})
    ledger.run = _run(data["run"])
    for row in data["comparisons"]:
        record = _unpack(row)
        if record.key in ledger.records or record.cases != row["cases"]:
            raise LedgerError(f"duplicate or inconsistent record {record.key}")
        ledger.records[record.key] = record
    for row in data["losses"]:
        nulls = {n: math.nan for n in _LOSS_NUMBERS if row[n] is None}
        loss = Loss(**row | nulls)
        ledger.losses[loss.key] = loss
    return ledger


_LOSS_NUMBERS = ("original", "grown", "relative")


def _run(data: Mapping[str, Any]) -> Run:
    """The run block; a ledger of an older growproof lacks some of it."""
    failures = [Failure(**row) for row in data.get("failures", [])]
    score = [Tally(**row) for row in data.get("score", [])]
    return Run(**{**data, "failures": failures, "score": score})


def checked(
    data: Any, what: str, form: str, version: int, schema: Any
) -> dict[str, Any]:
    """The data, if it keeps the schema. LedgerError, with the place, if not.

    what, form: what it must be, in words, and as its `format` says. version: of the
    schema, as it is read here.
    """
    if not isinstance(data, dict) or data.get("format") != form:
        raise LedgerError(f"it is not {what} (no format: {form})")
    written = data.get("schema_version")
    if isinstance(written, int) and written > version:
        raise LedgerError(
            f"its schema is version {written}, and this growproof reads {version}: "
            "a newer growproof wrote it"
        )
    if error := jsonschema.exceptions.best_match(STRICT(schema).iter_errors(data)):
        raise LedgerError(f"at {error.json_path}: {error.message[:300]}")
    return data


def load(path: str | Path) -> Ledger:
    """The ledger in a file. LedgerError, with the path, if it holds none."""
    try:
        return loads(text_in(Path(path), MOST_BYTES))
    except BadInput as error:
        raise LedgerError(f"cannot read the ledger {error}") from None
    except LedgerError as error:
        raise LedgerError(f"cannot read the ledger {path}: {error}") from None


def write(path: str | Path, text: str) -> None:
    """Replace the file as a whole, or leave it alone."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
