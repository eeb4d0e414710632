"""The certifier says yes to what is exact, no to what is not, and names the entry."""

import functools
import itertools
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import growproof
import jsonschema
import pytest
import torch
from growproof.layout import parameters, size
from growproof.models import config_of, model_of, plan_model, shape_of, state_of
from growproof.padding import grow_state
from growproof.shape import Growth
from torch import Tensor, nn

from . import certificates
from . import command as certify
from .certificates import Certificate
from .command import TINY, cases, main
from .recovery import recover, views
from .surds import NOTHING, ONE, Surd, recognised

State = dict[str, Tensor]
TARGETS: dict[str, dict[str, dict[str, int]]] = {
    family: {c.name: dict(c.target) for c in cases() if c.family == family}
    for family in TINY
}
LLAMA_ALL, STABLELM_ALL = TARGETS["llama"]["all"], TARGETS["stablelm"]["all"]


def judged(
    grower: Any, family: str, target: dict[str, int], **fields: Any
) -> Certificate:
    config = certify.config_of(family, TINY[family] | fields)
    return certificates.certify(grower, config, target)


def edited(
    *,
    table: Callable[[dict[str, Any], Growth], None] | None = None,
    state: Callable[[State, Growth, State], None] | None = None,
    config: Callable[[Any, Growth], None] | None = None,
    model: Callable[[Any], None] | None = None,
    **options: Any,
) -> Any:
    """growproof.grow with its table, its result, its config or its model edited."""

    def grow(old: Any, target: dict[str, int]) -> Any:
        growth = plan_model(old.config, target, **options)
        rows = parameters(growth.old, growth)
        if table:
            table(rows, growth)
        new = grow_state(state_of(old), growth, rows)
        if state:
            state(new, growth, state_of(old))
        new_config = config_of(old.config, growth)
        if config:
            config(new_config, growth)
        result = model_of(new_config, new, old)
        if model:
            model(result)
        return result

    return grow


def rows(part: str, **changes: Any) -> Callable[[dict[str, Any], Growth], None]:
    """Change every row of the table whose name contains `part`."""

    def change(table: dict[str, Any], growth: Growth) -> None:
        found = [name for name in table if part in name]
        assert found
        for name in found:
            table[name] = replace(table[name], **changes)

    return change


def multiply(state: State, part: str, by: float) -> None:
    found = [name for name in state if part in name]
    assert found
    for name in found:
        state[name] *= by


# ------------------------------------------------------------------ what is exact


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.family}, {c.name}")
@pytest.mark.parametrize("fill", ["zeros", "trainable"])
def test_every_family_and_axis_is_certified(case: Any, fill: str) -> None:
    config = certify.config_of(case.family, case.fields)
    grower: Any = growproof.grow
    found = certificates.certify(
        functools.partial(grower, fill=fill), config, case.target
    )
    assert found.verdict == "certified", found.reason


@pytest.mark.parametrize("norm", ["scaled", "centred", "masked"])
@pytest.mark.parametrize("family", ["llama", "stablelm"])
@pytest.mark.parametrize("depth", ["append", "interleave"])
@pytest.mark.parametrize("fill", ["zeros", "trainable"])
def test_every_exact_policy_is_certified(
    norm: str, family: str, depth: str, fill: str
) -> None:
    grow: Any = growproof.grow
    grower = functools.partial(grow, norm=norm, depth=depth, fill=fill)
    found = judged(grower, family, TARGETS[family]["all"])
    inexact = {("scaled", "stablelm"), ("centred", "llama")}
    assert found.verdict == ("refused" if (norm, family) in inexact else "certified")
    if found.verdict == "certified":
        assert found.witness["relative"] < 1e-12
        assert found.entries["unrecognised"] == 0


@pytest.mark.parametrize(
    "fields",
    [{"qk_layernorm": True}, {"qk_layernorm": True, "use_parallel_residual": True}],
)
@pytest.mark.parametrize(
    "axis", [c.name for c in cases() if c.family == "stablelm" and "," not in c.name]
)
def test_qk_layernorm_is_certified(fields: dict[str, Any], axis: str) -> None:
    found = judged(growproof.grow, "stablelm", TARGETS["stablelm"][axis], **fields)
    assert found.verdict == "certified", found.reason


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)  # fmt: skip
def test_surviving_rope_types_are_certified(rope: dict[str, Any]) -> None:
    found = judged(growproof.grow, "llama", LLAMA_ALL, rope_parameters=rope)
    assert found.verdict == "certified", found.reason


