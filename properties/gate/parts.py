"""One parameter of a grown model beside the right one: what is wrong with it, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from growproof.models import decoder_of
from torch import Tensor

LETTERS = {"K": "head_dim", "D": "hidden", "F": "mlp", "H": "heads", "G": "groups"}
POWERS = {0.5: "√({})", 1: "{}", 2: "({})²", 0.25: "⁴√({})", 1.5: "({})^1.5"}
NUMBERS = {2.0: "2", 0.5: "1/2", math.sqrt(2): "√2", math.sqrt(0.5): "1/√2"}


@dataclass(frozen=True)
class Ratios:
    """How each size grows: a factor is told as √(K'/K) where it is one."""

    grown: Mapping[str, float]
    unit: float

    @classmethod
    def of(cls, old: Any, new: Any, dtype: torch.dtype) -> Ratios:
        """Those of two configs, and the precision that factors are known to."""
        before, after = decoder_of(old), decoder_of(new)
        ratios = {x: getattr(after, n) / getattr(before, n) for x, n in LETTERS.items()}
        grown = {letter: r for letter, r in ratios.items() if r != 1}
        return cls(grown, torch.finfo(dtype).eps)

    def near(self, a: float, b: float, units: float = 8) -> bool:
        """Whether two factors are one, to this precision."""
        return abs(a - b) <= units * self.unit * max(abs(a), abs(b))

    def name(self, factor: float, letters: str = "KDFHG") -> str:
        """√(K'/K), D/D', …, or the number. letters: those that may be meant, in order."""
        for letter in (x for x in letters if x in self.grown):
            for power, form in POWERS.items():
                r = self.grown[letter] ** power
                if self.near(factor, r):
                    return form.format(f"{letter}'/{letter}")
                if self.near(factor, 1 / r):
                    return form.format(f"{letter}/{letter}'")
        for value, text in NUMBERS.items():
            if self.near(factor, value):
                return text
        return f"{factor:.10g}"


@dataclass(frozen=True)
class Part:
    """One parameter of the grown model beside the right one. old: before growing."""

    name: str
    new: Tensor
    right: Tensor
    old: Tensor | None
    others: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        """q_proj, down_proj.bias, norm: without its layer."""
        return kind_of(self.name)


def kind_of(name: str) -> str:
    """A parameter's own name: q_proj, q_proj.bias, without model, layer and weight."""
    words = [w for w in name.split(".") if not w.isdigit() and w != "norms"]
    return words[-2] if words[-1] == "weight" else ".".join(words[-2:])


def preferred(kind: str) -> str:
    """The letters whose ratio a factor of this parameter is first looked for in."""
    if any(word in kind for word in ("q_", "k_", "v_", "o_")):
        return "KDHG"
    return "FD" if any(word in kind for word in ("gate", "up_", "down")) else "D"


def relation(part: Part, ratios: Ratios) -> str | None:
    """What is wrong with one parameter, {} standing for its name. None: nothing."""
    new, right = part.new, part.right
    if new.shape != right.shape:
        return f"{{}} is {tuple(new.shape)}, expected {tuple(right.shape)}"
    if new.device.type == "meta":
        return "{} is on the meta device: it holds nothing"
    if not new.isfinite().all():
        return "{} holds a NaN or an infinity"
    scale = float(right.abs().max())
    if float((new - right).abs().max()) <= 2 * ratios.unit * scale:
        return None
    for told in (zero, scaled, rounded, uncentred, misplaced, shifted, unfilled):
        if found := told(part, ratios):
            return found
    worst = float((new - right).abs().max() / (scale or 1.0))
    return f"{{}} differs, by up to {worst:.2g} of its largest entry"


def zero(part: Part, ratios: Ratios) -> str | None:
    """All of it, or all of its old entries in some rows, are zero."""
    if part.right.any() and not part.new.any():
        return "{} is zero: the old entries were not copied"
    if part.right.any() and bool((part.new == 1).all()):
        return "{} is one: the old entries were not copied"
    return None


def factor_of(a: Tensor, b: Tensor, unit: float) -> float | None:
    """The r with a = r · b, entry by entry to rounding, or None; of one entry, r ≈ 1."""
    here = b != 0
    if not here.any() or bool(a[~here].any()):
        return None
    ratio = a[here] / b[here]
    r = float((a * b).sum() / (b * b).sum())
    if int(here.sum()) == 1 and abs(r - 1) > 0.1:  # it may be anything
        return None
    spread = float((ratio - r).abs().max())
    return r if r and spread <= 4 * unit * abs(r) else None


def scaled(part: Part, ratios: Ratios) -> str | None:
    """The right entries times one factor."""
    r = factor_of(part.new, part.right, ratios.unit)
    if r is None:
        return None
    first, right = preferred(part.kind), scale_of(part, ratios)
    if right and not ratios.near(right, 1, 8):
        if ratios.near(r * right, 1, 8):
            return f"{ratios.name(right, first)} is missing from {{}}"
        named = ratios.name(right * r, first)
        return f"{{}} is scaled by {named}, expected {ratios.name(right, first)}"
    return f"{{}} is scaled by {ratios.name(r, first)}, expected no scale"


def scale_of(part: Part, ratios: Ratios) -> float | None:
    """The factor between the old and the right entries, wherever these lie."""
    if part.old is None:
        return None
    norms = [float(w.double().norm()) for w in (part.right, part.old)]
    return norms[0] / norms[1] if norms[1] else None


def rounded(part: Part, ratios: Ratios) -> str | None:
    """The right entries, stored in a lower precision on the way."""
    for low in (torch.float32, torch.bfloat16, torch.float16):
        lower = torch.finfo(low).eps > ratios.unit
        if lower and torch.equal(part.new, part.right.to(low).double()):
            return f"{{}} went through {str(low)[6:]}"
    return None


def uncentred(part: Part, ratios: Ratios) -> str | None:
    """A writer off by one constant for each column that it writes: by a mean."""
    if part.kind not in ("embed_tokens", "o_proj", "down_proj") or part.old is None:
        return None
    dim = 1 if part.kind == "embed_tokens" else 0
    d, off = part.old.shape[dim], part.new - part.right
    lanes, rest = off.split((d, off.shape[dim] - d), dim)
    moved = float(lanes.abs().max())
    flat = float((lanes - lanes.mean(dim, keepdim=True)).abs().max()) <= 1e-6 * moved
    if d < 2 or not moved or not flat or rest.any():
        return None
    means = [float(w.mean(dim).abs().max()) for w in (part.new, part.right, part.old)]
    new_is, right_is = (m < 1e-6 * means[2] for m in means[:2])
    if right_is and not new_is:
        same = ratios.near(means[0] * part.new.shape[dim], means[2] * d, 64)
        return "the mean over the residual is {}removed from {{}}".format(
            "not " if same else "not all "
        )
    return "a mean is removed from {}, and nothing here ignores it"


def misplaced(part: Part, ratios: Ratios) -> str | None:
    """The right entries in other places, or those of another parameter."""
    new, right, old = part.new, part.right, part.old
    for name, other in part.others.items():
        if other.shape == new.shape and torch.equal(new, other) and new.any():
            if kind_of(name) == part.kind:
                return f"{{}} holds what is layer {layer_of(name)}'s"
            return f"{{}} holds what belongs to {kind_of(name)}"
    if right.ndim == 2 and new.shape == new.T.shape and torch.equal(new.T, right):
        return "{} is transposed"
    if old is not None and old.shape != right.shape and right.any():
        front = tuple(slice(n) for n in old.shape)
        rest = new.clone()
        rest[front] = 0
        if not rest.any() and factor_of(new[front], old, ratios.unit) is not None:
            return "{} is padded at the end, not head by head"
    if torch.equal(new.flatten().sort().values, right.flatten().sort().values):
        return "{} holds the right entries in other places"
    return None


def shifted(part: Part, ratios: Ratios) -> str | None:
    """The right rows or columns, but some places further on, and the rest lost."""
    new, right = part.new, part.right
    enough = int(right.count_nonzero()) // 2
    for dim, n in enumerate(right.shape):
        for k in range(1, n):
            front, back = (w.narrow(dim, 0, n - k) for w in (new, right))
            behind, ahead = (w.narrow(dim, k, n - k) for w in (new, right))
            for a, b, where in ((front, ahead, "front"), (behind, back, "back")):
                if int(b.count_nonzero()) > enough and torch.equal(a, b):
                    return (
                        f"{{}} is shifted by {k} to the {where}: old entries are lost"
                    )
    return None


def unfilled(part: Part, ratios: Ratios) -> str | None:
    """Right at the old entries but not in the new ones, or the other way round."""
    fresh = part.right == 0
    wrong = (part.new - part.right).abs() > 2 * ratios.unit * part.right.abs().max()
    if not (wrong & ~fresh).any():
        worst = float(part.new[wrong].abs().max())
        return f"the new entries of {{}} hold up to {worst:.3g}, expected 0"
    if not part.new[wrong].any():
        return "old entries of {} are lost: zero where they should be"
    return None


def layer_of(name: str) -> str:
    """The layer's number in a parameter's name, or nothing."""
    return next((word for word in name.split(".") if word.isdigit()), "")
