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
from growproof.cli import byte_count, main
from growproof.decoder import GrowthError
from growproof.growth import Policies
from growproof.verify import verify
from growproof.verify.text import FALLBACK, licence
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

COMMON: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
WIDER = {"hidden_size": 24, "num_attention_heads": 2, "head_dim": 12}


def loud(model: Any) -> Any:
    """Weights at which every fault shows: no default norm, a residual of about √ε."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            std = 0.01 if "embed" in name else 0.7 / p.shape[-1] ** 0.5
            mean = 1.0 if "norm" in name and "weight" in name else 0.01
            p.normal_(mean, std, generator=generator)
    return model.eval()


def llama(**changes: Any) -> Any:
    config = COMMON | {"head_dim": 8, "rms_norm_eps": 1e-5} | changes
    return loud(LlamaForCausalLM(LlamaConfig(**config)))


def stablelm(**changes: Any) -> Any:
    rope: Any = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
    }
    config = COMMON | {"layer_norm_eps": 1e-5, "rope_parameters": rope} | changes
    return loud(StableLmForCausalLM(StableLmConfig(**config)))


def saved(model: Any, path: Path, **options: Any) -> Path:
    model.save_pretrained(path, **options)
    return path


def flags(sizes: dict[str, int]) -> list[str]:
    return [f"--{k.replace('_', '-')}={v}" for k, v in sizes.items()]


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


def stored(path: Path) -> dict[str, torch.Tensor]:
    parts = [load_file(file) for file in path.glob("*.safetensors")]
    return {name: x for part in parts for name, x in part.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def stablelm_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(stablelm(), tmp_path_factory.mktemp("models") / "stablelm")


# What grows


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
    grow_checkpoint(
        source, tmp_path / "grown", target, Policies(norm=norm, depth="interleave")
    )
    result = verify(source, tmp_path / "grown", tokens=32)
    assert result.same, result.reasons


def test_a_directory_grows_as_the_model_does(source: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(source)
    expected = grow(model, WIDER, fill="trainable", seed=3).state_dict()
    grow_checkpoint(source, tmp_path / "grown", WIDER, fill="trainable", seed=3)
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
    result = verify(source, tmp_path / "wide", tokens=32)
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


def with_tensors(path: Path, extra: dict[str, torch.Tensor]) -> Path:
    file = path / checkpoints.SINGLE
    tensors = load_file(file) | extra
    checkpoints.storage.save_file(tensors, file, metadata={"format": "pt"})
    return path


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
from transformers import AutoModelForCausalLM
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
    grow_checkpoint(source, tmp_path / "grown", target, Policies(norm="masked"))
    command = [sys.executable, "-c", MASKED_LOADER, tmp_path / "grown", tmp_path / "y"]
    cache = {"HF_MODULES_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | cache)
    with torch.no_grad():
        expected = model(torch.arange(32)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "y"), expected)
    again = {"hidden_size": 32, "num_attention_heads": 2}
    grow_checkpoint(tmp_path / "grown", tmp_path / "twice", again)
    assert verify(source, tmp_path / "twice", tokens=32).same


# What does not


def test_nothing_is_overwritten_without_force(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = tmp_path / "grown"
    grow_checkpoint(source, grown, {"hidden_size": 24})
    before = contents(grown)
    arguments = ["grow", str(source), str(grown), "--intermediate-size=40"]
    assert main(arguments) == 4
    assert "exists" in capsys.readouterr().err
    assert contents(grown) == before
    assert main([*arguments, "--force"]) == 0
    assert contents(grown) != before
    assert {p.name for p in tmp_path.iterdir()} == {"grown"}


def test_force_replaces_checkpoints_only(source: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(GrowthError, match="no checkpoint directory"):
        grow_checkpoint(source, tmp_path / "home", WIDER, force=True)
    assert contents(tmp_path / "home") == {"letter": b"dear"}


def test_the_source_is_not_the_destination(source: Path, tmp_path: Path) -> None:
    for destination in (source, source.parent):
        with pytest.raises(GrowthError, match="is or holds the source"):
            grow_checkpoint(source, destination, WIDER, force=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left")])
@pytest.mark.parametrize("force", [False, True])
def test_an_interrupted_write_leaves_what_was_there(
    error: Any,
    force: bool,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    grown = tmp_path / "grown"
    if force:
        grow_checkpoint(source, grown, {"hidden_size": 24})
    before = contents(grown) if force else None
    save, calls = checkpoints.storage.save_file, []

    def failing(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise error
        save(*args, **kwargs)

    monkeypatch.setattr(checkpoints.storage, "save_file", failing)
    arguments = ["grow", str(source), str(grown), "--hidden-size=32", "--force"]
    code = main([*arguments, "--shard-size=4KB"])
    assert len(calls) == 3
    assert code == (130 if error is KeyboardInterrupt else 4)
    assert capsys.readouterr().err.startswith("growproof: ")
    assert [p.name for p in tmp_path.iterdir()] == (["grown"] if force else [])
    assert not force or contents(grown) == before


def emptied(source: Path, path: Path, **files: bytes) -> Path:
    shutil.copytree(source, path)
    (path / "model.safetensors").unlink()
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return path


REFUSALS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "pickle": (
        lambda s, p: emptied(s, p, pytorch_model__bin=b"cos\nsystem\n"),
        "can run any code: convert it where you trust it",
    ),
    "no weights": (lambda s, p: emptied(s, p), "holds neither model.safetensors nor"),
    "cut off": (
        lambda s, p: emptied(s, p, model__safetensors=b"\x10\0\0\0"),
        "is no complete safetensors file",
    ),
    "lost shard": (
        lambda s, p: emptied(
            s, p, model__safetensors__index__json=b'{"weight_map": {"a": "b"}}'
        ),
        "which are not there",
    ),
    "escaping shard": (
        lambda s, p: emptied(
            s, p, model__safetensors__index__json=b'{"weight_map": {"a": "../b"}}'
        ),
        "which are not there",
    ),
    "not there": (lambda s, p: p, "download a hub model first"),
    "gguf": (
        lambda s, p: [p.with_suffix(".gguf").write_bytes(b"GGML"), p.with_suffix(".gguf")][1],
        "does not begin as a GGUF file",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refused_sources(
    make: Callable[[Path, Path], Path],
    message: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = make(source, tmp_path / "bad")
    before = sorted(tmp_path.iterdir())
    assert main(["grow", str(bad), str(tmp_path / "grown"), "--hidden-size=24"]) == 4
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert sorted(tmp_path.iterdir()) == before


CONFIG_REFUSALS = {
    "model type": ({"model_type": "gpt2"}, "got model type 'gpt2'"),
    "remote code": (
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}},
        "got model type 'evil'",
    ),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised weights"),
    "other sizes": ({"intermediate_size": 25}, "should be (25, 16)"),
    "no type": ({"model_type": None}, "got model type None"),
}


@pytest.mark.parametrize(
    ("changes", "message"), CONFIG_REFUSALS.values(), ids=CONFIG_REFUSALS.keys()
)
def test_refused_configs(
    changes: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    bad = shutil.copytree(source, tmp_path / "bad")
    config = json.loads((bad / "config.json").read_text()) | changes
    (bad / "config.json").write_text(json.dumps(config))
    (bad / "evil.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        grow_checkpoint(bad, tmp_path / "grown", {"hidden_size": 24})
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_quantised_tensors_are_refused(source: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(source, tmp_path / "bad")
    name = "model.layers.0.mlp.up_proj.weight"
    with_tensors(bad, {name: torch.ones(24, 16, dtype=torch.int8)})
    with pytest.raises(GrowthError, match=r"stored as torch\.int8"):
        grow_checkpoint(bad, tmp_path / "grown", {"hidden_size": 24})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to grow"),
        (["--hidden-size=8"], "cannot shrink from 16 to 8"),
        (["--head-dim=9"], "choose an even one"),
        (["--norm=centred", "--hidden-size=24"], "RMSNorm keeps the mean"),
    ],
)
def test_refused_growths(
    arguments: list[str],
    message: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["grow", str(source), str(tmp_path / "grown"), *arguments]) == 4
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["grow", "a"],
        ["grow", "a", "b", "--hidden-size=wide"],
        ["grow", "a", "b", "--norm=none"],
        ["grow", "a", "b", "--shard-size=0"],
        ["grow", "a", "b", "--dtype=int8"],
        ["shrink"],
        [],
    ],
)
def test_usage_errors_exit_with_4(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 4


def test_byte_counts() -> None:
    assert [byte_count(t) for t in ("12", "3kb", "500MB", "4GB")] == [
        12, 3_000, 500_000_000, 4_000_000_000,
    ]  # fmt: skip


# The verdict on what others made


def each_layer(model: Any, change: Callable[[Any], object]) -> Any:
    with torch.no_grad():
        for layer in model.model.layers:
            change(layer)
    return model


def q_unscaled(model: Any) -> Any:
    return each_layer(model, lambda x: x.self_attn.q_proj.weight.mul_((8 / 12) ** 0.5))


def theta_kept(model: Any) -> Any:
    model.config.rope_parameters["rope_theta"] = 1e4
    return model


def norm_unscaled(model: Any) -> Any:
    return each_layer(model, lambda x: x.input_layernorm.weight.mul_((24 / 16) ** 0.5))


def last_norm_unscaled(model: Any) -> Any:
    with torch.no_grad():
        model.model.norm.weight.mul_((24 / 16) ** 0.5)
    return model


def eps_kept(model: Any) -> Any:
    model.config.rms_norm_eps = 1e-5
    return model


def halves_together(model: Any) -> Any:
    """The rotary halves stay side by side, where stock code will not turn them."""

    def move(layer: Any) -> None:
        for p in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
            heads = p.view(-1, 12, 24)
            heads.copy_(heads[:, [0, 1, 2, 3, 6, 7, 8, 9, 4, 5, 10, 11]].clone())

    return each_layer(model, move)


def values_lost(model: Any) -> Any:
    return each_layer(model, lambda x: x.self_attn.v_proj.weight[3].zero_())


def gate_and_up_swapped(model: Any) -> Any:
    def swap(layer: Any) -> None:
        gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
        kept = gate.clone()
        gate.copy_(up)
        up.copy_(kept)

    return each_layer(model, swap)


def residual_leaks(model: Any) -> Any:
    return each_layer(model, lambda x: x.mlp.down_proj.weight[20, 0].fill_(3))


def new_layer_speaks(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[2].post_attention_layernorm.weight.fill_(1)
        model.model.layers[2].mlp.down_proj.weight.fill_(1e-2)
        model.model.layers[2].mlp.gate_proj.weight.fill_(1)
        model.model.layers[2].mlp.up_proj.weight.fill_(1)
    return model


def head_divided(model: Any) -> Any:
    with torch.no_grad():
        model.lm_head.weight.div_(2)
    return model


def embedding_row_lost(model: Any) -> Any:
    with torch.no_grad():
        model.model.embed_tokens.weight[47].zero_()
    return model


def not_a_number(model: Any) -> Any:
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    return model


FAULTS: dict[Callable[[Any], Any], tuple[str, str]] = {
    q_unscaled: ("logits max, float64", "layers.0.query is off by"),
    theta_kept: ("rotary frequencies", "layers.0.query_rotated is off by"),
    halves_together: ("logits max, float64", "layers.0.query is off by"),
    norm_unscaled: ("logits rms, transformers", "layers.0.input_norm is off by"),
    last_norm_unscaled: ("loss, float64", "norm is off by"),
    eps_kept: ("variance ÷ ε", "layers.0.input_norm is off by"),
    values_lost: ("logits max, float64", "layers.0.value is off by"),
    gate_and_up_swapped: ("logits max, float64", "layers.0.gate is off by"),
    residual_leaks: ("logits max, float64", "layers.0.mlp is off by"),
    new_layer_speaks: ("logits max, float64", "layers.2.residual is off by"),
    head_divided: ("logits max, float64", "logits is off by"),
    embedding_row_lost: ("variance ÷ ε", ""),
    not_a_number: ("logits max, float64", "norm is off by nan"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_is_found_where_it_is(
    fault: Callable[[Any], Any],
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason, tap = FAULTS[fault]
    model = grow(
        LlamaForCausalLM.from_pretrained(source), WIDER | {"num_hidden_layers": 3}
    )
    bad = saved(fault(model), tmp_path / "bad")
    assert main(["verify", str(source), str(bad), "--tokens", "32"]) == 1
    result = verify(source, bad, tokens=32)
    assert reason in result.reasons
    assert result.parting is not None
    assert result.parting.startswith(tap)
    said = " ".join(capsys.readouterr().out.split())
    assert "NOT the same function" in said
    assert " ".join(tap.split()) in said


def test_a_missing_factor_is_named(source: Path, tmp_path: Path) -> None:
    model = grow(LlamaForCausalLM.from_pretrained(source), WIDER)
    bad = saved(q_unscaled(model), tmp_path / "bad")
    parting = verify(source, bad, tokens=32).parting
    assert parting is not None
    assert parting.endswith("it is 0.8165 of what it should be")  # √(8 / 12)


def test_the_article_is_not_exact_in_a_stock_layer_norm(
    stablelm_source: Path, tmp_path: Path
) -> None:
    target = {"hidden_size": 24, "num_attention_heads": 3}
    grow_checkpoint(
        stablelm_source, tmp_path / "grown", target, Policies(norm="scaled")
    )
    result = verify(stablelm_source, tmp_path / "grown", tokens=32)
    assert "logits max, float64" in result.reasons
    assert str(result.parting).startswith("layers.0.input_norm is off by")


def test_partial_rotary_truncated(stablelm_source: Path, tmp_path: Path) -> None:
    """int(12 · 4 / 12 − 0.1): two lanes lost, as the article's factor can."""
    model = grow(StableLmForCausalLM.from_pretrained(stablelm_source),
                 {"hidden_size": 24})  # fmt: skip
    model.config.rope_parameters["partial_rotary_factor"] = 2 / 12
    bad = saved(model, tmp_path / "bad")
    result = verify(stablelm_source, bad, tokens=32)
    assert "rotary frequencies" in result.reasons
    assert str(result.parting).startswith("layers.0.query_rotated is off by")


