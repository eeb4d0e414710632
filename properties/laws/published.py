"""What published checkpoints say in their configs, but for sizes: one line each.

Sizes of heads are their own where a constant speaks of them (a score scale, frequencies);
sixteen heads and more are divided by a common factor. The rest is small.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """A checkpoint of a family: its head sizes, and what its config says."""

    name: str
    sizes: dict[str, int]
    config: dict[str, Any]


def heads(heads: int, groups: int, head_dim: int) -> dict[str, int]:
    return {"heads": heads, "groups": groups, "head_dim": head_dim}


def rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | more}


def far(positions: int) -> dict[str, Any]:
    return {"max_position_embeddings": positions}


def tied(tied: bool = True) -> dict[str, Any]:
    return {"tie_word_embeddings": tied}


def types(*pattern: str) -> dict[str, Any]:
    """Layer types by their first letters."""
    words = {"f": "full_attention", "s": "sliding_attention"}
    return {"layer_types": [words[x] for x in "".join(pattern)]}


LLAMA3 = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LONGER = {  # as Qwen says to set it
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
}  # fmt: skip
GEMMA = {"hidden_activation": "gelu_pytorch_tanh"} | tied()
GEMMA2 = GEMMA | far(8192) | {
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}  # fmt: skip

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "llama": (
        Published("Llama 2 7B", heads(2, 2, 128), rope(1e4) | far(4096)),
        Published("Llama 3.1 8B", heads(8, 2, 128),
                  rope(5e5, **LLAMA3, factor=8.0) | far(131072)),
        Published("Llama 3.2 1B", heads(8, 2, 64),
                  rope(5e5, **LLAMA3, factor=32.0) | far(131072) | tied()),
        Published("Llama 2 7B, for long texts", heads(2, 2, 128),
                  rope(1e4, rope_type="dynamic", factor=2.0) | far(4096)),
        Published("SmolLM2 135M", heads(9, 3, 64), rope(1e5) | far(8192) | tied()),
    ),
    "stablelm": (
        Published("StableLM 2 1.6B", heads(4, 4, 64),
                  rope(1e4, partial_rotary_factor=0.25) | far(4096)
                  | {"use_qkv_bias": True}),
        Published("StableLM 3B 4e1t", heads(2, 2, 80),
                  rope(1e4, partial_rotary_factor=0.25) | far(4096)),
    ),
    "mistral": (
        Published("Mistral 7B v0.1", heads(8, 2, 128),
                  rope(1e4) | far(32768) | {"sliding_window": 4096}),
        Published("Mistral 7B v0.3", heads(8, 2, 128),
                  rope(1e6) | far(32768) | {"sliding_window": None}),
    ),
    "qwen2": (
        Published("Qwen2.5 0.5B", heads(14, 2, 64), rope(1e6) | far(32768) | tied() | {
            "sliding_window": 32768, "use_sliding_window": False,
            "max_window_layers": 21}),
        Published("Qwen2.5 7B", heads(7, 1, 128), rope(1e6) | far(131072)),
        Published("Qwen2.5 7B, for long texts", heads(7, 1, 128),
                  {"rope_parameters": LONGER | {"rope_theta": 1e6}} | far(131072)),
    ),
    "qwen3": (
        Published("Qwen3 0.6B", heads(4, 2, 128), rope(1e6) | far(40960) | tied()),
        Published("Qwen3 8B, for long texts", heads(4, 1, 128),
                  {"rope_parameters": LONGER | {"rope_theta": 1e6}} | far(131072)),
    ),
    "gemma": (
        Published("Gemma 2B", heads(8, 1, 256), rope(1e4) | far(8192) | tied()
                  | {"hidden_act": "gelu_pytorch_tanh"}),
    ),
    "gemma2": (
        Published("Gemma 2 2B", heads(2, 1, 256), rope(1e4) | GEMMA2 | types("sf")
                  | {"query_pre_attn_scalar": 256}),
        Published("Gemma 2 27B", heads(4, 2, 128), rope(1e4) | GEMMA2 | types("sf")
                  | {"query_pre_attn_scalar": 144}),
    ),
    "gemma3_text": (
        Published("Gemma 3 1B", heads(4, 1, 256), GEMMA | far(32768) | types("sssssf") | {
            "query_pre_attn_scalar": 256, "sliding_window": 512, "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
        Published("Gemma 3 27B", heads(4, 2, 128),
                  GEMMA | far(131072) | types("sssssf") | {
            "query_pre_attn_scalar": 168, "sliding_window": 1024, "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0,
                                   "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    ),
    "phi": (
        Published("Phi-2", heads(2, 2, 80), rope(1e4, partial_rotary_factor=0.4)
                  | far(2048) | {"hidden_act": "gelu_new"}),
    ),
    "phi3": (
        Published("Phi-3 mini 4k", heads(2, 2, 96),
                  rope(1e4, partial_rotary_factor=1.0) | far(4096)
                  | {"sliding_window": 2047}),
        Published("Phi-3.5 mini", heads(2, 2, 12), far(131072) | {
            "sliding_window": 262144, "original_max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0,
                "original_max_position_embeddings": 4096,
                "short_factor": [1.0, 1.25, 1.5, 2.0, 2.5, 3.0],
                "long_factor": [1.5, 4.0, 12.0, 28.0, 48.0, 64.0]}}),
        Published("Phi-4", heads(8, 2, 128), rope(250000.0, partial_rotary_factor=1.0)
                  | far(16384)),
    ),
    "olmo2": (
        Published("OLMo 2 7B", heads(2, 2, 128), rope(5e5) | far(4096)),
    ),
    "olmo3": (
        Published("Olmo 3 7B", heads(2, 2, 128), far(65536) | types("sssf") | {
            "sliding_window": 4096, "rope_parameters": {
                "full_attention": YARN | {"rope_theta": 5e5,
                                          "attention_factor": 1.2079441541679836},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}}),
    ),
    "gpt_neox": (
        Published("Pythia 160M", heads(6, 6, 64), rope(1e4, partial_rotary_factor=0.25)
                  | far(2048) | {"use_parallel_residual": True}),
    ),
    "gpt2": (
        Published("GPT-2", heads(4, 4, 64) | {"positions": 1024},
                  {"activation_function": "gelu_new"} | tied()),
    ),
    "starcoder2": (
        Published("StarCoder2 3B", heads(12, 1, 128), rope(999999.4420358813)
                  | far(16384) | {"sliding_window": 4096, "use_bias": True,
                                  "hidden_act": "gelu_pytorch_tanh"}),
    ),
    "granite": (
        Published("Granite 3.1 8B", heads(8, 2, 128), rope(1e7) | far(131072) | tied() | {
            "attention_multiplier": 0.0078125, "embedding_multiplier": 12.0,
            "logits_scaling": 16.0, "residual_multiplier": 0.22}),
    ),
    "smollm3": (
        Published("SmolLM3 3B", heads(8, 2, 128), rope(5e6) | far(65536) | tied()
                  | types("ffff") | {"no_rope_layers": [1, 1, 1, 0],
                                     "use_sliding_window": False}),
    ),
    "mixtral": (
        Published("Mixtral 8x7B", heads(8, 2, 128), rope(1e6) | far(32768) | {
            "num_local_experts": 8, "num_experts_per_tok": 2}),
    ),
    "qwen3_moe": (
        Published("Qwen3 30B A3B", heads(8, 1, 128), rope(1e6) | far(40960) | {
            "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True}),
    ),
    "arcee": (
        Published("AFM 4.5B", heads(5, 1, 128), far(65536) | {"hidden_act": "relu2"}
                  | rope(1e4, **YARN | {"factor": 16.0, "mscale": 1.0,
                                        "original_max_position_embeddings": 4096})),
    ),
    "seed_oss": (
        Published("Seed-OSS 36B", heads(10, 1, 128), rope(1e7) | far(524288) | {
            "attention_bias": True, "attention_out_bias": False}),
    ),
    "ernie4_5": (
        Published("ERNIE 4.5 0.3B", heads(8, 1, 128), rope(5e5) | far(131072) | tied()),
    ),
    "glm": (
        Published("GLM 4 9B", heads(16, 1, 128), rope(1e4, partial_rotary_factor=0.5)
                  | far(131072) | {"rms_norm_eps": 1.5625e-07, "attention_bias": True}),
    ),
    "glm4": (
        Published("GLM 4 9B 0414", heads(16, 1, 128),
                  rope(1e4, partial_rotary_factor=0.5) | far(32768)
                  | {"attention_bias": True}),
    ),
    "cohere": (
        Published("Command R", heads(2, 2, 128), rope(8e6) | far(131072) | tied()
                  | {"logit_scale": 0.0625}),
    ),
}  # fmt: skip
