"""`with ordered():` any torch code, in float64, with every sum in index order.

A model's own code, run so, is the same function of its weights, but its sums are
those of `growproof.spelled` and its float32 islands (softmax, norms, rotary angles) are
float64. Zero-padding is then exact in it, bit for bit. An operator that is not known to
be exact is an error that names it.
"""

import functools
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, _decomp, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from growproof import spelled
from growproof.spelled import NotOrdered

# One entry out of the entries in its place, whatever place that is: tested for each.
ELEMENTWISE = frozenset(
    """abs atan ceil clamp clamp_max clamp_min cos div eq erf erfc exp expm1 floor ge gt
    isfinite isinf isnan le log log10 log1p log2 logical_and logical_not logical_or lt
    masked_fill maximum minimum mul ne neg reciprocal relu round sgn sign sin sqrt tan tanh
    threshold threshold_backward trunc where""".split()  # noqa: SIM905
)

# Entries moved, chosen, counted, made; running sums, which are in index order on a CPU.
MOVED = frozenset(
    """_local_scalar_dense _reshape_alias _to_copy _unsafe_view alias all amax amin any
    argmax argmin as_strided cat clone constant_pad_nd copy cumsum detach embedding empty
    empty_like empty_strided equal expand eye fill flip full full_like gather histc index
    index_copy index_select lift lift_fresh masked_select max min new_empty
    new_empty_strided new_full new_ones new_zeros nonzero ones ones_like permute repeat
    roll scalar_tensor scatter select select_backward select_scatter slice slice_backward
    slice_scatter sort split split_with_sizes squeeze stack t topk transpose tril triu
    unbind unfold unsqueeze view zero zeros zeros_like""".split()  # noqa: SIM905
)

# Of these names, but reading bits anew, or adding up.
NOT_MOVED = (
    "aten.view.dtype",
    "aten.scatter.reduce",
    "aten.scatter.value_reduce",
    "aten.scatter_.reduce",
    "aten.scatter_.value_reduce",
)

SPELLED: dict[str, Callable[..., Any]] = {
    "mm": spelled.matmul,
    "bmm": spelled.matmul,
    "addmm": spelled.addmm,
    "baddbmm": spelled.addmm,
    "mv": spelled.mv,
    "dot": spelled.dot,
    "_grouped_mm": spelled.grouped_mm,
    "add": spelled.added,
    "sub": spelled.taken,
    "rsub": spelled.taken_from,
    "sum": spelled.total,
    "mean": spelled.mean,
    "index_add": spelled.index_add,
    "scatter_add": spelled.scatter_add,
    "index_put": spelled.index_put,
    "_index_put_impl": spelled.index_put,
    "embedding_dense_backward": spelled.embedding_dense_backward,
    "arange": spelled.arange,
    "pow": spelled.power,
    "rsqrt": spelled.rsqrt,
    "sigmoid": spelled.sigmoid,
    "silu": spelled.silu,
    "gelu": spelled.gelu,
    "softplus": spelled.softplus,
    "_softmax": spelled.softmax,
    "_safe_softmax": spelled.safe_softmax,
    "_log_softmax": spelled.log_softmax,
    "native_layer_norm": spelled.layer_norm,
    "_fused_rms_norm": spelled.rms_norm,
    "_scaled_dot_product_flash_attention_for_cpu": spelled.attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": spelled.attention_backward,
}

# Taken apart by torch's own formulas, whose parts are judged in their turn.
TAKEN_APART = frozenset(
    """_fused_rms_norm_backward _log_softmax_backward_data _softmax_backward_data
    gelu_backward native_layer_norm_backward nll_loss_backward nll_loss_forward
    sigmoid_backward silu_backward softplus_backward tanh_backward""".split()  # noqa: SIM905
)

FORMULAS: dict[Any, Callable[..., Any]] = _decomp.decomposition_table  # pyright: ignore


@dataclass(frozen=True)
class Operator:
    """An aten operator's name without overload and `_`, and what it does to memory."""

    name: str
    writes: bool  # into its first argument
    views: bool  # its first argument
    known: bool  # False for the exceptions to the names


@functools.cache
def operator(func: Any) -> Operator:
    """What the schema of an operator's overload says."""
    schema = func._schema
    namespace, name = schema.name.split("::")
    name = name.removesuffix("_") if schema.is_mutable else name
    aliases = any(result.alias_info for result in schema.returns)
    return Operator(
        name=name if namespace == "aten" else schema.name,
        writes=schema.is_mutable,
        views=aliases and not schema.is_mutable,
        known=str(func) not in NOT_MOVED
        and not any(argument.is_out for argument in schema.arguments),
    )


