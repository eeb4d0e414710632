"""Somebody else's project: set up by `growproof init`, judged as its CI judges it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from growproof import init
from growproof.cli import main

from properties.errors import report, samples, storage
from properties.errors.ledger import Failure, Tally

ROOT = Path(__file__).parents[1]
WITHOUT = "hidden,heads,groups,head_dim,layers"
LAW = ("-k", "test_mlp_maps_padded_to_padded")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, with what `growproof init` writes into it."""
    folder = tmp_path_factory.mktemp("someone") / "project"
    shutil.copytree(ROOT / "integration" / "example", folder)
    words = ["--family", "llama", "--without", WITHOUT]
    assert main(["init", "examplegrow:grow", str(folder), *words]) == 0
    return folder


def sh(script: str, folder: Path, *words: str, **more: str) -> Any:
    """A shell script in the project, with the commands of this environment.

    `growproof` is the installed one, run by the Python of the tests: see warm.py.
    """
    commands, bin = Path(sysconfig.get_path("scripts")), folder.parent / "bin"
    bin.mkdir(exist_ok=True)
    command = shlex.join([sys.executable, str(commands / "growproof")])
    (bin / "growproof").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    (bin / "growproof").chmod(0o700)
    path = os.pathsep.join((str(bin), str(commands), os.environ["PATH"]))
    return subprocess.run(
        ["bash", "-c", script, "growproof.sh", *words], cwd=folder,
        env=os.environ | {"PATH": path} | more, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def jobs(ci: str) -> list[str]:
    """The shell lines of a CI file that `growproof init` writes."""
    ((_, text),) = init.CI[ci].items()
    found = yaml.safe_load(text)["jobs" if ci == "github" else "growproof"]
    if ci == "gitlab":
        return found["script"]
    return [step["run"] for step in found["growproof"]["steps"] if "run" in step]


@pytest.mark.parametrize("ci", ["github", "gitlab"])
def test_ci_runs_the_script(ci: str) -> None:
    """Install the project and growproof, and run growproof.sh, in each of them."""
    assert jobs(ci) == ["pip install growproof -e .", "sh growproof.sh"]


def test_the_script_passes_a_right_grower_and_catches_1e_6(project: Path) -> None:
    """Exit 0, then 1 on the day it regresses, with report, badge and annotation."""
    summary = project / "summary.md"
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    done = sh('sh ./growproof.sh "$@"', project, *LAW, **github)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "examplegrow:grow conforms" in done.stdout
    badge = json.loads((project / "growproof-badge.json").read_text())
    assert badge == {
        "schemaVersion": 1, "label": "growproof (in part)", "message": "zero_padding",
        "color": "brightgreen",
    }  # fmt: skip
    grower = project / "examplegrow.py"
    grower.write_text(grower.read_text().replace("SCALE = 1.0", "SCALE = 1 + 1e-6"))
    done = sh('sh ./growproof.sh "$@"', project, *LAW, **github)
    grower.write_text(grower.read_text().replace("SCALE = 1 + 1e-6", "SCALE = 1.0"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "::error title=growproof mlp_maps_padded_to_padded::" in done.stdout
    badge = json.loads((project / "growproof-badge.json").read_text())
    assert (badge["message"], badge["color"]) == ("violates zero_padding", "red")
    said = [x for x in summary.read_text().splitlines() if x.startswith("### ")]
    assert [line.split()[1:4:2] for line in said] == [
        ["✅", "conforms:"],
        ["❌", "violates"],
    ]
    assert (project / "growproof-report.html").stat().st_size > 1000


def test_the_action_runs_what_it_says(project: Path) -> None:
    """action.yml: its script, with its inputs, on two directories."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    judge = next(s for s in action["runs"]["steps"] if s["name"] == "judge")
    wired = {value.split(".")[1].split(" ")[0] for value in judge["env"].values()}
    assert wired == action["inputs"].keys()
    summary, output = project / "action.md", project / "action.out"
    outputs = {v["value"].split(".")[3].strip(" }") for v in action["outputs"].values()}
    assert outputs == {"verdict", "score"}
    source = str(ROOT / "integration" / "llama")
    given = dict.fromkeys(judge["env"], "")
    given |= {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(output)}
    same = sh(judge["run"], project, SOURCE=source, DESTINATION=source, **drop(given))
    assert same.returncode == 0, same.stdout + same.stderr
    assert "the same function" in summary.read_text().lower()
    assert "verdict=The same function" in output.read_text()
    unreadable = f"growproof() {{ echo no model; return 4; }}\n{judge['run']}"
    done = sh(unreadable, project, SOURCE=source, DESTINATION=source, **drop(given))
    assert done.returncode == 4
    assert "::error title=growproof verify::" in done.stdout
    check = sh(f"growproof() {{ echo \"$@\"; }}\n{judge['run']}", project,
               **given | {"GROWER": "a:b", "FAMILY": "llama", "PROMISES": "x or y"})  # fmt: skip
    assert check.stdout.startswith("check a:b --isolate --family=llama -m x or y ")
    assert "--score growproof-score.json --sign" in check.stdout
    assert output.read_text().endswith("verdict=no verdict\n")


def drop(given: dict[str, str]) -> dict[str, str]:
    """Without the two directories."""
    return {k: v for k, v in given.items() if k not in ("SOURCE", "DESTINATION")}


def test_init_overwrites_nothing(project: Path, capsys: Any) -> None:
    """A second time: exit 4, and which file is there; a wrong name likewise."""
    before = (project / "growproof.sh").read_text()
    assert main(["init", "other:grow", str(project)]) == 4
    assert "growproof.sh" in capsys.readouterr().err
    assert (project / "growproof.sh").read_text() == before
    assert main(["init", "other", str(project)]) == 4
    assert main(["init", "a:b", str(project / "nowhere")]) == 4


def test_what_is_annotated() -> None:
    """One line a law, with its cause and how to repeat it; per cent signs escaped."""
    book = storage.loads(samples.GOOD)
    book.run.failures = [
        Failure(law="eps", cause="5 % off\nhere", repeat="growproof x")
    ]
    book.run.score = [Tally(promise="lossless", family="llama", axis="mlp", failed=1)]
    assert report.annotated(book) == [
        "::error title=growproof eps::5 %25 off here Repeat: growproof x"
    ]
    assert (
        json.loads(report.badge(True, book.run.score))["message"] == "violates lossless"
    )


def test_a_scheduled_job_tries_the_newest_releases() -> None:
    """What is pinned cannot tell that a new release breaks something."""
    job = yaml.safe_load((ROOT / ".github/workflows/newest.yml").read_text())
    steps = job["jobs"]["newest"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/newest"]
    assert job[True]["schedule"]  # YAML reads `on` as a truth value
    assert os.access(ROOT / ".ci/newest", os.X_OK)


def test_each_run_tries_the_ends_of_what_is_supported() -> None:
    """The oldest transformers that pyproject.toml allows, and the newest that the README names."""
    oldest, newest = re.findall(
        r"for release in (\S+) (\S+);", (ROOT / ".ci/run").read_text()
    )[0]
    assert f'"transformers>={oldest}"' in (ROOT / "pyproject.toml").read_text()
    told = " ".join((ROOT / "README.md").read_text().split())
    assert f"transformers {oldest} to {newest}" in told
