"""The main theorems, read from the comments above them in the .v files.

A main theorem has `(** MAIN number name: one sentence. *)` directly above it. From these
comments come the table of claims and the list that `test_sources.py` checks.
"""

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
MAIN = re.compile(r"\(\*\*\s*MAIN\s+(\d+)\s+(\w+):\s+(.*?)\s*\*\)", re.DOTALL)
THEOREM = re.compile(r"\s*Theorem\s+(\w+)\b")


class Claim(NamedTuple):
    """One main theorem: its number in the list of claims, and what it says."""

    number: int
    name: str
    file: str
    sentence: str


def claims(folder: Path = FOLDER) -> list[Claim]:
    """Every main theorem, by number, then in the order of the build.

    Raises ValueError where a MAIN comment is malformed or not directly above the theorem
    that it names.
    """
    files = [folder / name for name in built(folder)]
    found = [
        claim for file in files for claim in claims_of(file.read_text(), file.name)
    ]
    return sorted(found, key=lambda claim: claim.number)


def claims_of(text: str, file: str) -> list[Claim]:
    """The main theorems of one .v file, in order."""
    found = []
    for match in MAIN.finditer(text):
        number, name, sentence = match.groups()
        below = THEOREM.match(text, match.end())
        if below is None or below[1] != name:
            raise ValueError(
                f"{file}: no theorem {name} directly below its MAIN comment"
            )
        found.append(Claim(int(number), name, file, " ".join(sentence.split())))
    if len(found) != len(re.findall(r"\bMAIN\b", text)):
        raise ValueError(f"{file}: a MAIN comment is not `(** MAIN number name: … *)`")
    return found


def built(folder: Path = FOLDER) -> list[str]:
    """The .v files that the build compiles, in the order of `_CoqProject`."""
    lines = (folder / "_CoqProject").read_text().splitlines()
    return [line.strip() for line in lines if line.strip().endswith(".v")]
