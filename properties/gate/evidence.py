"""What differs between a grown model and what growproof makes of the same, part by part.

Parameters, config fields, buffers and modules, and what the grower did to its source;
what differs is said in closed form where there is one. `causes` chooses what to compare.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from growproof.families import family_of
from growproof.models import decoder_of, parameters_of
from torch import Tensor

from ..laws.domain import config_names
from .parts import Part, Ratios, kind_of, layer_of, relation

State = dict[str, Tensor]
Row = tuple[str, list[str]]  # what is wrong, with which parameters
# how a model was stored, or what says the same twice
INCIDENTAL = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype",
    "auto_map", "model_type", "rope_theta",
}  # fmt: skip


def state(model: Any) -> State:
    """The parameters by name, in float64."""
    return {n: p.detach().double() for n, p in parameters_of(model).items()}


def parameters(
    old: Any, new: Any, right: Any, placed: State, varying: set[str]
) -> Iterator[Row]:
    """(what is wrong, the parameters that it is wrong with), the same said once.

    placed: the old entries' places. varying: what no two calls agree on.
    """
    stored = {n: p.dtype for n, p in parameters_of(new).items()}
    before, after, wanted = state(old), state(new), state(right)
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    sizes = [*config_names(right.config.model_type).values()]
    if sizes_of(new, sizes) != sizes_of(right, sizes):
        wanted = {n: w for n, w in wanted.items() if n in after}  # the config says it
    elif tied(new) == tied(right):
        found["{} is missing", ""] = sorted(wanted.keys() - after.keys())
        found["{} was added", ""] = sorted(after.keys() - wanted.keys())
    like: dict[tuple[str, str], str] = {}  # what differs in its size alone is said once
    outside = Beside(after, wanted, before, placed)
    within = maps_within(right, after)
    for name in (n for n in wanted if n in after and n not in varying):
        ratios = Ratios.of(old.config, right.config, stored[name])
        sides = outside.rounded(stored[name])
        whole = relation(sides.part(name), ratios)
        if whole and name in within:
            sides = sides.read(old, right)
        parts = [sides.part(n) for n in within.get(name, [name])] if whole else []
        each = {part.kind: relation(part, ratios) for part in parts}
        several = len({*each.values()}) > 1
        for kind, said in each.items() if several else [*each.items()][:1]:
            if said:
                key = re.sub(r"up to [\d.e+-]+", "", said), apart(said, kind)
                if several:
                    said = said.replace("{}", f"{kind.removesuffix('.bias')} in {{}}")
                found[like.setdefault(key, said), key[1]].append(name)
    yield from ((said, names) for (said, _), names in found.items() if names)


class Beside(NamedTuple):
    """The grown model's parameters, the right one's, the old ones, and where these lie."""

    new: State
    right: State
    old: State
    placed: State

    def rounded(self, dtype: torch.dtype) -> Beside:
        """The right ones as a dtype holds them."""
        return self._replace(
            right={n: w.to(dtype).double() for n, w in self.right.items()}
        )

    def part(self, name: str) -> Part:
        """One of them, and the others."""
        others = {n: w for n, w in self.right.items() if n != name}
        old, placed = self.old.get(name), self.placed[name]
        return Part(name, self.new[name], self.right[name], old, placed, others)

    def read(self, old: Any, right: Any) -> Beside:
        """By the names of the maps: q, k and v where one tensor holds them."""
        family, models = family_of(right.config), (right, right, old, right)
        decoders = (decoder_of(model.config) for model in models)
        read = (family.read(w, d) for w, d in zip(self, decoders, strict=True))
        return Beside(*({projection(n): w for n, w in each.items()} for each in read))


def maps_within(right: Any, after: State) -> dict[str, list[str]]:
    """A tensor that holds several maps, or one by another name → their usual names.

    None of a model whose tensors have other shapes than the right one's.
    """
    sizes = {n: p.shape for n, p in parameters_of(right).items()}
    if sizes != {n: w.shape for n, w in after.items()}:
        return {}
    found: dict[str, list[str]] = defaultdict(list)
    index = family_of(right.config).index(sizes, decoder_of(right.config))
    for canonical, home in index.items():
        usual, (stored, *more) = projection(canonical), home.pieces
        renamed = usual != canonical and kind_of(usual) != kind_of(stored)
        if len(home.stored.parts) > 1 or (renamed and not more):
            found[stored].append(usual)
    return found


def projection(canonical: str) -> str:
    """layers.0.q_proj.weight for layers.0.q.weight; what is no map keeps its name."""
    return re.sub(r"\b(q|k|v|o|gate|up|down)(?=\.\w+$)", r"\1_proj", canonical)


def apart(said: str, kind: str) -> str:
    """What a cause is said of together: alike in all parameters, or in a group of them."""
    grouped = any(word in said for word in ("at the end", "scale", "missing from"))
    by_number = re.match(r"\{\} is scaled by [\d.e+-]+, expected no", said)
    return group_of(kind) if grouped and not by_number else ""


def sizes_of(model: Any, names: list[str]) -> list[int | None]:
    """The sizes of these names that its config says."""
    return [getattr(model.config, name, None) for name in names]


def tied(model: Any) -> bool:
    """Whether the head is the embedding."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


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
        {layer_of(n) for n in parameters_of(m) if kind_of(n) in kinds} - {""}
        for m in (old, right)
    )
    short = sorted(k for k in kinds if k.removesuffix(".bias") not in kinds - {k})
    text, several = listed(short, right), len(short) > 1
    for kind in short:  # of two modules, the one or the other
        homes, used = (
            {n.split(".")[-3:][0] for n in ns if kind_of(n) == kind}
            for ns in (parameters_of(right), names)
        )
        if len({h for h in homes if not h.isdigit()}) > 1:
            text = text.replace(kind, " and ".join(f"{h}.{kind}" for h in sorted(used)))
            several = several or len(used) > 1
    for one, many in (
        (" is ", " are "),
        (" holds ", " hold "),
        (" differs", " differ"),
        (" shares", " share"),
        (" goes", " go"),
    ):
        if several and not text.startswith("every") and said.startswith("{}" + one):
            said = said.replace(one, many, 1).replace(" its ", " their ")
    where = sorted(layers, key=int)
    if layers and layers not in (before, after):
        text += f" of layer{'s' * (len(where) > 1)} {', '.join(where)}"
    return said.format(text)


