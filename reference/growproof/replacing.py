"""A directory that appears whole or not at all, at whatever moment the process dies.

It is made under a hidden name beside its destination. The process holds a lock on it,
which the system takes back however that process ends: a hidden directory without a lock
is litter, and `sweep` removes it. Directories are put in place, and litter is told from
what is at work, under a lock of the directory around them, so that runs to one
destination neither mix nor sweep each other away.
"""

import ctypes
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from growproof.decoder import GrowthError

GROWING, REPLACED = ".growing", ".replaced"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


@contextmanager
def replacing(destination: Path, *, force: bool) -> Generator[Path]:
    """A new directory beside `destination` that takes its place if all goes well.

    Whatever goes wrong (an interrupt, a kill), what was at `destination` is still there.
    Raises GrowthError where something has come there in the meantime, unless forced.
    """
    destination = destination.resolve()
    with named(destination), claimed(destination) as fresh:
        yield fresh
        with locked(destination.parent):
            put(fresh, destination, force=force)


@contextmanager
def named(destination: Path) -> Generator[None]:
    """What the system refuses meanwhile is told of `destination`, not of a hidden name."""
    try:
        yield
    except OSError as error:
        hidden = f".{destination.name}-" in str(error.filename)
        if error.errno and (error.filename is None or hidden):
            raise OSError(error.errno, error.strerror, str(destination)) from error
        raise


@contextmanager
def claimed(beside: Path) -> Generator[Path]:
    """A new hidden directory, locked, that is removed in the end if it is still there."""
    sweep(beside)
    mark = f".{beside.name}-{os.getpid()}-{secrets.token_hex(4)}"
    path = beside.with_name(mark + GROWING)
    with locked(beside.parent):
        path.mkdir()
        lock = os.open(path, os.O_RDONLY)
        claim(lock)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def put(fresh: Path, destination: Path, *, force: bool) -> None:
    """Have `fresh` take the place of `destination`, what was there end in hiding."""
    if not destination.exists() or not any(destination.iterdir()):
        fresh.rename(destination)
    elif not force:
        raise GrowthError(
            f"{destination} has come to exist meanwhile: choose another, or --force"
        )
    elif not exchange(fresh, destination):
        stale = fresh.with_suffix(REPLACED)
        destination.rename(stale)
        try:
            fresh.rename(destination)
        except BaseException:
            stale.rename(destination)
            raise
        shutil.rmtree(stale, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Swap two directories in one step, where the system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    paths = os.fsencode(a), os.fsencode(b)
    return rename(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0


def sweep(destination: Path) -> None:
    """Remove what dead runs left beside `destination`, and put back what they moved."""
    destination = destination.resolve()
    parent = destination.parent
    if not parent.is_dir():
        return
    with locked(parent):
        ours = re.compile(rf"\.{re.escape(destination.name)}-\d+(-[0-9a-f]+)?\.\w+")
        for path in filter(lambda p: ours.fullmatch(p.name), parent.iterdir()):
            if path.suffix == REPLACED and not destination.exists():
                path.rename(destination)
            elif path.suffix in (GROWING, REPLACED) and is_free(path):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Alone in this directory, as far as its file system knows of locks."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        claim(lock, wait=True)
        yield
    finally:
        os.close(lock)


def claim(lock: int, *, wait: bool = False) -> bool:
    """Lock an open directory; False where another has it, or nobody can tell."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def is_free(path: Path) -> bool:
    """True where no process holds a lock on a directory."""
    lock = os.open(path, os.O_RDONLY)
    try:
        return claim(lock)
    finally:
        os.close(lock)
