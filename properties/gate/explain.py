"""What a failure prints: the law, the shrunk case, the first wrong tap, a script."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from growproof.padding import place
from growproof.rounding import Responses

from ..laws.checks import BUDGETS, longest_sum, new_entries, plain
from ..laws.grown import Grown, forward
from ..laws.models import Case
from ..laws.registry import Law
from . import repro_script


def first_wrong_tap(grown: Grown) -> str:
    """The first tap, in order of computation, that is not the padded old one."""
    case = grown.case
    old = forward(case.decoder, grown.old_state, case.ids)
    new = forward(grown.decoder, grown.state, case.ids)
    response = Responses(
        lambda state: forward(case.decoder, state, case.ids),
        grown.old_state,
        old,
        grown.dtype,
    )
    for tap, x in old.items():
        row, y = grown.row(tap), new[grown.renamed(tap)]
        expected = place(x, row, grown.growth)
        here = place(torch.ones_like(x), plain(row), grown.growth)
        if y.shape != expected.shape:
            return f"{tap}: shape {tuple(y.shape)}, expected {tuple(expected.shape)}"
        wrong = (y != 0) & new_entries(x, row, grown.growth, tap)
        if row.axes[1] != "head" and wrong.any():
            at = tuple(int(i) for i in wrong.nonzero()[0])
            return f"{tap}: new lane {at} is {float(y[at]):.3g}, not 0"
        error = ((y - expected) * here).abs()
        unit = longest_sum(case.decoder) ** 0.5 * abs(row.scale)
        wrong = float(error.max()) > BUDGETS["block"] * unit * response[tap]
        if wrong and float(error.max()) > BUDGETS["block"] * unit * response.most[tap]:
            at = torch.unravel_index(error.argmax(), error.shape)
            where = ", ".join(
                f"{axis} {int(i)}" for axis, i in zip(row.axes, at, strict=True)
            )
            return f"{tap}: off by {float(error.max()):.3g} at {where}"
    return "none: every tap is the padded old one"


def explain(law: Law, case: Case | None, grower: Any) -> str:
    """The whole explanation of a law that failed on this case, as text."""
    lines = [f"law: {law.sentence}"]
    if case is None:
        return lines[0]
    lines.append(f"case: {describe(case)}")
    source = case.model()
    try:
        grown = Grown(case, source, grower(source, case.target))
    except Exception as crash:
        kind = type(crash).__name__
        lines.append(
            f"the grower raised, it is broken here rather than wrong: {kind}: {crash}"
        )
        return "\n".join(lines)
    try:
        lines.append(f"first wrong tap: {first_wrong_tap(grown)}")
    except Exception as crash:
        lines.append(f"first wrong tap: none can be named, {crash}")
    from ..growers import known_bad

    lines.append(f"likely cause: {known_bad.likely_cause(grown)}")
    return "\n".join(lines)


def describe(case: Case) -> str:
    """The shrunk shapes and growth, on one line."""
    sizes = ", ".join(
        f"{name} {case.config.get(name, '')}→{size}"
        for name, size in case.target.items()
    )
    return (
        f"{case.family}, hidden {case.decoder.hidden}, heads {case.decoder.heads}, key/value "
        f"heads {case.decoder.groups}, head_dim {case.decoder.head_dim}, layers "
        f"{case.decoder.layers}; {sizes or 'growing nothing'}; {case.regime} weights, seed "
        f"{case.seed}, {case.batch} × {case.tokens} tokens"
    )


def write_script(folder: Path, name: str, case: Case, grower: str, law: str) -> Path:
    """A script that repeats the failure, importing torch, transformers, the grower."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"\W+", "_", name).strip("_") + ".py")
    path.write_text(script(case, grower, law))
    return path


def script(case: Case, grower: str, law: str) -> str:
    """Its text: the case as literals, `fill` and the checks as they are here."""
    suite = __name__.rsplit(".", 2)[0]
    body = inspect.getsource(repro_script).replace("from ..laws", f"from {suite}.laws")
    head, _, rest = body.partition("# CASE\n")
    _, _, rest = rest.partition("# END CASE\n")
    module, _, attribute = grower.partition(":")
    literals = (
        f"LAW = {law!r}\n"
        f"GROWER = {(module, attribute)!r}\n"
        f"FAMILY = {case.family!r}\n"
        f"CONFIG = {case.config!r}\n"
        f"TARGET = {case.target!r}\n"
        f"SEED, REGIME = {case.seed}, {case.regime!r}\n"
        f"BATCH, TOKENS = {case.batch}, {case.tokens}\n"
    )
    return head + literals + rest
