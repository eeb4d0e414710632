"""Do two models agree over residues, run by run?

What the source computes is the same for every growth of it: `sourced` keeps it.
"""

import copy
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from growproof.field import Field, FieldTensor, held
from growproof.models import parameters_of
from growproof.residues import SQUARES, Unlucky, factors, primes
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from .recovery import Map, State
from .runs import Named, Run, eager, exact_buffers, named, runs
from .stock import SAVED

Grower = Callable[[Any, Mapping[str, int]], Any]
PRIMES = 7
ENOUGH = -100.0  # log₂ of the error that a certificate may have
WEIGHTS = ("random", "random again", "small", "permuted, negated, scaled")


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
    model = copy.deepcopy(model).eval()  # which a run may have left otherwise
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        return grower(model, dict(target))


def state(model: Any) -> State:
    """The float parameters by name, each once however often it is tied."""
    return {n: p.detach().double() for n, p in parameters_of(model).items()}


class Source:
    """The models of a config before any growth, one for each of WEIGHTS, and their runs."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.models = [source(config, run) for run in range(len(WEIGHTS))]
        self.runs = runs(config, config.vocab_size)
        self.sides: dict[Any, Side] = {}

    def side(self, primes: Sequence[int], seed: int) -> "Side":
        """What the first of them computes over these residues. Raises Unlucky."""
        key = (*primes, seed)
        if key not in self.sides:
            self.sides[key] = Side(self.models[0], self.runs, primes, seed)
        return self.sides[key]


class Side:
    """Random weights over residues, and the logits of every run, or why there are none."""

    def __init__(
        self, model: Any, plan: Sequence[Run], primes: Sequence[int], seed: int
    ) -> None:
        self._field = Field(primes, seed)
        shapes = {n: p.shape for n, p in parameters_of(model).items()}
        self.values = {n: self._field.random(shape) for n, shape in shapes.items()}
        self.logits = [tried(self._field, model, self.values, run) for run in plan]
        self._counted = self._field.calls, self._field.degree
        self._drawn = self._field.ring.generator.get_state()

    @property
    def field(self) -> Field:
        """The field as these runs left it, whatever has been run in it since."""
        self._field.calls, self._field.degree = self._counted
        self._field.ring.generator.set_state(self._drawn)
        return self._field


@functools.lru_cache(maxsize=4)
def known(config: Named) -> Source:
    return Source(config.config)


def sourced(config: PretrainedConfig) -> Source:
    """The source of that config: of the last few, the one that was made before."""
    return known(named(config))


def differing(
    source: Source,
    news: tuple[Any, Any],
    twin: Any,
    entries: Map,
    seed: int,
    found: dict[str, Any],
) -> str:
    """Why the models are not seen to agree over residues; empty where they agree."""
    models = (source.models[0], *news)
    sizes = {q for m in models for k in whole_numbers(m) for q in factors(k)}
    found["primes"] = primes(PRIMES, seed, tuple(sorted(sizes - set(SQUARES))))
    cases = [(run, news[i % 2]) for i, run in enumerate(source.runs)]
    cases.append((source.runs[0]._replace(name=SAVED), twin))
    found["runs"] = [run.name for run, _ in cases]
    for attempt in range(8):
        try:
            side = source.side(found["primes"], seed + 1000 * attempt)
            field, logits = side.field, [*side.logits, side.logits[0]]
            grown = entries.residues(field, side.values)
            why = compared(field, grown, [*zip(cases, logits, strict=True)])
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
    grown: Mapping[str, FieldTensor],
    cases: Sequence[tuple[tuple[Run, Any], Any]],
) -> str:
    """The first (run, grown model), old logits whose like it has not, and how."""
    for (run, new), a in cases:
        b = a if isinstance(a, Exception) else tried(field, new, grown, run)
        if isinstance(b, NotImplementedError):
            return f"{run.name}: {b}."
        if isinstance(b, Exception):
            return f"{run.name}: over residues, {type(b).__name__}: {b}."
        if not (isinstance(a, FieldTensor) and isinstance(b, FieldTensor)):
            return f"{run.name}: the logits do not depend on the grown parameters."
        b = cast(FieldTensor, b[..., : a.shape[-1]])
        if a.shape != b.shape:
            return f"{run.name}: logits {tuple(b.shape)}, not {tuple(a.shape)}."
        if wrong := int((a.residues != b.residues).any(-1).sum()):
            return f"{run.name}: {wrong} of {a.numel()} logits differ over residues."
    return ""


def tried(
    field: Field, model: Any, values: Mapping[str, FieldTensor], run: Run
) -> FieldTensor | Tensor | Exception:
    """The logits of a live model over residues, or why there are none. Raises Unlucky."""
    try:
        return over(field, model, values, run)
    except Unlucky:
        raise
    except Exception as error:
        return error


def over(field: Field, model: Any, values: Mapping[str, FieldTensor], run: Run) -> Any:
    """The logits of a live model over residues, gradients on as its parameters say."""
    stand: dict[int, Tensor] = dict(exact_buffers(model))
    for name, p in parameters_of(model).items():
        stand[id(p)] = values[name].detach().requires_grad_(p.requires_grad)
    with field, held(model, stand), eager(model):
        return run.logits(model, run.tokens).detach()
