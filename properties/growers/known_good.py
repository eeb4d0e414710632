"""Known-good growers that are not growproof's default: none may be rejected.

Each names the promises it makes. Those that do not pad with zeros promise `lossless`
and `hygiene` alone, and check the suite for false alarms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import growproof
import torch
from growproof.families import family_of
from growproof.growth import Growth, Policies, layers_before
from growproof.models import config_of, model_of, plan_model, state_of, suppress
from growproof.padding import grow_state
from growproof.table import layer_of, parameters, template_of
from torch import Tensor

from ..laws.grown import behind
from . import fitting
from .known_bad import on, rows

State = dict[str, Tensor]
ALL = ("lossless", "zero_padding", "hygiene")
FUNCTION = ("lossless", "hygiene")


@dataclass(frozen=True, kw_only=True)
class Good:
    """A right grower, and what it promises.

    certificate: the verdict it can have. That (cos, sin) of an angle is a rotation is no
    identity of the residues, so that one that rests on it is undecided.
    """

    name: str
    says: str
    grow: Callable[[Any, Mapping[str, int]], Any]
    promises: tuple[str, ...] = ALL
    certificate: str = "certified"
    with_features: tuple[str, ...] = ()

    def __call__(self, model: Any, target: Mapping[str, int]) -> Any:
        """The grown model."""
        return self.grow(model, target)


def option(**options: Any) -> Callable[[Any, Mapping[str, int]], Any]:
    """growproof's own grower with other options."""
    return lambda model, target: growproof.grow(model, target, **options)


def chosen(
    *ways: Callable[[Any, Mapping[str, int]], fitting.Options],
) -> Callable[[Any, Mapping[str, int]], Any]:
    """growproof's own grower with options that a config and a target choose."""

    def grow(model: Any, target: Mapping[str, int]) -> Any:
        options: dict[str, Any] = {}
        for way in ways:
            options |= way(model.config, target)
        return growproof.grow(model, target, **options)

    return grow


def finish(model: Any, growth: Growth, state: State) -> Any:
    """The transformers model of a grown state."""
    config, layers = config_of(model.config, growth), layers_before(growth)
    return suppress(model_of(config, state, model, layers), growth)


def scaled_writers(model: Any, target: Mapping[str, int]) -> Any:
    """ε stays: writers times √(D'/D), so that the variance is what it was.

    The stream s·x, s = √(D'/D), has Σ(s·x)²/D' = Σx²/D, and the norm then returns
    s·x/√(var + ε): its weight takes 1/s as in the scaled policy. Exact for the norms.
    """
    growth = plan_model(model.config, target)
    table = parameters(growth.old, growth)
    if growth.old.tied:  # the head would be scaled along with the embedding
        return growproof.grow(model, target)
    s = math.sqrt(growth.new.hidden / growth.old.hidden)
    writers = "embed|positions|o|(expert_)?down"
    table = rows(writers, scale=lambda r, g: r.scale * s)(table, growth)
    config = config_of(model.config, growth)
    setattr(config, family_of(config).eps, growth.old.eps)
    return model_of(config, grow_state(state_of(model), growth, table), model)


def scale_on_keys(model: Any, target: Mapping[str, int]) -> Any:
    """The q scale, √(K'/K) where scores are over √K, on k instead of q."""
    return score_scaled(model, target, query=0.0)


def scale_shared(model: Any, target: Mapping[str, int]) -> Any:
    """The root of the q scale, ⁴√(K'/K), on q and on k."""
    return score_scaled(model, target, query=0.5)


def score_scaled(model: Any, target: Mapping[str, int], query: float) -> Any:
    """The q scale with this power on q and the rest of it on k, where neither is normed."""
    growth = plan_model(model.config, target)
    table = parameters(growth.old, growth)
    if not growth.old.qk_norm:
        scale = table["layers.{layer}.q.weight"].scale
        table = rows("q", scale=scale**query)(table, growth)
        table = rows("k", scale=scale ** (1 - query))(table, growth)
    return finish(model, growth, grow_state(state_of(model), growth, table))


def permuted_heads(model: Any, target: Mapping[str, int]) -> Any:
    """Key/value groups, with their query heads, in the opposite order: new ones first."""
    growth = plan_model(model.config, target)
    state = grow_state(state_of(model), growth)
    for name, w in state.items():
        if on(r"[qkv]|o\.weight", name):
            dim = 1 if on("o", name) else 0
            groups = w.unflatten(dim, (growth.new.groups, -1)).flip(dim)
            state[name] = groups.flatten(dim, dim + 1).contiguous()
    return finish(model, growth, state)


