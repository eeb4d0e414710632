"""The table of sensitivity.md, recomputed."""

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
    assert markdown(found) == PATH.read_text(), (
        "run python -m properties.power.sensitivity, and look at what changed"
    )


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
