"""The grower as the laws call it: what it declines is drawn around, and all is counted."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import currently_in_test_context, reject

from ..laws import examples
from ..laws.domain import config_names
from ..laws.examples import Example
from ..laws.models import Case
from .loading import DEFAULT, Grower
from .verdict import same_but_numbers


@dataclass
class Asked:
    """What a run asked of a grower: growths by axis, largest sizes, what it declined."""

    calls: Counter[str] = field(default_factory=Counter)  # growths, judged, identity
    axes: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    families: Counter[str] = field(default_factory=Counter)
    largest: dict[str, int] = field(default_factory=dict)

    def judged(self, model: Any, target: Mapping[str, int]) -> None:
        """Count one growth that was made, with its sizes."""
        config = model.config
        self.calls["growths" if target else "nothing to grow"] += 1
        self.dtypes[str(model.dtype).removeprefix("torch.")] += 1
        self.families[config.model_type] += 1
        seen = {"vocabulary": 0}  # the first that is told
        grown: set[str] = set()
        for axis, name in config_names(config.model_type).items():
            old = getattr(config, name, None) or 0
            axis = axis.removeprefix("expert_")
            told = "vocabulary" if axis == "vocab" else axis
            seen[told] = max(seen.get(told, 0), target.get(name, old), old)
            grown |= {axis} if target.get(name, old) > old else set()
        self.axes.update(grown)
        if case := examples.current().get("case"):
            seen["tokens"] = case.tokens
        self.bound(seen)

    def refused(self, said: str, times: int = 1) -> None:
        """Count a refusal under the first one that says the same of other numbers."""
        like = (known for known in self.declined if same_but_numbers(known, said))
        self.declined[next(like, said)] += times

    def bound(self, seen: Mapping[str, int]) -> None:
        """Keep the largest of each size."""
        for name, size in seen.items():
            self.largest[name] = max(size, self.largest.get(name, 0))

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add what another process counted."""
        for name in ("calls", "axes", "dtypes", "families"):
            getattr(self, name).update(other[name])
        for said, times in other["declined"].items():
            self.refused(said, times)
        self.bound(other["largest"])

    def plain(self) -> dict[str, Any]:
        """The counts as plain dictionaries, to be sent."""
        return {name: dict(counts) for name, counts in vars(self).items()}


class Judged:
    """grow(model, target) for the laws: a refusal rejects the example, and is counted."""

    def __init__(self, grower: Grower, first: Sequence[tuple[Case, Any]] = ()) -> None:
        self.grower, self.name = grower, grower.name
        self.first = first  # what came of its first call, and of what case
        self.asked = Asked()
        self.refusals: Counter[str] = Counter()  # of the law that is running
        self.seen: dict[str, Any] = {}  # of the model that it was given last
        self.begun: list[
            tuple[Example, int]
        ] = []  # the law's examples, calls before each

    def __call__(self, model: Any, target: Mapping[str, int]) -> Any:
        """The grown model; a declined target ends the example, not the law."""
        self.seen = {
            "dtype": model.dtype,
            "training": model.training,
            "frozen": {n for n, p in model.named_parameters() if not p.requires_grad},
            "config": copy.copy(model.config),
        }
        example = examples.current()
        if not self.begun or self.begun[-1][0] is not example:
            self.begun.append((example, self.grower.calls))
        asked = dict(target)  # a grower may change what it is given
        try:
            with warnings.catch_warnings():
                if self.name != DEFAULT:  # a warning is no verdict on somebody's grower
                    warnings.simplefilter("ignore")
                grown = self.grower(model, target)
        except NotImplementedError as refusal:
            said = (str(refusal).splitlines() or [""])[0].strip() or "no reason given"
            self.refusals[said] += 1
            self.asked.refused(said)
        else:
            self.asked.judged(model, asked)
            return grown
        if currently_in_test_context():
            reject()
        pytest.skip(f"declined: {said}")

    def begin(self) -> None:
        """Forget what belongs to the law before."""
        self.refusals.clear()
        self.begun.clear()

    def before(self, example: Example) -> int:
        """How many calls there were before this example of the law that is running."""
        return next((calls for one, calls in self.begun if one is example), 0)
