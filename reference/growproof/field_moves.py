# pyright: standard
"""Operations that place entries: where, masks, indices, scatters, copies, fills.

A handler takes the field, then what the operation takes (see field_ops.py).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from growproof.field_ops import mul, op, per_prime

if TYPE_CHECKING:
    from growproof.field import Field, FieldTensor


@op("where")
def where(field: "Field", condition: Tensor, a: Any, b: Any) -> "FieldTensor":
    x, y = field.of(a), field.of(b)
    bound = x.bound | y.bound
    out = torch.where(condition[..., None], x.residues, y.residues)
    return field.tensor(out, bound.degree, marked=bound.marked)


@op("masked_fill")
def masked_fill(field: "Field", x: Any, mask: Tensor, value: Any) -> "FieldTensor":
    return where(field, mask, value, x)


@op("_to_copy", "clone")
def copied(
    field: "Field", x: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any
) -> "FieldTensor":
    if dtype and not dtype.is_floating_point:
        raise NotImplementedError(f"a cast to {dtype} has no meaning over residues")
    out = x.residues.clone(memory_format=torch.contiguous_format)
    return field.tensor(out, x.bound.degree, marked=x.bound.marked)


@op("copy_")
def copy_into(
    field: "Field", target: Any, source: Any, _: bool = False
) -> "FieldTensor":
    return field.written(target, field.of(source))


@op("fill_", "fill")
def fill(field: "Field", target: Any, value: Any) -> "FieldTensor":
    return field.written(target, field.of(value))


@op("zero_")
def zero(field: "Field", target: Any) -> "FieldTensor":
    return field.written(target, field.of(0))


@op("zeros_like", "empty_like", "new_zeros", "new_empty")
def zeros(field: "Field", x: Any, size: Any = None, **_: Any) -> "FieldTensor":
    shape = x.shape if size is None else size
    return field.lift(torch.zeros(shape))


@op("ones_like", "new_ones")
def ones(field: "Field", x: Any, size: Any = None, **_: Any) -> Tensor:
    return torch.ones(x.shape if size is None else size, dtype=torch.float64)


@op("full_like")
def full_like(field: "Field", x: Any, value: Any, **_: Any) -> Tensor:
    return torch.full(x.shape, float(value), dtype=torch.float64)


@op("new_full")
def new_full(field: "Field", x: Any, size: Any, value: Any, **_: Any) -> Tensor:
    return torch.full(size, float(value), dtype=torch.float64)


@op("new_tensor", "scalar_tensor")
def new_tensor(field: "Field", x: Any, data: Any, **_: Any) -> Tensor:
    return torch.tensor(data, dtype=torch.float64)


@op("embedding")
def embedding(field: "Field", weight: Any, index: Tensor, *_: Any) -> "FieldTensor":
    return field.tensor(weight.residues[index], weight.bound.degree)


@op("scatter")
def scatter(
    field: "Field", x: Any, dim: int, index: Tensor, source: Any
) -> "FieldTensor":
    x, y = field.of(x), field.of(source)
    at = per_prime(index, x.residues)
    values = y.residues.expand_as(at) if y.dim() == 0 else y.residues
    out = x.residues.scatter(dim % x.dim(), at, values)
    bound = x.bound | y.bound
    return field.tensor(out, bound.degree, marked=bound.marked)


@op("scatter_add")
def scatter_add(
    field: "Field", x: Any, dim: int, index: Tensor, source: Any
) -> "FieldTensor":
    x, y = field.plain(x, source)
    at = per_prime(index, x.residues)
    out = x.residues.scatter_add(dim % x.dim(), at, y.residues) % field.ring.p
    return field.tensor(out, max(x.bound.degree, y.bound.degree))


@op("index_add")
def index_add(
    field: "Field", x: Any, dim: int, index: Tensor, source: Any
) -> "FieldTensor":
    x, y = field.plain(x, source)
    out = x.residues.index_add(dim % x.dim(), index, y.residues) % field.ring.p
    return field.tensor(out, max(x.bound.degree, y.bound.degree))


@op("index_put")
def index_put(
    field: "Field", x: Any, indices: Any, values: Any, accumulate: bool = False, *_: Any
) -> "FieldTensor":
    x, y = field.of(x), field.of(values)
    out = x.residues.index_put(tuple(indices), y.residues, accumulate)
    bound = x.bound | y.bound
    out = out % field.ring.p if accumulate else out
    return field.tensor(out, bound.degree, marked=bound.marked)


@op("slice_scatter")
def slice_scatter(
    field: "Field", x: Any, source: Any, dim: int = 0, *ends: Any
) -> "FieldTensor":
    y = field.of(source)
    out = x.residues.slice_scatter(y.residues, dim % x.dim(), *ends)
    return field.tensor(out, max(x.bound.degree, y.bound.degree), marked=x.bound.marked)


@op("constant_pad_nd")
def pad(field: "Field", x: Any, sizes: Any, value: Any = 0) -> "FieldTensor":
    if value:
        raise NotImplementedError("the field: padded with other than zeros")
    out = torch.constant_pad_nd(x.residues, [0, 0, *sizes])
    return field.tensor(out, x.bound.degree, marked=x.bound.marked)


def everywhere(field: "Field", x: Any, symbol: Tensor) -> "FieldTensor":
    """x, each entry of it this symbol."""
    return field.written(x, field.tensor(symbol.expand(*x.shape, -1).clone(), 0))


@op("bernoulli_", "bernoulli")
def bernoulli(field: "Field", x: Any, p: float = 0.5, **_: Any) -> "FieldTensor":
    """Dropout: a symbol of its rate, so that other rates give other values."""
    symbol = field.ring.function("dropout", field.ring.number(p))
    return everywhere(field, x, symbol)


@op("uniform_", "uniform")
def uniform(field: "Field", x: Any, a: float = 0, b: float = 1, **_: Any) -> Any:
    """Noise, as a router's: a symbol of its bounds."""
    bounds = (
        field.ring.function(end, field.ring.number(y))
        for end, y in (("a", a), ("b", b))
    )
    symbol = field.ring.function("uniform", sum(bounds) % field.ring.p)
    return everywhere(field, x, symbol)


@op("native_dropout")
def native_dropout(field: "Field", x: Any, p: float, train: bool | None) -> Any:
    if not train or p == 0:
        return copied(field, x), torch.ones(x.shape, dtype=torch.bool)
    symbol = field.ring.function("dropout", field.ring.number(1 - p))
    out = mul(field, mul(field, x, field.tensor(symbol, 0)), 1 / (1 - p))
    return out, torch.ones(x.shape, dtype=torch.bool)
