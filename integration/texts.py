"""What the shipped checkpoints read: the Python licence, text that Python ships, tokens."""

from __future__ import annotations

import ast
import builtins
import contextlib
import hashlib
import inspect
import io
import sysconfig
from pathlib import Path

import tokenizers
import transformers

LICENCE = Path(__file__).with_name("licence.txt")
END = "<|endoftext|>"
VOCABULARY = 1280


def python_licence() -> str:
    """The licence that this Python's `license()` prints, all of it, one final newline.

    Raises RuntimeError where the builtin is missing (`python -S`), prints only a URL
    (Pythons packaged without LICENSE.txt), or has found some other LICENSE: its last
    resort is the working directory.
    """
    printer = getattr(builtins, "license", None)
    if printer is None:
        raise RuntimeError("this Python has no `license` builtin: is it run with -S?")
    printed = io.StringIO()
    shown, printer.MAXLINES = printer.MAXLINES, 1 << 30
    try:
        with contextlib.redirect_stdout(printed):
            printer()
    finally:
        printer.MAXLINES = shown
    text = printed.getvalue().strip() + "\n"
    if "PYTHON SOFTWARE FOUNDATION LICENSE" not in text:
        raise RuntimeError(
            f"license() printed {text[:60]!r}, {len(text)} characters, not the Python "
            f"licence: this Python ships without its LICENSE.txt. Use {LICENCE.name}."
        )
    return text


def library_texts() -> list[str]:
    """English prose of this Python: its help topics, its modules' docstrings."""
    from pydoc_data.topics import topics

    texts = [text for _, text in sorted(topics.items())]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        docs = (ast.get_docstring(n) for n in nodes if isinstance(n, documented))
        texts.append("\n\n".join(inspect.cleandoc(doc) for doc in docs if doc))
    return [text.strip() + "\n" for text in texts if len(text) > 200]


def train_tokenizer(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of VOCABULARY tokens, id 0 being END; any bytes round-trip."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def fingerprint(text: Path) -> str:
    """The sha256 of a text file, whatever newlines this checkout gave it."""
    return hashlib.sha256(text.read_text(encoding="utf-8").encode()).hexdigest()
