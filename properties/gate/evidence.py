"""What is wrong with a grown model, part by part: against what growproof makes of the same.

Parameters, config fields, buffers and modules are compared with those of
`growproof.grow(model, target)`; what differs is said in closed form where there is one.
A difference that right growers may have too (new entries that nothing reads) is dropped
where it does not move the logits and something else is wrong.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import growproof
import torch
from growproof.models import build, state_of
from torch import Tensor

from ..laws.world import elsewhere, kept
from .parts import Part, Ratios, kind_of, layer_of, relation

State = dict[str, Tensor]
# how a model was stored, or what says the same twice
INCIDENTAL = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype",
    "auto_map", "model_type", "rope_theta",
}  # fmt: skip


def state(model: Any) -> State:
    """The parameters by name, in float64."""
    return {n: p.detach().double() for n, p in model.named_parameters()}


def parameters(old: Any, new: Any, right: Any) -> Iterator[tuple[str, list[str]]]:
    """(what is wrong, the parameters that it is wrong with), the same said once."""
    ratios = Ratios.of(old.config, right.config, right.dtype)
    before, after, wanted = state(old), state(new), state(right)
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    found["{} is missing", ""] = sorted(wanted.keys() - after.keys())
    found["{} was added", ""] = sorted(after.keys() - wanted.keys())
    like: dict[tuple[str, str], str] = {}  # what differs in its size alone is said once
    for name in (n for n in wanted if n in after):
        others = {n: w for n, w in wanted.items() if n != name}
        part = Part(name, after[name], wanted[name], before.get(name), others)
        if said := relation(part, ratios):
            apart = any(
                word in said for word in ("at the end", "scale", "missing from")
            )
            group = group_of(part.kind) if apart else ""
            key = re.sub(r"up to [\d.e+-]+", "", said), group
            found[like.setdefault(key, said), group].append(name)
    yield from ((said, names) for (said, _), names in found.items() if names)


def group_of(kind: str) -> str:
    """What a grower treats in one go: q, k and v; the norms; gate and up."""
    for group in ("[qkv]_proj", "norm", "gate_proj|up_proj"):
        if re.search(group, kind):
            return group
    return kind.removesuffix(".bias")


def told(said: str, names: list[str], old: Any, right: Any) -> str:
    """The sentence: kinds instead of names, and layers where it is not all of them."""
    kinds = {kind_of(n) for n in names}
    layers = {layer_of(n) for n in names} - {""}
    before, after = (
        {layer_of(n) for n, _ in m.named_parameters() if kind_of(n) in kinds} - {""}
        for m in (old, right)
    )
    short = sorted(k for k in kinds if k.removesuffix(".bias") not in kinds - {k})
    text, several = listed(short, right), len(short) > 1
    for one, many in (
        (" is ", " are "),
        (" holds ", " hold "),
        (" differs", " differ"),
    ):
        if several and not text.startswith("every") and said.startswith("{}" + one):
            said = said.replace(one, many, 1)
    where = sorted(layers, key=int)
    if layers and layers not in (before, after):
        text += f" of layer{'s' * (len(where) > 1)} {', '.join(where)}"
    return said.format(text)


def listed(kinds: list[str], right: Any) -> str:
    """q_proj and k_proj; every norm; every parameter."""
    known = {kind_of(n) for n, _ in right.named_parameters()}
    norms = {k for k in known if "norm" in k and "." not in k}
    if (
        len(kinds) > 5
        and len(kinds) > len({k.removesuffix(".bias") for k in known}) // 2
    ):
        return "every parameter"
    if len(norms) > 1 and norms == set(kinds):
        return "every norm"
    if norms and {f"{k}.bias" for k in norms} == set(kinds):
        return "every norm's bias"
    return " and ".join(filter(None, (", ".join(kinds[:-1]), *kinds[-1:])))


def fields(new: Any, right: Any, old: Any) -> Iterator[str]:
    """Config fields that are neither the right ones nor, where nothing grows, the old."""
    got, wanted, old_fields = ({**m.config.to_dict()} for m in (new, right, old))
    got |= got.pop("rope_parameters", None) or {}
    wanted |= wanted.pop("rope_parameters", None) or {}
    if (
        "stablelm" not in right.config.model_type
    ):  # a Llama turns all lanes, said or not
        got.pop("partial_rotary_factor", None)
        wanted.pop("partial_rotary_factor", None)
    ratios = Ratios.of(old.config, right.config, torch.float64)
    if new.config.model_type != right.config.model_type:
        yield f"model_type {new.config.model_type}, expected {right.config.model_type}"
    theta = [(m.config.rope_parameters or {}).get("rope_theta") for m in (new, right)]
    if theta[0] != theta[1]:
        got["rope θ"], wanted["rope θ"] = theta
    if got.get("rope_type") != wanted.get("rope_type"):  # its other fields follow
        known = {"rope_type", *(right.config.to_dict())}
        got = {k: v for k, v in got.items() if k in known}
    for name in sorted(wanted.keys() | got.keys()):
        a, b = got.get(name), wanted.get(name)
        if name in INCIDENTAL or a == b or (name not in got and name not in old_fields):
            continue
        if isinstance(a, float) and isinstance(b, float) and b:
            if abs(a / b - 1) < 1e-12:
                continue
            named = ratios.name(b / a, "D")
            how = f" ({named} is missing)" if "/" in named else ""
            yield f"{name.replace('rope θ', 'rope_theta')} {number(a, b)}, expected {number(b, a)}{how}"
        else:
            yield f"{name} {a}, expected {b}"


def number(x: float, other: float) -> str:
    """x in as few digits as tell it from the other."""
    return next(t for n in (3, 7, 17) if (t := f"{x:.{n}g}") != f"{other:.{n}g}")


def modules(new: Any, right: Any, wrong: str) -> Iterator[str]:
    """Module settings, hooks and buffers that differ though the config does not say so."""
    wanted = dict(right.named_modules())
    seen: set[str] = set()
    for path, module in new.named_modules():
        name = (
            path.rpartition(".")[2] if not path.rpartition(".")[2].isdigit() else path
        )
        other = wanted.get(path)
        if module._forward_hooks or module._forward_pre_hooks:
            seen.add(f"{name} carries a forward hook, which is lost when saved")
        if "forward" in vars(module) and (
            other is None or "forward" not in vars(other)
        ):
            seen.add(
                f"{name or 'the model'}.forward was replaced, which is lost when saved"
            )
        for key, b in vars(other).items() if other is not None else ():
            a = vars(module).get(key)
            numeric = isinstance(b, float) or key == "layer_idx"
            explained = "eps" in key and "_eps" in wrong
            if numeric and a != b and not explained and not near(a, b):
                seen.add(f"{name}.{key} is {a}, expected {b}")
    yield from sorted(seen)
    buffers = dict(right.named_buffers())
    for path, buffer in new.named_buffers():
        b, name = buffers.get(path), path.rpartition(".")[2]
        if name.startswith("original_") or "rope" in wrong or "rotary" in wrong:
            continue
        if b is None:
            yield f"buffer {name} was added"
        elif buffer.dtype != b.dtype:
            yield f"{name} is {str(buffer.dtype)[6:]}, expected {str(b.dtype)[6:]}"
        elif buffer.device.type != "meta" and not torch.equal(buffer, b):
            yield f"buffer {name} differs"


def near(a: Any, b: Any) -> bool:
    """Whether two numbers are one but for rounding."""
    numbers = isinstance(a, float) and isinstance(b, float)
    return numbers and math.isclose(a, b, rel_tol=1e-12)


def manners(old: Any, new: Any, right: Any, fresh: Any) -> Iterator[str]:
    """Mode, dtype, gradients, tying, sharing, and what became of the source."""
    if new.training != right.training:
        yield f"comes back in {'training' if new.training else 'evaluation'} mode"
    dtypes, wanted = (
        {kind_of(n): p for n, p in m.named_parameters()} for m in (new, right)
    )
    for said, of in (
        ("{} is {a}, expected {b}", lambda p: str(p.dtype)[6:]),
        ("requires_grad of {} is {a}, expected {b}", lambda p: p.requires_grad),
    ):
        pairs = defaultdict(list)
        for kind in dtypes.keys() & wanted.keys():
            pairs[of(dtypes[kind]), of(wanted[kind])].append(kind)
        for (a, b), kinds in pairs.items():
            if a != b:
                names = (
                    "every parameter"
                    if len(kinds) == len(wanted)
                    else ", ".join(sorted(kinds))
                )
                yield said.format(names, a=a, b=b)
    tied = [
        m.get_output_embeddings().weight is m.get_input_embeddings().weight
        for m in (new, right)
    ]
    if tied[0] != tied[1]:
        yield f"lm_head is {'' if tied[0] else 'not '}the embedding, expected the opposite"
    memory = {
        p.untyped_storage().data_ptr() for _, p in old.named_parameters() if p.numel()
    }
    shared = sorted(
        {
            kind_of(n)
            for n, p in new.named_parameters()
            if p.device.type != "meta" and p.untyped_storage().data_ptr() in memory
        }
    )
    if shared:
        yield f"{', '.join(shared)} shares the source's memory"
    if new.generation_config is old.generation_config:
        yield "generation_config is one object with the source's"
    if new.config.rope_parameters is old.config.rope_parameters:
        yield "rope_parameters is one dict with the source's"
    before, after = state(fresh), state(old)
    changed = sorted(
        {
            kind_of(n)
            for n in before
            if not torch.equal(before[n], after.get(n, before[n] + 1))
        }
    )
    if changed:
        yield f"the source's {', '.join(changed)} was changed"
    if fresh.config.to_dict() != old.config.to_dict():
        yield "the source's config was changed"


def causes(
    source: Callable[[], Any],
    grow: Callable[[Any, Any], Any],
    target: Mapping[str, int],
) -> list[str]:
    """Everything that is wrong, a sentence each; never raises.

    source: a new model of the case at every call. grow: the grower under test.
    """
    try:
        old = source()
        try:
            with kept():
                new = grow(old, dict(target))
        except Exception as crash:
            return [f"it raises {type(crash).__name__}: {first_line(crash)}"]
        with elsewhere():  # where fresh memory is full of NaN
            again = grow(source(), dict(target))
        random = not same_bits(new, again)
        nearest = min(rights(source, target), key=lambda right: unlike(new, right))
        found = differences(old, new, nearest, source())
        return ["two calls give different weights", *found] if random else found
    except Exception as crash:
        return [
            f"not known: comparing gave {type(crash).__name__}: {first_line(crash)}"
        ]


def rights(source: Callable[[], Any], target: Mapping[str, int]) -> Iterator[Any]:
    """The right growths of the case: with each way of giving full rotary new lanes."""
    yield growproof.grow(source(), dict(target))
    with contextlib.suppress(ValueError, NotImplementedError):  # it has one way only
        yield growproof.grow(source(), dict(target), rotary="parted")


def unlike(new: Any, right: Any) -> int:
    """How many entries of two models' parameters differ, or cannot be compared."""
    mine = dict(new.named_parameters()) if new is not None else {}
    return sum(
        int((a != mine[name]).sum())
        if name in mine and mine[name].shape == a.shape and not mine[name].is_meta
        else a.numel()
        for name, a in right.named_parameters()
    )


