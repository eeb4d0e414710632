"""The steps of the article's ladder: what each leaves out, and how near it must come.

Every step is the right table (growproof.table) with some of its lines undone, so that
a step is named by what it leaves out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from growproof.growth import NormPolicy, Policies
from growproof.models import config_of, model_of, plan_model, state_of
from growproof.padding import grow_state
from growproof.table import Row, parameters

from .kernels import Kernel

ARTICLE_ORIGINAL = 0.7734375  # its loss before growing, bfloat16


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of the ladder: a growth, what is left out of it, what the article says.

    solution: which of the article's three ways of finding room (its section titles).
    omits: lines of the table and of the config that are undone, of OMISSIONS.
    policy: masked or centred norms, or scaled ones. loss: the article's, in bfloat16.
    relative32: its relative change in float32.
    """

    name: str
    solution: int
    policy: NormPolicy = "scaled"
    omits: frozenset[str] = frozenset()
    loss: float | None = None
    relative32: float | None = None

    @property
    def kind(self) -> str:
        """broken, recipe (the article's, eps left out), scaled, or exact."""
        if self.omits - {"eps"}:
            return "broken"
        if self.policy != "scaled":
            return "recipe" if self.omits else "exact"
        return "recipe" if self.omits else "scaled"

    def published(self, dtype: str) -> float | None:
        """The article's relative change of the loss, where it states one."""
        if dtype == "bfloat16" and self.loss is not None:
            return self.loss / ARTICLE_ORIGINAL - 1
        return self.relative32 if dtype == "float32" else None


def step(name: str, solution: int, *omits: str, **more: Any) -> Step:
    """A Step, with what it leaves out as arguments."""
    return Step(name=name, solution=solution, omits=frozenset(omits), **more)


# From a naive copy to an exact growth, in the article's order; each step puts one thing
# right that the step before leaves out.
STEPS = (
    step("naive padding", 2, "heads", "rotary", "norm", "query", "eps", loss=8.8125),
    step("+ heads in 3D", 2, "rotary", "norm", "query", "eps"),
    step("+ rotary", 2, "norm", "query", "eps", loss=0.91015625),
    step("+ norm weights", 2, "query", "eps", loss=0.8125),
    step("+ q scale: the recipe", 2, "eps", loss=0.77734375, relative32=0.004),
    step("+ eps: scaled", 2),
    step("masked", 2, policy="masked", relative32=0.0),
    step("centred", 2, policy="centred"),
    step("more heads, padded", 1, "norm", "eps", loss=0.96875),
    step("+ norm weights: the recipe", 1, "eps", loss=0.77734375),
    step("+ eps: scaled", 1),
    step("masked", 1, policy="masked"),
    step("centred", 1, policy="centred"),
    step("both: the recipe", 3, "eps", loss=0.77734375),
    step("+ eps: scaled", 3),
    step("masked", 3, policy="masked"),
    step("centred", 3, policy="centred"),
)
# Each omission alone, against the exact growth: what would the last step cost?
ALONE = (
    step("centred, but no 3D heads", 2, "heads", policy="centred"),
    step("centred, but rotary", 2, "rotary", policy="centred"),
    step("centred, but norm weights", 2, "norm", policy="centred"),
    step("centred, but q scale", 2, "query", policy="centred"),
    step("centred, but eps", 2, "eps", policy="centred"),
)
OMISSIONS = {
    "heads": "q, k, v and o padded as flat matrices, which scrambles the heads",
    "rotary": "partial_rotary_factor kept, so that more lanes are turned",
    "norm": "norm weights kept: √(D'/D) too loud",
    "query": "q_proj kept: scores √(K/K') too small",
    "eps": "eps kept, where the mean square shrinks by D/D'",
}


@dataclass(frozen=True)
class Tolerance:
    """|relative change of the loss| ≤ most, and why that much."""

    most: float
    why: str


