"""The clone and the Coq decoder in binary64: the same bits?

The Coq decoder (Spelled.v) is evaluated with Flocq's binary64 (Binary.v): its sums,
products and quotients are rounded to nearest. exp, erf, tanh, cos, sin, √ (torch's, which
is MKL's, is not always the nearest float) and powers of theta are tables of torch's values
at the clone's arguments. At an argument that is in no table, to the last bit, Coq has a
NaN, and so have the logits.
"""

import math
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import growproof
import torch
from growproof import clone
from growproof.decoder import Decoder, Kind, Rotary
from growproof.padding import State
from growproof.table import tensors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .numbers import nested, printed

Words = list[list[int]]
Tables = dict[str | float, dict[float, float]]  # function, or base of powers → values
LENGTH, VOCAB = 3, 3
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")
QK_NORMS = {"": "NoNorm", "lane": "OfHead", "whole": "OfAll", "head": "LayerOfHead"}
CURVES = {"gelu_pytorch_tanh": "gelu_tanh"}
ELEMENTARY = ("exp", "erf", "tanh", "cos", "sin", "sqrt")
MLP = ("gate", "up", "down")
NORMS = ("attn_norm", "mlp_norm", "attn_out_norm", "mlp_out_norm")


@dataclass(frozen=True)
class Case:
    """A small model, and the tokens that it reads."""

    d: Decoder
    state: State
    ids: Tensor


def draw(seed: int) -> Case:
    """Any value of the normal form that some family could have, with normal weights."""
    rng, gen = random.Random(seed), torch.Generator().manual_seed(seed)

    def some(chance: float = 0.5) -> bool:
        return rng.random() < chance

    layer, hidden = some(), rng.choice((2, 3, 3, 4))
    groups, repeats = rng.choice((1, 2)), rng.choice((1, 2))
    lanes = rng.choice((2, 2, 2, 4))
    layers, dims = rng.choice((1, 1, 1, 2)), rng.choice((2, lanes))
    places = rng.choice(("pre", "pre", "post", "both"))
    turning = Rotary(
        theta=rng.choice((1e4, 5e5)), dims=dims, original_positions=8,
        kind=rng.choice(("default", "default", "linear", "llama3")), factor=2.5,
    )  # fmt: skip
    kinds = [
        Kind(
            rotary=None if some(0.2) else turning,
            window=2 if some(0.3) else None,
            sparse=some(0.2),
        )
        for _ in range(layers)
    ]
    sparse = any(kind.sparse for kind in kinds)
    d = Decoder(
        vocab=VOCAB, hidden=hidden, heads=groups * repeats, groups=groups,
        head_dim=lanes, mlp=rng.choice((1, 2, 2, 3)), layers=layers, kinds=tuple(kinds),
        eps=rng.choice((1e-5, 1e-6, 0.3)), norm_size=hidden - (some(0.2) and hidden > 2),
        norm="layer" if layer else "rms", norm_bias=some(),
        norm_offset=float(some(0.3)), places=places,
        parallel=0 if places == "post" else rng.choice((0, 0, 1, 2)),
        qk_norm=rng.choice(("", "head") if layer else ("", "lane", "whole")),
        activation=rng.choice(ACTIVATIONS), gated=sparse or some(),
        biases=frozenset(x for x in (*"qkvo", *MLP, "head") if some()),
        root_embedding=some(0.3), embedding_scale=rng.choice((1.0, 1.7)),
        residual_scale=rng.choice((1.0, 0.3)), logit_divisor=rng.choice((1.0, 1.3)),
        score=rng.choice((None, 0.7)), score_cap=rng.choice((None, None, 2.0)),
        logit_cap=rng.choice((None, None, 1.5)), positions=LENGTH * some(0.3),
        experts=3 * sparse, active=rng.choice((1, 2)) * sparse, expert_mlp=2 * sparse,
        renormalised=some(), tied=some(0.3),
    )  # fmt: skip
    state = {
        name: torch.randn(size, generator=gen, dtype=torch.float64)
        for name, size in tensors(d)
    }
    return Case(d, state, torch.randint(0, VOCAB, (1, LENGTH), generator=gen))


# The clone, and what elementary functions it asked for


class Asked(TorchDispatchMode):
    """Notes each argument of an elementary function, and torch's value of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: Tables = defaultdict(dict)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The value of `func`, noted."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in ELEMENTARY:
            self.tables[name] |= listed(args[0], out)
        elif name == "pow":
            base, exponent = map(numbers, args)
            for b, e, y in zip(base, exponent, numbers(out), strict=True):
                self.tables[b][e] = y
        return out


def numbers(x: Tensor) -> list[float]:
    """Its entries, -0 as +0."""
    return [n + 0.0 for n in x.flatten().tolist()]


def listed(x: Tensor, y: Tensor) -> dict[float, float]:
    """Entry of x → entry of y."""
    return dict(zip(numbers(x), numbers(y), strict=True))


def words(x: Tensor) -> Words:
    """The bits of each entry of a matrix."""
    return [[n % 2**64 for n in row] for row in x.view(torch.int64).tolist()]


def computed(case: Case) -> tuple[Words, Tables]:
    """The clone's logits in index order, (T, V), and the tables of what it asked for."""
    asked = Asked()
    with torch.no_grad(), asked, growproof.ordered():
        logits = clone.forward(case.d, case.state, case.ids)["logits"][0]
        for turning in [kind.rotary for kind in case.d.kinds if kind.rotary]:
            plain = replace(turning, kind="default").frequencies()
            asked.tables["rescaled"] |= listed(plain, turning.frequencies())
    asked.tables["sqrt"][float(case.d.hidden)] = case.d.hidden**0.5
    return words(logits), asked.tables


