"""A run in a process of its own, that ends with a verdict or with a sentence.

What judges a grower shares a process with it, and the grower may end that process,
stop it for ever, or leave it with an exit code of its choice. So a verdict is a note that
the run leaves at its end, and not the exit code; and a note that a growth has begun, of
which none is taken away in time, ends the run.
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = "GROWPROOF_SUPERVISED"
USAGE, INTERNAL = 4, 3
PAUSE = 0.1  # seconds between two looks
GRACE = 10.0  # seconds that a run may go on behind its verdict


def supervised(
    command: Sequence[str], environment: Mapping[str, str], limit: float | None
) -> int:
    """The exit code of a command that judges a grower; USAGE, with a sentence, without.

    limit: seconds that one growth may take.
    """
    with tempfile.TemporaryDirectory(prefix="growproof-") as name:
        folder = Path(name)
        run = subprocess.Popen(
            command, env={**environment, FOLDER: name}, start_new_session=bool(limit)
        )
        asked = signal.signal(signal.SIGTERM, terminated)
        try:
            try:
                late = watch(run, folder, limit)
            except KeyboardInterrupt:
                if limit:
                    stop(run)
                interrupted(run)
                raise
        except SystemExit:  # who ends this process ends the run, and an interrupted one
            stop(run)
            raise
        finally:
            signal.signal(signal.SIGTERM, asked)
        if late:
            return unjudged(f"a growth took more than {limit:g} s (--grower-timeout)")
        verdict = read(folder / "verdict")
        if verdict in ("", str(INTERNAL)):
            return without(run.returncode, read(folder / "started"), verdict)
        return int(verdict) if verdict.isdecimal() else run.returncode


def watch(run: "subprocess.Popen[bytes]", folder: Path, limit: float | None) -> bool:
    """Wait for the run. True where one growth was over the limit, and it was ended.

    A run that does not end behind its verdict, for a thread that a grower left, is ended.
    """
    behind = math.inf
    while True:
        try:
            run.wait(PAUSE)
            return False
        except subprocess.TimeoutExpired:
            begun = [float(read(note) or "inf") for note in folder.glob("growing-*")]
            if read(folder / "verdict").isdecimal():
                behind = min(behind, time.time())
            if time.time() - behind > GRACE:
                stop(run)
                return False
            if limit and begun and time.time() - min(begun) > limit:
                stop(run)
                return True


def interrupted(run: "subprocess.Popen[bytes]") -> None:
    """Wait for a run that the terminal interrupted, too; else do it, and then end it."""
    for end in (lambda: run.send_signal(signal.SIGINT), run.kill):
        try:
            run.wait(GRACE)
            return
        except subprocess.TimeoutExpired:
            end()
    run.wait()


def terminated(number: int, frame: object) -> None:
    """SIGTERM, as an exception."""
    raise SystemExit(128 + number)


def read(note: Path) -> str:
    """What a note says; nothing where there is none."""
    try:
        return note.read_text("utf-8")
    except OSError:
        return ""


def stop(run: "subprocess.Popen[bytes]") -> None:
    """End the run, with all that it started where it leads a group of processes."""
    if os.getpgid(run.pid) == run.pid:
        os.killpg(run.pid, signal.SIGKILL)
    run.kill()
    run.wait()


def without(code: int, started: str, verdict: str) -> int:
    """The exit code of a run that left no verdict."""
    if not started and code == USAGE:  # it has said why
        return code
    if verdict:
        return unjudged("the run ended in an internal error, shown above")
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    return unjudged(f"the grower's process ended {how} before the run did")


def unjudged(why: str) -> int:
    """USAGE, and the reason as the last line."""
    sys.stdout.flush()
    print(f"no verdict: {why}", file=sys.stderr)
    return USAGE
