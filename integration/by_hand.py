"""What the growers of `others` share: sizes, an empty larger model, axes and heads.

Nothing of growproof is imported here either.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Unsupported(NotImplementedError):
    """A growth that the method does not offer."""


def sizes(config: Any) -> dict[str, int]:
    """The sizes that a target may name, of a StableLm or Llama config."""
    head_dim = getattr(config, "head_dim", None)
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": head_dim or config.hidden_size // config.num_attention_heads,
    }


def grown_sizes(config: Any, target: Mapping[str, int]) -> dict[str, int]:
    """The sizes afterwards; a StableLm's head_dim is hidden_size / heads."""
    new = sizes(config) | dict(target)
    if config.model_type == "stablelm":
        new["head_dim"] = new["hidden_size"] // new["num_attention_heads"]
    return new


def refuse_changes(config: Any, target: Mapping[str, int], *names: str) -> None:
    """Raise Unsupported if one of the sizes would change."""
    old, new = sizes(config), grown_sizes(config, target)
    for name in names:
        if old[name] != new[name]:
            raise Unsupported(f"{name} {old[name]} → {new[name]} is not offered")


def refuse_all_but(config: Any, target: Mapping[str, int], *names: str) -> None:
    """Raise Unsupported if a size beside these would change."""
    others = [name for name in sizes(config) if name not in names]
    refuse_changes(config, target, *others)


def empty(model: Any, target: Mapping[str, int], **changes: Any) -> Any:
    """A model of the grown config, all zeros, like `model` in all that is not size."""
    config = copy.deepcopy(model.config)
    for name, size in (dict(target) | changes).items():
        setattr(config, name, size)
    if kinds := getattr(config, "layer_types", None):  # new layers are as the last one
        layers = config.num_hidden_layers
        config.layer_types = [*kinds, *layers * [kinds[-1]]][:layers]
    grown = type(model)(config).to(model.device, model.dtype)
    # .to() rounds the rotary frequencies as well, which from_pretrained keeps in float32
    rotary = grown.model.rotary_emb
    grown.model.rotary_emb = type(rotary)(config=config).to(model.device)
    with torch.no_grad():
        for p in grown.parameters():
            p.zero_()
    frozen = {
        re.sub(r"\.\d+\.", ".", n)
        for n, p in model.named_parameters()
        if not p.requires_grad
    }
    for name, p in grown.named_parameters():
        p.requires_grad_(re.sub(r"\.\d+\.", ".", name) not in frozen)
    return grown.train(model.training)


def per_head(heads: list[int], head_dim: int) -> list[int]:
    return [h * head_dim + k for h in heads for k in range(head_dim)]


def axes_of(name: str) -> tuple[str, str]:
    """The axes of a parameter's outputs (dimension 0) and inputs (dimension 1)."""
    table = {
        "embed_tokens": ("vocab", "residual"), "lm_head": ("vocab", "residual"),
        "q_proj": ("query", "residual"), "k_proj": ("key", "residual"),
        "v_proj": ("key", "residual"), "o_proj": ("residual", "query"),
        "gate_proj": ("mlp", "residual"), "up_proj": ("mlp", "residual"),
        "down_proj": ("residual", "mlp"),
    }  # fmt: skip
    out, into = next((v for k, v in table.items() if k in name), ("residual", ""))
    return out, "" if name.endswith("bias") else into


def old_layer(name: str, layers: int) -> tuple[str, bool]:
    """The parameter that a grown model's is copied from, and whether it is a new layer's."""
    found = re.search(r"\.(\d+)\.", name)
    if not found or int(found[1]) < layers:
        return name, False
    return name.replace(f".{found[1]}.", f".{layers - 1}.", 1), True


def placed(
    p: Tensor, w: Tensor, old: dict[str, int], new: dict[str, int], out: str, into: str
) -> None:
    """Write w into p, each head at its place and all else in front."""
    rows, columns = (where(axis, old, new) for axis in (out, into))
    if w.ndim == 1:
        p[rows or slice(len(w))] = w.to(p.dtype)
        return
    rows = rows or list(range(w.shape[0]))
    columns = columns or list(range(w.shape[1]))
    p[torch.tensor(rows)[:, None], torch.tensor(columns)[None]] = w.to(p.dtype)


def where(axis: str, old: dict[str, int], new: dict[str, int]) -> list[int] | None:
    """The new places of an axis's old lanes, or None where they are the first ones."""
    if axis != "query":
        return None
    repeats = old["num_attention_heads"] // old["num_key_value_heads"]
    repeats_new = new["num_attention_heads"] // new["num_key_value_heads"]
    heads = [
        g * repeats_new + r
        for g in range(old["num_key_value_heads"])
        for r in range(repeats)
    ]
    return per_head(heads, old["head_dim"])
