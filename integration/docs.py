"""What the docs say of the code, made from it: tables, and the page on which one breaks.

    python -m integration.docs       # writes them anew, in docs/

A block between `<!-- name -->` and `<!-- /name -->` of a page is made here, and so is
docs/_static/faults.js. A test sees that they are fresh.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import growproof
import torch
from growproof.decoder import Decoder, Kind, Rotary
from growproof.growth import Growth, Policies, plan
from growproof.models import state_of
from growproof.table import Row, factors, parameters, taps, template_of

from properties.gate.explain import describe
from properties.growers.known_bad import BY_NAME, Fault
from properties.laws.checks import BUDGETS
from properties.laws.examples import Example
from properties.laws.registry import Law, law_of, laws
from properties.power import by_family, combined
from properties.power import claims as claimed
from properties.power.corpus import faulty, runs
from properties.power.detection import RESULTS
from properties.proofs import graph
from properties.proofs.claims import claims

from . import ladder, scaling

DOCS = Path(__file__).parents[1] / "docs"
FAULTS = DOCS / "_static" / "faults.js"

# --- the mathematics ------------------------------------------------------------------

# the ratios are powers of different primes, so that a scalar tells what it is made of
RATIOS = {"D'/D": 3.0, "K'/K": 5.0, "G'/G": 7.0, "H'/H": 77.0}
BIASES = frozenset({"q", "k", "v", "o", "gate", "up", "down"})
LETTERS = {
    "vocab": "V", "position": "P", "residual": "D", "query": "G · R · K",
    "key": "G · K", "lane": "K", "head": "G · R", "mlp": "F", "expert": "E",
    "expert_mlp": "F of an expert",
}  # fmt: skip


def growth_of(**changes: Any) -> Growth:
    """A growth along all axes at once, of a decoder that has all parts there are."""
    rotary = Rotary(theta=1e4, dims=4)
    sizes: dict[str, Any] = {
        "vocab": 13, "hidden": 10, "heads": 2, "groups": 2, "head_dim": 4, "mlp": 6,
        "layers": 2, "eps": 1e-5, "norm_size": 10, "positions": 8, "experts": 3,
        "active": 1, "expert_mlp": 5, "biases": BIASES,
        "kinds": (Kind(rotary=rotary), Kind(rotary=rotary, sparse=True)),
    }  # fmt: skip
    return plan(
        Decoder(**sizes | changes), Policies(rotary="parted"), hidden=30, heads=154,
        groups=14, head_dim=20, mlp=12, layers=3, vocab=26, expert_mlp=10,
    )  # fmt: skip


def spelled(scale: float) -> str:
    """A scalar as what it is: 0.577… → √(D/D'). Raises ValueError for an unknown one."""
    names, powers = tuple(RATIOS), (0.0, 0.5, -0.5, 1.0, -1.0)
    choices = sorted(
        itertools.product(powers, repeat=len(names)), key=lambda p: p.count(0)
    )
    for chosen in reversed(choices):
        value = math.prod(r**p for r, p in zip(RATIOS.values(), chosen, strict=True))
        if math.isclose(value, scale, rel_tol=1e-12):
            parts = [
                (name if p > 0 else "/".join(reversed(name.split("/"))), abs(p) == 0.5)
                for name, p in zip(names, chosen, strict=True)
                if p
            ]
            return " · ".join(f"√({x})" if root else x for x, root in parts) or "1"
    raise ValueError(f"no product of roots of {', '.join(names)} is {scale}")


def table(header: str, rows: list[tuple[str, ...]]) -> str:
    """A Markdown table. header: its columns, between bars."""
    names = header.split(" | ")
    lines = [f"| {header} |", "|" + "---|" * len(names)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def short(template: str) -> str:
    """layers.{layer}.q.weight → q."""
    return template.removeprefix("layers.{layer}.").removesuffix(".weight")


def axes_table() -> str:
    """Every axis, and the factors that growing pads."""
    rows = [(f"`{axis}`", LETTERS[axis]) for axis in factors(growth_of().old)]
    return table("axis | factors", rows)


def line(name: str, table_: Mapping[str, Row]) -> tuple[str, ...]:
    """A parameter's weight and bias on one line of the mathematics page."""
    row = table_[name]
    bias = table_.get(name.removesuffix("weight") + "bias")
    axes = ", ".join(row.axes)
    times = "–" if bias is None else spelled(bias.scale)
    reads = f"{row.reads}" if not row.norm else f"{row.reads} (norm)"
    return (
        f"`{short(name)}`",
        axes,
        reads,
        row.writes,
        spelled(row.scale),
        times,
        ("yes" if row.centre else ""),
    )


def parameters_table() -> str:
    """Every parameter of a decoder with LayerNorms and experts."""
    growth = growth_of(norm="layer")
    rows = parameters(growth.old, growth)
    return table(
        "parameter | axes | reads | writes | weight × | bias × | centred",
        [line(name, rows) for name in rows if name.endswith(".weight")],
    )


def norms_table() -> str:
    """What differs where q and k are normed themselves, and where the embedding is × √D."""
    cases: dict[str, dict[str, Any]] = {
        "q and k normed within a head": {"qk_norm": "lane"},
        "q and k normed over all heads": {"qk_norm": "whole"},
        "embedding × √D, tied": {"tied": True, "root_embedding": True},
    }
    plain = growth_of()
    usual = parameters(plain.old, plain)
    rows: list[tuple[str, ...]] = []
    for said, changes in cases.items():
        growth = growth_of(**changes)
        for name, row in parameters(growth.old, growth).items():
            other = usual.get(name)
            if name.endswith("weight") and (other is None or other.scale != row.scale):
                rows.append(
                    (said, f"`{short(name)}`", ", ".join(row.axes), spelled(row.scale))
                )
    return table("where | parameter | axes | ×", rows)


def taps_table() -> str:
    """Every intermediate value of the same decoder."""
    found = {
        f"`{short(name)}`": (", ".join(row.axes[1:]), spelled(row.scale))
        for name, row in taps(growth_of(norm="layer")).items()
    }
    return table(
        "value | axes behind the batch | ×", [(k, *v) for k, v in found.items()]
    )


# --- tolerances -----------------------------------------------------------------------


def budgets_table() -> str:
    """Each budget, the largest error of a right grower in the recorded runs, and laws."""
    rows: list[tuple[str, ...]] = []
    for kind, budget in BUDGETS.items():
        own = [law.name for law in laws().values() if law.budget == kind]
        seen = [run["worst_ratio"].get(name, 0.0) for run in runs() for name in own]
        names = ", ".join(f"`{name}`" for name in own)
        rows.append((f"`{kind}`", f"{budget:g}", f"{max(seen):.2g}", names))
    return table("budget | units | worst seen | laws", rows)


def sensitivity_table() -> str:
    """The table of sensitivity.md."""
    text = (RESULTS.parent / "sensitivity.md").read_text()
    return "\n".join(row for row in text.splitlines() if row.startswith("|"))


# --- theorems -------------------------------------------------------------------------


def theorems_table() -> str:
    """Every main theorem, by subject, in the sentence that stands above its proof."""
    axioms = graph.with_axioms()
    parts: list[str] = []
    for subject, title in graph.SUBJECTS.items():
        parts.append(f"### {subject}. {title[0].upper()}{title[1:]}\n")
        parts += [
            f"- `{c.name}`{' (real numbers)' if c.name in axioms else ''}: {c.sentence}"
            for c in claims()
            if c.number == subject
        ]
        parts.append("")
    return "\n".join(parts).strip()


# --- faults in every family -----------------------------------------------------------


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


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "mathematics.md": {
        "axes": axes_table, "parameters": parameters_table, "norms": norms_table,
        "taps": taps_table,
    },
    "tolerances.md": {"budgets": budgets_table, "sensitivity": sensitivity_table},
    "theorems.md": {"theorems": theorems_table},
    "claims.md": {"claims": claimed.markdown},
    "ladder.md": {"ladder-gpu": ladder.at_the_articles_sizes, "ladder": ladder.of_the_shipped},
    "speed.md": {"scaling": scaling.ratios, "estimate": scaling.estimates},
    "break.md": {"in every family": families_table, "missed": missed_list},
}  # fmt: skip

# --- the page on which one breaks a grower --------------------------------------------

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
    "test_hygiene": "what comes back", "test_world": "the world around",
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


def main() -> None:
    """Write all of it."""
    for page, blocks in BLOCKS.items():
        path = DOCS / page
        path.write_text(claimed.filled(path.read_text(), blocks, page))
    FAULTS.parent.mkdir(exist_ok=True)
    FAULTS.write_text(script())


if __name__ == "__main__":
    main()