def move_scale(query: float, key: float) -> Any:
    """√(K'/K), on q by the table, to the powers given on q and k instead."""

    def move(new: State, growth: Growth, old: State) -> None:
        wider = growth.new.head_dim / growth.old.head_dim
        multiply(new, "q_proj", wider ** (query - 0.5))
        multiply(new, "k_proj", wider**key)

    return edited(state=move)


def scaled_writers(new: State, growth: Growth, old: State) -> None:
    """x' = √(D'/D) pad x: the divisor D' and the old ε are right then."""
    for part in ("embed_tokens", "o_proj", "down_proj"):
        multiply(new, part, math.sqrt(growth.new.hidden / growth.old.hidden))


def kept_eps(config: Any, growth: Growth) -> None:
    if growth.old.family == "llama":
        config.rms_norm_eps = growth.old.eps
    else:
        config.layer_norm_eps = growth.old.eps


def readers_instead_of_norms(new: State, growth: Growth, old: State) -> None:
    ratio = math.sqrt(growth.new.hidden / growth.old.hidden)
    multiply(new, "norm.weight", ratio)
    for part in (
        "q_proj.w",
        "k_proj.w",
        "v_proj.w",
        "gate_proj.w",
        "up_proj.w",
        "lm_head",
    ):
        multiply(new, part, 1 / ratio)


def permuted(new: State, growth: Growth, old: State) -> None:
    """Residual and MLP lanes, query heads within each group, in any order."""
    shape = growth.new
    generator = torch.Generator().manual_seed(1)
    residual = torch.randperm(shape.hidden, generator=generator)
    lanes = torch.randperm(shape.mlp, generator=generator)
    within = torch.randperm(shape.repeats, generator=generator)
    groups = torch.randperm(shape.groups, generator=generator)
    query = torch.arange(size(shape, "query")).view(shape.groups, shape.repeats, -1)
    key = torch.arange(size(shape, "key")).view(shape.groups, -1)
    along = {
        "residual": residual,
        "mlp": lanes,
        "query": query[groups][:, within].flatten(),
        "key": key[groups].flatten(),
    }
    for name, row in parameters(shape).items():
        for i in range(shape.layers if "{layer}" in name else 1):
            full = name.format(layer=i)
            for dim, axis in enumerate(row.axes):
                if axis in along:
                    new[full] = new[full].index_select(dim, along[axis])


EXACT = {
    "the q scale on k": move_scale(0, 0.5),
    "the q scale split": move_scale(0.25, 0.25),
    "writers scaled, eps kept": edited(state=scaled_writers, config=kept_eps),
    "axes permuted": edited(state=permuted),
    "axes permuted, trainable": edited(state=permuted, fill="trainable"),
}


@pytest.mark.parametrize("family", ["llama", "stablelm"])
@pytest.mark.parametrize("name", EXACT)
def test_other_exact_growers_are_certified(name: str, family: str) -> None:
    found = judged(EXACT[name], family, TARGETS[family]["all"])
    assert found.verdict == "certified", found.reason


def test_readers_may_carry_the_scale_of_the_norms() -> None:
    grower = edited(state=readers_instead_of_norms)
    assert judged(grower, "llama", LLAMA_ALL).verdict == "certified"


def cloned(old: Any, target: dict[str, int]) -> Any:
    """HyperCloning: every axis twice over, and readers halved, so that sums are kept."""
    growth = plan_model(old.config, target)
    repeats = {
        axis: size(growth.new, axis) // size(growth.old, axis)
        for axis in ("residual", "query", "key", "mlp")
    }
    new = {}
    for template, row in parameters(growth.old).items():
        for i in range(growth.old.layers if "{layer}" in template else 1):
            x = state_of(old)[template.format(layer=i)]
            for dim, axis in enumerate(row.axes):
                n = repeats.get(axis, 1)
                x = torch.cat([x] * n, dim)
                if dim == 1 and row.role != "norm" and "embed" not in template:
                    x = x / n
            new[template.format(layer=i)] = x
    config = config_of(old.config, growth)
    config.rms_norm_eps = old.config.rms_norm_eps
    return model_of(config, new, old)


