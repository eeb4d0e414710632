"""The error ledger: what a run measured, stored, and compared with another run.

Every comparison of the suite ends in ``record``. Its error is dimensionless,
ratio = error / (u · √n · scale), as in LAPACK's test ratios: u the unit roundoff of the
dtype, n the length of the longest sum behind the value, scale the largest value.

**When is a run worse than its baseline?** Not when its maximum is larger: measured on
one grower, the maximum over random draws moved from 1.3 to 48 between seeds, profiles
and ``target()``, the 90 % quantile by 2.3, and the median often sat at exactly 0. So
whole distributions are compared. For each threshold x, count the cases above x in the
baseline (a of n) and above factor · x in the current run (b of m). If the grower did
not get worse by the factor, the second rate is not the larger one; the evidence that it
is larger is the log-likelihood ratio of two rates against one (Wilks' G),

    G = n·KL(a/n ‖ p) + m·KL(b/m ‖ p),   p = (a + b) / (n + m).

A key is worse where G > 14 nats at some x ≥ FLOOR. For one grower under 900 pairs of
seeds and profiles G stayed below 8.2, since the factor is slack that it does not use;
11 cases that all exceed what none exceeded reach 14. The comparisons of one case are
not independent (counted singly, they brought G to 28), so a case counts once, with its
largest ratio. FLOOR, 1/64, is half a unit roundoff of the scale at n = 1024: one stray
last bit over a baseline of exact zeros is not infinitely worse, and yet a slip that
turns the zeros of most cases into one ulp is seen, however far below its budget.

Where both runs measured the very same cases (a digest of the examples tells), there is
no noise of sampling, and the maxima are compared as well: by factor on one machine or
for one fixed case such as a real model, and by factor² where another processor or
number of threads rounds many cases anew. Losses are fixed cases.

A key that only some draws reach (layer 3, a rare size) may be missing, or too thin to
judge, by chance: that is `rare`, shown and not failed. It is `gone` if the other keys
have the same cases, if every case reached it, if chance has less than e⁻¹⁴, or if the
run drew too few cases to judge any key of a law that the baseline could judge.

**Comparable** are runs with the same torch major.minor, BLAS and CPU instruction set
(ATEN_CPU_CAPABILITY pins it), key by key on the same device. Seed, profile, commit,
threads and the transformers version are not part of it: what they change is to be seen.
Runs of two growers are an error.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema.exceptions
import torch

SCHEMA = json.loads(Path(__file__).with_name("ledger.schema.json").read_text())
VERSION = 1
FLOOR = 1 / 64  # in units of ratio; see above
EVIDENCE = 14.0  # nats; see above
FACTOR = 2.0  # the default of --errors-fail
OCTAVE = 8  # bins of the sketch for each factor of two: quantiles to 4.4 %
ZERO = -64 * OCTAVE  # the bin of ratios up to 2**-64
TOP = 64 * OCTAVE

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
    ratio: float  # error / (u · √n · scale)
    ulps: float
    relative: float  # error / scale
    budget: float | None  # in units of ratio
    example: str  # names the case: its repr, or a command that repeats it


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
    def key(self) -> Key:
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
    """ratio = max |actual - expected| / (u · √n · scale), in float64.

    u is the unit roundoff of ``dtype``, and the default scale is max |expected|. Where
    that is 0, any error is infinite: pass a scale if the zeros are not exact. Equal
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
        return self.bins.total()

    @property
    def name(self) -> str:
        return " ".join(self.key[1:])

    @property
    def headroom(self) -> float | None:
        """budget / ratio; None without a budget, or without an error."""
        return self.budget / self.ratio if self.budget and self.ratio else None

    def quantile(self, p: float) -> float:
        seen = 0
        for bin in sorted(self.bins):
            seen += self.bins[bin]
            if seen >= p * self.cases:
                middle = 2 ** ((bin - 0.5) / OCTAVE) if bin > ZERO else 0.0
                return min(middle, self.ratio)
        return self.ratio

    def above(self, bin: int) -> int:
        return sum(n for b, n in self.bins.items() if b > bin)

    def add(self, c: Comparison) -> None:
        ratio, ulps, relative = (
            math.inf if math.isnan(x) else x for x in (c.ratio, c.ulps, c.relative)
        )
        bin, case = _bin(ratio), 1
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
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _bin(ratio: float) -> int:
    if ratio <= 2.0**-64:
        return ZERO
    return TOP if ratio >= 2.0**64 else math.ceil(math.log2(ratio) * OCTAVE)


