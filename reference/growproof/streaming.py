"""From file to file: a grown checkpoint, a block of rows at a time.

The table says the size of every grown tensor, so the files are made first, at their
final size and all holes, which read as zeros; then the old rows are read, rescaled,
rounded once and written to where they belong. What is in memory is a block for each
tensor in flight, whatever the sizes of tensors, files and model; only what is stored
transposed (GPT-2) is handled as a whole, one tensor at a time.
"""

import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from growproof.blocks import BLOCK, blocks, is_large
from growproof.decoder import Decoder, GrowthError
from growproof.family import Family, Home
from growproof.growth import Growth
from growproof.padding import (
    drawing,
    grown_parameter,
    is_filled,
    refuse_overflow,
    sibling,
    silenced,
)
from growproof.scatter import (
    average,
    first_means,
    is_changed,
    origins,
    place_rows,
    sheet_row,
)
from growproof.shards import Entry, Lazy
from growproof.stored import Stored
from growproof.table import Row, factors, grown_rows, tensors
from growproof.vocabulary import of_new_tokens

# of a block in flight: its rows as stored, in float64 with two temporaries, and grown
IN_FLIGHT = 64 * BLOCK
MEMORY = 64_000_000


# --- a canonical matrix, wherever its rows lie ----------------------------------------


@dataclass(frozen=True)
class Sheet:
    """A canonical matrix in a file: `rows` (n,) says where in `entry` each row lies."""

    entry: Entry
    rows: Tensor

    def read(self, rows: Tensor) -> Tensor:
        """These rows, (n, columns)."""
        into = torch.empty((len(rows), self.entry.columns), dtype=self.entry.dtype)
        for first, run in self.runs(rows):
            self.entry.read(first, into[run])
        return into

    def write(self, rows: Tensor, y: Tensor) -> None:
        """Write y, (n, columns), as these rows."""
        for first, run in self.runs(rows):
            self.entry.write(first, y[run])

    def runs(self, rows: Tensor) -> Iterator[tuple[int, slice]]:
        """(stored row, slice) of each run of rows that lie one behind the other."""
        at = self.rows.numpy()[rows.numpy()]
        ends = [*(np.flatnonzero(np.diff(at) != 1) + 1).tolist(), len(at)]
        for i, j in zip([0, *ends], ends, strict=False):
            yield int(at[i]), slice(i, j)


def sheets_of(home: Home, stored: Mapping[str, Entry], d: Decoder) -> list[Sheet]:
    """The matrix of a canonical parameter, or one for each expert; none for a vector."""
    pieces = [stored[name] for name in home.pieces]
    if len(pieces[0].shape) < 2 or home.stored.turned:
        return []
    height = pieces[0].shape[-2]
    sizes = [size[-2:-1] for size in home.sizes]
    rows = home.stored.split(torch.arange(height), sizes, d)[home.part]
    if len(pieces) > 1:
        return [Sheet(piece, rows) for piece in pieces]
    count = pieces[0].shape[0] if len(pieces[0].shape) == 3 else 1
    return [Sheet(pieces[0], rows + i * height) for i in range(count)]


# --- growing --------------------------------------------------------------------------


