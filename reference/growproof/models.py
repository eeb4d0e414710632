"""transformers models in and out: a config is a Decoder, a module is a state dict."""

import copy
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.initialization import no_init_weights

from growproof.building import Unallocated, alone, built_in, fill_buffers
from growproof.decoder import SURVIVING_ROPE_TYPES, Decoder, GrowthError
from growproof.families import family_named, family_of
from growproof.family import SIZES, Family
from growproof.fit import Plan, Rules, Wanted, fit
from growproof.growth import Growth, Policies, layers_before, plan
from growproof.padding import State, grow_state, shrink_state
from growproof.reading import MOST_SIZE, BadInput, most_of, refused
from growproof.rotary import refuse_frequencies
from growproof.vocabulary import suppressed

# transformers' models and configs are untyped: Any here stands for PreTrainedModel and
# PretrainedConfig.
hub: Any = transformers
MASKED = {  # family: config and model with the old divisor, in growproof.masked
    "llama": ("MaskedLlamaConfig", "MaskedLlamaForCausalLM"),
    "stablelm": ("MaskedStableLmConfig", "MaskedStableLmForCausalLM"),
}


def decoder_of(config: Any) -> Decoder:
    """The Decoder of a transformers config. Raises GrowthError for one not known."""
    return family_of(config).decoder(config)


def masked(model_type: str) -> tuple[type[PretrainedConfig], Any] | None:
    """The config and model of masked_llama, …; None for another model type.

    They are imported here, for they bring transformers' modelling code along, which
    takes half as long again as all else that is needed to start.
    """
    family = model_type.removeprefix("masked_")
    if family == model_type or family not in MASKED:
        return None
    code = importlib.import_module("growproof.masked")
    config, model = MASKED[family]
    return getattr(code, config), getattr(code, model)


def model_class(config: Any) -> Any:
    """The causal LM class of a config."""
    own = masked(config.model_type)
    return own[1] if own else hub.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def architecture_of(config: Any) -> str:
    """The name of that class, whose code is not imported where transformers lists it."""
    listed = hub.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return listed.get(config.model_type) or model_class(config).__name__


def config_class(model_type: str) -> Any:
    """The config class of a model type. Raises GrowthError for one not known."""
    family_named(model_type)
    own = masked(model_type)
    return own[0] if own else hub.CONFIG_MAPPING[model_type]


def config_of(config: Any, growth: Growth) -> Any:
    """The grown model's config: a copy of the old one with what growing changes."""
    family = family_of(config)
    fields = family.config_fields(config, growth)
    cls: Callable[..., Any] = config.__class__
    if growth.policies.norm == "masked":
        if family.model_type not in MASKED:
            raise GrowthError(
                f"there is no masked {family.model_type}, only {', '.join(MASKED)}: "
                "its modelling code would have to come with the weights"
            )
        own = masked(f"masked_{family.model_type}")
        assert own
        cls, _ = own
        fields["norm_size"] = growth.new.norm_size
    for name in ("model_type", "transformers_version", "architectures"):
        fields.pop(name, None)
    with refused(
        f"the config of the grown {family.model_type}",
        "sizes that transformers takes for it: choose others (its own rule is quoted)",
    ):
        result = cls(**fields)
    for name in ("_attn_implementation", "_experts_implementation"):
        if hasattr(config, name):
            setattr(result, name, getattr(config, name))
    return result


def parameters_of(model: Any) -> dict[str, Any]:
    """The parameters by name, each once: a tied head's is the embedding's.

    PyTorch names a parameter by the first module that has it, and that may be the head.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tied = [n for n, m in model.named_modules() if m is head] if head else []
    own = {f"{name}.weight" for name in tied}
    all_of_it = model.named_parameters(remove_duplicate=False)
    others = {id(p): n for n, p in all_of_it if n not in own}
    return {
        others.get(id(p), n) if n in own else n: p for n, p in model.named_parameters()
    }


def state_of(model: Any) -> dict[str, Tensor]:
    """The model's parameters by canonical name, each once (a tied head is none)."""
    stored = {name: p.detach() for name, p in parameters_of(model).items()}
    return family_of(model.config).read(stored, decoder_of(model.config))


