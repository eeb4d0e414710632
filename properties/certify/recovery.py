"""What each entry of a grown model is, found by running the grower as a black box."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from growproof.layout import names, parameters
from growproof.layout import size as length
from growproof.shape import Shape
from torch import Tensor

from .surds import ONE, Surd, rational, recognised

State = dict[str, Tensor]
Index = tuple[int, ...]
MATCH = 1e-13  # an entry against c · form, over the largest weight: a few roundings


@dataclass(frozen=True)
class View:
    """Old forms of one kind: the entries of `name`, or (entries minus) block means.

    The tensor is seen as (pre, block, post), with blocks along one axis.
    """

    name: str
    size: Index
    axis: int
    block: int
    kind: Literal["entry", "centred", "mean"]

    @property
    def post(self) -> int:
        return math.prod(self.size[self.axis + 1 :])

    def values(self, x: Tensor) -> np.ndarray:
        y = x.numpy().reshape(-1, self.block, self.post)
        if self.kind == "entry":
            return y.ravel()
        mean = y.mean(1, keepdims=True)
        return (mean if self.kind == "mean" else y - mean).ravel()

    def index(self, flat: int) -> Index:
        return (flat,) if len(self.size) == 1 else divmod(flat, self.size[1])

    def terms(self, at: int, scale: Surd) -> dict[Index, Surd]:
        """scale × the form number `at` of `values`, as coefficients of old entries."""
        if self.kind == "entry":
            return {self.index(at): scale}
        post = self.post
        pre, rest = divmod(at, post if self.kind == "mean" else self.block * post)
        first = pre * self.block * post + rest % post
        line = [self.index(first + i * post) for i in range(self.block)]
        share = scale * rational(Fraction(1, self.block))
        if self.kind == "mean":
            return dict.fromkeys(line, share)
        return dict.fromkeys(line, -share) | {self.index(at): scale + -share}


@dataclass(frozen=True, eq=False)
class Entry:
    """A grown entry: Σ coefficient · old entry of `source`; {} constant; None unknown."""

    terms: Mapping[Index, Surd] | None
    text: str
    source: str = ""

    def said(self, name: str) -> str:
        """What it is, in the reason for entry `name`."""
        return self.text.replace(
            "@", "old" if self.source == name else "old " + self.source
        )


ZERO = Entry({}, "0")
UNKNOWN = Entry(None, "no multiple of an old entry")
Map = dict[str, np.ndarray[Any, Any]]  # grown parameter → array of Entry


def place(name: str, *index: int) -> str:
    return f"{name}[{', '.join(map(str, index))}]"


def views(shape: Shape) -> list[View]:
    """Every kind of form that an entry may be a multiple of."""
    found = []
    for template, row in parameters(shape).items():
        size = tuple(length(shape, axis) for axis in row.axes)
        for _, name in names(shape, template):
            found.append(View(name, size, 0, size[0], "entry"))
            for d, axis in enumerate(row.axes):
                heads = {shape.head_dim} if axis in ("query", "key") else set()
                for block in ({size[d]} | heads) - {1}:
                    found.append(View(name, size, d, block, "centred"))
                    found.append(View(name, size, d, block, "mean"))
    return found


def recover(shape: Shape, olds: Sequence[State], news: Sequence[State]) -> Map:
    """What each grown entry is, from the runs olds[r] → news[r]."""
    known = views(shape)
    table = [[v.values(old[v.name]) for v in known] for old in olds]
    sizes = [len(x) for x in table[0]]
    ends = np.cumsum(sizes)
    forms = np.stack([np.concatenate(run) for run in table])
    peaks = [[float(old[v.name].abs().max()) for v in known] for old in olds]
    large = np.repeat(np.array(peaks), sizes, axis=1)

    @functools.cache
    def entry(form: int, scale: float) -> Entry:
        which = int(np.searchsorted(ends, form, side="right"))
        view, at = known[which], form - int(ends[which] - sizes[which])
        exact = recognised(scale)
        if exact is None:
            text = f"{scale:.12g} times a form in @, and no root of a small fraction"
            return Entry(None, text, view.name)
        terms = view.terms(at, exact)
        if view.kind == "mean":
            what = f"mean of @[{next(iter(terms))}…]"
        else:
            what = place("@", *view.index(at))
            what = f"({what} - mean)" if view.kind == "centred" else what
        text = what if exact is ONE else f"{exact} · {what}"
        return Entry(terms, text, view.name)

    flat = [np.concatenate([x.numpy().ravel() for x in new.values()]) for new in news]
    cells = matches(np.stack(flat), forms, large, entry)
    cuts = np.cumsum([x.numel() for x in news[0].values()])[:-1]
    parts = zip(news[0].items(), np.split(cells, cuts), strict=True)
    return {name: part.reshape(tuple(x.shape)) for (name, x), part in parts}


def matches(
    y: np.ndarray,
    forms: np.ndarray,
    large: np.ndarray,
    entry: Callable[[int, float], Entry],
) -> np.ndarray:
    """y (runs, entries), forms and the sizes of their tensors (runs, forms) → Entries.

    Of the forms with nearly the ratio of run 1 to run 0, the one that fits every run.
    """
    cells = np.full(y.shape[1], UNKNOWN, dtype=object)
    fixed = (y == y[0]).all(0)
    for n in np.flatnonzero(fixed):
        cells[n] = Entry({}, f"the constant {y[0, n]:.6g}") if y[0, n] else ZERO
    left = np.flatnonzero(~fixed & np.isfinite(y).all(0) & (y[0] != 0))
    order = np.argsort(forms[1] / forms[0])
    middle = np.searchsorted((forms[1] / forms[0])[order], y[1, left] / y[0, left])
    for offset in (-2, -1, 0, 1):
        form = order[np.clip(middle + offset, 0, len(order) - 1)]
        best = np.argmax(np.abs(forms[:, form]) / large[:, form], axis=0)
        scale = y[best, left] / forms[best, form]
        off = np.abs(y[:, left] - scale * forms[:, form])
        good = (off <= MATCH * np.abs(scale) * large[:, form]).all(0)
        for n, f, c in zip(left[good], form[good], scale[good], strict=True):
            cells[n] = entry(int(f), float(f"{c:.14g}"))
    return cells
