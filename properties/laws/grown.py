"""A grown model as the laws see it, whatever grew it: in what order, at what scale."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from growproof import clone
from growproof.arithmetic import InOrder
from growproof.clone import Layer, Taps
from growproof.decoder import Decoder, GrowthError
from growproof.growth import Growth, Lanes, Policies
from growproof.models import decoder_of, in_layer, state_of
from growproof.padding import State
from growproof.scatter import place, take
from growproof.table import Axis, Row, Table, layer_of, rows, taps, template_of
from torch import Tensor

from . import examples
from .models import Case


class Violation(AssertionError):
    """A law that does not hold, with the place where it fails."""

    def __init__(
        self,
        message: str,
        *,
        tap: str,
        case: Case | None = None,
        ratio: float = math.inf,
    ) -> None:
        super().__init__(message)
        self.tap, self.case, self.ratio = tap, case, ratio


def forward(d: Decoder, state: State, tokens: Tensor) -> Taps:
    """`clone.forward` with every sum in index order."""
    with InOrder():
        return clone.forward(d, state, tokens)


# taps that are the residual stream, or what is added to it
ADDED = {"pre": {"attention", "mlp"}, "post": {"attn_out_norm", "mlp_out_norm"}}
STREAM = {
    places: {"embedding", "residual", *ADDED["pre" if places == "pre" else "post"]}
    for places in ("pre", "post", "both")
}
Block = Callable[[Layer, Tensor], Taps]


def attention(layer: Layer, x: Tensor) -> Taps:
    """`clone.attention` with every sum in index order."""
    with InOrder():
        return clone.attention(layer, x)


def mlp(layer: Layer, x: Tensor) -> Taps:
    """`clone.mlp`, or the layer's experts, with every sum in index order."""
    with InOrder():
        return (clone.experts if layer.kind.sparse else clone.mlp)(layer, x)


