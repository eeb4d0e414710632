"""A model as it is handed over, in the state that real ones are in, and what it holds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from growproof.models import kind
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

from .models import Case, make
from .world import Stock

PARTLY = "every other"  # parameter of those of the first layer, and all of its kind


FIRST = ".0."  # what stands in the names of the first layer


# what a grower can see of a model besides its weights and sizes, drawn by its names
STATES: dict[str, st.SearchStrategy[Any]] = {
    "dtype": st.sampled_from(("float64", "bfloat16", "float16", "float32")),
    "training": st.booleans(),
    "frozen": st.sampled_from(
        ("nothing", "all", "mlp", "embed", "norm", PARTLY, FIRST)
    ),
    "attention": st.sampled_from(("eager", "sdpa")),
    "used": st.booleans(),
}


OPPOSITE: dict[Any, Any] = {
    True: False, False: True, "eager": "sdpa", "sdpa": "eager", "nothing": PARTLY,
    "all": FIRST, PARTLY: FIRST, FIRST: PARTLY,
    "float64": "bfloat16", "bfloat16": "float32", "float32": "float16",
    "float16": "float64",
}  # fmt: skip


def and_opposite(**state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A state and its opposite: what comes of one value shows in one of the two."""
    return state, {k: OPPOSITE.get(v, "nothing") for k, v in state.items()}


HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)  # fmt: skip


def worn(
    case: Case, *, dtype: str, training: bool, frozen: str, attention: str, used: bool
) -> Any:
    """The case's model as somebody may hand it over.

    frozen: what requires no gradient, by a part of its name. used: with gradients from a step, special tokens,
    dropout, types of layers, a name, an entry that its owner knows, a generation config.
    """
    config = copy.deepcopy(case.hf_config)
    if used:
        dress(config)
    model = make(config, case.seed, case.regime, getattr(torch, dtype)).train(training)
    if attention == "eager" or model._supports_sdpa:
        model.set_attn_implementation(attention)
    kinds = list(dict.fromkeys(kind(name) for name, _ in model.named_parameters()))
    partly = {*kinds[::2]} if frozen == PARTLY else set[str]()
    for name, p in model.named_parameters():
        still = frozen == "all" or frozen in name or kind(name) in partly
        p.requires_grad_(not still)
        if used and p.requires_grad:
            p.grad = torch.ones_like(p)
    if used:
        model.generation_config.update(**GENERATION)
    return model


def dress(config: Any) -> None:
    """What configs say besides, before a model is made of it: its modules heed it."""
    for name, value in OWN.items():
        setattr(config, name, value)
    for name in SWITCHED:
        if hasattr(config, name):
            setattr(config, name, True)
    for name, value in config.to_dict().items():
        rates = (v for ending, v in RATES.items() if name.endswith(ending))
        if isinstance(value, float) and (rate := next(rates, None)):
            setattr(config, name, rate)
    if not getattr(config, "layer_types", None):  # any config may have them
        config.layer_types = ["full_attention"] * config.num_hidden_layers


# how a law hears that a target is declined: from the grower, or from the gate
DECLINED = (NotImplementedError, UnsatisfiedAssumption, pytest.skip.Exception)


def declined(grower: Any, source: Any, target: Any) -> BaseException | None:
    """Have it grown; how that was declined, for what was done before is judged first."""
    try:
        grower(source, target)
    except DECLINED as refusal:
        return refusal
    return None


def handled(model: Any) -> Any:
    """As a trainer leaves it: a hook, a matrix stored by columns, checkpointed blocks."""
    model.get_input_embeddings().register_forward_hook(lambda *_: None)
    tied = model.config.tie_word_embeddings  # safetensors saves no such tensor twice
    for p in model.parameters():
        if p.ndim == 2 and not (tied and p is model.get_input_embeddings().weight):
            p.data = p.data.T.contiguous().T
    if model.supports_gradient_checkpointing:  # which newer releases call otherwise
        name = "activation_checkpointing_enable"
        getattr(model, name, model.gradient_checkpointing_enable)()
    return model


def halved(model: Any) -> Any:
    """A model of the same sizes with other weights: half of each."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    return other


def trained_on(model: Any, seed: int) -> str:
    """Halve one parameter of the model, in place, that is not zero: its name."""
    some = [name for name, p in model.named_parameters() if p.any()]
    name = some[seed % len(some)]
    with torch.no_grad():
        model.get_parameter(name).mul_(0.5)
    return name


OWN: dict[str, Any] = {
    "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0, "use_cache": False,
    "_name_or_path": "somebody/model", "note": "kept",
}  # fmt: skip


SWITCHED = ("output_router_logits",)  # on, where a config has it


RATES = {
    "dropout": 0.125, "drop": 0.125, "initializer_range": 0.017, "aux_loss_coef": 0.5,
    "jitter_noise": 0.25,
}  # fmt: skip


GENERATION = {
    "do_sample": True, "temperature": 0.6, "repetition_penalty": 1.25,
    "eos_token_id": [2, 3], "pad_token_id": 0, "max_new_tokens": 7,
}  # fmt: skip


def source_stock(model: Any) -> Stock:
    """All of a model that growing could disturb."""
    generation = getattr(model, "generation_config", None)
    return {
        "parameters": {n: p.detach().clone() for n, p in model.named_parameters()},
        "gradients": {
            n: None if p.grad is None else p.grad.clone()
            for n, p in model.named_parameters()
        },
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        # an optimizer, or a view, holds on to what it was
        "object": {n: id(p) for n, p in model.named_parameters()},
        "address": {n: p.data_ptr() for n, p in model.named_parameters()},
        "config object": id(model.config),
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "mode": {n: m.training for n, m in model.named_modules()},
        "hooks": {n: hooks_of(m) for n, m in model.named_modules()},
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "fields": {n: plain_fields(m) for n, m in model.named_modules()},
        "config": copy.deepcopy(told(model.config)),
        "attention implementation": model.config._attn_implementation,
        "generation config": copy.deepcopy(generation.to_dict())
        if generation
        else None,
    }


def told(config: Any) -> dict[str, Any]:
    """A config's entries, but those that saving the model fills in where they are unset."""
    filled = ("architectures", "dtype", "transformers_version")
    return {k: v for k, v in config.to_dict().items() if k not in filled}


def plain_fields(module: torch.nn.Module) -> dict[str, Any]:
    """What a module keeps beside tensors and modules: sizes, rates, switches."""
    return {
        name: value for name, value in vars(module).items()
        if isinstance(value, int | float | str | bool | tuple)
        and not name.startswith("_") and "cached" not in name
        and name not in ("gradient_checkpointing", "name_or_path")
    }  # fmt: skip


def hooks_of(module: torch.nn.Module) -> int:
    """How many hooks a module and its parameters have."""
    own = sum(len(vars(module).get(name) or ()) for name in HOOKS)
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return own + sum(
        len(getattr(p, name, None) or ())
        for p in module.parameters(False)
        for name in kinds
    )
