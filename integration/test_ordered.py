"""Stock classes of transformers under `growproof.ordered()`: the same function, exactly.

Native float64 loses 1e-7 of the logits to float32 islands (softmax, norms, rotary
angles) and regroups its sums by size; ordered arithmetic does neither.
"""

from __future__ import annotations

import copy
from typing import Any

import growproof
import pytest
import torch
from growproof import ordered
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
EIGHT = {"head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "stablelm": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": EIGHT,
    "gemma": EIGHT,
    "gemma2": EIGHT,
    "gemma3_text": EIGHT,
    "phi": {},
    "phi3": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "gpt_neox": {},
    "gpt2": {},
    "starcoder2": {},
    "granite": {},
    "smollm3": {},
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS | EIGHT | {"moe_intermediate_size": 24},
    "cohere": {},
    "falcon": {},
    "opt": {},
    "bloom": {},
    "glm4": EIGHT,
    "helium": EIGHT,
    "gpt_oss": EXPERTS | EIGHT,
}
WITHOUT_SDPA = ("gemma2", "bloom", "gpt_oss")
CASES = [
    pytest.param(family, implementation, id=f"{family}-{implementation}")
    for family in FAMILIES
    for implementation in ("eager", "sdpa")
    if implementation == "eager" or family not in WITHOUT_SDPA
]


def loud(model: Any, seed: int = 0) -> Any:
    """Weights of order one, norms and biases not trivial, in float64."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        x = torch.randn(p.shape, generator=g, dtype=torch.float64)
        if "norm" in name and name.endswith("weight"):
            x = 1 + 0.3 * x
        elif "embed" in name or "wte" in name:
            x = x + 0.5
        else:
            x = 1.5 * x / p.shape[-1] ** 0.5
        p.data = x
    return model.double().eval()


def tiny(family: str, implementation: str = "eager", **sizes: Any) -> Any:
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES[family] | sizes))
    config._attn_implementation = implementation
    return loud(AutoModelForCausalLM.from_config(config))


def tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(1))


def native(model: Any) -> torch.Tensor:
    """The logits as torch computes them; grouped experts know no float64."""
    if hasattr(model.config, "num_experts_per_tok"):
        model = copy.deepcopy(model).float()
    with torch.no_grad():
        return model(tokens()).logits


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((a - b).abs().max() / a.abs().max())


def exact(model: Any) -> torch.Tensor:
    """The logits in ordered arithmetic."""
    with torch.no_grad(), ordered(model):
        return model(tokens()).logits


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_every_family_runs_and_is_the_same_function(family, implementation):
    """Native float64 differs by its float32 islands, and by no more."""
    model = tiny(family, implementation)
    logits = exact(model)
    assert logits.dtype == torch.float64
    assert difference(native(model), logits) < 1e-5


# A power of four scales weights by powers of two, which rounds nothing.
FOURS = {
    "hidden": {"hidden_size": 128, "num_attention_heads": 16, "num_key_value_heads": 8},
    "mlp": {"intermediate_size": 43},
    "layers": {"num_hidden_layers": 3},
}


@pytest.mark.parametrize("family", ["llama", "stablelm"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("target", FOURS.values(), ids=list(FOURS))
def test_a_growth_by_four_is_bitwise_equal(family, implementation, target):
    """logits(grow(m)) = logits(m) in every bit, on stock code (StableLm: masked norms)."""
    model = tiny(family, implementation)
    norm = "masked" if family == "stablelm" else None
    grown = growproof.grow(model, target, norm=norm)
    grown.set_attn_implementation(implementation)
    assert torch.equal(exact(model), exact(grown))


@pytest.mark.parametrize("family", ["llama", "stablelm"])
def test_another_ratio_is_equal_to_a_few_roundings(family):
    """√(D/D') rounds once a weight; the whole pass stays within 1e-13 of its largest."""
    model = tiny(family)
    grown = growproof.grow(model, {"hidden_size": 48, "num_attention_heads": 6})
    assert 0 < difference(exact(model), exact(grown)) < 1e-13
