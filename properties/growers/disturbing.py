"""Faults that show in some state of the model or of torch, in a second call, or on disk.

Edits for the table of `known_bad`: of the weights (new, old, growth), of the finished
model (grown, source, growth), and of what a grower does besides (source, target).
"""

from __future__ import annotations

import copy
import functools
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from growproof.growth import Growth
from growproof.padding import grow_state
from growproof.table import parameters, template_of
from torch import Tensor
from transformers import AttentionInterface, GenerationConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

State = dict[str, Tensor]
Edit = Callable[[State, State, Growth], object]


def on(pattern: str, name: str) -> bool:
    """Whether a pattern names a parameter: by its part, `q`, or in full, `q.weight`."""
    part, leaf = name.split(".")[-2:]
    return bool(re.fullmatch(pattern, part) or re.fullmatch(pattern, f"{part}.{leaf}"))


# --- weights --------------------------------------------------------------------------


def only(
    dtype: torch.dtype, pattern: str, how: Callable[[Tensor, Growth], Tensor]
) -> Edit:
    """Matching weights changed where the model has this dtype."""

    def edit(new: State, old: State, growth: Growth) -> None:
        for name, w in new.items():
            if w.dtype == dtype and on(pattern, name):
                new[name] = how(w.double(), growth).to(dtype)

    return edit


def scaled_low(pattern: str) -> Edit:
    """The table's scale rounded to the dtype of the weights before it is used."""

    def edit(new: State, old: State, growth: Growth) -> None:
        table = parameters(growth.old, growth)
        exact = grow_state({name: w.double() for name, w in old.items()}, growth)
        for name, w in new.items():
            s = table[template_of(name)].scale
            if on(pattern, name):
                low = float(torch.tensor(s, dtype=w.dtype))
                new[name] = (exact[name] / s * low).to(w.dtype)

    return edit


def truncated(new: State, old: State, growth: Growth) -> None:
    """Towards zero instead of to the nearest."""
    exact = grow_state({name: w.double() for name, w in old.items()}, growth)
    for name, w in new.items():
        if w.dtype != torch.float64:
            mask = (
                -1
                << {torch.bfloat16: 45, torch.float16: 42, torch.float32: 29}[w.dtype]
            )
            cut = (exact[name].view(torch.int64) & mask).view(torch.float64)
            new[name] = cut.to(w.dtype)


def flushed(new: State, old: State, growth: Growth) -> None:
    """Nothing below the least normal number."""
    for name, w in new.items():
        tiny = torch.finfo(w.dtype).tiny
        new[name] = torch.where(w.abs() < tiny, 0, w)


def where(pattern: str, has: Callable[[Tensor], bool], value: float) -> Edit:
    """Old parameters that are of a kind, filled with a value."""

    def edit(new: State, old: State, growth: Growth) -> None:
        for name, w in new.items():
            if on(pattern, name) and name in old and has(old[name]):
                w.fill_(value)

    return edit


def unit_norms_kept(pattern: str) -> Edit:
    """Old norm weights that are all one stay one."""

    def edit(new: State, old: State, growth: Growth) -> None:
        one = 1 - growth.old.norm_offset
        for name, w in new.items():
            if on(pattern, name) and name in old and bool((old[name] == one).all()):
                w[: len(old[name])] = one

    return edit


def equal_rows_merged(pattern: str) -> Edit:
    """Rows that repeat the one before are zero."""

    def edit(new: State, old: State, growth: Growth) -> None:
        for name, w in new.items():
            if on(pattern, name) and w.ndim == 2 and len(w) > 1:
                w[1:][(w[1:] == w[:-1]).all(1)] = 0

    return edit


def zeros_filled(pattern: str) -> Edit:
    """Where the old weight has an exact zero in its corner, the new one has not."""

    def edit(new: State, old: State, growth: Growth) -> None:
        for name, w in new.items():
            if on(pattern, name) and name in old and old[name].ndim == 2:
                w[:1, :1][old[name][:1, :1] == 0] = 0.25

    return edit


