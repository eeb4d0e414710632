"""Certificates: is the grown model the same function, for all weights of its shape?

The grower is a black box. *Recover*: run it on a few random float64 models and find,
for each entry of the grown parameters, the old entry (or centred entry, or mean) that
it is a multiple of, or that it is a constant, or neither. *Decide*: from that map and
the two configs alone, in exact arithmetic. Three verdicts, none of them a guess:

certified: the grown decoder, with its scales read as the exact roots that they round,
    is the old function for **all** weights and tokens, by the argument below.
refused: it is not: there are weights and tokens (the witness) on which float64 logits
    differ a thousandfold above rounding, or the model cannot be what was asked for.
undecided: the argument fails at a named entry, and no witness was found.

Why a yes is right. Each *lane* of the grown decoder (a coordinate of a tap) is known as
an exact linear form in the old decoder's lanes at the same tap, for all weights and
tokens at once, or is *lost*, and then may be anything. One rule per operation, each an
identity of the real numbers:

- linear: W' N = E W as polynomials in the old weights, row by row, for the forms N that
  are read; then E are the forms written. An entry that meets a zero lane may be
  anything, an entry that meets a lost lane must be zero.
- norm: what it sees is A x (A the identity, or the removal of the mean). If row a of
  A'E is e_a times row j of A, Σ_{a over j} e_a² = κ for every j, ε' = s² ε and
  κ D = s² D', then its lane a is e_a / s times lane j (before weight and bias).
- scores: for each rotary frequency the products of the lanes of q' and k' add up to
  √(K'/K) times those of one old head, as bilinear forms; then the probabilities are the
  old head's, and the context is a form in its values. A zero value needs no scores.
- gate: act(g') u' is a form if g' is g itself and u' a multiple of g's own partner u,
  and zero where g' or u' is (act(0) = 0).
- stream: every writer writes the embedding's A'E, or nothing; those that write are the
  old blocks, in order; each logit is the old one.

Why the map is right. An entry counts as c · form only if it is so to 1e-13 in each of
four runs: random weights, others, a small residual, and the first ones permuted,
negated and scaled. Analytic functions that agree at a random point are equal with
probability one: only a grower that branches on values which no run shows is misread.
Entries that match nothing are lost, never guessed. A scale, ε or frequency is the exact
number of small height that lies within 1e-12 of it; so a certificate speaks of the
grower up to the rounding of its scales.
"""

import argparse
import copy
import functools
import itertools
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from growproof.arithmetic import BLAS
from growproof.cli import Parser
from growproof.decoder import forward
from growproof.layout import names, parameters, tensors
from growproof.layout import size as length
from growproof.models import CLASSES, SIZES, shape_of, state_of
from growproof.padding import check
from growproof.shape import GrowthError, Shape
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from transformers import PretrainedConfig

from .growers import DEFAULT, BrokenGrower, load_grower

Grower = Callable[[Any, Mapping[str, int]], Any]
Verdict = Literal["certified", "refused", "undecided"]
State = dict[str, Tensor]
Index = tuple[int, ...]

MATCH = 1e-13  # an entry against c · form, over the largest weight: a few roundings
READ = 1e-12  # a scale, ε or frequency against the exact number that it rounds
WITNESS = 1e-11  # relative difference of logits: rounding stays near 1e-15
MODULE = 1e-3  # a module against its clone: transformers rotates in float32
DENOMINATOR = 10_000

# ------------------------------------------------------------------ exact numbers


