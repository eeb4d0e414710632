"""The ledger's own tests: measuring, merging, storing, comparing, and the pytest items.

Its runs are real ones, in a subprocess: a file of laws that record what LAWS tells them.
"""

import json
import math
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
import torch

from . import ledger
from .ledger import KEY, Comparison, Ledger, LedgerError, Loss, measure

NORM = "test_norm"
PACKAGE = __package__ or "properties.errors"  # growproof.properties.errors in the wheel
ROOT = Path(__file__).parents[PACKAGE.count(".") + 1]


def comparison(ratio: float, case: object, **changes: object) -> Comparison:
    fields = {
        "law": NORM, "tap": "logits", "family": "llama", "dtype": "float32",
        "kernel": "blas", "device": "cpu", "size": "tiny", "ratio": ratio,
        "ulps": ratio, "relative": ratio * 2**-24, "budget": 16.0,
        "example": f"case {case}",
    }  # fmt: skip
    return Comparison(**fields | changes)  # type: ignore[arg-type]


def book(*comparisons: Comparison, **environment: object) -> Ledger:
    """A ledger as a run of growproof:grow would leave it."""
    made = Ledger(run={"tests": 1, "failed": 0, "growths": 0}, created=ledger.now())
    made.environment = ledger.environment() | {"grower": "growproof:grow"} | environment
    for c in comparisons:
        made.record(tuple(getattr(c, name) for name in KEY)).add(c)
    return made


def sample(
    seed: int, n: int, scale: float = 1.0, tap: str = "logits", device: str = "cpu"
) -> Ledger:
    """n random cases of a heavy-tailed law, half of them exact."""
    draw = random.Random(seed)
    ratios = [draw.choice([0.0, draw.lognormvariate(-1.0, 1.5)]) for _ in range(n)]
    cases = enumerate(ratios)
    return book(
        *(comparison(r * scale, (seed, i), tap=tap, device=device) for i, r in cases)
    )


def narrow(seed: int, n: int, scale: float = 1.0) -> Ledger:
    """n random cases like those measured at float32 logits: 0.4, and 0.8 at 90 %."""
    draw = random.Random(seed)
    ratios = [scale * draw.lognormvariate(-0.9, 0.5) for _ in range(n)]
    return book(*(comparison(r, (seed, i)) for i, r in enumerate(ratios)))


def loss(relative: float, **changes: object) -> Loss:
    fields = {
        "name": "centred", "model": "tiny", "dtype": "float32", "kernel": "sdpa",
        "device": "cpu", "original": 2.0, "grown": 2.0 * (1 + relative),
        "relative": relative, "tolerance": None, "published": 0.005,
    }  # fmt: skip
    return Loss(**fields | changes)  # type: ignore[arg-type]


def states(base: Ledger, current: Ledger, factor: float = 2.0) -> list[str]:
    return [change.state for change in ledger.compare(base, current, factor=factor)]


# --- measuring ----------------------------------------------------------------------


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


# --- aggregating and storing --------------------------------------------------------


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
        texts.add(json.dumps([ledger._pack(r) for r in whole.records.values()]))
    assert len(texts) == 1


def full() -> Ledger:
    made = book(comparison(1.5, 1), comparison(math.nan, 2, tap="norm"), seed=3)
    for x in (loss(0.001), loss(math.nan, name="broken", original=2.0)):
        made.add_loss(x)
    ledger.accept(made, made, "first", 2.0)
    return made


def test_stored_ledger_keeps_the_schema_and_comes_back_the_same() -> None:
    text = ledger.dumps(full())
    jsonschema.validate(json.loads(text), ledger.SCHEMA)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert ledger.dumps(ledger.loads(text)) == text
    assert json.loads(text)["comparisons"][1]["ratio"] is None


