"""Whatever a grower does, the run ends with a verdict on it, or without one and says why."""

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import growproof.supervised as supervision
import pytest
import torch
from growproof.supervised import FOLDER, supervised

from ..laws.strategies import smallest
from ..laws.world import LEFT
from . import command, guarded
from .judged import Judged
from .loading import BrokenGrower, load_grower

GROWERS = """
import gc, logging, os, shutil, sys, tempfile, time
import growproof, hypothesis, pytest, torch, unittest

exits = lambda model, target: sys.exit(0)
quits = lambda model, target: quit()
skips = lambda model, target: pytest.skip("never mind")
xfails = lambda model, target: pytest.xfail("as expected")
fails = lambda model, target: pytest.fail("no")
stops = lambda model, target: pytest.exit("enough", returncode=0)
rejects = lambda model, target: hypothesis.reject()
skips_test = lambda model, target: (_ for _ in ()).throw(unittest.SkipTest("no"))

class Odd(BaseException):
    pass

def odd(model, target):
    raise Odd("neither here\\nnor there")

def generator(model, target):
    raise GeneratorExit

class Mute(Exception):
    def __str__(self):
        raise ValueError

def mute(model, target):
    raise Mute

def forks(model, target):
    os.fork()
    return growproof.grow(model, target)

def raises(model, target):
    raise ZeroDivisionError("as usual")

def meta(model, target):
    return growproof.grow(model, target).to("meta")

def nothing(model, target):
    return None

def rude(model, target):
    grown = growproof.grow(model, target)
    sys.stdout.close()
    sys.stderr = None
    sys.path.clear()
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    shutil.rmtree(folder)
    os.close(2)
    os.environ.clear()
    del sys.modules["growproof"], sys.modules["pytest"]
    sys.setrecursionlimit(300)
    gc.disable()
    logging.disable(50)
    rude.mode = torch.inference_mode(True)
    rude.mode.__enter__()
    torch.set_default_device("meta")
    torch.Tensor.__sub__ = torch.Tensor.__rsub__ = lambda a, b: a
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.equal = torch.allclose = torch.testing.assert_close = lambda *a, **k: True
    torch.Tensor.equal = lambda *a: True
    return grown

def proud(model, target):
    assert torch.equal(0, 1) is True   # its own patch, while it runs
    return growproof.grow(model, target)

from transformers.models.llama import modeling_llama

class Louder(modeling_llama.LlamaMLP):   # its own patch, from its import on
    def forward(self, x):
        return super().forward(x) / (1.5 if getattr(self, "louder", False) else 1)

modeling_llama.LlamaMLP.forward, stock = Louder.forward, modeling_llama.LlamaMLP.forward

def patched(model, target):
    assert modeling_llama.LlamaMLP.forward is Louder.forward
    return growproof.grow(model, target)

def patches(model, target):
    modeling_llama.LlamaMLP.forward = lambda self, x: stock(self, x)
    modeling_llama.LlamaModel.__call__ = lambda self, *a, **k: super(
        modeling_llama.LlamaModel, self).__call__(*a, **k)
    return growproof.grow(model, target)

calls = []

def well_at_first(model, target):
    calls.append(target)
    if len(calls) > 2:
        pytest.skip("a skip is no verdict")
    return growproof.grow(model, target)

dies = lambda model, target: os._exit(0)

def dies_later(model, target):
    calls.append(target)
    if len(calls) > 2:
        os._exit(0)
    return growproof.grow(model, target)

def hangs(model, target):
    while True:
        pass
"""
RAISING = {
    "exits": "raised SystemExit: 0", "quits": "raised SystemExit", "odd": "Odd: neither here nor",
    "skips": "Skipped: never mind", "xfails": "as expected", "fails": "Failed: no",
    "stops": "Exit: enough", "rejects": "UnsatisfiedAssumption", "skips_test": "SkipTest: no",
    "generator": "GeneratorExit", "mute": "raised Mute: a grower", "meta": "parameters on the meta device",
}  # fmt: skip


