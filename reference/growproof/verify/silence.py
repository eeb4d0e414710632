"""What is new in a layer does nothing: one of the factors it is a product of is zero."""

from collections.abc import Iterator

import torch
from torch import Tensor

from growproof.clone import ACTIVATIONS
from growproof.decoder import Decoder
from growproof.verify.placing import Places, integers

Loud = dict[tuple[str, int], Tensor]
Found = tuple[str, str, tuple[int, int]]


def crossings(a: Decoder, b: Decoder, at: Places, loud: Loud) -> Iterator[Found]:
    """What is new in a layer and not silent: (part, what is wrong, row and column)."""
    yield from loud_lanes(a, b, at, loud)
    yield from loud_values(b, at, loud)
    zero_at_zero = a.activation in ACTIVATIONS
    parts = ("gate", "up") if a.gated and zero_at_zero else ("up",)
    parts = parts if a.gated or zero_at_zero else ()
    for e, origin in enumerate(at.neurons):
        factors = [loud[part, e] for part in ("down", *parts) if (part, e) in loud]
        for (f,) in first(torch.stack([origin < 0, *factors]).all(0)):
            yield "down", f"new neuron {f} is not silent", (0, f)


def first(mask: Tensor) -> list[tuple[int, ...]]:
    """The first index at which a mask is true, if there is one."""
    return [tuple(integers(at)) for at in mask.nonzero()[:1]]


def loud_lanes(a: Decoder, b: Decoder, at: Places, loud: Loud) -> Iterator[Found]:
    """New lanes of a head where neither q nor k is zero; with norms, where either is not.

    All new lanes of a head together, for the rotary embedding mixes pairs of them.
    """
    if ("q", 0) not in loud:
        return
    new = at.lanes < 0
    q = loud["q", 0].reshape(b.heads, -1)
    k = loud["k", 0].reshape(b.groups, -1) if ("k", 0) in loud else None
    k = torch.ones(b.groups, b.head_dim, dtype=torch.bool) if k is None else k
    if a.qk_norm == "whole":
        q_bad = (q & ((at.heads < 0)[:, None] | new)).any(1)
        k_bad = (k & ((at.groups < 0)[:, None] | new)).any(1)
        bad = q_bad | k_bad.repeat_interleave(b.repeats)
    else:
        q_new, k_new = ((x & new).any(1) for x in (q, k))
        k_new = k_new.repeat_interleave(b.repeats)
        bad = (q_new | k_new if a.qk_norm else q_new & k_new) & (at.heads >= 0)
    for (h,) in first(bad):
        yield "q", f"new lanes of head {h} are not silent", (h * b.head_dim, 0)


def loud_values(b: Decoder, at: Places, loud: Loud) -> Iterator[Found]:
    """New value lanes, or those of new heads, that are neither zero nor unread."""
    if ("o", 0) not in loud:
        return
    o = loud["o", 0].reshape(b.heads, -1)
    v = loud.get(("v", 0))
    v = torch.ones(b.groups * b.head_dim, dtype=torch.bool) if v is None else v
    v = v.reshape(b.groups, -1).repeat_interleave(b.repeats, 0)
    new = [
        at.values[g] < 0
        if g >= 0 and h >= 0
        else torch.ones(b.head_dim, dtype=torch.bool)
        for h, g in zip(
            integers(at.heads),
            integers(at.groups.repeat_interleave(b.repeats)),
            strict=True,
        )
    ]
    for h, k in first(o & v & torch.stack(new)):
        yield "o", f"lane {k} of new head {h} is not silent", (0, h * b.head_dim + k)
