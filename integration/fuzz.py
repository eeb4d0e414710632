"""No file makes a reader crash, hang or write: valid files, mutated, and the outcome.

    python -m integration.fuzz --inputs 1000000 --record integration/results/fuzz.json

Each input is a valid file with a few random edits, which its number repeats:
`python -m integration.fuzz --target config --seed 1234 --inputs 1`. It is read, or it is
refused by the documented error; anything else, more than `LIMIT` seconds of a processor
(or 20 times as long by the clock), or a file that was not there before, is a finding, and
the exit code is 1.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import io
import json
import random
import signal
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from growproof import checkpoints, reading
from growproof.decoder import GrowthError
from growproof.families import FAMILIES
from growproof.models import plan_model
from growproof.verify.chosen import told
from transformers import CONFIG_MAPPING, GenerationConfig
from transformers.utils import logging

from properties.errors import comparison, samples, storage
from properties.errors.latex import latex
from properties.errors.ledger import LedgerError
from properties.errors.page import page
from properties.errors.report import parser
from properties.errors.text import markdown
from properties.gate import xfails
from properties.score import document, report
from properties.score import samples as scores

from .mutations import damaged, mutated, of_json

HERE = Path(__file__).parent
LIMIT = 5  # seconds for one input
READERS = ("transformers", "safetensors", "gguf", "jsonschema")
ROUND = 2_000  # inputs
MEMORY = (
    "/dev/shm" if Path("/dev/shm").is_dir() else None
)  # a disk takes most of the time
DOCUMENTED = (GrowthError, LedgerError, xfails.XfailError)


class Hang(BaseException):
    """An input took longer than the limit."""


# --- targets: what is written, and who reads it -----------------------------------------


class Target:
    """A kind of file: valid ones, an edit of one, and its reader."""

    def __init__(
        self,
        name: str,
        valid: Callable[[], list[Any]],
        edit: Callable[[Any, random.Random], bytes],
        read: Callable[[Path], Any],
    ) -> None:
        self.name, self.edit, self.read = name, edit, read
        self.valid = valid()

    def write(self, folder: Path, draw: random.Random) -> None:
        """Put one input in its place."""
        (folder / self.name).write_bytes(self.edit(draw.choice(self.valid), draw))


def configs() -> list[dict[str, Any]]:
    """The default config of every family."""
    return [CONFIG_MAPPING[name]().to_dict() for name in FAMILIES]


def read_config(folder: Path) -> None:
    """As `grow` reads it, up to the plan of a growth."""
    config = reading.config_in(folder)
    with suppress(ValueError):  # what cannot be grown
        plan_model(config, {"num_hidden_layers": config.num_hidden_layers + 1})


def generations() -> list[dict[str, Any]]:
    """A generation config, and one that says more."""
    more = {
        "suppress_tokens": [1, 2], "bad_words_ids": [[1], [2, 3]], "eos_token_id": [0, 1],
        "sequence_bias": [[[1, 2], -1.0]], "begin_suppress_tokens": [3], "max_length": 9,
    }  # fmt: skip
    return [GenerationConfig(**fields).to_dict() for fields in ({}, more)]


def indexes() -> list[dict[str, Any]]:
    """An index of two shards, one of which is there."""
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    return [
        {"metadata": {"total_size": 64}, "weight_map": dict.fromkeys(names, "a.bin")}
    ]


def safetensors() -> list[dict[str, Any]]:
    """The header of a file of three tensors."""
    header = {
        name: {"dtype": dtype, "shape": [2, 2], "data_offsets": [8 * i, 8 * i + 8]}
        for i, (name, dtype) in enumerate((("a", "BF16"), ("b", "F16"), ("c", "BF16")))
    }
    return [header]


def framed(header: bytes, length: int | None = None) -> bytes:
    """A header behind its length, and 24 bytes of tensors."""
    size = len(header) if length is None else length
    return struct.pack("<Q", size) + header + bytes(24)


def with_header(value: Any, draw: random.Random) -> bytes:
    """A safetensors file of a mutated header, or one with damaged bytes."""
    found = mutated(value, draw) if draw.random() < 0.7 else value
    header = json.dumps(found).encode()
    length = len(header) if draw.random() < 0.8 else draw.choice((0, 2**20, 2**63))
    data = framed(header, length)
    return damaged(data, draw, len(data)) if draw.random() < 0.3 else data


def read_weights(folder: Path) -> None:
    """Header and every tensor."""
    file, dtypes = reading.safetensors_in(folder / "model.safetensors")
    for name, dtype in dtypes.items():
        reading.refuse_quantised(name, dtype)
        with reading.refused(name, "a tensor"):
            file.get_tensor(name)


def ggufs() -> list[bytes]:
    """The header of a small GGUF file, and a tensor."""
    import numpy
    from gguf import GGUFWriter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.gguf")
        writer = GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_embedding_length(4)
        writer.add_token_list(["a", "b", "c"])
        writer.add_array("llama.x", [1, 2, 3])
        writer.add_tensor("token_embd.weight", numpy.zeros((3, 4), numpy.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return [path.read_bytes()]


def lines() -> list[bytes]:
    """A file of expected failures."""
    return [
        b"# law | reason | link | expires | ceiling\n"
        b"test_a | because | issue 7 | 2030-01-31 | 40\n"
        b"test_b[llama-heads] | a reason | | | 1e-3\n"
    ]


def read_ledger(folder: Path) -> None:
    """As a run, and as a baseline of another."""
    found = storage.load(folder / "errors.json")
    for a, b in ((found, GOOD), (GOOD, found)):
        comparison.differences(a, b)
        comparison.compare(a, b, factor=2.0)


def scored() -> list[dict[str, Any]]:
    """A green score and a red one, without a digest."""
    both = scores.score(edition="2027"), scores.red()
    return [json.loads(document.dumps(score)) for score in both]


def with_digest(value: Any, draw: random.Random) -> bytes:
    """A mutated score, at times with the digest that it has now, or with another."""
    data = of_json(value, draw)
    if draw.random() < 0.4:
        return data
    text = data.decode("utf-8", "replace").removesuffix("}") + ","
    text += f'"digest": "{document.NO_DIGEST}"\n}}\n'
    digest = document.digest_of(text).join(text.rsplit(document.NO_DIGEST, 1))
    data = digest.encode()
    return damaged(data, draw, len(data)) if draw.random() < 0.1 else data


def read_score(folder: Path) -> None:
    """As `growproof report --check` and `growproof report` read it, every page made."""
    path = str(folder / "score.json")
    with redirect_stdout(io.StringIO()):
        report.check(path)
        found = report.shown(parser().parse_args([path])).page
        for form in (page, markdown, latex):
            form(found)


GOOD = storage.loads(samples.GOOD)
TARGETS = {
    "config": lambda: Target("config.json", configs, of_json, read_config),
    "generation": lambda: Target(
        "generation_config.json",
        generations,
        of_json,
        lambda folder: told(folder, 2),
    ),
    "index": lambda: Target(
        checkpoints.INDEX, indexes, of_json, checkpoints.weight_files
    ),
    "safetensors": lambda: Target(
        checkpoints.SINGLE, safetensors, with_header, read_weights
    ),
    "gguf": lambda: Target(
        "a.gguf",
        ggufs,
        lambda data, draw: damaged(data, draw, len(data)),
        lambda folder: reading.check_gguf(folder / "a.gguf"),
    ),
    "xfails": lambda: Target(
        "xfails.txt",
        lines,
        lambda data, draw: damaged(data, draw, len(data)),
        lambda folder: xfails.load(folder / "xfails.txt"),
    ),
    "ledger": lambda: Target(
        "errors.json", lambda: [json.loads(samples.GOOD)], of_json, read_ledger
    ),
    "score": lambda: Target("score.json", scored, with_digest, read_score),
}
made = functools.cache(lambda name: TARGETS[name]())
# how much of a long run each has: configs are what people write by hand
SHARE = {"config": 8, "index": 2, "safetensors": 3, "gguf": 1, "ledger": 1}


# --- runs -------------------------------------------------------------------------------


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Hang in the main thread after that time of a processor, or 20 times of a clock."""
    timers = {signal.ITIMER_PROF: seconds, signal.ITIMER_REAL: 20 * seconds}

    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds:g} s")

    before = {
        kind: signal.signal(kind, stop) for kind in (signal.SIGPROF, signal.SIGALRM)
    }
    try:
        for timer, after in timers.items():
            signal.setitimer(timer, after)
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for kind, handler in before.items():
            signal.signal(kind, handler)


