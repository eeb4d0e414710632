"""The table: every parameter and every tap of a decoder, and how each of them grows.

An *axis* is a direction in which tensors grow. It is a product of factors (the query
axis is groups × repeats × head_dim), and growing pads each factor at its end: old
indices go to new ones by a strictly increasing map. A parameter is a map from the axis
that it reads to the one that it writes; to grow a model is to pad each parameter along
its axes, times one scalar, after an optional centring. The same table gives the inverse,
the parameter count, and the places that must be zero.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from growproof.decoder import Decoder
from growproof.growth import Growth, layers_map

Axis = Literal[
    "batch", "tokens", "vocab", "position", "residual", "query", "key", "lane", "head",
    "mlp", "expert", "expert_mlp",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: what a tensor maps, and how it grows.

    axes: the axis of each dimension. writes, reads: what it maps, from the second to the
    first; reads is None for a bias. norm: the weight or bias of a norm, which reads what
    it writes. scale: multiplies the old entries (offset + x, for a norm that has one).
    centre: an axis over which the mean is removed first (per head for query and key).
    averaged: new lanes of the residual hold the mean of the old ones. sparse: only layers
    with experts have it, or only those without; None for all.
    """

    axes: tuple[Axis, ...]
    writes: Axis
    reads: Axis | None = None
    norm: bool = False
    scale: float = 1.0
    centre: Axis | None = None
    offset: float = 0.0
    averaged: bool = False
    sparse: bool | None = None

    @property
    def is_writer(self) -> bool:
        """It writes the residual stream (embedding, o, down), weight or bias."""
        return self.writes == "residual" and not self.norm

    @property
    def is_reader(self) -> bool:
        """It reads the residual stream (q, k, v, gate, up, router, head)."""
        return self.reads == "residual" and not self.norm


Table = dict[str, Row]

# name: (writes, reads) of the linear maps of a layer
QK_NORMS: dict[str, Axis] = {"q_norm": "query", "k_norm": "key"}
ATTENTION: dict[str, tuple[Axis, Axis]] = {
    "q": ("query", "residual"),
    "k": ("key", "residual"),
    "v": ("key", "residual"),
    "o": ("residual", "query"),
}
MLP: dict[str, tuple[Axis, Axis]] = {
    "gate": ("mlp", "residual"),
    "up": ("mlp", "residual"),
    "down": ("residual", "mlp"),
}
EXPERTS: dict[str, tuple[Axis, Axis]] = {
    "expert_gate": ("expert_mlp", "residual"),
    "expert_up": ("expert_mlp", "residual"),
    "expert_down": ("residual", "expert_mlp"),
}
LAYER = "layers.{layer}."


