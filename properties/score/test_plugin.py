"""A run leaves its score: of a grower with a fault, by some of the laws."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ..laws import registry
from . import document, edition, plugin
from .plugin import ABSENT

GROWER = """
import growproof

def grow(model, target):
    if model.config.model_type != "llama":
        raise NotImplementedError("only Llama")
    grown = growproof.grow(model, target)
    for layer in grown.model.layers if "intermediate_size" in target else ():
        layer.mlp.down_proj.weight.data.mul_(1 + 1e-6)
    return grown
"""
LAW = "test_mlp_maps_padded_to_padded"
FILE = Path(registry.__file__).with_name("test_mlp.py")  # of two laws
ASKED = "--family llama --without hidden,heads,groups,head_dim,layers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a wrong grower was judged, with its score in score.json."""
    folder = tmp_path_factory.mktemp("score")
    (folder / "grow.py").write_text(GROWER)
    words = ["grow.py:grow", *ASKED.split(), "-k", LAW, str(FILE),
             "--score", "score.json", "--sign", "-p", "no:cacheprovider"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "growproof.cli", "check", *words], cwd=folder,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "growproof report score.json --html score.html" in done.stdout
    return folder


def test_a_run_leaves_its_score(folder: Path) -> None:
    """Verdict, the cause with its script, what was left out, how to repeat it."""
    text = (folder / "score.json").read_text("utf-8")
    assert document.problem(text) == ""
    score = document.loads(text)
    laws = {law.name: law for law in score.laws}
    assert laws["mlp_maps_padded_to_padded"].items == {"": "failed"}
    assert all(law.source == edition.present()[name][1] for name, law in laws.items())
    assert (score.conforms, score.whole, score.edition) == (False, False, "")
    assert score.verdict.startswith("grow.py:grow violates zero_padding on llama")
    (cause,) = score.causes
    assert "down_proj" in cause.cause
    assert cause.laws == ["mlp_maps_padded_to_padded"]
    assert "TEST = 'test_mlp_maps_padded_to_padded'" in cause.script
    compile(cause.script, "repeat.py", "exec")
    assert score.command == f"growproof check grow.py:grow {ASKED} -k {LAW}"
    left = {count.what: count.times for count in score.left_out}
    assert left == {
        f"not selected by -k '{LAW}'": 1,
        ABSENT: len(edition.judging()) - 2,
    }
    assert (score.claims["families"], score.claims["axes"]) == (["llama"], ["mlp"])
    rows = {(row.promise, row.tier): row for row in score.score}
    assert rows["zero_padding", "sampled"].failed == 1
    assert (rows["zero_padding", "sampled"].worst or 0) > 1e6
    assert score.errors[0].law == "mlp_maps_padded_to_padded"
    missed = [missed.why for missed in score.power.missed]
    assert any(why.endswith("was not asked") for why in missed)
    assert 0 < score.power.found < len(missed)
    assert score.run["growths"] == score.domain["grown"]["mlp"] > 0


def test_workers_hand_over_what_they_left_out() -> None:
    """The controller under xdist collects nothing of its own."""
    kept = plugin.Collector.__new__(plugin.Collector)
    told = {"left_out": {"layers": 3}, "cut": {"by -k": 1}}
    kept.pytest_testnodedown(SimpleNamespace(workeroutput={"growproof_score": told}))
    assert (kept.left_out, kept.cut) == (told["left_out"], told["cut"])
    kept.pytest_testnodedown(SimpleNamespace())  # one that was lost
    assert kept.cut == told["cut"]


def asked(**options: Any) -> Any:
    """A configuration with these options, for the hooks that read no more."""
    given = {"sign": False, "score": None, "edition": None} | options
    return SimpleNamespace(option=SimpleNamespace(**given))


def test_what_cannot_be_meant_is_refused() -> None:
    """A digest of nothing, and an edition that is none."""
    with pytest.raises(pytest.UsageError, match="--sign needs --score FILE"):
        plugin.pytest_configure(asked(sign=True))
    with pytest.raises(pytest.UsageError, match="no edition 1999; there is 2027"):
        plugin.pytest_configure(asked(edition="1999"))


def test_an_edition_is_refused_where_its_laws_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which law, in which versions, and what to install; a newer law is dropped."""
    wanted = edition.edition("2027")
    present = wanted | {"mlp_maps_padded_to_padded": (2, 64 * "0")}
    monkeypatch.setattr(edition, "present", lambda: present)
    kept = plugin.Collector.__new__(plugin.Collector)
    dropped: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: dropped.extend(items))
    kept.config = SimpleNamespace(hook=hook)  # type: ignore[assignment]
    kept.option = Namespace(edition="2027")
    said = "mlp_maps_padded_to_padded is version 2 here and 1 there. Install"
    with pytest.raises(pytest.UsageError, match=said):
        kept.keep_to_edition([])
    monkeypatch.setattr(edition, "present", lambda: wanted | {"newer": (1, "")})
    items: Any = [SimpleNamespace(function=None)]
    kept.keep_to_edition(items)
    assert (items, len(dropped)) == ([], 1)


def test_the_schema_is_json() -> None:
    """And a file of its own, for who reads scores without growproof."""
    path = Path(document.__file__).with_name("score.schema.json")
    assert json.loads(path.read_text())["title"] == "growproof score"
