"""Growing as an operation: identity, composition, inverse, linearity, equivariance."""

import dataclasses
from typing import Any

import pytest
import torch
from growproof.growth import Growth, Policies
from growproof.models import MASKED, decoder_of, grow, plan_model, shrink, state_of
from growproof.padding import grow_state, shrink_state
from growproof.rounding import Perturbed
from growproof.table import count, parameters, rows, template_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from .. import claims
from ..domain import table
from ..models import Case, weights
from ..registry import law, reference
from ..strategies import cases, fewer, placements

maskable_cases = st.sampled_from(sorted(MASKED)).flatmap(lambda f: cases(family=f))
PARTED = Policies(rotary="parted")


def same_to_rounding(
    a: dict[str, Tensor], b: dict[str, Tensor], ulps: float = 8
) -> None:
    """Two states agree entry by entry, to a few ulps of the tensor's largest entry.

    Of a norm's weight, which may be added to one, to a few ulps of one.
    """
    assert a.keys() == b.keys()
    for name, x in a.items():
        largest = max(float(x.abs().max()), 1.0 if "_norm" in name else 0.0)
        bound = ulps * 2**-53 * largest
        worst = float((x - b[name]).abs().max())
        assert worst <= bound, f"{name} differs by {worst:.3g}, at most {bound:.3g}"


@law(reference, claim=claims.ALGEBRA)
@fewer(2)
@given(case=cases())
def test_growing_by_nothing_is_the_identity(case: Case) -> None:
    """grow(m, {}) = m, bitwise, with the same config."""
    model = case.model()
    grown = grow(model, {})
    for name, w in state_of(model).items():
        assert torch.equal(w, state_of(grown)[name]), name
    before, after = model.config.to_dict(), grown.config.to_dict()
    assert {k: v for k, v in before.items() if after.get(k) != v} == {}


def stages(case: Case) -> list[dict[str, int]]:
    """The target in two steps: heads, groups and hidden first, or head_dim first."""
    t, old = case.target, case.decoder
    growth = plan_model(case.hf_config, t, PARTED)
    heads = {k: t[k] for k in ("num_attention_heads", "num_key_value_heads") if k in t}
    if not table(case.family).tied_head_dim:
        wide = {"hidden_size": growth.new.hidden, **heads}
        return [wide, {"head_dim": growth.new.head_dim}]
    return [
        {"hidden_size": growth.new.heads * old.head_dim, **heads},
        {"hidden_size": old.heads * growth.new.head_dim},
    ]


@law(reference, claim=claims.ALGEBRA)
@given(case=cases(), first=st.integers(0, 1))
def test_two_steps_are_one(case: Case, first: int) -> None:
    """a → b → c = a → c, through more heads or through a larger head_dim first."""
    model = case.model()
    middle = grow(model, stages(case)[first], PARTED)
    twice, once = (grow(m, case.target, PARTED) for m in (middle, model))
    same_to_rounding(state_of(twice), state_of(once))
    a, b = decoder_of(twice.config), decoder_of(once.config)
    assert a.eps == pytest.approx(b.eps, rel=1e-15)
    assert a.rotary.theta == pytest.approx(b.rotary.theta, rel=1e-12)
    plain = {"eps": 0.0, "kinds": b.kinds}
    assert dataclasses.replace(a, **plain) == dataclasses.replace(b, **plain)


@law(reference, claim=claims.ALGEBRA)
@given(case=cases())
def test_heads_and_head_dim_commute(case: Case) -> None:
    """Heads then head_dim = head_dim then heads."""
    model = case.model()
    wide, tall = stages(case)
    a = grow(grow(model, wide, PARTED), case.target, PARTED)
    b = grow(grow(model, tall, PARTED), case.target, PARTED)
    same_to_rounding(state_of(a), state_of(b))


@law(reference, claim=claims.ALGEBRA)
@given(drawn=cases().flatmap(lambda case: st.tuples(st.just(case), placements(case))))
def test_shrink_inverts_grow(drawn: tuple[Case, dict[str, Any]]) -> None:
    """shrink(grow(m)) = m: to one rounding, up to the mean where growing centred."""
    case, where = drawn
    growth = plan_model(case.hf_config, case.target, Policies(**where))
    old = state_of(case.model())
    grown = grow_state(old, growth)
    back = shrink_state(grown, growth)
    if growth.policies.norm != "centred":
        same_to_rounding(back, old, ulps=4 if growth.old.norm_offset else 2)
    same_to_rounding(grow_state(back, growth), grown)


@law(reference, claim=claims.ALGEBRA)
@given(case=cases(power_of_four=True))
def test_shrink_inverts_grow_bitwise(case: Case) -> None:
    """shrink(grow(m)) = m, bit for bit, where every scale is a power of two."""
    model = case.model()
    grown = grow(model, case.target, norm="scaled")
    back = shrink(grown, model, case.target, norm="scaled")
    found = state_of(back)
    growth = plan_model(case.hf_config, case.target, Policies(norm="scaled"))
    table = parameters(growth.old, growth)
    for name, w in state_of(model).items():
        if table[template_of(name)].centre:
            continue  # a head's mean, which its LayerNorm removes, is gone
        far = (w == 0) | (w.abs() > 1e-300)  # what underflows loses bits
        assert torch.equal(w[far], found[name][far]), name


