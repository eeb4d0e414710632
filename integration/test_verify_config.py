"""Pairs that config.json or the storage alone makes unlike, or only seems to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof.checkpoints import grow_checkpoint
from growproof.cli import main
from growproof.verify import verify
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from .small import check, each_layer, llama, of_family, saved, with_tensors

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
    assert "once each weight is rounded to float16" in result.verdict


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


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("logit_cap", {"final_logit_softcapping": None}),
        ("score_cap", {"attn_logit_softcapping": 60.0}),
        ("activation", {"hidden_activation": "gelu"}),
        ("", {"hidden_activation": "gelu_new"}),
    ],
)
def test_a_curve_is_compared_by_itself(
    field: str, change: dict[str, Any], tmp_path: Path
) -> None:
    """Though every weight of a grown bfloat16 model may have been rounded."""
    source = saved(of_family("gemma2").bfloat16(), tmp_path / "source")
    grow_checkpoint(source, tmp_path / "grown", {"hidden_size": 24})
    other = edited(tmp_path / "grown", tmp_path / "other", **change)
    assert verify(source, other).reasons == ([field] if field else [])


@pytest.mark.parametrize(
    ("factor", "divisor", "same"),
    [(1.0, 8.02, False), (0.5, 4.0, True), (1.5, 12.0, True), (1.52, 12.0, False)],
)
def test_a_setting_that_weights_make_up_for_is_measured_by_itself(
    factor: float, divisor: float, same: bool, tmp_path: Path
) -> None:
    model = of_family("granite", logits_scaling=8.0, tie_word_embeddings=False)
    source = saved(model.bfloat16(), tmp_path / "source")
    grow_checkpoint(source, tmp_path / "grown", {"hidden_size": 24})
    other = edited(tmp_path / "grown", tmp_path / "other", logits_scaling=divisor)
    head = load_file(other / "model.safetensors")["lm_head.weight"]
    result = verify(source, with_tensors(other, {"lm_head.weight": factor * head}))
    assert result.same is same
    assert same or f"logit_divisor is 8.0 → {divisor}" in result.verdict


def test_fewer_positions_are_noted(source: Path, tmp_path: Path) -> None:
    other = edited(source, tmp_path / "other", max_position_embeddings=32)
    result = verify(source, other)
    assert result.same
    assert check(result, "max_position_embeddings").found.startswith("64 → 32")


def test_fields_of_a_family_without_a_table_are_named(tmp_path: Path) -> None:
    source = saved(of_family("cohere2"), tmp_path / "source")
    other = edited(source, tmp_path / "other", sliding_window=512)
    assert "sliding_window 4096 → 512" in check(verify(source, other), "config").found
