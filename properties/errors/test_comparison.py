"""The comparison's own tests: what is worse, gone, rare or the same, and what is not."""

import math
import random

import pytest

from .comparison import compare
from .ledger import Failure, Ledger, LedgerError
from .samples import NORM, book, comparison, loss, narrow, sample


def states(base: Ledger, current: Ledger, factor: float = 2.0) -> list[str]:
    """What became of each key, the worst first."""
    return [change.state for change in compare(base, current, factor=factor)]


def test_same_grower_is_never_worse_under_another_seed_or_profile() -> None:
    """Though its maxima differ by far more than the factor."""
    runs = [sample(seed, n) for seed in range(30) for n in (40, 400)]
    maxima = [r.ratio for run in runs for r in run.records.values()]
    assert max(maxima) > 10 * min(maxima)
    assert {s for a in runs for b in runs for s in states(a, b)} == {"same"}


def test_a_slip_under_every_budget_is_worse() -> None:
    """Zeros turned into a rounding error, in most cases, under a budget of 16."""
    rounded_twice = book(*(comparison(random.Random(i).random(), i) for i in range(20)))
    exact = book(*(comparison(0.0, i) for i in range(12)))
    assert states(exact, rounded_twice) == ["worse"]
    assert states(rounded_twice, exact) == ["improved"]
    assert states(narrow(1, 50), narrow(2, 50, scale=4)) == ["worse"]
    assert states(narrow(1, 50), narrow(2, 50, scale=4), factor=4) == ["same"]
    assert states(sample(1, 100), sample(2, 100, scale=20)) == ["worse"]


def test_budgets_come_before_statistics() -> None:
    """0.18 → 5e14 of a budget of 6, in one case of 4: a failure, and not rare."""
    few = book(*(comparison(0.18, i, budget=6.0) for i in range(4)))
    assert states(few, book(comparison(5e14, 9, budget=6.0))) == ["over budget"]
    base = [comparison(0.18, i, budget=6.0) for i in range(40)]
    for ratio, state in ((5e14, "over budget"), (math.nan, "over budget"), (6, "same")):
        now = book(*base[1:], comparison(ratio, 99, budget=6.0))
        assert states(book(*base), now) == [state]
    over = book(*base[1:], comparison(7.0, 99, budget=6.0))
    assert states(over, over) == ["same"], "it was over its budget before"
    new = book(comparison(7.0, 0, budget=6.0))
    assert states(book(), new) == ["over budget"]


def test_a_failed_law_is_failed_and_never_improved_or_gone() -> None:
    """A broken q scale: one tap is far over budget, and shrinking left no sample."""
    base, now = sample(1, 40), book(*(comparison(0.0, i) for i in range(400)))
    base.merge(sample(1, 40, tap="attention"))
    base.merge(sample(1, 40, tap="query"))
    now.add(comparison(5e14, "q", tap="query"))
    assert sorted(states(base, now)) == ["gone", "improved", "over budget"]
    now.run.failures = [Failure(law=NORM, test="test_norm[q]", message="query differs")]
    assert states(base, now) == ["over budget", "failed"]
    now.run.failures = [Failure(law="cache_agrees", message="it compares no numbers")]
    assert sorted(states(base, now)) == ["failed", "gone", "improved", "over budget"]
    now.run.failures = [Failure(law=NORM, expected="a known one")]
    assert sorted(states(base, now)) == ["gone", "improved", "over budget"]


def test_one_stray_bit_over_exact_zeros_is_not_worse() -> None:
    exact = book(*(comparison(0.0, i) for i in range(50)))
    stray = book(*(comparison(float(i == 60), i) for i in range(50, 100)))
    assert states(exact, stray) == ["same"]


def test_same_cases_compare_their_maxima() -> None:
    """By 2 on one machine, by 4 where another processor rounds them, else not at all."""
    tail = [0.0] * 30 + [0.5]

    def times(x: float, shift: int = 0, **environment: object) -> Ledger:
        cases = ((r * x, i + shift) for i, r in enumerate(tail))
        return book(*(comparison(r, i) for r, i in cases), **environment)

    assert states(times(1), times(1.9)) == ["same"]
    assert states(times(1), times(2.1)) == ["worse"]
    assert states(times(1), times(3.9, threads=99)) == ["same"]
    assert states(times(1), times(4.1, cpu="another")) == ["worse"]
    assert states(times(1), times(9, shift=1)) == ["same"]