# items, those that failed, and the models that the grower under test has grown
NOTHING_RUN = {"tests": 0, "failed": 0, "growths": 0}


@dataclass
class Ledger:
    """All records of a run, with what it ran in."""

    records: dict[Key, Record] = field(default_factory=dict)
    losses: dict[Key, Loss] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    run: dict[str, int] = field(default_factory=lambda: dict(NOTHING_RUN))
    accepted: list[dict[str, Any]] = field(default_factory=list)
    created: str = ""

    def record(self, key: Key) -> Record:
        return self.records.setdefault(key, Record(key=key))

    def add_loss(self, loss: Loss) -> None:
        """Of two losses with one key, the one further from its original stays."""
        old = self.losses.get(loss.key)
        if old is None or not abs(loss.relative) <= abs(old.relative):
            self.losses[loss.key] = loss

    def merge(self, other: Ledger) -> None:
        self.run["growths"] += other.run["growths"]
        for key, record in other.records.items():
            self.record(key).merge(record)
        for loss in other.losses.values():
            self.add_loss(loss)

    @property
    def laws(self) -> dict[str, list[Record]]:
        laws: dict[str, list[Record]] = {}
        for record in sorted(self.records.values(), key=lambda r: r.key):
            laws.setdefault(record.key[0], []).append(record)
        return laws


current: Ledger | None = None
_environment: dict[str, Any] = {"grower": None, "profile": None, "seed": None}


def record(comparison: Comparison) -> None:
    """Add to the current run's ledger, if there is one."""
    if current is not None:
        key = tuple(getattr(comparison, name) for name in KEY)
        current.record(key).add(comparison)


def record_loss(loss: Loss) -> None:
    if current is not None:
        current.add_loss(loss)


def grew() -> None:
    """Count one model that the grower under test has grown."""
    if current is not None:
        current.run["growths"] += 1


def start() -> Ledger:
    global current
    current = Ledger()
    return current


def stop() -> None:
    global current
    current = None


