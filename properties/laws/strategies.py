"""What is drawn: small decoders, loud weights, and growths in every direction.

A `Case` is everything that a law needs and a reader can retype: a transformers config,
a target, and a seed. Values are valid by construction, the simplest first.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from growproof.layout import tensors
from growproof.models import build, shape_of, state_of
from growproof.shape import Shape
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, StableLmConfig

Regime = Literal["loud", "small"]

# What a grower may leave out (`--without`), and what it must ask for (`--with`).
FAMILIES = ("llama", "stablelm")
AXES = ("hidden", "heads", "groups", "head_dim", "mlp", "layers")
OPTIONS = ("biases", "gqa", "parallel", "tied")
EXTRAS = ("qk_norm", "tied_stablelm", "rope_types")
CORE = (*FAMILIES, *AXES, *OPTIONS)
CONFIG_NAME = {
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
    "layers": "num_hidden_layers",
}


@dataclass
class Domain:
    """The features that cases are drawn from; the plugin narrows or widens it."""

    features: set[str] = field(default_factory=lambda: set(CORE))
    dtype: torch.dtype = torch.float64

    def has(self, feature: str) -> bool:
        return feature in self.features


DOMAIN = Domain()


def profile() -> settings:
    """The settings of the Hypothesis profile in force."""
    found = settings.default
    assert found is not None
    return found


def fewer(divisor: int, *, least: int = 3) -> settings:
    """The profile's settings with fewer examples: for laws of many models or cases."""
    return settings(max_examples=max(least, profile().max_examples // divisor))


def fill(model: Any, seed: int, regime: str, eps: float) -> None:
    """Weights of order one, in which nothing is at its default: in place, seeded.

    Norm weights and biases are not trivial, the embedding has a mean, attention is far
    from uniform. `small`: the residual is so small that its square is about eps.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        x = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if "norm" in name and name.endswith("weight"):
            x = 1 + 0.3 * x
        elif "embed_tokens" in name:
            x = x + 0.5
        elif name.endswith("bias"):
            x = 0.5 * x
        else:
            x = 1.5 * x / p.shape[1] ** 0.5
        writes = ("embed_tokens", "o_proj", "down_proj")
        if regime == "small" and any(writer in name for writer in writes):
            x = x * eps**0.5
        p.data.copy_(x)


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
        kind: Any = LlamaConfig if self.family == "llama" else StableLmConfig
        return kind(**self.config, attn_implementation="eager")

    @functools.cached_property
    def shape(self) -> Shape:
        """Its Shape."""
        return shape_of(self.hf_config)

    def model(self, dtype: torch.dtype | None = None) -> Any:
        """The model before growing, in evaluation mode, in the domain's dtype."""
        eps, dtype = self.shape.eps, dtype or DOMAIN.dtype
        return make(self.hf_config, self.seed, self.regime, eps, dtype)

    @functools.cached_property
    def ids(self) -> Tensor:
        """Its text: (batch, tokens) token ids."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        size = (self.batch, self.tokens)
        return torch.randint(0, self.shape.vocab, size, generator=generator)


def make(config: Any, seed: int, regime: str, eps: float, dtype: torch.dtype) -> Any:
    """A model of `config` with the weights that `fill` draws, rounded to `dtype`."""
    sizes = tensors(shape_of(config))
    model = build(
        config, {name: torch.empty(size, dtype=dtype) for name, size in sizes}
    )
    fill(model, seed, regime, eps)
    return model.eval()


def weights(case: Case, seed: int) -> dict[str, Tensor]:
    """The parameters that `fill` draws for a case from another seed, float64."""
    return state_of(
        make(case.hf_config, seed, case.regime, case.shape.eps, torch.float64)
    )


def families() -> list[str]:
    """The families of the domain in which something can grow."""
    return [f for f in FAMILIES if DOMAIN.has(f) and growable(f)]


def growable(family: str) -> list[str]:
    """The claimed axes that can grow in this family while all others stay.

    A StableLm's hidden size is heads · head_dim: neither grows without the other. Where
    no head may share its keys, heads and groups grow together.
    """
    free = {axis for axis in AXES if DOMAIN.has(axis)}
    if not DOMAIN.has("gqa") and not {"heads", "groups"} <= free:
        free -= {"heads", "groups"}
    if family == "stablelm" and "hidden" not in free:
        free -= {"head_dim", *({"heads", "groups"} if "heads" in free else ())}
    if family == "stablelm" and not free & {"heads", "head_dim"}:
        free -= {"hidden"}
    return [axis for axis in AXES if axis in free]


def larger(
    size: int, *, step: int = 1, most: int = 4, forced: bool = False, block: int = 0
) -> st.SearchStrategy[int]:
    """A size not below `size`: the same, a little more, double, or whole blocks."""
    sizes = st.integers(int(forced), most).map(lambda n: size + n * step)
    if not forced:
        sizes = st.just(size) | sizes
    if block:
        sizes |= st.just(-(-(size + forced) // block) * block)
    return sizes | st.just(2 * size)


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    family: str | None = None,
    axis: str | None = None,
    min_tokens: int = 1,
    max_tokens: int = 20,
    power_of_four: bool = False,
    features: tuple[str, ...] = (),
) -> Case:
    """A Case from the domain of this run.

    family, axis: fix the family, or force one axis to grow (where the run does not
    claim it, another one). power_of_four: every scale
    of the growth is a power of two, so that nothing is rounded. features: options that
    the model must have.
    """
    family = family or draw(st.sampled_from(families()))
    free = growable(family)
    if axis not in free:  # what is not claimed never grows: something else does
        axis = draw(
            st.sampled_from(free) if axis else st.none() | st.sampled_from(free)
        )
    repeated = axis == "groups" and "heads" not in free
    sizes = draw(old_sizes(family, features + ("gqa",) * repeated))
    grow = power_of_four_target if power_of_four else target
    growth = grow(draw, family, sizes, axis)
    option = functools.partial(draw_option, draw, features)
    config: dict[str, Any] = {
        "vocab_size": draw(st.integers(5, 17)),
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["mlp"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["groups"],
        "max_position_embeddings": 64,
        "hidden_act": draw(st.sampled_from(("silu", "gelu", "gelu_pytorch_tanh"))),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    theta = draw(st.sampled_from((10000.0, 500.0, 100000.0)))
    eps = draw(st.sampled_from((1e-5, 1e-6, 1e-3)))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if family == "llama":
        config |= {
            "head_dim": sizes["head_dim"],
            "rms_norm_eps": eps,
            "attention_bias": option("biases"),
            "mlp_bias": option("biases"),
            "tie_word_embeddings": option("tied"),
        }
        if DOMAIN.has("rope_types"):
            rope = draw(rope_types(theta))
    else:
        lanes = sizes["head_dim"]
        rotated = draw(st.integers(1, lanes // 2)) * 2
        rope["partial_rotary_factor"] = rotated / lanes
        config |= {
            "layer_norm_eps": eps,
            "use_qkv_bias": option("biases"),
            "use_parallel_residual": option("parallel"),
            "qk_layernorm": option("qk_norm"),
            "tie_word_embeddings": option("tied_stablelm"),
        }
    config["rope_parameters"] = rope
    return Case(
        family=family,
        config=config,
        target=growth,
        seed=draw(st.integers(0, 2**20)),
        regime=draw(st.sampled_from(("loud", "small"))),
        batch=draw(st.integers(1, 2)),
        tokens=draw(st.integers(min_tokens, max_tokens)),
    )


def draw_option(draw: st.DrawFn, forced: tuple[str, ...], feature: str) -> bool:
    """Whether the model has an option: if forced, or if the domain has it and luck."""
    return feature in forced or (DOMAIN.has(feature) and draw(st.booleans()))


@st.composite
def old_sizes(
    draw: st.DrawFn, family: str, features: tuple[str, ...]
) -> dict[str, int]:
    """The sizes of a small decoder."""
    groups = draw(st.integers(1, 3))
    shared = DOMAIN.has("gqa") or "gqa" in features
    least = 2 if "gqa" in features else 1
    heads = groups * (
        draw(st.integers(least, max(least, 4 // groups))) if shared else 1
    )
    # even lanes for rotary pairs; a StableLm may have odd ones, which rotary passes by
    lanes = (2, 4, 6, 8) if family == "llama" else (2, 3, 4, 5, 8)
    head_dim = draw(st.sampled_from(lanes))
    free = heads * draw(st.integers(1, 3))
    return {
        "groups": groups,
        "heads": heads,
        "head_dim": head_dim,
        "hidden": free if family == "llama" else heads * head_dim,
        "mlp": draw(st.integers(1, 12)),
        "layers": draw(st.integers(1, 3)),
    }


def target(
    draw: st.DrawFn, family: str, sizes: dict[str, int], axis: str | None
) -> dict[str, int]:
    """Config names and sizes of a growth; axes that do not grow are left out."""
    new, free = dict(sizes), growable(family)
    new["heads"], new["groups"] = head_counts(draw, sizes, free, axis)
    step = 2 if family == "llama" else 1
    for name, by in (("head_dim", step), ("mlp", 1)):
        if name in free:
            forced = axis == name
            sizes_new = larger(sizes[name], step=by, forced=forced, block=8)
            new[name] = draw(sizes_new)
    if "layers" in free:
        new["layers"] += draw(st.integers(int(axis == "layers"), 2))
    fit = stablelm_hidden if family == "stablelm" else llama_hidden
    fit(draw, sizes, new, forced=axis == "hidden")
    return named(family, sizes, new)


def head_counts(
    draw: st.DrawFn, sizes: dict[str, int], free: list[str], axis: str | None
) -> tuple[int, int]:
    """(H', G'): groups and repeats grow; groups alone are repeated under their heads."""
    heads, groups = sizes["heads"], sizes["groups"]
    if "heads" not in free:
        fits = [g for g in range(groups, heads + 1, groups) if heads % g == 0]
        fits = fits[axis == "groups" :] if "groups" in free else fits[:1]
        return heads, draw(st.sampled_from(fits))
    shared = DOMAIN.has("gqa")
    if "groups" in free:
        forced = axis == "groups" or (axis == "heads" and not shared)
        groups = draw(larger(groups, most=1, forced=forced))
    repeats = heads // sizes["groups"]
    if shared:
        forced = axis == "heads" and groups == sizes["groups"]
        repeats = draw(larger(repeats, most=1, forced=forced))
    return groups * repeats, groups


def llama_hidden(
    draw: st.DrawFn, sizes: dict[str, int], new: dict[str, int], *, forced: bool
) -> None:
    """A hidden size that is a multiple of the heads, before and after, in place."""
    heads = new["heads"]
    if not DOMAIN.has("hidden"):
        both = math.lcm(sizes["heads"], heads)
        sizes["hidden"] = new["hidden"] = both * (
            sizes["hidden"] // sizes["heads"] if both <= 24 else 1
        )
        return
    least = -(-(sizes["hidden"] + forced) // heads)
    more = st.integers(least, least + 4)
    if 2 * sizes["hidden"] % heads == 0:
        more |= st.just(2 * sizes["hidden"] // heads)
    new["hidden"] = heads * (draw(more) if forced or draw(st.booleans()) else least)


def stablelm_hidden(
    draw: st.DrawFn, sizes: dict[str, int], new: dict[str, int], *, forced: bool
) -> None:
    """hidden = heads · head_dim, one of which grows along if it must, in place."""
    del draw
    if forced and new["heads"] * new["head_dim"] == sizes["hidden"]:
        if DOMAIN.has("head_dim"):
            new["head_dim"] += 1
        elif DOMAIN.has("gqa"):
            new["heads"] += new["groups"]
        else:
            new["heads"] = new["groups"] = new["heads"] + 1
    new["hidden"] = new["heads"] * new["head_dim"]


def power_of_four_target(
    draw: st.DrawFn, family: str, sizes: dict[str, int], axis: str | None
) -> dict[str, int]:
    """A growth whose scales √(D/D') and √(K'/K) are powers of two."""
    new, free = dict(sizes), growable(family)
    which = axis or draw(st.sampled_from(free))
    if which in ("heads", "groups") and "heads" in free:
        new["heads"] *= 4
        if which == "groups" or not DOMAIN.has("gqa"):
            new["groups"] *= 4
    elif which == "head_dim":
        new["head_dim"] *= 4
    if family == "stablelm":
        new["hidden"] = new["heads"] * new["head_dim"]
    elif not DOMAIN.has("hidden"):
        sizes["hidden"] = new["hidden"] = math.lcm(sizes["heads"], new["heads"])
    elif which == "hidden" or new["heads"] > sizes["heads"]:
        new["hidden"] *= 4
    new["mlp"] += draw(st.integers(0, 4)) if "mlp" in free else 0
    new["layers"] += draw(st.integers(0, 1)) if "layers" in free else 0
    return named(family, sizes, new)


def named(family: str, sizes: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    """The sizes that grow, by their config names; a StableLm names no head_dim."""
    names = [axis for axis in AXES if family == "llama" or axis != "head_dim"]
    return {CONFIG_NAME[axis]: new[axis] for axis in names if new[axis] != sizes[axis]}


@st.composite
def rope_types(draw: st.DrawFn, theta: float) -> dict[str, Any]:
    """Rope parameters whose frequencies survive a larger head_dim."""
    kind = draw(st.sampled_from(("default", "linear", "llama3")))
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    if kind != "default":
        rope["factor"] = draw(st.sampled_from((2.0, 8.0)))
    if kind == "llama3":
        rope |= {
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    return rope


def needed(
    family: str, config: Mapping[str, Any], target: Mapping[str, int]
) -> list[str]:
    """The features that a grower must claim for this growth to be its business."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    heads_new = target.get(CONFIG_NAME["heads"], heads)
    groups_new = target.get(CONFIG_NAME["groups"], groups)
    grown = {axis for axis, name in CONFIG_NAME.items() if name in target}
    if family == "stablelm":  # head_dim = hidden / heads
        width = target.get("hidden_size", config["hidden_size"])
        taller = width // heads_new > config["hidden_size"] // heads
        grown |= {"head_dim"} if taller else set()
    options = {
        "gqa": groups < heads or groups_new < heads_new,
        "biases": any(
            config.get(n) for n in ("attention_bias", "mlp_bias", "use_qkv_bias")
        ),
        "tied": config.get("tie_word_embeddings"),
        "parallel": config.get("use_parallel_residual"),
        "qk_norm": config.get("qk_layernorm"),
    }
    return sorted({family} | grown | {name for name, on in options.items() if on})


def smallest() -> list[Case]:
    """One least case of each family in the domain: does a grower run at all?"""
    cases = []
    for family in families():
        free = growable(family)
        sizes, new = {"hidden": 4, "heads": 1, "groups": 1, "head_dim": 4}, {}
        match free[0]:
            case "hidden" if family == "stablelm" and "head_dim" not in free:
                new = {"hidden": 8, "heads": 2}
            case "hidden":
                new = {"hidden": 8}
            case "heads":
                new = {"heads": 2}
            case "groups":
                sizes["heads"], new = 2, {"groups": 2}
                sizes["head_dim"] = 2 if family == "stablelm" else 4
            case axis:
                new = {axis: {"head_dim": 8, "mlp": 4, "layers": 2}[axis]}
        if "heads" in new and not DOMAIN.has("gqa"):
            new["groups"] = new["heads"]
        cases.append(least_case(family, sizes, new))
    return cases


def least_case(family: str, sizes: dict[str, int], new: dict[str, int]) -> Case:
    """A case of one layer, two neurons and two tokens, with these other sizes."""
    sizes = {"mlp": 2, "layers": 1} | sizes
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if family == "stablelm":
        rope["partial_rotary_factor"] = 0.5 if sizes["head_dim"] == 4 else 1.0
    config = {CONFIG_NAME[axis]: size for axis, size in sizes.items()} | {
        "vocab_size": 5, "max_position_embeddings": 64, "bos_token_id": None,
        "eos_token_id": None, "rope_parameters": rope,
    }  # fmt: skip
    if family == "stablelm":
        del config["head_dim"]
    target = {CONFIG_NAME[axis]: size for axis, size in new.items()}
    return Case(family, config, target, 0, "loud", 1, 2)
