"""A changed verdict is your code's, or our laws'; and every form says the same."""

import dataclasses
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from ..errors.ledger import LedgerError
from . import report
from .changes import CLAIM, OURS, YOURS, Changed, changes
from .document import Row, Score, dumps
from .samples import HOSTILE, law, red, score

FAILED = {"llama-hidden": "failed", "llama-mlp": "passed"}


def one(base: Score, now: Score) -> Changed:
    (found,) = changes(base, now)
    return found


def test_nothing_changed() -> None:
    assert changes(score(), score()) == []


def test_the_same_law_says_otherwise() -> None:
    """It is your code; where a library moved along, that is said."""
    now = score(law(items=FAILED))
    found = one(score(), now)
    assert (found.label, found.before, found.now) == (YOURS, "passed", "failed")
    assert found.item == "logits_are_unchanged[llama-hidden]"
    assert found.why == ""
    moved = {**now.versions, "transformers": "5.24.0"}
    found = one(score(), dataclasses.replace(now, versions=moved))
    assert found.label == YOURS
    assert found.why == "or transformers 5.23.0 → 5.24.0"


@pytest.mark.parametrize(
    ("changed", "shared", "why"),
    [({"version": 2}, 64 * "b", "version 1 → 2"),
     ({"source": 64 * "c"}, 64 * "b", "its code changed"),
     ({}, 64 * "d", "what the laws share changed")],
)  # fmt: skip
def test_another_law_says_otherwise(
    changed: dict[str, Any], shared: str, why: str
) -> None:
    """It is our laws: the version was raised, or what they share changed."""
    now = score(law(items=FAILED, **changed), shared=shared)
    found = one(score(), now)
    assert found.label == OURS
    assert found.why.startswith(why)


def test_what_is_asked_in_one_of_them_only() -> None:
    """An item that is not claimed any more; a law that a newer growproof brings."""
    less = law(items={"llama-hidden": "passed"})
    assert one(score(), score(less)).label == CLAIM
    newer = {**score().versions, "growproof": "0.2.0"}
    now = score(law(), law("new_law", items={"": "failed"}), versions=newer)
    found = one(score(), now)
    assert (found.label, found.why, found.item) == (OURS, "the law is new", "new_law")


def test_two_growers_are_compared_only_on_demand() -> None:
    other = score(grower="other:grow")
    with pytest.raises(LedgerError, match="other:grow"):
        changes(score(), other)
    assert changes(score(), other, across=True) == []


def forms(tmp_path: Path, *scores: Score) -> tuple[int, dict[str, str]]:
    """The exit code, and each form as text without its markup."""
    paths = []
    for i, made in enumerate(scores):
        paths.append(str(tmp_path / f"{i}.json"))
        Path(paths[-1]).write_text(dumps(made, sign=True))
    names = ("html", "markdown", "latex", "badge")
    outs = [w for n in names for w in (f"--{n}", str(tmp_path / n))]
    code = report.main([*paths, *outs, "--annotations"])
    told = {name: (tmp_path / name).read_text("utf-8") for name in names}
    told["html"] = unescape(
        re.sub(r"<style>.*</style>|<wbr>|</?[a-z!][^>]*>", "", told["html"], flags=re.S)
    )
    told["markdown"] = re.sub(r"\\(.)", r"\1", told["markdown"])
    told["latex"] = re.sub(r"\\allowbreak{}|\\(?=[_%{}])", "", told["latex"])
    return code, told


def test_every_form_tells_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verdict, claims, causes with scripts, what was not judged, power, how to repeat."""
    code, told = forms(tmp_path, red(), score())
    told["terminal"] = shown = capsys.readouterr().out
    assert code == 1
    badge = json.loads(told.pop("badge"))
    assert (badge["label"], badge["color"]) == ("growproof", "red")
    assert badge["message"] == "violates lossless"
    for name, text in told.items():
        words = re.sub(r"\s+", " ", text)
        for said in (
            "mine:grow violates lossless", "your code", "logits_are_unchanged",
            "errors::eps", "odd sizes", "2 of 3", "naive: at the end", "not asked",
            "known", "2027-01-01", "growproof check mine:grow", "torch==2.13.0 ",
            "sampled", "sha256:", "2 changed: 2 by your code",
        ):  # fmt: skip
            assert said in words, (name, said)
        assert ("print(1)" in text) == (name != "terminal")
    assert shown.count("::error title=growproof ") == 2


def test_nothing_of_a_score_is_markup(tmp_path: Path) -> None:
    """Not in HTML, not in Markdown, and no listing of LaTeX is ended by it."""
    forms(tmp_path, red())
    assert HOSTILE.startswith("<script>")
    assert "<script>" not in (tmp_path / "html").read_text()
    kept = (tmp_path / "markdown").read_text()
    fenced = re.sub(r"```python\n.*?```", "", kept, flags=re.S)
    assert "<script>" not in fenced
    tex = (tmp_path / "latex").read_text()
    assert tex.count(r"\begin{verbatim}") == tex.count(r"\end{verbatim}") == 1
    assert r"\DeclareUnicodeCharacter{221A}{\ensuremath{\surd}}" in tex
    assert r"100 \%" in tex


def test_a_part_of_the_laws_is_not_called_all(tmp_path: Path) -> None:
    """The verdict says so, and so does the badge; an edition stands on both."""
    code, told = forms(tmp_path, score(whole=False))
    assert code == 0
    assert "(a part of the laws was run)" in told["markdown"].splitlines()[0]
    assert json.loads(told["badge"])["label"] == "growproof (in part)"
    own = Row(promise="reference", family="all", axis="all", tier="sampled", passed=5)
    _, told = forms(tmp_path, score(edition="2027", score=[own, *score().score]))
    assert json.loads(told["badge"])["message"] == "lossless", "reference is no promise"
    assert json.loads(told["badge"])["label"] == "growproof 2027"
    assert "edition 2027" in told["html"]


def test_a_score_stands_beside_one_score_alone(tmp_path: Path) -> None:
    """Exit 4 for two earlier ones, or for a stored run as the earlier one."""
    (tmp_path / "a.json").write_text(dumps(score()))
    (tmp_path / "b.json").write_text("{}")
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert report.main([a, a]) == 0
    assert report.main([a, a, a]) == 4
    assert report.main([a, b]) == 4
    assert report.main([a, "--history", a]) == 4
