"""The sizes and constants of real checkpoints, a few at a time, all others small."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from growproof.asked import defaults
from growproof.decoder import SURVIVING_ROPE_TYPES, GrowthError
from growproof.models import config_class, plan_model

from . import claims
from .domain import AXES, DOMAIN, USUAL, config_names, table
from .given import DECLINED, FIRST, and_opposite
from .grown import Grown, grow
from .models import Case, Regime
from .published import PUBLISHED, Published
from .registry import hygiene, law, lossless
from .strategies import named, sized_config
from .test_decoder import logits_are_equal, stock_logits_are_equal
from .test_handed_back import as_asked, as_it_was_given, as_of_its_config
from .test_hygiene import commutes_with_rounding
from .test_world import bits
from .world import changed

KNOWN = {*SURVIVING_ROPE_TYPES}  # to the clone; the others are stock code's business
FEW = 4  # families, all of which are judged at real sizes
SMALL = {
    "hidden": 4, "heads": 1, "groups": 1, "head_dim": 4, "mlp": 4, "expert_mlp": 4,
    "layers": 1, "vocab": 5, "positions": 128,
}  # fmt: skip


class Real(NamedTuple):
    """Sizes before and after, where they are not SMALL, and what the config says."""

    old: dict[str, int]
    new: dict[str, int]
    config: dict[str, Any] = {}  # noqa: RUF012
    first: int = 0  # the position of the first token
    regime: Regime = "loud"
    eps: float | None = None


SHAPES = {
    "head_dim_64": Real({"head_dim": 64}, {"head_dim": 128}),
    "head_dim_80": Real({"head_dim": 80}, {"head_dim": 96}),
    "head_dim_128": Real({"head_dim": 128}, {"hidden": 132, "heads": 2, "mlp": 6}),
    "hidden_128": Real({"hidden": 128, "heads": 2, "head_dim": 64},
                       {"hidden": 256, "heads": 4}),
    "hidden_576": Real({"hidden": 576, "heads": 9, "groups": 3, "head_dim": 64},
                       {"hidden": 1152, "heads": 18, "groups": 6}),
    "hidden_4096": Real({"hidden": 4096}, {"hidden": 5120}),
    "heads_64": Real({"hidden": 64, "heads": 64, "groups": 8},
                     {"hidden": 96, "heads": 96, "groups": 8}),
    "heads_128": Real({"hidden": 128, "heads": 128, "groups": 8},
                      {"hidden": 256, "heads": 256, "groups": 16}),
    "groups_32": Real({"hidden": 32, "heads": 32, "groups": 32},
                      {"hidden": 40, "heads": 40, "groups": 40}),
    "mlp_1024": Real({"mlp": 1024}, {"mlp": 4096}),
    "mlp_thrice": Real({"mlp": 16}, {"mlp": 56}),
    "layers_12": Real({"layers": 12}, {"layers": 16}),
    "layers_24": Real({"layers": 24}, {"layers": 32, "hidden": 8, "head_dim": 8}),
    "layers_80": Real({"layers": 80}, {"layers": 81}),
    "deep_and_wide": Real({"hidden": 640, "layers": 10, "heads": 2},
                          {"hidden": 768, "layers": 11, "heads": 2}),
    "tied": Real({"vocab": 1200, "hidden": 576, "heads": 9, "groups": 3, "head_dim": 64},
                 {"hidden": 768, "heads": 12, "groups": 4}, {"tie_word_embeddings": True}),
    "groups_8_of_4": Real({"hidden": 32, "heads": 32, "groups": 8},
                          {"mlp": 8, "heads": 48, "groups": 12, "hidden": 48}),
    "heads_12": Real({"hidden": 12, "heads": 12, "groups": 12},
                     {"hidden": 16, "heads": 16, "groups": 16}),
    "vocab_33000": Real({"vocab": 33_000}, {"hidden": 8, "head_dim": 8, "mlp": 6}),
    "mlp_16390": Real({"hidden": 256, "mlp": 16390}, {"hidden": 260, "head_dim": 6}),
    "five_million_entries": Real({"vocab": 650_000, "hidden": 8, "head_dim": 8},
                                 {"mlp": 6, "hidden": 12, "head_dim": 12}),
    "all_at_once": Real(
        {"hidden": 256, "heads": 4, "groups": 2, "head_dim": 64, "mlp": 512, "layers": 2},
        {"hidden": 384, "heads": 6, "groups": 3, "mlp": 768, "layers": 3}),
    "positions_8192": Real({}, {"hidden": 8, "head_dim": 8, "mlp": 6},
                           {"max_position_embeddings": 8192}, 8180),
    "outliers": Real({"hidden": 8, "head_dim": 8, "mlp": 8, "layers": 2},
                     {"hidden": 12, "head_dim": 12, "mlp": 12, "layers": 3},
                     regime="spiky"),
    "theta_500000": Real({"head_dim": 8, "hidden": 8}, {"head_dim": 16, "hidden": 16},
                         {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
                         eps=1e-8),
}  # fmt: skip


def judged_families() -> list[str]:
    """Those that laws of real sizes are asked of: the usual ones, or the few of this run."""
    few = len(DOMAIN.families) <= FEW
    return [f for f in DOMAIN.families if few or f in USUAL] or DOMAIN.families[:1]


def real_case(family: str, shape: Real) -> Case | None:
    """The case in this family, of the axes that are claimed; None where that is none."""
    fields, free = table(family), DOMAIN.growable(family)
    old = SMALL | shape.old
    new = old | {axis: n for axis, n in shape.new.items() if axis in free}
    for sizes in (old, new):
        if "groups" not in fields.sizes or not DOMAIN.has("gqa"):
            sizes["groups"] = sizes["heads"]
        if fields.tied_head_dim:
            sizes["hidden"] = sizes["heads"] * sizes["head_dim"]
    grown = {axis for axis in AXES if new[axis] != old[axis]}
    grown -= {"groups"} - {*fields.sizes}
    config = sized_config(family, old) | shape.config
    if shape.eps:
        config[fields.eps] = shape.eps
    if fields.partial:
        rope = {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0,
        } | config.get("rope_parameters", {})  # fmt: skip
        config["rope_parameters"] = rope
    names = config_names(family)
    target = {names[f]: n for f, n in named(family, new).items()
              if f in names and f != "vocab"}  # fmt: skip
    case = Case(family, config, dict(reversed(target.items())), 0, shape.regime, 1, 3)
    try:
        plan_model(case.hf_config, case.target)
    except GrowthError:  # heads that do not share, or a hidden_size of no whole heads
        return None
    return case if grown and grown <= {*free} else None


def grown_of(cases: Iterable[Case], grower: Any) -> Iterator[Grown]:
    """The growths that are not declined; where all are, that is what is said."""
    refusal, found = None, False
    for case in cases:
        try:
            grown = grow(case, grower)
        except DECLINED as error:
            refusal = error
            continue
        found = True
        yield grown
    if refusal and not found:
        raise refusal


def real_cases(shape: str) -> list[Case]:
    """The cases of this shape, one a family."""
    found = (real_case(f, SHAPES[shape]) for f in judged_families())
    return [case for case in found if case]


@law(lossless, claim=claims.LOGITS, budget="decoder", shape=tuple(SHAPES), version=3)
def test_real_sizes_are_lossless(grower, shape: str) -> None:
    """f' = f where sizes are as checkpoints have them, all of them named in the target."""
    for grown in grown_of(real_cases(shape), grower):
        case = grown.case
        logits_are_equal(grown)
        got, had = (
            m.config.max_position_embeddings for m in (grown.model, grown.source)
        )
        assert got == had, f"config.max_position_embeddings was {had}, and is {got}"
        if first := SHAPES[shape].first:
            at = torch.arange(first, first + case.tokens)[None]
            stock_logits_are_equal(grown, "eager", position_ids=at)


