"""Every claim and its place: sentence ↔ laws ↔ theorems ↔ tier.

The README's table is made from the laws (`python -m properties.power.claims`), and a test
keeps it complete in both directions: every law and every main theorem is in one row.
"""

from __future__ import annotations

from typing import get_args

from ..laws.claims import CLAIMS
from ..laws.registry import SUITE, Claim, Law, Tier, laws

BEGIN, END = "<!-- claims -->", "<!-- /claims -->"


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
    """The README's table: claim, tier, laws, theorems."""
    lines = ["| claim | tier | laws (`test_…`) | theorems |", "|---|---|---|---|"]
    for claim in CLAIMS:
        names = " ".join(f"`{law.name}`" for law in made_by(claim)) or "–"
        proofs = " ".join(f"`{name}`" for name in theorems(claim)) or "–"
        lines.append(f"| {claim.sentence} | {tier(claim)} | {names} | {proofs} |")
    return "\n".join(lines)


def updated(readme: str) -> str:
    """The README with its table made anew. Raises ValueError if it has no place."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} … {END}")
    return f"{before}{begin}\n{markdown()}\n{end}{after}"


if __name__ == "__main__":
    from pathlib import Path

    path = Path(__file__).parents[2] / "README.md"
    path.write_text(updated(path.read_text()))
