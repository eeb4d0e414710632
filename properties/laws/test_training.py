"""Training goes on where it was: old gradients, and new parameters that move."""

import dataclasses

import torch
from growproof.clone import forward
from growproof.decoder import Decoder
from growproof.rounding import Responses, unit_roundoff
from growproof.scatter import place, take
from growproof.table import Row, pairs, parameters
from hypothesis import given

from . import claims
from .checks import close, plain
from .examples import count
from .grown import Grown, grow
from .models import Case
from .registry import law, lossless, trainable, zero_padding
from .strategies import cases, fewer, padded_cases


def gradients(d: Decoder, state, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """d loss / d parameter, of the mean next-token loss, in the clone (float64)."""
    leaves = {name: w.clone().requires_grad_() for name, w in state.items()}
    logits = forward(d, leaves, ids)["logits"][:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(w) if g is None else g
        for (name, w), g in zip(leaves.items(), found, strict=True)
    }


def pulled_back(grown: Grown, new: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of the old parameters, through w' = s · pad(w): s · take(dw')."""
    table = parameters(grown.case.decoder, grown.growth)
    found = {}
    for _, old_name, row in pairs(grown.growth, table):
        if old_name is None or row.centre or row.is_writer or row.norm:
            continue  # what centring removes has no gradient of its own
        name = grown.renamed(old_name)
        w = grown.old_state[old_name]
        if not w.any():
            continue
        same = take(grown.state[name], plain(row), grown.growth)
        scale = float((same * w).sum() / (w * w).sum())
        found[old_name] = pulled_through(new[name], w, row, grown) * scale
    return found


def pulled_through(
    gradient: torch.Tensor, w: torch.Tensor, row: Row, grown: Grown
) -> torch.Tensor:
    """Padᵀ: what a gradient of pad(w) says of w; copies add up."""
    leaf = torch.zeros_like(w).requires_grad_()
    padded = place(leaf, plain(row), grown.growth)
    return torch.autograd.grad(padded, leaf, gradient)[0]


@law(zero_padding, claim=claims.TRAINING, budget="decoder")
@fewer(2)
@given(case=padded_cases(min_tokens=2, max_tokens=8))
def test_old_gradients_are_kept(grower, case: Case) -> None:
    """d loss / d w = s · take(d loss' / d w'), by the chain rule, for every old w."""
    grown = grow(case, grower)
    old = gradients(case.decoder, grown.old_state, case.ids)
    new = pulled_back(grown, gradients(grown.decoder, grown.state, case.ids))
    response = Responses(
        lambda state: gradients(case.decoder, state, case.ids),
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
            more=lambda name=name: max(response.most[name], least),
            kernel="blas",
            dtype=grown.dtype,
        )


def token_gradients(d: Decoder, state, ids: torch.Tensor) -> torch.Tensor:
    """d loss / d (weight of token v at position t), (B, T, V): in no coordinates."""
    mixture = torch.nn.functional.one_hot(ids, d.vocab).double().requires_grad_()
    logits = forward(d, state, mixture)["logits"][:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return torch.autograd.grad(loss, mixture)[0]


@law(lossless, claim=claims.TRAINING, budget="decoder")
@fewer(2)
@given(case=cases(min_tokens=2, max_tokens=8))
def test_token_gradients_are_kept(grower, case: Case) -> None:
    """d loss' / d p = d loss / d p for weights p of tokens: what the input moves."""
    grown = grow(case, grower)
    old = token_gradients(case.decoder, grown.old_state, case.ids)
    response = Responses(
        lambda state: {"tokens": token_gradients(case.decoder, state, case.ids)},
        grown.old_state,
        {"tokens": old},
        grown.dtype,
    )
    close(
        token_gradients(grown.decoder, grown.state, case.ids),
        old,
        tap="tokens",
        case=case,
        response=response["tokens"],
        more=lambda: response.most["tokens"],
        kernel="blas",
        dtype=grown.dtype,
    )


@law(trainable, claim=claims.TRAINING, version=3)
@fewer(2)
@given(case=cases(axis="hidden", min_tokens=2, max_tokens=8))
def test_new_parameters_train(grower, case: Case) -> None:
    """No new lane is stuck: at the first step a writer of each receives a gradient.

    Any writer for a lane of the residual; its own for one of a head, an MLP, a new
    layer. Of weights without rows of zeros: what reads these, old or new, stands still.
    The share of the new parameters that move is reported.
    """
    if case.regime == "tidy":
        case = dataclasses.replace(case, regime="loud")
    grown = grow(case, grower)
    found = gradients(grown.decoder, grown.state, case.ids)
    moving = total = 0
    stuck: dict[str, torch.Tensor] = {}  # where -> whether each lane is new and still
    for name, old_name, row in pairs(
        grown.growth, parameters(case.decoder, grown.growth)
    ):
        moves, old = found[name] != 0, torch.zeros_like(found[name])
        if old_name is not None:
            ones = torch.ones_like(grown.old_state[old_name])
            old = place(ones, plain(row), grown.growth)
        moving += int((moves & (old == 0)).sum())
        total += int((old == 0).sum())
        if not row.is_writer or row.reads is None:
            continue
        for dim, axis in enumerate(row.axes):
            if axis in ("vocab", "position", "expert"):
                continue
            others = [i for i in range(len(row.axes)) if i != dim]
            where = axis if axis == "residual" else f"{name} ({axis})"
            seen = (old != 0).sum(others) > 0
            still = ~(moves.sum(others) > 0) & (~seen | (old_name is None))
            stuck[where] = stuck.get(where, still) & still
    count(moving=moving, total=total)
    assert total > 0
    for where, lanes in stuck.items():
        assert not lanes.any(), (
            f"new lane {int(lanes.nonzero()[0])} of {where} is stuck: no writer of it "
            f"receives a gradient ({moving} of {total} new parameters do)"
        )
