"""The reports' own tests: one verdict in every form, and the page in a real browser."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import report, storage
from .ledger import Ledger
from .samples import BAD, GOOD, book, comparison, loss

HOSTILE = "Growth(hidden_size=(64, 96)) | `<script>nope()</script>`"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --enable-logging=stderr "
    "--virtual-time-budget=9000 --dump-dom"
)
PROBE = """<script>addEventListener("load", () => setTimeout(() => console.info(
"PROBE", JSON.stringify({
requests: performance.getEntriesByType("resource").map(e => e.name),
overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
width: innerWidth,
plots: document.querySelectorAll(".js-plotly-plot .main-svg .trace").length,
background: getComputedStyle(document.body).backgroundColor,
text: getComputedStyle(document.querySelector(".xtick text")).fill})), 1500))</script>"""


def run(slip: float = 0.0, created: str = "2026-01-02T03:04:05+00:00") -> Ledger:
    """Two layers in two precisions, a law of exact cases that ``slip`` spoils, a ladder."""
    made = book()
    made.created = created
    units = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
    taps = ["embedding", "layers.0.query", "layers.0.mlp", "layers.1.query", "logits"]
    rows = [
        comparison(0.3 + i / 10, HOSTILE, law=f"test_layers[{who}]", tap=tap,
                   dtype=dtype, relative=unit * i)
        for who in ("original", "grown")
        for dtype, unit in units.items()
        for i, tap in enumerate(taps)
    ]  # fmt: skip
    rows += [
        comparison(slip, i, law="test_rounded_once", budget=4.0) for i in range(20)
    ]
    made.merge(book(*rows))
    made.add_loss(loss(10.4, name="copied", published=10.39))
    made.add_loss(loss(-1e-7, published=None))
    return made


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """good.json, slip.json and old.json, in the current directory."""
    monkeypatch.chdir(tmp_path)
    for name, made in (
        ("good", run()),
        ("slip", run(0.9)),
        ("old", run(created="2025-12-30T00:00:00+00:00")),
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
    other = run()
    other.environment["grower"] = "other:grow"
    storage.write("other.json", storage.dumps(other))
    assert report.main(["other.json", "good.json"]) == 4
    assert report.main(["other.json", "good.json", "--across-growers"]) == 0


def test_first_baseline_of_the_same_environment_is_used(files: Path) -> None:
    foreign = run()
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
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n0",
        "--benchmark-json=speed.json",
    ]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    subprocess.run(command, check=True, capture_output=True, env=env, timeout=120)
    for arguments in (["speed.json"], ["good.json", "--benchmarks", "speed.json"]):
        assert report.main(arguments) == 0
        assert re.search(r"test_grow +\S+ ms +0.75 +3 ", capsys.readouterr().out)
    assert report.main(["speed.json", "good.json"]) == 4
    Path("speed.json").write_text('{"benchmarks": [{"name": "x"}]}')
    assert report.main(["speed.json"]) == 4


def browse(page: str, *, dark: bool, width: int) -> tuple[dict[str, object], list[str]]:
    """What the probe saw in chromium, and what else the console said."""
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium")
    Path("page.html").write_text(page.replace("</body>", PROBE + "</body>"))
    frame = f'<body style="margin:0"><iframe src=page.html width={width} height=900>'
    Path("frame.html").write_text(frame)
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    profile = f"--user-data-dir={Path('profile').absolute()}"
    url = Path("frame.html").absolute().as_uri()
    command = [CHROMIUM, *FLAGS.split(), scheme, profile, "--window-size=1200,900", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = re.findall(r'CONSOLE.*?\] "(.*)", source:', done.stderr)
    seen = [line.removeprefix("PROBE ") for line in said if line.startswith("PROBE ")]
    assert len(seen) == 1, done.stderr[-3000:]
    return json.loads(seen[0]), [line for line in said if not line.startswith("PROBE ")]


def test_page_works_in_a_browser_in_both_themes_and_on_a_phone(files: Path) -> None:
    out = ["--html", "out.html", "--history", "old.json"]
    report.main(["slip.json", "good.json", *out])
    page = Path("out.html").read_text()
    seen = {}
    for dark, width in ((False, 390), (True, 1100)):
        facts, said = browse(page, dark=dark, width=width)
        assert said == []
        assert facts["requests"] == []
        assert (facts["width"], facts["overflow"]) == (width, 0)
        assert facts["plots"] == 4 + 5 + 2, "layers, trend and ladder"
        seen[dark] = facts["background"], facts["text"]
    assert seen[False] == ("rgb(251, 250, 248)", "rgb(36, 41, 47)")
    assert seen[True] == ("rgb(21, 24, 28)", "rgb(223, 227, 232)")


def test_the_browser_would_see_a_fault(files: Path) -> None:
    """An error, a request, and a line that is too wide for a phone."""
    report.main(["good.json", "--html", "out.html"])
    fault = '<script>nope()</script><img src=http://[::1]:9/><pre style="width:999px">'
    page = Path("out.html").read_text().replace("<main>", f"<main>{fault}")
    facts, said = browse(page, dark=False, width=390)
    assert any("nope" in line for line in said)
    assert any("Content Security Policy" in line for line in said)
    assert facts["overflow"] == pytest.approx(999 - 360, abs=40)
    facts, _ = browse(
        page.replace("Content-Security-Policy", ""), dark=False, width=390
    )
    assert facts["requests"] == ["http://[::1]:9/"]
