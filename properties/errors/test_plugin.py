"""The plugin's own tests: real runs of pytest, in subprocesses, as a user calls it."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import pytest

from . import report, storage
from .ledger import Ledger
from .samples import BAD, GOOD

PACKAGE = __package__ or "properties.errors"  # growproof.properties.errors in the wheel
ROOT = Path(__file__).parents[PACKAGE.count(".") + 1]
LAWS = """
import json, os, pytest
from PACKAGE.ledger import record
from PACKAGE.samples import comparison
LAWS = json.loads(os.environ["LAWS"])

@pytest.mark.parametrize("case", range(24))
@pytest.mark.parametrize("law", LAWS)
def test_case(law, case, record_property):
    if LAWS[law] == "fail":
        record_property("law", law)
        record_property("cause", "a slip")
        assert False, "it slipped"
    if LAWS[law] == "xfail":
        pytest.xfail("known")
    if LAWS[law] == "skip":
        pytest.skip("declined: not for me")
    if LAWS[law] == "crash" and case == 3:
        os._exit(1)
    if isinstance(LAWS[law], float):
        record(comparison(LAWS[law] * (1 + case / 24), case, law=law))
"""

CONFTEST = """
from PACKAGE.ledger import ledger_of

def pytest_configure(config):
    ledger_of(config).environment["grower"] = "growproof:grow"
"""
PYTEST = f"-q -p {PACKAGE}.plugin -p xdist -p no:cacheprovider".split()


class Runs:
    """pytest, as a user calls it, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("test_laws", LAWS), ("conftest", CONFTEST)):
            (folder / f"{name}.py").write_text(text.replace("PACKAGE", PACKAGE))
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
    return storage.load(run.folder / name)


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


def test_a_red_run_is_stored_red(run: Runs) -> None:
    """Failures and causes, with workers or without; the report is red as well."""
    laws = {"a": 1.0, "b": "fail", "c": "xfail", "d": "skip"}
    assert run({"a": 1.0, "b": 1.0}, "--errors-save=base.json")[0] == 0
    for name, options in (("one.json", ()), ("two.json", ("-n2",))):
        code, text = run(
            laws, f"--errors-save={name}", "--errors-compare=base.json", *options
        )
        assert code == 1, text
        assert "compared: 24 failed, 1 same" in text
        assert "FAILED errors::b" not in text, "it has failed already"
        found = stored(run, name).run
        assert (found.tests, found.failed) == (96, 24)
        broken = [f for f in found.failures if not f.expected]
        assert {(f.law, f.cause) for f in broken} == {("b", "a slip")}
        assert "it slipped" in broken[0].message
        assert {f.expected for f in found.failures} == {"", "known"}
        assert len({f.test for f in found.failures}) == 48
        assert report.main([str(run.folder / name)]) == 1


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
    right = [("--collect-only",), (compare, "--collect-only")]
    assert run.codes([*wrong, *right]) == [4] * len(wrong) + [0, 0]
    assert run.files() == {"good.json": GOOD}


def test_bad_baselines_stop_before_the_run(run: Runs) -> None:
    few = [text for text, _ in BAD.values()][::5]  # all of them: test_storage
    before = {f"{i}.json": text for i, text in enumerate(few)}
    for name, text in before.items():
        (run.folder / name).write_text(text)
    new = ("--errors-save=new.json", "--errors-accept=reason")
    codes = run.codes([(f"--errors-compare={name}", *new) for name in before])
    codes += run.codes([(f"--errors-save={name}", new[1]) for name in before])
    assert codes == [4] * 2 * len(few)
    assert run.files() == before
    code, text = run({"test_a": 0.0}, "--errors-compare=0.json")
    assert (code, "0.json: got an empty file" in text) == (4, True), text


def test_incomplete_runs_are_neither_compared_nor_stored(run: Runs) -> None:
    save = "--errors-save=errors.json"
    code, text = run({"test_a": None}, save)
    assert (code, "recorded no comparison" in text) == (1, True)
    code, text = run({"test_a": 0.0, "test_b": "fail"}, save, "-x")
    assert (code, "stopped early" in text) == (1, True)
    code, text = run({"test_a": "crash"}, save, "-n2", "--max-worker-restart=1")
    assert (code, "are lost" in text) == (1, True), text
    assert run.files() == {}
