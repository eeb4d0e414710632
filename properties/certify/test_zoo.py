"""The certifier on the whole zoo: no to every known-bad grower, yes to the good ones."""

import pytest

from ..growers.known_bad import FAULTS, Fault
from ..growers.known_good import GROWERS, REFERENCE, Good
from .certificates import Certificate, certify
from .command import cases, config_of

# all axes at once show most faults: those growths first
ORDER = sorted(cases(), key=lambda case: not case.name.startswith("all"))
# certificates speak of float64 weights: a fault of bf16 alone is for the laws
BF16 = ("bf16_underflows", "bf16_comes_back_float32")


def verdicts(grower) -> list[Certificate]:
    """The certificates of a grower, until one is refused."""
    found: list[Certificate] = []
    for case in ORDER:
        found.append(certify(grower, config_of(case.family, case.fields), case.target))
        if found[-1].verdict == "refused":
            break
    return found


@pytest.mark.parametrize(
    "fault",
    [f for f in FAULTS if f.function and f.name not in BF16],
    ids=lambda f: f.name,
)
def test_known_bad_growers_are_refused(fault: Fault) -> None:
    """Some growth of the built-in set is refused, with a reason."""
    last = verdicts(fault)[-1]
    assert last.verdict == "refused", f"{last.verdict}: {last.reason}"
    assert last.reason


@pytest.mark.parametrize("good", [REFERENCE, *GROWERS], ids=lambda g: g.name)
def test_known_good_growers_are_not_refused(good: Good) -> None:
    """Every growth of the built-in set is certified: scatters, centred and duplicated."""
    for certificate in verdicts(good):
        assert certificate.verdict == "certified", certificate.reason
