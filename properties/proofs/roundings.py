"""The clone in another order: the same function or nearly so, and other bits."""

from typing import Any

import torch
from growproof import clone, spelled
from growproof.decoder import Decoder
from torch import Tensor


def backwards(lines: Tensor, run: Any = spelled.running) -> Tensor:
    """Sums that begin at their end."""
    return run(lines.flip(-1))


def eps_outside(x: Tensor, weight: Any, bias: Any, d: Decoder, size: int) -> Tensor:
    """A norm that divides by √Var + ε."""
    if d.norm == "layer":
        x = x - x.sum(-1, keepdim=True) / size * (torch.arange(x.shape[-1]) < size)
    root = torch.sqrt((x * x).sum(-1, keepdim=True) / size)
    y = x * (1 / (root + d.eps)) * (d.norm_offset + weight)
    return y if bias is None else y + bias


def weighted_first(x: Tensor, weight: Any, bias: Any, d: Decoder, size: int) -> Tensor:
    """A norm whose weight multiplies 1 / √(Var + ε), and both together x."""
    if d.norm == "layer":
        x = x - x.sum(-1, keepdim=True) / size * (torch.arange(x.shape[-1]) < size)
    variance = (x * x).sum(-1, keepdim=True) / size
    y = x * (1 / torch.sqrt(variance + d.eps) * (d.norm_offset + weight))
    return y if bias is None else y + bias


def scaled_first(layer: Any, q: Tensor, k: Tensor, run: Any = clone.query_key_norm):
    """Scores that are scaled before the dot product, and not behind it."""
    q, k = run(layer, q, k)
    d = layer.d
    return q * (d.head_dim**-0.5 if d.score is None else d.score), k


def unshifted(scores: Tensor) -> Tensor:
    """A softmax that does not take the largest score off."""
    weights = torch.exp(scores)
    return weights / weights.sum(-1, keepdim=True)


ROUNDINGS = {
    "order of sums": [(spelled, "running", backwards)],
    "eps outside": [(clone, "normalise", eps_outside)],
    "weight first": [(clone, "normalise", weighted_first)],
    "scale first": [
        (clone, "query_key_norm", scaled_first), (Decoder, "score_scale", 1.0)
    ],
    "softmax": [(clone, "softmax", unshifted)],
}  # fmt: skip
