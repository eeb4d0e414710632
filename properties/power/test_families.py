"""The table of families is the one that a run gives."""

from __future__ import annotations

import json

import pytest
from growproof.families import FAMILIES

from ..growers.known_bad import BY_NAME
from . import families

STORED = json.loads(families.RESULTS.read_text("utf-8"))
SAMPLE = ("llama", "gpt2", "gpt_neox", "qwen3_moe", "cohere", "glm4")


def test_every_family_has_a_row() -> None:
    """And no cell of it is wrong, or refused."""
    own = {name for name, found in FAMILIES.items() if not found.draws}
    assert set(STORED) == own
    cells = [cell for row in STORED.values() for cell in row.values()]
    assert len(cells) == len(own) * len(families.AXES)
    assert not [cell for cell in cells if cell.startswith(("WRONG", "no: "))]


@pytest.mark.parametrize("family", SAMPLE)
def test_the_table_is_what_a_run_gives(family: str) -> None:
    """Of a sample; `python -m properties.power.families` measures all."""
    assert families.measured(family) == STORED[family]


def test_a_fault_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """o_proj off by 1e-6 in the grower: the cell says so."""
    monkeypatch.setattr(families, "grow", BY_NAME["output_1e6"])
    assert families.cell("qwen3", "mlp") == "WRONG"
