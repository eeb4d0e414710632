"""A growth: an old decoder, a new one, and the policies that lead from one to the other.

`plan` is where everything is refused that cannot be exact, with the reason and the way
out; ε, θ and the kinds of new layers follow from the sizes by rules that name no family.
"""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from growproof.decoder import SURVIVING_ROPE_TYPES, Decoder, GrowthError, Kind, Rotary

NormPolicy = Literal["scaled", "centred", "averaged", "masked"]
Fill = Literal["zeros", "trainable"]
Lanes = Literal["parted", "between"]

SIZES = (
    "vocab", "hidden", "heads", "groups", "head_dim", "mlp", "layers", "expert_mlp",
)  # fmt: skip
FIXED = ("experts", "positions")  # sizes that no policy can grow
FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True, kw_only=True)
class Policies:
    """How a growth is done, where there is a choice.

    norm: `scaled` (the article's recipe with ε: exact for RMSNorm), `centred` (writers
    lose their mean: exact for LayerNorm), `averaged` (new lanes of the residual hold the
    mean of the old ones: exact for LayerNorm, tied models too, but no zero padding),
    `masked` (the old divisor, in modelling code of its own); None for the exact one that
    stock code runs. fill: new entries `zeros`, or `trainable`. depth: new layers behind
    the old ones (`append`), before them (`prepend`), evenly between them
    (`interleave`), or one behind every n-th (`every:n`, which also says how many).
    rotary: where full rotary gets new lanes, `parted` (behind each half, θ' = θ^(K'/K))
    or `between` the old ones (K' = n · K, θ as it is: the same frequencies bit for bit);
    None for between where K' is a multiple. spread: the MLP's neurons lie in so many
    equal blocks, and each is padded at its end, as the share of a rank. seed,
    initializer_range: of a trainable fill.
    """

    norm: NormPolicy | None = None
    fill: Fill = "zeros"
    depth: str = "append"
    rotary: Lanes | None = None
    spread: int = 1
    seed: int = 0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name, known in (
            ("norm", (None, "scaled", "centred", "averaged", "masked")),
            ("fill", ("zeros", "trainable")),
            ("rotary", (None, "parted", "between")),
        ):
            if getattr(self, name) not in known:
                choices = ", ".join(filter(None, known))
                raise GrowthError(
                    f"{name} must be one of {choices}, got {getattr(self, name)!r}"
                )
        if not re.fullmatch(r"append|prepend|interleave|every:[1-9]\d*", self.depth):
            raise GrowthError(
                "depth must be append, prepend, interleave or every:N (N at least 1), "
                f"got {self.depth!r}"
            )
        if self.spread < 1:
            raise GrowthError(
                f"spread counts blocks of MLP neurons: at least 1, got {self.spread}"
            )


