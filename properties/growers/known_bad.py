"""Known-bad growers: one planted fault each, and the law that must reject it.

Each is growproof's own grower with a line of the table, of the weights, of the config
or of the finished model changed. A suite is worth what it catches: `growproof power`
runs every law on every fault, and test_power.py sees each one rejected by the law it
names, with the reason it names, rather than by a crash.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from growproof.decoder import whole_factor
from growproof.families import family_of
from growproof.growth import Growth, Policies, layers_before
from growproof.models import (
    build,
    config_of,
    model_of,
    plan_model,
    state_of,
    suppress,
)
from growproof.padding import grow_state
from growproof.table import Table, heads_map, layer_of, parameters, template_of
from torch import Tensor

from ..laws import (
    test_attention,
    test_decoder,
    test_doors,
    test_handed_back,
    test_hygiene,
    test_mlp,
    test_norms,
    test_training,
    test_vocabulary,
    test_world,
)
from ..laws.registry import Test
from . import disturbing as d
from . import fitting
from .disturbing import on

State = dict[str, Tensor]
Target = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A grower with one fault: grow(model, target) like any other.

    law, reason: the test that must reject it, and what its message must say (a regular
    expression). function: whether the grown function differs, in real arithmetic, at
    weights in general position, of a source in evaluation mode; if not, a certificate
    may say yes. needs: what a family must have for the fault to be one there.
    with_features: what is drawn for it beyond the core. options: policies,
    or what chooses them for a config and a target. table, state, config, model: the
    change, each given the growth. does: what it does besides, given the source and the
    target.
    """

    name: str
    says: str
    law: Test
    reason: str
    function: bool = True
    needs: tuple[str, ...] = ()
    with_features: tuple[str, ...] = ()
    options: dict[str, Any] | Callable[[Any, Target], dict[str, Any]] = field(
        default_factory=dict
    )
    table: Callable[[Table, Growth], Table] | None = None
    state: Callable[[State, State, Growth], object] | None = None
    config: Callable[[Any, Growth], object] | None = None
    model: Callable[[Any, Any, Growth], Any] | None = None
    does: Callable[[Any, Any], object] | None = None

    def chosen(self, config: Any, target: Target) -> dict[str, Any]:
        """The options of growproof's own growth for this config and target."""
        options = self.options
        return options(config, target) if callable(options) else options

    def edited(self, model: Any, target: Target) -> tuple[Growth, State, Any]:
        """The growth, and the grown weights and config, with the fault in them."""
        policies = Policies(**self.chosen(model.config, target))
        growth = plan_model(model.config, target, policies)
        table = parameters(growth.old, growth)
        if self.table:
            table = self.table(table, growth)
        old = state_of(model)
        new = grow_state(old, growth, table)
        if self.state:
            self.state(new, old, growth)
        config = config_of(model.config, growth)
        if self.config:
            self.config(config, growth)
        return growth, new, config

    def __call__(self, model: Any, target: Target) -> Any:
        """The grown model, with the fault in it."""
        growth, new, config = self.edited(model, target)
        layers = layers_before(growth)
        grown = suppress(model_of(config, new, model, layers), growth)
        grown = self.model(grown, model, growth) if self.model else grown
        if self.does:
            self.does(model, target)
        return grown


def both(first: Fault, second: Fault) -> Fault:
    """The first, and then the second: table, weights, config, model, and what it does."""

    def after(one: Callable[..., Any] | None, two: Callable[..., Any] | None) -> Any:
        """Two edits in place, one after the other."""
        if not (one and two):
            return one or two
        return lambda *given: (one(*given), two(*given))

    def table(rows: Any, growth: Any) -> Any:
        for fault in (first, second):
            rows = fault.table(rows, growth) if fault.table else rows
        return rows

    def model(grown: Any, source: Any, growth: Any) -> Any:
        for fault in (first, second):
            grown = fault.model(grown, source, growth) if fault.model else grown
        return grown

    return dataclasses.replace(
        first, name=f"{first.name}+{second.name}", table=table, model=model,
        options=lambda *x: first.chosen(*x) | second.chosen(*x),
        **{n: after(getattr(first, n), getattr(second, n))
           for n in ("state", "config", "does")},
    )  # fmt: skip


# --- changes of the table -------------------------------------------------------------


def rows(pattern: str, **changes: Any) -> Callable[[Table, Growth], Table]:
    """The table with other scales, centres or axes in the rows that match."""

    def edit(table: Table, growth: Growth) -> Table:
        return {
            name: dataclasses.replace(
                row,
                **{k: v(row, growth) if callable(v) else v for k, v in changes.items()},
            )
            if on(pattern, name)
            else row
            for name, row in table.items()
        }

    return edit


def times(factor: Callable[[Growth], float] | float) -> Callable[..., float]:
    """A row's scale, times something."""
    return lambda row, growth: (
        row.scale * (factor(growth) if callable(factor) else factor)
    )


def wider(growth: Growth) -> float:
    """D'/D."""
    return growth.new.hidden / growth.old.hidden


def taller(growth: Growth) -> float:
    """K'/K."""
    return growth.new.head_dim / growth.old.head_dim


NORM = r"(attn|mlp|attn_out|mlp_out|final)_norm\.weight"


# --- changes of the weights -----------------------------------------------------------


def prefix(pattern: str) -> Callable[..., None]:
    """Old entries copied to the front of every dimension, heads or no heads."""

    def edit(new: State, old: State, growth: Growth) -> None:
        table = parameters(growth.old, growth)
        for name, w in new.items():
            if on(pattern, name) and name in old:
                scale = table[template_of(name)].scale
                w.zero_()
                w[tuple(slice(n) for n in old[name].shape)] = old[name] * scale

    return edit


def change(
    pattern: str, how: Callable[[Tensor, Growth], Tensor]
) -> Callable[..., None]:
    """Matching tensors replaced by a function of themselves."""

    def edit(new: State, old: State, growth: Growth) -> None:
        del old
        for name in list(new):
            if on(pattern, name):
                new[name] = how(new[name], growth).to(new[name].dtype)

    return edit


def last_layer(pattern: str, factor: float) -> Callable[..., None]:
    """Matching tensors of the third layer on, times a factor."""

    def edit(new: State, old: State, growth: Growth) -> None:
        del old, growth
        for name, w in new.items():
            i = layer_of(name)
            if i is not None and i >= 2 and on(pattern, name):
                w.mul_(factor)

    return edit


def noise_in_new(pattern: str, dim: int, size: float) -> Callable[..., None]:
    """Constant noise in the new entries of one dimension of a weight, of each expert's."""

    def edit(new: State, old: State, growth: Growth) -> None:
        for name, w in new.items():
            if on(pattern, name) and name in old:
                at = dim + max(0, w.ndim - 2)
                n = old[name].shape[at]
                w.narrow(at, n, w.shape[at] - n).fill_(size)

    return edit


