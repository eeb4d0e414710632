"""The whole decoder: the same logits, and zeros in every new lane on the way."""

import functools
from typing import Any

import torch
from growproof.decoder import forward
from growproof.padding import take
from hypothesis import given
from hypothesis import strategies as st

from . import claims
from .checks import (
    Grown,
    Responses,
    Violation,
    close,
    close_to_padded,
    grow,
    unit_roundoff,
    zeros,
)
from .registry import law, lossless, reference, zero_padding
from .strategies import AXES, FAMILIES, Case, cases, fewer


@law(zero_padding, claim=claims.LANES, budget="block")
@given(case=cases(max_tokens=4))
def test_embedding_is_padded(grower, case: Case) -> None:
    """E' = pad(E), up to one scalar and a mean that is removed."""
    grown = grow(case, grower)
    name, row = "model.embed_tokens.weight", grown.rows["embedding"]
    old, new = grown.old_state[name][None], grown.state[name][None]
    zeros(new, old, row, grown.growth, "embedding", case)
    unit = unit_roundoff(grown.dtype) * float(old.abs().max())
    close_to_padded(grown, "embedding", new, old, row, unit)


@law(zero_padding, claim=claims.LANES, budget="block")
@given(case=cases(max_tokens=4))
def test_head_ignores_new_lanes(grower, case: Case) -> None:
    """W' pad(x) = W x for lm_head: what it reads of the old lanes is the old head."""
    grown = grow(case, grower)
    name = "model.embed_tokens.weight" if case.shape.tied else "lm_head.weight"
    old = grown.old_state[name][None]
    new = grown.state[
        "model.embed_tokens.weight" if grown.shape.tied else "lm_head.weight"
    ]
    new = new[None, :, : old.shape[2]]
    close(
        new,
        old * (grown.stream[1] if case.shape.tied else 1.0),
        tap="logits",
        case=case,
        response=unit_roundoff(grown.dtype) * float(old.abs().max()),
        dtype=grown.dtype,
    )


@law(zero_padding, claim=claims.LANES, proof="decoder_padded")
@given(case=cases())
def test_new_lanes_are_zero_at_every_tap(grower, case: Case) -> None:
    """Every new lane of every tap is exactly 0, through all layers."""
    grown = grow(case, grower)
    old = forward(case.shape, grown.old_state, case.ids)
    new = forward(grown.shape, grown.state, case.ids)
    for tap, x in old.items():
        zeros(new[grown.renamed(tap)], x, grown.row(tap), grown.growth, tap, case)


@law(zero_padding, claim=claims.DEPTH)
@given(case=cases(axis="layers"))
def test_new_layers_add_nothing(grower, case: Case) -> None:
    """attn'(x) = mlp'(x) = 0 in every added layer."""
    grown = grow(case, grower)
    new = forward(grown.shape, grown.state, case.ids)
    added = set(range(grown.shape.layers)) - set(grown.layers)
    for i in added:
        for name in ("attention", "mlp"):
            tap = f"layers.{i}.{name}"
            if new[tap].any():
                raise Violation(
                    f"{tap} of a new layer must be zero", tap=tap, case=case
                )
    assert len(added) == grown.shape.layers - case.shape.layers


def logits_are_equal(grown: Grown) -> None:
    """The clone's float64 logits of both models, whatever dtype they are stored in."""
    case = grown.case
    truth = {"logits": forward(case.shape, grown.old_state, case.ids)["logits"]}
    response = Responses(
        lambda state: {"logits": forward(case.shape, state, case.ids)["logits"]},
        grown.old_state,
        truth,
        grown.dtype,
    )
    close(
        forward(grown.shape, grown.state, case.ids)["logits"],
        truth["logits"],
        tap="logits",
        case=case,
        response=response["logits"],
        more=lambda: response.more("logits"),
        dtype=grown.dtype,
    )


