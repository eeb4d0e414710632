"""What docs/break.md shows: where each fault breaks a grower, and which laws find it."""

from __future__ import annotations

import functools
import json
from typing import Any

import growproof
import torch
from growproof.models import state_of
from growproof.table import parameters, template_of

from properties.gate.explain import describe
from properties.growers.known_bad import BY_NAME, Fault
from properties.laws.examples import Example
from properties.laws.registry import Law, law_of, laws
from properties.power import by_family, combined
from properties.power import claims as claimed
from properties.power.corpus import faulty
from properties.power.detection import RESULTS

from .mathematics import growth_of, spelled, table

NORMS = {"attn_norm", "mlp_norm", "attn_out_norm", "mlp_out_norm", "final_norm"}
# line of the table → what of a grown model differs from a right one; the first that fits
LINES: dict[str, set[str]] = {
    "embed": {"embed"}, "norms": NORMS, "q": {"q"}, "k": {"k"}, "v": {"v"}, "o": {"o"},
    "q, k, v and o": {"q", "k", "v", "o"}, "gate and up": {"gate", "up"},
    "down": {"down"}, "gate, up and down": {"gate", "up", "down"}, "head": {"head"},
}  # fmt: skip
CONFIG = {
    "rms_norm_eps": "ε", "layer_norm_eps": "ε", "rope_parameters": "rotary embedding",
}  # fmt: skip
ROOMS = {
    "test_handed_back": "what comes back", "test_hygiene": "what comes back",
    "test_world": "the world around",
    "test_doors": "other ways in", "test_decoder": "other ways in",
}  # fmt: skip
OF_LINE = {
    "norms": "attn_norm", "gate and up": "gate",
}  # a parameter that stands for its line  # fmt: skip


