"""The article's ladder holds: every step within its tolerance, and each one a step up.

On the shipped model, or the one of --stablelm; on every kernel and dtype that this
machine has. A run on a machine without a GPU says so in its skips.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from properties.errors import ledger, storage

from . import kernels, ladder, steps
from .kernels import KERNELS, Kernel
from .ladder import Column, Subject
from .steps import ALONE, STEPS, Step

COLUMNS = [
    pytest.param(
        kernel,
        dtype,
        id=f"{kernel.id}-{dtype}",
        marks=pytest.mark.xdist_group(f"ladder-{dtype}"),  # one truth
    )
    for kernel in KERNELS
    for dtype in kernel.dtypes
]
every_column = pytest.mark.parametrize(("kernel", "dtype"), COLUMNS)


@functools.cache
def subject_at(path: str | None) -> Subject:
    return ladder.load(path)


@functools.cache
def column_of(subject: Subject, kernel: Kernel, dtype: str) -> Column:
    """A column is measured once, and put into the error ledger."""
    found = ladder.column(subject, kernel, dtype)
    ladder.record(found)
    return found


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Subject:
    return subject_at(ladder.chosen(request.config.option.stablelm))


@pytest.fixture
def column(subject: Subject, kernel: Kernel, dtype: str) -> Column:
    if reason := kernel.missing():
        pytest.skip(reason)
    return column_of(subject, kernel, dtype)


@every_column
def test_every_step_is_within_its_tolerance(column: Column, kernel: Kernel, dtype: str):
    """|Δ loss| ≤ TOLERANCES, for the recipe, scaled, masked and centred."""
    checked = 0
    for row in taken(column):
        bound = steps.tolerance(row, dtype, kernel)
        if bound is None:
            continue
        delta = column.relative(row)
        assert abs(delta) <= bound.most, (
            f"{steps.label(row)}: {delta:+.3g} ({bound.why})"
        )
        checked += 1
    assert checked >= 8


@every_column
def test_an_exact_growth_is_as_near_the_truth_as_the_original(column: Column):
    """‖grown − truth‖ ≤ 2 ‖original − truth‖, both in this dtype on this kernel."""
    exact = [row for row in taken(column) if row.kind == "exact"]
    for row in exact:
        ratio = column.ratio(row)
        assert ratio <= kernels.TWICE, f"{steps.label(row)}: {ratio:.3g} times"
    assert len(exact) == 2 * len(solutions(column))


@every_column
def test_the_ladder_is_ordered(column: Column):
    """Every step brings the logits nearer to the truth, by at least the factor NEARER.

    Of the logits, not the loss: a model that is thrown about can be luckier by chance.
    """
    for solution in solutions(column):
        rows = [r for r in STEPS if r.solution == solution and r.kind != "exact"]
        rows = [r for r in rows if r.kind != "scaled"] + [exact_step(solution)]
        for before, after in itertools.pairwise(rows):
            far, near = (column.cells[r].distance for r in (before, after))
            assert far >= steps.NEARER * near, (
                f"{before.name}: {far:.3g}, then {near:.3g}"
            )
        assert len(rows) >= 2


@every_column
def test_padding_alone_costs_more_than_the_recipe(column: Column):
    """|Δ loss| of what is only padded is at least WORSE times that of the whole recipe."""
    for solution, recipe in ((1, STEPS[9]), (2, STEPS[4])):
        padded = next(r for r in STEPS if r.solution == solution)
        assert recipe.kind == "recipe"
        assert abs(column.relative(padded)) >= steps.WORSE * abs(
            column.relative(recipe)
        )


@every_column
def test_each_omission_alone_is_worse(column: Column, kernel: Kernel, dtype: str):
    """Every line that is left out of an exact growth costs FAR more than rounding does."""
    exact = column.cells[exact_step(2)].distance
    unit = steps.precision(dtype, kernel)
    rows = [r for r in ALONE if unit != "bfloat16" or r.omits != {"eps"}]
    for row in rows:
        assert column.cells[row].distance >= steps.FAR[unit] * exact, row.name
    assert len(rows) >= 4


def taken(column: Column) -> list[Step]:
    """The ladder's steps whose head_dim the kernel takes."""
    return [row for row in STEPS if row in column.cells]


def solutions(column: Column) -> list[int]:
    """The solutions that the kernel takes: all three, or two where 35 is no head_dim."""
    found = sorted({row.solution for row in taken(column)})
    assert found == ([1, 2, 3] if column.kernel.multiple == 1 else [1, 2])
    return found


