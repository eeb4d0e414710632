"""Pairs that config.json or the storage alone makes unlike, or only seems to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof.cli import main
from growproof.verify import verify
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from .small import each_layer, llama, of_family, saved, with_tensors

LONG = {"max_position_embeddings": 2048, "sliding_window": 600}


def edited(source: Path, path: Path, **changes: Any) -> Path:
    """A copy whose config.json says so."""
    shutil.copytree(source, path)
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(fields | changes))
    return path


@pytest.mark.parametrize(
    ("family", "config", "change"),
    [
        ("mistral", LONG, {"sliding_window": None}),
        ("mistral", LONG, {"sliding_window": 700}),
        ("gemma2", LONG, {"sliding_window": 1000}),
        (
            "qwen2",
            LONG | {"use_sliding_window": True, "max_window_layers": 0},
            {"layer_types": ["full_attention"] * 2},
        ),
    ],
)
def test_a_window_past_the_text_is_compared(
    family: str, config: dict[str, Any], change: dict[str, Any], tmp_path: Path
) -> None:
    source = saved(of_family(family, **config), tmp_path / "source")
    result = verify(source, edited(source, tmp_path / "other", **change))
    assert result.reasons == ["attention windows"]
    assert result.tokens < LONG["sliding_window"]


def test_a_window_of_all_positions_is_none(tmp_path: Path) -> None:
    source = saved(of_family("mistral", sliding_window=None), tmp_path / "source")
    assert verify(source, edited(source, tmp_path / "other", sliding_window=4096)).same


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"is_causal": False}),
        ("llama", {"sliding_window": 4}),
        (
            "llama",
            {"sliding_window": 4, "layer_types": ["sliding_attention"] * 2},
        ),
        ("llama", {"attention_chunk_size": 4}),
        ("gpt_neox", {"head_dim": 16}),
    ],
)
def test_what_transformers_reads_of_any_config_is_looked_at(
    family: str, change: dict[str, Any], tmp_path: Path
) -> None:
    source = saved(of_family(family), tmp_path / "source")
    result = verify(source, edited(source, tmp_path / "other", **change))
    assert not result.same
    grown = str(tmp_path / "grown")
    assert main(["grow", str(tmp_path / "other"), grown, "--intermediate-size=40"]) == 4


def test_what_changes_nothing_may_be_said(tmp_path: Path) -> None:
    """As is left over in a config from another family."""
    source = saved(llama(), tmp_path / "source")
    left = {"sliding_window": 4096, "layer_types": ["full_attention"] * 2}
    assert verify(source, edited(source, tmp_path / "other", **left)).same


def test_weights_in_another_file_are_those_that_are_loaded(tmp_path: Path) -> None:
    source = saved(llama(), tmp_path / "source")
    other = edited(source, tmp_path / "other", transformers_weights="b.safetensors")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, other / "b.safetensors", metadata={"format": "pt"})
    assert not verify(source, other, tokens=32).same


def test_bits_that_float16_has_not_are_no_equal_entries(tmp_path: Path) -> None:
    """bfloat16 reaches further down: what float16 rounds is said to be rounded."""
    small = each_layer(llama(), lambda x: x.self_attn.o_proj.weight.mul_(2.0**-22))
    source = saved(small.bfloat16(), tmp_path / "source")
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    result = verify(source, saved(model.to(torch.float16), tmp_path / "half"))
    entries = next(c for c in result.checks if c.name == "entries")
    assert "rounded to float16" in entries.found
    assert "once each weight is float16" in result.verdict


def test_a_fused_phi3_is_the_llama_of_its_parts(tmp_path: Path) -> None:
    source = saved(of_family("phi3"), tmp_path / "source")
    fields = json.loads((source / "config.json").read_text())
    for name in ("model_type", "architectures", "transformers_version"):
        fields.pop(name)
    other = tmp_path / "other"
    LlamaConfig(**fields, architectures=["LlamaForCausalLM"]).save_pretrained(other)
    apart: dict[str, torch.Tensor] = {}
    for name, x in load_file(source / "model.safetensors").items():
        parts = {"qkv": (16, 8, 8), "gate_up": (20, 20)}
        fused = next((p for p in parts if f"{p}_proj" in name), None)
        names = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}.get(fused or "", ())
        pieces = x.split(parts[fused]) if fused else ()
        apart |= {
            name.replace(f"{fused}_proj", f"{part}_proj"): piece.clone()
            for part, piece in zip(names, pieces, strict=True)
        } or {name: x}
    save_file(apart, other / "model.safetensors", metadata={"format": "pt"})
    result = verify(source, other)
    assert "every entry is accounted for" in result.verdict


def test_a_tensor_that_is_stored_twice_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = shutil.copytree(source, tmp_path / "twice")
    name = "layers.0.mlp.up_proj.weight"
    x = load_file(twice / "model.safetensors")[f"model.{name}"]
    with_tensors(twice, {name: x})
    assert main(["verify", str(twice), str(source)]) == 4
    assert "one parameter, stored twice" in capsys.readouterr().err
    assert main(["verify", str(source), str(twice)]) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--tp", "99999999999999999999", "--dry-run"),
        ("fit", "--head-dim", "1000000", "--dry-run"),
        ("grow", "--num-hidden-layers", "70000"),
        ("grow", "--intermediate-size", "9999999999"),
    ],
)
def test_sizes_that_nothing_has_are_refused(
    words: tuple[str, ...], source: Path, tmp_path: Path, capsys: Any
) -> None:
    command, *rest = words
    assert main([command, str(source), str(tmp_path / "grown"), *rest]) == 4
    assert "at most" in capsys.readouterr().err