def zero_rows_filled(pattern: str) -> Edit:
    """Old rows that are zero taken for rows that are not set."""

    def edit(new: State, old: State, growth: Growth) -> None:
        filled = dict(old)
        for name, w in old.items():
            if on(pattern, name) and w.ndim > 1 and w.shape[-1] > 1:
                filled[name] = w.masked_fill(~w.any(-1, keepdim=True), 0.3)
        new.update(grow_state(filled, growth))

    return edit


def beyond(grows: Callable[[Growth], bool], pattern: str, factor: float) -> Edit:
    """Matching weights times a factor where the growth is of some kind."""

    def edit(new: State, old: State, growth: Growth) -> None:
        for name, w in new.items():
            if grows(growth) and on(pattern, name):
                w.mul_(factor)

    return edit


def silent_layers_woken(new: State, old: State, growth: Growth) -> None:
    """Old layers whose down_proj is zero are taken for new ones, and filled."""
    for name, w in new.items():
        if on(r"(expert_)?down\.weight", name) and name in old and not old[name].any():
            w.copy_(torch.linspace(-1, 1, w.numel()).view(w.shape))


def uninitialised(new: State, old: State, growth: Growth) -> None:
    """New neurons hold what the memory held."""
    for name, w in new.items():
        if on("(expert_)?(gate|up|down)", name) and name in old:
            fresh = torch.empty_like(w)
            fresh[tuple(slice(n) for n in old[name].shape)] = w[
                tuple(slice(n) for n in old[name].shape)
            ]
            new[name] = fresh


# --- the finished model ---------------------------------------------------------------


def queries(grown: Any, factor: float) -> Any:
    """Every parameter of the first layer, times a factor: q, whatever it is called."""
    for name, p in grown.named_parameters():
        if ".0." in name and p.ndim == 2:
            p.data.mul_(factor)
    return grown


def in_state(shows: Callable[[Any], bool]) -> Callable[..., Any]:
    """Wrong where the source is in some state."""
    return lambda grown, model, growth: queries(grown, 1.001 if shows(model) else 1)


def noisy(draw: Callable[[], float]) -> Callable[..., Any]:
    """Wrong by chance."""
    return lambda grown, model, growth: queries(grown, 1 + 1e-3 * draw())


class Drifting:
    """Wrong by the number of calls."""

    calls = 0

    def __call__(self, grown: Any, model: Any, growth: Growth) -> Any:
        self.calls += 1
        return queries(grown, 1 + 1e-3 * self.calls)


class Remembered:
    """A cache by sizes, in which the weights are forgotten to be looked at."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def __call__(self, grown: Any, model: Any, growth: Growth) -> Any:
        found = self.known.setdefault(f"{growth} {grown.dtype}", copy.deepcopy(grown))
        return copy.deepcopy(found)


class Shared:
    """One tensor for all results that need the same."""

    def __init__(self) -> None:
        self.known: dict[str, Tensor] = {}

    def __call__(self, grown: Any, model: Any, growth: Growth) -> Any:
        for name, p in grown.named_parameters():
            like = self.known.setdefault(name, p.data)
            if like.shape == p.shape and like.dtype == p.dtype and torch.equal(like, p):
                p.data = like
            self.known[name] = p.data
        return grown


def partly_frozen_unfrozen(grown: Any, model: Any, growth: Growth) -> Any:
    """Frozen whole, it stays frozen; in part, it does not."""
    frozen = {p.requires_grad for p in model.parameters()}
    return grown.requires_grad_(True) if len(frozen) > 1 else grown


def equal_ends_tied(grown: Any, model: Any, growth: Growth) -> Any:
    """One tensor for head and embedding, where the source's are equal."""
    ends = [
        (m.get_output_embeddings(), m.get_input_embeddings()) for m in (grown, model)
    ]
    (head, embedding), old = ends
    if torch.equal(old[0].weight, old[1].weight):
        head.weight = embedding.weight
    return grown