LOW = ("float32", "bfloat16", "float16")
IN_EACH = (
    "all_at_once",
    "deep_and_wide",
    "head_dim_64",
    "mlp_1024",
    "outliers",
    "theta_500000",
)
SLOW = ("five_million_entries", "layers_80")  # others have as many in one map, or 24
ROUNDED = {
    d: {*IN_EACH, *tuple(SHAPES)[i :: len(LOW)]} - {*SLOW} for i, d in enumerate(LOW)
}


@law(hygiene, claim=claims.PRECISION, version=2, dtype=LOW)
def test_real_sizes_commute_with_rounding(grower, dtype: str) -> None:
    """grow(w) = round(grow(double w)) where sizes are as checkpoints have them."""
    for shape in SHAPES:
        for case in real_cases(shape) if shape in ROUNDED[dtype] else ():
            commutes_with_rounding(grower, case, dtype)


@law(hygiene, claim=claims.HYGIENE, shape=("layers_12", "hidden_576"))
def test_real_sizes_are_grown_in_any_state(grower, shape: str) -> None:
    """dtype, mode and requires_grad are the source's, and the weights those of any state."""
    for case in real_cases(shape):
        grown = [
            as_it_was_given(grower, case, {**state, "dtype": "bfloat16"})
            for state in and_opposite(training=True, frozen=FIRST)
        ]
        training, frozen = (bits(g.model) for g in grown)
        told = [*changed(training, frozen)]
        assert not told, f"in training, and frozen in part, {told[0]}"