class Stream:
    """A growth on its way from the files of one checkpoint to those of another.

    source: what is stored before. before: where in it the canonical parameters lie. dtype:
    of all that is written (None: that of each source tensor).
    """

    def __init__(
        self,
        growth: Growth,
        family: Family,
        source: Mapping[str, Entry],
        before: Mapping[str, Home],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.growth, self.family, self.dtype = growth, family, dtype
        self.source, self.before = source, before
        self.destination: Mapping[str, Entry] = {}
        self.after: Mapping[str, Home] = {}
        self.times = 1  # blocks of a tensor in memory
        self.rows = grown_rows(growth)

    def old(self, *, meta: bool = False) -> Lazy:
        """The old parameters by canonical names, read at access; meta: sizes alone."""
        get = Entry.meta if meta else Entry.load

        def load(name: str) -> Tensor:
            home = self.before[name]
            return home.load(lambda stored: get(self.source[stored]), self.growth.old)

        return Lazy(self.before.keys(), load)

    def sizes(self) -> dict[str, Tensor]:
        """Stored name → a meta tensor, of all that is to be written, in order."""
        old, d = self.old(meta=True), self.growth.new
        expected = dict(tensors(d))

        def size(name: str) -> Tensor:
            was, row = self.rows[name]
            like = old[was or sibling(name, row, self.growth.old)]
            return like.new_empty(expected[name], dtype=self.dtype)

        return dict(self.family.write(Lazy(self.rows, size), d, disk=True))

    def write(self, into: Mapping[str, Entry], memory: int, bar: Any) -> None:
        """Grow everything into these entries; `memory` bounds how many at a time."""
        self.destination = into
        self.after = self.family.index(into, self.growth.new)
        todo = list(self.family.in_order(self.growth.new, disk=True))
        bar.reset(total=len(todo))
        with workers(memory) as (pool, self.times):
            for _ in pool.map(self.grow, *zip(*todo, strict=True)):
                bar.update()

    def grow(self, template: str, stored: Stored, layer: int | None) -> None:
        """Write what a stored template holds in a layer."""
        parts = [part.format(layer=layer) for part in stored.parts]
        if all(self.is_streamed(part) for part in parts):
            for part in parts:
                self.stream(part)
            return
        state = self.old()
        grown = [
            grown_parameter(part, *self.rows[part], state, self.growth, self.dtype)
            for part in parts
        ]
        whole = stored.join(grown, self.growth.new)
        for name, x in self.family.pieces(template, layer, whole, self.growth.new):
            self.destination[name].store(x)

    def is_streamed(self, name: str) -> bool:
        """True for a large matrix; what is small, or stored transposed, is held whole."""
        old, row = self.rows[name]
        was = old or sibling(name, row, self.growth.old)
        sheets = self.sheets(name, new=True) and self.sheets(was, new=False)
        return bool(sheets) and is_large(self.old(meta=True)[was])

    def sheets(self, name: str, *, new: bool) -> list[Sheet]:
        """Where the rows of a canonical matrix lie."""
        if new:
            return sheets_of(self.after[name], self.destination, self.growth.new)
        return sheets_of(self.before[name], self.source, self.growth.old)

    def stream(self, name: str) -> None:
        """Write a canonical matrix, or that of each expert."""
        old, row = self.rows[name]
        filled = is_filled(row, self.growth.policies)
        draw = drawing(name, self.growth.policies) if filled else None
        after = self.sheets(name, new=True)
        before = self.sheets(old, new=False) if old else [None] * len(after)
        for a, b in zip(before, after, strict=True):
            matrix = Matrix(name, sheet_row(row), self.growth, a, b)
            matrix.write(draw, self.old(), self.times)


@dataclass(frozen=True)
class Matrix:
    """One matrix to grow: `old` (None in a new layer) to `new`."""

    name: str
    row: Row
    growth: Growth
    old: Sheet | None
    new: Sheet

    def write(
        self,
        draw: Callable[[Tensor], Tensor] | None,
        state: Mapping[str, Tensor],
        times: int,
    ) -> None:
        """Grow it, `times` blocks at a time; rows that stay zero are a hole."""
        origin = torch.full((len(self.new.rows),), -1)
        mean = None
        if self.old:
            origin = origins(self.row, self.growth)
            mean = first_means(self.old_rows, self.row, self.growth)
        unchosen = of_new_tokens(self.name, state, self.growth)
        if draw is None and unchosen is None:
            filled = (origin >= 0).nonzero().flatten()
        else:
            filled = torch.arange(len(origin))
        kept = unsilenced(self.name, self.row, self.growth)
        columns = self.new.entry.columns
        pieces = [*blocks(len(filled), columns, 1 if draw else times)]
        height = pieces[0].stop if pieces else 0
        lines = torch.empty(height, columns, dtype=self.new.entry.dtype)
        work = None
        if self.old and is_changed(self.row):
            work = torch.empty(height, self.old.entry.columns, dtype=torch.float64)
        for block in pieces:
            rows = filled[block]
            y = lines[: len(rows)].zero_()
            if draw:
                y.copy_(draw(y))
                y[~kept[rows]] = 0
            self.place(origin[rows], mean, y, work)
            if unchosen is not None:
                y[rows >= self.growth.old.vocab] = unchosen.to(y.dtype)
            if not is_hole(y):
                self.new.write(rows, y)
        if self.row.averaged and self.row.axes[0] == "residual":
            self.write_averages()

    def place(
        self, origin: Tensor, mean: Tensor | None, y: Tensor, work: Tensor | None
    ) -> None:
        """Place the old rows `origin` (−1: none) into a block of grown ones."""
        there = origin >= 0
        if self.old is None or not there.any():
            return
        old = origin[there]
        lines, given = y if there.all() else y[there], self.old.read(old)
        place_rows(given, old, mean, self.row, self.growth, lines, work)
        refuse_overflow(self.name, given, lines)
        if lines is not y:
            y[there] = lines

    def old_rows(self, first: int, last: int) -> Tensor:
        """Rows of the old matrix."""
        assert self.old
        return self.old.read(torch.arange(first, last))

    def write_averages(self) -> None:
        """Write the new lanes of the residual: the mean of the old ones, as written."""
        mean = average(lambda i, j: self.new.read(torch.arange(i, j)), self.growth)
        lanes = torch.arange(self.growth.old.hidden, self.growth.new.hidden)
        row = mean.to(self.new.entry.dtype)
        for block in blocks(len(lanes), len(row)):
            rows = lanes[block]
            self.new.write(rows, row.expand(len(rows), -1).contiguous())


def is_hole(y: Tensor) -> bool:
    """True where every bit is zero; of most blocks the first row says that it is not."""
    return not any(bool(x.view(torch.uint8).any()) for x in (y[:1], y))


def unsilenced(name: str, row: Row, growth: Growth) -> Tensor:
    """Which rows of a grown matrix a fill may draw: (n,), bool."""
    n = math.prod(factors(growth.new)[row.axes[0]])
    return silenced(torch.ones(n), name.split(".")[-2], row, growth).bool()


@contextmanager
def workers(memory: int) -> Generator[tuple[ThreadPoolExecutor, int]]:
    """Threads for as many tensors as `memory` holds in flight, one core each.

    And the blocks of each that it holds: the more, the fewer calls; four are enough.
    """
    if memory < IN_FLIGHT:
        raise GrowthError(
            f"growing from file to file needs {IN_FLIGHT} bytes of memory for a tensor, "
            f"got {memory}: allow more"
        )
    count = min(memory // IN_FLIGHT, os.cpu_count() or 1)
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            count, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool, min(memory // count // IN_FLIGHT, 4)
    finally:
        torch.set_num_threads(threads)
