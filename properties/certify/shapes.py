"""From small shapes to all: the rule that a grower follows, and the shape that decides.

A *rule* says of every tensor where its old entries go (the front of every factor of every
axis) and what multiplies them: a monomial in the ratios of the sizes, (K'/K)^½. Such a
grower keeps the function at every size if it does so at one at which no product of the
ratios is 1: docs/mathematics.md, "From one shape to all". So: find the rule at many small
shapes, see that it is one, and certify the grower at that shape. What no run shows is that
it follows the rule elsewhere: the certificate says so.
"""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from growproof.decoder import GrowthError
from growproof.families import family_of
from growproof.growth import Growth
from growproof.models import decoder_of, plan_model
from growproof.padding import sibling
from growproof.scatter import place
from growproof.table import Row, pairs, parameters
from torch import Tensor
from tqdm import tqdm

from .certificates import Certificate, certify
from .command import TINY, VARIANTS, Case, config_of, needs
from .equality import Grower, grown_by, sourced, state
from .recovery import Map, recover
from .stock import unlike_stock

Sizes = dict[str, int]  # of the free axes
AXES = ("groups", "repeats", "head_dim", "mlp", "layers", "hidden")
EXACT = 1e-10  # a logarithm of a scalar against its monomial's: a few roundings
NEW, FREE = 0, -1  # places: no old entry lies there; nothing that is read, or a norm's
# the bases of which all shapes are certified: the tiny one, and these of VARIANTS
BASES = {"llama": ("", "tied", "no biases"), "stablelm": ("", "parallel", "no biases")}


class Uneven(Exception):
    """The grower follows no one rule: where, and what was found there."""


def fields(family: str, sizes: Sizes) -> dict[str, int]:
    """The config's names for them; a StableLm is as wide as its heads."""
    heads = sizes["groups"] * sizes["repeats"]
    found = {
        "hidden_size": sizes.get("hidden", heads * sizes["head_dim"]),
        "intermediate_size": sizes["mlp"], "num_hidden_layers": sizes["layers"],
        "num_attention_heads": heads, "num_key_value_heads": sizes["groups"],
    }  # fmt: skip
    return found | ({"head_dim": sizes["head_dim"]} if family == "llama" else {})


