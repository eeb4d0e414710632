"""The reports' own tests: one verdict in every form, and green only where all is green."""

import dataclasses
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from . import report, sections, storage
from .ledger import Failure, Ledger, Run, Tally
from .samples import BAD, GOOD, HOSTILE, book, comparison, laddered, loss
from .verdict import Report


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """good.json, slip.json and old.json, in the current directory."""
    monkeypatch.chdir(tmp_path)
    for name, made in (
        ("good", laddered()),
        ("slip", laddered(0.9)),
        ("old", laddered(created="2025-12-30T00:00:00+00:00")),
    ):
        storage.write(tmp_path / f"{name}.json", storage.dumps(made))
    return tmp_path


def test_every_form_gives_the_same_verdict(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--html", "out.html", "--markdown", "out.md"]
    assert report.main(["slip.json", "good.json", *out]) == 1
    shown = [capsys.readouterr().out, *(Path(out[i]).read_text() for i in (1, 3))]
    for text in shown:
        assert "1 worse, 20 same" in text or "1 worse, 22 same" in text
        assert "rounded" in text
    assert report.main(["good.json", "slip.json", *out]) == 0
    assert report.main(["slip.json", "good.json", "--errors-fail", "100"]) == 0
    assert report.main(["good.json"]) == 0


CAUSE = "q_proj.weight: √(K'/K) is missing"


def red() -> Ledger:
    """A run whose failures have one cause; one of its laws found it at 5e14 units."""
    made = laddered()
    made.add(comparison(5e14, "{head_dim: 8}", law="logits_are_unchanged", budget=6.0))
    made.environment |= {"grower": "mine:grow", "profile": "thorough", "seed": 7}
    made.run = Run(tests=40, failed=3)
    made.run.failures = [
        Failure(law="logits_are_unchanged", test=f"test_logits_are_unchanged[{axis}]",
                case=f"{{{axis}: 8}}", message="logits differ", cause=CAUSE)
        for axis in ("head_dim", "hidden")
    ] + [Failure(law="cache_agrees", test="test_cache_agrees", message="no cache")]  # fmt: skip
    made.run.score = [
        Tally(promise="lossless", family="llama", axis="head_dim", passed=1, failed=3),
        Tally(promise="hygiene", family="all", axis="all", passed=12, declined=2),
    ]
    return made


def forms(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    """The exit code, and the report as text, Markdown and HTML without its markup."""
    paths = {"--html": Path("out.html"), "--markdown": Path("out.md")}
    code = report.main([*arguments, *(str(x) for pair in paths.items() for x in pair)])
    html, md = (path.read_text() for path in paths.values())
    plain = re.sub(r"<style>.*</style>|<wbr>|</?[a-z][^>]*>", "", html, flags=re.DOTALL)
    return code, [capsys.readouterr().out, re.sub(r"\\(.)", r"\1", md), unescape(plain)]


@pytest.mark.parametrize("base", [[], ["good.json"]])
def test_a_red_run_makes_a_red_report(
    files: Path, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With a baseline or without: verdict first, laws, cause, score, how to repeat."""
    storage.write("red.json", storage.dumps(red()))
    code, shown = forms(capsys, "red.json", *base, "--across-growers")
    assert code == 1
    for text in shown:
        first = text.index("mine:grow violates lossless: 3 of 40 tests failed")
        assert first < text.index("cause: " + CAUSE) < text.index("Score")
        assert text.count("cause: " + CAUSE) == 1, "two failures, one cause"
        assert "logits_are_unchanged (2 tests)" in text
        assert "1 law over budget" in re.sub(r"\s+", " ", text)
        assert "case: {hidden: 8}" in text, "the smallest case"
        assert (
            "repeat: growproof check mine:grow -k 'test_logits_are_unchanged[hidden]'"
            " --hypothesis-profile=thorough --hypothesis-seed=7"
        ) in re.sub(r"\s+", " ", text)
        assert "no cache" in text
        assert "declined" in text
        assert "head_dim" in text
        assert "✅" not in text
        assert "conforms" not in text
    assert shown[1].startswith("### ❌ mine:grow violates lossless")
    assert 'class="verdict failed"' in Path("out.html").read_text()


def test_the_command_to_repeat_is_one_that_pytest_takes() -> None:
    """-k takes brackets and dashes, but no comma; a run without a grower is pytest's."""
    made = book()
    made.run.failures = [Failure(law="x", test="test_x[llama-all, no biases]")]
    section = sections.failed(Report(ledger=made))
    assert section.rows[0][2] == (
        "repeat: growproof check growproof:grow -k 'test_x and llama-all and no and biases'"
    )
    made.environment["grower"] = None
    assert "repeat: pytest -k" in sections.failed(Report(ledger=made)).rows[0][2]


def test_a_green_run_makes_a_green_report(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = forms(capsys, "good.json")
    assert code == 0
    for text in shown:
        words = re.sub(r"\s+", " ", text)
        assert "growproof:grow conforms: none of 1 tests failed; every error" in words
        assert "no baseline" in words
        assert "What failed" not in text
    assert shown[1].startswith("### ✅")
    assert 'class="verdict failed"' not in Path("out.html").read_text()


def expected(made: Ledger) -> None:
    made.run.failures = [Failure(law="test_x", expected="known")]
    made.add(comparison(99.0, 1, law="test_x"))


SPOILED: dict[str, tuple[Callable[[Ledger], object], str]] = {
    "nothing": (lambda made: None, ""),
    "expected": (expected, ""),
    "a test": (lambda made: setattr(made.run, "failed", 1), "1 of 1 tests failed"),
    "a budget": (lambda made: made.add(comparison(17.0, 1)), "1 law over budget"),
    "nan": (lambda made: made.add(comparison(math.nan, 1)), "1 law over budget"),
    "no budget": (lambda made: made.add(comparison(99.0, 1, law="x", budget=None)), ""),
    "a loss": (lambda made: made.add_loss(loss(-0.2, tolerance=0.1)), "1 loss over"),
    "no loss": (lambda made: made.add_loss(loss(math.nan, tolerance=1)), "1 loss over"),
    "a loss within": (lambda made: made.add_loss(loss(0.1, tolerance=0.1)), ""),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_makes_a_report_red(files: Path, name: str) -> None:
    """Each alone, without a baseline; an expected failure does not."""
    made, (spoil, said) = book(comparison(1.0, 0)), SPOILED[name]
    spoil(made)
    storage.write("made.json", storage.dumps(made))
    assert report.main(["made.json", "--markdown", "out.md"]) == int(bool(said))
    first = Path("out.md").read_text().splitlines()[0]
    assert said in first
    assert first.startswith("### ❌" if said else "### ✅")


def test_terminal_is_plain_and_at_most_100_columns(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main(["slip.json", "good.json", "--history", "old.json"])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    for word in (
        "worse",
        "test_rounded_once",
        "headroom",
        "copied",
        "+1040.00%",
        "case 0",
    ):
        assert word in text


def test_markdown_fits_a_comment_and_escapes(files: Path) -> None:
    """GitHub takes 65,536 characters; here 3,000 keys are worse."""
    many = [comparison(1.0, HOSTILE, tap=f"layers.{i}.query|*") for i in range(3000)]
    base = [dataclasses.replace(c, ratio=0.1) for c in many]
    for name, rows in (("many", many), ("base", base)):
        storage.write(f"{name}.json", storage.dumps(book(*rows)))
    assert report.main(["many.json", "base.json", "--markdown", "out.md"]) == 1
    text = Path("out.md").read_text()
    assert len(text) < 65_536
    assert "3000 worse" in text
    assert "and 2970 more" in text
    assert "<script>" not in text
    rows = [line for line in text.splitlines() if line.startswith("|worse")]
    assert len(rows) == 30
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)


def test_a_law_that_is_gone_is_one_line(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.write("less.json", storage.dumps(book(comparison(1.0, 1))))
    assert report.main(["less.json", "good.json"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"gone +test_layers\[grown\], the whole law\n +10 keys", text)
    assert "layers.0.query" not in text


def test_html_escapes(files: Path) -> None:
    report.main(["slip.json", "--html", "out.html"])
    assert "<script>nope()" not in Path("out.html").read_text()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_exit_4_and_writes_nothing(
    files: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = BAD[name]
    Path("bad.json").write_text(text)
    Path("reference.json").write_text(GOOD)
    before = sorted(files.iterdir())
    out = ["--html", "out.html", "--markdown", "out.md"]
    assert report.main(["reference.json", "bad.json", *out]) == 4
    assert message in capsys.readouterr().err
    if name != "another grower":
        assert report.main(["bad.json", *out]) == 4
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [[], ["missing.json"], ["good.json", "--html", "missing/out.html"],
     ["good.json", "--benchmarks", "slip.json"], ["good.json", "--no-such-option"],
     ["good.json", "slip.json", "--errors-fail", "0"]],
)  # fmt: skip
def test_wrong_arguments_are_exit_4(files: Path, arguments: list[str]) -> None:
    assert report.main(arguments) == 4


def test_two_growers_are_compared_only_on_demand(files: Path) -> None:
    other = laddered()
    other.environment["grower"] = "other:grow"
    storage.write("other.json", storage.dumps(other))
    assert report.main(["other.json", "good.json"]) == 4
    assert report.main(["other.json", "good.json", "--across-growers"]) == 0


def test_first_baseline_of_the_same_environment_is_used(files: Path) -> None:
    foreign = laddered()
    foreign.environment["blas"] = "another"
    storage.write("foreign.json", storage.dumps(foreign))
    assert report.main(["good.json", "foreign.json"]) == 1
    assert report.main(["good.json", "foreign.json", "good.json"]) == 0


def test_benchmarks_show_time_and_error_together(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON of a real pytest-benchmark run, alone and beside a ledger."""
    Path("test_speed.py").write_text(
        "def test_grow(benchmark):\n"
        "    benchmark.extra_info['errors'] = {'ratio': 0.75, 'ulps': 3}\n"
        "    benchmark.pedantic(int)\n"
    )
    options = ["-q", "-n0", "--benchmark-json=speed.json"]
    command = [sys.executable, "-m", "pytest", *options]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    subprocess.run(command, check=True, capture_output=True, env=env, timeout=120)
    for arguments in (["speed.json"], ["good.json", "--benchmarks", "speed.json"]):
        assert report.main(arguments) == 0
        assert re.search(r"test_grow +\S+ ms +0.75 +3 ", capsys.readouterr().out)
    assert report.main(["speed.json", "good.json"]) == 4
    Path("speed.json").write_text('{"benchmarks": [{"name": "x"}]}')
    assert report.main(["speed.json"]) == 4
