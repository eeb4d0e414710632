"""One tensor of the destination against the source's, entry by entry."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from growproof.blocks import blocks
from growproof.growth import Growth
from growproof.rounding import holds, neighbours, unit_roundoff
from growproof.scatter import centred
from growproof.table import Row
from growproof.verify.placing import integers

NARROW = (torch.bfloat16, torch.float16)
INVERSE = (("up", "down"), ("v", "o"), ("q", "k"), ("expert_up", "expert_down"))
ROWS = 64  # of a tensor with wrong entries, that are told


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A tensor with entries that are not accounted for.

    index: of the first. wrong: how many. relative: ‖got − expected‖ / ‖expected‖.
    narrow: dtypes of which the entries are roundings of the source's. rows: the first of
    those with a wrong entry. mended: the tensor as it should be, of one expert if it has
    several; None where that is not known. factor: (k, how well it is known) where each
    entry is k times what it should be, rounded once.
    """

    name: str
    said: str
    index: tuple[int, ...] = ()
    wrong: int = 1
    relative: float = 0.0
    narrow: frozenset[torch.dtype] = frozenset()
    rows: tuple[int, ...] = ()
    expert: int | None = None
    factor: tuple[float, float] | None = None
    mended: Callable[[], Tensor] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        words = ("expert", "row", "column")[-max(len(self.index), 2) :]
        at = [f" {w} {i}" for w, i in zip(words, self.index, strict=False)]
        return f"{self.name}{','.join(['', *at]) if at else ''}: {self.said}"


@dataclass
class Account:
    """How many entries are what, and the tensors with entries that are nothing of it.

    equal: the source's. rounded: the source's, times a scalar or less a mean, rounded
    once. new: zero, or read by nothing. narrowed: tensors that rounding changed, or that
    lie in a narrower dtype, and which. shares: tensors of the source → the columns that
    several columns of the destination add up to, rounded.
    """

    equal: int = 0
    rounded: int = 0
    new: int = 0
    tensors: int = 0
    misses: list[Miss] = field(default_factory=list[Miss])
    narrowed: dict[str, torch.dtype] = field(default_factory=dict[str, torch.dtype])
    shares: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @functools.cached_property
    def rescaled(self) -> set[str]:
        """The parts that are k times, and 1 / k times, what they should be, in a layer.

        Whether that is the same function is measured; rounded they had to be.
        """
        factors = {(m.name, m.expert): m.factor for m in self.misses if m.factor}
        found = set[str]()
        for (name, expert), (k, within) in factors.items():
            for one, other in INVERSE:
                opposite = name.replace(f".{one}.", f".{other}.")
                if opposite != name and (opposite, expert) in factors:
                    inverse, more = factors[opposite, expert]
                    if abs(k * inverse - 1) <= within + more:
                        found |= {one, other}
        return found


def taken(x: Tensor, origins: Sequence[Tensor]) -> Tensor:
    """The old entry that belongs at each new one; anything where there is none."""
    for dim, origin in enumerate(origins):
        if not torch.equal(origin, torch.arange(x.shape[dim])):
            x = x.index_select(dim, origin.clamp(min=0))
    return x


def outer(masks: Sequence[Tensor]) -> Tensor:
    """True where all the masks are, along the axes one after the other."""
    found = torch.tensor(True)
    for mask in masks:
        found = found[..., None] & mask
    return found


def expected(
    x: Tensor, row: Row, origins: Sequence[Tensor], growth: Growth
) -> tuple[Tensor, Tensor]:
    """(what the entries should be, the size of what they are made of), in float64.

    A scaled entry is s · (offset + x) − offset; new lanes hold the mean if row.averaged.
    """
    x = x.double()
    c = centred(x, row, growth)
    size = ((c + row.offset).abs() + (x - c).abs()) * abs(row.scale)
    c = (c + row.offset) * row.scale - row.offset
    want, size = taken(c, origins), taken(size, origins)
    if row.averaged:
        dim = row.axes.index("residual")
        new = origins[dim] < 0
        at = [1] * want.ndim
        at[dim] = -1
        others = [o if i != dim else torch.arange(1) for i, o in enumerate(origins)]
        mean = taken(c.mean(dim, keepdim=True), others)
        want = torch.where(new.view(at), mean, want)
        size = torch.where(new.view(at), size.amax(dim, keepdim=True), size)
    return want, size


