"""A quantised checkpoint grows with its codes: old ones bit for bit, new ones zero.

They are decoded by the documented formulas, and by other people's code: GPTQ and AWQ by
vLLM's compressed-tensors, FP8 by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof import clone, quantised
from growproof.cli import main
from growproof.codes import Codes, format_of
from growproof.decoder import GrowthError
from growproof.quantised import Quantised, grow_quantised
from safetensors.torch import load_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from .coded import GROWTHS, KINDS, SAID, STORE_LESS, checkpoint, code, edit, formula


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_by_the_formula(kind: str, tmp_path: Path) -> None:
    """`Codes.decoded` is s · (c − z), and `write` gives back the same bits."""
    old = Quantised.at(checkpoint(kind, tmp_path / "old"))
    state = load_file(tmp_path / "old" / "model.safetensors")
    form = format_of(SAID[kind])
    for name in sorted(old.weights())[:4]:
        base = name.removesuffix("weight")
        assert torch.equal(old.codes(name).decoded(), formula(kind, base, state))
        for part, x in form.write(old.codes(name)).items():
            assert torch.equal(
                x.view(torch.uint8), state[base + part].view(torch.uint8)
            )
    assert len(old.weights()) == 14


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_old_codes_stay_and_new_ones_are_zero(
    kind: str, growth: str, tmp_path: Path
) -> None:
    """MLP, heads, layers; decoded by the formula, all else than the old weights is 0."""
    source = checkpoint(kind, tmp_path / "old")
    found = grow_quantised(source, tmp_path / "new", GROWTHS[growth])
    old, new = (load_file(tmp_path / n / "model.safetensors") for n in ("old", "new"))
    assert (
        json.loads((tmp_path / "new" / "config.json").read_text())[
            "quantization_config"
        ]
        == SAID[kind]
    )
    checked = 0
    for name in (
        "self_attn.q_proj.",
        "self_attn.o_proj.",
        "mlp.down_proj.",
        "mlp.up_proj.",
    ):
        base = f"model.layers.1.{name}"
        before, after = formula(kind, base, old), formula(kind, base, new)
        assert sorted(before[before != 0].tolist()) == sorted(
            after[after != 0].tolist()
        )
        checked += before.shape != after.shape
    assert checked or growth in ("repeated", "layers and tokens")
    if found.new.layers > 2:
        base = "model.layers.2.mlp.up_proj."
        assert not formula(kind, base, new).any()


def test_fp8_is_decoded_by_transformers(tmp_path: Path) -> None:
    """Its own Fp8Dequantize, on both sides of a growth."""
    source = checkpoint("fp8", tmp_path / "old")
    grow_quantised(source, tmp_path / "new", GROWTHS["mlp"])
    for side in ("old", "new"):
        held = Quantised.at(tmp_path / side)
        for name in held.weights():
            scale = held.get(name.replace("weight", "weight_scale_inv"))
            theirs = Fp8Dequantize(None)._dequantize_one(held.get(name), scale)
            assert torch.equal(theirs.float(), held.codes(name).decoded())


def test_the_function_is_the_same(tmp_path: Path) -> None:
    """Logits of the decoded models, float64, at random tokens."""
    source = checkpoint("awq", tmp_path / "old")
    target = {"intermediate_size": 40, "num_attention_heads": 8, "hidden_size": 128}
    grow_quantised(source, tmp_path / "new", target)
    logits = []
    for side in ("old", "new"):
        held = Quantised.at(tmp_path / side)
        state = {name: x.double() for name, x in held.state().items()}
        ids = torch.tensor([[1, 5, 2, 9, 9, 0]])
        logits.append(clone.forward(held.decoder, state, ids)["logits"])
    assert torch.allclose(*logits, rtol=0, atol=1e-12 * float(logits[0].abs().max()))


# the public implementation: vLLM's compressed-tensors, which needs no CUDA


def public(kind: str, directory: Path) -> dict[str, Tensor]:
    """Each weight of an AWQ or GPTQ checkpoint by compressed-tensors, in float32."""
    reason = (
        "compressed-tensors is not here: pip install -c constraints.txt -e '.[test]'"
    )
    pytest.importorskip("compressed_tensors", reason=reason)
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert import AutoAWQConverter

    tensors, said = load_file(directory / "model.safetensors"), SAID[kind]
    if kind == "awq":
        converter = AutoAWQConverter.from_autoawq_config(said)
        tensors = converter.process(tensors)
    else:
        converter = AutoAWQConverter(group_size=1)
        tensors = of_gptq(tensors)
    said_by_it: Any = converter.update_config(None)
    (scheme,) = said_by_it.config_groups.values()
    scheme.weights.num_bits = said["bits"]
    compressor: Any = BaseCompressor.get_value_from_registry(scheme.format)
    names = compressor.compression_param_names(scheme)
    found = dict[str, Tensor]()
    for name in [n for n in tensors if n.endswith(names[0])]:
        base = name.removesuffix(names[0])
        parts = {part: tensors[base + part] for part in names}
        scale = parts["weight_scale"] = parts["weight_scale"].float()
        weight = compressor.decompress(parts, scheme)["weight"]
        found[f"{base}weight"] = weight - scale if kind in STORE_LESS else weight
    return found


def of_gptq(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPTQ's tensors under the names of compressed-tensors, whose layout is transposed.

    Each input is a group of its own, that of g_idx: a word holds inputs of codes, and
    outputs of zero points, so that no word is taken apart here.
    """
    found = dict[str, Tensor]()
    for name in [n for n in tensors if n.endswith("qweight")]:
        base = name.removesuffix("qweight")
        q, z, s, group = (
            tensors[base + part] for part in format_of(SAID["gptq"]).suffixes
        )
        found |= {
            f"{base}weight_packed": q.mT.contiguous(),
            f"{base}weight_zero_point": z.mT[:, group.long()].contiguous(),
            f"{base}weight_scale": s.mT[:, group.long()].contiguous(),
            f"{base}weight_shape": torch.tensor([s.shape[1], len(group)]),
        }
    return found


