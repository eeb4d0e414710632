"""Certificates: is the grown model the same function, for all weights of its shape?

The grower is a black box. *Recover*: run it on a few random float64 models and find, for
each grown entry, the old form that it is a multiple of, or that it is a constant, or
neither (recovery.py). *Run*: the code of both live models, as it was returned, over
residues modulo several primes at once, with random residues for the old weights and the
recovered map of them for the grown ones (growproof.field), in evaluation and training,
with and without cache, with left padding, on long texts, and once more as it comes back
from its own config and state dict (runs.py). Three verdicts, none of them a guess:

certified: all logits agree: both models are one term in the weights, so one function
    for **all** weights, but for a chance that the certificate states.
refused: they do not, and neither do the float64 logits of a run that it names, from a
    module on that it names (witness.py); or what came back is no model of those sizes.
undecided: they do not, or an operation has no meaning over residues, and no float64
    logits show it. Identities that are special to exp or to one activation end here.

An entry that was not recognised is a variable of its own: where the logits agree all the
same, it may be anything.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from .equality import WEIGHTS, Grower, differing, grown_by, sourced, state
from .recovery import recover
from .runs import Run, eager
from .stock import SAVED, SIZES, breach, live, stock
from .witness import WITNESS, logits, parted, witness

Verdict = Literal["certified", "refused", "undecided", "declined"]
ASSUMED = (
    "The grower treats all weights alike: it does not branch on values that these runs "
    "do not show, count its calls, or look at the clock; and neither does the model, nor at "
    "how many texts and tokens there are, or how they come: tokens or embeddings, places, "
    "masks, caches, but as in the runs.",
    "The source is handed over as here: in evaluation mode, eager, in float64, with no "
    "parameter frozen; and the weights are in general position: no zero biases, norms "
    "of one or equal rows.",
    "Arithmetic is real: float64 and lower rounding, and other kernels than eager "
    "attention and a plain loop over experts, are not part of it.",
    "A scale, eps or frequency is the exact number that lies within 1e-12 of it; a float "
    "buffer is the float64 number that it rounds.",
    "softmax(s) = E(s) / Σ E for some E, and a maximum, a comparison and top-k look at "
    "values alone; dropout is a factor that depends on its rate.",
)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A verdict on one growth, and what it rests on.

    entries: how many grown entries were found to be what. error: log₂ of the chance that
    two different functions agree in these runs. assumed: in words, what no run shows.
    witness: the largest relative difference of float64 logits, and where. parted: the
    first module whose output differs. covers: empty for this shape, else all that it
    speaks of.
    """

    verdict: Verdict
    reason: str
    family: str
    source: dict[str, int]
    target: dict[str, int]
    entries: dict[str, int] = field(default_factory=dict)
    error: float | None = None
    primes: list[int] = field(default_factory=list)
    seed: int = 0
    runs: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    witness: dict[str, Any] = field(default_factory=dict)
    parted: str = ""
    covers: str = ""
    seconds: float = 0.0

    def json(self) -> dict[str, Any]:
        return {"version": 3, **asdict(self)}


def certify(
    grower: Grower,
    config: PretrainedConfig,
    target: Mapping[str, int],
    *,
    seed: int = 0,
) -> Certificate:
    """Decide whether the grower keeps the function of every model of this config.

    Runs the grower four times. NotImplementedError is a growth that it declines,
    whatever else it raises a refusal.
    """
    began, threads = time.perf_counter(), torch.get_num_threads()
    found = dict[str, Any]()
    try:
        torch.set_num_threads(1)  # small tensors: more threads are slower
        verdict, reason = judge(grower, config, target, seed, found)
    finally:
        torch.set_num_threads(threads)
    sizes = {n: getattr(config, n, None) for n in SIZES}
    return Certificate(
        verdict=verdict,
        reason=reason,
        family=config.model_type,
        source={n: k for n, k in sizes.items() if isinstance(k, int)},
        target=dict(target),
        seed=seed,
        seconds=round(time.perf_counter() - began, 3),
        **found,
    )


def judge(
    grower: Grower,
    config: PretrainedConfig,
    target: Mapping[str, int],
    seed: int,
    found: dict[str, Any],
) -> tuple[Verdict, str]:
    """(verdict, reason), and what they rest on in `found`."""
    source = sourced(config)
    olds, plan = source.models, source.runs
    try:
        news = [grown_by(grower, old, target) for old in olds]
    except NotImplementedError as error:
        return "declined", f"The grower declined: {error}"
    except Exception as error:
        return "refused", f"The grower raised {type(error).__name__}: {error}"
    if why := breach(olds[0], news, target):
        return "refused", why
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(
        1, config.num_attention_heads
    )
    entries = recover([state(m) for m in olds], [state(m) for m in news], head_dim)
    found["entries"] = entries.tally()
    found["assumed"] = [*ASSUMED, *unseen(olds[0], news[0], target)]
    twin, own = stock(news[0])
    found["assumed"] += [own] if own else []
    if wrong := twin if isinstance(twin, str) else live(news[0], twin, plan):
        return "refused", wrong
    with eager(*olds, *news, twin):
        if heard := chosen(news, config.vocab_size, plan[0], found):
            return "refused", heard
        why = differing(source, (news[0], news[-1]), twin, entries, seed, found)
        verdict, reason = concluded(
            olds, news, twin, plan, config.vocab_size, why, found
        )
    longest = max(run.tokens.shape[1] for run in plan)
    if verdict == "certified" and (name := unreached(config, news[0].config, longest)):
        return "undecided", (
            f"The configs differ in {name}, which speaks of longer texts than the "
            f"{longest} tokens of these runs."
        )
    if verdict == "undecided" and (unread := entries.unread()):
        names = ", ".join(unread[:3]) + (", …" if len(unread) > 3 else "")
        reason += f" Not read as a form of the old weights: {names}."
    return verdict, reason


