"""The docs say what is so: they build, every command on them runs, every figure is real."""

from __future__ import annotations

import doctest
import html.parser
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from growproof.cli import main

from properties.errors.test_page import CHROMIUM, FLAGS
from properties.growers.known_bad import BY_NAME
from properties.laws.registry import laws
from properties.power import claims as claimed
from properties.power import combined
from properties.power.corpus import runs
from properties.power.refresh import ARTEFACTS

from . import breaking, mathematics
from .docs import BLOCKS, DOCS, FAULTS

ROOT = DOCS.parent
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# pages whose commands are run here, in this order and in one folder, and compared
SESSIONS = ("grower.md", "checkpoint.md", "ci.md")
# commands that are run by another test → where, and what of them it runs
ELSEWHERE = {
    "pip install growproof": ("integration/test_wheel.py", '"pip", f"--python={python}", "install"'),
    "sh growproof.sh": ("integration/test_in_ci.py", 'sh ./growproof.sh "$@"'),
    "sh growproof.sh --hypothesis-profile thorough": ("integration/test_in_ci.py", "growproof.sh"),
    "growproof check mygrow:grow --family llama --without heads,groups,head_dim,layers "
    "--errors-save growproof-baseline.json": ("properties/errors/test_plugin.py", "--errors-save"),
    "growproof check growproof:grow --family vaultgemma": (
        "integration/test_outside.py", '"check", "growproof:grow", "--family=vaultgemma"'),
    "growproof power q_scale_missing --dtype float64": (
        "properties/power/test_detection.py", '"--dtype", "float64"'),
}  # fmt: skip


def text(page: str) -> str:
    """A page's source."""
    return (DOCS / page).read_text()


def commands(page: str) -> Iterator[tuple[str, str]]:
    """(command, what the page says it prints, or nothing) of each line of its sh blocks."""
    blocks = BLOCK.findall(text(page))
    for i, (language, body) in enumerate(blocks):
        if language == "sh":
            lines = body.splitlines()
            after = blocks[i + 1] if i + 1 < len(blocks) else ("", "")
            yield from ((line, "") for line in lines[:-1])
            yield lines[-1], after[1] if after[0] == "text" else ""


def code(page: str, mark: str) -> str:
    """The block behind <!-- mark -->."""
    return (
        text(page).partition(f"<!-- {mark} -->\n")[2].split("```")[1].partition("\n")[2]
    )


# --- what is said on the pages ----------------------------------------------------------


@pytest.mark.parametrize("page", BLOCKS)
def test_tables_are_made_from_the_code(page: str) -> None:
    """`python -m integration.docs` would change nothing."""
    assert claimed.filled(text(page), BLOCKS[page], page) == text(page)


def test_what_one_breaks_is_what_was_run() -> None:
    """faults.js is that of the committed results."""
    assert breaking.script() == FAULTS.read_text(), "run `python -m integration.docs`"


def test_scalars_are_spelled_or_refused() -> None:
    """A scalar that is no product of roots of ratios is not guessed at."""
    assert mathematics.spelled(3**-0.5) == "√(D/D')"
    assert mathematics.spelled((5 / 3) ** 0.5) == "√(D/D') · √(K'/K)"
    with pytest.raises(ValueError, match="no product of roots"):
        mathematics.spelled(1.0001)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_by_a_test(page: str) -> None:
    """By the session of its page here, or by the test that is named for it."""
    for command, _ in commands(page):
        if command in ELSEWHERE:
            path, said = ELSEWHERE[command]
            assert said in (ROOT / path).read_text(), f"{path} does not run {command}"
        else:
            assert page in SESSIONS, f"nobody runs {command} of {page}"


def test_known_bad_growers_that_are_named_exist() -> None:
    """Names in brackets, and those of links to the page on which one breaks."""
    found = re.findall(r"\(((?:`\w+`(?:,\s)?)+)\)", text("writing.md"))
    names = {name for group in found for name in re.findall(r"`(\w+)`", group)}
    assert len(names) > 25
    assert names <= BY_NAME.keys(), names - BY_NAME.keys()


