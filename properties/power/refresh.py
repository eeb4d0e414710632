"""Every committed artefact, what makes it, and the one command that makes it anew.

    growproof refresh [NAME …]      # in a checkout; without names: all but the long ones

Each is made by the commands that one would use for it alone; beside each a test sees
that it is fresh, and a test of this table sees that nothing generated is missing from it.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[2]
LONG = 60  # minutes from which an artefact is made only when it is named


@dataclass(frozen=True)
class Artefact:
    """Committed files, the commands that write them, and how long that takes.

    folder: where the commands run. stdout: the file of that folder that holds what they
    print, if it is one of the files.
    """

    files: tuple[str, ...]
    commands: tuple[str, ...]
    minutes: int
    folder: str = "."
    stdout: str = ""

    def make(self) -> None:
        """Write the files. Raises CalledProcessError where a command fails."""
        printed = ""
        for command in self.commands:
            words = shlex.split(
                command.replace("python", shlex.quote(sys.executable), 1)
            )
            done = subprocess.run(
                words, cwd=ROOT / self.folder, check=True, text=True,
                stdout=subprocess.PIPE if self.stdout else None,
            )  # fmt: skip
            printed += done.stdout or ""
        if self.stdout:
            (ROOT / self.folder / self.stdout).write_text(printed, encoding="utf-8")


OTHERS = (
    "article", "article_mended", "fms_head_dim", "hypercloning", "kv_replication", "lemon",
    "llama_pro", "net2net", "passthrough", "qwen_mlp", "sparse_upcycling",
)  # fmt: skip
ARTEFACTS: dict[str, Artefact] = {
    "assumptions": Artefact(
        ("properties/proofs/assumptions.expected",),
        ("make -s all", "coqc -w none -R . Growproof Assumptions.v"),
        minutes=3, folder="properties/proofs", stdout="assumptions.expected"),
    "detection": Artefact(
        ("properties/power/power.json",),
        ("python -m growproof.cli power --smallest --json properties/power/power.json",),
        minutes=25),
    "everywhere": Artefact(
        ("properties/power/by_family.json",),
        ("python -m growproof.cli power --families --json properties/power/by_family.json",),
        minutes=25),
    "sensitivity": Artefact(
        ("properties/power/sensitivity.md",),
        ("python -m properties.power.sensitivity",), minutes=2),
    "ladder": Artefact(
        ("integration/results/ladder-cpu.json", "integration/results/ladder-cpu.svg"),
        ("python -m integration.ladder --write",), minutes=10),
    "ladder-gpu": Artefact(  # on one, whose name is in those of the files
        ("integration/results/ladder-nvidia-h200.json",
         "integration/results/ladder-nvidia-h200.svg",
         "integration/results/ladder-stablelm_2_1_6b-nvidia-h200.json",
         "integration/results/ladder-stablelm_2_1_6b-nvidia-h200.svg"),
        ("python -m integration.ladder --write",
         "python integration/train.py stablelm_2_1_6b --device cuda",
         "python -m integration.ladder --stablelm build/stablelm_2_1_6b --write"),
        minutes=60),
    "scaling": Artefact(  # on a quiet machine
        ("integration/results/scaling-cpu.json", "integration/results/scaling-cpu.svg"),
        ("python -m integration.scaling",), minutes=60),
    "gallery": Artefact(
        ("integration/results/others/README.md",
         *(f"integration/results/others/{name}.json" for name in OTHERS)),
        ("python -m integration.gallery",), minutes=20),
    "edition": Artefact(
        ("properties/score/editions.json",), ("python -m properties.score.edition",),
        minutes=1),
    "families": Artefact(
        ("properties/power/families.json",), ("python -m properties.power.families",),
        minutes=1),
    "runs": Artefact(
        ("properties/power/runs.json", "properties/power/worst.json"),
        ("python -m properties.power.runs build/runs",
         "python -m properties.power.corpus build/runs"), minutes=600),
    "right": Artefact(  # adds to what is there
        ("properties/power/right.json",),
        ("python -m growproof.cli power --false-alarms 12000 --json properties/power/right.json",),
        minutes=20),
    "terms": Artefact(
        ("properties/certify/soundness.json",), ("python -m properties.certify.terms",),
        minutes=1),
    "combined": Artefact(
        ("properties/power/combined.json",), ("python -m properties.power.combined",),
        minutes=2),
    "soundness": Artefact(
        ("properties/certify/soundness-growths.json",),
        ("python -m properties.certify.misses 33",), minutes=60),
    "theorems": Artefact(  # Graphviz draws it
        ("docs/theorems.svg",),
        ("make -C properties/proofs -s all",
         "python -m properties.proofs.graph properties/proofs"), minutes=3),
    "docs": Artefact(
        ("docs/_static/faults.js", "docs/mathematics.md", "docs/tolerances.md",
         "docs/theorems.md", "docs/claims.md", "docs/ladder.md", "docs/speed.md",
         "docs/break.md"), ("python -m integration.docs",), minutes=1),
    "readme": Artefact(
        ("README.md",),
        ("python -m properties.power.claims",), minutes=1),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Make the named artefacts, in the table's order; 1 where a command failed.

    Raises ImportError outside a checkout, where nothing is committed.
    """
    if not (ROOT / ".git").exists():
        raise ImportError(f"refresh writes committed files, and {ROOT} is no checkout")
    usage = argparse.ArgumentParser("growproof refresh", description=__doc__)
    usage.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ARTEFACTS))
    names = usage.parse_args(argv).names
    known = ", ".join(ARTEFACTS)
    if unknown := sorted(set(names) - ARTEFACTS.keys()):
        usage.error(f"no artefact is called {', '.join(unknown)} (of {known})")
    chosen = {
        name: artefact
        for name, artefact in ARTEFACTS.items()
        if (name in names if names else artefact.minutes < LONG)
    }
    for name, artefact in tqdm(chosen.items(), unit="artefact"):
        files = ", ".join(artefact.files)
        print(f"{name}: {files}, about {artefact.minutes} min", flush=True)
        try:
            artefact.make()
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            print(f"{name} is as it was: {error}", file=sys.stderr)
            return 1
    return 0
