"""Growers of other people, written anew from their papers: black boxes to the suite.

They know the public contract, `grow(model, target)`, and import nothing of growproof.
What each claims, and what the suite says of it: results/others/README.md.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from integration.article import article_script
from integration.by_hand import (
    Unsupported,
    axes_of,
    empty,
    grown_sizes,
    old_layer,
    per_head,
    placed,
    refuse_all_but,
    refuse_changes,
    sizes,
)

WRITERS = ("embed_tokens", "o_proj", "down_proj")


def eps_name(config: Any) -> str:
    return "layer_norm_eps" if config.model_type == "stablelm" else "rms_norm_eps"


# --- HyperCloning (Samragh et al. 2024, arXiv:2409.12903) -------------------------------


def hypercloning(model: Any, target: Mapping[str, int]) -> Any:
    """Every neuron is cloned, and whoever reads the clones divides by their number.

    The paper's factors are whole. Here a size may also grow by less: lane j is a copy of
    lane j mod D, c of them in all, each written √(D'/(D c)) as loud, so that an RMSNorm
    sees the old root mean square. A LayerNorm's mean bears only whole factors. head_dim
    and the number of layers stay.
    """
    config = model.config
    refuse_changes(config, target, "head_dim", "num_hidden_layers")
    old, new = sizes(config), grown_sizes(config, target)
    layer_norm = config.model_type == "stablelm"
    if layer_norm and new["hidden_size"] % old["hidden_size"]:
        raise Unsupported("a LayerNorm model grows by whole factors only")
    groups, groups_new = old["num_key_value_heads"], new["num_key_value_heads"]
    repeats = old["num_attention_heads"] // groups
    repeats_new = new["num_attention_heads"] // groups_new
    heads = [
        (g % groups) * repeats + r % repeats
        for g in range(groups_new)
        for r in range(repeats_new)
    ]
    lanes = {
        "residual": cycle(old["hidden_size"], new["hidden_size"]),
        "mlp": cycle(old["intermediate_size"], new["intermediate_size"]),
        "key": per_head(cycle(groups, groups_new), old["head_dim"]),
        "query": per_head(heads, old["head_dim"]),
    }
    copies = {axis: torch.bincount(torch.tensor(x))[x] for axis, x in lanes.items()}
    ratio = new["hidden_size"] / old["hidden_size"]
    loud = (ratio / copies["residual"].double()).sqrt()
    grown, state = empty(model, target), dict(model.named_parameters())
    with torch.no_grad():
        for name, p in grown.named_parameters():
            w = state[name].double()
            p.copy_(cloned(name, w, lanes, copies, loud))
            if config.tie_word_embeddings and name == "model.norm.weight":
                # the embedding reads as well, as loud as it writes, and c times over
                p.copy_(w[lanes["residual"]] / ratio)
    return grown


def cycle(size: int, size_new: int) -> list[int]:
    return [j % size for j in range(size_new)]


def cloned(
    name: str,
    w: Tensor,
    lanes: dict[str, list[int]],
    copies: dict[str, Tensor],
    loud: Tensor,
) -> Tensor:
    """One parameter: cloned along its outputs, cloned and divided along its inputs."""
    out, into = axes_of(name)
    if out in lanes:
        w = w[lanes[out]]
    if into in lanes:
        w = w[:, lanes[into]]
    if "embed_tokens" in name:
        return w * loud
    if into in copies and not name.endswith("bias"):
        w = w / copies[into]
    if "o_proj" in name or "down_proj" in name:
        return w * (loud[:, None] if w.ndim == 2 else loud)
    if "norm" in name and name.endswith("weight"):
        return w / loud
    return w


# --- LEMON (Wang et al. 2023, arXiv:2310.07999) -----------------------------------------


def lemon(model: Any, target: Mapping[str, int]) -> Any:
    """Writers are padded with the mean of their lanes, so that LayerNorm's mean stays.

    New lanes then hold the mean, which the norm turns into zeros; γ' = η γ, ε' = η² ε
    with η = √(D/D'). An RMSNorm is padded with zeros. New heads and neurons are silent
    (zero fan-out), new layers end in zeros, and fan-in is free: drawn. head_dim stays.
    """
    config = model.config
    refuse_changes(config, target, "head_dim")
    old, new = sizes(config), grown_sizes(config, target)
    mean = config.model_type == "stablelm"
    eta = math.sqrt(old["hidden_size"] / new["hidden_size"])
    eps = eps_name(config)
    grown = empty(model, target, **{eps: getattr(config, eps) * eta**2})
    state = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in grown.named_parameters():
            source, silent = old_layer(name, old["num_hidden_layers"])
            w = state[source].double()
            if silent and ("o_proj" in name or "down_proj" in name):
                continue
            if "norm" in name and name.endswith("weight"):
                w = w * eta
            out, into = axes_of(name)
            free = into == "residual" and "embed_tokens" not in name
            if p.ndim == 2 and free:  # meets the zeros behind a norm
                draw = torch.randn(p.shape, generator=generator) * 0.02
                p.copy_(draw)
                p[:, : old["hidden_size"]] = 0
            placed(p, w, old, new, out, into)
            if mean and name.rsplit(".", 2)[-2] in WRITERS:
                dim, first = 1 if "embed_tokens" in name else 0, old["hidden_size"]
                lanes = p.narrow(dim, 0, first).double()
                new_lanes = p.narrow(dim, first, p.shape[dim] - first)
                new_lanes.copy_(lanes.mean(dim, keepdim=True))
    return grown


# --- the article, as published ----------------------------------------------------------


def article(model: Any, target: Mapping[str, int]) -> Any:
    """The article's script for StableLm: grow_proj, the rotary line, √(D/D'), √(K'/K).

    To run at all today it needs a tuple for an index where the article has a list, and
    `partial_rotary_factor`, which transformers 5 no longer keeps in the config. Its
    remarks on depth and MLP are followed: zeros. It stays wrong where it is wrong.
    """
    return article_script(model, target, mended=False)


def article_mended(model: Any, target: Mapping[str, int]) -> Any:
    """The article's recipe with the rotary line that transformers 5 reads, in eval mode.

    What is left of its errors is in the norms: LayerNorm's mean, and eps.
    """
    return article_script(model, target, mended=True)


# --- LLaMA-Pro (Wu et al. 2024, arXiv:2401.02415) ---------------------------------------


def llama_pro(model: Any, target: Mapping[str, int]) -> Any:
    """Block expansion: copies of blocks among the old ones, their last matrices zero.

    The paper's blocks have no biases; where o_proj and down_proj have one, it is zero
    too. Depth only.
    """
    refuse_all_but(model.config, target, "num_hidden_layers")
    layers = model.config.num_hidden_layers
    layers_new = target.get("num_hidden_layers", layers)
    grown = empty(model, target)
    # the copies follow the layers they are copied from, spread over the depth
    sources = sorted((i * layers) // layers_new for i in range(layers_new))
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in grown.named_parameters():
            found = re.search(r"\.(\d+)\.", name)
            if not found:
                p.copy_(state[name])
                continue
            i = int(found[1])
            is_copy = i > 0 and sources[i] == sources[i - 1]
            if is_copy and ("o_proj" in name or "down_proj" in name):
                continue
            p.copy_(state[name.replace(f".{i}.", f".{sources[i]}.", 1)])
    return grown


# --- Net2Net (Chen, Goodfellow & Shlens 2016, arXiv:1511.05641) --------------------------


def net2net(model: Any, target: Mapping[str, int]) -> Any:
    """Net2WiderNet on the MLP, Net2DeeperNet on the blocks.

    A new neuron is a copy of one drawn at random, and whoever reads the copies divides by
    their number. A new block is the identity: of a residual block, its writers are zero.
    """
    refuse_all_but(model.config, target, "num_hidden_layers", "intermediate_size")
    old, new = sizes(model.config), grown_sizes(model.config, target)
    generator = torch.Generator().manual_seed(0)
    extra = new["intermediate_size"] - old["intermediate_size"]
    drawn = torch.randint(old["intermediate_size"], (extra,), generator=generator)
    mapping = [*range(old["intermediate_size"]), *drawn.tolist()]
    count = torch.bincount(torch.tensor(mapping), minlength=old["intermediate_size"])
    grown, state = empty(model, target), dict(model.named_parameters())
    with torch.no_grad():
        for name, p in grown.named_parameters():
            source, is_new = old_layer(name, old["num_hidden_layers"])
            if is_new and ("o_proj" in name or "down_proj" in name):
                continue
            w = state[source].double()
            out, into = axes_of(name)
            w = w[mapping] if out == "mlp" else w
            w = (w / count)[:, mapping] if into == "mlp" else w
            p.copy_(w)
    return grown


# --- mergekit's passthrough, and SOLAR's depth up-scaling (arXiv:2312.15166) -------------


def passthrough(model: Any, target: Mapping[str, int]) -> Any:
    """Ranges of layers behind one another, those in the middle twice, as they are."""
    refuse_all_but(model.config, target, "num_hidden_layers")
    layers = model.config.num_hidden_layers
    more = target.get("num_hidden_layers", layers) - layers
    if more > layers:
        raise Unsupported(f"{layers} layers are stacked at most twice")
    first = (layers + more) // 2  # the second range ends with the last layer
    sources = [*range(first), *range(first - more, layers)]
    grown, state = empty(model, target), dict(model.named_parameters())
    with torch.no_grad():
        for name, p in grown.named_parameters():
            found = re.search(r"\.(\d+)\.", name)
            if found:
                at, now = f".{found[1]}.", f".{sources[int(found[1])]}."
                name = name.replace(at, now, 1)
            p.copy_(state[name])
    return grown


# --- foundation-model-stack's larger head_dim (its pull request 472) ---------------------


def fms_head_dim(model: Any, target: Mapping[str, int]) -> Any:
    """Zeros between the lanes of a head, at load time, for a kernel that takes larger ones.

    Lane j goes to m·j, m even, which keeps every rotary pair and frequency. A Granite's
    scores are scaled by its config, whatever head_dim is. As in the pull request, the
    zeros are of the default dtype, and what is stored has gone through it.
    """
    refuse_all_but(model.config, target, "head_dim")
    old, new = sizes(model.config), grown_sizes(model.config, target)
    times, rest = divmod(new["head_dim"], old["head_dim"])
    if rest or (times > 1 and times % 2):
        raise Unsupported("head_dim is multiplied by an even number")
    grown, state = empty(model, target), dict(model.named_parameters())
    lanes = {
        axis: torch.arange(old[name] * old["head_dim"]) * times
        for axis, name in (
            ("query", "num_attention_heads"),
            ("key", "num_key_value_heads"),
        )
    }
    with torch.no_grad():
        for name, p in grown.named_parameters():
            w, (out, into) = state[name], axes_of(name)
            if times == 1 or not {out, into} & lanes.keys():
                p.copy_(w)
                continue
            wider = torch.zeros(p.shape)  # of the default dtype
            at = (lanes.get(out, torch.arange(p.shape[0])),)
            if p.ndim == 2:
                at = (at[0][:, None], lanes.get(into, torch.arange(p.shape[-1])))
            wider[at] = w.to(wider.dtype)
            p.copy_(wider)
    return grown


# --- the MLP script of Qwen's documentation (GPTQ: 29568 to 29696) -----------------------


def qwen_mlp(model: Any, target: Mapping[str, int]) -> Any:
    """gate and up get rows of zeros at the end, down gets columns: a block fits then."""
    refuse_all_but(model.config, target, "intermediate_size")
    grown, state = empty(model, target), dict(model.named_parameters())
    with torch.no_grad():
        for name, p in grown.named_parameters():
            w = state[name]
            p[tuple(slice(size) for size in w.shape)] = w
    return grown


# --- key/value heads replicated, for tensor parallelism ----------------------------------


def kv_replication(model: Any, target: Mapping[str, int]) -> Any:
    """Each key/value head n times, one behind the other: the query heads find their own."""
    refuse_all_but(model.config, target, "num_key_value_heads")
    old, new = sizes(model.config), grown_sizes(model.config, target)
    times, rest = divmod(new["num_key_value_heads"], old["num_key_value_heads"])
    if rest or old["num_attention_heads"] % new["num_key_value_heads"]:
        raise Unsupported("each key/value head is repeated the same number of times")
    heads = [h for h in range(old["num_key_value_heads"]) for _ in range(times)]
    lanes = per_head(heads, old["head_dim"])
    grown, state = empty(model, target), dict(model.named_parameters())
    with torch.no_grad():
        for name, p in grown.named_parameters():
            p.copy_(state[name][lanes] if axes_of(name)[0] == "key" else state[name])
    return grown


# --- sparse upcycling (Komatsuzaki et al. 2023, arXiv:2212.05055) ------------------------


def sparse_upcycling(model: Any, experts: int = 4, chosen: int = 2) -> Any:
    """A Mixtral each of whose experts is the Llama's MLP, behind a router that is drawn.

    The chosen experts' weights sum to 1, so that the router has no effect. Another family
    than before, which no target says: judged as two directories, by `growproof verify`.
    """
    old = model.config
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
        "max_position_embeddings", "tie_word_embeddings", "rope_parameters",
        "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    config = MixtralConfig(
        **{name: copy.deepcopy(getattr(old, name)) for name in same},
        num_local_experts=experts, num_experts_per_tok=chosen,
    )  # fmt: skip
    grown = MixtralForCausalLM(config).to(model.dtype).eval()
    grown.generation_config = copy.deepcopy(model.generation_config)
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in grown.named_parameters():
            if name in state:
                p.copy_(state[name])
                continue
            mlp = name.partition("mlp.")[0] + "mlp."
            if "gate_up_proj" in name:
                both = [state[f"{mlp}{half}_proj.weight"] for half in ("gate", "up")]
                p.copy_(torch.cat(both).expand_as(p))
            elif "down_proj" in name:
                p.copy_(state[f"{mlp}down_proj.weight"].expand_as(p))
            else:
                p.normal_(generator=torch.Generator().manual_seed(0))
    return grown


# what each does not claim, as `growproof check --without`
WITHOUT: dict[str, tuple[str, ...]] = {
    "hypercloning": ("stablelm", "head_dim", "layers", "zero_padding"),
    "lemon": ("head_dim", "zero_padding"),
    "net2net": ("hidden", "heads", "groups", "head_dim", "zero_padding"),
    "llama_pro": ("hidden", "heads", "groups", "head_dim", "mlp"),
    "passthrough": ("hidden", "heads", "groups", "head_dim", "mlp", "zero_padding"),
    "article": ("llama", "gqa", "heads"),
    "article_mended": ("llama", "gqa", "heads"),
    "fms_head_dim": ("hidden", "heads", "groups", "mlp", "layers"),
    "qwen_mlp": ("hidden", "heads", "groups", "head_dim", "layers"),
    "kv_replication": ("hidden", "heads", "head_dim", "mlp", "layers", "zero_padding"),
}
# the families that they are for, where these are not the usual ones
FAMILIES = {"fms_head_dim": "granite", "qwen_mlp": "qwen2,llama"}
