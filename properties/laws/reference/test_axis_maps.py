"""Axis maps: padding the factors of an axis is scattering along a map. Exhaustive."""

import dataclasses
import itertools

import pytest
import torch
from growproof.decoder import Decoder, Kind, Rotary
from growproof.growth import Growth, Policies, layers_map, layers_of
from growproof.scatter import place, take
from growproof.table import Row, factors, head_dim_map, heads_map

from .. import claims
from ..registry import law, reference

QUERY = Row(("query",), "query")


def decoder(groups: int, repeats: int, head_dim: int, *, split: bool) -> Decoder:
    """A Decoder of these heads; all else is as small as can be."""
    heads = groups * repeats
    rotary = Rotary(theta=1e4, dims=head_dim if split else 0)
    return Decoder(
        vocab=1, hidden=heads * head_dim, heads=heads, groups=groups, head_dim=head_dim,
        mlp=1, layers=1, eps=1e-5, norm_size=heads * head_dim,
        kinds=(Kind(rotary=rotary),), split=split,
    )  # fmt: skip


def growths(largest: int, lanes: int, *, split: bool):
    """Every growth with up to `largest` groups and repeats, and `lanes` lanes."""
    step = 2 if split else 1
    sizes = list(itertools.product(range(1, largest + 1), range(1, largest + 1)))
    widths = range(step, lanes + 1, step)
    for (g, r), (g2, r2) in itertools.product(sizes, sizes):
        for k, k2 in itertools.product(widths, widths):
            if g2 >= g and r2 >= r and k2 >= k:
                old, new = (decoder(*s, split=split) for s in ((g, r, k), (g2, r2, k2)))
                parted = Policies(norm="scaled", rotary="parted")
                yield Growth(old=old, new=new, policies=parted)


@law(
    reference,
    claim=claims.AXES,
    proof=("query_map", "key_value_map", "reshape_pad_flatten"),
    tier="exhaustive",
)
@pytest.mark.parametrize("split", [False, True])
def test_padding_factors_is_scattering_exhaustive(split: bool) -> None:
    """reshape → pad → reshape back = scatter along heads_map. Proof: AxisMaps.v."""
    checked = 0
    for growth in growths(3, 8, split=split):
        old, new = growth.old, growth.new
        x = torch.arange(1, old.heads * old.head_dim + 1)
        along = heads_map(
            old.groups, old.repeats, old.head_dim,
            repeats_new=new.repeats, head_dim_new=new.head_dim, split=split,
        )  # fmt: skip
        assert all(a < b for a, b in itertools.pairwise(along))
        assert along[-1] < new.heads * new.head_dim
        expected = torch.zeros(new.heads * new.head_dim, dtype=x.dtype)
        expected[torch.tensor(along)] = x
        y = place(x, QUERY, growth)
        assert torch.equal(y, expected), growth
        assert torch.equal(take(y, QUERY, growth), x)
        checked += 1
    assert checked > 300


@law(reference, claim=claims.ROTARY, proof="rotary_halves_map", tier="exhaustive")
def test_rotary_halves_stay_paired_exhaustive() -> None:
    """Lane k and its partner k + K/2 land on k and k + K'/2, for all K ≤ K' ≤ 128."""
    checked = 0
    for k, k_new in itertools.combinations_with_replacement(range(2, 129, 2), 2):
        lanes = head_dim_map(k, k_new, split=True)
        for i in range(k // 2):
            assert lanes[i + k // 2] - lanes[i] == k_new // 2
        checked += 1
    assert checked == 64 * 65 // 2


@law(reference, claim=claims.ROTARY, tier="exhaustive")
def test_rotary_factor_is_never_truncated_exhaustive() -> None:
    """int(K' · f) = dims for every K ≤ 256, every rotary size, every K' ≤ 512."""
    checked = naive = 0
    for k_new in range(2, 513):
        for dims in range(2, min(k_new, 256) + 1, 2):
            f = rotary_decoder(k_new, dims).partial_rotary_factor
            assert int(k_new * f) == dims, (k_new, dims)
            naive += int(k_new * (dims / k_new)) != dims
            checked += 1
    assert checked == sum(min(k, 256) // 2 for k in range(2, 513))
    assert naive > 0, "the trap is gone: is partial_rotary_factor still needed?"


def rotary_decoder(head_dim: int, dims: int) -> Decoder:
    """One head, with this many rotary lanes."""
    kind = Kind(rotary=Rotary(theta=1e4, dims=dims))
    return dataclasses.replace(decoder(1, 1, head_dim, split=False), kinds=(kind,))


@law(reference, claim=claims.AXES, tier="exhaustive")
def test_old_layers_keep_their_order_exhaustive() -> None:
    """Layer maps are strictly increasing and in range, wherever new layers go."""
    pairs = list(itertools.combinations_with_replacement(range(1, 33), 2))
    ways = [(depth, *sizes) for depth in ("append", "interleave") for sizes in pairs]
    every = [
        (f"every:{n}", old) for n, old in itertools.product(range(1, 9), range(1, 33))
    ]
    for depth, old, new in [*ways, *((d, old, layers_of(old, d)) for d, old in every)]:
        along = layers_map(old, new, depth)
        assert along == sorted(set(along))
        assert len(along) == old
        assert along[0] >= 0
        assert along[-1] < new


@law(reference, claim=claims.AXES)
def test_factors_multiply_to_axes() -> None:
    """H·K = G · R · K: the query axis of a GQA model is three nested sizes."""
    assert factors(decoder(2, 3, 8, split=True))["query"] == (2, 3, 2, 4)
    assert factors(decoder(2, 3, 5, split=False))["query"] == (2, 3, 5)
