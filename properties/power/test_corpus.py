"""The worst cases ever found, replayed; and the budgets that they justify."""

import functools
import itertools
from collections import Counter

import pytest

from ..errors.ledger import recording
from ..gate.loading import DEFAULT, Grower
from ..growers import known_good
from ..growers.known_good import BY_NAME, GROWERS
from ..laws import claims, test_decoder
from ..laws.checks import BUDGETS, Responses, Violation
from ..laws.domain import needed
from ..laws.examples import Example
from ..laws.models import Case
from ..laws.registry import Budget, items, law, law_of, laws, lossless
from . import corpus

ITEMS = items()


def parameter(name: str, case: Case, rank: object, *values: object):
    """A stored example of an item, for growers that claim all that both of them need."""
    features = needed(case.family, case.config, case.target)
    marks = pytest.mark.needs(*features, *ITEMS[name].law.promises)
    return pytest.param(*values, id=f"{name.removeprefix('test_')}-{rank}", marks=marks)


@law(lossless, claim=claims.LOGITS)
@pytest.mark.parametrize(
    "worst",
    [
        parameter(w.law, w.case, rank, w)
        for _, same in itertools.groupby(corpus.load(), lambda w: w.law)
        for rank, w in enumerate(same)
    ],
)
def test_worst_cases_stay_within_budget(grower, worst: corpus.Worst) -> None:
    """Each law holds on the cases that were the hardest for it of all runs so far."""
    ITEMS[worst.law].replay(grower, {"case": worst.case})


@law(lossless, claim=claims.LOGITS)
@pytest.mark.parametrize(
    ("name", "example"),
    [
        parameter(cell["law"], example["case"], cell["fault"], cell["law"], example)
        for cell, example in corpus.faulty()
    ],
)
def test_where_faults_show(grower, name: str, example: Example) -> None:
    """Each law holds on the smallest examples that showed it a known-bad grower."""
    ITEMS[name].replay(grower, example)


# Two lanes that nearly cancel: half of all draws of signs leave their difference alone.
CANCELLING = Case(
    family="stablelm",
    config={
        "vocab_size": 11, "hidden_size": 2, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
        "bos_token_id": None, "eos_token_id": None, "layer_norm_eps": 0.001,
        "use_qkv_bias": False, "use_parallel_residual": False, "qk_layernorm": False,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0
        },
    },
    target={"hidden_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2},
    seed=355, regime="loud", batch=1, tokens=12,
)  # fmt: skip


@pytest.mark.parametrize("drawn", [True, False])
@recording(None)
def test_two_lanes_that_cancel_are_no_alarm(monkeypatch, drawn: bool) -> None:
    """A LayerNorm of two lanes: in units of its own largest value it would be one."""
    if not drawn:
        monkeypatch.setattr(Responses, "drawn", lambda _, least, __: dict(least))
    good = BY_NAME["scaled_writers"]
    logits = law_of(test_decoder.test_logits_are_unchanged)
    assert logits
    replay = functools.partial(
        logits.items[0].replay, Grower(good.name, good), {"case": CANCELLING}
    )
    if drawn:
        replay()
    else:
        with pytest.raises(Violation, match="units against a budget"):
            replay()


@pytest.mark.parametrize("kind", BUDGETS)
def test_budgets_are_tight(kind: Budget) -> None:
    """worst ≤ budget ≤ 32 × worst, over all recorded runs of the known-good growers."""
    worst = max(
        ratio
        for run in corpus.runs()
        for name, ratio in run["worst_ratio"].items()
        if laws()[name].budget == kind
    )
    assert worst <= BUDGETS[kind], f"{kind}: a good grower went to {worst}"
    assert BUDGETS[kind] <= 32 * worst, f"{kind}: the worst ever seen is {worst}"


def test_ten_thorough_runs_gave_no_false_alarm() -> None:
    """Ten seeds, nine growers, 100,000 models grown and more, none rejected.

    Known-good growers that came later are judged by `growproof power --false-alarms`.
    """
    seeds, models = set(), Counter()
    for run in corpus.runs():
        assert run["failed"] == 0, run["grower"]
        assert run["profile"] == "thorough"
        seeds.add(run["seed"])
        models[run["grower"]] += run["growths"]
    assert len(seeds) >= 10
    assert models.total() >= 100_000
    names = {f"{known_good.__name__}:{good.name}" for good in GROWERS}
    assert DEFAULT in models
    assert set(models) <= {DEFAULT, *names}
    assert len(models) >= 9