@pytest.mark.parametrize("growth", ["", *GROWTHS])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fp8"])
def test_codes_are_decoded_by_compressed_tensors(
    kind: str, growth: str, tmp_path: Path
) -> None:
    """s · (c − z) of every map of a source and of its growth, bit for bit."""
    at = checkpoint(kind, tmp_path / "old")
    if growth:
        grow_quantised(at, tmp_path / "new", GROWTHS[growth])
        at = tmp_path / "new"
    held, theirs = Quantised.at(at), public(kind, at)
    assert theirs.keys() == held.weights()
    for name, weight in theirs.items():
        assert torch.equal(weight, held.codes(name).decoded()), name
    edit(at, "model.layers.1.mlp.down_proj.", code)
    other = {n for n, x in public(kind, at).items() if not torch.equal(x, theirs[n])}
    assert other == {"model.layers.1.mlp.down_proj.weight"}


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_a_group_that_is_cut_is_refused(kind: str, tmp_path: Path) -> None:
    """Four lanes a head, groups of eight: a head more in between would part a group."""
    sizes = {"head_dim": 4, "num_attention_heads": 8, "num_key_value_heads": 2}
    source = checkpoint(kind, tmp_path / "old", **sizes)
    target = {"num_attention_heads": 10, "hidden_size": 40}
    with pytest.raises(GrowthError, match="a group of 8 would hold entries of two"):
        grow_quantised(source, tmp_path / "new", target)
    assert not (tmp_path / "new").exists()


def test_an_axis_with_a_factor_is_refused(tmp_path: Path) -> None:
    """√(K'/K) on q: a code times a number is no code."""
    source = checkpoint("gptq", tmp_path / "old")
    with pytest.raises(GrowthError, match=r"multiply it by 1\.41421 .*a code times"):
        grow_quantised(source, tmp_path / "new", {"head_dim": 16})


def test_no_code_for_zero_is_refused() -> None:
    """v1 stores z − 1: z = 16 has none of 0 … 15 that decodes to zero."""
    held = Codes(
        codes=torch.full((1, 4), 3, dtype=torch.int32), scales=torch.ones(1, 1),
        zeros=torch.full((1, 1), 16, dtype=torch.int32), block=(1, 8), most=15,
    )  # fmt: skip
    with pytest.raises(GrowthError, match="none decodes to zero"):
        held.padded(torch.tensor([0]), torch.tensor([0, 1, 2, 3, -1, -1, -1, -1]), "w")


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"quant_method": "bitsandbytes"}, "gptq, awq and fp8 alone"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 8}, "2, 4 or 8 bits"),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemv"},
            "gemv",
        ),
        ({"quant_method": "fp8"}, "weight_block_size"),
    ],
)
def test_other_formats_are_refused(said: dict[str, Any], match: str) -> None:
    with pytest.raises(GrowthError, match=match):
        format_of(said)


def test_a_wrong_code_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One code of one map off by one, as if written wrongly: nothing is left behind."""
    source = checkpoint("gptq", tmp_path / "old")
    right = Codes.padded

    def wrong(self: Codes, outputs: Tensor, inputs: Tensor, name: str) -> Codes:
        found = right(self, outputs, inputs, name)
        if name.endswith("layers.1.mlp.down_proj.weight"):
            found.codes[0, 0] ^= 1
        return found

    monkeypatch.setattr(Codes, "padded", wrong)
    with pytest.raises(GrowthError, match=r"layers\.1\.mlp\.down_proj"):
        grow_quantised(source, tmp_path / "new", GROWTHS["mlp"])
    assert not (tmp_path / "new").exists()


def test_grow_and_fit_take_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands, on an AWQ directory whose MLP has three groups."""
    source = checkpoint("awq", tmp_path / "old")
    assert (
        main(["grow", str(source), str(tmp_path / "a"), "--intermediate-size=32"]) == 0
    )
    assert "every code and scale is the old one" in capsys.readouterr().out
    fitted = ["fit", str(source), str(tmp_path / "b"), "--tp=4", "--block=8"]
    assert main(fitted) == 0
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["intermediate_size"] % 32 == 0
    assert quantised.is_quantised(tmp_path / "b")
