"""How small a regression each comparison catches: sensitivity.md, recomputed by a test.

    python -m properties.power.sensitivity        # rewrites the table

Faults of growing size are planted in 24 fixed cases. Each is judged three ways: by the
budgets of the laws, tap by tap; by the ledger, against the stored run of the good
grower; and by torch.testing.assert_close with its defaults, on the logits in the dtype
of the model. Everything is summed in index order, so that the table is the same on
every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from growproof import clone
from growproof.clone import Taps
from growproof.decoder import Decoder
from growproof.growth import Growth
from growproof.models import plan_model, state_of
from growproof.padding import State, grow_state
from growproof.rounding import Responses
from growproof.scatter import centred, take
from growproof.table import parameters, taps, template_of
from torch import Tensor

from ..errors.comparison import compare
from ..errors.environment import environment
from ..errors.ledger import Ledger, recording
from ..growers.known_bad import NORM, rows, times
from ..laws.checks import close, plain
from ..laws.grown import Violation, forward
from ..laws.models import Case, Regime

PATH = Path(__file__).with_name("sensitivity.md")
CASES = 24
SMALLEST = {"float64": -16, "float32": -10, "bfloat16": -4}  # powers of ten, up to
LARGEST = -1
NAME = "growproof:grow"


# --- the cases ------------------------------------------------------------------------


def case(i: int) -> Case:
    """The i-th case: both families and regimes, GQA, wider with larger heads."""
    llama, groups = i % 2 == 0, 1 + i // 4 % 2
    heads, lanes = 2 * groups, (2, 4, 6)[i % 3]
    config: dict[str, Any] = {
        "vocab_size": 11, "hidden_size": heads * lanes, "intermediate_size": 6 + i % 5,
        "num_hidden_layers": 2, "num_attention_heads": heads,
        "num_key_value_heads": groups, "max_position_embeddings": 64,
        "hidden_act": ("silu", "gelu")[i // 2 % 2],
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    lanes_new = lanes + 2 * (1 + i % 3)
    target = {"intermediate_size": 12}
    if llama:
        config |= {
            "head_dim": lanes,
            "rms_norm_eps": 1e-5,
            "attention_bias": i % 4 == 0,
        }
        target |= {"head_dim": lanes_new, "hidden_size": heads * (lanes + 1 + i % 2)}
    else:
        rope["partial_rotary_factor"] = 2 / lanes
        config |= {"layer_norm_eps": 1e-5, "use_qkv_bias": i % 4 == 1}
        target |= {"hidden_size": heads * lanes_new}
    config["rope_parameters"] = rope
    family = ("llama", "stablelm")[i % 2]
    regime: Regime = "small" if i // 2 % 2 else "loud"
    return Case(family, config, target, 1000 + i, regime, 1, 6)


class Known(NamedTuple):
    """What a case says in a dtype before it grows: nothing of it depends on a fault."""

    case: Case
    growth: Growth
    stored: State  # its parameters, in the dtype
    taps: Taps
    response: Responses
    logits: Tensor  # in the dtype


@functools.lru_cache
def known(dtype: str) -> list[Known]:
    """All cases in a dtype."""
    found = []
    for one in map(case, range(CASES)):
        kind = getattr(torch, dtype)
        stored = state_of(one.model(kind))
        state = {name: w.double() for name, w in stored.items()}

        def run(weights: State, one: Case = one) -> Taps:
            return forward(one.decoder, weights, one.ids)

        truth, growth = run(state), plan_model(one.hf_config, one.target)
        response, low = Responses(run, state, truth, kind), dtype != "float64"
        own = clone.forward(one.decoder, stored, one.ids) if low else truth
        found.append(Known(one, growth, stored, truth, response, own["logits"]))
    return found


# --- the faults -----------------------------------------------------------------------


@dataclass(frozen=True)
class Plant:
    """One fault: a grower for each size, or a decoder that computes otherwise.

    sized: whether it comes in sizes. pattern: the parameters whose scale is off by the
    size. arithmetic(): a context in which the grown model is run.
    """

    name: str
    dtypes: tuple[str, ...]
    sized: bool = True
    pattern: str = "none"
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext

    def grow(self, old: Known, size: float) -> State:
        """growproof's grower with this fault in its table."""
        table = parameters(old.growth.old, old.growth)
        table = rows(self.pattern, scale=times(1 + size))(table, old.growth)
        return grow_state(old.stored, old.growth, table)


