"""What a run would have missed: the suite's power, where the run used it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..growers.known_bad import BY_NAME
from ..laws import examples
from ..laws.domain import DOMAIN, needed
from ..power.detection import DTYPES, RESULTS
from .document import Missed, Power

CORPUS = "where_faults_show"  # replays the smallest example of each fault


def power(judged: Mapping[str, Iterable[str]], drawn: int) -> Power:
    """The known-bad growers that the judged laws let pass.

    judged: law → its items that were run. drawn: examples a law.
    """
    cells: list[dict[str, Any]] = json.loads(RESULTS.read_text("utf-8"))
    counts = {dtype: [0, 0] for dtype in DTYPES}
    for cell in cells:
        counts[cell["dtype"]][0] += cell["found"]
        counts[cell["dtype"]][1] += 1
    sharp = [cell for cell in cells if cell["dtype"] == DTYPES[0]]
    inside = [cell for cell in sharp if claimed(cell)]
    replayed = set(judged.get(CORPUS, ()))
    missed = [
        Missed(grower=cell["fault"], says=BY_NAME[cell["fault"]].says, why=why)
        for cell in inside
        if (why := reason(cell, judged, replayed, drawn))
    ]
    return Power(
        growers=len(sharp),
        found=len(inside) - len(missed),
        outside=len(sharp) - len(inside),
        missed=missed,
        by_dtype=counts,
    )


def claimed(cell: Mapping[str, Any]) -> bool:
    """Whether the smallest example of a fault is of what the grower under test claims.

    Where it is not, nothing is known: the fault may show in what is claimed as well.
    """
    case = examples.from_json(cell["example"]).get("case")
    if case is None:
        return True
    return set(needed(case.family, case.config, case.target)) <= DOMAIN.features


def reason(
    cell: Mapping[str, Any],
    judged: Mapping[str, Iterable[str]],
    replayed: Iterable[str],
    drawn: int,
) -> str:
    """Why the law that a fault names does not find it in this run; "" where it does."""
    item = cell["law"].removeprefix("test_")
    law, _, arguments = item.partition("[")
    if not cell["found"]:
        return f"{law} does not find it"
    if law not in judged:
        return f"{law} was not asked"
    if arguments and arguments[:-1] not in judged[law]:
        return f"{item} was not asked"
    if cell["examples"] > drawn and not any(
        name.endswith(f"-{cell['fault']}") for name in replayed
    ):
        return f"{law} found it in example {cell['examples']}, and {drawn} were drawn"
    return ""