def test_schema_is_a_schema_that_knows_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(ledger.SCHEMA)
    data = json.loads(ledger.dumps(full()))
    spots = [data, data["environment"], data["run"], *data["accepted"],
             *data["comparisons"], *data["losses"]]  # fmt: skip
    assert len(spots) > 6
    for spot in spots:
        spot["surprise"] = 1
        with pytest.raises(LedgerError, match="surprise"):
            ledger.loads(json.dumps(data))
        del spot["surprise"]
    ledger.loads(json.dumps(data))


GOOD = ledger.dumps(book(comparison(1.5, 1)))
BAD = {
    "empty": ("", "the file is empty"),
    "truncated": (GOOD[: len(GOOD) // 2], "truncated"),
    "newer": (GOOD.replace('"schema_version": 1', '"schema_version": 2'), "newer"),
    "nan": (GOOD.replace('"ratio": 1.5', '"ratio": NaN'), "finite numbers only"),
    "overflow": (GOOD.replace('"ratio": 1.5', '"ratio": 1e999'), "finite numbers only"),
    "misspelt key": (GOOD.replace('"created"', '"creatde"'), "'created' is a required"),
    "another file": ('{"benchmarks": []}', "not an error ledger"),
    "tampered": (GOOD.replace('"cases": 1', '"cases": 2'), "inconsistent"),
    "another grower": (GOOD.replace("growproof:grow", "other:grow"), "other:grow"),
}


@pytest.mark.parametrize("name", [n for n in BAD if n != "another grower"])
def test_bad_input_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    text, message = BAD[name]
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(LedgerError, match=message):
        ledger.load(tmp_path / "bad.json")


def test_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "errors.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        ledger.write(path, GOOD)
    assert [p.name for p in tmp_path.iterdir()] == ["errors.json"]
    assert path.read_text() == "old"


# --- comparing ----------------------------------------------------------------------


def test_same_grower_is_never_worse_under_another_seed_or_profile() -> None:
    """Though its maxima differ by far more than the factor."""
    runs = [sample(seed, n) for seed in range(30) for n in (40, 400)]
    maxima = [r.ratio for run in runs for r in run.records.values()]
    assert max(maxima) > 10 * min(maxima)
    assert {s for a in runs for b in runs for s in states(a, b)} == {"same"}


def test_a_slip_under_every_budget_is_worse() -> None:
    """Zeros turned into a rounding error, in most cases, under a budget of 16."""
    rounded_twice = book(*(comparison(random.Random(i).random(), i) for i in range(20)))
    exact = book(*(comparison(0.0, i) for i in range(12)))
    assert states(exact, rounded_twice) == ["worse"]
    assert states(rounded_twice, exact) == ["improved"]
    assert states(narrow(1, 50), narrow(2, 50, scale=4)) == ["worse"]
    assert states(narrow(1, 50), narrow(2, 50, scale=4), factor=4) == ["same"]
    assert states(sample(1, 100), sample(2, 100, scale=20)) == ["worse"]


def test_one_stray_bit_over_exact_zeros_is_not_worse() -> None:
    exact = book(*(comparison(0.0, i) for i in range(50)))
    stray = book(*(comparison(float(i == 60), i) for i in range(50, 100)))
    assert states(exact, stray) == ["same"]


def test_same_cases_compare_their_maxima() -> None:
    """By 2 on one machine, by 4 where another processor rounds them, else not at all."""
    tail = [0.0] * 30 + [0.5]

    def times(x: float, shift: int = 0, **environment: object) -> Ledger:
        cases = ((r * x, i + shift) for i, r in enumerate(tail))
        return book(*(comparison(r, i) for r, i in cases), **environment)

    assert states(times(1), times(1.9)) == ["same"]
    assert states(times(1), times(2.1)) == ["worse"]
    assert states(times(1), times(3.9, threads=99)) == ["same"]
    assert states(times(1), times(4.1, cpu="another")) == ["worse"]
    assert states(times(1), times(9, shift=1)) == ["same"]


def test_one_fixed_case_compares_its_error_above_the_floor() -> None:
    def real(ratio: float) -> Ledger:
        return book(comparison(ratio, "real model"), cpu=str(ratio))

    assert states(real(1.0), real(1.9)) == ["same"]
    assert states(real(1.0), real(2.1)) == ["worse"]
    assert states(real(1.0), real(0.4)) == ["improved"]
    assert states(real(0.0), real(1 / 32)) == ["same"]
    assert states(real(0.0), real(0.1)) == ["worse"]
    assert states(real(1.0), real(math.nan)) == ["worse"]
    assert states(real(math.nan), real(math.nan)) == ["same"]


def test_new_and_gone() -> None:
    one = [comparison(1.0, i) for i in range(20)]
    two = [*one, *(comparison(1.0, i, tap="norm") for i in range(20))]
    assert states(book(*one), book(*two)) == ["new", "same"]
    assert states(book(*two), book(*one)) == ["gone", "same"]
    assert states(book(*one), book()) == ["gone"]
    assert states(book(), book(*one)) == ["new"]


def test_missing_by_chance_is_rare_and_not_gone() -> None:
    """Layer 3 was drawn twice in 40 cases; the attention tap in every one."""
    base = sample(1, 40)
    base.merge(book(*(comparison(1.0, i, tap="layers.3.query") for i in range(2))))
    assert states(base, sample(2, 40)) == ["rare", "same"]
    assert states(base, sample(1, 40)) == ["gone", "same"], "the same cases"
    base.merge(sample(1, 40, tap="attention"))
    assert sorted(states(base, sample(2, 40))) == ["gone", "rare", "same"]


def test_a_run_that_draws_too_little_to_judge_a_law_is_gone() -> None:
    assert states(sample(1, 40), sample(2, 4)) == ["gone"]
    assert states(sample(1, 4), sample(2, 4)) == ["rare"], "nor could the baseline"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"torch": "1.0.0"}, False),
        ({"blas": "none"}, False),
        ({"cpu_capability": "Z80"}, False),
        ({"seed": 7, "profile": "thorough", "commit": "f" * 40, "threads": 9}, True),
        ({"transformers": "9.9", "python": "4.0", "cpu": "other"}, True),
    ],
)
def test_comparable_environments(change: dict[str, object], same: bool) -> None:
    base, other = sample(1, 40), sample(1, 40)
    other.environment |= change
    assert states(base, other) == ["same" if same else "not comparable"]