def judged(
    name: str,
    x: Tensor,
    y: Tensor,
    row: Row,
    origins: Sequence[Tensor],
    growth: Growth,
    account: Account,
) -> None:
    """Count the entries of y, or add a miss: x is the source's tensor, y the new one's.

    A block of rows after the other, so that no second copy in float64 is held.
    """
    account.tensors += 1
    look = functools.partial(looked_at, x, y, row, origins, growth)
    whole = functools.partial(look, slice(0, len(y)))
    inside, exact = 0, True
    for rows in row_blocks(y, row, growth):
        seen = look(rows)
        if seen.wrong.any():
            miss = missed(name, y, whole())
            account.misses.append(replace(miss, mended=lambda: mended(y, whole())))
            return
        inside += int(seen.held.sum())
        exact &= not ((y[rows].to(seen.want) != seen.want) & seen.held).any()
    if not exact:
        account.narrowed[name] = y.dtype
    if stays(x, y, row):
        account.equal += inside
    else:
        account.rounded += inside
    account.new += y.numel() - inside


def stays(x: Tensor, y: Tensor, row: Row) -> bool:
    """True where an old entry should be the same number, bit for bit."""
    changed = row.scale != 1 or row.centre is not None or row.averaged
    return not changed and holds(y.dtype, x.dtype)


def row_blocks(y: Tensor, row: Row, growth: Growth) -> list[slice]:
    """Rows to compare at once: all, where a mean over the rows is taken away."""
    first = row.axes[0]
    whole = row.centre == first or (row.averaged and first == "residual")
    if y.ndim < 2 or whole:
        return [slice(0, len(y))]
    return list(blocks(len(y), y.shape[1]))


class Looked(NamedTuple):
    """What entries should be, which hold an old one, which are wrong."""

    want: Tensor
    held: Tensor
    wrong: Tensor


def looked_at(
    x: Tensor,
    y: Tensor,
    row: Row,
    origins: Sequence[Tensor],
    growth: Growth,
    rows: slice,
) -> Looked:
    """Each entry of some rows of y."""
    y, first = y[rows], origins[0][rows]
    if len(y) < len(origins[0]):  # the source's rows in the order of these
        x = x.index_select(0, first.clamp(min=0))
        first = torch.where(first < 0, -1, torch.arange(len(first)))
    origins = [first, *origins[1:]]
    along = [origin >= 0 for origin in origins]
    if row.averaged:
        along[row.axes.index("residual")] |= True
    held, silent = outer(along), outer(must_be_zero(row, origins))
    if stays(x, y, row):
        want = taken(x, origins).to(y.dtype)
        close = y == want
    else:
        want, size = expected(x, row, origins, growth)
        close = neighbours(y.double(), want, size, y.dtype)
    wrong = torch.where(held, ~close, silent & (y != 0)) | ~y.isfinite()
    return Looked(want, held, wrong)


def must_be_zero(row: Row, origins: Sequence[Tensor]) -> list[Tensor]:
    """For each dimension, where new entries lie that would reach the residual stream.

    New lanes, of what writes them and of a norm's bias, that old entries would fill.
    """
    writes = row.is_writer or (row.norm and row.reads is None)
    if not writes or "residual" not in row.axes:
        return [torch.zeros(len(origin), dtype=torch.bool) for origin in origins]
    return [
        origin < 0 if axis == "residual" else origin >= 0
        for axis, origin in zip(row.axes, origins, strict=True)
    ]


def mended(y: Tensor, seen: Looked) -> Tensor:
    """y with what is wrong as it should be, rounded once."""
    want = torch.where(seen.held, seen.want, 0).to(y.dtype)
    return torch.where(seen.wrong, want, y)


def length(x: Tensor) -> float:
    """‖x‖."""
    return float((x * x).sum().sqrt())


def missed(name: str, y: Tensor, seen: Looked) -> Miss:
    """What is wrong with a tensor, and first where; seen: all of its entries."""
    want, held, wrong = seen
    want = torch.where(held, want, 0)
    index = tuple(int(i) for i in wrong.nonzero()[0])
    got, exact = float(y[index]), float(want[index])
    said = f"holds {got:.6g}, expected {exact:.6g}"
    if not bool(held[index]):
        said = f"holds {got:.6g}, expected 0: nothing may be written to a new lane"
    inside, w = y[held].double(), want[held].double()
    size = length(w) or 1.0
    k = float((inside * w).sum() / (w * w).sum().clamp(min=1e-300))
    off = length(inside - k * w) / size
    if abs(k - 1) > 1e-3 and off < 0.01 * abs(k):
        said += f" (all of it is {k:.4g} of what it should be)"
    alike = neighbours(inside, w * k, (w * k).abs(), y.dtype).all()
    clean = bool(alike) and not bool((wrong & ~held).any())
    narrow = {t for t in NARROW if torch.equal(inside, w.to(t).double())}
    return Miss(
        name=name,
        said=said,
        index=index,
        wrong=int(wrong.sum()),
        relative=length(inside - w) / size,
        narrow=frozenset(narrow),
        factor=(k, 4 * unit_roundoff(y.dtype) / len(w) ** 0.5) if clean else None,
        rows=tuple(integers(wrong.flatten(1).any(1).nonzero().flatten()[:ROWS]))
        if wrong.ndim > 1
        else (),
    )
