"""Orders that no function sees: of groups, of heads, of value lanes, of neurons.

A right growth is put in the order of somebody else's before the two are compared, so
that what differs is a fault and not a choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from growproof.decoder import Decoder
from growproof.padding import State
from growproof.table import layer_of, rows, template_of
from torch import Tensor
from torch.nn.functional import normalize

LIKE = 0.999  # of the cosine of two vectors that are one, scaled
MOST = 2048  # items that are compared each with each


At = tuple[int, tuple[int, ...], int]  # a dim, its sizes, which of these is reordered


@dataclass(frozen=True)
class Step:
    """One layer's items along an axis, in another order. at: (dim, sizes, which of them)"""

    at: dict[str, At]  # name → where its items are
    order: Tensor

    def __call__(self, state: State) -> State:
        """The state with these items in this order."""
        return dict(state) | {n: self.turned(state[n], *self.at[n]) for n in self.at}

    def turned(self, w: Tensor, dim: int, sizes: tuple[int, ...], which: int) -> Tensor:
        """One tensor."""
        order = self.order.to(w.device)
        items = w.unflatten(dim, sizes).index_select(dim + which, order)
        return items.flatten(dim, dim + len(sizes) - 1)


def kinds(d: Decoder) -> Iterator[dict[str, tuple[str, tuple[int, ...], int]]]:
    """For each kind of order: pattern of names → (axis, its sizes, which is reordered)."""
    g, r, k = d.groups, d.repeats, d.head_dim
    yield {"k|v": ("key", (g, k), 0), "q|o": ("query", (g, r * k), 0)}
    yield {"q|o": ("query", (g, r, k), 1)}
    yield {"v": ("key", (g, k), 1), "o": ("query", (g, r, k), 2)}
    yield {"gate|up|down": ("mlp", (d.mlp,), 0)}


def places(
    d: Decoder,
    names: Iterator[str] | list[str],
    kind: dict[str, tuple[str, tuple[int, ...], int]],
) -> dict[int, dict[str, At]]:
    """layer → name → where its items are, for one kind of order."""
    found: dict[int, dict[str, At]] = {}
    table = rows(d)
    for name in names:
        layer, part = layer_of(name), name.split(".")[-2]
        for pattern, (axis, sizes, which) in kind.items():
            axes = table[template_of(name)].axes
            if layer is not None and re.fullmatch(pattern, part) and axis in axes:
                at = axes.index(axis), sizes, which
                found.setdefault(layer, {})[name] = at
    return found


def features(state: State, at: dict[str, At]) -> Tensor:
    """(items, …): all that the tensors hold of each item, each of them at one scale."""
    found = []
    for name, (dim, sizes, which) in at.items():
        items = state[name].double().unflatten(dim, sizes).movedim(dim + which, 0)
        found.append(normalize(items.reshape(len(items), -1), dim=1))
    return torch.cat(found, 1)


def matched(new: Tensor, right: Tensor) -> Tensor | None:
    """The order of the right items in which they are the new ones, scaled; None: no such.

    An item that is at its place stays there. Of more than MOST others none is looked for.
    """
    one, two = (normalize(x, dim=1) for x in (new, right))
    places = torch.arange(len(new))
    order = places.where((one * two).sum(1).abs() >= LIKE, -1)
    elsewhere = places[(order < 0) & one.any(1)]
    free = places[~torch.isin(places, order)]
    if len(elsewhere) > MOST:
        return None
    like = (one[elsewhere] @ two[free].T).abs()
    for i, at in enumerate(elsewhere):
        j = int(like[i].argmax())
        if like[i, j] < LIKE:
            return None
        order[at], like[:, j] = free[j], -1.0
    order[order < 0] = places[~torch.isin(places, order)]
    return order


def orders(new: State, right: State, d: Decoder) -> list[Step]:
    """What brings the right state into the order of the new one, in so far as that helps."""
    steps: list[Step] = []
    known = [name for name in right if name in new]
    for kind in kinds(d):
        for at in places(d, known, kind).values():
            order = matched(features(new, at), features(right, at))
            if order is None or torch.equal(order, torch.arange(len(order))):
                continue
            step = Step(at, order)
            turned = step(right)
            if helps(new, right, turned, list(at)):
                steps.append(step)
                right = turned
    return steps


def helps(new: State, right: State, turned: State, names: list[str]) -> bool:
    """Whether none of the tensors is further from the new one, and some are nearer."""
    was, now = (
        [float((new[n].double() - s[n].double()).norm()) for n in names]
        for s in (right, turned)
    )
    none_worse = all(b <= a * (1 + 1e-9) for a, b in zip(was, now, strict=True))
    return none_worse and sum(now) < sum(was)


def in_order(state: State, steps: list[Step]) -> State:
    """The state after these steps."""
    for step in steps:
        state = step(state)
    return state
