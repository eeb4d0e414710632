"""Logits, loss and greedy text: in the clone in float64, and in transformers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from growproof.clone import Taps, stages
from growproof.decoder import Decoder, GrowthError
from growproof.models import build
from growproof.padding import State
from growproof.rounding import holds, largest, rounded, unit_roundoff
from growproof.table import rows, template_of
from growproof.verify.accounting import FACTORS, Accounted
from growproof.verify.entries import Miss
from growproof.verify.outcome import Check
from growproof.verify.sides import Side

hub: Any = transformers  # untyped

FACTOR = 4  # of the source's response to one rounding of its weights
FLOOR = 64 * unit_roundoff(torch.float64)  # of the largest value compared
MISSED = "not accounted for"
PROMPT = 64  # tokens before the greedy continuation

Run = Iterator[tuple[str, Taps]]


def precision(
    d: Decoder, old: Side, new: Side, known: Accounted
) -> Callable[[str], torch.dtype]:
    """What each weight of a decoder, one of the two, had to be rounded to once.

    The destination's dtype, where it is a narrower one, or where the growth has a scalar
    or a centring for it, or may have where it could not be placed and a width has grown,
    or it was rescaled beside another or by a setting that differs; else it need not
    change at all, and float64 rounds its sums.
    """
    table, scaling = rows(d), known.scaling
    rescaled = known.account.rescaled if known.account else set[str]()
    folds = folded(old.decoder, new.decoder, known)
    a, b = old.decoder, new.decoder
    wider = (a.hidden, a.head_dim) != (b.hidden, b.head_dim)
    narrower = not holds(new.dtype, old.dtype)

    def dtype_of(name: str) -> torch.dtype:
        row, part = table[template_of(name)], name.split(".")[-2]
        must = narrower or part in rescaled or part in folds
        must = must or (scaling.changes(part, row) if scaling else wider)
        return new.dtype if must else torch.float64

    return dtype_of


def folded(a: Decoder, b: Decoder, known: Accounted) -> set[str]:
    """The parts that hold a setting that differs: all of one is its ratio, or over it."""
    names = [name for name in known.settings if name in FACTORS]
    ratios = [getattr(a, name) / getattr(b, name) for name in names]
    misses = known.account.misses if known.account else []
    factors = {m.name.split(".")[-2]: m.factor for m in misses if m.factor}
    return {
        part
        for part, (k, within) in factors.items()
        if any(abs(k * r - 1) <= within or abs(k / r - 1) <= within for r in ratios)
    }


def shaken_source(
    old: Side,
    new: Side,
    known: Accounted,
    seed: int,
    finest: torch.dtype = torch.float64,
) -> State:
    """The source in float64, what had to change rounded once; `finest` at the least."""
    dtype_of = precision(old.decoder, old, new, known)
    shares = known.account.shares if known.account else dict[str, Tensor]()

    def once(name: str, x: Tensor) -> Tensor:
        def moved(dtype: torch.dtype) -> Tensor:
            return rounded(name, x, max(dtype, finest, key=unit_roundoff), seed)

        stays = moved(dtype_of(name))
        if name not in shares:
            return stays
        return torch.where(shares[name], moved(new.dtype), stays)

    return old.state.map(once)


def runs(
    old: Side, new: Side, known: Accounted, ids: Tensor, seed: int
) -> tuple[Run, Run, Run]:
    """The source, the source with what had to change rounded once, the destination."""
    exact = old.state.map(lambda _, x: x.double())
    shaken = shaken_source(old, new, known, seed)
    grown = new.state.map(lambda _, x: x.double())
    return (
        stages(old.decoder, exact, ids),
        stages(old.decoder, shaken, ids),
        stages(new.decoder, grown, ids),
    )


def last_logits(run: Run, bar: Any) -> Tensor:
    """(T, V) of a run; a bar goes on with each layer."""
    end: Taps = {}
    for _, end in run:  # noqa: B007
        bar.update()
    return end["logits"][0]


def losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross entropy of each next token, (T − 1,), of logits (T, V)."""
    return cross_entropy(logits[:-1].double(), ids[0, 1:], reduction="none")