def test_one_fixed_case_compares_its_error_above_the_floor() -> None:
    def real(ratio: float) -> Ledger:
        return book(comparison(ratio, "real model", budget=None), cpu=str(ratio))

    assert states(real(1.0), real(1.9)) == ["same"]
    assert states(real(1.0), real(2.1)) == ["worse"]
    assert states(real(1.0), real(0.4)) == ["improved"]
    assert states(real(0.0), real(1 / 32)) == ["same"]
    assert states(real(0.0), real(0.1)) == ["worse"]
    assert states(real(1.0), real(math.nan)) == ["worse"]
    assert states(real(math.nan), real(math.nan)) == ["same"]


def test_new_and_gone() -> None:
    one = [comparison(1.0, i) for i in range(20)]
    two = [*one, *(comparison(1.0, i, tap="norm") for i in range(20))]
    assert states(book(*one), book(*two)) == ["new", "same"]
    assert states(book(*two), book(*one)) == ["gone", "same"]
    assert states(book(*one), book()) == ["gone"]
    assert states(book(), book(*one)) == ["new"]


def test_missing_by_chance_is_rare_and_not_gone() -> None:
    """Layer 3 was drawn twice in 40 cases; the attention tap in every one."""
    base = sample(1, 40)
    base.merge(book(*(comparison(1.0, i, tap="layers.3.query") for i in range(2))))
    assert states(base, sample(2, 40)) == ["rare", "same"]
    assert states(base, sample(1, 40)) == ["gone", "same"], "the same cases"
    base.merge(sample(1, 40, tap="attention"))
    assert sorted(states(base, sample(2, 40))) == ["gone", "rare", "same"]


def test_a_run_that_draws_too_little_to_judge_a_law_is_gone() -> None:
    assert states(sample(1, 40), sample(2, 4)) == ["gone"]
    assert states(sample(1, 4), sample(2, 4)) == ["rare"], "nor could the baseline"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"torch": "1.0.0"}, False),
        ({"blas": "none"}, False),
        ({"cpu_capability": "Z80"}, False),
        ({"seed": 7, "profile": "thorough", "commit": "f" * 40, "threads": 9}, True),
        ({"transformers": "9.9", "python": "4.0", "cpu": "other"}, True),
    ],
)
def test_comparable_environments(change: dict[str, object], same: bool) -> None:
    base, other = sample(1, 40), sample(1, 40)
    other.environment |= change
    assert states(base, other) == ["same" if same else "not comparable"]


def test_another_device_is_not_comparable() -> None:
    on_gpu = sample(1, 40, device="NVIDIA H100")
    assert sorted(states(on_gpu, sample(1, 40))) == ["new", "not comparable"]


def test_another_grower_is_an_error_unless_asked_for() -> None:
    other = sample(1, 40)
    other.environment["grower"] = "other:grow"
    with pytest.raises(LedgerError, match="other:grow"):
        compare(sample(1, 40), other)
    assert compare(sample(1, 40), other, across=True)


def test_losses_compare_by_their_distance_from_the_original() -> None:
    def ladder(*relatives: float) -> Ledger:
        made = book()
        for i, relative in enumerate(relatives):
            made.add_loss(loss(relative, name=str(i)))
        return made

    assert states(ladder(1e-7, 0.001), ladder(-2e-7, 0.0019)) == ["same", "same"]
    assert states(ladder(1e-7), ladder(3e-7)) == ["worse"]
    assert states(ladder(0.001), ladder(-0.0021)) == ["worse"]
    assert states(ladder(0.001), ladder(math.nan)) == ["worse"]
    assert states(ladder(0.001), ladder(0.0)) == ["improved"]
    assert states(ladder(0.1, 0.1), ladder(0.1)) == ["gone", "same"]
    strict = book()
    strict.add_loss(loss(0.0019, name="0", tolerance=0.0015))
    assert states(ladder(0.001), strict) == ["over budget"]
    assert states(ladder(0.1), ladder(0.1, 0.1)) == ["new", "same"]
