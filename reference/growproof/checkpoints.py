"""Checkpoint directories in and out, one tensor at a time.

`grow_checkpoint` reads safetensors (one file, or shards with an index) or a `.gguf`
file, and writes a directory that `from_pretrained` loads, a block of rows at a time. The
destination appears by one rename, when it is complete. No pickle is read, and no code of
the source is run: the model class follows from `model_type`.
"""

import json
import re
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import dynamic_module_utils

from growproof import reading
from growproof.decoder import GrowthError
from growproof.families import family_of
from growproof.family import Home
from growproof.growth import Growth, Policies
from growproof.models import (
    architecture_of,
    config_of,
    decoder_of,
    model_class,
    plan_model,
    refuse_idle,
)
from growproof.optimizer import grow_optimizer
from growproof.optimizer import load as read_optimizer
from growproof.padding import check
from growproof.replacing import claimed, replacing, sweep
from growproof.shards import INDEX, SINGLE, Lazy, create, entries
from growproof.streaming import MEMORY, Stream
from growproof.vocabulary import suppressed

# untyped: Any stands for the module
hub: Any = transformers
code: Any = dynamic_module_utils

OPTIMIZER = "optimizer.pt"  # as transformers' Trainer names it
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
    "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken", "tekken.json",
    "spiece.model", "sentencepiece*", "chat_template*", "additional_chat_templates",
    "LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*", "*processor_config.json",
)  # fmt: skip


def grow_checkpoint(
    source: str | Path,
    destination: str | Path,
    target: Mapping[str, int],
    *,
    policies: Policies | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    memory: int = MEMORY,
    optimizer: Path | None = None,
    progress: bool | None = None,
) -> Growth:
    """Write to `destination` a larger model that computes what `source` does.

    source: a directory with safetensors, or a `.gguf` file. target, policies:
    as for `growproof.grow`. dtype: of the stored parameters (default:
    that of each source tensor), to which every parameter is rounded once. force: replace
    a checkpoint that is at `destination`, once the new one is complete. shard_bytes: the
    largest file. memory: bytes that tensors in flight may take. optimizer: the state dict
    of an optimizer to grow as well, to OPTIMIZER. progress: a bar on stderr (None: where
    that is a terminal).

    Raises GrowthError or ValueError, before anything is written, for a source that
    cannot be read or grown, and OSError where the disk refuses; neither leaves anything
    at `destination` that was not there. A process that is killed leaves it so too, and
    the next one to the same destination removes what lies beside it.
    """
    source, destination = Path(source), Path(destination)
    sweep(destination)
    refuse_overwriting(source, destination, force=force)
    if shard_bytes < 1:
        raise GrowthError(f"a shard must hold at least one byte, got {shard_bytes}")
    with opened(source, scratch=destination.absolute().parent) as directory:
        config = read_config(directory)
        reading.generation_fields(directory)
        refuse_idle(config, target)
        growth = plan_model(config, target, policies)
        before = located(directory, config)
        moments = optimizer and grow_optimizer(
            read_optimizer(optimizer), config, target, policies
        )
        with ExitStack() as files:
            stored = entries(weight_files(directory), files)
            stream = Stream(growth, family_of(config), stored, before, dtype)
            old = stream.old(meta=True)
            check(old, growth.old)
            with reading.refused(
                directory / "config.json", "a config that can be grown"
            ):
                new_config = config_of(config, growth)
            usual = getattr(config, "dtype", None) or old["embed.weight"].dtype
            new_config.dtype = dtype or usual
            with replacing(destination, force=force) as fresh:
                into = create(stream.sizes(), fresh, shard_bytes, files)
                with progressing(progress) as bar:
                    stream.write(into, memory, bar)
                if moments:
                    torch.save(moments, fresh / OPTIMIZER)
                write_config(new_config, fresh)
                copy_companions(directory, fresh)
                suppress_new_tokens(fresh, new_config, growth)
    return growth


def progressing(shown: bool | None) -> Any:
    """A progress bar over tensors; None: where stderr is a terminal."""
    hidden = None if shown is None else not shown
    return tqdm(desc="growing", unit="tensor", disable=hidden, total=0)


@contextmanager
def opened(source: Path, scratch: Path) -> Generator[Path]:
    """The checkpoint directory of `source`; a .gguf is converted within `scratch`."""
    if source.is_file() and source.suffix == ".gguf":
        with claimed(scratch / source.stem) as directory:
            convert_gguf(source, directory)
            yield directory
    else:
        refuse_absent(source)
        yield source


