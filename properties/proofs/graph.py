"""The picture of the main theorems: which of them each one rests on.

    python -m properties.proofs.graph FOLDER

reads the .glob files that `make` leaves in FOLDER, in which Coq says what each proof
refers to, and writes docs/theorems.svg with Graphviz. What a tactic finds by itself (a
hint of `auto`) is not in them.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from bisect import bisect_left
from collections import defaultdict
from operator import itemgetter
from pathlib import Path

from .claims import FOLDER, claims

PICTURE = FOLDER.parents[1] / "docs" / "theorems.svg"
SUBJECTS = {
    1: "axes and rotary lanes", 2: "a zero in a sum", 3: "linear layers",
    4: "attention", 5: "the MLP", 6: "RMSNorm", 7: "LayerNorm", 8: "whole decoders",
    9: "free entries train", 10: "floats", 11: "each step is needed",
}  # fmt: skip
DEFINED = re.compile(r"(?:prf|def|rec|ind|inst|scheme|fix|abbrev) (\d+):\d+ \S+ (\S+)")
USED = re.compile(
    r"R(\d+):\d+ Growproof\.(\S+) \S+ (\S+) (?:thm|def|inst|rec|ind|abbrev)"
)
# not main, but what the theorems on whole decoders rest on: name → subject, sentence
LEMMAS = {
    "attention_grown": (
        4,
        "Attention with grown q, k, v and o is the old one, padded.",
    ),
    "mlp_grown": (5, "An MLP that is grown along its axes is the old one, padded."),
}
Name = tuple[str, str]  # file, name in it
Edge = tuple[str, str]  # a main theorem, and one that it rests on


def references(folder: Path) -> dict[Name, set[Name]]:
    """Each definition and lemma of a built folder → what it refers to, of our files."""
    found: dict[Name, set[Name]] = {}
    for glob in sorted(folder.rglob("*.glob")):
        text = glob.read_text()
        begun = sorted((int(m[1]), (glob.stem, m[2])) for m in DEFINED.finditer(text))
        found |= {name: set() for _, name in begun}
        for m in USED.finditer(text):
            before = bisect_left(begun, int(m[1]), key=itemgetter(0))
            if before:
                found[begun[before - 1][1]].add((m[2], m[3]))
    return found


def rests_on(folder: Path) -> set[Edge]:
    """(main theorem, main theorem it rests on), directly or by lemmas in between.

    Raises ValueError where the folder was not built.
    """
    uses, drawn_ones = references(folder), drawn_names()
    main = {name for name in uses if name[1] in drawn_ones}
    if missing := drawn_ones - {name for _, name in main}:
        raise ValueError(f"no .glob file of {folder} tells of {sorted(missing)}: make")
    found: set[Edge] = set()
    for start in main:
        seen, left = {start}, [start]
        while left:
            for name in uses.get(left.pop(), set()) - seen:
                seen.add(name)
                if name in main:
                    found.add((start[1], name[1]))
                else:
                    left.append(name)
    return found


def drawn_names() -> set[str]:
    """The main theorems and the lemmas of the picture."""
    return {claim.name for claim in claims()} | LEMMAS.keys()


def closure(edges: set[Edge]) -> set[Edge]:
    """The edges, and those that follow from them."""
    below: dict[str, set[str]] = defaultdict(set)
    for a, b in edges:
        below[a].add(b)
    found = set(edges)
    while more := {(a, c) for a, b in found for c in below.get(b, ())} - found:
        found |= more
    return found


def with_axioms() -> set[str]:
    """The main theorems that use the axioms of Coq's real numbers."""
    text = (FOLDER / "assumptions.expected").read_text()
    parts = re.split(r"^\d+ (\w+):\n", text, flags=re.MULTILINE)
    return {
        n for n, said in zip(parts[1::2], parts[2::2], strict=True) if "Axioms" in said
    }


def nodes(number: int, axioms: set[str]) -> list[str]:
    """The theorems of a subject: name, sentence as a tooltip, dashed if of axioms."""
    styles = {True: ', style="filled,dashed"', False: ""}
    found = [
        f'{c.name} [tooltip="{html.escape(c.sentence)}"{styles[c.name in axioms]}]'
        for c in claims()
        if c.number == number
    ]
    return found + [
        f'{name} [tooltip="{sentence}", fillcolor="#f3f4f6", color="#6b7280"]'
        for name, (of, sentence) in LEMMAS.items()
        if of == number
    ]


def dot(edges: set[Edge]) -> str:
    """The graph in Graphviz's language: a box for each subject, what is used below."""
    axioms = with_axioms()
    lines = [
        'digraph "What the main theorems rest on" {',
        'rankdir=LR; ranksep=0.5; nodesep=0.08; bgcolor=white; fontname="sans-serif"',
        'node [shape=box, style=filled, fillcolor="#eff6ff", color="#1d4ed8", '
        'height=0.22, margin="0.06,0.02", fontname="sans-serif", fontsize=11]',
        'edge [color="#6b7280", arrowsize=0.5]',
    ]
    for number, subject in SUBJECTS.items():
        lines.append(
            f'subgraph cluster_{number} {{ label="{number}  {subject}"; '
            f'color="#d1d5db"; fontsize=12; {"; ".join(nodes(number, axioms))} }}'
        )
    lines += [f"{below} -> {above}" for above, below in sorted(edges)]
    return "\n".join([*lines, "}"]) + "\n"


def drawn(edges: set[Edge]) -> str:
    """The picture as SVG, without the edges that follow from others.

    Raises FileNotFoundError where there is no Graphviz.
    """
    reduced = subprocess.run(
        ["tred"], input=dot(edges), capture_output=True, text=True, check=True
    )
    return subprocess.run(
        ["dot", "-Tsvg"],
        input=reduced.stdout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def shown(svg: str) -> tuple[set[str], set[Edge]]:
    """The theorems and the edges that a picture shows."""
    titles = map(
        html.unescape, re.findall(r'class="(?:node|edge)">\s*<title>(.*?)<', svg)
    )
    pairs = [title.partition("->") for title in titles]
    names = {name for name, arrow, _ in pairs if not arrow}
    return names, {(above, below) for below, arrow, above in pairs if arrow}


if __name__ == "__main__":
    PICTURE.write_text(drawn(rests_on(Path(sys.argv[1]))))
