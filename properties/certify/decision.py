"""From the recovered map and the two configs to the verdict, in exact arithmetic.

The rules, one for each operation of the decoder, are in certificates.py.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

from growproof.layout import tensors
from growproof.shape import Shape

from .recovery import ZERO, Entry, Map, place
from .surds import DENOMINATOR, NOTHING, ONE, READ, Surd, rational


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
