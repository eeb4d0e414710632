"""The sizes of a decoder, and a growth from one set of sizes to a larger one.

Dimension letters, here and everywhere: B batch, T tokens, D hidden size, H query heads,
G key/value heads (groups), R = H / G query heads per group, K head_dim,
F intermediate size, L layers, V vocabulary. A grown size has the suffix `_new` in code
and a prime in prose.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Family = Literal["llama", "stablelm"]
NormPolicy = Literal["scaled", "centred", "masked"]
Fill = Literal["zeros", "trainable"]
Depth = Literal["append", "interleave"]

# rope types whose frequencies are a function of θ^(−2i/K) alone: they survive a larger
# head_dim once θ' = θ^(K'/K). The others mix in head_dim or the sequence length.
SURVIVING_ROPE_TYPES = ("default", "linear", "llama3")
FLOAT32_MAX = torch.finfo(torch.float32).max


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
        f = self.theta ** -(steps / max(self.dims, 1))
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


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes and switches of a decoder: all that its function depends on but weights.

    `norm_size` is the divisor of the norms over the residual: the hidden size, or the
    size before growing in a `masked` model. Raises GrowthError where sizes clash.
    """

    family: Family
    vocab: int
    hidden: int
    heads: int
    groups: int
    head_dim: int
    mlp: int
    layers: int
    rotary: Rotary
    eps: float
    norm_size: int
    activation: str = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    parallel: bool = False
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
        if self.family == "stablelm" and self.heads * self.head_dim != self.hidden:
            raise GrowthError(
                f"a StableLm has hidden_size = num_attention_heads · head_dim, got "
                f"{self.hidden} ≠ {self.heads} · {self.head_dim}: choose a hidden_size "
                "that is a multiple of the heads"
            )
        if self.family == "llama" and self.hidden % self.heads:
            raise GrowthError(
                f"transformers wants a Llama's hidden_size ({self.hidden}) to be a "
                f"multiple of num_attention_heads ({self.heads}), whatever head_dim is: "
                "choose other sizes"
            )
        if self.rotary.dims % 2 or not 0 <= self.rotary.dims <= self.head_dim:
            raise GrowthError(
                f"rotary embedding turns pairs of lanes, got {self.rotary.dims} of "
                f"{self.head_dim} lanes: the number must be even and at most head_dim"
            )

    @property
    def repeats(self) -> int:
        """R, the query heads that share one key/value head."""
        return self.heads // self.groups

    @property
    def layer_norm(self) -> bool:
        """True where the norms remove the mean (StableLm), False for RMSNorm (Llama)."""
        return self.family == "stablelm"

    @property
    def split_rotary(self) -> bool:
        """True where rotary turns all lanes, so that its halves part as K grows."""
        return self.family == "llama"

    @property
    def partial_rotary_factor(self) -> float:
        """A factor f with int(K · f) = dims, which dims / K can miss by one.

        >>> int(98 * (0.25 * 64 / 98))
        15
        """
        f = self.rotary.dims / self.head_dim
        return f if int(self.head_dim * f) == self.rotary.dims else math.nextafter(f, 2)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """An old shape, a new shape, and the policies that lead from one to the other."""

    old: Shape
    new: Shape
    norm: NormPolicy
    fill: Fill = "zeros"
    depth: Depth = "append"
    seed: int = 0
    initializer_range: float = 0.02


def plan(
    old: Shape,
    *,
    hidden: int | None = None,
    heads: int | None = None,
    groups: int | None = None,
    head_dim: int | None = None,
    mlp: int | None = None,
    layers: int | None = None,
    norm: NormPolicy | None = None,
    fill: Fill = "zeros",
    depth: Depth = "append",
    seed: int = 0,
    initializer_range: float = 0.02,
) -> Growth:
    """The growth of `old` to the given sizes; a size left out stays as it is.

    A StableLm's head_dim follows from hidden / heads. The default norm policy is the
    exact one that stock code can run: `centred` for LayerNorm, `scaled` for RMSNorm.
    Raises GrowthError for whatever cannot be exact, with the reason and the way out.
    """
    new_hidden, new_heads = hidden or old.hidden, heads or old.heads
    if old.family == "stablelm":
        if new_hidden % new_heads:
            raise GrowthError(
                f"a StableLm's head_dim is hidden_size / num_attention_heads, got "
                f"{new_hidden} / {new_heads}, which is not whole: choose a hidden_size "
                f"that is a multiple of {new_heads}"
            )
        implied = new_hidden // new_heads
        if head_dim not in (None, implied):
            raise GrowthError(
                f"a StableLm's head_dim is hidden_size / num_attention_heads = {implied},"
                f" got head_dim {head_dim}: change hidden_size or the heads instead"
            )
        head_dim = implied
    sizes = {
        "hidden_size": (old.hidden, new_hidden),
        "num_attention_heads": (old.heads, new_heads),
        "num_key_value_heads": (old.groups, groups or old.groups),
        "head_dim": (old.head_dim, head_dim or old.head_dim),
        "intermediate_size": (old.mlp, mlp or old.mlp),
        "num_hidden_layers": (old.layers, layers or old.layers),
    }
    for name, (before, after) in sizes.items():
        if after < before:
            raise GrowthError(
                f"{name} cannot shrink from {before} to {after}: entries would be lost. "
                "To undo a growth use growproof.shrink"
            )
    norm = norm or default_norm(old, grows=new_hidden > old.hidden)
    ratio = old.hidden / new_hidden if norm != "masked" else 1.0
    new = replace(
        old,
        hidden=new_hidden,
        heads=new_heads,
        groups=sizes["num_key_value_heads"][1],
        head_dim=sizes["head_dim"][1],
        mlp=sizes["intermediate_size"][1],
        layers=sizes["num_hidden_layers"][1],
        rotary=grown_rotary(old, sizes["head_dim"][1]),
        eps=old.eps * ratio,
        norm_size=old.norm_size if norm == "masked" else new_hidden,
    )
    check_policies(old, new, norm, fill, depth)
    return Growth(
        old=old,
        new=new,
        norm=norm,
        fill=fill,
        depth=depth,
        seed=seed,
        initializer_range=initializer_range,
    )


