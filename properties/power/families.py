"""Family × axis: what growing along one axis keeps, from a run of each.

    python -m properties.power.families     # measures all, and stores families.json

`zeros`: every tap is the padded old one, and so are the logits. `mean`: the logits are
the old ones, new lanes of the stream hold a mean. Both in float64, on the eager clone
(which the laws tie to transformers' own code), at random weights: sampled. What is grown
along with an axis, because the family's config has no other way, is named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from growproof.clone import forward
from growproof.decoder import GrowthError
from growproof.families import FAMILIES
from growproof.growth import Growth
from growproof.models import decoder_of, grow, plan_model, state_of
from growproof.rounding import Responses
from growproof.scatter import place
from growproof.table import taps, template_of
from transformers import AutoConfig

from ..laws.checks import BUDGETS, longest_sum
from ..laws.models import make
from ..laws.strategies import LEAST, sized_config

RESULTS = Path(__file__).with_name("families.json")
AXES = ("hidden", "heads", "groups", "head_dim", "mlp", "layers", "vocab")
SIZES = {
    "vocab": 11, "hidden": 16, "heads": 4, "groups": 2, "head_dim": 4, "mlp": 6,
    "expert_mlp": 6, "layers": 2, "positions": 32,
}  # fmt: skip
GROWN = {
    "hidden": 20, "heads": 6, "groups": 4, "head_dim": 8, "mlp": 9, "layers": 3,
    "vocab": 13,
}  # fmt: skip
IDS = torch.tensor([[1, 5, 2, 9, 9, 0, 3]])


def config_of(family: str) -> Any:
    """A small config of a family, its switches at their defaults."""
    fields = sized_config(family, SIZES) | LEAST.get(family, {})
    if FAMILIES[family].partial:
        fields["rope_parameters"] = {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
        }  # fmt: skip
    return AutoConfig.for_model(family, **fields)


def target(family: str, axis: str) -> dict[str, int]:
    """One axis, and what has to grow along: sizes by the fields of a Decoder."""
    table, sizes = FAMILIES[family], {axis: GROWN[axis]}
    if table.tied_head_dim and axis in ("hidden", "heads", "head_dim"):
        heads = sizes.get("heads", SIZES["heads"])
        lanes = 8 if axis != "heads" else SIZES["head_dim"]
        return {"hidden": heads * lanes} | ({"heads": heads} if axis == "heads" else {})
    if table.whole_heads and axis == "heads":
        sizes["hidden"] = 18
    return sizes


def cell(family: str, axis: str) -> str:
    """What the growth along one axis keeps: `zeros`, `mean`, or why there is none."""
    config, table = config_of(family), FAMILIES[family]
    sizes = target(family, axis)
    if not {*sizes} <= {*table.sizes}:
        return "–"
    names = {table.sizes[field]: size for field, size in sizes.items()}
    try:
        growth = plan_model(config, names)
    except GrowthError as error:
        return f"no: {error}"
    kept = judged(config, names, growth)
    return told(kept, family, axis, sizes) if kept != "WRONG" else kept


def judged(config: Any, names: dict[str, int], growth: Growth) -> str:
    """`zeros` or `mean`, or WRONG where a tap or a logit is not what it must be."""
    model, old = make(config, seed=7), growth.old
    state = state_of(model)
    with torch.no_grad():
        grown = grow(model, names)
        before = forward(old, state, IDS)
        after = forward(decoder_of(grown.config), state_of(grown), IDS)
    unit = Responses(lambda s: forward(old, s, IDS), state, before, torch.float64)
    budget = BUDGETS["decoder"] * longest_sum(old) ** 0.5
    after["logits"] = after["logits"][..., : old.vocab]
    averaged = growth.policies.norm == "averaged"
    alike = growth.new.layers == old.layers and growth.copies == 1 and not averaged
    padded, wrong = taps(growth), list[str]()
    for tap, value in before.items() if alike else [("logits", before["logits"])]:
        row = padded[template_of(tap)]
        if row.axes[1] == "head" or tap.endswith("context"):
            continue  # new heads have values; only o_proj silences them
        wanted = value if tap == "logits" else place(value, row, growth)
        if float((after[tap] - wanted).abs().max()) > budget * unit[tap]:
            wrong.append(tap)
    return "WRONG" if wrong else "mean" if averaged else "zeros"


def told(kept: str, family: str, axis: str, sizes: dict[str, int]) -> str:
    """What is kept, and what grew along."""
    more = {*sizes} - {axis}
    if FAMILIES[family].tied_head_dim and axis in ("hidden", "head_dim"):
        more = {"head_dim" if axis == "hidden" else "hidden"}
    return f"{kept}, with {' and '.join(sorted(more))}" if more else kept


def measured(family: str) -> dict[str, str]:
    """Every axis of a family."""
    return {axis: cell(family, axis) for axis in AXES}


def markdown() -> str:
    """The README's table, from what was stored."""
    lines = ["| family | " + " | ".join(AXES) + " |", "|---" * (len(AXES) + 1) + "|"]
    for family, cells in json.loads(RESULTS.read_text("utf-8")).items():
        lines.append(f"| {family} | " + " | ".join(cells[axis] for axis in AXES) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = {family: measured(family) for family in FAMILIES}
    lines = [f' "{n}": {json.dumps(c, ensure_ascii=False)}' for n, c in found.items()]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    print(markdown())
