"""Near misses of right growths: what is certified although it is wrong? Nothing may be.

A right growth of a random shape of the built-in set is recovered, and one or two entries
of its map are made wrong: another old entry, two exchanged, a sign, a last place of
float32, a millionth, nothing where something was, something where nothing was. Over
residues the two models then have to differ, or in float64 to agree: an entry that the
function does not depend on may be anything.

    python -m properties.certify.misses [MINUTES]

plants as many as that takes, certifies right growths of other shapes for a fifth of the
time, and writes what it counted to soundness-growths.json.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import growproof
import numpy as np
import torch
from growproof.field import Field, FieldTensor
from growproof.residues import Residues, Unlucky, key_of, mixed, primes
from torch import Tensor
from tqdm import tqdm

from .certificates import certify
from .command import Case, cases, config_of
from .equality import grown_by, over, source, state
from .recovery import Map, recover
from .runs import Run, eager, runs
from .witness import WITNESS, logits

FILE = Path(__file__).with_name("soundness-growths.json")
PRIME, SLOTS = primes(1, 0)[0], 64
SHOWN = 25  # of so many that the residues tell apart, one is run in float64
Edit = Callable[[random.Random, Map, np.ndarray, np.ndarray], None]


def moved(rng: random.Random, m: Map, old: np.ndarray, new: np.ndarray) -> None:
    """An old entry holds another one of the same tensor or of any."""
    at, other = rng.sample(range(len(old)), 2)
    m.form[old[at]] = m.form[old[other]]


def exchanged(rng: random.Random, m: Map, old: np.ndarray, new: np.ndarray) -> None:
    """Two neighbours hold each other's entries."""
    at = rng.randrange(len(old) - 1)
    pair = old[[at, at + 1]]
    m.form[pair] = m.form[pair[::-1]]


def scaled(factor: float) -> Edit:
    """An old entry times something."""

    def edit(rng: random.Random, m: Map, old: np.ndarray, new: np.ndarray) -> None:
        m.scale[rng.choice(old)] *= factor

    return edit


def shifted(rng: random.Random, m: Map, old: np.ndarray, new: np.ndarray) -> None:
    """Something is added to an old entry."""
    m.offset[rng.choice(old)] += rng.choice((-1, 1)) * 2.0 ** -rng.randrange(1, 24)


def lost(rng: random.Random, m: Map, old: np.ndarray, new: np.ndarray) -> None:
    """An old entry is zero."""
    at = rng.choice(old)
    m.form[at], m.scale[at] = -1, 0.0


def filled(rng: random.Random, m: Map, old: np.ndarray, new: np.ndarray) -> None:
    """A new entry holds a small number, or an old entry."""
    at = rng.choice(new if len(new) else old)
    if rng.random() < 0.5:
        m.offset[at] += 2.0 ** -rng.randrange(1, 24)
    else:
        m.form[at], m.scale[at] = m.form[rng.choice(old)], 1.0


EDITS: dict[str, Edit] = {
    "another index": moved, "two exchanged": exchanged, "sign": scaled(-1.0),
    "last place of float32": scaled(1 + 2.0**-23), "a millionth": scaled(1 + 1e-6),
    "added to": shifted, "lost": lost, "filled": filled,
}  # fmt: skip


class Slots(Residues):
    """One prime many times over, and functions of each slot by itself: a batch of models."""

    def function(self, name: object, x: Tensor) -> Tensor:
        word = mixed(x.expand(*x.shape[:-1], SLOTS) ^ key_of(self.seed, name))
        return (mixed(word + 1) >> 1) % self.p

    def random(self, shape: Sequence[int]) -> Tensor:
        """The same in every slot."""
        return super().random(shape)[..., :1].expand(*shape, SLOTS)


