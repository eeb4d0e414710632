"""The certifier on the whole zoo: no to every known-bad grower, yes to the good ones."""

import pytest

from ..growers.known_bad import FAULTS, Fault
from ..growers.known_good import GROWERS, REFERENCE, Good
from .certificates import Certificate, certify
from .command import cases, config_of

# all axes at once show most faults: those growths first
ORDER = sorted(cases(), key=lambda case: not case.name.startswith("all"))
EVERYTHING = [c for c in ORDER if c.name in ("all", "all, tied", "all, parallel")]
# Certificates speak of real numbers, of weights in general position, and of a source in
# evaluation mode, eager, unfrozen: a fault of one precision, of special weights, or of
# another state of the source is for the laws.
SPECIAL = {
    "bf16_underflows", "bf16_comes_back_float32", "q_scale_missing_in_bf16",
    "q_off_in_fp16", "scale_in_own_dtype", "truncated", "subnormals_flushed",
    "zero_biases_filled", "unit_norms_kept", "equal_rows_merged", "zeros_are_new",
    "silent_layers_woken", "wrong_in_training", "wrong_where_frozen",
    "wrong_under_sdpa", "wrong_without_gradients",
}  # fmt: skip
# that (cos, sin) of an angle is a rotation is no identity of the field: not decided
UNDECIDED = {"turned"}


def certificate(grower, case) -> Certificate:
    return certify(grower, config_of(case.family, case.fields), case.target)


@pytest.mark.parametrize(
    "fault",
    [f for f in FAULTS if f.function and f.name not in SPECIAL],
    ids=lambda f: f.name,
)
def test_known_bad_growers_are_refused(fault: Fault) -> None:
    """Some growth of the built-in set is refused, with a reason."""
    found = (certificate(fault, case) for case in ORDER)
    refused = next((c for c in found if c.verdict == "refused"), None)
    assert refused, f"no growth of {fault.name} is refused"
    assert refused.reason


@pytest.mark.parametrize("case", EVERYTHING, ids=lambda c: f"{c.family}, {c.name}")
@pytest.mark.parametrize("good", [REFERENCE, *GROWERS], ids=lambda g: g.name)
def test_known_good_growers_are_certified(good: Good, case) -> None:
    """All axes at once: scatters, centred, permuted and duplicated."""
    found = certificate(good, case)
    wanted = "undecided" if good.name in UNDECIDED else "certified"
    assert found.verdict == wanted, found.reason