@dataclass(frozen=True)
class Grown:
    """A grown model, read off its own config and weights.

    embedded, scale: how it writes the residual stream, read off the embedding. layers:
    the new index of each old layer.
    """

    case: Case
    source: Any
    model: Any

    @functools.cached_property
    def old_state(self) -> State:
        """The parameters before, as float64."""
        return {name: w.double() for name, w in state_of(self.source).items()}

    @functools.cached_property
    def state(self) -> State:
        """The parameters after, as float64. Violation where they are no such model's.

        Values that lie at the front of each head are moved to where q and k have theirs.
        """
        try:
            found = {name: w.double() for name, w in state_of(self.model).items()}
        except GrowthError as error:
            raise self.broken(error) from error
        order, old = behind(self.lanes), self.case.decoder.head_dim
        return moved(found, order) if in_front(found, order, old) else found

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the parameters are stored in, whose u the budgets are in."""
        return self.source.dtype

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The grown model's own normal form, from its own config."""
        try:
            return decoder_of(self.model.config)
        except GrowthError as error:
            raise self.broken(error) from error

    def broken(self, error: Exception) -> Violation:
        """What a config or weights that are no model's violate."""
        return Violation(
            f"the grown config is not a model: {error}", tap="config", case=self.case
        )

    @functools.cached_property
    def embedded(self) -> tuple[bool, float]:
        """(whether the embedding was centred, the scalar on it)."""
        old = self.old_state["embed.weight"]
        new = self.state["embed.weight"][:, : old.shape[1]]
        fits = []
        for is_centred in (False, True):
            e = old - old.mean(1, keepdim=True) if is_centred else old
            scale = float((new * e).sum() / (e * e).sum().clamp_min(1e-300))
            fits.append((float((new - scale * e).abs().max()), is_centred, scale))
        return min(fits)[1:]

    @property
    def scale(self) -> float:
        """The scalar on the residual stream, which a √D behind the embedding is in."""
        old, new = self.case.decoder, self.decoder
        root = math.sqrt(new.hidden / old.hidden) if old.root_embedding else 1.0
        return self.embedded[1] * root

    @functools.cached_property
    def lanes(self) -> Growth:
        """The growth but for what it does to the stream: where the lanes of a head lie."""
        old, new = self.case.decoder, self.decoder
        same = new.rotary.theta == old.rotary.theta
        whole = new.head_dim % old.head_dim == 0
        rotary: Lanes = "between" if old.split and same and whole else "parted"
        policies = Policies(norm="scaled", rotary=rotary)
        return Growth(old=old, new=new, policies=policies)

    @functools.cached_property
    def growth(self) -> Growth:
        """The growth from the old decoder to what the grown model says it is."""
        norm = "centred" if self.embedded[0] else "scaled"
        policies = dataclasses.replace(
            self.lanes.policies, norm=norm, spread=self.spread
        )
        return dataclasses.replace(self.lanes, policies=policies)

    @functools.cached_property
    def spread(self) -> int:
        """In how many equal blocks the neurons lie, each padded at its end.

        The least number for which the up weights of the first layer are the likest; 1
        where that layer cannot be told.
        """
        old, new = self.case.decoder, self.decoder
        sparse = old.kinds[0].sparse
        name = f"layers.0.{'expert_up' if sparse else 'up'}.weight"
        axis = "expert_mlp" if sparse else "mlp"
        size, size_new = (getattr(d, axis) for d in (old, new))
        try:
            x, y = self.old_state[name], self.state[self.renamed(name)]
        except Violation:
            return 1
        y, row = y[..., : old.hidden], Row(("batch", axis, "tokens")[-x.ndim :], axis)
        off = {1: 0.0}
        for n in range(1, size + 1) if size_new > size else ():
            if size % n == size_new % n == 0:
                growth = Growth(old=old, new=new, policies=Policies(spread=n))
                off[n] = apart(take(y, row, growth), x)
        return min(off, key=lambda n: (off[n], n))

    @functools.cached_property
    def rows(self) -> Table:
        """How each tap grows, with the mean and the scale of this model's stream."""
        found, old = taps(self.growth), self.case.decoder
        centre: Axis | None = "residual" if self.embedded[0] else None
        written = STREAM[old.places]
        for name, row in found.items():
            if name.rpartition(".")[2] in written:
                found[name] = dataclasses.replace(row, scale=self.scale, centre=centre)
        if old.tied:
            row, loud = found["final_norm"], self.embedded[1]
            found["final_norm"] = dataclasses.replace(row, scale=1 / loud)
        return found

    @functools.cached_property
    def layers(self) -> list[int]:
        """The new index of each old layer. Violation unless there are L of them.

        Layers that write anything are those that wrote before, in order. One that was
        silent before is, of the silent ones in its place, the likest.
        """
        sides = (self.case.decoder, self.old_state), (self.decoder, self.state)
        for loud in (writes, adds):  # silent by zeros in the writers, or by another way
            before, after = (
                [loud(d, state, i) for i in range(d.layers)] for d, state in sides
            )
            if sum(before) == sum(after):
                break
        if sum(before) != sum(after) or len(before) > len(after):
            raise Violation(
                f"{sum(after)} layers add to the residual, expected the {sum(before)} "
                "old ones: new layers must be silent",
                tap="layers",
                case=self.case,
            )
        found = list[int]()
        for i, loud in enumerate(before):
            start = found[-1] + 1 if found else 0
            stop = next((j for j in range(start, len(after)) if after[j]), len(after))
            left = sum(not b for b in before[i:]) if not any(before[i:]) else 1
            silent = range(start, max(stop, start + 1) - (left - 1))
            found.append(stop if loud else min(silent, key=lambda j: self.unlike(i, j)))
        return found

    def unlike(self, i: int, j: int) -> float:
        """How far the sizes of layer j's weights are from those of the old layer i.

        Infinite where one has an MLP and the other has experts.
        """
        old, new = f"layers.{i}.", f"layers.{j}."
        names = [
            name.removeprefix(old)
            for name in self.old_state
            if name.startswith(old) and name.endswith(("up.weight", "v.weight"))
        ]
        if not all(new + name in self.state for name in names):
            return math.inf
        return sum(
            abs(
                float(self.old_state[old + name].norm() - self.state[new + name].norm())
            )
            for name in names
        )

    def row(self, tap: str) -> Row:
        """The row of a concrete tap name."""
        return self.rows[template_of(tap)]

    def placed(self, stored: str) -> str:
        """The name, in the grown module, of an old parameter of a module."""
        return in_layer(stored, self.layers)

    def renamed(self, name: str) -> str:
        """The grown model's name of an old tap or parameter: its layer's new index."""
        i = layer_of(name)
        return name if i is None else template_of(name).format(layer=self.layers[i])

    def layer(self, i: int, *, old: bool) -> Layer:
        """Layer i of the old model, before or after growing."""
        if old:
            return Layer.at(self.case.decoder, self.old_state, i)
        return Layer.at(self.decoder, self.state, self.layers[i])


