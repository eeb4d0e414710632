"""What the laws draw of a family's config beyond its sizes: one line a family.

A family from another package says it in its own table (`Family.draws`); one that says
nothing is drawn with its defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from growproof.decoder import whole_factor
from hypothesis import strategies as st

from .domain import DOMAIN, table

THETAS = (10000.0, 500.0, 100000.0)
REAL_THETAS = (1e6, 1e7)
EPSILONS = (1e-5, 1e-6, 1e-3)
REAL_EPSILONS = (1e-8, 1e-12)
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Options:
    """Draws of one config. forced: features that it must have. sizes: of the decoder.

    real: the dimension or constant that is drawn as real checkpoints have it.
    """

    draw: st.DrawFn
    sizes: dict[str, int]
    forced: tuple[str, ...] = ()
    real: str | None = None

    def flag(self, feature: str) -> bool:
        """Whether the model has an option: if forced, or if it is claimed and luck."""
        claimed = DOMAIN.has(feature) and self.draw(st.booleans())
        return feature in self.forced or claimed

    def one_of(self, *values: Any) -> Any:
        """One of the values, the simplest first."""
        return self.draw(st.sampled_from(values))

    def theta(self) -> float:
        """A rotary base."""
        return self.one_of(*(REAL_THETAS if self.real == "theta" else THETAS))

    def eps(self) -> float:
        """The ε of the norms."""
        return self.one_of(*(REAL_EPSILONS if self.real == "eps" else EPSILONS))

    def act(self, name: str = "hidden_act") -> dict[str, Any]:
        """An activation."""
        return {name: self.one_of(*ACTIVATIONS)}

    def rope(self) -> dict[str, Any]:
        """Rope parameters whose frequencies survive a larger head_dim."""
        types = ("default", "linear", "llama3")
        kind = self.one_of(*types) if DOMAIN.has("rope_types") else "default"
        rope: dict[str, Any] = {"rope_type": kind, "rope_theta": self.theta()}
        if kind != "default":
            rope["factor"] = self.one_of(2.0, 8.0)
        if kind == "llama3":
            rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
            rope["original_max_position_embeddings"] = 32
        return {"rope_parameters": rope}

    def ropes(self) -> dict[str, Any]:
        """Rope parameters for each type of layer."""
        kinds = ("full_attention", "sliding_attention")
        return {"rope_parameters": {k: self.rope()["rope_parameters"] for k in kinds}}

    def partial(self) -> dict[str, Any]:
        """Rope parameters of which some lanes turn."""
        lanes = self.sizes["head_dim"]
        dims = 2 * self.draw(st.integers(1, lanes // 2))
        factor = whole_factor(dims, lanes)
        return {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.theta(),
                "partial_rotary_factor": factor,
            }
        }

    def window(self) -> dict[str, Any]:
        """A sliding window in every layer, or none."""
        return {"sliding_window": self.draw(st.none() | st.integers(2, 9))}

    def layer_types(self, first: str = "full_attention") -> dict[str, Any]:
        """Sliding and full attention by layer."""
        kinds = st.sampled_from((first, "sliding_attention", "full_attention"))
        n = self.sizes["layers"]
        return {
            "sliding_window": self.draw(st.integers(2, 9)),
            "layer_types": self.draw(st.lists(kinds, min_size=n, max_size=n)),
        }

    def experts(self, name: str) -> dict[str, Any]:
        """How many experts there are, and how many are chosen."""
        n = self.draw(st.integers(2, 4))
        return {name: n, "num_experts_per_tok": self.draw(st.integers(1, n))}

    def attention_bias(self) -> dict[str, Any]:
        """Biases of q, k, v and o."""
        return {"attention_bias": self.flag("biases")}

    def tied(self) -> dict[str, Any]:
        """Whether the head is the embedding."""
        return {"tie_word_embeddings": self.flag("tied")}


Line = Callable[[Options], dict[str, Any]]


def qwen(o: Options) -> dict[str, Any]:
    """Windows count where the config says so."""
    windows = o.layer_types()
    slides = "sliding_attention" in windows["layer_types"]
    return windows | {"use_sliding_window": slides} | o.act() | o.rope() | o.tied()


def gemma2(o: Options) -> dict[str, Any]:
    """A score scale and caps that the config holds."""
    return o.layer_types() | o.act("hidden_activation") | o.attention_bias() | {
        "query_pre_attn_scalar": o.one_of(4, 24, 256),
        "attn_logit_softcapping": o.one_of(50.0, None, 3.0),
        "final_logit_softcapping": o.one_of(30.0, None, 4.0),
        "tie_word_embeddings": o.flag("tied"),
    }  # fmt: skip


def gemma3(o: Options) -> dict[str, Any]:
    """Frequencies by type of layer."""
    return gemma2(o) | o.ropes() | {"attn_logit_softcapping": None}


def granite(o: Options) -> dict[str, Any]:
    """Four multipliers."""
    return o.act() | o.rope() | o.tied() | o.attention_bias() | {
        "mlp_bias": o.flag("biases"),
        "embedding_multiplier": o.one_of(1.0, 12.0), "logits_scaling": o.one_of(1.0, 8.0),
        "residual_multiplier": o.one_of(1.0, 0.22),
        "attention_multiplier": o.one_of(1.0, 0.3),
    }  # fmt: skip


def smollm3(o: Options) -> dict[str, Any]:
    """Layers that turn nothing."""
    n = o.sizes["layers"]
    turns = o.draw(st.lists(st.sampled_from((1, 0)), min_size=n, max_size=n))
    biases = o.attention_bias() | {"mlp_bias": o.flag("biases")}
    return qwen(o) | biases | {"no_rope_layers": turns}


def qwen3_moe(o: Options) -> dict[str, Any]:
    """Dense and sparse layers."""
    n = o.sizes["layers"]
    dense = o.draw(st.sets(st.integers(0, n - 1), max_size=n - 1)) if n > 1 else set()
    return o.experts("num_experts") | o.act() | o.rope() | o.tied() | {
        "mlp_only_layers": sorted(dense), "norm_topk_prob": o.one_of(True, False),
        "attention_bias": o.flag("biases"),
    }  # fmt: skip


OPTIONS: dict[str, Line] = {
    "llama": lambda o: o.act() | o.rope() | o.tied() | o.attention_bias()
    | {"mlp_bias": o.flag("biases")},
    "stablelm": lambda o: o.act() | o.partial() | o.tied() | {
        "use_qkv_bias": o.flag("biases"), "use_parallel_residual": o.flag("parallel"),
        "qk_layernorm": o.flag("qk_norm")},
    "mistral": lambda o: o.act() | o.rope() | o.tied() | o.window(),
    "qwen2": qwen,
    "qwen3": lambda o: qwen(o) | o.attention_bias(),
    "gemma": lambda o: o.act() | o.rope() | o.tied() | o.attention_bias(),
    "gemma2": lambda o: gemma2(o) | o.rope(),
    "gemma3_text": gemma3,
    "phi": lambda o: o.act() | o.partial() | o.tied(),
    "phi3": lambda o: o.act() | o.partial() | o.tied() | o.window(),
    "olmo2": lambda o: o.act() | o.rope() | o.tied() | o.attention_bias(),
    "olmo3": lambda o: o.act() | o.ropes() | o.tied() | o.layer_types()
    | o.attention_bias(),
    "gpt_neox": lambda o: o.act() | o.partial() | o.tied() | {
        "attention_bias": o.flag("biases"), "use_parallel_residual": o.flag("parallel")},
    "gpt2": lambda o: o.act("activation_function") | o.tied(),
    "starcoder2": lambda o: o.act() | o.rope() | o.tied() | o.window()
    | {"use_bias": o.flag("biases")},
    "granite": granite,
    "smollm3": smollm3,
    "mixtral": lambda o: o.act() | o.rope() | o.tied() | o.window()
    | o.experts("num_local_experts"),
    "qwen3_moe": qwen3_moe,
    "arcee": lambda o: o.act() | o.rope() | o.tied() | o.attention_bias()
    | {"mlp_bias": o.flag("biases")},
    "seed_oss": lambda o: o.act() | o.rope() | o.tied() | o.attention_bias()
    | {"attention_out_bias": o.flag("biases"), "mlp_bias": o.flag("biases"),
       "attention_dropout": 0.0, "residual_dropout": 0.0},
    "ernie4_5": lambda o: o.act() | o.rope() | o.tied() | {"use_bias": o.flag("biases")},
    "glm": lambda o: o.act() | o.partial() | o.tied() | o.attention_bias(),
    "glm4": lambda o: o.act() | o.partial() | o.tied() | o.attention_bias(),
    "cohere": lambda o: o.act() | o.rope() | o.tied() | o.attention_bias()
    | {"logit_scale": o.one_of(0.0625, 1.0)},
}  # fmt: skip


def options(family: str, o: Options) -> dict[str, Any]:
    """What is drawn of a family: its line here, or what its own table says."""
    line = OPTIONS.get(family) or table(family).draws
    return line(o) if line else {}
