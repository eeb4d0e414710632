"""Matrices a few rows at a time, with sums whose order hangs on their number alone.

What is grown in memory and what is grown from file to file go through other pieces, on
other numbers of threads, and must come out the same, bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

# entries in hand at a time: what they need in float64 stays in a processor's cache
BLOCK = 1 << 17
Read = Callable[[int, int], Tensor]  # the rows from … to … of a matrix


def sheets(x: Tensor) -> Iterable[Tensor]:
    """The matrix x, or that of each expert."""
    return x if x.ndim == 3 else [x]


def is_large(x: Tensor) -> bool:
    """True for what is worth more than one block."""
    return x.numel() > BLOCK


def at_once(on: str) -> int:
    """Blocks worked on at a time on a device: fewer calls, and still in the cache.

    A GPU has to be given more, or it waits for the next block most of the time.
    """
    return 2 if on == "cpu" else 256


def blocks(rows: int, columns: int, times: int = 1) -> Iterator[slice]:
    """The rows of a matrix, at most `times` BLOCK entries at a time."""
    step = max(1, times * BLOCK // columns)
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def consecutive(rows: Tensor) -> bool:
    """True for i, i + 1, i + 2, …"""
    return bool((rows.diff() == 1).all())


def picked(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], a view where they are consecutive."""
    if consecutive(rows):
        return x[int(rows[0]) : int(rows[0]) + len(rows)]
    return x[rows]


def mean_of_rows(read: Read, first: int, last: int) -> Tensor:
    """The mean over rows, added up in an order that hangs on their number alone."""
    total, work = torch.zeros((), dtype=torch.float64), None
    for i in range(first, last, 64):
        rows = read(i, min(i + 64, last))
        if work is None:  # once: fresh pages cost more than the sums
            work = rows.new_empty(rows.shape, dtype=torch.float64)
        total = total + added(work[: len(rows)].copy_(rows))
    return total / (last - first)


def added(x: Tensor) -> Tensor:
    """The sum of the rows of x: neighbours first, whatever the threads and columns.

    x is overwritten: each sum takes the place of its first row.
    """
    while len(x) > 1:
        x[: len(x) // 2 * 2 : 2] += x[1::2]
        x = x[::2]
    return x[0]
