"""The verdict on what others made: accounted for entry by entry, or measured."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof import clone, grow
from growproof.checkpoints import grow_checkpoint
from growproof.cli import main
from growproof.families import FAMILIES
from growproof.growth import Policies
from growproof.verify import Check, Side, Verification, verify
from growproof.verify.accounting import Accounted, accounted
from growproof.verify.chosen import bounds
from growproof.verify.text import FALLBACK, licence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    StableLmForCausalLM,
    WatermarkingConfig,
)

from .test_checkpoints import WIDER, llama, loud, saved, stablelm, stored, with_tensors


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def stablelm_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(stablelm(), tmp_path_factory.mktemp("models") / "stablelm")


# The verdict on what others made


def each_layer(model: Any, change: Callable[[Any], object]) -> Any:
    with torch.no_grad():
        for layer in model.model.layers:
            change(layer)
    return model


def q_unscaled(model: Any) -> Any:
    return each_layer(model, lambda x: x.self_attn.q_proj.weight.mul_((8 / 12) ** 0.5))


def theta_kept(model: Any) -> Any:
    model.config.rope_parameters["rope_theta"] = 1e4
    return model


def norm_unscaled(model: Any) -> Any:
    return each_layer(model, lambda x: x.input_layernorm.weight.mul_((24 / 16) ** 0.5))


def last_norm_unscaled(model: Any) -> Any:
    with torch.no_grad():
        model.model.norm.weight.mul_((24 / 16) ** 0.5)
    return model


def eps_kept(model: Any) -> Any:
    model.config.rms_norm_eps = 1e-5
    return model


def halves_together(model: Any) -> Any:
    """The rotary halves stay side by side, where stock code will not turn them."""

    def move(layer: Any) -> None:
        for p in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
            heads = p.view(-1, 12, 24)
            heads.copy_(heads[:, [0, 1, 2, 3, 6, 7, 8, 9, 4, 5, 10, 11]].clone())

    return each_layer(model, move)


def values_lost(model: Any) -> Any:
    return each_layer(model, lambda x: x.self_attn.v_proj.weight[3].zero_())


def gate_and_up_swapped(model: Any) -> Any:
    def swap(layer: Any) -> None:
        gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
        kept = gate.clone()
        gate.copy_(up)
        up.copy_(kept)

    return each_layer(model, swap)


def residual_leaks(model: Any) -> Any:
    return each_layer(model, lambda x: x.mlp.down_proj.weight[20, 0].fill_(3))


def new_layer_speaks(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[2].post_attention_layernorm.weight.fill_(1)
        model.model.layers[2].mlp.down_proj.weight.fill_(1e-2)
        model.model.layers[2].mlp.gate_proj.weight.fill_(1)
        model.model.layers[2].mlp.up_proj.weight.fill_(1)
    return model


def head_divided(model: Any) -> Any:
    with torch.no_grad():
        model.lm_head.weight.div_(2)
    return model


def embedding_row_lost(model: Any) -> Any:
    with torch.no_grad():
        model.model.embed_tokens.weight[47].zero_()
    return model


def not_a_number(model: Any) -> Any:
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    return model


FAULTS: dict[Callable[[Any], Any], tuple[str, str]] = {
    q_unscaled: ("logits max, float64", "layers.0.query is off by"),
    theta_kept: ("rotary frequencies", "layers.0.query_rotated is off by"),
    halves_together: ("logits max, float64", "layers.0.query is off by"),
    norm_unscaled: ("logits rms, transformers", "layers.0.attn_norm is off by"),
    last_norm_unscaled: ("loss, float64", "final_norm is off by"),
    eps_kept: ("variance ÷ ε", "layers.0.attn_norm is off by"),
    values_lost: ("logits max, float64", "layers.0.value is off by"),
    gate_and_up_swapped: ("logits max, float64", "layers.0.gate is off by"),
    residual_leaks: ("logits max, float64", "layers.0.mlp is off by"),
    new_layer_speaks: ("logits max, float64", "layers.2.mlp is off by"),
    head_divided: ("logits max, float64", "logits is off by"),
    embedding_row_lost: ("variance ÷ ε", ""),
    not_a_number: ("logits max, float64", "final_norm is off by nan"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_is_found_where_it_is(
    fault: Callable[[Any], Any],
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason, tap = FAULTS[fault]
    model = grow(
        LlamaForCausalLM.from_pretrained(source), WIDER | {"num_hidden_layers": 3}
    )
    bad = saved(fault(model), tmp_path / "bad")
    out = tmp_path / "verdict.json"
    arguments = ["verify", str(source), str(bad), "--tokens=32", f"--json={out}"]
    assert main(arguments) == 1
    result = json.loads(out.read_text("utf-8"))
    assert reason in result["reasons"]
    assert result["parting"].startswith(tap)
    said = " ".join(capsys.readouterr().out.split())
    assert "NOT the same function" in said
    assert " ".join(tap.split()) in said


def test_a_missing_factor_is_named(source: Path, tmp_path: Path) -> None:
    model = grow(LlamaForCausalLM.from_pretrained(source), WIDER)
    bad = saved(q_unscaled(model), tmp_path / "bad")
    parting = verify(source, bad, tokens=32).parting
    assert parting is not None
    assert parting.endswith("it is 0.8165 of what it should be")  # √(8 / 12)


def test_the_article_is_not_exact_in_a_stock_layer_norm(
    stablelm_source: Path, tmp_path: Path
) -> None:
    target = {"hidden_size": 24, "num_attention_heads": 3}
    grow_checkpoint(
        stablelm_source, tmp_path / "grown", target, policies=Policies(norm="scaled")
    )
    result = verify(stablelm_source, tmp_path / "grown", tokens=32)
    assert "logits max, float64" in result.reasons
    assert "embedding is off by" in str(result.parting)
    assert "a LayerNorm over more lanes takes another mean away" in str(result.parting)


def test_partial_rotary_truncated(stablelm_source: Path, tmp_path: Path) -> None:
    """int(12 · 4 / 12 − 0.1): two lanes lost, as the article's factor can."""
    model = grow(StableLmForCausalLM.from_pretrained(stablelm_source),
                 {"hidden_size": 24})  # fmt: skip
    model.config.rope_parameters["partial_rotary_factor"] = 2 / 12
    bad = saved(model, tmp_path / "bad")
    result = verify(stablelm_source, bad, tokens=32)
    assert "rotary frequencies" in result.reasons
    assert str(result.parting).startswith("layers.0.query_rotated is off by")