def norm_in(low: torch.dtype) -> Callable[..., Tensor]:
    """`clone.normalise`, its mean and its variance computed in `low`."""

    def normalise(
        x: Tensor, weight: Tensor, bias: Tensor | None, d: Decoder, size: int
    ) -> Tensor:
        if d.norm == "layer":
            lanes = torch.arange(x.shape[-1]) < size
            x = x - (x.to(low).sum(-1, keepdim=True) / size).to(x.dtype) * lanes
        squares = x.to(low) ** 2
        variance = (squares.sum(-1, keepdim=True) / size).to(x.dtype)
        y = weight * (x / torch.sqrt(variance + d.eps))
        return y if bias is None else y + bias

    return normalise


softmax = clone.softmax


def softmax_in_float32(scores: Tensor) -> Tensor:
    """`clone.softmax` as transformers has it."""
    return softmax(scores.float()).to(scores.dtype)


ALL = ("float64", "float32", "bfloat16")
PLANTS = (
    Plant("scale of q off by", ALL, pattern="q"),
    Plant("scale of the norm weights off by", ALL, pattern=NORM),
    Plant(
        "norm statistics in float32", ("float64",), sized=False,
        arithmetic=lambda: patch.object(clone, "normalise", norm_in(torch.float32)),
    ),
    Plant(
        "norm statistics in bfloat16", ("float32",), sized=False,
        arithmetic=lambda: patch.object(clone, "normalise", norm_in(torch.bfloat16)),
    ),
    Plant(
        "softmax in float32", ("float64",), sized=False,
        arithmetic=lambda: patch.object(clone, "softmax", softmax_in_float32),
    ),
)  # fmt: skip


# --- the three judges -----------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """One run over all cases: what each way of comparing has to say."""

    broken: int  # comparisons over their budget
    run: Ledger
    unclose: frozenset[int]  # cases that assert_close rejects


def judge(plant: Plant, dtype: str, size: float, *, by_tap: bool = True) -> Judged:
    """All cases, grown with the fault in them. by_tap: not the logits alone."""
    broken, unclose = 0, set()
    run = Ledger()
    with recording(run):
        for i, old in enumerate(known(dtype)):
            stored = plant.grow(old, size)
            d, ids = old.growth.new, old.case.ids
            with plant.arithmetic():
                new = forward(d, {n: w.double() for n, w in stored.items()}, ids)
                low = dtype != "float64"
                logits = (clone.forward(d, stored, ids) if low else new)["logits"]
            broken += sum(over_budget(old, new, dtype)) if by_tap else 0
            try:
                torch.testing.assert_close(logits, old.logits)
            except AssertionError:
                unclose.add(i)
    run.environment = here()
    return Judged(broken, run, frozenset(unclose))


def over_budget(old: Known, new: Taps, dtype: str) -> Iterator[bool]:
    """For each tap, whether it is over its budget; every one is recorded."""
    table = taps(old.growth)
    for tap, x in old.taps.items():
        row = table[template_of(tap)]
        low = tap == "logits" and dtype != "float64"
        try:
            close(
                take(new[tap], plain(row), old.growth),
                centred(x, row, old.growth) * row.scale,
                law="sensitivity",
                tap=tap,
                case=old.case,
                response=old.response[tap] * row.scale,
                more=lambda tap=tap, row=row: old.response.most[tap] * row.scale,
                budget="low" if low else "decoder",
                dtype=getattr(torch, dtype),
            )
        except Violation:
            yield True
        else:
            yield False


