"""Random edits of values and of bytes: what a disk, an editor or a hand may leave."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 10**6, 10**9, 2**31, 2**63, 10**400, 0.5,
    -0.0, 1e-300, 1e308, float("nan"), float("inf"), "", "a", "a/b", "../../x", "\0",
    "∞" * 40, "llama", "float16", "sliding_attention", [], [None], [1, "a"], {}, [[]] * 40,
    {"": 0}, {"a": {"b": [1]}}, "linear", "yarn", "dynamic", "llama3", "longrope",
]  # fmt: skip


def mutated(value: Any, draw: random.Random) -> Any:
    """A JSON value with one to four edits, at any depth."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2, 4))):
        value = edited(value, draw)
    return value


def edited(value: Any, draw: random.Random) -> Any:
    """One edit: here, or in something that the value holds."""
    keys = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(
        value, list) else []  # fmt: skip
    if not keys or draw.random() < 0.05:
        return another(value, draw)
    key = draw.choice(keys)
    what = draw.random()
    if what < 0.15:
        del value[key]
    elif what < 0.3 and isinstance(value, dict):
        value[draw.choice(["x", "rope_theta", "layer_types", *map(str, keys)])] = (
            copy.deepcopy(value[key])
        )
    else:
        value[key] = edited(value[key], draw)
    return value


def another(value: Any, draw: random.Random) -> Any:
    """An odd value in its place, half the time of its type: what a schema lets pass."""
    if draw.random() < 0.05:
        return nested(draw)
    alike = [x for x in ODD if type(x) is type(value)]
    return copy.deepcopy(draw.choice(alike if alike and draw.random() < 0.5 else ODD))


def nested(draw: random.Random) -> Any:
    """Lists or objects within one another, some of them past every recursion limit."""
    value: Any = 0
    for _ in range(draw.choice((3, 40, 400))):
        value = [value] if draw.random() < 0.5 else {"a": value}
    return value


def damaged(data: bytes, draw: random.Random, within: int) -> bytes:
    """Bytes cut off, overwritten, doubled or removed, among the first `within`."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at, n = draw.randrange(max(1, min(within, len(found)))), draw.choice((1, 4, 8))
        kind = draw.randrange(5)
        if kind == 0:
            del found[at:]
        elif kind == 1:
            del found[at : at + n]
        elif kind == 2:
            found[at:at] = found[at : at + n]
        elif kind == 3:
            found[at : at + n] = draw.choice((b"\xff", b"\0", b"\x7f")) * n
        else:
            found[at : at + n] = draw.randbytes(n)
    return bytes(found)


def as_text(value: Any, draw: random.Random) -> bytes:
    """JSON, and at times what a disk or an editor made of it."""
    data = json.dumps(value).encode("utf-8", "surrogatepass")
    what = draw.random()
    if what < 0.05:
        return damaged(data, draw, len(data))
    if what < 0.06:
        return b"[" * draw.choice((100, 100_000))
    if what < 0.07:
        return data.replace(b"1", b"9" * 5000, 1)
    return data


def of_json(value: Any, draw: random.Random) -> bytes:
    """A mutated JSON document."""
    return as_text(mutated(value, draw), draw)
