"""The functions of torch and transformers, and what somebody put in their places.

A patch that stays changes the model that is judged and the one that it is judged by.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from growproof.models import config_class
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    cache_utils,
    initialization,
    masking_utils,
    modeling_layers,
    modeling_utils,
)
from transformers.activations import ACT2CLS
from transformers.generation import utils as generation_utils
from transformers.integrations import sdpa_attention
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Home = ModuleType | type | dict[str, Any]
Patches = dict[tuple[str, str], Any]  # (home, name) → what is there
GONE = object()


def own(home: Home) -> Mapping[str, Any]:
    """name → what a module, class or registry holds itself."""
    return home if isinstance(home, dict) else vars(home)


# name → (module, class or registry of functions, what it held as it was found)
NOTED: dict[str, tuple[Home, dict[str, Any]]] = {}


def note(name: str, home: Home) -> None:
    """Take stock of the functions of a module, a class, or a registry of functions."""
    NOTED.setdefault(name, (home, dict(own(home))))


def note_models(families: Iterable[str]) -> None:
    """Take stock of transformers' modelling code for these families, and what it uses."""
    modules = [modeling_utils, masking_utils, modeling_layers, sdpa_attention]
    modules += [initialization, cache_utils, generation_utils]
    classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    modules += [sys.modules[classes[config_class(f)].__module__] for f in families]
    for module in modules:
        note(module.__name__, module)
        for found in list(vars(module).values()):
            if isinstance(found, type) and found.__module__ == module.__name__:
                note(f"{module.__name__}.{found.__qualname__}", found)


# before a grower is imported
note("transformers' attention", AttentionInterface._global_mapping)
note("transformers' masks", AttentionMaskInterface._global_mapping)
note("transformers' rope types", ROPE_INIT_FUNCTIONS)
note("transformers' activations", ACT2CLS)
note("safetensors.torch", safetensors.torch)
for optimizer in (
    torch.optim.Optimizer,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.SGD,
):
    note(f"torch.optim.{optimizer.__name__}", optimizer)
note("torch", torch)
note("torch.nn.functional", torch.nn.functional)
note("torch.nn.init", torch.nn.init)
note("torch.testing", torch.testing)
note("torch.linalg", torch.linalg)
note("torch.Tensor", torch.Tensor)
note("torch.nn.Module", torch.nn.Module)
for module in (torch.nn.Linear, torch.nn.Embedding, torch.nn.LayerNorm):
    note(f"torch.nn.{module.__name__}", module)


def is_function(value: Any) -> bool:
    """Whether an entry of a module or class is something that is called."""
    return callable(value) or isinstance(value, classmethod | property)


def differs(home: Home, before: dict[str, Any]) -> bool:
    """Whether anything in it is another thing than it was."""
    try:
        return own(home) != before
    except Exception:  # tensors among them that cannot be compared: look closer
        return True


def inherits(home: Home, name: str) -> bool:
    """Whether a class finds a name in one that it is derived from."""
    return isinstance(home, type) and any(name in vars(b) for b in home.__mro__[1:])


def replaced() -> Patches:
    """What lies where functions of torch or transformers were.

    What is gained counts only where it hides another's: a class's, of one that it inherits.
    """
    found: Patches = {}
    for where, (home, before) in NOTED.items():
        if not differs(home, before):
            continue
        now = dict(own(home))
        hides = (n for n in now if n not in before and inherits(home, n))
        for name in (*before, *hides):
            old, new = before.get(name, GONE), now.get(name, GONE)
            if new is not old and is_function(old if new is GONE else new):
                found[where, name] = new
    return found


def put(patches: Patches) -> None:
    """Set these functions; GONE takes one away."""
    for (where, name), value in patches.items():
        home, _ = NOTED[where]
        if isinstance(home, dict):
            home.pop(name, None)
            home.update({} if value is GONE else {name: value})
        elif value is not GONE:
            setattr(home, name, value)
        elif name in own(home):
            delattr(home, name)


def restored() -> Patches:
    """`replaced`, and the own functions again."""
    found = replaced()
    put({(where, name): NOTED[where][1].get(name, GONE) for where, name in found})
    return found