def listed(kinds: list[str], right: Any) -> str:
    """q_proj and k_proj; every norm; every parameter."""
    known = {kind_of(n) for n in parameters_of(right)}
    norms = {k for k in known if "norm" in k and "." not in k}
    weights = {k for k in known if "." not in k}
    inner = {kind_of(n) for n in parameters_of(right) if layer_of(n)} & weights
    found = {k.removesuffix(".bias") for k in kinds}
    if found in (weights, inner):
        return "every parameter"
    if len(found) > 3 and found == {k for k in inner if k.endswith("_proj")}:
        return "every projection"
    if len(norms) > 1 and norms == set(kinds):
        return "every norm"
    if norms and {f"{k}.bias" for k in norms} == set(kinds):
        return "every norm's bias"
    return " and ".join(filter(None, (", ".join(kinds[:-1]), *kinds[-1:])))


def fields(new: Any, right: Any, old: Any) -> Iterator[str]:
    """Config fields that are neither the right ones nor, where nothing grows, the old."""
    got, wanted, old_fields = ({**m.config.to_dict()} for m in (new, right, old))
    for its in (got, wanted):
        its |= by_layer_type(its.pop("rope_parameters", None) or {})
    if not family_of(right.config).partial:  # all lanes are turned, said or not
        got.pop("partial_rotary_factor", None)
        wanted.pop("partial_rotary_factor", None)
    ratios, tokens = Ratios.of(old.config, right.config, torch.float64), list[str]()
    thetas = by_layer_type(rope_of(old))
    if new.config.model_type != right.config.model_type:
        yield f"model_type {new.config.model_type}, expected {right.config.model_type}"
    theta = [rope_of(m).get("rope_theta") for m in (new, right)]
    if theta[0] != theta[1]:
        got["rope θ"], wanted["rope θ"] = theta
    if got.get("rope_type") != wanted.get("rope_type"):  # its other fields follow
        known = {"rope_type", *(right.config.to_dict())}
        got = {k: v for k, v in got.items() if k in known}
    for name in sorted(wanted.keys() | got.keys()):
        a, b = got.get(name), wanted.get(name)
        if name in INCIDENTAL or a == b or (name not in got and name not in old_fields):
            continue
        if name.endswith("_token_id"):
            tokens.append(f"{name} {a}, expected {b}")
        elif name not in got or name not in wanted:
            yield f"{name} {b} is gone" if name not in got else f"{name} {a} was added"
        elif isinstance(a, list) and isinstance(b, list) and len(a) != len(b):
            yield f"{name} has {len(a)} entries, expected {len(b)}"
        elif isinstance(a, float) and isinstance(b, float):
            if not near(a, b):
                told = f"{number(a, b)}, expected {number(b, a)}"
                how = closed(name, a, b, thetas.get(name, theta_of(old)), ratios)
                yield f"{name.replace('rope θ', 'rope_theta')} {told}{how}"
        else:
            yield f"{name} {a}, expected {b}"
    if tokens:
        yield ", ".join(tokens)


def by_layer_type(rope: dict[str, Any]) -> dict[str, Any]:
    """Rope parameters by their names, or by `its name of full_attention`."""
    found: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            found |= {f"{inner} of {name}": x for inner, x in value.items()}
        else:
            found[name] = value
    return found


def closed(name: str, a: float, b: float, theta: float, ratios: Ratios) -> str:
    """How a field that is a and should be b follows from the sizes, if it does."""
    k, k_new = ratios.lanes
    if name.startswith(("rope θ", "rope_theta")):
        raised = k != k_new and math.isclose(b, theta ** (k_new / k), rel_tol=1e-9)
        return " = θ^(K'/K)" if raised else ""
    named = ratios.name(b / a, "K" if "rotary" in name else "D") if a and b else ""
    return f" ({named} is missing)" if "'" in named else ""


def theta_of(model: Any) -> float:
    """The base of its rotary frequencies."""
    return float(rope_of(model).get("rope_theta") or 1.0)


def rope_of(model: Any) -> dict[str, Any]:
    """Its rope parameters; none where nothing is turned."""
    return getattr(model.config, "rope_parameters", None) or {}


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
            explained = key in wrong or ("eps" in key and "_eps" in wrong)
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
        {kind_of(n): p for n, p in parameters_of(m).items()} for m in (new, right)
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
    ties = new.config.tie_word_embeddings == right.config.tie_word_embeddings
    if ties and tied(new) != tied(right):
        is_ = "is" if tied(new) else "is not"
        yield f"lm_head {is_} the embedding, expected the opposite"
    memory = {
        p.untyped_storage().data_ptr() for p in parameters_of(old).values() if p.numel()
    }
    shared = [
        n
        for n, p in parameters_of(new).items()
        if p.device.type != "meta" and p.untyped_storage().data_ptr() in memory
    ]
    if shared:
        yield told("{} shares the source's memory", shared, old, right)
    if new.generation_config is old.generation_config:
        yield "generation_config is one object with the source's"
    if rope_of(old) and rope_of(new) is rope_of(old):
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
