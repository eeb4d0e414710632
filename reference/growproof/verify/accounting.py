"""Every entry of the destination, accounted for: equal, rounded once, free, or wrong.

The source's entries lie where `placing` says, times the scalars of `scaling`. A new entry
is zero, or nothing reads it. Where that holds for every entry of every tensor, the
destination computes the source's function for all inputs: the residual stream holds the
old one, scaled and scattered, and zeros; a norm gives the old values there; a new head,
lane or neuron is silent, for one of the factors that it is a product of is zero.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from tqdm import tqdm

from growproof.decoder import Decoder, GrowthError, Kind
from growproof.growth import Growth
from growproof.rounding import holds, unit_roundoff
from growproof.table import LAYER, Row, names, rows
from growproof.verify.entries import Account, Miss, judged, outer, taken
from growproof.verify.placing import Placement, Places, integers, placement, sampled
from growproof.verify.scaling import Scaling, scalings, score_parts, shared
from growproof.verify.shares import shares
from growproof.verify.sides import Side
from growproof.verify.silence import Loud, crossings

# fields of a Decoder that may differ, because the entries or other checks answer for them
ANSWERED = {
    "vocab", "hidden", "heads", "groups", "head_dim", "mlp", "layers", "eps", "kinds",
    "norm_size", "score", "tied", "biases", "positions", "experts", "active",
    "expert_mlp", "renormalised", "activation", "score_cap", "logit_cap",
}  # fmt: skip
# those that weights can make up for: measured by themselves, all else being right
FACTORS = ("embedding_scale", "residual_scale", "logit_divisor")
ROWS = 512  # by which a scalar is guessed
# what v and o have along the axes of key and query: lanes in an order of their own
OWN_AXES = {("v", "key"): "value", ("o", "query"): "context"}
OUT = ("o", "down", "expert_down")


# --- what cannot be accounted for -----------------------------------------------------


def refuse_unlike(a: Decoder, b: Decoder, placed: Placement) -> None:
    """Raise GrowthError where the decoders differ in more than sizes."""
    alike = {*ANSWERED, *FACTORS}
    if a.head_dim == b.head_dim and all_turn(a) and all_turn(b):
        alike.add("split")  # a partial rotary that turns all lanes is no other
    differ = [
        f.name
        for f in fields(Decoder)
        if f.name not in alike and getattr(a, f.name) != getattr(b, f.name)
    ]
    if not a.experts and b.experts and not b.renormalised and b.active < b.experts:
        differ.append("renormalised")
    if differ:
        raise GrowthError(changed(a, b, differ[:1]))
    if bool(a.eps) != bool(b.eps):
        raise GrowthError(f"ε is {a.eps} → {b.eps}")
    for j, at in placed.layers.items():
        refuse_other_kind(a.kinds[at.source], b.kinds[j], j)
    if b.norm_size != b.hidden and a.norm == "layer":
        held = placed.residual >= 0
        if not held[: b.norm_size].all() or held[b.norm_size :].any():
            raise GrowthError("old lanes lie where a masked norm does not look")


def settings(a: Decoder, b: Decoder) -> list[str]:
    """The fields that differ and that the same weights can be run with."""
    names = (*FACTORS, *(("active", "renormalised") if a.experts else ()))
    return [n for n in names if getattr(a, n) != getattr(b, n)]


def changed(a: Decoder, b: Decoder, names: Iterable[str]) -> str:
    """`logit_divisor is 8.0 → 9.0`, for each of the names."""
    return "; ".join(f"{n} is {getattr(a, n)} → {getattr(b, n)}" for n in names)


def all_turn(d: Decoder) -> bool:
    """Whether every lane of every layer's heads is turned."""
    return all(k.rotary is not None and k.rotary.dims == d.head_dim for k in d.kinds)


def refuse_other_kind(old: Kind, new: Kind, j: int) -> None:
    """Raise GrowthError where a layer turns, looks back or chooses otherwise."""
    if old.window != new.window:
        raise GrowthError(f"layer {j} has a window of {old.window} → {new.window}")
    if old.sparse and not new.sparse:
        raise GrowthError(f"layer {j} has experts in the source only")
    if (old.rotary is None) != (new.rotary is None):
        raise GrowthError(f"layer {j} is turned in one of the two only")
    if old.rotary and new.rotary and old.rotary != new.rotary:
        f, g = old.rotary.frequencies(), new.rotary.frequencies()
        if len(g) < len(f) or (
            len(f) and (g / f[:, None] - 1).abs().amin(1).max() > 1e-6
        ):
            raise GrowthError(f"layer {j} has other rotary frequencies")


# --- going through ----------------------------------------------------------------------


