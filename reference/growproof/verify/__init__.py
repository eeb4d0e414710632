"""Whatever made the larger checkpoint: is it the same function?

First every entry of the destination is *accounted for*: the source's own, the source's
times the scalar that the sizes ask for, rounded once, or new and without effect. Where
all are, the two are the same function for every input, and nothing needs to be run.
Otherwise the first tensor, row and column that is not is named, and the function is
measured: logits and loss of the eager clone in float64, then transformers' own forward
pass and a greedy continuation in float32, and where these part, *the first tap* that does.

The budget of what is measured follows from the growth. A weight that has a scalar is
rounded once to the dtype it is stored in, so no fair budget lies below what one such
rounding does to the source, and so is a share of what a neuron with copies writes, if it
is no power of two; any other weight need not change at all, and only the sums over it are
rounded, in float64. Both are measured: every weight of the source is
multiplied by 1 ± u, u of the one dtype or of the other, signs drawn with a seed. The
logits may differ by 4 times what this changes in them, the largest and the root mean
square change alike, the loss by 4 times the mean change of a token's loss (no cancelling
between tokens), and all by no less than 64 u(float64) · max |logit|. A float32 forward
pass has noise of its own, and there every weight is rounded to float32 at the least.

Text depends on what `generate()` is told as well. The settings of both are compared, and
may differ only in what more tokens explain: the new ones must be suppressed, unless a bias
makes their logits too low for every input. Otherwise greedy text could hold one.

Quantised weights (GPTQ, AWQ, FP8 in blocks) are decoded, on both sides, and their entries
accounted for. A growth multiplies no code, so that there an entry that is not accounted
for is a no by itself.

What passes although it is wrong. Accounted for: a scaled entry that is the neighbour of
the right one in its dtype; a growth of a decoder of which transformers computes
something else than the table of its family says; and a model that will train otherwise,
such as with zero readers or with a tied pair come apart, which is the same function for
now. Only measured: a change smaller than its budget, which for a scaled bfloat16 weight
is the change that storing in bfloat16 makes (hence ε, the rotary frequencies,
activations and caps are compared by themselves, to more digits), and a change that the
text does not reach, such as in positions beyond its length or, but for the norm of each
row, in embeddings of tokens that are not in it.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growproof.checkpoints import opened, read_config, weight_files
from growproof.codes import format_of
from growproof.quantised import is_quantised, plain_config
from growproof.reading import BadInput, any_config
from growproof.verify.accounting import Accounted, accounted
from growproof.verify.chosen import generating, new_logits, vocabulary
from growproof.verify.function import (
    MISSED,
    in_the_clone,
    in_transformers,
    of_the_missed,
)
from growproof.verify.outcome import BESIDE, Check, Verification
from growproof.verify.parting import parting
from growproof.verify.reasons import entries, first, unlike
from growproof.verify.rendering import render
from growproof.verify.sides import Side
from growproof.verify.stranger import strangers, unknown
from growproof.verify.structure import structure
from growproof.verify.text import ON_THIS_TEXT, same_tokens, tokens_of

TRIED = " The tokens that a text becomes were compared on one text only."

__all__ = ["Check", "Side", "Verification", "render", "verify"]


def verify(
    source: str | Path,
    destination: str | Path,
    *,
    text: str | None = None,
    tokens: int = 512,
    continuation: int = 16,
    seed: int = 0,
    measure: bool = False,
    progress: bool | None = None,
) -> Verification:
    """Compare two checkpoints as functions.

    source, destination: directories with safetensors, or .gguf files. text: what to run
    them on, by the source's tokenizer (default: the licence of Python, as in the
    article; without a tokenizer, seeded random tokens). tokens: how many of it.
    continuation: the length of the greedy continuation. seed: of the signs of the
    budget. measure: run both even where every entry is accounted for; a text asks for it
    as well. progress: bars on stderr (None: where that is a terminal). Memory: a tensor of
    each side for the accounting, one in float64 for the clone, and one model in float32
    for transformers.
    Raises GrowthError or ValueError for what cannot be compared at all.
    """
    with ExitStack() as stack:
        scratch = Path(tempfile.gettempdir())
        a = stack.enter_context(opened(Path(source), scratch))
        b = stack.enter_context(opened(Path(destination), scratch))
        how = How(text, tokens, continuation, seed, progress)
        checks, said = compare(a, b, how, measure=measure or text is not None)
    return Verification(
        source=str(source),
        destination=str(destination),
        text=said.text,
        tokens=said.tokens,
        checks=tuple(checks),
        verdict=said.verdict,
        parting=said.parting,
    )


@dataclass(frozen=True)
class How:
    """What to run the two on, and how."""

    text: str | None
    tokens: int
    continuation: int
    seed: int
    progress: bool | None

    def ids(self, directory: Path, config: Any) -> tuple[Tensor, str]:
        """The tokens, and what they are."""
        return tokens_of(directory, config, self.text, self.tokens, self.seed)


@dataclass
class Said:
    """What there is to say beside the checks."""

    text: str = "nothing: every entry is accounted for"
    tokens: int = 0
    verdict: str = ""
    parting: str | None = None


def compare(
    source: Path, destination: Path, how: How, *, measure: bool
) -> tuple[list[Check], Said]:
    """Every check, and what is said beside them."""
    stranger = unknown(source)
    try:
        stranger = stranger or unknown(destination)
    except BadInput as error:
        return unreadable(error)
    if stranger:
        ids, text = how.ids(source, any_config(source))
        checks = strangers(source, destination, stranger, ids, how.continuation)
        return checks, Said(text, ids.shape[1])
    old = Side.of(source)
    try:
        refuse_unread(destination)
    except BadInput as error:
        return unreadable(error)
    try:
        new = Side.of(destination)
    except ValueError as error:
        return unreadable(error)
    known = accounted(old, new, progress=how.progress)
    checks = [
        *structure(old, new), *entries(old, new, known), *own_dtype(old, new),
        *chosen(old, new, known), *same_tokens(source, destination),
    ]  # fmt: skip
    if known.complete and not measure:
        return checks, Said(verdict=accounted_for(old, new, known, checks))
    if old.codes and new.codes and not measure:
        return checks, Said("nothing: a code is right or wrong", verdict=first(known))
    ids, text = how.ids(source, old.config)
    checks += measured(old, new, known, ids, how)
    said = Said(text, ids.shape[1])
    if wrong(checks):
        said.verdict = unlike(old, new, known)
        if (
            old.has_clone
            and new.has_clone
            and not all(of_missed(c) for c in wrong(checks))
        ):
            said.parting = parting(old, new, known, ids, how.seed)
    elif known.complete:
        said.verdict = accounted_for(old, new, known, checks)
    return checks, said


def wrong(checks: list[Check]) -> list[Check]:
    """The checks that say that another function is computed."""
    return [c for c in checks if c.passed is False and c.name not in BESIDE]


def of_missed(check: Check) -> bool:
    """Whether it is about the tensors that are not accounted for, and not about taps."""
    return check.name.endswith(MISSED)


def refuse_unread(directory: Path) -> None:
    """Raise GrowthError for a config, a format or files that are not read here."""
    if is_quantised(directory):
        _, said = plain_config(directory)
        format_of(said)
    else:
        read_config(directory)
    weight_files(directory)


def unreadable(error: Exception) -> tuple[list[Check], Said]:
    """What is said of a destination that holds no model: it is not the same function."""
    checks = [Check(name="weights and config", found=str(error), passed=False)]
    return checks, Said("nothing: config and weights disagree")


def own_dtype(old: Side, new: Side) -> list[Check]:
    """A note where the text of two equal functions may differ: in 16 bits.

    A kernel adds up a longer row in another order, and rounds to the dtype as it goes:
    where two tokens are as likely to that precision, another one may be chosen.
    """
    if old.dtype not in (torch.bfloat16, torch.float16) or old.decoder == new.decoder:
        return []
    dtype = str(old.dtype).removeprefix("torch.")
    found = (
        f"may differ: kernels add longer rows in another order and round to {dtype} as "
        "they go, so that of two tokens that are as likely another may be chosen"
    )
    return [Check(name=f"greedy text in {dtype}", found=found, passed=None)]


def measured(
    old: Side, new: Side, known: Accounted, ids: Tensor, how: How
) -> list[Check]:
    """The function on a text: in the clone, if there is one, and in transformers."""
    if new.decoder.vocab < old.decoder.vocab:
        return []
    if old.has_clone and new.has_clone:
        checks = in_the_clone(old, new, known, ids, how.seed, how.progress)
        checks += of_the_missed(old, new, known, ids, how.seed)
    else:
        d = old.decoder
        found = f"the clone has no {d.activation} with {d.rotary.kind} rope"
        checks = [Check(name="float64", found=found, passed=None)]
    if old.codes or new.codes:
        found = "not run: codes are decoded and compared, without the kernels for them"
        return [*checks, Check(name="transformers", found=found, passed=None)]
    return checks + in_transformers(old, new, known, ids, how.continuation, how.seed)


def chosen(old: Side, new: Side, known: Accounted) -> list[Check]:
    """What the new tokens are, if there are any, and what generate() is told."""
    n, m = old.decoder.vocab, new.decoder.vocab
    if m <= n:
        return [generating(old.directory, new.directory, n, m, None)]
    by, level = new_logits(new, n)
    return [
        vocabulary(old, new, by, kept=known.complete),
        generating(old.directory, new.directory, n, m, level),
    ]


def accounted_for(old: Side, new: Side, known: Accounted, checks: list[Check]) -> str:
    """The verdict where every entry is accounted for."""
    n, m = old.decoder.vocab, new.decoder.vocab
    if wrong(checks):
        return "Every entry is accounted for: what differs is in the config."
    beside = [BESIDE[c.name] for c in checks if c.passed is False and c.name in BESIDE]
    said = "The logits are the same function" if beside else "The same function"
    said += " on the old tokens, for" if m > n else " for"
    said += " every input: every entry is accounted for."
    if narrowed := known.account.narrowed if known.account else {}:
        few, of = len(narrowed), len(new.state)
        which = "each weight is" if few == of else f"{few} of {of} tensors are"
        which = f"{which} rounded to"
        to = " or ".join(sorted({str(dtype)[6:] for dtype in narrowed.values()}))
        said = said.replace("every input:", f"every input, once {which} {to}:")
    said += f" Tokens {n} to {m - 1} are new." if m > n else ""
    said += TRIED if any(ON_THIS_TEXT in c.found for c in checks) else ""
    return " ".join([said, *beside])
