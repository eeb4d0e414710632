"""transformers models in and out: a config is a Shape, a module is a state dict."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    StableLmForCausalLM,
)
from transformers.initialization import no_init_weights

from growproof.layout import layers_map
from growproof.masked import (
    MaskedLlamaConfig,
    MaskedLlamaForCausalLM,
    MaskedStableLmConfig,
    MaskedStableLmForCausalLM,
)
from growproof.padding import State, grow_state, shrink_state
from growproof.shape import (
    Depth,
    Family,
    Fill,
    Growth,
    GrowthError,
    NormPolicy,
    Rotary,
    Shape,
    plan,
)

# transformers' models and configs are untyped: Any here stands for PreTrainedModel and
# PretrainedConfig.
CLASSES: dict[str, tuple[Family, type[PreTrainedModel]]] = {
    "llama": ("llama", LlamaForCausalLM),
    "stablelm": ("stablelm", StableLmForCausalLM),
    "masked_llama": ("llama", MaskedLlamaForCausalLM),
    "masked_stablelm": ("stablelm", MaskedStableLmForCausalLM),
}
MASKED: dict[Family, type[PretrainedConfig]] = {
    "llama": MaskedLlamaConfig,
    "stablelm": MaskedStableLmConfig,
}
# transformers config name → argument of `plan`
SIZES = {
    "hidden_size": "hidden",
    "intermediate_size": "mlp",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "groups",
    "head_dim": "head_dim",
}


def shape_of(config: Any) -> Shape:
    """The Shape of a transformers config. Raises GrowthError for another model type."""
    if config.model_type not in CLASSES:
        raise GrowthError(
            f"growproof knows StableLm and Llama, got model type {config.model_type!r}"
        )
    family = CLASSES[config.model_type][0]
    heads, hidden = config.num_attention_heads, config.hidden_size
    llama = family == "llama"
    head_dim = (getattr(config, "head_dim", None) if llama else None) or hidden // heads
    return Shape(
        family=family,
        vocab=config.vocab_size,
        hidden=hidden,
        heads=heads,
        groups=config.num_key_value_heads,
        head_dim=head_dim,
        mlp=config.intermediate_size,
        layers=config.num_hidden_layers,
        rotary=rotary_of(config, head_dim, partial=not llama),
        eps=config.rms_norm_eps if llama else config.layer_norm_eps,
        norm_size=getattr(config, "norm_size", None) or hidden,
        activation=config.hidden_act,
        qkv_bias=config.attention_bias if llama else config.use_qkv_bias,
        o_bias=llama and config.attention_bias,
        mlp_bias=llama and config.mlp_bias,
        qk_norm=not llama and config.qk_layernorm,
        parallel=not llama and config.use_parallel_residual,
        tied=config.tie_word_embeddings,
    )


def rotary_of(config: Any, head_dim: int, *, partial: bool) -> Rotary:
    """The Rotary of a config: only `rope_parameters` counts in transformers 5."""
    rope: Mapping[str, Any] = config.rope_parameters
    factor = rope.get("partial_rotary_factor", 1.0) if partial else 1.0
    return Rotary(
        theta=float(rope["rope_theta"]),
        dims=int(head_dim * factor),
        kind=rope.get("rope_type", "default"),
        factor=rope.get("factor") or 1.0,
        low_freq_factor=rope.get("low_freq_factor") or 1.0,
        high_freq_factor=rope.get("high_freq_factor") or 4.0,
        original_positions=rope.get("original_max_position_embeddings") or 8192,
    )


def config_of(config: Any, growth: Growth) -> Any:
    """The grown model's config: a copy of the old one with what growing changes."""
    new = growth.new
    fields = copy.deepcopy(config.to_dict())
    fields |= {name: getattr(new, size) for name, size in SIZES.items()}
    eps_name = "rms_norm_eps" if new.family == "llama" else "layer_norm_eps"
    fields[eps_name] = new.eps
    rope = dict(config.rope_parameters) | {"rope_theta": new.rotary.theta}
    if new.family == "stablelm":
        del fields["head_dim"]
        rope["partial_rotary_factor"] = new.partial_rotary_factor
        fields["partial_rotary_factor"] = new.partial_rotary_factor
    fields["rope_parameters"] = rope
    if fields.get("layer_types"):
        fields["layer_types"] = grown_layer_types(fields["layer_types"], growth)
    cls = config.__class__
    if growth.norm == "masked":
        cls, fields["norm_size"] = MASKED[new.family], new.norm_size
    for name in ("model_type", "transformers_version", "architectures"):
        fields.pop(name, None)
    result = cls(**fields)
    result._attn_implementation = config._attn_implementation  # pyright: ignore[reportPrivateUsage]
    return result


