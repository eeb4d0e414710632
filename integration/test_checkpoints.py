"""Checkpoint directories in and out, and the verdict on what others made of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof import checkpoints, grow
from growproof.checkpoints import grow_checkpoint
from growproof.cli import main
from growproof.decoder import GrowthError
from growproof.families import FAMILIES
from growproof.growth import Policies
from growproof.verify import verify
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
)

from .small import (
    WIDER,
    contents,
    flags,
    llama,
    of_family,
    saved,
    stablelm,
    stored,
    with_tensors,
)

LLAMA_GROWTHS = {
    "heads": {"hidden_size": 24, "num_attention_heads": 3},
    "head_dim": {"head_dim": 12},
    "groups": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "mlp": {"intermediate_size": 31},
    "layers": {"num_hidden_layers": 5},
    "all": {
        "hidden_size": 28,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 14,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
    },
}


@pytest.mark.parametrize("sizes", LLAMA_GROWTHS.values(), ids=LLAMA_GROWTHS.keys())
@pytest.mark.parametrize("fill", ["zeros", "trainable"])
def test_llama_grows_to_the_same_function(
    sizes: dict[str, int],
    fill: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    grown = tmp_path / "grown"
    arguments = [str(source), str(grown), *flags(sizes), "--fill", fill]
    assert main(["grow", *arguments]) == 0
    assert f"growproof verify {source} {grown}" in capsys.readouterr().out
    config = json.loads((grown / "config.json").read_text())
    assert sizes.items() <= config.items()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert main(["verify", str(source), str(grown), "--tokens", "32"]) == 0
    assert "The same function" in capsys.readouterr().out


@pytest.mark.parametrize("norm", ["centred", "masked"])
@pytest.mark.parametrize("features", [{}, {"use_parallel_residual": True}])
def test_stablelm_grows_to_the_same_function(
    norm: Any, features: dict[str, Any], tmp_path: Path
) -> None:
    source = saved(stablelm(use_qkv_bias=True, **features), tmp_path / "source")
    target = {"hidden_size": 40, "num_attention_heads": 4, "num_hidden_layers": 4}
    policies = Policies(norm=norm, depth="interleave")
    grow_checkpoint(source, tmp_path / "grown", target, policies=policies)
    result = verify(source, tmp_path / "grown", tokens=32)
    assert result.same, result.reasons


def test_a_directory_grows_as_the_model_does(source: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(source)
    expected = grow(model, WIDER, fill="trainable", seed=3).state_dict()
    policies = Policies(fill="trainable", seed=3)
    grow_checkpoint(source, tmp_path / "grown", WIDER, policies=policies)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "grown").state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], x) for name, x in expected.items())


def test_shards_in_and_out(source: Path, tmp_path: Path) -> None:
    shards = saved(llama(), tmp_path / "shards", max_shard_size="4KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    assert main(
        ["grow", str(shards), str(tmp_path / "grown"), "--hidden-size=24",
         "--shard-size=5KB"]
    ) == 0  # fmt: skip
    index = json.loads((tmp_path / "grown" / checkpoints.INDEX).read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert files == {p.name for p in (tmp_path / "grown").glob("*.safetensors")}
    tensors = stored(tmp_path / "grown")
    assert tensors.keys() == index["weight_map"].keys()
    assert sum(x.nbytes for x in tensors.values()) == index["metadata"]["total_size"]
    grow_checkpoint(source, tmp_path / "whole", {"hidden_size": 24})
    whole = stored(tmp_path / "whole")
    assert all(torch.equal(whole[name], x) for name, x in tensors.items())
    assert verify(shards, tmp_path / "grown", tokens=32).same


def test_a_narrower_dtype_is_rounded_to_once(source: Path, tmp_path: Path) -> None:
    arguments = ["grow", str(source), str(tmp_path / "grown"), *flags(WIDER)]
    assert main([*arguments, "--dtype=bfloat16"]) == 0
    grow_checkpoint(source, tmp_path / "float32", WIDER)
    narrow, wide = stored(tmp_path / "grown"), stored(tmp_path / "float32")
    assert {x.dtype for x in narrow.values()} == {torch.bfloat16}
    assert all(torch.equal(x, wide[name].bfloat16()) for name, x in narrow.items())
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert verify(source, tmp_path / "grown", tokens=32).same


def test_a_wider_dtype_is_taken_before_growing(tmp_path: Path) -> None:
    source = saved(llama().bfloat16(), tmp_path / "source")
    grow_checkpoint(source, tmp_path / "kept", WIDER)
    assert {x.dtype for x in stored(tmp_path / "kept").values()} == {torch.bfloat16}
    grow_checkpoint(source, tmp_path / "wide", WIDER, dtype=torch.float64)
    assert {x.dtype for x in stored(tmp_path / "wide").values()} == {torch.float64}
    result = verify(source, tmp_path / "wide", tokens=32, measure=True)
    assert result.same, result.reasons
    exact = next(c for c in result.checks if c.name == "logits max, float64")
    assert exact.error is not None
    assert exact.error < 1e-12


def test_a_tied_model_stays_tied(tmp_path: Path) -> None:
    source = saved(llama(tie_word_embeddings=True), tmp_path / "source")
    grow_checkpoint(source, tmp_path / "grown", WIDER)
    assert "lm_head.weight" not in stored(tmp_path / "grown")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert verify(source, tmp_path / "grown", tokens=32).same


def test_legacy_tensors_are_left_out(tmp_path: Path) -> None:
    source = saved(llama(tie_word_embeddings=True), tmp_path / "source")
    head = stored(source)["model.embed_tokens.weight"]
    legacy = "model.layers.0.self_attn.rotary_emb.inv_freq"
    with_tensors(source, {"lm_head.weight": head.clone(), legacy: torch.ones(4)})
    grow_checkpoint(source, tmp_path / "grown", WIDER)
    assert not {legacy, "lm_head.weight"} & stored(tmp_path / "grown").keys()
    with_tensors(source, {"lm_head.weight": head + 1})
    with pytest.raises(GrowthError, match="two different ones"):
        grow_checkpoint(source, tmp_path / "other", WIDER)


def test_companions_are_copied_and_code_is_not(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    companions = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    for name in companions | {"modeling_evil.py"}:
        (copy / name).write_text("{}")
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (copy / "config.json").write_text(json.dumps(config))
    grow_checkpoint(copy, tmp_path / "grown", WIDER)
    names = contents(tmp_path / "grown").keys()
    expected = companions | {
        "generation_config.json",
        "config.json",
        "model.safetensors",
    }
    assert names == expected
    assert "auto_map" not in json.loads((tmp_path / "grown/config.json").read_text())


MASKED_LOADER = """
import sys
sys.modules["growproof"] = None  # importing it fails from here on
import torch
from transformers import AutoModelForCausalLM, dynamic_module_utils
dynamic_module_utils.HF_MODULES_CACHE = sys.argv[3]  # its variable is read but once
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__name__.startswith("Masked"), type(model)
with torch.no_grad():
    torch.save(model(torch.arange(32)[None]).logits, sys.argv[2])
