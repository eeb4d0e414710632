"""The article's own numbers, through growproof's table."""

import dataclasses
import itertools

import pytest
import torch
from growproof.clone import forward
from growproof.growth import Growth, Policies, plan
from growproof.models import config_of, decoder_of, plan_model
from growproof.padding import grow_state
from growproof.scatter import place
from growproof.table import Row, count, parameters
from transformers import StableLmConfig, StableLmForCausalLM

from .. import claims
from ..models import Case, loud
from ..registry import law, reference
from .test_axis_maps import decoder

Q = Row(("query", "residual"), "query", "residual")
KV = Row(("query",), "query")
OUT = Row(("residual", "query"), "residual", "query")
SCALED = Policies(norm="scaled")


@pytest.fixture(scope="module")
def toy() -> Growth:
    """hidden 8 → 12 with 4 heads: head_dim 2 → 3."""
    return Growth(old=decoder(4, 1, 2, split=False), new=decoder(4, 1, 3, split=False))


@law(reference, claim=claims.ARTICLE)
def test_value_states_get_zeros_within_each_head(toy: Growth) -> None:
    """1 … 8 in four heads of two become 1, 2, 0, 3, 4, 0, 5, 6, 0, 7, 8, 0."""
    grown = place(torch.arange(1, 9), KV, toy)
    assert grown.tolist() == [1, 2, 0, 3, 4, 0, 5, 6, 0, 7, 8, 0]


@law(reference, claim=claims.ARTICLE)
def test_more_heads_append_zeros() -> None:
    """Solution 1: six heads of two instead of four append [0, 0], [0, 0]."""
    more = Growth(old=decoder(4, 1, 2, split=False), new=decoder(6, 1, 2, split=False))
    heads = place(torch.arange(1, 9), KV, more).view(6, 2)
    assert heads.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [0, 0], [0, 0]]


@law(reference, claim=claims.ARTICLE)
def test_grown_projection_is_the_articles_matrix(toy: Growth) -> None:
    """v_proj = I₈ grows to ones at (0,0) (1,1) (3,2) (4,3) (6,4) (7,5) (9,6) (10,7)."""
    grown = place(torch.eye(8), Q, toy)
    rows = [0, 1, 3, 4, 6, 7, 9, 10]
    assert grown.nonzero().tolist() == [[r, c] for c, r in enumerate(rows)]
    assert torch.equal(place(torch.eye(8), OUT, toy), grown.T)


@law(reference, claim=claims.ARTICLE)
def test_bias_grows_along(toy: Growth) -> None:
    """Ten everywhere becomes 10, 10, 0, 10, 10, 0, …: what the article fixed last."""
    assert place(torch.full((8,), 10), KV, toy).tolist() == [10, 10, 0] * 4


@law(reference, claim=claims.ARTICLE)
def test_attention_output_is_the_articles(toy: Growth) -> None:
    """2915, 3180, 0, 4745, … and, after o_proj, 2915 … 11034, 0, 0, 0, 0."""
    hidden = torch.cat((torch.arange(1.0, 9), torch.zeros(4)))
    weight, bias = place(torch.eye(8), Q, toy), place(torch.full((8,), 10.0), KV, toy)
    heads = (weight @ hidden + bias).view(4, 1, 3)
    assert heads.flatten().tolist() == [11, 12, 0, 13, 14, 0, 15, 16, 0, 17, 18, 0]
    context = (heads @ heads.mT @ heads).flatten()
    assert context.tolist() == [
        2915, 3180, 0, 4745, 5110, 0, 7215, 7696, 0, 10421, 11034, 0,
    ]  # fmt: skip
    out = place(torch.eye(8), OUT, toy) @ context
    assert out.tolist() == [
        2915, 3180, 4745, 5110, 7215, 7696, 10421, 11034, 0, 0, 0, 0,
    ]  # fmt: skip


@law(reference, claim=claims.NECESSITY, proof=("naive_pad_false", "naive_pad_softmax"))
def test_naive_output_projection_cuts_values_off(toy: Growth) -> None:
    """o_proj padded at its end loses 10421 and 11034, as the article shows."""
    context = torch.tensor(
        [2915, 3180, 0, 4745, 5110, 0, 7215, 7696, 0, 10421, 11034, 0]
    )
    naive = torch.zeros(12, 12, dtype=torch.long)
    naive[:8, :8] = torch.eye(8, dtype=torch.long)
    assert (naive @ context).tolist() == [2915, 3180, 0, 4745, 5110, 0, 7215, 7696] + [
        0
    ] * 4


