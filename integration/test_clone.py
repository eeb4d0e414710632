"""The eager clone is transformers' own code, in every family, on every option drawn.

Under `growproof.ordered` both are float64 with every sum in index order, so that what is
left is where the two spell one value in two ways: the score scale before or behind a
product, a norm's weight inside or outside, the experts' sum. That is within 16 roundings
of the weights. As torch runs it, transformers has float32 islands (rotary angles,
softmax, RMSNorm), and the two agree to the rounding of those.
"""

from __future__ import annotations

from typing import Any

import growproof
import pytest
import torch
from growproof import clone
from growproof.arithmetic import ordered
from growproof.decoder import SURVIVING_ROPE_TYPES
from growproof.families import FAMILIES
from growproof.models import MASKED, decoder_of, state_of
from growproof.rounding import Responses
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from properties.laws.checks import close
from properties.laws.domain import CORE, DOMAIN, EXTRAS
from properties.laws.models import Case
from properties.laws.strategies import cases, fewer

every_family = pytest.mark.parametrize("family", FAMILIES)


@st.composite
def decoders(draw: st.DrawFn, family: str) -> Case:
    """A case with every option of the family, whatever the run's domain is."""
    features, DOMAIN.features = DOMAIN.features, {*CORE, *FAMILIES, *EXTRAS}
    try:
        return draw(cases(family=family))
    finally:
        DOMAIN.features = features


def stock(model: Any, case: Case, implementation: str) -> dict[str, Tensor]:
    """transformers' hidden states, attention maps and logits, by the clone's names."""
    model.set_attn_implementation(implementation)
    maps = implementation == "eager"
    with torch.no_grad():
        out = model(case.ids, output_hidden_states=True, output_attentions=maps)
    layers = model.config.num_hidden_layers
    names = ["embedding", *(f"layers.{i}.residual" for i in range(layers - 1))]
    found = zip([*names, "final_norm"], out.hidden_states, strict=True)
    taps = dict(found) | {"logits": out.logits}
    if maps:
        found = zip(range(layers), out.attentions, strict=True)
        taps |= {f"layers.{i}.probabilities": p for i, p in found}
    return taps


def compare(taps: dict[str, Tensor], model: Any, case: Case, **told: Any) -> None:
    """Every tap of transformers is the clone's, in units of one rounding of the weights."""
    d, state = decoder_of(model.config), state_of(model)
    exact = {name: w.double() for name, w in state.items()}
    truth = clone.forward(d, exact, case.ids)
    dtype = told["dtype"]  # that of the islands, which round a tap itself, too
    response = Responses(
        lambda shaken: clone.forward(d, shaken, case.ids), exact, truth, dtype,
        floor=dtype,
    )  # fmt: skip
    for tap, actual in taps.items():
        close(
            actual.double(), truth[tap], tap=tap, case=case, response=response[tap],
            more=lambda tap=tap: response.most[tap], budget="stock", **told,
        )  # fmt: skip
    assert len(taps) >= d.layers + 2


@every_family
@fewer(2, least=4)
@given(data=st.data())
def test_the_clone_is_transformers(family: str, data: st.DataObject) -> None:
    """Logits, each layer's hidden state, each attention map: to float32 rounding."""
    case = data.draw(decoders(family), "case")
    model = case.model(torch.float64)
    ways = ["eager"]
    if model._supports_sdpa and case.decoder.score_cap is None:
        ways += ["sdpa"]  # which drops a cap, and older releases let it
    for way in ways:
        compare(
            stock(model, case, way), model, case,
            law="clone_is_transformers", dtype=torch.float32, kernel=way,
        )  # fmt: skip


@every_family
@fewer(4)
@given(data=st.data())
def test_in_index_order_they_agree_to_rounding(
    family: str, data: st.DataObject
) -> None:
    """transformers' own code in float64 throughout: the clone, to a few roundings."""
    case = data.draw(decoders(family), "case")
    model = case.model(torch.float64)
    with ordered(model):
        taps = stock(model, case, "eager")
    compare(
        taps, model, case,
        law="clone_is_transformers_in_order", dtype=torch.float64, kernel="ordered",
    )  # fmt: skip


@pytest.mark.parametrize("family", MASKED)
@given(data=st.data())
def test_the_masked_clone_is_the_masked_model(family: str, data: st.DataObject) -> None:
    """The same of a model grown with masked norms, whose divisor is the old size."""
    case = data.draw(decoders(family), "case")
    masked = growproof.grow(case.model(torch.float64), case.target, norm="masked")
    compare(
        stock(masked.eval(), case, "eager"), masked, case,
        law="masked_clone_is_the_model", dtype=torch.float32, kernel="eager",
    )  # fmt: skip


@given(data=st.data())
def test_the_rotation_is_transformers(data: st.DataObject) -> None:
    """cos and sin of every rope type, to 4 float32 roundings of the angle."""
    case = data.draw(decoders("llama"), "case")
    rotary = case.decoder.rotary
    like = torch.zeros(1, 64, 1, dtype=torch.float64)
    theirs = case.model(torch.float64).model.rotary_emb(like, torch.arange(64)[None])
    ours = clone.rotation(case.decoder.kinds[0], 64, like)
    angles = torch.arange(64)[:, None] * rotary.frequencies()
    bound = 4 * torch.finfo(torch.float32).eps * (1 + angles)
    for a, b in zip(ours, theirs, strict=True):
        assert ((a - b[0, :, : rotary.dims // 2]).abs() <= bound).all()
    assert rotary.kind in SURVIVING_ROPE_TYPES