class Surd:
    """Σ q · n^(1/4), n fourth-power-free: zero only if every q is (Besicovitch 1940).

    Equal numbers are one object, so that == is `is`, and sums and products are cached.

    >>> print(Surd.root(Fraction(2, 3)) * Surd.root(Fraction(3, 8)))
    1/2
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

    @property
    def rational(self) -> Fraction | None:
        """The number itself where it is a fraction."""
        parts = dict(self.terms)
        return parts.get(1, Fraction(0)) if parts.keys() <= {1} else None

    def __str__(self) -> str:
        def part(n: int, q: Fraction) -> str:
            if n == 1:
                return str(q)
            square, sign = math.isqrt(n), "-" if q < 0 else ""
            even = square * square == n
            return sign + (f"√({q * q * square})" if even else f"({q**4 * n})^(1/4)")

        return " + ".join(part(n, q) for n, q in self.terms) or "0"


@functools.cache
def reduced(n: int) -> tuple[int, int]:
    """(outer, inner) with n = outer⁴ · inner and inner free of fourth powers."""
    outer, inner, p = 1, 1, 2
    while n > 1:
        p, e = (p if p * p <= n else n), 0
        while n % p == 0:
            n, e = n // p, e + 1
        outer, inner, p = outer * p ** (e // 4), inner * p ** (e % 4), p + 1
    return outer, inner


@functools.cache
def rational(q: Fraction | int) -> Surd:
    return Surd.of({1: Fraction(q)})


NOTHING, ONE = rational(0), rational(1)


@functools.cache
def recognised(x: float) -> Surd | None:
    """±q, ±√q or ±q^(1/4), for the small fraction q that puts it within READ of x."""
    for degree in (1, 2, 4):
        power = abs(x) ** degree
        q = Fraction(power).limit_denominator(DENOMINATOR)
        if q and abs(power / q - 1) <= degree * READ:
            root = Surd.root(q, degree)
            return root if x > 0 else -root
    return None


# ------------------------------------------------------------------ the recovered map


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


# ------------------------------------------------------------------ the decision


class Broken(Exception):
    """The argument fails; the message is a sentence that names the entry."""


@dataclass(frozen=True)
class Lost:
    """A lane that is no known form of old lanes: the entry to blame, and its reader."""

    why: str
    reader: str = ""

    def __str__(self) -> str:
        return f"{self.why}{', and ' * bool(self.reader)}{self.reader}."


Form = dict[int, Surd]  # old lane → coefficient; {} is the zero lane
Lane = Form | Lost
Unit = tuple[int, Surd] | None


def add(form: dict[Any, Surd], key: Any, value: Surd) -> None:
    """form[key] += value, keeping no zeros."""
    form[key] = form.get(key, NOTHING) + value
    if form[key] is NOTHING:
        del form[key]


def scaled(form: Form, by: Surd) -> Form:
    return {j: c * by for j, c in form.items()}


def moved(lane: Lane, by: int) -> Lane:
    return lane if isinstance(lane, Lost) else {j + by: c for j, c in lane.items()}


def owners(lanes: Iterable[Lane], width: int) -> set[int]:
    """The old heads whose lanes occur."""
    return {j // width for x in lanes if not isinstance(x, Lost) for j in x}


def written(form: Mapping[Any, Surd]) -> str:
    terms = sorted(form.items(), key=lambda term: (isinstance(term[0], str), term[0]))
    terms = [f"{c} · lane {j}" for j, c in terms]
    return " + ".join(terms[:3] + ["…"] * (len(terms) > 3)) or "nothing"


class Decision:
    """Follows the lanes of the grown decoder from the embedding to the logits."""

    def __init__(self, old: Shape, new: Shape, entries: Map) -> None:
        self.old, self.new, self.entries = old, new, entries
        self.sizes = dict(tensors(old))
        self.lanes: dict[str, Sequence[Lane]] = {}
        self.steps: list[list[tuple[str, int]]] = []

    def run(self) -> None:
        """Raises Broken unless the grown decoder is the old function."""
        old, new = self.old, self.new
        self.eps, self.classes = self.eps_ratio(), self.frequency_classes()
        embed = "model.embed_tokens.weight"
        one_hot: list[Lane] = [{v: ONE} for v in range(old.vocab)]
        columns = self.entries[embed].T
        lanes = [
            self.row(embed, embed, a, cells, one_hot, turned=True)
            for a, cells in enumerate(columns)
        ]
        self.stream = self.seen(self.kept(lanes), new.norm_size)
        self.lanes["residual"] = lanes
        self.units = self.standardised(
            self.stream, old.hidden, old.norm_size, new.norm_size, place(embed, 0)[:-1]
        )
        self.steps = steps = [self.block(i) for i in range(new.layers)]
        wanted = [[("attention", i), ("mlp", i)] for i in range(old.layers)]
        if not old.parallel:  # in parallel, the two must be one step
            steps, wanted = ([[x] for step in s for x in step] for s in (steps, wanted))
        if [step for step in steps if step] != wanted:
            raise Broken(
                f"The grown layers do {listed(steps)}; wanted: {listed(wanted)}."
            )
        head, old_head = (
            "model.embed_tokens" if shape.tied else "lm_head" for shape in (new, old)
        )
        logits = self.linear(head, old_head, self.norm("model.norm", "model.norm"))
        for v, lane in enumerate(self.kept(logits)):
            if lane != {v: ONE}:
                entry = place(head + ".weight", v, 0)
                raise Broken(
                    f"{entry}: logit {v} is {written(lane)} of the old logits."
                )

    def eps_ratio(self) -> Fraction | None:
        """s² = ε'/ε; None where both are zero, and any s will do."""
        before, after = self.old.eps, self.new.eps
        if before == after == 0:
            return None
        ratio = after / before if before else math.inf
        exact = (
            Fraction(ratio).limit_denominator(DENOMINATOR) if before else Fraction(0)
        )
        if not exact or abs(ratio / exact - 1) > READ:
            raise Broken(
                f"The config's eps, {before} → {after}, grew by no small fraction."
            )
        return exact

    def frequency_classes(self) -> tuple[list[str], list[str]]:
        """A name for each old and each new rotary frequency: one name, one frequency."""
        known: list[float] = []
        classes: tuple[list[str], list[str]] = [], []
        for shape, found in zip((self.old, self.new), classes, strict=True):
            for f in shape.rotary.frequencies().tolist():
                same = [g for g in known if abs(f - g) <= READ * g]
                known += [] if same else [f]
                found.append(f"at frequency {same[0] if same else f!r}")
        return classes

    @staticmethod
    def kept(lanes: Iterable[Lane]) -> list[Form]:
        """The lanes, all of them forms, or Broken for the first that is lost."""
        result = list(lanes)
        for lane in result:
            if isinstance(lane, Lost):
                raise Broken(str(lane))
        return cast(list[Form], result)

    # linear maps

    def linear(self, name: str, old: str, inputs: Sequence[Lane]) -> list[Lane]:
        """Lanes of W'x' + b' as forms of Wx + b, where x' are the given forms of x."""
        weight, bias = self.entries[name + ".weight"], self.entries.get(name + ".bias")
        lanes: list[Lane] = []
        for a, cells in enumerate(weight):
            lane = self.row(name + ".weight", old + ".weight", a, cells, inputs)
            lanes.append(
                self.biased(name, old, a, lane, ZERO if bias is None else bias[a])
            )
        return lanes

    def row(
        self,
        name: str,
        old: str,
        a: int,
        cells: Iterable[Entry],
        inputs: Sequence[Lane],
        *,
        turned: bool = False,
    ) -> Lane:
        """Row a of W'N as E W: the coefficients E[a], the same in every old column.

        turned: W is the transpose of the tensors `name` and `old`.
        """
        columns: list[dict[Any, Surd]] = [
            {} for _ in range(self.sizes[old][1 - turned])
        ]
        blame: dict[int, str] = {}
        for b, (entry, lane) in enumerate(zip(cells, inputs, strict=True)):
            if lane == {}:
                continue
            where = place(name, *((b, a) if turned else (a, b)))
            where = f"{where} is {entry.said(name)}"
            if isinstance(lane, Lost):
                if entry is not ZERO:
                    return Lost(lane.why, f"{where} and reads that lane")
                continue
            blame |= dict.fromkeys(lane, where)
            if entry is ZERO:
                continue
            if not entry.terms or entry.source != old:
                return Lost(f"{where}, where a multiple of {old} or 0 belongs")
            for (i, n), c in entry.terms.items():
                i, n = (n, i) if turned else (i, n)
                for j, e in lane.items():
                    add(columns[j], i if n == j else f"{i} by column {n}", c * e)
        usual = Counter(frozenset(c.items()) for c in columns).most_common(1)[0][0]
        for j, column in enumerate(columns):
            if column.items() != usual or any(isinstance(i, str) for i in column):
                where = blame.get(j, f"{place(name, a)} is given no old lane {j}")
                return Lost(
                    f"{where}: there the row makes {written(column)}, elsewhere "
                    f"{written(dict(usual))}"
                )
        return dict(usual)

    def biased(self, name: str, old: str, a: int, lane: Lane, entry: Entry) -> Lane:
        """The lane, if its bias is the same form of the old biases; else it is lost."""
        if isinstance(lane, Lost):
            return lane
        wanted = (
            {(i,): c for i, c in lane.items()} if old + ".bias" in self.sizes else {}
        )
        if (entry.terms, entry.source) == (wanted, old + ".bias") or (
            entry is ZERO and not wanted
        ):
            return lane
        where = f"{place(name + '.bias', a)} is {entry.said(old + '.bias')}"
        return Lost(f"{where}, though its lane is {written(lane)}")

    # norms

    def seen(self, rows: Sequence[Form], size: int) -> list[Form]:
        """A'E: LayerNorm removes the mean (Σ / size) from the first `size` lanes."""
        if not self.old.layer_norm:
            return list(rows)
        result, mean = [dict(row) for row in rows], cast(Form, {})
        for row in rows:
            for j, c in row.items():
                add(mean, j, c * rational(Fraction(-1, size)))
        for row, (j, c) in itertools.product(result[:size], mean.items()):
            add(row, j, c)
        return result

    def standardised(
        self, rows: Sequence[Form], lanes: int, size: int, size_new: int, what: str
    ) -> list[Unit]:
        """(j, e_a / s) for each row a of A'E, None for a zero row; else Broken."""
        basis = self.seen([{j: ONE} for j in range(lanes)], size)
        units: list[Unit] = []
        kappa = [NOTHING] * lanes
        for a, row in enumerate(rows):
            unit: Unit = None
            for j in row:
                own = basis[j].get(j, ONE).rational or Fraction(1)
                e = row[j] * rational(1 / own)
                if row == scaled(basis[j], e):
                    unit = j, e
                    kappa[j] = kappa[j] + e * e
                    break
            if row and not unit:
                raise Broken(
                    f"{what}, {a}] writes a lane that the grown norms see as "
                    f"{written(row)}, no multiple of what an old norm sees."
                )
            units.append(unit)
        ratio = Fraction(size_new, size)
        square = self.eps or (kappa[0].rational or ratio) / ratio
        for j, k in enumerate(kappa):
            if k is not rational(square * ratio):
                raise Broken(
                    f"Old lane {j} of {what}, :] counts {k} times in the grown mean of "
                    f"squares; for divisor {size} → {size_new} and eps {self.old.eps:g} → "
                    f"{self.new.eps:g} that must be {square * ratio}."
                )
        return [unit and (unit[0], unit[1] * Surd.root(1 / square)) for unit in units]

    def norm(
        self, name: str, old: str, units: Sequence[Unit] | None = None
    ) -> list[Lane]:
        """Lanes of a norm's output as forms of the old norm's output."""
        weight, bias = self.entries[name + ".weight"], self.entries.get(name + ".bias")
        lanes: list[Lane] = []
        for a, unit in enumerate(units or self.units):
            w, lane = weight[a], cast(Lane, {})
            if unit and w is not ZERO:
                j, e = unit
                if w.source == old + ".weight" and w.terms and set(w.terms) == {(j,)}:
                    lane = {j: e * w.terms[(j,)]}
                else:
                    where = f"{place(name + '.weight', a)} is {w.said(old + '.weight')}"
                    lane = Lost(f"{where}, no multiple of {place(old + '.weight', j)}")
            lanes.append(
                self.biased(name, old, a, lane, ZERO if bias is None else bias[a])
            )
        return lanes

    # blocks

    def block(self, i: int) -> list[tuple[str, int]]:
        """The old (kind, layer) that grown layer i does; what is silent does nothing."""
        new, done = f"model.layers.{i}.", list[tuple[str, int]]()
        for kind, part, writer in (
            ("attention", "self_attn.", "self_attn.o_proj"),
            ("mlp", "mlp.", "mlp.down_proj"),
        ):
            layer = self.source_layer(new + part)
            old = f"model.layers.{layer}."
            first = kind == "attention" or self.old.parallel
            norm = "input_layernorm" if first else "post_attention_layernorm"
            x = self.norm(new + norm, old + norm)
            inner = (self.attention if kind == "attention" else self.mlp)(new, old, x)
            out = self.kept(self.linear(new + writer, old + writer, inner))
            seen = self.seen(out, self.new.norm_size)
            for a, (got, wanted) in enumerate(zip(seen, self.stream, strict=True)):
                if got != wanted and any(seen):
                    raise Broken(
                        f"{place(new + writer + '.weight', a, 0)}: the norms see this row "
                        f"write {written(got)}, and the embedding {written(wanted)}."
                    )
            done += [(kind, layer)] if any(seen) else []
        return done

    def source_layer(self, part: str) -> int:
        """The old layer that most entries of a block come from (0 where none does)."""
        sources = Counter(
            cell.source
            for name, cells in self.entries.items()
            for cell in (cells.flat if name.startswith(part) else ())
            if cell.source.startswith("model.layers.")
        )
        return int(sources.most_common(1)[0][0].split(".")[2]) if sources else 0

    def mlp(self, new: str, old: str, x: Sequence[Lane]) -> list[Lane]:
        """act(g') u' as forms of act(g) u."""
        gate, up = (
            self.linear(f"{new}mlp.{p}", f"{old}mlp.{p}", x)
            for p in ("gate_proj", "up_proj")
        )
        lanes: list[Lane] = []
        for a, (g, u) in enumerate(zip(gate, up, strict=True)):
            if g == {} or u == {}:
                lanes.append({})
            elif isinstance(g, Lost) or isinstance(u, Lost):
                lanes.append(g if isinstance(g, Lost) else u)
            elif len(g) == 1 and g.keys() == u.keys() and ONE in g.values():
                lanes.append(u)
            else:
                where = place(new + "mlp.gate_proj.weight", a, 0)
                why = f"{where}: the gate is {written(g)} and meets {written(u)}"
                lanes.append(Lost(f"{why}; it must be 1 · lane of the same number"))
        self.lanes[new + "mlp"] = lanes
        return lanes

    def attention(self, new: str, old: str, x: Sequence[Lane]) -> list[Lane]:
        """The context, before o_proj, as forms of the old context."""
        new, old = new + "self_attn.", old + "self_attn."
        q, k, v = (self.linear(f"{new}{p}_proj", f"{old}{p}_proj", x) for p in "qkv")
        if self.old.qk_norm:
            q, k = self.head_norms(new, old, "q", q), self.head_norms(new, old, "k", k)
        width, context = self.new.head_dim, list[Lane]()
        for h in range(self.new.heads):
            g = h // self.new.repeats * width
            mine = q[h * width : (h + 1) * width]
            context += self.head(new, h, mine, k[g : g + width], v[g : g + width])
        taps = {"query": q, "key": k, "value": v, "context": context}
        self.lanes |= {new + tap: lanes for tap, lanes in taps.items()}
        return context

    def head(
        self, name: str, h: int, q: Sequence[Lane], k: Sequence[Lane], v: Sequence[Lane]
    ) -> list[Lane]:
        """Head h's context, as forms of the context of the old head with its scores."""
        width, q_row = self.old.head_dim, h * self.new.head_dim
        lost = next((x for x in q if isinstance(x, Lost)), None)
        held = owners(q, width)
        if len(held) != 1:
            where = place(name + "q_proj.weight", q_row, 0)
            lost = lost or Lost(
                f"{where}: head {h} asks for {len(held)} old heads at once"
            )
            return [lost if lane else {} for lane in v]
        (old_head,) = held
        group, context = old_head // self.old.repeats, list[Lane]()
        other = any(v) and self.other_scores(name, h, old_head, q, k)
        for a, lane in enumerate(v):
            if lane == {} or isinstance(lane, Lost):
                context.append(lane)
            elif other:
                context.append(other)
            elif owners([lane], width) != {group}:
                row = h // self.new.repeats * self.new.head_dim + a
                where = place(name + "v_proj.weight", row, 0)
                why = (
                    f"{where}: {written(lane)} meets the scores of old head {old_head}"
                )
                context.append(Lost(why))
            else:
                context.append(moved(lane, (old_head - group) * width))
        return context

    def other_scores(
        self, name: str, h: int, old_head: int, q: Sequence[Lane], k: Sequence[Lane]
    ) -> Lost | None:
        """Why head h's scores are not those of the old head; None where they are."""
        old, new = self.old, self.new
        got: dict[tuple[str, int, int], Surd] = {}
        for cls, a, b, sign in turns(new, self.classes[1]):
            x, y = q[a], k[b]
            if x == {} or y == {}:
                continue
            if isinstance(x, Lost) or isinstance(y, Lost):
                return x if isinstance(x, Lost) else cast(Lost, y)
            for (i, c), (j, e) in itertools.product(x.items(), y.items()):
                add(got, (cls, i, j), c * e * sign)
        scale = Surd.root(Fraction(new.head_dim, old.head_dim))
        first, group = old_head * old.head_dim, old_head // old.repeats * old.head_dim
        wanted = {
            (cls, first + a, group + b): sign * scale
            for cls, a, b, sign in turns(old, self.classes[0])
        }
        for cls, i, j in {**wanted, **got}:
            key = cls, i, j
            if got.get(key) != wanted.get(key):
                rows = [
                    a for a, x in enumerate(q) if not isinstance(x, Lost) and i in x
                ]
                where = place(
                    name + "q_proj.weight", h * new.head_dim + (rows or [0])[0], 0
                )
                return Lost(
                    f"{where}: {cls} head {h} counts old query lane {i} by old key lane "
                    f"{j} {got.get(key, NOTHING)} times, not {wanted.get(key, NOTHING)}, as "
                    f"head_dim {old.head_dim} → {new.head_dim} wants"
                )
        return None

    def head_norms(
        self, new: str, old: str, p: str, lanes: Sequence[Lane]
    ) -> list[Lane]:
        """q/k layernorm, each head's: forms of the old normed lanes."""
        result: list[Lane] = []
        width, width_new = self.old.head_dim, self.new.head_dim
        for h in range(len(lanes) // width_new):
            rows, what = (
                lanes[h * width_new : (h + 1) * width_new],
                f"{new}{p}_proj.weight[",
            )
            try:
                held = owners(self.kept(rows), width)
                if len(held) != 1:
                    raise Broken(
                        f"{what}{h * width_new}, 0]: {len(held)} old heads at once."
                    )
                (o,) = held
                local = [cast(Form, moved(row, -o * width)) for row in rows]
                local = self.seen(local, width_new)
                units = self.standardised(
                    local, width, width, width_new, f"{what}head {h}"
                )
            except Broken as why:
                result += [Lost(str(why).rstrip("."))] * width_new
                continue
            ends = f"{p}_layernorm.norms."
            normed = self.norm(f"{new}{ends}{h}", f"{old}{ends}{o}", units)
            result += [moved(lane, o * width) for lane in normed]
        return result


def turns(shape: Shape, classes: Sequence[str]) -> Iterator[tuple[str, int, int, Surd]]:
    """A head's score: Σ sign · q[a] · k[b] · (cos or sin of a frequency, or 1)."""
    half = shape.rotary.dims // 2
    for a, cls in enumerate(classes):
        b = a + half
        yield from ((cls, a, a, ONE), (cls, b, b, ONE))
        yield from ((cls + " (sine)", a, b, ONE), (cls + " (sine)", b, a, -ONE))
    for a in range(shape.rotary.dims, shape.head_dim):
        yield "unrotated", a, a, ONE


def listed(steps: Iterable[Sequence[tuple[str, int]]]) -> str:
    return (
        ", ".join(" + ".join(f"{k} {i}" for k, i in s) for s in steps if s) or "nothing"
    )


# ------------------------------------------------------------------ the certificate


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A verdict on one growth, and what it rests on.

    entries: how many grown entries were found to be what. lanes: tap → for each grown
    lane {old lane: coefficient}, or null where it may be anything. witness: the largest
    relative difference of the logits, and on which run's weights. coq: a proof script
    where the map is a plain scatter, else null.
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
    coq: str | None = None

    def json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self)}