@dataclass(frozen=True)
class Growth:
    """A right growth that was recovered, and the old logits that a near miss has to have.

    drawn: residues of all forms in one draw, and the old logits. forms: the same in
    float64. text: one run of one short text.
    """

    case: Case
    old: Any
    new: Any
    map: Map
    text: Run
    field: Field
    drawn: tuple[Tensor, Tensor]
    forms: np.ndarray
    logits: Tensor

    @classmethod
    def of(cls, case: Case, seed: int) -> Growth:
        """growproof's own growth of a case, with one draw."""
        config = config_of(case.family, case.fields)
        olds = [source(config, run) for run in range(4)]
        news = [grown_by(growproof.grow, old, case.target) for old in olds]
        found = recover([state(m) for m in olds], [state(m) for m in news], 4)
        text = runs(config, case.fields["vocab_size"])[0]
        field = Field([PRIME] * SLOTS, seed)
        field.ring = Slots(field.ring.primes, seed)
        old = state(olds[0])
        values = {n: field.random(p.shape) for n, p in old.items()}
        drawn = [cast(FieldTensor, v.values(values[v.name])) for v in found.views]
        forms = np.concatenate([v.values(old[v.name]).numpy() for v in found.views])
        with eager(olds[0], news[0]):
            residues = over(field, olds[0], values, text).residues
            return cls(
                case, olds[0], news[0], found, text, field,
                (torch.cat([x.residues for x in drawn]), residues), forms, logits(olds[0], text),
            )  # fmt: skip

    def edited(self, rng: random.Random, edit: Edit) -> Map:
        """A near miss of its map."""
        m = self.map
        copy = replace(
            m, form=m.form.copy(), scale=m.scale.copy(), offset=m.offset.copy()
        )
        edit(rng, copy, np.flatnonzero(m.form >= 0), np.flatnonzero(m.form == -1))
        return copy

    def equal(self, wrongs: Sequence[Map]) -> list[bool]:
        """Of so many near misses: whether the old logits agree over residues."""
        ring, (forms, old) = self.field.ring, self.drawn
        entries = self.map.entries(ring, forms).clone()
        for slot, wrong in enumerate(wrongs):
            where = np.flatnonzero(
                (wrong.form != self.map.form)
                | (wrong.scale != self.map.scale)
                | (wrong.offset != self.map.offset)
            )
            entries[where, slot] = wrong.entries(ring, forms, where)[:, slot]
        grown = self.map.parameters(self.field, entries)
        found = over(self.field, self.new, grown, self.text).residues
        agree = found[..., : old.shape[-2], :] == old
        return agree.flatten(0, -2).all(0).tolist()[: len(wrongs)]

    def apart(self, wrong: Map) -> float:
        """By how much the old float64 logits differ, relative to the largest."""
        entries = wrong.offset.copy()
        known = wrong.form >= 0
        entries[known] += wrong.scale[known] * self.forms[wrong.form[known]]
        entries, start = torch.from_numpy(entries), 0
        with torch.no_grad():
            for p in self.new.parameters():
                p.copy_(entries[start : start + p.numel()].view_as(p))
                start += p.numel()
        found = logits(self.new, self.text)[..., : self.logits.shape[-1]]
        return float((found - self.logits).abs().max() / self.logits.abs().max())


def counted(
    growths: Sequence[Growth], rng: random.Random, enough: Callable[[], bool]
) -> dict[str, Counter[str]]:
    """Verdict of each kind of near miss → how many; until it is enough.

    told apart: the logits differ over residues, so that no certificate is given; of these,
    one in SHOWN is run in float64: caught (they differ there, too), or undecided. Those
    that agree over residues all are: harmless, or missed: certified although wrong.
    """
    found = {name: Counter[str]() for name in EDITS}
    while not enough():
        growth = rng.choice(growths)
        names = [rng.choice([*EDITS]) for _ in range(SLOTS)]
        wrongs = [growth.edited(rng, EDITS[name]) for name in names]
        with eager(growth.new):
            try:
                equal = growth.equal(wrongs)
            except Unlucky:
                continue
            for name, wrong, same in zip(names, wrongs, equal, strict=True):
                found[name]["agree" if same else "told apart"] += 1
                if same or rng.random() < 1 / SHOWN:
                    apart = growth.apart(wrong) > WITNESS
                    verdict = ("undecided", "caught"), ("harmless", "missed")
                    found[name][verdict[same][apart]] += 1
    return found


def right_ones(rng: random.Random) -> Iterator[Case]:
    """The growths of the built-in set, with other weights' shapes, without end."""
    while True:
        case = rng.choice(cases())
        fields = dict(case.fields)
        fields["vocab_size"] = rng.randrange(5, 20)
        if "vocab_size" in case.target:
            fields["vocab_size"] = 11
        fields["intermediate_size"] = rng.randrange(2, 9)
        target = dict(case.target)
        if "intermediate_size" in target:
            target["intermediate_size"] = fields["intermediate_size"] + rng.randrange(4)
        yield case._replace(fields=fields, target=target)


def until(seconds: float, label: str) -> Callable[[], bool]:
    """Whether so much time has gone, with a bar that shows it."""
    began, bar = time.monotonic(), tqdm(total=round(seconds), desc=label, unit="s")

    def enough() -> bool:
        gone = time.monotonic() - began
        bar.update(min(bar.total, int(gone)) - bar.n)
        return gone > seconds

    return enough


def measured(minutes: float, seed: int = 0) -> dict[str, Any]:
    """The record: near misses by kind and verdict, right growths by verdict."""
    rng = random.Random(seed)
    growths = [Growth.of(case, i) for i, case in enumerate(cases())]
    misses = counted(growths, rng, until(48 * minutes, "near misses"))
    verdicts, enough = Counter[str](), until(12 * minutes, "right growths")
    for i, case in enumerate(right_ones(rng)):
        if enough():
            break
        config = config_of(case.family, case.fields)
        verdicts[certify(growproof.grow, config, case.target, seed=i % 16).verdict] += 1
    total = sum(misses.values(), Counter[str]())
    return {
        "seed": seed, "minutes": minutes, "growths": len(growths),
        "misses": total["agree"] + total["told apart"], "verdicts": dict(total),
        "by_kind": {name: dict(kinds) for name, kinds in misses.items()},
        "right": verdicts.total(), "right_verdicts": dict(verdicts),
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = measured(float(sys.argv[1]) if len(sys.argv) > 1 else 25)
    FILE.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))