def exact_step(solution: int) -> Step:
    return next(r for r in STEPS if r.solution == solution and r.policy == "centred")


# --- the committed results ------------------------------------------------------------

# How far a recomputed loss may be from the committed one, relative to the original: the
# order of the sums is another on another processor. bfloat16: u, 2⁻⁹. float32: 8 u.
# float64: eager's softmax is in float32; elsewhere rounding.
MEASURED = sorted(ladder.RESULTS.parent.glob("ladder-*.json"))
NOISE = {"bfloat16": 4e-3, "float32": 1e-6, "float64": 1e-7}


@every_column
def test_the_committed_results_are_what_is_measured(
    subject: Subject, kernel: Kernel, dtype: str
):
    """The results committed for this device have every cell, and each is found again."""
    if subject.name != "stablelm":
        pytest.skip("the committed results are those of the shipped model")
    if kernel not in kernels.available():
        pytest.skip(kernel.missing() or f"{kernel.id}: results are those of the GPU")
    committed = of_this_device()
    column = column_of(subject, kernel, dtype)
    where = (subject.name, dtype, kernel.name, kernels.device_name(kernel.device))
    found = {
        (steps.label(row), *where): (column.original.loss, cell.loss)
        for row, cell in column.cells.items()
    }
    here = (dtype, kernel.name)
    assert found.keys() == {
        k for k, x in committed.items() if (x.dtype, x.kernel) == here
    }
    for key, (original, grown) in found.items():
        old = committed[key]
        noise = NOISE[old.dtype] * max(original, grown)
        assert abs(original - old.original) <= noise, key
        assert abs(grown - old.grown) <= noise, key


def test_the_committed_results_are_of_columns_that_are_measured():
    """No dtype of a kernel that runs here, but those that the test above measures."""
    ran = kernels.available()
    names = {kernel.name for kernel in ran}
    found = {
        (x.dtype, x.kernel) for x in of_this_device().values() if x.kernel in names
    }
    assert found == {(dtype, kernel.name) for kernel in ran for dtype in kernel.dtypes}


def of_this_device() -> dict[tuple[str, ...], ledger.Loss]:
    """The committed losses of the shipped model on this device; skips without them."""
    if not ladder.results().is_file():
        pytest.skip(
            f"{ladder.results().name} is not committed: no such device has measured it "
            "yet. `python -m integration.ladder --write` makes it"
        )
    return storage.load(ladder.results()).losses


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_what_was_measured_elsewhere_is_within_its_tolerances(path: Path):
    """Each loss, and each exact growth's distance from the truth, as they were recorded."""
    book = storage.load(path)
    bounded = [
        (x, x.tolerance) for x in book.losses.values() if x.tolerance is not None
    ]
    for loss, most in bounded:
        assert abs(loss.relative) <= most, loss
    for record in book.records.values():
        assert record.ratio <= kernels.TWICE, record.name
    assert len(bounded) >= 8
    assert len(book.records) >= 4


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_the_picture_is_that_of_the_committed_results(path: Path):
    """Each picture is what `python -m integration.ladder --write` draws."""
    drawn = ladder.picture(storage.load(path))
    assert path.with_suffix(".svg").read_text(encoding="utf-8") == drawn


# --- the ladder itself ------------------------------------------------------------------


def test_a_kernel_of_multiples_of_8_is_measured_where_it_can_be(subject: Subject):
    """FlashAttention-3 takes no head_dim of 35 or 71: solution 3 is left out, no more."""
    eager = kernels.named("eager", "cpu")
    rows = [exact_step(solution) for solution in (1, 2, 3)]
    found = ladder.column(subject, replace(eager, multiple=8), "float32", rows)
    assert list(found.cells) == rows[:2]


def test_the_article_s_sizes():
    """2048 → 40 heads, head_dim 80, 36 heads of 71."""
    from transformers import StableLmConfig

    config = StableLmConfig(
        hidden_size=2048, num_attention_heads=32, num_key_value_heads=32
    )
    sizes = steps.targets(config)
    got = [(s["num_attention_heads"], s["hidden_size"]) for s in sizes.values()]
    assert got == [(40, 2560), (32, 2560), (36, 2556)]


def test_every_omission_is_one_that_is_known():
    named = {name for row in STEPS + ALONE for name in row.omits}
    assert named == set(steps.OMISSIONS)


def test_a_missing_model_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ladder, "SHIPPED", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=re.escape("integration/train.py stablelm")
    ):
        ladder.load()
