"""Checkpoint directories in and out, one tensor at a time.

`grow_checkpoint` reads safetensors (one file, or shards with an index) or a `.gguf`
file, and writes a directory that `from_pretrained` loads. What is in memory at any time
is one tensor, before and after, and the shard that is being filled. The destination
appears by one rename, when it is complete. No pickle is read, and no code of the source
is run: the model class follows from `model_type`.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import dynamic_module_utils

from growproof import reading
from growproof.decoder import GrowthError
from growproof.families import family_of
from growproof.growth import Growth, Policies
from growproof.models import (
    config_of,
    decoder_of,
    model_class,
    plan_model,
)
from growproof.padding import Grown, check
from growproof.vocabulary import suppressed

# untyped: Any stands for the module
hub: Any = transformers
code: Any = dynamic_module_utils
storage: Any = safetensors.torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# buffers that older versions of transformers saved
LEGACY = re.compile(
    r".*rotary_emb\.inv_freq|.*\.attn\.(bias|masked_bias)"
    r"|.*attention\.(bias|masked_bias)"
)
SHARD_BYTES = 4_000_000_000
# what a model directory holds beside its weights and its config; never *.py
COMPANIONS = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken", "spiece.model",
    "sentencepiece*", "chat_template*", "additional_chat_templates", "LICENSE*",
)  # fmt: skip


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


def grow_checkpoint(
    source: str | Path,
    destination: str | Path,
    target: Mapping[str, int],
    *,
    policies: Policies | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: bool | None = None,
) -> Growth:
    """Write to `destination` a larger model that computes what `source` does.

    source: a directory with safetensors, or a `.gguf` file. target, policies:
    as for `growproof.grow`. dtype: of the stored parameters (default:
    that of each source tensor); a wider one is taken before growing and a narrower one
    after it, so that every parameter is rounded once. force: replace a checkpoint that
    is at `destination`, once the new one is complete. shard_bytes: the largest file.
    progress: a bar on stderr (None: where that is a terminal).

    Raises GrowthError or ValueError, before anything is written, for a source that
    cannot be read or grown, and OSError where the disk refuses; neither leaves anything
    at `destination` that was not there.
    """
    source, destination = Path(source), Path(destination)
    refuse_overwriting(source, destination, force=force)
    if shard_bytes < 1:
        raise GrowthError(f"a shard must hold at least one byte, got {shard_bytes}")
    with opened(source, scratch=destination.absolute().parent) as directory:
        config = read_config(directory)
        reading.generation_fields(directory)
        growth = plan_model(config, target, policies)
        state = read_weights(directory, config)
        check(state, growth.old)
        with reading.refused(directory / "config.json", "a config that can be grown"):
            new_config = config_of(config, growth)
        stored = state["embed.weight"].dtype
        new_config.dtype = dtype or getattr(config, "dtype", None) or stored
        bigger = Grown(state.map(lambda _, x: widened(x, dtype)), growth)
        with replacing(destination, force=force) as fresh:
            bar = tqdm(
                family_of(config).write(bigger, growth.new, disk=True),
                desc="growing",
                unit="tensor",
                disable=None if progress is None else not progress,
            )
            with bar:
                write_weights(
                    ((name, x.to(dtype or x.dtype)) for name, x in bar),
                    fresh,
                    shard_bytes,
                )
            write_config(new_config, fresh)
            copy_companions(directory, fresh)
            suppress_new_tokens(fresh, new_config, growth)
    return growth


def widened(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """x in the wider of its dtype and the one to store."""
    return x if dtype is None else x.to(torch.promote_types(x.dtype, dtype))


@contextmanager
def opened(source: Path, scratch: Path) -> Generator[Path]:
    """The checkpoint directory of `source`; a .gguf is converted within `scratch`."""
    if source.is_file() and source.suffix == ".gguf":
        with tempfile.TemporaryDirectory(prefix=".gguf-", dir=scratch) as directory:
            convert_gguf(source, Path(directory))
            yield Path(directory)
    elif source.is_dir():
        yield source
    else:
        raise GrowthError(
            f"{source} is neither a checkpoint directory nor a .gguf file: download a "
            "hub model first (hf download NAME --local-dir DIR) and name the directory"
        )


def convert_gguf(source: Path, directory: Path) -> None:
    """Dequantise a .gguf file into a checkpoint directory, float32, with tokenizer."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise GrowthError(
            f"reading {source.name} needs {' and '.join(missing)}: "
            "pip install 'growproof[real]'"
        )
    reading.check_gguf(source)
    where: dict[str, Any] = {"gguf_file": source.name}
    config = gguf_config(source)
    with reading.refused(source, "a GGUF file that transformers can convert"):
        model = model_class(config).from_pretrained(source.parent, **where)
        # what was read is plain float32: nothing is quantised any more
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(directory)
        tokenizer = hub.AutoTokenizer.from_pretrained(source.parent, **where)
        tokenizer.save_pretrained(directory)


def gguf_config(source: Path) -> Any:
    """The config that transformers makes of a .gguf file's header."""
    with reading.refused(source, "a GGUF file that transformers can convert"):
        return hub.AutoConfig.from_pretrained(source.parent, gguf_file=source.name)


