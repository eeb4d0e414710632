"""What a grower finds is as it was, and what it returns follows from what it was given."""

import copy
import dataclasses
import gc
import weakref
from typing import Any

import torch
from hypothesis import given

from . import claims
from .given import (
    STATES,
    and_opposite,
    declined,
    handled,
    source_stock,
    trained_on,
    worn,
)
from .models import Case
from .patches import restored
from .registry import hygiene, law
from .strategies import cases, fewer, smallest
from .world import LEFT, changed, elsewhere, generators, kept, torch_stock


@law(hygiene, claim=claims.HYGIENE, version=5)
@fewer(2)
@given(case=cases(max_tokens=2), **STATES)
def test_the_world_is_left_as_it_was(grower, case: Case, **state: Any) -> None:
    """Source, target and torch's settings are, bit for bit, what they were."""
    for each in and_opposite(**state):
        left_as_it_was(grower, case, worn(case, **each))


def left_as_it_was(grower: Any, case: Case, source: Any) -> None:
    """The same, of one source."""
    target = dict(case.target)
    LEFT.clear()
    with kept():
        before = torch_stock(), source_stock(source)
        refusal = declined(grower, source, target)
        after = torch_stock(), source_stock(source)
    assert target == case.target, f"the target was changed: {target} is left of it"
    patches = (f"{where}.{name} was replaced" for where, name in restored())
    settings = [*LEFT, *changed(before[0], after[0]), *patches]
    assert not settings, "; ".join(settings)
    found = [*changed(before[1], after[1])]
    assert not found, f"the source's {'; the '.join(sorted(found)[:3])}"
    if refusal:
        raise refusal


def bits(model: Any) -> dict[str, torch.Tensor]:
    """Everything that a model holds, a NaN like any other."""
    held = (*model.named_parameters(), *model.named_buffers())
    return {name: x.detach().nan_to_num(nan=12345.0) for name, x in held}


def agree(a: Any, b: Any, when: str) -> None:
    """Two grown models hold the same bits, and no memory together."""
    found = [*changed(bits(a), bits(b))]
    assert not found, f"two calls give different weights{when}: {found[0]}"
    configs = (m.config.to_dict() | {"_name_or_path": ""} for m in (a, b))
    found = [*changed(*configs)]
    assert not found, f"two calls give different configs{when}: {found[0]}"
    mine = {p.data_ptr(): name for name, p in a.named_parameters() if p.numel()}
    for name, p in b.named_parameters():
        other = mine.get(p.data_ptr())
        assert other is None, f"two results share the memory of {other} and {name}"


@law(hygiene, claim=claims.HYGIENE, version=5)
@given(case=cases(max_tokens=2), **STATES)
def test_two_calls_agree(grower, case: Case, **state: Any) -> None:
    """grow(m, t) = grow(m, t): after other calls, in other settings, of m in any state."""
    plain = case.model(getattr(torch, state["dtype"]))
    other = dataclasses.replace(case, seed=case.seed + 1).model(plain.dtype)
    first = grower(plain, dict(case.target))
    seeds = generators()
    with elsewhere():
        between = grower(other, dict(case.target))
        again = grower(plain, dict(case.target))
    agree(first, again, " (the second without gradients, in fresh memory)")
    for name, left in generators().items():
        assert left != seeds[name], f"{name} generator was seeded: give it its own"
    was_other = not torch.equal(
        plain.get_input_embeddings().weight, other.get_input_embeddings().weight
    )
    same = not [*changed(bits(first), bits(between))]
    assert not (was_other and same), "another model's weights came back"
    fresh = copy.deepcopy(other)
    for m in (fresh, other):
        moved = trained_on(m, case.seed)
    new, stale = (grower(m, dict(case.target)) for m in (fresh, other))
    agree(new, stale, " (of a model that was trained on since it was grown)")
    assert [*changed(bits(new), bits(between))], (
        f"{moved} of the source was changed, and the result is the one from before"
    )
    for each in and_opposite(**state):
        each["dtype"] = state["dtype"]
        source = worn(case, **each)
        source = handled(source) if each["used"] else source
        if spread := getattr(plain.config, "initializer_range", None):
            source.config.initializer_range = spread  # new weights may be drawn with it
        found = [*changed(bits(first), bits(grower(source, dict(case.target))))]
        assert not found, f"grown in another state of the model, {found[0]} ({each})"


@law(hygiene, claim=claims.HYGIENE)
def test_the_first_call_is_like_any_other(grower) -> None:
    """What came of the first call of all is what comes of a later one."""
    least = smallest()[0]
    calls = getattr(grower, "first", ()) or [
        (least, grower(least.model(), dict(least.target)))
    ]
    for case, first in calls:
        agree(
            first, grower(case.model(), dict(case.target)), " (the first and a later)"
        )


@law(hygiene, claim=claims.HYGIENE)
def test_it_lets_go(grower) -> None:
    """Nothing holds the source when only the result is held, and then nothing the result."""
    for case in smallest()[:2]:  # families are alike in this
        source = case.model()
        grown = grower(source, dict(case.target))
        held = weakref.ref(source)
        del source
        gc.collect()
        assert held() is None, "the result, or the grower, holds on to the source"
        held = weakref.ref(grown)
        del grown
        gc.collect()
        assert held() is None, "the grower holds on to the model that it returned"
