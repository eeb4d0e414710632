"""Families that growproof has no table of: through transformers alone."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from growproof.checkpoints import weight_files
from growproof.decoder import GrowthError
from growproof.families import family_named
from growproof.family import SIZES
from growproof.reading import BadInput, any_config, decoder_in, fields_of
from growproof.rounding import largest, rounded
from growproof.verify.chosen import generating
from growproof.verify.function import (
    budget_of,
    continued,
    function_checks,
    same_words,
    unrunnable,
)
from growproof.verify.outcome import BESIDE, Check
from growproof.verify.text import same_tokens

hub: Any = transformers  # untyped
# fields that say who wrote a config
MADE = ("_name_or_path", "architectures", "transformers_version")
NOT_LOOKED_AT = (
    "tensors one by one, float64 sums, ε, rotary frequencies and taps: {why}. Only what "
    "transformers computes is compared"
)


def unknown(directory: Path) -> str:
    """Why growproof's own tables do not reach, where transformers has the family; or ''."""
    fields = fields_of(directory)
    kind = fields["model_type"]
    if fields.get("quantization_config"):
        return ""  # said better where it is read
    try:
        family_named(kind)
        if not kind.startswith("masked_"):
            decoder_in(any_config(directory), directory / "config.json")
    except BadInput:
        return ""
    except GrowthError as error:
        return str(error) if kind in hub.CONFIG_MAPPING else ""
    return ""


@torch.no_grad()
def strangers(
    source: Path, destination: Path, why: str, ids: Tensor, continuation: int
) -> list[Check]:
    """Logits, loss and greedy text, in float64 and float32, and what was not looked at."""
    weight_files(source)
    weight_files(destination)
    kinds = [str(any_config(path).model_type) for path in (source, destination)]
    family = kinds[0] if kinds[0] == kinds[1] else " → ".join(kinds)
    note = NOT_LOOKED_AT.format(why=why.split(":")[0])
    checks = [
        Check(
            name="family", found=family, passed=True if kinds[0] == kinds[1] else None
        ),
        Check(name="not looked at", found=note, passed=None),
    ]
    checks += other_fields(source, destination)
    checks += [told(source, destination), *same_tokens(source, destination)]
    for dtype in (torch.float64, torch.float32):
        checks += in_dtype(source, destination, ids, continuation, dtype)
        if any(c.passed is False and c.name not in BESIDE for c in checks):
            break
    return checks


def other_fields(source: Path, destination: Path) -> list[Check]:
    """A note that names what the configs say otherwise, beside the sizes."""
    a, b = (any_config(path).to_dict() for path in (source, destination))
    names = sorted({*a, *b} - {*SIZES.values(), *MADE})
    found = [f"{n} {a.get(n)} → {b.get(n)}" for n in names if a.get(n) != b.get(n)]
    if not found:
        return []
    said = "\n".join([*found, "they may show in other texts than this one"])
    return [Check(name="config", found=said, passed=None)]


def told(source: Path, destination: Path) -> Check:
    """What generate() is told; no table says that a new token's logit is too low."""
    sizes = [any_config(path).get_text_config() for path in (source, destination)]
    n, m = (size.vocab_size for size in sizes)
    return generating(source, destination, n, m, "whatever it is: there is no table")


def in_dtype(
    source: Path, destination: Path, ids: Tensor, continuation: int, dtype: torch.dtype
) -> list[Check]:
    """Logits and loss in one dtype; greedy text in float32.

    The budget is the source's response to one rounding to float32 of every weight:
    transformers computes softmax, norms and rotary angles in float32 in any case.
    """
    name = f"transformers, {str(dtype)[6:]}"
    try:
        model = loaded(source, dtype)
        want = model(ids).logits[0].double()
        words, scores = continued(model, ids, continuation)
    except Exception as error:
        raise unrunnable(source, error) from error
    for parameter, p in model.named_parameters():
        p.copy_(rounded(parameter, p, torch.float32, 0))
    shaken = model(ids).logits[0].double()
    del model
    try:
        model = loaded(destination, dtype)
        got = model(ids).logits[0].double()
        words_new, _ = continued(model, ids, continuation)
    except Exception as error:  # whatever a stranger's checkpoint makes it raise
        found = f"{type(error).__name__}: {error}"
        return [Check(name=f"runs in {name}", found=found, passed=False)]
    checks = function_checks(name, want, shaken, got, ids)
    if dtype == torch.float32:
        margin = 2 * budget_of(largest(shaken - want), want)
        checks.append(same_words(words, words_new, scores, margin))
    return checks


def loaded(directory: Path, dtype: torch.dtype) -> Any:
    """The model, by transformers' own code. ValueError where it is there in part."""
    model, info = hub.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, output_loading_info=True, trust_remote_code=False,
        experts_implementation="eager",  # the others know no float64
    )  # fmt: skip
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if wrong:
        raise ValueError(f"transformers loads {directory} only in part: {wrong}")
    return model.eval()