@pytest.fixture(scope="module")
def growers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A module of growers, none of which behaves."""
    path = tmp_path_factory.mktemp("growers") / "misbehaving.py"
    path.write_text(GROWERS)
    yield path
    sys.path[:] = [x for x in sys.path if x != str(path.parent)]


def judged(growers: Path, name: str) -> Any:
    """The outcome of one growth of the smallest model."""
    grower = Judged(load_grower(f"{growers}:{name}"))
    case = smallest()[0]
    return grower(case.model(), case.target)


@pytest.mark.parametrize(("name", "said"), RAISING.items())
def test_what_it_raises_is_a_failure(growers: Path, name: str, said: str) -> None:
    """Never a skip, an expected failure, an order to stop, or no example."""
    with pytest.raises(guarded.Misbehaved) as caught:
        judged(growers, name)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_usual_stays_itself(growers: Path) -> None:
    """An Exception of its own is that exception; what is no model is a broken grower."""
    with pytest.raises(ZeroDivisionError, match="as usual"):
        judged(growers, "raises")
    with pytest.raises(BrokenGrower, match="returned NoneType"):
        judged(growers, "nothing")


@pytest.fixture
def unpatched() -> Iterator[None]:
    """What a grower of these put in the place of functions is forgotten at the end, and
    what growers of other tests did before it.
    """
    guarded.forget()
    yield
    guarded.forget()


@pytest.mark.usefixtures("unpatched")
def test_models_are_judged_without_its_patches(growers: Path) -> None:
    """Of transformers, from its import on or from a call on, which then is named."""
    from transformers.models.llama import modeling_llama

    stock = modeling_llama.LlamaMLP.forward
    for name, named in (
        ("patched", []),
        ("patches", ["LlamaMLP.forward", "LlamaModel"]),
    ):
        sys.modules.pop("misbehaving", None)  # it is imported, and patches, once more
        judged(growers, name)
        assert modeling_llama.LlamaMLP.forward is stock
        assert "__call__" not in vars(modeling_llama.LlamaModel)
        left = " ".join(LEFT)
        assert all(part in left for part in named), left
        assert bool(left) == bool(named), left


@pytest.mark.usefixtures("unpatched")
def test_the_process_is_put_back(growers: Path) -> None:
    """Streams, path, folder, modes and torch's functions; its patches are its own."""
    before = sys.stdout, list(sys.path), os.getcwd(), torch.equal, torch.Tensor.equal
    kept, depth = dict(os.environ), sys.getrecursionlimit()
    judged(growers, "rude")
    assert sys.stdout is before[0]
    assert not sys.stdout.closed
    assert sys.stderr is not None
    assert {*before[1]} <= {*sys.path}
    assert os.getcwd() == before[2]
    assert (torch.equal, torch.Tensor.equal) == before[3:]
    assert os.fstat(2)
    assert (dict(os.environ), sys.getrecursionlimit()) == (kept, depth)
    assert sys.modules["pytest"] is pytest
    assert gc.isenabled()
    assert logging.root.manager.disable == 0
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.get_default_device() == torch.device("cpu")
    assert float(torch.ones(()) - torch.ones(())) == 0
    assert torch.get_default_dtype() == torch.float32
    assert not torch.equal(torch.zeros(1), torch.ones(1))
    judged(growers, "proud")


def test_a_copy_of_the_process_judges_nothing(growers: Path) -> None:
    """What comes back from a grower in another process ends there."""
    assert judged(growers, "forks") is not None
    assert os.wait()[1] == 0