def build(config: Any, state: State) -> Any:
    """A model of `config` that holds the tensors of `state`, canonical ones.

    Nothing is allocated or initialised and then thrown away.
    """
    found = family_of(config).write(state, decoder_of(config))
    stored = {name: alone(x) for name, x in found}
    dtype = state["embed.weight"].dtype  # a state may make it when it is asked for
    with Unallocated(), no_init_weights(), built_in(dtype):
        model: Any = model_class(config)(config)
    own = {id(p): p for p in model.parameters()}  # kept, so that no new one has its id
    missing, unexpected = model.load_state_dict(stored, strict=False, assign=True)
    if config.tie_word_embeddings:
        model.tie_weights()
    left = [name for name, p in model.named_parameters() if id(p) in own]
    if left or unexpected:
        raise ValueError(
            f"a {config.model_type} was not filled: {left[:3]} of {missing[:3]} missing, "
            f"{unexpected[:3]} unexpected"
        )
    fill_buffers(model)
    return model


def model_of(
    config: Any, state: State, like: Any, layers: Sequence[int] | None = None
) -> Any:
    """`build`, with the device, mode, requires_grad and generation config of `like`.

    layers: for each layer, that of `like` which it is frozen as. By default they are in
    the order of `like`, and those beyond it as its last one.
    """
    model = build(config, state)
    old = dict(like.named_buffers())
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for name, buffer in list(model.named_buffers()):
        if name in old:
            home, _, last = name.rpartition(".")
            like_it = {"device": old[name].device, "dtype": old[name].dtype}
            setattr(modules[home], last, buffer.to(**like_it))
    trained = {kind(n): p.requires_grad for n, p in like.named_parameters()}
    trained |= {n: p.requires_grad for n, p in like.named_parameters()}
    for name, p in model.named_parameters():
        its = name if layers is None else in_layer(name, layers)
        p.requires_grad_(trained.get(its, trained[kind(name)]))
    model.generation_config = copy.deepcopy(like.generation_config)
    return model.train(like.training)


def suppress(model: Any, growth: Growth) -> Any:
    """The model, whose generate() chooses no new token."""
    if growth.new.vocab > growth.old.vocab:
        generation = model.generation_config
        generation.suppress_tokens = suppressed(growth, generation.suppress_tokens)
        generation._from_model_config = False  # else transformers may derive it anew
    return model


def in_layer(name: str, layers: Sequence[int]) -> str:
    """A stored parameter's name with layers[i] for its layer i, the first number in it."""
    return re.sub(r"(?<=\.)\d+(?=\.)", lambda i: str(layers[int(i[0])]), name, count=1)


