"""The error ledger: what a run measured, one record for each key.

Every comparison of the suite ends in `record`. Its error is dimensionless, as LAPACK's
test ratios are, in the unit of one rounding of the weights:

    ratio = error / (√n · response),

where response is how far the same value moves when every weight is rounded once (never
less than one rounding of the value itself) and n is the length of the longest sum
behind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

OCTAVE = 8  # bins of the sketch for each factor of two: quantiles to 4.4 %
ZERO = -64 * OCTAVE  # the bin of ratios up to 2**-64
TOP = 64 * OCTAVE
PLUGIN = "growproof-errors"  # pytest's name for what holds the ledger of a run

Key = tuple[str, ...]


class LedgerError(Exception):
    """A ledger that cannot be read, compared or written, and why."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One numerical comparison, already measured."""

    law: str
    tap: str  # "layers.3.attention.out", "logits"
    family: str
    dtype: str  # "float64"
    kernel: str  # "ordered", "blas", "eager", "sdpa", "flash_attention_2"
    device: str  # "cpu", "NVIDIA H100 80GB HBM3"
    size: str  # "tiny" (D ≤ 64), "small" (D ≤ 1024), "real"
    ratio: float  # error / (√n · response)
    ulps: float
    relative: float  # error / largest value
    budget: float | None  # in units of ratio
    example: str  # names the case: its repr, or a command that repeats it

    @property
    def key(self) -> Key:
        """The record that it belongs to."""
        return tuple(getattr(self, name) for name in KEY)


KEY = ("law", "tap", "family", "dtype", "kernel", "device", "size")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One loss before and after growing; relative = grown / original - 1."""

    name: str  # a row of the article's ladder
    model: str
    dtype: str
    kernel: str
    device: str
    original: float
    grown: float
    relative: float
    tolerance: float | None  # of relative
    published: float | None  # the article's relative

    @property
    def over(self) -> bool:
        """Whether the change exceeds its tolerance."""
        return self.tolerance is not None and not abs(self.relative) <= self.tolerance

    @property
    def key(self) -> Key:
        """What names it in a comparison of two runs."""
        return (self.name, self.model, self.dtype, self.kernel, self.device)


class Measured(NamedTuple):
    """The largest error of a tensor; ``where`` is its index."""

    ratio: float
    ulps: float
    relative: float
    where: tuple[int, ...]


def measure(
    actual: torch.Tensor,
    expected: torch.Tensor,
    *,
    n: int,
    dtype: torch.dtype,
    scale: float | None = None,
) -> Measured:
    """ratio = max |actual - expected| / (√n · u · scale), in float64.

    u is the unit roundoff of `dtype`, so that scale is the response of one rounding of
    the weights, over u. Its default, max |expected|, is the least that it can be: one
    rounding of the value itself. Where that is 0, any error is infinite. Equal
    infinities, and NaN in both, are no error; any other mismatch of them is infinite.
    ulps is the largest over the elements, and relative is to max |expected|.
    """
    if actual.shape != expected.shape or not expected.numel() or n < 1:
        raise ValueError(
            f"cannot measure {tuple(actual.shape)} against {tuple(expected.shape)} "
            f"with n = {n}: equal shapes with an element, and n ≥ 1, are needed"
        )
    a, e = (t.detach().to(torch.float64).flatten() for t in (actual, expected))
    error = (a - e).abs()
    error[(a == e) | (a.isnan() & e.isnan())] = 0.0
    error = error.nan_to_num(math.inf, math.inf)
    at = int(error.argmax())
    worst, where = float(error[at]), _index(at, expected.shape)
    if not worst:
        return Measured(0.0, 0.0, 0.0, where)
    info = torch.finfo(dtype)
    largest = float(e.abs().nan_to_num(0.0, 0.0).max())
    exponent = torch.frexp(e.abs().clamp(info.smallest_normal)).exponent
    ulps = torch.ldexp(error / info.eps, 1 - exponent).nan_to_num(math.inf, math.inf)
    unit = info.eps / 2 * math.sqrt(n) * (largest if scale is None else scale)
    relative = worst / (largest or scale or math.nan)
    ratio = worst / unit if unit else math.inf
    return Measured(ratio, float(ulps.max()), relative, where)


def _index(at: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Of a flat index, the index in `shape`."""
    where: list[int] = []
    for size in reversed(shape):
        at, i = divmod(at, size)
        where.insert(0, i)
    return tuple(where)


