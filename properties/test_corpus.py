"""The worst cases ever found, replayed; and the budgets that they justify."""

from collections import Counter

import pytest

from . import corpus, power
from .checks import BUDGETS
from .growers import DEFAULT
from .known_good import GROWERS
from .strategies import needed, parse

# which budget judges a law; the rest are judged by `block`
KINDS = {
    "logits_are_unchanged": "decoder", "old_gradients_are_kept": "decoder",
    "every_tap_is_the_padded_one": "decoder", "transformers_agrees": "stock",
    "low_precision_loses_one_rounding": "low", "weights_are_rounded_once": "weights",
}  # fmt: skip
LAWS = power.laws()
recorded = pytest.mark.skipif(
    not corpus.runs(), reason="no run is recorded yet: python -m properties.runs"
)


def parameter(i: int, worst: corpus.Worst):
    """A case of the corpus, for growers that claim all that it and its law need."""
    case = parse(worst.case)
    features = needed(case.family, case.config, case.target)
    promises = power.LAW_MARKS[worst.law] & set(power.PROMISES)
    marks = pytest.mark.needs(*features, *promises)
    return pytest.param(worst, id=f"{worst.law.removeprefix('test_')}-{i}", marks=marks)


@pytest.mark.lossless
@pytest.mark.parametrize(
    "worst", [parameter(i, w) for i, w in enumerate(corpus.load())]
)
def test_worst_cases_stay_within_budget(grower, worst: corpus.Worst) -> None:
    """Each law holds on the cases that were the hardest for it of all runs so far."""
    LAWS[worst.law](grower, f"case={worst.case}")


@recorded
@pytest.mark.parametrize("kind", BUDGETS)
def test_budgets_are_tight(kind: str) -> None:
    """worst ≤ budget ≤ 32 × worst, over all recorded runs of the known-good growers."""
    worst = max(
        ratio
        for run in corpus.runs()
        for law, ratio in run["worst_ratio"].items()
        if KINDS.get(law, "block") == kind
    )
    assert worst <= BUDGETS[kind], f"{kind}: a good grower went to {worst}"
    assert BUDGETS[kind] <= 32 * worst, f"{kind}: the worst ever seen is {worst}"


@recorded
def test_ten_thorough_runs_gave_no_false_alarm() -> None:
    """Ten seeds, every known-good grower, 100,000 models grown and more, none rejected."""
    seeds, models = set(), Counter()
    for run in corpus.runs():
        assert run["failed"] == 0, run["grower"]
        assert run["profile"] == "thorough"
        seeds.add(run["seed"])
        models[run["grower"]] += run["growths"]
    assert len(seeds) >= 10
    assert models.total() >= 100_000
    names = {f"{__package__}.known_good:{good.name}" for good in GROWERS}
    assert set(models) == {DEFAULT, *names}
