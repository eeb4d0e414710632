"""The normal form: one decoder of which every family is a value.

A `Decoder` says all that a decoder's function depends on but its weights. Nothing here
knows a family, a config or a stored tensor.

Dimension letters, here and everywhere: B batch, T tokens, D hidden size, H query heads,
G key/value heads (groups), R = H / G query heads per group, K head_dim, F intermediate
size, E experts, L layers, V vocabulary. A grown size has the suffix `_new` in code and a
prime in prose.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# rope types whose frequencies are a function of θ^(−2i/K) alone: they survive a larger
# head_dim once θ' = θ^(K'/K). The others mix in head_dim or the sequence length.
SURVIVING_ROPE_TYPES = ("default", "linear", "llama3")


class GrowthError(ValueError):
    """A growth that cannot be exact, or sizes that contradict each other."""


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary position embedding: its base θ, and how many of the K lanes it rotates."""

    theta: float
    dims: int
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def frequencies(self) -> Tensor:
        """θ^(−2i / dims), i < dims / 2, float64, rescaled as the rope type says."""
        steps = torch.arange(0, self.dims, 2, dtype=torch.float64)
        f = 1.0 / self.theta ** (steps / max(self.dims, 1))
        if self.kind == "default":
            return f
        if self.kind == "linear":
            return f / self.factor
        if self.kind == "llama3":  # Llama 3.1: long waves slowed, short ones kept
            turns = f * self.original_positions / (2 * math.pi)
            low, high = self.low_freq_factor, self.high_freq_factor
            kept = ((turns - low) / (high - low)).clamp(0, 1)
            return (1 - kept) * f / self.factor + kept * f
        raise GrowthError(
            f"the clone has no rope type {self.kind!r}, only "
            f"{', '.join(SURVIVING_ROPE_TYPES)}: compare through transformers instead"
        )


def whole_factor(dims: int, head_dim: int) -> float:
    """A factor f with int(K · f) = dims, which dims / K can miss by one.

    >>> int(98 * (16 / 98)), int(98 * whole_factor(16, 98))
    (15, 16)
    """
    f = dims / head_dim
    return f if int(head_dim * f) == dims else math.nextafter(f, 2)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What one layer may have otherwise than its neighbours.

    rotary: None where the layer turns nothing. window: how many positions it looks back
    on, itself included; None for all. sparse: experts in place of the MLP.
    """

    rotary: Rotary | None = None
    window: int | None = None
    sparse: bool = False


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """All that a decoder's function depends on but its weights.

    kinds: one for each layer. split: rotary turns all K lanes in two halves, which part
    as K grows. norm_size: the divisor of the norms over the residual, D or, in a
    `masked` model, the hidden size before growing. norm_bias: a LayerNorm has one.
    norm_offset: norms multiply by this + their weight. places: norms before, after
    ("post") or around ("both") a block.
    parallel: 0 where attention and MLP follow each other, else the number of norms that
    both, reading the same residual, have between them. qk_norm: over the K lanes of a
    head with one weight ("lane") or one for each head ("head"), or over all heads
    ("whole"). biases: the names of the linear maps that have one. root_embedding: the
    embedding is multiplied by √D. score: multiplies q·k; None for 1/√K. caps: x becomes
    c · tanh(x / c). renormalised: the weights of the chosen experts add up to one.

    Raises GrowthError where sizes clash.
    """

    vocab: int
    hidden: int
    heads: int
    groups: int
    head_dim: int
    mlp: int
    layers: int
    eps: float
    norm_size: int
    kinds: tuple[Kind, ...]
    split: bool = True
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    norm_offset: float = 0.0
    places: Literal["pre", "post", "both"] = "pre"
    parallel: int = 0
    qk_norm: Literal["", "lane", "head", "whole"] = ""
    activation: str = "silu"
    gated: bool = True
    biases: frozenset[str] = frozenset()
    root_embedding: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    score: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    positions: int = 0
    experts: int = 0
    active: int = 0
    expert_mlp: int = 0
    renormalised: bool = True
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab", "hidden", "heads", "groups", "head_dim", "mlp", "layers"):
            if getattr(self, name) < 1:
                raise GrowthError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.heads % self.groups:
            raise GrowthError(
                f"{self.heads} query heads cannot share {self.groups} key/value heads: "
                "num_attention_heads must be a multiple of num_key_value_heads"
            )
        if len(self.kinds) != self.layers:
            raise GrowthError(
                f"{self.layers} layers need a kind each, got {len(self.kinds)}"
            )
        for kind in self.kinds:
            dims = kind.rotary.dims if kind.rotary else 0
            if dims % 2 or not 0 <= dims <= self.head_dim:
                raise GrowthError(
                    f"rotary embedding turns pairs of lanes, got {dims} of "
                    f"{self.head_dim} lanes: the number must be even and at most head_dim"
                )

    @property
    def repeats(self) -> int:
        """R, the query heads that share one key/value head."""
        return self.heads // self.groups

    @property
    def head(self) -> str:
        """The matrix that gives the logits: a tied model's is its embedding."""
        return "embed.weight" if self.tied else "head.weight"

    @property
    def rotary(self) -> Rotary:
        """That of the first layer that turns anything; none has 0 lanes."""
        found = (kind.rotary for kind in self.kinds if kind.rotary)
        return next(found, Rotary(theta=1.0, dims=0))

    @property
    def norms(self) -> list[str]:
        """The norms over the residual in a layer, in the order of the table."""
        before = ["attn_norm", "mlp_norm"][: self.parallel or 2]
        after = ["attn_out_norm", "mlp_out_norm"]
        return {"pre": before, "post": after, "both": before + after}[self.places]

    @property
    def score_scale(self) -> float:
        """What multiplies q·k: the config's own scale, or 1/√K."""
        return self.head_dim**-0.5 if self.score is None else self.score

    @property
    def partial_rotary_factor(self) -> float:
        """The config's: `whole_factor` of the lanes that turn."""
        return whole_factor(self.rotary.dims, self.head_dim)

    def layers_that(self, sparse: bool | None) -> Iterator[int]:
        """The layers with experts, or those without; None for all."""
        for i, kind in enumerate(self.kinds):
            if sparse is None or kind.sparse == sparse:
                yield i