def mean_padded(model: Any, target: Mapping[str, int]) -> Any:
    """New residual lanes hold the mean of the old ones (in the manner of LEMON).

    Then E x is what it was, and Σ(x − E x)² too: LayerNorm with √(D/D') and ε·D/D' is
    exact without centring. New norm weights and biases are zero.
    """
    layer_norm = plan_model(model.config, target).old.norm == "layer"
    policies = Policies(norm="averaged" if layer_norm else None)
    return growproof.grow(model, target, policies)


def duplicated(model: Any, target: Mapping[str, int]) -> Any:
    """MLP lanes, and the residual of a Llama where D' is a multiple of D, repeated.

    In the manner of HyperCloning: writers copy, readers copy and divide. A repeated
    residual keeps Σx²/D, so that norm weights are repeated, and ε stays.
    """
    growth = plan_model(model.config, target)
    old, d, d_new = growth.old, growth.old.hidden, growth.new.hidden
    repeats = d_new // d if old.norm == "rms" and d_new % d == 0 else 1
    stored = state_of(model)
    state = grow_state({name: w.double() for name, w in stored.items()}, growth)
    mlp = torch.arange(growth.new.mlp) % old.mlp
    copies = torch.bincount(mlp)
    for name, w in state.items():
        if (layer_of(name) or 0) >= old.layers:
            continue
        if on("gate|up", name):
            state[name] = w[mlp].clone()
        elif on(r"down\.weight", name):
            state[name] = w[:, mlp] / copies[mlp]
    if repeats > 1:
        repeat_residual(state, growth, repeats)
    dtype = stored["embed.weight"].dtype  # rounded once, when all is done
    state = {name: w.to(dtype) for name, w in state.items()}
    config = config_of(model.config, growth)
    if repeats > 1:
        setattr(config, family_of(config).eps, old.eps)
    return model_of(config, state, model)


def repeat_residual(state: State, growth: Growth, repeats: int) -> None:
    """Every old residual lane `repeats` times over, readers divided by that, in place."""
    d = growth.old.hidden
    lanes = torch.arange(growth.new.hidden) % d
    table = parameters(growth.old, growth)
    for name, w in state.items():
        row = table[template_of(name)]
        if "residual" not in row.axes:
            continue
        dim = row.axes.index("residual")
        tied = growth.old.tied and name == "final_norm.weight"
        factor = 1 / repeats if row.is_reader or tied else 1.0
        factor /= row.scale if row.norm else 1.0
        state[name] = w.index_select(dim, lanes) * factor


def edited(
    edit: Callable[[State, State, Growth], object],
) -> Callable[[Any, Mapping[str, int]], Any]:
    """growproof's growth with its weights edited: (new, old, growth)."""

    def grow(model: Any, target: Mapping[str, int]) -> Any:
        growth, old = plan_model(model.config, target), state_of(model)
        state = grow_state(old, growth)
        edit(state, old, growth)
        return finish(model, growth, state)

    return grow


def mapped(
    pattern: str, change: Callable[[Tensor, int, Growth], Tensor]
) -> Callable[[Any, Mapping[str, int]], Any]:
    """growproof's growth with every matching tensor rearranged along what it maps.

    change: given the tensor, the dimension of its heads or neurons, and the growth.
    """

    def edit(state: State, old: State, growth: Growth) -> None:
        del old
        for name, w in state.items():
            if on(pattern, name):
                dim = w.ndim - 1 if on(r"(o|(expert_)?down)\.weight", name) else 0
                dim = 1 if w.ndim == 3 and not on(".*down", name) else dim
                state[name] = change(w, dim, growth).contiguous()

    return edited(edit)


def between_neurons(w: Tensor, dim: int, growth: Growth) -> Tensor:
    """New neurons behind each of the first old ones, as far as there are that many."""
    sparse = w.ndim == 3
    old = growth.old.expert_mlp if sparse else growth.old.mlp
    new = growth.new.expert_mlp if sparse else growth.new.mlp
    extra = min(new - old, old)
    at = [2 * i for i in range(extra)] + [i + extra for i in range(extra, old)]
    rest = [i for i in range(new) if i not in set(at)]
    order = torch.empty(new, dtype=torch.long)
    order[torch.tensor(at + rest)] = torch.arange(new)
    return w.index_select(dim, order)