@pytest.mark.parametrize("factor", [2, 3])
def test_cloning_is_certified(factor: int) -> None:
    target = {"hidden_size": 8, "num_attention_heads": 4, "intermediate_size": 6}
    target = {name: n * factor for name, n in target.items()}
    target["num_key_value_heads"] = 2 * factor
    found = judged(cloned, "llama", target)
    assert found.verdict == "certified", found.reason
    assert found.lanes["residual"][8] == {"0": "1"}


def mean_padding(old: Any, target: dict[str, int]) -> Any:
    """LEMON: new lanes of a LayerNorm's stream hold the mean of the old ones."""
    growth = plan_model(old.config, target)
    table = parameters(growth.old, growth)
    writers = {n: r for n, r in table.items() if r.centre == "residual"}
    plain = table | {n: replace(r, centre=None) for n, r in writers.items()}
    new = grow_state(state_of(old), growth, plain)
    d = growth.old.hidden
    for template, row in writers.items():
        for i in range(growth.new.layers if "{layer}" in template else 1):
            x = new[template.format(layer=i)].transpose(0, row.axes.index("residual"))
            x[d:] = x[:d].mean(0)
    return model_of(config_of(old.config, growth), new, old)


@pytest.mark.parametrize("fields", [{}, {"use_parallel_residual": True}])
def test_mean_padding_is_certified(fields: dict[str, Any]) -> None:
    found = judged(mean_padding, "stablelm", STABLELM_ALL, **fields)
    assert found.verdict == "certified", found.reason
    assert found.entries["mixed"] > 0


def zeroed_copies(old: Any, target: dict[str, int]) -> Any:
    """LLaMA-Pro: new layers are copies of the last one, with their writers zero."""
    growth = plan_model(old.config, target)
    new = grow_state(state_of(old), growth)
    last = f"model.layers.{growth.old.layers - 1}."
    for name in new:
        if name.startswith(f"model.layers.{growth.old.layers}."):
            silent = "o_proj" in name or "down_proj" in name
            copied = new[last + name.split(".", 3)[3]]
            new[name] = copied * 0 if silent else copied.clone()
    return model_of(config_of(old.config, growth), new, old)


@pytest.mark.parametrize("family", ["llama", "stablelm"])
def test_zeroed_copies_of_a_layer_are_certified(family: str) -> None:
    found = judged(zeroed_copies, family, {"num_hidden_layers": 3})
    assert found.verdict == "certified", found.reason


# ------------------------------------------------------------------ what is not


def set_entry(part: str, index: tuple[int, ...], value: float) -> Any:
    def change(new: State, growth: Growth, old: State) -> None:
        found = [name for name in new if part in name]
        assert found
        new[found[0]][index] = value

    return edited(state=change)


def naive(part: str) -> Any:
    """The article's first attempt: the old matrix in the corner of the new one."""

    def change(new: State, growth: Growth, old: State) -> None:
        for name in new:
            if part in name and name in old:
                x = old[name]
                new[name].zero_()[tuple(slice(n) for n in x.shape)] = x

    return edited(state=change)


def swapped(one: str, other: str) -> Any:
    def change(new: State, growth: Growth, old: State) -> None:
        found = [name for name in new if one in name]
        assert found
        for name in found:
            twin = name.replace(one, other)
            new[name], new[twin] = new[twin], new[name]

    return edited(state=change)


def rounded(dtype: torch.dtype) -> Any:
    def change(new: State, growth: Growth, old: State) -> None:
        for name in new:
            new[name] = new[name].to(dtype).double()

    return edited(state=change)


def setting(**fields: Any) -> Any:
    def change(config: Any, growth: Growth) -> None:
        for name, value in fields.items():
            assert hasattr(config, name)
            setattr(config, name, value)

    return edited(config=change)


def old_rope(config: Any, growth: Growth) -> None:
    config.rope_parameters["rope_theta"] = growth.old.rotary.theta


def rounded_rope(config: Any, growth: Growth) -> None:
    theta = torch.tensor(growth.new.rotary.theta, dtype=torch.float32)
    config.rope_parameters["rope_theta"] = theta.item()


