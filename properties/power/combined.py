"""Two faults at once: which one hides the other.

    python -m properties.power.combined

grows the smallest example of each known-bad grower with a second fault planted beside
it, and writes combined.json: the pairs in which the law of the first no longer fails on
its example, because both cancel, or the second undoes the first or leaves no room for it.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from tqdm import tqdm

from ..errors.ledger import recording
from ..gate.loading import Grower
from ..growers.known_bad import BY_NAME, both
from ..laws.registry import items
from ..laws.world import kept
from .corpus import faulty
from .detection import by_line

PATH = Path(__file__).with_name("combined.json")
# faults in table, weights or config that are found by the same law
PAIRS = [
    (one.name, other.name)
    for one, other in itertools.permutations(BY_NAME.values(), 2)
    if one.law is other.law
    and all(f.table or f.state or f.config for f in (one, other))
]


def hidden(first: str, second: str) -> bool:
    """True where the law of the first fault holds on its example beside the second.

    They are planted in the order in which they are listed, whichever is asked about.
    """
    cell, example = EXAMPLES[first]
    fault = both(*(f for f in BY_NAME.values() if f.name in (first, second)))
    try:
        with recording(None), kept():
            items()[cell["law"]].replay(Grower(fault.name, fault), example)
    except Exception:  # of whatever kind: the law fails
        return False
    return True


EXAMPLES = {cell["fault"]: (cell, example) for cell, example in faulty()}


def main() -> None:
    """Every ordered pair that was asked about."""
    torch.set_num_threads(1)
    found = [pair for pair in tqdm(PAIRS, unit="pair", disable=None) if hidden(*pair)]
    PATH.write_text(by_line(found))


def load() -> list[list[str]]:
    """The committed pairs: [hidden, the fault that hides it]."""
    return json.loads(PATH.read_text())


if __name__ == "__main__":
    main()
