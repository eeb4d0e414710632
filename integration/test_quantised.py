"""A quantised checkpoint grows with its codes: old ones bit for bit, new ones zero.

Checkpoints are written here as AutoGPTQ, AutoAWQ and DeepSeek's FP8 lay them out, by
another route than `growproof.codes`: a word at a time. They are decoded by the documented
formulas, and by other people's code: GPTQ and AWQ by vLLM's compressed-tensors, FP8 by
transformers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof import clone, quantised
from growproof.cli import main
from growproof.codes import Codes, format_of
from growproof.decoder import GrowthError
from growproof.quantised import Quantised, grow_quantised
from growproof.verify import verify
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

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


KINDS = list(SAID)
GROWTHS = {
    "mlp": {"intermediate_size": 40},
    "groups of heads": {"num_attention_heads": 6, "num_key_value_heads": 3,
                        "hidden_size": 48},
    "heads in a group": {"num_attention_heads": 8},
    "repeated": {"num_key_value_heads": 4},
    "layers and tokens": {"num_hidden_layers": 3, "vocab_size": 16},
}  # fmt: skip


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


# what verify says of a pair


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


def code(x: dict[str, Tensor]) -> None:
    """One word of codes has other bits."""
    x["qweight"][0, 0] ^= 1


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


def edit(directory: Path, base: str, fault: Any) -> None:
    """Do something to the stored tensors of one map, in place."""
    file = directory / "model.safetensors"
    state = load_file(file)
    parts = {n.removeprefix(base): x for n, x in state.items() if n.startswith(base)}
    assert parts
    fault(parts)
    save_file(state, file)
