"""What the two are run on: a text, by the source's tokenizer, or random tokens."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growproof.reading import tokenizer_in

FALLBACK = """\
A model that was trained for months holds in its weights whatever it has learned, and
one would rather not lose that when a larger one is wanted. So the larger model begins
as the smaller one: every matrix is written into a larger matrix, zeros stand around it,
and a few scalars make up for the sizes that a norm or a softmax divides by. Nothing has
been learned by this, and nothing has been forgotten. What comes next, the training of
the parameters that are new, begins at the loss at which the old training ended.
"""


def tokens_of(
    directory: Path, config: Any, text: str | None, length: int, seed: int
) -> tuple[Tensor, str]:
    """((1, T) token ids, what they are), T at most `length` and the model's positions."""
    length = min(length, getattr(config, "max_position_embeddings", length))
    if length < 2:
        raise ValueError(f"a loss needs at least 2 tokens, got {length}")
    tokenizer = tokenizer_in(directory)
    if tokenizer is None:
        if text is not None:
            raise ValueError(f"{directory} has no tokenizer to read the text with")
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(config.vocab_size, (1, length), generator=generator)
        return ids, "random tokens, as the source has no tokenizer"
    text, described = (text, "the given text") if text is not None else licence()
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :length]
    if ids.shape[1] < 2 or ids.max() >= config.vocab_size:
        raise ValueError(
            f"the tokenizer in {directory} makes {ids.shape[1]} tokens of the text, "
            f"up to id {ids.max() if ids.numel() else None}: at least 2 are needed, all "
            f"below the vocabulary's {config.vocab_size}"
        )
    return ids, described


def licence() -> tuple[str, str]:
    """The article's text, which this interpreter prints, and its description."""
    command = "license.MAXLINES=1<<30;license()"
    printed = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", command],
        capture_output=True,
        encoding="utf-8",
        check=False,
    ).stdout
    if "PYTHON SOFTWARE FOUNDATION" in printed:
        return printed, "the Python licence text"
    return FALLBACK, "a built-in paragraph, as this Python prints no licence"
