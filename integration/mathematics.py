"""The tables of docs/mathematics.md, made from the table of parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from growproof.decoder import Decoder, Kind, Rotary
from growproof.growth import Growth, Policies, plan
from growproof.table import Row, factors, parameters, taps

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
