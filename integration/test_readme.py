"""The README tells what is so: its table of the ladder, its commands, its figures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from properties.errors import storage

from . import ladder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# marker → the results, and the columns that are shown
LADDERS = {
    "ladder-gpu": (
        ladder.RESULTS.with_name("ladder-stablelm_2_1_6b-nvidia-h200.json"),
        ("torch_flash bfloat16", "flash_attention_2 bfloat16", "flash_attention_3 bfloat16",
         "flash_attention_2 float32"),
    ),
    "ladder": (
        ladder.RESULTS,
        ("sdpa_math bfloat16", "sdpa_math float32", "sdpa_math float64"),
    ),
}  # fmt: skip


def condensed(results: Path, columns: tuple[str, ...]) -> str:
    """A ladder of the README, without the rows that leave one thing out."""
    header, rows = ladder.rows_of(storage.load(results))
    names = ["step", "article bf16", *columns]
    kept = [header.index(name) for name in names]
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[row[i] for i in kept] for row in rows if ", but " not in row[0]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def updated(text: str) -> str:
    """The README with its ladders made anew."""
    for name, (results, columns) in LADDERS.items():
        before, _, rest = text.partition(f"<!-- {name} -->")
        after = rest.partition(f"<!-- /{name} -->")[2]
        table = condensed(results, columns)
        text = f"{before}<!-- {name} -->\n{table}\n<!-- /{name} -->{after}"
    return text


def commands() -> dict[str, str]:
    """The README's commands by name."""
    found = re.findall(r"<!-- command: (\w+) -->\n```sh\n(.*)\n```", README)
    return dict(found)


def test_ladder_is_that_of_the_results() -> None:
    """`python -m integration.test_readme` would change nothing."""
    assert updated(README) == README


def test_figures_are_those_of_the_results() -> None:
    """The numbers of known-bad growers, of models grown without a false alarm, of misses."""
    runs = json.loads((ROOT / "properties/power/runs.json").read_text())
    assert f"grew {sum(run['growths'] for run in runs):,} models" in README
    faults = {
        c["fault"]
        for c in json.loads((ROOT / "properties/power/power.json").read_text())
    }
    assert f"on {len(faults)} [known-bad growers]" in README
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


if __name__ == "__main__":
    (ROOT / "README.md").write_text(updated(README))