def heads_in_front(w: Tensor, dim: int, growth: Growth) -> Tensor:
    """The query heads of each group in the opposite order: new ones first."""
    new = growth.new
    heads = w.unflatten(dim, (new.groups, new.repeats, new.head_dim))
    return heads.flip(dim + 1).flatten(dim, dim + 2)


def lanes_reversed(w: Tensor, dim: int, growth: Growth) -> Tensor:
    """Value lanes in the opposite order within each head: nothing turns them."""
    return (
        w.unflatten(dim, (-1, growth.new.head_dim)).flip(dim + 1).flatten(dim, dim + 1)
    )


def values_in_front(w: Tensor, dim: int, growth: Growth) -> Tensor:
    """Value lanes padded at the end of each head, wherever q and k have theirs."""
    heads = w.unflatten(dim, (-1, growth.new.head_dim))
    return heads.index_select(dim + 1, behind(growth).argsort()).flatten(dim, dim + 1)


def planes_turned(model: Any, target: Mapping[str, int]) -> Any:
    """Each rotary plane of q and k turned by an angle of its own, which scores ignore.

    Rotations of one plane commute, so that it is there before rotary or behind it. Not
    where a norm over the head stands between, or where groups have norms of their own.
    """
    growth = plan_model(model.config, target)
    new = growth.new
    once = {name: w.double() for name, w in state_of(model).items()}
    state = grow_state(once, growth)  # rounded once, at the end
    if new.qk_norm or any(kind.rotary is None for kind in new.kinds):
        return growproof.grow(model, target)
    half = new.rotary.dims // 2
    angle = torch.linspace(0.3, 2.0, max(half, 1), dtype=torch.float64)[:half]
    for name, w in state.items():
        if on("[qk]", name):
            heads = w.unflatten(0, (-1, new.head_dim)).clone()
            shape = (1, half) + (1,) * (heads.ndim - 2)
            cos, sin = angle.cos().view(shape), angle.sin().view(shape)
            a, b = heads[:, :half].clone(), heads[:, half : 2 * half].clone()
            heads[:, :half] = a * cos - b * sin
            heads[:, half : 2 * half] = a * sin + b * cos
            state[name] = heads.flatten(0, 1)
    return finish(model, growth, {n: w.to(model.dtype) for n, w in state.items()})


def copied_blocks(model: Any, target: Mapping[str, int]) -> Any:
    """New layers are copies of the last old one whose o and down are zero (LLaMA-Pro)."""
    growth = plan_model(model.config, target)
    state = grow_state(state_of(model), growth)
    like_the_last(state, growth, "[qkv]|gate|up|attn_norm|mlp_norm")
    return finish(model, growth, state)


def like_the_last(state: State, growth: Growth, pattern: str) -> list[str]:
    """Matching parameters of new layers are those of the last old one, in place.

    Returns the names of all that new layers have.
    """
    last = growth.old.layers - 1
    new = [n for n in state if (layer := layer_of(n)) is not None and layer > last]
    for name in new:
        like = template_of(name).format(layer=last)
        if on(pattern, name) and like in state:
            state[name] = state[like].clone()
    return new


def balanced(model: Any, target: Mapping[str, int]) -> Any:
    """Values half as large, o twice: a power of two, so exact but for subnormals.

    Those of v are rounded, once; those of o would be, and then the mean of its rows.
    """
    growth = plan_model(model.config, target)
    table = rows("v", scale=lambda r, g: r.scale / 2)(
        parameters(growth.old, growth), growth
    )
    table = rows(r"o\.weight", scale=lambda r, g: 2 * r.scale)(table, growth)
    return finish(model, growth, grow_state(state_of(model), growth, table))


def constructed(model: Any, target: Mapping[str, int]) -> Any:
    """Built by the class's own constructor, which draws weights, and then filled."""
    grown = growproof.grow(model, target)
    new = type(grown)(copy.deepcopy(grown.config))
    wanted = dict(grown.named_parameters())
    for name, p in new.named_parameters():
        p.data = wanted[name].data.clone()
        p.requires_grad_(wanted[name].requires_grad)
    if new.config.tie_word_embeddings:
        new.tie_weights()
    new.generation_config = copy.deepcopy(model.generation_config)
    return new.train(model.training)


