"""Causes that no one tensor shows: of a state, a stale list, what is lost when saved."""

import copy
import dataclasses

import growproof
import pytest
import torch

from ..growers.known_bad import BY_NAME
from . import findings, verdict
from .causes import causes as causes_of
from .judged import Judged
from .loading import Grower
from .test_evidence import CASE, causes, source


def test_what_shows_in_one_state_alone_is_said() -> None:
    """In bf16 and not in float64: the cause says so."""
    judged = Judged(Grower("x:grow", BY_NAME["q_scale_missing_in_bf16"]))
    judged(CASE.model(torch.bfloat16), CASE.target)
    assert findings.caused(CASE, judged, padded=False) == [
        "√(K'/K) is missing from q_proj (in bfloat16, not in float64)"
    ]


def cast(model, target):
    """A grower that casts the whole module, rotary frequencies included."""
    return growproof.grow(model, target).to(torch.bfloat16)


def meta(model, target):
    """A grower whose result holds nothing."""
    return growproof.grow(model, target).to("meta")


def extended(model, target):
    """A grower that adds a parameter and a buffer."""
    grown = growproof.grow(model, target)
    grown.model.norm.bias = torch.nn.Parameter(torch.zeros(2))
    grown.model.register_buffer("extra", torch.zeros(2))
    return grown


def garbage(model, target):
    """A grower that is another one at each call."""
    grown = growproof.grow(model, target)
    grown.lm_head.weight.data.add_(torch.rand(()))
    return grown


def typed():
    """The case's model, with a list of what its layers are."""
    model = source()
    model.config.layer_types = ["full_attention"] * 3
    return model


def test_a_stale_list_is_told_by_its_length() -> None:
    """layer_types, not extended: how long it is, not what stands in it."""
    found = causes_of(typed, BY_NAME["layer_types_stale"], CASE.target)
    assert found == ["layer_types has 3 entries, expected 4"]


@pytest.mark.parametrize(
    ("grow", "said"),
    [
        (cast, "every parameter is bfloat16, expected float64"),
        (meta, "is on the meta device"),
        (extended, "norm.bias was added"),
        (garbage, "lm_head differs from call to call"),
        (lambda model, target: 1 / 0, "it raises ZeroDivisionError"),
        (lambda model, target: None, "not known"),
    ],
)  # fmt: skip
def test_an_explanation_never_fails(grow, said: str) -> None:
    """Whatever comes back, something is said of it."""
    assert any(said in cause for cause in causes(grow)), causes(grow)


def test_a_cast_module_is_told_as_that() -> None:
    """Two sentences: its parameters and its frequencies, not what became of each."""
    assert causes(cast) == [
        "inv_freq is bfloat16, expected float32",
        "every parameter is bfloat16, expected float64",
    ]


def test_a_copied_layer_is_told_by_what_is_wrong_with_it() -> None:
    """Not by what its down_proj, which is zero, makes idle, whoever's it is."""

    def copied(model, target):
        grown = growproof.grow(model, target)
        last, new = grown.model.layers[2], grown.model.layers[3]
        new.self_attn.o_proj.weight.data.copy_(last.self_attn.o_proj.weight)
        new.post_attention_layernorm.weight.data.copy_(last.input_layernorm.weight)
        new.mlp.up_proj.weight.data.copy_(last.mlp.gate_proj.weight)
        return grown

    assert causes(copied) == ["o_proj of layer 3 holds what is layer 2's"]


def test_a_source_that_was_rounded_is_one_cause() -> None:
    """Also of what is scaled behind that, and where a case has not all parameters."""

    def rounded(model, target):
        low = copy.deepcopy(model)
        for p in low.parameters():
            p.data = p.data.bfloat16().double()
        return growproof.grow(low, target)

    assert causes(rounded) == ["every parameter went through bfloat16"]
    assert verdict.same_fault(
        "every parameter went through bfloat16", "norm and o_proj went through bfloat16"
    )


def test_what_is_lost_when_saved_is_lost_in_any_dtype() -> None:
    """Rounding hides that it was right in memory: that is no fault of a dtype."""

    def in_modules(model, target):
        grown = growproof.grow(model, target)
        grown.config.rms_norm_eps = model.config.rms_norm_eps
        return grown

    wide = dataclasses.replace(CASE, target={"hidden_size": 36})
    judged = Judged(Grower("somebody:grow", in_modules))
    for dtype in (torch.float64, torch.bfloat16):
        judged(wide.model(dtype).eval(), dict(wide.target))
        found = findings.caused(wide, judged, padded=True)
        assert len(found) == 1, found
        assert "D/D' is missing" in found[0]
        assert "not in float64" not in found[0]


def test_what_an_exception_says_ends_in_no_colon() -> None:
    """torch says on the second line what a state dict lacks; a law speaks for itself."""
    told = "Error(s) in loading state_dict for X:\n\tsize mismatch for y: got 3.\n\tz"
    line = "Error(s) in loading state_dict for X: size mismatch for y: got 3."

    def raises(model, target):
        raise RuntimeError(told)

    assert causes(raises) == [f"it raises RuntimeError: {line}"]
    assert findings.spoken(RuntimeError(told)) == f"it raises RuntimeError: {line}"
    assert findings.spoken(AssertionError("logits differ\nmore")) == "logits differ"
    assert findings.spoken(KeyError()) == "it raises KeyError: KeyError"
