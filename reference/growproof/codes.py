"""A quantised matrix: W[o, i] = s · (c[o, i] − z), s and z of the block that holds (o, i).

`Format.read` takes what a checkpoint stores of one linear map to codes, scales and zero
points, `Format.write` takes it back, and `Codes.padded` scatters the codes along two
index maps. Old codes, scales and zero points are copied, never computed: a new entry has
the code that decodes to exactly zero. A block may hold old entries of one old block only.

The layouts are those that AutoGPTQ, AutoAWQ and transformers' finegrained FP8 read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from growproof.decoder import GrowthError
from growproof.stored import parted

Get = Callable[[str], Tensor]
# in which of the eight nibbles AutoAWQ keeps each output
AWQ_PLACES = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])


@dataclass(frozen=True, kw_only=True)
class Codes:
    """One quantised matrix.

    codes: (O, I), int32 or a float8. scales: one for each block, (⌈O/m⌉, ⌈I/n⌉), and
    zeros like them, int32; None where a code is the value itself. block: (m, n). order:
    (I,) the column of blocks that an input belongs to, where that is not i // n. most:
    the largest code.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    block: tuple[int, int]
    order: Tensor | None = None
    most: int = 0

    def __post_init__(self) -> None:
        blocks = tuple(
            -(-n // b) for n, b in zip(self.codes.shape, self.block, strict=True)
        )
        for x in (self.scales, self.scales if self.zeros is None else self.zeros):
            if tuple(x.shape) != blocks:
                raise GrowthError(
                    f"codes of {tuple(self.codes.shape)} in blocks of {self.block} have "
                    f"{blocks} scales and zero points, got {tuple(x.shape)}"
                )
        held = self.order
        if held is not None and not bool(((held >= 0) & (held < blocks[1])).all()):
            raise GrowthError(f"g_idx must name one of {blocks[1]} groups")

    def spots(self) -> tuple[Tensor, Tensor]:
        """The row and the column of blocks of each output and of each input."""
        rows, columns = (torch.arange(n) for n in self.codes.shape)
        if self.order is not None:
            return rows // self.block[0], self.order.long()
        return rows // self.block[0], columns // self.block[1]

    def decoded(self) -> Tensor:
        """s · (c − z), (O, I), in float32."""
        rows, columns = self.spots()
        values = self.codes.float()
        if self.zeros is not None:
            values = values - self.zeros[rows][:, columns]
        return values * self.scales.float()[rows][:, columns]

    def padded(self, outputs: Tensor, inputs: Tensor, name: str) -> "Codes":
        """The codes of the grown matrix. outputs, inputs: new index → old one, or −1.

        Raises GrowthError where a block would hold entries of two old ones, and where
        a new entry's block has no code for zero.
        """
        rows, columns = self.spots()
        above = owners(outputs, rows, self.block[0], f"{name} (outputs)")
        order = None if self.order is None else self.reordered(inputs, name)
        beside = (
            owners(inputs, columns, self.block[1], f"{name} (inputs)")
            if order is None
            else torch.arange(len(inputs) // self.block[1])
        )
        if order is not None:
            beside[int((inputs >= 0).sum()) // self.block[1] :] = -1
        scales = taken(self.scales, above, beside, 1)
        middle = (self.most + 1) // 2
        zeros = None if self.zeros is None else taken(self.zeros, above, beside, middle)
        shell = Codes(
            codes=self.codes.new_empty(len(outputs), len(inputs)), scales=scales,
            zeros=zeros, block=self.block, order=order, most=self.most,
        )  # fmt: skip
        rows, columns = shell.spots()
        old = (outputs >= 0)[:, None] & (inputs >= 0)
        silent = torch.zeros(old.shape) if zeros is None else zeros[rows][:, columns]
        if zeros is not None and bool((silent[~old] > self.most).any()):
            raise GrowthError(
                f"{name}: a block that would get new entries has the zero point "
                f"{int(silent[~old].max())}, and codes end at {self.most}: none decodes to "
                "zero. Grow by whole groups"
            )
        bits = raw(self.codes)
        kept = bits[outputs.clamp(min=0)][:, inputs.clamp(min=0)]
        raw(shell.codes).copy_(torch.where(old, kept, silent.to(kept.dtype)))
        return shell

    def reordered(self, inputs: Tensor, name: str) -> Tensor:
        """The order of the grown inputs: old ones keep theirs, new ones fill groups."""
        assert self.order is not None
        new = inputs < 0
        if int(new.sum()) % self.block[1] or len(self.order) % self.block[1]:
            raise cut(name, self.block[1])
        found = self.order[inputs.clamp(min=0)].clone()
        first = int((~new).sum()) // self.block[1]
        more = torch.arange(int(new.sum())) // self.block[1] + first
        found[new] = more.to(found.dtype)
        return found


def raw(x: Tensor) -> Tensor:
    """A view of a float8 tensor as bytes, of which 0 is zero; another as it is."""
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x


def owners(along: Tensor, blocks: Tensor, block: int, name: str) -> Tensor:
    """New block → the old block that its old entries come from, −1 where it has none.

    along: new index → old one or −1. blocks: old index → old block.
    """
    found = torch.full((-(-len(along) // block),), -1)
    old = torch.where(along >= 0, blocks[along.clamp(min=0)], -1)
    if block == 1:
        return old
    for i, part in enumerate(torch.split(old, block)):
        kept = part[part >= 0]
        if kept.numel():
            found[i] = kept.min()
            if kept.min() != kept.max():
                raise cut(name, block)
    return found


def cut(name: str, block: int) -> GrowthError:
    """Why a group that is cut is refused."""
    return GrowthError(
        f"{name}: a group of {block} would hold entries of two old groups, each with a "
        f"scale of its own: insert whole groups, multiples of {block}, or grow the model "
        "before it is quantised"
    )


def taken(x: Tensor, above: Tensor, beside: Tensor, new: int) -> Tensor:
    """x of the old blocks, `new` where a block has none."""
    kept = x[above.clamp(min=0)][:, beside.clamp(min=0)]
    old = (above >= 0)[:, None] & (beside >= 0)
    return torch.where(old, kept.float(), float(new)).to(x.dtype)


# --- what checkpoints store -----------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """How a checkpoint stores a quantised map: suffixes of its tensors, both ways.

    mark: the one by which a map is known to be quantised.
    """

    mark: str
    suffixes: tuple[str, ...]
    read: Callable[[Get], Codes]
    write: Callable[[Codes], Mapping[str, Tensor]]


def unpacked(x: Tensor, bits: int) -> Tensor:
    """(…, N) int32 → (…, N · 32 / bits): the codes in each word, lowest first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((x[..., None] >> shifts) & (2**bits - 1)).flatten(-2)


def packed(x: Tensor, bits: int, name: str) -> Tensor:
    """unpacked⁻¹."""
    per = 32 // bits
    if x.shape[-1] % per:
        raise GrowthError(
            f"{name} would have {x.shape[-1]} of what is packed by {per} in a word: choose "
            f"sizes that are multiples of {per}"
        )
    shifts = torch.arange(0, 32, bits, dtype=torch.int64)
    words = (parted(x.long(), x.ndim - 1, (-1, per)) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def format_of(config: Mapping[str, Any]) -> Format:
    """The format of a quantization_config. Raises GrowthError for one not known here."""
    method = config.get("quant_method")
    found = {"gptq": gptq, "awq": awq, "fp8": fp8}.get(str(method))
    if found is None:
        raise GrowthError(
            f"the weights are quantised by {method!r}, and growproof pads codes of gptq, "
            "awq and fp8 alone: grow the model before it is quantised"
        )
    return found(config)


def whole(config: Mapping[Any, Any], name: Any) -> int:
    """A whole number of a quantization_config. Raises GrowthError for anything else."""
    found = config.get(name)
    if not isinstance(found, int):
        raise GrowthError(
            f"quantization_config has {name} = {found!r}, no whole number"
        )
    return found


def gptq(config: Mapping[str, Any]) -> Format:
    """qweight (I/8, O) packed along I, qzeros (I/g, O/8), scales (I/g, O), g_idx (I)."""
    bits, group = whole(config, "bits"), whole(config, "group_size")
    if bits not in (2, 4, 8) or group < 1:
        raise GrowthError(
            f"gptq with bits = {bits}, group_size = {group}: codes of 2, 4 or 8 bits in "
            "groups of a size are padded, others not; grow before quantising"
        )
    less = 0 if config.get("checkpoint_format") == "gptq_v2" else 1  # v1 stores z − 1
    by_act = bool(config.get("desc_act"))

    def read(get: Get) -> Codes:
        straight = torch.arange(len(get("qweight")) * 32 // bits) // group
        try:
            order = get("g_idx")
        except KeyError:  # some exporters leave it out where it says nothing
            order = None if by_act else straight
        if order is None:
            raise GrowthError("there is no g_idx, though desc_act is true")
        if not by_act and not torch.equal(order.long(), straight):
            raise GrowthError("g_idx is not i // group_size, though desc_act is false")
        return Codes(
            codes=unpacked(get("qweight").mT, bits), scales=get("scales").mT,
            zeros=unpacked(get("qzeros"), bits).mT + less, block=(1, group),
            order=order if by_act else None, most=2**bits - 1,
        )  # fmt: skip

    def write(x: Codes) -> Mapping[str, Tensor]:
        assert x.zeros is not None
        straight = (torch.arange(x.codes.shape[1]) // group).int()
        return {
            "qweight": packed(x.codes, bits, "an input size").mT.contiguous(),
            "qzeros": packed((x.zeros - less).mT, bits, "an output size"),
            "scales": x.scales.mT.contiguous(),
            "g_idx": straight if x.order is None else x.order,
        }

    return Format("qweight", ("qweight", "qzeros", "scales", "g_idx"), read, write)


def awq(config: Mapping[str, Any]) -> Format:
    """qweight (I, O/8) packed along O in AutoAWQ's order, qzeros (I/g, O/8), scales."""
    bits, group = whole(config, "bits"), whole(config, "group_size")
    version = str(config.get("version", "gemm")).lower()
    if (bits, version) != (4, "gemm") or group < 1:
        raise GrowthError(
            f"awq with bits = {bits}, version = {version!r}, group_size = {group}: only "
            "4 bits, gemm, in groups of a size are padded; grow before quantising"
        )

    def apart(x: Tensor) -> Tensor:
        raw = unpacked(x, 4)
        return parted(raw, raw.ndim - 1, (-1, 8))[..., AWQ_PLACES].flatten(-2).mT

    def together(x: Tensor) -> Tensor:
        if x.shape[0] % 8:
            raise GrowthError(f"awq packs outputs by 8, and {x.shape[0]} are asked for")
        raw = parted(x.mT, x.ndim - 1, (-1, 8))[..., AWQ_PLACES.argsort()].flatten(-2)
        return packed(raw, 4, "an output size")

    def read(get: Get) -> Codes:
        return Codes(
            codes=apart(get("qweight")), scales=get("scales").mT,
            zeros=apart(get("qzeros")), block=(1, group), most=15,
        )  # fmt: skip

    def write(x: Codes) -> Mapping[str, Tensor]:
        assert x.zeros is not None
        return {
            "qweight": together(x.codes),
            "qzeros": together(x.zeros),
            "scales": x.scales.mT.contiguous(),
        }

    return Format("qweight", ("qweight", "qzeros", "scales"), read, write)


def fp8(config: Mapping[str, Any]) -> Format:
    """weight (O, I) float8, weight_scale_inv (⌈O/m⌉, ⌈I/n⌉): the value is their product."""
    block = config.get("weight_block_size")
    paired = isinstance(block, list) and len(cast("list[Any]", block)) == 2
    if not paired or config.get("activation_scheme", "dynamic") != "dynamic":
        raise GrowthError(
            "fp8 is padded where weights have blocks (weight_block_size) and activations "
            "are scaled as they come (activation_scheme dynamic): grow before quantising"
        )
    m, n = (whole(dict(enumerate(cast("list[Any]", block))), i) for i in range(2))

    def read(get: Get) -> Codes:
        scales = get("weight_scale_inv")
        if not scales.is_floating_point():
            raise GrowthError(
                f"weight_scale_inv is stored as {scales.dtype}, not as a float: growproof "
                "does not know what its codes mean. Grow the model before it is quantised"
            )
        return Codes(codes=get("weight"), scales=scales, zeros=None, block=(m, n))

    def write(x: Codes) -> Mapping[str, Tensor]:
        return {"weight": x.codes, "weight_scale_inv": x.scales}

    return Format("weight_scale_inv", ("weight", "weight_scale_inv"), read, write)