def chosen(news: Sequence[Any], vocab: int, run: Run, found: dict[str, Any]) -> str:
    """The new token that generate() may choose, in words; empty where there is none.

    None may that is suppressed, or whose probability is 0 with all weights of the runs.
    """
    left = {*range(vocab, news[0].config.vocab_size)}
    left -= {*(news[0].generation_config.suppress_tokens or ())}
    if not left:
        return ""
    found["assumed"].append(
        "A new token that is not suppressed is never chosen: as here."
    )
    for new in news:
        try:
            chances = logits(new, run).softmax(-1)[..., sorted(left)]
        except Exception:  # a model that does not run is refused with its reason
            return ""
        if chances.numel() and chances.any():
            return (
                f"generate() may choose the new token {min(left)}: it has a probability of "
                f"{float(chances.max()):.1e}, and suppress_tokens leaves it out."
            )
    return ""


def concluded(
    olds: Sequence[Any],
    news: Sequence[Any],
    twin: Any,
    plan: Sequence[Run],
    vocab: int,
    why: str,
    found: dict[str, Any],
) -> tuple[Verdict, str]:
    """The verdict: the field says `why` they differ (empty: equal), and now float64."""
    pairs = list(zip(WEIGHTS, olds, news, strict=True))
    first = [run for run in plan if why.startswith(run.name)] or plan[:1]
    saved = [("random", olds[0], twin)] if why.startswith(SAVED) else []
    try:
        seen = witness(saved or pairs, first, vocab)
        if why and not saved and seen["relative"] <= WITNESS:
            seen = witness(pairs, [run for run in plan if run not in first], vocab)
    except Exception as error:
        return (
            "refused",
            f"The grown model does not run: {type(error).__name__}: {error}",
        )
    found["witness"] = seen
    if seen["relative"] <= WITNESS:
        if why:
            return (
                "undecided",
                f"{why} In float64 they agree to {seen['relative']:.0e}.",
            )
        return "certified", "Both models are one function of their weights and tokens."
    if not why and seen["relative"] >= 1e300:
        return (
            "refused",
            "The logits agree over residues; in float64 they are not finite.",
        )
    if not why:
        return "undecided", "Over residues the logits agree, in float64 they do not."
    at = WEIGHTS.index(seen["weights"])
    new, text = twin if saved else news[at], plan[-1]
    found["parted"] = parted(olds[at], new, text)
    where = f", from {found['parted']} on" if found["parted"] else ""
    return "refused", (
        f"The logits differ by {seen['relative']:.1e} of the largest{where} "
        f"({SAVED if saved else seen['run']})."
    )


def unreached(old: Any, new: Any, longest: int) -> str:
    """The field of two configs that differ at texts beyond the longest run; else empty."""
    for name in ("sliding_window", "attention_chunk_size"):
        ends = [getattr(c, name, None) for c in (old, new)]
        if ends[0] != ends[1] and any(n is None or n >= longest for n in ends):
            return name
    ropes = [getattr(c, "rope_parameters", None) or {} for c in (old, new)]
    lengths = [getattr(c, "max_position_embeddings", None) for c in (old, new)]
    if by_length(ropes[0]) == by_length(ropes[1]):
        return (
            "max_position_embeddings"
            if by_length(ropes[0]) and lengths[0] != lengths[1]
            else ""
        )
    return "rope_parameters"


def by_length(rope: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rope parameters that make frequencies depend on how long a text is, but for θ."""
    parts = [rope, *(x for x in rope.values() if isinstance(x, Mapping))]
    return [
        {n: x for n, x in part.items() if n != "rope_theta"}
        for part in parts
        if part.get("rope_type") in ("dynamic", "longrope")
    ]


def unseen(old: Any, new: Any, target: Mapping[str, int]) -> list[str]:
    """Config fields that differ, and what about long texts the runs do not reach."""
    a, b = old.config.to_dict(), new.config.to_dict()
    asked = {
        *target,
        *(getattr(old.config, "attribute_map", {}).get(n) for n in target),
    }
    names = sorted(
        n for n in a.keys() | b.keys() if a.get(n) != b.get(n) and n not in asked
    )
    said = []
    a, b = (m.generation_config.to_dict() for m in (old, new))
    usual = {"suppress_tokens", "transformers_version", "_from_model_config"}
    told = sorted(
        n for n in a.keys() | b.keys() if a.get(n) != b.get(n) and n not in usual
    )
    if told:
        said.append(
            f"generate() is told otherwise: its configs differ in {', '.join(told)}."
        )
    if names:
        said.append(
            "The configs differ in " + ", ".join(names) + ": as far as the runs go."
        )
    window = getattr(old.config, "sliding_window", None) or 0
    limit = getattr(old.config, "max_position_embeddings", None) or 0
    if max(window, limit) > 256:
        said.append("Longer texts than those of the runs behave as they do.")
    if "vocab_size" in target:
        said.append("Only the logits of old tokens are compared.")
    return said
