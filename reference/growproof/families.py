"""The families: each a table of a few lines. See `growproof.family` for what they say.

A package of another name adds its own with `register`, in a module that its entry point
in the group `growproof.families` names: `integration/outside` is one, line by line.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from growproof.decoder import GrowthError, Kind, Rotary
from growproof.family import SIZES, Family, Value
from growproof.stored import Stored, by_head, joined, paired, plain, transposed

Tensors = dict[str, Stored]


def under(prefix: str, **parts: str) -> Tensors:
    """Weights and biases below a prefix; stored name (dots as __) = canonical part."""
    found: Tensors = {}
    for name, part in parts.items():
        at = prefix + name.replace("__", ".")
        weight = plain(f"{HERE}{part}.weight")
        found |= {f"{at}.weight": weight, f"{at}.bias": weight.bias()}
    return found


def both(name: str, stored: Stored) -> Tensors:
    """The weight of that name, and its bias."""
    return {f"{name}.weight": stored, f"{name}.bias": stored.bias()}


def ends(embed: str, norm: str, head: str = "lm_head") -> Tensors:
    """What lies before the layers, and behind them."""
    found = both(norm, plain("final_norm.weight")) | both(head, plain("head.weight"))
    return found | {f"{embed}.weight": plain("embed.weight")}


def weights(*parts: str) -> tuple[str, ...]:
    """Canonical templates of parts of a layer."""
    return tuple(f"{HERE}{part}.weight" for part in parts)


HERE, L = "layers.{layer}.", "model.layers.{layer}."
ENDS = ends("model.embed_tokens", "model.norm")
ATTENTION = under(L + "self_attn.", q_proj="q", k_proj="k", v_proj="v", o_proj="o")
MLP = under(L + "mlp.", gate_proj="gate", up_proj="up", down_proj="down")
NORMS = under(L, input_layernorm="attn_norm", post_attention_layernorm="mlp_norm")
QK_NORM = under(L + "self_attn.", q_norm="q_norm", k_norm="k_norm")
OUT_NORMS = under(
    L,
    post_attention_layernorm="attn_out_norm",
    post_feedforward_layernorm="mlp_out_norm",
)
AROUND = OUT_NORMS | under(
    L, input_layernorm="attn_norm", pre_feedforward_layernorm="mlp_norm"
)
LLAMA = ENDS | ATTENTION | MLP | NORMS
PAIRED = both(L + "self_attn.q_proj", paired(plain(f"{HERE}q.weight"))) | both(
    L + "self_attn.k_proj", paired(plain(f"{HERE}k.weight"))
)
EXPERTS: Tensors = {
    L + "mlp.gate.weight": plain(f"{HERE}router.weight"),
    L + "mlp.experts.gate_up_proj": joined(*weights("expert_gate", "expert_up")),
    L + "mlp.experts.down_proj": plain(f"{HERE}expert_down.weight"),
}
QKV = frozenset("qkv")
QKVO = QKV | {"o"}
MLP_PAIR = frozenset(("up", "down"))
NONE = frozenset[str]()


def biases(**flags: str) -> Callable[[Any], frozenset[str]]:
    """Which linear maps have one: parts under the config's flag for them."""
    return lambda c: frozenset(
        part for flag, parts in flags.items() if c.get(flag) for part in parts.split()
    )


def windowed(c: Any, rotaries: Mapping[str, Rotary], i: int) -> Kind:
    """Every layer alike: a sliding window if the config has one."""
    del i
    return Kind(rotary=rotaries.get(""), window=c.get("sliding_window"))


def layer_types(c: Any, rotaries: Mapping[str, Rotary], i: int) -> Kind:
    """Sliding or full attention by layer_types, with frequencies of its own if given."""
    if i >= len(c.layer_types):
        raise GrowthError(
            f"layer {i} has no type: layer_types has {len(c.layer_types)}"
        )
    kind = c.layer_types[i]
    if kind not in ("full_attention", "sliding_attention"):
        raise GrowthError(f"layer {i} is of type {kind!r}, which the clone has not")
    rotary = rotaries.get(kind, rotaries.get(""))
    window = c.get("sliding_window")
    return Kind(rotary=rotary, window=window if kind == "sliding_attention" else None)


