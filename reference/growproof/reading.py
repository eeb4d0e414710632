"""Other people's files: each is read here, and each refusal is one kind of error.

A refusal names the file, the field, what was got and what was expected. Files have a
largest size, nested values a largest depth, and counts a largest value, so that reading
ends. Nothing is written, no pickle is opened, no code of a checkpoint is run, and an
index names files of its own directory only.
"""

import dataclasses
import json
import os
import re
import reprlib
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open

from growproof.decoder import Decoder, GrowthError

MOST_BYTES = 16 << 20  # of a config; the largest of the hub have some 100 kB
MOST_INDEX_BYTES = 256 << 20
MOST_DEPTH = 32
MOST_SIZE = 2**31 - 1
# fields that say how many of something there are: time and memory follow from them
COUNTS = re.compile(r"num_\w+|n_(layer|head|group|expert)\w*|\w+_layers")
MOST = 2**16
NUMBERS = ("rope_theta", "partial_rotary_factor", "low_freq_factor", "high_freq_factor")
FIELD = re.compile(r"(?:field|attribute|argument|key) ['\"`](\w+)['\"`]", re.I)
STORED = ("F64", "F32", "F16", "BF16")


class BadInput(GrowthError):
    """A file that is not what its place says: file, field, got, expected."""

    def __init__(self, file: object, field: str, got: str, expected: str) -> None:
        self.file, self.field, self.got, self.expected = file, field, got, expected
        at = f"{field}: " if field else ""
        super().__init__(f"{file}: {at}got {got}, expected {expected}")