@dataclass(frozen=True, kw_only=True)
class Growth:
    """An old decoder, a new one, and the policies between them (norm is settled)."""

    old: Decoder
    new: Decoder
    policies: Policies = field(default_factory=lambda: Policies(norm="scaled"))

    @property
    def wider(self) -> float:
        """D'/D."""
        return self.new.hidden / self.old.hidden

    @property
    def taller(self) -> float:
        """K'/K."""
        return self.new.head_dim / self.old.head_dim

    @property
    def between(self) -> int:
        """n where K' = n · K lanes hold an old one in every n-th place, else 1."""
        return places_between(self.old, self.new.head_dim, self.policies.rotary)

    @property
    def copies(self) -> int:
        """m, how often each key/value head is repeated: 1 where R' ≥ R.

        Each copy takes a share of ⌈R / m⌉ of the group's query heads. Raises GrowthError
        where no m lets every query head keep its keys.
        """
        old, new = self.old, self.new
        for m in range(1, old.repeats + 1):
            whole = new.groups % m == 0 and new.groups // m >= old.groups
            if whole and -(-old.repeats // m) <= new.repeats:
                return m
        raise GrowthError(
            f"{old.repeats} query heads share each of {old.groups} key/value heads, and "
            f"{new.heads} / {new.groups} heads leave room for {new.repeats}: a query head "
            "would lose its keys. Choose more heads, or a multiple of the key/value heads"
        )


def plan(old: Decoder, policies: Policies | None = None, **sizes: int | None) -> Growth:
    """The growth of `old` to the given sizes; a size left out, or None, stays.

    Raises GrowthError for whatever cannot be exact, with the reason and the way out.
    """
    policies = policies or Policies()
    asked = {name: size for name, size in sizes.items() if size is not None}
    asked.setdefault("layers", layers_of(old.layers, policies.depth))
    for name in (*SIZES, *FIXED):
        before, after = getattr(old, name), asked.get(name, getattr(old, name))
        if after < before:
            raise GrowthError(
                f"{name} cannot shrink from {before} to {after}: entries would be lost. "
                "To undo a growth use growproof.shrink"
            )
        if name in FIXED and after != before:
            raise GrowthError(REFUSED[name].format(before=before, after=after))
    hidden = asked.get("hidden", old.hidden)
    policies = replace(
        policies, norm=policies.norm or default_norm(old, grows=hidden > old.hidden)
    )
    masked = policies.norm == "masked"
    new = replace(
        old,
        **asked,
        kinds=grown_kinds(
            old,
            asked["layers"],
            asked.get("head_dim", old.head_dim),
            policies,
        ),
        eps=old.eps
        if masked
        else old.eps * (old.hidden / hidden),  # exact where that is
        norm_size=old.norm_size if masked else hidden,
    )
    growth = Growth(old=old, new=new, policies=policies)
    refuse_inexact(growth)
    return growth


REFUSED = {
    "experts": "experts cannot grow from {before} to {after}: a router would choose the "
    "new ones, having no −∞ to begin from. Grow the experts' intermediate size instead",
    "positions": "learned positions cannot grow from {before} to {after}: what a new "
    "position means is not known. Leave the number of positions alone",
}


def default_norm(old: Decoder, *, grows: bool) -> NormPolicy:
    """The norm policy that keeps the function exactly, or a refusal that names one."""
    if old.norm_size != old.hidden:
        return "masked"
    if old.norm == "rms" or not grows:
        return "scaled"
    return "averaged" if old.tied else "centred"


def layers_of(layers: int, depth: str) -> int:
    """L' where only the depth policy says it: one layer more behind every n-th."""
    return layers + (layers // int(depth[6:]) if depth.startswith("every:") else 0)


def layers_map(layers: int, layers_new: int, depth: str) -> list[int]:
    """Old layer → new layer, strictly increasing, as the depth policy says."""
    if depth.startswith("every:"):
        return [i + i // int(depth[6:]) for i in range(layers)]
    if depth == "interleave":
        return [(i + 1) * layers_new // layers - 1 for i in range(layers)]
    first = layers_new - layers if depth == "prepend" else 0
    return list(range(first, first + layers))


def before(layers: int, layers_new: int, depth: str) -> list[int]:
    """For each grown layer the old one that it is, or that lies before it (else 0)."""
    old = {place: i for i, place in enumerate(layers_map(layers, layers_new, depth))}
    found, current = list[int](), 0
    for i in range(layers_new):
        current = old.get(i, current)
        found.append(current)
    return found


def layers_before(growth: Growth) -> list[int]:
    """`before`, of a growth."""
    return before(growth.old.layers, growth.new.layers, growth.policies.depth)


def places_between(old: Decoder, head_dim_new: int, rotary: Lanes | None) -> int:
    """n where new lanes go between the old ones, K' = n · K; 1 where they go behind."""
    n, rest = divmod(head_dim_new, old.head_dim)
    if rotary == "between" and old.split and rest:
        raise GrowthError(
            f"new lanes fit between the old ones at a multiple of head_dim "
            f"{old.head_dim}, got {head_dim_new}: choose one, or rotary='parted'"
        )
    return 1 if rest or not old.split or rotary == "parted" else n


def grown_kinds(
    old: Decoder, layers_new: int, head_dim_new: int, policies: Policies
) -> tuple[Kind, ...]:
    """A kind for each grown layer; a new one takes that of the old layer before it."""
    kinds = list[Kind]()
    between = places_between(old, head_dim_new, policies.rotary) > 1
    for i in before(old.layers, layers_new, policies.depth):
        rotary = old.kinds[i].rotary
        if rotary and between:
            rotary = replace(rotary, dims=head_dim_new)
        elif rotary:
            rotary = grown_rotary(old, rotary, head_dim_new)
        kinds.append(replace(old.kinds[i], rotary=rotary))
    return tuple(kinds)


def grown_rotary(old: Decoder, rotary: Rotary, head_dim_new: int) -> Rotary:
    """The rotary embedding that keeps every old frequency at head_dim K'.

    Partial rotary keeps its number of lanes. Full rotary rotates all K' lanes, and
    θ' = θ^(K'/K) puts the old frequencies where the two old halves go.
    """
    if not old.split or head_dim_new == old.head_dim:
        return rotary
    if rotary.kind not in SURVIVING_ROPE_TYPES:
        raise GrowthError(
            f"rope type {rotary.kind!r} computes its frequencies from head_dim, so "
            f"they do not survive head_dim {old.head_dim} → {head_dim_new}: choose a "
            "multiple (new lanes then go between the old ones), or grow "
            "num_attention_heads instead and leave head_dim alone"
        )
    if head_dim_new % 2:
        raise GrowthError(
            f"full rotary embedding turns pairs of lanes, got head_dim {head_dim_new}: "
            "choose an even one"
        )
    decades = math.log10(rotary.theta) * head_dim_new / old.head_dim
    if decades >= math.log10(FLOAT32_MAX):
        raise GrowthError(
            f"rope_theta {rotary.theta:g} must become 10^{decades:.1f} for head_dim "
            f"{old.head_dim} → {head_dim_new}, and transformers computes it in float32 "
            "(at most 3.4e38): choose a smaller head_dim, a multiple of the old one, or "
            "more heads"
        )
    theta = rotary.theta ** (head_dim_new / old.head_dim)
    return replace(rotary, theta=theta, dims=head_dim_new)


def refuse_inexact(growth: Growth) -> None:
    """Raise GrowthError for sizes and policies that cannot hold together."""
    old, new, norm = growth.old, growth.new, growth.policies.norm
    _ = growth.copies  # raises where a query head would lose its keys
    refuse_placement(growth)
    if norm == "averaged" and old.norm == "rms":
        raise GrowthError(
            "new lanes that hold the mean of the old ones vanish behind a LayerNorm; "
            "RMSNorm keeps them. Choose norm='scaled', which is exact"
        )
    if norm == "centred" and old.norm == "rms":
        raise GrowthError(
            "centring needs a LayerNorm behind every reader; RMSNorm keeps the mean, so "
            "it would change the function. Choose norm='scaled', which is exact"
        )
    if norm in ("centred", "averaged") and old.places != "pre":
        raise GrowthError(
            "a mean needs a LayerNorm before every reader, and this model has its "
            f"norms in places {old.places!r}: leave hidden_size alone"
        )
    if norm == "centred" and old.tied and new.hidden > old.hidden:
        raise GrowthError(
            "a tied LayerNorm model cannot be centred: its lm_head is the embedding, and "
            "removing the embedding's mean would change the logits. Choose "
            "norm='averaged' or norm='masked', which are exact, or untie it"
        )
    if norm != "masked" and old.norm_size != old.hidden:
        raise GrowthError(
            f"the model is already masked (norms divide by {old.norm_size}, not "
            f"{old.hidden}): it can only be grown with norm='masked'"
        )


def refuse_placement(growth: Growth) -> None:
    """Raise GrowthError where neurons or layers cannot lie where a policy puts them."""
    old, new, policies = growth.old, growth.new, growth.policies
    for name in ("mlp", "expert_mlp"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after and (before % policies.spread or after % policies.spread):
            raise GrowthError(
                f"{name} {before} → {after} cannot be spread over {policies.spread} "
                "equal blocks: both must be multiples of it. Do not spread them, or "
                "choose other sizes"
            )
    layers = layers_of(old.layers, policies.depth)
    if policies.depth.startswith("every:") and new.layers != layers:
        raise GrowthError(
            f"depth {policies.depth} makes {old.layers} layers {layers}, but "
            f"{new.layers} are asked for: leave the number of layers out"
        )
