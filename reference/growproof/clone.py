"""The eager clone: a whole decoder as a function of (decoder, weights, tokens).

Every family in one, written to be read: every reshape, every divisor and every sum is in
sight, and every intermediate value is returned by name (a *tap*). It is plain torch:
inside `growproof.ordered()` its sums run in index order and zero-padding is exact in it,
bit for bit; outside it is fast. Everything runs in the dtype of the weights, softmax and
rotary included, unlike transformers, which computes those (and RMSNorm) in float32.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from growproof.decoder import Decoder, Kind
from growproof.padding import State

Taps = dict[str, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
}


@dataclass(frozen=True)
class Layer:
    """The weights below one prefix of a state dict, and the decoder they belong to."""

    d: Decoder
    state: State
    prefix: str = ""
    kind: Kind = field(default_factory=Kind)

    @classmethod
    def at(cls, d: Decoder, state: State, i: int) -> "Layer":
        """Layer i."""
        return cls(d, state, f"layers.{i}.", d.kinds[i])

    def weight(self, name: str) -> Tensor | None:
        """The parameter of that name, or None where this decoder has none."""
        return self.state.get(self.prefix + name)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x Wᵀ + b: (…, in) → (…, out)."""
        w, b = self.state[f"{self.prefix}{name}.weight"], self.weight(f"{name}.bias")
        y = x @ w.mT
        return y if b is None else y + b

    def norm(self, name: str, x: Tensor) -> Tensor:
        """The norm over the residual of that name, with its divisor in sight."""
        w, b = self.state[f"{self.prefix}{name}.weight"], self.weight(f"{name}.bias")
        return normalise(x, w, b, self.d, self.d.norm_size)

    def normed(self, name: str, x: Tensor) -> Tensor:
        """The same where the decoder has that norm, else x."""
        return self.norm(name, x) if name in self.d.norms else x


def forward(d: Decoder, state: State, tokens: Tensor) -> Taps:
    """Every tap of a forward pass, in order; the last is `logits`, (B, T, V).

    state: parameters by their canonical names, one floating dtype. tokens: (B, T) int64,
    every position attended to (no padding), or (B, T, V), weights of a mixture of tokens.
    """
    taps: Taps = {}
    for prefix, inner in stages(d, state, tokens):
        taps |= {prefix + name: value for name, value in inner.items()}
    return taps


def stages(d: Decoder, state: State, tokens: Tensor) -> Iterator[tuple[str, Taps]]:
    """(prefix, taps) of the embedding, of each layer, and of what follows, in order.

    What is not kept can be dropped, and the weights may be read as they are needed.
    """
    top = Layer(d, state)
    x = embedding(top, tokens)
    yield "", {"embedding": x}
    for i in range(d.layers):
        layer = Layer.at(d, state, i)
        inner = block(layer, x)
        x = inner["residual"]
        yield layer.prefix, inner
    normed = top.norm("final_norm", x)
    yield "", {"final_norm": normed, "logits": head(top, normed)}


def embedding(top: Layer, tokens: Tensor) -> Tensor:
    """(B, T) → (B, T, D): the rows of the embedding, scaled, and of the positions."""
    d = top.d
    w = top.state["embed.weight"]
    x = tokens @ w if tokens.is_floating_point() else w[tokens]
    if d.root_embedding:  # the root is rounded to the dtype of the weights first
        x = x * torch.tensor(d.hidden**0.5, dtype=x.dtype)
    if d.embedding_scale != 1:
        x = x * d.embedding_scale
    if d.positions:
        x = x + top.state["positions.weight"][: tokens.shape[1]]
    return x


def head(top: Layer, x: Tensor) -> Tensor:
    """(B, T, D) → (B, T, V): the logits, divided and capped as the decoder says."""
    d, bias = top.d, top.weight("head.bias")
    logits = x @ top.state[d.head].mT
    logits = logits if bias is None else logits + bias
    logits = logits / d.logit_divisor if d.logit_divisor != 1 else logits
    return capped(logits, d.logit_cap)


def block(layer: Layer, x: Tensor) -> Taps:
    """One decoder layer: x (B, T, D) to its taps, `residual` (B, T, D) last."""
    d = layer.d
    normed = layer.normed("attn_norm", x)
    taps = {"attn_norm": normed} if "attn_norm" in d.norms else {}
    taps |= attention(layer, normed)
    a = added(layer, "attn_out_norm", "attention", taps)
    read, norm = (x, d.norms[d.parallel - 1]) if d.parallel else (x + a, "mlp_norm")
    inner = normed if norm == "attn_norm" else layer.normed(norm, read)
    if "mlp_norm" in d.norms:
        taps["mlp_norm"] = inner
    taps |= experts(layer, inner) if layer.kind.sparse else mlp(layer, inner)
    m = added(layer, "mlp_out_norm", "mlp", taps)
    taps["residual"] = x + a + m if d.parallel else read + m
    return taps


def added(layer: Layer, norm: str, name: str, taps: Taps) -> Tensor:
    """What a block adds to the residual: its output, normed and scaled if it is."""
    x = taps[name]
    if norm in layer.d.norms:
        x = taps[norm] = layer.norm(norm, x)
    return x if layer.d.residual_scale == 1 else x * layer.d.residual_scale