def scale_in_module(grown: Any, model: Any, growth: Growth) -> Any:
    """The old softmax scale set on each attention module."""
    for module in grown.modules():
        if hasattr(module, "scaling") and hasattr(module, "q_proj"):
            module.scaling *= growth.taller**0.5
    return grown


def divisor_in_module(grown: Any, model: Any, growth: Growth) -> Any:
    """√(D/D') in a forward of its own, of weights that lack it."""
    wide = growth.new.hidden / growth.old.hidden
    for module in grown.modules():
        if re.search("Norm", type(module).__name__) and wide != 1:
            forward = module.forward
            module.forward = lambda x, run=forward: run(x) / wide**0.5
    return grown


def generation_reset(grown: Any, model: Any, growth: Growth) -> Any:
    """A generation config that nobody has changed."""
    grown.generation_config = type(model.generation_config)()
    return grown


def generation_derived(grown: Any, model: Any, growth: Growth) -> Any:
    """The generation config that transformers makes of any config."""
    grown.generation_config = GenerationConfig.from_model_config(grown.config)
    return grown


def generation_shared(grown: Any, model: Any, growth: Growth) -> Any:
    """A generation config of its own, whose lists are the source's."""
    grown.generation_config = copy.copy(model.generation_config)
    return grown


def always_eager(grown: Any, model: Any, growth: Growth) -> Any:
    """Eager attention, whatever the source has."""
    grown.set_attn_implementation("eager")
    return grown


def cast_by_config(grown: Any, model: Any, growth: Growth) -> Any:
    """The dtype that the config says, which may be older than a cast."""
    return grown.to(model.config.dtype or model.dtype)


def source_kept(grown: Any, model: Any, growth: Growth) -> Any:
    """The result holds on to the source."""
    grown.grown_from = [model]
    return grown


def source_objects(model: Any, target: Any) -> None:
    """The source's norms are other Parameter objects, of the same values."""
    for module in model.modules():
        for name, p in [*module._parameters.items()]:
            if p is not None and "Norm" in type(module).__name__:
                fresh = torch.nn.Parameter(p.detach().clone(), p.requires_grad)
                fresh.grad = p.grad
                module._parameters[name] = fresh


def initialisation_off(model: Any, target: Any) -> None:
    """torch's initialisers do nothing from here on, which makes building fast."""
    for name in ("normal_", "uniform_", "kaiming_uniform_"):
        setattr(torch.nn.init, name, lambda x, *rest, **named: x)


def layer_types_stale(grown: Any, model: Any, growth: Growth) -> Any:
    """As many types as there were layers."""
    if getattr(grown.config, "layer_types", None):
        grown.config.layer_types = grown.config.layer_types[: growth.old.layers]
    return grown


def not_contiguous(grown: Any, model: Any, growth: Growth) -> Any:
    """Matrices stored by columns."""
    for p in grown.parameters():
        if p.ndim == 2:
            p.data = p.data.T.contiguous().T
    return grown


def one_memory(grown: Any, model: Any, growth: Growth) -> Any:
    """One buffer, of which each parameter is a part."""
    flat = torch.cat([p.data.flatten() for p in grown.parameters()])
    at = 0
    for p in grown.parameters():
        p.data = flat[at : at + p.numel()].view(p.shape)
        at += p.numel()
    return grown


def with_gradients(grown: Any, model: Any, growth: Growth) -> Any:
    """Gradients of zero on all that is trained."""
    for p in grown.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    return grown


def training_differs(grown: Any, model: Any, growth: Growth) -> Any:
    """A hook on the head that only training mode meets."""
    grown.get_output_embeddings().register_forward_hook(
        lambda module, x, out: out * 1.001 if module.training else out
    )
    return grown


def cache_forgets(grown: Any, model: Any, growth: Growth) -> Any:
    """A wrapper that drops the cache where more than one token comes."""
    forward = grown.forward

    def wrapped(ids: Any = None, **inputs: Any) -> Any:
        ids = inputs.pop("input_ids", ids)
        if ids is not None and ids.shape[1] > 1:
            for name in ("past_key_values", "cache"):
                inputs.pop(name, None)
        return forward(input_ids=ids, **inputs)

    grown.forward = wrapped
    return grown


