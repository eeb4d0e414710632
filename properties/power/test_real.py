"""Faults that show at the sizes, in the states and in the places of real use alone."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import growproof
import pytest
import torch
from growproof.models import no_init_weights
from transformers import LlamaForCausalLM

from ..errors.ledger import recording
from ..gate.loading import Grower
from ..laws.domain import CORE, DOMAIN
from ..laws.registry import items

COMMUTES = "test_real_sizes_commute_with_rounding"
Change = Callable[[Any, Any], None]  # of the grown model, seeing the source
LOUDER = 1.01
Q = re.compile(r"(q_proj|c_attn|qkv_proj|query_key_value)\.weight")


def louder(when: Callable[[Any, Any], bool]) -> Change:
    """q (or what holds it) of the first layer, where the two configs are so."""

    def change(grown: Any, source: Any) -> None:
        if when(source.config, grown.config):
            weights = dict(grown.named_parameters())
            name = next(n for n in weights if ".0." in n and Q.search(n))
            weights[name].data.mul_(LOUDER)

    return change


def head_dim(c: Any) -> int:
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def frozen_alike(grown: Any, source: Any) -> None:
    """Frozen as the first layer is, whatever the others are."""
    layers = grown.model.layers
    for layer in layers[1:]:
        for p, first in zip(layer.parameters(), layers[0].parameters(), strict=True):
            p.requires_grad_(first.requires_grad)


def sizes_stale(grown: Any, source: Any) -> None:
    """Linear layers that say what they were."""
    for module in grown.modules():
        if isinstance(module, torch.nn.Linear):
            module.in_features -= 1


def dropout_lost(grown: Any, source: Any) -> None:
    """Attention that drops nothing, whatever the config says."""
    for layer in grown.model.layers:
        layer.self_attn.attention_dropout = 0.0


def large_ones_off(grown: Any, source: Any) -> None:
    """Weights of more than 100,000 entries off by 5 % where they are not float64."""
    for p in grown.parameters():
        if p.dtype != torch.float64 and p.numel() > 100_000:
            p.data.mul_(1.05)


def activation_by_hand(grown: Any, source: Any) -> None:
    """The same function, of a class that no reloaded model has."""
    for layer in grown.model.layers:
        layer.mlp.act_fn = torch.nn.SiLU()


def buffers_shared(grown: Any, source: Any) -> None:
    """The source's own frequencies."""
    grown.model.rotary_emb.inv_freq = source.model.rotary_emb.inv_freq


def end_lost(grown: Any, source: Any) -> None:
    """What lies past 2²² entries of a matrix of the MLP."""
    for layer in grown.model.layers:
        layer.mlp.gate_proj.weight.data.view(-1)[2**22 :] = 0