def default_norm(old: Shape, *, grows: bool) -> NormPolicy:
    """The norm policy that keeps the function exactly, or a refusal that names one."""
    if old.norm_size != old.hidden:
        return "masked"
    if not old.layer_norm or not grows:
        return "scaled"
    if old.tied:
        raise GrowthError(
            "a tied LayerNorm model cannot be centred: its lm_head is the embedding, and "
            "removing the embedding's mean would change the logits. Untie it (copy the "
            "embedding into lm_head, tie_word_embeddings=False), or choose norm='masked' "
            "(exact, with its own modelling code) or norm='scaled' (approximate)"
        )
    return "centred"


def grown_rotary(old: Shape, head_dim_new: int) -> Rotary:
    """The rotary embedding that keeps every old frequency at head_dim K'.

    Partial rotary keeps its number of lanes. Full rotary rotates all K' lanes, and
    θ' = θ^(K'/K) puts the old frequencies where the two old halves go (fact 5).
    """
    if not old.split_rotary or head_dim_new == old.head_dim:
        return old.rotary
    if old.rotary.kind not in SURVIVING_ROPE_TYPES:
        raise GrowthError(
            f"rope type {old.rotary.kind!r} computes its frequencies from head_dim, so "
            f"they do not survive head_dim {old.head_dim} → {head_dim_new}: grow "
            "num_attention_heads instead and leave head_dim alone"
        )
    if head_dim_new % 2:
        raise GrowthError(
            f"full rotary embedding turns pairs of lanes, got head_dim {head_dim_new}: "
            "choose an even one"
        )
    decades = math.log10(old.rotary.theta) * head_dim_new / old.head_dim
    if decades >= math.log10(FLOAT32_MAX):
        raise GrowthError(
            f"rope_theta {old.rotary.theta:g} must become 10^{decades:.1f} for head_dim "
            f"{old.head_dim} → {head_dim_new}, and transformers computes it in float32 "
            "(at most 3.4e38): choose a smaller head_dim, or more heads"
        )
    theta = old.rotary.theta ** (head_dim_new / old.head_dim)
    return replace(old.rotary, theta=theta, dims=head_dim_new)


def check_policies(
    old: Shape, new: Shape, norm: NormPolicy, fill: Fill, depth: Depth
) -> None:
    """Raise GrowthError for policies that do not exist or cannot hold together."""
    for name, got, known in (
        ("norm", norm, ("scaled", "centred", "masked")),
        ("fill", fill, ("zeros", "trainable")),
        ("depth", depth, ("append", "interleave")),
    ):
        if got not in known:
            raise GrowthError(f"{name} must be one of {', '.join(known)}, got {got!r}")
    if new.repeats < old.repeats:
        raise GrowthError(
            f"{old.repeats} query heads share a key/value head, and with "
            f"{new.heads} / {new.groups} heads only {new.repeats} could: a query head "
            "would lose its keys. Grow num_attention_heads along"
        )
    if norm == "centred" and not old.layer_norm:
        raise GrowthError(
            "centring needs a LayerNorm behind every reader; RMSNorm keeps the mean, so "
            "it would change the function. For a Llama norm='scaled' is exact"
        )
    if norm == "centred" and old.tied and new.hidden > old.hidden:
        default_norm(old, grows=True)
    if norm != "masked" and old.norm_size != old.hidden:
        raise GrowthError(
            f"the model is already masked (norms divide by {old.norm_size}, not "
            f"{old.hidden}): it can only be grown with norm='masked'"
        )