def test_interleaved_layers_are_recognised(source: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(source)
    grown = grow(model, {"num_hidden_layers": 4}, depth="interleave")
    with torch.no_grad():
        grown.model.layers[3].self_attn.o_proj.weight.mul_(2)
    result = verify(source, saved(grown, tmp_path / "bad"), tokens=32)
    assert str(result.parting).startswith("layers.3.attention is off by")


def permuted(model: Any) -> Any:
    """The same function in another layout: the residual's lanes in reverse."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or "o_proj" in name or "down_proj" in name:
                p.copy_(p.flip(0))
            else:
                p.copy_(p.flip(1))
    return model


def test_how_it_was_grown_does_not_matter(source: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(source)
    other = permuted(grow(model, WIDER))
    good = saved(other, tmp_path / "good")
    assert verify(source, good, tokens=32).same
    bad = saved(q_unscaled(other), tmp_path / "bad")
    result = verify(source, bad, tokens=32)
    assert not result.same
    assert "another layout, or a wrong embedding" in str(result.parting)


def test_scales_may_go_where_they_cancel(source: Path, tmp_path: Path) -> None:
    """ε kept and the writers scaled by √(D'/D) instead; q's scale in k."""
    model = grow(LlamaForCausalLM.from_pretrained(source), WIDER)
    model.config.rms_norm_eps = 1e-5

    def move(layer: Any) -> None:
        layer.self_attn.q_proj.weight.mul_((8 / 12) ** 0.5)
        layer.self_attn.k_proj.weight.mul_((12 / 8) ** 0.5)
        for p in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            p.mul_((24 / 16) ** 0.5)

    each_layer(model, move)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_((24 / 16) ** 0.5)
    assert verify(source, saved(model, tmp_path / "good"), tokens=32).same
    each_layer(model, lambda x: x.mlp.up_proj.weight.mul_(2))
    result = verify(source, saved(model, tmp_path / "bad"), tokens=32)
    assert str(result.parting).startswith("layers.0.up is off by")
    assert str(result.parting).endswith("it is 2 of what it should be")


def test_a_pair_come_untied_is_noted(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    source = saved(model, tmp_path / "source")
    grow_checkpoint(source, tmp_path / "grown", WIDER)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "grown")
    loaded.config.tie_word_embeddings = False
    weight = loaded.model.embed_tokens.weight.detach().clone()
    loaded.lm_head.weight = torch.nn.Parameter(weight)
    result = verify(source, saved(loaded, tmp_path / "untied"), tokens=32)
    tying = next(c for c in result.checks if c.name == "embedding, head")
    assert (tying.found, tying.passed) == ("tied → untied", None)
    assert result.same


def test_weights_that_are_not_the_configs(source: Path, tmp_path: Path) -> None:
    grow_checkpoint(source, tmp_path / "grown", {"num_hidden_layers": 3})
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    config["num_hidden_layers"] = 4
    (tmp_path / "grown" / "config.json").write_text(json.dumps(config))
    result = verify(source, tmp_path / "grown", tokens=32)
    assert result.reasons == ["weights and config"]


def test_a_smaller_model_is_no_growth(source: Path, tmp_path: Path) -> None:
    smaller = saved(llama(intermediate_size=16), tmp_path / "smaller")
    result = verify(source, smaller, tokens=32)
    assert "sizes" in result.reasons
    assert "not those of a growth" in str(result.parting)


def test_json_is_what_the_table_says(source: Path, tmp_path: Path) -> None:
    grow_checkpoint(source, tmp_path / "grown", WIDER)
    out = tmp_path / "verdict.json"
    arguments = ["verify", str(source), str(tmp_path / "grown"), f"--json={out}"]
    assert main([*arguments, "--tokens=32"]) == 0
    verdict = json.loads(out.read_text("utf-8"))
    assert verdict["same"] is True
    assert verdict["tokens"] == 32
    assert "no tokenizer" in verdict["text"]
    assert {c["name"] for c in verdict["checks"]} >= {
        "logits max, float64",
        "parameters",
    }


@pytest.mark.parametrize("destination", ["missing", "source"])
def test_bad_input_of_verify_exits_with_4(
    destination: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("words")
    arguments = ["verify", str(source), str(tmp_path / "missing")]
    if destination == "source":
        arguments = ["verify", str(source), str(source), f"--text={tmp_path / 'text'}"]
    assert main(arguments) == 4
    assert capsys.readouterr().err.startswith("growproof: ")


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    """The installed command, in processes of its own: 0, 1 and 4, no traceback."""
    command = Path(sys.executable).with_name("growproof")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(command), *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    grown = run("grow", source, tmp_path / "grown", "--head-dim=12")
    assert (grown.returncode, grown.stderr) == (0, "")
    assert "head_dim             8 → 12" in grown.stdout
    other = saved(llama(rms_norm_eps=1e-4), tmp_path / "other")
    verdict = run("verify", source, other, "--tokens=16")
    assert (verdict.returncode, verdict.stderr) == (1, "")
    assert max(map(len, verdict.stdout.splitlines()[3:])) <= 80
    bad = run("verify", source, tmp_path / "nothing")
    assert bad.returncode == 4
    assert len(bad.stderr.splitlines()) == 1


def test_the_licence_is_this_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    text, said = licence()
    assert said == "the Python licence text"
    assert text.startswith("A. HISTORY OF THE SOFTWARE")
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    assert licence()[0] == FALLBACK