def some_turn(c: Any, rotaries: Mapping[str, Rotary], i: int) -> Kind:
    """SmolLM3: layers that no_rope_layers marks with 0 turn nothing."""
    kind = layer_types(c, rotaries, i)
    return kind if c.no_rope_layers[i] else replace(kind, rotary=None)


def all_sparse(c: Any, rotaries: Mapping[str, Rotary], i: int) -> Kind:
    """Mixtral: experts in every layer."""
    del i
    return Kind(rotary=rotaries[""], window=c.get("sliding_window"), sparse=True)


def some_sparse(c: Any, rotaries: Mapping[str, Rotary], i: int) -> Kind:
    """Qwen3-MoE: experts in every decoder_sparse_step-th layer, but for some."""
    sparse = (
        i not in c.mlp_only_layers
        and c.num_experts > 0
        and (i + 1) % c.decoder_sparse_step == 0
    )
    return Kind(rotary=rotaries[""], window=c.get("sliding_window"), sparse=sparse)


def sized(**more: str | None) -> dict[str, str]:
    """SIZES with other config fields; None for one that the config has not."""
    found: dict[str, str | None] = {**SIZES, **more}
    return {f: name for f, name in found.items() if name}


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known by its model type; one of the same type is replaced."""
    FAMILIES[family.model_type] = family
    return family


def family_of(config: Any) -> Family:
    """The family of a config. Raises GrowthError where there is none."""
    return family_named(str(config.model_type))


def family_named(kind: str) -> Family:
    """The family of a model type. Raises GrowthError where there is none."""
    found = FAMILIES.get(kind) or FAMILIES.get(kind.removeprefix("masked_"))
    if found is None:
        known = ", ".join(sorted(FAMILIES))
        raise GrowthError(
            f"growproof has no table for model type {kind!r}; it knows {known}. "
            "growproof.register adds one"
        )
    return found


register(Family(
    model_type="llama", tensors=LLAMA, whole_heads=True,
    says={"biases": biases(attention_bias="q k v o", mlp_bias="gate up down")},
))  # fmt: skip
register(Family(model_type="mistral", tensors=LLAMA, kinds=windowed))
register(Family(
    model_type="qwen2", tensors=LLAMA, kinds=layer_types,
    says={"biases": QKV},
))  # fmt: skip
register(Family(
    model_type="qwen3", tensors=LLAMA | QK_NORM, kinds=layer_types,
    says={"qk_norm": "lane", "biases": biases(attention_bias="q k v o")},
))  # fmt: skip
register(Family(
    model_type="stablelm", eps="layer_norm_eps", tied_head_dim=True, partial=True,
    tensors=LLAMA | {
        L + "self_attn.q_layernorm.norms.{head}.weight": plain(*weights("q_norm")),
        L + "self_attn.k_layernorm.norms.{group}.weight": plain(*weights("k_norm")),
    },
    sizes=sized(head_dim=None),
    says={"norm": "layer", "biases": biases(use_qkv_bias="q k v"),
          "parallel": lambda c: int(c.use_parallel_residual),
          "qk_norm": lambda c: "head" if c.qk_layernorm else ""},
))  # fmt: skip
register(Family(
    model_type="gemma", tensors=LLAMA,
    says={"root_embedding": True, "norm_offset": 1.0,
          "biases": biases(attention_bias="q k v o")},
))  # fmt: skip
GEMMA: dict[str, Value] = {
    "root_embedding": True, "norm_offset": 1.0, "places": "both",
    "biases": biases(attention_bias="q k v o"),
    "activation": lambda c: c.hidden_activation,
    "score": lambda c: c.query_pre_attn_scalar**-0.5,
    "score_cap": lambda c: c.attn_logit_softcapping,
    "logit_cap": lambda c: c.final_logit_softcapping,
}  # fmt: skip
register(Family(
    model_type="gemma2", tensors=ENDS | ATTENTION | MLP | AROUND, says=GEMMA,
    kinds=layer_types, whole_heads=True,
))  # fmt: skip
register(Family(
    model_type="gemma3_text", tensors=ENDS | ATTENTION | MLP | AROUND | QK_NORM,
    says=GEMMA | {"qk_norm": "lane", "score_cap": None}, kinds=layer_types,
    whole_heads=True,
))  # fmt: skip
register(Family(
    model_type="phi", eps="layer_norm_eps", partial=True,
    tensors=ends("model.embed_tokens", "model.final_layernorm") | under(
        L, input_layernorm="attn_norm", self_attn__q_proj="q", self_attn__k_proj="k",
        self_attn__v_proj="v", self_attn__dense="o", mlp__fc1="up", mlp__fc2="down"),
    says={"norm": "layer", "gated": False, "parallel": 1,
          "biases": QKVO | MLP_PAIR | {"head"}},
))  # fmt: skip
register(Family(
    model_type="phi3", partial=True, kinds=windowed,
    tensors=ENDS | NORMS | both(L + "self_attn.qkv_proj", joined(*weights(*"qkv")))
    | under(L, self_attn__o_proj="o", mlp__down_proj="down")
    | both(L + "mlp.gate_up_proj", joined(*weights("gate", "up"))),
))  # fmt: skip
register(Family(
    model_type="olmo2", tensors=ENDS | ATTENTION | MLP | QK_NORM | OUT_NORMS,
    says={"places": "post", "qk_norm": "whole",
          "biases": biases(attention_bias="q k v o")},
))  # fmt: skip
register(Family(
    model_type="olmo3", tensors=ENDS | ATTENTION | MLP | QK_NORM | OUT_NORMS,
    says={"places": "post", "qk_norm": "whole",
          "biases": biases(attention_bias="q k v o")}, kinds=layer_types,
))  # fmt: skip
register(Family(
    model_type="gpt_neox", eps="layer_norm_eps", tied_head_dim=True, partial=True,
    sizes=sized(groups=None, head_dim=None), whole_heads=True,
    tensors=ends("gpt_neox.embed_in", "gpt_neox.final_layer_norm")
    | both("gpt_neox.layers.{layer}.attention.query_key_value",
           by_head(*weights(*"qkv")))
    | under("gpt_neox.layers.{layer}.", input_layernorm="attn_norm",
            post_attention_layernorm="mlp_norm", attention__dense="o",
            mlp__dense_h_to_4h="up", mlp__dense_4h_to_h="down"),
    disk={"embed_out.weight": plain("head.weight")},
    says={"norm": "layer", "gated": False,
          "biases": lambda c: MLP_PAIR | (QKVO if c.attention_bias else NONE),
          "parallel": lambda c: 2 * c.use_parallel_residual},
))  # fmt: skip
register(Family(
    model_type="gpt2", eps="layer_norm_epsilon", tied_head_dim=True,
    sizes=sized(groups=None, head_dim=None, hidden="n_embd", heads="n_head",
                layers="n_layer", mlp="n_inner", positions="n_positions"),
    tensors=ends("transformer.wte", "transformer.ln_f")
    | {"transformer.wpe.weight": plain("positions.weight")}
    | under("transformer.h.{layer}.", ln_1="attn_norm", ln_2="mlp_norm")
    | both("transformer.h.{layer}.attn.c_attn", transposed(joined(*weights(*"qkv"))))
    | both("transformer.h.{layer}.attn.c_proj", transposed(plain(*weights("o"))))
    | both("transformer.h.{layer}.mlp.c_fc", transposed(plain(*weights("up"))))
    | both("transformer.h.{layer}.mlp.c_proj", transposed(plain(*weights("down")))),
    says={"norm": "layer", "gated": False, "biases": QKVO | MLP_PAIR,
          "activation": lambda c: c.activation_function,
          "mlp": lambda c: c.n_inner or 4 * c.n_embd},
))  # fmt: skip
register(Family(
    model_type="starcoder2", eps="norm_epsilon", kinds=windowed,
    tensors=ENDS | ATTENTION | NORMS | under(L + "mlp.", c_fc="up", c_proj="down"),
    says={"norm": "layer", "gated": False,
          "biases": biases(use_bias="q k v o up down")},
))  # fmt: skip
register(Family(
    model_type="granite", tensors=LLAMA,
    says={"biases": biases(attention_bias="q k v o", mlp_bias="gate up down"),
          "score": lambda c: c.attention_multiplier,
          "embedding_scale": lambda c: c.embedding_multiplier,
          "residual_scale": lambda c: c.residual_multiplier,
          "logit_divisor": lambda c: c.logits_scaling},
))  # fmt: skip
register(Family(
    model_type="smollm3", tensors=LLAMA, kinds=some_turn,
    says={"biases": biases(attention_bias="q k v o", mlp_bias="gate up down")},
    writes={"no_rope_layers": lambda d: [int(k.rotary is not None) for k in d.kinds]},
))  # fmt: skip
register(Family(
    model_type="mixtral", tensors=ENDS | ATTENTION | NORMS | EXPERTS, kinds=all_sparse,
    disk={
        L + "block_sparse_moe.gate.weight": plain(*weights("router")),
        L + "block_sparse_moe.experts.{expert}.w1.weight": plain(*weights("expert_gate")),
        L + "block_sparse_moe.experts.{expert}.w3.weight": plain(*weights("expert_up")),
        L + "block_sparse_moe.experts.{expert}.w2.weight": plain(*weights("expert_down")),
    },
    sizes=sized(expert_mlp="intermediate_size"),
    says={"experts": lambda c: c.num_local_experts,
          "active": lambda c: c.num_experts_per_tok},
))  # fmt: skip
register(Family(
    model_type="qwen3_moe", tensors=LLAMA | QK_NORM | EXPERTS, kinds=some_sparse,
    disk={
        L + "mlp.experts.{expert}.gate_proj.weight": plain(*weights("expert_gate")),
        L + "mlp.experts.{expert}.up_proj.weight": plain(*weights("expert_up")),
        L + "mlp.experts.{expert}.down_proj.weight": plain(*weights("expert_down")),
    },
    sizes=sized(expert_mlp="moe_intermediate_size"),
    says={"qk_norm": "lane", "biases": biases(attention_bias="q k v o"),
          "experts": lambda c: c.num_experts, "active": lambda c: c.num_experts_per_tok,
          "renormalised": lambda c: c.norm_topk_prob},
    writes={"decoder_sparse_step": lambda d: 1,
            "mlp_only_layers": lambda d: [i for i, k in enumerate(d.kinds)
                                          if not k.sparse]},
))  # fmt: skip
register(Family(
    model_type="arcee", tensors=LLAMA, whole_heads=True,
    says={"gated": False,
          "biases": biases(attention_bias="q k v o", mlp_bias="up down")},
))  # fmt: skip
register(Family(
    model_type="seed_oss", tensors=LLAMA,
    says={"biases": biases(attention_bias="q k v", attention_out_bias="o",
                           mlp_bias="gate up down")},
))  # fmt: skip
register(Family(
    model_type="ernie4_5", tensors=LLAMA | PAIRED,
    says={"biases": biases(use_bias="q k v o gate up down")},
))  # fmt: skip
GLM = (
    ENDS
    | NORMS
    | ATTENTION
    | PAIRED
    | under(L, mlp__down_proj="down")
    | both(L + "mlp.gate_up_proj", joined(*weights("gate", "up")))
)
register(Family(
    model_type="glm", tensors=GLM, partial=True,
    says={"biases": biases(attention_bias="q k v")},
))  # fmt: skip
register(Family(
    model_type="glm4", partial=True,
    tensors=GLM | under(L, post_self_attn_layernorm="attn_out_norm",
                        post_mlp_layernorm="mlp_out_norm"),
    says={"places": "both", "biases": biases(attention_bias="q k v")},
))  # fmt: skip
register(Family(
    model_type="cohere", eps="layer_norm_eps", tensors=LLAMA | PAIRED,
    says={"norm": "layer", "norm_bias": False, "parallel": 1,
          "biases": biases(attention_bias="q k v o"),
          "logit_divisor": lambda c: 1 / c.logit_scale},
))  # fmt: skip


def from_elsewhere() -> None:
    """Import what the entry points in the group `growproof.families` name.

    Raises GrowthError where one cannot be: a family that is silently not there would be
    refused later on, for no reason that anyone could see.
    """
    for entry in entry_points(group="growproof.families"):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else "a package"
            raise GrowthError(
                f"{package} adds the family {entry.name} to growproof, and {entry.value} "
                f"cannot be imported: {error!r}. Repair or uninstall {package}"
            ) from error


from_elsewhere()