@law(reference, claim=claims.ALGEBRA)
@given(case=cases(), seeds=st.sets(st.integers(0, 2**32 - 1), min_size=2, max_size=2))
def test_every_seed_draws_anew(case: Case, seeds: set[int]) -> None:
    """Another seed fills new entries otherwise, and rounds the weights otherwise."""
    old, filled = weights(case, case.seed), list[dict[str, Tensor]]()
    shaken = [dict(Perturbed(old, torch.float64, seed)) for seed in seeds]
    assert any(not torch.equal(x, shaken[1][name]) for name, x in shaken[0].items())
    for seed in seeds:
        policies = Policies(fill="trainable", seed=seed)
        growth = plan_model(case.hf_config, case.target, policies)
        filled.append(grow_state(old, growth))
    plain = grow_state(old, plan_model(case.hf_config, case.target))
    drawn = {n for n, x in filled[0].items() if not torch.equal(x, plain[n])}
    drawn = {n for n in drawn if "norm" not in n}  # a norm's new lanes are one
    assert all(not torch.equal(filled[0][n], filled[1][n]) for n in drawn)


@law(reference, claim=claims.ALGEBRA)
@given(case=cases(), factor=st.floats(-4, 4), seed=st.integers(0, 2**20))
def test_growing_is_linear(case: Case, factor: float, seed: int) -> None:
    """grow(a·x + y) = a·grow(x) + grow(y), to rounding."""
    growth = plan_model(case.hf_config, case.target)
    x, y = weights(case, case.seed), weights(case, seed)
    mixed = grow_state({n: factor * x[n] + y[n] for n in x}, growth)
    gx, gy = grow_state(x, growth), grow_state(y, growth)
    for name, w in mixed.items():
        if rows(growth.old)[template_of(name)].offset:
            continue  # 1 + w is what grows, so that w grows by an affine map
        size = abs(factor) * float(gx[name].abs().max()) + float(gy[name].abs().max())
        worst = float((w - (factor * gx[name] + gy[name])).abs().max())
        assert worst <= 8 * 2**-53 * size, name


def has_means(growth: Growth) -> bool:
    """Whether a mean is removed or filled in: of the residual, or of a head of q and k."""
    table = parameters(growth.old, growth)
    return any(row.centre or row.averaged for row in table.values())


def permute_groups(
    state: dict[str, Tensor], groups: int, order: list[int]
) -> dict[str, Tensor]:
    """Key/value groups, with their query heads, in another order."""
    full = torch.tensor([*order, *range(len(order), groups)])
    found = {}
    for name, w in state.items():
        part, leaf = name.split(".")[-2:]
        dim = int((part, leaf) == ("o", "weight"))
        if part in "qkv" or dim:
            blocks = w.unflatten(dim, (groups, -1)).index_select(dim, full)
            w = blocks.flatten(dim, dim + 1)
        found[name] = w
    return found


@law(reference, claim=claims.ALGEBRA)
@pytest.mark.parametrize("norm", ["masked", None])
@given(data=st.data())
def test_growing_commutes_with_permuting_heads(norm, data) -> None:
    """grow ∘ π = (π ⊕ 1) ∘ grow, for a permutation π of the old groups.

    Bitwise, but for a mean that is removed: torch adds up a column in an order that
    depends on where the column stands.
    """
    case = data.draw(maskable_cases if norm else cases(), "case")
    growth = plan_model(case.hf_config, case.target, Policies(norm=norm))
    order = data.draw(st.permutations(range(case.decoder.groups)), "order")
    old = weights(case, case.seed)
    a = grow_state(permute_groups(old, growth.old.groups, order), growth)
    m = growth.copies  # of each old group, side by side
    copies = [m * g + copy for g in order for copy in range(m)]
    b = permute_groups(grow_state(old, growth), growth.new.groups, copies)
    same_to_rounding(a, b, ulps=8 if has_means(growth) else 0)


def permute_residual(
    state: dict[str, Tensor], growth: Growth, order: list[int], size: int
) -> dict[str, Tensor]:
    """Residual coordinates in another order; those past the old ones stay."""
    full = torch.tensor([*order, *range(len(order), size)])
    found = {}
    for name, w in state.items():
        for dim, axis in enumerate(rows(growth.old)[template_of(name)].axes):
            if axis == "residual":
                w = w.index_select(dim, full)
        found[name] = w
    return found


@law(reference, claim=claims.ALGEBRA)
@pytest.mark.parametrize("norm", ["masked", None])
@given(data=st.data())
def test_growing_commutes_with_permuting_the_residual(norm, data) -> None:
    """grow ∘ π = (π ⊕ 1) ∘ grow, for a permutation π of the residual: bitwise, but for
    a mean that is removed, whose terms are added up in another order.
    """
    case = data.draw(maskable_cases if norm else cases(), "case")
    growth = plan_model(case.hf_config, case.target, Policies(norm=norm))
    order = data.draw(st.permutations(range(case.decoder.hidden)), "order")
    old = weights(case, case.seed)
    a = grow_state(permute_residual(old, growth, order, growth.old.hidden), growth)
    b = permute_residual(grow_state(old, growth), growth, order, growth.new.hidden)
    same_to_rounding(a, b, ulps=8 if has_means(growth) else 0)


@law(reference, claim=claims.ALGEBRA)
@given(case=cases())
def test_parameter_count_is_the_tables(case: Case) -> None:
    """Σ numel = count(shape), before and after, and as transformers counts."""
    model = case.model()
    grown = grow(model, case.target)
    assert model.num_parameters() == count(case.decoder)
    assert grown.num_parameters() == count(decoder_of(grown.config))
