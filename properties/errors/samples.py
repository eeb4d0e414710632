"""Ledgers as runs would leave them: what the tests of this room are made of."""

from __future__ import annotations

import random

from . import storage
from .environment import environment
from .ledger import Comparison, Ledger, Loss, Run

NORM = "test_norm"
HOSTILE = "Growth(hidden_size=(64, 96)) | `<script>nope()</script>`"


def comparison(ratio: float, case: object, **changes: object) -> Comparison:
    """One case of a law, float32 under a budget of 16."""
    fields = {
        "law": NORM, "tap": "logits", "family": "llama", "dtype": "float32",
        "kernel": "blas", "device": "cpu", "size": "tiny", "ratio": ratio,
        "ulps": ratio, "relative": ratio * 2**-24, "budget": 16.0,
        "example": f"case {case}",
    }  # fmt: skip
    return Comparison(**fields | changes)  # type: ignore[arg-type]


def book(*comparisons: Comparison, **changes: object) -> Ledger:
    """A ledger as a run of growproof:grow would leave it."""
    made = Ledger(run=Run(tests=1), created=storage.now())
    made.environment = environment(grower="growproof:grow") | changes
    for c in comparisons:
        made.add(c)
    return made


def sample(
    seed: int, n: int, scale: float = 1.0, tap: str = "logits", device: str = "cpu"
) -> Ledger:
    """n random cases of a heavy-tailed law without a budget, half of them exact."""
    draw, rows = random.Random(seed), []
    for i in range(n):
        ratio = scale * draw.choice([0.0, draw.lognormvariate(-1.0, 1.5)])
        row = comparison(ratio, (seed, i), tap=tap, device=device, budget=None)
        rows.append(row)
    return book(*rows)


def narrow(seed: int, n: int, scale: float = 1.0) -> Ledger:
    """n random cases like those measured at float32 logits: 0.4, and 0.8 at 90 %."""
    draw = random.Random(seed)
    ratios = [scale * draw.lognormvariate(-0.9, 0.5) for _ in range(n)]
    return book(*(comparison(r, (seed, i)) for i, r in enumerate(ratios)))


def loss(relative: float, **changes: object) -> Loss:
    """A loss of 2.0 that grew by `relative`."""
    fields = {
        "name": "centred", "model": "tiny", "dtype": "float32", "kernel": "sdpa",
        "device": "cpu", "original": 2.0, "grown": 2.0 * (1 + relative),
        "relative": relative, "tolerance": None, "published": 0.005,
    }  # fmt: skip
    return Loss(**fields | changes)  # type: ignore[arg-type]


def laddered(slip: float = 0.0, created: str = "2026-01-02T03:04:05+00:00") -> Ledger:
    """Two layers in two precisions, a law of exact cases that ``slip`` spoils, a ladder."""
    made = book()
    made.created = created
    units = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
    taps = ["embedding", "layers.0.query", "layers.0.mlp", "layers.1.query", "logits"]
    rows = [
        comparison(0.3 + i / 10, HOSTILE, law=f"test_layers[{who}]", tap=tap,
                   dtype=dtype, relative=unit * i)
        for who in ("original", "grown")
        for dtype, unit in units.items()
        for i, tap in enumerate(taps)
    ]  # fmt: skip
    rows += [
        comparison(slip, i, law="test_rounded_once", budget=4.0) for i in range(20)
    ]
    made.merge(book(*rows))
    made.add_loss(loss(10.4, name="copied", published=10.39))
    made.add_loss(loss(-1e-7, published=None))
    return made


GOOD = storage.dumps(book(comparison(1.5, 1)))
BAD = {
    "empty": ("", "got an empty file"),
    "truncated": (GOOD[: len(GOOD) // 2], "truncated"),
    "newer": (GOOD.replace('"schema_version": 1', '"schema_version": 2'), "newer"),
    "nan": (GOOD.replace('"ratio": 1.5', '"ratio": NaN'), "finite numbers only"),
    "overflow": (GOOD.replace('"ratio": 1.5', '"ratio": 1e999'), "finite numbers only"),
    "misspelt key": (GOOD.replace('"created"', '"creatde"'), "'created' is a required"),
    "another file": ('{"benchmarks": []}', "not an error ledger"),
    "tampered": (GOOD.replace('"cases": 1', '"cases": 2'), "inconsistent"),
    "another grower": (GOOD.replace("growproof:grow", "other:grow"), "other:grow"),
}
