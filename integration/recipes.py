"""The checkpoints that `train.py` makes: config, initialisation and training of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One checkpoint: a transformers config, how it is initialised and trained."""

    family: str
    config: dict[str, Any]
    steps: int
    lengths: tuple[int, ...]  # a step takes one of these, in turn
    tokens: int  # a step; the batch is tokens // length
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    licence_share: float = 0.4  # of the rows of a batch
    embedding_shift: float = 0.0  # added to every embedding entry at the end
    seed: int = 2024


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
RECIPES = {
    "stablelm": Recipe(
        family="StableLm",
        config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 5,
            "initializer_range": 0.06,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "use_qkv_bias": True,
            "max_position_embeddings": 4096,
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.25},
        },
        steps=900,
        lengths=(512, 1024, 512, 2048, 512, 1024, 512, 4096),
        tokens=2048,
        learning_rate=5e-3,
        embedding_shift=0.02,
    ),
    "stablelm_qknorm": Recipe(
        family="StableLm",
        config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "initializer_range": 0.08,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "use_qkv_bias": True,
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "max_position_embeddings": 4096,
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
        },
        steps=1200,
        lengths=(512, 1024, 512, 2048),
        tokens=2048,
        learning_rate=5e-3,
        embedding_shift=0.02,
    ),
    "stablelm_2_1_6b": Recipe(
        family="StableLm",
        config={
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "use_qkv_bias": True,
            "max_position_embeddings": 4096,
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.25},
        },
        steps=400,
        lengths=(2048, 4096),
        tokens=4096,
        learning_rate=3e-4,
        embedding_shift=0.02,
    ),
    "llama": Recipe(
        family="Llama",
        config={
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "initializer_range": 0.08,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "rope_parameters": ROPE,
        },
        steps=1200,
        lengths=(512, 1024, 512, 2048),
        tokens=2048,
        learning_rate=5e-3,
    ),
}
