"""The certifier's verdict on the grower under test, for all weights of a shape."""

import pytest

from .certificates import Case, cases, certify, config_of
from .strategies import AXES

pytestmark = [pytest.mark.lossless]
CASES = {(case.family, case.name): case for case in cases()}


def features(case: Case) -> set[str]:
    """What a grower must claim for this growth to be its business."""
    fields = case.fields
    found = set(AXES) if case.name.startswith("all") else {case.name} & set(AXES)
    flags = ("attention_bias", "mlp_bias", "use_qkv_bias")
    return found | {
        feature
        for feature, present in {
            case.family: True,
            "gqa": fields["num_key_value_heads"] < fields["num_attention_heads"],
            "biases": any(fields.get(flag) for flag in flags),
            "tied": fields.get("tie_word_embeddings"),
            "parallel": fields.get("use_parallel_residual"),
        }.items()
        if present
    }


@pytest.mark.parametrize(
    ("family", "axis"),
    [
        pytest.param(*key, marks=pytest.mark.needs(*sorted(features(case))))
        for key, case in CASES.items()
    ],
)
def test_is_certified(grower, family: str, axis: str) -> None:
    """f' = f for all weights of this shape, decided exactly from the recovered map."""
    case = CASES[family, axis]
    found = certify(grower, config_of(case.family, case.fields), case.target)
    if found.verdict == "undecided":
        pytest.skip(f"not decided, so only sampled: {found.reason}")
    assert found.verdict == "certified", found.reason
