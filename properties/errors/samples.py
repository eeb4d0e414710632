"""Ledgers as runs would leave them: what the tests of this room are made of."""

from __future__ import annotations

import random

from . import storage
from .environment import environment
from .ledger import Comparison, Ledger, Loss, Run

NORM = "test_norm"


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
    """n random cases of a heavy-tailed law, half of them exact."""
    draw = random.Random(seed)
    ratios = [draw.choice([0.0, draw.lognormvariate(-1.0, 1.5)]) for _ in range(n)]
    cases = enumerate(ratios)
    return book(
        *(comparison(r * scale, (seed, i), tap=tap, device=device) for i, r in cases)
    )


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


GOOD = storage.dumps(book(comparison(1.5, 1)))
BAD = {
    "empty": ("", "the file is empty"),
    "truncated": (GOOD[: len(GOOD) // 2], "truncated"),
    "newer": (GOOD.replace('"schema_version": 1', '"schema_version": 2'), "newer"),
    "nan": (GOOD.replace('"ratio": 1.5', '"ratio": NaN'), "finite numbers only"),
    "overflow": (GOOD.replace('"ratio": 1.5', '"ratio": 1e999'), "finite numbers only"),
    "misspelt key": (GOOD.replace('"created"', '"creatde"'), "'created' is a required"),
    "another file": ('{"benchmarks": []}', "not an error ledger"),
    "tampered": (GOOD.replace('"cases": 1', '"cases": 2'), "inconsistent"),
    "another grower": (GOOD.replace("growproof:grow", "other:grow"), "other:grow"),
}