def kind(name: str) -> str:
    """A stored parameter's name without its layer and head numbers."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def sizes_of(config: Any, target: Mapping[str, int]) -> dict[str, int]:
    """A target by the fields of a Decoder; names are the family's or the usual ones.

    Raises GrowthError for an unknown name, or for one that the family has not.
    """
    family = family_of(config)
    found: dict[str, int] = {}
    for name, value in target.items():
        fields = [f for f, own in family.sizes.items() if own == name]
        fields = fields or [f for f, usual in SIZES.items() if usual == name]
        if not fields:
            known = sorted({*family.sizes.values(), *SIZES.values()})
            raise GrowthError(f"cannot grow {name}: only {', '.join(known)}")
        if value > (most := most_of(name, MOST_SIZE)):
            raise GrowthError(f"{name} is {value:,}, expected {most:,} at most")
        found |= dict.fromkeys(fields, value)
    if family.tied_head_dim:
        return with_head_dim(family.model_type, config, found)
    return found


def with_head_dim(
    model_type: str, config: Any, sizes: dict[str, int]
) -> dict[str, int]:
    """The sizes, with the head_dim that follows from hidden_size and the heads."""
    hidden, heads = (
        sizes[f] if f in sizes else int(getattr(config, family_of(config).sizes[f]))
        for f in ("hidden", "heads")
    )
    if hidden % heads:
        raise GrowthError(
            f"a {model_type}'s head_dim is hidden_size / num_attention_heads, got "
            f"{hidden} / {heads}, which is not whole: choose a hidden_size that is a "
            f"multiple of {heads}"
        )
    implied = hidden // heads
    if sizes.get("head_dim", implied) != implied:
        raise GrowthError(
            f"a {model_type}'s head_dim is hidden_size / num_attention_heads = {implied},"
            f" got head_dim {sizes['head_dim']}: change hidden_size or the heads instead"
        )
    grouped = "groups" in family_of(config).sizes
    return sizes | {"head_dim": implied} | ({} if grouped else {"groups": heads})


def plan_model(
    config: Any, target: Mapping[str, int], policies: Policies | None = None
) -> Growth:
    """The growth of a model of `config` to `target`, sizes by their config names.

    Raises GrowthError for an unknown name and for whatever `plan` refuses.
    """
    spread = getattr(config, "initializer_range", 0.02)
    policies = replace(policies or Policies(), initializer_range=spread)
    growth = plan(decoder_of(config), policies, **sizes_of(config, target))
    family_of(config).check_sizes(growth.new)
    if growth.taller > 1 and any(
        kind.rotary and kind.rotary.kind not in SURVIVING_ROPE_TYPES
        for kind in growth.old.kinds
    ):
        refuse_frequencies(config, config_of(config, growth), growth)
    return growth


def refuse_idle(config: Any, target: Mapping[str, int]) -> None:
    """Raise GrowthError for a width that no layer of the model has."""
    kinds, sizes = decoder_of(config).kinds, family_of(config).sizes
    for field, sparse in (("mlp", False), ("expert_mlp", True)):
        name, other = sizes.get(field), sizes.get("mlp" if sparse else "expert_mlp")
        used = any(kind.sparse is sparse for kind in kinds)
        if name in target and name != other and not used:
            raise GrowthError(
                f"no layer of this {config.model_type} has an MLP of {name}: "
                f"grow {other}, or leave it out"
            )


def fit_model(
    config: Any, wanted: Wanted, policies: Policies | None = None
) -> tuple[Plan, dict[str, int]]:
    """The least growth of a model of `config` to what is wanted, and its target.

    Raises GrowthError where there is none, with what cannot be met.
    """
    family, d = family_of(config), decoder_of(config)
    refused: list[str] = []
    serving: list[int] = []
    for head_dim in wanted.head_dims:
        try:
            if head_dim > d.head_dim and not family.tied_head_dim:
                plan_model(config, {"head_dim": head_dim}, policies)
            serving.append(head_dim)
        except BadInput:  # transformers', which may take it with another hidden size
            serving.append(head_dim)
        except GrowthError as error:
            refused.append(f"head_dim {head_dim}: {error}")
    if refused and not any(k >= d.head_dim for k in serving):
        raise GrowthError("; ".join(refused))
    wanted, rules = replace(wanted, head_dims=tuple(serving)), rules_of(family)
    try:
        return settled(config, wanted, rules, policies)
    except BadInput:  # a class that takes hidden_size / heads for the head_dim
        if rules.tied_head_dim:
            raise
        wanted = replace(wanted, head_dims=wanted.head_dims or (d.head_dim,))
        rules = replace(rules, tied_head_dim=True)
        return settled(config, wanted, rules, policies)


def settled(
    config: Any, wanted: Wanted, rules: Rules, policies: Policies | None
) -> tuple[Plan, dict[str, int]]:
    """The same by these rules. BadInput where transformers refuses the config."""
    found, family = fit(decoder_of(config), wanted, rules), family_of(config)
    target = {
        family.sizes[name]: size
        for name in family.sizes
        if (size := getattr(found.new, name)) != getattr(found.old, name)
    }
    growth = plan_model(config, target, policies)
    config_of(config, growth)  # what transformers itself refuses of these sizes
    return replace(found, new=growth.new), target


def rules_of(family: Family) -> Rules:
    """What a family asks of its sizes."""
    return Rules(
        whole_heads=family.whole_heads,
        tied_head_dim=family.tied_head_dim,
        grouped="groups" in family.sizes,
    )


def grow(
    model: Any,
    target: Mapping[str, int],
    policies: Policies | None = None,
    **options: Any,
) -> Any:
    """A larger model that computes the same function.

    model: a transformers causal LM of a family in `growproof.families`, any dtype and
    device; it is not modified, and shares no memory with the result.
    target: transformers config names to sizes: hidden_size, intermediate_size,
    num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, vocab_size, and
    of a Qwen3-MoE moe_intermediate_size. A missing name keeps its size.
    policies, or options by their names (norm, fill, depth, rotary, spread, seed): see
    `Policies`.
    Raises GrowthError, before anything is built, for what cannot be done exactly.
    """
    growth = plan_model(model.config, target, policies or Policies(**options))
    state = grow_state(state_of(model), growth)
    config = config_of(model.config, growth)
    if getattr(config, "dtype", None):
        config.dtype = model.dtype  # the old one's may be older than a cast
    return suppress(model_of(config, state, model, layers_before(growth)), growth)


def shrink(model: Any, like: Any, target: Mapping[str, int], **options: Any) -> Any:
    """The model that `grow(like, target, **options)` would have turned into `model`."""
    growth = plan_model(like.config, target, Policies(**options))
    return model_of(like.config, shrink_state(state_of(model), growth), like)
