"""A parameter is scattered along its axes by their embeddings, times one scalar.

`place` applies a row of the table to a tensor and `take` inverts it; a large matrix is
placed a block of rows after the other. Nothing here knows what a transformer is: that
is in the table.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from growproof.blocks import (
    Read,
    at_once,
    blocks,
    consecutive,
    is_large,
    mean_of_rows,
    picked,
    sheets,
)
from growproof.decoder import Decoder
from growproof.growth import Growth
from growproof.table import Row, factors, folds


def matched(
    x: Tensor, y: Tensor, row: Row, growth: Growth
) -> Iterator[tuple[Tensor, Tensor]]:
    """(a, b): views of x and of the grown y, where b holds a once y holds x.

    Every axis is split into its factors; a repeated key/value head broadcasts to its
    copies. There is one pair, or one for each copy over which a group's query heads are
    dealt out, in shares of s, the last of which may have room left.
    """
    old, along = growth.old, folds(growth)
    before, corner, after = list[int](), list[int](), list[int]()
    share = 0
    for axis, n, n_new in zip(row.axes, x.shape, y.shape, strict=True):
        sizes, sizes_new = along.get(axis, ((n,), (n_new,)))
        corner += sizes
        after += sizes_new
        if axis in ("query", "head"):
            share = len(before) + 2
            before += [old.groups, 1, old.repeats, *sizes[3:]]
        else:
            before += [old.groups, 1, *sizes[2:]] if axis == "key" else sizes
    a, b = x.view(before), y.view(after)[tuple(map(slice, corner))]
    if not share:
        yield a, b
        return
    for copy, first in enumerate(range(0, old.repeats, corner[share])):
        n = min(corner[share], old.repeats - first)
        b_copy = b.narrow(share - 1, copy, 1).narrow(share, 0, n)
        yield a.narrow(share, first, n), b_copy


def around(y: Tensor, row: Row, growth: Growth) -> Iterator[Tensor]:
    """Views that hold each entry of the grown y that is outside `matched`, once.

    What lies behind the corner along one factor, and within it along those before.
    """
    old, along = growth.old, folds(growth)
    sizes = [
        along.get(axis, ((n,), (n,))) for axis, n in zip(row.axes, y.shape, strict=True)
    ]
    corner = [n for before, _ in sizes for n in before]
    rest = y.view([n for _, after in sizes for n in after])
    heads = next(
        (i for i, axis in enumerate(row.axes) if axis in ("query", "head")), None
    )
    for dim, n in enumerate(corner):
        yield rest.narrow(dim, n, rest.shape[dim] - n)
        rest = rest.narrow(dim, 0, n)
    if heads is None:
        return
    share = sum(len(before) for before, _ in sizes[:heads]) + 2
    for copy in range(corner[share - 1]):
        n = min(max(old.repeats - copy * corner[share], 0), corner[share])
        yield rest.narrow(share - 1, copy, 1).narrow(share, n, corner[share] - n)


def centred(x: Tensor, row: Row, growth: Growth) -> Tensor:
    """x minus its mean over the row's centring axis (for query and key: each head's)."""
    if row.centre is None:
        return x
    return centre_(x.clone(memory_format=torch.contiguous_format), row, growth)


def centre_(y: Tensor, row: Row, growth: Growth) -> Tensor:
    """`centred`, in place; y is contiguous."""
    if row.centre is None:
        return y
    dim = row.axes.index(row.centre)
    block = growth.old.hidden if row.centre == "residual" else growth.old.head_dim
    blocks = y.view(*y.shape[:dim], -1, block, *y.shape[dim + 1 :])
    blocks -= blocks.mean(dim + 1, keepdim=True)
    return y


def is_changed(row: Row) -> bool:
    """True where old entries are not simply copied."""
    return row.centre is not None or row.scale != 1


def rescaled(x: Tensor, row: Row, growth: Growth) -> Tensor:
    """scale · (offset + centred(x)) − offset, in float64, to be rounded once.

    Powers of two, and growing by nothing, are exact.
    """
    if not is_changed(row):
        return x
    y = x.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    return rescale_(y, row, growth)


def rescale_(y: Tensor, row: Row, growth: Growth) -> Tensor:
    """`rescaled`, in place; y is contiguous, float64."""
    centre_(y, row, growth)
    if row.offset:
        y.add_(row.offset).mul_(row.scale).sub_(row.offset)
    elif row.scale != 1:
        y.mul_(row.scale)
    return y


def padded_size(x: Tensor, row: Row, d: Decoder) -> list[int]:
    """The size of x with each axis of the row as long as it is in d."""
    along = factors(d)
    dims = zip(row.axes, x.shape, strict=True)
    return [math.prod(along.get(axis, (n,))) for axis, n in dims]


def place(x: Tensor, row: Row, growth: Growth, into: Tensor | None = None) -> Tensor:
    """pad(rescaled(x)): the old entries, and zeros (or those of `into`) around.

    x: one tensor over `row.axes` of the old decoder, any dtype. Returns it over the same
    axes of the new one, in the dtype of `into` (else of x).
    """
    if into is None:
        into = x.new_zeros(padded_size(x, row, growth.new))
    if not in_rows(x, row):
        return place_whole(x, row, growth, into)
    for sheet, sheet_new in zip(sheets(x), sheets(into), strict=True):
        place_by_rows(sheet, sheet_row(row), growth, sheet_new)
    return into


def place_by_rows(x: Tensor, row: Row, growth: Growth, into: Tensor) -> None:
    """`place`, of a matrix, a block of rows after the other."""
    origin = origins(row, growth)
    there = (origin >= 0).nonzero().flatten()
    mean = first_means(lambda i, j: x[i:j], row, growth)
    work = None
    for block in blocks(len(there), x.shape[1], at_once(x.device.type)):
        rows = there[block]
        lines, part = picked(into, rows), picked(x, origin[rows])
        if work is None and is_changed(row):  # once: fresh pages cost as much as sums
            work = part.new_empty(part.shape, dtype=torch.float64)
        place_rows(part, origin[rows], mean, row, growth, lines, work)
        if not consecutive(rows):
            into[rows] = lines
    if row.averaged and row.axes[0] == "residual":
        into[growth.old.hidden :] = average(lambda i, j: into[i:j], growth)


def place_whole(x: Tensor, row: Row, growth: Growth, into: Tensor) -> Tensor:
    """`place`, all of it at once."""
    scatter(rescaled(x, row, growth), row, growth, into)
    return into


def scatter(y: Tensor, row: Row, growth: Growth, into: Tensor) -> None:
    """Round what is `rescaled` into its places, and fill lanes that hold its mean."""
    for old, new in matched(y, into, row, growth):
        new.copy_(old)
    if row.averaged:
        dim, n = row.axes.index("residual"), growth.old.hidden
        mean = into.narrow(dim, 0, n).double().mean(dim, keepdim=True)
        new = into.narrow(dim, n, growth.new.hidden - n)
        new.copy_(mean.expand_as(new))


def take(y: Tensor, row: Row, growth: Growth) -> Tensor:
    """place⁻¹, up to a mean that centring removed: the old entries, scaled back.

    y: one tensor over `row.axes` of the new decoder. Returns it over the old one.
    """
    x = y.new_empty(padded_size(y, row, growth.old))
    for old, new in matched(x, y, row, growth):
        old.copy_(new[tuple(map(slice, old.shape))])  # the first of its copies
    if row.scale == 1:
        return x
    return ((x.double() + row.offset) / row.scale - row.offset).to(y.dtype)


# --- row by row -----------------------------------------------------------------------


def in_rows(x: Tensor, row: Row) -> bool:
    """True for a matrix (or one for each expert) that is worked on in blocks of rows.

    The sums of a mean are then made in another order, so that whatever grows a tensor
    piece by piece has to ask here.
    """
    matrix = len(row.axes) > 1 and row.axes[0] != "batch"
    return (is_changed(row) or row.averaged) and matrix and is_large(x)


def sheet_row(row: Row) -> Row:
    """The row of a matrix: of one expert's, where each has its own."""
    return replace(row, axes=row.axes[-2:])