# (kind, dtype) → the one place with every tolerance of the ladder.
TOLERANCES = {
    ("recipe", "bfloat16"): Tolerance(
        1e-2, "the article: in general expect a loss increase in the order of 1 %"
    ),
    ("recipe", "float32"): Tolerance(
        5e-3, "the article measured 0.4 % in float32: LayerNorm's mean, not rounding"
    ),
    ("recipe", "float64"): Tolerance(5e-3, "as in float32: it is not rounding"),
    ("scaled", "bfloat16"): Tolerance(1e-2, "the recipe's: eps is the smaller part"),
    ("scaled", "float32"): Tolerance(5e-3, "the recipe's: the mean is still lost"),
    ("scaled", "float64"): Tolerance(5e-3, "the recipe's: the mean is still lost"),
    ("exact", "bfloat16"): Tolerance(
        1e-2, "u = 2⁻⁹ (0.2 %) in each logit, mostly averaged out over the text"
    ),
    ("exact", "float32"): Tolerance(1e-6, "16 u: the mean of a thousand rounded terms"),
    ("exact", "float64"): Tolerance(
        1e-12, "rounding: u = 1.1e-16 times the length of the sums"
    ),
    # transformers' eager attention takes its softmax in float32 whatever the dtype:
    # u = 6e-8 there, in each of the probabilities, averaged over the text.
    ("exact", "float64", "eager"): Tolerance(1e-7, "softmax in float32: its u is 6e-8"),
}
# The ladder is ordered. NEARER: each step of the recipe leaves at most 1 / 1.1 of the
# distance before it; the smallest gap seen is 1.13, where the mean that LayerNorm loses
# hides the last omissions. WORSE: padding alone against the whole recipe, in the loss.
NEARER, WORSE = 1.1, 2.0
# One omission alone, against the exact growth, whose distance is rounding. eps is the
# least of them, 100 and more times float32's rounding, and below bfloat16's.
FAR = {"bfloat16": 4.0, "float32": 100.0, "float64": 100.0}


def tolerance(row: Step, dtype: str, kernel: Kernel) -> Tolerance | None:
    """The tolerance of a cell; None for a step that is meant to be wrong.

    float32 weights that are multiplied in bfloat16 have bfloat16's.
    """
    unit = precision(dtype, kernel)
    special = TOLERANCES.get((row.kind, unit, kernel.name))
    return special or TOLERANCES.get((row.kind, unit))


def precision(dtype: str, kernel: Kernel) -> str:
    """The dtype in which weights of `dtype` are multiplied on a kernel."""
    return "bfloat16" if dtype in kernel.autocast else dtype


def label(row: Step) -> str:
    """The step's name in the ledger: unique, with its solution."""
    return f"{row.solution}: {row.name}"


def targets(config: Any) -> dict[int, dict[str, int]]:
    """Solution → config names and sizes: the article's, for a model of any size.

    2048 = 32·64 becomes 40·64, 32·80 or 36·71; 128 = 4·32 becomes 5·32, 4·40 or 5·35.
    """
    heads, hidden = config.num_attention_heads, config.hidden_size
    head_dim = hidden // heads
    groups = config.num_key_value_heads
    if groups != heads:
        raise ValueError(
            "the ladder's naive row needs num_key_value_heads = num_attention_heads, got "
            f"{groups} and {heads}: the article has no grouped heads either"
        )
    sizes = {
        1: (math.ceil(heads * 40 / 32), head_dim),
        2: (heads, math.ceil(head_dim * 80 / 64)),
        3: (math.ceil(heads * 36 / 32), head_dim * 71 // 64),
    }
    return {
        solution: {
            "hidden_size": h * k,
            "num_attention_heads": h,
            "num_key_value_heads": h,
        }
        for solution, (h, k) in sizes.items()
    }


def head_dim(config: Any, row: Step) -> int:
    """That of the grown model."""
    target = targets(config)[row.solution]
    return target["hidden_size"] // target["num_attention_heads"]


def grown(model: Any, row: Step) -> Any:
    """`model` grown by the right table with the lines of `row.omits` undone."""
    target = targets(model.config)[row.solution]
    growth = plan_model(model.config, target, Policies(norm=row.policy))
    config = config_of(model.config, growth)
    if "eps" in row.omits:
        config.layer_norm_eps = growth.old.eps
    if "rotary" in row.omits:
        factor = model.config.rope_parameters["partial_rotary_factor"]
        config.rope_parameters["partial_rotary_factor"] = factor
    table = undone(parameters(growth.old, growth), row.omits)
    return model_of(config, grow_state(state_of(model), growth, table), model)


def undone(table: dict[str, Row], omits: Iterable[str]) -> dict[str, Row]:
    """The table without the lines that `omits` names."""
    edited = dict(table)
    for name, old in table.items():
        row = old
        if "heads" in omits:  # an axis of another name is padded at its end
            flat = {"query": "residual", "key": "residual"}
            row = dataclasses.replace(row, axes=tuple(flat.get(a, a) for a in row.axes))
        if "norm" in omits and row.norm:
            row = dataclasses.replace(row, scale=1.0)
        if "query" in omits and ".q." in name:
            row = dataclasses.replace(row, scale=1.0)
        edited[name] = row
    return edited