def outcome(target: Target, folder: Path, draw: random.Random) -> str:
    """ "read", "refused", or what went wrong with one input."""
    target.write(folder, draw)
    try:
        with limited(LIMIT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder)
    except DOCUMENTED as error:
        said = str(error)
        return "refused" if said and "\n" not in said else f"refused by {said!r}"
    except (Exception, Hang) as error:
        return f"{type(error).__name__}: {error}"
    return "read"


def fuzz(name: str, seeds: range, found: Counter[str], findings: list[Any]) -> None:
    """Count the outcomes of these inputs, and keep what is wrong."""
    target = made(name)
    with tempfile.TemporaryDirectory(dir=MEMORY) as home:
        folder = Path(home)
        (folder / "a.bin").write_bytes(b"")
        there = {"a.bin", target.name}
        for seed in seeds:
            said = outcome(target, folder, random.Random(f"{name} {seed}"))
            extra = {p.name for p in folder.iterdir()} - there
            if extra:
                said = f"left {sorted(extra)}"
            found[said if said in ("read", "refused") else "wrong"] += 1
            if said not in ("read", "refused"):
                findings.append({"target": name, "seed": seed, "said": said[:300]})


def run(names: list[str], inputs: int, first: int) -> dict[str, Any]:
    """All targets, by their shares: the outcomes of each, and the findings."""
    whole = sum(SHARE.get(name, 1) for name in names)
    rows: dict[str, Any] = {}
    findings: list[Any] = []
    for name in names:
        n = max(1, round(inputs * SHARE.get(name, 1) / whole))
        found: Counter[str] = Counter()
        fuzz(name, range(first, first + n), found, findings)
        rows[name] = {
            "inputs": n,
            **{k: found[k] for k in ("read", "refused", "wrong")},
        }
    return {
        "made": datetime.date.today().isoformat(),
        "versions": {name: metadata.version(name) for name in READERS},
        "seconds_for_one": LIMIT,
        "inputs": sum(row["inputs"] for row in rows.values()),
        "targets": rows,
        "findings": findings,
    }


def added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two rounds as one."""
    rows = {
        name: {k: n + b["targets"][name][k] for k, n in row.items()}
        for name, row in a["targets"].items()
    }
    both = {"inputs": a["inputs"] + b["inputs"], "targets": rows}
    return b | both | {"findings": [*a["findings"], *b["findings"]][:100]}


def main() -> int:
    """0 where nothing was found, 1 else. The record is rewritten after every round."""
    parser = argparse.ArgumentParser(
        description="Mutated files, and what became of them."
    )
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--record", type=Path, help="write the outcome as JSON")
    args = parser.parse_args()
    logging.set_verbosity_error()
    names, found = args.target or [*TARGETS], None
    for done in range(0, args.inputs, ROUND):
        part = run(names, min(ROUND, args.inputs - done), args.seed + done)
        found = added(found, part) if found else part
        print(
            found["inputs"], found["targets"], *part["findings"], sep="\n", flush=True
        )
        if args.record:
            args.record.write_text(json.dumps(found, indent=1) + "\n")
    return int(not found or bool(found["findings"]))


if __name__ == "__main__":
    sys.exit(main())
