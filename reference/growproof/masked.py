"""StableLm and Llama whose norms keep the divisor of the model they were grown from.

The article's local clone of LayerNorm: growing is exact for any weights, but the model
needs this file. It is saved beside the weights and imports only torch and transformers,
so that `AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` loads it
where growproof is not installed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)


class MaskedStableLmConfig(StableLmConfig):
    """StableLmConfig with `norm_size`, the hidden size before growing."""

    model_type = "masked_stablelm"
    norm_size: int | None = None


class MaskedLlamaConfig(LlamaConfig):
    """LlamaConfig with `norm_size`, the hidden size before growing."""

    model_type = "masked_llama"
    norm_size: int | None = None


class MaskedLayerNorm(nn.Module):
    """w · (x − m Σx / size) / √(Σ(x − m Σx / size)² / size + ε) + b, m = lane < size.

    (…, D) → (…, D), computed in float32 at least, as torch's own kernel does.
    """

    centre = True

    def __init__(self, hidden_size: int, size: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last axis with the divisor `size`."""
        x = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        if self.centre:
            lanes = torch.arange(x.shape[-1], device=x.device) < self.size
            x = x - x.sum(-1, keepdim=True) / self.size * lanes
        x = x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / self.size + self.eps)
        y = self.weight * x
        return (y if self.bias is None else y + self.bias).to(hidden_states.dtype)


class MaskedRMSNorm(MaskedLayerNorm):
    """w · x / √(Σx² / size + ε)."""

    centre = False


def mask_norms(model: Any, kind: type[MaskedLayerNorm], eps: float) -> None:
    """Replace every norm over the residual by one with the divisor `norm_size`."""
    config = model.config
    size = config.norm_size or config.hidden_size
    bias = kind.centre
    modules: list[nn.Module] = [model.model, *model.model.layers]
    for module in modules:
        for name in ("input_layernorm", "post_attention_layernorm", "norm"):
            if isinstance(getattr(module, name, None), nn.Module):
                setattr(module, name, kind(config.hidden_size, size, eps, bias))


class MaskedStableLmForCausalLM(StableLmForCausalLM):
    """StableLm with masked norms."""

    config_class = MaskedStableLmConfig

    def __init__(self, config: MaskedStableLmConfig) -> None:
        super().__init__(config)
        mask_norms(self, MaskedLayerNorm, config.layer_norm_eps)


class MaskedLlamaForCausalLM(LlamaForCausalLM):
    """Llama with masked norms."""

    config_class = MaskedLlamaConfig

    def __init__(self, config: MaskedLlamaConfig) -> None:
        super().__init__(config)
        mask_norms(self, MaskedRMSNorm, config.rms_norm_eps)


for _config in (MaskedStableLmConfig, MaskedLlamaConfig):
    _config.register_for_auto_class()
for _model in (MaskedStableLmForCausalLM, MaskedLlamaForCausalLM):
    _model.register_for_auto_class("AutoModelForCausalLM")