def origins(row: Row, growth: Growth) -> Tensor:
    """New index → the old index whose entries lie there, or −1; along the first axis."""
    old = torch.arange(math.prod(factors(growth.old)[row.axes[0]]))
    return place(old + 1, Row(row.axes[:1], row.writes), growth) - 1


def place_rows(
    x: Tensor,
    old: Tensor,
    mean: Tensor | None,
    row: Row,
    growth: Growth,
    into: Tensor,
    work: Tensor | None,
) -> None:
    """Place rows of a matrix into the rows of the grown one in which they lie.

    x: (n, columns), the rows `old` (n,) of a matrix. mean: of `first_means`. into:
    (n, columns of the grown matrix). work: (n or more, columns), float64, overwritten;
    None where nothing is changed.
    """
    first, second = row.axes
    y = x if work is None else work[: len(x)].copy_(x)
    if mean is not None:
        n = growth.old.hidden if first == "residual" else growth.old.head_dim
        y -= mean[0] if len(mean) == 1 else mean[old // n]
    within = replace(
        row,
        axes=("tokens", second),
        centre=None if row.centre == first else row.centre,
        averaged=row.averaged and second == "residual",
    )
    scatter(y if work is None else rescale_(y, within, growth), within, growth, into)


def first_means(read: Read, row: Row, growth: Growth) -> Tensor | None:
    """The means over the first axis that centring removes, (blocks, columns), float64."""
    if row.centre is None or row.centre != row.axes[0]:
        return None
    rows = math.prod(factors(growth.old)[row.centre])
    n = growth.old.hidden if row.centre == "residual" else growth.old.head_dim
    return torch.stack([mean_of_rows(read, i, i + n) for i in range(0, rows, n)])


def average(read: Read, growth: Growth) -> Tensor:
    """The mean of the old lanes of a grown writer, (columns,), for its new ones."""
    return mean_of_rows(read, 0, growth.old.hidden)
