"""Certificates: is the grown model the same function, for all weights of its shape?

The grower is a black box. *Recover*: run it on a few random float64 models and find,
for each entry of the grown parameters, the old entry (or centred entry, or mean) that
it is a multiple of, or that it is a constant, or neither. *Decide*: from that map and
the two configs alone, in exact arithmetic. Three verdicts, none of them a guess:

certified: the grown decoder, with its scales read as the exact roots that they round,
    is the old function for **all** weights and tokens, by the argument below.
refused: it is not: there are weights and tokens (the witness) on which float64 logits
    differ a thousandfold above rounding, or the model cannot be what was asked for.
undecided: the argument fails at a named entry, and no witness was found.

Why a yes is right. Each *lane* of the grown decoder (a coordinate of a tap) is known as
an exact linear form in the old decoder's lanes at the same tap, for all weights and
tokens at once, or is *lost*, and then may be anything. One rule per operation, each an
identity of the real numbers:

- linear: W' N = E W as polynomials in the old weights, row by row, for the forms N that
  are read; then E are the forms written. An entry that meets a zero lane may be
  anything, an entry that meets a lost lane must be zero.
- norm: what it sees is A x (A the identity, or the removal of the mean). If row a of
  A'E is e_a times row j of A, Σ_{a over j} e_a² = κ for every j, ε' = s² ε and
  κ D = s² D', then its lane a is e_a / s times lane j (before weight and bias).
- scores: for each rotary frequency the products of the lanes of q' and k' add up to
  √(K'/K) times those of one old head, as bilinear forms; then the probabilities are the
  old head's, and the context is a form in its values. A zero value needs no scores.
- gate: act(g') u' is a form if g' is g itself and u' a multiple of g's own partner u,
  and zero where g' or u' is (act(0) = 0).
- stream: every writer writes the embedding's A'E, or nothing; those that write are the
  old blocks, in order; each logit is the old one.

Why the map is right. An entry counts as c · form only if it is so to 1e-13 in each of
four runs: random weights, others, a small residual, and the first ones permuted,
negated and scaled. Analytic functions that agree at a random point are equal with
probability one: only a grower that branches on values which no run shows is misread.
Entries that match nothing are lost, never guessed. A scale, ε or frequency is the exact
number of small height that lies within 1e-12 of it; so a certificate speaks of the
grower up to the rounding of its scales.
"""

import copy
import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from growproof.arithmetic import BLAS
from growproof.decoder import forward
from growproof.layout import names, parameters
from growproof.layout import size as length
from growproof.models import CLASSES, SIZES, shape_of, state_of
from growproof.padding import check
from growproof.shape import GrowthError, Shape
from transformers import PretrainedConfig

from .coq import coq_script
from .decision import Broken, Decision, Lane, Lost
from .recovery import Map, State, recover

Grower = Callable[[Any, Mapping[str, int]], Any]
Verdict = Literal["certified", "refused", "undecided"]
WITNESS = 1e-11  # relative difference of logits: rounding stays near 1e-15
MODULE = 1e-3  # a module against its clone: transformers rotates in float32


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A verdict on one growth, and what it rests on.

    entries: how many grown entries were found to be what. lanes: tap → for each grown
    lane {old lane: coefficient}, or null where it may be anything. witness: the largest
    relative difference of the logits, and on which run's weights. coq: a proof script
    where the map is a plain scatter, else null.
    """

    verdict: Verdict
    reason: str
    family: str
    source: dict[str, int]
    target: dict[str, int]
    entries: dict[str, int] = field(default_factory=dict)
    lanes: dict[str, list[dict[str, str] | None]] = field(default_factory=dict)
    witness: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    coq: str | None = None

    def json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self)}


RUNS = ("random", "random again", "small residual", "permuted, negated, scaled")


def draw(shape: Shape, run: int) -> State:
    """Weights for one run: none near zero, the residual's square about ε in run 2."""
    generator = torch.Generator().manual_seed(run % 3)
    state: State = {}
    for template, row in parameters(shape).items():
        size = [length(shape, axis) for axis in row.axes]
        spread = 1.5 / math.sqrt(size[1]) if len(size) == 2 else 1.0
        writer = row.role == "writer" or template.endswith(
            ("o_proj.bias", "n_proj.bias")
        )
        spread = 1.0 if "embed" in template else spread
        spread *= 2 * math.sqrt(shape.eps or 1e-6) if run == 2 and writer else 1.0
        for _, name in names(shape, template):
            x = 0.5 + torch.rand(size, generator=generator, dtype=torch.float64)
            x *= spread * (torch.rand(size, generator=generator) - 0.3).sign()
            if run == 3:
                x = x.flatten()[torch.randperm(x.numel(), generator=generator)] * -0.37
            state[name] = x.reshape(size)
    return state


