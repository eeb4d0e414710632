"""The worst cases ever found, replayed; and the budgets that they justify."""

import json
from pathlib import Path

import pytest

from . import corpus, power
from .checks import BUDGETS, grow
from .strategies import Case, needed
from .test_decoder import logits_are_equal

GOOD = Path(__file__).with_name("known_good.json")
# which budget judges a law; the rest are judged by `block`
KINDS = {
    "logits_are_unchanged": "decoder", "old_gradients_are_kept": "decoder",
    "every_tap_is_the_padded_one": "decoder", "transformers_agrees": "stock",
    "low_precision_loses_one_rounding": "low", "weights_are_rounded_once": "weights",
}  # fmt: skip
REPLAYED = [w for w in corpus.load() if KINDS.get(w.law) not in ("low", "weights")]


def parameter(i: int, worst: corpus.Worst):
    """A case of the corpus, for growers that claim all that it needs."""
    case = corpus.parse(worst.case)
    features = needed(case.family, case.config, case.target)
    return pytest.param(case, id=f"{worst.law}-{i}", marks=pytest.mark.needs(*features))


@pytest.mark.lossless
@pytest.mark.parametrize("case", [parameter(i, w) for i, w in enumerate(REPLAYED)])
def test_worst_cases_stay_within_budget(grower, case: Case) -> None:
    """f' = f on the cases that were the hardest of all runs so far."""
    logits_are_equal(grow(case, grower), "worst_cases_stay_within_budget")


@pytest.mark.parametrize("kind", BUDGETS)
def test_budgets_are_tight(kind: str) -> None:
    """worst ≤ budget ≤ 32 × worst, over all recorded runs of the known-good growers."""
    seen: dict[str, float] = json.loads(GOOD.read_text())["worst_ratio"]
    worst = max(r for law, r in seen.items() if KINDS.get(law, "block") == kind)
    assert worst <= BUDGETS[kind], f"{kind}: a good grower went to {worst}"
    assert BUDGETS[kind] <= 32 * worst, f"{kind}: the worst ever seen is {worst}"


def test_no_false_alarm_is_recorded() -> None:
    """The recorded run over all known-good growers rejected none."""
    record = json.loads(GOOD.read_text())
    assert record["alarms"] == []
    assert record["examples"] >= 1000
    assert set(record["by_grower"]) == {"reference", *power.GOOD_NAMES}
