"""Ways to run a causal LM, the same for both models: modes, caches, masks, long texts."""

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from growproof.field import Wide, held
from torch import Tensor

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


def evaluated(model: Any, tokens: Tensor) -> Tensor:
    return whole(model.eval(), tokens)


def trained(model: Any, tokens: Tensor) -> Tensor:
    return whole(model.train(), tokens)


def cached(model: Any, tokens: Tensor) -> Tensor:
    """A prompt, then token by token with the cache."""
    cut = tokens.shape[1] - 3
    out = model.eval()(input_ids=tokens[:, :cut], use_cache=True)
    logits = [out.logits]
    for t in range(cut, tokens.shape[1]):
        step = tokens[:, t : t + 1]
        out = model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
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
        parts = [torch.randperm(vocab, generator=generator) for _ in range(-(-batch * length // vocab))]
        return torch.cat(parts)[: batch * length].reshape(batch, length)

    short = min(9, limit)
    every = text(max(1, -(-vocab // long)), long)
    return [
        Run(f"as returned, {long} tokens", every, whole),
        Run("evaluation, cache", text(2, short), cached),
        Run("evaluation, left padding", text(2, short), padded),
        Run("training", text(1, short), trained),
        Run(f"evaluation, {long} tokens again", every[-1:], evaluated),
    ]


def exact_buffers(model: Any) -> dict[int, Tensor]:
    """Each float buffer as float64 makes it, where that is what it rounds.

    A buffer that is another number than the model's class makes of its config stays.
    """
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
        same = y is not None and y.shape == x.shape and torch.allclose(
            x.double(), y.double(), rtol=SINGLE, atol=0
        )
        found[id(x)] = y.double() if same and y is not None else x.double()
    return found


@contextmanager
def eager(*models: Any) -> Generator[None]:
    """Attention and experts as their plain loops, and afterwards as they were."""
    names = "_attn_implementation", "_experts_implementation"
    kept = [(m, m.training, [getattr(m.config, n, None) for n in names]) for m in models]
    try:
        for m in models:
            for n in names:
                if hasattr(m.config, n):
                    setattr(m.config, n, "eager")
        yield
    finally:
        for m, training, values in kept:
            m.train(training)
            for n, value in zip(names, values, strict=True):
                if hasattr(m.config, n):
                    setattr(m.config, n, value)


@contextmanager
def with_values(model: Any, values: dict[int, Tensor]) -> Generator[None]:
    """The live model with these parameters and its buffers in float64."""
    with held(model, exact_buffers(model) | values):
        yield
