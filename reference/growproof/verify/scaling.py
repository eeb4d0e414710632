"""The scalars by which a destination may hold the source's entries.

They follow from the two configs: ε' says how the residual stream is scaled
(ε' = s² ε D / D'), the score scale what q and k are. Where there is a choice that no
config shows, such as √(K'/K) on q, on k or on both, the tensors are asked which.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from growproof.decoder import Decoder, GrowthError
from growproof.growth import Growth, NormPolicy, Policies
from growproof.table import Row, means, scales
from growproof.verify.entries import length
from growproof.verify.sides import Side

WRITERS = ("embed", "positions", "o", "down", "expert_down")
OUT_NORMS: tuple[str, ...] = ("attn_out_norm", "mlp_out_norm")


@dataclass(frozen=True)
class Scaling:
    """Part → scalar, the axes whose mean is lost, and whether new lanes hold the mean.

    stream: s, by which the residual is scaled. eps: what ε' must be for that. biases: of
    norms, whose bias is in what they write: out of the residual, into it, or to the head.
    """

    stream: float
    eps: float
    scalars: Mapping[str, float]
    centres: Mapping[str, str]
    averaged: bool = False
    biases: Mapping[str, float] = field(default_factory=dict[str, float])

    def row(self, part: str, row: Row) -> Row:
        """The row of a part, as it is scaled and centred."""
        scale = self.scalars.get(part, 1.0)
        if row.norm and row.reads is None:
            scale = self.biases.get(part, 1.0)
        loses = row.is_writer or part in ("q", "k")
        return replace(
            row,
            scale=scale,
            centre=self.centres.get(row.writes) if loses else None,
            averaged=row.is_writer and self.averaged,
        )

    def changes(self, part: str, row: Row) -> bool:
        """True where an entry cannot stay what it is, even in binary."""
        row = self.row(part, row)
        power = math.frexp(abs(row.scale))[0] == 0.5 and (
            row.scale == 1 or not row.offset
        )
        return row.centre is not None or row.averaged or not power


def scalings(old: Side, new: Side, residual: Tensor) -> Scaling:
    """The scaling that the embedding, and a head come untied, show."""
    a, b = old.decoder, new.decoder
    norm = policy(old, new, residual)
    s = stream(old, new, residual, norm)
    refuse(a, b, s, norm)
    growth = Growth(old=a, new=b, policies=Policies(norm=norm))
    by = table_scalars(growth)
    implied = 1.0 if a.score is not None else math.sqrt(growth.taller)
    by[score_parts(a)[0]] *= a.score_scale / b.score_scale / implied
    by |= {part: s * by.get(part, 1.0) for part in WRITERS}
    if a.places != "pre":
        by |= {part: s * by[part] for part in OUT_NORMS if part in by}
    biases = dict[str, float].fromkeys(OUT_NORMS, s)  # which they write to the residual
    if a.tied:
        by["final_norm"] /= s
        biases["final_norm"] = 1 / by["embed"]
    if a.tied and not b.tied:  # a head of its own: as the embedding is, or was
        t = by["embed"]
        by["head"] = nearest(
            old.state["embed.weight"], new.state["head.weight"], residual, (t, 1.0)
        )
        by["final_norm"] *= t / by["head"]
        biases["final_norm"] = 1 / by["head"]
    if b.tied and not a.tied and by["embed"] != 1:
        raise GrowthError(
            "lm_head has become the embedding, which is scaled or centred: then the "
            "logits are, too"
        )
    averaged = norm == "averaged" and growth.wider > 1
    centres = {**means(growth)} | (
        {"residual": "residual"} if norm == "centred" else {}
    )
    eps = s * s * a.eps * a.norm_size / b.norm_size
    return Scaling(s, eps, by, centres, averaged, biases)


def refuse(a: Decoder, b: Decoder, s: float, norm: NormPolicy) -> None:
    """Raise GrowthError for a stream that is not the old one, scaled or centred."""
    if s != 1 and a.places == "post":
        raise GrowthError(
            f"ε says that the residual is scaled by {s:.9g}, and its blocks read it "
            "without a norm"
        )
    if norm == "centred" and b.tied:
        raise GrowthError(
            "the embedding has lost its mean, and lm_head, which is tied to it, reads it"
        )


def table_scalars(growth: Growth) -> dict[str, float]:
    """The scalars of the table; heads may be dealt otherwise than it deals them."""
    try:
        return scales(growth)
    except GrowthError:
        if growth.old.qk_norm == "whole":
            raise
        new = replace(growth.new, heads=growth.old.heads, groups=growth.old.groups)
        return scales(replace(growth, new=new))


def stream(old: Side, new: Side, residual: Tensor, norm: NormPolicy) -> float:
    """s, the scale of the residual stream: as ε' tells, or 1, as the embedding is."""
    a, b = old.decoder, new.decoder
    if not a.eps or not b.eps:
        return 1.0
    s = math.sqrt(b.eps * b.norm_size / (a.eps * a.norm_size))
    if abs(s - 1) < 1e-7:
        return 1.0
    loud = math.sqrt(a.hidden / b.hidden) if a.root_embedding else 1.0
    x, y = (side.state["embed.weight"] for side in (old, new))
    x = x[:256].double()
    x = x - x.mean(1, keepdim=True) if norm == "centred" else x
    return nearest(x, y, residual, (s * loud, loud)) / loud


