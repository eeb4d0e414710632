"""The attention kernels: how each is forced, where it runs, and the proof that it ran.

A kernel that was asked for is not a kernel that ran: "sdpa" chooses among four, and
falls back in silence. So every run here goes through `attending`, which forces one
kernel and then looks for its own name among the operators (on a GPU, the launched
kernels) that torch's profiler saw.

float32 under a GPU's FlashAttention means float32 weights under autocast to bfloat16:
those kernels have no float32, and a pure float32 model must fail there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from growproof.models import model_of, state_of
from growproof.rounding import Perturbed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from properties.errors import ledger

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


class WrongKernel(AssertionError):
    """A run in which the kernel that was asked for did not run, or not alone."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One attention kernel on one device.

    implementation: its name to transformers. ran: what the profiler must have seen.
    dtypes: of the weights. autocast: those of them that run under bfloat16 autocast.
    package: the module it comes from, with how to get it. multiple: of head_dim.
    """

    name: str
    device: str
    implementation: str
    ran: str
    dtypes: tuple[str, ...] = tuple(DTYPES)
    autocast: tuple[str, ...] = ()
    masks: bool = True
    package: str | None = None
    multiple: int = 1

    @property
    def id(self) -> str:
        """Its name in test ids."""
        return f"{self.name}-{self.device}"

    def takes(self, head_dim: int) -> bool:
        """Whether it has that head_dim."""
        return head_dim % self.multiple == 0

    def missing(self) -> str | None:
        """Why it cannot run here and what would change that, or None if it can."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return (
                f"{self.name} on cuda needs an NVIDIA GPU and a CUDA build of torch, and "
                f"torch {torch.__version__} sees none: run `pytest integration` on a "
                "machine with one (bfloat16 kernels: compute capability 8.0 or more)"
            )
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.name} needs the package {self.package}: {GET[self.package]}"
        return None


GET = {
    "flash_attn": "pip install flash-attn, or the `gpu` extra of growproof",
    "flash_attn_interface": "FlashAttention-3, for Hopper GPUs: pip install fa3-fwd and "
    "give it the module name flash_attn_interface that transformers looks for",
}

# Attention that no row below names: seen beside a kernel, it is a stranger.
UNNAMED = r"efficient_attention|cudnn_attention|fmha_cutlass|cudnn_generated"
GPU_FLASH = {"dtypes": ("bfloat16", "float32"), "autocast": ("float32",)}
KERNELS = (
    Kernel(name="eager", device="cpu", implementation="eager", ran=r"^aten::_softmax$"),
    Kernel(
        name="sdpa_math", device="cpu", implementation="growproof_math",
        ran=r"^aten::_scaled_dot_product_attention_math$",
    ),
    Kernel(
        name="torch_flash", device="cpu", implementation="growproof_torch_fa",
        ran=r"^aten::_scaled_dot_product_flash_attention_for_cpu$",
    ),
    Kernel(name="eager", device="cuda", implementation="eager", ran=r"^aten::_softmax$"),
    Kernel(
        name="sdpa_math", device="cuda", implementation="growproof_math",
        ran=r"^aten::_scaled_dot_product_attention_math$",
    ),
    Kernel(
        name="torch_flash", device="cuda", implementation="growproof_torch_fa",
        ran=r"pytorch_flash::flash_fwd", masks=False, **GPU_FLASH,
    ),
    Kernel(
        name="flash_attention_2", device="cuda", implementation="flash_attention_2",
        ran=r"(?<!pytorch_)\bflash::flash_fwd", package="flash_attn", **GPU_FLASH,
    ),
    Kernel(
        name="flash_attention_3", device="cuda", implementation="flash_attention_3",
        ran=r"\bflash::FlashAttnFwd", package="flash_attn_interface", multiple=8,
        **GPU_FLASH,
    ),
)  # fmt: skip


def forced(backend: SDPBackend) -> Any:
    """transformers' sdpa attention with one backend: torch raises rather than fall back."""

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        with sdpa_kernel(backend):
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, **options
            )

    return attention


# A name with "flash" in it would be fetched from the hub, and without a mask function of
# the same name a model would silently attend to its padding.
for _name, _backend in (
    ("growproof_math", SDPBackend.MATH),
    ("growproof_torch_fa", SDPBackend.FLASH_ATTENTION),
):
    AttentionInterface.register(_name, forced(_backend))
    AttentionMaskInterface.register(_name, sdpa_mask)


