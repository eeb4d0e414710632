"""`growproof fit`, and the ways of growing that it and hardware ask for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof import GrowthError, Policies, grow, shrink
from growproof.arithmetic import ordered
from growproof.cli import main
from growproof.growth import layers_map
from growproof.models import plan_model
from growproof.vocabulary import UNCHOSEN
from transformers import AutoConfig, AutoModelForCausalLM

from . import smollm2, two_ranks

TINY: dict[str, Any] = {
    "vocab_size": 37, "hidden_size": 24, "intermediate_size": 40,
    "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
TOKENS = torch.randint(0, 37, (2, 20), generator=torch.Generator().manual_seed(0))


def config_of(family: str, **fields: Any) -> Any:
    return AutoConfig.for_model(family, **{**TINY, **fields})


def loud(family: str, **fields: Any) -> Any:
    """A stock model whose weights, biases and norms are all of order one, float64."""
    config = config_of(family, attn_implementation="eager", **fields)
    model: Any = AutoModelForCausalLM.from_config(config).double().eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = torch.randn(p.shape, generator=random, dtype=p.dtype)
            norm = "norm" in name and not name.endswith("bias")
            p.copy_(1 + 0.3 * x if norm else x / max(p.shape[-1], 4) ** 0.5)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """By the model's own code, every sum in index order."""
    with ordered(model):
        return model(TOKENS).logits


# --- new ways of growing --------------------------------------------------------------

