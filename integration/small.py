"""Small models of every family, and their directories, for the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from growproof import checkpoints
from growproof.verify import Check, Verification
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

COMMON: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
WIDER = {"hidden_size": 24, "num_attention_heads": 2, "head_dim": 12}


def loud(model: Any) -> Any:
    """Weights at which every fault shows: no default norm, a residual of about √ε."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            std = 0.01 if "embed" in name else 0.7 / p.shape[-1] ** 0.5
            mean = 1.0 if "norm" in name and "weight" in name else 0.01
            p.normal_(mean, std, generator=generator)
    return model.eval()


def llama(**changes: Any) -> Any:
    config = COMMON | {"head_dim": 8, "rms_norm_eps": 1e-5} | changes
    return loud(LlamaForCausalLM(LlamaConfig(**config)))


def stablelm(**changes: Any) -> Any:
    rope: Any = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
    }
    config = COMMON | {"layer_norm_eps": 1e-5, "rope_parameters": rope} | changes
    return loud(StableLmForCausalLM(StableLmConfig(**config)))


def saved(model: Any, path: Path, **options: Any) -> Path:
    model.save_pretrained(path, **options)
    return path


def flags(sizes: dict[str, int]) -> list[str]:
    return [f"--{k.replace('_', '-')}={v}" for k, v in sizes.items()]


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


def stored(path: Path) -> dict[str, torch.Tensor]:
    parts = [load_file(file) for file in path.glob("*.safetensors")]
    return {name: x for part in parts for name, x in part.items()}


def with_tensors(path: Path, extra: dict[str, torch.Tensor]) -> Path:
    file = path / checkpoints.SINGLE
    tensors = load_file(file) | extra
    save_file(tensors, file, metadata={"format": "pt"})
    return path


SIZES: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 32, "pad_token_id": None, "n_embd": 16, "n_head": 2,
    "n_layer": 2, "n_inner": 20, "n_positions": 32, "num_experts": 2,
    "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 12,
}  # fmt: skip


def of_family(name: str, **changes: Any) -> Any:
    known = vars(AutoConfig.for_model(name))
    sizes = {
        k: v for k, v in SIZES.items() if k in known or k in ("head_dim", "n_inner")
    }
    if "n_embd" in known:
        sizes = {k: v for k, v in sizes.items() if k.startswith(("n_", "vocab"))}
    config = AutoConfig.for_model(name, **sizes | changes)
    return loud(AutoModelForCausalLM.from_config(config))


def each_layer(model: Any, change: Callable[[Any], object]) -> Any:
    with torch.no_grad():
        for layer in model.model.layers:
            change(layer)
    return model


def permuted(model: Any) -> Any:
    """The same function in another layout: the residual's lanes in reverse."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or "o_proj" in name or "down_proj" in name:
                p.copy_(p.flip(0))
            else:
                p.copy_(p.flip(1))
    return model


def check(result: Verification, name: str) -> Check:
    return next(c for c in result.checks if c.name == name)