def differences(old: Any, new: Any, right: Any, fresh: Any) -> list[str]:
    """What tells a grown model from a right one, a sentence each."""
    config = [*fields(new, right, old)]
    stored = [*wrong_parameters(old, new, right), *config]
    said = [*modules(new, right, " ".join(config))]
    if stored and said and only_live(old, new):
        stored, said = [], [f"right in memory, lost when saved: {'; '.join(said)}"]
    return [*stored, *said, *manners(old, new, right, fresh)]


def only_live(old: Any, new: Any) -> bool:
    """Whether the model is right as it is, and wrong made anew of config and weights."""
    with contextlib.suppress(Exception):  # then it is not known
        twin = build(copy.deepcopy(new.config), state_of(new))
        want, live, made = (logits(m) for m in (old, new, twin))
        scale = want.abs().max()
        return bool((live - want).abs().max() < 1e-5 * scale) and bool(
            (made - want).abs().max() > 1e-3 * scale
        )
    return False


def logits(model: Any) -> Tensor:
    """The logits of every token in turn, in float64."""
    ids = torch.arange(model.config.vocab_size)[None]
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(ids).logits


def wrong_parameters(old: Any, new: Any, right: Any) -> Iterator[str]:
    """Sentences on parameters: without those that compensate or change nothing."""
    rows = [*parameters(old, new, right)]
    scores = [(s, n) for s, n in rows if {"q_proj", "k_proj"} & {*map(kind_of, n)}]
    named = [n for _, names in scores for n in names]
    if len(scores) > 1 and moves(new, right, named) < 1e-5:  # √(K'/K), shared out
        rows = [row for row in rows if row not in scores]
    for said, names in rows:
        fresh = said.startswith("the new entries") or said.endswith("'s")
        reads = not {*map(kind_of, names)} & {"embed_tokens", "o_proj", "down_proj"}
        if fresh and reads and len(rows) > 1 and not moves(new, right, names):
            continue
        yield told(said, names, old, right)


def moves(new: Any, right: Any, names: list[str]) -> float:
    """How far these parameters, put into the right model, move its logits (relative)."""
    planted, given = copy.deepcopy(right).double(), dict(new.named_parameters())
    ids = torch.arange(right.config.vocab_size)[None]
    with torch.no_grad():
        expected = copy.deepcopy(right).double().eval()(ids).logits
        for name, p in planted.named_parameters():
            if name in names and name in given and p.shape == given[name].shape:
                p.copy_(given[name])
        moved = planted.eval()(ids).logits - expected
    return float(moved.abs().max() / expected.abs().max())


def same_bits(a: Any, b: Any) -> bool:
    """Whether two models hold the same weights; a NaN is like another."""
    one, two = (dict(m.named_parameters()) for m in (a, b))
    return one.keys() == two.keys() and all(
        w.device.type == "meta"
        or (
            w.shape == two[n].shape and torch.equal(w.nan_to_num(), two[n].nan_to_num())
        )
        for n, w in one.items()
    )


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).splitlines() or ["no reason given"])[0]
