"""A case: one model, one growth, one text; and the one way to build a model for a law."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from growproof.decoder import Decoder
from growproof.families import family_of
from growproof.models import build, decoder_of, state_of
from growproof.padding import State
from growproof.table import Row, names, rows, size
from torch import Tensor
from transformers import AutoConfig

from .domain import DOMAIN

Regime = Literal["loud", "small", "tidy", "spiky"]
REGIMES: tuple[Regime, ...] = ("loud", "small", "tidy")  # that every law draws


def loud(d: Decoder, seed: int, regime: Regime = "loud") -> dict[str, Tensor]:
    """Canonical weights of order one, float64, in which nothing is at its default.

    Norm weights and biases are not trivial, the embedding has a mean, attention is far
    from uniform. `small`: the residual is so small that its square is about ε. `tidy`:
    as real checkpoints have them in part (see `tidied`), `spiky`: as large ones do.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for template, row in rows(d).items():
        for _, name in names(d, template, row):
            lengths = [size(d, axis) for axis in row.axes]
            x = torch.randn(lengths, generator=generator, dtype=torch.float64)
            state[name] = drawn(x, row, d, regime)
    if regime == "spiky":
        spiked(state, d)
    return tidied(state, d, seed) if regime == "tidy" else state


def drawn(x: Tensor, row: Row, d: Decoder, regime: Regime) -> Tensor:
    """A parameter from normal draws x, by what it maps."""
    if row.norm:
        x = 0.5 * x if row.reads is None else 1 - row.offset + 0.3 * x
        writes = row.writes == "residual" and d.places == "post"
    elif row.reads in ("vocab", "position"):
        x, writes = (x + 0.5) / d.embedding_scale, True
        x = x / d.hidden**0.5 if d.root_embedding else x
    else:
        x = 0.5 * x if row.reads is None else 1.5 * x / x.shape[-1] ** 0.5
        writes = row.is_writer
    return x * d.eps**0.5 if regime == "small" and writes else x


# float64's, float32's and bf16's, fp16's
SUBNORMAL = (1e-310, 1e-39, 3e-6)


def spiked(state: dict[str, Tensor], d: Decoder) -> None:
    """What large checkpoints have, in place: lanes far above the others, norms that are
    flat, tiny, negative, or shut one lane altogether."""
    for template, row in rows(d).items():
        for layer, name in names(d, template, row):
            x = state[name]
            if row.norm and row.reads is not None:
                values = torch.tensor((0.3, 1e-4, -0.7, 30.0), dtype=x.dtype)
                flat = "attn" in name and not layer
                x.copy_(
                    torch.full_like(x, 0.3) if flat else values.repeat(len(x))[: len(x)]
                )
                x.sub_(row.offset)
                x[..., -1:] = -row.offset
            elif x.ndim == 2 and not row.norm:
                x[0] *= 5000.0


def tidied(state: dict[str, Tensor], d: Decoder, seed: int) -> dict[str, Tensor]:
    """What tidy checkpoints have: zero biases, norms that are one, a layer that adds
    nothing, equal and zero rows, exact zeros, subnormal entries, a head that is the embedding; and
    where the seed is odd, what is left of having been padded before."""
    last = f"layers.{d.layers - 1}."
    for template, row in rows(d).items():
        for layer, name in names(d, template, row):
            x = state[name]
            if row.reads is None:
                x.zero_()
            elif row.norm:
                x.fill_(1 - row.offset)
            elif row.is_writer and name.startswith(last) and layer:
                x.zero_()
            else:
                for sheet in x.unbind() if x.ndim > 2 else (x,):  # one of each expert
                    wear(sheet)
    if seed % 2:
        already_grown(state, d)
    if "head.weight" in state:
        state["head.weight"] = state["embed.weight"].clone()
    return state


def wear(x: Tensor) -> None:
    """Exact zeros, equal rows, a row that is zero, subnormal entries, in place."""
    if min(x.shape) > 2:
        x[0, 0] = 0.0
        x[1] = x[0]
        if len(x) > 3:
            x[2] = 0.0  # a token that has no embedding, a neuron that is off
        x[-1, : len(SUBNORMAL)] = torch.tensor(SUBNORMAL[: x.shape[1]])


def already_grown(state: dict[str, Tensor], d: Decoder) -> None:
    """The state of a model that was padded once: a silent lane, head and neuron, in place."""
    for template, row in rows(d).items():
        for _, name in names(d, template, row):
            x = state[name]
            if d.hidden > 2 and row.writes == "residual" and not row.norm:
                x.narrow(row.axes.index("residual"), d.hidden - 1, 1).zero_()
            if d.heads > 1 and row.is_writer and row.reads == "query":
                x.narrow(
                    row.axes.index("query"), (d.heads - 1) * d.head_dim, d.head_dim
                ).zero_()
            if d.mlp > 1 and row.is_writer and row.reads == "mlp":
                x.narrow(row.axes.index("mlp"), d.mlp - 1, 1).zero_()


def make(
    config: Any, seed: int, regime: Regime = "loud", dtype: torch.dtype = torch.float64
) -> Any:
    """A model of `config` with loud weights, rounded to `dtype`, in evaluation mode."""
    state = loud(decoder_of(config), seed, regime)
    return build(config, {name: x.to(dtype) for name, x in state.items()}).eval()


@dataclass(frozen=True, eq=False)
class Case:
    """One model, one growth, one text: what a law is tested on. Equal if its JSON is."""

    family: str
    config: dict[str, Any]
    target: dict[str, int]
    seed: int
    regime: Regime
    batch: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """The fields, all of them JSON already."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """The inverse."""
        return cls(**data)

    @functools.cached_property
    def text(self) -> str:
        """Its JSON on one line, with sorted keys: what it is known by."""
        return json.dumps(self.to_json(), sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Case) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    @functools.cached_property
    def hf_config(self) -> Any:
        """The transformers config of the model before growing."""
        return AutoConfig.for_model(
            self.family,
            **self.config,
            attn_implementation="eager",
            experts_implementation="eager",
        )

    @functools.cached_property
    def decoder(self) -> Decoder:
        """Its normal form."""
        return decoder_of(self.hf_config)

    def model(self, dtype: torch.dtype | None = None) -> Any:
        """The model before growing, in evaluation mode, in the domain's dtype."""
        config = copy.deepcopy(self.hf_config)  # a grower may change a model's own
        return make(config, self.seed, self.regime, dtype or DOMAIN.dtype)

    @functools.cached_property
    def ids(self) -> Tensor:
        """Its text: (batch, tokens) token ids."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        lengths = (self.batch, self.tokens)
        return torch.randint(0, self.decoder.vocab, lengths, generator=generator)


def weights(case: Case, seed: int) -> dict[str, Tensor]:
    """The parameters of a case from another seed, float64."""
    return state_of(make(case.hf_config, seed, case.regime))


def loads(model: Any, state: State) -> Any:
    """The model, with other weights, in place."""
    stored = family_of(model.config).write(state, decoder_of(model.config))
    model.load_state_dict(dict(stored), strict=False)
    return model