class Ordered(TorchDispatchMode):
    """Every operator below autograd: moved or elementwise, spelled out, or refused."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The value of `func`, in float64 and index order."""
        op, kwargs = operator(func), wide_kwargs(kwargs or {})
        inputs = tensors((*args, *kwargs.values()))
        check(func, op, args, inputs)
        if op.views and op.name in MOVED:
            return func(*args, **kwargs)
        if any(is_narrow(x.dtype) for x in inputs):
            args, kwargs = widened(args), {k: widened(v) for k, v in kwargs.items()}
        if op.name in ELEMENTWISE or op.name in MOVED:
            return func(*args, **kwargs)
        if not any(x.is_floating_point() for x in inputs):
            out = func(*args, **kwargs)
            if not any(x.is_floating_point() for x in tensors((out,))):
                return out  # integers add up the same in any order
        if op.name in SPELLED:
            out = SPELLED[op.name](*args, **kwargs)
            return args[0].copy_(out) if op.writes else out
        return self.taken_apart(func, op, args, kwargs)

    def taken_apart(self, func: Any, op: Operator, args: Any, kwargs: Any) -> Any:
        """The value of `func` by its parts; what has none is refused."""
        with self:
            if op.name in TAKEN_APART:
                return FORMULAS[func](*args, **kwargs)
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:
            raise refusal(func, "is not known to be exact: spell it out")
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, and to say so would import the compiler."""
        return False


def check(func: Any, op: Operator, args: Any, inputs: list[Tensor]) -> None:
    """Refuse other devices, complex numbers, and writing into narrow floats."""
    for x in inputs:
        if x.device.type != "cpu":
            raise refusal(func, f"is on {x.device}: sums are in index order on a CPU")
        if x.is_complex():
            raise refusal(func, "has complex numbers")
    if not op.known:
        raise refusal(func, "is not known to be exact")
    if op.writes and is_narrow(args[0].dtype):
        raise refusal(func, f"writes into {args[0].dtype}: make the model .double()")


class Constants(TorchFunctionMode):
    """Constants written in float32 are made in float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """`torch.tensor` and `torch.as_tensor` with a wide dtype; all else as it is."""
        if func in (torch.tensor, torch.as_tensor):
            return func(*args, **wide_kwargs(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def ordered(*models: nn.Module) -> Generator[None]:
    """Within it torch computes in float64, with every sum in index order, on the CPU.

    models: their rotary frequencies and other constants, which are float32 buffers, are
    made anew in float64, and put back afterwards. Weights of any dtype are read as they
    are, exactly; for gradients let them be float64. `backward` belongs inside as well.
    Raises NotOrdered, which names the operator, for what cannot be made exact.
    """
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, default)
        torch.set_default_dtype(torch.float64)
        stack.enter_context(Constants())
        stack.enter_context(Ordered())
        for model in models:
            stack.enter_context(wide_constants(model))
        yield


@contextmanager
def wide_constants(model: Any) -> Generator[None]:
    """Rotary frequencies and embedding scales in float64, computed and not widened."""
    kept: list[tuple[Any, dict[str, Tensor]]] = []
    try:
        for name, module in model.named_modules():
            buffers = constants(module)
            if any(x.is_floating_point() for x in buffers.values()):
                kept.append((module, buffers))
                module._buffers.update(made_anew(name, module))
        yield
    finally:
        for module, buffers in kept:
            for name in constants(module):
                del module._buffers[name]
            module._buffers.update(buffers)


def constants(module: Any) -> dict[str, Tensor]:
    """Its buffers that a checkpoint does not hold, so that its code makes them."""
    return {name: module._buffers[name] for name in module._non_persistent_buffers_set}


def made_anew(name: str, module: Any) -> dict[str, Tensor]:
    """The constants of a module as its own code makes them, in today's default dtype."""
    if hasattr(module, "scalar_embed_scale"):
        return {"embed_scale": torch.tensor(module.scalar_embed_scale)}
    if hasattr(module, "config") and not list(module.parameters()):
        return constants(type(module)(config=module.config))
    raise NotOrdered(
        f"{name} ({type(module).__name__}) has constants in float32"
        f" ({', '.join(sorted(constants(module)))}), and how they are"
        " made is not known: teach growproof.arithmetic.made_anew"
    )


def refusal(func: Any, why: str) -> NotOrdered:
    """The error that names an operator."""
    return NotOrdered(f"under growproof.ordered() {func} {why}")


def is_narrow(dtype: Any) -> bool:
    """Whether it is a floating dtype with fewer digits than float64."""
    return isinstance(dtype, torch.dtype) and (
        dtype.is_floating_point and dtype != torch.float64
    )


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operator's arguments, or in lists among them."""
    found: list[Tensor] = []
    for x in values:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, list | tuple):
            found.extend(tensors(cast("list[Any]", x)))
    return found


def widened(x: Any) -> Any:
    """Narrow floats in float64, which changes no value."""
    if isinstance(x, list | tuple):
        return [widened(each) for each in cast("list[Any]", x)]
    return x.double() if isinstance(x, Tensor) and is_narrow(x.dtype) else x


def wide_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """No dtype below float64."""
    narrow = {k: torch.float64 for k, v in kwargs.items() if is_narrow(v)}
    return kwargs | narrow


def multiplied(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in index order; batch axes broadcast."""
    if a.shape[:-2] != b.shape[:-2] and b.ndim > 2:
        shapes: Any = torch
        batch: tuple[int, ...] = shapes.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = (x.expand(*batch, *x.shape[-2:]) for x in (a, b))
    return spelled.matmul(a, b)


def summed(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """`Tensor.sum` in index order."""
    return spelled.total(x, dim, keepdim)


def silu(x: Tensor, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.silu`, never in place."""
    del inplace
    return spelled.silu(x)


IN_ORDER: dict[Any, Callable[..., Any]] = {
    torch.matmul: multiplied,
    torch.Tensor.matmul: multiplied,
    torch.Tensor.__matmul__: multiplied,
    torch.Tensor.sum: summed,
    torch.sum: summed,
    torch.rsqrt: spelled.rsqrt,
    torch.nn.functional.silu: silu,
    torch.nn.functional.gelu: spelled.gelu,
}


class InOrder(TorchFunctionMode):
    """The same for code that is known to need no more: the clone, in float64.

    Its products, sums and curved functions are spelled out; what else it calls is
    elementwise or moves entries. A tenth of the time of `ordered`.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The value of `func`, in index order."""
        spelled_out: Callable[..., Any] = IN_ORDER.get(func) or func
        return spelled_out(*args, **(kwargs or {}))
