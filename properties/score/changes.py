"""Two scores of one grower: what became of each verdict, and whose doing that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors.ledger import LedgerError
from .document import JudgedLaw, Score

YOURS, OURS, CLAIM = "your code", "our laws", "your claim"


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A verdict that is another than before. label: YOURS, OURS or CLAIM; why: more of it."""

    label: str
    item: str
    before: str
    now: str
    why: str = ""


def changes(base: Score, now: Score, *, across: bool = False) -> list[Changed]:
    """Every changed verdict, those that got worse first.

    Raises LedgerError for scores of two growers, unless `across`.
    """
    if base.grower != now.grower and not across:
        raise LedgerError(
            f"the earlier score is of {base.grower}, this one of {now.grower}: verdicts "
            "are compared for one grower, or with --across-growers"
        )
    old, new = ({law.name: law for law in x.laws} for x in (base, now))
    found = [
        change
        for name in {**old, **new}
        for change in of_law(name, old.get(name), new.get(name), base, now)
    ]
    return sorted(found, key=lambda c: (c.now != "failed", c.label, c.item))


def of_law(
    name: str, old: JudgedLaw | None, new: JudgedLaw | None, base: Score, now: Score
) -> Iterator[Changed]:
    """The changed verdicts of one law."""
    before, after = (law.items if law else {} for law in (old, new))
    label, why = label_of(old, new, base, now)
    for item in {**before, **after}:
        a, b = before.get(item, "not asked"), after.get(item, "not asked")
        if a == b:
            continue
        told = f"{name}[{item}]" if item else name
        if "not asked" in (a, b) and label == YOURS:
            yield Changed(label=CLAIM, item=told, before=a, now=b)
        else:
            yield Changed(label=label, item=told, before=a, now=b, why=why)


def label_of(
    old: JudgedLaw | None, new: JudgedLaw | None, base: Score, now: Score
) -> tuple[str, str]:
    """Whose doing a changed verdict of a law is, and why one can say so."""
    if old is None or new is None:
        same = base.versions["growproof"] == now.versions["growproof"]
        return (YOURS, "") if same else (OURS, f"the law is {'gone' if old else 'new'}")
    if old.version != new.version:
        return OURS, f"version {old.version} → {new.version}"
    if old.source != new.source:
        return OURS, "its code changed"
    if base.shared != now.shared:
        return OURS, "what the laws share changed: how cases are drawn, what is close"
    moved = [
        f"{name} {base.versions.get(name)} → {version}"
        for name, version in now.versions.items()
        if name in ("torch", "transformers", "hypothesis", "growproof")
        and base.versions.get(name) != version
    ]
    return YOURS, f"or {', '.join(moved)}" if moved else ""
