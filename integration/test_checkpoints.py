"""Checkpoint directories in and out, and the verdict on what others made of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from growproof import checkpoints, grow, streaming
from growproof.checkpoints import grow_checkpoint
from growproof.cli import byte_count, main
from growproof.decoder import GrowthError
from growproof.growth import Policies
from growproof.shards import Entry
from growproof.verify import verify
from safetensors.torch import load_file, save_file
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


def with_tensors(path: Path, extra: dict[str, torch.Tensor]) -> Path:
    file = path / checkpoints.SINGLE
    tensors = load_file(file) | extra
    save_file(tensors, file, metadata={"format": "pt"})
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
    grow_checkpoint(
        source, tmp_path / "grown", target, policies=Policies(norm="masked")
    )
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
    store, calls = Entry.store, []

    def failing(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise error
        store(*args)

    monkeypatch.setattr(streaming, "workers", one_at_a_time)
    monkeypatch.setattr(Entry, "store", failing)
    arguments = ["grow", str(source), str(grown), "--hidden-size=32", "--force"]
    code = main([*arguments, "--shard-size=4KB"])
    assert len(calls) == 3
    assert code == (130 if error is KeyboardInterrupt else 4)
    assert capsys.readouterr().err.startswith("growproof: ")
    assert [p.name for p in tmp_path.iterdir()] == (["grown"] if force else [])
    assert not force or contents(grown) == before


@contextmanager
def one_at_a_time(memory: int) -> Generator[tuple[SimpleNamespace, int]]:
    """As `streaming.workers`, in this thread, a block at a time."""
    yield SimpleNamespace(map=map), 1


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
        "expected a complete safetensors file",
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
        "weight_map, 'a': got '../b', expected the name of a file beside the index",
    ),
    "not there": (lambda s, p: p, "download a hub model first"),
    "gguf": (
        lambda s, p: [p.with_suffix(".gguf").write_bytes(b"GGML"), p.with_suffix(".gguf")][1],
        "its first bytes: got b'GGML', expected b'GGUF'",
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
    "model type": ({"model_type": "opt"}, "no table for model type 'opt'"),
    "remote code": (
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}},
        "no table for model type 'evil'",
    ),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised weights"),
    "other sizes": ({"intermediate_size": 25}, "should be (25, 16)"),
    "no type": ({"model_type": None}, "model_type: got None, expected a model type"),
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
    with pytest.raises(GrowthError, match=r"stored as I8"):
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