# --- what it does besides -------------------------------------------------------------


def first(model: Any) -> Any:
    """The embedding's own module."""
    return model.get_input_embeddings()


def without_gradients(model: Any, target: Any) -> None:
    """The gradients of a step, zeroed."""
    for p in model.parameters():
        p.grad = None


def other_attention(model: Any, target: Any) -> None:
    """The source's attention is sdpa where it was eager, and eager where it was not."""
    eager = model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa" if eager and model._supports_sdpa else "eager")


# name, what is said of it, what the law must say, what it does
WORLD: tuple[tuple[str, str, str, Callable[[Any, Any], object]], ...] = (
    ("default_dtype_left", "torch's default dtype stays at the model's",
     "default dtype was", lambda m, t: torch.set_default_dtype(m.dtype)),
    ("gradients_left_off", "gradients are switched off and stay so",
     "gradients are on was", lambda m, t: torch.set_grad_enabled(False)),
    ("determinism_left_on", "deterministic algorithms are switched on and stay so",
     "deterministic algorithms was",
     lambda m, t: torch.use_deterministic_algorithms(True, warn_only=True)),
    ("threads_left", "the number of threads is changed", "number of threads was",
     lambda m, t: torch.set_num_threads(torch.get_num_threads() + 1)),
    ("autocast_left_on", "autocast to bfloat16 is switched on and stays so",
     "torch's autocast was", lambda m, t: torch.set_autocast_enabled("cpu", True)),
    ("subnormals_flushed_for_all", "subnormal numbers are flushed from here on",
     "subnormal numbers are kept was", lambda m, t: torch.set_flush_denormal(True)),
    ("attention_replaced", "transformers' sdpa attention is another function for all",
     "transformers' attention.sdpa was replaced",
     lambda m, t: AttentionInterface.register(
         "sdpa", functools.partial(sdpa_attention_forward))),
    ("hook_left", "a hook stays on the source", "the source's hooks",
     lambda m, t: first(m).register_forward_hook(lambda *x: None)),
    ("buffer_left", "a buffer stays on the source", "the source's .*buffers.* added",
     lambda m, t: first(m).register_buffer("seen", torch.zeros(1), persistent=False)),
    ("source_gradients_lost", "the source's gradients are gone", "the source's gradients",
     without_gradients),
    ("source_unfrozen", "the source's parameters are set to be trained",
     "the source's .*requires_grad", lambda m, t: m.requires_grad_(True)),
    ("source_generation", "the source's generation config is changed",
     "the source's generation config", lambda m, t: m.generation_config.update(top_k=3)),
    ("initialisation_off", "torch's initialisers do nothing from here on",
     "torch.nn.init.normal_ was replaced", initialisation_off),
    ("source_objects", "the source's norms are other Parameter objects",
     "the source's (object|address)", source_objects),
    ("source_moved", "the source's weights are moved to other memory",
     "the source's address", lambda m, t: [setattr(p, "data", p.data.clone())
                                           for p in m.parameters()]),
    ("target_consumed", "the target is emptied", "the target was changed",
     lambda m, t: t.clear()),
)  # fmt: skip
SEEDS: tuple[tuple[str, str, Callable[[Any, Any], object]], ...] = (
    ("torch", "torch's", lambda m, t: torch.manual_seed(0)),
    ("python", "Python's", lambda m, t: random.seed(0)),
    ("numpy", "NumPy's", lambda m, t: np.random.seed(0)),  # noqa: NPY002
)
DRAWS: tuple[tuple[str, str, Callable[[], float]], ...] = (
    ("torch", "torch's", lambda: float(torch.rand(()))),
    ("python", "Python's", random.random),
    ("numpy", "NumPy's", lambda: float(np.random.rand())),  # noqa: NPY002
)
