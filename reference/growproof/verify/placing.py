"""Where the source's entries lie in the destination: read off the tensors themselves.

An *origin* of an axis says of each new index which old one it holds, −1 for none; a
repeated key/value head has the same origin twice. The guess of growproof's own table
comes first; where it does not fit, rows are matched to the rows most like them, so that
the order of lanes, heads, neurons and layers is whatever the grower made it. An origin is
only a hypothesis: what lies where it says is compared entry by entry elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growproof.decoder import Decoder, GrowthError, Kind
from growproof.growth import Growth
from growproof.table import head_dim_map
from growproof.verify.sides import Side

SAMPLE = 64  # of the entries of a row, by which it is matched
FITS = 0.999  # mean cosine from which a guess is right
BETTER = 0.1  # by how much a match must beat a guess that is not


@dataclass(frozen=True)
class Places:
    """The origins of one layer: heads, lanes of q and k, lanes of v, neurons.

    source, layer: the old layer and the new one. values: one origin for each old group.
    neurons: one, or one for each expert.
    """

    source: int
    layer: int
    heads: Tensor
    groups: Tensor
    lanes: Tensor
    values: list[Tensor]
    neurons: list[Tensor]

    def origins(self, d: Decoder) -> dict[str, Tensor]:
        """Axis → origin; v and o have axes of their own, `value` and `context`."""
        k, r = d.head_dim, d.repeats
        none = torch.full_like(self.lanes, -1)
        by_group = [self.values[g] if g >= 0 else none for g in integers(self.groups)]
        by_head = [
            self.values[h // r] if h >= 0 else none for h in integers(self.heads)
        ]
        return {
            "lane": self.lanes,
            "head": self.heads,
            "query": nested(self.heads, [self.lanes] * len(self.heads), k),
            "key": nested(self.groups, [self.lanes] * len(self.groups), k),
            "context": nested(self.heads, by_head, k),
            "value": nested(self.groups, by_group, k),
            "mlp": self.neurons[0],
        }


@dataclass(frozen=True)
class Placement:
    """The origins of a whole model; new layer → its places, where it is an old one."""

    residual: Tensor
    vocab: Tensor
    position: Tensor
    layers: Mapping[int, Places]


def prefix(n: int, n_new: int) -> Tensor:
    """0 … n − 1, then −1."""
    index = torch.arange(n_new)
    return torch.where(index < n, index, -1)


def origin_of(index: Sequence[int], n_new: int) -> Tensor:
    """The origin of an old → new map."""
    origin = torch.full((n_new,), -1)
    origin[torch.tensor(index, dtype=torch.int64)] = torch.arange(len(index))
    return origin


def nested(outer: Tensor, inner: Sequence[Tensor], size: int) -> Tensor:
    """The origin of an axis (outer, inner), flat; inner axes were of that size."""
    found = [
        torch.where((lanes >= 0) & (i >= 0), i * size + lanes, -1)
        for i, lanes in zip(outer, inner, strict=True)
    ]
    return torch.cat(found)


def integers(x: Tensor) -> list[int]:
    """A vector as a list."""
    return [int(i) for i in x]


def unit(x: Tensor) -> Tensor:
    """Rows of length one; a row of zeros gets a lane of its own."""
    x = x.double()
    length = (x * x).sum(1, keepdim=True).sqrt()
    return torch.cat((x / length.clamp(min=1e-300), (length == 0).double()), 1)


def cosines(a: Tensor, b: Tensor, origin: Tensor) -> float:
    """The mean cosine of each row of b with the row of a that it should hold."""
    held = origin >= 0
    return float((unit(a)[origin[held]] * unit(b)[held]).sum(1).mean())


def matched(a: Tensor, b: Tensor) -> Tensor:
    """The origin of b's rows in a's, each old row taken once, by their cosines."""
    alike = unit(a) @ unit(b).mT
    best = alike.argmax(1)
    if len({*integers(best)}) < len(best):
        for i in alike.amax(1).argsort(descending=True, stable=True):
            best[i] = alike[i].argmax()
            alike[:, best[i]] = -torch.inf
    return origin_of(integers(best), len(b))


def settled(a: Tensor, b: Tensor, *guesses: Tensor) -> Tensor:
    """The first guess that fits, else a match that does, else the best guess."""
    fits = [cosines(a, b, guess) for guess in guesses]
    best = max(range(len(fits)), key=lambda i: fits[i])
    if fits[best] >= FITS or len(b) < len(a):
        return guesses[best]
    match = matched(a, b)
    fit = cosines(a, b, match)
    return match if fit >= FITS or fit > fits[best] + BETTER else guesses[best]


def sampled(n: int, most: int = SAMPLE) -> Tensor:
    """At most that many of n indices, evenly spread."""
    return torch.linspace(0, n - 1, min(n, most)).long()


def placement(old: Side, new: Side) -> Placement:
    """The origins of the whole model. Raises GrowthError where nothing can lie there."""
    a, b = old.decoder, new.decoder
    refuse_smaller(a, b)
    some = sampled(a.vocab, 4 * SAMPLE)
    before, after = (s.state["embed.weight"][some].mT for s in (old, new))
    residual = settled(before, after, prefix(a.hidden, b.hidden))
    layers = {
        j: places(old, new, residual, i, j)
        for i, j in enumerate(aligned(old, new, residual))
    }
    return Placement(
        residual,
        prefix(a.vocab, b.vocab),
        prefix(a.positions, b.positions),
        layers,
    )


def refuse_smaller(a: Decoder, b: Decoder) -> None:
    """Raise GrowthError where something has no room."""
    names = ["vocab", "hidden", "heads", "groups", "head_dim", "layers", "positions"]
    shrunk = [n for n in names if getattr(b, n) < getattr(a, n)]
    shrunk += ["mlp"] if width(b) < width(a) else []
    shrunk += ["experts"] if a.experts not in (0, b.experts) else []
    if shrunk:
        name = shrunk[0]
        raise GrowthError(
            f"{name} is {getattr(a, name)} in the source and {getattr(b, name)} here, "
            "which are not the sizes of a growth"
        )


def width(d: Decoder) -> int:
    """The neurons of an MLP, or of an expert."""
    return d.expert_mlp if d.experts else d.mlp


# --- layers ---------------------------------------------------------------------------


def aligned(old: Side, new: Side, residual: Tensor) -> list[int]:
    """Old layer → new layer, increasing, so that what they write is most alike."""
    n, m = old.decoder.layers, new.decoder.layers
    if n == m:
        return list(range(n))
    held = residual >= 0
    order = residual[held]
    before = [written(old, i)[:, order] for i in range(n)]
    after = [written(new, j)[:, held] for j in range(m)]
    like = [[float((unit(x) * unit(y))[:, :-1].sum()) for y in after] for x in before]
    # best[i][j]: of the first i old layers within the first j new ones
    best = [[0.0] * (m + 1)] + [[-torch.inf] * (m + 1) for _ in range(n)]
    for i in range(1, n + 1):
        for j in range(i, m + 1):
            taken = best[i - 1][j - 1] + like[i - 1][j - 1]
            best[i][j] = max(best[i][j - 1], taken)
    found, j = list[int](), m
    for i in range(n, 0, -1):
        while best[i][j] == best[i][j - 1] and j > i:
            j -= 1
        j -= 1
        found.append(j)
    return found[::-1]


def written(side: Side, i: int) -> Tensor:
    """(2, D): how much o and down write into each lane, less the mean over lanes.

    No order of heads or neurons, and no zeros among them, changes it.
    """
    down = "expert_down" if side.decoder.kinds[i].sparse else "down"
    found = list[Tensor]()
    for part in ("o", down):
        x = side.state[f"layers.{i}.{part}.weight"].double()
        size = (x * x).sum(-1).reshape(-1, x.shape[-2]).sum(0).sqrt()
        found.append(size - size.mean())
    return torch.stack(found)


# --- one layer ------------------------------------------------------------------------


def places(old: Side, new: Side, residual: Tensor, i: int, j: int) -> Places:
    """The origins of old layer i within new layer j."""
    a, b = old.decoder, new.decoder
    held = (residual >= 0).nonzero()[:, 0]
    at_new = held[sampled(len(held))]
    at_old = residual[at_new]

    def read(side: Side, part: str, layer: int) -> Tensor:
        """A map's rows, at some lanes of the residual."""
        lanes = at_old if side is old else at_new
        x = side.state[f"layers.{layer}.{part}.weight"]
        return x.index_select(0 if part in ("o", "down") else 1, lanes)

    q, q_new = read(old, "q", i), read(new, "q", j)
    if a.kinds[i].rotary or b.kinds[j].rotary:
        lanes = lanes_of(a, b, a.kinds[i], b.kinds[j])
    else:
        keys = read(old, "k", i), read(new, "k", j)
        lanes = unturned(a, b, (q, q_new), keys)
    o, o_new = read(old, "o", i), read(new, "o", j)
    index = lanes_index(lanes, a.head_dim)
    one = torch.cat((by_head(q, a.heads, None), spread(o, a.heads)), 1)
    two = torch.cat((by_head(q_new, b.heads, index), spread(o_new, b.heads)), 1)
    heads = settled(one, two, *guessed_heads(a, b))
    groups = groups_of(heads, a, b)
    v, v_new = read(old, "v", i), read(new, "v", j)
    values = [values_of(v, v_new, g, groups, a, b, lanes) for g in range(a.groups)]
    neurons = neurons_of(old, new, i, j, at_old, at_new)
    return Places(i, j, heads, groups, lanes, values, neurons)


