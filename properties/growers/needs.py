"""What a fault needs of a family: where there is none, there is nothing to get wrong."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from growproof.decoder import Decoder
from growproof.family import Family
from growproof.models import model_class
from growproof.table import names, rows

from ..laws.domain import table
from ..laws.strategies import least_case
from .disturbing import on


class Everything:
    """A config in which every switch is on."""

    def __getattr__(self, name: str) -> bool:
        return True

    def get(self, name: str, default: object = None) -> bool:
        """On."""
        return True


@dataclass(frozen=True)
class Known:
    """A family: its table, and the config and the normal form of its least model.

    decoder: with all biases that the table knows, and a head of its own.
    """

    table: Family
    config: Any
    decoder: Decoder

    def has(self, pattern: str) -> bool:
        """Whether it has a parameter that matches."""
        d = self.decoder
        return any(
            on(pattern, name)
            for template, row in rows(d).items()
            for _, name in names(d, template, row)
        )


@functools.cache
def known(family: str) -> Known:
    """What is known of a family."""
    biases = table(family).says.get("biases", frozenset())
    found = biases(Everything()) if callable(biases) else biases
    case = least_case(family)
    most = dataclasses.replace(case.decoder, biases=found, tied=False)
    return Known(table(family), case.hf_config, most)


NEEDS: dict[str, Callable[[Known], bool]] = {
    "biases of q, k or v": lambda f: f.has(r"[qkv]\.bias"),
    "a bias of o": lambda f: f.has(r"o\.bias"),
    "a bias of up": lambda f: f.has(r"up\.bias"),
    "a bias of down": lambda f: f.has(r"down\.bias"),
    "biases of norms": lambda f: f.has(r".*_norm\.bias"),
    "a norm before a block": lambda f: f.has(r"(attn|mlp)_norm\.weight"),
    "a norm before the MLP": lambda f: f.has(r"mlp_norm\.weight"),
    "gates": lambda f: f.has(r"(expert_)?gate\.weight"),
    "LayerNorm": lambda f: f.decoder.norm == "layer",
    "RMSNorm": lambda f: f.decoder.norm == "rms",
    "a scale of q": lambda f: f.decoder.score is None or f.decoder.qk_norm == "lane",
    "rotary embedding": lambda f: f.decoder.rotary.dims > 0,
    "partial rotary": lambda f: f.table.partial,
    "full rotary": lambda f: f.decoder.split,
    "an odd head_dim": lambda f: not f.decoder.split,
    "shared keys": lambda f: "groups" in f.table.sizes,
    "a head without a bias": lambda f: not f.has(r"head\.bias"),
    "sdpa": lambda f: model_class(f.config)._supports_sdpa,
}


def has(family: str, needs: Iterable[str]) -> bool:
    """Whether a family has all that a fault needs."""
    return all(NEEDS[need](known(family)) for need in needs)