def test_interleaved_layers_are_recognised(source: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(source)
    grown = grow(model, {"num_hidden_layers": 4}, depth="interleave")
    with torch.no_grad():
        grown.model.layers[3].self_attn.o_proj.weight.mul_(2)
    result = verify(source, saved(grown, tmp_path / "bad"), tokens=32)
    assert str(result.parting).startswith("layers.3.attention is off by")


def permuted(model: Any) -> Any:
    """The same function in another layout: the residual's lanes in reverse."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or "o_proj" in name or "down_proj" in name:
                p.copy_(p.flip(0))
            else:
                p.copy_(p.flip(1))
    return model


def test_how_it_was_grown_does_not_matter(source: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(source)
    other = permuted(grow(model, WIDER))
    good = saved(other, tmp_path / "good")
    assert verify(source, good, tokens=32).same
    bad = saved(q_unscaled(other), tmp_path / "bad")
    result = verify(source, bad, tokens=32)
    assert not result.same
    assert str(result.parting).startswith("layers.0.query is off by")


def test_scales_may_go_where_they_cancel(source: Path, tmp_path: Path) -> None:
    """ε kept and the writers scaled by √(D'/D) instead; q's scale in k."""
    model = grow(LlamaForCausalLM.from_pretrained(source), WIDER)
    model.config.rms_norm_eps = 1e-5

    def move(layer: Any) -> None:
        layer.self_attn.q_proj.weight.mul_((8 / 12) ** 0.5)
        layer.self_attn.k_proj.weight.mul_((12 / 8) ** 0.5)
        for p in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            p.mul_((24 / 16) ** 0.5)

    each_layer(model, move)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_((24 / 16) ** 0.5)
    assert verify(source, saved(model, tmp_path / "good"), tokens=32).same
    each_layer(model, lambda x: x.mlp.up_proj.weight.mul_(2))
    result = verify(source, saved(model, tmp_path / "bad"), tokens=32)
    assert str(result.parting).startswith("layers.0.up is off by")
    assert str(result.parting).endswith("it is 2 of what it should be")


def test_a_pair_come_untied_is_noted(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    source = saved(model, tmp_path / "source")
    grow_checkpoint(source, tmp_path / "grown", WIDER)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "grown")
    loaded.config.tie_word_embeddings = False
    weight = loaded.model.embed_tokens.weight.detach().clone()
    loaded.lm_head.weight = torch.nn.Parameter(weight)
    result = verify(source, saved(loaded, tmp_path / "untied"), tokens=32)
    tying = next(c for c in result.checks if c.name == "embedding, head")
    assert (tying.found, tying.passed) == ("tied → untied", None)
    assert result.same


def test_weights_that_are_not_the_configs(source: Path, tmp_path: Path) -> None:
    grow_checkpoint(source, tmp_path / "grown", {"num_hidden_layers": 3})
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    config["num_hidden_layers"] = 4
    (tmp_path / "grown" / "config.json").write_text(json.dumps(config))
    result = verify(source, tmp_path / "grown", tokens=32)
    assert result.reasons == ["weights and config"]


def test_a_smaller_model_is_no_growth(source: Path, tmp_path: Path) -> None:
    smaller = saved(llama(intermediate_size=16), tmp_path / "smaller")
    result = verify(source, smaller, tokens=32)
    assert "sizes" in result.reasons
    assert "not the sizes of a growth" in str(result.parting)


def test_json_is_what_the_table_says(source: Path, tmp_path: Path) -> None:
    grow_checkpoint(source, tmp_path / "grown", WIDER)
    out = tmp_path / "verdict.json"
    arguments = ["verify", str(source), str(tmp_path / "grown"), f"--json={out}"]
    assert main([*arguments, "--measure", "--tokens=32"]) == 0
    verdict = json.loads(out.read_text("utf-8"))
    assert verdict["same"] is True
    assert verdict["tokens"] == 32
    assert "no tokenizer" in verdict["text"]
    assert {c["name"] for c in verdict["checks"]} >= {
        "logits max, float64",
        "parameters",
    }


@pytest.mark.parametrize("destination", ["missing", "source"])
def test_bad_input_of_verify_exits_with_4(
    destination: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("words")
    arguments = ["verify", str(source), str(tmp_path / "missing")]
    if destination == "source":
        arguments = ["verify", str(source), str(source), f"--text={tmp_path / 'text'}"]
    assert main(arguments) == 4
    assert capsys.readouterr().err.startswith("growproof: ")


def test_the_licence_is_this_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    text, said = licence()
    assert said == "the Python licence text"
    assert text.startswith("A. HISTORY OF THE SOFTWARE")
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    assert licence()[0] == FALLBACK


# Every entry accounted for


def account(source: Path, destination: Path) -> Accounted:
    return accounted(Side.of(source), Side.of(destination))


def first_miss(source: Path, destination: Path) -> str:
    found = account(source, destination).account
    assert found is not None
    assert found.misses
    return str(found.misses[0])


SIZES: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 32, "pad_token_id": None, "n_embd": 16, "n_head": 2,
    "n_layer": 2, "n_inner": 20, "n_positions": 32, "num_experts": 2,
    "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 12,
}  # fmt: skip
GROWN = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3}


def of_family(name: str) -> Any:
    known = vars(AutoConfig.for_model(name))
    sizes = {
        k: v for k, v in SIZES.items() if k in known or k in ("head_dim", "n_inner")
    }
    if "n_embd" in known:
        sizes = {k: v for k, v in sizes.items() if k.startswith(("n_", "vocab"))}
    return loud(AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_entry_of_a_growth_is_accounted_for(family: str, tmp_path: Path) -> None:
    source = saved(of_family(family), tmp_path / "source")
    policies = Policies(fill="trainable", depth="interleave")
    grow_checkpoint(source, tmp_path / "grown", GROWN, policies=policies)
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


def resized(model: Any, path: Path, change: Callable[[Any], object]) -> Path:
    """The vocabulary from 48 to 52, new rows zero and suppressed, and a change."""
    model.resize_token_embeddings(52, mean_resizing=False)
    model.generation_config.suppress_tokens = [48, 49, 50, 51]
    with torch.no_grad():
        for p in (model.model.embed_tokens.weight, model.lm_head.weight):
            p[48:].zero_()
        change(model)
    return saved(model, path)


def test_a_grown_vocabulary_is_told_apart(source: Path, tmp_path: Path) -> None:
    good = resized(llama(), tmp_path / "good", lambda m: None)
    result = verify(source, good)
    assert result.same
    assert "on the old tokens, for every input" in result.verdict
    assert "Tokens 48 to 51 are new" in result.verdict
    said = check(result, "vocabulary").found
    assert said.startswith("rows 48 to 51 are new, the old ones as they were; ")
    assert "over all 52 each new token adds exp(0) to the denominator" in said

    def in_front(m: Any) -> None:
        p = m.model.embed_tokens.weight
        p.copy_(p.roll(4, 0).clone())

    bad = verify(source, resized(llama(), tmp_path / "front", in_front), tokens=32)
    assert "4 new rows were put before the old ones" in bad.verdict
    anew = resized(llama(), tmp_path / "anew", lambda m: m.lm_head.weight.normal_())
    assert "drawn anew" in verify(source, anew, tokens=32).verdict

    def chosen(m: Any) -> None:
        m.lm_head.weight[48:] = 9 * m.lm_head.weight[:4]
        m.generation_config.suppress_tokens = None

    new = verify(source, resized(llama(), tmp_path / "chosen", chosen), measure=True)
    assert any("which the source has not" in c.found for c in new.checks)
    assert "adds the exponential of its logit" in check(new, "vocabulary").found
    taken = check(new, "softmax, float64").found
    assert float(taken.split(" take ")[1].split()[0]) > 0.1


def check(result: Verification, name: str) -> Check:
    return next(c for c in result.checks if c.name == name)


def told(directory: Path, **settings: Any) -> None:
    """Change the generation config of a checkpoint; None removes a setting."""
    path = directory / "generation_config.json"
    fields = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


NEW = [48, 49, 50, 51]
# settings of a grown checkpoint of 48 → 52 tokens, whose source suppresses 3 and ends a
# text at 2 → what is said of it; None where generate() writes the same text
TOLD: dict[str, tuple[dict[str, Any], str | None]] = {
    "right": ({}, None),
    "another order": ({"suppress_tokens": [51, 50, 49, 48, 3, 3]}, None),
    "as bad words": ({"suppress_tokens": [3], "bad_words_ids": [[i] for i in NEW]}, None),
    "a default": ({"temperature": 1.0, "top_k": 50}, None),
    "one end, a list": ({"eos_token_id": [2]}, None),
    "how, not what": ({"use_cache": False, "output_scores": True}, None),
    "ends": ({"eos_token_id": [2, 5]}, "eos_token_id 2 → [2, 5]"),
    "none": ({"suppress_tokens": [3]}, "tokens 48 to 51 are not suppressed"),
    "first": ({"suppress_tokens": [3, 49, 50, 51]}, "token 48 is not suppressed"),
    "middle": ({"suppress_tokens": [3, 48, 51]}, "tokens 49 to 50 are not suppressed"),
    "words of two": (
        {"suppress_tokens": [3], "bad_words_ids": [[48, 49], [50], [51]]},
        "tokens 48 to 49 are not suppressed",
    ),
    "lost": ({"suppress_tokens": NEW}, "token 3 is no longer in suppress_tokens"),
    "more": (
        {"suppress_tokens": [3, 5, *NEW]},
        "token 5 is in suppress_tokens, where the source has not",
    ),
    "old words": ({"bad_words_ids": [[4, 5]]}, "bad_words_ids [] → ['[4, 5]']"),
    "end": ({"eos_token_id": 1}, "eos_token_id 2 → 1"),
    "no end": ({"eos_token_id": None}, "eos_token_id 2 → None"),
    "beginning": ({"bos_token_id": 4}, "bos_token_id 1 → 4"),
    "padding": ({"pad_token_id": 7}, "pad_token_id None → 7"),
    "chance": ({"do_sample": True, "temperature": 0.5}, "temperature 1.0 → 0.5"),
    "length": ({"max_new_tokens": 3}, "max_new_tokens None → 3"),
    "watermark": ({"watermarking_config": {"bias": 3.0}}, "'bias': 2.5"),
    "no words": ({"bad_words_ids": [4]}, "got TypeError"),
}  # fmt: skip


@pytest.fixture(scope="module")
def suppressing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that suppresses token 3 and ends a text at 2, and a growth beside it."""
    folder = tmp_path_factory.mktemp("told")
    model = llama()
    model.generation_config.update(
        suppress_tokens=[3], eos_token_id=2, bos_token_id=1, pad_token_id=None,
        watermarking_config=WatermarkingConfig(bias=2.5),
    )  # fmt: skip
    saved(model, folder / "old")
    grow_checkpoint(folder / "old", folder / "new", {"vocab_size": 52})
    return folder


@pytest.mark.parametrize("how", TOLD)
def test_what_generate_is_told(
    how: str, suppressing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what new tokens explain may be another setting; the logits are the same."""
    changes, said = TOLD[how]
    new = shutil.copytree(suppressing / "new", tmp_path / "new")
    told(new, **changes)
    result = verify(suppressing / "old", new)
    found = check(result, "generate()")
    assert result.same is found.passed is (said is None)
    assert (said or "told the same; new tokens are suppressed") in found.found
    assert main(["verify", str(suppressing / "old"), str(new)]) == (said is not None)
    printed = " ".join(capsys.readouterr().out.split())
    if said:
        assert "NOT the same function: generate(). The logits are the same" in printed
        assert "What generate() makes of them is not." in printed
    if said and "not suppressed" in said:
        assert "where no old logit is greater than theirs (0), sampling" in found.found
    measured = verify(suppressing / "old", new, measure=True, tokens=32)
    assert measured.same is (said is None)
    assert measured.parting is None


def test_a_lost_generation_config_is_read_from_the_config(
    suppressing: Path, tmp_path: Path
) -> None:
    """As transformers does: its end of text is the config's, and nothing suppressed."""
    lost = shutil.copytree(suppressing / "old", tmp_path / "lost")
    (lost / "generation_config.json").unlink()
    found = check(verify(suppressing / "old", lost), "generate()")
    assert found.passed is False
    assert "token 3 is no longer in suppress_tokens" in found.found
    again = shutil.copytree(lost, tmp_path / "again")
    assert check(verify(lost, again), "generate()").passed
    (again / "generation_config.json").write_text("null")
    assert not verify(lost, again).same


@pytest.mark.parametrize("family", ["phi", "stablelm", "gpt2", "gemma2"])
def test_a_bias_keeps_new_tokens_from_being_chosen(family: str, tmp_path: Path) -> None:
    """Not suppressed, they are chosen where there is no bias, or where it is lost."""
    model = of_family(family)
    if family == "stablelm":  # γ Σ β/γ at least 1: the row fits in fp16
        torch.nn.init.constant_(model.model.norm.bias, 0.5)
    source = saved(model, tmp_path / "source")
    grow_checkpoint(source, tmp_path / "new", {"vocab_size": 40})
    assert verify(source, tmp_path / "new").same
    new = Side.of(tmp_path / "new")
    ids = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(0))
    logits = clone.forward(new.decoder, new.state.map(lambda _, x: x.double()), ids)[
        "logits"
    ]
    least, most = bounds(new.decoder, new.state)
    if not new.decoder.logit_cap:
        assert bool(((logits >= least - 1e-9) & (logits <= most + 1e-9)).all())
    told(tmp_path / "new", suppress_tokens=None)
    result = verify(source, tmp_path / "new")
    silent = {"phi": "head bias", "stablelm": "LayerNorm bias"}.get(family)
    assert result.same is (silent is not None)
    said = check(result, "vocabulary").found
    if not silent:
        assert "each new token adds exp(0)" in said
        return
    assert f"(by the {silent}): the softmax over all 40 logits is the same" in said
    assert "new tokens lie too low" in check(result, "generate()").found
    name = "lm_head.bias" if family == "phi" else "lm_head.weight"
    x = stored(tmp_path / "new")[name]
    x[35] = 0 if family == "phi" else -x[35]
    with_tensors(tmp_path / "new", {name: x})
    result = verify(source, tmp_path / "new")
    assert not result.same
    assert "tokens 32 to 39 are not suppressed" in check(result, "generate()").found


def test_what_kind_of_no(source: Path, tmp_path: Path) -> None:
    def trained(model: Any) -> Any:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * torch.randn_like(p))
        return model

    tuned = saved(trained(llama()), tmp_path / "tuned")
    assert "it was trained further" in verify(source, tuned, tokens=32).verdict
    coarse = saved(llama().bfloat16().float(), tmp_path / "coarse")
    assert "Stored in bfloat16 in between" in verify(source, coarse, tokens=32).verdict


def test_a_family_without_a_table_is_compared_by_transformers(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "opt", vocab_size=32, hidden_size=16, ffn_dim=20, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, word_embed_proj_dim=16,
    )  # fmt: skip
    model = loud(AutoModelForCausalLM.from_config(config))
    source = saved(model, tmp_path / "source")
    result = verify(source, saved(model, tmp_path / "good"), tokens=16)
    assert result.same
    assert "no table for model type 'opt'" in check(result, "not looked at").found
    model.generation_config.suppress_tokens = [5]
    result = verify(source, saved(model, tmp_path / "banned"), tokens=16)
    assert result.reasons == ["generate()"]
    model.generation_config.suppress_tokens = None
    model.resize_token_embeddings(36, mean_resizing=False)
    result = verify(source, saved(model, tmp_path / "larger"), tokens=16)
    assert "tokens 32 to 35 are not suppressed" in check(result, "generate()").found
    assert "new tokens take" in check(result, "softmax, transformers, float64").found
    with torch.no_grad():
        model.model.decoder.layers[0].fc2.weight.mul_(1.001)
    assert not verify(source, saved(model, tmp_path / "bad"), tokens=16).same
