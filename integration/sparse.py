"""Grow a large Llama all of whose bytes are holes, and say what memory that took.

`python -m integration.sparse DIRECTORY LAYERS`: prints, as JSON, the bytes of the source
and of the destination, and by how many bytes the peak lies above what the imports took.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from growproof.checkpoints import grow_checkpoint
from growproof.families import family_of
from growproof.models import decoder_of
from growproof.shards import create
from growproof.table import tensors
from transformers import LlamaConfig


def sparse(directory: Path, config: LlamaConfig) -> Path:
    """A checkpoint in bfloat16, in files that are all holes."""
    directory.mkdir()
    config.save_pretrained(directory)
    d = decoder_of(config)
    state = {
        name: torch.empty(size, dtype=torch.bfloat16, device="meta")
        for name, size in tensors(d)
    }
    stored = dict(family_of(config).write(state, d, disk=True))
    with ExitStack() as files:
        create(stored, directory, 1_000_000_000, files)
    return directory


def peak() -> int:
    """The most memory that was resident at once, in bytes, since the last `forget`."""
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def forget() -> None:
    """Let the peak be what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def size(directory: Path) -> int:
    """The bytes of all weights in a directory, holes counted."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def main() -> None:
    """Grow everything that a row of the table scales, and everything that it does not."""
    at = Path(sys.argv[1])
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=8192,
        num_hidden_layers=int(sys.argv[2]), num_attention_heads=16,
        num_key_value_heads=16, head_dim=128, dtype=torch.bfloat16,
        tie_word_embeddings=True,
    )  # fmt: skip
    source = sparse(at / "source", config)
    grow_checkpoint(source, at / "small", {"vocab_size": 32_064}, progress=False)
    forget()
    before = peak()
    target = {"hidden_size": 2560, "head_dim": 160, "intermediate_size": 10_240}
    grow_checkpoint(source, at / "grown", target, progress=False)
    found = {"source": size(source), "grown": size(at / "grown")}
    print(json.dumps(found | {"extra": peak() - before}))


if __name__ == "__main__":
    main()