# The same model for Binary.v


def coq(x: object) -> str:
    """Floats, sizes, tensors of floats, and what is nested of these."""
    return nested(x, single)


def single(x: object) -> str:
    """A float, a size, a tensor, or a term that is spelled already."""
    if isinstance(x, Tensor):
        return coq(x.tolist())
    if isinstance(x, int):
        return f"{x}%nat"
    if isinstance(x, float):
        return "neg_infinity" if x == -math.inf else f"({x.hex()})%float"
    return str(x)


def number(x: float | None) -> str:
    """A binary64, or none."""
    return "None" if x is None else f"(Some {one(x)})"


def one(x: float) -> str:
    """A binary64."""
    return f"(of_float {coq(float(x))})"


def tables(found: Tables) -> str:
    """The tables of Binary.v."""
    names = ("exp", "erf", "tanh", "cos", "sin", "sqrt", "rescaled")
    plain = [f"(pairs {coq([*found.get(name, {}).items()])})" for name in names]
    powers = "; ".join(
        f"({one(base)}, pairs {coq([*table.items()])})"
        for base, table in found.items()
        if isinstance(base, float)
    )
    return f"(Tables {' '.join(plain)} [:: {powers}])"


def family(d: Decoder) -> str:
    """The switches of Families.v."""
    return (
        f"(Family {coq(d.norm == 'layer')} {coq(d.places != 'post')} "
        f"{coq(d.places != 'pre')} {coq(d.parallel)} {QK_NORMS[d.qk_norm]} "
        f"{coq(d.gated)} {coq(d.norm_offset == 1)} {coq(d.root_embedding)})"
    )


def config(d: Decoder) -> str:
    """The numbers of Families.v's config."""
    divided = "y" if d.logit_divisor == 1 else f"(div64 y {one(d.logit_divisor)})"
    constants = {
        "gelu": one(math.sqrt(2)),
        "gelu_pytorch_tanh": f"{one(math.sqrt(2 / math.pi))} {one(0.044715)}",
    }
    name = CURVES.get(d.activation, d.activation)
    size = "None" if d.norm_size == d.hidden else f"(Some {coq(d.norm_size)})"
    return (
        f"(@Config binary {one(d.eps)} {size} {number(d.score_scale)} "
        f"(Some {coq(d.rotary.dims)}) {one(d.embedding_scale)} {one(d.residual_scale)} "
        f"(fun y => capped tb {number(d.logit_cap)} {divided}) "
        f"({name} tb {constants.get(d.activation, '')}))"
    )


def layer(case: Case, i: int) -> str:
    """The parameters of a layer."""
    d, p, kind = case.d, f"layers.{i}.", case.d.kinds[i]
    base = number(kind.rotary.theta if kind.rotary else None)
    window = LENGTH if kind.window is None else kind.window
    norms = " ".join(norm(case, p + name) for name in NORMS)
    heads = " ".join(f"(vector {coq(given(case, f'{p}{x}_norm')[0])})" for x in "qk")
    if kind.sparse:
        parts = [case.state[f"{p}expert_{x}.weight"] for x in MLP]
        each = [
            [(w, list[float]()) for w in found] for found in zip(*parts, strict=True)
        ]
        router = coq(case.state[f"{p}router.weight"])
        feed = (
            f"experts_of tb {coq(d.expert_mlp)} {coq(d.active)} {coq(d.renormalised)} "
            f"{router} {coq(each)}"
        )
    else:
        feed = f"Dense (mlp_of {coq([given(case, p + x) for x in MLP])})"
    attention = coq([given(case, p + x) for x in "qkvo"])
    return (
        f"(@Params binary (kind_of tb {base} {coq(window)} {number(d.score_cap)}) {norms} "
        f"{heads} (attn_of {attention}) ({feed}))"
    )


def given(case: Case, name: str) -> tuple[list[Any], list[float]]:
    """Weight and bias; empty, all zeros for Coq, where there is none."""
    parts = (case.state.get(f"{name}.{part}") for part in ("weight", "bias"))
    w, b = ([] if x is None else x.tolist() for x in parts)
    return w, b


def norm(case: Case, name: str) -> str:
    """Weight and bias of a norm."""
    w, b = given(case, name)
    return f"(vector {coq(w)}, vector {coq(b)})"


def term(case: Case, found: Tables) -> str:
    """What Coq evaluates: the words of the logits."""
    d, positions = case.d, case.state.get("positions.weight")
    layers = "; ".join(layer(case, i) for i in range(d.layers))
    learned = "None" if positions is None else f"(Some (matrix {coq(positions)}))"
    weights = (
        f"(@Weights binary (matrix {coq(case.state['embed.weight'])}) {learned} "
        f"[:: {layers}] {norm(case, 'final_norm')} (matrix {coq(case.state[d.head])}) "
        f"(vector {coq(given(case, 'head')[1])}))"
    )
    sizes = f"(Dims {d.hidden} {d.groups} {d.repeats} {d.head_dim})%nat"
    return (
        f"Eval vm_compute in let tb := {tables(found)} in logit_words tb {family(d)} "
        f"{config(d)} {sizes} {coq(d.mlp)} {weights} {coq(d.vocab)} {coq(case.ids[0])}."
    )


def coqs(terms: list[str], folder: Path) -> list[Words]:
    """The words that Coq computes for each term. folder: the built proofs."""
    lines = [
        "From Coq Require Import Floats.",
        "From mathcomp Require Import all_ssreflect.",
        "From Growproof Require Import Arith Attention Mlp Experts Families Spelled Binary.",
    ]
    return printed([*lines, *terms], folder)