def available() -> list[Kernel]:
    """The kernels that can run here, the best device's only."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [k for k in KERNELS if k.device == device and k.missing() is None]


def named(name: str, device: str) -> Kernel:
    """The kernel of that name on that device."""
    return next(k for k in KERNELS if (k.name, k.device) == (name, device))


def device_name(device: str) -> str:
    """The device as the ledger names it."""
    return torch.cuda.get_device_name() if device == "cuda" else device


@contextlib.contextmanager
def attending(model: Any, kernel: Kernel) -> Iterator[None]:
    """Run the body with `model` on `kernel`, and prove that this kernel ran in it.

    The model must be on the kernel's device. Raises WrongKernel if the profiler did not
    see the kernel, or saw another one; the attention setting is put back.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    before = model.config._attn_implementation
    model.set_attn_implementation(kernel.implementation)
    autocast = (
        torch.autocast(kernel.device, torch.bfloat16)
        if dtype in kernel.autocast
        else contextlib.nullcontext()
    )
    try:
        with proof(kernel), autocast:
            yield
    finally:
        model.set_attn_implementation(before)


@contextlib.contextmanager
def proof(kernel: Kernel) -> Iterator[None]:
    """Profile the body; raise WrongKernel unless `kernel`, and no other, ran in it."""
    activities = [ProfilerActivity.CPU]
    if kernel.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    seen = profile(activities=activities)
    with silent_stderr():
        seen.start()
    try:
        yield
    finally:
        with silent_stderr():
            seen.stop()
    check(kernel, names_in(seen))


def names_in(seen: profile) -> set[str]:
    """Those of its `key_averages`, whose sums would cost more than the run."""
    results = seen.profiler and seen.profiler.kineto_results
    assert results
    return {torch._C._demangle(x) for x in {event.name() for event in results.events()}}


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what C++ writes to stderr: torch 2.13's profiler notes each start and stop."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check(kernel: Kernel, names: set[str]) -> None:
    """Raise WrongKernel unless the profiled names show this kernel and no other."""
    attention = sorted(
        n for n in names if re.search(r"scaled_dot|flash|fmha|cudnn_gen", n)
    )
    if not any(re.search(kernel.ran, name) for name in names):
        raise WrongKernel(
            f"{kernel.id} was asked for and did not run: nothing that the profiler saw "
            f"matches {kernel.ran!r}; of attention it saw {attention or 'nothing'}"
        )
    others = [k.ran for k in KERNELS if k.device == kernel.device and k.name != "eager"]
    patterns = [UNNAMED, *(ran for ran in others if ran != kernel.ran)]
    strangers = sorted(n for n in names if any(re.search(p, n) for p in patterns))
    if strangers:
        raise WrongKernel(
            f"{kernel.id} was asked for and did not run alone: the profiler also saw "
            f"{strangers}"
        )


# --- how near is near enough ------------------------------------------------------------

# FlashAttention's own convention for low precision: the distance from the float64 truth
# is at most twice that of the plain implementation, here of the original model in the
# same dtype on the same kernel. Where that one happens to be exact (float64 is its own
# truth) the convention asks for the impossible, so that the floor is what rounding the
# weights once more, which growing does, changes in the truth itself.
TWICE = 2.0


def cast(model: Any, dtype: str, device: str) -> Any:
    """A copy of the model in a dtype on a device (its rotary buffer stays float32)."""
    to = DTYPES[dtype]
    state = {n: p.to(device, to, copy=True) for n, p in state_of(model).items()}
    copy = model_of(model.config, state, model)
    copy.model.rotary_emb.to(device)
    return copy


def shaken(model: Any, dtype: str) -> Any:
    """A float64 copy, on its device, whose weights are each 1 ± u of `dtype` off."""
    state = Perturbed(state_of(model), DTYPES[dtype], seed=1)
    return model_of(model.config, state, model)


def rounds_in(kernel: Kernel, dtype: str) -> str:
    """The dtype whose u an attention kernel's results carry.

    transformers' eager softmax is in float32 whatever the weights are, and float32
    weights under autocast are multiplied in bfloat16.
    """
    if dtype in kernel.autocast:
        return "bfloat16"
    return "float32" if (kernel.name, dtype) == ("eager", "float64") else dtype


def distance(x: Tensor, truth: Tensor) -> float:
    """‖x − truth‖ / ‖truth‖, Frobenius, in float64."""
    x, truth = x.double(), truth.double()
    return float((x - truth).norm() / truth.norm())


def record(
    law: str, ratio: float, relative: float, kernel: Kernel, dtype: str, example: str
) -> None:
    """Put a grown model's distance into the error ledger.

    ratio: its distance, in units of the larger of the original's own and the floor.
    """
    ledger.record(
        ledger.Comparison(
            law=law, tap="logits", family="stablelm", dtype=dtype, kernel=kernel.name,
            device=device_name(kernel.device), size="small", ratio=ratio,
            ulps=relative / torch.finfo(DTYPES[dtype]).eps, relative=relative,
            budget=TWICE, example=example,
        )
    )  # fmt: skip
