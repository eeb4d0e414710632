"""The shipped checkpoints are what their cards say, and the script that made them runs.

The suite turns warnings into errors, so loading here is loading without a warning;
what transformers only logs is caught too.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from . import recipes, texts, train

HERE = Path(__file__).parent
LIMITS = {"stablelm": 5_000_000, "stablelm_qknorm": 1_000_000, "llama": 1_000_000}


class Shipped:
    """One directory, loaded, and the figures of its card."""

    def __init__(self, directory: Path) -> None:
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32
        ).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.card = (directory / "README.md").read_text(encoding="utf-8")
        text = texts.LICENCE.read_text(encoding="utf-8")
        self.licence = torch.tensor(self.tokenizer(text)["input_ids"])

    def stated(self, row: str) -> float:
        """The figure in the card's table row that starts with `row`."""
        found = re.search(
            rf"^\| {re.escape(row)}[^|]*\| ([\d.,]+) \|$", self.card, re.M
        )
        assert found, f"the card has no row {row!r}"
        return float(found[1].replace(",", ""))


@pytest.fixture(scope="module", params=LIMITS)
def name(request: pytest.FixtureRequest) -> str:
    """Each shipped checkpoint in turn."""
    return request.param


@pytest.fixture(scope="module")
def shipped(name: str) -> Shipped:
    """The checkpoint, loaded once."""
    return Shipped(HERE / name)


