"""The eager clone: a whole decoder as a function of (shape, weights, tokens).

It is StableLm and Llama in one, written to be read: every reshape, every divisor and
every sum is in sight, and every intermediate value is returned by name (a *tap*). With
ORDERED arithmetic zero-padding is exact in it, bit for bit; with BLAS it is fast.
Everything runs in the dtype of the weights, softmax and rotary included, unlike
transformers, which computes those (and Llama's norms) in float32.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from growproof.arithmetic import ACTIVATIONS, ORDERED, Arithmetic, softmax
from growproof.padding import State
from growproof.shape import Shape

Taps = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """The weights below one prefix of a state dict, and the arithmetic to use them."""

    shape: Shape
    state: State
    prefix: str
    sums: Arithmetic

    def weight(self, name: str) -> Tensor | None:
        """The parameter of that name, or None where this decoder has none."""
        return self.state.get(self.prefix + name)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x Wᵀ + b: (…, in) → (…, out)."""
        w, b = self.state[f"{self.prefix}{name}.weight"], self.weight(f"{name}.bias")
        y = self.sums.matmul(x, w.mT)
        return y if b is None else y + b

    def norm(self, name: str, x: Tensor) -> Tensor:
        """LayerNorm or RMSNorm over the residual, with its divisor in sight."""
        w, b = self.state[f"{self.prefix}{name}.weight"], self.weight(f"{name}.bias")
        return normalise(x, w, b, self.shape, self.shape.norm_size, self.sums)


def forward(
    shape: Shape, state: State, tokens: Tensor, sums: Arithmetic = ORDERED
) -> Taps:
    """Every tap of a forward pass, in order; the last is `logits`, (B, T, V).

    shape: the sizes. state: parameters by their transformers names, one floating dtype.
    tokens: (B, T) int64, every position attended to (no padding).
    """
    top = Layer(shape, state, "model.", sums)
    x = state["model.embed_tokens.weight"][tokens]
    taps = {"embedding": x}
    cos, sin = rotation(shape, tokens.shape[1], x)
    for i in range(shape.layers):
        layer = Layer(shape, state, f"model.layers.{i}.", sums)
        inner = block(layer, x, cos, sin)
        x = inner["residual"]
        taps |= {f"layers.{i}.{name}": value for name, value in inner.items()}
    taps["norm"] = top.norm("norm", x)
    head = state["model.embed_tokens.weight" if shape.tied else "lm_head.weight"]
    taps["logits"] = sums.matmul(taps["norm"], head.mT)
    return taps


def block(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> Taps:
    """One decoder layer: x (B, T, D) to its taps, `residual` (B, T, D) last."""
    normed = layer.norm("input_layernorm", x)
    taps = {"input_norm": normed} | attention(layer, normed, cos, sin)
    if layer.shape.parallel:
        taps |= mlp(layer, normed)
        taps["residual"] = x + taps["attention"] + taps["mlp"]
        return taps
    x = x + taps["attention"]
    taps["post_norm"] = layer.norm("post_attention_layernorm", x)
    taps |= mlp(layer, taps["post_norm"])
    taps["residual"] = x + taps["mlp"]
    return taps


def attention(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> Taps:
    """Causal self-attention: x (B, T, D) to its taps, `attention` (B, T, D) last."""
    shape, sums = layer.shape, layer.sums
    q = layer.linear("self_attn.q_proj", x)  # B T H·K
    k = layer.linear("self_attn.k_proj", x)  # B T G·K
    v = layer.linear("self_attn.v_proj", x)  # B T G·K
    taps = {"query": q, "key": k, "value": v}
    qh = split(q, shape.heads)  # B H T K
    kh, vh = split(k, shape.groups), split(v, shape.groups)  # B G T K
    if shape.qk_norm:
        qh = per_head_norm(layer, "self_attn.q_layernorm", qh)
        kh = per_head_norm(layer, "self_attn.k_layernorm", kh)
    qh, kh = rotate(qh, cos, sin), rotate(kh, cos, sin)
    taps |= {"query_rotated": merge(qh), "key_rotated": merge(kh)}
    # query head h reads the keys and values of group h // R
    kh = kh.repeat_interleave(shape.repeats, dim=1)
    vh = vh.repeat_interleave(shape.repeats, dim=1)
    scores = sums.matmul(qh, kh.mT) / math.sqrt(shape.head_dim)  # B H T T
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    probabilities = softmax(scores.masked_fill(future, -math.inf), sums)
    context = merge(sums.matmul(probabilities, vh))  # B T H·K
    taps |= {"scores": scores, "probabilities": probabilities, "context": context}
    taps["attention"] = layer.linear("self_attn.o_proj", context)
    return taps


def mlp(layer: Layer, x: Tensor) -> Taps:
    """The gated MLP, f(x Wgᵀ) · (x Wuᵀ): x (B, T, D) to its taps, `mlp` last."""
    gate, up = layer.linear("mlp.gate_proj", x), layer.linear("mlp.up_proj", x)
    activated = ACTIVATIONS[layer.shape.activation](gate) * up  # B T F
    out = layer.linear("mlp.down_proj", activated)
    return {"gate": gate, "up": up, "activated": activated, "mlp": out}


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: Shape,
    size: int,
    sums: Arithmetic,
) -> Tensor:
    """w · (x − E x) / √(Var x + ε) + b over the last axis, with divisor `size`.

    The mean leaves the first `size` lanes only (all of them, but in a `masked` model),
    and RMSNorm leaves it in.
    """
    if shape.layer_norm:
        lanes = torch.arange(x.shape[-1], device=x.device) < size
        x = x - sums.total(x) / size * lanes
    variance = sums.total(x * x) / size
    y = weight * (x / torch.sqrt(variance + shape.eps))
    return y if bias is None else y + bias


def per_head_norm(layer: Layer, name: str, x: Tensor) -> Tensor:
    """StableLm's q/k layernorm: x (B, H, T, K), each head with a weight of its own."""
    weights = [layer.weight(f"{name}.norms.{h}.weight") for h in range(x.shape[1])]
    stacked = torch.stack([w for w in weights if w is not None])[:, None]  # H 1 K
    return normalise(x, stacked, None, layer.shape, x.shape[-1], layer.sums)


def rotation(shape: Shape, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position × frequency, each (T, dims / 2), in float64, then cast."""
    positions = torch.arange(length, dtype=torch.float64, device=like.device)
    angles = positions[:, None] * shape.rotary.frequencies().to(like.device)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn lane pairs (k, k + dims / 2) of x (B, H, T, K); lanes past dims pass."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def split(x: Tensor, heads: int) -> Tensor:
    """(B, T, H·K) → (B, H, T, K): the article's view and transpose."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """(B, H, T, K) → (B, T, H·K)."""
    return x.transpose(1, 2).flatten(2)
