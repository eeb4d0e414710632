"""Every claim and its place: sentence ↔ laws ↔ theorems ↔ tier.

The table of docs/claims.md and those of the README (`python -m properties.power.claims`) are
made from the laws, and a test keeps them complete in both directions: every law and every
main theorem is in one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from ..laws.claims import CLAIMS
from ..laws.registry import PROMISES, SUITE, Claim, Law, Tier, laws
from . import families


def theorems(claim: Claim) -> list[str]:
    """The main theorems behind a claim: those that its laws cite, and its own."""
    cited = [name for law in made_by(claim) for name in law.proof]
    return [*dict.fromkeys(cited), *claim.theorems]


def tier(claim: Claim) -> str:
    """The tiers that a claim rests on."""
    tiers = {law.tier for law in made_by(claim)}
    if theorems(claim):
        tiers.add("proved")
    return ", ".join(tier for tier in get_args(Tier) if tier in tiers)


def made_by(claim: Claim) -> list[Law]:
    """The laws of the whole suite that make a claim."""
    return [law for law in laws(SUITE).values() if law.claim is claim]


def markdown() -> str:
    """The table of docs/claims.md: claim, tier, laws, theorems."""
    lines = ["| claim | tier | laws (`test_…`) | theorems |", "|---|---|---|---|"]
    for claim in CLAIMS:
        names = " ".join(f"`{law.name}`" for law in made_by(claim)) or "–"
        proofs = " ".join(f"`{name}`" for name in theorems(claim)) or "–"
        lines.append(f"| {claim.sentence} | {tier(claim)} | {names} | {proofs} |")
    return "\n".join(lines)


def promises() -> str:
    """The README's table of the markers that a grower may promise."""
    lines = [f"| `{p.name}` | {p.says} |" for p in PROMISES.values()]
    return "\n".join(["| promise (marker) | says |", "|---|---|", *lines])


TABLES = {"promises": promises, "families": families.markdown}


def updated(readme: str) -> str:
    """The README with its tables made anew. Raises ValueError if one has no place."""
    return filled(readme, TABLES, "the README")


def filled(text: str, blocks: Mapping[str, Callable[[], str]], page: str) -> str:
    """A page with each block between its marks made anew, or ValueError."""
    for name, block in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{page} has no {begin} … {end}")
        text = f"{before}{begin}\n{block()}\n{end}{after}"
    return text


if __name__ == "__main__":
    from pathlib import Path

    path = Path(__file__).parents[2] / "README.md"
    path.write_text(updated(path.read_text()))
