"""What the docs say of the code, made from it.

    python -m integration.docs       # writes them anew, in docs/

A block between `<!-- name -->` and `<!-- /name -->` of a page is made here, and so is
docs/_static/faults.js. A test sees that they are fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from properties.laws.checks import BUDGETS
from properties.laws.registry import laws
from properties.power import claims as claimed
from properties.power.corpus import runs
from properties.power.detection import RESULTS
from properties.proofs import graph
from properties.proofs.claims import claims

from . import breaking, ladder, mathematics, scaling
from .mathematics import table

DOCS = Path(__file__).parents[1] / "docs"
FAULTS = DOCS / "_static" / "faults.js"


# --- tolerances -----------------------------------------------------------------------


def budgets_table() -> str:
    """Each budget, the largest error of a right grower in the recorded runs, and laws."""
    rows: list[tuple[str, ...]] = []
    for kind, budget in BUDGETS.items():
        own = [law.name for law in laws().values() if law.budget == kind]
        seen = [run["worst_ratio"].get(name, 0.0) for run in runs() for name in own]
        names = ", ".join(f"`{name}`" for name in own)
        rows.append((f"`{kind}`", f"{budget:g}", f"{max(seen):.2g}", names))
    return table("budget | units | worst seen | laws", rows)


def sensitivity_table() -> str:
    """The table of sensitivity.md."""
    text = (RESULTS.parent / "sensitivity.md").read_text()
    return "\n".join(row for row in text.splitlines() if row.startswith("|"))


# --- theorems -------------------------------------------------------------------------


def theorems_table() -> str:
    """Every main theorem, by subject, in the sentence that stands above its proof."""
    axioms = graph.with_axioms()
    parts: list[str] = []
    for subject, title in graph.SUBJECTS.items():
        parts.append(f"### {subject}. {title[0].upper()}{title[1:]}\n")
        parts += [
            f"- `{c.name}`{' (real numbers)' if c.name in axioms else ''}: {c.sentence}"
            for c in claims()
            if c.number == subject
        ]
        parts.append("")
    return "\n".join(parts).strip()


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "mathematics.md": {
        "axes": mathematics.axes_table, "parameters": mathematics.parameters_table,
        "norms": mathematics.norms_table, "taps": mathematics.taps_table,
    },
    "tolerances.md": {"budgets": budgets_table, "sensitivity": sensitivity_table},
    "theorems.md": {"theorems": theorems_table},
    "claims.md": {"claims": claimed.markdown},
    "ladder.md": {"ladder-gpu": ladder.at_the_articles_sizes, "ladder": ladder.of_the_shipped},
    "speed.md": {"scaling": scaling.ratios, "estimate": scaling.estimates},
    "break.md": {
        "in every family": breaking.families_table, "missed": breaking.missed_list,
    },
}  # fmt: skip


def main() -> None:
    """Write all of it."""
    for page, blocks in BLOCKS.items():
        path = DOCS / page
        path.write_text(claimed.filled(path.read_text(), blocks, page))
    FAULTS.parent.mkdir(exist_ok=True)
    FAULTS.write_text(breaking.script())


if __name__ == "__main__":
    main()