def joined_at_the_end(new: State, old: State, growth: Growth) -> None:
    """gate and up padded as one matrix, at its end, where each needs room of its own."""
    for name, gate in new.items():
        if not on(r"(expert_)?gate\.weight", name) or name not in old:
            continue
        up, n = new[name.replace("gate.", "up.")], old[name].shape[-2]
        both = torch.zeros_like(torch.cat((gate, up), -2))
        rows = torch.cat((gate.narrow(-2, 0, n), up.narrow(-2, 0, n)), -2)
        both.narrow(-2, 0, 2 * n).copy_(rows)
        gate.copy_(both.narrow(-2, 0, gate.shape[-2]))
        up.copy_(both.narrow(-2, gate.shape[-2], gate.shape[-2]))


def queries_by_head(new: State, old: State, growth: Growth) -> None:
    """Query heads kept in order while groups and repeats both grow around them."""
    o, n = growth.old, growth.new
    right = heads_map(
        o.groups, o.repeats, o.head_dim,
        repeats_new=n.repeats, head_dim_new=n.head_dim, split=o.split,
    )  # fmt: skip
    wrong = heads_map(
        1, o.heads, o.head_dim,
        repeats_new=n.heads, head_dim_new=n.head_dim, split=o.split,
    )  # fmt: skip
    for name, w in new.items():
        if on(r"q|o\.weight", name) and name in old:
            dim = 1 if on("o", name) else 0
            kept = w.index_select(dim, torch.tensor(right))
            w.zero_().index_copy_(dim, torch.tensor(wrong), kept)


def rolled_groups(new: State, old: State, growth: Growth) -> None:
    """Old key/value heads behind the new ones, query heads as they were."""
    for name, w in new.items():
        if on("[kv]", name) and name in old:
            k = growth.new.head_dim
            w.copy_(w.roll((growth.new.groups - growth.old.groups) * k, 0))


