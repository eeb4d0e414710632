"""Nothing wrong is certified: a sample of the recorded runs, and what they recorded."""

import json
import random
from collections import Counter

import pytest
import torch

from .command import cases
from .misses import EDITS, FILE, SLOTS, Growth, counted

BATCHES = 6


@pytest.fixture(scope="module")
def growths() -> list[Growth]:
    """A Llama and a StableLm grown along all axes at once."""
    return [Growth.of(c, 1) for c in cases() if c.name == "all"]


def sample(growths: list[Growth]) -> Counter[str]:
    """The verdicts on some near misses."""
    left = iter(range(BATCHES))
    found = counted(growths, random.Random(2), lambda: next(left, None) is None)
    return sum(found.values(), Counter[str]())


def test_no_near_miss_is_certified(growths: list[Growth]) -> None:
    found = sample(growths)
    assert found["agree"] + found["told apart"] == BATCHES * SLOTS
    assert found["told apart"] > BATCHES * SLOTS / 2
    assert found["harmless"] == found["agree"] > 0
    assert found["missed"] == 0


def test_a_certifier_that_looks_at_less_misses_some(
    growths: list[Growth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Residues of the last token's first logit alone: near misses elsewhere are certified."""
    for growth in growths:
        old = growth.drawn[1]
        monkeypatch.setattr(torch.Tensor, "__eq__", only_first(old.shape))
    assert sample(growths)["missed"] > 0


def only_first(shape: torch.Size) -> object:
    """Equality that looks at the first logit of the first token alone."""
    equal = torch.Tensor.__eq__

    def __eq__(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found = equal(a, b)
        if getattr(b, "shape", ()) == shape:
            found = found[:, :1, :1].expand(shape)
        return found

    return __eq__


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_changes_an_entry(edit: str, growths: list[Growth]) -> None:
    m = growths[0].map
    rng = random.Random(0)
    for _ in range(20):
        wrong = growths[0].edited(rng, EDITS[edit])
        changed = (wrong.form != m.form) | (wrong.scale != m.scale)
        assert 0 < (changed | (wrong.offset != m.offset)).sum() <= 2


def test_the_record_of_growths_is_sound() -> None:
    """soundness-growths.json: so many near misses, none certified although wrong."""
    found = json.loads(FILE.read_text("utf-8"))
    verdicts = found["verdicts"]
    assert verdicts.get("missed", 0) == 0
    assert verdicts["agree"] == verdicts["harmless"]
    assert found["misses"] == verdicts["agree"] + verdicts["told apart"] > 50_000
    assert found["by_kind"].keys() == EDITS.keys()
    assert found["right"] == found["right_verdicts"]["certified"] > 20
