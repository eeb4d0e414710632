"""Two runs compared: where did the errors of one grower get worse?

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

**Budgets come before statistics.** A key over its budget that was not over it before is
`over budget`, however rare the case. A law whose test failed is `failed`: Hypothesis
shrank its cases, so that their distribution is no sample, and no key of it is called
improved, or gone.

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
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .ledger import OCTAVE, Failure, Key, Ledger, LedgerError, Record, bin_of
from .storage import now

FLOOR = 1 / 64  # in units of ratio; see above
EVIDENCE = 14.0  # nats; see above
FACTOR = 2.0  # the default of --errors-fail

FAILING = ("over budget", "failed", "worse", "gone", "not comparable")
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
        """Whether it fails the comparison."""
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
        """of · KL(hits/of ‖ p)."""
        p = (a + b) / (n + m)
        parts = ((hits, p), (of - hits, 1 - p))
        return sum(k * math.log(k / of / q) for k, q in parts if k)

    return kl(a, n) + kl(b, m)


def _larger(small: Record, large: Record, factor: float) -> tuple[float, str]:
    """The strongest evidence that ``large`` exceeds ``factor`` · ``small``."""
    shift = math.ceil(math.log2(factor) * OCTAVE - 1e-9)
    n, m, lowest = small.cases, large.cases, bin_of(FLOOR)
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
    if now.over and not base.over:
        return "over budget", ""
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
    """E.g. "median/max 0.1/1.2 → 0.3/2.5, budget 6"."""

    def one(r: Record | None) -> str:
        """Median and maximum."""
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
    changes += [_added(r) for r in new.values()]
    unjudged = all(c.state in ("rare", "new") for c in changes)
    if evidence(0, n, n, n) > EVIDENCE and unjudged:
        note = "the run drew too few cases to judge any key of this law"
        return [dataclasses.replace(c, state="gone", note=note) for c in changes]
    return changes


def _failed(
    law: str, failures: list[Failure], base: list[Record], now: list[Record]
) -> list[Change]:
    """The changes of a law whose test failed: its failures, and what is over budget."""
    old = {r.key: r for r in base}
    over = [_change("over budget", "", old.get(r.key), r) for r in now if r.over]
    return over + [
        Change(state="failed", law=law, name=f.test or law, note=f.message, shift=0.0)
        for f in failures
    ]


def _added(record: Record) -> Change:
    """The change of a key that the baseline lacks."""
    return _change("over budget" if record.over else "new", "", None, record)


def _undeviced(key: Key) -> Key:
    """The key but for its device."""
    return key[:5] + key[6:]


def _change(state: str, note: str, old: Record | None, new: Record | None) -> Change:
    """A key's change, with its numbers, and an example of what got worse."""
    record = new or old
    assert record is not None
    shift = (new.ratio if new else 0.0) / max(old.ratio if old else 0.0, FLOOR)
    text = f"{_numbers(old, new)}{'; ' if note else ''}{note}"
    if state in ("worse", "over budget"):
        text += f"; e.g. {record.example}"
    law, name = record.key[0], record.name
    return Change(state=state, law=law, name=name, note=text, shift=shift)


def _losses(base: Ledger, current: Ledger, factor: float) -> Iterable[Change]:
    """Losses are fixed cases; their floor is two unit roundoffs of the dtype."""
    for key in sorted(base.losses.keys() | current.losses.keys()):
        old, new = base.losses.get(key), current.losses.get(key)
        floor = torch.finfo(getattr(torch, key[2], torch.float32)).eps
        a, b = (abs(x.relative) if x else 0.0 for x in (old, new))
        if new and new.over and not (old and old.over):
            state = "over budget"
        elif old is None or new is None:
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
    laws, broken = (base.laws, current.laws), current.broken
    machine = all(old[name] == new[name] for name in ("cpu", "threads", "torch"))
    changes = [
        change
        for law in sorted(laws[0].keys() | laws[1].keys() | broken.keys())
        for change in (
            _failed(law, broken[law], laws[0].get(law, []), laws[1].get(law, []))
            if law in broken
            else _law(laws[0].get(law, []), laws[1].get(law, []), factor, machine)
        )
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
