"""Faults that show at the sizes, in the states and in the places of real use alone."""

import functools
import logging
import os
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import LlamaForCausalLM

from ..laws import test_doors as doors
from ..laws import test_handed_back as handed_back
from ..laws import test_hygiene as hygiene
from ..laws import test_real as real
from ..laws import test_world as world
from ..laws.registry import Item, item_of
from .known_bad import deaf_to

Change = Callable[[Any, Any], object]  # of the grown model, seeing the source


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


class Forgetful(LlamaForCausalLM):
    """Which sees padding, but not once there is a cache."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        past = kwargs.get("past_key_values", kwargs.get("cache"))
        if past is not None and past.get_seq_length() and attention_mask is not None:
            attention_mask = torch.ones_like(attention_mask)
        return super().forward(input_ids, attention_mask, **kwargs)


def padding_forgotten(grown: Any, source: Any) -> None:
    """A class of its own."""
    grown.__class__ = Forgetful


def windows_halved(grown: Any, source: Any) -> None:
    """Where they are as long as published ones."""
    window = getattr(grown.config, "sliding_window", None) or 0
    if window > 500:
        grown.config.sliding_window = window // 2
        for module in grown.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = window // 2


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


def narrow_and(when: Callable[[Any, Any], bool]) -> Change:
    """q off where a model that is not in float64 is so."""

    def change(grown: Any, source: Any) -> None:
        if source.dtype != torch.float64 and when(source.config, source):
            grown.model.layers[0].self_attn.q_proj.weight.data.mul_(1.5)

    return change


def last_layers_trained(grown: Any, source: Any) -> None:
    """As by a pattern for names that takes layers of one digit."""
    for name, p in grown.named_parameters():
        if re.search(r"layers\.\d\d", name):
            p.requires_grad_(True)


def buffers_cast(grown: Any, source: Any) -> None:
    """As .bfloat16() does it."""
    for b in grown.buffers():
        b.data = b.data.to(source.dtype)


def gradients_dropped(grown: Any, source: Any) -> None:
    """A model that never trains."""
    for p in grown.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))


def head_without_gradient(grown: Any, source: Any) -> None:
    """The same logits, and no gradient for what makes them."""
    head = grown.lm_head
    head.forward = lambda x: torch.nn.functional.linear(x, head.weight.detach())


def all_labels_counted(grown: Any, source: Any) -> None:
    """A forward for which a label of −100 is one like any other."""
    run = grown.forward

    @functools.wraps(run)
    def forward(*words: Any, labels: Any = None, **told: Any) -> Any:
        return run(
            *words, labels=None if labels is None else labels.clamp(min=0), **told
        )

    grown.forward = forward


def renumbered(source: Any) -> None:
    """As where layers are moved over from the source."""
    for layer in source.model.layers:
        layer.self_attn.layer_idx = -1


def with_its_gradients(grown: Any, source: Any) -> None:
    """Those of parameters that did not grow."""
    old = dict(source.named_parameters())
    for name, p in grown.named_parameters():
        if name in old and old[name].grad is not None and old[name].shape == p.shape:
            p.grad = old[name].grad.clone()


def damaged_then_declined(grown: Any, source: Any) -> None:
    """The source's norms are halved before the target is found to be none of its own."""
    with torch.no_grad():
        for name, p in source.named_parameters():
            p.mul_(0.5 if "norm" in name else 1.0)
    raise NotImplementedError("this target")


CACHE: list[Any] = []


