"""The doors into a model: each gives what its own logits say, however it is entered.

A door is (model, ids, logits of these ids) → (what comes out, what the logits say). All
are in float64 but for what transformers does in float32.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Door = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
WITHIN = (
    1e-5  # of the largest logit: float32's rounding, and two digits for what follows
)
NEW = 20  # tokens that are generated


def cache_name(model: Any) -> str:
    """What the cache is called among the inputs: `cache` from transformers 5.24 on."""
    accepted = inspect.signature(type(model).forward).parameters
    return "cache" if "cache" in accepted else "past_key_values"


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean next-token loss."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )


def labels(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The loss for labels."""
    return model(ids, labels=ids).loss, loss_of(logits, ids)


def labels_in_part(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The loss where a label of −100 says that a token is not asked for."""
    asked = ids.masked_fill(torch.arange(ids.shape[1]) % 3 == 2, -100)
    return model(ids, labels=asked).loss, loss_of(logits, asked)


def tuples(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """A tuple instead of an object."""
    out = model(ids, return_dict=False, use_cache=False)
    assert isinstance(out, tuple), f"return_dict=False gives a {type(out).__name__}"
    return out[0], logits


def last_logits(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of the last token alone, where the model can be asked for them."""
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        return logits, logits
    out = model(ids, logits_to_keep=1).logits
    assert out.shape[1] == 1, f"logits_to_keep=1 gives those of {out.shape[1]} tokens"
    return out, logits[:, -1:]


def embeds(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings instead of tokens."""
    return model(inputs_embeds=model.get_input_embeddings()(ids)).logits, logits


def position_ids(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The positions said."""
    return model(ids, position_ids=torch.arange(ids.shape[1])[None]).logits, logits


def hidden_states(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states as outputs: one of each layer and one before, as wide as said."""
    out, c = model(ids, output_hidden_states=True), model.config
    shapes = [tuple(h.shape) for h in out.hidden_states or ()]
    wanted = [(*ids.shape, c.hidden_size)] * (c.num_hidden_layers + 1)
    assert shapes == wanted, f"hidden_states are {shapes}, expected {wanted}"
    return out.logits, logits


def attentions(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Attention as an output: probabilities of each head of each layer."""
    out, c = model(ids, output_attentions=True), model.config
    shapes = [tuple(a.shape[:2]) for a in out.attentions or ()]
    wanted = [(len(ids), c.num_attention_heads)] * c.num_hidden_layers
    assert shapes == wanted, f"attentions are {shapes}, expected {wanted}"
    sums = torch.stack([a.double().sum(-1) for a in out.attentions])
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5), "they sum up to 1"
    return out.logits, logits


@contextlib.contextmanager
def trained(model: Any) -> Iterator[None]:
    """Training mode, every dropout at zero (what it is, the config says)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model.train()
    try:
        yield
    finally:
        model.eval()


def training(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Training mode."""
    with trained(model):
        return model(ids, use_cache=False).logits, logits


def checkpointing(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the embedding, with and without gradient checkpointing."""
    weight, found = model.get_input_embeddings().weight, []
    for on in (True, False):
        if on and not model.supports_gradient_checkpointing:
            continue
        switch(model, on=on)
        with torch.enable_grad(), trained(model):
            was = weight.requires_grad
            weight.requires_grad_(True)
            loss = loss_of(model(ids, use_cache=False).logits, ids)
            found.append(torch.autograd.grad(loss, weight)[0])
            weight.requires_grad_(was)
    return found[0], found[-1]


def switch(model: Any, *, on: bool) -> None:
    """Gradient checkpointing on or off: called activation checkpointing from 5.23 on."""
    word = "enable" if on else "disable"
    names = (f"activation_checkpointing_{word}", f"gradient_checkpointing_{word}")
    name = next(n for n in names if hasattr(model, n))
    getattr(model, name)(*([{"use_reentrant": False}] if on else []))


def cached(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The second half of the text in one call, behind the cache of the first."""
    half, name = ids.shape[1] // 2, cache_name(model)
    first = model(ids[:, :half], use_cache=True)
    rest = model(ids[:, half:], use_cache=True, **{name: first[name]})
    return torch.cat((first.logits, rest.logits), 1), logits


def greedy(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """A long greedy text: each token is the best that the logits of it have."""
    text = model.generate(ids, **plainly(ids), max_new_tokens=NEW)
    assert text.shape[1] == ids.shape[1] + NEW, f"{text.shape[1]} tokens came back"
    said = model(text, use_cache=False).logits[:, ids.shape[1] - 1 : -1]
    chosen = said.gather(-1, text[:, ids.shape[1] :, None])[..., 0]
    return chosen, said.max(-1).values


def beams(model: Any, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Three beams: the score of what is chosen is what its logits say."""
    out = model.generate(
        ids, **plainly(ids), num_beams=3, max_new_tokens=4, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    text, start = out.sequences, ids.shape[1]
    said = model(text, use_cache=False).logits[:, start - 1 : -1].log_softmax(-1)
    score = said.gather(-1, text[:, start:, None])[..., 0].mean(1)
    return out.sequences_scores, score


def plainly(ids: Tensor) -> dict[str, Any]:
    """How text is generated: without chance."""
    return {
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }


FORWARD: dict[str, Door] = {
    f.__name__: f
    for f in (labels, labels_in_part, tuples, last_logits, embeds, position_ids, hidden_states, attentions, training,
              checkpointing, cached)
}  # fmt: skip
DOORS = FORWARD | {f.__name__: f for f in (greedy, beams)}


def through(name: str, model: Any, ids: Tensor, logits: Tensor) -> None:
    """A door leads where the logits do. AssertionError, with the door's name, if not."""
    __tracebackhide__ = True
    try:
        with torch.no_grad():
            got, expected = DOORS[name](model, ids, logits)
            scale = expected.abs().max().clamp_min(1e-6)  # gradients may vanish
            if name != "checkpointing":
                scale = torch.maximum(scale, logits.abs().max())
            worst = float((got - expected).abs().max() / scale)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise AssertionError(f"through {name} the model raises {error}") from error
    assert worst < WITHIN, f"through {name} it is off by {worst:.3g} of its scale"
