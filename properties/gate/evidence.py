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
from growproof.decoder import GrowthError
from growproof.growth import Growth, Policies
from growproof.models import build, decoder_of, state_of
from torch import Tensor

from ..laws.domain import CONFIG_NAME
from ..laws.grown import behind, moved
from ..laws.models import loads
from ..laws.world import elsewhere, halved, kept
from .orders import in_order, orders
from .parts import Part, Ratios, kind_of, layer_of, relation

State = dict[str, Tensor]
Row = tuple[str, list[str]]  # what is wrong, with which parameters
SIZES = tuple(CONFIG_NAME.values())
WRITERS = {"embed_tokens", "o_proj", "down_proj"}
# what may be exchanged between two parameters without effect
COUPLED = (
    {"q_proj", "k_proj"}, {"v_proj", "o_proj"}, {"up_proj", "down_proj"},
    {"gate_proj", "up_proj", "down_proj"},
)  # fmt: skip
# how a model was stored, or what says the same twice
INCIDENTAL = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype",
    "auto_map", "model_type", "rope_theta",
}  # fmt: skip


def state(model: Any) -> State:
    """The parameters by name, in float64."""
    return {n: p.detach().double() for n, p in model.named_parameters()}


def parameters(
    old: Any, new: Any, right: Any, placed: State, varying: set[str]
) -> Iterator[Row]:
    """(what is wrong, the parameters that it is wrong with), the same said once.

    placed: the old entries' places. varying: what no two calls agree on.
    """
    stored = {n: p.dtype for n, p in new.named_parameters()}
    before, after, wanted = state(old), state(new), state(right)
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    if [n for n in SIZES if sizes_of(new).get(n) != sizes_of(right).get(n)]:
        wanted = {n: w for n, w in wanted.items() if n in after}  # the config says it
    elif tied(new) == tied(right):
        found["{} is missing", ""] = sorted(wanted.keys() - after.keys())
        found["{} was added", ""] = sorted(after.keys() - wanted.keys())
    like: dict[tuple[str, str], str] = {}  # what differs in its size alone is said once
    for name in (n for n in wanted if n in after and n not in varying):
        ratios = Ratios.of(old.config, right.config, stored[name])
        cast = {n: w.to(stored[name]).double() for n, w in wanted.items()}
        others = {n: w for n, w in cast.items() if n != name}
        part = Part(
            name, after[name], cast[name], before.get(name), placed[name], others
        )
        if said := relation(part, ratios):
            key = re.sub(r"up to [\d.e+-]+", "", said), apart(said, part.kind)
            found[like.setdefault(key, said), key[1]].append(name)
    yield from ((said, names) for (said, _), names in found.items() if names)


def apart(said: str, kind: str) -> str:
    """What a cause is said of together: alike in all parameters, or in a group of them."""
    grouped = any(word in said for word in ("at the end", "scale", "missing from"))
    by_number = re.match(r"\{\} is scaled by [\d.e+-]+, expected no", said)
    return group_of(kind) if grouped and not by_number else ""


def sizes_of(model: Any) -> dict[str, int | None]:
    """The sizes that its config says."""
    return {name: getattr(model.config, name, None) for name in SIZES}


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
        {layer_of(n) for n, _ in m.named_parameters() if kind_of(n) in kinds} - {""}
        for m in (old, right)
    )
    short = sorted(k for k in kinds if k.removesuffix(".bias") not in kinds - {k})
    text, several = listed(short, right), len(short) > 1
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
    known = {kind_of(n) for n, _ in right.named_parameters()}
    norms = {k for k in known if "norm" in k and "." not in k}
    weights = {k for k in known if "." not in k}
    inner = {kind_of(n) for n, _ in right.named_parameters() if layer_of(n)} & weights
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
    got |= got.pop("rope_parameters", None) or {}
    wanted |= wanted.pop("rope_parameters", None) or {}
    if (
        "stablelm" not in right.config.model_type
    ):  # a Llama turns all lanes, said or not
        got.pop("partial_rotary_factor", None)
        wanted.pop("partial_rotary_factor", None)
    ratios, tokens = Ratios.of(old.config, right.config, torch.float64), list[str]()
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
        if name.endswith("_token_id"):
            tokens.append(f"{name} {a}, expected {b}")
        elif name not in got or name not in wanted:
            yield f"{name} {b} is gone" if name not in got else f"{name} {a} was added"
        elif isinstance(a, list) and isinstance(b, list) and len(a) != len(b):
            yield f"{name} has {len(a)} entries, expected {len(b)}"
        elif isinstance(a, float) and isinstance(b, float):
            if not near(a, b):
                told = f"{number(a, b)}, expected {number(b, a)}"
                how = closed(name, a, b, theta_of(old), ratios)
                yield f"{name.replace('rope θ', 'rope_theta')} {told}{how}"
        else:
            yield f"{name} {a}, expected {b}"
    if tokens:
        yield ", ".join(tokens)


