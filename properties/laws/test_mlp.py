"""The gated MLP: padded hidden states in, padded hidden states out."""

import pytest
from growproof import decoder
from hypothesis import given

from .checks import block_is_padded, grow
from .strategies import Case, cases

pytestmark = [pytest.mark.zero_padding]


@given(case=cases(axis="mlp"))
def test_gate_and_up_are_padded(grower, case: Case) -> None:
    """f(W'g pad x) · (W'u pad x) = pad(f(Wg x) · (Wu x)). Proof: Mlp.v."""
    names = ("gate", "up", "activated")
    block_is_padded(grow(case, grower), "gate_and_up_are_padded", decoder.mlp, names)


@given(case=cases())
def test_mlp_maps_padded_to_padded(grower, case: Case) -> None:
    """mlp'(pad x) = pad(mlp x). Proof: Mlp.v, mlp_padded."""
    grown = grow(case, grower)
    block_is_padded(grown, "mlp_maps_padded_to_padded", decoder.mlp, ("mlp",))
