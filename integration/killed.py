"""Grow one checkpoint over and over, each time in a process that is killed on the way.

`python -m integration.killed DIRECTORY KILLS SEED`, where DIRECTORY holds `source` and
`expected`, what a whole run makes of it. Even runs die at one of their calls to the file
system, from the first to the last, odd ones at a random time. Prints as JSON what was
found afterwards.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from growproof.checkpoints import grow_checkpoint
from tqdm import tqdm

TARGET = {"hidden_size": 24, "num_attention_heads": 2, "head_dim": 12}
OLD = {"intermediate_size": 40}  # what lay there before


def contents(path: Path) -> dict[str, bytes]:
    """Name → bytes of the files in a directory."""
    return {p.name: p.read_bytes() for p in path.iterdir()}


def grow(directory: Path, sizes: dict[str, int]) -> None:
    """One whole run, in small shards, over whatever is there."""
    options: Any = {"force": True, "shard_bytes": 8_000, "progress": False}
    grow_checkpoint(directory / "source", directory / "grown", sizes, **options)


class Calls:
    """The calls of this process to the file system, as Python's audit tells of them."""

    made = 0
    last: int | None = None  # the process dies where it would make this one

    @classmethod
    def count(cls, event: str, _arguments: Any) -> None:
        """An audit hook."""
        if event.startswith(("open", "os.", "shutil.", "fcntl.", "ctypes.dlsym")):
            cls.made += 1
            if cls.made == cls.last:
                os.kill(os.getpid(), signal.SIGKILL)


def forked(directory: Path, dies: int | None) -> int:
    """Run in a fork that kills itself at its `dies`-th call; None: to the end."""
    pid = os.fork()
    if pid:
        return pid
    try:
        Calls.made, Calls.last = 0, dies
        grow(directory, TARGET)
        os._exit(0)
    except BaseException as error:  # nothing of the parent may run
        print(repr(error), file=sys.stderr)
        os._exit(1)


def state(grown: Path, known: dict[str, dict[str, bytes]]) -> str:
    """Which of the known contents a destination has, or `absent`, or `torn`."""
    if not grown.exists():
        return "absent"
    here = contents(grown)
    return next((name for name, files in known.items() if files == here), "torn")


def main() -> None:
    """Kill, look, and now and then let a run end and see that nothing is left over."""
    # tqdm's lock is one for all forks, and stays taken where one is killed holding it
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # nor may a thread hold it while this process forks
    directory, kills = Path(sys.argv[1]), int(sys.argv[2])
    draw, grown = random.Random(int(sys.argv[3])), directory / "grown"
    grow(directory, OLD)
    sys.addaudithook(Calls.count)
    start = time.perf_counter()
    grow(directory, OLD)
    taken, calls = time.perf_counter() - start, Calls.made
    known = {"old": contents(grown), "new": contents(directory / "expected")}
    found: Counter[str] = Counter()
    for i in range(kills):
        before = "absent" if i % 5 == 0 else "old"
        shutil.rmtree(grown, ignore_errors=True)
        if before == "old":
            grown.mkdir()
            for name, data in known["old"].items():
                (grown / name).write_bytes(data)
        pid = forked(directory, None if i % 2 else 1 + i * calls // kills)
        if i % 2:
            time.sleep(draw.uniform(0, taken))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        found["killed" if code < 0 else "failed" if code else "ended"] += 1
        after = state(grown, known)
        found[f"{before} → {after}"] += 1
        found["litter"] += any(p.suffix == ".growing" for p in directory.iterdir())
        if i % 10 == 9:
            _, status = os.waitpid(forked(directory, None), 0)
            left = {p.name for p in directory.iterdir()}
            whole = status == 0 and state(grown, known) == "new"
            clean = left == {"source", "expected", "grown"}
            found["rerun" if whole and clean else "rerun failed"] += 1
    print(json.dumps(found))


if __name__ == "__main__":
    main()
