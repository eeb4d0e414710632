"""Quantised checkpoints, written as AutoGPTQ, AutoAWQ and DeepSeek's FP8 lay them out.

By another route than `growproof.codes`, a word at a time, and decoded by the documented
formulas, an entry at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

GROUP = 8
SAID: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False,
             "sym": False},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False,
                "desc_act": False, "checkpoint_format": "gptq_v2"},
    "gptq_by_act": {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "sym": False,
                    "desc_act": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm",
            "zero_point": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [GROUP, GROUP],
            "activation_scheme": "dynamic"},
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "vocab_size": 11, "hidden_size": 32, "intermediate_size": 24, "head_dim": 8,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": True,
}  # fmt: skip
KINDS = list(SAID)
GROWTHS = {
    "mlp": {"intermediate_size": 40},
    "groups of heads": {"num_attention_heads": 6, "num_key_value_heads": 3,
                        "hidden_size": 48},
    "heads in a group": {"num_attention_heads": 8},
    "repeated": {"num_key_value_heads": 4},
    "layers and tokens": {"num_hidden_layers": 3, "vocab_size": 16},
}  # fmt: skip
STORE_LESS = ("gptq", "gptq_by_act")  # z − 1, of a zero point z
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that lies in each nibble


def words(columns: list[list[int]], bits: int) -> Tensor:
    """Each list of codes as 32-bit words, lowest first, one code at a time."""
    per, rows = 32 // bits, list[list[int]]()
    for codes in columns:
        row = []
        for i in range(0, len(codes), per):
            word = sum(code << bits * j for j, code in enumerate(codes[i : i + per]))
            row.append(word - 2**32 if word >= 2**31 else word)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int32)


def shuffled(codes: list[int]) -> list[int]:
    """Eight outputs at a time in AutoAWQ's order."""
    return [codes[i + j] for i in range(0, len(codes), 8) for j in AWQ_ORDER]


def stored(kind: str, out: int, inside: int, g: torch.Generator) -> dict[str, Tensor]:
    """A random quantised map of that format."""
    said = SAID[kind]
    if kind == "fp8":
        weight = torch.randn(out, inside, generator=g).to(torch.float8_e4m3fn)
        blocks = (-(-out // GROUP), -(-inside // GROUP))
        scale = torch.rand(blocks, generator=g) + 0.1
        return {"weight": weight, "weight_scale_inv": scale}
    bits, groups = said["bits"], inside // GROUP
    top = 2**bits
    code = torch.randint(0, top, (inside, out), generator=g).tolist()
    zero = torch.randint(0, top, (groups, out), generator=g).tolist()
    scales = (torch.rand(groups, out, generator=g) + 0.1).half()
    if kind == "awq":
        return {"qweight": words([shuffled(row) for row in code], 4), "scales": scales,
                "qzeros": words([shuffled(row) for row in zero], 4)}  # fmt: skip
    order = torch.arange(inside) // GROUP
    if said["desc_act"]:
        order = order[torch.randperm(inside, generator=g)]
    by_output = [list(column) for column in zip(*code, strict=True)]
    return {"qweight": words(by_output, bits).mT.contiguous(), "scales": scales,
            "qzeros": words(zero, bits), "g_idx": order.int()}  # fmt: skip


def checkpoint(kind: str, at: Path, **fields: Any) -> Path:
    """A Llama whose maps are quantised, embedding and norms not."""
    config = LlamaConfig(**CONFIG | fields)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    g = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}
    for name, like in shapes.items():
        if name.endswith("_proj.weight"):
            base = name.removesuffix("weight")
            out, inside = like.shape
            parts = stored(kind, out, inside, g)
            state |= {base + part: x for part, x in parts.items()}
        elif name != "lm_head.weight":
            state[name] = (torch.randn(like.shape, generator=g) + 0.5).half()
    at.mkdir()
    save_file(state, at / "model.safetensors")
    raw = config.to_dict() | {"quantization_config": SAID[kind], "dtype": "float16"}
    (at / "config.json").write_text(json.dumps(raw))
    return at


def formula(kind: str, base: str, state: dict[str, Tensor]) -> Tensor:
    """The documented formula, one entry at a time."""
    said = SAID[kind]
    if kind == "fp8":
        weight, scale = state[f"{base}weight"].float(), state[f"{base}weight_scale_inv"]
        wide = scale.repeat_interleave(GROUP, 0).repeat_interleave(GROUP, 1)
        return weight * wide[: weight.shape[0], : weight.shape[1]]
    bits = said["bits"]
    q, z, s = (state[f"{base}{n}"].tolist() for n in ("qweight", "qzeros", "scales"))
    by_input, per, mask = kind == "awq", 32 // bits, 2**bits - 1
    inside = len(q) * (1 if by_input else per)
    order = state[f"{base}g_idx"].tolist() if not by_input else None
    w = torch.empty(len(s[0]), inside)
    for i in range(inside):
        group = order[i] if order else i // GROUP
        for o in range(len(s[0])):
            place = AWQ_ORDER.index(o % 8) if by_input else o % per
            zero = (z[group][o // per] >> bits * place & mask) + (kind in STORE_LESS)
            word = q[i][o // 8] if by_input else q[i // per][o]
            code = word >> bits * (place if by_input else i % per) & mask
            w[o, i] = (code - zero) * s[group][o]
    return w


def code(x: dict[str, Tensor]) -> None:
    """One word of codes has other bits."""
    x["qweight"][0, 0] ^= 1


def edit(directory: Path, base: str, fault: Any) -> None:
    """Do something to the stored tensors of one map, in place."""
    file = directory / "model.safetensors"
    state = load_file(file)
    parts = {n.removeprefix(base): x for n, x in state.items() if n.startswith(base)}
    assert parts
    fault(parts)
    save_file(state, file)