WAYS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "vocabulary": ({"vocab_size": 64}, {}),
    "neurons in blocks": ({"intermediate_size": 48}, {"spread": 8}),
    "layers before": ({"num_hidden_layers": 6}, {"depth": "prepend"}),
    "a layer behind every second": ({}, {"depth": "every:2"}),
    "a trained layer behind each": ({}, {"depth": "every:1", "fill": "trainable"}),
    "lanes between": ({"head_dim": 16}, {"rotary": "between"}),  # √4 is a power of two
    "all at once": (
        {"vocab_size": 40, "intermediate_size": 80, "num_key_value_heads": 6,
         "num_attention_heads": 12, "head_dim": 16},
        {"depth": "every:2", "spread": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("target", "how"), WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("tied", [False, True])
def test_old_logits_are_bitwise_the_same(
    target: dict[str, int], how: dict[str, Any], tied: bool
) -> None:
    model = loud("qwen2", head_dim=4, tie_word_embeddings=tied)
    bigger = grow(model, target, **how)
    assert torch.equal(logits(bigger)[..., :37], logits(model))
    back = shrink(bigger, model, target, **how)
    for p, q in zip(back.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_neurons_lie_in_blocks() -> None:
    model = loud("llama")
    for blocks in (2, 8):
        bigger = grow(model, {"intermediate_size": 48}, spread=blocks)
        weight = bigger.model.layers[0].mlp.up_proj.weight
        shares = weight.view(blocks, 48 // blocks, -1)
        assert shares[:, : 40 // blocks].all()
        assert not shares[:, 40 // blocks :].any()


def test_layers_lie_behind_every_nth() -> None:
    assert layers_map(5, 7, "every:2") == [0, 1, 3, 4, 6]
    assert layers_map(3, 5, "prepend") == [2, 3, 4]
    bigger = grow(loud("llama"), {}, depth="every:2")
    silent = [not layer.mlp.down_proj.weight.any() for layer in bigger.model.layers]
    assert silent == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("target", "how", "said"),
    [
        ({"intermediate_size": 44}, {"spread": 8}, "multiples of it"),
        ({"num_hidden_layers": 5}, {"depth": "every:2"}, "leave the number of layers"),
        ({}, {"depth": "every:0"}, "every:N"),
        ({"intermediate_size": 48}, {"spread": 0}, "at least 1"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(
    target: dict[str, int], how: dict[str, Any], said: str
) -> None:
    with pytest.raises(GrowthError, match=said):
        plan_model(config_of("llama"), target, Policies(**how))


# --- the vocabulary -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "silent"),
    [("llama", False), ("gpt2", False), ("phi", True), ("stablelm", True)],
)
@pytest.mark.parametrize("fill", ["zeros", "trainable"])
def test_new_tokens_are_never_chosen(family: str, silent: bool, fill: str) -> None:
    model = loud(family, num_attention_heads=3, num_key_value_heads=3, bos_token_id=1)
    if family == "stablelm":  # γ Σ β/γ at least 1: the row fits in fp16
        torch.nn.init.constant_(model.model.norm.bias, 0.5)
    model.generation_config.suppress_tokens = [3]
    bigger = grow(model, {"vocab_size": 48, "hidden_size": 48}, fill=fill)
    old, new = logits(model), logits(bigger)
    torch.testing.assert_close(new[..., :37], old, rtol=1e-11, atol=1e-11)
    level = torch.full_like(new[..., 37:], UNCHOSEN if silent else 0.0)
    torch.testing.assert_close(new[..., 37:], level, rtol=1e-6, atol=0)
    assert torch.equal(new.softmax(-1)[..., 37:].any(), torch.tensor(not silent))
    assert bigger.generation_config.suppress_tokens == [3, *range(37, 48)]
    with torch.no_grad():
        drawn = bigger.generate(TOKENS[:, :3], max_new_tokens=8, do_sample=True)
    assert drawn.max() < 37


def test_a_checkpoint_suppresses_new_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = loud("llama").float()
    model.generation_config.suppress_tokens = [3]
    model.save_pretrained(tmp_path / "old")
    arguments = [str(tmp_path / "old"), str(tmp_path / "new"), "--vocab-size=64"]
    assert main(["grow", *arguments]) == 0
    assert "suppresses the new" in " ".join(capsys.readouterr().out.split())
    bigger: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert bigger.generation_config.suppress_tokens == [3, *range(37, 64)]
    (tmp_path / "old" / "generation_config.json").unlink()
    assert main(["grow", *arguments, "--force"]) == 0
    bigger = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert bigger.generation_config.suppress_tokens == list(range(37, 64))


# --- rope types -----------------------------------------------------------------------

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 32}  # fmt: skip
ROPES: dict[str, tuple[dict[str, Any], str]] = {
    "default": ({"rope_type": "default", "rope_theta": 1e4}, ""),
    "a large θ": ({"rope_type": "default", "rope_theta": 1e30}, ""),
    "yarn": (YARN, ""),
    "yarn that rounds": (YARN | {"original_max_position_embeddings": 1024}, "not among"),
    "longrope": (
        {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0,
         "original_max_position_embeddings": 32, "short_factor": [1.0, 1.2, 1.4, 1.6],
         "long_factor": [2.0, 1.7, 1.5, 1.3]}, ""),
    "dynamic": ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
                "up to 64 tokens"),
}  # fmt: skip


@pytest.mark.parametrize(("rope", "refused"), ROPES.values(), ids=ROPES.keys())
@pytest.mark.parametrize("head_dim", [16, 24])
def test_frequencies_survive_or_are_refused(
    rope: dict[str, Any], refused: str, head_dim: int
) -> None:
    model = loud("qwen2", head_dim=8, rope_parameters=dict(rope))
    if refused:
        with pytest.raises(GrowthError, match=refused):
            plan_model(model.config, {"head_dim": head_dim})
    if "among" not in refused:
        bigger = grow(model, {"head_dim": head_dim}, rotary="between")
        with torch.no_grad():
            apart = (bigger(TOKENS).logits - model(TOKENS).logits).abs().max()
        assert apart < 1e-6
    with pytest.raises(GrowthError, match=r"multiple|even"):
        plan_model(model.config, {"head_dim": 13}, Policies(rotary="parted"))


# --- the command ----------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Three query heads on one, an odd MLP: nothing that two ranks could share out."""
    model = loud("llama", num_attention_heads=3, num_key_value_heads=1, head_dim=8,
                 intermediate_size=41, vocab_size=38)  # fmt: skip
    model.float().save_pretrained(tmp_path / "old")
    return tmp_path / "old"


def test_a_plan_writes_nothing(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = checkpoint.with_name("new")
    arguments = ["fit", str(checkpoint), str(grown), "--tp=2", "--dry-run"]
    assert main(arguments) == 0
    assert "query heads           3 → 4 " in capsys.readouterr().out
    assert not grown.exists()
    assert main([*arguments[:3]]) == 0
    assert "fits as it is" in capsys.readouterr().out
    narrow = ["fit", str(checkpoint), str(checkpoint.with_name("narrow"))]
    assert main([*narrow, "--dtype=bfloat16"]) == 0
    assert "once each weight is rounded to bfloat16" in capsys.readouterr().out.replace(
        "\n", " "
    )
    assert main([*arguments, "--max-growth=1.01"]) == 4
    assert "more than max_growth 1.01" in capsys.readouterr().err
    assert main([*arguments, "--spread"]) == 4
    assert "cannot be spread" in capsys.readouterr().err
    grown.mkdir()
    (grown / "notes").touch()
    assert main(arguments) == 4
    assert "exists: choose another, or --force" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--head-dim=8,x"])


@pytest.mark.parametrize("wish", ["--tp=3", "--block=64", "--head-dim=16"])
def test_a_phi_whose_factors_count_its_lanes_fits(wish: str, tmp_path: Path) -> None:
    """transformers takes hidden_size / heads for the lanes that the factors are of."""
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0], "original_max_position_embeddings": 32,
    }  # fmt: skip
    model = loud(
        "phi3", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        rope_parameters=rope, original_max_position_embeddings=32,
        max_position_embeddings=128,
    )  # fmt: skip
    source = tmp_path / "source"
    model.float().save_pretrained(source)
    assert main(["fit", str(source), str(tmp_path / "grown"), wish]) == 0


def test_fit_grows_and_verifies(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = checkpoint.with_name("new")
    fit = [
        "fit",
        str(checkpoint),
        str(grown),
        "--tp=2",
        "--block=4",
        "--head-dim=12,16",
    ]
    assert main(fit) == 0
    assert "he same function" in capsys.readouterr().out
    config = json.loads((grown / "config.json").read_text())
    assert (config["num_attention_heads"], config["head_dim"]) == (4, 12)
    assert config["intermediate_size"] == 48


def test_two_ranks_share_out_what_they_could_not(
    checkpoint: Path, tmp_path: Path
) -> None:
    """A stock tensor-parallel run of the fitted checkpoint has the old logits."""
    grown, found = tmp_path / "new", tmp_path / "logits.pt"
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["num_key_value_heads"] % 2
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
           "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--local-addr=localhost",
           "--module", two_ranks.__name__]  # fmt: skip
    failed = subprocess.run([*run, checkpoint, found], capture_output=True, check=False)
    assert failed.returncode
    assert not found.exists()
    fit = ["fit", str(checkpoint), str(grown), "--tp=2", "--whole-kv-heads"]
    assert main(fit) == 0
    done = subprocess.run([*run, grown, found], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        old = model(two_ranks.TOKENS).logits
    assert (torch.load(found) - old).abs().max() < 3e-6 * old.abs().max()


# --- a real model ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def source() -> Path:
    return smollm2.needed()


@torch.no_grad()
def spoken(directory: Path) -> tuple[list[int], torch.Tensor]:
    """12 greedy tokens in float32, and the logits with every sum in index order."""
    prompt = torch.arange(1000, 1012)[None]
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    model.generation_config.update(max_new_tokens=12, do_sample=False)
    mask = torch.ones_like(prompt)
    words = model.generate(prompt, attention_mask=mask)[0].tolist()
    model = model.double()
    with ordered(model):
        return words, model(prompt[:, :3]).logits


@pytest.fixture(scope="module")
def before(source: Path) -> tuple[list[int], torch.Tensor]:
    return spoken(source)


@pytest.mark.xdist_group("smollm2")
@pytest.mark.parametrize("asked", [["--tp=2"], ["--tp=4", "--block=128"]])
def test_smollm2_fits(
    asked: list[str],
    source: Path,
    before: tuple[list[int], torch.Tensor],
    tmp_path: Path,
) -> None:
    """9 heads on 3: the same greedy text; bit for bit where no lane is rescaled."""
    assert main(["fit", str(source), str(tmp_path / "new"), *asked]) == 0
    words, old = before
    words_new, new = spoken(tmp_path / "new")
    assert words_new == words
    if "--block=128" in asked:  # 576 → 640 wide: 61 norms times √(576 / 640), rounded
        assert (new - old).abs().max() < 61 * 2**-24 * old.abs().max()
    else:
        assert torch.equal(new, old)
