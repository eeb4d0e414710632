"""What the laws are tested on: random decoders, growths and texts, small but for one.

Sizes are small, so that a failure is small; but one dimension or constant at a time is
drawn as real checkpoints have it, since a fault may show only from some size on. The
features that a run keeps out are never drawn (`domain`).
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import pytest
from growproof.decoder import Decoder
from growproof.growth import layers_of
from growproof.models import MASKED, plan_model
from hypothesis import settings
from hypothesis import strategies as st

from .domain import AXES, DOMAIN, config_names, table
from .models import REGIMES, Case
from .options import Options, options

# dimension → (least, most) of a real size, where the others stay small
REAL = {
    "head_dim": (64, 256), "hidden": (129, 320), "mlp": (129, 400), "vocab": (257, 400),
    "groups": (4, 8), "repeats": (4, 8), "layers": (4, 11), "tokens": (33, 80),
}  # fmt: skip
CONSTANTS = ("theta", "eps")
BLOCK = 8  # growers that take whole blocks find some


def profile() -> settings:
    """The settings of the Hypothesis profile in force."""
    found = settings.default
    assert found is not None
    return found


def fewer(divisor: int, *, least: int = 3) -> settings:
    """The profile's settings with fewer examples: for laws of many models or cases."""
    return settings(max_examples=max(least, profile().max_examples // divisor))


def one_real() -> st.SearchStrategy[str | None]:
    """The dimension or constant that is as large as in real checkpoints, or none."""
    names = st.sampled_from((*REAL, *CONSTANTS))
    return st.integers(0, 3).flatmap(lambda n: names if n == 3 else st.none())


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    family: str | None = None,
    axis: str | None = None,
    min_tokens: int = 1,
    max_tokens: int = 20,
    power_of_four: bool = False,
    padded: bool = False,
    maskable: bool = False,
    features: tuple[str, ...] = (),
    vocab: Literal["", "too", "alone"] = "",
) -> Case:
    """A Case from the domain of this run.

    family, axis: fix the family, or force one axis to grow (where the run does not
    claim it, another one). power_of_four: every scale of the growth is a power of two,
    so that nothing is rounded (1 + w is, where that is the norm's weight). padded: only
    growths that zeros can pad. maskable: RMSNorm, or a family that has masked norms.
    features: options that the model must have. vocab: the vocabulary grows too, or
    alone; else it stays, for what its new rows must be is a matter of laws of its own.
    """
    if family is None:
        fit = [
            f
            for f in DOMAIN.families
            if not (maskable and table(f).says.get("norm") and f not in MASKED)
            and not (power_of_four and table(f).says.get("norm_offset"))
        ]
        if not fit:
            pytest.skip("of the families of this run none grows without any rounding")
        family = draw(st.sampled_from(fit))
    free = DOMAIN.growable(family)
    if axis not in free:  # what is not claimed never grows: something else does
        axis = draw(
            st.sampled_from(free) if axis else st.none() | st.sampled_from(free)
        )
    real = draw(one_real())
    repeated = axis == "groups" and "heads" not in free
    sizes = draw(old_sizes(family, features + ("gqa",) * repeated, real))
    grow = power_of_four_target if power_of_four else target
    new = grow(draw, family, sizes, axis)
    if vocab:
        more = {"vocab": draw(larger(sizes["vocab"], forced=True, block=BLOCK))}
        new = {**({} if vocab == "alone" else new), **more}
    o = Options(draw, sizes, features, real)
    config = sized_config(family, sizes) | options(family, o)
    config[table(family).eps] = o.eps()
    if padded and table(family).says.get("norm") == "layer":
        config["tie_word_embeddings"] = False  # a tied LayerNorm model is averaged
    longest = max_tokens if real != "tokens" or max_tokens < 20 else REAL["tokens"][1]
    return Case(
        family=family,
        config=config,
        target={config_names(family)[f]: n for f, n in new.items() if n != sizes[f]},
        seed=draw(st.integers(0, 2**20)),
        regime=draw(st.sampled_from(REGIMES)),
        batch=draw(st.integers(1, 2)),
        tokens=draw(st.integers(min_tokens, longest)),
    )


def behind_every(old: Decoder, new: Decoder) -> str | None:
    """The depth policy that puts a layer behind every n-th to make L layers L', if any."""
    ways = (f"every:{n}" for n in range(1, old.layers + 1))
    return next((way for way in ways if layers_of(old.layers, way) == new.layers), None)


def blocks(old: Decoder, new: Decoder) -> int:
    """The most blocks, of four, into which the neurons part before and after growing."""
    sizes = (old.mlp, new.mlp, old.expert_mlp, new.expert_mlp)
    return next(n for n in (4, 3, 2, 1) if not any(size % n for size in sizes))


@st.composite
def placements(draw: st.DrawFn, case: Case) -> dict[str, Any]:
    """Policies that say where new layers, neurons and rotary lanes of a case lie."""
    growth = plan_model(case.hf_config, case.target)
    depths = ("append", "prepend", "interleave", behind_every(growth.old, growth.new))
    return {
        "depth": draw(st.sampled_from([way for way in depths if way])),
        "spread": draw(st.sampled_from((1, blocks(growth.old, growth.new)))),
        "rotary": draw(st.sampled_from((None, "parted"))),
    }


padded_cases = functools.partial(cases, padded=True)


def sized_config(family: str, sizes: dict[str, int]) -> dict[str, Any]:
    """The config fields of the sizes, and no special tokens."""
    fields = table(family).sizes
    config: dict[str, Any] = {
        name: sizes[f] for f, name in fields.items() if f in sizes
    }
    if "positions" not in fields:
        config["max_position_embeddings"] = 128
    nothing = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return config | nothing


@st.composite
def old_sizes(
    draw: st.DrawFn, family: str, features: tuple[str, ...], real: str | None
) -> dict[str, int]:
    """The sizes of a decoder, small but for `real`."""
    fields = table(family)

    def within(name: str, least: int, most: int) -> int:
        bounds = REAL[name] if name == real else (least, most)
        return draw(st.integers(*bounds))

    # where hidden_size is heads · head_dim, a real head_dim is real enough
    few = real == "head_dim" and fields.tied_head_dim
    groups = within("groups", 1, 1 if few else 3)
    shared = (DOMAIN.has("gqa") or "gqa" in features) and "groups" in fields.sizes
    least = 2 if "gqa" in features else 1
    most = 6 if DOMAIN.has("dealt") else 4  # shares of three heads are uneven
    heads = groups * (
        within("repeats", least, max(least, (2 if few else most) // groups))
        if shared
        else 1
    )
    # even lanes for rotary pairs; a partial rotary, or none, passes odd ones by
    turned = "positions" not in fields.sizes and not fields.partial
    small = (2, 4, 6, 8) if turned else (2, 3, 4, 5, 8)
    head_dim = draw(st.sampled_from(small))
    if real == "head_dim":
        head_dim = within(real, 0, 0) // 2 * 2
    # a LayerNorm of one lane is zero, whatever it reads
    hidden = within("hidden", 2 if fields.says.get("norm") == "layer" else 1, 24)
    if fields.tied_head_dim:
        hidden = heads * head_dim
    elif fields.whole_heads:
        hidden = heads * -(-hidden // heads)
    mlp = within("mlp", 1, 12)
    return {
        "vocab": within("vocab", 5, 17),
        "groups": groups,
        "heads": heads,
        "head_dim": head_dim,
        "hidden": hidden,
        "mlp": mlp,
        "expert_mlp": mlp,
        "layers": within("layers", 1, 1 if few else 3),
        "positions": 128,
    }


def larger(
    size: int, *, step: int = 1, most: int = 4, forced: bool = False, block: int = 0
) -> st.SearchStrategy[int]:
    """A size not below `size`: the same, a little more, double, thrice, or whole blocks."""
    sizes = st.integers(int(forced), most).map(lambda n: size + n * step)
    if not forced:
        sizes = st.just(size) | sizes
    if block:
        sizes |= st.just(-(-(size + forced) // block) * block)
    return sizes | st.sampled_from((2 * size, 3 * size))


def target(
    draw: st.DrawFn, family: str, sizes: dict[str, int], axis: str | None
) -> dict[str, int]:
    """The sizes after growing, of the axes that have config names."""
    free, fields = DOMAIN.growable(family), table(family)
    new = {f: sizes[f] for f in AXES}
    new["heads"], new["groups"] = head_counts(draw, sizes, free, axis)
    step = 1 if fields.partial or fields.tied_head_dim else 2
    for name, by in (("head_dim", step), ("mlp", 1)):
        if name in free:
            forced = axis == name
            new[name] = draw(larger(sizes[name], step=by, forced=forced, block=BLOCK))
    if "mlp" in free and "expert_mlp" in config_names(family):
        forced = axis == "mlp"
        new["expert_mlp"] = draw(larger(sizes["expert_mlp"], forced=forced))
    if "layers" in free:
        new["layers"] += draw(st.integers(int(axis == "layers"), 2))
    fit_hidden(draw, family, sizes, new, forced=axis == "hidden")
    return named(family, new)


def head_counts(
    draw: st.DrawFn, sizes: dict[str, int], free: list[str], axis: str | None
) -> tuple[int, int]:
    """(H', G'): groups and repeats grow; groups alone are repeated under their heads.

    Where heads may be dealt out, one growth in three repeats groups, and one in three
    deals their query heads out over the copies.
    """
    heads, groups = sizes["heads"], sizes["groups"]
    ways = st.sampled_from(("more", "repeated", "dealt"))
    way = draw(ways) if DOMAIN.has("dealt") and axis != "heads" else "more"
    if way == "dealt" and {"heads", "groups"} <= {*free} and heads > groups:
        return dealt_counts(draw, sizes)
    if "groups" in free and ("heads" not in free or way == "repeated"):
        fits = [g for g in range(groups, heads + 1, groups) if heads % g == 0]
        forced = axis == "groups" and len(fits) > 1
        if len(fits) > 1 or "heads" not in free:
            return heads, draw(st.sampled_from(fits[int(forced) :]))
    if "heads" not in free:
        return heads, groups
    shared = DOMAIN.has("gqa") and "groups" in free
    if "groups" in free:
        forced = axis == "groups" or (axis == "heads" and not shared)
        groups = draw(larger(groups, most=1, forced=forced))
    repeats = heads // sizes["groups"]
    if DOMAIN.has("gqa"):
        forced = axis == "heads" and groups == sizes["groups"]
        repeats = draw(larger(repeats, most=1, forced=forced))
    return groups * repeats, groups


def dealt_counts(draw: st.DrawFn, sizes: dict[str, int]) -> tuple[int, int]:
    """(H', G') for m copies of each group, over which its R > 1 query heads are dealt.

    A copy has room for a share of ⌈R / m⌉, or for more, but not for all R; there may be
    new groups as well.
    """
    repeats = sizes["heads"] // sizes["groups"]
    m = draw(st.integers(2, min(repeats, 4)))
    share = draw(st.integers(-(-repeats // m), repeats - 1))
    groups = m * draw(larger(sizes["groups"], most=1))
    return groups * share, groups


def fit_hidden(
    draw: st.DrawFn,
    family: str,
    sizes: dict[str, int],
    new: dict[str, int],
    *,
    forced: bool,
) -> None:
    """A hidden size that the family's own rule allows, before and after, in place."""
    fields = table(family)
    if fields.tied_head_dim:
        fit_bound(family, new, sizes, forced=forced)
    elif not DOMAIN.has("hidden"):
        if fields.whole_heads:
            both = math.lcm(sizes["heads"], new["heads"])
            sizes["hidden"] = new["hidden"] = both * (
                sizes["hidden"] // sizes["heads"] if both <= 24 else 1
            )
    else:
        unit = new["heads"] if fields.whole_heads else 1
        least = -(-(sizes["hidden"] + forced) // unit)
        more = st.integers(least, least + 4)
        if 2 * sizes["hidden"] % unit == 0:
            more |= st.just(2 * sizes["hidden"] // unit)
        grows = forced or draw(st.booleans())
        new["hidden"] = unit * (draw(more) if grows else least)


def fit_bound(
    family: str, new: dict[str, int], sizes: dict[str, int], *, forced: bool
) -> None:
    """hidden = heads · head_dim, one of which grows along if it must, in place."""
    if forced and new["heads"] * new["head_dim"] == sizes["hidden"]:
        if DOMAIN.has("head_dim"):
            new["head_dim"] += 1
        elif "groups" in table(family).sizes and DOMAIN.has("gqa"):
            new["heads"] += new["groups"]
        else:
            new["heads"] = new["groups"] = new["heads"] + 1
    new["hidden"] = new["heads"] * new["head_dim"]


def power_of_four_target(
    draw: st.DrawFn, family: str, sizes: dict[str, int], axis: str | None
) -> dict[str, int]:
    """A growth whose scales √(D/D') and √(K'/K) are powers of two."""
    free, fields = DOMAIN.growable(family), table(family)
    new = {f: sizes[f] for f in AXES}
    which = axis or draw(st.sampled_from(free))
    alone = "groups" not in fields.sizes or not DOMAIN.has("gqa")
    bound = fields.tied_head_dim and which == "hidden"
    if which == "head_dim" or (bound and DOMAIN.has("head_dim")):
        new["head_dim"] *= 4
    elif (bound or which in ("heads", "groups")) and "heads" in free:
        new["heads"] *= 4
        new["groups"] *= 4 if which == "groups" or alone else 1
    if fields.tied_head_dim:
        new["hidden"] = new["heads"] * new["head_dim"]
    elif not DOMAIN.has("hidden"):
        if fields.whole_heads:
            sizes["hidden"] = new["hidden"] = math.lcm(sizes["heads"], new["heads"])
    elif which == "hidden" or (fields.whole_heads and new["heads"] > sizes["heads"]):
        new["hidden"] *= 4
    for name in ("mlp", "expert_mlp"):
        if name in config_names(family):
            more = draw(st.integers(0, 4)) if "mlp" in free else 0
            new[name] = sizes[name] + more
    new["layers"] += draw(st.integers(0, 1)) if "layers" in free else 0
    return named(family, new)


def named(family: str, new: dict[str, int]) -> dict[str, int]:
    """The sizes that a target of this family names."""
    fields = table(family)
    left = {"head_dim"} if fields.tied_head_dim else set[str]()
    left |= {"groups"} if "groups" not in fields.sizes else set[str]()
    return {f: n for f, n in new.items() if f not in left}


def smallest() -> list[Case]:
    """One least case of each family in the domain: does a grower run at all?"""
    return [least_case(family) for family in DOMAIN.families]


def least_case(family: str) -> Case:
    """A case of one layer, two neurons and two tokens, in which one axis grows."""
    fields, axis = table(family), DOMAIN.growable(family)[0]
    sizes = dict.fromkeys(("heads", "groups", "layers"), 1) | {
        "mlp": 2,
        "expert_mlp": 2,
    }
    sizes |= {"hidden": 4, "head_dim": 4, "vocab": 5, "positions": 128}
    new: dict[str, int]
    if axis == "hidden" and fields.tied_head_dim and not DOMAIN.has("head_dim"):
        new = {"hidden": 8, "heads": 2}
    elif axis == "groups":
        sizes |= {"heads": 2, "head_dim": 2 if fields.tied_head_dim else 4}
        new = {"groups": 2}
    else:
        new = {axis: 2 * sizes[axis]}
    if "heads" in new and (not DOMAIN.has("gqa") or "groups" not in fields.sizes):
        new["groups"] = new["heads"]
    config = (
        sized_config(family, sizes) | {"hidden_act": "silu"} | LEAST.get(family, {})
    )
    if fields.partial:
        rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
        config["rope_parameters"] = rope
    target = {config_names(family)[f]: n for f, n in named(family, new).items()}
    return Case(family, config, target, 0, "loud", 1, 2)


# the defaults of these are too large
LEAST: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_moe": {"num_experts": 2, "num_experts_per_tok": 1},
}
