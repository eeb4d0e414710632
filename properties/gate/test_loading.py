"""A grower is found, and can be called, before any law is run."""

import sys

import pytest

from ..laws.strategies import smallest
from . import loading as growers


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere:grow", "cannot import the grower nowhere:grow"),
        ("growproof:nothing", "cannot import the grower growproof:nothing"),
        ("growproof", "is named MODULE:CALLABLE or FILE.py:CALLABLE, got 'growproof'"),
        ("growproof:grwo", "did you mean grow?"),
        ("nowhere.py:grow", "there is no file nowhere.py"),
        ("growproof.cli:OK", "is a int, expected a callable"),
        ("growproof.padding:shrink_state", None),
        ("growproof.padding:check", None),
        ("growproof.table:count", r"must accept \(model, target\)"),
    ],
)
def test_growers_that_cannot_be_called(spec: str, message: str | None) -> None:
    """A grower is found and has the right signature before any law is run."""
    if message is None:
        assert growers.load_grower(spec).name == spec
        return
    with pytest.raises(growers.BrokenGrower, match=message):
        growers.load_grower(spec)


def test_programs_that_cannot_be_called() -> None:
    """A command names its source, destination and target; its failure is quoted."""
    with pytest.raises(growers.BrokenGrower, match=r"needs \{destination\}"):
        growers.command_grower("mygrow {source}")
    program = "import sys; sys.exit('no such model')"
    fields = "{source} {destination} {target_json}"
    failing = growers.command_grower(f'{sys.executable} -c "{program}" {fields}')
    case = smallest()[0]
    with pytest.raises(RuntimeError, match="exited 1 and left no checkpoint: no such"):
        failing(case.model(), case.target)