REAL = "test_real_sizes_are_lossless"
PUBLISHED = "test_constants_of_published_models_are_heeded"
FAULTS: dict[str, tuple[str, Change]] = {
    "head_dim 64": (f"{REAL}[head_dim_64]", louder(lambda a, b: head_dim(a) == 64)),
    "head_dim 128": (f"{REAL}[head_dim_128]", louder(lambda a, b: head_dim(a) == 128)),
    "hidden 576": (f"{REAL}[hidden_576]", louder(lambda a, b: b.hidden_size > 1024)),
    "layers 12": (f"{REAL}[layers_12]", louder(lambda a, b: a.num_hidden_layers > 11)),
    "MLP by more than three": (
        f"{REAL}[mlp_thrice]",
        louder(lambda a, b: b.intermediate_size > 3 * a.intermediate_size),
    ),
    "vocabulary past 2¹⁵": (
        f"{REAL}[vocab_33000]", louder(lambda a, b: a.vocab_size > 32767),
    ),
    "positions 8192": (
        f"{REAL}[positions_8192]",
        lambda new, old: setattr(new.config, "max_position_embeddings", 2048),
    ),
    "θ of Llama 3": (
        f"{REAL}[theta_500000]",
        louder(lambda a, b: a.rope_parameters["rope_theta"] == 5e5),
    ),
    "MLP past 2²² entries": (f"{REAL}[mlp_16390]", end_lost),
    "Llama 3's positions": (
        f"{PUBLISHED}[llama]", louder(lambda a, b: a.max_position_embeddings > 10**5),
    ),
    "nine heads on three": (
        f"{PUBLISHED}[llama]",
        louder(lambda a, b: (a.num_attention_heads, a.num_key_value_heads) == (9, 3)),
    ),
    "a window of 4096": (
        f"{PUBLISHED}[mistral]", louder(lambda a, b: (a.sliding_window or 0) > 4000),
    ),
    "eight experts": (
        f"{PUBLISHED}[mixtral]", louder(lambda a, b: a.num_local_experts > 7),
    ),
    "128 experts": (f"{PUBLISHED}[qwen3_moe]", louder(lambda a, b: a.num_experts > 100)),
    "GPT-2's positions": (f"{PUBLISHED}[gpt2]", louder(lambda a, b: a.n_positions > 1000)),
    "score scale of Gemma 2 27B": (
        f"{PUBLISHED}[gemma2]", louder(lambda a, b: a.query_pre_attn_scalar == 144),
    ),
    "θ of SmolLM3": (
        f"{PUBLISHED}[smollm3]",
        louder(lambda a, b: a.rope_parameters["rope_theta"] == 5e6),
    ),
    "score scale of Granite": (
        f"{PUBLISHED}[granite]", louder(lambda a, b: a.attention_multiplier < 0.01),
    ),
    "yarn": (
        f"{PUBLISHED}[arcee]",
        louder(lambda a, b: a.rope_parameters["rope_type"] == "yarn"),
    ),
    "frozen by layers": ("test_dtype_device_and_mode", frozen_alike),
    "in_features": ("test_it_is_as_one_that_was_made_of_its_config", sizes_stale),
    "dropout": ("test_it_is_as_one_that_was_made_of_its_config", dropout_lost),
    "large weights in bf16": (f"{COMMUTES}[mlp_16390]", large_ones_off),
    "wide rows in bf16": (f"{COMMUTES}[hidden_576]", large_ones_off),
    "activation": ("test_it_is_as_one_that_was_made_of_its_config", activation_by_hand),
    "buffers": ("test_nothing_is_shared", buffers_shared),
}  # fmt: skip


@pytest.fixture(autouse=True)
def llama() -> Iterator[None]:
    """Llamas alone, and no errors of the grower under test."""
    before, DOMAIN.features = DOMAIN.features, {*CORE} - {"stablelm"}
    with recording(None):
        yield
    DOMAIN.features = before


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_real_use_is_rejected(name: str) -> None:
    """By the law that is there for it."""
    law, change = FAULTS[name]
    if PUBLISHED in law:
        DOMAIN.features |= {law.split("[")[1].rstrip("]"), "rope_types"}

    def grow(model: Any, target: Any) -> Any:
        grown = growproof.grow(model, dict(target))
        change(grown, model)
        return grown

    with pytest.raises(AssertionError):
        items()[law].judge(Grower(name, grow))


def test_a_memo_is_stale_once_the_model_was_trained() -> None:
    """Two calls with one object, whose weights were changed in between."""
    made: dict[tuple[int, str], Any] = {}

    def grow(model: Any, target: Any) -> Any:
        key = id(model), str(target)
        if key not in made or made[key][0] is not model:
            made[key] = model, growproof.grow(model, dict(target)).state_dict()
        grown = growproof.grow(model, dict(target))
        grown.load_state_dict(made[key][1])
        return grown

    with pytest.raises(AssertionError, match="trained on since"):
        items()["test_two_calls_agree"].judge(Grower("memo", grow))


class HeadFirst(LlamaForCausalLM):
    """A Llama whose lm_head comes before its layers, and lends a tied tensor its name."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._modules["model"] = self._modules.pop("model")


@pytest.mark.parametrize(
    "law",
    [
        "test_logits_are_unchanged[llama-layers]", "test_tying_is_kept",
        "test_dtype_device_and_mode", "test_saves_and_loads",
    ],
)  # fmt: skip
def test_a_head_that_comes_first_is_right(law: str) -> None:
    """A parameter has the embedding's name, whichever module has it first."""

    def grow(model: Any, target: Any) -> Any:
        grown = growproof.grow(model, dict(target))
        with no_init_weights():
            new: Any = HeadFirst(copy.deepcopy(grown.config))
        new.load_state_dict(grown.state_dict(), assign=True)
        new.tie_weights()
        for name, p in grown.named_parameters():
            new.get_parameter(name).requires_grad_(p.requires_grad)
        new.generation_config = copy.deepcopy(grown.generation_config)
        return new.train(grown.training)

    items()[law].judge(Grower("head first", grow))
