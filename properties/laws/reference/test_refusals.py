"""What cannot be exact is refused, with the reason and the way out."""

import dataclasses

import pytest
import torch
from growproof.decoder import forward
from growproof.models import grow, plan_model, shape_of, state_of
from growproof.shape import GrowthError, Rotary, Shape, plan
from transformers import GPT2Config, LlamaConfig, StableLmConfig

from .. import claims
from ..registry import law, reference
from ..strategies import make

LLAMA = Shape(
    family="llama", vocab=11, hidden=16, heads=4, groups=2, head_dim=8, mlp=12, layers=2,
    rotary=Rotary(theta=1e4, dims=8), eps=1e-5, norm_size=16,
)  # fmt: skip
STABLELM = dataclasses.replace(
    LLAMA, family="stablelm", hidden=32, norm_size=32, rotary=Rotary(theta=1e4, dims=2)
)


@law(reference, claim=claims.REFUSALS)
@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        (LLAMA, {"hidden": 12}, "hidden_size cannot shrink from 16 to 12.*shrink"),
        (LLAMA, {"layers": 1}, "num_hidden_layers cannot shrink from 2 to 1"),
        (LLAMA, {"head_dim": 6}, "head_dim cannot shrink from 8 to 6"),
        (LLAMA, {"groups": 4}, "a query head would lose its keys.*num_attention_heads"),
        (LLAMA, {"heads": 5, "hidden": 20}, "must be a multiple of num_key_value_heads"),
        (LLAMA, {"hidden": 18}, "multiple of num_attention_heads.*choose other sizes"),
        (LLAMA, {"head_dim": 11}, "turns pairs of lanes.*choose an even one"),
        (LLAMA, {"head_dim": 128}, "computes it in float32.*smaller head_dim, or more heads"),
        (LLAMA, {"norm": "centred"}, "RMSNorm keeps the mean.*norm='scaled' is exact"),
        (LLAMA, {"norm": "sorted"}, "norm must be one of scaled, centred, masked"),
        (LLAMA, {"fill": "noise"}, "fill must be one of zeros, trainable"),
        (LLAMA, {"depth": "prepend"}, "depth must be one of append, interleave"),
        (STABLELM, {"hidden": 34}, "34 / 4, which is not whole.*multiple of 4"),
        (STABLELM, {"head_dim": 10}, "= 8, got head_dim 10: change hidden_size"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(shape: Shape, sizes: dict, message: str) -> None:
    """Each refusal names the sizes, the rule and what to do."""
    with pytest.raises(GrowthError, match="(?s)" + message):
        plan(shape, **sizes)


@law(reference, claim=claims.REFUSALS)
@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_rope_types_that_do_not_survive(kind: str) -> None:
    """Frequencies that mix in head_dim cannot be kept: grow heads instead."""
    shape = dataclasses.replace(LLAMA, rotary=Rotary(theta=1e4, dims=8, kind=kind))
    with pytest.raises(GrowthError, match=f"{kind}.*num_attention_heads instead"):
        plan(shape, head_dim=10)
    assert plan(shape, hidden=32).new.rotary == shape.rotary
    partial = dataclasses.replace(STABLELM, rotary=Rotary(theta=1e4, dims=2, kind=kind))
    assert plan(partial, hidden=40).new.rotary.dims == 2


@law(reference, claim=claims.REFUSALS)
@pytest.mark.parametrize("kind", ["dynamic", "yarn"])
def test_clone_says_what_it_cannot_run(kind: str) -> None:
    """The clone has no such frequencies, and names the way round."""
    with pytest.raises(GrowthError, match=f"no rope type '{kind}'.*transformers"):
        Rotary(theta=1e4, dims=8, kind=kind).frequencies()


@law(reference, claim=claims.REFUSALS)
def test_tied_layernorm_cannot_be_centred() -> None:
    """Its lm_head is the embedding: masked is exact, scaled is the article's."""
    tied = dataclasses.replace(STABLELM, tied=True)
    for norm in (None, "centred"):
        with pytest.raises(GrowthError, match=r"(?s)cannot be centred.*Untie.*masked"):
            plan(tied, hidden=40, norm=norm)
    assert plan(tied, hidden=40, norm="masked").norm == "masked"
    assert plan(tied, mlp=20).norm == "scaled"


@law(reference, claim=claims.REFUSALS)
def test_masked_stays_masked() -> None:
    """A model with an old divisor is grown again with that divisor, or not at all."""
    once = plan(STABLELM, hidden=40, norm="masked").new
    assert (once.norm_size, once.hidden) == (32, 40)
    assert plan(once, hidden=48).new.norm_size == 32
    with pytest.raises(GrowthError, match=r"already masked.*norm='masked'"):
        plan(once, hidden=48, norm="scaled")


@law(reference, claim=claims.REFUSALS)
def test_unknown_names_and_families() -> None:
    """A typing error in a target, and a model of another family, are named."""
    config = LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=4,
    )  # fmt: skip
    with pytest.raises(GrowthError, match="cannot grow hiden_size: only hidden_size"):
        plan_model(config, {"hiden_size": 32})
    with pytest.raises(GrowthError, match=r"knows StableLm and Llama, got.*gpt2"):
        shape_of(GPT2Config())


@law(reference, claim=claims.REFUSALS)
@pytest.mark.parametrize("norm", ["scaled", "centred", "masked"])
def test_q_k_layernorm_is_exact_by_another_route(norm) -> None:
    """One ε serves norms that grow differently: √(ε'K'/εK) on q and k makes it right."""
    config = StableLmConfig(
        vocab_size=11, hidden_size=32, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, qk_layernorm=True,
        use_qkv_bias=True, layer_norm_eps=1e-2,
    )  # fmt: skip
    model = make(config, 7, "loud", 1e-2, torch.float64)
    if norm == "scaled":  # exact on a stream without a mean
        for name, p in model.named_parameters():
            dim = 1 if "embed" in name else 0
            if any(w in name for w in ("embed", "o_proj", "down_proj")):
                p.data -= p.data.mean(dim, keepdim=True)
    grown = grow(model, {"hidden_size": 60, "num_attention_heads": 6}, norm=norm)
    ids = torch.arange(10)[None]
    old = forward(shape_of(config), state_of(model), ids)["logits"]
    new = forward(shape_of(grown.config), state_of(grown), ids)["logits"]
    assert float((new - old).abs().max()) < 1e-13 * float(old.abs().max())
