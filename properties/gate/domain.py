"""What is claimed: the features of a run, and the domain that cases are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

from ..laws.domain import AXES, CONFIG_NAME, CORE, DOMAIN, EXTRAS, known_families
from ..laws.registry import PROMISES
from .command import nearest

# each once: llama and stablelm are of the core, and families besides
FEATURES = tuple(
    dict.fromkeys(
        (
            *CORE,
            *known_families(),
            *EXTRAS,
            *(p.name for p in PROMISES.values() if not p.asked_for),
        )
    )
)
MORE = (*known_families(), *EXTRAS, *(p.name for p in PROMISES.values() if p.asked_for))
OURS = "tests of growproof itself"  # what no other grower is asked
SPELLINGS = {name: axis for axis, name in CONFIG_NAME.items()}


class UnknownName(ValueError):
    """A name that nothing has, with the nearest one that something has."""


def names(given: Sequence[str], known: Sequence[str], flag: str) -> list[str]:
    """Features as they were given: several options, commas, transformers' spellings.

    Raises UnknownName for one that `flag` does not take.
    """
    words = [w.strip() for text in given for w in text.split(",") if w.strip()]
    found = [SPELLINGS.get(w.lstrip("-").replace("-", "_"), w) for w in words]
    for word in found:
        if word not in known:
            hint = nearest(word, [*known, *SPELLINGS])
            raise UnknownName(
                f"{flag} knows no {word}{hint or '.'} It takes: {', '.join(known)}"
            )
    return found


def narrow(
    without: Sequence[str],
    more: Sequence[str],
    family: Sequence[str] = (),
    *,
    own: bool = False,
) -> list[str]:
    """Set the domain that cases are drawn from; returns what is left out.

    family: the families that the grower is for, in place of the usual ones. own: the
    grower is growproof's own, which claims every family and option. Raises UnknownName for a feature that is none, or where nothing is left to grow.
    """
    left_out = names(without, FEATURES, "--without")
    claimed = names(more, MORE, "--with")
    usual = set(CORE) | ({*known_families(), *EXTRAS} if own else set())
    if family:
        usual -= set(known_families())
        usual |= set(names(family, known_families(), "--family"))
    DOMAIN.features = (usual | set(claimed)) - set(left_out)
    options = {"--family": family, "--with": more, "--without": without}
    DOMAIN.asked = tuple(w for o, n in options.items() if n for w in (o, ",".join(n)))
    if not DOMAIN.families:
        raise UnknownName(
            f"--without {','.join(left_out)} leaves nothing that can grow: of "
            f"{', '.join(AXES)} one must stay, in a family (a StableLm's hidden size is "
            "heads · head_dim, and grows with one of them; a grower of the vocabulary "
            "alone leaves one, and raises NotImplementedError for it)"
        )
    return left_out
