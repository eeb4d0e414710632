"""What was compared, and the outcome: values, and their JSON."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

GENERATE, TOKENIZER = "generate()", "tokenizer"
BESIDE = {  # checks that say nothing of the logits, and what they say where one is wrong
    GENERATE: "What generate() makes of them is not.",
    TOKENIZER: "The tokens that a text becomes are not.",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison. passed: None for a note. error ≤ budget where there are both."""

    name: str
    found: str
    passed: bool | None
    error: float | None = None
    budget: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was compared, and the outcome.

    text: what it was run on. verdict: the outcome in a sentence, where there is more to
    say than yes or no. parting: the first tap that differs.
    """

    source: str
    destination: str
    text: str
    tokens: int
    checks: tuple[Check, ...]
    verdict: str = ""
    parting: str | None = None

    @property
    def same(self) -> bool:
        """True where nothing that was compared differs beyond its budget."""
        return all(c.passed is not False for c in self.checks)

    @property
    def reasons(self) -> list[str]:
        """The names of what differs."""
        return [c.name for c in self.checks if c.passed is False]

    def to_json(self) -> str:
        """The same as JSON; a number that is not finite becomes null."""
        fields: dict[str, Any] = asdict(self)
        for c in fields["checks"]:
            c |= {k: finite(c[k]) for k in ("error", "budget")}
        fields |= {"same": self.same, "reasons": self.reasons}
        return json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(x: float | None) -> float | None:
    """x, or None where it is no finite number."""
    return x if x is not None and math.isfinite(x) else None
