"""What a run draws from: families, axes and options that the grower under test claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from growproof.families import FAMILIES as TABLES
from growproof.family import SIZES, Family

# What a grower may leave out (`--without`), and what it must ask for (`--with`).
USUAL = ("llama", "stablelm")  # the families that others' growers are asked for
AXES = ("hidden", "heads", "groups", "head_dim", "mlp", "layers")
OPTIONS = ("biases", "gqa", "parallel", "tied")
EXTRAS = ("qk_norm", "rope_types", "dealt", "vocab")
CORE = (*USUAL, *AXES, *OPTIONS)
CONFIG_NAME = {axis: SIZES[axis] for axis in (*AXES, "vocab")}


def known_families() -> tuple[str, ...]:
    """Every family that has a table, those registered from elsewhere too."""
    return tuple(TABLES)


@dataclass
class Domain:
    """The features that cases are drawn from; the plugin narrows or widens it."""

    features: set[str] = field(default_factory=lambda: set(CORE))
    dtype: torch.dtype = torch.float64
    asked: tuple[str, ...] = ()  # the options that made it what it is

    def has(self, feature: str) -> bool:
        return feature in self.features

    @property
    def families(self) -> list[str]:
        """The families in which something can grow."""
        return [f for f in known_families() if self.has(f) and self.growable(f)]

    def growable(self, family: str) -> list[str]:
        """The claimed axes that can grow in this family while all others stay.

        Where hidden_size is heads · head_dim, neither grows without the other. Where
        no head may share its keys, heads and groups grow together.
        """
        table = TABLES[family]
        free = {axis for axis in AXES if self.has(axis)}
        alone = "groups" not in table.sizes
        if alone or not self.has("gqa"):
            if not {"heads", "groups"} <= free:
                free -= {"heads", "groups"}
            free -= {"groups"} if alone else set()
        if table.tied_head_dim and "hidden" not in free:
            grouped = {"heads", "groups"} if "heads" in free else set()
            free -= {"head_dim", *grouped}
        if table.tied_head_dim and not free & {"heads", "head_dim"}:
            free -= {"hidden"}
        return [axis for axis in AXES if axis in free]

    def lacks(self, arguments: Mapping[str, Any]) -> str | None:
        """What these arguments of a law ask for and the domain has not, or None."""
        family, axis = (str(arguments.get(name, "")) for name in ("family", "axis"))
        for value in (family, axis):
            if value in (*TABLES, *AXES, *OPTIONS) and not self.has(value):
                return value
        alone = family in TABLES and axis in AXES
        if alone and axis not in self.growable(family):
            return f"{axis} (a {family}'s cannot grow alone)"
        return None


DOMAIN = Domain()


def table(family: str) -> Family:
    """The family's own table."""
    return TABLES[family]


def config_names(family: str) -> dict[str, str]:
    """Decoder field → its name in a target; an expert's MLP where it has one of its own."""
    own = {"expert_mlp": TABLES[family].sizes.get("expert_mlp", "")}
    return CONFIG_NAME | {f: n for f, n in own.items() if n not in ("", SIZES["mlp"])}


def needed(
    family: str, config: Mapping[str, Any], target: Mapping[str, int]
) -> list[str]:
    """The features that a grower must claim for this growth to be its business."""
    from growproof.models import plan_model
    from transformers import AutoConfig

    growth = plan_model(AutoConfig.for_model(family, **config), target)
    old, new = growth.old, growth.new
    grown = {
        axis.removeprefix("expert_")
        for axis in config_names(family)
        if getattr(old, axis) != getattr(new, axis)
    }
    chosen = {f for f, says in table(family).says.items() if callable(says)}
    options = {
        "gqa": old.groups < old.heads or new.groups < new.heads,
        "tied": old.tied,
        "dealt": growth.copies > 1 and new.heads > old.heads,
        **{name: name in chosen and bool(getattr(old, name))
           for name in ("biases", "parallel", "qk_norm")},
    }  # fmt: skip
    return sorted({family} | grown | {name for name, on in options.items() if on})
