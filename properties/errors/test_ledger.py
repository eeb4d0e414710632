"""The ledger's own tests: measuring, and one record for each key."""

import json
import math
import random

import pytest
import torch

from . import storage
from .ledger import measure
from .samples import book, comparison, sample


def test_measure_counts_unit_roundoffs() -> None:
    """One ulp beside 1 is 2u: ratio 2/√n, one ulp, relative 2u."""
    expected = torch.tensor([[0.5, 1.0], [0.25, 0.0]])
    actual = expected.clone()
    actual[0, 1] = 1 + 2**-23
    got = measure(actual, expected, n=4, dtype=torch.float32)
    assert got == (1.0, 1.0, 2**-23, (0, 1))


def test_measure_is_elementwise_in_ulps_and_normwise_in_ratio() -> None:
    expected = torch.tensor([1.0, 2.0**-20], dtype=torch.float64)
    got = measure(expected + 2.0**-40, expected, n=1, dtype=torch.float32)
    assert got.ulps == pytest.approx(2**-40 / 2**-43)
    assert got.relative == pytest.approx(2**-40)


def test_scale_is_of_the_ratio_alone() -> None:
    one = torch.tensor([1.0])
    got = measure(one + 2**-20, one, n=1, dtype=torch.float32, scale=1 / 16)
    assert got == (2**4 * 2**4, 2**3, 2**-20, (0,))


@pytest.mark.parametrize("value", [0.0, math.inf, -math.inf, math.nan])
def test_equal_is_no_error(value: float) -> None:
    x = torch.full((3,), value)
    assert measure(x, x.clone(), n=3, dtype=torch.float32)[:3] == (0, 0, 0)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (math.nan, 1.0),
        (1.0, math.nan),
        (math.inf, -math.inf),
        (1.0, math.inf),
        (1e-30, 0),
    ],
)
def test_mismatch_is_infinite(actual: float, expected: float) -> None:
    got = measure(
        torch.tensor([actual]), torch.tensor([expected]), n=1, dtype=torch.float32
    )
    assert math.isinf(got.ratio)


@pytest.mark.parametrize("shape", [(3, 1), (0,)])
def test_measuring_nothing_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot measure"):
        measure(torch.zeros(shape), torch.zeros(shape[:1]), n=1, dtype=torch.float32)


def test_maximum_is_exact_and_quantiles_to_a_bin() -> None:
    ratios = [random.Random(1).lognormvariate(0, 2) for _ in range(1)] + [
        1.01**i for i in range(1000)
    ]
    (record,) = book(*(comparison(r, i) for i, r in enumerate(ratios))).records.values()
    assert record.ratio == max(ratios)
    assert record.example == f"case {ratios.index(max(ratios))}"
    for p in (0.5, 0.9, 0.99):
        true = sorted(ratios)[math.ceil(p * len(ratios)) - 1]
        assert record.quantile(p) == pytest.approx(true, rel=0.05)


def test_comparisons_of_one_example_are_one_case() -> None:
    (record,) = book(*(comparison(r, 0) for r in (1.0, 3.0, 2.0))).records.values()
    assert (record.count, record.cases, record.ratio) == (3, 1, 3.0)
    assert record.quantile(0.5) == pytest.approx(3.0, rel=0.05)


def test_merging_does_not_depend_on_the_order() -> None:
    parts = [sample(seed, 20) for seed in range(4)]
    texts = set()
    for order in (parts, parts[::-1]):
        whole = book()
        for part in order:
            whole.merge(part)
        texts.add(json.dumps([storage.pack(r) for r in whole.records.values()]))
    assert len(texts) == 1
