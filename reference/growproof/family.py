"""A family is a table: what a config says of the decoder, and where the tensors lie.

`Family.decoder` reads a config, `Family.config` writes the grown one, `Family.read` and
`Family.write` take stored tensors to canonical ones and back. A config field that no
line of the table reads and that is not at its default is refused by name: a switch that
the table does not know could change the function.
"""

import copy
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from growproof.asked import UNDECLARED, Asked, defaults, is_table, rope_types, switches
from growproof.decoder import Decoder, GrowthError, Kind, Rotary
from growproof.growth import Growth, layers_before
from growproof.stored import Stored, gathered, scattered
from growproof.table import Row, names, rows, size

# decoder field → config field
SIZES: dict[str, str] = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
    "layers": "num_hidden_layers",
}
NUMBER = re.compile(r"(?<=\.)(?:\d+|\{\w+\})(?=\.)")  # of a layer, head or expert
ROPE = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_positions",
}


Says = Callable[[Any], Any]
Value = Says | frozenset[str] | str | float | None


@dataclass(frozen=True)
class Home:
    """Where a canonical tensor lies: part `part` of what `stored` makes of the pieces.

    pieces: names of stored tensors, one, or one for each head or expert. sizes: of all
    the parts.
    """

    stored: Stored
    part: int
    pieces: list[str]
    sizes: list[list[int]]

    def load(self, get: Callable[[str], Tensor], d: Decoder) -> Tensor:
        """The canonical tensor, from what `get` returns for a stored name."""
        whole = gathered([get(name) for name in self.pieces], self.sizes[0])
        return self.stored.split(whole, self.sizes, d)[self.part]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of decoders.

    model_type: transformers' name. tensors: stored template → canonical ones; {layer},
    {head}, {group} and {expert} in a template count. disk: those that have other names
    in a checkpoint than in memory. sizes: decoder field → config field. eps: its field.
    tied_head_dim: head_dim is hidden_size / heads and has no field. partial: the
    config has a partial_rotary_factor. whole_heads: transformers wants hidden_size to be
    a multiple of the heads. says: decoder field → its value, or a function of the config.
    kinds: (config, rotaries by layer type, layer) → Kind, where layers differ. writes:
    config field → a function of the grown decoder. draws: what the laws draw of a config
    beyond its sizes, a function of their `Options`; without it they draw the defaults
    (growproof's own families have theirs in `properties.laws.options`).
    """

    model_type: str
    tensors: dict[str, Stored]
    disk: dict[str, Stored] = field(default_factory=dict[str, Stored])
    sizes: dict[str, str] = field(default_factory=lambda: dict(SIZES))
    eps: str = "rms_norm_eps"
    tied_head_dim: bool = False
    partial: bool = False
    whole_heads: bool = False
    says: dict[str, Value] = field(default_factory=dict[str, Value])
    kinds: Callable[[Any, Mapping[str, Rotary], int], Kind] | None = None
    writes: dict[str, Says] = field(default_factory=dict[str, Says])
    draws: Callable[[Any], dict[str, Any]] | None = None

    # --- what a config says -----------------------------------------------------------

    def decoder(self, config: Any) -> Decoder:
        """The normal form of a config. Raises GrowthError for a switch not known here."""
        asked = Asked(config)
        sizes: dict[str, Any] = {f: asked.get(n, 0) for f, n in self.sizes.items()}
        sizes["groups"] = sizes.get("groups") or sizes["heads"]
        implied = sizes["hidden"] // max(sizes["heads"], 1)
        if self.tied_head_dim or not sizes.get("head_dim"):
            sizes["head_dim"] = implied
        says: dict[str, Any] = {
            f: v(asked) if callable(v) else v for f, v in self.says.items()
        }
        says.setdefault(
            "activation",
            asked.get("hidden_act") or asked.get("hidden_activation", "silu"),
        )
        rope = asked.get("rope_parameters", {})
        d = Decoder(
            **(sizes | says),
            eps=asked.get(self.eps),
            norm_size=getattr(config, "norm_size", None) or sizes["hidden"],
            split=bool(rope) and not self.partial,
            tied=bool(asked.tie_word_embeddings),
            kinds=self.kinds_of(asked, rope, sizes),
        )
        self.check_sizes(d)
        self.refuse_unknown(asked)
        return d

    def kinds_of(
        self, config: Asked, rope: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> tuple[Kind, ...]:
        """A kind for each layer."""
        by_type = {k: v for k, v in rope.items() if is_table(v)}
        rotaries = {
            name: self.rotary(parameters, sizes["head_dim"])
            for name, parameters in (by_type or {"": rope}).items()
            if parameters
        }
        of = self.kinds or alike
        return tuple(of(config, rotaries, i) for i in range(sizes["layers"]))

    def rotary(self, rope: Mapping[str, Any], head_dim: int) -> Rotary:
        """The Rotary of rope parameters. Only a partial family reads their factor."""
        kind = rope.get("rope_type", "default")
        if kind not in rope_types():
            raise GrowthError(
                f"rope_type is {kind!r}, expected one of {', '.join(rope_types())}: "
                "transformers computes no other"
            )
        factor = rope.get("partial_rotary_factor", 1.0) if self.partial else 1.0
        more = {ROPE[name]: rope[name] for name in ROPE if rope.get(name)}
        return Rotary(
            theta=float(rope["rope_theta"]),
            dims=int(head_dim * factor),
            kind=kind,
            **more,
        )

    def check_sizes(self, d: Decoder) -> None:
        """Raise GrowthError for sizes that transformers would not take."""
        if self.tied_head_dim and d.heads * d.head_dim != d.hidden:
            raise GrowthError(
                f"a {self.model_type} has hidden_size = num_attention_heads · head_dim, "
                f"got {d.hidden} ≠ {d.heads} · {d.head_dim}: choose a hidden_size that "
                "is a multiple of the heads"
            )
        if self.whole_heads and d.hidden % d.heads:
            raise GrowthError(
                f"transformers wants a {self.model_type}'s hidden_size ({d.hidden}) to be "
                f"a multiple of num_attention_heads ({d.heads}), whatever head_dim is: "
                "choose other sizes"
            )

    def refuse_undeclared(self, asked: Asked) -> None:
        """Raise GrowthError for a field that transformers reads though no class says so."""
        config, known = asked.config, {*asked.seen}
        if self.tied_head_dim:  # whatever the field says
            known.discard("head_dim")
        for name in UNDECLARED.keys() - defaults(config.__class__).keys() - known:
            got = getattr(config, name, None)
            if got is not None and not UNDECLARED[name](got, config):
                raise GrowthError(
                    f"a {self.model_type} has no {name}, and transformers reads that of "
                    f"{reprlib.repr(got)} all the same: take it out of the config"
                )

    def refuse_unknown(self, asked: Asked) -> None:
        """Raise GrowthError for a config field that no line of the table has read."""
        config = asked.config
        if getattr(config, "quantization_config", None):
            raise GrowthError(
                "the weights are quantised (quantization_config), and a code times a "
                "scale is not a code: grow the model before it is quantised"
            )
        self.refuse_undeclared(asked)
        known = asked.seen | {*self.sizes.values(), *self.writes}
        if self.partial:  # a copy of the rope parameters' own: see `rotary`
            known |= {"partial_rotary_factor"}
        for name, usual in switches(config.__class__).items():
            got = getattr(config, name, usual)
            if name not in known and got != usual:
                raise GrowthError(
                    f"a {self.model_type} with {name} = {reprlib.repr(got)} (usually "
                    f"{reprlib.repr(usual)}) is not in growproof's table of that family, "
                    "and it may change the function: set it back, or extend the table"
                )

    # --- what a grown config says -----------------------------------------------------

    def config_fields(self, config: Any, growth: Growth) -> dict[str, Any]:
        """The fields of the grown model's config: the old ones, but for what grows."""
        new = growth.new
        found = copy.deepcopy(config.to_dict())
        for f, name in self.sizes.items():
            if not (f == "head_dim" and self.implies_head_dim(config, new)):
                found[name] = getattr(new, f)
        if self.tied_head_dim:
            found.pop("head_dim", None)
        found[self.eps] = new.eps
        if found.get("rope_parameters"):
            found["rope_parameters"] = self.rope(config.rope_parameters, growth)
        if self.partial and "partial_rotary_factor" in found:
            found["partial_rotary_factor"] = new.partial_rotary_factor
        if found.get("layer_types"):
            found["layer_types"] = grown_list(found["layer_types"], growth)
        return found | {name: says(new) for name, says in self.writes.items()}

    def implies_head_dim(self, config: Any, new: Decoder) -> bool:
        """True where the config names no head_dim, and need not."""
        named = getattr(config, "head_dim", None)
        return self.tied_head_dim or (
            named is None and new.heads * new.head_dim == new.hidden
        )

    def rope(self, rope: Mapping[str, Any], growth: Growth) -> dict[str, Any]:
        """The grown rope parameters, by layer type where they are."""
        found: dict[str, Any] = {
            name: self.rope(value, growth) if is_table(value) else value
            for name, value in rope.items()
        }
        parted = growth.old.split and growth.taller > 1 and growth.between == 1
        if parted and "rope_theta" in found:
            found["rope_theta"] = float(found["rope_theta"]) ** growth.taller
        for name in ("short_factor", "long_factor"):  # longrope: one for each pair
            if name in found:
                found[name] = [f for f in found[name] for _ in range(growth.between)]
        if self.partial:
            found["partial_rotary_factor"] = growth.new.partial_rotary_factor
        return found

    # --- where the tensors lie --------------------------------------------------------

    def read(self, state: Mapping[str, Tensor], d: Decoder) -> dict[str, Tensor]:
        """Canonical parameters of stored ones, views of them where that is possible.

        Raises GrowthError for a tensor that the table does not have.
        """
        index = self.index(state, d)
        return {name: home.load(state.__getitem__, d) for name, home in index.items()}

    def index(self, stored: Iterable[str], d: Decoder) -> dict[str, "Home"]:
        """Canonical name → where it lies among tensors of these names."""
        found: dict[str, Home] = {}
        templates = self.tensors | self.disk
        table = rows(replace(d, tied=False))  # a tied model may hold its head, too
        for (template, layer), pieces in self.located(stored).items():
            kept = templates[template]
            sizes = [self.size_of(part, d, table) for part in kept.parts]
            for i, part in enumerate(kept.parts):
                found[part.format(layer=layer)] = Home(kept, i, pieces, sizes)
        return found

    def located(self, stored: Iterable[str]) -> dict[tuple[str, int | None], list[str]]:
        """(stored template, layer) → its tensors' names, in order of head or expert.

        Names may lack their first word, as those of GPT-2 on the hub do.
        """
        found: defaultdict[tuple[str, int | None], list[tuple[int, str]]]
        found = defaultdict(list)
        templates = {NUMBER.sub("#", t): t for t in self.tensors | self.disk}
        inside = Counter(t.split(".")[0] for t in templates).most_common(1)[0][0]
        for name in stored:
            short = NUMBER.sub(
                "#", name
            )  # of the model without its head, transformers'
            template = templates.get(short) or templates.get(f"{inside}.{short}")
            if template is None:
                raise GrowthError(
                    f"{name} is no parameter of a {self.model_type} that the table knows"
                )
            numbers = [int(n) for n in re.findall(NUMBER, name)]
            layer = numbers.pop(0) if "{layer}" in template else None
            number = numbers[0] if numbers else 0
            if twice := [n for i, n in found[template, layer] if i == number]:
                raise GrowthError(
                    f"{twice[0]} and {name} are one parameter, stored twice"
                )
            found[template, layer].append((number, name))
        return {key: [n for _, n in sorted(pieces)] for key, pieces in found.items()}

    def size_of(self, part: str, d: Decoder, table: Mapping[str, Row]) -> list[int]:
        """The size of a canonical tensor of a table."""
        row = table.get(part)
        if row is None:
            raise GrowthError(
                f"the checkpoint holds {part}, which this {self.model_type} has not: "
                "config and weights disagree"
            )
        return [size(d, axis) for axis in row.axes]

    def write(
        self, state: Mapping[str, Tensor], d: Decoder, *, disk: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """(stored name, tensor) of every stored tensor of canonical ones."""
        for template, stored, layer in self.in_order(d, disk=disk):
            parts = [part.format(layer=layer) for part in stored.parts]
            whole = stored.join([state[part] for part in parts], d)
            yield from self.pieces(template, layer, whole, d)

    def in_order(
        self, d: Decoder, *, disk: bool
    ) -> Iterator[tuple[str, Stored, int | None]]:
        """(template, what it stores, layer) of a model, layer by layer."""
        table, last = rows(d), d.layers
        found: list[tuple[int, str, Stored, int | None]] = []
        for template, stored in self.templates(disk=disk).items():
            part = stored.parts[0]
            if part in table:
                first = -1 if table[part].reads in ("vocab", "position") else last
                for layer, _ in names(d, part, table[part]):
                    found.append(
                        (first if layer is None else layer, template, stored, layer)
                    )
        for _, template, stored, layer in sorted(found, key=lambda row: row[0]):
            yield template, stored, layer

    def templates(self, *, disk: bool) -> dict[str, Stored]:
        """The stored templates in memory, or on disk."""
        if not disk:
            return self.tensors
        elsewhere = {part for stored in self.disk.values() for part in stored.parts}
        kept = {n: s for n, s in self.tensors.items() if not elsewhere & {*s.parts}}
        return kept | self.disk

    def pieces(
        self, template: str, layer: int | None, whole: Tensor, d: Decoder
    ) -> Iterator[tuple[str, Tensor]]:
        """One tensor, or one for each head or expert."""
        counts = {"head": d.heads, "group": d.groups, "expert": d.experts}
        axis = next((a for a in counts if f"{{{a}}}" in template), None)
        if axis is None:
            yield template.format(layer=layer), whole.contiguous()
            return
        for i, piece in enumerate(scattered(whole, counts[axis])):
            yield template.format(layer=layer, **{axis: i}), piece.contiguous()


def alike(config: Any, rotaries: Mapping[str, Rotary], i: int) -> Kind:
    """Every layer attends to all that came before."""
    del config, i
    return Kind(rotary=rotaries.get(""))


def grown_list(values: Sequence[Any], growth: Growth) -> list[Any]:
    """One for each grown layer; a new layer takes that of the old layer before it."""
    return [values[i] for i in layers_before(growth)]
