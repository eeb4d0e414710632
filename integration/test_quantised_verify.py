"""What `verify` says of quantised checkpoints: each code and scale is accounted for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof.cli import main
from growproof.quantised import grow_quantised
from growproof.verify import verify
from torch import Tensor

from .coded import GROWTHS, KINDS, SAID, checkpoint, code, edit

GROWN: dict[str, int] = {
    "intermediate_size": 40, "num_attention_heads": 8, "num_key_value_heads": 4,
    "num_hidden_layers": 3, "vocab_size": 16,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_verify_accounts_for_decoded_entries(kind: str, tmp_path: Path) -> None:
    """Repeated groups, heads, MLP, layers and tokens at once: yes, for every input."""
    source = checkpoint(kind, tmp_path / "old")
    grow_quantised(source, tmp_path / "new", GROWN)
    found = verify(source, tmp_path / "new", progress=False)
    assert found.same
    assert "every entry is accounted for" in found.verdict
    said = {c.name: c.found for c in found.checks}
    assert SAID[kind]["quant_method"] in said["quantised"]
    assert "new, without effect" in said["entries"]
    assert "rows 11 to 15 are new" in said["vocabulary"]


def scale(x: dict[str, Tensor]) -> None:
    """One group's scale in the next place."""
    x["scales"][0, 0] = (
        torch.nextafter(x["scales"][0, 0].float(), torch.tensor(9.0)) * 2
    )


def zero(x: dict[str, Tensor]) -> None:
    """Another zero point for a group of old codes."""
    x["qzeros"][0, 0] ^= 1


def loud(x: dict[str, Tensor]) -> None:
    """All codes of the last group decode to something: new neurons speak."""
    x["qweight"][-1] ^= 0x11111111


@pytest.mark.parametrize("fault", [code, scale, zero])
@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_verify_names_the_tensor_that_is_wrong(
    kind: str, fault: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NO, and down_proj of the second layer; exit code 1."""
    source = checkpoint(kind, tmp_path / "old")
    grow_quantised(source, tmp_path / "new", GROWTHS["mlp"])
    edit(tmp_path / "new", "model.layers.1.mlp.down_proj.", fault)
    assert main(["verify", str(source), str(tmp_path / "new")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "NOT the same function: entries" in said
    assert "The first tensor that is wrong: layers.1.down.weight, row" in said


def test_verify_hears_new_neurons(tmp_path: Path) -> None:
    """Codes of new neurons that are no zeros: silent in down alone, loud in all three."""
    source = checkpoint("gptq", tmp_path / "old")
    grow_quantised(source, tmp_path / "new", GROWTHS["mlp"])
    edit(tmp_path / "new", "model.layers.1.mlp.down_proj.", loud)
    assert verify(source, tmp_path / "new", progress=False).same
    for part in ("up_proj.", "gate_proj."):
        edit(tmp_path / "new", f"model.layers.1.mlp.{part}", all_loud)
    found = verify(source, tmp_path / "new", progress=False)
    assert not found.same
    assert "layers.1.down.weight, row 0, column" in found.verdict
    assert "new neuron" in found.verdict


def test_verify_of_fp8(tmp_path: Path) -> None:
    """A byte of an old block, and a scale, are seen; a dequantised copy is the same."""
    source = checkpoint("fp8", tmp_path / "old")
    grow_quantised(source, tmp_path / "new", GROWTHS["mlp"])
    shutil.copytree(tmp_path / "new", tmp_path / "scale")
    edit(tmp_path / "scale", "model.layers.0.self_attn.v_proj.", doubled)
    edit(tmp_path / "new", "model.layers.0.self_attn.v_proj.", turned)
    for wrong in ("new", "scale"):
        found = verify(source, tmp_path / wrong, progress=False)
        assert not found.same
        assert "layers.0.v.weight, row 0, column 0" in found.verdict


def all_loud(x: dict[str, Tensor]) -> None:
    """The codes of the last outputs have other bits."""
    x["qweight"][:, -1] ^= 0x11111111


def doubled(x: dict[str, Tensor]) -> None:
    """Twice the first block's scale."""
    x["weight_scale_inv"][0, 0] *= 2


def turned(x: dict[str, Tensor]) -> None:
    """The sign bit of the first code."""
    x["weight"].view(torch.uint8)[0, 0] ^= 128
