"""Python and the Coq decoder on the same integers: is the proved function the tested one?

Both run without rounding: Z in Coq (Integers.v), whole float64 numbers in the clone, and in
transformers' own code with its own cache, with the same whole-number stand-ins for what the
theorems leave open: softmax, activation, norms, cosines and sines. A model is drawn at
random; Coq evaluates its logits.
"""

import random
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from growproof import clone as eager
from growproof.decoder import Decoder, Kind, Rotary
from growproof.models import build, decoder_of
from growproof.padding import State
from growproof.table import tensors
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, StableLmConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ..laws.doors import cache_name

Table = list[list[int]]
LENGTH, HEAD_DIM = 4, 4
ATTENTION = [*"qkvo"]
MLP = ["gate", "up", "down"]


@dataclass(frozen=True)
class Case:
    """A small model with whole weights, the tokens it reads, and its cosines and sines."""

    d: Decoder
    state: State
    ids: Tensor
    cos: Tensor
    sin: Tensor


def draw(seed: int) -> Case:
    """One of either family: any heads, biases, rotary part, norms of q and k, residual.

    A layer has one MLP, or three experts.
    """
    rng, gen = random.Random(seed), torch.Generator().manual_seed(seed)

    def whole(*size: int) -> Tensor:
        return torch.randint(-2, 3, size, generator=gen).double()

    def some() -> bool:
        return rng.random() < 0.5

    llama = some()
    groups, repeats = rng.choice((1, 2)), rng.choice((1, 2, 3))
    hidden = groups * repeats * (HEAD_DIM if not llama else rng.choice((1, 2)))
    dims = HEAD_DIM if llama else rng.choice((2, 4))
    layers, parallel = rng.choice((1, 2)), not llama and some()
    biases = {*("qkv" if some() else ""), *("o" if llama and some() else "")}
    if llama and some():
        biases |= {*MLP}
    rotary = Rotary(theta=1e4, dims=dims)
    kinds = [Kind(rotary=rotary, sparse=rng.random() < 0.2) for _ in range(layers)]
    sparse = any(kind.sparse for kind in kinds)
    d = Decoder(
        vocab=5, hidden=hidden, heads=groups * repeats, groups=groups, head_dim=HEAD_DIM,
        mlp=rng.choice((2, 3)), layers=layers, eps=1e-5, norm_size=hidden,
        kinds=tuple(kinds), split=llama, renormalised=False,
        experts=3 * sparse, active=rng.choice((1, 2)) * sparse, expert_mlp=2 * sparse,
        norm="rms" if llama else "layer", biases=frozenset(biases),
        parallel=int(parallel), tied=some(),
        qk_norm="head" if not llama and some() else "",
    )  # fmt: skip
    state = {name: whole(*size) for name, size in tensors(d)}
    ids = torch.randint(0, d.vocab, (1, LENGTH), generator=gen)
    return Case(d, state, ids, whole(LENGTH, dims // 2), whole(LENGTH, dims // 2))


# The clone, with the stand-ins of Integers.v


def soft(scores: Tensor) -> Tensor:
    """Integers.v's `soft`; scores come divided by √4, the stand-in takes them whole."""
    seen = scores > torch.finfo(scores.dtype).min / 2  # what transformers hides them by
    whole = torch.where(seen, 2 * scores, 0.0)
    total = whole.sum(-1, keepdim=True)
    return torch.where(seen, torch.remainder(whole * whole + 3 * total, 7), 0.0)


def mixed(x: Tensor, weight: Tensor, bias: Tensor | None, *_: object) -> Tensor:
    """Integers.v's `mixed`, in the place of a norm."""
    y = weight * torch.remainder(5 * x + x.sum(-1, keepdim=True), 13)
    return y if bias is None else y + bias


def bend(z: Tensor) -> Tensor:
    """Integers.v's `bend`, in the place of an activation."""
    return torch.remainder(z * z + 3 * z, 11)


def largest(x: Tensor, k: int, dim: int) -> Any:
    """Tensor.topk, the first of equal ones first: Integers.v's `largest`."""
    both = x.sort(dim=dim, descending=True, stable=True)
    return SimpleNamespace(values=both[0][..., :k], indices=both[1][..., :k])


@contextmanager
def stand_ins(case: Case) -> Iterator[None]:
    """The clone computes with them inside."""
    turned = (case.cos, case.sin)
    with (
        patch.multiple(
            eager, softmax=soft, normalise=mixed, rotation=lambda *_: turned
        ),
        patch.dict(eager.ACTIVATIONS, silu=bend),
        patch.object(Tensor, "topk", largest),
    ):
        yield


def clone(case: Case) -> Table:
    """The clone's logits, (T, V). Raises ValueError where they are not whole numbers."""
    with stand_ins(case):
        return whole_numbers(eager.forward(case.d, case.state, case.ids)["logits"][0])


def whole_numbers(logits: Tensor) -> Table:
    """As integers. Raises ValueError where they are none that float64 can tell apart."""
    if not bool((logits == logits.round()).all()) or float(logits.abs().max()) > 2**52:
        raise ValueError(f"not whole numbers below 2^52: {logits}")
    return logits.long().tolist()


# transformers' own code, token by token, with the same stand-ins


def stock(case: Case) -> Any:
    """The case as a Llama or a StableLm of transformers; absent biases are zero."""
    d, llama = case.d, case.d.norm == "rms"
    rope = {"rope_type": "default", "rope_theta": 1e4}
    sizes = {
        "vocab_size": d.vocab, "hidden_size": d.hidden, "intermediate_size": d.mlp,
        "num_hidden_layers": d.layers, "num_attention_heads": d.heads,
        "num_key_value_heads": d.groups, "tie_word_embeddings": d.tied,
    }  # fmt: skip
    config = (
        LlamaConfig(
            **sizes, head_dim=HEAD_DIM, rope_parameters=rope,
            attention_bias=bool({*"qkvo"} & d.biases), mlp_bias="up" in d.biases,
        )
        if llama
        else StableLmConfig(
            **sizes, use_qkv_bias="q" in d.biases, use_parallel_residual=d.parallel > 0,
            qk_layernorm=bool(d.qk_norm),
            rope_parameters=rope | {"partial_rotary_factor": d.partial_rotary_factor},
        )
    )  # fmt: skip
    config._attn_implementation = "eager"
    return build(
        config,
        {
            name: case.state.get(name, torch.zeros(size).double())
            for name, size in tensors(decoder_of(config))
        },
    ).eval()


def cached(case: Case) -> Table:
    """The logits of `stock`, (T, V): each token run alone, with transformers' cache."""
    model = stock(case)
    for layer in model.model.layers:
        layer.mlp.act_fn.forward = bend
    turned = [torch.cat((x, x), -1) for x in (case.cos, case.sin)]

    def rotary(x: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(table[position_ids] for table in turned)

    def norm(layer: Any, x: Tensor) -> Tensor:
        return mixed(x, layer.weight, getattr(layer, "bias", None))

    with (
        torch.no_grad(),
        patch.object(F, "softmax", lambda scores, **_: soft(scores)),
        patch.object(LlamaRMSNorm, "forward", norm),
        patch.object(torch.nn.LayerNorm, "forward", norm),
        patch.object(model.model.rotary_emb, "forward", rotary),
    ):
        name, cache, rows = cache_name(model), None, list[Tensor]()
        for token in case.ids[0]:
            out = model(token.view(1, 1), use_cache=True, **{name: cache})
            cache = out[name]
            rows.append(out.logits[0, -1])
    return whole_numbers(torch.stack(rows))


# The same model for Integers.v


def packed(x: Tensor) -> str:
    """A vector or a table, four bits an entry: a literal that Coq reads in no time."""
    bits = sum((int(n) + 8) << 4 * i for i, n in enumerate(x.flatten().tolist()))
    sizes = " ".join(f"{n}%nat" for n in x.shape)
    return f"(unpack{'2' * (x.ndim == 2)} {sizes} {bits:#x})"


def nested(x: object, single: Callable[[Any], str]) -> str:
    """A truth, a pair, an option or nested lists, as Coq reads them. single: all else."""
    if isinstance(x, list):
        return f"[:: {'; '.join(nested(y, single) for y in x)}]"
    if isinstance(x, tuple):
        return f"({', '.join(nested(y, single) for y in x)})"
    if x is None or isinstance(x, bool):
        return "None" if x is None else str(x).lower()
    return single(x)


def coq(x: object) -> str:
    """Whole numbers, tensors of them, and what is nested of these."""
    return nested(x, lambda n: packed(n) if isinstance(n, Tensor) else f"({n})")


def term(case: Case) -> str:
    """The raw_model of Integers.v."""
    d, state = case.d, case.state

    def linear(name: str) -> tuple[Tensor, Tensor]:
        w = state[f"{name}.weight"]
        return w, state.get(f"{name}.bias", torch.zeros(len(w)))

    def heads(name: str) -> list[Tensor]:
        return list(state[f"{name}.weight"].view(-1, HEAD_DIM))

    def experts(p: str) -> list[list[tuple[Tensor, Tensor]]]:
        parts = [state[f"{p}expert_{x}.weight"] for x in MLP]
        return [
            [(w, torch.zeros(len(w))) for w in each]
            for each in zip(*parts, strict=True)
        ]

    def norm(name: str) -> str:
        return f"(Some {coq(linear(name))})"

    def layer(i: int) -> str:
        p = f"layers.{i}."
        second = "attn" if d.parallel else "mlp"
        q, k = (coq(heads(f"{p}{x}_norm")) if d.qk_norm else "[::]" for x in "qk")
        sparse = d.kinds[i].sparse
        dense = [] if sparse else [linear(p + x) for x in MLP]
        router = coq(state[f"{p}router.weight"]) if sparse else "[::]"
        return (
            f"Raw {norm(p + 'attn_norm')} None {norm(f'{p}{second}_norm')} "
            f"None {q} {k} {LENGTH}%nat {coq([linear(p + x) for x in ATTENTION])} "
            f"{coq(dense)} {d.active}%nat {router} {coq(experts(p) if sparse else [])}"
        )

    sizes = f"(Dims {d.hidden} {d.groups} {d.repeats} {d.head_dim})%nat {d.mlp}%nat"
    head = "embed" if d.tied else "head"
    return (
        f"RawModel {sizes} {d.rotary.dims}%nat true {coq(d.parallel > 0)} 1 1 "
        f"{coq(case.cos)} {coq(case.sin)} {coq(state['embed.weight'])} None "
        f"[:: {'; '.join(map(layer, range(d.layers)))}] {norm('final_norm')} "
        f"{coq(linear(head))}"
    )


def coqs(cases: list[Case], folder: Path, function: str = "numbers") -> list[Table]:
    """Integers.v's logits of each case, by that function. folder: the built proofs."""
    lines = [
        "From Coq Require Import ZArith.",
        "From mathcomp Require Import all_ssreflect.",
        "From Growproof Require Import Attention Integers.",
        "Local Open Scope Z_scope.",
    ]
    for case in cases:
        ids = "; ".join(f"{i}%nat" for i in case.ids[0].tolist())
        lines.append(
            f"Eval vm_compute in {function} ({term(case)}) {LENGTH}%nat [:: {ids}]."
        )
    return printed(lines, folder)


def printed(lines: list[str], folder: Path) -> list[Table]:
    """The table that each `Eval` of these lines prints. folder: the built proofs."""
    (folder / "Cases.v").write_text("\n".join(lines))
    command = ["coqc", "-w", "none", "-R", ".", "Growproof", "Cases.v"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    answers = done.stdout.split("     = ")[1:]
    return [
        [[int(n) for n in re.findall(r"-?\d+", row)] for row in rows.split("[::")[2:]]
        for rows in answers
    ]