def test_another_device_is_not_comparable() -> None:
    on_gpu = sample(1, 40, device="NVIDIA H100")
    assert sorted(states(on_gpu, sample(1, 40))) == ["new", "not comparable"]


def test_another_grower_is_an_error_unless_asked_for() -> None:
    other = sample(1, 40)
    other.environment["grower"] = "other:grow"
    with pytest.raises(LedgerError, match="other:grow"):
        ledger.compare(sample(1, 40), other)
    assert ledger.compare(sample(1, 40), other, across=True)


def test_losses_compare_by_their_distance_from_the_original() -> None:
    def ladder(*relatives: float) -> Ledger:
        made = book()
        for i, relative in enumerate(relatives):
            made.add_loss(loss(relative, name=str(i)))
        return made

    assert states(ladder(1e-7, 0.001), ladder(-2e-7, 0.0019)) == ["same", "same"]
    assert states(ladder(1e-7), ladder(3e-7)) == ["worse"]
    assert states(ladder(0.001), ladder(-0.0021)) == ["worse"]
    assert states(ladder(0.001), ladder(math.nan)) == ["worse"]
    assert states(ladder(0.001), ladder(0.0)) == ["improved"]
    assert states(ladder(0.1, 0.1), ladder(0.1)) == ["gone", "same"]
    assert states(ladder(0.1), ladder(0.1, 0.1)) == ["new", "same"]


# --- in pytest ----------------------------------------------------------------------

