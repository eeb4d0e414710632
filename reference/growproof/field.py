# pyright: standard
"""transformers' own code over residues: equal logits mean equal functions.

Inside `with Field(primes, seed) as field:` a model whose weights are `field.random` or
`field.lift` tensors computes with residues (see residues.py). Sums, products,
quotients are exact; √ is multiplicative; every other function is a random one (zero at
zero where the real one is), a comparison a fixed function of the residues, rotary cos
and sin random functions of the angle as a real number, −∞ a mark, and dropout at rate p
a symbol. Two models that agree then are equal as terms in these functions, whatever
those are.

How sure that is: a value of a random function is a variable of its own, unless two
different arguments agree modulo all primes at once. Roots and inverses count as
variables as well. So a logit is a polynomial of small degree d in variables (an
exponential and the sum that it is divided by are two), and different ones agree modulo
p for at most d/p of the draws (Schwartz 1980). A root is that of ±x, and which sign is a
coin: an identity that is wrong only in such a sign must guess it right for every token
and prime.

What is refused (NotImplementedError) is an operation that is not here, by its name, and
a number that would have to leave the field, by `.item()` or a branch on it.

`Wide` is the float64 that the models are compared with otherwise: no cast, constant or
buffer below float64.
"""

import functools
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from growproof import field_moves  # noqa: F401
from growproof.field_ops import OPS
from growproof.residues import MARK, Residues

LOW = (torch.float32, torch.float16, torch.bfloat16)
MASKED = -1e30  # what a mask adds at or below this is −∞


@dataclass
class Bound:
    """Of a tensor and its views: the degree as a polynomial, and whether −∞ may occur."""

    degree: int = 0
    marked: bool = False

    def __or__(self, other: "Bound") -> "Bound":
        return Bound(max(self.degree, other.degree), self.marked or other.marked)


