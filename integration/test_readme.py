"""The README tells what is so: its commands, its options, its figures."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from properties.power import by_family

from .ladder import at_the_articles_sizes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> dict[str, str]:
    """The README's commands by name."""
    found = re.findall(r"<!-- command: (\w+) -->\n```sh\n(.*)\n```", README)
    return dict(found)


def test_ladder_is_that_of_the_results() -> None:
    """The three figures are those of docs/ladder.md, on FlashAttention 2 in bfloat16."""
    rows = [line.split("|") for line in at_the_articles_sizes().splitlines()]
    at = [cell.strip() for cell in rows[0]].index("flash_attention_2 bfloat16")
    value = {row[1].strip(): float(row[at].strip(" %+")) for row in rows[3:]}
    told = " ".join(README.split())
    assert f"by {value['2: naive padding']:+.0f} %" in told
    assert f"recipe by {value['2: + q scale: the recipe']:.1f} %" in told
    assert f"removed by {value['2: centred']:.2f} %" in told


def test_figures_are_those_of_the_results() -> None:
    """The numbers of known-bad growers, of models grown without a false alarm, of misses."""
    runs = json.loads((ROOT / "properties/power/runs.json").read_text())
    assert f"grew {sum(run['growths'] for run in runs):,} models" in README
    faults = {
        c["fault"]
        for c in json.loads((ROOT / "properties/power/power.json").read_text())
    }
    assert f"on {len(faults)} [known-bad growers]" in README
    cells = Counter(cell.outcome for cell in by_family.load())
    told = " ".join(README.split())
    assert (
        f"found in {cells['found']:,} places, is no fault in {cells['absent']}" in told
    )
    assert cells["missed"] == 0
    right = json.loads((ROOT / "properties/power/right.json").read_text())
    count = f"{right['examples']:,} random examples on {len(right['by_grower'])} right"
    assert count in told
    terms = json.loads((ROOT / "properties/certify/soundness.json").read_text())
    assert f"Of {terms['terms']:,} random terms" in told
    assert f"none of {terms['misses']:,} near misses" in told
    sound = json.loads((ROOT / "properties/certify/soundness-growths.json").read_text())
    assert f"Of {sound['misses']:,} near misses" in README
    assert (
        f"and {sound['right_verdicts']['certified']} of {sound['right']} right"
        in README
    )


def test_commands_are_the_ones_ci_runs() -> None:
    """CI takes check and tests from here; each does all its set-up in one line."""
    assert {"check", "tests", "grow"} <= commands().keys()
    ci = (ROOT / ".ci/run").read_text()
    for name in ("check", "tests"):
        assert f"command_of {name}" in ci
        assert commands()[name].startswith("python3 -m venv .venv && .venv/bin/pip")


@pytest.mark.parametrize(
    "name", ["grow", "verify", "check", "report", "certify", "power"]
)
def test_subcommands_exist(name: str) -> None:
    """Each `growproof NAME` that the README shows has a help page."""
    done = subprocess.run(
        [sys.executable, "-m", "growproof.cli", name, "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"growproof {name}" in README


def test_options_in_the_readme_exist() -> None:
    """Every --option of the README is one of growproof's or of its plugins'."""
    sources = [
        *ROOT.glob("reference/**/*.py"),
        *ROOT.glob("properties/**/*.py"),
        *ROOT.glob("integration/*.py"),
    ]
    known = "".join(path.read_text() for path in sources)
    known += "--junitxml --hypothesis-profile --no-deps --no-install-recommends"
    for option in set(re.findall(r"(?<![\w-])--[a-z][\w-]+", README)):
        name = option.removeprefix("--").replace("-", "_")
        assert option in known or f'"{name}"' in known, option


def test_links_lead_somewhere() -> None:
    """Every relative link of the README is a file of the repository."""
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in x]
    assert len(links) > 8
    for link in links:
        assert (ROOT / link).exists(), link
