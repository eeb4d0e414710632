"""The certifier on the whole zoo: no to every known-bad grower, yes to the good ones."""

import pytest

from ..growers.known_bad import FAULTS, Fault
from ..growers.known_good import GROWERS, REFERENCE, Good
from ..growers.needs import has
from .certificates import Certificate, certify
from .command import Case, cases, config_of, needs

# all axes at once show most faults: those growths first
ORDER = sorted(cases(), key=lambda case: not case.name.startswith("all"))
EVERYTHING = [c for c in ORDER if c.name in ("all", "all, tied", "all, parallel")]
# those that differ from growproof's own where nothing must be asked for; the others are
# in test_certificates
EXTRA = {"dealt", "vocab"}
# where some faults show that others hide at: a word of the growth's name
SHOWN = {
    "third_layer_norm": "deeper", "third_layer_query": "deeper", "q_scale_by_width": "dealt",
    "activation_reset": "gelu", "embedding_new_lanes": "no biases",
}  # fmt: skip
ASKED = [REFERENCE, *(g for g in GROWERS if not EXTRA & {*g.with_features})]


def certificate(grower, case) -> Certificate:
    return certify(grower, config_of(case.family, case.fields), case.target)


@pytest.mark.parametrize(
    "fault",
    [f for f in FAULTS if f.function],
    ids=lambda f: f.name,
)
def test_known_bad_growers_are_refused(fault: Fault) -> None:
    """Some growth of the built-in set is refused, with a reason: the likeliest first."""

    def unlikely(case: Case) -> tuple[bool, bool]:
        claimed = fault.with_features and needs(case) >= {*fault.with_features}
        shown = SHOWN.get(fault.name)
        named = shown in case.name if shown else case.name.split()[-1] in fault.name
        return not has(case.family, fault.needs), not (claimed or named)

    asked = sorted(ORDER, key=unlikely)
    found = (certificate(fault, case) for case in asked)
    refused = next((c for c in found if c.verdict == "refused"), None)
    assert refused, f"no growth of {fault.name} is refused"
    assert refused.reason


@pytest.mark.parametrize("case", EVERYTHING, ids=lambda c: f"{c.family}, {c.name}")
@pytest.mark.parametrize("good", ASKED, ids=lambda g: g.name)
def test_known_good_growers_are_certified(good: Good, case) -> None:
    """All axes at once: scatters, centred, permuted and duplicated."""
    found = certificate(good, case)
    assert found.verdict == good.certificate, found.reason