def writes(d: Decoder, state: State, i: int) -> bool:
    """Whether a writer of layer i has an entry that is not zero."""
    table = rows(d)
    return any(
        bool(w.any())
        for name, w in state.items()
        if layer_of(name) == i and template_of(name) in table
        if table[template_of(name)].is_writer
    )


def adds(d: Decoder, state: State, i: int) -> bool:
    """Whether layer i adds anything to a random stream."""
    generator = torch.Generator().manual_seed(i)
    x = torch.randn(1, 2, d.hidden, generator=generator, dtype=torch.float64)
    after = clone.block(Layer.at(d, state, i), x)["residual"]
    return not torch.equal(after, x)


def apart(y: Tensor, x: Tensor) -> float:
    """|y − s·x| / |x| for the scalar s that makes it least, to six digits."""
    scale = (y * x).sum() / (x * x).sum().clamp_min(1e-300)
    return round(float((y - scale * x).norm() / x.norm().clamp_min(1e-300)), 6)


def behind(growth: Growth) -> Tensor:
    """(K',): for each lane of a grown head, which it is where heads are padded behind."""
    old = growth.old.head_dim
    at = place(torch.arange(1, old + 1), Row(("lane",), "lane"), growth) - 1
    at[at < 0] = torch.arange(old, len(at))
    return at


def in_front(state: State, order: Tensor, old: int) -> bool:
    """Whether values lie in the first K lanes of each head, and not where q and k lie:
    as v writes them, and as o reads them."""
    n, found = len(order), list[bool]()
    for part, dim in (("v", 0), ("o", 1)):
        used = torch.zeros(n, dtype=torch.bool)
        for name, w in state.items():
            if name.endswith(f".{part}.weight") and w.shape[dim] % n == 0:
                used |= w.movedim(dim, 0).unflatten(0, (-1, n)).any(-1).any(0)
        there = bool(used[order >= old].any()) or (dim == 1 and not used.any())
        found.append(there and not bool(used[old:].any()))
    return all(found)


def moved(state: State, order: Tensor) -> State:
    """Each head's value lanes in this order, in v and o: no function sees it."""
    found = dict(state)
    for name, w in state.items():
        if re.fullmatch(r"layers\.\d+\.(v\.(weight|bias)|o\.weight)", name):
            dim = int(".o." in name)
            heads = w.unflatten(dim, (-1, len(order))).index_select(dim + 1, order)
            found[name] = heads.flatten(dim, dim + 1)
    return found


def grow(case: Case, grower: Any, dtype: torch.dtype | None = None) -> Grown:
    """The case, grown: in `dtype`, by default that of the domain."""
    examples.growing(case)
    source = case.model(dtype)
    return Grown(case, source, grower(source, dict(case.target)))