@dataclass
class Accountant:
    """Goes through the destination tensor by tensor.

    loud: (part, expert) → where along its inner axis a map is not zero.
    """

    old: Side
    new: Side
    placed: Placement
    scaling: Scaling
    growth: Growth
    account: Account = field(default_factory=Account)
    loud: Loud = field(default_factory=dict[tuple[str, int], Tensor])
    seen: set[str] = field(default_factory=set[str])

    def run(self) -> Iterator[str]:
        """Account for all tensors; yields their names as it goes."""
        b, eps = self.new.decoder, self.scaling.eps
        if abs(b.eps - eps) > 2 * unit_roundoff(torch.float32) * eps:
            self.miss("config", f"ε is {b.eps:.6g}, expected {eps:.6g}")
        table = rows(b)
        for name, row in table.items():
            if LAYER not in name:
                yield name
                self.tensor(name, name, row, self.scaling, None)
        for j in range(b.layers):
            here = {
                name: row
                for template, row in table.items()
                if LAYER in template
                for i, name in names(b, template, row)
                if i == j
            }
            if j in self.placed.layers:
                yield from self.layer(self.placed.layers[j], here)
            else:
                yield from self.silent_layer(j, here)
        self.left_over()

    def miss(self, name: str, said: str, *index: int) -> None:
        """One more thing that is not accounted for."""
        self.account.misses.append(Miss(name=name, said=said, index=index))

    def must_be_finite(self, name: str, x: Tensor) -> None:
        """New entries may be anything but NaN or infinite: 0 · ∞ is no 0."""
        if not x.isfinite().all():
            self.miss(name, "holds a number that is not finite")

    def layer(self, at: Places, here: dict[str, Row]) -> Iterator[str]:
        """The tensors of an old layer, and the silence of what is new in it."""
        self.loud.clear()
        self.all_held(at)
        scaling = shared(
            self.scaling, self.old.decoder, self.new.decoder, self.ratios(at)
        )
        for name, row in here.items():
            yield name
            source = name.replace(f"layers.{at.layer}.", f"layers.{at.source}.", 1)
            self.tensor(name, source, row, scaling, at)
        for name, said, index in crossings(
            self.old.decoder, self.new.decoder, at, self.loud
        ):
            self.miss(f"layers.{at.layer}.{name}.weight", said, *index)

    def silent_layer(self, j: int, here: dict[str, Row]) -> Iterator[str]:
        """A new layer adds nothing: what writes, or the norm behind it, is zero."""
        zero = dict[str, bool]()
        for name, row in here.items():
            yield name
            x = self.new.state[name]
            self.account.tensors += 1
            self.account.new += x.numel()
            self.must_be_finite(name, x)
            zero[name] = not bool((x + row.offset if row.norm else x).any())
        for norm, parts in (
            ("attn_out_norm", ["o"]),
            ("mlp_out_norm", ["down", "expert_down"]),
        ):
            held = [n for n in here if n.split(".")[2] in parts]
            norms = [n for n in here if n.split(".")[2] == norm]
            loud = [n for n in held if not zero[n]]
            if loud and not (norms and all(zero[n] for n in norms)):
                self.miss(loud[0], "is not zero, and a new layer must add nothing")

    def left_over(self) -> None:
        """What the source has and the destination has not must have done nothing."""
        for name in sorted(set(self.old.state) - self.seen):
            x = self.old.state[name]
            if name == "head.weight":
                same = torch.equal(x, self.old.state["embed.weight"])
            else:
                same = name.endswith("bias") and not x.any()
            if not same:
                self.miss(
                    name, "the source has it, and the destination has no such tensor"
                )

    def ratios(self, at: Places) -> dict[str, float]:
        """By how much q and k are scaled, as far as one number tells."""
        found, table = dict[str, float](), rows(self.old.decoder)
        for part in score_parts(self.old.decoder):
            row = table[f"{LAYER}{part}.weight"]
            old = self.old.state[f"layers.{at.source}.{part}.weight"]
            new = self.new.state[f"layers.{at.layer}.{part}.weight"]
            some = sampled(len(new), ROWS)
            first, *rest = self.origins(part, row, at, 0)
            first = first[some]
            held = outer([origin >= 0 for origin in (first, *rest)])
            x = taken(old[first.clamp(min=0)], [torch.arange(len(first)), *rest])
            x, y = (t.double()[held] + row.offset for t in (x, new[some]))
            found[part] = float((x * y).sum() / (x * x).sum().clamp(min=1e-300))
        return found

    def all_held(self, at: Places) -> None:
        """Every old entry has one place, and a head still reads its keys and values."""
        a, b = self.old.decoder, self.new.decoder
        here = f"layers.{at.layer}"
        for what, origin, n in (
            ("query head", at.heads, a.heads),
            ("lane", at.lanes, a.head_dim),
            *(("value lane", origin, a.head_dim) for origin in at.values),
            *(("neuron", origin, width(a, at.source)) for origin in at.neurons),
        ):
            if sorted(integers(origin[origin >= 0])) != list(range(n)):
                self.miss(here, f"an old {what} has no place of its own")
        for h, was in enumerate(integers(at.heads)):
            g, want = int(at.groups[h // b.repeats]), was // a.repeats
            if was >= 0 and g != want:
                said = f"holds query head {was}, under key/value head {g}, not {want}"
                self.miss(f"{here}.q.weight", said, h * b.head_dim, 0)
        held = at.groups[at.groups >= 0].bincount()
        if a.qk_norm == "whole" and len({*integers(held)}) > 1:
            self.miss(f"{here}.k_norm.weight", "key heads are not repeated alike")

    def origins(self, part: str, row: Row, at: Places | None, e: int) -> list[Tensor]:
        """The origins of the axes of one map, of expert e."""
        placed, d = self.placed, self.old.decoder
        along: dict[str, Tensor] = {
            "residual": placed.residual,
            "vocab": placed.vocab,
            "position": placed.position,
        }
        if at:
            experts = self.new.decoder.experts
            along |= at.origins(d) | {"expert": torch.arange(experts)}
            along |= dict.fromkeys(("mlp", "expert_mlp"), at.neurons[e])
        return [along[OWN_AXES.get((part, axis), axis)] for axis in row.axes]

    def tensor(
        self, name: str, source: str, row: Row, scaling: Scaling, at: Places | None
    ) -> None:
        """Compare one tensor with what it should be, an expert at a time."""
        part, y = name.split(".")[-2], self.new.state[name]
        row = scaling.row(part, row)
        x, before = self.source_of(source), len(self.account.misses)
        if part == "router" and not self.old.decoder.experts:
            self.account.tensors += 1  # all experts are one: whichever it chooses
            self.account.new += y.numel()
            self.must_be_finite(name, y)
        elif part.startswith("expert_"):
            inner = replace(row, axes=row.axes[1:])
            for e in range(len(y)):
                one = None if x is None else x if x.ndim < y.ndim else x[e]
                self.entry_by_entry(name, one, y[e], inner, part, at, e)
        else:
            self.entry_by_entry(name, x, y, row, part, at, 0)
        missed = self.account.misses[before:]
        if missed and part in OUT and row.reads and x is not None:
            own = source in self.old.state
            known = source if own else source.replace("expert_", "")
            residual = self.placed.residual
            self.account.shares[known] = shares(x, y, row, residual, self.growth)

    def source_of(self, name: str) -> Tensor | None:
        """The source's tensor of that name, or that of its MLP for an expert's."""
        for known in (name, name.replace("expert_", "")):
            if known in self.old.state:
                self.seen.add(known)
                return self.old.state[known]
        if name == "head.weight":
            return self.old.state["embed.weight"]
        return None

    def entry_by_entry(
        self,
        name: str,
        x: Tensor | None,
        y: Tensor,
        row: Row,
        part: str,
        at: Places | None,
        e: int,
    ) -> None:
        """Judge one tensor, and note where along its inner axis it is not zero."""
        origins = self.origins(part, row, at, e)
        if x is None:  # a bias, of which the source has none
            x = y.new_zeros([int(origin.max()) + 1 for origin in origins])
        if not holds(y.dtype, x.dtype):
            self.account.narrowed[name] = y.dtype
        before = len(self.account.misses)
        judged(name, x, y, row, origins, self.growth, self.account)
        if part.startswith("expert_"):
            found = self.account.misses[before:]
            self.account.misses[before:] = [replace(miss, expert=e) for miss in found]
        if at is None or row.norm:
            return
        inner = [dim for dim, axis in enumerate(row.axes) if axis != "residual"]
        if not inner or bool((origins[inner[0]] >= 0).all()):
            return
        loud = y != 0
        if row.is_reader:
            loud = loud[:, self.placed.residual >= 0]
        if loud.ndim > 1:
            loud = loud.any(1 - inner[0])
        key = part.removeprefix("expert_"), e
        self.loud[key] = self.loud.get(key, torch.tensor(False)) | loud


def width(d: Decoder, layer: int) -> int:
    """The neurons of that layer's MLP, or of one of its experts."""
    return d.expert_mlp if d.kinds[layer].sparse else d.mlp


# --- the whole ------------------------------------------------------------------------


@dataclass(frozen=True)
class Accounted:
    """What accounting found: the account, or why there is none; placement and scaling.

    settings: fields of the decoder that differ, and that weights can make up for.
    """

    account: Account | None
    why: str = ""
    placed: Placement | None = None
    scaling: Scaling | None = None
    settings: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True where every entry is accounted for."""
        return self.account is not None and not self.account.misses and not self.why


def accounted(old: Side, new: Side, *, progress: bool | None = None) -> Accounted:
    """Account for every entry of the destination, as far as it can be done."""
    placed = scaling = None
    try:
        placed = placement(old, new)
        scaling = scalings(old, new, placed.residual)
        refuse_unlike(old.decoder, new.decoder, placed)
    except GrowthError as error:
        return Accounted(None, str(error), placed, scaling)
    growth = Growth(old=old.decoder, new=new.decoder)
    accountant = Accountant(old, new, placed, scaling, growth)
    disable = None if progress is None else not progress
    total = len(new.state)
    for _ in tqdm(
        accountant.run(),
        "accounting",
        total,
        unit="tensor",
        disable=disable,
        leave=False,
    ):
        pass
    unlike = settings(old.decoder, new.decoder)
    why = changed(old.decoder, new.decoder, unlike)
    return Accounted(accountant.account, why, placed, scaling, tuple(unlike))