def policy(old: Side, new: Side, residual: Tensor) -> NormPolicy:
    """What became of the mean of the embedding: kept, removed, or held by new lanes.

    A LayerNorm over more lanes takes another mean away, unless it is one of the two.
    """
    a, b = old.decoder, new.decoder
    if b.norm_size != b.hidden:
        return "masked"
    if a.norm == "rms" or a.places != "pre":
        return "scaled"
    some = torch.linspace(0, a.vocab - 1, min(a.vocab, 256)).long()
    x, y = (side.state["embed.weight"][some].double() for side in (old, new))
    wider, held = b.hidden > a.hidden, residual >= 0
    if wider and bool(y[:, ~held].any()):
        return "averaged"
    mean = x.mean(1, keepdim=True)
    kept, lost = (length(y[:, held] - t[:, residual[held]]) for t in (x, x - mean))
    return "centred" if wider or lost < kept else "scaled"


def nearest(
    x: Tensor, y: Tensor, residual: Tensor, choices: tuple[float, ...]
) -> float:
    """The choice of k for which k · x is nearest to y, where y holds x."""
    held = residual >= 0
    x = x[:256].double()[:, residual[held]]
    y = y[: len(x)].double()[:, held]
    k = float((x * y).sum() / (x * x).sum().clamp(min=1e-300))
    return min(choices, key=lambda c: abs(c - k))


def shared(
    scaling: Scaling, a: Decoder, b: Decoder, found: Mapping[str, float]
) -> Scaling:
    """√(K'/K) on q, on k or on both, whichever is nearest to the ratios found."""
    root = a.score_scale / b.score_scale
    if root == 1:
        return scaling
    by, (q, k) = scaling.scalars, score_parts(a)

    def distance(share: float) -> float:
        want = {q: by[q] / share, k: by.get(k, 1.0) * share}
        return sum(abs(math.log(max(found[p], 1e-9) / want[p])) for p in want)

    # the table's own choice wins where nothing fits
    share = min(
        (1.0, root, math.sqrt(root)), key=lambda c: distance(c) + (c != 1) * 1e-3
    )
    return replace(scaling, scalars={**by, q: by[q] / share, k: by.get(k, 1.0) * share})


def score_parts(d: Decoder) -> tuple[str, str]:
    """What scales q·k: the maps, or the norms behind them."""
    return ("q_norm", "k_norm") if d.qk_norm else ("q", "k")
