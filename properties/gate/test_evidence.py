"""Causes are found from evidence: one fault is one cause, two are two, none is none."""

import copy
import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import growproof
import pytest
import torch
from growproof.models import model_of, state_of

from ..growers.known_bad import BY_NAME, both
from ..growers.known_good import BY_NAME as GOOD
from ..growers.known_good import Good
from ..laws.models import Case
from ..laws.strategies import least_case
from . import ending, verdict
from .causes import causes as causes_of
from .explain import tap
from .orders import MOST, matched
from .parts import Part, Ratios, relation

# known-bad grower → what its cause must say
SAYS = {
    "naive_query": r"q_proj is padded at the end, not head by head",
    "naive_output": r"o_proj is padded at the end, not head by head",
    "norm_unscaled": r"√\(D/D'\) is missing from every norm",
    "final_norm_unscaled": r"√\(D/D'\) is missing from norm",
    "norm_linear": r"every norm is scaled by D/D', expected √\(D/D'\)",
    "q_scale_missing": r"√\(K'/K\) is missing from q_proj",
    "q_scale_inverse": r"q_proj is scaled by √\(K/K'\), expected √\(K'/K\)",
    "q_scale_twice": r"k_proj is scaled by √\(K'/K\), expected no scale",
    "logits_divided": r"lm_head is scaled by D/D', expected no scale",
    "eps_unscaled": r"rms_norm_eps 1e-05, expected 3.33e-06 \(D/D' is missing\)",
    "theta_unchanged": r"rope_theta 500, expected 2.5e\+05",
    "weights_through_float32": r"gate_proj went through float32",
    "training_mode": r"comes back in training mode",
    "layer_idx_stale": r"self_attn.layer_idx is 2, expected 3",
    "output_1e6": r"o_proj is 1.000001 times what it should be",
    "halves_together_in_key": r"k_proj is padded at the end of each head, not of its rotary",
    "embedding_centred_rms": r"a mean is removed from embed_tokens",
    "output_new_lanes": r"the new entries of o_proj hold up to 1e-06, expected 0",
    "value_bias_lost": r"v_proj.bias is zero: the old entries are not there",
    "mlp_scaled": r"down_proj is scaled by F/F', expected no scale",
    "activation_reset": r"hidden_act silu, expected gelu",
    "generation_shared": r"generation_config is one object",
    "unfrozen": r"requires_grad of every parameter is True, expected False",
    "mask_ignored": r"the model.forward was replaced",
    "layers_copied": r"down_proj and o_proj of layer 3 hold what is layer 2's",
}
CASE = Case(
    family="llama",
    config={
        "vocab_size": 11, "hidden_size": 12, "intermediate_size": 5, "head_dim": 4,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "hidden_act": "gelu", "rms_norm_eps": 1e-5,
        "bos_token_id": None, "eos_token_id": None, "attention_bias": True,
        "mlp_bias": True, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    target={
        "hidden_size": 36, "head_dim": 8, "intermediate_size": 7,
        "num_hidden_layers": 4, "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    seed=3, regime="loud", batch=1, tokens=5,
)  # fmt: skip


def source(dtype: torch.dtype = torch.float64):
    """The case's model, frozen."""
    return copy.deepcopy(CASE.model(dtype)).requires_grad_(False)


def causes_at(grow, target) -> list[str]:
    """What evidence says of a grower on the case's model, grown to this target."""
    return causes_of(source, grow, target)


def causes(grow) -> list[str]:
    """What evidence says of a grower on the case."""
    return causes_at(grow, CASE.target)


def test_a_right_grower_has_no_cause() -> None:
    """Neither growproof's own, nor with √(K'/K) on the keys."""
    assert causes(growproof.grow) == []


@pytest.mark.parametrize("name", SAYS)
def test_the_cause_of_a_known_bad_grower(name: str) -> None:
    """One fault, one cause, the right one."""
    found = causes(BY_NAME[name])
    assert len(found) == 1, found
    assert re.search(SAYS[name], found[0]), found


@pytest.mark.parametrize(
    ("family", "fault", "target", "said"),
    [
        ("gpt2", "eps_unscaled", {"hidden_size": 8}, "layer_norm_epsilon"),
        ("phi", "rotary_factor_ignored", {"head_dim": 8}, "partial_rotary_factor"),
        ("gpt_neox", "rotary_factor_ignored", {"hidden_size": 8}, "partial_rotary"),
    ],
)
def test_the_cause_in_another_family(
    family: str, fault: str, target: dict[str, int], said: str
) -> None:
    """A config without rope parameters, and ones of which only some lanes turn."""
    case = least_case(family)
    found = causes_of(lambda: case.model(), BY_NAME[fault], target)
    assert found, fault
    assert all(said in cause for cause in found), found


JOINED = {
    "phi3": ("k_proj in qkv_proj is 1.01 times", {"intermediate_size": 40}),
    "gpt2": ("k_proj in c_attn is 1.01 times", {"hidden_size": 8}),
    "gpt_neox": ("k_proj in query_key_value is 1.01", {"hidden_size": 8}),
}


@pytest.mark.parametrize("family", JOINED)
def test_a_part_of_a_joined_tensor_is_named(family: str) -> None:
    """Of one tensor that holds q, k and v, the keys."""
    said, target = JOINED[family]

    def grow(model, target):
        grown = growproof.grow(model, target)
        state = dict(state_of(grown))
        state["layers.0.k.weight"] = state["layers.0.k.weight"] * 1.01
        return model_of(grown.config, state, grown)

    case = least_case(family)
    (found,) = causes_of(lambda: case.model(), grow, target)
    assert said in found


def test_a_scale_of_what_a_norm_adds_one_to() -> None:
    """w √(D/D') for (1 + w) √(D/D') − 1, as of any other family."""

    def grow(model, target):
        grown, old = growproof.grow(model, target), dict(model.named_parameters())
        with torch.no_grad():
            for name, p in grown.named_parameters():
                if name.endswith("layernorm.weight"):
                    p[: len(old[name])] = old[name] / 2
        return grown

    case = least_case("gemma")
    (found,) = causes_of(lambda: case.model(), grow, {"hidden_size": 16})
    assert "scaled by √(D/D') without the 1 that the norm adds" in found


def test_a_rope_parameter_of_one_type_of_layers() -> None:
    """By its name, and not as a table beside a table."""

    def grow(model, target):
        grown = growproof.grow(model, target)
        grown.config.rope_parameters["full_attention"]["rope_theta"] *= 2
        return model_of(grown.config, state_of(grown), grown)

    case = least_case("gemma3_text")
    found = causes_of(lambda: case.model(), grow, {"intermediate_size": 40})
    assert found[0].startswith("rope_theta of full_attention "), found


@pytest.mark.parametrize("family", ["gpt2", "stablelm"])
def test_a_mean_in_new_lanes_is_no_wrong_tap(family: str) -> None:
    """As a tied model's with LayerNorms: no norm sees it, and the head gets nothing of it."""
    case = least_case(family)
    tied = dataclasses.replace(case, config=case.config | {"tie_word_embeddings": True})
    assert tap(tied, growproof.grow).startswith("none: ")
    assert "new lane" in tap(tied, BY_NAME["embedding_new_lanes"])


def test_two_faults_are_two_causes() -> None:
    """Of pairs of known-bad growers at least nine in ten are told rightly, both of them."""
    names = list(SAYS)
    pairs = [*itertools.combinations(names, 2)][:: len(names) // 2]
    missed = []
    for a, b in pairs:
        if {a, b} <= {"norm_unscaled", "final_norm_unscaled", "norm_linear"}:
            continue  # the same weights: one of the two is what is seen
        found = causes(both(BY_NAME[a], BY_NAME[b]))
        said = [
            any(re.search(wanted, cause) for cause in found)
            for wanted in (SAYS[a], SAYS[b])
        ]
        wrong = [c for c in found if not any(re.search(SAYS[x], c) for x in (a, b))]
        if not all(said) or wrong:
            missed.append((a, b, found))
    assert len(pairs) >= 20
    assert len(missed) <= len(pairs) // 10, missed


def unscaled(good: Good) -> Callable[[Any, Any], Any]:
    """A right grower, but for √(K'/K) on q."""

    def grow(model, target):
        grown = good(model, target)
        for layer in grown.model.layers:
            for p in layer.self_attn.q_proj.parameters():
                p.data.div_(math.sqrt(2))
        return grown

    return grow


@pytest.mark.parametrize(
    "name", ["values_in_front", "values_elsewhere", "permuted_heads", "new_heads_first",
             "between_neurons", "balanced"],
)  # fmt: skip
def test_what_has_no_effect_is_no_cause(name: str) -> None:
    """Another order or a shared factor is none; beside a fault, it hides it in no way."""
    assert causes(GOOD[name]) == []
    found = causes(unscaled(GOOD[name]))
    assert found == ["√(K'/K) is missing from q_proj"]


def test_an_order_of_heads_is_told_as_that() -> None:
    """However many there are: two that are exchanged are no shift."""
    ratios = Ratios.of(CASE.model().config, CASE.model().config, torch.float64)
    name = "model.layers.0.self_attn.q_proj.weight"
    for n in (2, 3, 4):
        w = torch.randn(n * ratios.lanes[0], 12, dtype=torch.float64)
        new = w.unflatten(0, (n, -1)).flip(0).flatten(0, 1)
        part = Part(name, new, w, w, torch.ones_like(w, dtype=torch.bool), {})
        assert relation(part, ratios) == "{} holds its heads in other places"


def test_one_cause_is_one_block_at_any_width() -> None:
    """Numbers aside, one cause is one; names are not broken, and blocks stay short."""
    one = {
        "law": "logits_are_unchanged", "promise": "lossless", "sentence": "f' = f",
        "message": "logits differs", "causes": ["rms_norm_eps 1e-05, expected 5e-06"],
        "tap": "layers.0.post_attention_layernorm: off by 1e-3", "case": "llama, hidden 1",
        "family": "llama", "axes": "hidden", "size": 3, "repeat": "growproof check x:grow",
    }  # fmt: skip
    two = one | {
        "causes": ["rms_norm_eps 1e-03, expected 5e-04"],
        "law": "eps_grows_along",
    }
    none = one | {"causes": [], "law": "is_certified", "size": 0, "axes": ""}
    assert list(verdict.by_cause([one, two, none])) == one["causes"]
    three = one | {
        "causes": ["q_proj and k_proj are zero: lost"], "promise": "hygiene",
    }  # fmt: skip
    four = three | {"causes": ["q_proj is zero: lost"], "law": "x"}
    groups = verdict.by_cause([three, four, four, one])
    assert list(groups) == [
        *one["causes"],
        *four["causes"],
    ]  # promises first, the usual
    assert verdict.same_fault(
        "every parameter shares the source's memory", "norm shares the source's memory"
    )
    assert verdict.same_fault(
        "q_proj holds its heads in other places",
        "q_proj.bias holds its heads in other places",
    )
    eps = "rms_norm_eps 1e-05, expected 5e-06 (D/D' is missing)"
    assert verdict.same_fault(verdict.LOST + eps, eps)
    assert verdict.same_fault(f"{eps} (in bfloat16, not in float64)", eps)
    assert verdict.same_fault(eps, f"{eps} (in training mode, not in evaluation mode)")
    assert not verdict.same_fault(eps, "rms_norm_eps 1e-05, expected 5e-06")
    assert not verdict.same_fault(
        "every parameter is on the meta device", "norm is zero"
    )
    short = verdict.blocks([three, four, one], 80)
    assert sum("smallest" in line for line in short) == 1  # the first cause in full
    for width in (30, 60, 80):
        text = "\n".join(verdict.blocks([one, two, none], width))
        assert "layers.0.post_attention_layernorm:" in text
        assert "2 laws" in text
        assert "is_certified" in text
    words = [f"--without=word{i}" for i in range(20)]
    long = one | {"repeat": " ".join(words), "message": " ".join(words)}
    text = verdict.block("c", [long], 80, short=False)
    assert " ".join("\n".join(text).partition("repeat")[2].split()) == long["repeat"]
    seen = "\n".join(text).partition("seen")[2].partition("first wrong")[0]
    assert seen.endswith(" …\n  ")
    assert len(seen.splitlines()) == 4
    said = verdict.violated("x:grow", [one, two, none])
    assert said == (
        "x:grow violates lossless on llama hidden: rms_norm_eps 1e-05, expected 5e-06"
    )
    assert verdict.conforms("x:grow", {"lossless"}) == (
        "x:grow conforms: lossless, on this domain"
    )


def test_tests_that_are_no_laws_say_nothing_of_a_grower() -> None:
    """It conforms where a law held, not where only growproof's own tests passed."""

    def last(*properties: tuple[str, str]) -> str:
        stats = {"passed": [SimpleNamespace(user_properties=properties)]}
        gate = SimpleNamespace(
            nothing="", session=None, findings=[], outdated=[], stats=lambda: stats,
            chosen=SimpleNamespace(name="x:grow"),
        )  # fmt: skip
        return ending.sentence(cast(Any, gate))

    assert last(("promise", "hygiene")) == "x:grow conforms: hygiene, on this domain"
    assert last() == ""


def test_an_order_is_looked_for_among_what_is_not_at_its_place() -> None:
    """Two exchanged of many are found; of too many none is, in no more memory."""

    def finds(order: torch.Tensor, items: torch.Tensor) -> bool:
        found = matched(-2 * items[order], items)
        return found is not None and torch.equal(found, order)

    items = torch.randn(200_000, 8, dtype=torch.float64)  # squared: 320 GB
    order = torch.arange(len(items))
    assert finds(order, items)
    order[[5, -1]] = order[[-1, 5]]
    assert finds(order, items)
    assert not finds(torch.arange(2 * MOST).roll(1), items[: 2 * MOST])
    assert finds(torch.randperm(9), items[:9])
