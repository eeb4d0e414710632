"""Quantised directories as tools really leave them: experts, extras, what loaders are told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof.cli import main
from growproof.decoder import GrowthError
from growproof.quantised import Quantised, grow_quantised
from growproof.verify import verify
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from .coded import SAID, stored
from .small import check, of_family, saved

KINDS = ("gptq", "awq", "fp8")
FILE = "model.safetensors"
SIZES: dict[str, Any] = {
    "vocab_size": 16, "hidden_size": 32, "intermediate_size": 24, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 16,
}  # fmt: skip
MAPS = ("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight", "lm_head.weight")


def quantised(
    kind: str, family: str, at: Path, *, head: bool = False, **said: Any
) -> Path:
    """A directory of that family, its linear maps quantised, and with that said of it."""
    known = vars(AutoConfig.for_model(family))
    sizes = {k: v for k, v in SIZES.items() if k in known or k == "head_dim"}
    saved(of_family(family, tie_word_embeddings=False, **sizes), at)
    generator, state = torch.Generator().manual_seed(3), dict[str, Tensor]()
    for name, x in load_file(at / FILE).items():
        if name.endswith(MAPS) and (head or "lm_head" not in name):
            base, parts = (
                name.removesuffix("weight"),
                stored(kind, x.shape[0], x.shape[1], generator),
            )
            state |= {base + part: y for part, y in parts.items()}
        else:
            state[name] = x.half()
    save_file(state, at / FILE)
    return told(at, **SAID[kind] | said)


def told(directory: Path, **said: Any) -> Path:
    """The directory, with this in its quantization_config."""
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    raw["quantization_config"] = raw.get("quantization_config", {}) | said
    path.write_text(json.dumps(raw | {"dtype": "float16"}))
    return directory


def edited(
    directory: Path, at: Path, change: Callable[[dict[str, Tensor]], Any]
) -> Path:
    """A copy, with other tensors."""
    shutil.copytree(directory, at)
    state = load_file(at / FILE)
    change(state)
    save_file(state, at / FILE)
    return at


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("kind", KINDS)
def test_experts_keep_their_codes(kind: str, family: str, tmp_path: Path) -> None:
    """Every map of every expert, new layers' too, and bit for bit."""
    source = quantised(kind, family, tmp_path / "source")
    own = "intermediate_size" if family == "mixtral" else "moe_intermediate_size"
    target = {own: 32, "num_hidden_layers": 3}
    grow_quantised(source, tmp_path / "grown", target)
    old, new = Quantised.at(source), Quantised.at(tmp_path / "grown")
    assert len(new.weights()) == len(old.weights()) // 2 * 3
    for name in old.weights():
        before = old.codes(name).decoded()
        after = new.codes(name).decoded()
        assert torch.equal(after[tuple(map(slice, before.shape))], before), name
    assert verify(source, tmp_path / "grown").same


def test_experts_that_were_decoded_are_seen(tmp_path: Path) -> None:
    """Floats under a quantization_config: no loader takes them for a quantised map."""
    source = quantised("fp8", "qwen3_moe", tmp_path / "source")
    held, name = Quantised.at(source), "model.layers.0.mlp.experts.1.up_proj."

    def decode(state: dict[str, Tensor]) -> None:
        state[f"{name}weight"] = held.codes(f"{name}weight").decoded()
        del state[f"{name}weight_scale_inv"]

    copy = edited(source, tmp_path / "copy", decode)
    result = verify(source, copy)
    assert not result.same
    with pytest.raises(GrowthError, match="some experts of a layer are quantised"):
        grow_quantised(copy, tmp_path / "grown", {"num_hidden_layers": 3})


