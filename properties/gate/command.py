"""The words after `growproof check`: read before pytest is, so that errors are one line."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..laws.promises import PROMISES, reference

HELP = """usage: growproof check [GROWER] [options] [pytest's options]

Judge a grower: GROWER is MODULE:CALLABLE or FILE.py:CALLABLE, anywhere on the line
(default: $GROWPROOF_GROWER, else growproof:grow). Exit 0: it conforms. 1: it violates
a law. 4: no verdict, the reason is said.

  growproof check mypackage:grow
  growproof check grow.py:grow --without layers,biases -m lossless
  growproof check --grower-command 'mygrow {source} {destination} {target_json}'

the grower
  --grower GROWER          the same as GROWER
  --grower-command COMMAND a program on checkpoint directories, as above
  --grower-timeout SECONDS the most it may take for one growth (default: 60)
  --isolate                end the run where one growth takes longer, or the grower ends
                           its process (default where $CI is set; --no-isolate: not)
  --family NAME,…          the families it is for (default: llama,stablelm; of
                           growproof:grow every one)
  --without FEATURE,…      what it does not claim: never drawn, never asked for, of
                           FEATURES
  --with FEATURE,…         what it claims besides, of
                           MORE
the laws
  -m PROMISE               PROMISES
  -k WORD                  laws whose name has the word
  --edition YEAR           the laws of an edition (2027) and no other
  -n 2                     in two processes (default: one a core, up to four, where
                           all laws run; -n 0: in one)
  --hypothesis-profile thorough   1000 random examples a law (default: quick, 12)
what is expected
  --xfails FILE            expected failures: law | reason | link | expires | ceiling
  --write-xfails FILE      write this run's failures as such a file
what is kept
  --repro-dir DIR          a script for each case that fails: DIR/repeat_LAW.py
  --score FILE             what this run says of the grower, for `growproof report`
  --sign                   with a digest, for `growproof report --check FILE`
  --errors-save FILE       the errors of this run, as JSON
  --errors-compare FILE    fail where errors grew since that run
  --errors-fail RATIO      by how much they must have grown (default: 2)
  --errors-accept REASON   store this run over the one that it is compared with
  --junitxml FILE          for a CI service
  -v                       every failure in full
"""
LIMIT = 60.0  # seconds for one growth
MOST = 4  # processes: each imports torch and transformers
LAWS = Path(__file__).absolute().parents[1]
OURS = re.findall(r"--[a-z-]+", HELP)
SPREAD = {*OURS, "-m", "-v", "-vv", "-q"}  # options of a run that is worth it
# pytest's options that take the next word
TAKES_NEXT = (
    "-k", "-m", "-n", "-p", "-c", "-o", "-r", "-W", "--family", "--with", "--without", "--xfails",
    "--write-xfails", "--repro-dir", "--errors-save", "--errors-compare", "--junitxml",
    "--errors-fail", "--errors-accept", "--score", "--edition", "--grower", "--grower-command", "--durations",
    "--grower-timeout", "--hypothesis-profile", "--hypothesis-seed", "--tb", "--maxfail",
    "--deselect", "--ignore", "--rootdir", "--basetemp", "--log-file",
)  # fmt: skip
GROWER = re.compile(r"(?!.*::)[^\s-][^\s:]*:[A-Za-z_][\w.]*")


class UsageError(ValueError):
    """A word that cannot be meant, and which one may be."""


def read(words: list[str]) -> list[str] | None:
    """pytest's arguments for these words; None where they only asked for help.

    Raises UsageError for a word that is misspelt, or that needs what is not installed.
    """
    if {"-h", "--help"} & set(words):
        print(help_text(), end="")
        return None
    found = list(words)
    for at, word in positions(words):
        if GROWER.fullmatch(word):
            found[at : at + 1] = [f"--grower={word}"]
            break
    else:
        named(words)
    for word in words:
        option = word.split("=")[0]
        if word.startswith("--") and option not in OURS:
            near = difflib.get_close_matches(option, OURS, n=1, cutoff=0.8)
            if near and option not in ("--version",):
                raise UsageError(
                    f"there is no option {option}, did you mean {near[0]}?"
                )
    chosen = value_of(words, "-m")
    if chosen is None:  # the laws, not the suite's tests of itself
        found = ["-m", "law", *found]
    else:
        markers(chosen)
    if value_of(words, "-n") and importlib.util.find_spec("xdist") is None:
        raise UsageError(
            "-n needs pytest-xdist: pip install pytest-xdist, or leave it out"
        )
    found += spread(words)
    loud = any(re.fullmatch(r"-v+|--verbose|--tb(=.*)?", word) for word in words)
    if {"--collect-only", "--co"} & {*words}:  # with one -q: the names, and no counts
        return found if loud or "-q" in words else ["-q", *found]
    return found if loud else ["-q", "--tb=no", "-rN", *found]


def spread(words: list[str]) -> list[str]:
    """What a run in several processes is told besides, and in how many, if it was not said.

    A run that ends in a crash is one without a verdict, so that no worker is started anew.
    """
    asked = value_of(words, "-n")
    n = asked or usual(words)
    if n == "0":
        return []
    return [*([] if asked else ["-n", n]), "--max-worker-restart=0"]


def usual(words: list[str]) -> str:
    """The -n of a run that says nothing of it: one a core, up to MOST, where all laws run."""
    narrowed = any(w.startswith("-") and w.split("=")[0] not in SPREAD for w in words)
    narrowed |= any("::" in word for _, word in positions(words))
    # the cores are in use already within a worker of another run
    bare = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTEST_XDIST_WORKER"} & {*os.environ}
    if narrowed or bare or importlib.util.find_spec("xdist") is None or cores() < 2:
        return "0"
    return str(min(MOST, cores()))


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def named(words: list[str]) -> None:
    """Raise UsageError for a file that is no law, where no grower is named.

    pytest would collect it, and growproof's own grower would be judged.
    """
    said = (valued(words, option) for option in ("--grower", "--grower-command"))
    if os.environ.get("GROWPROOF_GROWER") or any(said):
        return
    for at, word in positions(words):
        behind = re.fullmatch(r"--[a-z-]+", words[at - 1] if at else "")  # its value
        path = Path(word.split("::")[0]).absolute()
        if not behind and os.path.exists(path) and not path.is_relative_to(LAWS):
            raise UsageError(
                f"a grower is MODULE:CALLABLE or FILE.py:CALLABLE, got {word!r}: "
                f"perhaps {word}:grow"
            )


def help_text() -> str:
    """HELP, with the names that it speaks of."""
    from .domain import FEATURES, MORE  # imports torch, which takes its time

    text, indent = HELP, "\n" + 27 * " "
    for word, names in (("FEATURES", FEATURES), ("MORE", MORE), ("PROMISES", PROMISES)):
        text = text.replace(word, indent.join(textwrap.wrap(", ".join(names), 52)))
    return text


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean …?`, or nothing where no known word is like it."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""


def positions(words: list[str]) -> Iterator[tuple[int, str]]:
    """The words that are neither options nor their values, with their places."""
    for at, word in enumerate(words):
        if not word.startswith("-") and (at == 0 or words[at - 1] not in TAKES_NEXT):
            yield at, word


def value_of(words: list[str], option: str) -> str | None:
    """What follows an option of one letter: `-m x` and `-mx`."""
    for at, word in enumerate(words):
        if word == option:
            return words[at + 1] if at + 1 < len(words) else ""
        if word.startswith(option) and not word.startswith("--"):
            return word[len(option) :].lstrip("=")
    return None


def markers(expression: str) -> None:
    """Raise UsageError for a promise that there is none of."""
    known = [*PROMISES, reference.name, "law", "needs"]
    for word in re.findall(r"[A-Za-z_]\w*", expression):
        if word not in (*known, "and", "or", "not", "True", "False"):
            hint = nearest(word, known)
            raise UsageError(
                f"-m knows no {word}{hint or '.'} It takes: {', '.join(known[:5])}"
            )


def time_limit(words: list[str]) -> float | None:
    """The seconds that one growth may take, where the run is isolated; else None."""
    asked = "--isolate" in words or os.environ.get("CI", "") not in ("", "0", "false")
    if not asked or "--no-isolate" in words:
        return None
    try:
        return float(valued(words, "--grower-timeout") or LIMIT)
    except ValueError as error:
        raise UsageError(f"--grower-timeout is a number of seconds: {error}") from None


def valued(words: list[str], option: str) -> str | None:
    """What follows an option with a long name: `--x y` and `--x=y`."""
    for at, word in enumerate(words):
        if word == option:
            return words[at + 1] if at + 1 < len(words) else None
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def nothing(words: list[str]) -> str:
    """Why a run collected no law."""
    chosen = [f"{o} {v!r}" for o in ("-m", "-k") if (v := value_of(words, o))]
    what = " and ".join(c for c in chosen if c != "-m 'law'") or "what is claimed"
    return (
        f"{what} selects no law, so that nothing was checked: "
        "`growproof check --collect-only -q` lists them"
    )
