"""What `generate()` chooses from: its settings, and the new tokens among the logits.

A checkpoint tells `generate()` by generation_config.json, or where there is none by
config.json, which tokens end a text, which are never chosen, and how chance is used. Two
models with the same logits write the same only where they are told the same. A new token
must be suppressed, or its logit so low that its probability is 0 for every input.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from growproof.blocks import blocks
from growproof.decoder import Decoder
from growproof.padding import State
from growproof.reading import BadInput, generation_of, hub, refused
from growproof.verify.outcome import GENERATE, Check
from growproof.verify.sides import Side
from growproof.vocabulary import Carrier, softmax

NEVER = -746.0  # below it exp is 0 in every dtype
Settings = Mapping[str, Any]
# how a text is computed and returned, and who wrote the file: not which tokens it has
COMPUTED = {
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config",
    "disable_compile", "low_memory", "prefill_chunk_size", "continuous_batching_config",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "transformers_version", "_from_model_config",
}  # fmt: skip
# lists of tokens, and of words of tokens, that are not chosen
TOKENS = ("suppress_tokens", "begin_suppress_tokens")
WORDS = ("bad_words_ids", "sequence_bias")


# --- settings ---------------------------------------------------------------------------


def generating(
    source: Path, destination: Path, vocab: int, larger: int, level: str | None
) -> Check:
    """The settings of generate(), but for what more tokens explain.

    vocab, larger: tokens of the two. level: what the new tokens' logits are, in words;
    None where they cannot be chosen.
    """
    before, _ = told(source, vocab)
    try:
        after, banned = told(destination, vocab)
    except BadInput as error:
        return Check(name=GENERATE, found=str(error), passed=False)
    free = [] if level is None else sorted({*range(vocab, larger)} - banned)
    found = [*changes(before, after)]
    if free:
        found.append(
            f"{tokens(free)} not suppressed: greedy generation chooses one where no old "
            f"logit is greater than theirs ({level}), sampling anywhere. Name them in "
            "suppress_tokens of generation_config.json"
        )
    said = "told the same"
    if larger > vocab:
        how = "lie too low" if level is None else "are suppressed"
        said += f"; new tokens {how}: none is chosen"
    return Check(name=GENERATE, found="\n".join(found) or said, passed=not found)


def told(directory: Path, vocab: int) -> tuple[Settings, set[int]]:
    """The settings of a checkpoint, and the tokens that it never chooses."""
    found = generation_of(directory)
    with refused(directory / "generation_config.json", "tokens and words of tokens"):
        plain: Settings = json.loads(found.to_json_string(use_diff=False))
        return settings(plain, vocab), banned(plain)


def settings(told: Settings, vocab: int) -> dict[str, Any]:
    """What decides on the tokens of a text, as far as it speaks of the first `vocab`."""
    usual: Settings = hub().GenerationConfig._get_default_generation_params()
    found = {k: usual.get(k) if v is None else v for k, v in told.items()}
    found |= {k: {t for t in found.get(k) or () if t < vocab} for k in TOKENS}
    found |= {k: old_words(found.get(k), vocab) for k in WORDS}
    found["eos_token_id"] = ends(found.get("eos_token_id"))
    return {name: value for name, value in found.items() if name not in COMPUTED}


def ends(token: Any) -> Any:
    """The token that ends a text, or a list of such in order."""
    if not isinstance(token, list):
        return token
    found: list[Any] = sorted({*cast("list[Any]", token)})
    return found[0] if len(found) == 1 else found


def old_words(words: Any, vocab: int) -> list[str]:
    """Words of old tokens alone, or their biases, in an order of their own."""
    return sorted(str(w) for w in words or () if all(t < vocab for t in numbers(w)))


def numbers(word: Any) -> list[int]:
    """The tokens of [1, 2], and of the biased [[1, 2], 0.5]."""
    return word[0] if word and isinstance(word[0], list) else word


def banned(told: Settings) -> set[int]:
    """The tokens that are never chosen: suppressed, or a bad word by themselves."""
    words: list[list[int]] = told.get("bad_words_ids") or []
    return {*(told.get("suppress_tokens") or ())} | {w[0] for w in words if len(w) == 1}


def changes(before: Settings, after: Settings) -> Iterator[str]:
    """Each setting that is another one, before and after."""
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        if a == b:
            continue
        if name in TOKENS:
            yield from moved(name, a or set(), b or set())
        else:
            yield f"{name} {shown(a)} → {shown(b)}"


def moved(name: str, a: set[int], b: set[int]) -> Iterator[str]:
    """Old tokens that are in one of two lists."""
    lost, more = sorted(a - b), sorted(b - a)
    if lost:
        yield f"{tokens(lost)} no longer in {name}, where the source has them"
    if more:
        yield f"{tokens(more)} in {name}, where the source has not"


def shown(value: Any) -> str:
    """A setting, in a line."""
    said = str(value)
    return said if len(said) <= 60 else f"{said[:59]}…"


def tokens(ids: Iterable[int]) -> str:
    """`token 3 is`, `tokens 48 to 51, 60 are`."""
    runs = [
        [i for _, i in run] for _, run in groupby(enumerate(ids), lambda x: x[1] - x[0])
    ]
    said = [f"{r[0]}" if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs]
    many = len(runs) > 1 or len(runs[0]) > 1
    listed = ", ".join(said[:8]) + (", …" if len(said) > 8 else "")
    return f"tokens {listed} are" if many else f"token {listed} is"


# --- logits of new tokens ---------------------------------------------------------------


def new_logits(side: Side, vocab: int) -> tuple[Carrier | None, str | None]:
    """What keeps new tokens from being chosen, and what their logits are, in words.

    (None, level) where they have logits that say nothing; (carrier, None) where a bias
    makes them too low; `generation config` where rows of zeros give every one the same.
    """
    d, state = side.decoder, side.state
    if silent(d, state, vocab):
        return ("head bias" if "head.bias" in state else "LayerNorm bias"), None
    rows = state[d.head][vocab:]
    if rows.any() or "head.bias" in state:
        return None, "what their rows and biases give"
    return "generation config", "0"


def silent(d: Decoder, state: State, vocab: int) -> bool:
    """True where no input gives a token from `vocab` on a probability above 0."""
    if d.logit_cap or d.logit_divisor <= 0:
        return False
    least, most = bounds(d, state)
    return bool(most[vocab:].max() - least[:vocab].max() < NEVER * d.logit_divisor)


def bounds(d: Decoder, state: State) -> tuple[Tensor, Tensor]:
    """The least and the greatest logit of each token over all inputs: (V,) float64.

    A logit is w · (γ x̂ + β) + b with |x̂| ≤ √n, n the norm's divisor, so that it is within
    √n |w γ| of w · β + b. In a LayerNorm x̂ has the mean 0, which a constant in w γ meets.
    """
    head, gamma = state[d.head], state["final_norm.weight"].double()
    beta = (
        state["final_norm.bias"].double() if "final_norm.bias" in state else 0 * gamma
    )
    middle, spread = torch.empty(2, len(head), dtype=torch.float64)
    for rows in blocks(len(head), head.shape[1]):
        w = head[rows].double()
        read = w * (gamma + d.norm_offset)
        if d.norm == "layer":
            read[:, : d.norm_size] -= read[:, : d.norm_size].mean(1, keepdim=True)
        middle[rows], spread[rows] = (
            w @ beta,
            d.norm_size**0.5 * read.square().sum(1).sqrt(),
        )
    middle += state["head.bias"].double() if "head.bias" in state else 0
    return middle - spread, middle + spread


def vocabulary(old: Side, new: Side, by: Carrier | None, *, kept: bool) -> Check:
    """What the new rows are, and what became of the softmax. kept: no old row changed."""
    n, m = old.decoder.vocab, new.decoder.vocab
    rows = f"rows {n} to {m - 1} are new" + (
        ", the old ones as they were" if kept else ""
    )
    return Check(name="vocabulary", found=f"{rows}; {softmax(n, m, by)}", passed=None)
