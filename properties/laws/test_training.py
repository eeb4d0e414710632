"""Training goes on where it was: old gradients, and new parameters that move."""

import torch
from growproof.arithmetic import BLAS
from growproof.decoder import forward
from growproof.layout import pairs, parameters
from growproof.padding import place, take
from growproof.shape import Shape
from hypothesis import given

from . import claims
from .checks import Grown, Responses, close, grow, unit_roundoff
from .examples import count
from .registry import law, lossless, trainable
from .strategies import Case, cases, fewer


def gradients(shape: Shape, state, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """d loss / d parameter, of the mean next-token loss, in the clone (float64)."""
    leaves = {name: w.clone().requires_grad_() for name, w in state.items()}
    logits = forward(shape, leaves, ids, BLAS)["logits"][:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(w) if g is None else g
        for (name, w), g in zip(leaves.items(), found, strict=True)
    }


def pulled_back(grown: Grown, new: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of the old parameters, through w' = s · pad(w): s · take(dw')."""
    table = parameters(grown.case.shape, grown.growth)
    found = {}
    for _, old_name, row in pairs(grown.growth, table):
        if old_name is None or row.centre or row.role == "writer":
            continue  # what centring removes has no gradient of its own
        name = grown.renamed_parameter(old_name)
        w = grown.old_state[old_name]
        plain = type(row)(row.axes)
        scale = float(
            (take(grown.state[name], plain, grown.growth) * w).sum() / (w * w).sum()
        )
        found[old_name] = take(new[name], plain, grown.growth) * scale
    return found


@law(lossless, claim=claims.TRAINING, budget="decoder", needs=("zero_padding",))
@fewer(2)
@given(case=cases(min_tokens=2, max_tokens=8))
def test_old_gradients_are_kept(grower, case: Case) -> None:
    """d loss / d w = s · take(d loss' / d w'), by the chain rule, for every old w."""
    grown = grow(case, grower)
    old = gradients(case.shape, grown.old_state, case.ids)
    new = pulled_back(grown, gradients(grown.shape, grown.state, case.ids))
    response = Responses(
        lambda state: gradients(case.shape, state, case.ids),
        grown.old_state,
        old,
        grown.dtype,
    )
    assert new, "no parameter was compared"
    scale = max(float(g.abs().max()) for g in old.values())
    least = unit_roundoff(grown.dtype) * scale
    for name, g in new.items():
        close(
            g,
            old[name],
            tap=name,
            case=case,
            response=max(response[name], least),
            more=lambda name=name: max(response.more(name), least),
            kernel="blas",
            dtype=grown.dtype,
        )


@law(trainable, claim=claims.TRAINING)
@fewer(2)
@given(case=cases(axis="hidden", min_tokens=2, max_tokens=8))
def test_new_parameters_train(grower, case: Case) -> None:
    """No new lane is stuck: at the first step a writer of each receives a gradient.

    Any writer for a lane of the residual; its own for one of a head, an MLP, a new
    layer. The share of the new parameters that move is reported.
    """
    grown = grow(case, grower)
    found = gradients(grown.shape, grown.state, case.ids)
    moving = total = 0
    stuck: dict[str, torch.Tensor] = {}  # where -> whether each lane is new and still
    for name, old_name, row in pairs(
        grown.growth, parameters(case.shape, grown.growth)
    ):
        moves, old = found[name] != 0, torch.zeros_like(found[name])
        if old_name is not None:
            ones = torch.ones_like(grown.old_state[old_name])
            old = place(ones, type(row)(row.axes), grown.growth)
        moving += int((moves & (old == 0)).sum())
        total += int((old == 0).sum())
        if row.role != "writer":
            continue
        for dim, axis in enumerate(row.axes):
            if axis == "vocab":
                continue
            where = axis if axis == "residual" else f"{name} ({axis})"
            still = ~moves.any(1 - dim) & (~old.any(1 - dim) | (old_name is None))
            stuck[where] = stuck.get(where, still) & still
    count(moving=moving, total=total)
    assert total > 0
    for where, lanes in stuck.items():
        assert not lanes.any(), (
            f"new lane {int(lanes.nonzero()[0])} of {where} is stuck: no writer of it "
            f"receives a gradient ({moving} of {total} new parameters do)"
        )
