"""How a stored tensor holds canonical ones: isomorphisms, each with its inverse.

A checkpoint may keep q, k and v in one tensor, one tensor for each head's norm, or a
matrix transposed. `Stored.split` takes stored tensors to canonical ones, `Stored.join`
takes them back; both only rearrange entries, so that nothing is rounded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growproof.decoder import Decoder

Sizes = Sequence[Sequence[int]]


def parted(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """x with one dimension as a product of others; one of the sizes may be -1."""
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


@dataclass(frozen=True)
class Stored:
    """One stored tensor, or one for each head or expert, and the canonical ones in it.

    parts: canonical templates. split: (tensor, sizes of the parts, decoder) to the parts;
    join: the parts and the decoder to the tensor. turned: a matrix is stored transposed.
    """

    parts: tuple[str, ...]
    split: Callable[[Tensor, Sizes, Decoder], list[Tensor]]
    join: Callable[[Sequence[Tensor], Decoder], Tensor]
    turned: bool = False

    def bias(self) -> "Stored":
        """The same for the biases of these maps."""
        parts = tuple(p.removesuffix("weight") + "bias" for p in self.parts)
        return Stored(parts, self.split, self.join, self.turned)


def plain(part: str) -> Stored:
    """x is x."""
    return Stored((part,), lambda x, _n, _d: [x], lambda xs, _d: xs[0])


def joined(*parts: str) -> Stored:
    """One after the other along what they write: Phi-3's qkv, an expert's gate and up."""

    def along(x: Tensor) -> int:
        return -2 if x.ndim > 1 else -1

    def split(x: Tensor, sizes: Sizes, _d: Decoder) -> list[Tensor]:
        dim = along(x)
        return list(torch.split(x, [size[dim] for size in sizes], dim))

    return Stored(parts, split, lambda xs, _d: torch.cat(list(xs), along(xs[0])))


def by_head(*parts: str) -> Stored:
    """q, k and v of one head, then those of the next: GPT-NeoX."""
    n = len(parts)

    def split(x: Tensor, _sizes: Sizes, d: Decoder) -> list[Tensor]:
        heads = parted(x, 0, (d.heads, n, d.head_dim))
        return [part.flatten(0, 1) for part in heads.unbind(1)]

    def join(xs: Sequence[Tensor], d: Decoder) -> Tensor:
        heads = [parted(x, 0, (d.heads, d.head_dim)) for x in xs]
        return torch.stack(heads, 1).flatten(0, 2)

    return Stored(parts, split, join)


def transposed(stored: Stored) -> Stored:
    """(in, out) instead of (out, in): GPT-2's Conv1D."""

    def turned(x: Tensor) -> Tensor:
        return x.mT if x.ndim > 1 else x

    return Stored(
        stored.parts,
        lambda x, n, d: stored.split(turned(x), n, d),
        lambda xs, d: turned(stored.join(xs, d)),
        turned=True,
    )


def paired(stored: Stored) -> Stored:
    """Rotary turns lanes 2k and 2k + 1 of a head, not k and k + dims / 2: GLM, Cohere."""

    def moved(x: Tensor, d: Decoder, *, back: bool) -> Tensor:
        turned = torch.arange(d.rotary.dims).reshape(-1, 2).mT.flatten()
        lanes = torch.cat((turned, torch.arange(d.rotary.dims, d.head_dim)))
        heads = parted(x, 0, (-1, d.head_dim))
        return heads[:, lanes.argsort() if back else lanes].flatten(0, 1)

    return Stored(
        stored.parts,
        lambda x, n, d: [moved(y, d, back=False) for y in stored.split(x, n, d)],
        lambda xs, d: stored.join([moved(x, d, back=True) for x in xs], d),
    )


def gathered(pieces: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """A tensor of `size` from one piece, or from one for each head or expert."""
    return pieces[0] if len(pieces) == 1 else torch.stack(list(pieces)).reshape(*size)


def scattered(x: Tensor, pieces: int) -> list[Tensor]:
    """gathered⁻¹: a tensor for each head or expert."""
    if x.ndim == 1:
        return list(x.reshape(pieces, -1))
    assert x.shape[0] == pieces, f"{tuple(x.shape)} is not {pieces} pieces"
    return list(x)
