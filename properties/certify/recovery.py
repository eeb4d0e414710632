"""What each entry of a grown model is, found by running the grower as a black box.

An entry is scale · form + offset, the form an old entry, an old entry minus the mean of
its row, column or head, or that mean; or a constant; or nothing that was recognised.
No names are needed: forms are matched by their values in runs with other weights.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from growproof.field import Field, FieldTensor
from growproof.residues import Residues
from torch import Tensor

State = dict[str, Tensor]
MATCH = 1e-13  # an entry against its form, over the largest weight: a few roundings
Kind = Literal["entry", "centred", "mean"]


@dataclass(frozen=True)
class View:
    """Old forms of one kind: a tensor as (pre, block, post), with blocks along one axis."""

    name: str
    block: int
    post: int
    kind: Kind

    def values(self, x: Tensor) -> Tensor:
        y = x.reshape(-1, self.block, self.post)
        mean = y.mean(1, keepdim=True)
        forms = {"entry": y, "centred": y - mean, "mean": mean}[self.kind]
        return forms.flatten()


def views(shapes: Mapping[str, Sequence[int]], head_dim: int) -> Iterator[View]:
    """Every kind of form that an entry may be a multiple of."""
    for name, shape in shapes.items():
        yield View(name, 1, 1, "entry")
        for d, size in enumerate(shape):
            blocks = {size} | (
                {head_dim} if head_dim and size % head_dim == 0 else set()
            )
            for block in blocks - {1}:
                post = math.prod(shape[d + 1 :])
                yield View(name, block, post, "centred")
                yield View(name, block, post, "mean")


@dataclass(frozen=True)
class Map:
    """All entries of a grown model, in the order of `shapes`: scale · form + offset.

    form: its index among all forms of `views`, −1 for a constant, −2 for what was not
    recognised and may be anything.
    """

    views: list[View]
    shapes: dict[str, tuple[int, ...]]
    form: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    def residues(
        self, field: Field, old: Mapping[str, FieldTensor]
    ) -> dict[str, FieldTensor]:
        """The grown parameters, where the old ones are these residues."""
        ends = np.cumsum(self.lengths)
        forms = torch.zeros((int(ends[-1]), len(field.ring.primes)), dtype=torch.int64)
        read = np.unique(np.searchsorted(ends, self.form[self.form >= 0], "right"))
        for i in read.tolist():
            values = self.views[i].values(old[self.views[i].name])
            forms[ends[i] - self.lengths[i] : ends[i]] = cast(
                FieldTensor, values
            ).residues
        return self.parameters(field, self.entries(field.ring, forms))

    def entries(
        self, ring: Residues, forms: Tensor, where: Any = slice(None)
    ) -> Tensor:
        """The residues of (some of) the grown entries, where all forms have these."""
        at = torch.from_numpy(self.form[where])
        out = ring.lift(torch.from_numpy(self.offset[where]))
        scale = ring.lift(torch.from_numpy(self.scale[where]))
        out = torch.where((at >= 0)[:, None], scale * forms[at.clamp(min=0)] + out, out)
        return torch.where((at == -2)[:, None], ring.random(at.shape), out % ring.p)

    def parameters(self, field: Field, entries: Tensor) -> dict[str, FieldTensor]:
        """All entries as parameters, by name."""
        parts = entries.split([math.prod(shape) for shape in self.shapes.values()])
        return {
            name: field.tensor(part.reshape(*shape, -1).clone(), 1)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def tally(self) -> dict[str, int]:
        """How many entries are copies, mixtures, constants, or not recognised."""
        lengths = np.cumsum([0, *self.lengths])
        kind = np.array([v.kind == "entry" for v in self.views])
        copied = kind[np.searchsorted(lengths, np.maximum(self.form, 0), "right") - 1]
        known = self.form >= 0
        return {
            "constant": int((self.form == -1).sum()),
            "copied": int((known & copied).sum()),
            "mixed": int((known & ~copied).sum()),
            "unrecognised": int((self.form == -2).sum()),
        }

    def unread(self) -> list[str]:
        """The grown parameters that hold entries which are not recognised."""
        counts = [math.prod(shape) for shape in self.shapes.values()]
        parts = np.split(self.form, np.cumsum(counts)[:-1])
        named = zip(self.shapes, parts, strict=True)
        return [name for name, part in named if (part == -2).any()]

    lengths: tuple[int, ...] = ()


def recover(olds: Sequence[State], news: Sequence[State], head_dim: int = 0) -> Map:
    """What each grown entry is, from four runs or more: olds[r] → news[r]."""
    known = list(views({n: tuple(x.shape) for n, x in olds[0].items()}, head_dim))
    table = [[v.values(old[v.name]) for v in known] for old in olds]
    lengths = [len(x) for x in table[0]]
    forms = torch.stack([torch.cat(run) for run in table]).numpy()
    peaks = [[float(old[v.name].abs().max()) for v in known] for old in olds]
    large = np.repeat(np.array(peaks), lengths, axis=1)
    y = torch.stack([torch.cat([x.flatten() for x in new.values()]) for new in news])
    found = matches(y.numpy(), forms, large)
    shapes = {name: tuple(x.shape) for name, x in news[0].items()}
    return Map(known, shapes, *found, lengths=tuple(lengths))


def matches(
    y: np.ndarray, forms: np.ndarray, large: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y (runs, entries), forms and their tensors' sizes (runs, forms) → form, scale, offset.

    Of the forms f with nearly the ratio (f₁ − f₀)/(f₂ − f₀), the one that fits every run.
    """
    form = np.full(y.shape[1], -2)
    scale, offset = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    fixed = (y == y[0]).all(0)
    form[fixed], offset[fixed] = -1, y[0, fixed]
    left = np.flatnonzero(~fixed & np.isfinite(y).all(0))
    with np.errstate(all="ignore"):
        keys = (forms[1] - forms[0]) / (forms[2] - forms[0])
        wanted = (y[1, left] - y[0, left]) / (y[2, left] - y[0, left])
    order = np.argsort(keys)
    middle = np.searchsorted(keys[order], wanted)
    for shift in (-2, -1, 0, 1):
        if not len(left):
            break
        at = order[np.clip(middle + shift, 0, len(order) - 1)]
        f, size, seen = forms[:, at], large[:, at], y[:, left]
        good, a, b = fitted(seen, f, size)
        new = good & (form[left] == -2)
        form[left[new]], scale[left[new]], offset[left[new]] = at[new], a[new], b[new]
    return form, scale, offset


def fitted(
    y: np.ndarray, f: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which y are a · f + b in every run, and a and b; b = 0 wherever that will do."""
    each = np.arange(y.shape[1])
    best = np.argmax(np.abs(f) / size, axis=0)
    a = y[best, each] / f[best, each]
    plain = (np.abs(y - a * f) <= MATCH * np.abs(a) * size).all(0)
    low, high = np.argmin(f, axis=0), np.argmax(f, axis=0)
    with np.errstate(all="ignore"):
        slope = (y[high, each] - y[low, each]) / (f[high, each] - f[low, each])
    b = y[low, each] - slope * f[low, each]
    slack = MATCH * (np.abs(slope) * size + np.abs(b))
    affine = (np.abs(y - slope * f - b) <= slack).all(0)
    return (
        np.asarray(plain | affine),
        np.where(plain, a, slope),
        np.where(plain, 0.0, b),
    )
