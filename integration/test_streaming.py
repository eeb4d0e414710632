"""From directory to directory: the bytes of `grow`, in little memory, killed or not."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof import blocks, grow
from growproof.checkpoints import grow_checkpoint
from growproof.decoder import GrowthError
from growproof.growth import Policies
from growproof.models import plan_model
from growproof.replacing import replacing, sweep
from growproof.scatter import around, matched
from growproof.streaming import IN_FLIGHT, Matrix
from growproof.table import grown_rows, tensors
from transformers import AutoConfig, AutoModelForCausalLM

from properties.laws.models import make

from .killed import TARGET, contents
from .small import llama, saved

CHECKOUT = Path(__file__).parents[1]
SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
WIDER = {"hidden_size": 48, "intermediate_size": 36}
# name: (family, changes to its config, target, policies)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, int], dict[str, Any]]] = {
    "repeated heads, trainable": (
        "llama",
        {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 56,
         "head_dim": 8},
        {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 47},
        {"fill": "trainable", "depth": "every:1"},
    ),
    "lanes between": ("llama", {"head_dim": 8}, {"head_dim": 16} | WIDER, {"spread": 2}),
    "centred residual and heads, untied": (
        "stablelm", {"qk_layernorm": True, "use_qkv_bias": True} | HEADS,
        {"hidden_size": 64, "intermediate_size": 36}, {"norm": "centred"},
    ),
    "averaged, tied": (
        "stablelm", {"tie_word_embeddings": True} | HEADS, {"hidden_size": 64},
        {"norm": "averaged"},
    ),
    "by head, centred": (
        "gpt_neox", {}, {"hidden_size": 64, "intermediate_size": 36},
        {"norm": "centred", "fill": "trainable"},
    ),
    "transposed, averaged": (
        "gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 24},
        {"n_embd": 48}, {},
    ),
    "joined, trainable": (
        "phi3", {}, {"head_dim": 12, "num_hidden_layers": 3} | WIDER,
        {"fill": "trainable", "depth": "interleave"},
    ),
    "offset norms, tied": (
        "gemma2", {"head_dim": 8, "tie_word_embeddings": True}, {"head_dim": 12} | WIDER,
        {"fill": "trainable"},
    ),
    "one for each expert": (
        "qwen3_moe",
        {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "head_dim": 8},
        {"moe_intermediate_size": 20, "hidden_size": 48}, {"fill": "trainable"},
    ),
    "a head with a bias": (
        "phi", HEADS, {"vocab_size": 47, "hidden_size": 64}, {"norm": "centred"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [64, blocks.BLOCK])
def test_the_bytes_are_those_of_growing_in_memory(
    case: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, changes, target, policies = CASES[case]
    config = AutoConfig.for_model(family, **(SIZES | changes))
    source = saved(make(config, 0, dtype=torch.bfloat16), tmp_path / "source")
    monkeypatch.setattr(blocks, "BLOCK", block)
    streamed: Counter[str] = Counter()
    write = Matrix.write

    def counted(self: Matrix, *rest: Any) -> None:
        streamed[self.name] += 1
        write(self, *rest)

    monkeypatch.setattr(Matrix, "write", counted)
    grow_checkpoint(
        source, tmp_path / "grown", target, policies=Policies(**policies),
        shard_bytes=20_000,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    expected = grow(model, target, **policies).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", dtype="auto")
    found = found.state_dict()
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert x.dtype == found[name].dtype, name
        assert torch.equal(found[name], x), name
    assert bool(streamed) == (block == 64)


FIVE = {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1}
DEALT = {
    f"dealt to {n}": (
        "llama", FIVE | {"head_dim": 8},
        {"num_attention_heads": 8, "num_key_value_heads": n, "head_dim": 12}, {},
    )
    for n in (1, 2, 4)
}  # fmt: skip


@pytest.mark.parametrize("case", [*CASES, *DEALT])
def test_each_entry_is_old_or_new(case: str) -> None:
    """`matched` and `around` share out every parameter: each entry is in one of them."""
    family, changes, target, policies = (CASES | DEALT)[case]
    config = AutoConfig.for_model(family, **(SIZES | changes))
    growth = plan_model(config, target, Policies(**policies))
    new = dict(tensors(growth.new))
    checked = 0
    for name, (old, row) in grown_rows(growth).items():
        if old is not None:
            y = torch.zeros(new[name], dtype=torch.int8)
            x = torch.zeros(dict(tensors(growth.old))[old], dtype=torch.int8)
            parts = [b for _, b in matched(x, y, row, growth)]
            for part in [*parts, *around(y, row, growth)]:
                part += 1
            assert (y == 1).all(), name
            checked += 1
    assert checked > 5


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row or all at once, a grown tensor is off by one rounding at most."""
    family, changes, target, policies = CASES["centred residual and heads, untied"]
    model = make(AutoConfig.for_model(family, **(SIZES | changes)), 0)
    whole = grow(model, target, **policies).state_dict()
    monkeypatch.setattr(blocks, "BLOCK", 64)
    rows = grow(model, target, **policies).state_dict()
    for name, x in whole.items():
        torch.testing.assert_close(rows[name], x, rtol=1e-14, atol=1e-15, msg=name)