@pytest.mark.parametrize(
    "said",
    [{"sym": True}, {"desc_act": True}, {"modules_to_not_convert": ["down_proj"]},
     {"dynamic": {"-:.*down.*": {}}}],
)  # fmt: skip
def test_what_loaders_are_told_is_compared(
    said: dict[str, Any], tmp_path: Path
) -> None:
    source = quantised("gptq", "llama", tmp_path / "source")
    grow_quantised(source, tmp_path / "grown", {"intermediate_size": 40})
    result = verify(source, told(tmp_path / "grown", **said))
    assert not result.same
    assert next(iter(said)) in check(result, "quantised").found


def test_extras_of_old_tools_are_taken(tmp_path: Path) -> None:
    """AutoGPTQ's zero biases, no g_idx, a buffer of frequencies."""
    source = quantised("gptq", "llama", tmp_path / "source")

    def old_tools(state: dict[str, Tensor]) -> None:
        for name in [n for n in state if n.endswith("g_idx")]:
            base = name.removesuffix("g_idx")
            del state[name]
            state[f"{base}bias"] = torch.zeros(state[f"{base}scales"].shape[1]).half()
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    copy = edited(source, tmp_path / "copy", old_tools)
    grow_quantised(copy, tmp_path / "grown", {"intermediate_size": 40})
    assert verify(source, tmp_path / "grown").same

    def loud(state: dict[str, Tensor]) -> None:
        state["model.layers.0.mlp.up_proj.bias"] = torch.ones(24).half()

    with pytest.raises(GrowthError, match="config and weights disagree"):
        grow_quantised(
            edited(source, tmp_path / "loud", loud), tmp_path / "no", {"vocab_size": 24}
        )


def nan(state: dict[str, Tensor]) -> None:
    state["model.layers.0.mlp.up_proj.weight_scale_inv"][0, 0] = torch.nan


def no_scale(state: dict[str, Tensor]) -> None:
    del state["model.layers.0.mlp.up_proj.weight_scale_inv"]


@pytest.mark.parametrize(
    ("change", "match"), [(nan, "NaN or an infinity"), (no_scale, "stored as F8_E4M3")]
)
def test_broken_maps_are_refused(
    change: Callable[[dict[str, Tensor]], Any], match: str, tmp_path: Path
) -> None:
    source = quantised("fp8", "llama", tmp_path / "source")
    copy = edited(source, tmp_path / "copy", change)
    with pytest.raises(GrowthError, match=match):
        grow_quantised(copy, tmp_path / "grown", {"intermediate_size": 40})
    assert not verify(source, copy).same


@pytest.mark.parametrize(
    ("said", "target", "match"),
    [
        ({"dynamic": {r"-:model\.layers\.1\..*": {}}}, {"num_hidden_layers": 3}, "number"),
        ({"modules_to_not_convert": ["model.layers.1.mlp", 3]}, {"num_hidden_layers": 3},
         "number"),
        ({}, {"head_dim": 16}, "multiply it by"),
    ],
)  # fmt: skip
def test_refusals(
    said: dict[str, Any], target: dict[str, int], match: str, tmp_path: Path
) -> None:
    source = quantised("gptq", "llama", tmp_path / "source", **said)
    with pytest.raises(GrowthError, match=match):
        grow_quantised(source, tmp_path / "grown", target)


def test_a_row_that_silences_is_no_code(tmp_path: Path) -> None:
    """A LayerNorm's bias can keep new tokens from being chosen, by numbers in lm_head."""
    plain = quantised("gptq", "stablelm", tmp_path / "plain", head=True)

    def lift(state: dict[str, Tensor]) -> None:
        state["model.norm.bias"].fill_(1)

    source = edited(plain, tmp_path / "source", lift)
    with pytest.raises(GrowthError, match="what keeps new tokens from being chosen"):
        grow_quantised(source, tmp_path / "grown", {"vocab_size": 24})


def test_a_dry_run_refuses_what_the_run_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = quantised("gptq", "llama", tmp_path / "source")
    fit = ["fit", str(source), str(tmp_path / "grown"), "--head-dim=16", "--dry-run"]
    assert main(fit) == 4
    assert "multiply it by" in capsys.readouterr().err