def changed(fault: Fault, example: Example) -> tuple[set[str], set[str]]:
    """Parts and config entries that differ from a right grower's, on this example."""
    case = example["case"]
    options = dict(fault.chosen(case.hf_config, case.target))
    options.pop("norm", None)
    if fault.law.__name__ == "test_new_parameters_train":
        options["fill"] = "trainable"
    good = growproof.grow(case.model(), case.target, **options)
    bad = fault(case.model(), case.target)
    a, b = state_of(good), state_of(bad)
    parts = {
        template_of(name).split(".")[-2].removeprefix("expert_")
        for name in a.keys() | b.keys()
        if name not in a or name not in b or not same(a[name], b[name])
    }
    one, two = good.config.to_dict(), bad.config.to_dict()
    return parts, {k for k in one.keys() | two.keys() if one.get(k) != two.get(k)}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in shape and in every entry."""
    return a.shape == b.shape and torch.equal(a.double(), b.double())


def line_of(fault: Fault, parts: set[str], entries: set[str]) -> str:
    """The line of the table that a fault breaks; else what it breaks."""
    if parts:
        fits = (name for name, own in LINES.items() if parts <= own)
        return next(fits, "whole layers")
    if entries:
        return next((CONFIG[k] for k in sorted(entries) if k in CONFIG), "config")
    return ROOMS.get(fault.law.__module__.rpartition(".")[2], "what comes back")


def about(name: str) -> str:
    """What the table says of a line, in a few words."""
    growth = growth_of()
    rows = parameters(growth.old, growth)
    part = OF_LINE.get(name, name)
    found = [row for n, row in rows.items() if n.endswith(f"{part}.weight") and (
        n.split(".")[-2] == part)]  # fmt: skip
    if not found:
        return ABOUT[name]
    row = found[0]
    scale = spelled(row.scale)
    times = "" if scale == "1" else f", times {scale}"
    if row.norm:
        return f"along {row.writes}{times}"
    return f"{row.reads} → {row.writes}{times}"


ABOUT = {
    "q, k, v and o": "several lines at once",
    "gate, up and down": "several lines at once",
    "whole layers": "every line of a layer",
    "ε": "times D/D'",
    "rotary embedding": "angles and their number",
    "config": "its other entries",
    "what comes back": "dtype, mode, memory, tying, sizes",
    "the world around": "settings, seeds, the source; two calls",
    "other ways in": "masks, labels, caches, saved and loaded",
}


@functools.cache
def faults() -> dict[str, Any]:
    """All that the page knows: lines, faults, laws, from the committed results."""
    found: dict[str, dict[str, bool]] = {}
    for cell in json.loads(RESULTS.read_text()):
        found.setdefault(cell["fault"], {})[cell["dtype"]] = cell["found"]
    hiders: dict[str, list[str]] = {}
    for one, other in combined.load():
        hiders.setdefault(one, []).append(other)
    entries: list[dict[str, Any]] = []
    for cell, example in faulty():
        fault, law = BY_NAME[cell["fault"]], law_of(BY_NAME[cell["fault"]].law)
        assert law
        entries.append(
            {
                "name": fault.name, "says": fault.says, "law": law.name,
                "line": line_of(fault, *changed(fault, example)),
                "hidden": [d for d, yes in found[fault.name].items() if not yes],
                "beside": hiders.get(fault.name, []), "message": cell["message"],
                "case": describe(example["case"]),
            }
        )  # fmt: skip
    order = [*LINES, "whole layers", "ε", "rotary embedding", "config",
             *dict.fromkeys(ROOMS.values())]  # fmt: skip
    used = {entry["line"] for entry in entries}
    return {
        "lines": [{"name": n, "about": about(n)} for n in order if n in used],
        "faults": entries,
        "laws": {
            law.name: told(law) for law in laws().values()
            if law.name in {entry["law"] for entry in entries}
        },
    }  # fmt: skip


def told(law: Law) -> dict[str, Any]:
    """What the page says of a law."""
    claim = law.claim
    return {
        "says": law.sentence, "promise": law.promise.name, "claim": claim.sentence,
        "theorems": claimed.theorems(claim), "file": law.test.__module__.replace(".", "/"),
    }  # fmt: skip


def script() -> str:
    """faults.js."""
    data = faults()
    parts = [
        f'"{key}": [\n{entries(data[key])}\n]' for key in ("lines", "faults")
    ]  # fmt: skip
    named = ",\n".join(f"{json.dumps(k)}: {dumped(v)}" for k, v in data["laws"].items())
    parts.append(f'"laws": {{\n{named}\n}}')
    return "const GROWPROOF = {\n" + ",\n".join(parts) + "\n};\n"


def entries(rows: list[Any]) -> str:
    """One a line."""
    return ",\n".join(map(dumped, rows))


def dumped(x: Any) -> str:
    """JSON, in which letters are themselves."""
    return json.dumps(x, ensure_ascii=False)


def families_table() -> str:
    """Kind of fault × family: how many are found, of how many where not all are."""
    cells = by_family.load()
    kinds = {entry["name"]: entry["line"] for entry in faults()["faults"]}
    names = list(dict.fromkeys(c.family for c in cells))
    rows: list[tuple[str, ...]] = []
    for kind in [entry["name"] for entry in faults()["lines"]]:
        row = [kind]
        for family in names:
            here = [c.outcome for c in cells
                    if c.family == family and kinds[c.fault] == kind]  # fmt: skip
            found, all_ = here.count("found"), len(here) - here.count("absent")
            row.append(f"{found} of {all_}" if found < all_ else str(all_ or "–"))
        rows.append(tuple(row))
    return table(" | ".join(["kind", *(f"`{name}`" for name in names)]), rows)


def missed_list() -> str:
    """Every fault that no law finds in a family where it is one."""
    missed: dict[str, list[str]] = {}
    for c in by_family.load():
        if c.outcome == "missed":
            missed.setdefault(c.fault, []).append(c.family)
    lines = [
        f"- `{name}` ({BY_NAME[name].says}): {', '.join(families)}"
        for name, families in missed.items()
    ]
    return "\n".join(lines) or "None is missed."