def test_loads_alone_and_silently(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy of the directory, elsewhere, loads with nothing missing and no warning."""
    for file in (HERE / name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    transformers.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                tmp_path, output_loading_info=True
            )
            model, report = loaded
            tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    finally:
        transformers.logging.disable_propagation()
    assert not caplog.records
    assert not any(report.values()), report
    assert type(model).__name__ == recipes.RECIPES[name].family + "ForCausalLM"
    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size


def test_size(name: str) -> None:
    """The whole directory stays under its limit, and holds nothing unexpected."""
    sizes = {file.name: file.stat().st_size for file in (HERE / name).iterdir()}
    assert sum(sizes.values()) <= LIMITS[name], sizes
    assert sizes.keys() == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_is_the_architecture_of_its_recipe(name: str, shipped: Shipped) -> None:
    """Retraining what train.py describes would give this config."""
    config = shipped.model.config
    for option, value in recipes.RECIPES[name].config.items():
        assert getattr(config, option) == value, option
    rotary = config.rope_parameters.get("partial_rotary_factor", 1.0)
    lanes = config.hidden_size / config.num_attention_heads * rotary
    assert lanes >= 8
    assert lanes % 2 == 0


def test_tokenizer_round_trips(shipped: Shipped) -> None:
    """Byte-level: every text comes back; the licence is one sequence, no longer."""
    text = texts.LICENCE.read_text(encoding="utf-8")
    for sample in (text, "naïve — 数 \x00\t\r\n", ""):
        assert (
            shipped.tokenizer.decode(shipped.tokenizer(sample)["input_ids"]) == sample
        )
    assert len(shipped.licence) == shipped.stated("tokens of that text")
    assert len(shipped.licence) <= shipped.model.config.max_position_embeddings


def test_losses_are_the_cards(shipped: Shipped) -> None:
    """Float32 losses equal the card's to 1e-4: other CPUs sum in other orders."""
    whole = train.loss_on(shipped.model, shipped.licence)
    head = train.loss_on(shipped.model, shipped.licence[:1024])
    assert whole == pytest.approx(shipped.stated("loss on `integration/"), rel=1e-4)
    assert head == pytest.approx(shipped.stated("loss on the first 1,024"), rel=1e-4)


def test_the_licence_is_predictable() -> None:
    """As in the article (0.77), the StableLm's loss is under 1, early and late in it."""
    shipped = Shipped(HERE / "stablelm")
    for tokens in (512, 1024, 2048, len(shipped.licence)):
        assert train.loss_on(shipped.model, shipped.licence[:tokens]) < 1.0


def test_embedding_mean_is_the_cards(name: str, shipped: Shipped) -> None:
    """Not zero where a LayerNorm reads it, so growing without centring shows."""
    measured = train.embedding_mean(shipped.model)
    stated = shipped.stated("mean absolute row mean")
    assert measured == pytest.approx(stated, rel=1e-4)
    if name.startswith("stablelm"):
        assert measured > 0.1


def test_norms_and_biases_are_trained(shipped: Shipped) -> None:
    """No norm is all ones, no bias all zeros, so a grower that drops one is seen."""
    checked = 0
    for name, p in shipped.model.named_parameters():
        if p.ndim == 1:
            idle = (
                torch.ones_like(p) if name.endswith("weight") else torch.zeros_like(p)
            )
            assert (p - idle).square().mean().sqrt() > 1e-3, name
            checked += 1
    assert checked > 0


def test_generates(shipped: Shipped) -> None:
    """Greedy generation with the cache equals greedy generation without it."""
    prompt = shipped.licence[None, :40]
    kept, recomputed = (
        shipped.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    )
    assert kept.shape == (1, 52)
    assert kept.equal(recomputed)


def test_the_tokenizers_are_one(name: str) -> None:
    """The directories share their tokenizer byte for byte."""
    ours, first = (HERE / each / "tokenizer.json" for each in (name, "stablelm"))
    assert ours.read_bytes() == first.read_bytes()


def test_the_script_makes_a_checkpoint(tmp_path: Path) -> None:
    """The real script, three steps: a checkpoint that loads and has the card's loss."""
    script = HERE / "train.py"
    options = ["llama", "--steps", "3", "--out", "made here"]
    ran = subprocess.run(
        [sys.executable, "-W", "error", script, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    made = Shipped(tmp_path / "made here")
    stated = made.stated("loss on `integration/")
    assert train.loss_on(made.model, made.licence) == pytest.approx(stated, rel=1e-4)
    assert stated > 2, "three steps cannot have learnt the licence"


@pytest.mark.parametrize("name", ["stablelm_qknorm", "stablelm", "llama"])
def test_every_recipe_steps(name: str) -> None:
    """One optimiser step of each recipe: every parameter moves, none to a nan."""
    recipe = recipes.RECIPES[name]
    torch.manual_seed(recipe.seed)
    model = train.build(recipe)
    before = [p.detach().clone() for p in model.parameters()]
    rows = torch.randint(texts.VOCABULARY, (2, 64))
    model(input_ids=rows, labels=rows).loss.backward()
    train.optimiser(recipe, model).step()
    for old, (parameter, new) in zip(before, model.named_parameters(), strict=True):
        assert new.isfinite().all(), parameter
        assert not new.equal(old), parameter


def test_same_seed_same_rows() -> None:
    """The batches are a function of the recipe, and reach both ends of the licence."""
    recipe = recipes.RECIPES["stablelm"]
    licence, library = (torch.arange(n).expand(2, -1) for n in (4000, 40000))
    library = library + 4000
    first, again = (list(train.batches(recipe, 64, licence, library)) for _ in range(2))
    lengths = recipe.lengths * (64 // len(recipe.lengths))
    seen = set()
    for rows, same, length in zip(first, again, lengths, strict=True):
        assert rows.equal(same)
        assert rows.shape == (2, max(1, recipe.tokens // length), length)
        assert (rows.diff(dim=-1) == 1).all()
        seen |= set(rows.flatten().tolist())
    assert seen > {0, 2000, 3999, 4000}


def test_withheld_lines_are_never_targets(shipped: Shipped) -> None:
    """The tokens without a label are whole lines, about one in WITHHELD of the text."""
    tokens, labels = train.licence_labels(shipped.tokenizer)
    assert tokens.equal(shipped.licence)
    withheld = shipped.tokenizer.decode(tokens[labels < 0])
    text = texts.LICENCE.read_text(encoding="utf-8")
    lines = text.split("\n")[train.WITHHELD // 2 :: train.WITHHELD]
    assert withheld.split() == " ".join(lines).split()
    assert 0.5 < (labels < 0).float().mean() * train.WITHHELD < 2


class Printer:
    """A stand-in for the `license` builtin that prints a given text."""

    MAXLINES = 23

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self) -> None:
        assert self.MAXLINES > 1_000_000, "a real printer would stop and ask for a key"
        print(self.text)


@pytest.mark.parametrize(
    "text",
    [
        "See https://www.python.org/psf/license/",
        (HERE.parent / "LICENSE").read_text(encoding="utf-8"),
    ],
    ids=["only a URL", "the working directory's LICENSE"],
)
def test_no_licence_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What license() prints on some Pythons must not be taken for the licence."""
    monkeypatch.setattr("builtins.license", Printer(text), raising=False)
    with pytest.raises(RuntimeError, match="not the Python licence"):
        texts.python_licence()


def test_the_licence_is_printed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped text survives license(), and the builtin is left as it was."""
    text = texts.LICENCE.read_text(encoding="utf-8")
    printer = Printer(text)
    monkeypatch.setattr("builtins.license", printer, raising=False)
    assert texts.python_licence() == text
    assert printer.MAXLINES == 23


def test_no_builtin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -S` has no license()."""
    monkeypatch.delattr("builtins.license", raising=False)
    with pytest.raises(RuntimeError, match="-S"):
        texts.python_licence()


def test_the_shipped_licence_is_the_cards(shipped: Shipped) -> None:
    """The losses were measured on exactly these bytes; no formatter may touch them."""
    assert texts.fingerprint(texts.LICENCE) in shipped.card
