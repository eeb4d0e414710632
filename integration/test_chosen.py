"""A grown vocabulary, and what generate() is told of it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof import clone
from growproof.checkpoints import grow_checkpoint
from growproof.cli import main
from growproof.verify import Side, verify
from growproof.verify.chosen import bounds
from transformers import (
    WatermarkingConfig,
)

from .small import (
    check,
    llama,
    of_family,
    saved,
    stored,
    with_tensors,
)


def edited(change: Callable[[Any], object], name: str = "tokenizer.json") -> Any:
    """Changes a JSON file of a checkpoint."""

    def edit(directory: Path) -> None:
        fields = json.loads((directory / name).read_text("utf-8"))
        change(fields)
        (directory / name).write_text(json.dumps(fields), "utf-8")

    return edit


def swapped(fields: Any) -> None:
    """Two tokens have each other's ids."""
    vocab = fields["model"]["vocab"]
    vocab["ar"], vocab["at"] = vocab["at"], vocab["ar"]


def one_more(fields: Any) -> None:
    """A new token that old texts hold."""
    fields["added_tokens"].append(
        fields["added_tokens"][0] | {"id": 1280, "content": "licen"}
    )


def without(directory: Path) -> None:
    """No tokenizer."""
    for path in directory.glob("tokenizer*"):
        path.unlink()