def attention(layer: Layer, x: Tensor) -> Taps:
    """Causal self-attention: x (B, T, D) to its taps, `attention` (B, T, D) last."""
    d, kind = layer.d, layer.kind
    q = layer.linear("q", x)  # B T H·K
    k = layer.linear("k", x)  # B T G·K
    v = layer.linear("v", x)  # B T G·K
    taps = {"query": q, "key": k, "value": v}
    qh, kh = query_key_norm(layer, q, k)  # B H T K, B G T K
    if kind.rotary:
        cos, sin = rotation(kind, x.shape[1], x)
        qh, kh = rotate(qh, cos, sin), rotate(kh, cos, sin)
    taps |= {"query_rotated": merge(qh), "key_rotated": merge(kh)}
    # query head h reads the keys and values of group h // R
    kh = kh.repeat_interleave(d.repeats, dim=1)
    vh = split(v, d.groups).repeat_interleave(d.repeats, dim=1)
    scores = capped(qh @ kh.mT * d.score_scale, d.score_cap)  # B H T T
    hidden = unseen(x.shape[1], kind.window, x.device)
    probabilities = softmax(scores.masked_fill(hidden, -math.inf))
    context = merge(probabilities @ vh)  # B T H·K
    taps |= {"scores": scores, "probabilities": probabilities, "context": context}
    taps["attention"] = layer.linear("o", context)
    return taps


def mlp(layer: Layer, x: Tensor) -> Taps:
    """f(x Wgᵀ) · (x Wuᵀ), or f(x Wuᵀ): x (B, T, D) to its taps, `mlp` last."""
    f = ACTIVATIONS[layer.d.activation]
    taps = {"gate": layer.linear("gate", x)} if layer.d.gated else {}
    up = taps["up"] = layer.linear("up", x)
    taps["activated"] = f(taps["gate"]) * up if layer.d.gated else f(up)  # B T F
    taps["mlp"] = layer.linear("down", taps["activated"])
    return taps


def experts(layer: Layer, x: Tensor) -> Taps:
    """The MLPs of the chosen experts, weighted: x (B, T, D) to its taps, `mlp` last."""
    d = layer.d
    routed = layer.linear("router", x)  # B T E
    p = softmax(routed)
    best = p.topk(d.active, dim=-1)
    weights = best.values
    if d.renormalised:
        weights = weights / weights.sum(-1, keepdim=True)
    chosen = torch.zeros_like(p).scatter(-1, best.indices, weights)
    each = x[..., None, None, :]  # B T 1 1 D
    gate, up = (  # B T E F
        (each @ layer.state[f"{layer.prefix}{name}.weight"].mT)[..., 0, :]
        for name in ("expert_gate", "expert_up")
    )
    activated = ACTIVATIONS[d.activation](gate) * up
    down = layer.state[f"{layer.prefix}expert_down.weight"]
    out = (activated[..., None, :] @ down.mT)[..., 0, :]  # B T E D
    taps = {"router": routed, "chosen": chosen, "expert_gate": gate, "expert_up": up}
    taps["expert_activated"] = activated
    taps["mlp"] = (out * chosen[..., None]).sum(-2)
    return taps


def softmax(scores: Tensor) -> Tensor:
    """exp(s − max s) / Σ exp(s − max s) over the last axis, in the dtype of `scores`."""
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)


def capped(x: Tensor, cap: float | None) -> Tensor:
    """c · tanh(x / c)."""
    return x if cap is None else torch.tanh(x / cap) * cap


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor | None, d: Decoder, size: int
) -> Tensor:
    """w · (x − E x) / √(Var x + ε) + b over the last axis, with divisor `size`.

    The mean leaves the first `size` lanes only (all of them, but in a `masked` model),
    and RMSNorm leaves it in. w is the weight, or `norm_offset` + the weight.
    """
    if d.norm == "layer":
        lanes = torch.arange(x.shape[-1], device=x.device) < size
        x = x - x.sum(-1, keepdim=True) / size * lanes
    variance = (x * x).sum(-1, keepdim=True) / size
    weight = d.norm_offset + weight if d.norm_offset else weight
    y = x * (1 / torch.sqrt(variance + d.eps)) * weight
    return y if bias is None else y + bias


def query_key_norm(layer: Layer, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """q (B, T, H·K) and k (B, T, G·K), normed as the decoder says: (B, heads, T, K)."""
    d, found = layer.d, list[Tensor]()
    for part, x, heads in (("q_norm", q, d.heads), ("k_norm", k, d.groups)):
        w = layer.weight(f"{part}.weight")
        if w is None:
            found.append(split(x, heads))
        elif d.qk_norm == "whole":
            found.append(split(normalise(x, w, None, d, x.shape[-1]), heads))
        else:
            each = w.reshape(-1, 1, d.head_dim)  # one weight, or one for each head
            found.append(normalise(split(x, heads), each, None, d, d.head_dim))
    return found[0], found[1]


def rotation(kind: Kind, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position × frequency, each (T, dims / 2), in float64, then cast."""
    assert kind.rotary is not None
    positions = torch.arange(length, dtype=torch.float64, device=like.device)
    angles = positions[:, None] * kind.rotary.frequencies().to(like.device)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn lane pairs (k, k + dims / 2) of x (B, H, T, K); lanes past dims pass."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def unseen(length: int, window: int | None, device: torch.device) -> Tensor:
    """(T, T): True where position i may not look at j: the future, and past the window."""
    i = torch.arange(length, device=device)[:, None]
    j = torch.arange(length, device=device)
    return (j > i) if window is None else (j > i) | (j <= i - window)


def split(x: Tensor, heads: int) -> Tensor:
    """(B, T, H·K) → (B, H, T, K): the article's view and transpose."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """(B, H, T, K) → (B, T, H·K)."""
    return x.transpose(1, 2).flatten(2)