def grown_layer_types(layer_types: list[str], growth: Growth) -> list[str]:
    """A type for each grown layer; a new one takes that of the old layer before it."""
    along = layers_map(growth.old.layers, growth.new.layers, growth.depth)
    back = {new: layer_types[old] for old, new in enumerate(along)}
    types: list[str] = []
    current = layer_types[0]
    for i in range(growth.new.layers):
        current = back.get(i, current)
        types.append(current)
    return types


def state_of(model: Any) -> dict[str, Tensor]:
    """The model's parameters by name, each once (a tied lm_head is its embedding)."""
    return {name: p.detach() for name, p in model.named_parameters()}


def build(config: Any, state: State) -> Any:
    """A model of `config` that holds the tensors of `state` themselves.

    Built on the meta device, so that nothing is initialised and then thrown away.
    """
    with torch.device("meta"), no_init_weights():
        model: Any = CLASSES[config.model_type][1](config)
    model.load_state_dict(dict(state), strict=False, assign=True)
    if config.tie_word_embeddings:
        model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model


def model_of(config: Any, state: State, like: Any) -> Any:
    """`build`, with the device, mode, requires_grad and generation config of `like`."""
    model = build(config, state)
    buffer: Tensor = like.model.rotary_emb.inv_freq
    model.model.rotary_emb.to(device=buffer.device, dtype=buffer.dtype)
    trained = {kind(n): p.requires_grad for n, p in like.named_parameters()}
    trained |= {n: p.requires_grad for n, p in like.named_parameters()}
    for name, p in model.named_parameters():
        p.requires_grad_(trained.get(name, trained[kind(name)]))
    model.generation_config = copy.deepcopy(like.generation_config)
    return model.train(like.training)


def kind(name: str) -> str:
    """A parameter's name without its layer and head numbers."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def plan_model(
    config: Any,
    target: Mapping[str, int],
    *,
    norm: NormPolicy | None = None,
    fill: Fill = "zeros",
    depth: Depth = "append",
    seed: int = 0,
) -> Growth:
    """The growth of a model of `config` to `target`, sizes by their config names.

    Raises GrowthError for an unknown name and for whatever `plan` refuses.
    """
    unknown = sorted(set(target) - set(SIZES))
    if unknown:
        raise GrowthError(f"cannot grow {', '.join(unknown)}: only {', '.join(SIZES)}")
    return plan(
        shape_of(config),
        **{SIZES[name]: size for name, size in target.items()},
        norm=norm,
        fill=fill,
        depth=depth,
        seed=seed,
        initializer_range=config.initializer_range,
    )


def grow(
    model: Any,
    target: Mapping[str, int],
    *,
    norm: NormPolicy | None = None,
    fill: Fill = "zeros",
    depth: Depth = "append",
    seed: int = 0,
) -> Any:
    """A larger model that computes the same function.

    model: a StableLmForCausalLM or LlamaForCausalLM, any dtype and device; it is not
    modified, and shares no memory with the result.
    target: transformers config names to sizes: hidden_size, intermediate_size,
    num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim (Llama only).
    A missing name keeps its size.
    norm: `scaled`, `centred` (the default for LayerNorm) or `masked`. fill: `zeros`, or
    `trainable` (drawn with `seed`). depth: new layers `append`ed or `interleave`d.
    Raises GrowthError, before anything is built, for what cannot be done exactly.
    """
    growth = plan_model(
        model.config, target, norm=norm, fill=fill, depth=depth, seed=seed
    )
    state = grow_state(state_of(model), growth)
    return model_of(config_of(model.config, growth), state, model)


def shrink(
    model: Any,
    like: Any,
    target: Mapping[str, int],
    **options: Any,
) -> Any:
    """The model that `grow(like, target, **options)` would have turned into `model`."""
    growth = plan_model(like.config, target, **options)
    return model_of(like.config, shrink_state(state_of(model), growth), like)