class FieldTensor(Tensor):
    """A tensor of residues, float64 to the outside."""

    residues: Tensor
    field: "Field"
    bound: Bound
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(
        cls: Any, field: "Field", residues: Tensor, bound: Bound
    ) -> "FieldTensor":
        """Views of the residues are views outside, with the same strides."""
        width = residues.shape[-1]
        strides = [s // width for s in residues.stride()[:-1]]
        self = Tensor._make_wrapper_subclass(
            cls, residues.shape[:-1], strides=strides, dtype=torch.float64
        )
        self.residues, self.field, self.bound = residues, field, bound
        return self

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The operation, in the field of its first tensor."""
        given = leaves([args, list((kwargs or {}).values())])
        found = next(x for x in given if isinstance(x, FieldTensor))
        return found.field.run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"FieldTensor({tuple(self.shape)}, degree {self.bound.degree})"


@functools.cache
def described(func: Any) -> tuple[str, list[str]]:
    """An aten operation's name, and its arguments'."""
    schema = func._schema
    return schema.name.removeprefix("aten::"), [a.name for a in schema.arguments]


def leaves(x: Any) -> list[Any]:
    """Everything in nested lists and tuples."""
    if type(x) in (list, tuple):
        return [leaf for part in x for leaf in leaves(part)]
    return [x]


class Wide(TorchDispatchMode):
    """No float below float64: casts, constants and buffers made inside are float64."""

    def __enter__(self) -> Any:
        self.default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.set_default_dtype(self.default)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **widened(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, and to say so takes longer than many an operation."""
        return False


def widened(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an operation, with float64 for any lower dtype."""
    low = kwargs.get("dtype") in LOW
    return kwargs | {"dtype": torch.float64} if low else kwargs


class Field(Wide):
    """A ring of residues, and the mode in which models run over it.

    calls: how many values of random functions, roots and inverses were taken. degree:
    the largest of any value as a polynomial, each of those values a variable.
    """

    def __init__(self, primes: Sequence[int], seed: int) -> None:
        super().__init__()
        self.ring = Residues(primes, seed)
        self.calls, self.degree = 0, 1

    def random(self, shape: Sequence[int]) -> FieldTensor:
        """Independent variables."""
        return self.tensor(self.ring.random(shape), 1)

    def lift(self, x: Tensor) -> FieldTensor:
        """Real numbers; those at or below MASKED are −∞."""
        low = x <= MASKED
        out = torch.where(low[..., None], MARK, self.ring.lift(x))
        return self.tensor(out, 0, marked=bool(low.any()))

    def tensor(
        self, residues: Tensor, degree: int, *, marked: bool = False
    ) -> FieldTensor:
        """Residues as a tensor of this field."""
        self.degree = max(self.degree, degree)
        return FieldTensor(self, residues, Bound(degree, marked))

    def of(self, x: Any) -> FieldTensor:
        """Anything that an operation takes for a number."""
        if isinstance(x, FieldTensor):
            return x
        return self.lift(x) if isinstance(x, Tensor) else self.scalar(float(x))

    @functools.cache  # noqa: B019
    def scalar(self, x: float) -> FieldTensor:
        """One real number."""
        return self.lift(torch.tensor(x, dtype=torch.float64))

    def plain(self, *values: Any) -> list[FieldTensor]:
        """Numbers among which there is no −∞; NotImplementedError where there is."""
        found = [self.of(x) for x in values]
        if any(x.bound.marked and bool((x.residues == MARK).any()) for x in found):
            raise NotImplementedError("the field: the −∞ of a mask is no number here")
        return found

    def error(self) -> float:
        """log₂ of the chance that two different terms of one run agree, at most."""
        pairs = 2 * math.log2(self.calls + 2)
        each = math.log2(self.degree) - math.log2(min(self.ring.primes))
        return pairs + each * len(self.ring.primes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One aten operation on residues, real numbers, or both."""
        name, _ = described(func)
        kwargs = widened(kwargs) if kwargs else kwargs
        given = leaves([args, list(kwargs.values())])
        if not any(isinstance(x, FieldTensor) for x in given):
            return self.real(name, func, args, kwargs)
        if name in STRUCTURE:
            return self.moved(func, args, kwargs)
        handler, base = OPS.get(name), OPS.get(name.removesuffix("_"))
        try:
            if handler:
                return handler(self, *args, **kwargs)
            if base and name.endswith("_"):
                return self.written(args[0], base(self, *args, **kwargs))
        except NotImplementedError as error:
            raise NotImplementedError(f"{error} (aten::{name})") from None
        if func.has_kernel_for_dispatch_key(
            torch._C.DispatchKey.CompositeImplicitAutograd
        ):
            return func.decompose(*args, **kwargs)
        raise NotImplementedError(f"the field knows no operation aten::{name}")

    def real(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation on real numbers alone: angles and zeros enter the field here."""
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.is_floating_point():
            if name in ("cos", "sin"):
                self.calls += args[0].numel()
                return self.tensor(
                    self.ring.function(name, self.ring.words(args[0])), 1
                )
            if name in ZEROS:
                width = len(self.ring.primes)
                return self.tensor(
                    torch.zeros((*out.shape, width), dtype=torch.int64), 0
                )
        return out

    def written(self, target: Any, value: FieldTensor) -> FieldTensor:
        """target[...] = value, in place."""
        if not isinstance(target, FieldTensor):
            raise NotImplementedError("the field: residues written into real numbers")
        target.residues.copy_(value.residues)
        target.bound.degree = max(target.bound.degree, value.bound.degree)
        target.bound.marked |= value.bound.marked
        return target

    def moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation that only moves entries, with the axis of primes kept last."""
        op, names = described(func)
        given = dict(zip(names, args, strict=False)) | kwargs
        given = {n: x for n, x in given.items() if n in names and n != "memory_format"}
        first = next(iter(given))
        sources = [self.of(x) for x in leaves(given[first])]
        rank = max(x.dim() for x in sources)
        if op == "cat":  # torch joins an empty vector to anything
            sources = [x for x in sources if x.shape != (0,)] or sources[:1]
        if op == "t":
            return self.like(
                sources, sources[0].residues.transpose(0, max(rank - 1, 0))
            )
        for n, x in given.items():
            given[n] = adapted(op, n, x, rank, len(self.ring.primes))
        tensors = [x.residues for x in sources]
        given[first] = tensors if isinstance(given[first], list | tuple) else tensors[0]
        return self.like(sources, func(given.pop(first), **given))

    def like(self, sources: list[FieldTensor], out: Any) -> Any:
        """Residues that come from `sources`: with one source, possibly its views."""
        if not isinstance(out, Tensor):
            return [self.like(sources, x) for x in out]
        bound = sources[0].bound
        if len(sources) > 1:
            bound = functools.reduce(Bound.__or__, (x.bound for x in sources))
        return FieldTensor(self, out, bound)


ZEROS = {"zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty"}
MOVES = """view _unsafe_view reshape expand permute transpose t unsqueeze squeeze select
slice split split_with_sizes unbind alias detach lift_fresh index_select repeat roll flip
narrow unfold cat stack index diagonal"""
STRUCTURE = set(MOVES.split())


def adapted(op: str, name: str, x: Any, rank: int, width: int) -> Any:
    """An argument of a moving operation, for tensors with one more axis at the end."""
    rank += op in ("unsqueeze", "stack")
    if name in ("dim", "dims", "dim0", "dim1", "dimension") and x is not None:
        dims = [
            d + rank if d < 0 else d for d in ([x] if isinstance(x, int) else list(x))
        ]
        dims += [rank] if op == "permute" else []
        return dims[0] if isinstance(x, int) else dims
    if name in ("size", "shape", "repeats"):
        return [*(x or ()), 1 if name == "repeats" else width]
    return x


# ---------------------------------------------------------------- models


@contextmanager
def held(model: nn.Module, values: Mapping[int, Tensor]) -> Generator[None]:
    """The live model with other tensors: id of a parameter or buffer → what stands in.

    Ties are kept, and hooks, replaced modules and patched forwards take part.
    """
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for module in model.modules():
            slots: Any
            for slots in (module._parameters, module._buffers):
                kept.append((slots, dict(slots)))
                slots |= {n: values.get(id(x), x) for n, x in slots.items()}
        yield
    finally:
        for slots, before in kept:
            slots |= before