def set_environment(**values: str | int | None) -> None:
    """Name the grower, profile and seed of the runs that this process stores."""
    if unknown := values.keys() - _environment.keys():
        raise LedgerError(f"unknown environment {sorted(unknown)}")
    _environment.update(values)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _cpu() -> str:
    try:
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """What this process runs in, with the grower, profile and seed it was told."""
    build = torch.__config__.show()
    mkl = re.search(r"Math Kernel Library Version (\S+)", build)
    blas = re.search(r"BLAS_INFO=(\w+)", build)
    return {
        **_environment,
        "commit": _commit(),
        "growproof": _version("growproof"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "blas": f"mkl {mkl[1]}" if mkl else blas[1] if blas else "unknown",
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


# --- storage ------------------------------------------------------------------------


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def _pack(r: Record) -> dict[str, Any]:
    return {
        **dict(zip(KEY, r.key, strict=True)),
        "count": r.count,
        "cases": r.cases,
        "nonfinite": r.nonfinite,
        "ratio": _finite(r.ratio),
        "ulps": _finite(r.ulps),
        "relative": _finite(r.relative),
        **{f"p{p}": _finite(r.quantile(p / 100)) for p in (50, 90, 99)},
        "budget": r.budget,
        "headroom": _finite(r.headroom),
        "example": r.example,
        "sketch": " ".join(f"{b}:{n}" for b, n in sorted(r.bins.items())),
        "digest": f"{r.digest:016x}",
    }


def _unpack(data: Mapping[str, Any]) -> Record:
    pairs = (pair.split(":") for pair in data["sketch"].split())
    numbers = {n: data[n] for n in ("ratio", "ulps", "relative")}
    return Record(
        key=tuple(data[name] for name in KEY),
        **{n: math.inf if x is None else x for n, x in numbers.items()},
        **{n: data[n] for n in ("count", "nonfinite", "budget", "example")},
        bins=Counter({int(b): int(n) for b, n in pairs}),
        digest=int(data["digest"], 16),
    )


def dumps(ledger: Ledger) -> str:
    """JSON with finite numbers only, and one line for each record."""
    head = {
        "format": "growproof-errors",
        "schema_version": VERSION,
        "created": ledger.created,
        "environment": ledger.environment,
        "run": ledger.run,
        "accepted": ledger.accepted,
    }
    records = [_pack(r) for _, r in sorted(ledger.records.items())]
    losses = [dataclasses.asdict(x) for x in ledger.losses.values()]
    for loss in losses:
        loss.update({n: _finite(loss[n]) for n in ("original", "grown", "relative")})
    lines = [f"{json.dumps(k)}: {json.dumps(v, indent=1)}" for k, v in head.items()]
    for name, rows in (("comparisons", records), ("losses", losses)):
        body = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        lines.append(f'"{name}": [\n{body}\n]')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise LedgerError(f"it holds {text}, and a ledger holds finite numbers only")
    return value


def read_json(text: str) -> Any:
    """Parse strictly: no NaN, no infinity, and an error that says what is wrong."""
    if not text.strip():
        raise LedgerError("the file is empty")
    try:
        return json.loads(text, parse_constant=_number, parse_float=_number)
    except json.JSONDecodeError as error:
        raise LedgerError(f"it is truncated or not JSON ({error})") from None


def loads(text: str) -> Ledger:
    data = read_json(text)
    if not isinstance(data, dict) or data.get("format") != "growproof-errors":
        raise LedgerError("it is not an error ledger (no format: growproof-errors)")
    version = data.get("schema_version")
    if isinstance(version, int) and version > VERSION:
        raise LedgerError(
            f"its schema is version {version}, and this growproof reads {VERSION}: "
            "a newer growproof wrote it"
        )
    validator = jsonschema.Draft202012Validator(SCHEMA)
    if error := jsonschema.exceptions.best_match(validator.iter_errors(data)):
        raise LedgerError(f"at {error.json_path}: {error.message[:300]}")
    ledger = Ledger(
        **{n: data[n] for n in ("environment", "accepted", "created")},
        run=NOTHING_RUN | data["run"],
    )
    for row in data["comparisons"]:
        record = _unpack(row)
        if record.key in ledger.records or record.cases != row["cases"]:
            raise LedgerError(f"duplicate or inconsistent record {record.key}")
        ledger.records[record.key] = record
    for row in data["losses"]:
        nulls = {n: math.nan for n, x in row.items() if x is None}
        loss = Loss(**{**row, **{n: nulls[n] for n in nulls if n in _LOSS_NUMBERS}})
        ledger.losses[loss.key] = loss
    return ledger


_LOSS_NUMBERS = ("original", "grown", "relative")


def load(path: str | Path) -> Ledger:
    try:
        return loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"cannot read the ledger {path}: {error}") from None
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


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


# --- comparison ---------------------------------------------------------------------

FAILING = ("worse", "gone", "not comparable")
STATES = (*FAILING, "new", "improved", "rare", "same")


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one key; ``shift`` orders the worst first."""

    state: str
    law: str
    name: str
    note: str
    shift: float

    @property
    def failed(self) -> bool:
        return self.state in FAILING

    def __str__(self) -> str:
        return f"{self.state}: {self.name}: {self.note}"


def differences(base: Ledger, current: Ledger) -> list[str]:
    """What makes two runs not comparable."""
    b, c = base.environment, current.environment
    series = [
        [".".join(str(e["torch"]).split(".")[:2]), e["blas"], e["cpu_capability"]]
        for e in (b, c)
    ]
    names = ("torch", "BLAS", "CPU instruction set (pin: ATEN_CPU_CAPABILITY)")
    pairs = zip(names, *series, strict=True)
    return [f"{name}: {old} → {new}" for name, old, new in pairs if old != new]


def evidence(a: int, n: int, b: int, m: int) -> float:
    """G, in nats, that a rate of b/m is larger than one of a/n."""
    if b * n <= a * m:
        return 0.0

    def kl(hits: int, of: int) -> float:
        p = (a + b) / (n + m)
        parts = ((hits, p), (of - hits, 1 - p))
        return sum(k * math.log(k / of / q) for k, q in parts if k)

    return kl(a, n) + kl(b, m)


def _larger(small: Record, large: Record, factor: float) -> tuple[float, str]:
    """The strongest evidence that ``large`` exceeds ``factor`` · ``small``."""
    shift = math.ceil(math.log2(factor) * OCTAVE - 1e-9)
    n, m, lowest = small.cases, large.cases, _bin(FLOOR)
    best, note = 0.0, ""
    for bin in {lowest, *(b for b in small.bins if b > lowest)}:
        a, b = small.above(bin), large.above(bin + shift)
        if (g := evidence(a, n, b, m)) > best:
            x = 2 ** (bin / OCTAVE)
            best = g
            note = f"{a / n:.0%} above {x:.2g}, now {b / m:.0%} above {factor * x:.2g}"
    return best, note


def _judge(base: Record, now: Record, factor: float, machine: bool) -> tuple[str, str]:
    """State and note; ``machine``: both ran on the same one."""
    if now.nonfinite and not base.nonfinite:
        return "worse", f"{now.nonfinite} of {now.count} not finite"
    fixed = base.digest == now.digest
    limit = factor if machine or base.cases == 1 else factor**2
    for state, small, large in (("worse", base, now), ("improved", now, base)):
        if fixed and large.ratio > limit * max(small.ratio, FLOOR):
            return state, f"the largest by more than {limit:g} x"
        g, note = _larger(small, large, factor)
        if g > EVIDENCE:
            return state, note if state == "worse" else ""
    judged = fixed or evidence(0, base.cases, now.cases, now.cases) > EVIDENCE
    note = "" if judged else f"{base.cases} and {now.cases} cases: too few to judge"
    return ("same" if judged else "rare"), note


def _numbers(base: Record | None, now: Record | None) -> str:
    def one(r: Record | None) -> str:
        return f"{r.quantile(0.5):.3g}/{r.ratio:.3g}" if r else "-"

    budgets = [f"{r.budget:g}" for r in (now, base) if r and r.budget]
    return f"median/max {one(base)} → {one(now)}, budget {budgets[0] if budgets else 'none'}"


def _law(
    base: list[Record], now: list[Record], factor: float, machine: bool
) -> list[Change]:
    """The changes of one law's keys."""
    new = {r.key: r for r in now}
    n, m = (max((r.cases for r in rows), default=0) for rows in (base, now))
    redrawn = any(r.key in new and new[r.key].digest != r.digest for r in base)
    elsewhere = {_undeviced(r.key) for r in now}
    changes: list[Change] = []
    for old in base:
        found = new.pop(old.key, None)
        if found:
            state, note = _judge(old, found, factor, machine)
        elif _undeviced(old.key) in elsewhere:
            state, note = "not comparable", f"the baseline ran on {old.key[5]}"
        else:
            missed = m * -math.log1p(-old.cases / n) if old.cases < n else math.inf
            rare = redrawn and missed <= EVIDENCE
            state, note = ("rare", "not drawn this time") if rare else ("gone", "")
        changes.append(_change(state, note, old, found))
    changes += [_change("new", "", None, r) for r in new.values()]
    unjudged = all(c.state in ("rare", "new") for c in changes)
    if evidence(0, n, n, n) > EVIDENCE and unjudged:
        note = "the run drew too few cases to judge any key of this law"
        return [dataclasses.replace(c, state="gone", note=note) for c in changes]
    return changes


def _undeviced(key: Key) -> Key:
    return key[:5] + key[6:]


def _change(state: str, note: str, old: Record | None, new: Record | None) -> Change:
    record = new or old
    assert record is not None
    shift = (new.ratio if new else 0.0) / max(old.ratio if old else 0.0, FLOOR)
    text = f"{_numbers(old, new)}{'; ' if note else ''}{note}"
    if state == "worse":
        text += f"; e.g. {record.example}"
    law, name = record.key[0], record.name
    return Change(state=state, law=law, name=name, note=text, shift=shift)


def _losses(base: Ledger, current: Ledger, factor: float) -> Iterable[Change]:
    """Losses are fixed cases; their floor is two unit roundoffs of the dtype."""
    for key in sorted(base.losses.keys() | current.losses.keys()):
        old, new = base.losses.get(key), current.losses.get(key)
        floor = torch.finfo(getattr(torch, key[2], torch.float32)).eps
        a, b = (abs(x.relative) if x else 0.0 for x in (old, new))
        if old is None or new is None:
            state = "new" if new else "gone"
        elif b <= factor * max(a, floor) or math.isnan(a):
            state = "improved" if not a <= factor * max(b, floor) else "same"
        else:
            state = "worse"
        note = " → ".join(f"{x.relative:+.3%}" if x else "-" for x in (old, new))
        shift, name = b / max(a, floor), " ".join(key)
        yield Change(state=state, law="losses", name=name, note=note, shift=shift)


def compare(
    base: Ledger, current: Ledger, *, factor: float = FACTOR, across: bool = False
) -> list[Change]:
    """What became of every key of both runs, the failing and largest first.

    Raises LedgerError for ledgers of two growers, unless ``across``.
    """
    old, new = base.environment, current.environment
    if old["grower"] != new["grower"] and not across:
        raise LedgerError(
            f"the baseline is of the grower {old['grower']}, this run of {new['grower']}: "
            "errors are compared for one and the same grower"
        )
    if not 1 <= factor < math.inf:
        raise LedgerError(f"the factor is {factor}; a number from 1 on is needed")
    laws = base.laws, current.laws
    machine = all(old[name] == new[name] for name in ("cpu", "threads", "torch"))
    changes = [
        change
        for law in sorted(laws[0].keys() | laws[1].keys())
        for change in _law(laws[0].get(law, []), laws[1].get(law, []), factor, machine)
    ]
    changes += _losses(base, current, factor)
    if different := differences(base, current):
        note = "; ".join(different)
        changes = [
            dataclasses.replace(c, state="not comparable", note=f"{c.note}; {note}")
            for c in changes
        ]
    return sorted(changes, key=lambda c: (STATES.index(c.state), -c.shift, c.name))


def counts(changes: Iterable[Change]) -> str:
    """E.g. "2 worse, 1 new, 40 same"."""
    found = Counter(change.state for change in changes)
    return (
        ", ".join(f"{found[s]} {s}" for s in STATES if found[s]) or "nothing to compare"
    )


def accept(base: Ledger, current: Ledger, reason: str, factor: float) -> None:
    """Carry the baseline's history over, and add why and what changed."""
    changes = [c for c in compare(base, current, factor=factor) if c.state != "same"]
    entry = {
        "date": now(),
        "reason": reason,
        "summary": counts(changes),
        "changes": [f"{c.law}: {c}"[:400] for c in changes[:100]],
    }
    current.accepted = [*base.accepted, entry]
