"""What the certifier refuses: planted faults, each with its place."""

import math
from collections.abc import Callable
from typing import Any

import growproof
import pytest
import torch
from torch import nn

from ..growers.known_bad import BY_NAME as BAD
from .test_certificates import LLAMA_ALL, after, edited, fitted, judged, times


def beyond(tokens: int) -> Any:
    """Wrong on texts of more than so many tokens."""

    def change(new: Any, old: Any) -> None:
        new.model.norm.register_forward_hook(
            lambda m, i, y: y * 2 if y.shape[1] > tokens else y
        )

    return edited(change)


def when(wrong: Callable[[Any], bool]) -> Any:
    """The logits doubled where wrong(model)."""

    def change(new: Any, old: Any) -> None:
        new.lm_head.register_forward_hook(lambda m, i, y: y * 2 if wrong(new) else y)

    return edited(change)


def patched(new: Any, old: Any) -> None:
    mlp = new.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) * 1.5


def replaced(new: Any, old: Any) -> None:
    new.model.layers[1].mlp.act_fn = nn.GELU()


def buffer(new: Any, old: Any) -> None:
    new.model.rotary_emb.inv_freq *= 1.001


def live_eps(new: Any, old: Any) -> None:
    for module in new.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= 1.5


def hooked(new: Any, old: Any) -> None:
    new.lm_head.weight *= 0.5
    new.lm_head.register_forward_hook(lambda m, i, y: y * 2)


def stale_index(new: Any, old: Any) -> None:
    new.model.layers[2].self_attn.layer_idx = 0


def untied(new: Any, old: Any) -> None:
    new.lm_head.weight = nn.Parameter(new.lm_head.weight * 2)


def dropout(new: Any, old: Any) -> None:
    for layer in new.model.layers:
        layer.self_attn.attention_dropout = 0.5


def one_entry(new: Any, old: Any) -> None:
    new.lm_head.weight[3, 4] = 0


def data_dependent(new: Any, old: Any) -> None:
    if old.model.embed_tokens.weight[0, 0] < 0:
        new.model.layers[0].self_attn.o_proj.weight *= -1


def rolled_norm(new: Any, old: Any) -> None:
    d = old.config.hidden_size
    weight = new.model.norm.weight
    weight[:d] = weight[:d].roll(1)


def not_a_number(new: Any, old: Any) -> None:
    new.lm_head.weight[:, -1] = math.nan


FAULTS: dict[str, tuple[Any, str]] = {
    "beyond 70 tokens": (beyond(70), "80 tokens"),
    "in training": (when(lambda m: m.training), "training"),
    "with gradients": (when(lambda m: torch.is_grad_enabled()), "as returned"),
    "after three calls": (after(2), "differ"),
    "patched forward": (edited(patched), "from model.layers.0"),
    "replaced module": (edited(replaced), "model.layers.1.mlp.act_fn"),
    "rotary buffer": (edited(buffer), "differ"),
    "live eps": (edited(live_eps), "input_layernorm"),
    "right in memory only": (edited(hooked), "saved and loaded"),
    "stale layer_idx": (edited(stale_index), "does not run"),
    "dropout": (edited(dropout), "training"),
    "one entry": (edited(one_entry), "lm_head"),
    "looks at the values": (edited(data_dependent), "differ"),
    "norm weights rolled": (edited(rolled_norm), "lm_head"),
    "NaN that nothing reads": (edited(not_a_number), "a NaN"),
    "q scale by 1e-6": (times(q_proj=1 + 1e-6), "self_attn"),
    "q scale in float32": (times(q_proj=lambda n, o: 1 + 2**-24), "self_attn"),
    "nothing returned": (lambda model, target: None, "returned NoneType"),
    "raises": (lambda model, target: 1 / 0, "ZeroDivisionError"),
    "a size ignored": (
        lambda model, target: growproof.grow(model, {**target, "num_hidden_layers": 2}),
        "num_hidden_layers is 2, not 3",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_refused_with_their_place(name: str) -> None:
    grower, reason = FAULTS[name]
    found = judged(grower, "llama", LLAMA_ALL)
    assert found.verdict == "refused", found.reason
    assert reason in found.reason


def test_an_untied_result_is_refused() -> None:
    found = judged(edited(untied), "llama", LLAMA_ALL, tie_word_embeddings=True)
    assert found.verdict == "refused", found.reason
    assert "lm_head" in found.reason


def test_every_token_of_a_small_vocabulary_is_a_witness() -> None:
    """With five tokens, too, one embedding row is enough to refuse."""

    def row(new: Any, old: Any) -> None:
        new.model.embed_tokens.weight[4] *= 1.001

    found = judged(edited(row), "llama", LLAMA_ALL, vocab_size=5)
    assert found.verdict == "refused", found.reason
    assert {t for text in found.witness["tokens"] for t in text} > {0}


@pytest.mark.parametrize("fault", ["vocab_chosen", "vocab_first_chosen"])
def test_a_new_token_that_may_be_chosen_is_refused(fault: str) -> None:
    """The old logits are the same, and the certificate speaks of the new tokens too."""
    found = fitted("all, vocabulary", BAD[fault])
    assert found.verdict == "refused"
    assert "may choose the new token 11" in found.reason
