"""The verdict on what others made: accounted for entry by entry, or measured."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof import grow
from growproof.checkpoints import grow_checkpoint
from growproof.cli import main
from growproof.growth import Policies
from growproof.verify import verify
from growproof.verify.text import FALLBACK, licence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    StableLmForCausalLM,
)

from .small import (
    WIDER,
    check,
    each_layer,
    llama,
    loud,
    permuted,
    saved,
)


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


YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("rope", "changes", "same"),
    [
        (YARN, {"rope_parameters": YARN | {"attention_factor": 1.0}}, False),
        (
            YARN,
            {"rope_parameters": YARN | {"mscale": 2.0, "mscale_all_dim": 1.0}},
            False,
        ),
        (YARN, {"rope_parameters": YARN | {"beta_fast": 32, "beta_slow": 1}}, True),
        (DYNAMIC, {"max_position_embeddings": 48}, False),
        (DYNAMIC, {"rope_parameters": DYNAMIC | {"factor": 4.0}}, False),
        (DYNAMIC, {"attention_dropout": 0.1}, True),
    ],
)
def test_frequencies_that_the_clone_has_not_are_compared(
    rope: dict[str, Any], changes: dict[str, Any], same: bool, tmp_path: Path
) -> None:
    """A scale or a length in a rope type shows in no weight, and not in every text."""
    old = saved(llama(rope_parameters=rope), tmp_path / "old")
    new = shutil.copytree(old, tmp_path / "new")
    config = json.loads((new / "config.json").read_text()) | changes
    (new / "config.json").write_text(json.dumps(config))
    result = verify(old, new)
    assert result.same is same
    assert result.reasons == ([] if same else ["rotary frequencies"])
    assert result.verdict.startswith("The same function") is same


def test_what_transformers_does_not_run_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source that it cannot run is no source: exit 4, in a sentence; and none is made."""
    old = saved(llama(), tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    config["rope_parameters"]["rope_type"] = "ntk"
    (old / "config.json").write_text(json.dumps(config))
    assert main(["verify", str(old), str(old)]) == 4
    assert "does not run" in capsys.readouterr().err
    grown = tmp_path / "grown"
    assert main(["grow", str(old), str(grown), "--intermediate-size", "40"]) == 4
    assert "rope_type is 'ntk', expected one of default," in capsys.readouterr().err
    assert not grown.exists()
