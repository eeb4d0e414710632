"""Every stored entry accounted for, or the first that is not named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof import grow
from growproof.checkpoints import grow_checkpoint
from growproof.families import FAMILIES
from growproof.growth import Policies
from growproof.verify import Side, verify
from growproof.verify.accounting import Accounted, accounted
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from .small import (
    WIDER,
    each_layer,
    llama,
    loud,
    of_family,
    permuted,
    saved,
    stored,
    with_tensors,
)


def account(source: Path, destination: Path) -> Accounted:
    return accounted(Side.of(source), Side.of(destination))


def first_miss(source: Path, destination: Path) -> str:
    found = account(source, destination).account
    assert found is not None
    assert found.misses
    return str(found.misses[0])


GROWN = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_entry_of_a_growth_is_accounted_for(family: str, tmp_path: Path) -> None:
    source = saved(of_family(family), tmp_path / "source")
    policies = Policies(fill="trainable", depth="interleave")
    grow_checkpoint(source, tmp_path / "grown", GROWN, policies=policies)
    found = account(source, tmp_path / "grown")
    assert found.complete, found


@pytest.mark.parametrize("rotary", ["parted", "between"])
@pytest.mark.parametrize("family", FAMILIES)
def test_new_lanes_of_a_head_are_accounted_for(
    family: str, rotary: Any, tmp_path: Path
) -> None:
    """Wherever they lie, in layers without a rotary embedding as well."""
    unturned = {"no_rope_layers": [1, 0]} if family == "smollm3" else {}
    source = saved(of_family(family, **unturned), tmp_path / "source")
    tied = FAMILIES[family].tied_head_dim
    target = {"hidden_size": 32} if tied else {"head_dim": 16}
    policies = Policies(fill="trainable", rotary=rotary)
    grow_checkpoint(source, tmp_path / "grown", target, policies=policies)
    found = account(source, tmp_path / "grown")
    assert found.complete, found


def nudged(x: torch.Tensor, at: tuple[int, ...]) -> torch.Tensor:
    """x with one entry moved to its neighbour."""
    y = x.clone()
    y[at] = torch.nextafter(y[at], torch.tensor(torch.inf))
    return y


def test_where_nothing_is_scaled_no_entry_may_change(
    source: Path, tmp_path: Path
) -> None:
    sizes = {"intermediate_size": 31, "num_hidden_layers": 3}
    grow_checkpoint(source, tmp_path / "grown", sizes)
    tensors = stored(tmp_path / "grown")
    old = {name: x for name, x in tensors.items() if "layers.2." not in name}
    for name, x in old.items():
        at = tuple(n // 3 for n in x.shape)
        with_tensors(tmp_path / "grown", {name: nudged(x, at)})
        where = first_miss(source, tmp_path / "grown")
        assert f"row {at[0]}" in where
        with_tensors(tmp_path / "grown", {name: x})
    assert len(old) == 21
    assert account(source, tmp_path / "grown").complete


def test_where_something_is_scaled_it_may_be_rounded_once(
    source: Path, tmp_path: Path
) -> None:
    grow_checkpoint(source, tmp_path / "grown", {"head_dim": 12})
    name = "model.layers.0.self_attn.q_proj.weight"
    x = stored(tmp_path / "grown")[name]
    with_tensors(tmp_path / "grown", {name: nudged(x, (0, 0))})
    assert account(source, tmp_path / "grown").complete
    with_tensors(
        tmp_path / "grown", {name: nudged(nudged(nudged(x, (1, 2)), (1, 2)), (1, 2))}
    )
    assert "layers.0.q.weight, row 1, column 2" in first_miss(
        source, tmp_path / "grown"
    )


def test_any_order_is_accounted_for(source: Path, tmp_path: Path) -> None:
    """Lanes of the residual in reverse, neurons and layers between the old ones."""
    model = LlamaForCausalLM.from_pretrained(source)
    other = permuted(grow(model, WIDER | {"num_hidden_layers": 5}, depth="interleave"))
    with torch.no_grad():
        for layer in other.model.layers:
            order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
            for name in ("gate_proj", "up_proj"):
                p = getattr(layer.mlp, name).weight
                p.copy_(p[order].clone())
            layer.mlp.down_proj.weight.copy_(
                layer.mlp.down_proj.weight[:, order].clone()
            )
    good = saved(other, tmp_path / "good")
    found = account(source, good)
    assert found.complete, found
    assert found.placed is not None
    assert sorted(found.placed.layers) == [1, 4]


def replicated(model: Any, *, tiled: bool) -> Any:
    """4 query heads on 2 key/value heads, each of those held twice."""
    grown = grow(model, {"num_key_value_heads": 4})

    def order(layer: Any) -> None:
        for p in (layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight):
            heads = p.view(4, 8, -1)
            heads.copy_(heads[[0, 2, 1, 3]].clone())

    return each_layer(grown, order) if tiled else grown


def test_the_order_of_key_heads_is_named(tmp_path: Path) -> None:
    model = llama(num_attention_heads=4, num_key_value_heads=2)
    source = saved(model, tmp_path / "source")
    good = saved(replicated(model, tiled=False), tmp_path / "good")
    assert account(source, good).complete
    bad = saved(replicated(model, tiled=True), tmp_path / "bad")
    result = verify(source, bad, tokens=32)
    assert not result.same
    assert "layers.0, attention: the order of the key/value heads" in result.verdict
    assert str(result.parting).startswith("layers.0.key is off by")


@pytest.mark.parametrize("slip", [False, True])
def test_a_copy_of_a_block_behind_it_is_a_new_layer(
    slip: bool, source: Path, tmp_path: Path
) -> None:
    """LLaMA-Pro: o and down of the copy are zero; here down once is not."""
    model = LlamaForCausalLM.from_pretrained(source)
    grown = grow(model, {"num_hidden_layers": 4}, depth="append")
    layers = [model.model.layers[i].state_dict() for i in (0, 0, 1, 1)]
    for i, (layer, state) in enumerate(zip(grown.model.layers, layers, strict=True)):
        layer.load_state_dict(state)
        if i % 2:
            layer.self_attn.o_proj.weight.data.zero_()
            if not (slip and i == 3):
                layer.mlp.down_proj.weight.data.zero_()
    pro = saved(grown, tmp_path / "pro")
    if not slip:
        assert account(source, pro).complete
        return
    result = verify(source, pro, tokens=32)
    assert "layers.3.down.weight" in first_miss(source, pro)
    assert str(result.parting).startswith("layers.3.mlp is off by")


@pytest.mark.parametrize(
    "part", ["self_attn.v_proj.weight", "block_sparse_moe.gate.weight"]
)
def test_a_wrong_entry_beside_wider_experts_is_named(part: str, tmp_path: Path) -> None:
    """The first tap that parts is looked for among experts, too."""
    source = saved(of_family("mixtral"), tmp_path / "source")
    grown = tmp_path / "grown"
    grow_checkpoint(source, grown, {"intermediate_size": 60})
    name = f"model.layers.0.{part}"
    with_tensors(grown, {name: -stored(grown)[name]})
    result = verify(source, grown)
    assert not result.same
    assert result.parting is not None


def test_a_mean_is_removed_before_what_is_left_is_rounded(tmp_path: Path) -> None:
    """Where the mean is large, one rounding of the whole is much of what is left."""
    model = of_family("gpt_neox").bfloat16()
    for name, p in model.named_parameters():
        if name.endswith("dense_4h_to_h.weight"):
            p.data = (1 + 0.02 * torch.randn(p.shape)).bfloat16()
    source, grown = saved(model, tmp_path / "source"), tmp_path / "grown"
    grow_checkpoint(source, grown, WIDER)
    assert account(source, grown).complete
    name = "gpt_neox.layers.0.mlp.dense_4h_to_h.weight"
    right = stored(grown)[name].double()
    off = right.sign() * 0.45 * torch.finfo(torch.bfloat16).eps
    with_tensors(grown, {name: (right + off).bfloat16()})
    assert name.split(".")[2] in first_miss(source, grown)


@pytest.mark.parametrize(("off", "same"), [(0.05, False), (0.02, False), (0.008, True)])
def test_a_wrong_entry_is_judged_by_its_own_rounding(
    off: float, same: bool, tmp_path: Path
) -> None:
    """And not by that of all the others, which are as they should be."""
    source = saved(of_family("llama").bfloat16(), tmp_path / "source")
    grow_checkpoint(source, tmp_path / "grown", WIDER | {"head_dim": 12})
    name = "model.layers.0.input_layernorm.weight"
    wrong = stored(tmp_path / "grown")[name].clone()
    wrong[wrong.abs().argmax()] *= 1 + off
    result = verify(source, with_tensors(tmp_path / "grown", {name: wrong}))
    assert result.same is same


def test_an_upcycled_mixtral_is_the_llama(tmp_path: Path) -> None:
    dense = llama(num_key_value_heads=2)
    source = saved(dense, tmp_path / "dense")
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
             "max_position_embeddings", "rope_parameters")  # fmt: skip
    sizes = {name: getattr(dense.config, name) for name in names}
    config = MixtralConfig(**sizes, num_local_experts=3, num_experts_per_tok=2)
    sparse = loud(MixtralForCausalLM(config))
    old = dense.state_dict()
    with torch.no_grad():
        for name, p in sparse.named_parameters():
            if name in old:
                p.copy_(old[name])
            elif "experts" in name:
                at = name.split(".experts.")[0]
                parts = ("gate", "up") if "gate_up" in name else ("down",)
                p.copy_(
                    torch.cat([old[f"{at}.{x}_proj.weight"] for x in parts]).expand_as(
                        p
                    )
                )
    good = saved(sparse, tmp_path / "sparse")
    assert account(source, good).complete
    with torch.no_grad():
        sparse.model.layers[1].mlp.experts.down_proj[2, 3, 4] += 1e-3
    bad = saved(sparse, tmp_path / "bad")
    assert "layers.1.expert_down.weight" in first_miss(source, bad)
    with torch.no_grad():
        sparse.model.layers[1].mlp.experts.down_proj[2, 3, 4] -= 1e-3
        sparse.model.layers[0].mlp.gate.weight[1, 2] = torch.nan
    lost = saved(sparse, tmp_path / "lost")
    assert "layers.0.router.weight" in first_miss(source, lost)


@pytest.mark.parametrize("how", ["scale", "lane", "unread row", "right", "elsewhere"])
def test_what_is_wrong_is_not_lost_in_the_rounding_of_the_rest(
    how: str, tmp_path: Path
) -> None:
    """In bfloat16 all norms are rounded; what one wrong tensor does is judged by itself."""
    source = saved(llama().bfloat16(), tmp_path / "source")
    model = grow(LlamaForCausalLM.from_pretrained(source), WIDER)
    with torch.no_grad():
        attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
        if how == "scale":
            attention.q_proj.weight *= (8 / 12) ** 0.5
        elif how == "lane":
            attention.q_proj.weight[3] = 0
        elif how == "unread row":  # licence and prompt need not hold this token
            model.model.embed_tokens.weight[47] *= -1
        elif how == "elsewhere":  # twice as loud, half as much heeded
            mlp.up_proj.weight *= 2
            mlp.down_proj.weight /= 2
    result = verify(source, saved(model, tmp_path / "grown"), tokens=16)
    assert result.same is (how in ("right", "elsewhere")), result
    if not result.same:
        assert any(name.endswith("not accounted for") for name in result.reasons)
        assert "The first tensor that is wrong: " in result.verdict


def test_a_norm_that_stores_less_one_is_rounded_where_it_is(tmp_path: Path) -> None:
    """w + 1 is scaled, w is stored: the steps of bfloat16 are those at w."""
    model = of_family("gemma2").bfloat16()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight.uniform_(-0.97, -0.6)
    source = saved(model, tmp_path / "source")
    grow_checkpoint(source, tmp_path / "grown", {"hidden_size": 24})
    assert account(source, tmp_path / "grown").complete


def test_names_may_lack_their_first_word(tmp_path: Path) -> None:
    """GPT-2 lies on the hub as h.0.…, not transformer.h.0.…; a base model does so too."""
    model = of_family("gpt2")
    source = saved(model, tmp_path / "source")
    bare = saved(model.transformer, tmp_path / "bare")
    (bare / "config.json").write_text((source / "config.json").read_text())
    assert not any(name.startswith("transformer") for name in stored(bare))
    assert account(source, bare).complete
    grow_checkpoint(bare, tmp_path / "grown", {"n_inner": 24})
    assert account(bare, tmp_path / "grown").complete


def experts_twice(source: Path, path: Path) -> Path:
    """4 experts for 2, each there twice, and twice as many chosen."""
    shutil.copytree(source, path)
    config = json.loads((path / "config.json").read_text())
    config |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    (path / "config.json").write_text(json.dumps(config))
    twice = dict[str, torch.Tensor]()
    for name, x in stored(source).items():
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            e, part = after.split(".", 1)
            twice[f"{before}.experts.{int(e) + 2}.{part}"] = x
        elif "block_sparse_moe.gate" in name:
            twice[name] = torch.cat((x, x))
    return with_tensors(path, twice)


def test_where_no_width_grows_nothing_had_to_be_rounded(tmp_path: Path) -> None:
    """Experts that are there twice are not placed, and yet owed no bfloat16 rounding."""
    source = saved(of_family("mixtral").bfloat16(), tmp_path / "source")
    twice = experts_twice(source, tmp_path / "twice")
    assert verify(source, twice).same
    with_tensors(twice, {n: 1.01 * x for n, x in stored(twice).items() if ".w2." in n})
    assert not verify(source, twice).same


def thrice(source: Path, path: Path, by: torch.Tensor) -> Path:
    """Each neuron there three times, what the copies write times one of these."""
    shutil.copytree(source, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 72}))
    found = dict[str, torch.Tensor]()
    for name, x in stored(source).items():
        if ".mlp." in name:
            down = "down_proj" in name
            more = torch.cat((x, x, x), 1 if down else 0)
            found[name] = (more * by.repeat_interleave(24)).to(x) if down else more
    return with_tensors(path, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("by", "same"),
    [((1 / 3,) * 3, True), ((0.2, 0.3, 0.5), True), ((0.3, 0.3, 0.3), False)],
)
def test_shares_that_are_in_no_binary_dtype_may_be_rounded(
    by: tuple[float, ...], same: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Net2Net: what a neuron writes is dealt to its copies."""
    source = saved(llama().to(dtype), tmp_path / "source")
    grown = thrice(source, tmp_path / "grown", torch.tensor(by).double())
    assert verify(source, grown).same is same
    name = "model.layers.1.self_attn.v_proj.weight"
    with_tensors(grown, {name: stored(grown)[name] * (1 + 2**-6)})
    assert not verify(source, grown).same


def test_that_scaled_entries_were_rounded_is_said(source: Path, tmp_path: Path) -> None:
    grow_checkpoint(source, tmp_path / "wider", {"head_dim": 12})
    assert "once 2 of 21 tensors are rounded to float32" in (
        verify(source, tmp_path / "wider").verdict
    )
    grow_checkpoint(source, tmp_path / "larger", {"intermediate_size": 40})
    assert "rounded" not in verify(source, tmp_path / "larger").verdict