RUNS = ("random", "random again", "small residual", "permuted, negated, scaled")


def draw(shape: Shape, run: int) -> State:
    """Weights for one run: none near zero, the residual's square about ε in run 2."""
    generator = torch.Generator().manual_seed(run % 3)
    state: State = {}
    for template, row in parameters(shape).items():
        size = [length(shape, axis) for axis in row.axes]
        spread = 1.5 / math.sqrt(size[1]) if len(size) == 2 else 1.0
        writer = row.role == "writer" or template.endswith(
            ("o_proj.bias", "n_proj.bias")
        )
        spread = 1.0 if "embed" in template else spread
        spread *= 2 * math.sqrt(shape.eps or 1e-6) if run == 2 and writer else 1.0
        for _, name in names(shape, template):
            x = 0.5 + torch.rand(size, generator=generator, dtype=torch.float64)
            x *= spread * (torch.rand(size, generator=generator) - 0.3).sign()
            if run == 3:
                x = x.flatten()[torch.randperm(x.numel(), generator=generator)] * -0.37
            state[name] = x.reshape(size)
    return state


def grown_by(
    grower: Grower, config: PretrainedConfig, state: State, target: Mapping[str, int]
) -> Any:
    """What the grower makes of a float64 model, with the global generators seeded."""
    model = CLASSES[config.model_type][1](copy.deepcopy(config)).double().eval()
    model.load_state_dict({n: x.clone() for n, x in state.items()}, strict=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        return grower(model, dict(target))


def breach(old: Shape, models: Sequence[Any], target: Mapping[str, int]) -> str:
    """How these are no models of the wanted sizes and kind; empty where they are."""
    shapes = [shape_of(model.config) for model in models]
    new = shapes[0]
    if any(shape != new for shape in shapes):
        return "The grown config depends on the values of the weights."
    for name, size in SIZES.items():
        wanted = target.get(name, getattr(old, size))
        if name == "head_dim" and old.family == "stablelm":
            wanted = new.hidden // new.heads
        if getattr(new, size) != wanted:
            return f"The config's {name} is {getattr(new, size)}, not {wanted}."
    for name in ("family", "vocab", "activation", "qk_norm", "parallel", "tied"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            return f"The config's {name} is {after!r}, and was {before!r}."
    for i, layer in enumerate(models[0].model.layers):
        index = layer.self_attn.layer_idx
        if index != i:
            return (
                f"model.layers.{i}.self_attn.layer_idx is {index}: a cache would mix."
            )
    try:
        check(state_of(models[0]), new)
    except ValueError as error:
        return f"The parameters are not those of the config: {error}."
    return ""


def certify(
    grower: Grower, config: PretrainedConfig, target: Mapping[str, int]
) -> Certificate:
    """Decide whether the grower keeps the function of every model of this config.

    Runs the grower four times. Whatever the grower raises is a refusal; a config that
    growproof does not know raises GrowthError.
    """
    began, threads = time.perf_counter(), torch.get_num_threads()
    old, found = shape_of(config), dict[str, Any]()
    try:
        torch.set_num_threads(1)  # small tensors: more threads are slower
        verdict, reason = judge(grower, config, target, old, found)
    finally:
        torch.set_num_threads(threads)
    return Certificate(
        verdict=verdict,
        reason=reason,
        family=old.family,
        source={name: getattr(old, size) for name, size in SIZES.items()},
        target=dict(target),
        seconds=round(time.perf_counter() - began, 3),
        **found,
    )


def judge(
    grower: Grower,
    config: PretrainedConfig,
    target: Mapping[str, int],
    old: Shape,
    found: dict[str, Any],
) -> tuple[Verdict, str]:
    """(verdict, reason), and what they rest on in `found`."""
    olds = [draw(old, run) for run in range(len(RUNS))]
    try:
        models = [grown_by(grower, config, state, target) for state in olds]
    except Exception as error:
        return "refused", f"The grower raised {type(error).__name__}: {error}"
    new, why = None, ""
    try:
        new = shape_of(models[0].config)
        new.rotary.frequencies()
        if why := breach(old, models, target):
            return "refused", why
    except (AttributeError, GrowthError) as error:
        new, why = None, f"The grown model cannot be read: {error}."
    try:
        found["witness"] = witness = difference(old, olds, new, models)
    except Exception as error:
        why = why or f"The grown model does not run: {type(error).__name__}: {error}"
        return "refused", why
    if new:
        news = [{n: p.double().clone() for n, p in state_of(m).items()} for m in models]
        entries = recover(old, olds, news)
        found["entries"] = tally(entries)
        decision = Decision(old, new, entries)
        try:
            decision.run()
        except Broken as broken:
            why = str(broken)
        found["lanes"] = readable(decision.lanes)
        if witness["from_clone"] > MODULE:
            why = "The module does not compute what its config and weights say"
            stock = all(type(m) is CLASSES[m.config.model_type][1] for m in models)
            if stock and witness["relative"] > WITNESS:  # what stock code would load
                return "refused", why + ", and what is saved is another function."
            why += "."
        elif witness["relative"] > WITNESS:
            return "refused", why or "The logits differ, though the map looks right."
        elif not why:
            found["coq"] = coq_script(decision)
            return "certified", "The grown decoder is the old function for all weights."
    return ("refused" if witness["module"] > MODULE else "undecided"), why


def difference(
    old: Shape,
    olds: Sequence[State],
    new: Shape | None,
    models: Sequence[Any],
) -> dict[str, Any]:
    """The largest relative differences of logits over the runs, and where.

    relative: grown clone against old clone, in float64. module: the grown module against
    the old clone; from_clone: against its own clone (both in part float32).
    """
    length = 12 if new else 64  # what cannot be read may only differ further on
    tokens = torch.arange(2 * length).reshape(2, length) * 5 % old.vocab
    worst: dict[str, Any] = {
        "relative": 0.0,
        "module": 0.0,
        "from_clone": 0.0,
        "run": "",
    }
    with torch.no_grad():
        for run, state, model in zip(RUNS, olds, models, strict=True):
            a = forward(old, state, tokens, BLAS)["logits"]
            c = model.eval()(tokens).logits.double()
            b = forward(new, state_of(model), tokens, BLAS)["logits"] if new else c
            pairs = {"relative": (b, a), "module": (c, a), "from_clone": (c, b)}
            for name, (x, y) in pairs.items():
                apart = float((x - y).abs().max() / y.abs().max())
                apart = apart if math.isfinite(apart) else sys.float_info.max
                if name == "relative" and apart > worst[name]:
                    worst["run"] = run
                worst[name] = max(worst[name], apart)
    return worst | {"tokens": tokens.tolist()}


def tally(entries: Map) -> dict[str, int]:
    """How many grown entries are copies, mixtures, constants, or not recognised."""
    kinds: list[str] = ["constant", "copied", "mixed", "unrecognised"]
    count = dict.fromkeys(kinds, 0)
    for cell in itertools.chain.from_iterable(cells.flat for cells in entries.values()):
        count[kinds[3 if cell.terms is None else min(len(cell.terms), 2)]] += 1
    return count


def readable(
    lanes: Mapping[str, Sequence[Lane]],
) -> dict[str, list[dict[str, str] | None]]:
    def form(x: Lane) -> dict[str, str] | None:
        return None if isinstance(x, Lost) else {str(j): str(c) for j, c in x.items()}

    return {tap: [form(x) for x in row] for tap, row in lanes.items()}


# ------------------------------------------------------------------ the Coq proof

PARTS = {
    "self_attn": {
        "q_proj": "(qry d) (qry d') (qmap (rep d) (lane d) (rep d') (lane d') e)",
        "k_proj": "(kv d) (kv d') (kvmap (lane d) (lane d') e)",
        "v_proj": "(kv d) (kv d') (kvmap (lane d) (lane d') e)",
        "o_proj": "(hid d) (hid d') ed",
    },
    "mlp": {
        "gate_proj": "units units' ef",
        "up_proj": "units units' ef",
        "down_proj": "(hid d) (hid d') ed",
    },
}


def coq_script(decision: Decision) -> str | None:
    """A proof that theorem 8 (proofs/Decoder.v) holds for the recovered map; None where
    it is no plain scatter with one scale on q and one on the norms.

    The tables say, entry by entry, what the runs showed. That they are scatterings along
    the proved axis maps is left to the kernel (`certificate.v` holds the checker).
    """
    old, new, steps = decision.old, decision.new, decision.steps
    scales: dict[str, set[Surd]] = {"norm": set(), "q_proj": set(), "": {ONE}}
    for name, cells in decision.entries.items():
        part = "norm" if name.endswith("norm.weight") else name.split(".")[-2]
        for cell in cells.flat:
            if (
                cell.terms is None
                or len(cell.terms) > 1
                or (cell.source == "" and cell is not ZERO)
            ):
                return None
            scales[part if part in scales else ""].update(cell.terms.values())
    squares = {part: [(x * x).rational for x in xs] for part, xs in scales.items()}
    shifted = any(
        step and (len(step), step[0][1]) != (2, step[-1][1]) for step in steps
    )
    if old.qk_norm or shifted or any(len(x) != 1 or not x[0] for x in squares.values()):
        return None

    def row(cells: Any) -> str:
        parts = [row(x) if isinstance(x, np.ndarray) else index(x) for x in cells]
        return "[:: " + "; ".join(parts) + "]"

    def index(entry: Entry) -> str:
        at = next(iter(entry.terms or {}), None)
        return "None" if at is None else f"Some {at if len(at) == 2 else at[0]}"

    def tables(i: int, where: str) -> str:
        lines: list[str] = []
        for part, axis in PARTS[where].items():
            name = f"model.layers.{i}.{where}.{part}"
            bias = decision.entries.get(name + ".bias")
            lines.append(row(decision.entries[name + ".weight"]))
            absent = f"(absent {axis})" if steps[i] else "[::]"
            lines.append(absent if bias is None else row(bias))
        return "\n  ".join(lines)

    def along(tap: str) -> str:
        lanes = enumerate(decision.lanes[tap])
        at = sorted((min(x), a) for a, x in lanes if isinstance(x, dict) and x)
        return "[:: " + "; ".join(str(a) for _, a in at) + "]"

    grown = range(new.layers)
    kept = [i for i in grown if steps[i]]
    lane, lane_proof = "id : nat -> nat", "apply: emb_id"
    if old.split_rotary:
        lane = "splitmap (lane d) (lane d')"
        lane_proof = "have [] := @rotary_halves_map (lane d) (lane d') isT isT isT"
    text = [
        f"Definition d := Dims {old.hidden} {old.groups} {old.repeats} {old.head_dim}.",
        f"Definition d' := Dims {new.hidden} {new.groups} {new.repeats} {new.head_dim}.",
        f"Definition vocab := {old.vocab}.",
        f"Definition units := {old.mlp}. Definition units' := {new.mlp}.",
        f"Definition ed := nth 0 {along('residual')}.",
        f"Definition ef := nth 0 {along(f'model.layers.{kept[0]}.mlp')}.",
        f"Definition e := {lane}.",
        f"Definition t_emb := {row(decision.entries['model.embed_tokens.weight'])}.",
    ]
    if not old.tied:
        text.append(f"Definition t_head := {row(decision.entries['lm_head.weight'])}.")
    for i in grown:
        text.append(f"Definition ta{i} := AttTables\n  {tables(i, 'self_attn')}.")
        text.append(f"Definition tf{i} := FfTables\n  {tables(i, 'mlp')}.")
    source = [f"l{steps[i][0][1]}" if steps[i] else f"s{i}" for i in grown]
    built: list[str] = []
    facts: list[str] = []
    commuting: list[str] = []
    proofs: list[str] = []
    for i, x in enumerate(source):
        norms = f"(n1' {i}) (n2' {i})" if steps[i] else f"(n1 {x}) (n2 {x})"
        built.append(
            f"Layer {norms} (grow_att c ta{i} (att {x})) (grow_ff tf{i} (ff {x}))"
        )
        if steps[i]:
            facts.append(f"Lemma att{i} : att_ok d d' ed e ta{i}.")
            facts.append(f"Lemma ff{i} : ff_ok d d' units units' ed ef tf{i}.")
            proofs.append(
                "apply: deeper_grown; first exact: "
                f"(@layerP A softmax mask T c m m' ed e ef isT isT edP eP efP ta{i} tf{i} {x} _ _ att{i} ff{i} n1_{i} n2_{i})."
            )
            commuting += [
                f"{n}_{i} : commutes ({n} {x}) ({n}' {i})" for n in ("n1", "n2")
            ]
        else:
            facts.append(f"Lemma silent{i} : silent_ok ta{i} tf{i}.")
            proofs.append(
                f"apply: deeper_new; first exact: (silent_okP c m' {x} silent{i})."
            )
    q, n = squares["q_proj"][0] or 0, squares["norm"][0] or 0
    eps, layers = decision.eps or Fraction(1), [f"l{k}" for k in range(old.layers)]
    template = Path(__file__).with_name("certificate.v.in").read_text("utf-8")
    return template.format(
        title=f"{old} to {new}",
        tables="\n".join(text),
        lane_proof=lane_proof,
        facts="\n".join(f"{fact} Proof. by vm_compute. Qed." for fact in facts),
        layers=" ".join(layers + [x for x in source if x[0] == "s"]),
        old_layers="; ".join(layers),
        new_layers=";\n    ".join(built),
        commuting="".join(f"Hypothesis {x}.\n" for x in commuting),
        proofs="\n".join(f"  {proof}" for proof in proofs),
        head="emb_w" if old.tied else "head_w",
        read_head="t_emb" if old.tied else "t_head",
        query=f"{q.numerator} * lane d = {q.denominator} * lane d'",
        norm=f"{n.numerator} * {new.norm_size} = {n.denominator} * {old.norm_size}",
        eps=f"{eps.numerator} * {new.norm_size} = {eps.denominator} * {old.norm_size}",
    )


# ------------------------------------------------------------------ the command


class Case(NamedTuple):
    """A growth of the built-in set: a config's fields, and the sizes it grows to."""

    name: str
    family: str
    fields: Mapping[str, Any]
    target: Mapping[str, int]


TINY: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "head_dim": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e3},
    },
    "stablelm": {
        "vocab_size": 11, "hidden_size": 16, "intermediate_size": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "use_qkv_bias": True, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
        },
    },
}  # fmt: skip
# per family: an axis, its sizes by the order of SIZES (None: as it was)
AXES: dict[str, dict[str, tuple[int | None, ...]]] = {
    "llama": {
        "nothing": (),
        "hidden": (12,),
        "mlp": (None, 9),
        "layers": (None, None, 3),
        "heads": (None, None, None, 8),
        "groups": (None, None, None, 8, 4),
        "head_dim": (None, None, None, None, None, 6),
        "all": (12, 9, 3, 12, 3, 6),
    },
    "stablelm": {
        "nothing": (),
        "head_dim": (20,),
        "mlp": (None, 9),
        "layers": (None, None, 3),
        "heads": (24, None, None, 6),
        "groups": (24, None, None, 6, 3),
        "all": (36, 9, 3, 6, 3),
    },
}
# further bases, grown along all axes at once, but for the sizes given here
VARIANTS: dict[str, dict[str, tuple[dict[str, Any], dict[str, int]]]] = {
    "llama": {
        "tied": ({"tie_word_embeddings": True}, {}),
        "no biases": ({"attention_bias": False, "mlp_bias": False}, {}),
        "one head a group, gelu": (
            {"num_key_value_heads": 4, "hidden_act": "gelu"},
            {"num_key_value_heads": 12},
        ),
        "deeper": ({"num_hidden_layers": 3}, {"num_hidden_layers": 5}),
    },
    "stablelm": {
        "parallel": ({"use_parallel_residual": True}, {}),
        "no biases": ({"use_qkv_bias": False}, {}),
        "one head a group, gelu": (
            {"num_key_value_heads": 4, "hidden_act": "gelu"},
            {"num_key_value_heads": 6},
        ),
        "odd head_dim": ({"hidden_size": 20}, {"hidden_size": 42}),
    },
}


