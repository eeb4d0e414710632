"""Growing a trained transformer without changing its function, and proof that it did.

`grow(model, target)` enlarges a transformers causal LM. The pure-torch core (decoder,
growth, table, padding, clone) needs no transformers.
"""

from typing import TYPE_CHECKING, Any

from growproof.clone import forward
from growproof.decoder import Decoder, GrowthError
from growproof.growth import Growth, Policies, plan
from growproof.ordered import NotOrdered, ordered
from growproof.padding import grow_state, shrink_state

if TYPE_CHECKING:
    from growproof.families import register
    from growproof.models import grow, shrink
    from growproof.optimizer import grow_optimizer

__all__ = [
    "Decoder",
    "Growth",
    "GrowthError",
    "NotOrdered",
    "Policies",
    "forward",
    "grow",
    "grow_optimizer",
    "grow_state",
    "ordered",
    "plan",
    "register",
    "shrink",
    "shrink_state",
]
LATER = {
    "grow": "models",
    "grow_optimizer": "optimizer",
    "shrink": "models",
    "register": "families",
}


def __getattr__(name: str) -> Any:
    """Import transformers only when a model is to be grown."""
    if name in LATER:
        from importlib import import_module

        return getattr(import_module(f"growproof.{LATER[name]}"), name)
    raise AttributeError(f"module 'growproof' has no attribute {name!r}")