def disabled(progress: bool | None) -> bool | None:
    """tqdm's way to say it: None is off where stderr is no terminal."""
    return None if progress is None else not progress


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.double().square().mean().sqrt().item()


def budget_of(response: float, like: Tensor) -> float:
    """4 times the response of the source, at least the floor."""
    return max(FACTOR * response, FLOOR * largest(like))


def function_checks(
    name: str, want: Tensor, shaken: Tensor, got: Tensor, ids: Tensor
) -> list[Check]:
    """Logits (T, V) of the old tokens, by their largest and rms change, and loss."""
    whole, got = got, got[:, : want.shape[1]]
    response, change = shaken - want, got - want
    a, b, c = (losses(x, ids) for x in (want, shaken, got))
    lost = abs((c.mean() - a.mean()).item())

    def row(what: str, found: str, error: float, response: float) -> Check:
        budget = budget_of(response, want)
        return Check(
            name=f"{what}, {name}",
            found=found,
            passed=error <= budget,
            error=error,
            budget=budget,
        )

    values = f"up to {largest(want):.4g} → {largest(got):.4g}"
    total = f"{a.mean().item():.6f} → {c.mean().item():.6f}"
    return [
        row("logits max", values, largest(change), largest(response)),
        row("logits rms", "", rms(change), rms(response)),
        row("loss", total, lost, (b - a).abs().mean().item()),
        *over_all(name, whole, want.shape[1]),
    ]


def over_all(name: str, logits: Tensor, vocab: int) -> list[Check]:
    """A note of how much of the softmax over all logits (T, V') the new tokens take."""
    if logits.shape[1] == vocab:
        return []
    taken = logits.double().softmax(-1)[:, vocab:].sum(-1)
    mean, most = taken.mean().item(), taken.max().item()
    found = f"new tokens take {mean:.1e} of the softmax over all, at most {most:.1e}"
    return [Check(name=f"softmax, {name}", found=found, passed=None)]


@torch.no_grad()
def in_the_clone(
    old: Side,
    new: Side,
    known: Accounted,
    ids: Tensor,
    seed: int,
    progress: bool | None = None,
) -> list[Check]:
    """Logits and loss of the eager clone in float64."""
    total = 2 * (old.decoder.layers + 2) + new.decoder.layers + 2
    with tqdm(
        desc="float64",
        total=total,
        unit="layer",
        disable=disabled(progress),
        leave=False,
    ) as bar:
        three = runs(old, new, known, ids, seed)
        want, shaken, got = (last_logits(run, bar) for run in three)
    return function_checks("float64", want, shaken, got, ids)


def as_it_should_be(x: Tensor, misses: Sequence[Miss]) -> Tensor:
    """A tensor of the destination in float64, without what was missed in it."""
    for miss in misses:
        assert miss.mended is not None
        if miss.expert is None:
            x = miss.mended()
        else:
            x = x.clone()
            x[miss.expert] = miss.mended()
    return x.double()


@torch.no_grad()
def of_the_missed(
    old: Side, new: Side, known: Accounted, ids: Tensor, seed: int
) -> list[Check]:
    """What the tensors and settings that are not accounted for do, all else being right.

    The destination beside itself with these as they should be; the budget is what rounding
    their wrong entries once does, those that had to change at all. Their tokens are put
    into the text.
    """
    misses = known.account.misses if known.account else []
    neither = not misses and not known.settings
    if neither or any(miss.mended is None for miss in misses):
        return []
    source = {name: getattr(old.decoder, name) for name in known.settings}
    decoder = replace(new.decoder, **source)
    ends = ("embed.weight", "head.weight")
    tokens = sorted({t for miss in misses if miss.name in ends for t in miss.rows})
    length = ids.shape[1]
    ids = torch.cat((torch.tensor([tokens], dtype=ids.dtype), ids), 1)[:, :length]
    missed: dict[str, list[Miss]] = {}
    for miss in misses:
        missed.setdefault(miss.name, []).append(miss)
    needed = precision(new.decoder, old, new, known)

    right = new.state.map(lambda name, x: as_it_should_be(x, missed.get(name, [])))
    got = new.state.map(lambda _, x: x.double())

    def once(name: str, x: Tensor) -> Tensor:
        if name not in missed:
            return x
        return torch.where(x == got[name], x, rounded(name, x, needed(name), seed))

    shaken = right.map(once)
    want, moved, found = (
        last_logits(stages(d, state, ids), tqdm(disable=True))
        for d, state in ((decoder, right), (decoder, shaken), (new.decoder, got))
    )
    count = len(missed)
    tensors = [f"{count} tensor{'s' * (count > 1)}"] if count else []
    name = f"float64, {' and '.join([*known.settings, *tensors])} {MISSED}"
    checks = function_checks(name, want, moved, found, ids)
    return [check for check in checks if check.passed is not None]


