"""Other people's growers get the verdict of their committed scores, and of their page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from properties.gate.domain import narrow
from properties.gate.judged import Judged
from properties.gate.loading import Grower
from properties.laws.domain import DOMAIN
from properties.laws.registry import items
from properties.score import document
from properties.score.document import JudgedLaw

from . import article, by_hand, gallery, others
from .gallery import OTHERS, PAGES, load, page
from .others import FAMILIES, WITHOUT

# What is run again of each: it fails, or not, in all that is drawn.
LOGITS, EPS = "logits_are_unchanged", "eps_grows_along"
AGAIN = {
    "hypercloning": (LOGITS, "llama-hidden"),
    "lemon": (LOGITS, "stablelm-hidden"),
    "net2net": (LOGITS, "stablelm-mlp"),
    "llama_pro": (LOGITS, "llama-layers"),
    "passthrough": (LOGITS, "llama-layers"),
    "article": (LOGITS, "stablelm-hidden"),
    "article_mended": (EPS, ""),
    "fms_head_dim": (LOGITS, "granite-head_dim"),
    "qwen_mlp": (LOGITS, "qwen2-mlp"),
    "kv_replication": (LOGITS, "llama-groups"),
}
# and what the page says of them
CONFORM = {
    "hypercloning",
    "lemon",
    "net2net",
    "llama_pro",
    "qwen_mlp",
    "kv_replication",
}


def laws(name: str) -> dict[str, JudgedLaw]:
    """The laws of a committed score."""
    return {law.name: law for law in load(name).laws}


def failed(name: str) -> set[str]:
    """The laws that a grower violates, by its committed score."""
    return {n for n, law in laws(name).items() if "failed" in law.items.values()}


@pytest.mark.parametrize("name", AGAIN)
def test_the_verdict_is_the_committed_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One law of each, judged again."""
    law, arguments = AGAIN[name]
    monkeypatch.setattr(DOMAIN, "features", DOMAIN.features)
    family = [FAMILIES[name]] if name in FAMILIES else []
    narrow([",".join(WITHOUT[name])], [], family)
    judged = Judged(Grower(name, getattr(others, name)))
    item = items()[f"test_{law}" + f"[{arguments}]" * bool(arguments)]
    try:
        item.judge(judged)
    except AssertionError:
        outcome = "failed"
    else:
        outcome = "passed"
    assert judged.asked.calls["growths"] > 0
    assert laws(name)[law].items[arguments] == outcome


def test_the_scores_say_what_is_known_of_these_growers() -> None:
    """Which conform; and of the others, by which laws they do not."""
    assert {name for name in OTHERS if load(name).conforms} == CONFORM
    assert EPS in failed("article_mended")
    rotary = "rotary_keeps_pairs_and_frequencies"
    assert rotary in failed("article")
    assert rotary not in failed("article_mended")
    assert LOGITS in failed("passthrough")
    assert "saves_and_loads" not in failed("passthrough")


@pytest.mark.parametrize("name", OTHERS)
def test_a_committed_score_is_as_it_was_signed(name: str) -> None:
    """By all laws, those of an edition; and no path of the machine that made it."""
    text = (PAGES / f"{name}.json").read_text("utf-8")
    assert document.problem(text) == ""
    score = document.loads(text)
    assert score.whole
    assert score.grower == f"integration.others:{name}"
    assert not re.search(r"/(tmp|work|home)/", text)


def test_sparse_upcycling_is_the_same_function() -> None:
    """Every entry of the Mixtral is accounted for."""
    told = json.loads(gallery.UPCYCLED.read_text("utf-8"))
    assert told["same"]
    assert told["verdict"].startswith("The same function for every input")


def test_the_page_is_made_from_the_scores() -> None:
    """`growproof refresh gallery` would change nothing but the scores; all are on it."""
    text = (PAGES / "README.md").read_text("utf-8")
    assert text == page()
    assert OTHERS.keys() == WITHOUT.keys() == AGAIN.keys()
    for name in (*OTHERS, "sparse_upcycling"):
        assert f"`{name}`" in text
        assert f"({name}.json)" in text
        assert (PAGES / f"{name}.json").exists()
    assert text.count("*What could change:*") == len(OTHERS) + 1


def test_they_import_nothing_of_growproof() -> None:
    for module in (others, article, by_hand):
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (growproof|properties|\.)", text, re.M)
