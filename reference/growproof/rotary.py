"""Frequencies as transformers computes them: do the old ones survive a growth?

A rope type may mix head_dim or the length of a sequence into its frequencies. Whether
those of the grown config, at the old lanes' places, are the old ones is not argued here
but looked at: both vectors are computed by the model's own rotary module and compared.
"""

import copy
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from growproof.asked import is_table
from growproof.decoder import GrowthError
from growproof.families import family_of
from growproof.growth import Growth

# both are float32, from a handful of operations: equal, or a rounding or two apart
AGREE = 2 * torch.finfo(torch.float32).eps


def frequencies(config: Any) -> dict[str, Tensor]:
    """Buffer → the frequencies of a config's rotary module (by layer type, if so)."""
    import transformers

    hub: Any = transformers
    kind = family_of(config).model_type
    model = hub.MODEL_FOR_CAUSAL_LM_MAPPING[hub.CONFIG_MAPPING[kind]]
    home = sys.modules[model.__module__]
    name = next(name for name in dir(home) if name.endswith("RotaryEmbedding"))
    rotary = getattr(home, name)(config)
    found: dict[str, Tensor]
    found = {n: b.double() for n, b in rotary.named_buffers() if "original" not in n}
    held: dict[str, Any] = rotary.__dict__
    scales = {n: v for n, v in held.items() if n.endswith("attention_scaling")}
    return found | {n: torch.tensor([float(v)]).double() for n, v in scales.items()}


def by_length(rope: Mapping[str, Any] | None) -> bool:
    """Whether frequencies depend on how long the text is."""
    types = [rope, *filter(is_table, rope.values())] if rope else []
    return any(t.get("rope_type") in ("dynamic", "longrope") for t in types)


def lengthened(config: Any) -> Any:
    """The config with the frequencies of long texts for all: those of longrope."""
    config = copy.deepcopy(config)
    rope = config.rope_parameters
    if rope and "long_factor" in rope:
        rope["short_factor"] = rope["long_factor"]
    return config


def refuse_frequencies(config: Any, config_new: Any, growth: Growth) -> None:
    """Raise GrowthError where an old frequency is another one after growing."""
    before, after = frequencies(config), frequencies(config_new)
    old = growth.old
    for name, f in before.items():
        g = after[name][:: growth.between] if len(f) > 1 else after[name]
        apart = ((f - g[: len(f)]).abs() / f.abs()).max().item()
        if not apart <= AGREE:
            kinds = {kind.rotary.kind for kind in old.kinds if kind.rotary}
            raise GrowthError(
                f"rope type {', '.join(sorted(kinds))}: the frequencies of head_dim "
                f"{old.head_dim} are not among those of {growth.new.head_dim} ({name} "
                f"differs by {apart:.1e} of itself, float32 rounds by "
                f"{AGREE / 4:.0e}): leave head_dim alone, and grow num_attention_heads "
                "if there must be more lanes"
            )
    refuse_by_length(growth, getattr(config, "max_position_embeddings", 0))


def refuse_by_length(growth: Growth, positions: int) -> None:
    """Raise GrowthError for frequencies that leave the old ones behind some length.

    `dynamic` stretches θ by s^(K / (K − 2)), s > 1 where a text is longer than the
    positions: up to them, and no further, the grown model is the same function. It is
    grown where rotary='between' asks for it by name.
    """
    stretched = any(k.rotary and k.rotary.kind == "dynamic" for k in growth.old.kinds)
    if stretched and growth.old.split and growth.policies.rotary != "between":
        raise GrowthError(
            f"rope type 'dynamic' has the same frequencies for texts of up to "
            f"{positions} tokens, and others for longer ones: choose "
            "rotary='between' if that will do, or leave head_dim alone"
        )
