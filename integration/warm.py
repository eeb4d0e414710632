"""Python processes that start at once, forked from one that has imported torch already.

Four fifths of what the tests of the gate cost were the same imports. `python` below stands
in for `sys.executable` while tests run: it hands its arguments, directory, environment
and standard streams to the server, which forks, and ends as that process ends. What the
server cannot stand for (an interpreter's options, variables that imports read) starts as
it always did, and so does everything where GROWPROOF_WARM is empty.
"""

import atexit
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "GROWPROOF_WARM"
IMPORTED = ("torch", "numpy", "safetensors.torch", "transformers.models.auto.modeling_auto",
            "transformers.models.llama.modeling_llama", "transformers.generation.utils")  # fmt: skip
# variables that matter to what is imported already
READ = (
    "PYTHON",
    "LC_",
    "LANG",
    "HF_",
    "TRANSFORMERS",
    "TOKENIZERS",
    "OMP",
    "MKL",
    "TORCH",
)
# the last two: what torchrun tells its ranks, who read it when they meet
MAY_DIFFER = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "TORCHELASTIC_", "TORCH_NCCL_")
LARGEST = 100_000  # bytes of a request, below what a socket takes
CLIENT = """#!{python} -ISs
import json, os, signal, socket, sys
def cold():
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
words, here = sys.argv[1:], dict(os.environ)
read = lambda names: {{k: v for k, v in names.items() if k.startswith({read!r}) and not k.startswith({may!r})}}
rest = words[words[:1] == ["-u"]:]
if not here.get({variable!r}) or read(here) != {base!r} or not rest or (
    rest[0].startswith("-") and rest[0] not in ("-m", "-c")):
    cold()
request = json.dumps([rest, os.getcwd(), here]).encode()
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    if len(request) > {largest}:
        cold()
    server.connect(here[{variable!r}] + "/socket")
    socket.send_fds(server, [request], [0, 1, 2])
except OSError:
    cold()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda n, _: server.send(b"%d" % n))
code = int(server.recv(16) or -9)
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def possible() -> bool:
    """Whether this system has what the server needs: Linux's descriptors of processes."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


@contextmanager
def served() -> Iterator[None]:
    """A server, and what stands in for `sys.executable`, while tests run."""
    with tempfile.TemporaryDirectory(prefix="growproof-") as folder:
        base = {k: v for k, v in os.environ.items() if k.startswith(READ)}
        text = CLIENT.format(
            python=sys.executable, read=READ, may=MAY_DIFFER, variable=VARIABLE,
            base={k: v for k, v in base.items() if not k.startswith(MAY_DIFFER)},
            largest=LARGEST,
        )  # fmt: skip
        python = Path(folder) / "python"
        python.write_text(text)
        python.chmod(0o700)
        command = [sys.executable, "-P", __file__, folder]
        null = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null):
            os.environ[VARIABLE] = folder
            try:
                yield
            finally:
                del os.environ[VARIABLE]


def serve(folder: str) -> list[str]:
    """Fork for each client; returns, in each such process, the words to run there."""
    atexit.register(end)  # before all others, which run before it
    for name in IMPORTED:
        __import__(name)
    for name in [m for m in sys.modules if m.split(".")[0] == "anyio"]:
        del sys.modules[name]  # it brings a plugin, which pytest imports itself
    gc.freeze()  # or every process copies all pages when it ends
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(f"{folder}/socket")
        server.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
        while True:
            if sys.stdin in select.select([server, sys.stdin], [], [])[0]:
                raise SystemExit  # the tests have ended
            connection, _ = server.accept()
            if not os.fork():
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, fds, _, _ = socket.recv_fds(connection, LARGEST, 3)
    if process := os.fork():
        watch(connection, process)
    connection.close()
    os.setsid()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    words, directory, variables = json.loads(request)
    become(directory, variables)
    sys.executable = f"{folder}/python"
    return words


def watch(connection: socket.socket, process: int) -> None:
    """Pass on signals, tell how it ended; end it with the client. Never returns."""
    ended = os.pidfd_open(process)
    while ended not in select.select([ended, connection], [], [])[0]:
        asked = connection.recv(16)
        if not asked:
            os.killpg(process, signal.SIGKILL)
            os._exit(0)
        os.kill(process, int(asked))
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    connection.send(b"%d" % code)
    os._exit(0)


def become(directory: str, variables: Mapping[str, str]) -> None:
    """What an interpreter does first."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(variables)
    added = variables.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = filter(None, added)
    sys.dont_write_bytecode = bool(variables.get("PYTHONDONTWRITEBYTECODE"))
    random.seed()


status: int | None = None  # what the process ends with, where a number says it


def end() -> None:
    """End here: to take torch apart, object by object, copies the pages that hold it."""
    if status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def execute(words: list[str]) -> None:
    """`python WORDS`, for a module, a program or a file."""
    kind, *rest = words
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], sys.modules["__main__"].__dict__)
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    try:
        execute(serve(sys.argv[1]))
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else None
        raise