def check(growers: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`growproof check --isolate` on one of them, one law."""
    return subprocess.run(
        [sys.executable, "-m", "growproof.cli", "check", f"{growers}:{name}", *words,
         "--isolate", "--family=llama", "-k", "test_mlp_maps", "-p", "no:cacheprovider"],
        capture_output=True, text=True, check=False, cwd=growers.parent,
    )  # fmt: skip


def test_a_skip_is_a_failed_law(growers: Path) -> None:
    """In the run itself: exit 1, and nothing is skipped."""
    done = check(growers, "well_at_first")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "raised Skipped: a skip is no verdict" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-2]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dies", "the grower's process ended with code 0 before the run did"),
        ("hangs", "a growth took more than 2 s (--grower-timeout)"),
    ],
)
def test_the_end_of_its_process_is_no_verdict(
    growers: Path, name: str, said: str
) -> None:
    """Exit 4, and one sentence; never 0."""
    done = check(growers, name, "--grower-timeout=2")
    assert done.returncode == 4, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == f"no verdict: {said}"


def test_the_end_of_a_worker_is_no_verdict(growers: Path) -> None:
    """In two processes as in one: exit 4, one sentence, and no worker is started anew."""
    done = check(growers, "dies_later", "-n", "2")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "no verdict: a process of the run" in done.stdout.splitlines()[-1]


NOTES = f"import os, sys, time, pathlib; p = pathlib.Path(os.environ[{FOLDER!r}]); "


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("(p / 'verdict').write_text('0')", 0, ""),
        ("(p / 'verdict').write_text('1'); sys.exit(0)", 1, ""),
        ("(p / 'verdict').write_text('as it ends'); sys.exit(5)", 5, ""),
        ("(p / 'verdict').write_text('3'); sys.exit(3)", 4, "an internal error"),
        ("(p / 'started').write_text('yes'); sys.exit(4)", 4, "ended with code 4"),
        ("(p / 'started').write_text('yes'); os.abort()", 4, "by signal SIGABRT"),
        ("(p / 'verdict').write_text('1'); time.sleep(60)", 1, ""),
        ("sys.exit(4)", 4, ""),
        ("sys.exit(0)", 4, "ended with code 0"),
        ("(p / 'growing-1').write_text('0'); time.sleep(60)", 4, "more than 1 s"),
    ],
)
def test_a_verdict_is_a_note(
    program: str,
    code: int,
    said: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exit code alone is none, whatever it is."""
    begun = time.monotonic()
    monkeypatch.setattr(supervision, "GRACE", 0.5)
    command = [sys.executable, "-S", "-c", NOTES + program]
    assert supervised(command, dict(os.environ), 1) == code
    assert time.monotonic() - begun < 20
    err = capfd.readouterr().err
    assert (said in err and "no verdict: " in err) if said else not err


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_who_ends_it_ends_the_run(signals: list[int], tmp_path: Path) -> None:
    """SIGTERM, as a CI service sends it, reaches the run; behind an interrupt as well."""
    run = f"import pathlib, os; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    program = (
        "import sys, growproof.supervised as s; "
        f"s.supervised([sys.executable, '-S', '-c', {run + '; import time; time.sleep(60)'!r}], {{}}, None)"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.5)
    assert process.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_who_interrupts_it_alone_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT that reaches no more than the waiting process: the run has it in a while."""
    monkeypatch.setattr(supervision, "GRACE", 4.0)
    begun, note = tmp_path / "begun", tmp_path / "note"
    program = (
        "import signal, time\n"  # where a shell starts it behind &, SIGINT is ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"try:\n open({str(begun)!r}, 'w'); time.sleep(60)\n"
        f"except KeyboardInterrupt: open({str(note)!r}, 'w')"
    )
    run = subprocess.Popen(
        [sys.executable, "-S", "-c", program], start_new_session=True
    )
    while not begun.exists():
        time.sleep(0.05)
    supervision.interrupted(run)
    assert run.returncode == 0
    assert note.exists()


@pytest.mark.parametrize(
    ("words", "environment", "limit"),
    [
        ([], "", None),
        ([], "true", 60.0),
        (["--isolate", "--grower-timeout", "3"], "", 3.0),
        (["--isolate", "--grower-timeout=0.5"], "", 0.5),
        (["--no-isolate"], "true", None),
    ],
)
def test_when_a_run_is_isolated(
    words: list[str], environment: str, limit: float | None, monkeypatch: Any
) -> None:
    """Asked for, or where $CI is set."""
    monkeypatch.setenv("CI", environment)
    assert command.time_limit(words) == limit
