"""The command line, read without running anything."""

import sys
from pathlib import Path

import pytest
from growproof.cli import is_within

from . import command
from .domain import FEATURES, MORE
from .loading import BrokenGrower, load_grower
from .xfails import rounded_up


@pytest.mark.parametrize(
    "words",
    [
        ["grow.py:grow", "-m", "lossless"],
        ["-m", "lossless", "grow.py:grow"],
        ["--without", "layers", "grow.py:grow", "-p", "no:cacheprovider"],
        ["--xfails=a.txt", "grow.py:grow"],
    ],
)
def test_the_grower_is_anywhere_on_the_line(words: list[str]) -> None:
    """Neither an option's value nor a node id is taken for one."""
    found = command.read(words)
    assert found is not None
    assert "--grower=grow.py:grow" in found
    assert [w for w in found if w.startswith("--grower")] == ["--grower=grow.py:grow"]
    again = command.read(["-k", "a:b", "laws/test_mlp.py::test_x"])
    assert again is not None
    assert not [w for w in again if w.startswith("--grower")]


def test_a_file_without_its_function_is_no_grower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else growproof's own grower would be judged, and conform."""
    (tmp_path / "grow.py").touch()
    (tmp_path / "grower").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GROWPROOF_GROWER", raising=False)
    for word in ("grow.py", "grower"):
        with pytest.raises(command.UsageError, match=f"perhaps {word}:grow"):
            command.read(["--without", "layers", word])
    laws = Path(command.__file__).parents[1] / "laws"
    for words in (
        ["grow.py:grow", "grow.py"], ["--grower=grow:grow", "grow.py"], [str(laws)],
        ["--ignore-glob", "grow.py"], ["--grower-command", "a {source}", "grow.py"],
    ):  # fmt: skip
        assert command.read(words)


def test_a_word_of_any_length_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-k with more names than a path may have is no path; a file of the laws is one."""
    (tmp_path / "test_x.py").touch()
    monkeypatch.chdir(tmp_path)
    assert is_within("test_x.py::test_y", tmp_path)
    assert not is_within(" or ".join(["two_calls_agree"] * 400), tmp_path)


def test_a_listing_is_as_it_was_asked_for() -> None:
    """What a run that selects nothing says lists the laws by name."""
    found = command.read(["--collect-only", "-q"])
    assert found == ["-m", "law", "--collect-only", "-q"]


def test_help_names_every_option_and_feature(
    pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each option of the plugins, each feature, and three examples."""
    assert command.read(["grow.py:grow", "--help"]) is None
    text = capsys.readouterr().out
    ours = [
        name
        for group in pytestconfig._parser._groups
        if group.name in ("growproof", "growproof errors", "growproof score")
        for option in group.options
        for name in option.names()
    ]
    assert ours
    for word in (*ours, *FEATURES, *MORE, "GROWPROOF_GROWER"):
        assert word in text, word
    assert text.count("\n  growproof check ") == 3
    assert max(map(len, text.splitlines())) <= 88


def test_n_without_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    """-n says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(command.UsageError, match="pip install pytest-xdist"):
        command.read(["-n", "2"])


@pytest.mark.parametrize(
    ("words", "cores", "n"),
    [
        ([], 2, "2"), ([], 1, None), ([], 64, "4"), (["-n", "3"], 2, "3"),
        (["-n0"], 2, None), (["grow.py:grow", "-m", "lossless", "--without=mlp"], 2, "2"),
        (["-k", "mlp"], 2, None), (["-x"], 2, None), (["laws/test_mlp.py::test_x"], 2, None),
    ],
)  # fmt: skip
def test_all_laws_run_on_all_cores(
    words: list[str], cores: int, n: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is said of it, and within no worker of another run."""
    monkeypatch.setattr(command, "cores", lambda: cores)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    found = command.read(words)
    assert found is not None
    assert command.value_of(found, "-n") == (n or command.value_of(words, "-n"))
    assert ("--max-worker-restart=0" in found) == (n is not None)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    if "-n" not in words:
        assert "--max-worker-restart=0" not in (command.read(words) or [])


@pytest.mark.parametrize(
    ("text", "said"),
    [("1/0", "ZeroDivisionError"), ("exit(3)", "SystemExit: 3"), ("(", "SyntaxError")],
)
def test_a_module_that_raises_or_exits(tmp_path: Path, text: str, said: str) -> None:
    """One line that says which, whatever an import does."""
    path = tmp_path / f"broken_{said[:4].lower()}.py"
    path.write_text(text)
    with pytest.raises(BrokenGrower, match=said) as caught:
        load_grower(f"{path}:grow")
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("x", [1.23401, 100.0, 12345.6, 9.999, 0.0123456, 4e14])
def test_a_ceiling_is_rounded_up(x: float) -> None:
    """Three digits, at least x and less than a hundredth above it."""
    assert x <= float(rounded_up(x)) < 1.011 * x
