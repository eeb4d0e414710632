"""The article's script for StableLm, and what it takes to run it today."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from integration.by_hand import grown_sizes, sizes


def article_script(model: Any, target: Mapping[str, int], *, mended: bool) -> Any:
    """The article's script, with or without what it takes to run it today."""
    old, new = sizes(model.config), grown_sizes(model.config, target)
    config = copy.deepcopy(model.config)
    for name, size in target.items():
        setattr(config, name, size)
    factor = model.config.rope_parameters["partial_rotary_factor"]
    config.partial_rotary_factor = factor * old["head_dim"] / new["head_dim"]
    if mended:
        dims = int(old["head_dim"] * factor)  # so that int() cannot lose one
        factor = math.nextafter(dims / new["head_dim"], 2.0)
        config.rope_parameters["partial_rotary_factor"] = factor
    biggermodel = type(model)(config).to(model.dtype)
    heads, heads_new = old["num_key_value_heads"], new["num_key_value_heads"]
    match_qkv, match_o = re.compile(r".*[qkv]_proj"), re.compile(r".*o_proj")
    with torch.no_grad():
        for p_big in biggermodel.parameters():
            p_big.data[:] = 0
        for name, p in model.named_parameters():
            p_big = biggermodel.get_parameter(name)
            if match_qkv.match(name):
                p_big.data[:] = grow_proj(p.data, heads, heads_new, config.hidden_size)
            elif match_o.match(name):
                p_big.data[:] = grow_proj(
                    p.data.T, heads, heads_new, config.hidden_size
                ).T
            else:
                idx = tuple(slice(n) for n in p.data.shape)
                p_big.data[idx] = p.data
        for name, p in biggermodel.named_parameters():
            if "norm.weight" in name:
                p.data[:] *= math.sqrt(old["hidden_size"] / new["hidden_size"])
            if "q_proj" in name:
                p.data[:] *= math.sqrt(new["head_dim"] / old["head_dim"])
    if mended:
        rotary = biggermodel.model.rotary_emb
        biggermodel.model.rotary_emb = type(rotary)(config=config)
        kinds = {re.sub(r"\.\d+\.", ".", n): p for n, p in model.named_parameters()}
        for name, p in biggermodel.named_parameters():
            p.requires_grad_(kinds[re.sub(r"\.\d+\.", ".", name)].requires_grad)
        biggermodel.train(model.training)
    return biggermodel


def grow_proj(p: Tensor, n_heads: int, n_heads_grown: int, hs_grown: int) -> Tensor:
    """The article's, with a second number of heads for its "exercise to the reader"."""
    hs = p.shape[0]
    hd, hd_grown = hs // n_heads, hs_grown // n_heads_grown
    if p.ndim == 2:
        ret = torch.zeros(hs_grown, hs_grown, dtype=p.dtype)
        v = ret.view(n_heads_grown, hd_grown, hs_grown)
        v[:n_heads, :hd, :hs] = p.reshape(n_heads, hd, hs)
        return ret
    ret = torch.zeros(hs_grown, dtype=p.dtype)
    ret.view(n_heads_grown, hd_grown)[:n_heads, :hd] = p.view(n_heads, hd)
    return ret
