"""Growing a checkpoint whose weights are quantised already, without quantising anew.

What is not quantised (norms, embedding, biases) grows as anywhere. A quantised map grows
where its row of the table has no scalar: its codes are scattered along the same index
maps, and new ones decode to zero (`growproof.codes`). A growth that would multiply codes
(head_dim, norms of q and k, centring) is refused. What was written is read again, both
sides are decoded, and every old weight must be the same and every new one zero.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from growproof import reading
from growproof.checkpoints import (
    LEGACY,
    SHARD_BYTES,
    copy_companions,
    one_embedding,
    refuse_overwriting,
    suppress_new_tokens,
    weight_files,
    write_config,
)
from growproof.codes import Codes, Format, format_of
from growproof.decoder import Decoder, GrowthError
from growproof.families import family_of
from growproof.family import Family, Home
from growproof.growth import Growth, Policies
from growproof.models import (
    config_class,
    config_of,
    decoder_of,
    plan_model,
    refuse_idle,
)
from growproof.padding import Grown, sibling
from growproof.replacing import replacing
from growproof.scatter import place, sheet_row
from growproof.shards import Lazy, write_weights
from growproof.stored import Stored
from growproof.table import Row, layer_of, size

storage: Any = safetensors.torch  # untyped
CONFIG, FIELD = "config.json", "quantization_config"


def is_quantised(source: str | Path) -> bool:
    """Whether a directory's config says that its weights are quantised."""
    here = (Path(source) / CONFIG).is_file()
    return here and bool(reading.fields_of(Path(source)).get(FIELD))


def plain_config(directory: str | Path) -> tuple[Any, dict[str, Any]]:
    """(the config as if nothing were quantised, what it says of the quantisation)."""
    raw, path = reading.fields_of(Path(directory)), Path(directory) / CONFIG
    said = raw.pop(FIELD)
    if not isinstance(said, dict):
        raise reading.BadInput(path, FIELD, repr(said), "an object")
    cls = config_class(raw["model_type"])
    with reading.refused(path, f"a config that transformers' {cls.__name__} takes"):
        config = cls.from_dict(raw)
    reading.decoder_in(config, path)
    return config, cast("dict[str, Any]", said)


@dataclass(frozen=True)
class Quantised:
    """A checkpoint directory with quantised weights."""

    directory: Path
    config: Any
    said: Mapping[str, Any]
    files: Mapping[str, Any]

    @classmethod
    def at(cls, directory: str | Path) -> "Quantised":
        """The one in a directory; tensors are read when they are asked for.

        Raises GrowthError for a tensor of codes that is not all of a quantised map.
        """
        config, said = plain_config(directory)
        files: dict[str, Any] = {}
        stored: dict[str, str] = {}
        for path in weight_files(Path(directory)):
            file, dtypes = reading.safetensors_in(path)
            files |= dict.fromkeys(dtypes, file)
            stored |= dtypes
        found = cls(Path(directory), config, said, files)
        kept = {n: f for n, f in files.items() if not found.says_nothing(n)}
        found = replace(found, files=kept)
        for name in kept.keys() - found.coded():
            reading.refuse_quantised(name, stored[name])
        return found

    @functools.cached_property
    def format(self) -> Format:
        """How its maps are stored."""
        return format_of(self.said)

    def get(self, name: str) -> Tensor:
        """The stored tensor of that name."""
        return self.files[name].get_tensor(name)

    @property
    def family(self) -> Family:
        """Its family."""
        return family_of(self.config)

    @property
    def decoder(self) -> Decoder:
        """Its normal form."""
        return decoder_of(self.config)

    def holds(self, weight: str) -> bool:
        """Whether the map with a weight of that name is quantised."""
        return weight.removesuffix("weight") + self.format.mark in self.files

    def says_nothing(self, name: str) -> bool:
        """Old extras: frequencies, masks, the zeros that AutoGPTQ keeps for a bias."""
        if LEGACY.fullmatch(name):
            return True
        if not name.endswith(".bias") or not self.holds(name[: -len("bias")]):
            return False
        try:
            self.family.index([name], self.decoder)
        except GrowthError:  # the model has no such bias
            return not self.get(name).any()
        return False

    def codes(self, weight: str) -> Codes:
        """The codes of a quantised map. weight: the name that a plain one would have."""
        base = weight.removesuffix("weight")
        with reading.refused(f"{base}*", "tensors of one quantised map"):
            found = self.format.read(lambda part: self.get(base + part))
        for what, x in (("code", found.codes), ("scale", found.scales)):
            if x.is_floating_point() and not x.float().isfinite().all():
                raise reading.BadInput(
                    f"{base}*", what, "NaN or an infinity", "a finite number"
                )
        return found

    def weights(self) -> set[str]:
        """The names that the weights of quantised maps would have if they were plain."""
        last = "." + self.format.mark
        return {
            f"{n.removesuffix(last)}.weight" for n in self.files if n.endswith(last)
        }

    def coded(self) -> set[str]:
        """The names of all tensors of quantised maps."""
        suffixes = self.format.suffixes
        return {w.removesuffix("weight") + s for w in self.weights() for s in suffixes}

    def index(self) -> dict[str, Home]:
        """Canonical name → where it lies, quantised or not."""
        plain = self.files.keys() - self.coded()
        return self.family.index([*plain, *self.weights()], self.decoder)

    def coverage(self) -> dict[str, tuple[bool, ...]]:
        """Canonical name → whether it is quantised, each piece of it."""
        return {n: tuple(map(self.holds, h.pieces)) for n, h in self.index().items()}

    def state(self) -> Lazy:
        """The canonical parameters, quantised ones decoded, each when it is asked for."""
        d, quantised, index = self.decoder, self.weights(), self.index()

        def get(name: str) -> Tensor:
            return self.codes(name).decoded() if name in quantised else self.get(name)

        if d.tied:
            one_embedding(index, get, self.directory)
        return Lazy(index.keys(), lambda name: index[name].load(get, d))


