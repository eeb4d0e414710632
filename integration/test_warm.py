"""A process that is forked from a warm one begins and ends as any other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import warm

pytestmark = [
    pytest.mark.skipif(not warm.possible(), reason="no pidfd_open: needs Linux"),
    pytest.mark.xdist_group("warm"),
]
HAS_TORCH = "import sys; print('torch' in sys.modules)"


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    """What stands in for the interpreter: the run's own, if it has one."""
    if os.environ.get(warm.VARIABLE):
        yield f"{os.environ[warm.VARIABLE]}/python"
        return
    with warm.served():
        folder = os.environ[warm.VARIABLE]
        while not Path(folder, "socket").exists():
            time.sleep(0.1)
        yield f"{folder}/python"


def ran(python: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [python, *words]
    return subprocess.run(
        command, text=True, capture_output=True, check=False, **options
    )


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("raise SystemExit('why')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 15)", -15),
    ],
)
def test_it_ends_as_it_does(python: str, code: str, status: int) -> None:
    assert ran(python, "-c", code).returncode == status


def test_it_says_all_before_it_ends(python: str) -> None:
    """Though it is not taken apart: threads are waited for, and what runs at exit runs."""
    code = (
        "import atexit, threading; atexit.register(print, 'last', flush=False); "
        "threading.Timer(0.3, print, ['second']).start(); print('first')"
    )
    assert ran(python, "-c", code).stdout == "first\nsecond\nlast\n"


def test_it_is_warm_where_that_makes_no_difference(python: str) -> None:
    assert ran(python, "-c", HAS_TORCH).stdout == "True\n"
    assert ran(python, "-I", "-c", HAS_TORCH).stdout == "False\n"
    for more in (
        {"PYTHONHASHSEED": "1"},
        {"OMP_NUM_THREADS": "7"},
        {warm.VARIABLE: ""},
    ):
        assert ran(python, "-c", HAS_TORCH, env=os.environ | more).stdout == "False\n"


def test_it_has_what_it_was_given(python: str, tmp_path: Path) -> None:
    """Words, directory, variables, input, output; modules and files as programs."""
    show = (
        "import os, sys; print(sys.argv, os.getcwd(), os.environ['OWN'], input()); "
        "print(sys.executable, file=sys.stderr)"
    )
    own = os.environ | {"OWN": "kept", "PYTHONPATH": str(tmp_path / "path")}
    done = ran(python, "-c", show, "a", "b", cwd=tmp_path, env=own, input="said")
    assert done.stdout == f"['-c', 'a', 'b'] {tmp_path} kept said\n"
    assert done.stderr == f"{python}\n"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "far.py").write_text(
        "import near, sys; print(near.x, sys.argv[1:])"
    )
    (tmp_path / "near.py").write_text("x = 5")
    assert ran(python, "-m", "far", "c", cwd=tmp_path, env=own).stdout == "5 ['c']\n"
    (tmp_path / "program.py").write_text("import near; print(near.x, __name__)")
    here = str(tmp_path / "program.py")
    assert ran(python, here, env=own).stdout == "5 __main__\n"


def test_generators_are_its_own(python: str) -> None:
    draw = "import random; print(random.random())"
    assert ran(python, "-c", draw).stdout != ran(python, "-c", draw).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_is_ended_with_who_started_it(
    python: str, number: int, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    code = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(99)"
    process = subprocess.Popen([python, "-c", code])
    while not note.exists() or not note.read_text():
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(20) == -number
    for _ in range(100):
        if not Path("/proc", note.read_text()).exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"process {note.read_text()} goes on")


def test_the_interpreter_is_the_one_of_the_tests(python: str) -> None:
    said = ran(python, "-c", "import sys; print(sys.prefix, sys.version)").stdout
    assert said.strip() == f"{sys.prefix} {sys.version}"
