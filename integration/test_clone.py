"""The eager clone is StableLm and Llama, on every option that it covers.

`growproof.decoder` computes in the dtype of the weights. transformers computes some
parts in float32 whatever the dtype, and that is all that keeps the two apart:

  rotary            cos and sin of float32 angles, both families, every implementation
  softmax           float32 in eager; the weights' own dtype in sdpa
  RMSNorm           float32 in Llama; StableLm's LayerNorm and the masked norms are not

Measured on these cases (loud weights, up to 3 layers), relative to the largest value of
a tap: logits 7e-6 at most, hidden states 1.1e-5, attention maps 1.7e-6; in units of what
one float32 rounding of the weights does, 1 at most, of a budget of 4. A masked model:
1e-6, 0.5 units. Where those three are taken away (the test of that name), the clone and
transformers agree in float64 to 8e-15, 0.7 roundings.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any
from unittest import mock

import growproof
import pytest
import torch
from growproof import decoder
from growproof.arithmetic import ACTIVATIONS, BLAS
from growproof.models import shape_of, state_of
from growproof.shape import SURVIVING_ROPE_TYPES, Shape
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from properties.laws.checks import Responses, close
from properties.laws.strategies import CORE, DOMAIN, EXTRAS, Case, cases

FAMILIES = ("llama", "stablelm")


@st.composite
def decoders(draw: st.DrawFn, family: str) -> Case:
    """A case with every option that the clone covers, whatever the run's domain is."""
    features, DOMAIN.features = DOMAIN.features, {*CORE, *EXTRAS}
    try:
        case = draw(cases(family=family))
    finally:
        DOMAIN.features = features
    activation = draw(st.sampled_from(sorted(ACTIVATIONS)))
    return dataclasses.replace(case, config=case.config | {"hidden_act": activation})


def stock(model: Any, case: Case, implementation: str) -> dict[str, Tensor]:
    """transformers' hidden states, attention maps and logits, by the clone's names."""
    model.set_attn_implementation(implementation)
    maps = implementation == "eager"
    with torch.no_grad():
        out = model(case.ids, output_hidden_states=True, output_attentions=maps)
    layers = model.config.num_hidden_layers
    names = ["embedding", *(f"layers.{i}.residual" for i in range(layers - 1)), "norm"]
    taps = dict(zip(names, out.hidden_states, strict=True)) | {"logits": out.logits}
    if maps:
        found = zip(range(layers), out.attentions, strict=True)
        taps |= {f"layers.{i}.probabilities": p for i, p in found}
    return taps


def compare(
    model: Any, case: Case, implementation: str, *, law: str, rounding: torch.dtype
) -> None:
    """Every tap of transformers is the clone's, in units of one rounding of the weights."""
    shape, state = shape_of(model.config), state_of(model)
    exact = {name: w.double() for name, w in state.items()}
    clone = decoder.forward(shape, state, case.ids, BLAS)
    truth = decoder.forward(shape, exact, case.ids, BLAS)
    response = Responses(
        lambda shaken: decoder.forward(shape, shaken, case.ids, BLAS),
        exact, truth, rounding,
    )  # fmt: skip
    taps = stock(model, case, implementation)
    for tap, actual in taps.items():
        close(
            actual.double(), clone[tap].double(), law=law, tap=tap, case=case,
            response=response[tap], more=functools.partial(response.more, tap),
            budget="stock", dtype=rounding, kernel=implementation,
        )  # fmt: skip
    assert len(taps) >= shape.layers + 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_the_clone_is_transformers(
    family: str, implementation: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Logits, each layer's hidden state, each attention map: to float32 rounding."""
    case = data.draw(decoders(family))
    compare(
        case.model(dtype), case, implementation,
        law="clone_is_transformers", rounding=torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_the_masked_clone_is_the_masked_model(family: str, data: st.DataObject) -> None:
    """The same of a model grown with masked norms, whose divisor is the old size."""
    case = data.draw(decoders(family))
    masked = growproof.grow(case.model(torch.float64), case.target, norm="masked")
    compare(
        masked.eval(), case, "eager",
        law="masked_clone_is_the_model", rounding=torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_without_the_float32_parts_they_agree_to_rounding(
    family: str, data: st.DataObject
) -> None:
    """Same rotation, RMSNorm in float64, sdpa: what is left is the order of the sums."""
    case = data.draw(decoders(family))
    model = case.model(torch.float64)
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = rms_norm(module)

    def rotation(shape: Shape, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = (x[0].to(like.dtype) for x in stock_rotation(model, shape, length))
        return cos, sin

    with mock.patch.object(decoder, "rotation", rotation):
        compare(
            model, case, "sdpa",
            law="clone_is_transformers_to_rounding", rounding=torch.float64,
        )  # fmt: skip


def rms_norm(module: Any) -> Any:
    """LlamaRMSNorm, without its casts to float32."""
    return lambda x: (
        module.weight
        * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon))
    )


def stock_rotation(model: Any, shape: Shape, length: int) -> list[Tensor]:
    """transformers' own cos and sin, (1, T, dims / 2): each is there twice, once a lane."""
    ids = torch.arange(length)[None]
    like = torch.zeros(1, length, 1, dtype=torch.float64)
    both = model.model.rotary_emb(like, ids)
    return [x[..., : shape.rotary.dims // 2] for x in both]


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_the_rotation_is_transformers(family: str, data: st.DataObject) -> None:
    """cos and sin of every rope type, to 4 float32 roundings of the angle."""
    case = data.draw(decoders(family))
    shape, length = case.shape, 64
    like = torch.zeros(1, dtype=torch.float64)
    ours = decoder.rotation(shape, length, like)
    theirs = stock_rotation(case.model(torch.float64), shape, length)
    angles = torch.arange(length)[:, None] * shape.rotary.frequencies()
    bound = 4 * torch.finfo(torch.float32).eps * (1 + angles)
    for a, b in zip(ours, theirs, strict=True):
        assert ((a - b[0]).abs() <= bound).all()
    assert shape.rotary.kind in SURVIVING_ROPE_TYPES