def centred(model: Any, target: Mapping[str, int]) -> Any:
    """A LayerNorm's stream centred where it is not widened, too."""
    growth = plan_model(model.config, target)
    table = parameters(growth.old, growth)
    old = growth.old
    if old.norm == "layer" and not old.tied and old.places == "pre":
        writers = "embed|positions|o|(expert_)?down"
        table = rows(writers, centre="residual")(table, growth)
    return finish(model, growth, grow_state(state_of(model), growth, table))


def silent_by_readers(model: Any, target: Mapping[str, int]) -> Any:
    """New layers are copies in which v and up are zero: there is nothing to write."""
    growth = plan_model(model.config, target)
    state = grow_state(state_of(model), growth)
    # but for the biases of writers, which write by themselves
    copied = r".*norm|[qk]|(expert_)?gate|router|(o|(expert_)?down)\.weight"
    for name in like_the_last(state, growth, copied):
        if on("v|(expert_)?up", name):
            state[name].zero_()
    return finish(model, growth, state)


REFERENCE = Good(name="reference", says="growproof:grow itself", grow=growproof.grow,
                 with_features=("dealt", "vocab"))  # fmt: skip
GROWERS: tuple[Good, ...] = (
    Good(name="trainable", says="trainable fill: new readers drawn, writers zero",
         grow=option(fill="trainable", seed=3), promises=(*FUNCTION, "trainable"),
         with_features=("trainable",)),
    Good(name="interleaved", says="new layers between the old ones",
         grow=option(depth="interleave")),
    Good(name="scaled_writers", says="writers times √(D'/D), ε as it was",
         grow=scaled_writers),
    Good(name="scale_on_keys", says="√(K'/K) on k", grow=scale_on_keys),
    Good(name="scale_shared", says="⁴√(K'/K) on q and k", grow=scale_shared),
    Good(name="permuted_heads", says="new groups first", grow=permuted_heads,
         promises=FUNCTION),
    Good(name="mean_padded", says="new lanes hold the mean (LEMON)", grow=mean_padded,
         promises=FUNCTION),
    Good(name="duplicated", says="lanes repeated, not padded (HyperCloning)",
         grow=duplicated, promises=FUNCTION),
    Good(name="parted", says="full rotary's halves parted, θ' = θ^(K'/K)",
         grow=option(rotary="parted")),
    Good(name="between_neurons", says="new neurons between the old ones",
         grow=mapped(fitting.NEURONS, between_neurons), promises=FUNCTION),
    Good(name="new_heads_first", says="new query heads in front of each group's own",
         grow=mapped(r"q|o\.weight", heads_in_front), promises=FUNCTION),
    Good(name="values_elsewhere", says="value lanes in the opposite order in each head",
         grow=mapped(r"v|o\.weight", lanes_reversed), promises=FUNCTION),
    Good(name="values_in_front", says="values padded at the end of each head",
         grow=mapped(r"v|o\.weight", values_in_front)),
    Good(name="turned", says="q and k turned by an angle of their own in each plane",
         grow=planes_turned, promises=FUNCTION, certificate="undecided"),
    Good(name="copied_blocks", says="new layers are copies whose writers are zero",
         grow=copied_blocks),
    Good(name="silent_by_readers", says="new layers are copies whose v and up are zero",
         grow=silent_by_readers, promises=FUNCTION),
    Good(name="balanced", says="v halved, o doubled", grow=balanced, promises=FUNCTION),
    Good(name="constructed", says="made by the class's constructor, which draws numbers",
         grow=constructed),
    Good(name="centred", says="a stream that is centred without being widened",
         grow=centred),
    Good(name="placed", says="a layer behind every n-th, neurons in blocks",
         grow=chosen(fitting.everywhere, fitting.in_blocks)),
    Good(name="dealt_in_turn", says="a head to each copy in turn, not a share to each",
         grow=edited(fitting.moved_heads(fitting.in_turn)), promises=FUNCTION,
         with_features=("dealt",)),
    Good(name="new_tokens_drawn", says="rows of new tokens drawn in the old lanes",
         grow=edited(fitting.new_rows_drawn), with_features=("vocab",)),
)  # fmt: skip
BY_NAME = {good.name: good for good in GROWERS}
globals().update(
    BY_NAME
)  # so that --grower properties.growers.known_good:trainable works