REAL = real.test_real_sizes_are_lossless
STATES = real.test_real_sizes_are_grown_in_any_state
MADE = handed_back.test_it_is_as_one_that_was_made_of_its_config
DOORS = doors.test_every_door_leads_to_one_function
WORLD = world.test_the_world_is_left_as_it_was
PUBLISHED = real.test_constants_of_published_models_are_heeded
COMMUTES = real.test_real_sizes_commute_with_rounding
# name: (the item that rejects it, what it does to a right growth)
FAULTS: dict[str, tuple[Item, Change]] = {
    "head_dim 64": (item_of(REAL, "head_dim_64"), louder(lambda a, b: head_dim(a) == 64)),
    "head_dim 128": (item_of(REAL, "head_dim_128"), louder(lambda a, b: head_dim(a) == 128)),
    "hidden 576": (item_of(REAL, "hidden_576"), louder(lambda a, b: b.hidden_size > 1024)),
    "layers 12": (item_of(REAL, "layers_12"), louder(lambda a, b: a.num_hidden_layers > 11)),
    "MLP by more than three": (
        item_of(REAL, "mlp_thrice"),
        louder(lambda a, b: b.intermediate_size > 3 * a.intermediate_size),
    ),
    "vocabulary past 2¹⁵": (
        item_of(REAL, "vocab_33000"), louder(lambda a, b: a.vocab_size > 32767),
    ),
    "positions 8192": (
        item_of(REAL, "positions_8192"),
        lambda new, old: setattr(new.config, "max_position_embeddings", 2048),
    ),
    "θ of Llama 3": (
        item_of(REAL, "theta_500000"),
        louder(lambda a, b: a.rope_parameters["rope_theta"] == 5e5),
    ),
    "MLP past 2²² entries": (item_of(REAL, "mlp_16390"), end_lost),
    "Llama 3's positions": (
        item_of(PUBLISHED, "llama"), louder(lambda a, b: a.max_position_embeddings > 10**5),
    ),
    "nine heads on three": (
        item_of(PUBLISHED, "llama"),
        louder(lambda a, b: (a.num_attention_heads, a.num_key_value_heads) == (9, 3)),
    ),
    "a window of 4096": (
        item_of(PUBLISHED, "mistral"), louder(lambda a, b: (a.sliding_window or 0) > 4000),
    ),
    "eight experts": (
        item_of(PUBLISHED, "mixtral"), louder(lambda a, b: a.num_local_experts > 7),
    ),
    "128 experts": (item_of(PUBLISHED, "qwen3_moe"), louder(lambda a, b: a.num_experts > 100)),
    "GPT-2's positions": (item_of(PUBLISHED, "gpt2"), louder(lambda a, b: a.n_positions > 1000)),
    "score scale of Gemma 2 27B": (
        item_of(PUBLISHED, "gemma2"), louder(lambda a, b: a.query_pre_attn_scalar == 144),
    ),
    "θ of SmolLM3": (
        item_of(PUBLISHED, "smollm3"),
        louder(lambda a, b: a.rope_parameters["rope_theta"] == 5e6),
    ),
    "score scale of Granite": (
        item_of(PUBLISHED, "granite"), louder(lambda a, b: a.attention_multiplier < 0.01),
    ),
    "yarn": (
        item_of(PUBLISHED, "arcee"),
        louder(lambda a, b: a.rope_parameters["rope_type"] == "yarn"),
    ),
    "head_dim that follows": (
        item_of(PUBLISHED, "qwen2"), louder(lambda a, b: not getattr(a, "head_dim", None)),
    ),
    "an MLP that follows": (
        item_of(PUBLISHED, "gpt2"), louder(lambda a, b: a.n_inner is None),
    ),
    "longrope": (
        item_of(PUBLISHED, "phi3"),
        louder(lambda a, b: a.rope_parameters["rope_type"] == "longrope"),
    ),
    "dynamic": (
        item_of(PUBLISHED, "llama"),
        louder(lambda a, b: a.rope_parameters["rope_type"] == "dynamic"),
    ),
    "declined too late": (item_of(WORLD), damaged_then_declined),
    "embeddings left as memory is": (
        item_of(WORLD),
        lambda new, old: setattr(torch.nn.Embedding, "reset_parameters", lambda self: None),
    ),
    "frozen by layers": (item_of(handed_back.test_dtype_device_and_mode), frozen_alike),
    "in_features": (item_of(MADE), sizes_stale),
    "dropout": (item_of(MADE), dropout_lost),
    "large weights in bf16": (item_of(COMMUTES, "bfloat16"), large_ones_off),
    "large weights in fp16": (item_of(COMMUTES, "float16"), large_ones_off),
    "rows of 640 in fp16": (
        item_of(COMMUTES, "float16"), narrow_and(lambda c, m: c.hidden_size > 600),
    ),
    "ten layers in bf16": (
        item_of(COMMUTES, "bfloat16"), narrow_and(lambda c, m: c.num_hidden_layers > 9),
    ),
    "ε of 1e-8 in fp16": (
        item_of(COMMUTES, "float16"), narrow_and(lambda c, m: c.rms_norm_eps <= 1e-8),
    ),
    "outliers in float32": (
        item_of(COMMUTES, "float32"),
        narrow_and(lambda c, m: max(float(p.detach().abs().max()) for p in m.parameters()) > 8),
    ),
    "128 heads": (item_of(REAL, "heads_128"), louder(lambda a, b: b.num_attention_heads > 64)),
    "32 key/value heads": (
        item_of(REAL, "groups_32"), louder(lambda a, b: a.num_key_value_heads > 12),
    ),
    "80 layers": (item_of(REAL, "layers_80"), louder(lambda a, b: a.num_hidden_layers > 40)),
    "hidden 4096": (item_of(REAL, "hidden_4096"), louder(lambda a, b: a.hidden_size > 4000)),
    "deep and wide": (
        item_of(REAL, "deep_and_wide"),
        louder(lambda a, b: a.hidden_size > 512 and a.num_hidden_layers > 2),
    ),
    "tied and wide": (
        item_of(REAL, "tied"), louder(lambda a, b: a.tie_word_embeddings and a.vocab_size > 999),
    ),
    "layers of two digits frozen": (item_of(STATES, "layers_12"), last_layers_trained),
    "training mode at twelve layers": (
        item_of(STATES, "layers_12"),
        lambda new, old: louder(
            lambda a, b: old.training and a.num_hidden_layers > 3)(new, old),
    ),
    "frequencies in bf16": (item_of(handed_back.test_dtype_device_and_mode), buffers_cast),
    "hooks on gradients": (item_of(MADE), gradients_dropped),
    "a forward of its own": (item_of(MADE), head_without_gradient),
    "labels of −100": (item_of(DOORS), all_labels_counted),
    "return_dict": (item_of(DOORS), lambda new, old: deaf_to("return_dict")(new, old, None)),
    "logits_to_keep": (item_of(DOORS), lambda new, old: deaf_to("logits_to_keep")(new, old, None)),
    "the source's layer_idx": (item_of(WORLD), lambda new, old: renumbered(old)),
    "a variable added": (item_of(WORLD), lambda new, old: os.environ.update(LEFT_BY_GROWER="1")),
    "the root logger": (item_of(WORLD), lambda new, old: logging.getLogger().setLevel("DEBUG")),
    "hooks of optimizers": (
        item_of(WORLD), lambda new, old: register_optimizer_step_post_hook(lambda *_: None),
    ),
    "a cache of models": (item_of(world.test_it_lets_go), lambda new, old: CACHE.append(new)),
    "a cache of sources": (item_of(world.test_it_lets_go), lambda new, old: CACHE.append(old)),
    "a note of the source": (
        item_of(world.test_it_lets_go),
        lambda new, old: setattr(new, "history", SimpleNamespace(source=old)),
    ),
    "gradients of the source": (item_of(handed_back.test_nothing_is_shared), with_its_gradients),
    "activation": (item_of(MADE), activation_by_hand),
    "padding behind a cache": (item_of(hygiene.test_left_padding), padding_forgotten),
    "windows of 4096 halved": (item_of(real.test_published_configs_are_kept), windows_halved),
    "buffers": (item_of(handed_back.test_nothing_is_shared), buffers_shared),
}  # fmt: skip
