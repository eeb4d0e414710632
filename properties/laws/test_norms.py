"""Norms over the residual: the only part whose divisor grows along."""

import dataclasses
import functools

from growproof.decoder import Layer, Taps
from growproof.padding import State
from hypothesis import given

from . import claims
from .checks import Grown, Responses, close, grow, inputs, pad
from .registry import law, lossless
from .strategies import Case, cases


def norms(grown: Grown) -> list[tuple[str, str, str]]:
    """(prefix before, prefix after, name) of every norm over the residual."""
    found = [("model.", "model.", "norm")]
    for i, new in enumerate(grown.layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            old_prefix, new_prefix = f"model.layers.{i}.", f"model.layers.{new}."
            if f"{old_prefix}{name}.weight" in grown.old_state:
                found.append((old_prefix, new_prefix, name))
    return found


def norms_commute_with_padding(grown: Grown, size: float) -> None:
    """norm'(pad(s · x)) = pad(norm x) for the stream that this grower writes."""
    case, (is_centred, scale) = grown.case, grown.stream
    x = inputs(case) * size
    stream = x - x.mean(-1, keepdim=True) if is_centred else x
    # where two lanes nearly cancel, a norm amplifies the rounding of what it reads
    state, checked = {**grown.old_state, "x": x}, 0
    for old_prefix, new_prefix, name in norms(grown):
        layer = grown.layer(0, old=True)
        before = dataclasses.replace(layer, prefix=old_prefix)

        def run(state: State, name: str = name, before: Layer = before) -> Taps:
            return {
                name: dataclasses.replace(before, state=state).norm(name, state["x"])
            }

        old = before.norm(name, x)
        response = Responses(run, state, {name: old}, grown.dtype)
        after: Layer = dataclasses.replace(grown.layer(0, old=False), prefix=new_prefix)
        new = after.norm(name, pad(stream, grown.growth, scale))
        close(
            new,
            pad(old, grown.growth),
            tap=f"{old_prefix}{name}".removeprefix("model."),
            case=case,
            response=response[name],
            more=functools.partial(response.more, name),
            dtype=grown.dtype,
        )
        checked += 1
    assert checked > 0


# on hidden states padded with zeros: a grower that does not pad leaves these out
@law(
    lossless,
    claim=claims.RMS_NORM,
    proof=("rmsnorm_scaled", "rmsnorm_scaled_stream"),
    budget="block",
    needs=("zero_padding",),
)
@given(case=cases(axis="hidden"))
def test_norms_are_unchanged(grower, case: Case) -> None:
    """norm'(pad x) = pad(norm x) for a residual of order one."""
    norms_commute_with_padding(grow(case, grower), size=1.0)


@law(
    lossless,
    claim=claims.RMS_NORM,
    proof="rmsnorm_eps_needed",
    budget="block",
    needs=("zero_padding",),
)
@given(case=cases(axis="hidden"))
def test_eps_grows_along(grower, case: Case) -> None:
    """norm'(pad x) = pad(norm x) where x² ≈ ε: ε' = ε · D/D'."""
    norms_commute_with_padding(grow(case, grower), size=case.shape.eps**0.5)