def published_cases(family: str, model: Published) -> Iterator[Case]:
    """All widths and depth at once, and the lanes of its heads, as far as they can grow."""
    layers = len(model.config.get("layer_types", "1"))
    old = SMALL | {"hidden": 24, "layers": layers, "vocab": 40} | model.sizes
    many = {axis: 2 * old[axis] for axis in ("heads", "hidden", "mlp")}
    grouped = old["groups"] * (2 if old["groups"] == old["heads"] else 1)
    many |= {"groups": grouped, "layers": layers + 1, "expert_mlp": 8}
    if table(family).whole_heads:
        old["hidden"] = old["heads"] * -(-24 // old["heads"])
        many["hidden"] = 2 * old["hidden"]
    for new in (many, {"head_dim": 2 * old["head_dim"]}):
        case = real_case(family, Real(old, new, model.config))
        if case:
            yield case


def implied_cases(family: str) -> Iterator[Case]:
    """A head_dim of hidden / heads, an MLP of four times hidden, as published configs have
    them: the config does not say so, and does not follow where one of them grows alone."""
    usual, names = defaults(config_class(family)), config_names(family)
    own = names | table(family).sizes  # of a field: its name in the config
    unsaid = [own[f] for f in ("head_dim", "mlp") if f in own and not usual.get(own[f])]
    old = {"heads": 4, "groups": 2, "head_dim": 6, "hidden": 24, "mlp": 96}
    wide, more = {"hidden": 48}, {"heads": 8, "groups": 4}
    for new in (wide | {"mlp": 104}, more, wide | more, {"layers": 2}):
        if unsaid and (case := real_case(family, Real(old, new))):
            kept = {
                names[f]
                for f in names
                if case.config.get(own[f]) == case.target.get(names[f])
            }
            yield replace(
                case,
                config={n: v for n, v in case.config.items() if n not in unsaid},
                target={n: v for n, v in case.target.items() if n not in kept},
            )


@law(
    lossless, claim=claims.LOGITS, budget="decoder", family=tuple(PUBLISHED), version=2
)
def test_constants_of_published_models_are_heeded(grower, family: str) -> None:
    """f' = f with all that published configs say of a family, but for most sizes."""
    published = (c for m in PUBLISHED[family] for c in published_cases(family, m))
    implied = {*implied_cases(family)}
    for grown in grown_of((*published, *implied), grower):
        case = grown.case
        kinds = {k.rotary.kind for k in case.decoder.kinds if k.rotary}
        if kinds <= KNOWN:
            logits_are_equal(grown)
        else:
            stock_logits_are_equal(grown, "eager")
        if case not in implied:
            last = case.hf_config.max_position_embeddings - case.tokens
            at = torch.arange(last, last + case.tokens)[None]
            stock_logits_are_equal(grown, "eager", position_ids=at)


@law(hygiene, claim=claims.HYGIENE, version=2)
def test_published_configs_are_kept(grower) -> None:
    """Each entry that does not grow is the published one, and each module heeds it."""
    models = ((f, m) for f in PUBLISHED if DOMAIN.has(f) for m in PUBLISHED[f])
    first = (next(published_cases(f, m), None) for f, m in models)
    for grown in grown_of((case for case in first if case), grower):
        as_asked(grown)
        as_of_its_config(grown.model)
