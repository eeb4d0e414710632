"""The file of expected failures: what a line may be, and what is said of another."""

import datetime
from pathlib import Path

import pytest

from . import xfails


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("test_x", "expected `law"),
        ("test_x | ", "expected `law"),
        ("test_x | because | | soon", "Invalid isoformat"),
        ("test_x | because | | | nan", "must be finite"),
        ("test_x | a | b | 2030-01-01 | 3 | more", "expected `law"),
    ],
)
def test_malformed_expected_failure(tmp_path: Path, line: str, message: str) -> None:
    """A malformed line is named with its place."""
    path = tmp_path / "xfails.txt"
    path.write_text("# a comment\n\n" + line + "\n")
    with pytest.raises(xfails.XfailError, match=message) as caught:
        xfails.load(path)
    assert f"{path}:3" in str(caught.value) or "isoformat" in message


def test_expected_failure_round_trip(tmp_path: Path) -> None:
    """What is dumped loads again, and is not dumped over."""
    entry = xfails.Expected("a", "b | c", "d", datetime.date(2030, 1, 2), 3.5)
    path = tmp_path / "xfails.txt"
    xfails.dump([entry], path)
    found = xfails.load(path)["a"]
    assert found == xfails.Expected("a", "b / c", "d", datetime.date(2030, 1, 2), 3.5)
    with pytest.raises(xfails.XfailError, match="exists"):
        xfails.dump([entry], path)
