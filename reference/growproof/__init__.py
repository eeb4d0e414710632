"""Growing a trained transformer without changing its function, and proof that it did.

`grow(model, target)` enlarges a transformers StableLm or Llama. The pure-torch core
(shape, layout, grow, arithmetic, decoder) needs no transformers.
"""

from typing import TYPE_CHECKING, Any

from growproof.decoder import forward
from growproof.ordered import NotOrdered, ordered
from growproof.padding import grow_state, shrink_state
from growproof.shape import Growth, GrowthError, Shape, plan

if TYPE_CHECKING:
    from growproof.models import grow, shrink

__all__ = [
    "Growth",
    "GrowthError",
    "NotOrdered",
    "Shape",
    "forward",
    "grow",
    "grow_state",
    "ordered",
    "plan",
    "shrink",
    "shrink_state",
]


def __getattr__(name: str) -> Any:
    """Import transformers only when a model is to be grown."""
    if name in ("grow", "shrink"):
        from growproof import models

        return getattr(models, name)
    raise AttributeError(f"module 'growproof' has no attribute {name!r}")