def halves_together(pattern: str) -> Callable[..., None]:
    """Llama's rotary halves left side by side as head_dim grows."""

    def edit(new: State, old: State, growth: Growth) -> None:
        if not growth.old.split:
            return
        k, k_new = growth.old.head_dim, growth.new.head_dim
        for name, w in new.items():
            if on(pattern, name) and name in old:
                heads = w.view(-1, k_new, *w.shape[1:])
                halves = heads.view(heads.shape[0], 2, k_new // 2, *w.shape[1:])
                kept = halves[:, :, : k // 2].flatten(1, 2).clone()
                heads.zero_()[:, :k] = kept

    return edit


def swapped(a: str, b: str) -> Callable[..., None]:
    """Two tensors of each layer exchanged."""

    def edit(new: State, old: State, growth: Growth) -> None:
        del old, growth
        for name in list(new):
            if name.endswith(a):
                other = name.removesuffix(a) + b
                new[name], new[other] = new[other], new[name]

    return edit


def odd_lane_lost(new: State, old: State, growth: Growth) -> None:
    """An odd head_dim rounded down: the last value lane of each head is dropped."""
    if growth.old.head_dim % 2 and growth.new.head_dim > growth.old.head_dim:
        for name, w in new.items():
            if on(r"v\.weight", name) and name in old:
                heads = w.view(-1, growth.new.head_dim, w.shape[1])
                heads[:, growth.old.head_dim - 1] = 0


def copied_layers(new: State, old: State, growth: Growth) -> None:
    """New layers are copies of the last old one: depth up-scaling, nothing silenced."""
    last = growth.old.layers - 1
    for name in list(new):
        i = layer_of(name)
        if i is not None and i > last:
            new[name] = new[template_of(name).format(layer=last)].clone()


def silent_values(new: State, old: State, growth: Growth) -> None:
    """v as `fill="zeros"` leaves it, though o, which reads it, is zero there as well."""
    policies = dataclasses.replace(growth.policies, fill="zeros")
    zeros = grow_state(old, dataclasses.replace(growth, policies=policies))
    new.update({name: w for name, w in zeros.items() if on("v", name)})


def half_silent_layers(new: State, old: State, growth: Growth) -> None:
    """New layers copied with o_proj zeroed, down_proj forgotten (LLaMA-Pro, halved)."""
    copied_layers(new, old, growth)
    for name, w in new.items():
        i = layer_of(name)
        if i is not None and i >= growth.old.layers and on("o", name):
            w.zero_()


def reversed_layers(new: State, old: State, growth: Growth) -> None:
    """Old layers in the opposite order."""
    before = dict(new)
    for name in list(new):
        i = layer_of(name)
        if i is not None and i < growth.old.layers:
            other = growth.old.layers - 1 - i
            new[name] = before[template_of(name).format(layer=other)]


def centred_by_new_width(new: State, old: State, growth: Growth) -> None:
    """The mean taken over D' lanes instead of D."""
    for name, w in new.items():
        if on("embed", name) and growth.policies.norm == "centred":
            e, n = old[name], growth.old.hidden
            w[:, :n] = e - e.sum(1, keepdim=True) / growth.new.hidden


def uncentred(pattern: str) -> Callable[[Table, Growth], Table]:
    """A writer that keeps its mean."""
    return rows(pattern, centre=None)


# --- changes of the config ------------------------------------------------------------


def rope(**changes: Any) -> Callable[[Any, Growth], None]:
    """Other rope parameters, for every type of layer."""

    def edit(config: Any, growth: Growth) -> None:
        new = {k: v(config, growth) if callable(v) else v for k, v in changes.items()}
        old = getattr(config, "rope_parameters", None)
        if not old:
            return
        nested = any(isinstance(v, dict) for v in old.values())
        config.rope_parameters = (
            {k: {**v, **new} for k, v in old.items()} if nested else {**old, **new}
        )

    return edit


def old_factor(config: Any, growth: Growth) -> float:
    """The rotary factor that nobody changed: the article's line, in transformers 5.

    Where it would turn an odd number of lanes, which nothing runs, one lane more.
    """
    k, k_new = growth.old.head_dim, growth.new.head_dim
    lanes = growth.old.rotary.dims * k_new // k
    return whole_factor(min(lanes + lanes % 2, k_new - k_new % 2), k_new)


def truncating_factor(config: Any, growth: Growth) -> float:
    """dims / K'', whose product with K' truncates to two lanes less."""
    del config
    return math.nextafter((growth.new.rotary.dims - 1.5) / growth.new.head_dim, 1)


def eps(factor: Callable[[Growth], float] | float) -> Callable[[Any, Growth], None]:
    """eps, times something."""

    def edit(config: Any, growth: Growth) -> None:
        name = family_of(config).eps
        by = factor(growth) if callable(factor) else factor
        setattr(config, name, getattr(config, name) * by)

    return edit


def fixed_eps(config: Any, growth: Growth) -> None:
    """eps hard-coded, as SliceGPT and QuaRot have it."""
    name = family_of(config).eps
    setattr(config, name, 1e-5 if growth.new.eps != 1e-5 else 1e-6)


def setting(**changes: Any) -> Callable[[Any, Growth], None]:
    """Other config entries."""

    def edit(config: Any, growth: Growth) -> None:
        for name, value in changes.items():
            if hasattr(config, name):
                setattr(
                    config, name, value(config, growth) if callable(value) else value
                )

    return edit


# --- changes of the finished model ----------------------------------------------------


def training(grown: Any, model: Any, growth: Growth) -> Any:
    """Training mode, dropout on."""
    return grown.train()


def unfrozen(grown: Any, model: Any, growth: Growth) -> Any:
    """requires_grad everywhere."""
    return grown.requires_grad_(True)


def shared_memory(grown: Any, model: Any, growth: Growth) -> Any:
    """Tensors that did not grow are the source's own."""
    old = dict(model.named_parameters())
    for name, p in grown.named_parameters():
        if name in old and old[name].shape == p.shape and torch.equal(old[name], p):
            p.data = old[name].data
    return grown


def shared_rope(grown: Any, model: Any, growth: Growth) -> Any:
    """The config's rope_parameters is the source's dict where its values agree."""
    ropes = [getattr(m.config, "rope_parameters", None) for m in (grown, model)]
    if ropes[0] and ropes[0] == ropes[1]:
        grown.config.rope_parameters = ropes[1]
    return grown


def shared_generation(grown: Any, model: Any, growth: Growth) -> Any:
    """One generation config for both models."""
    grown.generation_config = model.generation_config
    return grown


def scaled_source(grown: Any, model: Any, growth: Growth) -> Any:
    """The norm weights of the source scaled in place, as the article's loop would."""
    name = "final_norm.weight"
    state_of(model)[name].mul_(math.sqrt(1 / wider(growth)))
    return grown


def touched_config(grown: Any, model: Any, growth: Growth) -> Any:
    """The source's config changed on the way."""
    model.config.hidden_size = growth.new.hidden
    return grown


def untied(grown: Any, model: Any, growth: Growth) -> Any:
    """A tied model with a head of its own, and a config that still says tied."""
    if growth.new.tied:
        grown.get_output_embeddings().weight = torch.nn.Parameter(
            grown.get_output_embeddings().weight.detach() * math.sqrt(2)
        )
        grown._tied_weights_keys = None
    return grown


def untied_config(grown: Any, model: Any, growth: Growth) -> Any:
    """A tied model turned into an untied one of the same function."""
    if not growth.new.tied:
        return grown
    config = copy.deepcopy(grown.config)
    config.tie_word_embeddings = False
    state = state_of(grown)
    head = state["embed.weight"].clone()
    return model_of_untied(config, {**state, "head.weight": head}, grown)


def model_of_untied(config: Any, state: State, like: Any) -> Any:
    """`build` with the mode of `like`, whose head has no name of its own."""
    return build(config, state).train(like.training)


def stale_index(grown: Any, model: Any, growth: Growth) -> Any:
    """Copied layers keep their layer_idx, so that the cache mixes them up."""
    for module in grown.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = min(module.layer_idx, growth.old.layers - 1)
    return grown


def float32_for_bf16(grown: Any, model: Any, growth: Growth) -> Any:
    """Low precision in, float32 out."""
    return grown.float() if grown.dtype in (torch.bfloat16, torch.float16) else grown


def through_float16(grown: Any, model: Any, growth: Growth) -> Any:
    """A bf16 model that went through float16 at a scale where it underflows."""
    if grown.dtype == torch.bfloat16:
        for p in grown.parameters():
            p.data = (p.data.half() * 2**-18).bfloat16() * 2**18
    return grown


def module_eps(grown: Any, model: Any, growth: Growth) -> Any:
    """eps right in the modules and stale in the config: wrong once it is reloaded."""
    fix = eps(wider)
    fix(grown.config, growth)
    return grown


def hooked_head(grown: Any, model: Any, growth: Growth) -> Any:
    """A scale that lives in a hook instead of a weight: gone after save and reload."""
    factor = math.sqrt(2)
    grown.get_output_embeddings().weight.data.mul_(1 / factor)
    grown.get_output_embeddings().register_forward_hook(lambda m, i, out: out * factor)
    return grown


def deaf_to(name: str) -> Callable[..., Any]:
    """A wrapper that does not pass one input on."""

    def edit(grown: Any, model: Any, growth: Growth) -> Any:
        del model, growth
        forward = grown.forward

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            kwargs.pop(name, None)
            return forward(*args, **kwargs)

        grown.forward = wrapped
        return grown

    return edit


def ntk_beyond(config: Any, growth: Growth) -> None:
    """Dynamic NTK rotary past 16 tokens, where the old model had none."""
    if growth.new.rotary.dims <= 2:  # one frequency: there is nothing to stretch
        return
    rope(rope_type="dynamic", factor=4.0, original_max_position_embeddings=16)(
        config, growth
    )
    config.max_position_embeddings = 16


def rebuilt(grown: Any, model: Any, growth: Growth) -> Any:
    """The model of an edited config: its modules read the config when they are made."""
    return model_of(grown.config, state_of(grown), grown)


def attention(name: str) -> str:
    """The message of a violation at a tap within a layer."""
    return rf"layers\.\d+\.({name})\b"


PROJECTIONS = test_attention.test_projections_are_padded
ROTARY = test_attention.test_rotary_keeps_pairs_and_frequencies
PARTED = {"rotary": "parted"}  # lanes between the old ones need no other θ
SCORES = test_attention.test_scores_keep_their_scale
ATTENTION = test_attention.test_attention_maps_padded_to_padded
GATE = test_mlp.test_gate_and_up_are_padded
MLP = test_mlp.test_mlp_maps_padded_to_padded
NORMS = test_norms.test_norms_are_unchanged
EPS = test_norms.test_eps_grows_along
LANES = test_decoder.test_new_lanes_are_zero_at_every_tap
NEW_LAYERS = test_decoder.test_new_layers_add_nothing
EMBEDDING = test_decoder.test_embedding_is_padded
HEAD = test_decoder.test_head_ignores_new_lanes
LOGITS = test_decoder.test_logits_are_unchanged

ROUNDING = test_hygiene.test_growing_commutes_with_rounding
WORLD = test_world.test_the_world_is_left_as_it_was
TWICE = test_world.test_two_calls_agree
SAVED = test_doors.test_saves_and_loads
DOORS = test_doors.test_every_door_leads_to_one_function
CONFIGS = test_handed_back.test_sizes_are_those_asked_for
MANNERS = test_handed_back.test_nothing_is_shared

OLD_TOKENS = test_vocabulary.test_old_tokens_keep_their_logits
OLD_ROWS = test_vocabulary.test_old_logits_stay_bit_for_bit
NEW_ROWS = test_vocabulary.test_new_rows_do_not_matter
NEW_LANES = test_vocabulary.test_new_tokens_keep_to_old_lanes
CHOSEN = test_vocabulary.test_new_tokens_are_never_chosen
DEALT, VOCAB = ("dealt",), ("vocab",)

QKV = "[qkv]"

FAULTS: tuple[Fault, ...] = (
    # the article's steps, each left out or done wrong
    Fault(name="naive_padding", says="q, k, v padded at the end, heads ignored",
          law=PROJECTIONS, reason=attention("query|key|value"),
          state=prefix(QKV)),
    Fault(name="naive_query", says="q alone padded at the end",
          law=PROJECTIONS, reason=attention("query"),
          state=prefix("q")),
    Fault(name="naive_key", says="k alone padded at the end",
          law=PROJECTIONS, reason=attention("key"),
          state=prefix("k")),
    Fault(name="naive_value", says="v alone padded at the end",
          law=PROJECTIONS, reason=attention("value"),
          state=prefix("v")),
    Fault(name="naive_output", says="o_proj padded at the end, not transposed into heads",
          law=ATTENTION, reason=attention("attention"),
          state=prefix(r"o\.weight")),
    Fault(name="naive_bias", needs=("biases of q, k or v",), says="q, k, v biases padded at the end, weights right",
          law=PROJECTIONS, reason=attention("query|key|value"),
           state=prefix(r"[qkv]\.bias")),
    Fault(name="norm_unscaled", says="no √(D/D') on any norm weight",
          law=NORMS, reason="norm",  table=rows(NORM, scale=1.0)),
    Fault(name="final_norm_unscaled", says="no √(D/D') on the final norm",
          law=NORMS, reason="^final_norm",
          table=rows(r"final_norm\.weight", scale=1.0)),
    Fault(name="post_norm_unscaled", needs=("a norm before the MLP",), says="no √(D/D') on the norm before the MLP",
          law=NORMS, reason="mlp_norm",
          table=rows(r"mlp_norm\.weight", scale=1.0)),
    Fault(name="norm_inverse", says="√(D'/D) on the norms",
          law=NORMS, reason="norm", table=rows(NORM, scale=lambda r, g: 1 / r.scale)),
    Fault(name="norm_linear", says="D/D' on the norms, without the root",
          law=NORMS, reason="norm", table=rows(NORM, scale=lambda r, g: r.scale**2)),
    Fault(name="norm_bias_scaled", needs=("biases of norms",), says="√(D/D') on the norm biases as well",
          law=NORMS, reason="norm",
          table=rows(r".*_norm\.bias", scale=lambda r, g: wider(g) ** -0.5)),
    Fault(name="q_scale_missing", needs=("a scale of q",), says="no √(K'/K) on q",
          law=SCORES, reason=attention("scores"),
          table=rows("q", scale=1.0)),
    Fault(name="q_scale_inverse", needs=("a scale of q",), says="√(K/K') on q",
          law=SCORES, reason=attention("scores"),
          table=rows("q", scale=lambda r, g: 1 / r.scale)),
    Fault(name="q_scale_twice", says="√(K'/K) on q and on k",
          law=SCORES, reason=attention("scores"),
          table=rows("k", scale=lambda r, g: taller(g) ** 0.5)),
    Fault(name="q_scale_by_width", says="√(D'/D) on q instead of √(K'/K)",
          law=SCORES, reason=attention("scores"),
          table=rows("q", scale=lambda r, g: wider(g) ** 0.5)),
    Fault(name="q_bias_unscaled", needs=("biases of q, k or v", "a scale of q"), says="√(K'/K) on q's weight, not on its bias",
          law=PROJECTIONS, reason=attention("query"),
           table=rows(r"q\.bias", scale=1.0)),
    Fault(name="rotary_factor_ignored", needs=("partial rotary",), says="partial_rotary_factor left as it was",
          law=ROTARY,
          reason=attention("query_rotated|key_rotated") + "|turns pairs of lanes",
          config=rope(partial_rotary_factor=old_factor),
          model=rebuilt),
    Fault(name="rotary_factor_truncated", needs=("partial rotary",), says="a factor that int() cuts to fewer lanes",
          law=ROTARY, reason=attention("query_rotated|key_rotated"),

          config=lambda c, g: (
              rope(partial_rotary_factor=truncating_factor)(c, g)
              if not g.new.split and g.new.rotary.dims >= 2 else None),
          model=rebuilt),
    Fault(name="article_recipe", needs=("LayerNorm",), says="the whole recipe: LayerNorm scaled, mean ignored",
          law=NORMS, reason="norm",
          options={"norm": "scaled"}),
    Fault(name="output_unpermuted_rows", says="o_proj grown like q, without the transpose",
          law=ATTENTION, reason=attention("attention"),
          state=change(r"o\.weight", lambda w, g: w.T.contiguous().reshape(w.shape))),
    # bugs of other growers
    Fault(name="logits_divided", says="logits divided by D'/D, greedy text unchanged",
          law=HEAD, reason="logits",
          table=rows("head", scale=lambda r, g: 1 / wider(g))),
    Fault(name="embedding_centred_rms", needs=("RMSNorm",), says="the embedding's mean removed under RMSNorm",
          law=LOGITS, reason="logits",
          state=lambda new, old, g: [
              w[:, : g.old.hidden].sub_(w[:, : g.old.hidden].mean(1, keepdim=True))
              for n, w in new.items() if on("embed", n) and g.old.norm == "rms"]),
    Fault(name="eps_fixed", says="eps hard-coded",
          law=EPS, reason="norm",  config=fixed_eps, model=rebuilt),
    Fault(name="eps_unscaled", says="eps not times D/D'",
          law=EPS, reason="norm",  config=eps(wider), model=rebuilt),
    Fault(name="tied_unties", says="a tied model comes out untied, the config says tied",
          law=test_handed_back.test_tying_is_kept, reason="tied",
          model=untied),
    Fault(name="tied_untied_config", says="a tied model comes out as an untied one",
          law=test_handed_back.test_tying_is_kept, reason="tied",
          function=False, model=untied_config),
    Fault(name="reload_root_two", says="logits right in memory, off by √2 when reloaded",
          law=test_doors.test_saves_and_loads, reason="save and load|changed on disk",
          model=hooked_head),
    Fault(name="training_mode", says="the grown model is in training mode",
          law=test_handed_back.test_dtype_device_and_mode, reason="mode",  function=False,
          model=training),
    Fault(name="layer_idx_stale", says="copied layers keep their layer_idx",
          law=test_hygiene.test_generates_with_a_cache, reason="cache",  function=False,
           model=stale_index),
    Fault(name="noise_does_not_cancel", says="symmetry-breaking noise of 1e-3 in down_proj",
          law=LANES, reason="residual|mlp",
          state=noise_in_new(r"(expert_)?down\.weight", 0, 1e-3)),
    Fault(name="gate_up_joined", needs=("gates",), says="gate and up padded as one matrix, at its end",
          law=GATE, reason=attention("gate|up"),
          state=joined_at_the_end),
    Fault(name="layers_copied", says="new layers are copies, not silent (SOLAR)",
          law=NEW_LAYERS, reason="layers add",
          state=copied_layers),
    Fault(name="layers_half_silent", says="new layers with o_proj zeroed, down_proj not",
          law=NEW_LAYERS, reason="layers add",
          state=half_silent_layers),
    # scales that are nearly right
    Fault(name="q_scale_1e6", says="q off by 1e-6",
          law=SCORES, reason=attention("scores"), table=rows("q", scale=times(1 + 1e-6))),
    Fault(name="norm_scale_1e6", says="norm weights off by 1e-6",
          law=NORMS, reason="norm", table=rows(NORM, scale=times(1 + 1e-6))),
    Fault(name="output_1e6", says="o_proj off by 1e-6",
          law=ATTENTION, reason=attention("attention"),
          table=rows(r"o\.weight", scale=times(1 + 1e-6))),
    Fault(name="down_1e6", says="down_proj off by 1e-6",
          law=MLP, reason=attention("mlp"),
          table=rows(r"(expert_)?down\.weight", scale=times(1 + 1e-6))),
    Fault(name="embedding_1e6", says="one embedding row off by 1e-6",
          law=EMBEDDING, reason="embedding",
          state=lambda new, old, g: new["embed.weight"][0].mul_(1 + 1e-6)),
    Fault(name="eps_1e6", says="eps off by 1e-6",
          law=EPS, reason="norm", config=eps(1 + 1e-6), model=rebuilt),
    Fault(name="scale_in_float32", needs=("a scale of q",), says="√(K'/K) computed in float32",
          law=SCORES, reason=attention("scores"),
          table=rows("q", scale=lambda r, g: float(torch.tensor(r.scale, dtype=torch.float32)))),
    Fault(name="norm_scale_in_float32", says="√(D/D') computed in float32",
          law=NORMS, reason="norm",
          table=rows(NORM, scale=lambda r, g: float(torch.tensor(r.scale, dtype=torch.float32)))),
    Fault(name="weights_through_float32", needs=("gates",), says="float64 weights that went through float32",
          law=GATE, reason=attention("gate|up"),
          state=change(r"(expert_)?gate\.weight", lambda w, g: w.float())),
    Fault(name="weights_through_bf16", says="the embedding went through bf16",
          law=EMBEDDING, reason="embedding",
          state=change("embed", lambda w, g: w.bfloat16())),
    # eps
    Fault(name="eps_inverse", says="eps times D'/D",
          law=EPS, reason="norm", config=eps(lambda g: wider(g) ** 2), model=rebuilt),
    Fault(name="eps_root", says="eps times √(D/D')",
          law=EPS, reason="norm", config=eps(lambda g: wider(g) ** 0.5), model=rebuilt),
    Fault(name="eps_stale_in_config", says="eps right in the modules, stale in the config",
          law=EPS, reason="norm", model=module_eps),
    # rotary
    Fault(name="theta_unchanged", needs=("full rotary",), says="rope_theta not raised to K'/K",
          options=PARTED, law=ROTARY, reason=attention("query_rotated|key_rotated"),
          config=lambda c, g: rope(rope_theta=g.old.rotary.theta)(c, g), model=rebuilt),
    Fault(name="theta_inverse", needs=("rotary embedding",), says="rope_theta raised to K/K'",
          options=PARTED, law=ROTARY, reason=attention("query_rotated|key_rotated"),
          config=lambda c, g: rope(
              rope_theta=g.old.rotary.theta ** (1 / taller(g)))(c, g), model=rebuilt),
    Fault(name="theta_linear", needs=("rotary embedding",), says="rope_theta times K'/K (NTK by analogy)",
          options=PARTED, law=ROTARY, reason=attention("query_rotated|key_rotated"),
          config=lambda c, g: rope(
              rope_theta=g.old.rotary.theta * taller(g))(c, g), model=rebuilt),
    Fault(name="theta_rounded", needs=("full rotary",), says="rope_theta rounded to float32",
          options=PARTED, law=ROTARY, reason=attention("query_rotated|key_rotated"),
          config=lambda c, g: rope(
              rope_theta=float(torch.tensor(g.new.rotary.theta, dtype=torch.float32)))(c, g),
          model=rebuilt),
    Fault(name="halves_together", needs=("full rotary",), says="rotary halves side by side in q and k",
          options=PARTED, law=ROTARY, reason=attention("query_rotated|key_rotated"),
          state=halves_together("[qk]")),
    Fault(name="halves_together_in_key", needs=("full rotary",), says="rotary halves parted in q, not in k",
          options=PARTED, law=PROJECTIONS, reason=attention("key"),
          state=halves_together("k")),
    Fault(name="dynamic_ntk", needs=("rotary embedding",), says="dynamic rotary that differs past 16 tokens only",
          law=test_decoder.test_transformers_agrees, reason="logits", config=ntk_beyond,
          model=rebuilt),
    # heads and groups
    Fault(name="queries_by_head", needs=("shared keys",), says="query heads in order, though groups got more heads",
          law=PROJECTIONS, reason=attention("query"),
          state=queries_by_head),
    Fault(name="groups_rolled", says="old key/value heads behind the new ones",
          law=PROJECTIONS, reason=attention("key|value"),
          state=rolled_groups),
    Fault(name="odd_head_dim", needs=("an odd head_dim",), says="an odd head_dim loses its last value lane",
          law=PROJECTIONS, reason=attention("value"),
          state=odd_lane_lost),
    Fault(name="output_new_heads", needs=("shared keys",), says="o_proj reads new heads, 1e-6",
          law=ATTENTION, reason=attention("attention"),
          state=lambda new, old, g: [
              w.add_((w == 0) * 1e-6) for n, w in new.items()
              if on(r"o\.weight", n) and n in old and g.new.repeats > g.old.repeats]),
    # depth
    Fault(name="third_layer_norm", needs=("a norm before a block",), says="√(D/D') missing from the third layer on",
          law=NORMS, reason=r"layers\.2", state=lambda new, old, g: last_layer(
              r"(attn|mlp)_norm\.weight", wider(g) ** 0.5)(new, old, g)),
    Fault(name="third_layer_query", says="q off by 1e-5 from the third layer on",
          law=SCORES, reason=r"layers\.2\.scores", state=last_layer("q", 1 + 1e-5)),
    Fault(name="layers_reversed", says="old layers in the opposite order",
          law=LOGITS, reason="logits", state=reversed_layers),
    # LayerNorm
    Fault(name="embedding_uncentred", needs=("LayerNorm",), says="every writer centred but the embedding",
          law=LOGITS, reason="logits",  table=uncentred("embed")),
    Fault(name="output_uncentred", needs=("LayerNorm",), says="every writer centred but o_proj",
          law=ATTENTION, reason=attention("attention"),
          table=uncentred("o")),
    Fault(name="down_uncentred", needs=("LayerNorm",), says="every writer centred but down_proj",
          law=MLP, reason=attention("mlp"),
          table=uncentred("(expert_)?down")),
    Fault(name="centred_by_new_width", needs=("LayerNorm",), says="the embedding's mean taken over D'",
          law=EMBEDDING, reason="embedding",
          state=centred_by_new_width),
    # new entries that are not silent
    Fault(name="embedding_new_lanes", says="1e-6 in the embedding's new lanes",
          law=EMBEDDING, reason="embedding", state=noise_in_new("embed", 1, 1e-6)),
    Fault(name="output_new_lanes", says="1e-6 in o_proj's new rows",
          law=LANES, reason="attention|residual",
          state=noise_in_new(r"o\.weight", 0, 1e-6)),
    Fault(name="down_new_mlp", says="1e-6 in down_proj's new columns, and loud new gates",
          law=GATE, reason=attention("gate|up|activated"),
          state=lambda new, old, g: [
              noise_in_new(r"(expert_)?(gate|up)\.weight", 0, 1.0)(new, old, g),
              noise_in_new(r"(expert_)?down\.weight", 1, 1e-6)(new, old, g)]),
    Fault(name="norm_bias_new_lanes", needs=("biases of norms",), says="norm biases of one in new lanes",
          law=NORMS, function=False,
        reason="norm",
          state=noise_in_new(r".*_norm\.bias", 0, 1.0)),
    Fault(name="norm_new_lanes_nan", says="NaN in entries that nothing reads",
          law=test_handed_back.test_everything_is_finite, reason="NaN", function=False,
          state=noise_in_new(r"head\.weight", 1, math.nan)),
    # what is at its default in a fresh model
    Fault(name="value_bias_lost", needs=("biases of q, k or v",), says="v's bias left at zero",
          law=PROJECTIONS, reason=attention("value"),
          state=change(r"v\.bias", lambda w, g: w * 0)),
    Fault(name="output_bias_lost", needs=("a bias of o",), says="o's bias left at zero",
          law=ATTENTION, reason=attention("attention"),
          state=change(r"o\.bias", lambda w, g: w * 0)),
    Fault(name="up_bias_lost", needs=("a bias of up",), says="up's bias left at zero",
          law=GATE, reason=attention("up"),
          state=change(r"up\.bias", lambda w, g: w * 0)),
    Fault(name="down_bias_lost", needs=("a bias of down",), says="down's bias left at zero",
          law=MLP, reason=attention("mlp"),
          state=change(r"down\.bias", lambda w, g: w * 0)),
    Fault(name="norm_bias_lost", needs=("biases of norms",), says="LayerNorm's bias left at zero",
          law=NORMS, reason="norm",
          state=change(r".*_norm\.bias", lambda w, g: w * 0)),
    Fault(name="norm_weight_ones", says="norm weights left at one",
          law=NORMS, reason="norm", state=change(NORM, lambda w, g: w * 0 + 1)),
    # the MLP
    Fault(name="mlp_scaled", says="down_proj times F/F', as if it were a mean",
          law=MLP, reason=attention("mlp"),
          table=rows(r"(expert_)?down\.weight", scale=lambda r, g: g.old.mlp / g.new.mlp)),
    Fault(name="gate_is_up", needs=("gates",), says="gate and up exchanged",
          law=GATE, reason=attention("gate|up"),
          state=swapped("gate.weight", "up.weight")),
    # hygiene
    Fault(name="source_scaled", says="the source's final norm scaled in place",
          law=test_handed_back.test_source_is_untouched, reason="was changed", function=False,
          model=scaled_source),
    Fault(name="source_config", says="the source's config changed",
          law=test_handed_back.test_source_is_untouched, reason="config was changed", function=False,
          model=touched_config),
    Fault(name="memory_shared", says="tensors that did not grow are the source's own",
          law=test_handed_back.test_nothing_is_shared, reason="shares its memory", function=False,
          model=shared_memory),
    Fault(name="rope_shared", needs=("rotary embedding",), says="rope_parameters is one dict in both configs",
          law=test_handed_back.test_nothing_is_shared, reason="share rope_parameters", function=False,
          model=shared_rope),
    Fault(name="generation_shared", says="one generation config for both models",
          law=test_handed_back.test_nothing_is_shared, reason="generation_config", function=False,
          model=shared_generation),
    Fault(name="unfrozen", says="frozen parameters come back trainable",
          law=test_handed_back.test_dtype_device_and_mode, reason="requires_grad", function=False,
          model=unfrozen),
    Fault(name="bf16_comes_back_float32", says="low precision in, float32 out",
          law=test_handed_back.test_dtype_device_and_mode, reason="expected torch", function=False,
          model=float32_for_bf16),
    Fault(name="bf16_underflows", function=False, says="bf16 weights that underflowed in float16",
          law=test_hygiene.test_low_precision_loses_one_rounding, reason="logits",
          model=through_float16),
    Fault(name="dropout_lost", says="attention_dropout back at its default",
          law=test_hygiene.test_dropout_is_kept, reason="attention_dropout|0.125", function=False,
          config=setting(attention_dropout=0.0)),
    Fault(name="activation_reset", says="hidden_act back at its default",
          law=test_handed_back.test_sizes_are_those_asked_for, reason="hidden_act|activation_function",
          config=setting(**dict.fromkeys(
              ("hidden_act", "hidden_activation", "activation_function"), "silu")),
          model=rebuilt),
    Fault(name="positions_reset", needs=("rotary embedding",), says="max_position_embeddings back at its default",
          law=test_handed_back.test_sizes_are_those_asked_for, reason="max_position_embeddings",
          function=False, config=setting(max_position_embeddings=2048)),
    Fault(name="mask_ignored", says="a wrapper drops the attention mask",
          law=test_hygiene.test_left_padding, reason="padded batch", function=False,
          model=deaf_to("attention_mask")),
    Fault(name="positions_ignored", says="a wrapper drops the position ids",
          law=test_decoder.test_positions_are_heeded, reason="logits", function=False,
          model=deaf_to("position_ids")),
    # growing commutes with rounding
    Fault(name="q_scale_missing_in_bf16", function=False, says="no √(K'/K) on q in bf16 alone",
          law=ROUNDING, reason="q_proj.* when grown in float64",
          state=d.only(torch.bfloat16, "q", lambda w, g: w / taller(g) ** 0.5)),
    Fault(name="q_off_in_fp16", function=False, says="q off by 2 % in fp16 alone",
          law=ROUNDING, reason="q_proj.* when grown in float64",
          state=d.only(torch.float16, "q", lambda w, g: w * 1.02)),
    Fault(name="scale_in_own_dtype", function=False, says="√(D/D') rounded to the model's dtype first",
          law=ROUNDING, reason="norm.* when grown in float64", state=d.scaled_low(NORM)),
    Fault(name="truncated", function=False, says="low precision by cutting digits off, not by rounding",
          law=ROUNDING, reason="when grown in float64", state=d.truncated),
    Fault(name="subnormals_flushed", function=False, says="subnormal numbers become zero",
          law=ROUNDING, reason="when grown in float64", state=d.flushed),
    # weights as tidy as real ones
    Fault(name="zero_biases_filled", needs=("biases of q, k or v",), function=False, says="a bias that is zero is taken for one unset",
          law=LOGITS, reason="logits", state=d.where(
              r"[qkvo]\.bias|up\.bias|down\.bias", lambda w: not w.any(), 0.5)),
    Fault(name="unit_norms_kept", function=False, says="norms that are one are not scaled",
          law=NORMS, reason="norm", state=d.unit_norms_kept(NORM)),
    Fault(name="equal_ends_tied", says="a head equal to the embedding is tied to it",
          law=test_handed_back.test_tying_is_kept, reason="tied", function=False,
          model=d.equal_ends_tied),
    Fault(name="equal_rows_merged", function=False, says="a row that is like the one before is dropped",
          law=PROJECTIONS, reason=attention("query|key|value"),
          state=d.equal_rows_merged("[qkv]")),
    Fault(name="zeros_are_new", function=False, says="exact zeros among the old entries are filled",
          law=PROJECTIONS, reason=attention("query|key|value"), state=d.zeros_filled(QKV)),
    Fault(name="zero_rows_filled", function=False, says="old rows that are zero are filled",
          law=PROJECTIONS, reason=attention("query|key|value"), state=d.zero_rows_filled(QKV)),
    Fault(name="heads_beyond_double", function=False, needs=("shared keys",), says="o_proj 1.5 times where heads of a group more than double",
          law=LOGITS, reason="logits",
          state=d.beyond(lambda g: g.new.repeats > 2 * g.old.repeats, r"o\.weight", 1.5)),
    Fault(name="groups_beyond_double", function=False, says="o_proj 1.5 times where key/value heads more than double",
          law=LOGITS, reason="logits",
          state=d.beyond(lambda g: g.new.groups > 2 * g.old.groups, r"o\.weight", 1.5)),
    Fault(name="silent_layers_woken", function=False, says="an old layer that adds nothing gets a down_proj",
          law=LOGITS, reason="logits", state=d.silent_layers_woken),
    # models in the states that real ones are in
    Fault(name="wrong_in_training", function=False, says="q off by 1e-3 where the model is in training mode",
          law=TWICE, reason="in another state", model=d.in_state(lambda m: m.training)),
    Fault(name="wrong_where_frozen", function=False, says="q off by 1e-3 where part of the model is frozen",
          law=TWICE, reason="in another state",
          model=d.in_state(lambda m: not all(p.requires_grad for p in m.parameters()))),
    Fault(name="wrong_under_sdpa", needs=("sdpa",), function=False, says="q off by 1e-3 where attention is sdpa",
          law=TWICE, reason="in another state",
          model=d.in_state(lambda m: m.config._attn_implementation == "sdpa")),
    Fault(name="wrong_without_gradients", function=False, says="q off by 1e-3 under torch.no_grad",
          law=TWICE, reason="two calls give different weights",
          model=d.in_state(lambda m: not torch.is_grad_enabled())),
    Fault(name="partly_frozen_unfrozen", says="a model frozen in part comes back trainable",
          law=test_handed_back.test_dtype_device_and_mode, reason="requires_grad",
          function=False, model=d.partly_frozen_unfrozen),
    # what is done to the world
    *(Fault(name=name, says=says, law=WORLD, reason=reason, function=False, does=does)
      for name, says, reason, does in d.WORLD),
    Fault(name="source_attention", needs=("sdpa",), law=WORLD, function=False,
          says="the source's attention implementation is changed",
          reason="attention implementation", does=d.other_attention),
    *(Fault(name=f"{whose}_seeded", says=f"{said} generator is seeded", law=TWICE,
            reason=f"{said} generator was seeded", function=False, does=does)
      for whose, said, does in d.SEEDS),
    # what it returns depends on more than it was given
    *(Fault(name=f"{whose}_noise", says=f"q off by up to 1e-3, by {said} generator",
            law=TWICE, reason="two calls give different weights", model=d.noisy(draw))
      for whose, said, draw in d.DRAWS),
    Fault(name="drifting", says="every call scales q by a little more",
          law=TWICE, reason="two calls give different weights", model=d.Drifting()),
    Fault(name="uninitialised", says="new MLP lanes are never written",
          law=TWICE, reason="two calls give different weights", state=d.uninitialised),
    Fault(name="remembered", says="the first weights come back for the same sizes",
          law=TWICE, reason="another model's weights", model=d.Remembered()),
    Fault(name="results_shared", says="what does not grow is shared by all results",
          law=TWICE, reason="two results share", function=False, model=d.Shared()),
    # right in memory, lost when saved
    Fault(name="scale_in_module", says="√(K'/K) in the modules' scaling, not in q",
          law=SAVED, reason="lost when saved", table=rows("q", scale=1.0),
          model=d.scale_in_module),
    Fault(name="divisor_in_module", says="√(D/D') in the norms' forward, not in their weights",
          law=SAVED, reason="lost when saved", table=rows(NORM, scale=1.0),
          model=d.divisor_in_module),
    Fault(name="generation_reset", says="the generation config is a fresh one",
          law=CONFIGS, reason="generation_config", function=False, model=d.generation_reset),
    Fault(name="generation_derived", says="the generation config is derived anew from the config",
          law=CONFIGS, reason="generation_config", function=False, model=d.generation_derived),
    Fault(name="always_eager", needs=("sdpa",), says="attention is eager, whatever the source has",
          law=CONFIGS, reason="attention changed", function=False, model=d.always_eager),
    Fault(name="range_reset", says="initializer_range back at its default",
          law=CONFIGS, reason="initializer_range", function=False,
          config=setting(initializer_range=0.02)),
    Fault(name="cast_by_config", says="cast to the dtype that the config still says",
          law=test_handed_back.test_dtype_device_and_mode, reason=r"is torch\.float32",
          function=False, model=d.cast_by_config),
    Fault(name="tokens_reset", says="special tokens are back at their defaults",
          law=CONFIGS, reason="config.(bos|eos|pad)_token_id", function=False,
          config=lambda c, g: [setattr(c, n, 4) for n in
                               ("bos_token_id", "eos_token_id", "pad_token_id")]),
    Fault(name="entry_dropped", says="a config entry that is not transformers' is dropped",
          law=CONFIGS, reason="config.note is gone", function=False,
          config=lambda c, g: vars(c).pop("note", None)),
    Fault(name="rope_key_added", needs=("rotary embedding",), says="a rotary field that the source has not",
          law=CONFIGS, reason="rope_parameters of factor", function=False,
          config=rope(factor=1.0)),
    Fault(name="layer_types_stale", says="layer_types is not extended",
          law=CONFIGS, reason="layer_types", function=False, model=d.layer_types_stale),
    Fault(name="not_contiguous", says="weights come back as transposed views",
          law=MANNERS, reason="contiguous", function=False, model=d.not_contiguous),
    Fault(name="one_memory", says="all weights are views of one piece of memory",
          law=MANNERS, reason="memory", function=False, model=d.one_memory),
    Fault(name="source_kept", says="the result holds on to the source",
          law=MANNERS, reason="kept alive", function=False, model=d.source_kept),
    Fault(name="generation_lists_shared", says="the generation config shares its lists with the source's",
          law=MANNERS, reason="generation_config share", function=False,
          model=d.generation_shared),
    Fault(name="gradients_come_along", says="weights come back with gradients",
          law=MANNERS, reason=r"\.grad", function=False, model=d.with_gradients),
    # other doors
    Fault(name="labels_ignored", says="a wrapper drops the labels",
          law=DOORS, reason="through labels", function=False, model=deaf_to("labels")),
    Fault(name="embeds_ignored", says="a wrapper drops inputs_embeds",
          law=DOORS, reason="through embeds", function=False, model=deaf_to("inputs_embeds")),
    Fault(name="outputs_ignored", says="a wrapper drops output_hidden_states",
          law=DOORS, reason="hidden_states are", function=False,
          model=deaf_to("output_hidden_states")),
    Fault(name="training_differs", says="in training mode the logits are off by 1e-3",
          law=DOORS, reason="through training", function=False, model=d.training_differs),
    Fault(name="cache_forgets", says="calls of several tokens do not see the cache",
          law=DOORS, reason="through cached", function=False, model=d.cache_forgets),
    # training
    Fault(name="zeros_never_train", says="new parameters all zero: none ever moves",
          law=test_training.test_new_parameters_train, reason="is stuck", function=False),
    Fault(name="values_never_train", says="new value lanes zero, and zero what reads them",
          law=test_training.test_new_parameters_train, reason=r"o\.weight \(query\) is stuck",
           function=False,
          options={"fill": "trainable"}, state=silent_values),
    Fault(name="layers_not_grown", says="new layers are left out",
          law=test_handed_back.test_sizes_are_those_asked_for, reason="num_hidden_layers",
           function=False,
          model=lambda grown, model, g: drop_layers(grown, g)),
    # key/value heads repeated, query heads dealt out over the copies
    Fault(name="dealt_in_a_row", needs=("shared keys",), says="query heads dealt out with all room at the very end",
          law=PROJECTIONS, reason=attention("query"), with_features=DEALT,
          state=fitting.moved_heads(fitting.in_a_row)),
    Fault(name="dealt_share_lost", needs=("shared keys",), says="shares rounded down, so that the last heads are lost",
          law=PROJECTIONS, reason=attention("query"), with_features=DEALT,
          state=fitting.moved_heads(fitting.rounded_down)),
    Fault(name="copies_tiled", needs=("shared keys",), says="key/value heads repeated as 0 1 0 1, not as 0 0 1 1",
          law=PROJECTIONS, reason=attention("key|value"), with_features=DEALT,
          state=fitting.copies(fitting.tiled)),
    Fault(name="copies_empty", needs=("shared keys",), says="the copies of a key/value head are zeros but the first",
          law=PROJECTIONS, reason=attention("key|value"), with_features=DEALT,
          state=fitting.copies(fitting.first_alone)),
    # new lanes between the old ones
    Fault(name="between_theta", needs=("full rotary",), says="rope_theta raised though new lanes lie between",
          law=ROTARY, reason=attention("query_rotated|key_rotated"),
          config=lambda c, g: (
              rope(rope_theta=g.old.rotary.theta ** taller(g))(c, g)
              if g.between > 1 else None),
          model=rebuilt),
    Fault(name="between_in_query", needs=("full rotary",), says="new lanes between a query's, behind a key's halves",
          law=PROJECTIONS, reason=attention("key"), state=fitting.parted_keys),
    # neurons in blocks, layers anywhere
    Fault(name="spread_inside", says="zeros inside an old block, not behind it",
          law=GATE, reason=attention("gate|up"), function=False,
          options=fitting.in_blocks, state=fitting.zeros_inside),
    Fault(name="spread_down_behind", says="gate and up in blocks, down_proj padded at its end",
          law=MLP, reason=attention("mlp"),
          options=fitting.in_blocks, state=fitting.down_behind),
    Fault(name="layers_between_loud", says="a layer behind every n-th is a copy, not silent",
          law=NEW_LAYERS, reason="layers add",
          options=fitting.everywhere, state=fitting.loud_between),
    # new tokens
    Fault(name="vocab_inside", says="new rows before the old ones' end",
          law=OLD_TOKENS, reason="logits", with_features=VOCAB, state=fitting.rows_inside),
    Fault(name="vocab_normalised", says="a hook adds the mean of the new logits to all",
          law=NEW_ROWS, reason="read the rows", with_features=VOCAB, function=False,
          model=fitting.normalised),
    Fault(name="vocab_head_anew", says="the head drawn anew for its new size",
          law=OLD_TOKENS, reason="logits", with_features=VOCAB,
          state=fitting.drawn("head", old_too=True)),
    Fault(name="vocab_head_rounded", says="the head went through float32 as it got rows",
          law=OLD_ROWS, reason="head", with_features=VOCAB,
          state=fitting.head_through_float32),
    Fault(name="vocab_new_lanes", says="new tokens' embeddings fill the new lanes as well",
          law=NEW_LANES, reason="new lanes", with_features=VOCAB, function=False,
          state=fitting.drawn("embed", old_too=False)),
    Fault(name="vocab_chosen", says="new tokens are not suppressed",
          law=CHOSEN, reason="a new token has", with_features=VOCAB, function=False,
          model=fitting.suppressing(lambda told, g: None)),
    Fault(name="vocab_first_chosen", needs=("a head without a bias",), says="of the new tokens the first is not suppressed",
          law=CHOSEN, reason="a new token has", with_features=VOCAB, function=False,
          model=fitting.suppressing(lambda told, g: [
              token for token in told if token != g.old.vocab])),
    Fault(name="vocab_ban_lost", says="the source's own suppress_tokens are forgotten",
          law=CHOSEN, reason="no longer suppressed", with_features=VOCAB, function=False,
          model=fitting.suppressing(lambda told, g: list(range(g.old.vocab, g.new.vocab)))),
)  # fmt: skip


def drop_layers(grown: Any, growth: Growth) -> Any:
    """The grown model without its new layers."""
    config = copy.deepcopy(grown.config)
    config.num_hidden_layers = growth.old.layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: growth.old.layers]
    state = {
        n: w
        for n, w in state_of(grown).items()
        if (layer_of(n) or 0) < growth.old.layers
    }
    return model_of(config, state, grown)


BY_NAME = {fault.name: fault for fault in FAULTS}
