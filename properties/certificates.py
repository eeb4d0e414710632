"""Certificates: is the grown model the same function, for all weights of its shape?

The grower is a black box. *Recover*: run it on a few random float64 models and find,
for each entry of the grown parameters, the old entry (or centred entry, or mean) that
it is a multiple of, or that it is a constant, or neither. *Decide*: from that map and
the two configs alone, in exact arithmetic. Three verdicts, none of them a guess:

certified: the grown decoder, with its scales read as the exact roots that they round,
    is the old function for **all** weights and tokens, by the argument below.
refused: it is not: weights and tokens are at hand (the witness) on which float64 logits
    differ a thousandfold above rounding; or it is no model of the target's sizes.
undecided: the argument fails at a named entry, and no witness was found.

Why a yes is right. Each *lane* of the grown decoder (a coordinate of a tap) is tracked
as an exact linear form of the old decoder's lanes at the same tap, for all weights and
tokens at once, or given up as *lost*, and a lost lane may be anything. The rules are
one per operation, each an identity of the real numbers:

- a linear map carries forms to forms if W'N = EW as polynomials in the old weights, row
  by row, where N holds the forms read and E those written; an entry that meets a zero
  lane may be anything, an entry that meets a lost lane must be zero;
- a norm sees its input through A (the identity, or the removal of the mean). If row a
  of A'E is e_a · row j of A, and Σ_{a over j} e_a² = κ for every j, κ D = s² D', and
  ε' = s² ε, then its lane a is (e_a / s) times lane j (before the weight and bias);
- a head is an old head if, for each frequency, its products q'k' add up to √(K'/K)
  times the old ones, as bilinear forms in q and k; its context is then a form in v;
- act(g') · u' is a form if g' is exactly g and u' is a multiple of its partner u; it is
  zero where either is;
- all writers must write the same A'E, or nothing; the blocks that write must be the old
  ones in order; the logits must be the old logits.

Where the map comes from. An entry counts as c · (old form) only if it is so to 1e-13 on
every run: random weights, others, small ones, and permuted, negated and scaled ones.
Two analytic functions that agree at a random point are equal with probability one, so
what can fool the recognition is a grower that branches on values no run has shown.
Entries that are not recognised are lost, never guessed. Read scales are roots of
fractions within 1e-12, so "the same function" is up to the rounding of the scales.
"""

import argparse
import copy
import functools
import importlib
import itertools
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, cast

import numpy as np
import torch
from growproof.arithmetic import BLAS
from growproof.decoder import forward
from growproof.layout import names, parameters, tensors
from growproof.layout import size as length
from growproof.models import CLASSES, SIZES, shape_of, state_of
from growproof.padding import check
from growproof.shape import GrowthError, Shape
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

Grower = Callable[[PreTrainedModel, dict[str, int]], PreTrainedModel]
Verdict = Literal["certified", "refused", "undecided"]
State = dict[str, Tensor]

MATCH = 1e-13  # entry against c · form, over the largest weight: a few roundings
READ = 1e-12  # scale, ε or frequency against the exact number that it rounds
WITNESS = 1e-9  # relative difference of logits: rounding is below 1e-12
MODULE = 1e-3  # the module against its clone: transformers rotates in float32
DENOMINATOR = 10_000


# ------------------------------------------------------------------ exact numbers


