"""The kernel that was asked for is the one that ran, or there is an error that says so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from . import kernels
from .kernels import KERNELS, Kernel, WrongKernel, attending, cast
from .test_kernels import logits, original, requires, text

# --- float32, and what a GPU must refuse ------------------------------------------------


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_pure_float32_is_refused(name: str) -> None:
    """No float32 in those kernels: without autocast they say so, and nothing falls back."""
    kernel = kernels.named(name, "cuda")
    requires(kernel)
    model = cast(original("float32"), "float32", "cuda")
    model.set_attn_implementation(name)
    with pytest.raises(
        (RuntimeError, ValueError), match=r"(?i)fp16|bf16|half|bfloat16"
    ):
        model(text(20, 1, 0)[0].to("cuda"))


def test_pure_float32_is_refused_by_torch_s_flash_attention() -> None:
    """On a GPU; on a CPU the same backend has float32 and float64."""
    requires(kernels.named("torch_flash", "cuda"))
    model = cast(original("float32"), "float32", "cuda")
    model.set_attn_implementation("growproof_torch_fa")
    assert "expected query, key and value" in refused(model, text(20, 1, 0)[0], None)


def test_no_mask_is_refused() -> None:
    """torch's FlashAttention on a GPU takes no mask, and raises rather than ignore it."""
    requires(kernels.named("torch_flash", "cuda"))
    model = cast(original("bfloat16"), "bfloat16", "cuda")
    model.set_attn_implementation("growproof_torch_fa")
    ids, mask = text(20, 2, 5)
    assert mask is not None
    assert "does not support non-null attn_mask" in refused(model, ids, mask)


def refused(model: Any, ids: Tensor, mask: Tensor | None) -> str:
    """Why torch has no kernel on the GPU, as it warns for one after the other."""
    mask = mask if mask is None else mask.to("cuda")
    with (
        warnings.catch_warnings(record=True, action="always") as seen,
        pytest.raises(RuntimeError, match="No available kernel"),
    ):
        model(ids.to("cuda"), attention_mask=mask)
    return " ".join(str(warning.message) for warning in seen).lower()


def test_flash_attention_without_a_gpu_is_an_error_not_a_fallback() -> None:
    if torch.cuda.is_available():
        pytest.skip("about machines without a GPU")
    with pytest.raises((ImportError, ValueError), match=r"(?i)flash"):
        cast(original("bfloat16"), "bfloat16", "cpu").set_attn_implementation(
            "flash_attention_2"
        )


# --- the proof of the kernel ------------------------------------------------------------


def claiming(name: str, implementation: str) -> Kernel:
    """The kernel `name`, forced wrongly."""
    right = kernels.named(name, "cpu")
    return Kernel(name=name, device="cpu", implementation=implementation, ran=right.ran)


@pytest.mark.parametrize("asked", ["eager", "sdpa_math", "torch_flash"])
@pytest.mark.parametrize("got", ["eager", "growproof_math", "growproof_torch_fa"])
def test_another_kernel_than_claimed_is_caught(asked: str, got: str) -> None:
    """A mislabelled run does not get into the record."""
    model = cast(original("float32"), "float32", "cpu")
    if kernels.named(asked, "cpu").implementation == got:
        logits(model, claiming(asked, got), (20, 1, 0))
        return
    with pytest.raises(WrongKernel, match=rf"{asked}-cpu was asked for"):
        logits(model, claiming(asked, got), (20, 1, 0))


def test_a_run_without_attention_is_caught() -> None:
    model = cast(original("float32"), "float32", "cpu")
    with (
        pytest.raises(WrongKernel, match="of attention it saw nothing"),
        attending(model, kernels.named("torch_flash", "cpu")),
    ):
        torch.ones(3).sum()


def test_two_kernels_in_one_run_are_caught() -> None:
    model = cast(original("float32"), "float32", "cpu")
    ids, q = text(20, 1, 0)[0], torch.ones(1, 1, 4, 8)

    def both() -> None:
        with attending(model, kernels.named("sdpa_math", "cpu")):
            model(ids)
            torch.nn.functional.scaled_dot_product_attention(q, q, q)

    with pytest.raises(WrongKernel, match="did not run alone"):
        both()


@pytest.mark.parametrize(
    ("names", "right"),
    [
        ("void pytorch_flash::flash_fwd_kernel<...>", "torch_flash"),
        ("void flash::flash_fwd_kernel<...>", "flash_attention_2"),
        ("void flash::flash_fwd_splitkv_kernel<...>", "flash_attention_2"),
        (
            "void cutlass::device_kernel<flash::FlashAttnFwdSm90<...>>",
            "flash_attention_3",
        ),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_f16", ""),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", ""),
    ],
)
def test_a_gpu_kernel_is_known_by_its_name(names: str, right: str) -> None:
    """Names as profilers of GPUs print them; the checks themselves need no GPU."""
    others = {"flash_attention_2", "flash_attention_3", "torch_flash"}
    for name in others:
        kernel = kernels.named(name, "cuda")
        if name == right:
            kernels.check(kernel, {names})
        else:
            with pytest.raises(WrongKernel):
                kernels.check(kernel, {names})


def test_what_is_missing_is_said_with_how_to_get_it() -> None:
    """Every kernel that cannot run here says what would change that."""
    for kernel in KERNELS:
        reason = kernel.missing()
        assert reason is None or ("needs" in reason and len(reason) > 60), reason
    assert {k.id for k in kernels.available()} >= (
        {"eager-cuda", "sdpa_math-cuda", "torch_flash-cuda"}
        if torch.cuda.is_available()
        else {"eager-cpu", "sdpa_math-cpu", "torch_flash-cpu"}
    )
