"""The table of artefacts is whole: what is generated is in it, and can be made."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from growproof.cli import main

from . import refresh
from .refresh import ARTEFACTS, ROOT, Artefact


def test_whatever_is_generated_is_in_the_table() -> None:
    """Every committed JSON, picture and page of results is an artefact or says otherwise."""
    listed = subprocess.run(
        ["git", "ls-files", "properties", "integration/results"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("needs a checkout and git: `git ls-files` tells what is committed")
    made = {file for artefact in ARTEFACTS.values() for file in artefact.files}
    data = re.compile(r".*\.(json|svg|expected|txt)|.*/sensitivity\.md")
    written = {"properties/errors/ledger.schema.json",
               "properties/score/score.schema.json",
               "properties/certify/certificate.schema.json"}  # fmt: skip
    records = re.compile(r".*/fuzz.*\.json|.*requirements.*")
    found = {f for f in listed.stdout.split() if data.fullmatch(f)} - written
    assert {f for f in found if not records.fullmatch(f)} <= made
    assert all((ROOT / file).exists() for file in made)


@pytest.mark.parametrize("name", ARTEFACTS)
def test_its_commands_are_there(name: str) -> None:
    """Each module that is run can be."""
    for command in ARTEFACTS[name].commands:
        module = re.search(r"-m (\S+)", command)
        assert module is None or importlib.util.find_spec(module[1]), command


def test_one_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are written; a command that fails is 1, and leaves them as they were."""
    out = tmp_path / "out.txt"
    good = Artefact(
        ("out.txt",), ("python -c 'print(6 * 7)'",), 1, str(tmp_path), "out.txt"
    )
    bad = Artefact(
        ("out.txt",), ("python -c 'raise SystemExit(3)'",), 1, str(tmp_path), "out.txt"
    )
    monkeypatch.setattr(refresh, "ARTEFACTS", {"good": good, "bad": bad})
    assert main(["refresh", "good"]) == 0
    assert out.read_text() == "42\n"
    assert main(["refresh", "bad"]) == 1
    assert out.read_text() == "42\n"
    with pytest.raises(SystemExit):
        main(["refresh", "no_such"])
