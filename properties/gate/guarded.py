"""What a grower may not do to the run that judges it, whatever it does to itself.

Each call is bracketed: what it raises becomes an ordinary failure (pytest takes
some exceptions for a skip or an order to stop), and the process is put back as it was
(standard streams, sys.path, folder, functions and modes of torch, transformers' own
models). While it runs, the grower has its own patches of them; the laws have none.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from growproof.supervised import FOLDER

from ..laws.patches import Patches, put, restored
from ..laws.world import LEFT, kept


class Misbehaved(Exception):
    """What a grower did instead of returning a model or declining."""


theirs: Patches = {}  # what a grower had in the place of functions
made: dict[tuple[str, str], None] = {}  # those that it put there when it was called
SUPERVISED = os.environ.get(FOLDER)  # as it was before a grower could change it


def take_back() -> None:
    """The own functions again; what a grower had in their places is kept for it."""
    found = restored()
    theirs.clear()
    theirs.update(found)


def forget() -> None:
    """Another grower is under test: what the last one put anywhere is none of its."""
    restored()
    theirs.clear()
    made.clear()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put the process back as it was, whatever is done to it meanwhile."""
    streams, process = (sys.stdin, sys.stdout, sys.stderr), os.getpid()
    lent = tuple(Lent(stream) for stream in streams[1:])
    with undisturbed_interpreter(), undisturbed_system():
        sys.stdout, sys.stderr = lent  # pyright: ignore[reportAttributeAccessIssue]
        put(theirs)
        try:
            with kept(LEFT):
                yield
        finally:
            if os.getpid() != process:  # a copy of this process, which judges nothing
                os._exit(0)
            take_back()
            sys.stdin, sys.stdout, sys.stderr = streams


@contextmanager
def undisturbed_interpreter() -> Iterator[None]:
    """sys.path and modules; its settings are among those of `laws.world`."""
    path, modules = list(sys.path), dict(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        sys.modules.update(modules)


@contextmanager
def undisturbed_system() -> Iterator[None]:
    """The folder, the environment but for what was added, and where 1 and 2 lead."""
    folder, environment = os.getcwd(), dict(os.environ)
    kept = {number: os.dup(number) for number in (1, 2) if identity(number)}
    try:
        yield
    finally:
        for number, spare in kept.items():
            if identity(number) != identity(spare):
                os.dup2(spare, number)
            os.close(spare)
        os.environ.update(environment)
        os.chdir(folder)


def identity(number: int) -> tuple[int, int] | None:
    """Which file a descriptor leads to, if it is open."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Lent:
    """A stream that is written to and cannot be closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        """Nothing: it is somebody else's."""

    def detach(self) -> Any:
        """The stream stays where it is."""
        return self


def guarded(name: str, act: Callable[[], Any]) -> Any:
    """What `act` returns. Raises NotImplementedError, as it does, or an Exception.

    An interrupt from the keyboard goes through. What is no Exception, and what pytest
    and Hypothesis would take for a word of their own, is Misbehaved.
    """
    before = dict(theirs)
    try:
        with undisturbed(), growing():
            return spoken_plainly(name, act)
    finally:
        made.update(
            dict.fromkeys(k for k, f in theirs.items() if before.get(k) is not f)
        )
        LEFT.extend(f"{where}.{function} was replaced" for where, function in made)


def spoken_plainly(name: str, act: Callable[[], Any]) -> Any:
    """What `act` returns, or raises, as an Exception of its own or Misbehaved."""
    try:
        return act()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        home = type(error).__module__.split(".")[0]
        control = home in ("_pytest", "pytest", "hypothesis", "unittest")
        words = spoken(error)
        if isinstance(error, Exception) and not control and words is not None:
            raise
        told = f": {words}" if words else ""
        said = " ".join(f"{type(error).__name__}{told}".split())
        raise Misbehaved(
            f"{name} raised {said}: a grower returns a model, or declines with "
            "NotImplementedError"
        ) from None


def spoken(error: BaseException) -> str | None:
    """What an exception says, or None where saying it fails."""
    try:
        return str(error)
    except Exception:
        return None


def refuse_meta(name: str, grown: Any, model: Any) -> None:
    """Raise Misbehaved for parameters without values, of a model that has some."""
    empty = [n for n, p in grown.named_parameters() if p.is_meta]
    if empty and not any(p.is_meta for p in model.parameters()):
        raise Misbehaved(
            f"{name} returned {len(empty)} parameters on the meta device, such as "
            f"{empty[0]}: they hold no values"
        )


# --- what a supervising process is told -------------------------------------------------


@contextmanager
def growing() -> Iterator[None]:
    """Leave a note for as long as the grower runs: who waits can tell for how long."""
    if not SUPERVISED:
        yield
        return
    note = Path(SUPERVISED) / f"growing-{os.getpid()}"
    note.write_text(repr(time.time()))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def tell(name: str, said: Mapping[str, Any] | str) -> None:
    """Leave a word for who supervises, if somebody does."""
    if SUPERVISED:
        (Path(SUPERVISED) / name).write_text(str(said), encoding="utf-8")
