"""A module before its weights are there: nothing is allocated that is then thrown away."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Unallocated(TorchFunctionMode):
    """What is to be filled later is on the meta device; what is computed is computed."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


def alone(x: Tensor) -> Tensor:
    """x in memory of its own: one head's norm is a view of all heads'."""
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


@contextmanager
def built_in(dtype: torch.dtype) -> Generator[None]:
    """torch's default dtype, as `from_pretrained` sets it: some buffers keep it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fill_buffers(model: Any) -> None:
    """Compute the buffers of torch.empty, which no checkpoint holds; all on the CPU.

    transformers does it in `_init_weights`, which leaves what is marked as it is.
    """
    buffers = [
        (module, name, x)
        for module in model.modules()
        for name, x in module._buffers.items()
        if x is not None
    ]
    for module, name, x in buffers:
        fresh = torch.empty_like(x, device="cpu") if x.is_meta else x.cpu()
        module._buffers[name] = fresh
    if empty := [module for module, _, x in buffers if x.is_meta]:
        for p in model.parameters():
            p._is_hf_initialized = True
        for module in empty:
            model._init_weights(module)
        for p in model.parameters():
            del p._is_hf_initialized
