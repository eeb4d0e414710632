"""Each fault in each family: the committed table is whole, and what a run gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from growproof.families import FAMILIES

from ..errors.ledger import recording
from ..gate.loading import Grower
from ..growers.known_bad import BY_NAME, FAULTS, LOGITS
from ..growers.known_good import REFERENCE
from ..growers.needs import NEEDS, has
from ..laws import examples
from ..laws.domain import CORE, DOMAIN
from ..laws.registry import items
from ..laws.strategies import profile
from . import by_family
from .by_family import Cell, drawn, run, tried

EVERY = [name for name, family in FAMILIES.items() if not family.draws]
TABLE = by_family.load()
SAMPLE = TABLE[::397]  # a prime: faults and families by turns
pytestmark = pytest.mark.skipif(
    not profile().derandomize,
    reason="what `quick` draws is what is stored",
)


@pytest.fixture(autouse=True)
def aside() -> Iterator[None]:
    """The domain as it was; and no errors of the grower under test."""
    before = set(DOMAIN.features)
    with recording(None):
        yield
    DOMAIN.features = before


def test_every_fault_is_found_or_none_in_every_family() -> None:
    """Each once; none is missed, and none is absent but for what it needs."""
    assert {(c.fault, c.family) for c in TABLE} == {
        (fault.name, family) for fault in FAULTS for family in EVERY
    }
    assert len(TABLE) == len(FAULTS) * len(EVERY)
    assert [c for c in TABLE if c.outcome == "missed"] == []
    for cell in TABLE:
        lacks = not has(cell.family, BY_NAME[cell.fault].needs)
        assert (cell.outcome == "absent") == lacks, cell


def test_every_need_parts_the_families() -> None:
    """Each is had by one and not by another, and is some fault's."""
    assert {need for fault in FAULTS for need in fault.needs} == {*NEEDS}
    for need in NEEDS:
        assert {has(family, [need]) for family in EVERY} == {True, False}, need


@pytest.mark.parametrize("cell", SAMPLE, ids=lambda c: f"{c.fault}-{c.family}")
def test_the_table_is_what_a_run_gives(cell: Cell) -> None:
    """Of a sample; `growproof power --families` runs all."""
    assert (
        dataclasses.replace(run(BY_NAME[cell.fault], cell.family), message="") == cell
    )


@pytest.mark.parametrize(
    "name", ["test_norms_are_unchanged", "test_logits_are_unchanged[qwen3-mlp]"]
)
def test_what_is_drawn_is_what_check_judges(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same examples, in the same order, as the law's own test goes through."""
    DOMAIN.features = {*CORE, "qwen3"} - {"llama", "stablelm"}
    item, seen = items()[name], []

    def watched(model: object, target: object) -> object:
        seen.append(dict(examples.current()))
        return REFERENCE(model, target)  # type: ignore[arg-type]

    body = item.law.test.hypothesis.inner_test  # type: ignore[attr-defined]
    if item.arguments:
        named = by_family.name_in_check(item)
        monkeypatch.setattr(body, by_family.SEED, named, raising=False)
    with examples.watching():
        item.judge(Grower("watched", watched))
    assert [*map(examples.to_json, seen)] == [*map(examples.to_json, drawn(item))]


def test_a_right_grower_is_missed_and_a_blind_suite_shows() -> None:
    """No law rejects what has no fault; a fault is missed where its law is not asked."""
    DOMAIN.features = {*CORE, "gemma2"} - {"llama", "stablelm"}
    right = dataclasses.replace(BY_NAME["output_1e6"], table=None)
    some = [item for item in items().values() if item.law.test is LOGITS
            and not DOMAIN.lacks(item.arguments)]  # fmt: skip
    assert tried(right, "gemma2", some, rarely=False).outcome == "missed"
    bad = BY_NAME["output_1e6"]
    assert tried(bad, "gemma2", some, rarely=False).law == "logits_are_unchanged"
    assert tried(bad, "gemma2", some[:0], rarely=False).outcome == "missed"


def test_a_table_is_stored_as_it_is_read(tmp_path: Path) -> None:
    """Cells → lines → cells."""
    path = tmp_path / "table.json"
    cells = [
        Cell("naive_bias", "qwen2", "found", "projections_are_padded", 2, "said"),
        Cell("naive_bias", "gemma", "absent"),
        Cell("down_1e6", "gemma", "missed"),
    ]
    path.write_text(by_family.by_line(by_family.told(cells)), "utf-8")
    read = by_family.load(path)
    assert {*read} == {dataclasses.replace(c, message="") for c in cells}
