"""`growproof check`: exit codes, growers in the current directory, its settings."""

import configparser
import tomllib
from pathlib import Path

import pytest
from growproof import cli
from growproof.cli import main, suite

LAW = ["-q", "-k", "test_mlp_maps_padded_to_padded", "-p", "no:cacheprovider"]
GROWERS = """
import torch
from growproof import grow

def broken(model, target):
    model = grow(model, target)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(1.001)
    return model
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a grower in it."""
    (tmp_path / "growers_here.py").write_text(GROWERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["growers_here:grow", *LAW], 0, "passed"),
        (["growers_here:broken", *LAW], 1, "failed"),
        (["no_such_module:grow", *LAW], 4, "no_such_module"),
        (["-q", "-k", "no_law_has_this_name"], 4, "selects no law"),
    ],
)
def test_check_exits_as_pytest_does(
    arguments: list[str],
    code: int,
    said: str,
    elsewhere: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", *arguments]) == code
    out, err = capfd.readouterr()
    assert said in out + err


def test_a_named_file_of_the_suite_is_the_suite(
    elsewhere: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    laws = suite()[0] / "laws" / "test_mlp.py"
    assert main(["check", str(laws), "--collect-only"]) == 0
    collected = [x for x in capfd.readouterr().out.splitlines() if "::" in x]
    assert collected
    assert all("test_mlp.py" in item for item in collected)


def test_the_wheels_settings_are_the_checkouts() -> None:
    """But for strict warnings: a warning is no verdict on somebody's grower."""
    shipped = configparser.ConfigParser()
    shipped.read(Path(cli.__file__).with_name("pytest.ini"))
    ours = tomllib.loads((suite()[0].parent / "pyproject.toml").read_text())
    ours = ours["tool"]["pytest"]
    del ours["testpaths"], ours["filterwarnings"], ours["addopts"]
    expected = {
        name: " ".join(value) if isinstance(value, list) else str(value).lower()
        for name, value in ours.items()
    }
    found = {k: " ".join(v.split()) for k, v in shipped["pytest"].items()}
    assert found == expected | {"addopts": "--disable-warnings"}


def test_a_misspelt_option_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Of each subcommand, as of `check`."""
    for words in (
        ["grow", "a", "b", "--hiden-size", "64"],
        ["fit", "a", "b", "--tpp=2"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 4
    err = capsys.readouterr().err
    assert "--hiden-size 64 (did you mean --hidden-size?)" in err
    assert "--tpp=2 (did you mean --tp?)" in err


@pytest.mark.parametrize("command", ["power", "certify", "report"])
def test_the_suites_own_commands_are_handed_on(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main([command, "--help"])
    except SystemExit as stopped:
        code = stopped.code
    assert not code
    assert f"growproof {command}" in capsys.readouterr().out
