"""A real trained model grows, by the real command, and stays the same function.

Needs a package index or GROWPROOF_SMOLLM2 (see smollm2.py): skipped without, and failed
where CI is set.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from growproof.cli import main
from growproof.verify import Side, structure
from transformers import AutoTokenizer, LlamaForCausalLM

from . import smollm2

pytestmark = pytest.mark.xdist_group("smollm2")

LICENCE = Path(__file__).with_name("licence.txt")
TOKENS = 512
# float32 on the machine that it was first run on; the float64 clone says 2.384943, so
# that another order of the float32 sums may move it by some 1e-6 of itself
LOSS = 2.384935
GROWTHS = {
    "heads": ["--hidden-size=768", "--num-attention-heads=12",
              "--num-key-value-heads=4"],
    "head_dim": ["--hidden-size=720", "--head-dim=80"],
    "everything": ["--hidden-size=768", "--num-attention-heads=12",
                   "--num-key-value-heads=3", "--head-dim=70",
                   "--intermediate-size=2048", "--num-hidden-layers=32"],
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """float32 loss on the text, and 16 greedy tokens after its first 64."""

    loss: float
    continuation: list[int]


@pytest.fixture(scope="module")
def source() -> Path:
    return smollm2.needed()


@pytest.fixture(scope="module")
def tokens(source: Path) -> Any:
    text = LICENCE.read_text("utf-8")
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    return tokenizer(text, return_tensors="pt").input_ids[:, :TOKENS]


@pytest.fixture(scope="module")
def before(source: Path, tokens: Any) -> Measured:
    return measured(source, tokens)


@pytest.fixture
def destination() -> Iterator[Path]:
    """A directory that is removed at once: half a gigabyte and more each."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "grown"


@torch.no_grad()
def measured(directory: Path, tokens: Any) -> Measured:
    model: Any = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    model.generation_config.update(max_new_tokens=16, do_sample=False)
    mask = torch.ones_like(tokens[:, :64])
    words = model.generate(tokens[:, :64], attention_mask=mask)[0, 64:]
    return Measured(model(tokens, labels=tokens).loss.item(), words.tolist())


def test_the_loss_before(before: Measured) -> None:
    assert before.loss == pytest.approx(LOSS, rel=5e-6)
    assert len(before.continuation) == 16


@pytest.mark.parametrize("sizes", GROWTHS.values(), ids=GROWTHS.keys())
def test_it_grows_without_loss(
    sizes: list[str],
    source: Path,
    tokens: Any,
    before: Measured,
    destination: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["grow", str(source), str(destination), *sizes]) == 0
    assert "parameters           134,515,008 → " in capsys.readouterr().out
    config = json.loads((destination / "config.json").read_text())
    for flag in sizes:
        name, size = flag.removeprefix("--").replace("-", "_").split("=")
        assert config[name] == int(size)
    after = measured(destination, tokens)
    assert after.loss == pytest.approx(before.loss, rel=1e-6)
    assert after.continuation == before.continuation


def test_verify_agrees(
    source: Path, destination: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grow", str(source), str(destination), *GROWTHS["head_dim"]]) == 0
    arguments = ["verify", str(source), str(destination), f"--text={LICENCE}"]
    assert main([*arguments, "--tokens=64"]) == 0
    assert "The same function" in capsys.readouterr().out
    # ε kept: too little for most losses to show, and not the same function
    file = destination / "config.json"
    config = json.loads(file.read_text())
    config["rms_norm_eps"] *= 720 / 576
    file.write_text(json.dumps(config))
    checks = structure(Side.of(source), Side.of(destination))
    assert [c.name for c in checks if c.passed is False] == ["variance ÷ ε"]


def test_two_processes_may_convert_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second takes what the first has made meanwhile."""

    place = tmp_path / f"smollm2-135m-transformers-{transformers.__version__}"

    def overtaken(source: Path, fresh: Path) -> None:
        (fresh / "config.json").write_text("second")
        place.mkdir()
        (place / "config.json").write_text("first")

    monkeypatch.setattr(smollm2, "cache", lambda: tmp_path)
    monkeypatch.setattr(smollm2, "gguf", lambda: tmp_path / "a.gguf")
    monkeypatch.setattr(smollm2, "convert_gguf", overtaken)
    assert smollm2.checkpoint() == place
    assert (place / "config.json").read_text() == "first"
