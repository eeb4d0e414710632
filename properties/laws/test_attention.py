"""The article's attention: padded hidden states in, padded hidden states out."""

import pytest
import torch
from growproof.padding import take
from hypothesis import given

from .checks import attention_block, block_is_padded, grow, inputs, pad, zeros
from .strategies import Case, cases

pytestmark = [pytest.mark.zero_padding]


@given(case=cases() | cases(axis="head_dim"))
def test_projections_are_padded(grower, case: Case) -> None:
    """W'(pad x) + b' = pad(Wx + b) for q, k and v. Proof: Linear.v."""
    grown = grow(case, grower)
    names = ("query", "key", "value")
    block_is_padded(grown, "projections_are_padded", attention_block, names)


@given(case=cases(axis="head_dim"))
def test_rotary_keeps_pairs_and_frequencies(grower, case: Case) -> None:
    """rotate'(pad q) = pad(rotate q): same pairs, same angles. Proof: Attention.v."""
    grown = grow(case, grower)
    names = ("query_rotated", "key_rotated")
    block_is_padded(grown, "rotary_keeps_pairs_and_frequencies", attention_block, names)


@given(case=cases(axis="head_dim"))
def test_scores_keep_their_scale(grower, case: Case) -> None:
    """q'·k' / √K' = q·k / √K in every old head: √(K'/K) is somewhere in q and k."""
    grown = grow(case, grower)
    names = ("scores", "probabilities")
    block_is_padded(grown, "scores_keep_their_scale", attention_block, names)


@given(case=cases())
def test_attention_maps_padded_to_padded(grower, case: Case) -> None:
    """attn'(pad x) = pad(attn x), whatever head or group is new. Proof: Attention.v."""
    grown = grow(case, grower)
    names = ("context", "attention")
    block_is_padded(grown, "attention_maps_padded_to_padded", attention_block, names)


@pytest.mark.reference
@given(case=cases(power_of_four=True))
def test_attention_is_bitwise(reference, case: Case) -> None:
    """attn'(pad x) = pad(attn x), bit for bit, where √(K'/K) is a power of two."""
    grown = reference(case, norm="scaled")
    x, checked = inputs(case), 0
    for i in range(case.shape.layers):
        old = attention_block(grown.layer(i, old=True), x)
        new = attention_block(grown.layer(i, old=False), pad(x, grown.growth))
        for name in ("query", "key_rotated", "context", "attention"):
            row = grown.rows["layers.{layer}." + name]
            zeros(new[name], old[name], row, grown.growth, name, case)
            assert torch.equal(take(new[name], row, grown.growth), old[name]), name
            checked += 1
    assert checked > 0