def closed(name: str, a: float, b: float, theta: float, ratios: Ratios) -> str:
    """How a field that is a and should be b follows from the sizes, if it does."""
    k, k_new = ratios.lanes
    if name == "rope θ":
        raised = k != k_new and math.isclose(b, theta ** (k_new / k), rel_tol=1e-9)
        return " = θ^(K'/K)" if raised else ""
    named = ratios.name(b / a, "K" if "rotary" in name else "D") if a and b else ""
    return f" ({named} is missing)" if "/" in named else ""


def theta_of(model: Any) -> float:
    """The base of its rotary frequencies."""
    return float((model.config.rope_parameters or {}).get("rope_theta") or 1.0)


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
    ties = new.config.tie_word_embeddings == right.config.tie_word_embeddings
    if ties and tied(new) != tied(right):
        is_ = "is" if tied(new) else "is not"
        yield f"lm_head {is_} the embedding, expected the opposite"
    memory = {
        p.untyped_storage().data_ptr() for _, p in old.named_parameters() if p.numel()
    }
    shared = [
        n
        for n, p in new.named_parameters()
        if p.device.type != "meta" and p.untyped_storage().data_ptr() in memory
    ]
    if shared:
        yield told("{} shares the source's memory", shared, old, right)
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
    *,
    padded: bool = False,
) -> list[str]:
    """Everything that is wrong, a sentence each; never raises.

    source: a new model of the case at every call. grow: the grower under test. padded:
    whether it is to pad with zeros; else what has no effect on the function is right.
    """
    try:
        old = source()
        try:
            with kept():
                new = grow(old, dict(target))
        except Exception as crash:
            return [f"it raises {type(crash).__name__}: {first_line(crash)}"]
        if remembered(new, source, grow, target):
            return ["another model's weights came back"]
        varying, told = unsteady(new, source, grow, target)
        right, placed = nearest(new, source, target, padded=padded)
        found = differences(
            old, new, right, placed, source(), varying=varying, padded=padded
        )
        return [*told, *found]
    except Exception as crash:
        return [
            f"not known: comparing gave {type(crash).__name__}: {first_line(crash)}"
        ]


def remembered(
    new: Any, source: Callable[[], Any], grow: Callable[..., Any], target: Any
) -> bool:
    """Whether other weights of the same sizes give the same result."""
    with kept():
        other = grow(halved(source()), dict(target))
    told = any(not p.is_meta and p.any() for p in new.parameters())
    return told and not unlike_bits(new, other)


def unsteady(
    new: Any, source: Callable[[], Any], grow: Callable[..., Any], target: Any
) -> tuple[set[str], list[str]]:
    """The parameters that another call gives otherwise, and how that is said."""
    with elsewhere():  # where fresh memory is full of NaN
        again = grow(source(), dict(target))
    varying = unlike_bits(new, again)
    if not varying:
        return varying, []

    def say(said: str) -> tuple[set[str], list[str]]:
        return varying, [told(said, sorted(varying), new, new)]

    one, two = (dict(m.named_parameters()) for m in (new, again))
    shared = [
        n for n in varying & one.keys() & two.keys() if one[n].shape == two[n].shape
    ]
    if any((two[n].isnan() & ~one[n].isnan()).any() for n in shared):
        return say("{} holds entries that are never written: what memory had")
    with kept():
        third = grow(source(), dict(target))
    with elsewhere():
        fourth = grow(source(), dict(target))
    if not unlike_bits(new, third) and not unlike_bits(again, fourth):
        return say("{} differs without gradients, or on two threads")
    return say("{} differs from call to call")


def nearest(
    new: Any, source: Callable[[], Any], target: Mapping[str, int], *, padded: bool
) -> tuple[Any, State]:
    """The right growth that is likest, and where the old entries lie in it."""
    ways: list[dict[str, Any]] = [{}, {"rotary": "parted"}]  # of full rotary's lanes
    found = []
    for options in ways:
        with contextlib.suppress(ValueError, NotImplementedError):  # it has one alone
            right = growproof.grow(source(), dict(target), **options)
            changes = reorderings(new, right, source(), padded=padded)
            found += [(turned(right, change), options, change) for change in changes]
    right, options, change = min(found, key=lambda one: unlike(new, one[0]))
    loud = source()
    with torch.no_grad():
        for p in loud.parameters():
            p.copy_(torch.randn(p.shape).abs() + 0.5)
    where = turned(growproof.grow(loud, dict(target), **options), change)
    return right, {n: w != 0 for n, w in state(where).items()}


