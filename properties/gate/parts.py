"""One parameter of a grown model beside the right one: what is wrong with it, in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from growproof.models import decoder_of
from torch import Tensor

LETTERS = {"K": "head_dim", "D": "hidden", "F": "mlp", "H": "heads", "G": "groups"}
POWERS = {0.5: "√({})", 1: "{}", 2: "({})²", 0.25: "⁴√({})", 1.5: "({})^1.5"}
ATTENDING = {"q_proj", "k_proj", "v_proj", "o_proj"}
NUMBERS = {2.0: "2", 0.5: "1/2", math.sqrt(2): "√2", math.sqrt(0.5): "1/√2"}


@dataclass(frozen=True)
class Ratios:
    """How each size grows: a factor is told as √(K'/K) where it is one."""

    grown: Mapping[str, float]
    dtype: torch.dtype
    lanes: tuple[int, int]  # K, K'

    @classmethod
    def of(cls, old: Any, new: Any, dtype: torch.dtype) -> Ratios:
        """Those of two configs, and the dtype that weights are stored in."""
        before, after = decoder_of(old), decoder_of(new)
        ratios = {x: getattr(after, n) / getattr(before, n) for x, n in LETTERS.items()}
        grown = {letter: r for letter, r in ratios.items() if r != 1}
        return cls(grown, dtype, (before.head_dim, after.head_dim))

    @property
    def unit(self) -> float:
        """The precision that factors are known to."""
        return torch.finfo(self.dtype).eps

    @property
    def least(self) -> float:
        """The smallest number that is stored."""
        return torch.finfo(self.dtype).tiny * self.unit

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
        digits = min(10, max(3, round(-0.8 * math.log10(self.unit))))
        return f"{factor:.{digits}g}"


@dataclass(frozen=True)
class Part:
    """One parameter of the grown model beside the right one.

    old: before growing. placed: where old entries lie in it.
    """

    name: str
    new: Tensor
    right: Tensor
    old: Tensor | None
    placed: Tensor
    others: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        """q_proj, down_proj.bias, norm: without its layer."""
        return kind_of(self.name)

    def wrong(self, ratios: Ratios) -> Tensor:
        """Where it differs by more than rounding, or than what a mean in float64 leaves."""
        right = self.right.abs()
        rest = ratios.least + torch.finfo(torch.float64).eps * right.max()
        return (self.new - self.right).abs() > 2 * (ratios.unit * right + rest)


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
    apart = (new - right).abs()
    if not part.wrong(ratios).any():
        return roundings(apart, ratios)
    for told in TOLD:
        if found := told(part, ratios):
            return found
    worst = float(apart.max() / (right.abs().max() or 1.0))
    return f"{{}} differs, by up to {worst:.2g} of its largest entry"


def roundings(apart: Tensor, ratios: Ratios) -> str | None:
    """What is off by roundings alone: in float64 that is nobody's fault."""
    if ratios.dtype == torch.float64 or not apart.any():
        return None
    return (
        f"{{}} differs from the float64 growth rounded once to {str(ratios.dtype)[6:]}"
    )


def zero(part: Part, ratios: Ratios) -> str | None:
    """All of it, or all of its old entries in some rows, are zero."""
    if part.right.any() and not part.new.any():
        return "{} is zero: the old entries are not there"
    if part.right.any() and bool((part.new == 1).all()):
        return "{} is one: the old entries are not there"
    return None


def factor_of(a: Tensor, b: Tensor, ratios: Ratios) -> float | None:
    """The r with a = r · b, entry by entry to rounding, or None; of one entry, r ≈ 1
    or a power of a ratio, since it may be anything.
    """
    here = b != 0
    if not here.any() or bool(a[~here].any()):
        return None
    r = float((a * b).sum() / (b * b).sum())
    low = ratios.dtype != torch.float64  # where it may be rounding
    if int(here.sum()) == 1 and (abs(r - 1) > 0.1 or low) and "/" not in ratios.name(r):
        return None
    mean = torch.finfo(torch.float64).eps * b.abs().max()  # of what its removal leaves
    allowed = 4 * (abs(r) * (ratios.unit * b.abs() + mean) + ratios.least)
    return r if r and not ((a - r * b).abs() > allowed).any() else None


NOT_CLOSED = re.compile(r"-?\d+\.\d+(e[+-]?\d+)?|-?\d+e[+-]?\d+")


def scaled(part: Part, ratios: Ratios) -> str | None:
    """The right entries times one factor."""
    r = factor_of(part.new, part.right, ratios)
    if r is None:
        return None
    first, right = preferred(part.kind), scale_of(part, ratios)
    scale = 1 if not right or ratios.near(right, 1, 8) else right
    if scale != 1 and ratios.near(r * scale, 1, 8):
        return f"{ratios.name(scale, first)} is missing from {{}}"
    named = ratios.name(r * scale, first)
    if NOT_CLOSED.fullmatch(named):
        return f"{{}} is {ratios.name(r, first)} times what it should be"
    wanted = "no scale" if scale == 1 else ratios.name(scale, first)
    return f"{{}} is scaled by {named}, expected {wanted}"


def bare(part: Part, ratios: Ratios) -> str | None:
    """The weight of a norm that multiplies by 1 + it, scaled without the 1."""
    if "norm" not in part.kind or part.old is None:
        return None
    new, right = (w[..., : part.old.shape[-1]] for w in (part.new, part.right))
    r, wanted = (
        factor_of(new, part.old, ratios),
        factor_of(right + 1, part.old + 1, ratios),
    )
    if not r or not wanted or wanted == 1 or not ratios.near(r, wanted):
        return None
    said = ratios.name(r, "D")
    return f"{{}} is scaled by {said} without the 1 that the norm adds to it"


def scale_of(part: Part, ratios: Ratios) -> float | None:
    """The factor between the old and the right entries, wherever these lie."""
    if part.old is None:
        return None
    norms = [float(w.double().norm()) for w in (part.right, part.old)]
    return norms[0] / norms[1] if norms[1] else None


def rounded(part: Part, ratios: Ratios) -> str | None:
    """The right entries, stored in a lower precision on the way, scaled before or after."""
    r = scale_of(part, ratios) or 1.0
    for low in (torch.float32, torch.bfloat16, torch.float16):
        lower = torch.finfo(low).eps > ratios.unit
        after, before = (
            part.right.to(low).double(),
            (part.right / r).to(low).double() * r,
        )
        allowed = 4 * (ratios.unit * before.abs() + ratios.least)
        like = (
            torch.equal(part.new, after)
            or not ((part.new - before).abs() > allowed).any()
        )
        if lower and like:
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
    new = ~part.right.any(dim)  # neurons or tokens that should be zero
    if d < 2 or not moved or not flat or rest.any() or lanes.any(dim)[new].any():
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
    new, right = part.new, part.right
    for name, other in part.others.items():
        alike = other.shape == new.shape and torch.equal(new, other)
        if alike and bool((new != new.flatten()[0]).any()):  # not all one number
            if kind_of(name) == part.kind:
                return f"{{}} holds what is layer {layer_of(name)}'s"
            return f"{{}} holds what belongs to {kind_of(name)}"
    if right.ndim == 2 and new.shape == new.T.shape and torch.equal(new.T, right):
        return "{} is transposed"
    if (
        found := padded_behind(part, ratios)
        or heads(part, ratios)  # two that are exchanged are as well shifted
        or rolled(new, right)
    ):
        return found
    if torch.equal(new.flatten().sort().values, right.flatten().sort().values):
        return "{} holds the right entries in other places"
    return None


def by_head(part: Part, w: Tensor, n: int) -> Tensor:
    """(heads, n, …): the rows of q, k and v, or the columns of o, in heads of n lanes."""
    dim = int(part.kind == "o_proj")
    return w.unflatten(dim, (-1, n)).movedim(dim, 0).movedim(dim + 1, 1)


def padded_behind(part: Part, ratios: Ratios) -> str | None:
    """The old entries at the front of the tensor, or of each head, zeros behind."""
    old, new, (k, k_new) = part.old, part.new, ratios.lanes
    attends = part.kind.removesuffix(".bias") in ATTENDING
    if old is None or k == k_new or not attends or not old.any():
        return None
    front = tuple(map(slice, old.shape))
    rest = new.clone()
    rest[front] = 0
    one = len(by_head(part, old, k)) == 1
    if not one and not rest.any() and factor_of(new[front], old, ratios) is not None:
        return "{} is padded at the end, not head by head"
    heads, rightly = (by_head(part, w, k_new) for w in (new, part.right))
    at = by_head(part, part.placed, k_new).any(1)
    at = at.reshape(len(at), -1).any(1)
    if not rightly[at][:, k:].any():  # nothing is turned, or there it belongs
        return None
    used, behind = heads[at][:, :k], heads[at][:, k:]
    before = by_head(part, old, k)
    used = used[(..., *map(slice, before.shape[2:]))]
    if behind.any() or used.shape != before.shape:
        return None
    if factor_of(used, before, ratios) is None:
        return None
    return "{} is padded at the end of each head, not of its rotary halves"


def rolled(new: Tensor, right: Tensor) -> str | None:
    """All rows or columns some places further on, in a circle."""
    for dim, name in ((0, "row"), (1, "column")) if right.ndim == 2 else ():
        for k in (k for n in range(1, min(16, right.shape[dim])) for k in (n, -n)):
            if torch.equal(new, right.roll(k, dim)):
                where = "back" if k > 0 else "front"
                return f"{{}} is shifted by {abs(k)} {name}{'s' * (abs(k) > 1)} to the {where}"
    return None


def heads(part: Part, ratios: Ratios) -> str | None:
    """Whole heads in other places."""
    if part.kind.removesuffix(".bias") not in ATTENDING:
        return None
    new, right = (
        by_head(part, w, ratios.lanes[1]).flatten(1).unique(dim=0, return_counts=True)
        for w in (part.new, part.right)
    )
    same = all(
        a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(new, right, strict=True)
    )
    return "{} holds its heads in other places" if same else None


MOST = 257  # places that something may be shifted by, and one


def shifted(part: Part, ratios: Ratios) -> str | None:
    """The right rows or columns, but some places further on, and the rest lost."""
    new, right = part.new, part.right
    enough = int(right.count_nonzero()) // 2
    for dim, n in enumerate(right.shape):
        for k in range(1, min(n, MOST)):
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
    new, right, placed = part.new, part.right, part.placed
    wrong = part.wrong(ratios)
    if not right[wrong].any():
        worst = float(new[wrong].abs().max())
        if (wrong & placed).any():
            return f"old entries of {{}} that are 0 hold up to {worst:.3g}"
        return f"the new entries of {{}} hold up to {worst:.3g}, expected 0"
    if new[wrong].any():
        return None
    small = float(right[wrong].abs().max()) < torch.finfo(ratios.dtype).tiny
    if small:
        return "subnormal entries of {} are flushed to zero"
    return "old entries of {} are lost: zero where they should be"


# in order: what is the strongest evidence, first
TOLD = (rounded, zero, scaled, bare, uncentred, misplaced, shifted, unfilled)


def layer_of(name: str) -> str:
    """The layer's number in a parameter's name, or nothing."""
    return next((word for word in name.split(".") if word.isdigit()), "")
