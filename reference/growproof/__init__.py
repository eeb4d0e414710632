"""Growing a trained transformer without changing its function, and proof that it did.

`grow(model, target)` enlarges a transformers causal LM. The pure-torch core (decoder,
growth, table, scatter, padding, clone, arithmetic) needs no transformers. Nothing is
imported before it is asked for: `growproof --help`, and pytest elsewhere, need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growproof.arithmetic import NotOrdered, ordered
    from growproof.clone import forward
    from growproof.decoder import Decoder, GrowthError
    from growproof.families import register
    from growproof.growth import Growth, Policies, plan
    from growproof.models import grow, shrink
    from growproof.optimizer import grow_optimizer
    from growproof.padding import grow_state, shrink_state

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
HOMES = {
    "arithmetic": ("NotOrdered", "ordered"),
    "clone": ("forward",),
    "decoder": ("Decoder", "GrowthError"),
    "families": ("register",),
    "growth": ("Growth", "Policies", "plan"),
    "models": ("grow", "shrink"),
    "optimizer": ("grow_optimizer",),
    "padding": ("grow_state", "shrink_state"),
}
HOME = {name: module for module, names in HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, from the module that it lives in."""
    if name in HOME:
        return getattr(import_module(f"growproof.{HOME[name]}"), name)
    raise AttributeError(f"module 'growproof' has no attribute {name!r}")