TOKENIZERS: dict[str, tuple[Any, bool | None, str]] = {
    "another normalizer": (
        edited(lambda f: f.update(normalizer={"type": "NFC"})), None,
        "other normalizer: the same tokens on this text",
    ),
    "an added token strips": (
        edited(lambda f: f["added_tokens"][0].update(rstrip=True)), False,
        "other added tokens; a text becomes others",
    ),
    "a template of its own file": (
        lambda d: (d / "chat_template.jinja").write_text("{{ x }}"), None,
        "another chat template",
    ),
    "copied": (lambda d: None, True, "the same files"),
    "written anew": (edited(lambda f: None), True, "the same 1,280 tokens"),
    "two swapped": (edited(swapped), False, "'a[rt]', is .*, and 1 more"),
    "a merge lost": (
        edited(lambda f: f["model"]["merges"].pop(0)), False, "a text becomes others",
    ),
    "no splitting": (
        edited(lambda f: f.update(pre_tokenizer=None)), False, "a text becomes others",
    ),
    "decoded otherwise": (
        edited(lambda f: f.update(decoder=None)), False, "decoded otherwise",
    ),
    "cut off": (
        lambda d: (d / "tokenizer.json").write_text("{"), False, "that make a tokenizer",
    ),
    "none": (without, None, "in the source only"),
    "one more": (edited(one_more), None, "and 1 new ones; a text becomes others"),
    "another template": (
        edited(lambda f: f.update(chat_template="{{ x }}"), "tokenizer_config.json"),
        None, "another chat template",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_is_the_same_tokens(name: str, tmp_path: Path) -> None:
    """Beside logits that are the same: the row is wrong, right, or a note."""
    change, passed, said = TOKENIZERS[name]
    source, other = Path(__file__).with_name("llama"), tmp_path / "other"
    shutil.copytree(source, other)
    change(other)
    result = verify(source, other)
    row = check(result, "tokenizer")
    assert row.passed is passed
    assert re.search(said, row.found)
    assert result.reasons == (["tokenizer"] if passed is False else [])
    assert ("The tokens that a text becomes are not." in result.verdict) is (
        passed is False
    )


def resized(model: Any, path: Path, change: Callable[[Any], object]) -> Path:
    """The vocabulary from 48 to 52, new rows zero and suppressed, and a change."""
    model.resize_token_embeddings(52, mean_resizing=False)
    model.generation_config.suppress_tokens = [48, 49, 50, 51]
    with torch.no_grad():
        for p in (model.model.embed_tokens.weight, model.lm_head.weight):
            p[48:].zero_()
        change(model)
    return saved(model, path)


def test_a_grown_vocabulary_is_told_apart(source: Path, tmp_path: Path) -> None:
    good = resized(llama(), tmp_path / "good", lambda m: None)
    result = verify(source, good)
    assert result.same
    assert "on the old tokens, for every input" in result.verdict
    assert "Tokens 48 to 51 are new" in result.verdict
    said = check(result, "vocabulary").found
    assert said.startswith("rows 48 to 51 are new, the old ones as they were; ")
    assert "over all 52 each new token adds exp(0) to the denominator" in said

    def in_front(m: Any) -> None:
        p = m.model.embed_tokens.weight
        p.copy_(p.roll(4, 0).clone())

    bad = verify(source, resized(llama(), tmp_path / "front", in_front), tokens=32)
    assert "4 new rows were put before the old ones" in bad.verdict
    anew = resized(llama(), tmp_path / "anew", lambda m: m.lm_head.weight.normal_())
    assert "drawn anew" in verify(source, anew, tokens=32).verdict

    def chosen(m: Any) -> None:
        m.lm_head.weight[48:] = 9 * m.lm_head.weight[:4]
        m.generation_config.suppress_tokens = None

    new = verify(source, resized(llama(), tmp_path / "chosen", chosen), measure=True)
    assert any("which the source has not" in c.found for c in new.checks)
    assert "adds the exponential of its logit" in check(new, "vocabulary").found
    taken = check(new, "softmax, float64").found
    assert float(taken.split(" take ")[1].split()[0]) > 0.1


def told(directory: Path, **settings: Any) -> None:
    """Change the generation config of a checkpoint; None removes a setting."""
    path = directory / "generation_config.json"
    fields = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


NEW = [48, 49, 50, 51]
# settings of a grown checkpoint of 48 → 52 tokens, whose source suppresses 3 and ends a
# text at 2 → what is said of it; None where generate() writes the same text
TOLD: dict[str, tuple[dict[str, Any], str | None]] = {
    "right": ({}, None),
    "another order": ({"suppress_tokens": [51, 50, 49, 48, 3, 3]}, None),
    "as bad words": ({"suppress_tokens": [3], "bad_words_ids": [[i] for i in NEW]}, None),
    "a default": ({"temperature": 1.0, "top_k": 50}, None),
    "one end, a list": ({"eos_token_id": [2]}, None),
    "how, not what": ({"use_cache": False, "output_scores": True}, None),
    "ends": ({"eos_token_id": [2, 5]}, "eos_token_id 2 → [2, 5]"),
    "none": ({"suppress_tokens": [3]}, "tokens 48 to 51 are not suppressed"),
    "first": ({"suppress_tokens": [3, 49, 50, 51]}, "token 48 is not suppressed"),
    "middle": ({"suppress_tokens": [3, 48, 51]}, "tokens 49 to 50 are not suppressed"),
    "words of two": (
        {"suppress_tokens": [3], "bad_words_ids": [[48, 49], [50], [51]]},
        "tokens 48 to 49 are not suppressed",
    ),
    "lost": ({"suppress_tokens": NEW}, "token 3 is no longer in suppress_tokens"),
    "more": (
        {"suppress_tokens": [3, 5, *NEW]},
        "token 5 is in suppress_tokens, where the source has not",
    ),
    "old words": ({"bad_words_ids": [[4, 5]]}, "bad_words_ids [] → ['[4, 5]']"),
    "end": ({"eos_token_id": 1}, "eos_token_id 2 → 1"),
    "no end": ({"eos_token_id": None}, "eos_token_id 2 → None"),
    "beginning": ({"bos_token_id": 4}, "bos_token_id 1 → 4"),
    "padding": ({"pad_token_id": 7}, "pad_token_id None → 7"),
    "chance": ({"do_sample": True, "temperature": 0.5}, "temperature 1.0 → 0.5"),
    "length": ({"max_new_tokens": 3}, "max_new_tokens None → 3"),
    "watermark": ({"watermarking_config": {"bias": 3.0}}, "'bias': 2.5"),
    "no words": ({"bad_words_ids": [4]}, "got TypeError"),
}  # fmt: skip


@pytest.fixture(scope="module")
def suppressing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that suppresses token 3 and ends a text at 2, and a growth beside it."""
    folder = tmp_path_factory.mktemp("told")
    model = llama()
    model.generation_config.update(
        suppress_tokens=[3], eos_token_id=2, bos_token_id=1, pad_token_id=None,
        watermarking_config=WatermarkingConfig(bias=2.5),
    )  # fmt: skip
    saved(model, folder / "old")
    grow_checkpoint(folder / "old", folder / "new", {"vocab_size": 52})
    return folder


@pytest.mark.parametrize("how", TOLD)
def test_what_generate_is_told(
    how: str, suppressing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what new tokens explain may be another setting; the logits are the same."""
    changes, said = TOLD[how]
    new = shutil.copytree(suppressing / "new", tmp_path / "new")
    told(new, **changes)
    result = verify(suppressing / "old", new)
    found = check(result, "generate()")
    assert result.same is found.passed is (said is None)
    assert (said or "told the same; new tokens are suppressed") in found.found
    assert main(["verify", str(suppressing / "old"), str(new)]) == (said is not None)
    printed = " ".join(capsys.readouterr().out.split())
    if said:
        assert "NOT the same function: generate(). The logits are the same" in printed
        assert "What generate() makes of them is not." in printed
    if said and "not suppressed" in said:
        assert "where no old logit is greater than theirs (0), sampling" in found.found
    measured = verify(suppressing / "old", new, measure=True, tokens=32)
    assert measured.same is (said is None)
    assert measured.parting is None


def test_a_lost_generation_config_is_read_from_the_config(
    suppressing: Path, tmp_path: Path
) -> None:
    """As transformers does: its end of text is the config's, and nothing suppressed."""
    lost = shutil.copytree(suppressing / "old", tmp_path / "lost")
    (lost / "generation_config.json").unlink()
    found = check(verify(suppressing / "old", lost), "generate()")
    assert found.passed is False
    assert "token 3 is no longer in suppress_tokens" in found.found
    again = shutil.copytree(lost, tmp_path / "again")
    assert check(verify(lost, again), "generate()").passed
    (again / "generation_config.json").write_text("null")
    assert not verify(lost, again).same


@pytest.mark.parametrize("family", ["phi", "stablelm", "gpt2", "gemma2"])
def test_a_bias_keeps_new_tokens_from_being_chosen(family: str, tmp_path: Path) -> None:
    """Not suppressed, they are chosen where there is no bias, or where it is lost."""
    model = of_family(family)
    if family == "stablelm":  # γ Σ β/γ at least 1: the row fits in fp16
        torch.nn.init.constant_(model.model.norm.bias, 0.5)
    source = saved(model, tmp_path / "source")
    grow_checkpoint(source, tmp_path / "new", {"vocab_size": 40})
    assert verify(source, tmp_path / "new").same
    new = Side.of(tmp_path / "new")
    ids = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(0))
    logits = clone.forward(new.decoder, new.state.map(lambda _, x: x.double()), ids)[
        "logits"
    ]
    least, most = bounds(new.decoder, new.state)
    if not new.decoder.logit_cap:
        assert bool(((logits >= least - 1e-9) & (logits <= most + 1e-9)).all())
    told(tmp_path / "new", suppress_tokens=None)
    result = verify(source, tmp_path / "new")
    silent = {"phi": "head bias", "stablelm": "LayerNorm bias"}.get(family)
    assert result.same is (silent is not None)
    said = check(result, "vocabulary").found
    if not silent:
        assert "each new token adds exp(0)" in said
        return
    assert f"(by the {silent}): the softmax over all 40 logits is the same" in said
    assert "new tokens lie too low" in check(result, "generate()").found
    name = "lm_head.bias" if family == "phi" else "lm_head.weight"
    x = stored(tmp_path / "new")[name]
    x[35] = 0 if family == "phi" else -x[35]
    with_tensors(tmp_path / "new", {name: x})
    result = verify(source, tmp_path / "new")
    assert not result.same
    assert "tokens 32 to 39 are not suppressed" in check(result, "generate()").found
