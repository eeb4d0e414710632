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

import copy
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from growproof.field import Field, FieldTensor, held
from growproof.models import model_class, parameters_of
from growproof.residues import SQUARES, Unlucky, factors, primes
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .recovery import Map, State, recover
from .runs import Run, eager, evaluated, exact_buffers, note_modes, runs
from .witness import WITNESS, logits, outputs, parted, witness

Grower = Callable[[Any, Mapping[str, int]], Any]
Verdict = Literal["certified", "refused", "undecided", "declined"]
PRIMES = 7
SAVED = "saved and loaded"
ENOUGH = -100.0  # log₂ of the error that a certificate may have
WEIGHTS = ("random", "random again", "small", "permuted, negated, scaled")
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


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


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


def source(config: PretrainedConfig, run: int) -> Any:
    """A float64 model with the weights of one run: none near zero, in run 2 small ones."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    model: Any = AutoModelForCausalLM.from_config(config).double().eval()
    generator = torch.Generator().manual_seed(run % 3)
    with torch.no_grad():
        for name, p in parameters_of(model).items():
            x = 0.5 + torch.rand(p.shape, generator=generator, dtype=torch.float64)
            x *= (torch.rand(p.shape, generator=generator) - 0.3).sign()
            if p.dim() > 1:
                x *= 1.0 if "embed" in name else 1.5 / p.shape[-1] ** 0.5
                x *= 0.02 if run == 2 else 1.0
            if run == 3:
                order = torch.randperm(x.numel(), generator=generator)
                x = x.flatten()[order].reshape(p.shape) * -0.37
            p.copy_(x)
    return model


def grown_by(grower: Grower, model: Any, target: Mapping[str, int]) -> Any:
    """What the grower makes of a copy of it, with the global generators seeded."""
    model = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        return grower(model, dict(target))


def state(model: Any) -> State:
    """The float parameters by name, each once however often it is tied."""
    return {n: p.detach().double() for n, p in parameters_of(model).items()}


def breach(old: Any, models: Sequence[Any], target: Mapping[str, int]) -> str:
    """How these are no models of the wanted sizes and kind; empty where they are."""
    first = models[0]
    if not all(hasattr(m, "config") and hasattr(m, "state_dict") for m in models):
        return f"The grower returned {type(first).__name__}, no transformers model."
    said = [m.config.to_dict() | {"_name_or_path": ""} for m in models]
    if any(config != said[0] for config in said):
        return "The grown config is another one at each call, or for other weights."
    if any(not p.isfinite().all() for m in models for p in m.parameters()):
        return "The grown weights hold a NaN or an infinity."
    shapes = [{n: p.shape for n, p in parameters_of(m).items()} for m in models]
    if any(shape != shapes[0] for shape in shapes):
        return "The grown parameters' shapes depend on the values of the weights."
    for name in (*SIZES, *target):
        before, now = getattr(old.config, name, None), getattr(first.config, name, None)
        if name == "head_dim" and name not in target:
            continue
        own = getattr(first.config, "attribute_map", {}).get(name, name)
        wanted = target.get(name, target.get(own, before))
        if wanted is not None and now != wanted:
            return f"The config's {name} is {now}, not {wanted}."
    return ""


def judge(
    grower: Grower,
    config: PretrainedConfig,
    target: Mapping[str, int],
    seed: int,
    found: dict[str, Any],
) -> tuple[Verdict, str]:
    """(verdict, reason), and what they rest on in `found`."""
    olds = [source(config, run) for run in range(len(WEIGHTS))]
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
    plan = runs(config, config.vocab_size)
    twin, own = stock(news[0])
    found["assumed"] += [own] if own else []
    if wrong := twin if isinstance(twin, str) else live(news[0], twin, plan):
        return "refused", wrong
    with eager(*olds, *news, twin):
        if heard := chosen(news, config.vocab_size, plan[0], found):
            return "refused", heard
        why = differing(olds[0], (news[0], news[-1]), twin, entries, plan, seed, found)
        return concluded(olds, news, twin, plan, config.vocab_size, why, found)


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
            return "undecided", why
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


def unseen(old: Any, new: Any, target: Mapping[str, int]) -> list[str]:
    """Config fields that differ, and what about long texts the runs do not reach."""
    a, b = old.config.to_dict(), new.config.to_dict()
    asked = {
        *target,
        *(getattr(old.config, "attribute_map", {}).get(n) for n in target),
    }
    names = sorted(n for n in a.keys() & b.keys() if a[n] != b[n] and n not in asked)
    said = []
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


def stock(model: Any) -> tuple[Any, str]:
    """The model that its config and state dict make, or why that is not this one's.

    And what is assumed of it: that its class comes along, where transformers has another
    for its config.
    """
    cls, own = type(model), ""
    with suppress(KeyError):
        cls = model_class(model.config)
    made, why = loaded(cls, model)
    if why and not issubclass(type(model), cls):
        why = f"{cls.__name__} is what its config makes: {why}"
    elif why and cls is not type(model):
        made, why = loaded(type(model), model)
        own = f"Its class, {type(model).__name__}, is there where it is loaded."
    return why or made, own


def loaded(cls: Any, model: Any) -> tuple[Any, str]:
    """The model of that class, and why it does not hold what this one does."""
    try:
        made = cls(copy.deepcopy(model.config)).double().train(model.training)
        mine, its = (
            {n: tuple(p.shape) for n, p in parameters_of(m).items()}
            for m in (model, made)
        )
        if differ := sorted(n for n in mine | its if mine.get(n) != its.get(n)):
            name = differ[0]
            return made, (
                f"It cannot be saved and loaded: {name} is {mine.get(name, 'not there')}, "
                f"and {its.get(name, 'not there')} in what its config makes."
            )
        made.load_state_dict(model.state_dict(), strict=False)
        return made, ""
    except Exception as error:
        return None, f"It cannot be saved and loaded: {type(error).__name__}: {error}."


def live(new: Any, made: Any, plan: Sequence[Run]) -> str:
    """Where the model as it was returned is not the one that its config and weights make.

    In float64, and with the attention that it came with; experts as their plain loop.
    """
    kernel = getattr(new.config, "_attn_implementation", None) or "eager"
    known = getattr(ALL_ATTENTION_FUNCTIONS.get(kernel), "__module__", "transformers.")
    for model in (new, made):
        note_modes(model)
    for run in plan:
        try:
            with eager(new, made, attention=False):
                mine, its, at = beside(new, made, run)
            how = f"once it is {SAVED}"
            if apart(mine, its) <= WITNESS and not known.startswith("transformers."):
                with eager(new):
                    its, how = logits(new, run), f"by eager attention, not {kernel!r}"
        except Exception:  # refused with its reason later
            return ""
        if (off := apart(mine, its)) > WITNESS:
            where = f", from {at} on" if at else ""
            return (
                "It is not what its config and weights make: the logits differ by "
                f"{off:.1e} of the largest{where} {how} ({run.name})."
            )
    return ""


def unlike_stock(old: Any, news: Sequence[Any], target: Mapping[str, int]) -> str:
    """Why these are no models of the wanted sizes that config and weights make."""
    if why := breach(old, news, target):
        return why
    made, _ = stock(news[0])
    plan = runs(old.config, old.config.vocab_size)
    return made if isinstance(made, str) else live(news[0], made, plan)


def beside(new: Any, made: Any, run: Run) -> tuple[Tensor, Tensor, str]:
    """The logits of both, and the first module whose outputs are not the same."""
    with outputs(new) as mine, outputs(made) as its:
        pair = logits(new, run), logits(made, run)
    shared = (n for n in mine if n in its and apart(mine[n], its[n]) > WITNESS)
    return *pair, next(shared, "")


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest entry; 0 where neither is finite."""
    if a.shape != b.shape:
        return math.inf
    return float(((a - b).abs().max() / a.abs().max()).nan_to_num(0.0))


