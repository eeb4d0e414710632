"""The gated MLP: padded hidden states in, padded hidden states out."""

from hypothesis import given

from . import claims
from .checks import block_is_padded
from .grown import grow, mlp
from .models import Case
from .registry import law, zero_padding
from .strategies import padded_cases

INNER = ("gate", "up", "activated", "router", "chosen", "expert_gate", "expert_up")


@law(zero_padding, claim=claims.MLP, proof="mlp_new_units_zero", budget="block")
@given(case=padded_cases(axis="mlp"))
def test_gate_and_up_are_padded(grower, case: Case) -> None:
    """f(W'g pad x) · (W'u pad x) = pad(f(Wg x) · (Wu x))."""
    block_is_padded(grow(case, grower), mlp, *INNER)


@law(zero_padding, claim=claims.MLP, proof="mlp_padded", budget="block")
@given(case=padded_cases())
def test_mlp_maps_padded_to_padded(grower, case: Case) -> None:
    """mlp'(pad x) = pad(mlp x)."""
    block_is_padded(grow(case, grower), mlp, "mlp")
