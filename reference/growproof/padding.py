"""Growing is one function: pad every axis of a tensor, times one scalar.

`place` applies a row of the table to a tensor and `take` inverts it; `grow_state` and
`shrink_state` apply them to a whole state dict. Nothing here knows what a transformer
is: that is in the table.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
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
from growproof.decoder import Decoder, GrowthError
from growproof.growth import Growth, Policies
from growproof.table import (
    Row,
    Table,
    factors,
    folds,
    grown_rows,
    has_averages,
    pairs,
    parameters,
    template_of,
    tensors,
)
from growproof.vocabulary import silence

State = Mapping[str, Tensor]


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


def blank(name: str, row: Row, growth: Growth, like: Tensor, *, fresh: bool) -> Tensor:
    """A grown tensor with its new entries filled, before the old ones are placed.

    `zeros`: all zero. `trainable`: writers and biases zero, norms one, and readers
    drawn from normal(0, initializer_range), but for what `silenced` keeps at zero, and
    new lanes of a norm that leaves a mean in them, or the mean's rounding before a tied
    head. fresh: the tensor has no old entries; room for them is left as it is.
    Why the rest is free: proofs/Freedom.v.
    """
    along, policies = factors(growth.new), growth.policies
    size = [math.prod(along[axis]) for axis in row.axes]
    if not fresh and not is_filled(row, policies):
        y = like.new_empty(size)
        for new in around(y, row, growth):
            new.zero_()
        return y
    y = like.new_zeros(size)
    if not is_filled(row, policies):
        return y
    if row.norm:
        approximate = policies.norm == "scaled" and growth.old.norm == "layer"
        # a tied head would multiply by the mean's rounding as often as lanes are new
        tied = has_averages(growth) and name.startswith("final_norm")
        left = (approximate and not fresh) or tied
        return y if left else y.fill_(1 - row.offset)
    draw = drawing(name, policies)
    for sheet in sheets(y):
        for block in blocks(len(sheet), sheet.shape[-1]):
            sheet[block] = draw(sheet[block])
    return silenced(y, name.split(".")[-2], row, growth)


def is_filled(row: Row, policies: Policies) -> bool:
    """True where new entries are not all zero."""
    return policies.fill != "zeros" and not row.is_writer and row.reads is not None


def drawing(name: str, policies: Policies) -> Callable[[Tensor], Tensor]:
    """Draws, in float64 and thus the same in every dtype, for block after block of rows."""
    generator = generator_of(name, policies.seed)

    def draw(like: Tensor) -> Tensor:
        fresh = torch.empty(like.shape, dtype=torch.float64)
        return fresh.normal_(0, policies.initializer_range, generator=generator)

    return draw


def generator_of(name: str, seed: int) -> torch.Generator:
    """A generator for a parameter, by its name and the seed.

    torch's own reads the low 32 bits of a seed alone, so that both have to be in them.
    """
    key = zlib.crc32(name.encode(), seed % 2**32)
    return torch.Generator().manual_seed(key)


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
        self.rows = grown_rows(growth, table)

    def __getitem__(self, name: str) -> Tensor:
        return grown_parameter(name, *self.rows[name], self.state, self.growth)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def grown_parameter(
    name: str,
    old: str | None,
    row: Row,
    state: State,
    growth: Growth,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A parameter of the grown model. old: its name in `state`; None for a new layer's.

    dtype: of the result (default: that of the old one), to which all is rounded once.
    """
    like = state[old or sibling(name, row, growth.old)]
    kind = like.new_empty(0, dtype=dtype)
    new = blank(name, row, growth, kind, fresh=old is None)
    if old is not None:
        place(like, row, growth, new)
        refuse_overflow(name, like, new)
    silence(new, name, state, growth)
    return new


def refuse_overflow(name: str, old: Tensor, new: Tensor) -> None:
    """Raise GrowthError for old entries that, scaled or rounded, a dtype cannot hold."""
    most = torch.finfo(new.dtype).max
    if most > 1e30 or new.is_meta or new.isfinite().all():  # float16 alone is so narrow
        return
    if old.isfinite().all():
        worst = float(old.abs().max())
        scaled = ", and this growth multiplies it" if worst <= most else ""
        raise GrowthError(
            f"{name} holds {worst:.6g}, and {str(new.dtype)[6:]} no more than {most:.6g}"
            f"{scaled}: choose bfloat16 or float32"
        )


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