def differing(
    old: Any,
    news: tuple[Any, Any],
    twin: Any,
    entries: Map,
    plan: Sequence[Run],
    seed: int,
    found: dict[str, Any],
) -> str:
    """Why the models are not seen to agree over residues; empty where they agree."""
    sizes = {q for m in (old, *news) for k in whole_numbers(m) for q in factors(k)}
    found["primes"] = primes(PRIMES, seed, tuple(sorted(sizes - set(SQUARES))))
    cases = [(run, news[i % 2]) for i, run in enumerate(plan)]
    cases.append((plan[0]._replace(name=SAVED, logits=evaluated), twin))
    found["runs"] = [run.name for run, _ in cases]
    for attempt in range(8):
        field = Field(found["primes"], seed + 1000 * attempt)
        values = {n: field.random(p.shape) for n, p in parameters_of(old).items()}
        try:
            why = compared(field, old, values, entries.residues(field, values), cases)
        except Unlucky:
            continue
        found["error"] = round(field.error(), 1)
        if not why and field.error() > ENOUGH:
            return f"The error is 2^{field.error():.0f}, more than 2^{ENOUGH:.0f}."
        return why
    return "A zero was divided by in every draw."


def whole_numbers(model: Any) -> set[int]:
    """The config's sizes, whose roots may be in a scale: not its tokens and lengths."""
    usual = type(model.config)().to_dict().keys()
    said = model.config.to_dict().items()
    return {
        k for n, k in said
        if isinstance(k, int) and 1 < k < 10**6 and n in usual
        and not n.endswith(("token_id", "position_embeddings", "window"))
    }  # fmt: skip


def compared(
    field: Field,
    old: Any,
    values: Mapping[str, FieldTensor],
    grown: Mapping[str, FieldTensor],
    cases: Sequence[tuple[Run, Any]],
) -> str:
    """The first (run, grown model) whose logits differ, or that cannot be run, and how."""
    for run, new in cases:
        try:
            a, b = over(field, old, values, run), over(field, new, grown, run)
        except NotImplementedError as error:
            return f"{run.name}: {error}."
        except Unlucky:
            raise
        except Exception as error:
            return f"{run.name}: over residues, {type(error).__name__}: {error}."
        if not (isinstance(a, FieldTensor) and isinstance(b, FieldTensor)):
            return f"{run.name}: the logits do not depend on the grown parameters."
        b = cast(FieldTensor, b[..., : a.shape[-1]])
        if a.shape != b.shape:
            return f"{run.name}: logits {tuple(b.shape)}, not {tuple(a.shape)}."
        if wrong := int((a.residues != b.residues).any(-1).sum()):
            return f"{run.name}: {wrong} of {a.numel()} logits differ over residues."
    return ""


def over(field: Field, model: Any, values: Mapping[str, FieldTensor], run: Run) -> Any:
    """The logits of a live model over residues, gradients on as its parameters say."""
    stand: dict[int, Tensor] = dict(exact_buffers(model))
    for name, p in parameters_of(model).items():
        stand[id(p)] = values[name].detach().requires_grad_(p.requires_grad)
    with field, held(model, stand):
        return run.logits(model, run.tokens).detach()
