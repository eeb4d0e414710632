"""Where the destination, run beside the source, first differs: the first tap."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from growproof.clone import Taps
from growproof.growth import Growth
from growproof.rounding import largest
from growproof.scatter import centred
from growproof.table import LAYER, Row, taps
from growproof.verify.accounting import OWN_AXES, Accounted
from growproof.verify.entries import outer, taken
from growproof.verify.function import budget_of, runs
from growproof.verify.placing import Places
from growproof.verify.scaling import Scaling
from growproof.verify.sides import Side

OWN = {"value": ("v", "key"), "context": ("o", "query")}  # tap → whose axis it has
OTHER_STREAM = (
    ". The residual is not the source's, padded with zeros, so that no later tap can be "
    "compared: another layout, or a wrong embedding"
)
MEAN_KEPT = (
    ": it is the source's with its mean, and a LayerNorm over more lanes takes another "
    "mean away (norm = centred removes it from every writer)"
)
STREAM = ("embedding", "attention", "attn_out_norm", "mlp", "mlp_out_norm", "residual")


@torch.no_grad()
def parting(old: Side, new: Side, known: Accounted, ids: Tensor, seed: int) -> str:
    """The first tap that is not the source's, where the entries lie as they were found."""
    placed, scaling = known.placed, known.scaling
    if placed is None or scaling is None:
        return f"{known.why}, so that no taps can be compared"
    want, shaken, got = runs(old, new, known, ids, seed)
    growth = Growth(old=old.decoder, new=new.decoder)
    table = rows_of(growth, scaling)
    x: Taps = {}
    y: Taps = {}
    for n, (prefix, z) in enumerate(got):
        layer = int(prefix.split(".")[1]) if prefix else None
        at = None if layer is None else placed.layers.get(layer)
        fresh = layer is not None and at is None
        if fresh:  # a new layer, which leaves the residual as it was
            x, y = ({"residual": next(reversed(t.values()))} for t in (x, y))
        else:
            x, y = next(want)[1], next(shaken)[1]
        wrong = dict[str, str]()
        for name in x:
            row = table.get(f"{LAYER if prefix else ''}{name}")
            if row and name in z and in_one_order(row, at):
                origins = origins_of(known, name, row, at, old)
                said = differs(
                    x[name], y[name], z[name], row, origins, growth,
                    stream=name in STREAM,
                )  # fmt: skip
                wrong |= {name: said} if said else {}
        wrong = without_detours(wrong) if prefix else wrong
        if wrong:
            name, said = next(iter(wrong.items()))
            if n == 0:
                kept = replace(table["embedding"], centre=None)
                origins = origins_of(known, name, kept, at, old)
                why = differs(
                    x[name], y[name], z[name], kept, origins, growth, stream=True
                )
                said += OTHER_STREAM if why else MEAN_KEPT
            if fresh:
                name, said = (
                    silence(z),
                    f"{said} (a new layer, which should add nothing)",
                )
            return f"{prefix}{name} {said}"
    return "no tap parts beyond its budget on this text"


def rows_of(growth: Growth, scaling: Scaling) -> dict[str, Row]:
    """How each tap grows: the table's rows, with the scalars that were found."""
    found = dict[str, Row]()
    for template, row in taps(growth).items():
        name = template.rpartition(".")[2]
        if name in STREAM:
            centre = scaling.centres.get("residual")
            row = replace(
                row, scale=scaling.stream, centre=centre, averaged=scaling.averaged
            )
        elif name in ("query", "key"):
            row = replace(row, scale=scaling.scalars.get(name[0], 1.0))
        found[template] = row
    return found


def origins_of(
    known: Accounted, name: str, row: Row, at: Places | None, old: Side
) -> list[Tensor | None]:
    """The origin of each axis of a tap; None where it does not grow."""
    assert known.placed is not None
    along: dict[str, Tensor] = {
        "residual": known.placed.residual,
        "vocab": known.placed.vocab,
    }
    along |= at.origins(old.decoder) | {"expert_mlp": at.neurons[0]} if at else {}
    part = OWN.get(name, ("", ""))[0]
    axes = [OWN_AXES.get((part, axis), axis) for axis in row.axes]
    return [along.get(axis) for axis in axes]


def in_one_order(row: Row, at: Places | None) -> bool:
    """Whether all experts' neurons lie alike, where the tap has these."""
    if at is None or "expert_mlp" not in row.axes:
        return True
    return all(torch.equal(neurons, at.neurons[0]) for neurons in at.neurons)


def silence(z: Taps) -> str:
    """What a new layer adds, of attention and mlp."""
    return next((name for name in ("attention", "mlp") if z[name].any()), "residual")


def without_detours(wrong: dict[str, str]) -> dict[str, str]:
    """`wrong` less what the layer makes good again: (2 q) · (k / 2) are the scores."""
    front = ("attn_norm", "query", "key", "query_rotated", "key_rotated")
    attention = (*front, "value", "scores", "probabilities", "context")
    mlp = ("mlp_norm", "gate", "up", "activated", "router", "chosen")
    mlp = (*mlp, "expert_gate", "expert_up", "expert_activated")
    for goal, before in (
        ("scores", front),
        ("attention", attention),
        ("mlp", mlp),
        ("residual", (*attention, "attention", *mlp, "mlp")),
    ):
        if goal not in wrong:
            wrong = {k: v for k, v in wrong.items() if k not in before}
    return wrong


def factor(want: Tensor, got: Tensor) -> float:
    """The k for which k · want is nearest to got; 1 where it is nearly that."""
    k = ((want * got).sum() / (want * want).sum()).item()
    return k if math.isfinite(k) and abs(k - 1) > 1e-3 else 1.0


def differs(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    row: Row,
    origins: list[Tensor | None],
    growth: Growth,
    *,
    stream: bool,
) -> str | None:
    """How the tap z differs from x, grown; None within 4 times |y − x|, grown.

    New lanes of the residual must be zero; elsewhere they are free.
    """
    axes = [
        torch.arange(n) if o is None else o
        for o, n in zip(origins, x.shape, strict=True)
    ]
    held = outer([origin >= 0 for origin in axes])
    want = taken(centred(x, row, growth) * row.scale, axes)
    response = taken(centred(y - x, row, growth) * row.scale, axes)
    if stream and not row.averaged:
        want, got, response = want * held, z, response * held
    else:
        want, got, response = (t[held] for t in (want, z, response))
    error, budget = largest(got - want), budget_of(largest(response), want)
    if error <= budget:
        return None
    said = f"is off by {error:.1e} (budget {budget:.1e}, values to {largest(want):.3g})"
    k = factor(want, got)
    if k != 1 and largest(got - k * want) <= max(1, abs(k)) * budget:
        said += f": it is {k:.4g} of what it should be"
    return said
