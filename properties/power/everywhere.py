"""Every known-bad grower in every family: found, not there at all, or missed.

    python -m properties.power.everywhere [FAMILY …]     # all: writes everywhere.json

A fault is not there where what it makes is what the right grower makes: a family without
biases has none to lose. Else the law that the fault names must find it in this family,
too, for the reason that it names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from ..growers.known_bad import FAULTS, Fault
from ..laws.domain import CORE, DOMAIN, USUAL, known_families
from .detection import quiet

RESULTS = Path(__file__).with_name("everywhere.json")
EXAMPLES = 30


def stored(model: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a model is on the disk: config and generation config, parameters, buffers."""
    config = {**model.config.to_dict(), **model.generation_config.to_dict()}
    named = (*model.named_parameters(), *model.named_buffers())
    return config, {name: x.detach() for name, x in named}


def alike(a: Any, b: Any) -> bool:
    """Whether two models are stored as the same bits, in the same mode."""
    (config_a, a_tensors), (config_b, b_tensors) = stored(a), stored(b)
    return (
        config_a == config_b
        and a.training == b.training
        and a_tensors.keys() == b_tensors.keys()
        and all(
            x.dtype == b_tensors[n].dtype and torch.equal(x, b_tensors[n])
            for n, x in a_tensors.items()
        )
    )


def outcome(fault: Fault, family: str) -> str:
    """`found`, `absent`, or what the law said instead of what it must say."""
    from ..gate.loading import Grower
    from ..laws.world import kept
    from .trials import Cell, named, right_reason

    right = Fault(
        name="right", says="", law=fault.law, reason="", options=fault.options
    )
    there = False

    def grown(model: Any, target: Any) -> Any:
        nonlocal there
        made = fault(model, target)
        there = there or not alike(made, right(model, target))
        return made

    extras = {f for f in fault.with_features if f not in known_families()}
    DOMAIN.features = {*CORE, *extras, family} - ({*USUAL} - {family})
    message = ""
    try:
        for item in named(fault):
            if DOMAIN.lacks(item.arguments):
                continue
            with kept():
                item.judge(Grower(fault.name, grown))
    except Exception as error:
        crash = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        message = crash + (str(error).splitlines() or [""])[0]
        cell = Cell(fault.name, "", "float64", True, 0, 0, message)
        return "found" if right_reason(fault, cell) else message
    except pytest.skip.Exception:
        return "absent"
    finally:
        DOMAIN.features = set(CORE)
    return "nothing" if there or fault.does or fault.model else "absent"


def column(family: str, faults: list[Fault]) -> dict[str, Any]:
    """How many faults are found in a family, which are absent, and what is missed."""
    said = {f.name: outcome(f, family) for f in faults}
    return {
        "found": sum(word == "found" for word in said.values()),
        "absent": sorted(name for name, word in said.items() if word == "absent"),
        "missed": {n: w for n, w in said.items() if w not in ("found", "absent")},
    }


def main() -> None:
    """Measure these families, or all; with all, store what was found."""
    quiet(max_examples=EXAMPLES)
    names = sys.argv[1:] or [f for f in known_families() if f not in USUAL]
    bar = tqdm(names, unit="family", disable=None)
    found = {family: column(family, list(FAULTS)) for family in bar}
    text = ",\n".join(f'"{f}": {json.dumps(column)}' for f, column in found.items())
    if not sys.argv[1:]:
        RESULTS.write_text(f"{{\n{text}\n}}\n")
    print(text)


if __name__ == "__main__":
    main()
