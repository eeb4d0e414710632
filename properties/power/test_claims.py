"""Every claim has its place, in both directions, and the tables are these."""

from collections import Counter
from pathlib import Path

import pytest

from ..laws.registry import ROOM, SUITE, law_of, laws, modules
from ..proofs import claims as proofs
from .claims import CLAIMS, theorems, updated

README = Path(__file__).parents[2] / "README.md"


def test_every_law_makes_a_claim_of_the_table() -> None:
    """No law of the suite is left out of it, and its claims are told once."""
    told = laws(SUITE).values()
    assert len(told) > 50
    assert {law.claim for law in told} <= set(CLAIMS)
    assert len({claim.sentence for claim in CLAIMS}) == len(CLAIMS)


def test_every_test_among_the_laws_is_one() -> None:
    """What has no @law is not judged, and no page tells of it."""
    tests = [
        test
        for module in modules(ROOM)
        for name, test in vars(module).items()
        if name.startswith("test_") and test.__module__ == module.__name__
    ]
    assert len(tests) > 50
    assert [test.__qualname__ for test in tests if not law_of(test)] == []


def test_every_theorem_is_in_one_claim() -> None:
    """Laws and claims cite each main theorem once, and no theorem that is not there."""
    counts = Counter(name for claim in CLAIMS for name in theorems(claim))
    main = {theorem.name for theorem in proofs.claims()}
    assert counts.keys() == main, counts.keys() ^ main
    assert set(counts.values()) == {1}


@pytest.mark.skipif(
    not README.exists(), reason="installed from a wheel: no README here"
)
def test_readme_table_is_made_from_the_claims() -> None:
    """`python -m properties.power.claims` would change nothing."""
    assert updated(README.read_text()) == README.read_text()