@torch.no_grad()
def in_transformers(
    old: Side, new: Side, known: Accounted, ids: Tensor, continuation: int, seed: int
) -> list[Check]:
    """Logits, loss and a greedy continuation of transformers' own forward in float32.

    The source is rounded as in the clone, to float32 at the finest, so that the budget
    holds the noise of a float32 forward pass as well.
    """
    name = "transformers"
    try:
        model = old.load()
        want = model(ids).logits[0]
        words, scores = continued(model, ids, continuation)
    except Exception as error:
        raise unrunnable(old.directory, error) from error
    del model
    moved = shaken_source(old, new, known, seed, torch.float32)
    shaken = rebuilt(old, moved)(ids).logits[0]
    try:
        model = new.load()
        got = model(ids).logits[0]
        words_new, _ = continued(model, ids, continuation)
    except Exception as error:  # whatever a stranger's checkpoint makes it raise
        found = f"{type(error).__name__}: {error}"
        return [Check(name=f"runs in {name}", found=found, passed=False)]
    checks = function_checks(name, want, shaken, got, ids)
    margin = 2 * budget_of(largest(shaken - want), want)
    return [*checks, same_words(words, words_new, scores, margin)]


def unrunnable(directory: Path, error: Exception) -> GrowthError:
    """What is said of a source that transformers does not run."""
    said = " ".join(str(error).split())[:300]
    return GrowthError(
        f"transformers {hub.__version__} does not run {directory}, the source "
        f"({type(error).__name__}: {said}): there is nothing to compare with"
    )


def rebuilt(side: Side, state: State) -> Any:
    """The side's model in transformers with other weights, float32."""
    single = {name: state[name].float() for name in state}
    return build(side.config, single).eval()


def continued(model: Any, ids: Tensor, length: int) -> tuple[list[int], Tensor]:
    """Greedy tokens after the first ones of the text, by generate() with its cache.

    Returns them and the logits they were chosen by, (length, V). Fewer where the model
    has no positions for more.
    """
    positions = (
        getattr(model.config, "max_position_embeddings", None) or PROMPT + length
    )
    length = min(length, max(1, positions // 2))
    model.generation_config = hub.GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        suppress_tokens=model.generation_config.suppress_tokens,
    )
    prompt = ids[:, : min(PROMPT, positions - length)]
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt))
    return out.sequences[0, prompt.shape[1] :].tolist(), torch.cat(out.logits)


def same_words(a: list[int], b: list[int], scores: Tensor, margin: float) -> Check:
    """The same tokens, or the first other one lost by less than the budget allows."""
    name, total = "greedy continuation", len(a)
    equal = next((i for i in range(total) if a[i] != b[i]), total)
    if equal == total:
        return Check(name=name, found=f"the same {total} tokens", passed=True)
    if b[equal] >= scores.shape[1]:
        found = f"token {equal + 1} of {total} is {b[equal]}, which the source has not"
        return Check(name=name, found=found, passed=False)
    lost = (scores[equal, a[equal]] - scores[equal, b[equal]]).item()
    return Check(
        name=name,
        found=f"token {equal + 1} of {total} differs, ahead by {lost:.1e}",
        passed=lost <= margin,
        error=lost,
        budget=margin,
    )