def by_head(x: Tensor, heads: int, lanes: Tensor | None) -> Tensor:
    """(H·K, n) → (H, K·n) of unit length, at those lanes of each head."""
    each = x.reshape(heads, -1, x.shape[1])
    each = each if lanes is None else each[:, lanes]
    return unit(each.flatten(1))[:, :-1]


def spread(o: Tensor, heads: int) -> Tensor:
    """(n, H·K) → (H, n): how much of each head goes to each lane, in whatever order."""
    each = o.double().reshape(o.shape[0], heads, -1)
    return unit((each * each).sum(2).sqrt().mT)[:, :-1]


def lanes_index(lanes: Tensor, size: int) -> Tensor:
    """Old lane → new lane of an origin."""
    index = torch.zeros(size, dtype=torch.int64)
    held = (lanes >= 0).nonzero()[:, 0]
    index[lanes[held]] = held
    return index


def guessed_heads(a: Decoder, b: Decoder) -> list[Tensor]:
    """Origins of the heads: growproof's own, and in the order that they have."""
    found = [prefix(a.heads, b.heads)]
    try:
        m = Growth(old=a, new=b).copies
    except GrowthError:
        return found
    share = -(-a.repeats // m)
    index = [
        (g * m + r // share) * b.repeats + r % share
        for g in range(a.groups)
        for r in range(a.repeats)
    ]
    return [origin_of(index, b.heads), *found]


def groups_of(heads: Tensor, a: Decoder, b: Decoder) -> Tensor:
    """The origin of each key/value head: that which its first old query head reads."""
    found = list[int]()
    for each in heads.reshape(b.groups, b.repeats):
        held = each[each >= 0]
        found.append(int(held[0]) // a.repeats if len(held) else -1)
    return torch.tensor(found)


def lanes_of(a: Decoder, b: Decoder, before: Kind, after: Kind) -> Tensor:
    """The origin of q's and k's lanes: where the rotary frequencies are the old ones."""
    rotary, rotary_new = before.rotary, after.rotary
    guess = origin_of(head_dim_map(a.head_dim, b.head_dim, a.split), b.head_dim)
    if not rotary or not rotary_new or not rotary.dims or not rotary_new.dims:
        return prefix(a.head_dim, b.head_dim)
    try:
        f, f_new = rotary.frequencies(), rotary_new.frequencies()
    except GrowthError:  # a rope type that is not known here
        return guess
    off = (f_new / f[:, None] - 1).abs()
    index = integers(off.argmin(1))
    rest, rest_new = a.head_dim - rotary.dims, b.head_dim - rotary_new.dims
    if float(off.amin(1).max()) > 1e-6 or rest > rest_new:
        return guess
    turned = [*index, *(len(f_new) + j for j in index)]
    passed = [rotary_new.dims + j for j in range(rest)]
    return origin_of([*turned, *passed], b.head_dim)


def unturned(
    a: Decoder, b: Decoder, q: tuple[Tensor, Tensor], k: tuple[Tensor, Tensor]
) -> Tensor:
    """The origin of q's and k's lanes where no rotary embedding tells them apart.

    A lane is known by how much it reads of the residual's lanes, over all heads.
    """
    before, after = (
        torch.cat([x[at].double().reshape(-1, d.head_dim, x[at].shape[1]).abs().sum(0)
                   for x in (q, k)], 1)
        for at, d in enumerate((a, b))
    )  # fmt: skip
    own = origin_of(head_dim_map(a.head_dim, b.head_dim, a.split), b.head_dim)
    return settled(before, after, own, prefix(a.head_dim, b.head_dim))


def values_of(
    v: Tensor,
    v_new: Tensor,
    g: int,
    groups: Tensor,
    a: Decoder,
    b: Decoder,
    lanes: Tensor,
) -> Tensor:
    """The origin of the value lanes of old group g, in the first new group that has it."""
    guesses = [lanes, prefix(a.head_dim, b.head_dim)]
    at = (groups == g).nonzero()[:, 0]
    if not len(at):
        return lanes
    before = v.reshape(a.groups, -1, v.shape[1])[g]
    after = v_new.reshape(b.groups, -1, v_new.shape[1])[at[0]]
    return settled(before, after, *guesses)


def neurons_of(
    old: Side, new: Side, i: int, j: int, at_old: Tensor, at_new: Tensor
) -> list[Tensor]:
    """The origin of the neurons of a layer, or of each of its experts."""

    def rows(side: Side, layer: int, lanes: Tensor) -> list[Tensor]:
        """The rows of gate and up, and the columns of down, for each expert."""
        sparse = side.decoder.kinds[layer].sparse
        found = list[Tensor]()
        for part in ("gate", "up", "down") if side.decoder.gated else ("up", "down"):
            name = f"layers.{layer}.{'expert_' * sparse}{part}.weight"
            x = side.state[name]
            x = x.index_select(-2, lanes).mT if part == "down" else x[..., lanes]
            found.append(x.reshape(-1, *x.shape[-2:]))
        return list(torch.cat(found, -1))

    before, after = rows(old, i, at_old), rows(new, j, at_new)
    before = before * len(after) if len(before) == 1 else before
    guess = prefix(len(before[0]), len(after[0]))
    return [settled(x, y, guess) for x, y in zip(before, after, strict=True)]


def fresh(placed: Placement, layers: int) -> list[int]:
    """The new layers that hold no old one."""
    return [j for j in range(layers) if j not in placed.layers]
