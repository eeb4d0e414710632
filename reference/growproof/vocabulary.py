"""New tokens at the end of the vocabulary: old logits stay, and none is ever chosen.

The old logits are the same bit for bit, for each reads its own row of the head. A new
row of zeros has the logit 0, which can win and always joins the softmax over all
logits. Where a bias can, new logits are −2¹⁵ instead, whose exponential is 0 in every
dtype: the softmax is then the old one. Elsewhere the generation config suppresses the
new tokens, and the softmax is the old one over the old tokens.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from growproof.decoder import Decoder
from growproof.growth import Growth

UNCHOSEN = -(2.0**15)  # fp16, bf16 and wider hold it exactly

Carrier = Literal["head bias", "LayerNorm bias", "generation config"]


def carrier(grown: Mapping[str, Tensor], growth: Growth) -> Carrier:
    """What keeps the new tokens of a grown model from being chosen."""
    if "head.bias" in grown:
        return "head bias"
    head = grown[growth.old.head]
    silent = head[growth.old.vocab :].any()
    return "LayerNorm bias" if silent else "generation config"


def silent_row(state: Mapping[str, Tensor], d: Decoder) -> Tensor | None:
    """w with w · (γ x̂ + β) = −2¹⁵ for every x̂ whose mean is 0: w = −2¹⁵ / (γ Σ β/γ).

    (D,), or None where there is no such row, or none that roundings leave in peace:
    each of the D products may be off by a few roundings u, and w has to fit in fp16.
    """
    if d.norm != "layer" or "final_norm.bias" not in state:
        return None
    weight, bias = (state[f"final_norm.{part}"] for part in ("weight", "bias"))
    ratio = (bias.double() / weight.double()).sum().item()
    row = UNCHOSEN / ratio / weight.double() if ratio else weight.double() * torch.inf
    unit = torch.finfo(weight.dtype).eps / 2
    calm = abs(ratio) >= 8 * unit * d.hidden and row.abs().max().item() <= -UNCHOSEN
    return row.to(weight.dtype) if calm else None


def silence(y: Tensor, name: str, state: Mapping[str, Tensor], growth: Growth) -> None:
    """Make the logits of new tokens −2¹⁵ in a grown tensor, where it is the one to."""
    entries = of_new_tokens(name, state, growth)
    if entries is not None:
        y[growth.old.vocab :] = entries


def of_new_tokens(
    name: str, state: Mapping[str, Tensor], growth: Growth
) -> Tensor | None:
    """What a parameter holds for each new token: (D',), or () for a bias; None: no rule."""
    old, new = growth.old, growth.new
    if new.vocab == old.vocab:
        return None
    if name == "head.bias":
        return torch.tensor(UNCHOSEN)
    if name != old.head:
        return None
    row = None if "head.bias" in state else silent_row(state, old)
    if row is None:  # a drawn row would be a drawn logit; zero trains as well
        return torch.zeros(new.hidden)
    return torch.nn.functional.pad(row, (0, new.hidden - old.hidden))


def suppressed(growth: Growth, before: list[int] | None = None) -> list[int]:
    """The tokens that a generation config suppresses: those of before, and new ones."""
    new = range(growth.old.vocab, growth.new.vocab)
    return [*(before or []), *(token for token in new if token not in (before or []))]


def said(growth: Growth, by: Carrier) -> str:
    """What became of the softmax over all logits, in words."""
    old, new = growth.old.vocab, growth.new.vocab
    rows = f"Tokens {old:,} to {new - 1:,} are new: the old logits are the same, "
    if by != "generation config":
        return f"{rows}and {softmax(old, new, by, '−2¹⁵')}"
    return (
        f"{rows}and {softmax(old, new, by)}. generation_config.json suppresses the new "
        "tokens, so that generate() never chooses one; another sampler has to mask them"
    )


def softmax(
    old: int, new: int, by: Carrier | None, low: str = "too low to count"
) -> str:
    """The new logits and the softmax over all, in words. by: None for any other logits."""
    if by == "generation config":
        level, joins = "0 (zero rows)", "exp(0)"
    elif by is None:
        level, joins = "what their rows give", "the exponential of its logit"
    else:
        return (
            f"the new ones are {low} (by the {by}): the softmax over all {new:,} logits "
            "is the same as well"
        )
    return (
        f"the new ones are {level}: the softmax over the first {old:,} logits is the "
        f"same, over all {new:,} each new token adds {joins} to the denominator"
    )
