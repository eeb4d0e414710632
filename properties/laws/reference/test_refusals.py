"""What cannot be exact is refused, with the reason and the way out."""

import dataclasses
from typing import Any

import pytest
import torch
from growproof.clone import forward
from growproof.decoder import Decoder, GrowthError, Kind, Rotary
from growproof.growth import Policies, plan
from growproof.models import decoder_of, grow, plan_model, state_of
from transformers import BertConfig, LlamaConfig, StableLmConfig

from .. import claims
from ..models import loads, make
from ..registry import law, reference


def turning(dims: int, kind: str = "default") -> tuple[Kind, ...]:
    """Two layers that turn so many lanes."""
    return (Kind(rotary=Rotary(theta=1e4, dims=dims, kind=kind)),) * 2


LLAMA = Decoder(
    vocab=11, hidden=16, heads=4, groups=2, head_dim=8, mlp=12, layers=2,
    kinds=turning(8), eps=1e-5, norm_size=16,
)  # fmt: skip
STABLELM = dataclasses.replace(
    LLAMA, norm="layer", split=False, hidden=32, norm_size=32, kinds=turning(2)
)
CONFIG: dict[str, Any] = {
    "vocab_size": 11, "hidden_size": 32, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


@law(reference, claim=claims.REFUSALS)
@pytest.mark.parametrize(
    ("d", "sizes", "message"),
    [
        (LLAMA, {"hidden": 12}, "hidden cannot shrink from 16 to 12.*shrink"),
        (LLAMA, {"layers": 1}, "layers cannot shrink from 2 to 1"),
        (LLAMA, {"head_dim": 6}, "head_dim cannot shrink from 8 to 6"),
        (LLAMA, {"groups": 3, "heads": 3}, "heads cannot shrink from 4 to 3"),
        (dataclasses.replace(LLAMA, heads=6), {"groups": 3},
         "a query head would lose its keys.*a multiple of the key/value heads"),
        (LLAMA, {"heads": 5, "hidden": 20}, "must be a multiple of num_key_value_heads"),
        (LLAMA, {"head_dim": 11}, "turns pairs of lanes.*choose an even one"),
        (LLAMA, {"head_dim": 126}, "computes it in float32.*smaller head_dim.*or more heads"),
        (LLAMA, {"head_dim": 10, "rotary": "between"}, "at a multiple of head_dim 8"),
        (LLAMA, {"norm": "centred"}, "RMSNorm keeps the mean.*norm='scaled'"),
        (LLAMA, {"norm": "averaged"}, "RMSNorm keeps them.*norm='scaled'"),
        (LLAMA, {"norm": "sorted"}, "norm must be one of scaled, centred, averaged"),
        (LLAMA, {"fill": "noise"}, "fill must be one of zeros, trainable"),
        (LLAMA, {"depth": "sideways"}, "depth must be"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(d: Decoder, sizes: dict, message: str) -> None:
    """Each refusal names the sizes, the rule and what to do."""
    names = {"norm", "fill", "depth", "rotary"}
    how = {n: v for n, v in sizes.items() if n in names}
    with pytest.raises(GrowthError, match="(?s)" + message):
        plan(d, Policies(**how), **{n: sizes[n] for n in sizes.keys() - names})


@law(reference, claim=claims.REFUSALS)
@pytest.mark.parametrize(
    ("config", "target", "message"),
    [
        (LlamaConfig(**CONFIG), {"hidden_size": 34},
         "hidden_size.*multiple of num_attention_heads.*choose other sizes"),
        (StableLmConfig(**CONFIG), {"hidden_size": 34},
         "34 / 4, which is not whole.*multiple of 4"),
        (StableLmConfig(**CONFIG), {"head_dim": 10},
         "= 8, got head_dim 10: change hidden_size"),
    ],
)  # fmt: skip
def test_sizes_that_transformers_would_not_take(config, target, message: str) -> None:
    """A family's own rule is told before anything is built."""
    with pytest.raises(GrowthError, match="(?s)" + message):
        plan_model(config, target)


@law(reference, claim=claims.REFUSALS)
@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_rope_types_that_do_not_survive(kind: str) -> None:
    """Frequencies that mix in head_dim cannot be kept: grow heads instead."""
    d = dataclasses.replace(LLAMA, kinds=turning(8, kind))
    with pytest.raises(GrowthError, match=f"{kind}.*num_attention_heads instead"):
        plan(d, head_dim=10)
    assert plan(d, hidden=32).new.rotary == d.rotary
    partial = dataclasses.replace(STABLELM, kinds=turning(2, kind))
    assert plan(partial, hidden=40, head_dim=10).new.rotary.dims == 2


@law(reference, claim=claims.REFUSALS)
@pytest.mark.parametrize("kind", ["dynamic", "yarn"])
def test_clone_says_what_it_cannot_run(kind: str) -> None:
    """The clone has no such frequencies, and names the way round."""
    with pytest.raises(GrowthError, match=f"no rope type '{kind}'.*transformers"):
        Rotary(theta=1e4, dims=8, kind=kind).frequencies()


@law(reference, claim=claims.REFUSALS)
def test_tied_layernorm_cannot_be_centred() -> None:
    """Its head is the embedding: averaged is exact, and so is masked."""
    tied = dataclasses.replace(STABLELM, tied=True)
    with pytest.raises(GrowthError, match=r"(?s)cannot be centred.*averaged.*masked"):
        plan(tied, Policies(norm="centred"), hidden=40)
    assert plan(tied, hidden=40).policies.norm == "averaged"
    assert plan(tied, Policies(norm="masked"), hidden=40).policies.norm == "masked"
    assert plan(tied, mlp=20).policies.norm == "scaled"


@law(reference, claim=claims.REFUSALS)
def test_masked_stays_masked() -> None:
    """A model with an old divisor is grown again with that divisor, or not at all."""
    once = plan(STABLELM, Policies(norm="masked"), hidden=40).new
    assert (once.norm_size, once.hidden) == (32, 40)
    assert plan(once, hidden=48).new.norm_size == 32
    with pytest.raises(GrowthError, match=r"already masked.*norm='masked'"):
        plan(once, Policies(norm="scaled"), hidden=48)


@law(reference, claim=claims.REFUSALS)
def test_unknown_names_and_families() -> None:
    """A typing error in a target, and a model of another family, are named."""
    config = LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=4,
    )  # fmt: skip
    with pytest.raises(
        GrowthError, match=r"cannot grow hiden_size: only .*hidden_size"
    ):
        plan_model(config, {"hiden_size": 32})
    with pytest.raises(GrowthError, match=r"no table for model type 'bert'.*register"):
        decoder_of(BertConfig())


@law(reference, claim=claims.REFUSALS)
@pytest.mark.parametrize("norm", ["scaled", "centred", "masked"])
def test_q_k_layernorm_is_exact_by_another_route(norm) -> None:
    """One ε serves norms that grow differently: √(ε'K'/εK) on q and k makes it right."""
    config = StableLmConfig(
        vocab_size=11, hidden_size=32, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, qk_layernorm=True,
        use_qkv_bias=True, layer_norm_eps=1e-2,
    )  # fmt: skip
    model = make(config, 7)
    if norm == "scaled":  # exact on a stream without a mean
        state = state_of(model)
        for name, w in state.items():
            if name.endswith(("embed.weight", ".o.weight", ".down.weight")):
                w -= w.mean(int("embed" in name), keepdim=True)
        loads(model, state)
    grown = grow(model, {"hidden_size": 60, "num_attention_heads": 6}, norm=norm)
    ids = torch.arange(10)[None]
    old = forward(decoder_of(config), state_of(model), ids)["logits"]
    new = forward(decoder_of(grown.config), state_of(grown), ids)["logits"]
    assert float((new - old).abs().max()) < 1e-13 * float(old.abs().max())
