# pyright: standard
"""What each aten operation means over residues: one short function for each.

A handler takes the field, then what the operation takes: residues, real numbers, or
both. Sums, products, quotients and roots are the ring's. Any other function of a number
is a random one of its name and constants.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from growproof.residues import MARK

if TYPE_CHECKING:
    from growproof.field import Field, FieldTensor

Handler = Callable[..., Any]
OPS: dict[str, Handler] = {}


def op(*names: str) -> Callable[[Handler], Handler]:
    """Registers handler(field, *args, **kwargs) for these aten operations."""

    def register(handler: Handler) -> Handler:
        OPS.update(dict.fromkeys(names, handler))
        return handler

    return register


# ---------------------------------------------------------------- sums and products


def signed(sign_a: int, sign_b: int) -> Handler:
    def total(field: "Field", a: Any, b: Any, alpha: Any = 1) -> "FieldTensor":
        x, y = field.of(a), field.of(times(field, b, alpha))
        ends = (y, x) if sign_a < 0 else (x, y)
        out = torch.add(*(z.residues for z in ends), alpha=sign_a * sign_b)
        out.remainder_(field.ring.p)
        bound = x.bound | y.bound
        if bound.marked:
            low = (x.residues == MARK) | (y.residues == MARK)
            out = torch.where(low, MARK, out)
        return field.tensor(out, bound.degree, marked=bound.marked)

    return total


OPS |= {"add": signed(1, 1), "sub": signed(1, -1), "rsub": signed(-1, 1)}


@op("mul", "multiply")
def mul(field: "Field", a: Any, b: Any) -> "FieldTensor":
    x, y = field.plain(a, b)
    degree = x.bound.degree + y.bound.degree
    return field.tensor((x.residues * y.residues).remainder_(field.ring.p), degree)


def times(field: "Field", x: Any, factor: Any) -> Any:
    return x if factor == 1 else mul(field, x, factor)


@op("neg")
def neg(field: "Field", x: Any) -> "FieldTensor":
    return mul(field, x, -1)


@op("reciprocal")
def inverse(field: "Field", x: Any) -> "FieldTensor":
    (x,) = field.plain(x)
    return variable(field, field.ring.inverse(x.residues), x)


@op("div", "divide", "true_divide")
def div(field: "Field", a: Any, b: Any, rounding_mode: Any = None) -> "FieldTensor":
    if rounding_mode:
        raise NotImplementedError("the field: a quotient is not rounded")
    return mul(field, a, inverse(field, b))


@op("sqrt")
def sqrt(field: "Field", x: Any) -> "FieldTensor":
    (x,) = field.plain(x)
    return variable(field, field.ring.root(x.residues), x)


@op("rsqrt")
def rsqrt(field: "Field", x: Any) -> "FieldTensor":
    (x,) = field.plain(x)
    return variable(field, field.ring.inverse_root(x.residues), x)


def variable(field: "Field", residues: Tensor, x: "FieldTensor") -> "FieldTensor":
    """A value that counts as a variable, unless its argument is a constant."""
    field.calls += x.numel()
    return field.tensor(residues, min(x.bound.degree, 1))


@op("pow", "float_power")
def power(field: "Field", x: Any, exponent: Any) -> "FieldTensor":
    halves = 2 * float(exponent)
    if halves != int(halves):
        raise NotImplementedError(f"the field: the power {exponent}")
    base = x if halves % 2 == 0 else sqrt(field, x)
    base = inverse(field, base) if halves < 0 else base
    count = int(abs(halves)) // (1 if halves % 2 else 2)
    return (
        functools.reduce(lambda a, b: mul(field, a, b), [base] * count)
        if count
        else field.of(torch.ones(x.shape))
    )


@op("square")
def square(field: "Field", x: Any) -> "FieldTensor":
    return mul(field, x, x)


@op("addcmul")
def addcmul(field: "Field", x: Any, a: Any, b: Any, value: Any = 1) -> "FieldTensor":
    return OPS["add"](field, x, mul(field, mul(field, a, b), value))


@op("mm", "bmm", "matmul", "dot", "mv")
def matmul(field: "Field", a: Any, b: Any) -> "FieldTensor":
    x, y = field.plain(a, b)
    left, right = x.residues, y.residues
    left = left[None] if x.dim() == 1 else left
    right = right[:, None] if y.dim() == 1 else right
    out = field.ring.matmul(left, right)
    out = out.squeeze(-2) if y.dim() == 1 else out
    out = out.squeeze(0) if x.dim() == 1 else out
    return field.tensor(out, x.bound.degree + y.bound.degree)


@op("addmm", "baddbmm", "addbmm", "addmv")
def addmm(
    field: "Field", c: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1
) -> "FieldTensor":
    product = times(field, matmul(field, a, b), alpha)
    return product if beta == 0 else OPS["add"](field, product, times(field, c, beta))


@op("linear")
def linear(field: "Field", x: Any, weight: Any, bias: Any = None) -> "FieldTensor":
    out = matmul(field, x, field.of(weight).t())
    return out if bias is None else OPS["add"](field, out, bias)


@op("sum")
def total(
    field: "Field", x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> "FieldTensor":
    (x,) = field.plain(x)
    out = x.residues.sum(axes(x, dim), keepdim=keepdim) % field.ring.p
    return field.tensor(out, x.bound.degree)


def axes(x: "FieldTensor", dim: Any) -> list[int]:
    dims = (
        range(x.dim())
        if dim is None or dim == []
        else [dim]
        if isinstance(dim, int)
        else dim
    )
    return [d % max(x.dim(), 1) for d in dims]


@op("mean")
def mean(
    field: "Field", x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> "FieldTensor":
    count = math.prod(x.shape[d] for d in axes(x, dim))
    return mul(field, total(field, x, dim, keepdim), 1 / count)


@op("var")
def variance(
    field: "Field", x: Any, dim: Any = None, correction: Any = 1, keepdim: bool = False
) -> "FieldTensor":
    count = math.prod(x.shape[d] for d in axes(x, dim))
    off = OPS["sub"](field, x, mean(field, x, dim, True))
    return mul(
        field,
        total(field, mul(field, off, off), dim, keepdim),
        1 / (count - correction),
    )


@op("linalg_vector_norm")
def norm(
    field: "Field",
    x: Any,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> "FieldTensor":
    if ord != 2:
        raise NotImplementedError(f"the field: a norm of order {ord}")
    return sqrt(field, total(field, mul(field, x, x), dim, keepdim))


@op("native_layer_norm")
def layer_norm(
    field: "Field", x: Any, shape: Any, weight: Any, bias: Any, eps: float
) -> Any:
    dims = list(range(-len(shape), 0))
    centre = mean(field, x, dims, True)
    off = OPS["sub"](field, x, centre)
    scale = rsqrt(
        field, OPS["add"](field, mean(field, mul(field, off, off), dims, True), eps)
    )
    out = mul(field, off, scale)
    out = out if weight is None else mul(field, out, weight)
    return (out if bias is None else OPS["add"](field, out, bias)), centre, scale


@op("rms_norm", "_fused_rms_norm")
def rms_norm(
    field: "Field", x: Any, shape: Any, weight: Any = None, eps: Any = None
) -> Any:
    dims = list(range(-len(shape), 0))
    eps = torch.finfo(torch.float64).eps if eps is None else eps
    scale = rsqrt(
        field, OPS["add"](field, mean(field, mul(field, x, x), dims, True), eps)
    )
    out = mul(field, x, scale)
    return out if weight is None else mul(field, out, weight)


# ---------------------------------------------------------------- other functions

ODD = """silu gelu tanh erf relu relu6 leaky_relu elu celu selu mish hardtanh hardswish abs
sin asin atan sinh asinh atanh expm1 log1p sign"""  # zero at zero
OTHER = "exp exp2 sigmoid cos cosh softplus log log2 log10 hardsigmoid erfc"


def applied(name: str, *, odd: bool) -> Handler:
    """h(x), or x · h(x) where f(0) = 0, with h random."""

    def function(
        field: "Field", x: Any, *constants: Any, **named: Any
    ) -> "FieldTensor":
        (x,) = field.plain(x)
        key = (name, constants, sorted(named.items()))
        out = variable(field, field.ring.function(key, x.residues), x)
        return mul(field, x, out) if odd else out

    return function


OPS |= {name: applied(name, odd=True) for name in ODD.split()}
OPS |= {name: applied(name, odd=False) for name in OTHER.split()}


@op("clamp", "clamp_min", "clamp_max")
def clamp(field: "Field", x: Any, low: Any = None, high: Any = None) -> "FieldTensor":
    odd = (low is None or low <= 0) and (high is None or high >= 0)
    return applied("clamp", odd=odd)(field, x, low, high)


@op("_softmax", "softmax")
def softmax(field: "Field", x: Any, dim: int, *_: Any, **__: Any) -> "FieldTensor":
    """E(s) / Σ E(s) over what is not masked, E random; all zero where all is masked."""
    there = x.residues[..., 0] != MARK
    weights = torch.zeros_like(x.residues)
    weights[there] = field.ring.function("exp", x.residues[there])
    total = weights.sum(dim % x.dim(), keepdim=True) % field.ring.p
    empty = ~there.any(dim % x.dim(), keepdim=True)
    share = field.ring.inverse(total.masked_fill(empty[..., None], 1))
    field.calls += x.numel()
    return field.tensor(weights.mul_(share).remainder_(field.ring.p), 2)


@op("max", "amax")
def largest(field: "Field", x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The entry with the largest residue: a fixed function, whatever the order."""
    if dim is None or (not isinstance(dim, int) and len(dim) != 1):
        raise NotImplementedError("the field: a maximum over other than one axis")
    axis = dim if isinstance(dim, int) else dim[0]
    index = x.residues[..., 0].max(axis % x.dim(), keepdim=True).indices
    value = gather(field, x, axis, index)
    value, index = (
        (value, index) if keepdim else (value.squeeze(axis), index.squeeze(axis))
    )
    return (value, index) if isinstance(dim, int) else value