"""


@pytest.mark.parametrize("make", [llama, stablelm])
def test_a_masked_model_brings_its_code(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    model = make()
    source = saved(model, tmp_path / "source")
    target = {"hidden_size": 24, "num_attention_heads": 2}
    grow_checkpoint(
        source, tmp_path / "grown", target, policies=Policies(norm="masked")
    )
    words = (MASKED_LOADER, tmp_path / "grown", tmp_path / "y", tmp_path / "cache")
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", *words]
    subprocess.run(command, check=True, cwd=tmp_path, env=offline)
    assert [*(tmp_path / "cache").rglob("masked.py")]
    with torch.no_grad():
        expected = model(torch.arange(32)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "y"), expected)
    again = {"hidden_size": 32, "num_attention_heads": 2}
    grow_checkpoint(tmp_path / "grown", tmp_path / "twice", again)
    assert verify(source, tmp_path / "twice", tokens=32).same


def test_a_number_past_a_dtype_is_refused(tmp_path: Path) -> None:
    """float16 would hold an infinity; bfloat16 holds it."""
    source = saved(llama(), tmp_path / "source")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        x = stored(source)[name]
        large = x.clone()
        large[1] = 1e5
        with_tensors(source, {name: large})
        for policies in (Policies(), Policies(spread=2)):
            with pytest.raises(
                GrowthError, match="100000, and float16 no more than 65504"
            ):
                grow_checkpoint(
                    source, tmp_path / "grown", {"intermediate_size": 32},
                    dtype=torch.float16, policies=policies,
                )  # fmt: skip
        assert not (tmp_path / "grown").exists()
        with_tensors(source, {name: x})
    grow_checkpoint(
        source, tmp_path / "grown", {"intermediate_size": 32}, dtype=torch.float16
    )


def test_what_config_json_tells_generate_is_told(tmp_path: Path) -> None:
    """As checkpoints from before there were generation configs have it."""
    source = saved(llama(), tmp_path / "source")
    (source / "generation_config.json").unlink()
    fields = json.loads((source / "config.json").read_text())
    told = {"do_sample": True, "temperature": 0.7, "suppress_tokens": [5]}
    (source / "config.json").write_text(json.dumps(fields | told))
    for target, tokens in (
        ({"num_hidden_layers": 3}, [5]),
        ({"vocab_size": 50}, [5, 48, 49]),
    ):
        grow_checkpoint(source, tmp_path / "grown", target, force=True)
        found = AutoModelForCausalLM.from_pretrained(
            tmp_path / "grown"
        ).generation_config
        assert (found.do_sample, found.temperature) == (True, 0.7)
        assert found.suppress_tokens == tokens


def test_a_tied_tensor_may_be_stored_as_the_head(tmp_path: Path) -> None:
    """transformers loads it, and so does whatever grows and verifies it."""
    model = llama(tie_word_embeddings=True)
    source = saved(model, tmp_path / "source")
    tensors = stored(source)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    grow_checkpoint(source, tmp_path / "grown", {"hidden_size": 24})
    assert verify(source, tmp_path / "grown").verdict.startswith(
        "The same function for"
    )


def test_what_is_scaled_past_float16_is_refused(tmp_path: Path) -> None:
    """60000 · √(K'/K) is an infinity there."""
    model = llama()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = 60_000
    source = saved(model.half(), tmp_path / "source")
    with pytest.raises(GrowthError, match=r"60000, .* this growth multiplies it"):
        grow_checkpoint(source, tmp_path / "grown", {"head_dim": 16})
    assert not (tmp_path / "grown").exists()
    with pytest.raises(GrowthError, match="multiplies it"):
        grow(model, {"head_dim": 16})


@pytest.mark.parametrize("family", [*FAMILIES, "qk_layernorm"])
def test_each_parameter_has_memory_of_its_own(family: str) -> None:
    """Also where one canonical tensor holds the norms of all heads."""
    normed = family == "qk_layernorm"
    model = (
        stablelm(qk_layernorm=True, num_key_value_heads=2)
        if normed
        else of_family(family)
    )
    grown = grow(model, {"num_hidden_layers": 3})
    sizes = [p.nbytes for p in grown.parameters()]
    assert [p.untyped_storage().nbytes() for p in grown.parameters()] == sizes
    places = {p.untyped_storage().data_ptr() for p in grown.parameters()}
    assert len(places) == len(sizes)
