"""A model that lies on a GPU grows there, into the weights that it grows into on a CPU."""

from __future__ import annotations

import copy
from typing import Any

import growproof
import pytest
import torch
from growproof.checkpoints import grow_checkpoint
from growproof.models import state_of
from growproof.optimizer import grow_optimizer
from transformers import AutoModelForCausalLM, LlamaConfig, StableLmConfig

from properties.laws.models import make

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs an NVIDIA GPU and a CUDA build of torch: run `pytest integration` on a "
    "machine with one",
)
SIZES: dict[str, Any] = {  # matrices of more than one block (growproof.blocks)
    "vocab_size": 512, "hidden_size": 512, "intermediate_size": 1408,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
TARGET = {
    "hidden_size": 640, "num_attention_heads": 10, "num_key_value_heads": 5,
    "intermediate_size": 1500, "num_hidden_layers": 3, "vocab_size": 520,
}  # fmt: skip
CONFIGS = {
    "stablelm": StableLmConfig(**SIZES, use_qkv_bias=True),
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
}


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal, but for means that a GPU adds up in another order: one unit of a few entries.

    Those are float64 numbers before they are rounded, and few lie near a boundary.
    """
    assert got.is_cuda
    assert got.dtype == wanted.dtype
    apart = (got.cpu().double() - wanted.double()).abs()
    unit = torch.finfo(wanted.dtype).eps
    if wanted.dtype == torch.float64:
        assert (apart <= 8 * unit * wanted.abs().max()).all()
        return
    assert (apart <= unit * wanted.double().abs()).all()
    assert (apart > 0).double().mean() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("fill", ["zeros", "trainable"])
@pytest.mark.parametrize(
    ("family", "norm"),
    [
        *(("stablelm", norm) for norm in ("scaled", "masked", "centred", "averaged")),
        ("llama", "scaled"),
    ],
)
def test_a_model_on_a_gpu_grows_as_on_the_cpu(
    family: str, norm: Any, fill: Any, dtype: torch.dtype
) -> None:
    """Every weight and buffer, on every axis at once, in every policy and dtype."""
    old = make(CONFIGS[family], 3, dtype=dtype)
    wanted = growproof.grow(old, TARGET, norm=norm, fill=fill)
    got = growproof.grow(copy.deepcopy(old).to("cuda"), TARGET, norm=norm, fill=fill)
    there = state_of(got)
    assert all(b.is_cuda for b in got.buffers())
    for name, p in state_of(wanted).items():
        same(there[name], p)
    assert got.generation_config.to_dict() == wanted.generation_config.to_dict()


def test_moments_on_a_gpu_grow_as_on_the_cpu() -> None:
    """AdamW's moments, where the optimizer of a model on a GPU keeps them."""
    config = CONFIGS["llama"]
    model = make(config, 3, dtype=torch.float32).to("cuda").requires_grad_(True)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
    ids = torch.arange(64, device="cuda")[None]
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    state = optimizer.state_dict()
    on_cpu = copy.deepcopy(state)
    for moments in on_cpu["state"].values():
        moments.update({k: v.cpu() for k, v in moments.items()})
    target = TARGET | {"vocab_size": 512}
    got = grow_optimizer(state, config, target)
    wanted = grow_optimizer(on_cpu, config, target)
    checked = 0
    for i, moments in wanted["state"].items():
        for key, value in moments.items():
            if value.ndim:
                same(got["state"][i][key], value)
                checked += 1
    assert checked >= 2 * 20


def test_a_checkpoint_grown_from_files_is_the_model_grown_on_a_gpu(
    tmp_path: Any,
) -> None:
    """File to file on the CPU, in memory on the GPU: one result."""
    old = make(CONFIGS["stablelm"], 3, dtype=torch.bfloat16)
    old.save_pretrained(tmp_path / "old")
    grow_checkpoint(tmp_path / "old", tmp_path / "new", TARGET, progress=False)
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype="auto")
    got = state_of(growproof.grow(old.to("cuda"), TARGET))
    for name, p in state_of(wanted).items():
        same(got[name], p)
