"""VaultGemma, a family that growproof itself does not know: its table, and nothing else."""

from typing import Any

import growproof
from growproof.families import ATTENTION, ENDS, MLP, L, biases, layer_types, under
from growproof.family import Family


def draws(o: Any) -> dict[str, Any]:
    """What the laws draw of a config beyond its sizes: every switch, on and off."""
    return o.layer_types() | o.rope() | o.attention_bias() | o.tied() | {
        "hidden_activation": o.one_of("gelu_pytorch_tanh", "silu"),
        "query_pre_attn_scalar": o.one_of(4, 24, 256),
        "attn_logit_softcapping": o.one_of(50.0, None, 3.0),
        "final_logit_softcapping": o.one_of(30.0, None, 4.0),
    }  # fmt: skip


growproof.register(Family(
    model_type="vaultgemma",
    # stored name → canonical one; {layer} counts (L ends in it)
    tensors=ENDS | ATTENTION | MLP
    | under(L, input_layernorm="attn_norm", pre_feedforward_layernorm="mlp_norm"),
    # field of a growproof.Decoder → what the config says of it
    says={
        "root_embedding": True, "norm_offset": 1.0,
        "biases": biases(attention_bias="q k v o"),
        "activation": lambda c: c.hidden_activation,
        "score": lambda c: c.query_pre_attn_scalar**-0.5,
        "score_cap": lambda c: c.attn_logit_softcapping,
        "logit_cap": lambda c: c.final_logit_softcapping,
    },
    kinds=layer_types, whole_heads=True, draws=draws,
))  # fmt: skip
