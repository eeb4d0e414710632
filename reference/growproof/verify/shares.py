"""Neurons and lanes that are held several times, each copy writing a share of the old one.

Net2Net divides what a unit writes by the number of its copies. A third is in no binary
dtype, so that such an entry had to be rounded, and nothing beside it.
"""

from dataclasses import replace

import torch
from torch import Tensor

from growproof.blocks import blocks
from growproof.growth import Growth
from growproof.rounding import neighbours, unit_roundoff
from growproof.table import Row
from growproof.verify.entries import expected
from growproof.verify.placing import sampled, unit


def shares(x: Tensor, y: Tensor, row: Row, residual: Tensor, growth: Growth) -> Tensor:
    """Which columns of a writer x lie in y as rounded shares: a mask that fits x."""
    if y.ndim == 2:
        return shared(x, y, row, residual, growth)[None]
    olds = x if x.ndim == 3 else [x] * len(y)
    inner = replace(row, axes=row.axes[1:])
    each = [shared(a, b, inner, residual, growth) for a, b in zip(olds, y, strict=True)]
    return torch.stack(each)[:, None] if x.ndim == 3 else torch.stack(each).any(0)[None]


def shared(x: Tensor, y: Tensor, row: Row, residual: Tensor, growth: Growth) -> Tensor:
    """The same for one map: columns with several copies, whose factors add up to one."""
    held = residual >= 0
    size, within = x.shape[1], 4 * unit_roundoff(y.dtype) / x.shape[0] ** 0.5
    x = expected(x, row, [residual, torch.arange(size)], growth)[0][held]
    y, dtype = y[held].double(), y.dtype
    if y.shape[1] == size:
        return torch.zeros(size, dtype=torch.bool)
    origin = likeliest(x, y)
    want = x[:, origin]
    k = (y * want).sum(0) / (want * want).sum(0).clamp(min=1e-300)
    copies = neighbours(y, k * want, (k * want).abs(), dtype).all(0) & (k != 0)
    odd = (k / torch.exp2(k.abs().log2().round()) - 1).abs() > within

    def sums(of: Tensor) -> Tensor:
        return torch.zeros(size).double().index_add(0, origin[copies], of[copies])

    count = sums(torch.ones_like(k))
    whole = (sums(k) - 1).abs() <= within * sums(k.abs())
    return whole & (count > 1) & (sums(odd.double()) > 0)


def likeliest(x: Tensor, y: Tensor) -> Tensor:
    """The column of x that each of y is most like, but for a factor, by some rows."""
    some = sampled(len(x))
    old, new = (unit(of[some].mT) for of in (x, y))
    every = blocks(len(new), len(old))
    return torch.cat([(new[rows] @ old.mT).abs().argmax(1) for rows in every])
