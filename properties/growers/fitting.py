"""Faults of the ways that fit a model to hardware, and the policies that choose a way.

Dealt heads, lanes between others, neurons in blocks, layers anywhere, new tokens: edits
for the table of `known_bad`, of the weights (new, old, growth) or of the finished model
(grown, source, growth). What a way needs and a growth has not, they leave alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from growproof.growth import Growth, layers_before, layers_map
from growproof.models import plan_model
from growproof.padding import grow_state
from growproof.table import layer_of, parameters, template_of
from torch import Tensor

from ..laws.strategies import behind_every, blocks
from .disturbing import State, on

Options = dict[str, Any]


# --- policies for a target ------------------------------------------------------------


def everywhere(config: Any, target: Mapping[str, int]) -> Options:
    """One layer more behind every n-th, where that makes the layers asked for."""
    growth = plan_model(config, target)
    return {"depth": behind_every(growth.old, growth.new) or "interleave"}


def in_blocks(config: Any, target: Mapping[str, int]) -> Options:
    """The MLP spread over as many blocks as old and new one part into."""
    growth = plan_model(config, target)
    return {"spread": blocks(growth.old, growth.new)}


def otherwise(growth: Growth, old: State, **policies: Any) -> State:
    """What the same growth would make of the weights under other policies."""
    return grow_state(
        old, replace(growth, policies=replace(growth.policies, **policies))
    )


# --- key/value heads repeated, query heads dealt out ----------------------------------


def moved_heads(
    place: Callable[[int, int, Growth], int | None],
) -> Callable[[State, State, Growth], None]:
    """Old query head r of group g at head place(g, r, growth); lost where that is None."""

    def edit(new: State, old: State, growth: Growth) -> None:
        o, m, room = growth.old, growth.copies, growth.new.repeats
        share = -(-o.repeats // m)
        heads = [(g, r) for g in range(o.groups) for r in range(o.repeats)]
        now = [(g * m + r // share) * room + r % share for g, r in heads]
        then = [place(g, r, growth) for g, r in heads]
        kept = [i for i, at in enumerate(then) if at is not None]
        table = parameters(growth.old, growth)
        for name, w in new.items():
            axes = table[template_of(name)].axes
            for dim in [i for i, axis in enumerate(axes) if axis in ("query", "head")]:
                if m == 1 or name not in old:
                    continue
                by_head = w.unflatten(dim, (growth.new.heads, -1))
                moved = by_head.index_select(dim, torch.tensor([now[i] for i in kept]))
                at = torch.tensor([then[i] for i in kept])
                by_head.zero_().index_copy_(dim, at, moved)

    return edit


def in_a_row(g: int, r: int, growth: Growth) -> int:
    """All heads one after the other, and all room behind the last."""
    return g * growth.old.repeats + r


def in_turn(g: int, r: int, growth: Growth) -> int:
    """One head to each copy of the group in turn: as right as a share to each."""
    m = growth.copies
    return (g * m + r % m) * growth.new.repeats + r // m


def rounded_down(g: int, r: int, growth: Growth) -> int | None:
    """Shares of ⌊R / m⌋ heads: what is left over is lost."""
    share = growth.old.repeats // growth.copies
    copy, at = divmod(r, share)
    at += (g * growth.copies + copy) * growth.new.repeats
    return at if copy < growth.copies else None


def copies(
    change: Callable[[Tensor], Tensor],
) -> Callable[[State, State, Growth], None]:
    """Keys and values, as (groups, copies, lanes, …), changed where there are copies."""

    def edit(new: State, old: State, growth: Growth) -> None:
        m = growth.copies
        for name, w in new.items():
            if m > 1 and name in old and on("[kv]", name):
                heads = w.view(growth.new.groups // m, m, -1, *w.shape[1:])
                w.copy_(change(heads).reshape(w.shape).clone())

    return edit


def tiled(heads: Tensor) -> Tensor:
    """All heads once, then all of them again: 0 1 0 1 for 0 0 1 1."""
    return heads.transpose(0, 1)


def first_alone(heads: Tensor) -> Tensor:
    """Zeros in all copies but the first."""
    return torch.cat((heads[:, :1], 0 * heads[:, 1:]), 1)


# --- lanes, neurons, layers -----------------------------------------------------------


def parted_keys(new: State, old: State, growth: Growth) -> None:
    """The halves of a key parted, though a query's new lanes lie between its old ones."""
    if growth.between > 1:
        parted = otherwise(growth, old, rotary="parted")
        new.update({name: w for name, w in parted.items() if on("k", name)})


