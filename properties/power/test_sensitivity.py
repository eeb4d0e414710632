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
    lines = zip(
        markdown(found).splitlines(), PATH.read_text().splitlines(), strict=True
    )
    assert all(alike(now, stored) for now, stored in lines), (
        "run python -m properties.power.sensitivity, and look at what changed"
    )


def alike(now: str, stored: str) -> bool:
    """Equal but for the last column, assert_close's, whose sizes may be neighbours."""
    *own, last, end = now.split("|") if "|" in now else (now, "", "")
    *known, stored_last, stop = stored.split("|") if "|" in stored else (stored, "", "")
    return (own, end) == (known, stop) and near(last.strip(), stored_last.strip())


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
    assert alike("| q | float32 | 1e-5 | 1e-7 |", "| q | float32 | 1e-5 | 1e-6 |")
    assert not alike("| q | float32 | 1e-5 | 1e-7 |", "| q | float32 | 1e-4 | 1e-7 |")
    assert not alike("said", "said otherwise")


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
