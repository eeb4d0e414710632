"""The parameters of a grown model: old entries placed, new ones zero or drawn.

`grow_state` and `shrink_state` apply the table to a whole state dict; `Grown` makes each
parameter when it is asked for.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from growproof.blocks import blocks, sheets
from growproof.decoder import Decoder, GrowthError
from growproof.growth import Growth, Policies
from growproof.scatter import around, place, take
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
