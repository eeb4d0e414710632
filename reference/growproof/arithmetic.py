"""Sums in index order, and elementwise functions that ignore their position.

An inserted zero is an exact no-op of a sum in index order (x + 0 = x, 0 · y = 0), so
zero-padding commutes with these contractions *bitwise*, for arbitrary weights and in
any dtype (`properties/proofs/Insertion.v`). BLAS regroups its sums by size and makes no
such promise: about 2 % of zero-padded float64 products differ in the last bit.

torch's own `sigmoid`, `silu`, `gelu` and `rsqrt` differ between the vector body and
the tail of a tensor, so an element's value depends on where it sits; exp, sqrt, tanh,
erf and division do not, and the spellings below are made of those.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arithmetic:
    """How a decoder adds up: `matmul(a, b)` over one axis and `total(x)` over the last.

    matmul: (…, M, N), (…, N, P) → (…, M, P), batch axes broadcast.
    total: (…, N) → (…, 1).
    """

    name: str
    matmul: Callable[[Tensor, Tensor], Tensor]
    total: Callable[[Tensor], Tensor]


def ordered_matmul(a: Tensor, b: Tensor) -> Tensor:
    """((0 + a₀b₀) + a₁b₁) + … : a matrix product that accumulates in index order."""
    out = torch.zeros_like(a[..., :, :1] * b[..., :1, :])
    for n in range(a.shape[-1]):
        out = out + a[..., :, n, None] * b[..., None, n, :]
    return out


def ordered_total(x: Tensor) -> Tensor:
    """((0 + x₀) + x₁) + … over the last axis, which is kept with length 1."""
    out = torch.zeros_like(x[..., :1])
    for n in range(x.shape[-1]):
        out = out + x[..., n, None]
    return out


ORDERED = Arithmetic("ordered", ordered_matmul, ordered_total)
BLAS = Arithmetic("blas", torch.matmul, lambda x: x.sum(-1, keepdim=True))


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), spelled x / (1 + exp(−x))."""
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    """x · Φ(x), by erf."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of gelu (Hendrycks & Gimpel 2016)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_new": gelu_tanh,
    "relu": torch.relu,
}


def softmax(scores: Tensor, arithmetic: Arithmetic) -> Tensor:
    """exp(s − max s) / Σ exp(s − max s) over the last axis, in the dtype of `scores`."""
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights / arithmetic.total(weights)
