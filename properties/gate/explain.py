"""A case on one line, and the first tap at which it goes wrong."""

from __future__ import annotations

from typing import Any

import torch
from growproof.rounding import Responses
from growproof.scatter import place

from ..laws.checks import BUDGETS, longest_sum, new_entries, plain
from ..laws.domain import config_names, table
from ..laws.grown import Grown, forward
from ..laws.models import Case


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
        unit = longest_sum(case.decoder) ** 0.5 * abs(row.scale)
        if case.decoder.norm == "layer" and row.axes[-1] == "residual":
            mean = (y * here).sum(-1, keepdim=True) / x.shape[-1]  # which no norm sees
            wrong &= (y - mean).abs() > BUDGETS["block"] * unit * response.most[tap]
        if row.axes[1] != "head" and wrong.any():
            at = tuple(int(i) for i in wrong.nonzero()[0])
            return f"{tap}: new lane {at} is {float(y[at]):.3g}, not 0"
        error = ((y - expected) * here).abs()
        wrong = float(error.max()) > BUDGETS["block"] * unit * response[tap]
        if wrong and float(error.max()) > BUDGETS["block"] * unit * response.most[tap]:
            at = torch.unravel_index(error.argmax(), error.shape)
            where = ", ".join(
                f"{axis} {int(i)}" for axis, i in zip(row.axes, at, strict=True)
            )
            return f"{tap}: off by {float(error.max()):.3g} at {where}"
    return (
        "none: with these weights every tap is the padded old one, so it is the live "
        "model, its config, its dtype or its mode"
    )


def tap(case: Case, grower: Any) -> str:
    """The first wrong tap of a case, or why none can be named; never raises."""
    try:
        source = case.model()
        grown = grower(source, dict(case.target))
        return first_wrong_tap(Grown(case, source, grown))
    except Exception:
        return ""


def grows(case: Case) -> dict[str, tuple[int, int]]:
    """axis → its size before and after, of those that grow."""
    own = table(case.family).sizes
    found: dict[str, tuple[int, int]] = {}
    for axis, name in config_names(case.family).items():
        new = case.target.get(name)
        old = case.config.get(own.get(axis, name), getattr(case.decoder, axis))
        if new is not None and old != new:
            found[axis] = (old, new)
    return found


def describe(case: Case) -> str:
    """The shrunk shapes and growth, on one line."""
    names = config_names(case.family)
    sizes = ", ".join(f"{names[a]} {m}→{n}" for a, (m, n) in grows(case).items())
    return (
        f"{case.family}, hidden {case.decoder.hidden}, heads {case.decoder.heads}, key/value "
        f"heads {case.decoder.groups}, head_dim {case.decoder.head_dim}, layers "
        f"{case.decoder.layers}; {sizes or 'growing nothing'}; {case.regime} weights, seed "
        f"{case.seed}, {case.batch} × {case.tokens} tokens"
    )