def stablelm_2() -> StableLmConfig:
    """The sizes of stabilityai/stablelm-2-1_6b."""
    return StableLmConfig(
        vocab_size=100352, hidden_size=2048, intermediate_size=5632,
        num_hidden_layers=24, num_attention_heads=32, num_key_value_heads=32,
        use_qkv_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                         "partial_rotary_factor": 0.25},
    )  # fmt: skip


@law(reference, claim=claims.ARTICLE)
def test_parameter_counts_are_the_articles() -> None:
    """1,644,515,328 parameters, and 536,957,952 more at hidden 2560; and on meta."""
    old = decoder_of(stablelm_2())
    assert count(old) == 1_644_515_328
    for new in (
        plan(old, hidden=2560, head_dim=80),
        plan(old, hidden=2560, heads=40, groups=40),
    ):
        assert count(new.new) - count(old) == 536_957_952
    with torch.device("meta"):
        model = StableLmForCausalLM(stablelm_2())
    assert model.num_parameters() == 1_644_515_328


@law(reference, claim=claims.ARTICLE)
def test_a_real_size_grows_on_the_meta_device() -> None:
    """All three solutions plan at 1.6B: head_dim 80, 40 heads, 36 heads of 71 = 2556."""
    config = stablelm_2()
    for target, head_dim in (
        ({"hidden_size": 2560}, 80),
        (
            {"hidden_size": 2560, "num_attention_heads": 40, "num_key_value_heads": 40},
            64,
        ),
        (
            {"hidden_size": 2556, "num_attention_heads": 36, "num_key_value_heads": 36},
            71,
        ),
    ):
        growth = plan_model(config, target)
        assert growth.new.head_dim == head_dim
        grown = config_of(config, growth)
        factor = grown.rope_parameters["partial_rotary_factor"]
        assert int(head_dim * factor) == 16, "the int() trap"
        with torch.device("meta"):
            model = StableLmForCausalLM(grown)
        assert model.num_parameters() == count(growth.new)


@law(
    reference,
    claim=claims.NECESSITY,
    proof=("unscaled_norm", "unscaled_query_false", "unscaled_query_softmax"),
)
def test_each_omission_is_worse_than_the_next() -> None:
    """Naive ≫ heads right ≫ norms scaled ≫ q scaled ≫ centred, in mean logit error."""
    steps = {"naive": 0.0, "heads": 0.0, "norms": 0.0, "recipe": 0.0, "centred": 0.0}
    for seed in range(12):
        for step, error in ladder(seed).items():
            steps[step] += error / 12
    errors = list(steps.values())
    assert all(a > 1.15 * b for a, b in itertools.pairwise(errors)), steps
    assert errors[-1] < 1e-12 < 1e-3 < errors[-2]


def ladder(seed: int) -> dict[str, float]:
    """Relative logit error of each step of the article, on a small loud StableLm."""
    config = {
        "vocab_size": 31, "hidden_size": 32, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "use_qkv_bias": True, "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                            "partial_rotary_factor": 0.25},
    }  # fmt: skip
    case = Case("stablelm", config, {"hidden_size": 48}, seed, "loud", 1, 16)
    old = loud(case.decoder, seed)
    for name, w in old.items():  # a small mean, as in a trained model
        if "embed" in name:
            w -= 0.9 * w.mean(1, keepdim=True)
        if "o.weight" in name or "down.weight" in name:
            w -= 0.9 * w.mean(0, keepdim=True)
    truth = forward(case.decoder, old, case.ids)["logits"]
    growth = plan_model(case.hf_config, case.target, SCALED)
    table = parameters(growth.old, growth)
    plain = {name: dataclasses.replace(row, scale=1.0) for name, row in table.items()}
    norms = {
        name: table[name] if "norm" in name else row for name, row in plain.items()
    }

    def error(state) -> float:
        logits = forward(growth.new, state, case.ids)["logits"]
        return float((logits - truth).norm() / truth.norm())

    naive = grow_state(old, growth, plain)
    for name in naive:  # the front of every dimension, heads or no heads
        if name.split(".")[-2] in "qkvo":
            naive[name] = naive[name] * 0
            naive[name][tuple(slice(n) for n in old[name].shape)] = old[name]
    states = {
        "naive": naive,
        "heads": grow_state(old, growth, plain),
        "norms": grow_state(old, growth, norms),
        "recipe": grow_state(old, growth),
    }
    centred = dataclasses.replace(growth, policies=Policies(norm="centred"))
    states["centred"] = grow_state(old, centred)
    return {name: error(state) for name, state in states.items()}
