"""Norms over the residual: the only part whose divisor grows along."""

import dataclasses
from collections.abc import Iterator

from growproof.arithmetic import InOrder
from growproof.clone import Layer, Taps
from growproof.padding import State
from growproof.rounding import Responses
from hypothesis import given

from . import claims
from .checks import close, inputs, pad
from .grown import STREAM, Grown, grow
from .models import Case
from .registry import law, zero_padding
from .strategies import padded_cases


def norms(grown: Grown) -> Iterator[tuple[Layer, Layer, str]]:
    """(layer before, layer after, name) of every norm over the residual."""
    d = grown.case.decoder
    yield Layer(d, grown.old_state), Layer(grown.decoder, grown.state), "final_norm"
    for i in range(d.layers):
        for name in d.norms:
            yield grown.layer(i, old=True), grown.layer(i, old=False), name


def norms_commute_with_padding(grown: Grown, size: float) -> None:
    """norm'(pad(s · x)) = pad(s' · norm x), s and s' as this grower has its stream."""
    case, checked = grown.case, 0
    x = inputs(case) * size
    stream = x - x.mean(-1, keepdim=True) if grown.embedded[0] else x
    written = STREAM[case.decoder.places]
    # where two lanes nearly cancel, a norm amplifies the rounding of what it reads
    state = {**grown.old_state, "x": x}
    for before, after, name in norms(grown):

        def run(state: State, name: str = name, before: Layer = before) -> Taps:
            with InOrder():
                layer = dataclasses.replace(before, state=state)
                return {name: layer.norm(name, state["x"])}

        old, out = run(state)[name], grown.row(before.prefix + name).scale
        read = 1.0 if name in written else grown.scale
        with InOrder():
            new = after.norm(name, pad(stream, grown.growth, read))
        response = Responses(run, state, {name: old}, grown.dtype)
        close(
            new,
            pad(old, grown.growth, out),
            tap=before.prefix + name,
            case=case,
            response=response[name] * out,
            more=lambda name=name, r=response, out=out: r.most[name] * out,
            dtype=grown.dtype,
        )
        checked += 1
    assert checked > 0


@law(
    zero_padding,
    claim=claims.RMS_NORM,
    proof=("rmsnorm_scaled", "rmsnorm_scaled_stream"),
    budget="block",
)
@given(case=padded_cases(axis="hidden"))
def test_norms_are_unchanged(grower, case: Case) -> None:
    """norm'(pad x) = pad(norm x) for a residual of order one."""
    norms_commute_with_padding(grow(case, grower), size=1.0)


@law(
    zero_padding,
    claim=claims.RMS_NORM,
    proof="rmsnorm_eps_needed",
    budget="block",
)
@given(case=padded_cases(axis="hidden"))
def test_eps_grows_along(grower, case: Case) -> None:
    """norm'(pad x) = pad(norm x) where x² ≈ ε: ε' = ε · D/D'."""
    norms_commute_with_padding(grow(case, grower), size=case.decoder.eps**0.5)
