"""Checkpoints and growths that are refused, and writes that are broken off."""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from growproof import streaming
from growproof.checkpoints import grow_checkpoint
from growproof.cli import byte_count, main
from growproof.decoder import GrowthError
from growproof.shards import Entry
from transformers import Phi3Config, Phi3ForCausalLM

from .small import (
    WIDER,
    contents,
    llama,
    of_family,
    saved,
    with_tensors,
)


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


def pruned(source: Path, path: Path) -> Path:
    """As the hub's cache has it: links to blobs, one of which is gone."""
    shutil.copytree(source, path)
    (path / "tokenizer.json").unlink(missing_ok=True)
    (path / "tokenizer.json").symlink_to("../blobs/0")
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
    "pruned cache": (
        lambda s, p: pruned(s, p), "a link to ../blobs/0, which is not there",
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


def test_a_policy_is_refused_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grow", "a", "b", "--depth=sideways"]) == 4
    assert "got 'sideways'" in capsys.readouterr().err


def test_byte_counts() -> None:
    assert [byte_count(t) for t in ("12", "3kb", "500MB", "4GB")] == [
        12, 3_000, 500_000_000, 4_000_000_000,
    ]  # fmt: skip


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    """The installed command, in processes of its own: 0, 1 and 4, no traceback.

    Once as a shell starts it, then by the Python of the tests: see warm.py.
    """
    command = str(Path(sysconfig.get_path("scripts")) / "growproof")

    def run(
        *arguments: object, by: tuple[str, ...] = (sys.executable,)
    ) -> subprocess.CompletedProcess[str]:
        words = [*by, command, *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    grown = run("grow", source, tmp_path / "grown", "--head-dim=12", by=())
    assert (grown.returncode, grown.stderr) == (0, "")
    assert "head_dim             8 → 12" in grown.stdout
    other = saved(llama(rms_norm_eps=1e-4), tmp_path / "other")
    verdict = run("verify", source, other, "--tokens=16")
    assert (verdict.returncode, verdict.stderr) == (1, "")
    assert max(map(len, verdict.stdout.splitlines()[3:])) <= 80
    bad = run("verify", source, tmp_path / "nothing")
    assert bad.returncode == 4
    assert len(bad.stderr.splitlines()) == 1


def test_a_size_that_no_layer_has_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Qwen3-MoE, all layers of which have experts: those have a size of their own."""
    source = saved(of_family("qwen3_moe"), tmp_path / "source")
    grow = ["grow", str(source), str(tmp_path / "grown")]
    assert main([*grow, "--intermediate-size=32"]) == 4
    assert "grow moe_intermediate_size" in capsys.readouterr().err
    assert not (tmp_path / "grown").exists()
    assert main([*grow, "--moe-intermediate-size=16"]) == 0
    assert "MLP of an expert     12 → 16" in capsys.readouterr().out


def test_a_config_that_transformers_refuses_is_refused(tmp_path: Path) -> None:
    """longrope's factors are counted by hidden_size / heads, whatever head_dim is."""
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0,
        "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    }  # fmt: skip
    config = Phi3Config(
        vocab_size=48, hidden_size=16, num_attention_heads=2, intermediate_size=20,
        num_hidden_layers=1, pad_token_id=None, rope_parameters=rope,
        original_max_position_embeddings=16,
    )  # fmt: skip
    source = saved(Phi3ForCausalLM(config), tmp_path / "source")
    with pytest.raises(GrowthError, match=r"the grown phi3: got .* must have length 8"):
        grow_checkpoint(source, tmp_path / "grown", {"hidden_size": 32})


def test_code_is_not_taken_along(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(source, tmp_path / "source")
    (source / "tokenization_own.py").write_text("raise SystemExit")
    (source / "tokenizer_own.py").write_text("raise SystemExit")
    (source / "NOTICE").write_text("whose it is")
    arguments = ["grow", str(source), str(tmp_path / "grown"), "--hidden-size=24"]
    assert main(arguments) == 0
    assert not [*(tmp_path / "grown").glob("*.py")]
    said = capsys.readouterr().out
    assert "not taken along: tokenization_own.py, tokenizer_own.py (code" in said
    assert (tmp_path / "grown" / "NOTICE").is_file()
