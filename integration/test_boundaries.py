"""The eager clone is the stock code of every family, at every module boundary.

Under `ordered` both add up in index order, so that they agree to the last bit wherever
they spell a value alike. Where they do not:

  phi, gpt_neox    the stock code adds a parallel block as (a + m) + x, the clone as
                   (x + a) + m: a few roundings from the first residual on
  ernie4_5, glm,   lanes turn with their neighbours, so that a score is the same sum in
  glm4, cohere     another order: a few roundings from the first scores on
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from growproof import clone, ordered
from growproof.decoder import Decoder
from growproof.families import FAMILIES as TABLES
from growproof.models import decoder_of, state_of
from torch import Tensor

from integration.test_ordered import FAMILIES, tiny, tokens

KNOWN = sorted(TABLES)  # before other tests register more
TURNED = ("ernie4_5", "glm", "glm4", "cohere")
SPELLED_OTHERWISE = ("phi", "gpt_neox", *TURNED)
# What the stock code calls a layer's modules: the clone's taps of the output, which is
# joined along the last axis where there are several.
OUTPUTS: dict[str, tuple[str, ...]] = {
    "q_proj": ("query",),
    "k_proj": ("key",),
    "v_proj": ("value",),
    "qkv_proj": ("query", "key", "value"),
    "c_attn": ("query", "key", "value"),
    "o_proj": ("attention",),
    "self_attn.dense": ("attention",),
    "attention.dense": ("attention",),
    "attn.c_proj": ("attention",),
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "gate_up_proj": ("gate", "up"),
    "fc1": ("up",),
    "c_fc": ("up",),
    "dense_h_to_4h": ("up",),
    "down_proj": ("mlp",),
    "fc2": ("mlp",),
    "mlp.c_proj": ("mlp",),
    "dense_4h_to_h": ("mlp",),
    "mlp": ("mlp",),
    "mlp.gate": ("router",),
    "ln_1": ("attn_norm",),
    "ln_2": ("mlp_norm",),
    "input_layernorm": ("attn_norm",),
    "pre_feedforward_layernorm": ("mlp_norm",),
    "post_feedforward_layernorm": ("mlp_out_norm",),
    "post_self_attn_layernorm": ("attn_out_norm",),
    "post_mlp_layernorm": ("mlp_out_norm",),
}
# The same of what a module reads.
INPUTS = {"attention": "context", "mlp": "activated"}
FINAL = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


# What no module's input or output is: inside the attention, inside the experts, and
# q, k and v that are joined head by head, q and k whose lanes turn with their neighbours.
INSIDE = {"query_rotated", "key_rotated", "scores"}
EXPERTS = {"chosen", "expert_gate", "expert_up", "expert_activated"}
UNSEEN = {
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS,
    "gpt_neox": {"query", "key", "value"},
    **{family: {"query", "key"} for family in TURNED},
}


def boundaries(model: Any, d: Decoder) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """(module, taps, whether of its input) of every module that the table names."""
    family = model.config.model_type
    outside = "attn_out_norm" in d.norms and family != "glm4"
    after = "attn_out_norm" if outside else "mlp_norm"
    table = OUTPUTS | {"post_attention_layernorm": (after,)}
    table = {s: t for s, t in table.items() if not {*t} <= UNSEEN.get(family, set())}
    for name, module in model.base_model.named_modules():
        if name in FINAL:
            yield name, ("final_norm",), False
            yield name, (f"layers.{d.layers - 1}.residual",), True
        _, _, below = name.partition(".")
        i, _, part = below.partition(".")
        for suffix, taps in table.items():
            if i.isdigit() and (part == suffix or part.endswith(f".{suffix}")):
                yield name, tuple(f"layers.{i}.{tap}" for tap in taps), False
                if taps[0] in INPUTS and hasattr(module, "weight"):
                    yield name, (f"layers.{i}.{INPUTS[taps[0]]}",), True


def stock(model: Any, d: Decoder) -> dict[tuple[str, ...], Tensor]:
    """What the stock code's modules read and write, by the clone's taps."""
    seen: dict[tuple[str, ...], Tensor] = {}
    modules = dict(model.base_model.named_modules())

    def keep(taps: tuple[str, ...], reads: bool) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            seen[taps] = args[0] if reads else out[0] if isinstance(out, tuple) else out

        return hook

    hooks = [
        modules[name].register_forward_hook(keep(taps, reads))
        for name, taps, reads in boundaries(model, d)
    ]
    with torch.no_grad(), ordered(model):
        out = model(tokens(), output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    seen[("embedding",)], *residuals = out.hidden_states
    seen |= {(f"layers.{i}.residual",): x for i, x in enumerate(residuals[:-1])}
    seen |= {(f"layers.{i}.probabilities",): p for i, p in enumerate(out.attentions)}
    return seen | {("logits",): out.logits}


def units_apart(family: str) -> tuple[float, set[str]]:
    """The largest difference in roundings of the largest entry, and the taps not seen."""
    model = tiny(family)
    d = decoder_of(model.config)
    with torch.no_grad(), ordered():
        taps = clone.forward(d, state_of(model), tokens())
    found, worst = stock(model, d), 0.0
    for names, actual in found.items():
        wanted = torch.cat([taps[name] for name in names], -1).reshape(actual.shape)
        off = (actual - wanted).abs().max() / wanted.abs().max() / 2**-53
        worst = max(worst, float(off))
    seen = {name for names in found for name in names}
    return worst, {name.split(".")[-1] for name in taps if name not in seen}


@pytest.mark.parametrize("family", KNOWN)
def test_the_clone_is_the_stock_code(family):
    """Norms, q, k, v, probabilities, context, o, gate, up, down, residual and logits."""
    worst, missing = units_apart(family)
    assert missing <= INSIDE | UNSEEN.get(family, set())
    assert worst <= (16 if family in SPELLED_OTHERWISE else 0)


def test_every_family_has_been_compared():
    """A family with a table has a tiny model here."""
    assert set(KNOWN) <= set(FAMILIES)


def test_another_spelling_is_seen(monkeypatch):
    """x / √ for x · (1/√) in the norms of the clone."""
    monkeypatch.setattr(clone, "normalise", divided)
    worst, _ = units_apart("llama")
    assert 0 < worst < 100


def divided(x: Tensor, weight: Tensor, bias: Any, d: Decoder, size: int) -> Tensor:
    """RMSNorm with a quotient in place of a product."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / size + d.eps) * weight
