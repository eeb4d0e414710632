"""Ways to run a causal LM, the same for both models: modes, caches, masks, long texts."""

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
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
    """A prompt, then token by token with the cache."""
    cut = tokens.shape[1] - 2
    out = model.eval()(input_ids=tokens[:, :cut], use_cache=True)
    logits, cache = [out.logits], cache_name(model)
    for t in range(cut, tokens.shape[1]):
        step = tokens[:, t : t + 1]
        out = model(input_ids=step, use_cache=True, **{cache: out[cache]})
        logits.append(out.logits)
    return torch.cat(logits, 1)


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
    generator = torch.Generator().manual_seed(0)

    def text(batch: int, length: int) -> Tensor:
        parts = [
            torch.randperm(vocab, generator=generator)
            for _ in range(-(-batch * length // vocab))
        ]
        return torch.cat(parts)[: batch * length].reshape(batch, length)

    short = min(9, limit)
    return [
        Run("as returned", text(1, short), returned),
        Run("training", text(1, short), trained),
        Run("left padding", text(2, short), padded),
        Run("cache", text(2, short), cached),
        Run(f"{long} tokens", text(max(1, -(-vocab // long)), long), evaluated),
    ]


MODES: WeakKeyDictionary[Any, list[tuple[Any, bool]]] = WeakKeyDictionary()
BUFFERS: WeakKeyDictionary[Any, dict[int, Tensor]] = WeakKeyDictionary()


def exact_buffers(model: Any) -> dict[int, Tensor]:
    """Each float buffer as float64 makes it, where that is what it rounds, by its id.

    A buffer that is another number than the model's class makes of its config stays.
    """
    if model in BUFFERS:
        return BUFFERS[model]
    try:
        with Wide():
            twin = type(model)(copy.deepcopy(model.config))
        exact = dict(twin.named_buffers())
    except Exception:  # a class that cannot be built from its config alone
        exact = {}
    found: dict[int, Tensor] = {}
    for name, x in model.named_buffers():
        if not x.is_floating_point():
            continue
        y = exact.get(name)
        same = (
            y is not None
            and y.shape == x.shape
            and torch.allclose(x.double(), y.double(), rtol=SINGLE, atol=0)
        )
        found[id(x)] = y.double() if same and y is not None else x.double()
    BUFFERS[model] = found
    return found


@contextmanager
def eager(*models: Any) -> Generator[None]:
    """Attention and experts as their plain loops, and afterwards as they were."""
    names = "_attn_implementation", "_experts_implementation"
    kept = [(m, [getattr(m.config, n, None) for n in names]) for m in models]
    try:
        for m in models:
            MODES[m] = [(module, module.training) for module in m.modules()]
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