def refuse_absent(source: Path) -> None:
    """Raise GrowthError for what is no directory."""
    if not source.is_dir():
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

    Raises GrowthError as `located` does.
    """
    index, files, d = (
        located(directory, config),
        stored_tensors(directory),
        decoder_of(config),
    )

    def load(name: str) -> Tensor:
        return index[name].load(lambda stored: tensor_in(files[stored], stored), d)

    return Lazy(index.keys(), load)


def located(directory: Path, config: Any) -> dict[str, Home]:
    """Canonical name → where it lies among the stored tensors in `directory`.

    Legacy extras are left out: rotary frequencies, causal masks, and where the model is
    tied a head equal to the embedding. Raises GrowthError where there are no safetensors
    (a pickle is never read), and for integer or 8-bit weights.
    """
    files, d = stored_tensors(directory), decoder_of(config)
    index = family_of(config).index(files, d)
    if d.tied:
        one_embedding(index, lambda name: tensor_in(files[name], name), directory)
    return index


def one_embedding(
    index: dict[str, Home], get: Callable[[str], Tensor], directory: Path
) -> None:
    """Leave a tied model one tensor, by whichever name it has one, in place.

    Raises GrowthError where there are two, and they differ.
    """
    head = index.pop("head.weight", None)
    if head and "embed.weight" not in index:
        index["embed.weight"] = head
    elif head:
        both = head.pieces[0], index["embed.weight"].pieces[0]
        if not torch.equal(*(get(name) for name in both)):
            raise GrowthError(
                f"config.json in {directory} ties lm_head to the embedding, but the "
                "weights hold two different ones: set tie_word_embeddings to false, or "
                f"remove {head.pieces[0]}"
            )


def stored_tensors(directory: Path) -> dict[str, Path]:
    """Stored name → the file that holds it, but for what legacy code left there."""
    files: dict[str, Path] = {}
    for path in weight_files(directory):
        _, dtypes = reading.safetensors_in(path)
        for name, dtype in dtypes.items():
            if not LEGACY.fullmatch(name):
                reading.refuse_quantised(name, dtype)
                files[name] = path
    return files


def tensor_in(path: Path, name: str) -> Tensor:
    """A stored tensor. The file stays mapped into memory only as long as the tensor."""
    opened: Any = safe_open(path, framework="pt")
    with opened as file:
        return file.get_tensor(name)


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


def write_config(config: Any, directory: Path) -> None:
    """Save the config; a masked model's with its modelling code beside it."""
    config.architectures = [architecture_of(config)]
    if hasattr(config, "auto_map"):
        del config.auto_map  # it names code of the source, which is not copied
    if config.model_type.startswith("masked_"):
        with torch.device("meta"):
            model = model_class(config)(config)
        code.custom_object_save(model, directory, config=config)
    config.save_pretrained(directory)


def copy_companions(source: Path, directory: Path) -> None:
    """Copy the generation config and the tokenizer files, as they are.

    What generate() is told by config.json alone becomes a generation config.
    """
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            if path.suffix == ".py":  # remote code is not taken along
                continue
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, directory / path.name)
    told = directory / "generation_config.json"
    if told.exists():
        return
    # an old config.json says it itself, and transformers writes no config that does
    fields = reading.generation_of(source).to_diff_dict()
    if fields.keys() - KEPT_BY_CONFIG:
        fields.pop("_from_model_config", None)
        told.write_text(json.dumps(fields, indent=2) + "\n", "utf-8")


def left_behind(source: Path, destination: Path) -> list[str]:
    """Files of a checkpoint that its growth has not: its card, its code, and the like."""
    weights = re.compile(r"\..*|.*\.(safetensors|index\.json|bin|pth?|gguf|msgpack|h5)")
    names = (path.name for path in source.iterdir()) if source.is_dir() else ()
    there = {path.name for path in destination.iterdir()}
    return sorted(n for n in names if n not in there and not weights.fullmatch(n))


KEPT_BY_CONFIG = {
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "transformers_version",
    "_from_model_config", "output_attentions", "output_hidden_states",
}  # fmt: skip


def config_at(source: str | Path) -> Any:
    """The config of a checkpoint directory or a .gguf file, without its weights."""
    path = Path(source)
    if path.is_file() and path.suffix == ".gguf":
        reading.check_gguf(path)
        return gguf_config(path)
    refuse_absent(path)
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
    if not is_checkpoint(destination):
        raise GrowthError(
            f"{destination} exists and is no checkpoint directory (no config.json with a "
            "model_type): --force replaces checkpoints only"
        )


def is_checkpoint(path: Path) -> bool:
    """True for a directory whose config.json names a model type."""
    try:
        reading.fields_of(path)
    except GrowthError:
        return False
    return True


def is_empty(path: Path) -> bool:
    """True for a directory with nothing in it."""
    return path.is_dir() and not any(path.iterdir())
