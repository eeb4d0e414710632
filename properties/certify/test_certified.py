"""The certifier's verdict on the grower under test, for all weights of a shape."""

import pytest

from ..laws import claims
from ..laws.registry import law, lossless
from .certificates import certify
from .command import cases, config_of, needs

CASES = {(case.family, case.name): case for case in cases()}


@law(lossless, claim=claims.LOGITS, tier="certified", version=2)
@pytest.mark.parametrize(
    ("family", "axis"),
    [
        pytest.param(
            *key,
            marks=pytest.mark.needs(*sorted(needs(case))),
        )
        for key, case in CASES.items()
    ],
)
def test_is_certified(grower, family: str, axis: str) -> None:
    """f' = f for all weights of this shape: both models' own code agrees over residues."""
    case = CASES[family, axis]
    found = certify(grower, config_of(case.family, case.fields), case.target)
    if found.verdict in ("undecided", "declined"):
        pytest.skip(f"not certified, so only sampled: {found.reason}")
    assert found.verdict == "certified", found.reason