@law(
    lossless,
    claim=claims.LOGITS,
    proof=("decoder_logits", "centred_logits", "rmsnorm_grows", "layernorm_grows",
           "centred_streams", "layernorm_decoder_lossless"),
    budget="decoder",
    family=FAMILIES,
    axis=AXES,
)  # fmt: skip
@fewer(4, least=12)
@given(data=st.data())
def test_logits_are_unchanged(grower, family: str, axis: str, data) -> None:
    """f'(tokens) = f(tokens), in float64, whatever the growing did inside."""
    case = data.draw(cases(family=family, axis=axis), "case")
    logits_are_equal(grow(case, grower))


def stock_logits_are_equal(grown: Grown, attention: str, **inputs: Any) -> None:
    """Both models' logits by transformers' own forward, to its float32 islands."""
    case = grown.case

    def logits(model) -> dict[str, torch.Tensor]:
        model.set_attn_implementation(attention)
        with torch.no_grad():
            return {"logits": model(case.ids, **inputs).logits}

    truth = logits(grown.source)
    model = case.model(torch.float64)

    def shaken(state) -> dict[str, torch.Tensor]:
        model.load_state_dict(dict(state), strict=False)
        return logits(model)

    response = Responses(shaken, grown.old_state, truth, torch.float32)
    close(
        logits(grown.model)["logits"],
        truth["logits"],
        tap="logits",
        case=case,
        response=response["logits"],
        more=lambda: response.more("logits"),
        dtype=torch.float32,
        kernel=attention,
    )


@law(lossless, claim=claims.LOGITS, budget="stock", attention=("eager", "sdpa"))
@given(case=cases() | cases(min_tokens=17, max_tokens=24))
def test_transformers_agrees(grower, attention: str, case: Case) -> None:
    """f'(tokens) = f(tokens) by transformers' own forward, to its float32 islands."""
    stock_logits_are_equal(grow(case, grower, torch.float64), attention)


@law(lossless, claim=claims.LOGITS, budget="stock")
@fewer(2)
@given(case=cases(min_tokens=3, max_tokens=8), stride=st.integers(2, 7))
def test_positions_are_heeded(grower, case: Case, stride: int) -> None:
    """f'(tokens, positions) = f(tokens, positions), for positions with gaps."""
    positions = torch.arange(case.tokens)[None] * stride
    grown = grow(case, grower, torch.float64)
    stock_logits_are_equal(grown, "eager", position_ids=positions)


@law(reference, claim=claims.LOGITS)
@given(case=cases(power_of_four=True))
def test_decoder_is_bitwise(reference_grow, case: Case) -> None:
    """Every tap is the padded old one, bit for bit, where scales are powers of two."""
    norm = "scaled" if case.family == "llama" else "masked"
    grown = reference_grow(case, norm=norm)
    old = forward(case.shape, grown.old_state, case.ids)
    new = forward(grown.shape, grown.state, case.ids)
    for tap, x in old.items():
        row, value = grown.row(tap), new[grown.renamed(tap)]
        zeros(value, x, row, grown.growth, tap, case)
        assert torch.equal(take(value, row, grown.growth), x), tap


@law(reference, claim=claims.LOGITS, budget="decoder")
@given(case=cases(), norm=st.sampled_from(("default", "masked")))
def test_every_tap_is_the_padded_one(reference_grow, case: Case, norm: str) -> None:
    """Every tap is the old one, scaled and padded as the table says, to rounding."""
    grown = reference_grow(case, norm=None if norm == "default" else norm)
    old = forward(case.shape, grown.old_state, case.ids)
    new = forward(grown.shape, grown.state, case.ids)

    def run(state):
        return forward(case.shape, state, case.ids)

    response = Responses(run, grown.old_state, old, grown.dtype)
    for tap, x in old.items():
        row, value = grown.row(tap), new[grown.renamed(tap)]
        close_to_padded(
            grown, tap, value, x, row, response[tap],
            more=functools.partial(response.more, tap),
        )  # fmt: skip
