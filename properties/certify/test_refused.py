"""What the certifier refuses: planted faults, each with its place."""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import growproof
import pytest
import torch
from torch import nn
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..growers.known_bad import BY_NAME as BAD
from ..laws.domain import CORE
from .certificates import certify
from .command import FAMILIES, config_of
from .shapes import all_shapes, questions
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


def lying(model: Any, target: Any) -> Any:
    """The source itself, whose config says that it has grown."""
    new = copy.deepcopy(model)
    for name, size in target.items():
        setattr(new.config, name, size)
    return new


def another_parameter(new: Any, old: Any) -> None:
    """A gain that no stock code has: lost when it is saved."""
    new.lm_head.weight *= 0.5
    new.lm_head.gain = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    new.lm_head.register_forward_hook(lambda m, i, y: y * m.gain)


class Twice(LlamaForCausalLM):
    """Whose config names another class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out: Any = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out


def another_class(new: Any, old: Any) -> None:
    new.lm_head.weight *= 0.5
    new.__class__ = Twice


def another_kernel(new: Any, old: Any) -> None:
    """Attention of its own."""
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def louder(*args: Any, **kwargs: Any) -> Any:
        out, weights = stock(*args, **kwargs)
        return 3 * out, weights

    AttentionInterface.register("louder", louder)
    new.config._attn_implementation = "louder"


def config_says(**fields: Any) -> Any:
    """Another config than the modules were made of."""

    def change(new: Any, old: Any) -> None:
        new.config = copy.deepcopy(new.config)
        for name, value in fields.items():
            setattr(new.config, name, value)

    return edited(change)


def far_places_lost(new: Any, old: Any) -> None:
    new.transformer.wpe.weight[80:] = 0


def behind_a_cache(
    past_key_values: Any = None, input_ids: Any = None, **_: Any
) -> bool:
    """Several tokens at once."""
    return past_key_values is not None and input_ids.shape[1] > 1


def on_the_way(seen: Callable[..., bool]) -> Any:
    """Twice the logits, where forward is called in some way."""

    def change(new: Any, old: Any) -> None:
        forward = new.forward

        @functools.wraps(forward)
        def other(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            if seen(**kwargs):
                out.logits = out.logits * 2
            return out

        new.forward = other

    return edited(change)


LIVE: dict[str, tuple[Any, str, dict[str, Any], dict[str, Any], str]] = {
    "sizes in the config alone": (
        lying, "llama", {"intermediate_size": 9}, {}, "cannot be saved and loaded",
    ),
    "layers in the config alone": (
        lying, "llama", {"num_hidden_layers": 3}, {}, "cannot be saved and loaded",
    ),
    "a parameter more": (
        edited(another_parameter), "llama", {"hidden_size": 12}, {}, "lm_head.gain is",
    ),
    "untied, and tied in the config": (
        edited(untied), "llama", {"hidden_size": 12}, {"tie_word_embeddings": True},
        "lm_head.weight is",
    ),
    "a class of its own": (
        edited(another_class), "llama", {"intermediate_size": 9}, {}, "once it is saved",
    ),
    "a kernel of its own": (
        edited(another_kernel), "llama", {"intermediate_size": 9}, {}, "not 'louder'",
    ),
    "dropout in the config": (
        config_says(attention_dropout=0.5), "llama", {"intermediate_size": 9}, {},
        "(training)",
    ),
    "a window in the config": (
        config_says(sliding_window=12), "mistral", {"intermediate_size": 14}, {},
        "(cache)",
    ),
    "layer types in the config": (
        config_says(layer_types=["full_attention", "sliding_attention"]), "gemma2",
        {"intermediate_size": 14}, {}, "once it is saved",
    ),
    "positions past 80": (
        edited(far_places_lost), "gpt2",
        {"n_inner": 140}, {}, "96 tokens",
    ),
    "embeddings": (
        on_the_way(lambda inputs_embeds=None, **_: inputs_embeds is not None), "llama",
        {"intermediate_size": 9}, {}, "(embeddings)",
    ),
    "tokens behind a cache": (
        on_the_way(behind_a_cache), "llama",
        {"intermediate_size": 9}, {}, "(cache)",
    ),
    "whole numbers": (
        edited(lambda new, old: new.lm_head.register_forward_hook(
            lambda m, i, y: (y * 2.0**52).to(torch.int64).to(y.dtype) / 2.0**52) and None),
        "llama", {"intermediate_size": 9}, {}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIVE)
def test_what_is_returned_is_what_config_and_weights_make(name: str) -> None:
    """Or it is refused, on every run; a cast has no meaning, and is never certified."""
    grower, family, target, fields, reason = LIVE[name]
    config = config_of(family, FAMILIES[family] | fields)
    found = certify(grower, config, target)
    assert found.verdict == "refused" if reason else "undecided", found.reason
    assert reason in found.reason


def test_all_shapes_are_looked_at_as_they_were_returned() -> None:
    """Right at the shape that decides, and nowhere else; and one that raises elsewhere."""

    def elsewhere(new: Any, old: Any) -> None:
        if new.config.hidden_size != 84:
            new.lm_head.register_forward_hook(lambda m, i, y: 2 * y)

    def narrow(model: Any, target: Any) -> Any:
        if model.config.hidden_size < 8:
            raise ValueError("too narrow")
        return growproof.grow(model, target)

    asked = next(q for q in questions(["llama"], CORE) if q.name == "")
    found = all_shapes(edited(elsewhere), asked)
    assert found.verdict == "undecided"
    assert "not what its config and weights make" in found.reason
    found = all_shapes(narrow, asked)
    assert found.verdict == "refused"
    assert "it raised ValueError: too narrow" in found.reason


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