@op("topk", "sort")
def topk(
    field: "Field",
    x: Any,
    k: Any,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> Any:
    """The k entries with the largest residues."""
    index = x.residues[..., 0].topk(k, dim % x.dim(), largest, sorted).indices
    return gather(field, x, dim, index), index


@op("argmax")
def argmax(field: "Field", x: Any, dim: int, keepdim: bool = False) -> Tensor:
    return x.residues[..., 0].argmax(dim % x.dim(), keepdim)


@op("eq", "ne")
def equal(field: "Field", a: Any, b: Any) -> Tensor:
    return (field.of(a).residues == field.of(b).residues).all(-1)


OPS["ne"] = lambda field, a, b: ~equal(field, a, b)
OPS["isnan"] = OPS["isinf"] = lambda field, x: torch.zeros(x.shape, dtype=torch.bool)
OPS["isfinite"] = lambda field, x: torch.ones(x.shape, dtype=torch.bool)


def compared(name: str) -> Handler:
    """A random bit for each difference."""

    def compare(field: "Field", a: Any, b: Any) -> Tensor:
        off = field.plain(OPS["sub"](field, a, b))[0]
        return field.ring.function(name, off.residues)[..., 0] % 2 == 0

    return compare


OPS |= {name: compared(name) for name in ("gt", "ge", "lt", "le")}


def per_prime(index: Tensor, residues: Tensor) -> Tensor:
    return index[..., None].expand(*index.shape, residues.shape[-1])


@op("gather")
def gather(field: "Field", x: Any, dim: int, index: Tensor, **_: Any) -> "FieldTensor":
    out = x.residues.gather(dim % x.dim(), per_prime(index, x.residues))
    return field.tensor(out, x.bound.degree, marked=x.bound.marked)
