"""Ways to run a causal LM, the same for both models: modes, caches, masks, long texts."""

import copy
import functools
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from growproof.field import Wide, held
from torch import Tensor

from ..laws.doors import cache_name

LONG = 80  # tokens of a long text
SINGLE = 1e-6  # a buffer against its float64 twin: both were computed in float32


class Run(NamedTuple):
    """One way to run a model: model, tokens → logits (batch, tokens, vocabulary)."""

    name: str
    tokens: Tensor
    logits: Callable[[Any, Tensor], Tensor]


def whole(model: Any, tokens: Tensor) -> Tensor:
    """All tokens at once, no cache, in the mode that the model is in."""
    return model(input_ids=tokens, use_cache=False).logits


def returned(model: Any, tokens: Tensor) -> Tensor:
    """In the mode that every module came in."""
    for module, training in MODES[model]:
        module.training = training
    return whole(model, tokens)


def evaluated(model: Any, tokens: Tensor) -> Tensor:
    return whole(model.eval(), tokens)


def trained(model: Any, tokens: Tensor) -> Tensor:
    return whole(model.train(), tokens)


def cached(model: Any, tokens: Tensor) -> Tensor:
    """A prompt with padding on its left, then two tokens at once and one, with the cache."""
    cut, cache, n = tokens.shape[1] - 3, cache_name(model), tokens.shape[1]
    mask = torch.ones_like(tokens)
    mask[0, 0] = 0
    logits, past = list[Tensor](), dict[str, Any]()
    for i, j in ((0, cut), (cut, n - 1), (n - 1, n)):
        step = {"input_ids": tokens[:, i:j], "attention_mask": mask[:, :j]}
        out = model.eval()(**step, use_cache=True, **past)
        past = {cache: out[cache]}
        logits.append(out.logits)
    return torch.cat(logits, 1)[:, 1:]


def embedded(model: Any, tokens: Tensor) -> Tensor:
    """By their embeddings, each a place further on."""
    x = model.eval().get_input_embeddings()(tokens)
    at = torch.arange(1, tokens.shape[1] + 1).expand(len(tokens), -1)
    return model(inputs_embeds=x, position_ids=at, use_cache=False).logits


def padded(model: Any, tokens: Tensor) -> Tensor:
    """The first text with three tokens of padding on its left; only the rest counts."""
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    out = model.eval()(input_ids=tokens, attention_mask=mask, use_cache=False)
    return out.logits[:, 3:]


def runs(config: Any, vocab: int) -> list[Run]:
    """All of them; the long text has every token of the vocabulary."""
    limit = getattr(config, "max_position_embeddings", None) or LONG
    window = getattr(config, "sliding_window", None) or 0
    long = min(max(LONG, window + 8 if window <= 256 else 0), limit)
    long = limit if limit <= 2 * LONG else long
    generator = torch.Generator().manual_seed(0)

    def text(batch: int, length: int) -> Tensor:
        parts = [
            torch.randperm(vocab, generator=generator)
            for _ in range(-(-batch * length // vocab))
        ]
        return torch.cat(parts)[: batch * length].reshape(batch, length)

    short = min(9, limit)
    past = min(window + 4, limit) if short < window + 4 <= LONG else short
    return [
        Run("as returned", text(1, short), returned),
        Run("training", text(1, short), trained),
        Run("left padding", text(2, short), padded),
        Run("cache", text(2, past), cached),
        Run("embeddings", text(3, min(short, limit - 1)), embedded),
        Run(f"{long} tokens", text(max(1, -(-vocab // long)), long), evaluated),
    ]


MODES: WeakKeyDictionary[Any, list[tuple[Any, bool]]] = WeakKeyDictionary()
BUFFERS: WeakKeyDictionary[Any, dict[int, Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Named:
    """A config, known by its text."""

    text: str
    config: Any = field(compare=False)


def named(config: Any) -> Named:
    told = [config.model_type, config.to_dict()]
    return Named(json.dumps(told, sort_keys=True, default=str), config)


@functools.lru_cache(maxsize=8)
def made(kind: type, config: Named) -> dict[str, Tensor]:
    """The buffers that a class makes of a config, in float64."""
    with Wide():
        return dict(kind(copy.deepcopy(config.config)).named_buffers())


def exact_buffers(model: Any) -> dict[int, Tensor]:
    """Each float buffer as float64 makes it, where that is what it rounds, by its id.

    A buffer that is another number than the model's class makes of its config stays.
    """
    if model in BUFFERS:
        return BUFFERS[model]
    try:
        exact = made(type(model), named(model.config))
    except Exception:  # a class that cannot be built from its config alone
        exact = {}
    found: dict[int, Tensor] = {}
    for name, x in model.named_buffers():
        if not x.is_floating_point():
            continue
        y = exact.get(name)
        if (
            y is None
            or y.shape != x.shape
            or not torch.allclose(x.double(), y.double(), rtol=SINGLE, atol=0)
        ):
            y = x
        found[id(x)] = y.to(torch.float64, copy=y is not x)  # a model's own
    BUFFERS[model] = found
    return found


def note_modes(model: Any) -> None:
    """Training or evaluation, of each module, as it was returned."""
    MODES.setdefault(model, [(module, module.training) for module in model.modules()])


@contextmanager
def eager(*models: Any, attention: bool = True) -> Generator[None]:
    """Attention and experts as their plain loops, and afterwards as they were."""
    names = ("_experts_implementation", *(("_attn_implementation",) * attention))
    kept = [(m, [getattr(m.config, n, None) for n in names]) for m in models]
    try:
        for m in models:
            note_modes(m)
            for n in names:
                if hasattr(m.config, n):
                    setattr(m.config, n, "eager")
        yield
    finally:
        for m, values in kept:
            for n, value in zip(names, values, strict=True):
                if hasattr(m.config, n):
                    setattr(m.config, n, value)


@contextmanager
def with_values(model: Any, values: dict[int, Tensor]) -> Generator[None]:
    """The live model with these parameters and its buffers in float64."""
    with held(model, exact_buffers(model) | values):
        yield
