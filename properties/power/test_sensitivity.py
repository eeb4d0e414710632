"""The table of sensitivity.md, recomputed."""

import re

import pytest

from ..errors.comparison import compare
from ..errors.ledger import Ledger, recording
from . import sensitivity
from .sensitivity import JUDGES, PATH, PLANTS, Plant, good, judge, markdown, table


def test_table_is_the_committed_one() -> None:
    """sensitivity.md says what is measured, and the ledger is never behind a budget."""
    found = table()
    for line in found:
        budget, stored = (line.smallest[name] for name in ("budget", "ledger"))
        assert stored != "not caught", line
        if budget.startswith("1e"):
            assert float(stored) <= float(budget), line
    parts = zip(split(markdown(found)), split(PATH.read_text()), strict=True)
    assert all(near(now, stored) for now, stored in parts), (
        "run python -m properties.power.sensitivity, and look at what changed"
    )


def split(text: str) -> list[str]:
    """Cells of the table, and what stands between them."""
    return [cell.strip() for cell in text.split("|")]


def near(now: str, stored: str) -> bool:
    """Equal, or sizes next to each other: kernels of another machine round otherwise."""
    sizes = [re.fullmatch(r"1e(-?\d+)", cell) for cell in (now, stored)]
    if now == stored or not all(sizes):
        return now == stored
    return abs(int(sizes[0][1]) - int(sizes[1][1])) == 1  # type: ignore[index]


def test_only_neighbours_are_near() -> None:
    """A size, and no word, may be its neighbour."""
    assert near("1e-7", "1e-6")
    assert not near("1e-7", "1e-5")
    assert not near("not caught", "1e-2")


@pytest.mark.parametrize("dtype", sensitivity.ALL)
def test_nothing_planted_is_nothing_caught(dtype: str) -> None:
    """The good grower again: no judge objects, and every key is the same."""
    base, again = good(dtype), judge(Plant("nothing", (dtype,)), dtype, 1.0)
    assert not any(caught(base, again) for caught in JUDGES.values())
    assert {c.state for c in compare(base.run, again.run)} == {"same"}
    assert base.broken == again.broken == 0
    assert base.run.records


def test_judge_leaves_the_ledger_of_its_own_run_alone() -> None:
    """Planted errors are not recorded in the run that this test belongs to."""
    mine = Ledger()
    with recording(mine):
        assert judge(PLANTS[0], "float32", 1e-2).run.records
    assert not mine.records