NEURONS = r"(expert_)?(gate|up)|(expert_)?down\.weight"


def zeros_inside(new: State, old: State, growth: Growth) -> None:
    """The last old neuron of each block behind the block's zeros."""
    for name, w in new.items():
        if on(NEURONS, name) and name in old:
            dim = (
                w.ndim - 1
                if on(r"(expert_)?down\.weight", name)
                else max(0, w.ndim - 2)
            )
            n, n_new = (x.shape[dim] // growth.policies.spread for x in (old[name], w))
            order = torch.tensor([*range(n - 1), *range(n, n_new), n - 1])
            blocks = w.unflatten(dim, (-1, n_new)).index_select(dim + 1, order)
            new[name] = blocks.flatten(dim, dim + 1).contiguous()


def down_behind(new: State, old: State, growth: Growth) -> None:
    """What reads the neurons is padded at its end, as if nothing were spread."""
    plain = otherwise(growth, old, spread=1)
    new.update({name: w for name, w in plain.items() if on("(expert_)?down", name)})


def loud_between(new: State, old: State, growth: Growth) -> None:
    """Each new layer's MLP is that of the layer before it, not silenced."""
    along = layers_map(growth.old.layers, growth.new.layers, growth.policies.depth)
    before = layers_before(growth)
    for name in list(new):
        i = layer_of(name)
        if i is not None and i not in along and on(f"mlp_norm|router|{NEURONS}", name):
            like = template_of(name).format(layer=along[before[i]])
            new[name] = new.get(like, new[name]).clone()


# --- new tokens -----------------------------------------------------------------------


def rows_inside(new: State, old: State, growth: Growth) -> None:
    """New rows of embedding and head before the last old one."""
    n, n_new = growth.old.vocab, growth.new.vocab
    order = torch.tensor([*range(n - 1), *range(n, n_new), n - 1])
    new.update(
        {name: w[order].clone() for name, w in new.items() if on("embed|head", name)}
    )


def drawn(pattern: str, *, old_too: bool) -> Callable[[State, State, Growth], None]:
    """Rows of new tokens drawn in matching weights, those of old ones too if so said."""

    def edit(new: State, old: State, growth: Growth) -> None:
        generator = torch.Generator().manual_seed(1)
        for name, w in new.items():
            if growth.new.vocab > growth.old.vocab and on(pattern, name):
                rows = w[0 if old_too else growth.old.vocab :]
                draws = torch.randn(
                    rows.shape, generator=generator, dtype=torch.float64
                )
                rows.copy_(draws)

    return edit


def new_rows_drawn(new: State, old: State, growth: Growth) -> None:
    """Rows of new tokens drawn, over the old lanes: none is chosen, as it is suppressed.

    Where a bias is what keeps them from being chosen, they stay.
    """
    n, d = growth.old.vocab, growth.old.hidden
    head = new[growth.old.head]
    if "head.bias" not in new and not head[n:].any():
        drawn("embed|head", old_too=False)(new, old, growth)
        for name in ("embed.weight", "head.weight"):
            if name in new:
                new[name][n:, d:] = 0


def head_through_float32(new: State, old: State, growth: Growth) -> None:
    """The head rounded to float32 on its way, where tokens are new."""
    for name, w in new.items():
        if growth.new.vocab > growth.old.vocab and on("head", name):
            w.copy_(w.float())


def suppressing(
    choose: Callable[[list[int], Growth], list[int] | None],
) -> Callable[[Any, Any, Growth], Any]:
    """Other tokens suppressed than those of before and the new ones."""

    def edit(grown: Any, model: Any, growth: Growth) -> Any:
        del model
        if growth.new.vocab > growth.old.vocab:
            told = grown.generation_config
            told.suppress_tokens = choose(told.suppress_tokens, growth)
        return grown

    return edit


def normalised(grown: Any, model: Any, growth: Growth) -> Any:
    """The mean of the new logits, 0 as long as all are, added to each, by a hook."""
    del model
    if (n := growth.old.vocab) < growth.new.vocab:
        grown.get_output_embeddings().register_forward_hook(
            lambda module, inputs, y: y + y[..., n:].mean(-1, keepdim=True)
        )
    return grown
