"""Growing is one function: pad every axis of a tensor, times one scalar.

`place` applies a row of the table to a tensor and `take` inverts it; `grow_state` and
`shrink_state` apply them to a whole state dict. Nothing here knows what a transformer
is: that is in the table.
"""

import math
import re
import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from growproof.layout import Row, factors, pairs, parameters, tensors
from growproof.shape import Growth, Shape

State = Mapping[str, Tensor]
Table = dict[str, Row]


def unfolded(x: Tensor, row: Row, shape: Shape) -> list[int]:
    """The sizes of x with every axis split into its factors; others stay as they are."""
    along = factors(shape)
    dims = zip(row.axes, x.shape, strict=True)
    return [f for axis, n in dims for f in along.get(axis, (n,))]


def old_entries(y: Tensor, x: Tensor, row: Row, growth: Growth) -> Tensor:
    """The view of the grown tensor y in which the entries of x lie, unfolded."""
    corner = tuple(slice(n) for n in unfolded(x, row, growth.old))
    return y.view(unfolded(y, row, growth.new))[corner]


def centred(x: Tensor, row: Row, growth: Growth) -> Tensor:
    """x minus its mean over the row's centring axis (for query and key: each head's)."""
    if row.centre is None:
        return x
    dim = row.axes.index(row.centre)
    block = growth.old.hidden if row.centre == "residual" else growth.old.head_dim
    sizes = (*x.shape[:dim], -1, block, *x.shape[dim + 1 :])
    blocks = x.reshape(sizes)
    return (blocks - blocks.mean(dim + 1, keepdim=True)).reshape(x.shape)


def place(x: Tensor, row: Row, growth: Growth, into: Tensor | None = None) -> Tensor:
    """pad(scale · centred(x)): the old entries, and zeros (or those of `into`) around.

    x: one tensor over `row.axes` of the old shape, any dtype. Returns it over the same
    axes of the new shape, same dtype. Scaling and centring are computed in float64 and
    rounded once, so that powers of two, and growing by nothing, are exact.
    """
    along = factors(growth.new)
    if into is None:
        dims = zip(row.axes, x.shape, strict=True)
        into = x.new_zeros([math.prod(along.get(axis, (n,))) for axis, n in dims])
    if row.centre is not None or row.scale != 1:
        x = (centred(x.double(), row, growth) * row.scale).to(x.dtype)
    corner = old_entries(into, x, row, growth)
    corner.copy_(x.reshape(corner.shape))
    return into


def take(y: Tensor, row: Row, growth: Growth) -> Tensor:
    """place⁻¹, up to a mean that centring removed: the old entries ÷ scale.

    y: one tensor over `row.axes` of the new shape. Returns it over the old shape.
    """
    along = factors(growth.old)
    dims = zip(row.axes, y.shape, strict=True)
    x = y.new_empty([math.prod(along.get(axis, (n,))) for axis, n in dims])
    x = old_entries(y, x, row, growth).reshape(x.shape)
    return x.clone() if row.scale == 1 else (x.double() / row.scale).to(y.dtype)


def blank(name: str, row: Row, growth: Growth, like: Tensor, *, fresh: bool) -> Tensor:
    """A grown tensor with its new entries filled, before the old ones are placed.

    `zeros`: all zero. `trainable`: writers and biases zero, norms one, and readers
    drawn from normal(0, initializer_range), except where a draw would change the
    function: a query's new lanes, which meet the keys' (under q/k layernorm the keys'
    as well), and new lanes of a norm that leaves a mean in them. fresh: the tensor has
    no old entries. Why the rest is free: proofs/Freedom.v.
    """
    along = factors(growth.new)
    y = like.new_zeros([math.prod(along[axis]) for axis in row.axes])
    if growth.fill == "zeros" or row.role in ("writer", "bias"):
        return y
    if row.role == "norm":
        approximate = growth.norm == "scaled" and growth.old.layer_norm
        return y if approximate and not fresh else y.fill_(1)
    generator = torch.Generator()
    generator.manual_seed((growth.seed << 32) ^ zlib.crc32(name.encode()))
    draw = torch.empty(y.shape, dtype=y.dtype)
    y.copy_(draw.normal_(0, growth.initializer_range, generator=generator))
    if row.axes[0] == "query" or row.centre == "key":  # not v, which o_proj silences
        silence_new_lanes(y, row, growth)
    return y


def silence_new_lanes(y: Tensor, row: Row, growth: Growth) -> None:
    """Zero the new head_dim lanes of every head of a query or key projection."""
    lanes = factors(growth.old)["head_dim"]
    heads = y.view(unfolded(y, row, growth.new))
    first = len(factors(growth.new)[row.axes[0]]) - len(lanes)
    for d, n in enumerate(lanes, start=first):
        heads.narrow(d, n, heads.shape[d] - n).zero_()


def grown(
    state: State, growth: Growth, table: Table | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter of the grown model, one at a time.

    state: the old parameters by their transformers names, any mapping. table: another
    table than the right one, to plant a fault. Raises ValueError where a parameter is
    missing, unknown, or of another shape than the table says.
    """
    table = table or parameters(growth.old, growth)
    check(state, growth.old)
    for name, old, row in pairs(growth, table):
        like = state[old or sibling(name, state)]
        new = blank(name, row, growth, like, fresh=old is None)
        yield name, new if old is None else place(state[old], row, growth, new)


def sibling(name: str, state: State) -> str:
    """An old parameter of the same kind as a new layer's or head's, for its dtype."""
    return re.sub(r"\.\d+\.", ".0.", name)


def grow_state(
    state: State, growth: Growth, table: Table | None = None
) -> dict[str, Tensor]:
    """The state dict of the grown model: the table, applied."""
    return dict(grown(state, growth, table))


def shrink_state(state: State, growth: Growth) -> dict[str, Tensor]:
    """The old state dict back from the grown one (centred, where growing centred it)."""
    check(state, growth.new)
    return {
        old: take(state[name], row, growth)
        for name, old, row in pairs(growth, parameters(growth.old, growth))
        if old is not None
    }


def check(state: State, shape: Shape) -> None:
    """Raise ValueError unless `state` holds exactly the parameters of `shape`."""
    expected = dict(tensors(shape))
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unknown:
        raise ValueError(
            f"these are not the parameters of a {shape.family} of this shape: missing "
            f"{sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}"
        )
    for name, size in expected.items():
        if tuple(state[name].shape) != size:
            raise ValueError(
                f"{name} should be {size} for this shape, got {tuple(state[name].shape)}"
            )
