"""What the two are run on: a text, by the source's tokenizer, or random tokens.

And whether the two checkpoints' tokenizers make the same tokens of a text: logits of ids
say nothing of a token whose id is another one's.
"""

import filecmp
import json
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growproof.reading import BadInput, tokenizer_in
from growproof.verify.outcome import TOKENIZER, Check

ODD = "  I'm not; naïve\tÜber 你好 🙂 1234567 3.14\n\n<|endoftext|> a_b </s>"

# what a tokenizer is made from: transformers 5 keeps the template in a file of its own
FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json",
         "vocab.*", "merges.txt", "*.model")  # fmt: skip
# parts of tokenizer.json that are compared by what they do, or set by each call
JUDGED = ("version", "decoder", "truncation", "padding")
ON_THIS_TEXT = "the same tokens on this text"

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


# --- tokenizers -------------------------------------------------------------------------


def same_tokens(source: Path, destination: Path) -> list[Check]:
    """Whether each old token has its id, and a text is the same tokens, in both.

    Nothing where neither has a tokenizer, and a note where one has none.
    """
    files = [{p.name for p in d.glob("tokenizer*")} for d in (source, destination)]
    if not all(files):
        one = "source" if files[0] else "destination"
        said = f"there is one in the {one} only"
        return [Check(name=TOKENIZER, found=said, passed=None)] if any(files) else []
    every = {p.name for d in (source, destination) for g in FILES for p in d.glob(g)}
    _, differ, errors = filecmp.cmpfiles(source, destination, every, shallow=False)
    if not differ and not errors:
        return [Check(name=TOKENIZER, found="the same files", passed=True)]
    try:
        old = tokenizer_in(source)
    except BadInput as error:
        return [Check(name=TOKENIZER, found=str(error), passed=None)]
    try:
        new = tokenizer_in(destination)
    except BadInput as error:
        lacking = isinstance(error.__cause__, ImportError)  # sentencepiece, tiktoken
        return [
            Check(name=TOKENIZER, found=str(error), passed=None if lacking else False)
        ]
    return [compared(old, new)]


def compared(old: Any, new: Any) -> Check:
    """Two tokenizers: the ids of all old tokens, and those of a text, and its decoding."""
    before, after = old.get_vocab(), new.get_vocab()
    moved = sorted((i, t) for t, i in before.items() if after.get(t) != i)
    if moved:
        i, token = moved[0]
        more = f", and {len(moved) - 1:,} more" if moved[1:] else ""
        said = f"token {i}, {token!r}, is {after.get(token, 'not there')}{more}"
        return Check(name=TOKENIZER, found=said, passed=False)
    beside = "".join(f"a{t}b {t} {t}{t}\n" for t in old.get_added_vocab())
    text = f"{licence()[0][:4000]}{ODD}{beside}"
    ids, others = (list[int](each(text).input_ids) for each in (old, new))
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False))
    at = len([*alike])
    said = f"the same {len(before):,} tokens"
    if more := len(after) - len(before):
        said += f", and {more:,} new ones"
    if differ := other_parts(old, new):
        said += f"; other {', '.join(differ)}"
    if ids != others:
        said += f"; a text becomes others from behind {old.decode(ids[:at])[-20:]!r}"
        return Check(name=TOKENIZER, found=said, passed=None if more else False)
    if old.decode(ids) != new.decode(ids):
        return Check(name=TOKENIZER, found=f"{said}, decoded otherwise", passed=False)
    if old.chat_template != new.chat_template:
        return Check(
            name=TOKENIZER, found=f"{said}; another chat template", passed=None
        )
    if differ:
        return Check(name=TOKENIZER, found=f"{said}: {ON_THIS_TEXT}", passed=None)
    return Check(name=TOKENIZER, found=said, passed=True)


def other_parts(old: Any, new: Any) -> list[str]:
    """The parts of two fast tokenizers that are others, but for new tokens."""
    before, after = (parts_of(each) for each in (old, new))
    if "added_tokens" in before and "added_tokens" in after:
        ids = {token["id"] for token in before["added_tokens"]}
        after["added_tokens"] = [t for t in after["added_tokens"] if t["id"] in ids]
    if "scores" in before and "scores" in after:
        after["scores"] = after["scores"][: len(before["scores"])]
    names = sorted(before.keys() & after.keys())
    return [name.replace("_", " ") for name in names if before[name] != after[name]]


def parts_of(tokenizer: Any) -> dict[str, Any]:
    """What tokenizer.json holds beside the vocabulary; nothing of a slow tokenizer."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    found: dict[str, Any] = json.loads(inner.to_str()) if inner else {}
    model: dict[str, Any] = found.pop("model", {})
    scores = model.pop("vocab", None)
    found |= model | ({"scores": scores} if isinstance(scores, list) else {})
    return {k: v for k, v in found.items() if k not in JUDGED}