@functools.lru_cache
def here() -> dict[str, Any]:
    """What this process runs in, asked for once."""
    return environment(grower=NAME)


@functools.lru_cache
def good(dtype: str) -> Judged:
    """The run of the good grower, which is what the ledger has stored."""
    return judge(Plant("nothing", ALL), dtype, 0.0)


JUDGES: dict[str, Callable[[Judged, Judged], bool]] = {
    "budget": lambda base, now: now.broken > 0,
    "ledger": lambda base, now: any(c.failed for c in compare(base.run, now.run)),
    "assert_close": lambda base, now: bool(now.unclose - base.unclose),
}


# --- the table ------------------------------------------------------------------------


class Line(NamedTuple):
    """One fault in one dtype, and the smallest size that each judge catches."""

    fault: str
    dtype: str
    smallest: dict[str, str]  # judge → "1e-7", "caught" or "not caught"


def line(plant: Plant, dtype: str) -> Line:
    """Sizes from the smallest up, until each judge has caught one."""
    powers = range(SMALLEST[dtype], LARGEST + 1) if plant.sized else (0,)
    smallest: dict[str, str] = {}
    for power in powers:
        by_tap = not {"budget", "ledger"} <= smallest.keys()
        now = judge(plant, dtype, 10.0**power, by_tap=by_tap)
        for name, caught in JUDGES.items():
            if name not in smallest and caught(good(dtype), now):
                smallest[name] = f"1e{power}" if plant.sized else "caught"
        if len(smallest) == len(JUDGES):  # what is caught stays caught as it grows
            break
    found = {name: smallest.get(name, "not caught") for name in JUDGES}
    if len(good(dtype).unclose) == CASES:
        found["assert_close"] = "rejects the good one"
    return Line(plant.name, dtype, found)


def table() -> list[Line]:
    """All of it."""
    return [line(plant, dtype) for plant in PLANTS for dtype in plant.dtypes]


TEXT = """\
# Sensitivity: the smallest regression that each comparison catches

`python -m properties.power.sensitivity` writes this file, and a test recomputes it: kernels
of another machine round otherwise, so that a size may be its neighbour there. The faults are planted in {cases} fixed cases (Llama and StableLm, loud and small weights;
hidden size, head_dim and MLP grow), in sizes of powers of ten, from 1e-16 in float64,
1e-10 in float32 and 1e-4 in bfloat16 (below, hardly a stored weight changes).

- **budget**: some tap of some case is over its budget in `checks.BUDGETS`.
- **ledger**: `--errors-compare` calls it worse than the stored run of the good grower,
  by its default factor of 2.
- **assert_close**: `torch.testing.assert_close` with its default tolerances rejects the
  logits, in the dtype of the model, of a case that it accepts from the good grower.

{table}

The good grower itself is over {broken} budgets, and `assert_close` rejects it in
{alarms}.
A float32 model's weights are rounded once more as they grow, so that a fault far below
6e-8 moves few of them, each by a whole last place: that is what the ledger sees first.
"""


def markdown(found: list[Line]) -> str:
    """The table with its legend."""
    lines = [
        f"| planted fault | model | {' | '.join(JUDGES)} |",
        f"|---|---|{'---|' * len(JUDGES)}",
    ]
    lines += [
        f"| {r.fault} | {r.dtype} | {' | '.join(r.smallest.values())} |" for r in found
    ]
    broken = sum(good(dtype).broken for dtype in ALL)
    alarms = [f"{len(good(d).unclose)} of {CASES} cases in {d}" for d in ALL]
    text = f"{alarms[0]}, {alarms[1]} and {alarms[2]}"
    return TEXT.format(cases=CASES, table="\n".join(lines), broken=broken, alarms=text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    PATH.write_text(markdown(table()))
    print(PATH.read_text())
