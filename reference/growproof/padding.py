"""Growing is one function: pad every axis of a tensor, times one scalar.

`place` applies a row of the table to a tensor and `take` inverts it; `grow_state` and
`shrink_state` apply them to a whole state dict. Nothing here knows what a transformer
is: that is in the table.
"""

import math
import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from growproof.decoder import Decoder
from growproof.growth import Growth
from growproof.stored import parted
from growproof.table import (
    Row,
    Table,
    factors,
    folds,
    pairs,
    parameters,
    template_of,
    tensors,
)
from growproof.vocabulary import silence

State = Mapping[str, Tensor]


def unfolded(x: Tensor, row: Row, growth: Growth, *, new: bool) -> list[int]:
    """The sizes of x with every axis split into its factors; others stay as they are."""
    along = folds(growth)
    dims = zip(row.axes, x.shape, strict=True)
    return [f for axis, n in dims for f in along.get(axis, ((n,), (n,)))[new]]


def old_entries(y: Tensor, x: Tensor, row: Row, growth: Growth) -> Tensor:
    """The view of the grown tensor y in which the entries of x lie, unfolded."""
    corner = tuple(slice(n) for n in unfolded(x, row, growth, new=False))
    return y.view(unfolded(y, row, growth, new=True))[corner]


def dealt(x: Tensor, row: Row, growth: Growth) -> Tensor:
    """x with its key/value heads repeated, and its query heads dealt out over them.

    Query heads go to the copies in shares of s, the last of which may have room left.
    """
    old, m = growth.old, growth.copies
    if m == 1:
        return x
    share = -(-old.repeats // m)
    for dim, axis in enumerate(row.axes):
        if axis == "key":
            groups = parted(x, dim, (old.groups, -1))
            x = groups.repeat_interleave(m, dim).flatten(dim, dim + 1)
        elif axis in ("query", "head"):
            heads = parted(x, dim, (old.groups, old.repeats, -1))
            room = x.new_zeros(
                (*heads.shape[: dim + 1], m * share, *heads.shape[dim + 2 :])
            )
            room.narrow(dim + 1, 0, old.repeats).copy_(heads)
            x = room.flatten(dim, dim + 2)
    return x


def gathered(x: Tensor, row: Row, growth: Growth) -> Tensor:
    """dealt⁻¹: the first copy of each key/value head, and the query heads in order."""
    old, m = growth.old, growth.copies
    if m == 1:
        return x
    for dim, axis in enumerate(row.axes):
        if axis == "key":
            copies = parted(x, dim, (old.groups, m, -1))
            x = copies.select(dim + 1, 0).flatten(dim, dim + 1)
        elif axis in ("query", "head"):
            share = -(-old.repeats // m)
            heads = parted(x, dim, (old.groups, m * share, -1))
            x = heads.narrow(dim + 1, 0, old.repeats).flatten(dim, dim + 2)
    return x


def centred(x: Tensor, row: Row, growth: Growth) -> Tensor:
    """x minus its mean over the row's centring axis (for query and key: each head's)."""
    if row.centre is None:
        return x
    dim = row.axes.index(row.centre)
    block = growth.old.hidden if row.centre == "residual" else growth.old.head_dim
    sizes = (*x.shape[:dim], -1, block, *x.shape[dim + 1 :])
    blocks = x.reshape(sizes)
    return (blocks - blocks.mean(dim + 1, keepdim=True)).reshape(x.shape)


def rescaled(x: Tensor, row: Row, growth: Growth) -> Tensor:
    """scale · (offset + centred(x)) − offset, in float64, rounded once to x's dtype.

    Powers of two, and growing by nothing, are exact.
    """
    if row.centre is None and row.scale == 1:
        return x
    y = centred(x.double(), row, growth)
    return ((y + row.offset) * row.scale - row.offset).to(x.dtype)


def padded_size(x: Tensor, row: Row, d: Decoder) -> list[int]:
    """The size of x with each axis of the row as long as it is in d."""
    along = factors(d)
    dims = zip(row.axes, x.shape, strict=True)
    return [math.prod(along.get(axis, (n,))) for axis, n in dims]


def place(x: Tensor, row: Row, growth: Growth, into: Tensor | None = None) -> Tensor:
    """pad(rescaled(x)): the old entries, and zeros (or those of `into`) around.

    x: one tensor over `row.axes` of the old decoder, any dtype. Returns it over the same
    axes of the new one, same dtype.
    """
    if into is None:
        into = x.new_zeros(padded_size(x, row, growth.new))
    y = dealt(rescaled(x, row, growth), row, growth)
    corner = old_entries(into, y, row, growth)
    corner.copy_(y.reshape(corner.shape))
    if row.averaged:
        dim, n = row.axes.index("residual"), growth.old.hidden
        mean = into.narrow(dim, 0, n).double().mean(dim, keepdim=True)
        new = into.narrow(dim, n, growth.new.hidden - n)
        new.copy_(mean.expand_as(new))
    return into


def take(y: Tensor, row: Row, growth: Growth) -> Tensor:
    """place⁻¹, up to a mean that centring removed: the old entries, scaled back.

    y: one tensor over `row.axes` of the new decoder. Returns it over the old one.
    """
    x = dealt(y.new_empty(padded_size(y, row, growth.old)), row, growth)
    x = gathered(old_entries(y, x, row, growth).reshape(x.shape), row, growth)
    if row.scale == 1:
        return x.clone()
    return ((x.double() + row.offset) / row.scale - row.offset).to(y.dtype)


def blank(name: str, row: Row, growth: Growth, like: Tensor, *, fresh: bool) -> Tensor:
    """A grown tensor with its new entries filled, before the old ones are placed.

    `zeros`: all zero. `trainable`: writers and biases zero, norms one, and readers
    drawn from normal(0, initializer_range), but for what `silenced` keeps at zero, and
    new lanes of a norm that leaves a mean in them. fresh: the tensor has no old entries.
    Why the rest is free: proofs/Freedom.v.
    """
    along, policies = factors(growth.new), growth.policies
    y = like.new_zeros([math.prod(along[axis]) for axis in row.axes])
    if policies.fill == "zeros" or row.is_writer or row.reads is None:
        return y
    if row.norm:
        approximate = policies.norm == "scaled" and growth.old.norm == "layer"
        return y if approximate and not fresh else y.fill_(1 - row.offset)
    generator = torch.Generator()
    generator.manual_seed((policies.seed << 32) ^ zlib.crc32(name.encode()))
    draw = torch.empty(y.shape, dtype=torch.float64)  # the same in every dtype
    y.copy_(draw.normal_(0, policies.initializer_range, generator=generator))
    return silenced(y, name.split(".")[-2], row, growth)


def silenced(y: Tensor, part: str, row: Row, growth: Growth) -> Tensor:
    """y, with zeros where a draw would change the function, in place.

    New head_dim lanes of a query meet the keys'. Where q and k are normed, their new
    lanes would count in the norm, and, normed over all heads, so would new heads.
    """
    old = growth.old
    if part not in (("q", "k") if old.qk_norm else ("q",)):
        return y
    if old.qk_norm == "whole":
        return y.zero_()
    lanes, lanes_new = folds(growth)["lane"]
    heads = y.view(-1, *lanes_new, *y.shape[1:])
    for dim, n in enumerate(lanes, start=1):
        heads.narrow(dim, n, heads.shape[dim] - n).zero_()
    return y


class Grown(Mapping[str, Tensor]):
    """The parameters of a grown model, each made when it is asked for, and not kept.

    state: the old parameters by their canonical names, any mapping. table: another
    table than the right one, to plant a fault. Raises ValueError where a parameter is
    missing, unknown, or of another shape than the table says.
    """

    def __init__(
        self, state: State, growth: Growth, table: Table | None = None
    ) -> None:
        check(state, growth.old)
        self.state, self.growth = state, growth
        table = table or parameters(growth.old, growth)
        self.rows = {new: (old, row) for new, old, row in pairs(growth, table)}

    def __getitem__(self, name: str) -> Tensor:
        old, row = self.rows[name]
        like = self.state[old or sibling(name, row, self.growth.old)]
        new = blank(name, row, self.growth, like, fresh=old is None)
        if old is not None:
            place(like, row, self.growth, new)
        silence(new, name, self.state, self.growth)
        return new

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def sibling(name: str, row: Row, old: Decoder) -> str:
    """An old parameter of the same kind as a new layer's, for its dtype."""
    return template_of(name).format(layer=next(old.layers_that(row.sparse)))


def grow_state(
    state: State, growth: Growth, table: Table | None = None
) -> dict[str, Tensor]:
    """The state dict of the grown model: the table, applied."""
    return dict(Grown(state, growth, table))


def shrink_state(state: State, growth: Growth) -> dict[str, Tensor]:
    """The old state dict back from the grown one (centred, where growing centred it)."""
    check(state, growth.new)
    return {
        old: take(state[name], row, growth)
        for name, old, row in pairs(growth, parameters(growth.old, growth))
        if old is not None
    }


def check(state: State, d: Decoder) -> None:
    """Raise ValueError unless `state` holds exactly the parameters of d."""
    expected = dict(tensors(d))
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unknown:
        raise ValueError(
            f"these are not the parameters of this decoder: missing "
            f"{sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}"
        )
    for name, size in expected.items():
        if tuple(state[name].shape) != size:
            raise ValueError(
                f"{name} should be {size} for this decoder, got {tuple(state[name].shape)}"
            )
