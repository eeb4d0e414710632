"""The whole decoder: the same logits, and zeros in every new lane on the way."""

import dataclasses
from typing import Any

import torch
from growproof.models import MASKED
from growproof.rounding import Responses, unit_roundoff
from growproof.scatter import take
from hypothesis import given
from hypothesis import strategies as st

from . import claims
from .checks import close, close_to_padded, steps, zeros
from .domain import AXES, known_families
from .grown import ADDED, Grown, Violation, forward, grow
from .models import Case, loads
from .registry import law, lossless, reference, zero_padding
from .strategies import cases, fewer, padded_cases, placements


@law(zero_padding, claim=claims.LANES, budget="block")
@given(case=padded_cases(max_tokens=4))
def test_embedding_is_padded(grower, case: Case) -> None:
    """E' = pad(E), up to one scalar and a mean that is removed."""
    grown = grow(case, grower)
    row = dataclasses.replace(grown.rows["embedding"], scale=grown.embedded[1])
    old, new = (state["embed.weight"][None] for state in (grown.old_state, grown.state))
    zeros(new, old, row, grown.growth, "embedding", case)
    unit = unit_roundoff(grown.dtype) * float(old.abs().max())
    close_to_padded(grown, "embedding", new, old, row, unit * abs(row.scale))


@law(zero_padding, claim=claims.LANES, budget="block")
@given(case=padded_cases(max_tokens=4))
def test_head_ignores_new_lanes(grower, case: Case) -> None:
    """W' pad(x) = W x for the head: what it reads of the old lanes is the old head."""
    grown = grow(case, grower)
    names = ["embed.weight" if d.tied else "head.weight"
             for d in (case.decoder, grown.decoder)]  # fmt: skip
    old, new = grown.old_state[names[0]][None], grown.state[names[1]][None]
    close(
        new[:, :, : old.shape[2]],
        old * (grown.embedded[1] if case.decoder.tied else 1.0),
        tap="logits",
        case=case,
        response=unit_roundoff(grown.dtype) * float(old.abs().max()),
        dtype=grown.dtype,
    )


@law(zero_padding, claim=claims.LANES, proof="decoder_padded")
@given(case=padded_cases())
def test_new_lanes_are_zero_at_every_tap(grower, case: Case) -> None:
    """Every new lane of every tap is exactly 0, through all layers."""
    grown = grow(case, grower)
    old = forward(case.decoder, grown.old_state, case.ids)
    new = forward(grown.decoder, grown.state, case.ids)
    for tap, x in old.items():
        zeros(new[grown.renamed(tap)], x, grown.row(tap), grown.growth, tap, case)


@law(zero_padding, claim=claims.DEPTH, proof="layers_every_nth", version=2)
@given(case=padded_cases(axis="layers"))
def test_new_layers_add_nothing(grower, case: Case) -> None:
    """attn'(x) = mlp'(x) = 0 in every added layer, behind their norms where they are."""
    grown = grow(case, grower)
    new = forward(grown.decoder, grown.state, case.ids)
    added = set(range(grown.decoder.layers)) - set(grown.layers)
    for i in added:
        for name in sorted(ADDED["pre" if case.decoder.places == "pre" else "post"]):
            tap = f"layers.{i}.{name}"
            if new[tap].any():
                raise Violation(
                    f"{tap} of a new layer must be zero", tap=tap, case=case
                )
    assert len(added) == grown.decoder.layers - case.decoder.layers


def logits_are_equal(grown: Grown) -> None:
    """The clone's float64 logits of both models, whatever dtype they are stored in."""
    case = grown.case
    truth = {"logits": forward(case.decoder, grown.old_state, case.ids)["logits"]}
    response = Responses(
        lambda state: {"logits": forward(case.decoder, state, case.ids)["logits"]},
        grown.old_state,
        truth,
        grown.dtype,
    )
    close(
        forward(grown.decoder, grown.state, case.ids)["logits"],
        truth["logits"],
        tap="logits",
        case=case,
        **steps(response, "logits"),
        dtype=grown.dtype,
    )


@law(
    lossless,
    claim=claims.LOGITS,
    proof=("decoder_logits", "centred_logits", "rmsnorm_grows", "layernorm_grows",
           "centred_streams", "layernorm_decoder_lossless"),
    budget="decoder",
    family=known_families(),
    axis=AXES,
)  # fmt: skip
@fewer(4)
@given(data=st.data())
def test_logits_are_unchanged(grower, family: str, axis: str, data) -> None:
    """f'(tokens) = f(tokens), in float64, whatever the growing did inside."""
    case = data.draw(cases(family=family, axis=axis), "case")
    logits_are_equal(grow(case, grower))


def stock_logits_are_equal(grown: Grown, attention: str, **inputs: Any) -> None:
    """Both models' logits by transformers' own forward, to its float32 islands."""
    case = grown.case

    def logits(model) -> dict[str, torch.Tensor]:
        if model._supports_sdpa:  # Gemma 2's caps have the eager way alone
            model.set_attn_implementation(attention)
        with torch.no_grad():
            return {"logits": model(case.ids, **inputs).logits}

    truth = logits(grown.source)
    model = case.model(torch.float64)

    def shaken(state) -> dict[str, torch.Tensor]:
        return logits(loads(model, state))

    response = Responses(shaken, grown.old_state, truth, torch.float32)
    close(
        logits(grown.model)["logits"],
        truth["logits"],
        tap="logits",
        case=case,
        response=response["logits"],
        more=lambda: response.most["logits"],
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
@given(case=cases(power_of_four=True, maskable=True))
def test_decoder_is_bitwise(reference_grow, case: Case) -> None:
    """Every tap is the padded old one, bit for bit, where scales are powers of two."""
    masked = case.decoder.norm == "layer"
    grown = reference_grow(case, norm="masked" if masked else "scaled")
    old = forward(case.decoder, grown.old_state, case.ids)
    new = forward(grown.decoder, grown.state, case.ids)
    for tap, x in old.items():
        row, value = grown.row(tap), new[grown.renamed(tap)]
        zeros(value, x, row, grown.growth, tap, case)
        assert torch.equal(take(value, row, grown.growth), x), tap


@law(reference, claim=claims.LOGITS, budget="decoder")
@given(
    drawn=(
        padded_cases().map(lambda case: (case, None))
        | st.sampled_from(sorted(MASKED))
        .flatmap(lambda family: cases(family=family))
        .map(lambda case: (case, "masked"))
    ).flatmap(lambda two: st.tuples(st.just(two), placements(two[0])))
)
def test_every_tap_is_the_padded_one(reference_grow, drawn) -> None:
    """Every tap is the old one, scaled and padded as the table says, to rounding.

    Wherever new layers, neurons and rotary lanes are put, and exactly zero elsewhere.
    """
    (case, norm), where = drawn
    grown = reference_grow(case, norm=norm, **where)
    old = forward(case.decoder, grown.old_state, case.ids)
    new = forward(grown.decoder, grown.state, case.ids)

    def run(state):
        return forward(case.decoder, state, case.ids)

    response = Responses(run, grown.old_state, old, grown.dtype)
    for tap, x in old.items():
        row, value = grown.row(tap), new[grown.renamed(tap)]
        by = abs(row.scale)
        zeros(value, x, row, grown.growth, tap, case)
        close_to_padded(grown, tap, value, x, row, **steps(response, tap, by))
