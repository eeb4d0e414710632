"""What is wrong with a grower on a case: which differences from a right growth count.

Its model is compared with the right one that is nearest: in the order of its heads and
neurons, with its policies. A difference that right growers may have too (new entries that
nothing reads) is dropped where it does not move the logits and something else is wrong.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import growproof
import torch
from growproof.decoder import GrowthError
from growproof.growth import Growth, Policies
from growproof.models import build, decoder_of, parameters_of, state_of
from torch import Tensor

from ..laws.given import halved
from ..laws.grown import behind, moved
from ..laws.models import loads
from ..laws.world import elsewhere, kept
from .evidence import (
    Row,
    State,
    fields,
    manners,
    modules,
    parameters,
    state,
    theta_of,
    told,
)
from .orders import in_order, orders
from .parts import kind_of
from .verdict import LOST

WRITERS = {"embed_tokens", "o_proj", "down_proj"}
# what may be exchanged between two parameters without effect
COUPLED = (
    {"q_proj", "k_proj"}, {"v_proj", "o_proj"}, {"up_proj", "down_proj"},
    {"gate_proj", "up_proj", "down_proj"},
)  # fmt: skip


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
        if any(p.is_inference() for p in new.parameters()):
            return [
                "its parameters were made in inference mode: nothing can train them"
            ]
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

    one, two = (parameters_of(m) for m in (new, again))
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


TOKENS = 64
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
    mine = parameters_of(new) if new is not None else {}
    apart = sum(
        int((a != mine[name]).sum())
        if name in mine and mine[name].shape == a.shape and not mine[name].is_meta
        else a.numel()
        for name, a in parameters_of(right).items()
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
    if stored and only_live(fresh, new) and not said:
        stored = [LOST + cause for cause in stored]
    elif stored and said and only_live(fresh, new):
        stored = [c for c in config if not re.match(r"\S*(eps|theta)\b", c)]
        said = [LOST + "; ".join(said)]
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
    """The logits of a text of every token, or of TOKENS of them, in float64."""
    vocab = model.config.vocab_size
    ids = torch.linspace(0, vocab - 1, min(TOKENS, vocab)).long()[None]
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
        idle = re.match(r"the new entries|.* what (belongs to|is layer)", said)
        readers = [n for n in names if kind_of(n).removesuffix(".bias") not in WRITERS]
        alone = padded and len(rows) == 1
        if idle and not alone and not moves(new, right, readers):
            names = [n for n in names if n not in readers]
        if names:
            yield told(said, names, old, right)


def moves(new: Any, right: Any, names: list[str]) -> float:
    """How far these parameters, put into the right model, move its logits (relative)."""
    planted, given = copy.deepcopy(right).double(), parameters_of(new)
    expected = logits(right)
    with torch.no_grad():
        for name, p in parameters_of(planted).items():
            if name in names and name in given and p.shape == given[name].shape:
                p.copy_(given[name])
    return float((logits(planted) - expected).abs().max() / expected.abs().max())


def unlike_bits(a: Any, b: Any) -> set[str]:
    """The parameters in which two models do not hold the same bits; a NaN is like another."""
    one, two = (parameters_of(m) for m in (a, b))
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
    """The first line of what an exception says, and the next where it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    more = 2 if lines and lines[0].endswith(":") else 1
    return " ".join(lines[:more]) or "no reason given"
