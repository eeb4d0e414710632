"""Every claim has its place, in both directions, and the README's table is this one."""

from collections import Counter
from pathlib import Path

import pytest

from ..proofs import claims as proofs
from .claims import CLAIMS, markdown, updated

README = Path(__file__).parents[2] / "README.md"
SUITE = Path(__file__).parents[1]
LAW_FILES = [
    *SUITE.glob("laws/test_*.py"),
    *SUITE.glob("laws/reference/test_*.py"),
    SUITE / "certify" / "test_certified.py",
]


def laws() -> set[str]:
    """Every law that the suite has, by its name without test_."""
    found: set[str] = set()
    for file in LAW_FILES:
        text = file.read_text()
        found |= {
            line.split("(")[0].removeprefix("def test_")
            for line in text.splitlines()
            if line.startswith("def test_")
        }
    return found | {"worst_cases_stay_within_budget"}


def test_every_law_is_in_one_claim() -> None:
    """Claims name each law once, and no law that is not there."""
    counts = Counter(law for claim in CLAIMS for law in claim.laws)
    assert counts.keys() == laws(), counts.keys() ^ laws()
    assert set(counts.values()) == {1}, [law for law, n in counts.items() if n > 1]


def test_every_theorem_is_in_one_claim() -> None:
    """Claims name each main theorem once, and no theorem that is not there."""
    counts = Counter(name for claim in CLAIMS for name in claim.theorems)
    theorems = {claim.name for claim in proofs.claims()}
    assert counts.keys() == theorems, counts.keys() ^ theorems
    assert set(counts.values()) == {1}


def test_proofs_that_laws_cite_exist() -> None:
    """A docstring's `Proof: File.v` is a file of the build."""
    built = {Path(name).name for name in proofs.built()}
    cited = 0
    for file in LAW_FILES:
        for word in file.read_text().split():
            if word.strip('.,"()').endswith(".v"):
                assert word.strip('.,"()').rsplit("/")[-1] in built, (file.name, word)
                cited += 1
    assert cited > 5


@pytest.mark.skipif(
    not README.exists(), reason="installed from a wheel: no README here"
)
def test_readme_table_is_made_from_the_claims() -> None:
    """`python -m properties.power.claims` would change nothing."""
    text = README.read_text()
    assert markdown() in text
    assert updated(text) == text