def pair(family: str, options: Mapping[str, Any], old: Sizes, new: Sizes) -> Case:
    """A growth; a Llama's hidden size is made a multiple of its heads."""
    if family == "llama":
        for sizes in (old, new):
            heads = sizes["groups"] * sizes["repeats"]
            sizes["hidden"] = -(-max(sizes["hidden"], old["hidden"]) // heads) * heads
    base = TINY[family] | dict(options) | fields(family, old)
    changed = fields(family, new).items() - fields(family, old).items()
    return Case("a small one", family, base, dict(changed))


def box(
    family: str, options: Mapping[str, Any], axes: Collection[str]
) -> Iterator[tuple[Sizes, Sizes, Case]]:
    """Small shapes: the least sizes, one of them a step larger, or all, and from each of
    these every axis alone, and all of them, grown by a step.

    A Llama's head_dims are 4 and 6, and grow by 2: none is another multiple of the one
    before. A StableLm's are 4 and 8, whose halves rotary turns in pairs.
    """
    least = {"groups": 1, "repeats": 1, "head_dim": 4, "mlp": 2, "layers": 1}
    least |= {"hidden": 2} if family == "llama" else {}
    alone = [{a} for a in least]
    for larger in ({*()}, *alone, {*least}):
        for grows in (*({a} for a in axes), {*axes}):
            old, new = dict(least), dict(least)
            for a in least:
                step = (2 if family == "llama" else 4) if a == "head_dim" else 1
                old[a] += step * (a in larger)
                new[a] = old[a] + step * (a in grows)
            case = pair(family, options, old, new)
            yield old, new, case


def deciding(
    family: str, options: Mapping[str, Any], axes: Collection[str]
) -> tuple[Sizes, Sizes, Case]:
    """Ratios 2, 3/2, 5/2, 11/2 and 21/2: no product of their powers is 1."""
    old = {"groups": 2, "repeats": 2, "head_dim": 4, "mlp": 2, "layers": 2}
    new = {"groups": 4, "repeats": 3, "head_dim": 10, "mlp": 11, "layers": 3}
    if family == "llama":
        old["hidden"], new["hidden"] = 8, 84
        if "hidden" not in axes:
            old["hidden"] = new["hidden"] = 12
    new |= {a: old[a] for a in new.keys() - {*axes, "hidden"}}
    return old, new, pair(family, options, old, new)


# ------------------------------------------------------------------ where entries go


def tagged(model: Any) -> dict[str, Tensor]:
    """Every entry of every parameter numbered, from 1, by transformers' names."""
    found, n = dict[str, Tensor](), 1
    for name, p in model.named_parameters():
        found[name] = torch.arange(n, n + p.numel(), dtype=torch.float64).view_as(p)
        n += p.numel()
    return found


def places(model: Any, growth: Growth) -> dict[str, Tensor]:
    """Stored name → which old entry lies where in the grown model, or NEW, or FREE."""
    family = family_of(model.config)
    old = family.read(tagged(model), growth.old)
    found = dict[str, Tensor]()
    for name, known, row in pairs(growth, parameters(growth.old, growth)):
        plain = Row(row.axes, row.writes)
        if known is None:  # a new layer is silent where its writers are zero
            like = old[sibling(name, row, growth.old)]
            new = place(torch.zeros_like(like), plain, growth)
            found[name] = new if row.is_writer else new + FREE
            continue
        new = place(old[known], plain, growth)
        weight = row.norm and name.endswith(".weight")
        found[name] = torch.where(new == NEW, FREE, new) if weight else new
    return dict(family.write(found, growth.new))


@dataclass
class Seen:
    """What a grower did to each kind of tensor: (ratios of the sizes, scale) a shape."""

    shapes: int = 0
    scales: dict[str, list[tuple[list[float], float]]] = field(
        default_factory=lambda: defaultdict(list)
    )


def named(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", name)


def forms(entries: Map, model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of each form of a recovered map: the old entry's number, and what was centred.

    0: nothing; 1: the columns, 2: the rows of a matrix (or a vector); −1: it is a mean.
    """
    tags, numbers, kinds = tagged(model), list[np.ndarray](), list[np.ndarray]()
    for view in entries.views:
        x = tags[view.name]
        whole = x.shape[0 if view.post > 1 or x.dim() == 1 else -1] == view.block
        axis = 1 if view.post > 1 or x.dim() == 1 else 2
        kind = {"entry": 0, "centred": axis if whole else -1, "mean": -1}[view.kind]
        flat = view.values(x) if view.kind == "mean" else x.flatten()
        numbers.append(flat.numpy())
        kinds.append(np.full(flat.numel(), kind))
    return np.concatenate(numbers), np.concatenate(kinds)


def scales(entries: Map, old: Any, growth: Growth) -> dict[str, float]:
    """Kind of tensor → the one scalar of its old entries, which lie where the rule has them.

    Where a StableLm's residual grows, what writes to it has lost its mean. Raises Uneven
    where it is not so.
    """
    wanted, (numbers, kinds) = places(old, growth), forms(entries, old)
    centred = growth.old.norm == "layer" and growth.wider > 1
    found, start = dict[str, float](), 0
    for name, shape in entries.shapes.items():
        here = slice(start, start := start + math.prod(shape))
        there = wanted[name].flatten().numpy()
        form, scale = entries.form[here], entries.scale[here]
        offset, kept = entries.offset[here], there > 0
        writer = centred and re.search(r"embed|o_proj|down_proj", name)
        kind = (2 if "embed" in name else 1) if writer else 0
        at = form[kept]
        if (
            (at < 0).any()
            or (numbers[at] != there[kept]).any()
            or (kinds[at] != kind).any()
            or offset[kept].any()
        ):
            raise Uneven(f"{name}: old entries are not at the front of each factor")
        if ((there == NEW) & ((form != -1) | (offset != 0))).any():
            raise Uneven(f"{name}: new entries are not zero")
        if kept.any():
            one = found.setdefault(named(name), scale[kept][0])
            if np.abs(scale[kept] - one).max() > EXACT * one:
                raise Uneven(f"{name}: old entries are multiplied by different numbers")
    return found


def settings(new: Any, growth: Growth) -> dict[str, float]:
    """ε'/ε and log θ'/log θ; Uneven where anything else of the config is not the rule's."""
    d, wanted = decoder_of(new.config), growth.new
    same = replace(d, eps=wanted.eps, kinds=wanted.kinds)
    differ = [n for n in vars(wanted) if getattr(same, n) != getattr(wanted, n)]
    if differ or d.rotary.dims != wanted.rotary.dims or len({*d.kinds}) > 1:
        raise Uneven(f"the config: {', '.join(differ) or 'rotary'}")
    theta = math.log(d.rotary.theta) / math.log(growth.old.rotary.theta)
    return {"ε": d.eps / growth.old.eps, "log θ": theta}


def observe(seen: Seen, grower: Grower, old: Sizes, new: Sizes, case: Case) -> None:
    """One shape more. Raises Uneven where the grower's map is no rule's."""
    config = config_of(case.family, case.fields)
    growth = plan_model(config, case.target)
    olds = sourced(config).models
    news = [grown_by(grower, model, case.target) for model in olds]
    if why := unlike_stock(olds[0], news, case.target):
        raise Uneven(why)
    lanes = growth.old.head_dim
    entries = recover([state(m) for m in olds], [state(m) for m in news], lanes)
    ratios = [math.log(new[a] / old[a]) for a in AXES if a in old]
    found = scales(entries, olds[0], growth) | settings(news[0], growth)
    for name, scale in found.items():
        seen.scales[name].append((ratios, scale))
    seen.shapes += 1


def monomials(seen: Seen, axes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Kind of tensor → its exponents, whole quarters, that all shapes agree on.

    Raises Uneven where none do.
    """
    found = dict[str, dict[str, float]]()
    for name, rows in seen.scales.items():
        ratios = np.array([r for r, _ in rows])
        logs = np.log([s for _, s in rows])
        exponents = np.round(4 * np.linalg.lstsq(ratios, logs, rcond=None)[0]) / 4
        if np.abs(ratios @ exponents - logs).max() > EXACT:
            raise Uneven(f"{name}: no power of the ratios of the sizes multiplies it")
        found[name] = {a: e for a, e in zip(axes, exponents.tolist(), strict=True) if e}
    return found


# ------------------------------------------------------------------ the certificate


def told(rule: Mapping[str, Mapping[str, float]]) -> str:
    """What is multiplied by what."""
    return "; ".join(
        f"{name} × " + " · ".join(f"({a}'/{a})^{e:g}" for a, e in exponents.items())
        for name, exponents in rule.items()
        if exponents
    )


class Question(NamedTuple):
    """What is asked of a grower: the shape that decides, and the box of small ones."""

    family: str
    name: str
    axes: list[str]
    decides: tuple[Sizes, Sizes, Case]
    shapes: list[tuple[Sizes, Sizes, Case]]


def questions(families: Collection[str], claimed: Collection[str]) -> list[Question]:
    """One for each base that is claimed, with the axes that are: all but those of a
    feature that is not.
    """
    found = list[Question]()
    for family in families:
        features = {"groups": "groups", "repeats": "heads"}
        axes = [a for a in AXES if features.get(a, a) in claimed]
        axes = [a for a in axes if a != "hidden" or family == "llama"]
        for name in BASES[family]:
            options = VARIANTS[family][name][0] if name else {}
            old, new, case = deciding(family, options, axes)
            called = ", ".join(("all shapes", *([name] if name else [])))
            decides = old, new, case._replace(name=called)
            small = box(family, options, axes)
            shapes = [shape for shape in small if needs(shape[2]) <= {*claimed}]
            if needs(case) <= {*claimed}:
                found.append(Question(family, name, axes, decides, shapes))
    return found


def all_shapes(grower: Grower, asked: Question) -> Certificate:
    """Certify a grower for every size of a family: undecided where it follows no rule."""
    old, new, case = asked.decides
    found = certify(grower, config_of(case.family, case.fields), case.target)
    if found.verdict != "certified":
        return found
    seen, shape = Seen(), asked.decides
    try:
        label = " ".join(("all shapes of", asked.family, asked.name)).strip()
        for shape in tqdm(asked.shapes, label, unit="shape", disable=None):
            observe(seen, grower, *shape)
        rule = monomials(seen, [a for a in AXES if a in old])
        if by_layers := [n for n, e in rule.items() if "layers" in e]:
            raise Uneven(f"{by_layers[0]}: its scalar depends on the number of layers")
    except Exception as error:
        declined = isinstance(error, Uneven | NotImplementedError | GrowthError)
        if not declined:
            said = (
                f"With {shown(*shape[:2])}, it raised {type(error).__name__}: {error}."
            )
            return replace(found, verdict="refused", reason=said)
        why = (
            f"Certified at {shown(old, new)}, but not at all shapes: with "
            f"{shown(*shape[:2])}, {str(error).rstrip('.')}."
        )
        return replace(found, verdict="undecided", reason=why)
    assumed = (
        "At shapes that were not run the grower follows the rule, and what it returns is "
        "stock code with its config and weights."
    )
    return replace(
        found, covers=coverage(asked, rule), assumed=[*found.assumed, assumed]
    )


def coverage(asked: Question, rule: Mapping[str, Mapping[str, float]]) -> str:
    """All that is certified, in words."""
    options = VARIANTS[asked.family][asked.name][0] if asked.name else {}
    kept = f" ({', '.join(f'{n}={v}' for n, v in options.items())})" if options else ""
    between = asked.family == "llama" and "head_dim" in asked.axes
    return (
        f"every {asked.family}{kept} that differs from the tiny one in sizes alone, and "
        f"every growth of {', '.join(asked.axes)} in which nothing shrinks"
        + (", no new head_dim being another multiple of the old" if between else "")
        + f". The rule: {told(rule)}; old entries at the front of every factor, zeros "
        f"elsewhere. It is followed at {len(asked.shapes)} shapes "
        f"({extent(asked.shapes)}), and keeps the logits over residues at "
        f"{shown(*asked.decides[:2])}, which decides for all others: "
        "docs/mathematics.md, From one shape to all."
    )


def shown(old: Sizes, new: Sizes) -> str:
    return ", ".join(
        f"{a} {n}" + (f" → {new[a]}" if new[a] != n else "") for a, n in old.items()
    )


def extent(shapes: Sequence[tuple[Sizes, Sizes, Case]]) -> str:
    """The least and the largest size of each axis."""
    return ", ".join(
        f"{a} {min(s[0][a] for s in shapes)}–{max(s[1][a] for s in shapes)}"
        for a in shapes[0][0]
    )