def grown_by(
    grower: Grower, config: PretrainedConfig, state: State, target: Mapping[str, int]
) -> Any:
    """What the grower makes of a float64 model, with the global generators seeded."""
    model = CLASSES[config.model_type][1](copy.deepcopy(config)).double().eval()
    model.load_state_dict({n: x.clone() for n, x in state.items()}, strict=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        return grower(model, dict(target))


def breach(old: Shape, models: Sequence[Any], target: Mapping[str, int]) -> str:
    """How these are no models of the wanted sizes and kind; empty where they are."""
    shapes = [shape_of(model.config) for model in models]
    new = shapes[0]
    if any(shape != new for shape in shapes):
        return "The grown config depends on the values of the weights."
    for name, size in SIZES.items():
        wanted = target.get(name, getattr(old, size))
        if name == "head_dim" and old.family == "stablelm":
            wanted = new.hidden // new.heads
        if getattr(new, size) != wanted:
            return f"The config's {name} is {getattr(new, size)}, not {wanted}."
    for name in ("family", "vocab", "activation", "qk_norm", "parallel", "tied"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            return f"The config's {name} is {after!r}, and was {before!r}."
    for i, layer in enumerate(models[0].model.layers):
        index = layer.self_attn.layer_idx
        if index != i:
            return (
                f"model.layers.{i}.self_attn.layer_idx is {index}: a cache would mix."
            )
    try:
        check(state_of(models[0]), new)
    except ValueError as error:
        return f"The parameters are not those of the config: {error}."
    return ""


def certify(
    grower: Grower, config: PretrainedConfig, target: Mapping[str, int]
) -> Certificate:
    """Decide whether the grower keeps the function of every model of this config.

    Runs the grower four times. Whatever the grower raises is a refusal; a config that
    growproof does not know raises GrowthError.
    """
    began, threads = time.perf_counter(), torch.get_num_threads()
    old, found = shape_of(config), dict[str, Any]()
    try:
        torch.set_num_threads(1)  # small tensors: more threads are slower
        verdict, reason = judge(grower, config, target, old, found)
    finally:
        torch.set_num_threads(threads)
    return Certificate(
        verdict=verdict,
        reason=reason,
        family=old.family,
        source={name: getattr(old, size) for name, size in SIZES.items()},
        target=dict(target),
        seconds=round(time.perf_counter() - began, 3),
        **found,
    )


def judge(
    grower: Grower,
    config: PretrainedConfig,
    target: Mapping[str, int],
    old: Shape,
    found: dict[str, Any],
) -> tuple[Verdict, str]:
    """(verdict, reason), and what they rest on in `found`."""
    olds = [draw(old, run) for run in range(len(RUNS))]
    try:
        models = [grown_by(grower, config, state, target) for state in olds]
    except Exception as error:
        return "refused", f"The grower raised {type(error).__name__}: {error}"
    new, why = None, ""
    try:
        new = shape_of(models[0].config)
        new.rotary.frequencies()
        if why := breach(old, models, target):
            return "refused", why
    except (AttributeError, GrowthError) as error:
        new, why = None, f"The grown model cannot be read: {error}."
    try:
        found["witness"] = witness = difference(old, olds, new, models)
    except Exception as error:
        why = why or f"The grown model does not run: {type(error).__name__}: {error}"
        return "refused", why
    if new:
        news = [{n: p.double().clone() for n, p in state_of(m).items()} for m in models]
        entries = recover(old, olds, news)
        found["entries"] = tally(entries)
        decision = Decision(old, new, entries)
        try:
            decision.run()
        except Broken as broken:
            why = str(broken)
        found["lanes"] = readable(decision.lanes)
        if witness["from_clone"] > MODULE:
            why = "The module does not compute what its config and weights say"
            stock = all(type(m) is CLASSES[m.config.model_type][1] for m in models)
            if stock and witness["relative"] > WITNESS:  # what stock code would load
                return "refused", why + ", and what is saved is another function."
            why += "."
        elif witness["relative"] > WITNESS:
            return "refused", why or "The logits differ, though the map looks right."
        elif not why:
            found["coq"] = coq_script(decision)
            return "certified", "The grown decoder is the old function for all weights."
    return ("refused" if witness["module"] > MODULE else "undecided"), why


def difference(
    old: Shape,
    olds: Sequence[State],
    new: Shape | None,
    models: Sequence[Any],
) -> dict[str, Any]:
    """The largest relative differences of logits over the runs, and where.

    relative: grown clone against old clone, in float64. module: the grown module against
    the old clone; from_clone: against its own clone (both in part float32).
    """
    length = 12 if new else 64  # what cannot be read may only differ further on
    tokens = torch.arange(2 * length).reshape(2, length) * 5 % old.vocab
    worst: dict[str, Any] = {
        "relative": 0.0,
        "module": 0.0,
        "from_clone": 0.0,
        "run": "",
    }
    with torch.no_grad():
        for run, state, model in zip(RUNS, olds, models, strict=True):
            a = forward(old, state, tokens, BLAS)["logits"]
            c = model.eval()(tokens).logits.double()
            b = forward(new, state_of(model), tokens, BLAS)["logits"] if new else c
            pairs = {"relative": (b, a), "module": (c, a), "from_clone": (c, b)}
            for name, (x, y) in pairs.items():
                apart = float((x - y).abs().max() / y.abs().max())
                apart = apart if math.isfinite(apart) else sys.float_info.max
                if name == "relative" and apart > worst[name]:
                    worst["run"] = run
                worst[name] = max(worst[name], apart)
    return worst | {"tokens": tokens.tolist()}


def tally(entries: Map) -> dict[str, int]:
    """How many grown entries are copies, mixtures, constants, or not recognised."""
    kinds: list[str] = ["constant", "copied", "mixed", "unrecognised"]
    count = dict.fromkeys(kinds, 0)
    for cell in itertools.chain.from_iterable(cells.flat for cells in entries.values()):
        count[kinds[3 if cell.terms is None else min(len(cell.terms), 2)]] += 1
    return count


def readable(
    lanes: Mapping[str, Sequence[Lane]],
) -> dict[str, list[dict[str, str] | None]]:
    def form(x: Lane) -> dict[str, str] | None:
        return None if isinstance(x, Lost) else {str(j): str(c) for j, c in x.items()}

    return {tap: [form(x) for x in row] for tap, row in lanes.items()}