LAWS = """
import json, os, pytest
from PACKAGE.ledger import record, set_environment
from PACKAGE.test_ledger import comparison
LAWS = json.loads(os.environ["LAWS"])
set_environment(grower="growproof:grow")

@pytest.mark.parametrize("case", range(24))
@pytest.mark.parametrize("law", LAWS)
def test_case(law, case):
    if LAWS[law] == "fail":
        assert False
    if LAWS[law] == "crash" and case == 3:
        os._exit(1)
    if LAWS[law] is not None:
        record(comparison(LAWS[law] * (1 + case / 24), case, law=law))
"""


PYTEST = f"-q -p {PACKAGE}.plugin -p xdist -p no:cacheprovider".split()


class Runs:
    """pytest, as a user calls it, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "test_laws.py").write_text(LAWS.replace("PACKAGE", PACKAGE))
        strict = 'strict = true\nfilterwarnings = ["error"]\naddopts = ["-ra"]\n'
        toml = f'[pytest]\n{strict}markers = ["reference"]\n'
        (folder / "pytest.toml").write_text(toml)

    def __call__(self, laws: Mapping[str, object], *options: str) -> tuple[int, str]:
        return self._python("-m", "pytest", *PYTEST, *options, laws=laws)

    def codes(self, runs: list[tuple[str, ...]]) -> list[int]:
        """Exit codes of several runs, in one process: for those that never start."""
        lines = [
            f"print('EXIT', pytest.main({[*PYTEST, *options]}))" for options in runs
        ]
        code = "; ".join(["import pytest", *lines])
        _, text = self._python(
            "-c", code.replace("))", ").value)"), laws={"test_a": 0.0}
        )
        return [int(n) for n in re.findall(r"EXIT (\d)", text)]

    def _python(self, *arguments: str, laws: Mapping[str, object]) -> tuple[int, str]:
        command = [sys.executable, *arguments]
        env = {**os.environ, "LAWS": json.dumps(laws), "PYTHONPATH": str(ROOT)}
        env = {k: v for k, v in env.items() if not k.startswith("PYTEST")}
        env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half the time to start
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=env,
            text=True,
            capture_output=True,
            timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    def files(self) -> dict[str, str]:
        return {p.name: p.read_text() for p in self.folder.glob("*.json")}


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def stored(run: Runs, name: str = "errors.json") -> Ledger:
    return ledger.load(run.folder / name)


def junit(run: Runs) -> dict[str, str]:
    """Each errors:: item of junit.xml → its failure, or "passed"."""
    cases = ET.parse(run.folder / "junit.xml").iter("testcase")
    found = {}
    for case in cases:
        if case.get("classname", "").startswith("errors"):
            assert case.get("name") not in found, "an item ran twice"
            failure = case.find("failure")
            found[case.get("name")] = "passed" if failure is None else failure.text
    return found


def test_workers_send_everything_and_the_verdict_is_one_item(run: Runs) -> None:
    """Two workers record what one process records, but for the time."""
    laws = {"test_a": 1.0, "test_b": 0.0}
    assert run(laws, "--errors-save=one.json")[0] == 0
    options = ("-n2", "--errors-save=two.json", "--errors-compare=one.json")
    code, text = run(laws, *options, "--junitxml=junit.xml")
    assert code == 0, text
    one, two = stored(run, "one.json"), stored(run, "two.json")
    assert [r.count for r in one.records.values()] == [24, 24]
    assert two.records == one.records
    assert junit(run) == {"test_a": "passed", "test_b": "passed"}
    code, text = run(
        laws | {"test_b": 1.0}, "-n2", *options[2:], "--junitxml=junit.xml"
    )
    assert code == 1, text
    assert "FAILED errors::test_b" in text
    found = junit(run)
    assert found["test_a"] == "passed"
    assert "worse: logits llama float32" in found["test_b"]


def test_gone_and_worse_fail_and_offline_agrees(run: Runs) -> None:
    from . import report

    laws: dict[str, object] = {"test_a": 1.0, "test_b": 0.0}
    assert run(laws, "--errors-save=base.json")[0] == 0
    for slip, code, word in (
        ({"test_c": 1.0}, 0, "1 new, 2 same"),
        ({"test_b": None}, 1, "1 gone, 1 same"),
        ({"test_b": 1.0}, 1, "1 worse, 1 same"),
    ):
        options = ("--errors-save=now.json", "--errors-compare=base.json")
        got, text = run(laws | slip, *options)
        assert (got, word in text) == (code, True), text
        files = [str(run.folder / name) for name in ("now.json", "base.json")]
        assert report.main(files) == code
        (run.folder / "now.json").unlink()
    got, _ = run(laws | {"test_b": 1.0}, options[1], "--errors-fail=1000")
    assert got == 0


def test_baseline_changes_only_with_a_reason_that_stays_in_it(run: Runs) -> None:
    save, compare = "--errors-save=errors.json", "--errors-compare=errors.json"
    assert run({"test_a": 0.0}, save)[0] == 0
    before = run.files()
    code, text = run({"test_a": 0.0}, save)
    assert (code, run.files()) == (4, before)
    assert "errors.json exists" in text
    assert run({"test_a": 1.0}, compare)[0] == 1
    failing = run({"test_a": 1.0, "test_b": "fail"}, compare, "--errors-accept=no")
    assert (failing[0], run.files()) == (1, before)
    assert "not accepted: 24 tests failed" in failing[1]
    assert run({"test_a": 1.0}, compare, "--errors-accept=new kernel")[0] == 0
    assert run({"test_a": 0.0}, save, "--errors-accept=and back")[0] == 0
    first, second = stored(run).accepted
    assert (first["reason"], first["summary"]) == ("new kernel", "1 worse")
    assert first["changes"][0].startswith("test_a: worse: logits llama float32")
    assert (second["reason"], second["summary"]) == ("and back", "1 improved")


def test_wrong_options_stop_before_the_run(run: Runs) -> None:
    (run.folder / "good.json").write_text(GOOD)
    compare = "--errors-compare=good.json"
    wrong = [
        (compare, "--errors-accept= "),
        ("--errors-accept=reason",),
        ("--errors-compare=missing.json",),
        ("--errors-compare=missing.json", "--errors-accept=reason"),
        ("--errors-save=missing/errors.json",),
        ("--errors-save=good.json",),
        (compare, "--errors-fail=0.5"),
        (compare, "--errors-fail=nan"),
    ]
    right = ("--collect-only",)
    assert run.codes([*wrong, right]) == [4] * len(wrong) + [0]
    assert run.files() == {"good.json": GOOD}


def test_bad_baselines_stop_before_the_run(run: Runs) -> None:
    before = {f"{i}.json": text for i, (text, _) in enumerate(BAD.values())}
    for name, text in before.items():
        (run.folder / name).write_text(text)
    new = ("--errors-save=new.json", "--errors-accept=reason")
    codes = run.codes([(f"--errors-compare={name}", *new) for name in before])
    codes += run.codes([(f"--errors-save={name}", new[1]) for name in before])
    assert codes == [4] * 2 * len(BAD)
    assert run.files() == before
    code, text = run({"test_a": 0.0}, "--errors-compare=0.json")
    assert (code, "0.json: the file is empty" in text) == (4, True), text


def test_incomplete_runs_are_neither_compared_nor_stored(run: Runs) -> None:
    save = "--errors-save=errors.json"
    code, text = run({"test_a": None}, save)
    assert (code, "recorded no comparison" in text) == (1, True)
    code, text = run({"test_a": 0.0, "test_b": "fail"}, save, "-x")
    assert (code, "stopped early" in text) == (1, True)
    code, text = run({"test_a": "crash"}, save, "-n2", "--max-worker-restart=1")
    assert (code, "are lost" in text) == (1, True), text
    assert run.files() == {}