def read_config(directory: Path) -> Any:
    """The transformers config in `directory`, of the class its model_type names."""
    return reading.config_in(directory)


def read_weights(directory: Path, config: Any) -> Lazy:
    """The canonical parameters in `directory`, each read from its file at access.

    Legacy extras are left out: rotary frequencies, causal masks, and where the model is
    tied a head equal to the embedding. Raises GrowthError where there are no safetensors
    (a pickle is never read), and for integer or 8-bit weights.
    """
    family, d = family_of(config), decoder_of(config)
    files = stored_tensors(directory)
    index = family.index(files, d)

    def load(name: str) -> Tensor:
        return index[name].load(lambda stored: files[stored].get_tensor(stored), d)

    if d.tied and "head.weight" in index:
        if not torch.equal(load("head.weight"), load("embed.weight")):
            raise GrowthError(
                f"config.json in {directory} ties lm_head to the embedding, but the "
                "weights hold two different ones: set tie_word_embeddings to false, or "
                f"remove {index['head.weight'].pieces[0]}"
            )
        del index["head.weight"]
    return Lazy(index.keys(), load)


def stored_tensors(directory: Path) -> dict[str, Any]:
    """Stored name → the open file that holds it, but for what legacy code left there."""
    files: dict[str, Any] = {}
    for path in weight_files(directory):
        file, dtypes = reading.safetensors_in(path)
        for name, dtype in dtypes.items():
            if not LEGACY.fullmatch(name):
                reading.refuse_quantised(name, dtype)
                files[name] = file
    return files


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory: the single one, or the shards."""
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if (directory / INDEX).is_file():
        return reading.shards_of(directory / INDEX)
    pickles = [p.name for pattern in PICKLES for p in sorted(directory.glob(pattern))]
    if pickles:
        raise GrowthError(
            f"{directory} holds its weights as a pickle ({pickles[0]}), and loading a "
            "pickle can run any code: convert it where you trust it, with "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
        )
    raise GrowthError(f"{directory} holds neither {SINGLE} nor {INDEX}")


def write_weights(
    state: Iterator[tuple[str, Tensor]], directory: Path, shard_bytes: int
) -> None:
    """Save tensors as they come: one file, or shards of `shard_bytes` and an index."""
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
        held[name] = x
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


def write_config(config: Any, directory: Path) -> None:
    """Save the config; a masked model's with its modelling code beside it."""
    cls = model_class(config)
    config.architectures = [cls.__name__]
    if hasattr(config, "auto_map"):
        del config.auto_map  # it names code of the source, which is not copied
    if config.model_type.startswith("masked_"):
        with torch.device("meta"):
            code.custom_object_save(cls(config), directory, config=config)
    config.save_pretrained(directory)


def copy_companions(source: Path, directory: Path) -> None:
    """Copy the generation config and the tokenizer files, as they are."""
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, directory / path.name)


def config_at(source: str | Path) -> Any:
    """The config of a checkpoint directory or a .gguf file, without its weights."""
    path = Path(source)
    if path.is_file() and path.suffix == ".gguf":
        reading.check_gguf(path)
        return gguf_config(path)
    return read_config(path)


def suppress_new_tokens(directory: Path, config: Any, growth: Growth) -> None:
    """Have the generation config suppress the new tokens, beside those of before."""
    if growth.new.vocab == growth.old.vocab:
        return
    path = directory / "generation_config.json"
    if not path.is_file():
        hub.GenerationConfig.from_model_config(config).save_pretrained(directory)
    fields = json.loads(path.read_text("utf-8"))
    fields["suppress_tokens"] = suppressed(growth, fields.get("suppress_tokens"))
    fields.pop("_from_model_config", None)  # else transformers may derive it anew
    path.write_text(json.dumps(fields, indent=2) + "\n", "utf-8")


def refuse_overwriting(source: Path, destination: Path, *, force: bool) -> None:
    """Raise GrowthError where writing `destination` would lose something."""
    if not destination.absolute().parent.is_dir():
        raise GrowthError(f"there is no directory {destination.absolute().parent}")
    if source.resolve().is_relative_to(destination.resolve()):
        raise GrowthError(f"{destination} is or holds the source {source}")
    if not destination.exists() or is_empty(destination):
        return
    if not force:
        raise GrowthError(f"{destination} exists: choose another, or --force")
    if not (destination / "config.json").is_file():
        raise GrowthError(
            f"{destination} exists and is no checkpoint directory (no config.json): "
            "--force replaces checkpoints only"
        )


def is_empty(path: Path) -> bool:
    """True for a directory with nothing in it."""
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def replacing(destination: Path, *, force: bool) -> Generator[Path]:
    """A new directory beside `destination` that takes its place if all goes well.

    Whatever goes wrong (also an interrupt), it is removed, and what was at
    `destination` is still there.
    """
    destination = destination.absolute()
    mark = f"{destination.name}-{os.getpid()}"
    fresh = destination.with_name(f".{mark}.growing")
    stale = destination.with_name(f".{mark}.replaced")
    fresh.mkdir()
    try:
        yield fresh
        moved = force and destination.exists()
        if moved:
            destination.rename(stale)
        try:
            fresh.rename(destination)
        except BaseException:
            if moved:
                stale.rename(destination)
            raise
        shutil.rmtree(stale, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