def test_figures_are_those_of_the_results() -> None:
    """Models grown without a false alarm; laws, options and inputs that are named."""
    assert f"{sum(run['growths'] for run in runs()):,} models" in text("writing.md")
    everything = "\n".join(map(text, PAGES))
    for name in re.findall(r"-k (\w+)", everything):
        assert name in laws(), name
    for names in re.findall(r"growproof refresh ([\w ]+)`", everything):
        assert set(names.split()) <= ARTEFACTS.keys(), names
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    steps = yaml.safe_load(code("ci.md", "action"))
    assert all(set(step["with"]) <= inputs.keys() for step in steps)
    sources = [
        p for room in ("reference", "properties") for p in (ROOT / room).rglob("*.py")
    ]
    known = "".join(path.read_text() for path in sources) + "--hypothesis-profile"
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", everything))
    assert len(options) > 20
    for option in options:
        name = option.removeprefix("--")
        spellings = (option, f'"{name}"', f'"{name.replace("-", "_")}"')
        assert any(x in known for x in spellings), option


def test_a_pair_that_hides_a_fault_does() -> None:
    """combined.json, of which some are run: those hidden, and as many that are not."""
    pairs = [tuple(pair) for pair in combined.load()]
    assert {name for pair in pairs for name in pair} <= BY_NAME.keys()
    assert ("q_scale_missing", "q_scale_twice") in pairs, "they cancel"
    for one, other in pairs[:: max(1, len(pairs) // 20)]:
        assert combined.hidden(one, other), (one, other)
    checked = 0
    for pair in combined.PAIRS[:: len(combined.PAIRS) // 20]:
        assert combined.hidden(*pair) == (pair in pairs), pair
        checked += 1
    assert checked > 10


# --- what its commands print ------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pages' commands run: the grower of the page, and the shipped models."""
    at = tmp_path_factory.mktemp("docs")
    (at / "mygrow.py").write_text(code("grower.md", "mygrow.py"))
    (at / "integration").symlink_to(ROOT / "integration")
    return at


def mend(folder: Path) -> None:
    """The grower with the line that the page adds, where the page says."""
    path = folder / "mygrow.py"
    before, line, after = re.split(r"(    narrower.*\n)", path.read_text())
    path.write_text(before + line + code("grower.md", "mended") + after)


def same(printed: str, shown: str) -> bool:
    """What a page shows is what is printed, but for `…`, versions and white space."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    versions = re.compile(r"(torch|transformers|growproof|hypothesis) \d[\w.+]+")
    want, got = (versions.sub(r"\1 V", x) for x in (shown, printed))
    want = re.sub(r"^\.{2,} ", "PROGRESS ", want).replace("…", "...")
    got = re.sub(r"^\.{2,} ", "PROGRESS ", got)
    return doctest.OutputChecker().check_output(want, got, flags)


@pytest.mark.parametrize("page", SESSIONS)
def test_a_page_prints_what_it_shows(
    page: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Every command of a page, in order; the grower is mended where the page says so."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("CI", raising=False)
    ran = [
        (command, shown)
        for command, shown in commands(page)
        if command not in ELSEWHERE
    ]
    assert ran
    for i, (command, shown) in enumerate(ran):
        if page == "grower.md" and i == 1:
            mend(folder)
        sys.modules.pop("mygrow", None)
        capfd.readouterr()
        main(shlex.split(command)[1:])
        printed = capfd.readouterr().out
        assert shown, f"{page} shows nothing of {command}"
        assert same(printed, shown), printed


def test_another_output_would_be_seen() -> None:
    """A digit, a missing line; not another version, nor what is left out."""
    assert same("a 1.5\nb\nc", "a 1.5\n…\nc")
    assert same("torch 2.13.0+cpu, x", "torch 2.99, x")
    assert not same("a 1.5\nb\nc", "a 1.6\n…\nc")
    assert not same("a\nc", "a\nb\nc")


# --- the site ---------------------------------------------------------------------------


class Links(html.parser.HTMLParser):
    """What a page links to or loads, and the places in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the addresses."""
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)
                if name == "src" or tag == "link":
                    self.loaded.append(value)


def built(source: Path, out: Path) -> tuple[int, str]:
    """The exit code of sphinx-build with warnings as errors, and what it said."""
    if (
        importlib.util.find_spec("furo") is None
        or importlib.util.find_spec("myst_parser") is None
    ):
        pytest.skip("the docs are built by Sphinx: pip install 'growproof[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", source, out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    code, said = built(DOCS, out)
    assert code == 0, said
    return out


def test_the_site_is_whole(site: Path) -> None:
    """Every page; every link to a place that exists; nothing loaded from elsewhere."""
    pages = {path.name: Links(path) for path in site.glob("*.html")}
    assert {name.replace(".md", ".html") for name in PAGES} <= pages.keys()
    checked = 0
    for name, page in pages.items():
        assert not [
            x for x in page.loaded if "//" in x and not x.startswith("data:")
        ], name
        for link in page.links:
            if re.match(r"\w+:|//", link):
                continue
            path, _, place = unquote(link).partition("#")
            target = (site / path.partition("?")[0]).resolve() if path else site / name
            assert target.exists(), f"{name}: {link}"
            if place and target.suffix == ".html":
                assert place in pages[target.name].ids, f"{name}: {link}"
            checked += 1
    assert checked > 300


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """A page that is not there, a place, and a page in no table of contents."""
    for entry in (
        "README.md",
        "CONTRIBUTING.md",
        "action.yml",
        "properties",
        "reference",
        "integration",
    ):
        (tmp_path / entry).symlink_to(ROOT / entry)
    shutil.copytree(DOCS, tmp_path / "docs")
    page = tmp_path / "docs" / "ci.md"
    page.write_text(
        page.read_text() + "\n[a](nowhere.md) [b](grower.md#no-such-place)\n"
    )
    (tmp_path / "docs" / "lost.md").write_text("# Lost\n")
    code, said = built(tmp_path / "docs", tmp_path / "out")
    assert code == 1
    for fault in ("nowhere", "no-such-place", "lost.md"):
        assert fault in said


PROBE = """<script>addEventListener("load", () => setTimeout(() => console.info(
"PROBE", JSON.stringify({
page: location.pathname.split("/").pop(),
wide: [...document.querySelectorAll("article *")].filter(e =>
  e.getBoundingClientRect().right > innerWidth + 1 && !e.closest("pre, .table-wrapper") &&
  getComputedStyle(e.parentElement).overflowX !== "auto").map(e => e.outerHTML.slice(0, 99)),
requests: performance.getEntriesByType("resource").map(e => e.name).filter(x => !x.startsWith("file:")),
verdict: document.querySelector("#breaker .verdict")?.textContent,
laws: [...document.querySelectorAll("#breaker h3 code")].map(e => e.textContent),
ticked: document.querySelectorAll("#breaker input:checked").length,
boxes: document.querySelectorAll("#breaker input").length})), 300))</script>"""
TICKED = ("norm_unscaled", "training_mode", *combined.load()[0])  # one hides another


def test_pages_fit_a_phone_and_boxes_break_a_grower(site: Path, tmp_path: Path) -> None:
    """In a browser: nothing is too wide or asked for; four boxes, the laws of those seen."""
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium")
    there = shutil.copytree(site, tmp_path / "site")
    names = [path.name for path in there.glob("*.html") if path.name != "genindex.html"]
    for name in names:
        path = there / name
        path.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
    frames = "".join(
        f'<iframe width=390 height=800 src="{name}#{",".join(TICKED) if name == "break.html" else ""}">'
        "</iframe>"
        for name in names
    )
    (there / "frame.html").write_text(f"<body>{frames}")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    address = (there / "frame.html").as_uri()
    done = subprocess.run(
        [CHROMIUM, *FLAGS.split(), profile, "--window-size=1200,900", address],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    said = re.findall(r'CONSOLE.*?\] "(.*)", source:', done.stderr)
    seen = {}
    for line in said:
        assert line.startswith("PROBE "), line
        facts = json.loads(line.removeprefix("PROBE "))
        seen[facts["page"]] = facts
    assert seen.keys() == set(names), done.stderr[-2000:]
    assert {name: f["wide"] for name, f in seen.items() if f["wide"]} == {}
    assert {name: f["requests"] for name, f in seen.items() if f["requests"]} == {}
    broken = seen["break.html"]
    assert broken["boxes"] == len(BY_NAME)
    assert broken["ticked"] == 4
    pairs = {tuple(pair) for pair in combined.load()}
    hidden = {a for a in TICKED if any((a, b) in pairs for b in TICKED)}
    expected = {
        BY_NAME[name].law.__name__.removeprefix("test_")
        for name in set(TICKED) - hidden
    }
    assert hidden
    assert set(broken["laws"]) == expected
    assert broken["verdict"].startswith(f"{len(expected)} laws fail; broken: ")
    assert f"{len(hidden)} of 4 faults not seen" in broken["verdict"]
