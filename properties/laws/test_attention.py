"""The article's attention: padded hidden states in, padded hidden states out."""

import torch
from growproof.scatter import take
from hypothesis import assume, given

from . import claims
from .checks import block_is_padded, inputs, pad, zeros
from .grown import attention, grow
from .models import Case
from .registry import law, reference, zero_padding
from .strategies import cases, padded_cases


@law(zero_padding, claim=claims.LINEAR, proof="linear_padded", budget="block")
@given(case=padded_cases() | padded_cases(axis="head_dim"))
def test_projections_are_padded(grower, case: Case) -> None:
    """W'(pad x) + b' = pad(Wx + b) for q, k and v."""
    block_is_padded(grow(case, grower), attention, "query", "key", "value")


@law(
    zero_padding,
    claim=claims.ROTARY,
    proof=("partial_rotary_pads", "full_rotary_pads", "frequencies_kept"),
    budget="block",
)
@given(case=padded_cases(axis="head_dim"))
def test_rotary_keeps_pairs_and_frequencies(grower, case: Case) -> None:
    """rotate'(pad q) = pad(rotate q): same pairs, same angles."""
    block_is_padded(grow(case, grower), attention, "query_rotated", "key_rotated")


@law(
    zero_padding,
    claim=claims.ATTENTION,
    proof=("scores_kept", "score_scale_field"),
    budget="block",
)
@given(case=padded_cases(axis="head_dim"))
def test_scores_keep_their_scale(grower, case: Case) -> None:
    """q'·k' / √K' = q·k / √K in every old head: √(K'/K) is somewhere in q and k."""
    block_is_padded(grow(case, grower), attention, "scores", "probabilities")


@law(
    zero_padding,
    claim=claims.ATTENTION,
    proof=("attention_padded", "new_heads_silent"),
    budget="block",
)
@given(case=padded_cases())
def test_attention_maps_padded_to_padded(grower, case: Case) -> None:
    """attn'(pad x) = pad(attn x), whatever head or group is new."""
    block_is_padded(grow(case, grower), attention, "context", "attention")


@law(reference, claim=claims.ATTENTION)
@given(case=cases(power_of_four=True))
def test_attention_is_bitwise(reference_grow, case: Case) -> None:
    """attn'(pad x) = pad(attn x), bit for bit, where √(K'/K) is a power of two."""
    grown = reference_grow(case, norm="scaled")
    # where q and k have a LayerNorm, a mean leaves them as head_dim grows
    assume(grown.rows["layers.{layer}.query"].centre is None)
    x, checked = inputs(case), 0
    for i in range(case.decoder.layers):
        old = attention(grown.layer(i, old=True), x)
        new = attention(grown.layer(i, old=False), pad(x, grown.growth))
        for name in ("query", "key_rotated", "context", "attention"):
            row = grown.rows["layers.{layer}." + name]
            zeros(new[name], old[name], row, grown.growth, name, case)
            assert torch.equal(take(new[name], row, grown.growth), old[name]), name
            checked += 1
    assert checked > 0