def truncated_rope(config: Any, growth: Growth) -> None:
    """int(K' · factor) lanes: all but one, and the last pair with it."""
    config.rope_parameters["partial_rotary_factor"] = (
        growth.old.rotary.dims - 2
    ) / growth.new.head_dim


def ignored_rope(config: Any, growth: Growth) -> None:
    """The factor is set where transformers 5 does not read it."""
    config.rope_parameters["partial_rotary_factor"] = 0.5


def whole_halves(new: State, growth: Growth, old: State) -> None:
    """Full rotary with both halves in front: lane k meets another partner."""
    for name in new:
        if ("q_proj" in name or "k_proj" in name) and name in old:
            shape = new[name].shape
            heads = new[name].view(-1, 2, growth.new.head_dim // 2, *shape[1:])
            half = growth.old.head_dim // 2
            flat = torch.zeros_like(heads).flatten(1, 2)
            flat[:, : 2 * half] = heads[:, :, :half].flatten(1, 2)
            new[name] = flat.reshape(shape)


def turned_backwards(new: State, growth: Growth, old: State) -> None:
    """Lanes k and k + K/2 exchanged in q and k: every angle changes its sign."""
    for name in new:
        if "q_proj" in name or "k_proj" in name:
            heads = new[name].unflatten(0, (-1, 2, growth.new.head_dim // 2))
            new[name] = heads.flip(1).flatten(0, 2)


def wrong_groups(new: State, growth: Growth, old: State) -> None:
    """Query heads kept at the front, whatever group of keys they read there."""
    h, k, d = growth.old.heads, growth.new.head_dim, growth.new.hidden
    for name in new:
        if ".q_proj" in name and name in old:
            x = new[name].view(growth.new.groups, growth.new.repeats, -1)
            y = x[: growth.old.groups, : growth.old.repeats].reshape(h * k, -1)
            new[name] = torch.zeros_like(new[name]).view(-1, y.shape[1])
            new[name][: h * k] = y
            new[name] = new[name].squeeze(-1) if "bias" in name else new[name]
        elif "o_proj.weight" in name and name in old:
            x = new[name].view(d, growth.new.groups, growth.new.repeats, k)
            y = x[:, : growth.old.groups, : growth.old.repeats].reshape(d, -1)
            new[name] = torch.zeros_like(new[name])
            new[name][:, : h * k] = y


def loud_layer(new: State, growth: Growth, old: State) -> None:
    new[f"model.layers.{growth.old.layers}.mlp.down_proj.weight"][0, 0] = 0.1
    new[f"model.layers.{growth.old.layers}.mlp.gate_proj.weight"][0, 0] = 0.1
    new[f"model.layers.{growth.old.layers}.mlp.up_proj.weight"][0, 0] = 0.1
    new[f"model.layers.{growth.old.layers}.post_attention_layernorm.weight"][0] = 1


def rolled_gates(new: State, growth: Growth, old: State) -> None:
    for name in [name for name in new if "gate_proj" in name]:
        new[name] = new[name].roll(1, 0)


def traded_gates(new: State, growth: Growth, old: State) -> None:
    """gate · 2, up / 2: right for relu, wrong for silu."""
    multiply(new, "gate_proj", 2)
    multiply(new, "up_proj", 1 / 2)


def repeated_layer(new: State, growth: Growth, old: State) -> None:
    """SOLAR: the new layer is a copy of the last."""
    for name in new:
        if name.startswith("model.layers.2."):
            new[name] = new[name.replace("layers.2.", "layers.1.")].clone()


def exchanged_layers(new: State, growth: Growth, old: State) -> None:
    for name in [name for name in new if "layers.0." in name]:
        other = name.replace("layers.0.", "layers.1.")
        new[name], new[other] = new[other], new[name]


def data_dependent(new: State, growth: Growth, old: State) -> None:
    """Signs follow the first embedding: right on half of all models."""
    if old["model.embed_tokens.weight"][0, 0] < 0:
        new["model.layers.0.self_attn.o_proj.weight"] *= -1


def normalised(new: State, growth: Growth, old: State) -> None:
    x = new["model.layers.1.mlp.up_proj.weight"]
    x /= x.abs().max()


def hooked(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda _, __, y: y / 2)


def doubled(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda _, __, y: y * 2)


def stale_index(model: Any) -> None:
    model.model.layers[2].self_attn.layer_idx = 0


def untied(model: Any) -> None:
    head = model.lm_head.weight.detach()
    model.lm_head.weight = nn.Parameter(head * 2)


def module_eps(model: Any) -> None:
    """The config has the right ε, and the live norms the old one."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= 1.5


def lazy(model: Any, target: dict[str, int]) -> Any:
    return growproof.grow(model, target | {"num_hidden_layers": 2})


LAYER = "model.layers.0."
Q_PROJ, O_PROJ = LAYER + "self_attn.q_proj.weight", LAYER + "self_attn.o_proj.weight"
FAULTS: dict[str, tuple[Any, str, str]] = {
    "final norm unscaled": (edited(table=rows("model.norm.w", scale=1.0)), "llama", "lm_head.weight[0, 0]"),
    "norm of a layer unscaled": (edited(table=rows("input_layernorm.w", scale=1.0)), "llama", "q_proj.bias[0]"),
    "post norm unscaled": (edited(table=rows("post_attention_layernorm.w", scale=1.0)), "stablelm", "post_attention_layernorm.bias[0]"),
    "norm bias scaled": (edited(table=rows("input_layernorm.b", scale=0.5)), "stablelm", "input_layernorm.bias[0]"),
    "q scale missing": (edited(table=rows("q_proj", scale=1.0)), "llama", Q_PROJ + "[0, 0]"),
    "q scale missing, LayerNorm": (edited(table=rows("q_proj", scale=1.0)), "stablelm", Q_PROJ + "[0, 0]"),
    "q bias unscaled": (edited(table=rows("q_proj.bias", scale=1.0)), "llama", "q_proj.bias[0]"),
    "k scaled too": (edited(table=rows("k_proj", scale=1.5)), "llama", Q_PROJ + "[0, 0]"),
    "v scaled": (edited(table=rows("v_proj", scale=2.0)), "stablelm", "o_proj.weight[0, 0]"),
    "eps kept": (edited(config=kept_eps), "llama", "eps"),
    "eps kept, LayerNorm": (edited(config=kept_eps), "stablelm", "eps"),
    "embedding not centred": (edited(table=rows("embed", centre=None)), "stablelm", "embed_tokens.weight[0, 0]"),
    "o_proj not centred": (edited(table=rows("o_proj", centre=None)), "stablelm", O_PROJ + "[0, 0]"),
    "down_proj not centred": (edited(table=rows("down_proj", centre=None)), "stablelm", "down_proj.weight[0, 0]"),
    "embedding centred under RMSNorm": (edited(table=rows("embed", centre="residual")), "llama", "embed_tokens.weight[0, 0]"),
    "heads scrambled": (naive("_proj"), "llama", "proj.weight["),
    "q and k scrambled": (naive("q_proj"), "stablelm", "q_proj.weight["),
    "v_proj scrambled": (naive("v_proj"), "stablelm", "is given no old lane"),
    "o_proj scrambled": (naive("o_proj"), "llama", O_PROJ + "["),
    "gate and up swapped": (swapped("gate_proj", "up_proj"), "llama", "gate_proj.weight"),
    "gates against other units": (edited(state=rolled_gates), "llama", "gate_proj.weight[1, 0]: the gate is 1 · lane 0 and meets 1 · lane 1"),
    "gates traded for units": (edited(state=traded_gates), "stablelm", "gate_proj.weight[0, 0]: the gate is 2 · lane 0"),
    "k and v swapped": (swapped("k_proj", "v_proj"), "stablelm", "k_proj.weight[0, 0]"),
    "theta kept": (edited(config=old_rope), "llama", "frequency"),
    "theta rounded to float32": (edited(config=rounded_rope), "llama", "frequency"),
    "right in memory only": (edited(table=rows("lm_head", scale=0.5), model=doubled), "llama", "what is saved is another function"),
    "rotary halves exchanged": (edited(state=turned_backwards), "llama", "(sine) head 0 counts"),
    "rotary halves in front": (edited(state=whole_halves), "llama", "q_proj.weight["),
    "rotary dims truncated": (edited(config=truncated_rope), "stablelm", "frequency"),
    "rotary factor ignored": (edited(config=ignored_rope), "stablelm", "rotary"),
    "wrong groups read": (edited(state=wrong_groups), "llama", "q_proj.weight["),
    "new layer not silent": (edited(state=loud_layer), "llama", "model.layers.2.mlp.down_proj.weight[0, 0]"),
    "layer repeated": (edited(state=repeated_layer), "llama", "attention 1, mlp 1, attention 1"),
    "layers exchanged": (edited(state=exchanged_layers), "stablelm", "attention 1, mlp 1, attention 0"),
    "noise in a new writer row": (set_entry("o_proj.weight", (9, 0), 0.01), "llama", O_PROJ + "[9, 0]"),
    "noise in an old entry": (set_entry("up_proj.weight", (1, 2), 0.01), "llama", "up_proj.weight[1, 2] is the constant 0.01"),
    "one entry lost": (set_entry("lm_head.weight", (3, 4), 0.0), "llama", "lm_head.weight[3, 4] is 0"),
    "logits halved": (edited(table=rows("lm_head", scale=0.5)), "stablelm", "lm_head.weight[0, 0]"),
    "scale rounded to float32": (edited(table=rows("q_proj", scale=1.2247449)), "llama", "no root of a small fraction"),
    "weights rounded to float32": (rounded(torch.float32), "llama", "no multiple of an old entry"),
    "weights rounded to bfloat16": (rounded(torch.bfloat16), "stablelm", "no multiple of an old entry"),
    "looks at the values": (edited(state=data_dependent), "llama", O_PROJ + "[0, 0]"),
    "normalises the values": (edited(state=normalised), "llama", "model.layers.1.mlp.up_proj.weight[0, 0]"),
    "another activation": (setting(hidden_act="gelu"), "llama", "activation is 'gelu', and was 'silu'"),
    "parallel residual": (setting(use_parallel_residual=True), "stablelm", "parallel is True"),
    "a size ignored": (lazy, "llama", "num_hidden_layers is 2, not 3"),
    "nothing returned": (lambda model, target: None, "llama", "cannot be read"),
    "forward hook": (edited(model=hooked), "llama", "The module does not compute"),
    "live eps": (edited(model=module_eps), "llama", "The module does not compute"),
    "stale layer_idx": (edited(model=stale_index), "llama", "model.layers.2.self_attn.layer_idx is 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_refused_with_their_entry(name: str) -> None:
    grower, family, reason = FAULTS[name]
    found = judged(grower, family, TARGETS[family]["all"])
    assert found.verdict == "refused", found.reason
    assert reason in found.reason


def test_an_untied_result_is_refused() -> None:
    tied = {"tie_word_embeddings": True}
    found = judged(edited(model=untied), "llama", LLAMA_ALL, **tied)
    assert found.verdict == "refused"
    assert "lm_head.weight" in found.reason


def parted(new: State, growth: Growth, old: State) -> None:
    """Each old layer as two: one with its attention alone, one with its MLP alone."""
    whole = {name: x.clone() for name, x in new.items()}
    for name in [name for name in new if ".layers." in name]:
        _, _, i, rest = name.split(".", 3)
        silent = "o_proj" if int(i) % 2 else "down_proj"
        x = whole[f"model.layers.{int(i) // 2}.{rest}"]
        new[name] = x * 0 if silent in rest else x


@pytest.mark.parametrize("parallel", [False, True])
def test_a_layer_may_be_parted_unless_its_halves_read_the_same(parallel: bool) -> None:
    fields = {"use_parallel_residual": parallel}
    target = {"num_hidden_layers": 4}
    found = judged(edited(state=parted), "stablelm", target, **fields)
    assert found.verdict == ("refused" if parallel else "certified"), found.reason
    assert not parallel or "The grown layers do attention 0, mlp 0" in found.reason


# ------------------------------------------------------------------ neither


def rotated(old: Any, target: dict[str, int]) -> Any:
    """Exact, but no lane is a multiple of one old lane: x' = Q x under RMSNorm."""
    new = growproof.grow(old, target)
    d = new.config.hidden_size
    generator = torch.Generator().manual_seed(3)
    draw = torch.randn(d, d, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(draw).Q
    state = dict(new.named_parameters())
    with torch.no_grad():
        norms: dict[str, Tensor] = {}
        for name, p in state.items():
            if "norm.weight" in name:
                norms[name] = p.clone()
                p.fill_(1)
        for name, p in state.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")) or name.endswith(
                ("o_proj.bias", "down_proj.bias")
            ):
                p.copy_(q @ p)
            elif "embed" in name:
                p.copy_(p @ q.T)
            elif p.dim() == 2:
                layer = name.split(".self_attn")[0].split(".mlp")[0]
                own = (
                    "input_layernorm" if "attn" in name else "post_attention_layernorm"
                )
                key = (
                    f"{layer}.{own}.weight" if "layers" in name else "model.norm.weight"
                )
                p.copy_(p * norms[key] @ q.T)
    return new


def test_what_is_exact_beyond_the_theory_is_undecided() -> None:
    found = judged(rotated, "llama", LLAMA_ALL)
    assert found.verdict == "undecided"
    assert "embed_tokens.weight[0, 0] is no multiple of an old entry" in found.reason
    assert found.witness["relative"] < 1e-12


def cancelling_noise(new: State, growth: Growth, old: State) -> None:
    """Two new MLP units that undo each other: silent, but not lane by lane."""
    f, d = growth.old.mlp, growth.old.hidden
    for part in ("gate_proj.weight", "up_proj.weight"):
        new[f"model.layers.0.mlp.{part}"][f : f + 2, :d] = 0.5
    new["model.layers.0.mlp.down_proj.weight"][0, f : f + 2] = Tensor([0.25, -0.25])


def test_noise_that_cancels_is_undecided() -> None:
    found = judged(edited(state=cancelling_noise), "llama", LLAMA_ALL)
    assert found.verdict == "undecided"
    assert "model.layers.0.mlp.down_proj.weight[0, 6]" in found.reason


# ------------------------------------------------------------------ the recognition


@pytest.mark.parametrize(
    "x",
    [Fraction(1), Fraction(2, 3), Fraction(9, 4), Fraction(1, 6), Fraction(2048, 2560)],
)
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_roots_of_fractions_are_recognised(x: Fraction, degree: int) -> None:
    exact = Surd.root(x, degree)
    for sign in (1, -1):
        found = recognised(sign * float(x) ** (1 / degree))
        assert found is (exact if sign == 1 else -exact)
    assert recognised(float(x) ** (1 / degree) * (1 + 1e-10)) is None


def test_sums_and_products_of_roots_are_exact() -> None:
    two, half = Surd.root(Fraction(2)), Surd.root(Fraction(1, 2))
    assert two * half is ONE
    assert half + half is two
    assert two + -two is NOTHING
    assert Surd.root(Fraction(3), 4) * Surd.root(Fraction(3), 4) is Surd.root(
        Fraction(3)
    )
    assert two + ONE is not Surd.root(Fraction(5, 1))
    assert str(Surd.root(Fraction(2, 3))) == "√(2/3)"
    assert str(-Surd.root(Fraction(2, 3), 4)) == "-(2/3)^(1/4)"
    assert str(two + ONE) == "1 + √(2)"


def test_every_form_is_recovered_as_what_it_is() -> None:
    """c · (entry, centred entry, mean) of every tensor and block: the very terms."""
    shape = shape_of(certify.config_of("stablelm", TINY["stablelm"]))
    olds = [certificates.draw(shape, run) for run in range(4)]
    checked = 0
    for view in views(shape):
        scale = 1 / math.sqrt(3)
        news = [{"y": torch.tensor(view.values(s[view.name]) * scale)} for s in olds]
        cells = recover(shape, olds, news)["y"]
        for at in range(0, len(cells), 7):
            wanted = view.terms(at, Surd.root(Fraction(1, 3)))
            assert cells[at].terms == wanted, (view, at)
            numeric = sum(
                float(olds[0][view.name][i]) / math.sqrt(3) * float(c.rational or 0)
                for i, c in view.terms(at, ONE).items()
            )
            assert math.isclose(numeric, float(news[0]["y"][at]), abs_tol=1e-12)
            checked += 1
    assert checked > 500


# ------------------------------------------------------------------ the command


def test_the_command_certifies_growproof(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "certificates.json"
    assert main(["--family", "llama", "--json", str(file)]) == 0
    assert "certified" in capsys.readouterr().out
    found = json.loads(file.read_text("utf-8"))
    schema = Path(certificates.__file__).with_name("certificate.schema.json")
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text("utf-8")))
    for certificate in found:
        validator.validate(certificate)
    assert len(found) == len([c for c in cases() if c.family == "llama"])


SHAPED = ["--family", "stablelm", "--shape", "hidden_size=24", "num_attention_heads=6"]
SHAPED += ["num_key_value_heads=3", "--target", "hidden_size=36"]


@pytest.mark.parametrize(
    ("grower", "code"),
    [("growproof:grow", 0), ("scaled", 1), ("undecided", 3), ("mixed", 1)],
)
def test_exit_codes(
    grower: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "planted.py").write_text(
        "import functools, growproof\n"
        "scaled = functools.partial(growproof.grow, norm='scaled')\n"
    )
    if code == 0 or grower == "scaled":
        monkeypatch.chdir(tmp_path)
        spec = grower if ":" in grower else f"planted:{grower}"
        assert main([spec, *SHAPED]) == code
        return
    verdicts = itertools.cycle(
        ["certified", "undecided"] + ["refused"] * (grower == "mixed")
    )
    real = certificates.certify

    def fake(*arguments: Any) -> Certificate:
        return replace(real(*arguments), verdict=next(verdicts))

    monkeypatch.setattr(certify, "certify", fake)
    assert main(["--family", "stablelm"]) == code


PROOFS = Path(__file__).parents[1] / "proofs"


@pytest.mark.skipif(not shutil.which("coqc"), reason="Coq is not installed (coqc)")
@pytest.mark.parametrize(
    ("family", "norm", "fields"),
    [
        ("llama", "scaled", {"attention_bias": False}),
        ("stablelm", "masked", {}),
    ],
)
def test_the_kernel_accepts_the_recovered_map(
    family: str, norm: str, fields: dict[str, Any], tmp_path: Path, proofs_built: Path
) -> None:
    """And rejects it once one entry of one table is another."""
    grower = edited(norm=norm, depth="interleave")
    found = judged(grower, family, TARGETS[family]["all"], **fields)
    assert found.coq is not None
    right, wrong = tmp_path / "right.v", tmp_path / "wrong.v"
    right.write_text(found.coq + "Print Assumptions same_logits.\n", "utf-8")
    wrong.write_text(found.coq.replace("Some (3, 2)", "Some (2, 3)", 1), "utf-8")
    coqc = ["coqc", "-w", "none", "-R", str(proofs_built), "Growproof"]
    done = subprocess.run([*coqc, str(right)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Closed under the global context" in done.stdout
    if family == "llama":
        done = subprocess.run([*coqc, str(wrong)], capture_output=True, text=True)
        assert done.returncode != 0
        assert "No applicable tactic" in done.stderr


@pytest.fixture(scope="module")
def proofs_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The proofs that a certificate imports, compiled in a folder of their own."""
    folder = tmp_path_factory.mktemp("proofs")
    modules = [
        "Arith",
        "AxisMaps",
        "Insertion",
        "Linear",
        "Rotary",
        "Attention",
        "Mlp",
        "Decoder",
    ]
    for module in modules:
        shutil.copy(PROOFS / f"{module}.v", folder)
        command = ["coqc", "-w", "none", "-R", str(folder), "Growproof", f"{module}.v"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_what_is_no_plain_scatter_has_no_coq_proof() -> None:
    trainable = edited(fill="trainable")
    assert judged(trainable, "llama", LLAMA_ALL).coq is None
    assert judged(growproof.grow, "stablelm", STABLELM_ALL).coq is None
    assert judged(EXACT["the q scale split"], "llama", LLAMA_ALL).coq is None


@pytest.mark.parametrize(
    "argv",
    [
        ["growproof:no_such_thing"],
        ["no_such_module:grow"],
        ["--target", "hidden_size=36"],
        ["--family", "gpt2"],
        ["--family", "llama", "--target", "width=36"],
        ["--family", "llama", "--target", "hidden_size"],
        ["--family", "llama", "--shape", "hidden_size=13"],
        ["--unknown"],
    ],
)
def test_usage_errors_exit_with_four(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 4