def grow_quantised(
    source: str | Path,
    destination: str | Path,
    target: Mapping[str, int],
    *,
    policies: Policies | None = None,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Growth:
    """Write to `destination` a larger model that computes what quantised `source` does.

    As `growproof.checkpoints.grow_checkpoint`, for directories whose config has a
    quantization_config of gptq, awq or fp8. Raises GrowthError, and leaves nothing at
    `destination`, for what would change a code or a scale, and where what was written
    does not decode to the same weights.
    """
    source, destination = Path(source), Path(destination)
    refuse_overwriting(source, destination, force=force)
    old = Quantised.at(source)
    growth = planned(old, target, policies)
    new_config = config_of(old.config, growth)
    new_config.dtype = getattr(old.config, "dtype", None)
    new_config.quantization_config = dict(old.said)
    with replacing(destination, force=force) as fresh:
        write_weights(grown(old, growth), fresh, shard_bytes)
        write_config(new_config, fresh)
        copy_companions(source, fresh)
        suppress_new_tokens(fresh, new_config, growth)
        wrong = differences(old, Quantised.at(fresh), growth)
        if wrong:
            raise GrowthError(
                f"{len(wrong)} of the written maps do not decode to the old weights and "
                f"zeros, {wrong[0]} first: this is a fault of growproof, please report it"
            )
    return growth


def planned(
    old: Quantised, target: Mapping[str, int], policies: Policies | None
) -> Growth:
    """The growth. Raises GrowthError where it cannot be done to codes."""
    refuse_idle(old.config, target)
    growth = plan_model(old.config, target, policies)
    if growth.policies.fill != "zeros":
        raise GrowthError(
            "new entries of quantised weights are zeros: leave --fill out"
        )
    refuse_renumbered(old.said, growth)
    return growth


def rehearse(
    source: Path, target: Mapping[str, int], policies: Policies | None
) -> None:
    """Raise GrowthError where `grow_quantised` would, by one layer: all are alike."""
    old = Quantised.at(source)
    for _ in grown(old, planned(old, target, policies), layers=1):
        pass


def grown(
    old: Quantised, growth: Growth, layers: int | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(stored name, tensor) of every stored tensor of the grown checkpoint.

    layers: only of the first ones, and of what belongs to none.
    """
    bigger = Grown(old.state(), growth)
    write = old.format.write
    for template, stored, layer in old.family.in_order(growth.new, disk=True):
        if layer is not None and layers is not None and layer >= layers:
            continue
        here = places(template, stored, layer, bigger)
        coded = {old.holds(before) for _, before in here}
        if coded == {True, False}:
            raise GrowthError(
                f"{here[0][0]}: some experts of a layer are quantised, and others are "
                "not: grow the model before it is quantised"
            )
        if coded == {True}:
            for name, before in here:
                along = maps(stored, bigger, layer, name)
                for suffix, x in write(old.codes(before).padded(*along, name)).items():
                    yield name.removesuffix("weight") + suffix, x
        else:
            parts = [bigger[part.format(layer=layer)] for part in stored.parts]
            whole = stored.join(parts, growth.new)
            yield from old.family.pieces(template, layer, whole, growth.new)


def places(
    template: str, stored: Stored, layer: int | None, bigger: Grown
) -> list[tuple[str, str]]:
    """(new stored name, that of the old map that it grows from, or is made like).

    One for each expert; none for what is no matrix.
    """
    if not template.endswith("weight") or "{head}" in template or "{group}" in template:
        return []
    part = stored.parts[0].format(layer=layer)
    before, row = bigger.rows[part]
    like = layer_of(before or sibling(part, row, bigger.growth.old))
    count = bigger.growth.new.experts if "{expert}" in template else 1
    return [
        (template.format(layer=layer, expert=e), template.format(layer=like, expert=e))
        for e in range(count)
    ]


def maps(
    stored: Stored, bigger: Grown, layer: int | None, name: str
) -> tuple[Tensor, Tensor]:
    """New output → old one, new input → old one, of a stored map; −1 for new ones."""
    growth, parts = bigger.growth, [p.format(layer=layer) for p in stored.parts]
    found = [bigger.rows[part] for part in parts]
    for part, (_, row) in zip(parts, found, strict=True):
        refuse_scaled(part, row, name)
    refuse_other(stored, parts, growth, bigger, name)
    found = [(old, sheet_row(row)) for old, row in found]  # of one expert
    sizes = [[size(growth.old, row.axes[0])] for _, row in found]
    counted = torch.arange(1, sum(n for (n,) in sizes) + 1)
    pieces = stored.bias().split(counted, sizes, growth.old)
    if found[0][0] is None:
        pieces = [torch.zeros_like(piece) for piece in pieces]
    outputs = [
        place(piece, Row(row.axes[:1], row.writes), growth)
        for piece, (_, row) in zip(pieces, found, strict=True)
    ]
    axis = found[0][1].axes[1]
    inputs = torch.arange(1, size(growth.old, axis) + 1) * (found[0][0] is not None)
    inputs = place(inputs, Row((axis,), axis), growth)
    return stored.bias().join(outputs, growth.new) - 1, inputs - 1


def refuse_scaled(part: str, row: Row, name: str) -> None:
    """Raise GrowthError where a growth does more to a quantised map than pad it."""
    if row.scale != 1 or row.centre is not None or row.averaged:
        how = (
            f"multiply it by {row.scale:.6g}" if row.scale != 1 else "move its entries"
        )
        raise GrowthError(
            f"{name} is quantised, and this growth would {how} ({part}): a code times a "
            "number is no code. Leave that axis alone (head_dim and norms of q and k have "
            "such a factor; MLP, heads, groups, layers and vocabulary have none), or grow "
            "the model before it is quantised"
        )


def refuse_other(
    stored: Stored, parts: list[str], growth: Growth, bigger: Grown, name: str
) -> None:
    """Raise GrowthError for codes that would have to be turned, or drawn."""
    if stored.turned:
        raise GrowthError(
            f"{name} is quantised, and a {name.split('.')[0]} keeps it transposed, as no "
            "linear map: grow the model before it is quantised"
        )
    old, new = growth.old, growth.new
    if new.vocab > old.vocab and old.head in parts and "head.bias" not in bigger.rows:
        rows = bigger[old.head][old.vocab :]
        if rows.any():
            raise GrowthError(
                f"{name} is quantised, and what keeps new tokens from being chosen would "
                "be numbers in its rows: leave vocab_size alone, or grow the model before "
                "it is quantised"
            )


def refuse_renumbered(said: Mapping[str, Any], growth: Growth) -> None:
    """Raise GrowthError where the quantisation names layers, and they move."""
    numbered = [text for text in texts(said) if NUMBERED.search(text)]
    if numbered and growth.new.layers > growth.old.layers:
        raise GrowthError(
            f"quantization_config says {numbered[0]!r}, by the number of a layer: leave "
            "num_hidden_layers alone"
        )


NUMBERED = re.compile(r"(?<=\.)\[?\d[\d\-|,]*\]?(?=\\?\.|$)")  # in a regex, too


def texts(x: Any) -> Iterator[str]:
    """Every text in nested lists and objects, keys too."""
    if isinstance(x, str):
        yield x
    elif isinstance(x, Mapping):
        for key, value in cast("Mapping[Any, Any]", x).items():
            yield from (*texts(key), *texts(value))
    elif isinstance(x, list):
        for value in cast("list[Any]", x):
            yield from texts(value)


def differences(old: Quantised, new: Quantised, growth: Growth) -> list[str]:
    """The stored tensors that are not, decoded, what plain weights would have grown to.

    The other way round than `grown` goes: the old weights are decoded first, and grown by
    the table as if they had never been quantised.
    """
    quantised, wrong, read = new.weights(), list[str](), set[str]()
    plain = Grown(old.state(), growth)
    for template, stored, layer in old.family.in_order(growth.new, disk=True):
        for name, before in places(template, stored, layer, plain):
            if old.holds(before) != (name in quantised):
                wrong.append(name)
    expected = old.family.write(plain, growth.new, disk=True)
    for name, wanted in expected:
        read.add(name)
        found = new.codes(name).decoded() if name in quantised else new.get(name)
        if not torch.equal(found, wanted.to(found.dtype)):
            wrong.append(name)
    left = quantised - read
    if left:
        raise GrowthError(f"{len(left)} quantised maps were not compared: {min(left)}")
    return wrong