@dataclass(kw_only=True)
class Record:
    """The comparisons of one key: exact maxima, and a mergeable sketch of the cases.

    The sketch counts the cases' largest ratios in bins of 2^(1/8) (DDSketch: Masson,
    Rim & Lee, VLDB 2019): merging is exact, whatever the order of the workers. Successive
    comparisons with one example are one case. The digest is the sum of the cases' hashes.
    """

    key: Key
    count: int = 0
    nonfinite: int = 0
    ratio: float = 0.0
    ulps: float = 0.0
    relative: float = 0.0
    budget: float | None = None  # the strictest
    example: str = ""  # of the largest ratio
    bins: Counter[int] = field(default_factory=Counter)
    digest: int = 0
    last: tuple[str, int] | None = field(default=None, compare=False)

    @property
    def cases(self) -> int:
        """How many cases it counts, each once."""
        return self.bins.total()

    @property
    def name(self) -> str:
        """The key but for its law."""
        return " ".join(self.key[1:])

    @property
    def headroom(self) -> float | None:
        """budget / ratio; None without a budget, or without an error."""
        return self.budget / self.ratio if self.budget and self.ratio else None

    @property
    def over(self) -> bool:
        """Whether an error exceeds its budget."""
        return self.budget is not None and not self.ratio <= self.budget

    def quantile(self, p: float) -> float:
        """The ratio that a share p of the cases does not exceed, to a bin."""
        seen = 0
        for bin in sorted(self.bins):
            seen += self.bins[bin]
            if seen >= p * self.cases:
                middle = 2 ** ((bin - 0.5) / OCTAVE) if bin > ZERO else 0.0
                return min(middle, self.ratio)
        return self.ratio

    def above(self, bin: int) -> int:
        """How many cases lie above a bin."""
        return sum(n for b, n in self.bins.items() if b > bin)

    def add(self, c: Comparison) -> None:
        """Count one comparison, as part of the last case if the example is its own."""
        ratio, ulps, relative = (
            math.inf if math.isnan(x) else x for x in (c.ratio, c.ulps, c.relative)
        )
        bin, case = bin_of(ratio), 1
        if self.last and self.last[0] == c.example:
            old, case = self.last[1], 0
            self.bins[old] -= 1
            self.bins += Counter()  # drops a bin that is empty now
            bin = max(old, bin)
        self.last = (c.example, bin)
        one = Record(
            key=self.key,
            count=1,
            nonfinite=int(math.isinf(ratio)),
            ratio=ratio,
            ulps=ulps,
            relative=relative,
            budget=c.budget,
            example=c.example,
            bins=Counter({bin: 1}),
            digest=case * _hash(c.example),
        )
        self.merge(one)

    def merge(self, other: Record) -> None:
        """Count all that another record of this key counts."""
        both = (self, other) if self.count else (other,)
        self.example = min(both, key=lambda r: (-r.ratio, r.example)).example
        self.count += other.count
        self.nonfinite += other.nonfinite
        for name in ("ratio", "ulps", "relative"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        budgets = [b for b in (self.budget, other.budget) if b is not None]
        self.budget = min(budgets, default=None)
        self.bins.update(other.bins)
        self.digest = (self.digest + other.digest) % 2**64


def _hash(text: str) -> int:
    """64 bits of a case's name."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def bin_of(ratio: float) -> int:
    """b with 2^((b-1)/8) < ratio ≤ 2^(b/8), within 64 octaves of 1."""
    if ratio <= 2.0**-64:
        return ZERO
    return TOP if ratio >= 2.0**64 else math.ceil(math.log2(ratio) * OCTAVE)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed test: the law that does not hold, where, and why if the run knows."""

    law: str  # as its records name it
    test: str = ""  # as pytest names it
    case: str = ""  # the smallest that fails
    message: str = ""
    cause: str = ""
    repeat: str = ""  # a command
    expected: str = ""  # the reason, of a failure that the run expected


@dataclass(frozen=True, kw_only=True)
class Tally:
    """A row of the score page: what became of the items of a promise, family and axis."""

    promise: str
    family: str
    axis: str
    passed: int = 0
    failed: int = 0
    errors: int = 0  # failed before or after the law itself
    declined: int = 0  # the grower does not claim the growth
    skipped: int = 0
    expected: int = 0  # failed, as the run expected


@dataclass(kw_only=True)
class Run:
    """What ran: items, those that failed, models grown, the failures, the score."""

    tests: int = 0
    failed: int = 0
    growths: int = 0  # models that the grower under test has grown
    failures: list[Failure] = field(default_factory=list)
    score: list[Tally] = field(default_factory=list)


@dataclass
class Ledger:
    """All records of a run, with what it ran in."""

    records: dict[Key, Record] = field(default_factory=dict)
    losses: dict[Key, Loss] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    run: Run = field(default_factory=Run)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    created: str = ""

    def add(self, comparison: Comparison) -> None:
        """Count a comparison under its key."""
        self._record(comparison.key).add(comparison)

    def add_loss(self, loss: Loss) -> None:
        """Of two losses with one key, the one further from its original stays."""
        old = self.losses.get(loss.key)
        if old is None or not abs(loss.relative) <= abs(old.relative):
            self.losses[loss.key] = loss

    def merge(self, other: Ledger) -> None:
        """Count all that a worker's ledger counts."""
        self.run.growths += other.run.growths
        for key, record in other.records.items():
            self._record(key).merge(record)
        for loss in other.losses.values():
            self.add_loss(loss)

    def _record(self, key: Key) -> Record:
        return self.records.setdefault(key, Record(key=key))

    @property
    def broken(self) -> dict[str, list[Failure]]:
        """law → its failures, but for those that the run expected."""
        broken: dict[str, list[Failure]] = {}
        for failure in self.run.failures:
            if not failure.expected:
                broken.setdefault(failure.law, []).append(failure)
        return broken

    @property
    def laws(self) -> dict[str, list[Record]]:
        """law → its records, both in order."""
        laws: dict[str, list[Record]] = {}
        for record in sorted(self.records.values(), key=lambda r: r.key):
            laws.setdefault(record.key[0], []).append(record)
        return laws


# A law records from deep within, where no fixture reaches: the ledger of `recording`.
_current: Ledger | None = None


@contextlib.contextmanager
def recording(book: Ledger | None) -> Iterator[None]:
    """Let `record`, `record_loss` and `grew` write into `book`, or nowhere, meanwhile."""
    global _current
    before, _current = _current, book
    try:
        yield
    finally:
        _current = before


def ledger_of(config: Any) -> Ledger:
    """The ledger of a pytest run, for those who name its grower or show its errors."""
    return config.pluginmanager.get_plugin(PLUGIN).ledger


def record(comparison: Comparison) -> None:
    """Add to the ledger of the run, if there is one."""
    if _current is not None:
        _current.add(comparison)


def record_loss(loss: Loss) -> None:
    """Add to the ledger of the run, if there is one."""
    if _current is not None:
        _current.add_loss(loss)


def grew() -> None:
    """Count one model that the grower under test has grown."""
    if _current is not None:
        _current.run.growths += 1
