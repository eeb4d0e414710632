"""The table: every parameter and every tap of a decoder as (axes, scale).

An *axis* is a direction in which tensors grow. It is a product of factors (the query
axis is groups × repeats × head_dim), and growing pads each factor at its end: old
indices go to new ones by a strictly increasing map. To grow a model is to do this to
each parameter along its axes, times one scalar, after an optional centring. The same
table gives the inverse, the parameter count, and the places that must be zero.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from growproof.shape import Growth, Shape

Axis = Literal[
    "batch", "tokens", "vocab", "residual", "query", "key", "mlp", "head_dim", "head",
    "group", "layer",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: how one tensor grows.

    axes: the axis of each dimension. scale: multiplies the old entries.
    centre: an axis over which the mean is removed first (per head for query and key).
    role: what a `trainable` fill may put into new entries, without changing the
    function: nothing in a writer, a draw in a reader, one in a norm.
    """

    axes: tuple[Axis, ...]
    scale: float = 1.0
    centre: Axis | None = None
    role: Literal["writer", "reader", "norm", "bias"] = "bias"


def factors(shape: Shape) -> dict[Axis, tuple[int, ...]]:
    """Each axis as nested sizes, outermost first: growing pads every factor at its end.

    The query axis is (G, R, K), not H · K: this is the whole point of the article's 3D
    reshape. Full rotary pairs lane k with k + K/2, so there a head is (2, K/2).
    """
    head_dim = shape.head_dim
    head = (2, head_dim // 2) if shape.split_rotary else (head_dim,)
    return {
        "vocab": (shape.vocab,),
        "residual": (shape.hidden,),
        "mlp": (shape.mlp,),
        "query": (shape.groups, shape.repeats, *head),
        "key": (shape.groups, *head),
        "head_dim": head,
        "head": (shape.groups, shape.repeats),
        "group": (shape.groups,),
        "layer": (shape.layers,),
    }


def head_dim_map(head_dim: int, head_dim_new: int, split: bool) -> list[int]:
    """Old lane → new lane within a head; split: the halves start at 0 and at K'/2."""
    if not split:
        return list(range(head_dim))
    half, half_new = head_dim // 2, head_dim_new // 2
    return [k if k < half else half_new + k - half for k in range(head_dim)]


def heads_map(
    groups: int,
    repeats: int,
    head_dim: int,
    *,
    repeats_new: int,
    head_dim_new: int,
    split: bool = False,
) -> list[int]:
    """Flat (g, r, k) → flat (g, r, lane of k) of the grown query axis.

    With repeats = repeats_new = 1 it is the key/value axis, and with head_dim =
    head_dim_new = 1 the heads alone. That padding the factors is scattering along this
    map is a theorem (AxisMaps.v) and an exhaustive test.
    """
    lanes = head_dim_map(head_dim, head_dim_new, split)
    return [
        (g * repeats_new + r) * head_dim_new + lane
        for g in range(groups)
        for r in range(repeats)
        for lane in lanes
    ]


def layers_map(layers: int, layers_new: int, depth: str) -> list[int]:
    """Old layer → new layer: kept in front, or spread so that new layers lie between."""
    if depth == "append":
        return list(range(layers))
    return [(i + 1) * layers_new // layers - 1 for i in range(layers)]


def index_maps(growth: Growth) -> dict[Axis, list[int]]:
    """The map of the axes that names carry: {layer}, {head}, {group}."""
    old, new = growth.old, growth.new
    heads = heads_map(
        old.groups, old.repeats, 1, repeats_new=new.repeats, head_dim_new=1
    )
    return {
        "layer": layers_map(old.layers, new.layers, growth.depth),
        "head": heads,
        "group": list(range(old.groups)),
    }


@dataclass(frozen=True)
class Scales:
    """The scalars of a growth; every other entry of the table has scale 1.

    norm: √(D/D'), weights of the norms over the residual.
    query, key: of the q and k projections: √(K'/K) and 1, against the 1/√K of the
    scores. With q/k layernorm the norm would undo them: there both projections carry
    √(ε'K'/εK), which makes the one shared ε right, and `query_norm`, `key_norm` carry
    the rest.
    """

    norm: float
    query: float
    key: float = 1.0
    query_norm: float = 1.0
    key_norm: float = 1.0

    @classmethod
    def of(cls, growth: Growth) -> "Scales":
        """The scalars that keep the function of `growth.old`."""
        old, new = growth.old, growth.new
        norm = math.sqrt(old.hidden / new.hidden) if growth.norm != "masked" else 1.0
        wider = new.head_dim / old.head_dim
        if not old.qk_norm:
            return cls(norm, query=math.sqrt(wider))
        shared = math.sqrt(wider * (new.eps / old.eps if old.eps else 1.0))
        return cls(norm, query=shared, key=shared, key_norm=1 / math.sqrt(wider))


def parameters(shape: Shape, growth: Growth | None = None) -> dict[str, Row]:
    """Name template → row, for a model of this shape.

    {layer}, {head} and {group} in a template are axes as well. Without a growth every
    scale is 1. Weights are (out, in), as in torch.nn.Linear.
    """
    growth = growth or Growth(old=shape, new=shape, norm="scaled")
    scale = Scales.of(growth)
    wider = growth.new.hidden > growth.old.hidden
    taller = growth.new.head_dim > growth.old.head_dim
    mean: Axis | None = "residual" if growth.norm == "centred" and wider else None
    per_head = shape.qk_norm and taller
    q_mean: Axis | None = "query" if per_head else None
    k_mean: Axis | None = "key" if per_head else None

    norm = Row(("residual",), scale.norm, role="norm")
    norm_bias = Row(("residual",))
    embedding = Row(("vocab", "residual"), centre=mean, role="writer")
    q = Row(("query", "residual"), scale.query, q_mean, role="reader")
    k = Row(("key", "residual"), scale.key, k_mean, role="reader")
    v = Row(("key", "residual"), role="reader")
    o = Row(("residual", "query"), centre=mean, role="writer")
    gate = Row(("mlp", "residual"), role="reader")
    down = Row(("residual", "mlp"), centre=mean, role="writer")
    q_norm = Row(("head_dim",), scale.query_norm, role="norm")
    k_norm = Row(("head_dim",), scale.key_norm, role="norm")

    table = {"model.embed_tokens.weight": embedding, "model.norm.weight": norm}
    if not shape.tied:
        table["lm_head.weight"] = Row(("vocab", "residual"), role="reader")
    layer = "model.layers.{layer}."
    attention = layer + "self_attn."
    table |= {
        layer + "input_layernorm.weight": norm,
        attention + "q_proj.weight": q,
        attention + "k_proj.weight": k,
        attention + "v_proj.weight": v,
        attention + "o_proj.weight": o,
        layer + "mlp.gate_proj.weight": gate,
        layer + "mlp.up_proj.weight": gate,
        layer + "mlp.down_proj.weight": down,
    }
    if not shape.parallel:
        table[layer + "post_attention_layernorm.weight"] = norm
    if shape.layer_norm:
        norms = [name for name in table if "norm.weight" in name]
        table |= {name.replace("weight", "bias"): norm_bias for name in norms}
    if shape.qkv_bias:
        table[attention + "q_proj.bias"] = Row(("query",), scale.query, q_mean)
        table[attention + "k_proj.bias"] = Row(("key",), scale.key, k_mean)
        table[attention + "v_proj.bias"] = Row(("key",))
    if shape.o_bias:
        table[attention + "o_proj.bias"] = Row(("residual",), centre=mean)
    if shape.mlp_bias:
        table[layer + "mlp.gate_proj.bias"] = Row(("mlp",))
        table[layer + "mlp.up_proj.bias"] = Row(("mlp",))
        table[layer + "mlp.down_proj.bias"] = Row(("residual",), centre=mean)
    if shape.qk_norm:
        table[attention + "q_layernorm.norms.{head}.weight"] = q_norm
        table[attention + "k_layernorm.norms.{group}.weight"] = k_norm
    return table


def taps(growth: Growth) -> dict[str, Row]:
    """Tap template → row: how every intermediate value of the decoder grows.

    The law of zero padding in one table: at each tap, the grown model holds the old
    value scattered along these axes, and zeros elsewhere.
    """
    scale = Scales.of(growth)
    table = parameters(growth.old, growth)
    mean = table["model.embed_tokens.weight"].centre
    q = table["model.layers.{layer}.self_attn.q_proj.weight"]
    k = table["model.layers.{layer}.self_attn.k_proj.weight"]
    normed_q, normed_k = (
        (q.scale, k.scale)
        if not growth.old.qk_norm
        else (math.sqrt(growth.new.head_dim / growth.old.head_dim), 1.0)
    )
    stream = Row(("batch", "tokens", "residual"), centre=mean)
    normed = Row(("batch", "tokens", "residual"))
    mlp = Row(("batch", "tokens", "mlp"))
    pairs = Row(("batch", "head", "tokens", "tokens"))
    within = {
        "input_norm": normed,
        "query": Row(("batch", "tokens", "query"), scale.query, q.centre),
        "key": Row(("batch", "tokens", "key"), scale.key, k.centre),
        "value": Row(("batch", "tokens", "key")),
        "query_rotated": Row(("batch", "tokens", "query"), normed_q),
        "key_rotated": Row(("batch", "tokens", "key"), normed_k),
        "scores": pairs,
        "probabilities": pairs,
        "context": Row(("batch", "tokens", "query")),
        "attention": stream,
        "post_norm": normed,
        "gate": mlp,
        "up": mlp,
        "activated": mlp,
        "mlp": stream,
        "residual": stream,
    }
    if growth.old.parallel:
        del within["post_norm"]
    outer = {
        "embedding": stream,
        "norm": normed,
        "logits": Row(("batch", "tokens", "vocab")),
    }
    return outer | {"layers.{layer}." + name: row for name, row in within.items()}


def index_axes(template: str) -> list[Axis]:
    """The axes that a name template carries: {layer}, {head}, {group}."""
    return re.findall(r"\{(\w+)\}", template)


def names(shape: Shape, template: str) -> Iterator[tuple[dict[str, int], str]]:
    """Every concrete name of a template, with its indices."""
    cases: list[dict[str, int]] = [{}]
    for axis in index_axes(template):
        cases = [{**c, axis: i} for c in cases for i in range(size(shape, axis))]
    for case in cases:
        yield case, template.format(**case)


def pairs(
    growth: Growth, table: dict[str, Row]
) -> Iterator[tuple[str, str | None, Row]]:
    """(new name, old name or None where all of it is new, row), for every tensor."""
    back = {
        axis: {new: old for old, new in enumerate(along)}
        for axis, along in index_maps(growth).items()
    }
    for template, row in table.items():
        for case, name in names(growth.new, template):
            old = {axis: back[axis].get(i) for axis, i in case.items()}
            known = None not in old.values()
            yield name, template.format(**old) if known else None, row


def size(shape: Shape, axis: Axis) -> int:
    """The length of an axis."""
    return math.prod(factors(shape)[axis])


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, size) of every parameter of a decoder of this shape."""
    for template, row in parameters(shape).items():
        for _, name in names(shape, template):
            yield name, tuple(size(shape, axis) for axis in row.axes)


def count(shape: Shape) -> int:
    """The number of parameters of a decoder, from the table alone."""
    return sum(math.prod(lengths) for _, lengths in tensors(shape))
