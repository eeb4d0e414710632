"""Safetensors files as places to read from and to write to, a few rows at a time.

Plain reads and writes into small buffers: on the machines tried, a mapped file cost six
times as much, for its page faults.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from growproof.decoder import GrowthError

# untyped: Any stands for the module
storage: Any = safetensors.torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16,
    "BF16": torch.bfloat16,
}  # fmt: skip
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Lazy(Mapping[str, Tensor]):
    """A state dict whose tensors are made at access and not kept."""

    names: Collection[str]
    load: Callable[[str], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.load(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def map(self, f: Callable[[str, Tensor], Tensor]) -> "Lazy":
        """The same names, with f(name, tensor) in place of each tensor."""
        return Lazy(self.names, lambda name: f(name, self.load(name)))


@dataclass(frozen=True)
class Entry:
    """A stored tensor: an open file, and where in it the bytes begin."""

    file: int
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        """The length of a row."""
        return self.shape[-1]

    def read(self, first: int, into: Tensor) -> None:
        """Fill `into`, (n, columns), with the rows from `first`."""
        offset, left = self.start + first * into[0].nbytes, raw(into)
        while left:
            n = os.preadv(self.file, [left], offset)
            if not n:
                raise GrowthError("a safetensors file ends before its tensors do")
            offset, left = offset + n, left[n:]

    def write(self, first: int, rows: Tensor) -> None:
        """Write `rows`, (n, columns), over those from `first`."""
        offset, left = self.start + first * rows[0].nbytes, raw(rows)
        while left:
            n = os.pwrite(self.file, left, offset)
            offset, left = offset + n, left[n:]

    def load(self) -> Tensor:
        """All of it."""
        x = torch.empty(self.shape, dtype=self.dtype)
        self.read(0, x.view(-1, self.columns))
        return x

    def store(self, x: Tensor) -> None:
        """Write all of it."""
        self.write(0, x.reshape(-1, self.columns))

    def meta(self) -> Tensor:
        """Its size and dtype, without a byte."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def raw(x: Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    return x.view(torch.uint8).numpy().data.cast("B")


def entries(paths: Sequence[Path], files: ExitStack) -> dict[str, Entry]:
    """Stored name → where it lies, in safetensors files that `files` keeps open."""
    found: dict[str, Entry] = {}
    for path in paths:
        file = files.enter_context(path.open("rb", buffering=0))
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, said in header.items():
            if said["dtype"] in DTYPES:
                start = 8 + length + said["data_offsets"][0]
                dtype, shape = DTYPES[said["dtype"]], tuple(said["shape"])
                found[name] = Entry(file.fileno(), start, dtype, shape)
    return found


def sharded(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    """The names, in files of at most so many bytes (but for a tensor that is larger)."""
    shards, held = [list[str]()], 0
    for name, x in tensors.items():
        if shards[-1] and held + x.nbytes > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += x.nbytes
    return shards


def create(
    tensors: Mapping[str, Tensor], directory: Path, shard_bytes: int, files: ExitStack
) -> dict[str, Entry]:
    """Make the files for tensors of these (meta) sizes, all zero, and their index."""
    found: dict[str, Entry] = {}
    shards = sharded(tensors, shard_bytes)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        of = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        shard = SINGLE if len(shards) == 1 else of
        file = files.enter_context((directory / shard).open("x+b", buffering=0))
        found |= laid_out({name: tensors[name] for name in names}, file)
        weight_map |= dict.fromkeys(names, shard)
    if len(shards) > 1:
        size = sum(x.nbytes for x in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return found


def laid_out(tensors: Mapping[str, Tensor], file: Any) -> dict[str, Entry]:
    """Write the header of one file, and give the file its final size."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end, starts = 0, dict[str, int]()
    # the largest items first, so that each lies at a multiple of its size
    for name, x in sorted(tensors.items(), key=lambda item: -item[1].itemsize):
        offsets = [end, end + x.nbytes]
        said = {"dtype": KINDS[x.dtype], "shape": [*x.shape], "data_offsets": offsets}
        header[name], starts[name], end = said, end, offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    base = 8 + len(text)
    file.truncate(base + end)
    return {
        name: Entry(file.fileno(), base + starts[name], x.dtype, tuple(x.shape))
        for name, x in tensors.items()
    }


def write_weights(
    state: Iterator[tuple[str, Tensor]], directory: Path, shard_bytes: int
) -> None:
    """Save tensors of any dtype as they come: one file, or shards and an index."""
    shards: list[dict[str, int]] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        path = directory / f"shard-{len(shards)}"
        storage.save_file(held, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors leaves it to its owner alone
        shards.append({name: x.nbytes for name, x in held.items()})
        held.clear()

    for name, x in state:
        if held and sum(y.nbytes for y in held.values()) + x.nbytes > shard_bytes:
            flush()
        held[name] = x.contiguous()
    flush()
    if len(shards) == 1:
        (directory / "shard-0").rename(directory / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        shard = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"shard-{i}").rename(directory / shard)
        weight_map |= dict.fromkeys(names, shard)
    size = sum(sum(names.values()) for names in shards)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