class Surd:
    """Σ q · n^(1/4), n fourth-power-free: zero only if every q is (Besicovitch 1940).

    Equal numbers are one object, so that == is `is`, and sums and products are cached.

    >>> print(Surd.root(Fraction(2, 3)) * Surd.root(Fraction(3, 2)))
    1
    """

    known: ClassVar[dict[tuple[tuple[int, Fraction], ...], "Surd"]] = {}
    terms: tuple[tuple[int, Fraction], ...]

    @classmethod
    def of(cls, terms: Mapping[int, Fraction]) -> "Surd":
        key = tuple(sorted((n, q) for n, q in terms.items() if q))
        if key not in cls.known:
            cls.known[key] = cls()
            cls.known[key].terms = key
        return cls.known[key]

    @classmethod
    def root(cls, q: Fraction, degree: int = 2) -> "Surd":
        """q^(1/degree), degree 1, 2 or 4, q > 0."""
        power = q ** (4 // degree)
        outer, inner = reduced(power.numerator * power.denominator**3)
        return cls.of({inner: Fraction(outer, power.denominator)})

    @functools.cache  # noqa: B019
    def __add__(self, other: "Surd") -> "Surd":
        terms = dict(self.terms)
        for n, q in other.terms:
            terms[n] = terms.get(n, Fraction(0)) + q
        return Surd.of(terms)

    @functools.cache  # noqa: B019
    def __mul__(self, other: "Surd") -> "Surd":
        terms: dict[int, Fraction] = {}
        for (n, p), (m, q) in itertools.product(self.terms, other.terms):
            outer, inner = reduced(n * m)
            terms[inner] = terms.get(inner, Fraction(0)) + p * q * outer
        return Surd.of(terms)

    def __neg__(self) -> "Surd":
        return Surd.of({n: -q for n, q in self.terms})

    def __bool__(self) -> bool:
        return bool(self.terms)

    def __float__(self) -> float:
        return float(sum(q * n**0.25 for n, q in self.terms))

    def __str__(self) -> str:
        if len(self.terms) > 1:
            return " + ".join(str(Surd.of(dict([term]))) for term in self.terms)
        for n, q in self.terms:
            sign, square = "-" if q < 0 else "", q * q * math.isqrt(n)
            if n == 1:
                return str(q)
            if math.isqrt(n) ** 2 == n:
                return f"{sign}√({square})"
            return f"{sign}({q**4 * n})^(1/4)"
        return "0"


@functools.cache
def reduced(n: int) -> tuple[int, int]:
    """(outer, inner) with n = outer⁴ · inner and inner free of fourth powers."""
    outer, inner, p = 1, 1, 2
    while n > 1:
        p = p if p * p <= n else n
        e = 0
        while n % p == 0:
            n, e = n // p, e + 1
        outer, inner, p = outer * p ** (e // 4), inner * p ** (e % 4), p + 1
    return outer, inner


def rational(q: Fraction | int) -> Surd:
    return Surd.of({1: Fraction(q)})


NOTHING, ONE = rational(0), rational(1)


@functools.cache
def recognised(x: float) -> Surd | None:
    """±q^(1/1), ±q^(1/2) or ±q^(1/4) for a small fraction q within READ of x, if any."""
    for degree in (1, 2, 4):
        power = abs(x) ** degree
        q = Fraction(power).limit_denominator(DENOMINATOR)
        if q and abs(power / q - 1) <= degree * READ:
            root = Surd.root(q, degree)
            return root if x > 0 else -root
    return None


# ------------------------------------------------------------------ the recovered map


@dataclass(frozen=True, eq=False)
class Entry:
    """One entry of a grown parameter: Σ coefficient · source[index], or a constant.

    terms: None where it is neither, {} for a constant.
    """

    text: str
    source: str | None = None
    terms: Mapping[tuple[int, ...], Surd] | None = field(default_factory=dict)
    zero: bool = False


ZERO = Entry("0", zero=True)
LOST = Entry("no multiple of an old entry", terms=None)


@dataclass(frozen=True)
class View:
    """Old forms of one kind: entries of `name`, or their means, over blocks of an axis.

    The tensor is seen as (pre, block, post); kind says what is taken of a block.
    """

    name: str
    size: tuple[int, ...]
    axis: int
    block: int
    kind: Literal["entry", "centred", "mean"]

    def fold(self) -> tuple[int, int, int]:
        post = math.prod(self.size[self.axis + 1 :])
        return -1, self.block, post

    def values(self, x: np.ndarray) -> np.ndarray:
        x = x.reshape(self.fold())
        if self.kind == "entry":
            return x.ravel()
        mean = x.mean(1, keepdims=True)
        return (mean if self.kind == "mean" else x - mean).ravel()

    def terms(self, at: int, scale: Surd) -> dict[tuple[int, ...], Surd]:
        """scale × the form number `at`, as coefficients of entries."""
        flat = np.arange(math.prod(self.size)).reshape(self.fold())
        if self.kind == "entry":
            return {self.index(at): scale}
        if self.kind == "mean":
            line, own = flat[at // flat.shape[2], :, at % flat.shape[2]], -1
        else:
            row, rest = divmod(at, flat.shape[1] * flat.shape[2])
            line, own = flat[row, :, rest % flat.shape[2]], at
        share = Fraction(1 if self.kind == "mean" else -1, self.block)
        parts = {int(i): rational(share + (int(i) == own)) * scale for i in line}
        return {self.index(i): part for i, part in parts.items() if part}

    def index(self, flat: int) -> tuple[int, ...]:
        return (flat,) if len(self.size) == 1 else divmod(flat, self.size[1])

    def text(self, at: int) -> str:
        if self.kind == "entry":
            return place(self.name, self.index(at))
        return f"({self.kind} of {self.name}, number {at})"


def place(name: str, index: Iterable[int]) -> str:
    return f"{name}[{', '.join(map(str, index))}]"


def views(shape: Shape) -> list[View]:
    """Every form that an entry may be a multiple of."""
    found = []
    for template, row in parameters(shape).items():
        size = tuple(length(shape, axis) for axis in row.axes)
        for _, name in names(shape, template):
            found.append(View(name, size, 0, size[0], "entry"))
            for axis, along in enumerate(row.axes):
                blocks = {size[axis]}
                blocks |= {shape.head_dim} if along in ("query", "key") else set()
                for block in blocks - {1}:
                    found.append(View(name, size, axis, block, "centred"))
                    found.append(View(name, size, axis, block, "mean"))
    return found


Map = dict[str, np.ndarray]  # grown parameter → object array of Entry


def recover(shape: Shape, olds: list[State], news: list[State]) -> Map:
    """What each grown entry is, from the runs olds[r] → news[r]."""
    known = views(shape)
    sizes = [len(v.values(olds[0][v.name].numpy())) for v in known]
    start = np.cumsum([0, *sizes])
    forms = np.stack(
        [np.concatenate([v.values(old[v.name].numpy()) for v in known]) for old in olds]
    )
    large = np.stack(
        [
            np.repeat([float(old[v.name].abs().max()) for v in known], sizes)
            for old in olds
        ]
    )

    @functools.cache
    def entry(form: int, scale: float) -> Entry:
        which = int(np.searchsorted(start, form, side="right")) - 1
        view, at = known[which], form - int(start[which])
        exact = recognised(scale)
        times = f"{scale:.12g}" if exact is None else str(exact)
        text = view.text(at) if exact == ONE else f"{times} · {view.text(at)}"
        if exact is None:
            text += " (the factor is no root of a small fraction)"
            return Entry(text, view.name, None)
        return Entry(text, view.name, view.terms(at, exact))

    flat = [np.concatenate([x.numpy().ravel() for x in new.values()]) for new in news]
    cells = matches(np.stack(flat), forms, large, entry)
    ends = np.cumsum([x.numel() for x in news[0].values()])
    parts = zip(news[0].items(), np.split(cells, ends[:-1]), strict=True)
    return {name: part.reshape(tuple(x.shape)) for (name, x), part in parts}


def matches(
    y: np.ndarray,
    forms: np.ndarray,
    large: np.ndarray,
    entry: Callable[[int, float], Entry],
) -> np.ndarray:
    """y (runs, entries), forms and their sizes (runs, forms) → an Entry each.

    Of the forms with nearly the ratio between run 1 and run 0, the one that fits all.
    """
    cells = np.full(y.shape[1], LOST, dtype=object)
    fixed = np.flatnonzero((y == y[0]).all(0))
    for n in fixed:
        cells[n] = Entry(f"the constant {y[0, n]:.6g}") if y[0, n] else ZERO
    left = np.setdiff1d(np.flatnonzero(np.isfinite(y).all(0) & (y[0] != 0)), fixed)
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


# ------------------------------------------------------------------ the decision


class Broken(Exception):
    """The argument fails; the message is a sentence that names the entry."""


@dataclass(frozen=True)
class Lost:
    """A lane that is no known form of old lanes, and why."""

    why: str


Form = dict[int, Surd]  # old lane → coefficient; {} is the zero lane
Lane = Form | Lost


def add(form: dict[Any, Surd], key: Any, value: Surd) -> None:
    """form[key] += value, keeping no zeros."""
    total = form.get(key, NOTHING) + value
    if total:
        form[key] = total
    else:
        form.pop(key, None)


def scaled(form: Form, by: Surd) -> Form:
    return {j: c * by for j, c in form.items()}


def written(form: Lane) -> str:
    if isinstance(form, Lost):
        return "lost"
    terms = [f"{c} · lane {j}" for j, c in sorted(form.items())]
    return " + ".join(terms[:3] + ["…"] * (len(terms) > 3)) or "0"


class Decision:
    """Follows the lanes of the grown decoder from the embedding to the logits."""

    def __init__(self, old: Shape, new: Shape, entries: Map, names: set[str]) -> None:
        self.old, self.new, self.entries, self.names = old, new, entries, names
        self.lanes: dict[str, list[Lane]] = {}
        self.eps = self.eps_ratio()
        self.classes = self.frequency_classes()
        self.stream: list[Form] = []

    def eps_ratio(self) -> Fraction | None:
        """s² = ε'/ε; None where both are zero, so that any s will do."""
        if self.old.eps == 0 or self.new.eps == 0:
            if self.old.eps == self.new.eps:
                return None
            raise Broken(f"The config's eps is {self.new.eps}, from {self.old.eps}.")
        ratio = self.new.eps / self.old.eps
        exact = Fraction(ratio).limit_denominator(DENOMINATOR)
        if abs(ratio - exact) > READ * ratio:
            raise Broken(
                f"The config's eps grew by {ratio:.12g}, which is no small fraction."
            )
        return exact

    def run(self) -> None:
        """Raises Broken unless the grown decoder is the old function."""
        self.embedding()
        self.units = self.standardised(
            self.stream,
            self.old.hidden,
            self.old.norm_size,
            self.new.norm_size,
            "stream",
        )
        found = [self.block(i) for i in range(self.new.layers)]
        wanted = [[("attention", i), ("mlp", i)] for i in range(self.old.layers)]
        if self.old.parallel:  # the two read the same stream: a layer is one step
            found = [done for done in found if done]
        else:
            found, wanted = (
                [[block] for step in steps for block in step]
                for steps in (found, wanted)
            )
        if found != wanted:
            raise Broken(
                f"The grown layers do {listed(found)}, the old ones {listed(wanted)}."
            )
        x = self.norm("model.norm", "model.norm")
        head = "model.embed_tokens" if self.new.tied else "lm_head"
        logits = self.linear(
            head, "model.embed_tokens" if self.old.tied else "lm_head", x
        )
        for v, lane in enumerate(logits):
            if isinstance(lane, Lost):
                raise Broken(f"Logit {v} is lost: {lane.why}.")
            if lane != {v: ONE}:
                raise Broken(
                    f"{place(head + '.weight', (v, 0))} makes logit {v} "
                    f"{written(lane)} of the old logits."
                )
        self.lanes["logits"] = logits

    # the residual stream

    def embedding(self) -> None:
        """x' = E x: the rows of E from one token, and the same from every other."""
        name = "model.embed_tokens.weight"
        cells = self.entries[name]
        first: list[Form] = []
        for v, a in np.ndindex(*cells.shape):
            entry, form = cells[v, a], cast(Form, {})
            for (token, j), c in self.terms_of(
                entry, name, place(name, (v, a))
            ).items():
                if token != v:
                    raise Broken(f"{place(name, (v, a))} is {entry.text}.")
                form[j] = c
            if v == 0:
                first.append(form)
            elif form != first[a]:
                raise Broken(
                    f"{place(name, (v, a))} is {entry.text}, and for token 0 the lane "
                    f"is {written(first[a])}."
                )
        self.lanes["residual"] = list(first)
        self.stream = self.seen(first, self.new.norm_size)

    def terms_of(
        self, entry: Entry, source: str, where: str
    ) -> Mapping[tuple[int, ...], Surd]:
        if entry.zero:
            return {}
        if not entry.terms or entry.source != source:
            raise Broken(
                f"{where} is {entry.text}, no multiple of entries of {source}."
            )
        return entry.terms

    def seen(self, rows: Sequence[Form], size: int) -> list[Form]:
        """A'E: what the norms let through. LayerNorm: minus the mean, size lanes long."""
        if not self.old.layer_norm:
            return list(rows)
        mean: Form = {}
        for row in rows:
            for j, c in row.items():
                add(mean, j, c * rational(Fraction(-1, size)))
        result = [dict(row) for row in rows]
        for row, (j, c) in itertools.product(result[:size], mean.items()):
            add(row, j, c)
        return result

    def standardised(
        self, rows: Sequence[Form], lanes: int, size: int, size_new: int, what: str
    ) -> list[tuple[int, Surd] | None]:
        """(j, e_a / s) for each row a of A'E, None where it is zero. Else Broken."""
        basis = self.seen([{j: ONE} for j in range(lanes)], size)
        units: list[tuple[int, Surd] | None] = []
        kappa = [NOTHING] * lanes
        for a, row in enumerate(rows):
            unit = None
            for j in row:
                inverse = Fraction(1) / dict(basis[j].get(j, NOTHING).terms).get(
                    1, Fraction(1)
                )
                e = row[j] * rational(inverse)
                if row == scaled(basis[j], e):
                    unit = j, e
                    kappa[j] = kappa[j] + e * e
                    break
            if row and not unit:
                raise Broken(
                    f"Lane {a} of the {what} reaches its norms as {written(row)}, which "
                    "is no multiple of one old lane."
                )
            units.append(unit)
        ratio = Fraction(size_new, size)
        for j, k in enumerate(kappa):
            if k != kappa[0] or (
                self.eps is not None and k != rational(self.eps * ratio)
            ):
                wanted = kappa[0] if self.eps is None else rational(self.eps * ratio)
                raise Broken(
                    f"Under the grown norms the square of lane {j} of the {what} counts "
                    f"{k} times; with divisor {size} → {size_new} and eps {self.old.eps:g}"
                    f" → {self.new.eps:g} it must count {wanted} times (writers, or eps)."
                )
        square = (
            self.eps
            if self.eps is not None
            else Fraction(dict(kappa[0].terms)[1]) / ratio
        )
        inverse = Surd.root(1 / square)
        return [unit and (unit[0], unit[1] * inverse) for unit in units]

    def weighed(
        self, name: str, old: str, units: Sequence[tuple[int, Surd] | None]
    ) -> list[Lane]:
        """Lanes of a norm's output as forms of the old norm's output."""
        lanes: list[Lane] = []
        weights, bias = self.entries[name + ".weight"], self.entries.get(name + ".bias")
        for a, unit in enumerate(units):
            shift = ZERO if bias is None else bias[a]
            if unit is None:
                dead = f"{place(name + '.bias', [a])} is {shift.text} in a silent lane"
                lanes.append({} if shift.zero else Lost(dead))
                continue
            (j, e), w = unit, weights[a]
            if w.zero and shift.zero:
                lanes.append({})
            elif (
                w.source != old + ".weight" or w.terms is None or set(w.terms) != {(j,)}
            ):
                where = place(old + ".weight", [j])
                lanes.append(
                    Lost(
                        f"{place(name + '.weight', [a])} is {w.text}, no multiple of "
                        f"{where}"
                    )
                )
            else:
                lanes.append({j: e * w.terms[(j,)]})
                lanes[a] = self.biased(lanes[a], shift, old, place(name + ".bias", [a]))
        return lanes

    def biased(self, lane: Lane, entry: Entry, old: str, where: str) -> Lane:
        """The lane itself if the bias is the same form of the old biases, else lost."""
        if isinstance(lane, Lost):
            return lane
        wanted = (
            {(i,): c for i, c in lane.items()} if old + ".bias" in self.names else {}
        )
        right = (
            not entry.zero and entry.source == old + ".bias" and entry.terms == wanted
        )
        if (entry.zero and not wanted) or right:
            return lane
        return Lost(
            f"{where} is {entry.text}, where the bias of {written(lane)} belongs"
        )

    def norm(self, name: str, old: str) -> list[Lane]:
        return self.weighed(name, old, self.units)

    # linear maps

    def linear(self, name: str, old: str, inputs: Sequence[Lane]) -> list[Lane]:
        """Lanes of W'x' + b' as forms of Wx + b, where x' are the given forms of x."""
        cells = self.entries[name + ".weight"]
        bias = self.entries.get(name + ".bias")
        lanes: list[Lane] = []
        for a in range(len(cells)):
            lane = self.row(name + ".weight", old + ".weight", a, cells[a], inputs)
            entry = ZERO if bias is None else bias[a]
            lanes.append(self.biased(lane, entry, old, place(name + ".bias", [a])))
        return lanes

    def row(
        self, name: str, old: str, a: int, cells: np.ndarray, inputs: Sequence[Lane]
    ) -> Lane:
        """Row a of W'N as E W: the coefficients E[a], equal for every input lane."""
        width = dict(self.sizes())[old][1]
        columns: list[Form] = [{} for _ in range(width)]
        stray: dict[tuple[int, int, int], Surd] = {}
        for b, (entry, lane) in enumerate(zip(cells, inputs, strict=True)):
            if entry.zero or lane == {}:
                continue
            where = f"{place(name, (a, b))} is {entry.text}"
            if isinstance(lane, Lost):
                return Lost(
                    f"{where} and reads a lane that should stay unread, where {lane.why}"
                )
            if not entry.terms or entry.source != old:
                return Lost(f"{where}, no multiple of entries of {old}")
            for ((i, n), c), (j, e) in itertools.product(
                entry.terms.items(), lane.items()
            ):
                if n == j:
                    add(columns[j], i, c * e)
                else:
                    add(stray, (i, n, j), c * e)
        if stray:
            i, n, j = min(stray)
            b = next(
                b for b, lane in enumerate(inputs) if lane and j in cast(Form, lane)
            )
            return Lost(
                f"{place(name, (a, b))} brings {place(old, (i, n))} to old lane {j}"
            )
        usual = Counter(frozenset(c.items()) for c in columns).most_common(1)[0][0]
        for j, column in enumerate(columns):
            if column.items() != usual:
                b = next(
                    (
                        b
                        for b, x in enumerate(inputs)
                        if not isinstance(x, Lost) and j in x
                    ),
                    None,
                )
                if b is None:
                    return Lost(f"{name} row {a} is not given old lane {j} at all")
                return Lost(
                    f"{place(name, (a, b))} is {cells[b].text}: row {a} weighs old lane "
                    f"{j} as row {written(column)}, and others as {written(dict(usual))}"
                )
        return dict(usual)

    @functools.cache  # noqa: B019
    def sizes(self) -> list[tuple[str, tuple[int, ...]]]:
        return list(tensors(self.old))

    # blocks

    def block(self, i: int) -> list[tuple[str, int]]:
        """The old (kind, layer) that grown layer i does; silent blocks do nothing."""
        prefix, done = f"model.layers.{i}.", []
        for kind, writer in (
            ("attention", "self_attn.o_proj"),
            ("mlp", "mlp.down_proj"),
        ):
            layer = self.source_layer(prefix, kind)
            below = f"model.layers.{layer}."
            first = kind == "attention" or self.old.parallel
            norm = "input_layernorm" if first else "post_attention_layernorm"
            x = self.norm(prefix + norm, below + norm)
            inner = self.attention if kind == "attention" else self.mlp
            out = self.linear(prefix + writer, below + writer, inner(prefix, below, x))
            if self.writes(prefix + writer, out):
                done.append((kind, layer))
        return done

    def source_layer(self, prefix: str, kind: str) -> int:
        """The old layer that most entries of a block come from (the first, if none)."""
        part = "self_attn." if kind == "attention" else "mlp."
        votes = Counter(
            int(cell.source.split(".")[2])
            for name, cells in self.entries.items()
            if name.startswith(prefix + part)
            for cell in cells.flat
            if cell.source and cell.source.startswith("model.layers.")
        )
        return votes.most_common(1)[0][0] if votes else 0

    def writes(self, name: str, out: Sequence[Lane]) -> bool:
        """True if the block writes the stream's own A'E, False if nothing; else Broken."""
        for a, lane in enumerate(out):
            if isinstance(lane, Lost):
                raise Broken(f"Lane {a} written by {name} is lost: {lane.why}.")
        seen = self.seen(cast(list[Form], out), self.new.norm_size)
        if not any(seen):
            return False
        for a, (got, wanted) in enumerate(zip(seen, self.stream, strict=True)):
            if got != wanted:
                raise Broken(
                    f"{place(name + '.weight', (a, 0))}: the row writes {written(got)} "
                    f"(as norms see it), where the embedding writes {written(wanted)}."
                )
        return True

    def mlp(self, prefix: str, below: str, x: Sequence[Lane]) -> list[Lane]:
        """act(g') u' as forms of act(g) u."""
        gate = self.linear(prefix + "mlp.gate_proj", below + "mlp.gate_proj", x)
        up = self.linear(prefix + "mlp.up_proj", below + "mlp.up_proj", x)
        lanes: list[Lane] = []
        for a, (g, u) in enumerate(zip(gate, up, strict=True)):
            where = place(prefix + "mlp.gate_proj.weight", (a, 0))
            if g == {} or u == {}:
                lanes.append({})  # act(0) = 0 for every activation of the clone
            elif isinstance(g, Lost) or isinstance(u, Lost):
                lanes.append(g if isinstance(g, Lost) else u)
            elif len(g) != 1 or g.keys() != u.keys():
                lanes.append(Lost(f"{where}: gate {written(g)} meets up {written(u)}"))
            elif next(iter(g.values())) != ONE:
                lanes.append(
                    Lost(
                        f"{where}: the gate is {written(g)}, which the activation does "
                        f"not forgive (times {prefix}'s norm weights it must be 1)"
                    )
                )
            else:
                lanes.append(u)
        self.lanes[prefix + "mlp"] = lanes
        return lanes

    def attention(self, prefix: str, below: str, x: Sequence[Lane]) -> list[Lane]:
        """The context, before o_proj, as forms of the old context."""
        old, new = self.old, self.new
        q, k, v = (
            self.linear(f"{prefix}self_attn.{p}_proj", f"{below}self_attn.{p}_proj", x)
            for p in "qkv"
        )
        if old.qk_norm:
            q = self.head_norms(prefix, below, "q", q, new.heads, old.heads)
            k = self.head_norms(prefix, below, "k", k, new.groups, old.groups)
        context: list[Lane] = []
        for h in range(new.heads):
            g, width = h // new.repeats, new.head_dim
            mine, theirs = (
                slice(h * width, h * width + width),
                slice(g * width, g * width + width),
            )
            context += self.head(
                f"{prefix}self_attn.", h, q[mine], k[theirs], v[theirs]
            )
        self.lanes |= {
            f"{prefix}{t}": y for t, y in (("query", q), ("key", k), ("value", v))
        }
        self.lanes[prefix + "context"] = context
        return context

    def head(
        self, name: str, h: int, q: Sequence[Lane], k: Sequence[Lane], v: Sequence[Lane]
    ) -> list[Lane]:
        """Head h's context: forms of the context of the old head whose scores it has."""
        if not any(v):
            return [{} for _ in v]
        owners = {
            j // self.old.head_dim for lane in q if isinstance(lane, dict) for j in lane
        }
        if len(owners) != 1:
            where = place(name + "q_proj.weight", (h * self.new.head_dim, 0))
            lost = Lost(f"{where}: head {h} holds queries of {len(owners)} old heads")
            lost = next((lane for lane in q if isinstance(lane, Lost)), lost)
            return [lost if lane else {} for lane in v]
        (old_head,) = owners
        why = self.scores_differ(name, h, old_head, q, k)
        if why:
            return [Lost(why) if lane else {} for lane in v]
        group, width = old_head // self.old.repeats, self.old.head_dim
        context: list[Lane] = []
        for a, lane in enumerate(v):
            if isinstance(lane, dict) and any(j // width != group for j in lane):
                row = h // self.new.repeats * self.new.head_dim + a
                lane = Lost(
                    f"{place(name + 'v_proj.weight', (row, 0))} gives {written(lane)} to "
                    f"head {h}, which has the scores of old head {old_head}"
                )
            if isinstance(lane, dict):
                lane = {old_head * width + j % width: c for j, c in lane.items()}
            context.append(lane)
        return context

    def scores_differ(
        self, name: str, h: int, old_head: int, q: Sequence[Lane], k: Sequence[Lane]
    ) -> str | None:
        """Why head h's scores are not those of the old head; None where they are."""
        old, new = self.old, self.new
        got: dict[Any, Surd] = {}
        where = name + "q_proj.weight"

        def meet(key: tuple[Any, str], a: int, b: int, sign: Surd) -> str | None:
            x, y = q[a], k[b]
            if x == {} or y == {}:
                return None
            for lane in (x, y):
                if isinstance(lane, Lost):
                    entry = place(where, (h * new.head_dim + a, 0))
                    return f"{entry} meets a key: {lane.why}"
            for (i, c), (j, e) in itertools.product(
                cast(Form, x).items(), cast(Form, y).items()
            ):
                add(got, (*key, i, j), c * e * sign)
            return None

        for cls, part, a, b, sign in turns(new, self.classes[1]):
            if why := meet((cls, part), a, b, sign):
                return why
        group = old_head // old.repeats
        scale = Surd.root(Fraction(new.head_dim, old.head_dim))
        wanted = {
            (cls, part, old_head * old.head_dim + a, group * old.head_dim + b): sign
            * scale
            for cls, part, a, b, sign in turns(old, self.classes[0])
        }
        wrong = [key for key in {**wanted, **got} if got.get(key) != wanted.get(key)]
        if not wrong:
            return None
        cls, _, i, j = wrong[0]
        a = next((a for a, x in enumerate(q) if isinstance(x, dict) and i in x), 0)
        entry = place(where, (h * new.head_dim + a, 0))
        return (
            f"{entry}: at {cls} head {h} counts old query lane {i} times old key lane {j} "
            f"{got.get(wrong[0], NOTHING)} times, where {wanted.get(wrong[0], NOTHING)} is "
            f"right for head_dim {old.head_dim} → {new.head_dim}"
        )

    def frequency_classes(self) -> tuple[list[str], list[str]]:
        """A name for each old and new rotary frequency; equal names, equal frequency."""
        named: list[float] = []
        classes: tuple[list[str], list[str]] = [], []
        for shape, named_as in zip((self.old, self.new), classes, strict=True):
            for f in shape.rotary.frequencies().tolist():
                known = [g for g in named if abs(f - g) <= READ * g]
                named += [] if known else [f]
                named_as.append(f"frequency {known[0] if known else f:.6g}")
        return classes

    def head_norms(
        self,
        prefix: str,
        below: str,
        p: str,
        lanes: Sequence[Lane],
        heads: int,
        olds: int,
    ) -> list[Lane]:
        """q/k layernorm, each head's: forms of the old normed lanes."""
        result: list[Lane] = []
        width, width_new = self.old.head_dim, self.new.head_dim
        for h in range(heads):
            rows = lanes[h * width_new : (h + 1) * width_new]
            owners = {j // width for row in rows if isinstance(row, dict) for j in row}
            lost = next((row for row in rows if isinstance(row, Lost)), None)
            if lost or len(owners) != 1:
                result += [
                    lost or Lost(f"head {h} of {prefix}{p} mixes heads")
                ] * width_new
                continue
            (o,) = owners
            local = [
                {j - o * width: c for j, c in cast(Form, row).items()} for row in rows
            ]
            try:
                seen = self.seen(local, width_new)
                what = f"head {h} of {prefix}self_attn.{p}_proj"
                units = self.standardised(seen, width, width, width_new, what)
            except Broken as why:
                result += [Lost(str(why).rstrip("."))] * width_new
                continue
            ends = f"self_attn.{p}_layernorm.norms."
            for lane in self.weighed(f"{prefix}{ends}{h}", f"{below}{ends}{o}", units):
                moved = isinstance(lane, dict)
                result.append(
                    {j + o * width: c for j, c in lane.items()} if moved else lane
                )
        return result


def turns(
    shape: Shape, classes: Sequence[str]
) -> Iterable[tuple[str, str, int, int, Surd]]:
    """(class, part, query lane, key lane, sign): a score is Σ sign · q k · part(class)."""
    half = shape.rotary.dims // 2
    for a, cls in enumerate(classes):
        b = a + half
        yield cls, "cos", a, a, ONE
        yield cls, "cos", b, b, ONE
        yield cls, "sin", a, b, ONE
        yield cls, "sin", b, a, -ONE
    for a in range(shape.rotary.dims, shape.head_dim):
        yield "no rotation", "cos", a, a, ONE


def listed(steps: Sequence[Sequence[tuple[str, int]]]) -> str:
    done = [" with ".join(f"{kind} {i}" for kind, i in step) for step in steps]
    return ", ".join(done) or "nothing"


# ------------------------------------------------------------------ the certificate


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A verdict on one growth, and what it rests on.

    lanes: tap → for each grown lane {old lane: coefficient}, or null where it may be
    anything. entries: how many grown entries were found to be what. witness: the
    largest relative difference of the logits, over which run's weights and tokens.
    """

    verdict: Verdict
    reason: str
    family: str
    source: dict[str, int]
    target: dict[str, int]
    entries: dict[str, int] = field(default_factory=dict)
    lanes: dict[str, list[dict[str, str] | None]] = field(default_factory=dict)
    witness: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self)}


RUNS = ("random", "random again", "small residual", "permuted and negated")


def draw(shape: Shape, run: int) -> State:
    """Weights for one run: none near zero, the residual's square about ε in run 2."""
    generator = torch.Generator().manual_seed(run % 3)
    tiny = 2 * math.sqrt(shape.eps or 1e-6)
    state: State = {}
    for template, row in parameters(shape).items():
        sizes = [length(shape, axis) for axis in row.axes]
        matrix = len(sizes) == 2 and row.axes[0] != "vocab"
        spread = 1.5 / math.sqrt(sizes[1]) if matrix else 1.0
        writes = row.role == "writer" or template.endswith(
            ("o_proj.bias", "down_proj.bias")
        )
        for _, name in names(shape, template):
            x = 0.5 + torch.rand(sizes, generator=generator, dtype=torch.float64)
            x *= torch.rand(sizes, generator=generator).sub(0.3).sign() * spread
            if run == 3:
                mixed = torch.randperm(x.numel(), generator=generator)
                x = x.flatten()[mixed].reshape(sizes) * -0.37
            state[name] = x * tiny if run == 2 and writes else x
    return state


def model_with(config: PretrainedConfig, state: State) -> PreTrainedModel:
    """A float64 model of its own, in evaluation mode, with these parameters."""
    model = CLASSES[config.model_type][1](copy.deepcopy(config)).double().eval()
    model.load_state_dict({n: x.clone() for n, x in state.items()}, strict=False)
    return model


def grown_by(
    grower: Grower, config: PretrainedConfig, state: State, target: Mapping[str, int]
) -> PreTrainedModel:
    """What the grower makes of these weights, with the global generators seeded."""
    model = model_with(config, state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        return grower(model, dict(target))


def breach(
    old: Shape, grown: Sequence[PreTrainedModel], target: Mapping[str, int]
) -> str | None:
    """How these are no models of the wanted sizes; None where they are."""
    shapes = [shape_of(model.config) for model in grown]
    new = shapes[0]
    if any(shape != new for shape in shapes):
        return "The grown config depends on the values of the weights."
    for name, size in SIZES.items():
        wanted = target.get(name, getattr(old, size))
        free = name == "head_dim" and old.family == "stablelm"
        if getattr(new, size) != wanted and not free:
            return f"The config's {name} is {getattr(new, size)}, not {wanted}."
    for name in ("family", "vocab", "activation", "qk_norm", "parallel", "tied"):
        if getattr(new, name) != getattr(old, name):
            return f"{name} was {getattr(old, name)!r} and is {getattr(new, name)!r}."
    for i, layer in enumerate(grown[0].model.layers):
        if layer.self_attn.layer_idx != i:
            return (
                f"model.layers.{i}.self_attn.layer_idx is {layer.self_attn.layer_idx}: "
                "with a cache two layers would share their keys."
            )
    try:
        check(state_of(grown[0]), new)
    except ValueError as error:
        return f"The parameters do not fit the config: {error}."
    return None


def certify(
    grower: Grower, config: PretrainedConfig, target: Mapping[str, int]
) -> Certificate:
    """Decide whether the grower keeps the function of every model of this config.

    Runs the grower four times, on tiny or real sizes alike (cost: the parameters).
    Never raises for what a grower does; an untreated model type raises GrowthError.
    """
    began = time.perf_counter()
    old = shape_of(config)
    olds = [draw(old, run) for run in range(len(RUNS))]
    done: dict[str, Any] = {}

    def verdict(verdict: Verdict, reason: str) -> Certificate:
        return Certificate(
            verdict=verdict,
            reason=reason,
            family=old.family,
            source={name: getattr(old, size) for name, size in SIZES.items()},
            target=dict(target),
            seconds=round(time.perf_counter() - began, 3),
            **done,
        )

    try:
        grown = [grown_by(grower, config, state, target) for state in olds]
    except Exception as error:
        return verdict("refused", f"The grower raised {type(error).__name__}: {error}")
    try:
        broken = breach(old, grown, target)
        new = shape_of(grown[0].config)
        new.rotary.frequencies()
    except (AttributeError, GrowthError) as error:
        return verdict("undecided", f"The grown model cannot be read: {error}.")
    if broken:
        return verdict("refused", broken)
    news = [{n: p.double().clone() for n, p in state_of(m).items()} for m in grown]
    done["witness"] = witness = difference(old, olds, new, news, grown)
    entries = recover(old, olds, news)
    done["entries"] = tally(entries)
    decision = None
    try:
        decision = Decision(old, new, entries, set(olds[0]))
        decision.run()
        done["lanes"] = readable(decision.lanes)
        why = ""
    except Broken as error:
        why = str(error)
    if witness["module"] > MODULE:
        if witness["relative"] <= WITNESS:
            why = why or "The module does not compute what its config and weights say."
        return verdict("refused", why)
    if witness["relative"] > WITNESS:
        return verdict(
            "refused", why or "The logits differ, though the map looks right."
        )
    if why:
        return verdict("undecided", why)
    return verdict(
        "certified", "The grown decoder is the old function for all weights."
    )


def difference(
    old: Shape,
    olds: Sequence[State],
    new: Shape,
    news: Sequence[State],
    grown: Sequence[PreTrainedModel],
) -> dict[str, Any]:
    """The largest relative difference of logits over the runs, and the module's own."""
    tokens = torch.arange(2 * 7).reshape(2, 7) * 5 % old.vocab
    worst, which, module = 0.0, 0, 0.0
    with torch.no_grad():
        for run, (before, after) in enumerate(zip(olds, news, strict=True)):
            a = forward(old, before, tokens, BLAS)["logits"]
            b = forward(new, after, tokens, BLAS)["logits"]
            c = grown[run].eval()(tokens).logits.double()
            apart = float((a - b).abs().max() / a.abs().max())
            apart = apart if math.isfinite(apart) else math.inf
            module = max(module, float((b - c).abs().max() / b.abs().max()))
            if apart > worst:
                worst, which = apart, run
    return {
        "relative": worst,
        "run": RUNS[which],
        "tokens": tokens.tolist(),
        "module": module,
    }


def tally(entries: Map) -> dict[str, int]:
    """How many grown entries are copies, mixtures, constants, or not recognised."""
    count = Counter({"copied": 0, "mixed": 0, "constant": 0, "unrecognised": 0})
    for cell in itertools.chain.from_iterable(cells.flat for cells in entries.values()):
        if cell.terms is None:
            count["unrecognised"] += 1
        else:
            count[("constant", "copied", "mixed")[min(len(cell.terms), 2)]] += 1
    return dict(count)


def readable(
    lanes: Mapping[str, Sequence[Lane]],
) -> dict[str, list[dict[str, str] | None]]:
    return {
        tap: [
            None if isinstance(x, Lost) else {str(j): str(c) for j, c in x.items()}
            for x in row
        ]
        for tap, row in lanes.items()
    }


# ------------------------------------------------------------------ the command


@dataclass(frozen=True)
class Case:
    """A growth of the built-in set: a config's fields, and the sizes it grows to."""

    name: str
    family: str
    config: Mapping[str, Any]
    target: Mapping[str, int]


TINY: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "head_dim": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "stablelm": {
        "vocab_size": 11, "hidden_size": 16, "intermediate_size": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "use_qkv_bias": True, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
        },
    },
}  # fmt: skip
AXES: dict[str, dict[str, dict[str, int]]] = {
    "llama": {
        "nothing": {},
        "hidden": {"hidden_size": 12},
        "heads": {"num_attention_heads": 8},
        "groups": {"num_attention_heads": 8, "num_key_value_heads": 4},
        "head_dim": {"head_dim": 6},
        "mlp": {"intermediate_size": 9},
        "layers": {"num_hidden_layers": 3},
        "all": {
            "hidden_size": 12, "num_attention_heads": 12, "num_key_value_heads": 3,
            "head_dim": 6, "intermediate_size": 9, "num_hidden_layers": 3,
        },
    },
    "stablelm": {
        "nothing": {},
        "head_dim": {"hidden_size": 24},
        "heads": {"hidden_size": 24, "num_attention_heads": 6},
        "groups": {
            "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3,
        },
        "mlp": {"intermediate_size": 9},
        "layers": {"num_hidden_layers": 3},
        "all": {
            "hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 3,
            "intermediate_size": 9, "num_hidden_layers": 3,
        },
    },
}  # fmt: skip
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "tied": {"tie_word_embeddings": True},
        "no biases": {"attention_bias": False, "mlp_bias": False},
        "no sharing of keys": {"num_key_value_heads": 4},
    },
    "stablelm": {
        "parallel": {"use_parallel_residual": True},
        "no biases": {"use_qkv_bias": False},
        "no sharing of keys": {"num_key_value_heads": 4},
    },
}


def cases() -> list[Case]:
    """Each family and axis alone, all together, and all together for each variant."""
    found = []
    for family, axes in AXES.items():
        found += [Case(axis, family, TINY[family], to) for axis, to in axes.items()]
        for name, change in VARIANTS[family].items():
            target = dict(axes["all"])
            if "num_key_value_heads" in change:
                target["num_key_value_heads"] = target["num_attention_heads"]
            found.append(Case(f"all, {name}", family, TINY[family] | change, target))
    return found


def config_of(family: str, fields: Mapping[str, Any]) -> PretrainedConfig:
    return cast(Any, CLASSES[family][1].config_class)(**copy.deepcopy(dict(fields)))


class Usage(argparse.ArgumentParser):
    """argparse, with pytest's exit code for a usage error."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(4, f"{self.prog}: error: {message}\n")


def assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value JSON where it can be."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def load_grower(spec: str) -> Grower:
    """The callable of MODULE:CALLABLE. Raises ImportError, with a whole sentence."""
    module, _, path = spec.partition(":")
    sys.path.insert(0, "")
    try:
        return functools.reduce(
            getattr, path.split("."), importlib.import_module(module)
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(
            f"cannot import {spec!r} (MODULE:CALLABLE): {error}"
        ) from error
    finally:
        sys.path.remove("")


def main(argv: Sequence[str] | None = None) -> int:
    """`growproof certify`: 0 all certified, 1 any refused, 3 any undecided, 4 usage."""
    usage = Usage(prog="growproof certify", description=main.__doc__)
    usage.add_argument("grower", metavar="MODULE:CALLABLE", nargs="?")
    for option, text in (
        ("--shape", "a field of the config to grow from, over a tiny default"),
        ("--target", "a size to grow to, e.g. hidden_size=24"),
    ):
        usage.add_argument(
            option, metavar="NAME=VALUE", nargs="+", action="extend", type=assignment,
            default=[], help=text,
        )  # fmt: skip
    usage.add_argument("--family", choices=sorted(TINY))
    usage.add_argument(
        "--json", metavar="FILE", type=Path, help="write all certificates"
    )
    usage.add_argument("--coq", metavar="DIR", type=Path, help="write Coq certificates")
    options = usage.parse_args(argv)
    chosen = [c for c in cases() if options.family in (None, c.family)]
    if options.shape or options.target:
        if options.family is None:
            usage.error("--shape and --target need a --family")
        fields = TINY[options.family] | dict(options.shape)
        name = ", ".join(f"{n}={v}" for n, v in options.target) or "nothing"
        chosen = [Case(name, options.family, fields, dict(options.target))]
    try:
        grower = load_grower(options.grower or "growproof:grow")
        configs = [config_of(case.family, case.config) for case in chosen]
        for config, case in zip(configs, chosen, strict=True):
            shape_of(config)
            if unknown := case.target.keys() - SIZES:
                usage.error(f"no size of a target: {', '.join(sorted(unknown))}")
    except (ImportError, ValueError, TypeError) as error:
        usage.error(str(error))
    table = Table("family", "growth", "verdict", "reason", "seconds")
    found: list[Certificate] = []
    for config, case in zip(configs, chosen, strict=True):
        c = certify(grower, config, case.target)
        found.append(c)
        colour = {"certified": "green", "refused": "red", "undecided": "yellow"}[
            c.verdict
        ]
        verdict = f"[{colour}]{c.verdict}"
        table.add_row(
            c.family, case.name, verdict, escape(c.reason), f"{c.seconds:.2f}"
        )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([c.json() for c in found], indent=1))
    verdicts = {c.verdict for c in found}
    return 1 if "refused" in verdicts else 3 if "undecided" in verdicts else 0