@contextmanager
def refused(file: object, expected: str) -> Generator[None]:
    """Whatever is raised by a library meanwhile is a BadInput about `file`.

    What growproof itself refuses keeps its words.
    """
    try:
        yield
    except (GrowthError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # tokenizers panics beside Exception
        said = " ".join(f"{type(error).__name__}: {error}".split())
        named = FIELD.search(said)
        field = named[1] if named else ""
        raise BadInput(file, field, shortened(said), expected) from error


def shortened(said: str, most: int = 240) -> str:
    """The first of a long message."""
    return said if len(said) <= most else f"{said[: most - 1]}…"


# --- text and JSON ----------------------------------------------------------------------


def text_in(path: Path, most: int = MOST_BYTES) -> str:
    """The UTF-8 text of a regular file of at most `most` bytes. Raises BadInput."""
    try:
        if path.exists() and not path.is_file():
            raise BadInput(path, "", "no regular file", "a file of text")
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise BadInput(path, "", f"more than {most:,} bytes", "a smaller file")
        return data.decode("utf-8")
    except FileNotFoundError:
        raise BadInput(path, "", "no such file", "a file of text") from None
    except OSError as error:
        got = error.strerror or str(error)
        raise BadInput(path, "", got, "a file that can be read") from None
    except ValueError as error:  # a NUL in the name, or bytes that are no UTF-8
        if isinstance(error, BadInput):
            raise
        raise BadInput(path, "", f"what is no text ({error})", "UTF-8") from None


def parsed(document: str, file: object, **how: Any) -> Any:
    """A JSON value, at most MOST_DEPTH deep. Raises BadInput about `file`."""
    if not document.strip():
        raise BadInput(file, "", "an empty file", "JSON")
    try:
        value = json.loads(document, **how)
    except json.JSONDecodeError as error:
        got = f"what is truncated or not JSON ({error})"
        raise BadInput(file, "", got, "JSON") from None
    except RecursionError:
        raise BadInput(file, "", *too_deep()) from None
    except ValueError as error:  # thousands of digits
        raise BadInput(file, "", f"a number past all sizes ({error})", "JSON") from None
    if depth(value) > MOST_DEPTH:
        raise BadInput(file, "", *too_deep())
    return value


def too_deep() -> tuple[str, str]:
    """got and expected of values within values."""
    return "values that lie too deep in one another", f"a depth of {MOST_DEPTH} at most"


def depth(value: Any) -> int:
    """How deep lists and objects lie in one another, 0 for a number."""
    level, deep = [value], 0
    while level := [x for v in level if isinstance(v, dict | list) for x in inside(v)]:
        deep += 1
        if deep > MOST_DEPTH:
            break
    return deep


def inside(value: Any) -> Iterable[Any]:
    """What a list or an object holds."""
    return cast("dict[str, Any]", value).values() if isinstance(value, dict) else value


def json_object(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises BadInput for anything else."""
    value = parsed(text_in(path, most), path)
    if not isinstance(value, dict):
        raise BadInput(path, "", reprlib.repr(value), "a JSON object")
    return cast("dict[str, Any]", value)


def hub() -> Any:
    """transformers, untyped: imported by those who need more of a file than its text."""
    import transformers

    return transformers


# --- configs ----------------------------------------------------------------------------


def fields_of(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint, as it stands, its numbers within bounds.

    Raises BadInput for a link beside it that leads nowhere, as in a cache that was pruned.
    """
    for link in directory.iterdir() if directory.is_dir() else ():
        if link.is_symlink() and not link.exists():
            got = f"a link to {link.readlink()}, which is not there"
            raise BadInput(link, "", got, "a file: download it again")
    path = directory / "config.json"
    if not path.exists():
        raise GrowthError(
            f"{directory} has no config.json: it is no checkpoint directory"
        )
    found = json_object(path)
    check_bounds(found, path)
    model_type = found.get("model_type")
    if not isinstance(model_type, str):
        raise BadInput(path, "model_type", reprlib.repr(model_type), "a model type")
    return found


def check_bounds(found: dict[str, Any], path: Path) -> None:
    """Raise BadInput for a count or a whole number past all that is of use."""
    for name, value in found.items():
        if isinstance(value, dict):
            check_bounds(cast("dict[str, Any]", value), path)
        if name in NUMBERS and not (value is None or is_number(value)):
            got = reprlib.repr(cast("Any", value))
            raise BadInput(path, name, got, "a finite number")
        for number in cast("list[Any]", value if isinstance(value, list) else [value]):
            if not isinstance(number, int) or isinstance(number, bool):
                continue
            most = most_of(name)
            if abs(number) > most:
                raise BadInput(path, name, reprlib.repr(number), f"{most:,} at most")


def most_of(name: str, other: int = 2**63 - 1) -> int:
    """The most that a field of that name may hold: MOST where it counts things."""
    return MOST if COUNTS.fullmatch(name) else other


def config_in(directory: Path) -> Any:
    """The transformers config in a directory, of the class that its model_type names.

    Raises BadInput where transformers refuses it, or the normal form cannot be read from
    it, and GrowthError for a family or a switch that growproof has no table of.
    """
    from growproof.models import config_class

    path, fields = directory / "config.json", fields_of(directory)
    cls = config_class(fields["model_type"])
    if fields.get("quantization_config"):
        raise GrowthError(
            f"{directory} holds quantised weights, which have no room to be scaled: "
            "save a dequantised copy first (model.dequantize(), save_pretrained)"
        )
    with refused(path, f"a config that transformers' {cls.__name__} takes"):
        config = cls.from_dict(fields, name_or_path=str(directory))
    decoder_in(config, path)
    return config


def decoder_in(config: Any, path: object) -> Decoder:
    """The normal form of a config, every number of it finite and of its type."""
    from growproof.models import decoder_of

    with refused(path, f"a config that says what a {config.model_type} computes"):
        decoder = decoder_of(config)
    rotaries = {id(kind.rotary): kind.rotary for kind in decoder.kinds if kind.rotary}
    for part in (decoder, *rotaries.values()):
        check_values(part, path)
    return decoder


def check_values(part: Any, path: object) -> None:
    """Raise BadInput where a field of the normal form has not the type that it declares."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name in ("eps", "theta") and value == 0:
            raise BadInput(path, field.name, reprlib.repr(value), "a number above 0")
        for kinds, holds, expected in RULES:
            if field.type in kinds and not holds(value):
                raise BadInput(path, field.name, reprlib.repr(value), expected)


def is_number(value: Any) -> bool:
    """True for a finite number; a bool is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


# declared types of the normal form's fields, what holds of their values, in words
RULES: tuple[tuple[tuple[Any, ...], Callable[[Any], bool], str], ...] = (
    (
        (int,),
        lambda x: type(x) is int and 0 <= x <= MOST_SIZE,
        f"a whole number from 0 to {MOST_SIZE:,}",
    ),
    ((float,), lambda x: is_number(x) and x >= 0, "a number, not below 0"),
    ((float | None,), lambda x: x is None or is_number(x), "a finite number"),
    ((str,), lambda x: isinstance(x, str), "a name"),
)


def any_config(directory: Path) -> Any:
    """The config of a family that growproof need not know; no code is run."""
    path = directory / "config.json"
    kind = fields_of(directory)["model_type"]
    with refused(path, f"a config that transformers takes for a {kind}"):
        return hub().AutoConfig.from_pretrained(directory, trust_remote_code=False)


def generation_fields(directory: Path) -> dict[str, Any] | None:
    """generation_config.json, as it stands, where transformers takes it; None without.

    Raises BadInput for one that it does not take.
    """
    path = directory / "generation_config.json"
    if not path.exists():
        return None
    fields = json_object(path)
    check_bounds(fields, path)
    tokens: Any = fields.get("suppress_tokens")
    whole = isinstance(tokens, list) and {*map(type, cast("list[Any]", tokens))} <= {
        int
    }
    if tokens is not None and not whole:
        raise BadInput(
            path, "suppress_tokens", reprlib.repr(cast("Any", tokens)), "token ids"
        )
    with refused(path, "a generation config that transformers takes"):
        hub().GenerationConfig.from_dict(dict(fields))
    return fields


def generation_of(directory: Path) -> Any:
    """What generate() is told by a checkpoint: its generation config, or its config.

    A transformers GenerationConfig, as `from_pretrained` finds it. Raises BadInput.
    """
    fields = generation_fields(directory)
    if fields is not None:
        return hub().GenerationConfig.from_dict(fields)
    with refused(directory / "config.json", "a config that can be generated with"):
        return hub().GenerationConfig.from_model_config(fields_of(directory))


def tokenizer_in(directory: Path) -> Any:
    """The tokenizer in a checkpoint directory, or None. Raises BadInput."""
    if not any(directory.glob("tokenizer*")):
        return None
    with refused(f"{directory}/tokenizer*", "files that make a tokenizer"):
        return hub().AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


# --- weights ----------------------------------------------------------------------------


def shards_of(index: Path) -> list[Path]:
    """The files that an index names, each in its own directory. Raises BadInput."""
    weights: Any = json_object(index, MOST_INDEX_BYTES).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        got = reprlib.repr(cast("Any", weights))
        raise BadInput(index, "weight_map", got, "an object of tensor and file names")
    found: set[str] = set()
    for tensor, shard in cast("dict[str, Any]", weights).items():
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard:
            field, got = f"weight_map, {reprlib.repr(tensor)}", reprlib.repr(shard)
            raise BadInput(index, field, got, "the name of a file beside the index")
        found.add(shard)
    # os.path's, which takes a name that no disk can hold for one that is not there
    lost = sorted(s for s in found if not os.path.isfile(index.parent / s))
    if lost:
        raise GrowthError(
            f"{index} names {reprlib.repr(lost)}, which are not there: download them"
        )
    return [index.parent / shard for shard in sorted(found)]


def safetensors_in(path: Path) -> tuple[Any, dict[str, str]]:
    """An open safetensors file, and tensor name → stored dtype. Raises BadInput."""
    with refused(path, "a complete safetensors file"):
        file: Any = safe_open(path, framework="pt")
        names: list[str] = file.keys()
        return file, {name: str(file.get_slice(name).get_dtype()) for name in names}


def refuse_quantised(name: str, dtype: str) -> None:
    """Raise GrowthError for a tensor that is stored as codes."""
    if dtype not in STORED:
        raise GrowthError(
            f"{name} is stored as {dtype}, a quantised format, which has no room "
            "to be scaled: save a dequantised copy first"
        )


def check_gguf(path: Path) -> None:
    """Raise BadInput for a .gguf file whose header says more than the file holds."""
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        raise BadInput(path, "its first bytes", repr(start), "b'GGUF'")
    with refused(path, "a complete GGUF file"):
        bounded_reader()(path)


def bounded_reader() -> Any:
    """gguf's reader, which does not read past the end of the file.

    A slice of numpy's past the end is empty and no error: a count of 2⁶⁰ would be
    gone through.
    """
    from gguf import GGUFReader

    class Bounded(GGUFReader):
        """As GGUFReader; raises ValueError at the end of the file."""

        def _get(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, offset: Any, dtype: Any, count: Any = 1, **how: Any
        ) -> Any:
            found: Any = super()._get(offset, dtype, count, **how)
            if len(found) < int(count):
                raise ValueError(f"the file ends before {int(count):,} values")
            return found

    return Bounded