Change = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def reorderings(new: Any, right: Any, old: Any, *, padded: bool) -> Iterator[Change]:
    """What may be done to a right growth: nothing, values in front, all in new's order."""
    yield lambda state: state
    rotary = "parted" if theta_of(right) != theta_of(old) else None
    plan = Growth(
        old=decoder_of(old.config), new=decoder_of(right.config),
        policies=Policies(norm="scaled", rotary=rotary),
    )  # fmt: skip
    front = behind(plan).argsort()
    if not torch.equal(front, torch.arange(len(front))):
        yield lambda state: moved(state, front)
    if not padded:
        with contextlib.suppress(GrowthError, RuntimeError):  # then it is no such model
            steps = orders(state_of(new), state_of(right), plan.new)
            if steps:
                yield lambda state: in_order(state, steps)


def turned(model: Any, change: Change) -> Any:
    """A copy of the model, its weights in another order."""
    return loads(copy.deepcopy(model), dict(change(state_of(model))))


def unlike(new: Any, right: Any) -> tuple[int, bool]:
    """How many entries of two models' parameters differ, or cannot be compared; rotary."""
    mine = dict(new.named_parameters()) if new is not None else {}
    apart = sum(
        int((a != mine[name]).sum())
        if name in mine and mine[name].shape == a.shape and not mine[name].is_meta
        else a.numel()
        for name, a in right.named_parameters()
    )
    return apart, theta_of(new) != theta_of(right)


def differences(
    old: Any, new: Any, right: Any, placed: State, fresh: Any, *, varying: set[str],
    padded: bool,
) -> list[str]:  # fmt: skip
    """What tells a grown model from a right one, a sentence each.

    old: what the grower was given, and may have changed. fresh: the same, untouched.
    """
    config = [*fields(new, right, fresh)]
    rows = [*parameters(fresh, new, right, placed, varying)]
    stored = [*wrong_parameters(rows, fresh, new, right, padded=padded), *config]
    said = [*modules(new, right, " ".join(config))]
    lost = "right in memory, lost when saved: "
    if stored and only_live(fresh, new) and not said:
        stored = [lost + cause for cause in stored]
    elif stored and said and only_live(fresh, new):
        stored = [c for c in config if not re.match(r"\S*(eps|theta)\b", c)]
        said = [lost + "; ".join(said)]
    return [*stored, *said, *manners(old, new, right, fresh)]


def only_live(old: Any, new: Any) -> bool:
    """Whether the model is right as it is, and wrong made anew of config and weights."""
    with contextlib.suppress(Exception):  # then it is not known
        twin = build(copy.deepcopy(new.config), state_of(new))
        want, live, made = (logits(m) for m in (old, new, twin))
        off, lost = (float((x - want).abs().max()) for x in (live, made))
        return off < 1e-5 * float(want.abs().max()) and lost > 100 * off
    return False


def logits(model: Any) -> Tensor:
    """The logits of every token in turn, in float64."""
    ids = torch.arange(model.config.vocab_size)[None]
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(ids, use_cache=False).logits


def wrong_parameters(
    rows: list[Row], old: Any, new: Any, right: Any, *, padded: bool
) -> Iterator[str]:
    """Sentences on parameters: without those that compensate or change nothing."""
    for coupled in COUPLED:  # √(K'/K) or an order, shared out
        both = [row for row in rows if coupled & {*map(kind_of, row[1])}]
        named = [n for _, names in both for n in names]
        if len(both) > 1 and moves(new, right, named) < 1e-5:
            rows = [row for row in rows if row not in both]
    for said, names in rows:
        idle = said.startswith("the new entries") or said.endswith("'s")
        readers = [n for n in names if kind_of(n).removesuffix(".bias") not in WRITERS]
        alone = padded and len(rows) == 1
        if idle and not alone and not moves(new, right, readers):
            names = [n for n in names if n not in readers]
        if names:
            yield told(said, names, old, right)


def moves(new: Any, right: Any, names: list[str]) -> float:
    """How far these parameters, put into the right model, move its logits (relative)."""
    planted, given = copy.deepcopy(right).double(), dict(new.named_parameters())
    expected = logits(right)
    with torch.no_grad():
        for name, p in planted.named_parameters():
            if name in names and name in given and p.shape == given[name].shape:
                p.copy_(given[name])
    return float((logits(planted) - expected).abs().max() / expected.abs().max())


def unlike_bits(a: Any, b: Any) -> set[str]:
    """The parameters in which two models do not hold the same bits; a NaN is like another."""
    one, two = (dict(m.named_parameters()) for m in (a, b))
    return (one.keys() ^ two.keys()) | {
        n
        for n, w in one.items()
        if n in two
        and w.device.type != "meta"
        and not (
            w.shape == two[n].shape and torch.equal(w.nan_to_num(), two[n].nan_to_num())
        )
    }


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).splitlines() or ["no reason given"])[0]
