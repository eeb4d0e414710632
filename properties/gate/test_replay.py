"""A script fails where the fault is there, and passes once it is mended: in a new process."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from ..growers.known_good import BY_NAME as GOOD
from ..growers.known_good import REFERENCE
from ..laws import test_decoder as decoder
from ..laws import test_hygiene as hygiene
from ..laws.examples import Example, watching
from ..laws.registry import Item, item_of
from ..laws.strategies import least_case
from . import findings, replay
from .judged import Judged
from .loading import Grower, load_grower

# What no law sees in a new process, at the first call, with the first seeds.
GROWERS = """
import copy
import growproof, torch
import numpy as np

BROKEN = True
known = {}

def uninitialised(model, target):
    new = growproof.grow(model, target)
    for layer in new.model.layers if BROKEN else ():
        memory = torch.empty_like(layer.mlp.up_proj.weight)
        memory[:model.config.intermediate_size] = layer.mlp.up_proj.weight.data[
            :model.config.intermediate_size]
        layer.mlp.up_proj.weight.data = memory
    return new

def uninitialised_in_numpy(model, target):
    new = growproof.grow(model, target)
    for layer in new.model.layers if BROKEN else ():
        up = layer.mlp.up_proj.weight.data.numpy()
        memory = np.empty_like(up)
        memory[:model.config.intermediate_size] = up[:model.config.intermediate_size]
        layer.mlp.up_proj.weight.data = torch.from_numpy(memory)
    return new

def remembering(model, target):
    new = growproof.grow(model, target)
    old = known.setdefault(str(new.config), new)
    return copy.deepcopy(old) if BROKEN else new

def remembering_each(model, target):
    new = growproof.grow(model, target)
    old = known.setdefault(f"{new.config}{model.dtype}", new)
    return copy.deepcopy(old) if BROKEN else new

calls = []

def tiring(model, target):
    new = growproof.grow(model, target)
    calls.append(target)
    if BROKEN and len(calls) > 20:
        new.lm_head.weight.data *= 1.001
    return new

def lucky(model, target):
    new = growproof.grow(model, target)
    if BROKEN and torch.rand(()) > 0.9:
        new.lm_head.weight.data *= 1.001
    return new
"""
CASE = dataclasses.replace(
    least_case("llama"), target={"hidden_size": 6, "intermediate_size": 5}
)
LOGITS = item_of(decoder.test_transformers_agrees, "eager")
DROPOUT = item_of(hygiene.test_dropout_is_kept)
ROUNDING = item_of(hygiene.test_growing_commutes_with_rounding, "float32")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of growers, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "planted.py"
    path.write_text(GROWERS)
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    return path


def judged(name: str, item: Item, tries: int) -> tuple[Judged, Example]:
    """The grower once a law was run on it, and the example on which it failed, or the last."""
    grower = Judged(load_grower(f"planted.py:{name}"))
    with watching() as seen:
        while tries and not replay.run(item, grower, {"case": CASE}):
            tries -= 1
    return grower, (seen.failed or [seen.example])[-1]


def exits(scripts: list[Path]) -> list[tuple[int, str]]:
    """How they end and what they say last, each in a process of its own, all at once."""
    running = [
        subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True)
        for path in scripts
    ]
    told = [(process.communicate()[0], process.returncode) for process in running]
    return [(code, said.splitlines()[-1]) for said, code in told]


def test_scripts_fail_until_the_grower_is_mended(planted: Path) -> None:
    """Exit 1 in a process that has no memory to show, and no call before; then 0."""
    scripts = []
    for name, item in (("uninitialised", DROPOUT), ("remembering", LOGITS)):
        grower, example = judged(name, item, tries=1)
        scripts.append(findings.write_script(Path(name), item, example, grower))
    before = exits(scripts)
    assert [code for code, _ in before] == [1, 1], before
    planted.write_text(GROWERS.replace("BROKEN = True", "BROKEN = False"))
    assert exits(scripts) == [(0, "it holds on this example")] * 2


@pytest.mark.parametrize("name", ["uninitialised", "uninitialised_in_numpy"])
def test_memory_shows_wherever_it_lies(planted: Path, name: str) -> None:
    """Zero by luck or not, what is never written fails where memory is filled."""
    grower = load_grower(f"{planted}:{name}")
    assert replay.run(DROPOUT, replay.in_filled_memory(grower), {"case": CASE})


def test_a_call_has_its_seeds_again(planted: Path) -> None:
    """A grower that is wrong by chance is wrong again: the script has the call's number."""
    grower, example = judged("lucky", LOGITS, tries=200)
    calls = grower.before(example)
    assert calls > 0
    assert f"CALLS = {calls} " in findings.script(
        planted.parent, LOGITS, example, grower
    )
    again = load_grower("planted.py:lucky")
    assert "" in replay.failures(LOGITS, again, calls, example)
    assert "" not in replay.failures(LOGITS, again, 0, example)


def test_as_many_calls_are_made(planted: Path) -> None:
    """A grower that is wrong from some call on is brought there."""
    grower, example = judged("tiring", LOGITS, tries=30)
    assert grower.before(example) == 20
    del sys.modules["planted"]
    (where,) = replay.failures(LOGITS, load_grower("planted.py:tiring"), 20, example)
    assert where == "after 20 other calls"


def test_two_growths_are_not_remembered_alike(planted: Path) -> None:
    """A grower with a memory for each dtype fails the law that compares two of them."""
    grower = load_grower("planted.py:remembering_each")
    assert replay.failures(ROUNDING, grower, 0, {"case": CASE})


@pytest.mark.parametrize("name", ["REFERENCE", "trainable", "between_neurons"])
@pytest.mark.parametrize("item", [LOGITS, DROPOUT], ids=lambda item: item.name)
def test_right_growers_hold_in_all_surroundings(name: str, item: Item) -> None:
    """No surroundings reject what is right."""
    good = REFERENCE if name == "REFERENCE" else GOOD[name]
    assert not replay.failures(item, Grower(name, good), 0, {"case": CASE})