def test_what_is_zero_is_a_hole_and_memory_is_bounded(tmp_path: Path) -> None:
    """1 GB grows in 100 MB, into files whose zeros take no room on the disk."""
    command = [sys.executable, "-m", "integration.sparse", str(tmp_path), "6"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["source"] > 900_000_000
    assert found["grown"] > 1.4 * found["source"]
    assert found["extra"] < 100_000_000
    files = list((tmp_path / "grown").glob("*.safetensors"))
    assert len(files) == 1
    assert 512 * sum(file.stat().st_blocks for file in files) < 10_000_000


VERIFIED = """
import sys
from pathlib import Path
from growproof.verify import verify
from integration.sparse import peak
sides = [Path(name) for name in sys.argv[1:]]
assert verify(*sides, progress=False).same
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = peak()
verify(*sides, progress=False)
print(peak() - before)
"""


def test_verify_holds_a_tensor_of_each_side(tmp_path: Path) -> None:
    """The files stay mapped no longer than a tensor; float64 is for a block of rows."""
    config = AutoConfig.for_model(
        "llama", vocab_size=16_000, hidden_size=512, intermediate_size=2048,
        num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=4,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
        dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    source, grown = saved(model, tmp_path / "source"), tmp_path / "grown"
    target = {"hidden_size": 640, "num_attention_heads": 10, "num_key_value_heads": 5}
    grow_checkpoint(source, grown, target, progress=False)
    done = subprocess.run(
        [sys.executable, "-c", VERIFIED, str(source), str(grown)],
        capture_output=True, text=True, check=True, cwd=CHECKOUT,
    )  # fmt: skip
    held = sum(p.stat().st_size for at in (source, grown) for p in at.glob("*.saf*"))
    assert int(done.stdout.split()[-1]) < held / 2


def test_memory_must_hold_one_tensor_in_flight(tmp_path: Path) -> None:
    source = saved(llama(), tmp_path / "source")
    with pytest.raises(GrowthError, match=f"needs {IN_FLIGHT} bytes"):
        grow_checkpoint(source, tmp_path / "grown", TARGET, memory=IN_FLIGHT - 1)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


# Killed at any moment


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """The destination is what it was or whole, and the next run leaves no litter."""
    kills = int(os.environ.get("GROWPROOF_KILLS", "200"))
    source = saved(llama(), tmp_path / "source")
    grow_checkpoint(source, tmp_path / "expected", TARGET, shard_bytes=8_000)
    command = [
        sys.executable,
        "-m",
        "integration.killed",
        str(tmp_path),
        str(kills),
        "0",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=CHECKOUT, timeout=240
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] > kills / 2
    assert "failed" not in found
    assert found["litter"] > kills / 10
    assert found["rerun"] == kills // 10
    whole = {"old → old", "old → new", "absent → absent", "absent → new"}
    torn = {k for k in found if "→" in k} - whole
    assert not torn, found
    assert sum(found.get(k, 0) for k in whole) == kills


def test_two_runs_to_one_destination_do_not_mix(tmp_path: Path) -> None:
    source = saved(llama(), tmp_path / "source")

    def slower() -> None:
        with replacing(tmp_path / "grown", force=False) as fresh:
            (fresh / "mine").touch()
            grow_checkpoint(source, tmp_path / "grown", TARGET)
            assert (fresh / "mine").exists()  # not swept away: its run is alive

    with pytest.raises(GrowthError, match="come to exist meanwhile"):
        slower()
    assert "mine" not in contents(tmp_path / "grown")
    assert {p.name for p in tmp_path.iterdir()} == {"source", "grown"}


def test_a_full_disk_is_told_of_the_destination(tmp_path: Path) -> None:
    def fill() -> None:
        with replacing(tmp_path / "grown", force=False) as fresh:
            raise OSError(28, "No space left on device", str(fresh / "model"))

    with pytest.raises(OSError, match=r"No space left on device: '.*/grown'"):
        fill()
    assert not [*tmp_path.iterdir()]


def test_what_a_dead_run_moved_comes_back(tmp_path: Path) -> None:
    """Where two directories cannot be swapped in one step, and a run dies between two."""
    (tmp_path / ".grown-7-ab.replaced").mkdir()
    (tmp_path / ".grown-7-ab.replaced" / "config.json").write_text("{}")
    (tmp_path / ".grown-7-ab.growing").mkdir()
    (tmp_path / ".grown-other-7-ab.replaced").mkdir()  # of another destination
    sweep(tmp_path / "grown")
    assert {p.name for p in tmp_path.iterdir()} == {
        "grown",
        ".grown-other-7-ab.replaced",
    }
    assert contents(tmp_path / "grown") == {"config.json": b"{}"}
    shutil.copytree(tmp_path / "grown", tmp_path / ".grown-8-ab.replaced")
    sweep(tmp_path / "grown")
    assert not (tmp_path / ".grown-8-ab.replaced").exists()
