"""The page's own tests: what it draws, and that it does so in a real browser."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from . import charts
from .comparison import compare
from .ledger import Failure
from .page import page
from .samples import book, comparison, laddered
from .sections import Section, page_of
from .verdict import Report

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
lines: document.querySelectorAll("svg path.line").length,
bars: [...document.querySelectorAll(".bar i")].map(e => e.clientWidth),
cells: document.querySelectorAll(".grid td.kept").length,
background: getComputedStyle(document.body).backgroundColor,
text: getComputedStyle(document.querySelector("h2")).color})), 300))</script>"""


@pytest.fixture
def html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A page with a slip, a baseline, an earlier run and a ladder, in a folder."""
    monkeypatch.chdir(tmp_path)
    now, base = laddered(0.9), laddered()
    old = laddered(created="2025-12-30T00:00:00+00:00")
    changes = compare(base, now)
    made = page_of(Report(ledger=now, base=base, changes=changes, history=[old]))
    return page(dataclasses.replace(made, sections=[*made.sections, wide()]))


def wide() -> Section:
    """A grid over seven axes of three families, and a script of a long line."""
    columns = ("all", "hidden", "heads", "groups", "head_dim", "mlp", "layers")
    cells = [charts.Cell(text="✓ 12", kind="kept") for _ in columns]
    rows = [
        (f"{family} certified", cells) for family in ("llama", "gemma3_text", "phi")
    ]
    grid = charts.Grid(parts=[charts.Part(name="lossless", columns=columns, rows=rows)])
    script = ("repeat.py", f"CASE = {200 * 'x'!r}\n<script>nope()</script>\n")
    return Section(title="What was kept", note="", chart=grid, scripts=[script])


def browse(text: str, *, dark: bool, width: int) -> tuple[dict[str, object], list[str]]:
    """What the probe saw in chromium, and what else the console said."""
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium")
    allowed = text.replace(
        "default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'"
    )
    Path("page.html").write_text(allowed.replace("</body>", PROBE + "</body>"))
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


def test_page_works_in_a_browser_in_both_themes_and_on_a_phone(html: str) -> None:
    """Nothing is asked for, nothing is too wide, and every line and bar is drawn."""
    seen = {}
    for dark, width in ((False, 390), (True, 1100)):
        facts, said = browse(html, dark=dark, width=width)
        assert said == []
        assert facts["requests"] == []
        assert (facts["width"], facts["overflow"]) == (width, 0)
        assert facts["cells"] == 3 * 7
        assert facts["lines"] == 4 + 5, "layers and trend"
        bars = facts["bars"]
        assert isinstance(bars, list)
        assert len(bars) == 5 + 3, "budgets, and the ladder beside the article"
        assert min(bars) > 0
        seen[dark] = facts["background"], facts["text"]
    assert seen[False] == ("rgb(251, 250, 248)", "rgb(36, 41, 47)")
    assert seen[True] == ("rgb(21, 24, 28)", "rgb(223, 227, 232)")


def test_the_browser_would_see_a_fault(html: str) -> None:
    """An error, a request, and a line that is too wide for a phone."""
    fault = '<script>nope()</script><img src=http://[::1]:9/><pre style="width:999px">wide</pre>'
    text = html.replace("<main>", f"<main>{fault}")
    facts, said = browse(text, dark=False, width=390)
    assert any("nope" in line for line in said)
    assert any("Content Security Policy" in line for line in said)
    assert facts["overflow"] == pytest.approx(999 - 360, abs=40)
    without = text.replace("Content-Security-Policy", "")
    facts, _ = browse(without, dark=False, width=390)
    assert facts["requests"] == ["http://[::1]:9/"]


def test_the_policy_forbids_every_script(html: str) -> None:
    """And the page has none."""
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in html
    assert "<script" not in html


def test_a_page_of_thousands_of_failures_is_under_300_kb() -> None:
    """3,000 tests failed on cases of 3,000 characters, and 3,000 keys are over budget."""
    cases = [f"Case({'x' * 3000}{i})" for i in range(3000)]
    now = book(
        *(
            comparison(99.0, case, law=f"law_{i % 300}", tap=f"layers.{i}.query")
            for i, case in enumerate(cases)
        )
    )
    now.run.failures = [
        Failure(law=f"law_{i}", message="m" * 400, case=case)
        for i, case in enumerate(cases)
    ]
    changes = compare(book(), now)
    text = page(page_of(Report(ledger=now, base=book(), changes=changes)))
    assert len(text.encode()) < 300_000
    assert "3000 of 3000 tests failed" in text
    assert "law_<wbr>0" in text


def test_bars_tell_7_units_from_4e14() -> None:
    """One logarithmic axis: within, just over and far over the line are three places."""
    ratios = (0.0, 1e-9, 5.9, 6.0, 7.0, 4e14, math.inf)
    records = [
        r
        for i, ratio in enumerate(ratios)
        for r in book(comparison(ratio, i, budget=6.0)).records.values()
    ]
    drawn = charts.budgets([(r, "") for r in records])
    assert drawn is not None
    assert drawn.line is not None
    exact, tiny, below, on, above, far, infinite = (
        row.bars[0].share for row in drawn.rows
    )
    assert exact == tiny == 0 < below < on == drawn.line < above
    assert above < drawn.line + 0.01 < 0.9 < far < infinite == 1
    assert [row.bars[0].kind for row in drawn.rows] == [""] * 4 + ["over"] * 3
    assert "budget" in [tick.label for tick in drawn.ticks]


def test_the_plot_through_the_layers_shows_layers_only() -> None:
    """In the order of the forward pass, layer 10 behind layer 2."""
    taps = ["layers.10.query", "layers.2.mlp", "layers.2.query", "logits", "norm",
            "embedding", "config", "model.layers.0.self_attn.q_proj.weight"]  # fmt: skip
    drawn = charts.layers(
        book(*(comparison(1.0, 0, tap=tap) for tap in taps)).records.values()
    )
    assert drawn is not None
    assert [len(line.points) for line in drawn.lines] == [3]
    assert [(tick.label, tick.at) for tick in drawn.x] == [("2", 0.0), ("10", 1.0)]
    alone = book(*(comparison(1.0, 0, tap=tap) for tap in taps[3:]))
    assert charts.layers(alone.records.values()) is None


def test_exact_zeros_stand_at_the_foot_of_a_line() -> None:
    """They have no logarithm, and are not left out."""
    pairs = (("layers.0.query", 0.0), ("layers.0.mlp", 1e-7), ("layers.1.mlp", 1e-5))
    rows = [comparison(1.0, 0, tap=tap, relative=x) for tap, x in pairs]
    drawn = charts.layers(book(*rows).records.values())
    assert drawn is not None
    heights = [y for _, y in drawn.lines[0].points]
    assert heights[0] == 0 < heights[1] < heights[2] == 1
    assert drawn.y[0].label == "exact"