def cases() -> list[Case]:
    """Each family and axis alone, all together, and all together for each variant."""
    found = []
    for family, axes in AXES.items():
        for axis, sizes in axes.items():
            target = {n: k for n, k in zip(SIZES, sizes, strict=False) if k}
            found.append(Case(axis, family, TINY[family], target))
        everything = found[-1].target
        for name, (fields, target) in VARIANTS[family].items():
            base = TINY[family] | fields
            found.append(Case(f"all, {name}", family, base, {**everything, **target}))
    return found


def config_of(family: str, fields: Mapping[str, Any]) -> PretrainedConfig:
    kind: Any = CLASSES[family][1].config_class
    return kind(**copy.deepcopy(dict(fields)))


def assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value JSON where it can be."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def options_of(argv: Sequence[str] | None) -> tuple[Any, Grower, list[Case]]:
    """The options, the grower and the growths; exits with 4 where they make no sense."""
    usage = Parser(prog="growproof certify", description=main.__doc__)
    usage.add_argument("grower", metavar="MODULE:CALLABLE", nargs="?", default=DEFAULT)
    usage.add_argument("--family", choices=sorted(TINY))
    pairs: dict[str, Any] = {"nargs": "+", "action": "extend", "type": assignment}
    for name, text in (
        ("--shape", "fields of the config to grow, over a tiny one: hidden_size=24"),
        ("--target", "the sizes to grow to: hidden_size=36 num_hidden_layers=3"),
    ):
        usage.add_argument(name, metavar="NAME=VALUE", default=[], help=text, **pairs)
    usage.add_argument("--json", metavar="FILE", type=Path, help="write certificates")
    usage.add_argument("--coq", metavar="DIR", type=Path, help="write proofs for coqc")
    options = usage.parse_args(argv)
    chosen = [case for case in cases() if options.family in (None, case.family)]
    target = dict(options.target)
    if options.shape or target:
        if options.family is None:
            usage.error("--shape and --target need a --family")
        fields = TINY[options.family] | dict(options.shape)
        name = ", ".join(f"{n}={v}" for n, v in target.items()) or "nothing"
        chosen = [Case(name, options.family, fields, target)]
    for name, size in target.items():
        if name not in SIZES or not isinstance(size, int):
            usage.error(f"no size to grow to: {name}={size} (of {', '.join(SIZES)})")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        for case in chosen:
            shape_of(config_of(case.family, case.fields))
        return options, load_grower(options.grower), chosen
    except (BrokenGrower, StrictDataclassError, ValueError, TypeError) as error:
        usage.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    """Certify a grower: 0 all certified, 1 any refused, 3 any undecided, 4 usage."""
    options, grower, chosen = options_of(argv)
    table = Table("family", "growth", "verdict", "reason", "seconds")
    colour = {"certified": "green", "refused": "red", "undecided": "yellow"}
    found: list[Certificate] = []
    for case in chosen:
        c = certify(grower, config_of(case.family, case.fields), case.target)
        found.append(c)
        verdict = f"[{colour[c.verdict]}]{c.verdict}"
        table.add_row(
            c.family, case.name, verdict, escape(c.reason), f"{c.seconds:.2f}"
        )
        if options.coq and c.coq:
            options.coq.mkdir(parents=True, exist_ok=True)
            stem = re.sub(r"\W+", "_", f"{c.family} {case.name}")
            (options.coq / f"{stem}.v").write_text(c.coq, "utf-8")
    Console().print(table)
    if options.json:
        options.json.write_text(
            json.dumps([c.json() for c in found], indent=1), "utf-8"
        )
    verdicts = {c.verdict for c in found}
    return 1 if "refused" in verdicts else 3 if "undecided" in verdicts else 0