def factors(d: Decoder) -> dict[Axis, tuple[int, ...]]:
    """Each axis as nested sizes, outermost first: growing pads every factor at its end.

    The query axis is (G, R, K), not H · K: this is the whole point of the article's 3D
    reshape. Full rotary pairs lane k with k + K/2, so there a head is (2, K/2).
    """
    lanes = (2, d.head_dim // 2) if d.split else (d.head_dim,)
    return {
        "vocab": (d.vocab,),
        "position": (d.positions,),
        "residual": (d.hidden,),
        "query": (d.groups, d.repeats, *lanes),
        "key": (d.groups, *lanes),
        "lane": lanes,
        "head": (d.groups, d.repeats),
        "mlp": (d.mlp,),
        "expert": (d.experts,),
        "expert_mlp": (d.expert_mlp,),
    }


Fold = tuple[tuple[int, ...], tuple[int, ...]]


def folds(growth: Growth) -> dict[Axis, Fold]:
    """Each axis folded before and after: the old entries are the front of every factor.

    Where key/value heads are repeated m times, a group's query heads are dealt out over
    its copies in shares of s: the query axis is (G, m, s, K), and the key axis (G, m, K).
    Where new lanes lie between the old ones, each old lane is the first of n. Neurons
    that are spread lie in n blocks.
    """
    old, new, m = growth.old, growth.new, growth.copies
    before, after = factors(old), factors(new)
    found: dict[Axis, Fold] = {axis: (before[axis], after[axis]) for axis in before}
    lanes, lanes_new = found["lane"]
    if growth.between > 1:
        lanes, lanes_new = (*lanes, 1), (*lanes, growth.between)
    share = -(-old.repeats // m)
    heads, heads_new = (old.groups, m, share), (new.groups // m, m, new.repeats)
    found["lane"] = (lanes, lanes_new)
    found["head"] = (heads, heads_new)
    found["query"] = ((*heads, *lanes), (*heads_new, *lanes_new))
    found["key"] = ((*heads[:2], *lanes), (*heads_new[:2], *lanes_new))
    n = growth.policies.spread
    for axis in ("mlp", "expert_mlp"):
        (neurons,), (neurons_new,) = found[axis]
        if neurons_new > neurons:
            found[axis] = ((n, neurons // n), (n, neurons_new // n))
    return found


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


# --- the scalars ----------------------------------------------------------------------


def scales(growth: Growth) -> dict[str, float]:
    """Part of a layer → its scalar; a part that is not here has 1.

    One fact is behind all of them. A norm over n lanes, of which there are n' after
    growing, returns c · norm(x) on √(ε'n'/εn) · pad(x) if its weight is taken times
    c · √(n/n'). For the residual ε' = ε · D/D', so that the stream stays as it is. The
    norms of q and k share that ε', so what they read is scaled instead.
    """
    old, new = growth.old, growth.new
    over = old.norm_size / new.norm_size
    loud = math.sqrt(1 / growth.wider) if old.root_embedding else 1.0
    found = dict.fromkeys(old.norms, math.sqrt(over))
    found["embed"] = loud
    found["final_norm"] = math.sqrt(over) / (loud if old.tied else 1.0)
    root = math.sqrt(growth.taller) if old.score is None else 1.0
    if not old.qk_norm:
        return found | {"q": root}
    eps = new.eps / old.eps if old.eps else 1.0
    groups = new.groups / old.groups / growth.copies  # a copy leaves the mean as it is
    for part, heads in (("q", new.heads / old.heads), ("k", groups)):
        more = growth.taller * (heads if old.qk_norm == "whole" else 1.0)
        found[part] = math.sqrt(eps * more)
        found[f"{part}_norm"] = (root if part == "q" else 1.0) / math.sqrt(more)
    return found


def means(growth: Growth) -> dict[Axis, Axis]:
    """Axis written → the axis over which what writes it loses its mean.

    The residual, where every norm behind a writer is a LayerNorm, which removes the mean
    in any case; a query's and a key's head, where a LayerNorm follows within the head.
    """
    found: dict[Axis, Axis] = {}
    if growth.policies.norm == "centred" and growth.wider > 1:
        found["residual"] = "residual"
    if growth.old.norm == "layer" and growth.old.qk_norm and growth.taller > 1:
        found |= {"query": "query", "key": "key"}
    return found


def has_averages(growth: Growth) -> bool:
    """True where new lanes of the residual hold the mean of the old ones."""
    return growth.policies.norm == "averaged" and growth.wider > 1


# --- the rows -------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def rows(d: Decoder) -> Mapping[str, Row]:
    """Name template → row of a decoder; weights are (out, in), as in nn.Linear.

    {layer} in a template is an axis as well: the layers that have the parameter.
    """
    table = {"embed": Row(("vocab", "residual"), "residual", "vocab")}
    if d.positions:
        table["positions"] = Row(("position", "residual"), "residual", "position")
    for name in (*(LAYER + part for part in d.norms), "final_norm"):
        table[name] = Row(
            ("residual",), "residual", "residual", norm=True, offset=d.norm_offset
        )
    for part, axis in QK_NORMS.items() if d.qk_norm else ():
        along: Axis = "lane" if d.qk_norm == "lane" else axis
        table[LAYER + part] = Row((along,), axis, axis, norm=True, offset=d.norm_offset)
    dense = any(not kind.sparse for kind in d.kinds)
    for part, (writes, reads) in ATTENTION.items():
        table[LAYER + part] = Row((writes, reads), writes, reads)
    for part, (writes, reads) in MLP.items() if dense else ():
        if d.gated or part != "gate":
            sparse = False if d.experts else None
            table[LAYER + part] = Row((writes, reads), writes, reads, sparse=sparse)
    for part, (writes, reads) in EXPERTS.items() if d.experts else ():
        table[LAYER + part] = Row(("expert", writes, reads), writes, reads, sparse=True)
    if d.experts:
        table[LAYER + "router"] = Row(
            ("expert", "residual"), "expert", "residual", sparse=True
        )
    if not d.tied:
        table["head"] = Row(("vocab", "residual"), "vocab", "residual")
    weights = {f"{name}.weight": row for name, row in table.items()}
    return MappingProxyType(weights | biases(d, table))


def biases(d: Decoder, table: Table) -> Table:
    """A bias for each linear map that the decoder says has one, and for a LayerNorm."""
    found: Table = {}
    for name, row in table.items():
        part = name.rpartition(".")[2]
        layer_norm = row.norm and d.norm == "layer" and row.writes == "residual"
        if (layer_norm and d.norm_bias) or part in d.biases:
            found[f"{name}.bias"] = replace(row, axes=(row.writes,), reads=None)
    if "head" in d.biases:
        found["head.bias"] = Row(("vocab",), "vocab")
    return found


def parameters(d: Decoder, growth: Growth | None = None) -> Table:
    """The rows of d with what a growth from it does to each; without one, nothing."""
    table = dict(rows(d))
    if growth is None:
        return table
    by, mean = scales(growth), means(growth)
    for name, row in table.items():
        part = name.split(".")[-2]
        scale = 1.0 if row.norm and row.reads is None else by.get(part, 1.0)
        loses = row.is_writer or part in ("q", "k")
        centre = mean.get(row.writes) if loses else None
        averaged = row.is_writer and has_averages(growth)
        table[name] = replace(row, scale=scale, centre=centre, averaged=averaged)
    return table


def taps(growth: Growth) -> Table:
    """Tap template → row: how every intermediate value of the decoder grows.

    The law of zero padding in one table: at each tap, the grown model holds the old
    value scattered along these axes, and zeros elsewhere.
    """
    old = growth.old
    by, mean = scales(growth), means(growth)
    root = math.sqrt(growth.taller) if old.score is None else 1.0

    def row(*axes: Axis, scale: float = 1.0, centre: Axis | None = None) -> Row:
        return Row(("batch", *axes), axes[-1], scale=scale, centre=centre)

    stream = row("tokens", "residual", centre=mean.get("residual"))
    stream = replace(stream, averaged=has_averages(growth))
    normed = row("tokens", "residual")
    query, key = row("tokens", "query"), row("tokens", "key")
    pairs, lanes = row("head", "tokens", "tokens"), row("tokens", "mlp")
    within = {
        **({"attn_norm": normed} if old.places != "post" else {}),
        "query": row("tokens", "query", scale=by["q"], centre=mean.get("query")),
        "key": row("tokens", "key", scale=by.get("k", 1.0), centre=mean.get("key")),
        "value": key,
        "query_rotated": replace(query, scale=root),
        "key_rotated": key,
        "scores": pairs,
        "probabilities": pairs,
        "context": query,
        "attention": stream,
        **({"attn_out_norm": stream} if old.places != "pre" else {}),
        **({"mlp_norm": normed} if "mlp_norm" in old.norms else {}),
        **({"gate": lanes} if old.gated else {}),
        "up": lanes,
        "activated": lanes,
        "mlp": stream,
        **({"mlp_out_norm": stream} if old.places != "pre" else {}),
        "residual": stream,
    }
    if old.experts:
        routed = row("tokens", "expert")
        inner = Row(("batch", "tokens", "expert", "expert_mlp"), "expert_mlp")
        within |= {"router": routed, "chosen": routed, "expert_gate": inner}
        within |= {"expert_up": inner, "expert_activated": inner}
    outer = {
        "embedding": stream,
        # where the head is the embedding, scaled with it
        "final_norm": replace(normed, scale=1 / by["embed"] if old.tied else 1.0),
        "logits": row("tokens", "vocab"),
    }
    return outer | {LAYER + name: row for name, row in within.items()}


# --- names and sizes ------------------------------------------------------------------


def template_of(name: str) -> str:
    """layers.3.q.weight → layers.{layer}.q.weight: from a name to its row."""
    return re.sub(r"^layers\.\d+\.", LAYER, name)


def layer_of(name: str) -> int | None:
    """layers.3.q.weight → 3; None for what belongs to no layer."""
    found = re.match(r"layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def names(d: Decoder, template: str, row: Row) -> Iterator[tuple[int | None, str]]:
    """(layer, concrete name) of every tensor that a row stands for in d."""
    if "{layer}" not in template:
        yield None, template
        return
    for i in d.layers_that(row.sparse):
        yield i, template.format(layer=i)


def pairs(growth: Growth, table: Table) -> Iterator[tuple[str, str | None, Row]]:
    """(new name, old name or None where all of it is new, row), for every tensor."""
    old, new = growth.old, growth.new
    along = layers_map(old.layers, new.layers, growth.policies.depth)
    back = {after: before for before, after in enumerate(along)}
    for template, row in table.items():
        for i, name in names(new, template, row):
            if i is None or i in back:
                yield name, template.format(layer=i if i is None else back[i]), row
            else:
                yield name, None, row


def grown_rows(
    growth: Growth, table: Table | None = None
) -> dict[str, tuple[str | None, Row]]:
    """New name → (old name or None, row), by the right table or by another one."""
    table = table or parameters(growth.old, growth)
    return {new: (old, row) for new, old, row in pairs(growth, table)}


def size(d: Decoder, axis: Axis) -> int:
    """The length of an axis."""
    return math.prod(factors(d)[axis])


def tensors(d: Decoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, size) of every parameter of a decoder."""
    for template, row in rows(d).items():
        for _, name in names(d, template, row):
            yield name, tuple(size(d, axis) for axis in row.axes)


def count(d: Decoder) -> int:
    """The number of parameters of a decoder, from the table alone."""
    return sum(math.prod(lengths) for _, lengths in tensors(d))
