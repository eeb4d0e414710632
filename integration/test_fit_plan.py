"""The plan of `growproof fit` is the optimum, and says why."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from growproof import Decoder, GrowthError
from growproof.decoder import Kind, Rotary
from growproof.fit import (
    Rules,
    Wanted,
    arithmetic,
    cache,
    cost,
    fit,
    lines,
    parameters,
)
from growproof.growth import plan
from growproof.models import decoder_of, fit_model, plan_model
from growproof.table import count
from transformers import AutoConfig


def decoder(hidden: int, heads: int, groups: int, head_dim: int, mlp: int) -> Decoder:
    return Decoder(
        vocab=11, hidden=hidden, heads=heads, groups=groups, head_dim=head_dim, mlp=mlp,
        layers=2, eps=1e-5, norm_size=hidden,
        kinds=(Kind(rotary=Rotary(theta=1e4, dims=2)),) * 2, split=False,
    )  # fmt: skip


def is_fit(d: Any, wanted: Wanted, rules: Rules) -> bool:
    """The constraints, each as it is said."""
    t, b = wanted.ranks, wanted.block
    return all((
        d.heads % t == 0,
        d.groups % t == 0 or (t % d.groups == 0 and not wanted.whole_groups),
        d.mlp % (t * b) == 0,
        d.hidden % b == 0,
        d.heads * d.head_dim % (t * b) == 0 or not wanted.blocked_heads,
        d.hidden % d.heads == 0 or not rules.whole_heads,
        d.hidden == d.heads * d.head_dim or not rules.tied_head_dim,
        d.groups == d.heads or rules.grouped,
    ))  # fmt: skip


def exhaustively(old: Decoder, wanted: Wanted, rules: Rules) -> tuple[int, int] | None:
    """The least cost of all growths up to a bound that fit."""
    share = wanted.ranks * wanted.block
    mlp = next(f for f in range(old.mlp, 99) if f % share == 0)
    lanes = range(old.head_dim, old.head_dim + 7 * rules.tied_head_dim + 1)
    heads = [(h, g) for h in range(old.heads, 15) for g in range(old.groups, h + 1)]
    wide = 41 if rules.whole_heads or rules.tied_head_dim else old.hidden + wanted.block
    best = None
    for (h, g), k, d in itertools.product(heads, lanes, range(old.hidden, wide)):
        if h % g or (rules.tied_head_dim and d != h * k):
            continue
        sizes: dict[str, Any] = {
            "hidden": d,
            "heads": h,
            "groups": g,
            "head_dim": k,
            "mlp": mlp,
        }
        if not is_fit(SimpleNamespace(**sizes), wanted, rules):
            continue
        try:
            new = cost(plan(old, **sizes).new)
        except GrowthError:  # a query head would lose its keys
            continue
        best = min(best or new, new)
    return best


RULES = {
    "free": Rules(),
    "whole heads": Rules(whole_heads=True),
    "tied": Rules(tied_head_dim=True),
    "tied, ungrouped": Rules(tied_head_dim=True, whole_heads=True, grouped=False),
}
ASKED = [
    {"ranks": t, "block": b, "whole_groups": whole, "blocked_heads": blocked}
    for t in (1, 2, 3, 4)
    for b in (1, 4)
    for whole, blocked in ((False, False), (True, False), (False, True))
]


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_the_plan_is_the_optimum_exhaustive(rules: Rules) -> None:
    checked = 0
    for heads, groups in ((1, 1), (3, 1), (3, 3), (4, 2), (6, 2), (5, 5)):
        hidden = heads * 2 if rules.tied_head_dim else 3 * heads
        if groups < heads and not rules.grouped:
            continue
        old = decoder(hidden, heads, groups, 2, 5)
        for asked in ASKED[:: 1 if heads < 4 else 5]:
            wanted = Wanted(**asked)
            best = exhaustively(old, wanted, rules)
            if best is None:  # beyond the bound of the search by hand
                continue
            new = fit(old, wanted, rules).new
            assert is_fit(new, wanted, rules), (old, wanted)
            assert cost(new) == best, (old, wanted, new)
            checked += 1
    assert checked >= 30


# --- what people report ---------------------------------------------------------------

# (hidden, heads, key/value heads, head_dim, ranks): heads that do not divide
REPORTS = [
    (3584, 28, 4, 128, 8),
    (6656, 52, 52, 128, 3),
    (6656, 52, 52, 128, 8),
    (5120, 40, 40, 128, 3),
    (4096, 32, 32, 128, 5),
    (4544, 71, 1, 64, 2),
    (1536, 12, 2, 128, 8),
    (1536, 12, 2, 128, 4),
    (4096, 32, 8, 128, 2),
]


def reported(family: str, hidden: int, heads: int, groups: int, head_dim: int) -> Any:
    return AutoConfig.for_model(
        family, hidden_size=hidden, num_attention_heads=heads, head_dim=head_dim,
        num_key_value_heads=groups, intermediate_size=4 * hidden, num_hidden_layers=2,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("report", REPORTS)
def test_reported_heads_are_expressible(
    report: tuple[int, ...], whole: bool, family: str
) -> None:
    *sizes, ranks = report
    config = reported(family, *sizes)
    wanted = Wanted(ranks=ranks, whole_groups=whole)
    found, target = fit_model(config, wanted)
    assert is_fit(found.new, wanted, Rules(whole_heads=family == "llama"))
    assert plan_model(config, target).new == found.new
    assert found.growth < 1.14
    grew = found.new.hidden > found.old.hidden
    assert grew == ("hidden" in found.reasons)
    if grew:
        assert "transformers wants a multiple" in found.reasons["hidden"]


def test_dealt_heads_cost_less_than_padded_groups() -> None:
    config = reported("qwen2", 3584, 28, 4, 128)
    own, target = fit_model(config, Wanted(ranks=8, whole_groups=True))
    assert target == {"num_attention_heads": 32, "num_key_value_heads": 8}
    assert "dealt out" in own.reasons["groups"]
    shared, target = fit_model(config, Wanted(ranks=8))
    assert target == {"num_attention_heads": 32}
    assert cache(own.new) == 2 * cache(shared.new)


def test_experts_and_tied_head_dims_fit() -> None:
    config = AutoConfig.for_model("mixtral", intermediate_size=14336)
    assert fit_model(config, Wanted(ranks=8, block=512))[1] == {
        "intermediate_size": 16384
    }
    config = AutoConfig.for_model("gpt2", n_embd=768, n_head=12)
    found, target = fit_model(config, Wanted(ranks=8, vocab_multiple=64))
    assert target == {"vocab_size": 50304, "n_embd": 1024, "n_head": 16}
    assert found.reasons["hidden"] == "num_attention_heads · head_dim = 16 · 64"
    config = AutoConfig.for_model("llama")
    assert not fit_model(config, Wanted(ranks=8, block=32))[1]


def test_what_does_not_fit_is_said() -> None:
    config = reported("llama", 4096, 32, 32, 128)
    with pytest.raises(GrowthError) as error:
        fit_model(config, Wanted(ranks=7, block=128, max_growth=1.02))
    said = str(error.value)
    for words in ("more than max_growth 1.02", "without ranks it", "without block it",
                  "with 4 ranks it fits"):  # fmt: skip
        assert words in said
    with pytest.raises(GrowthError, match="larger than every supported size"):
        fit_model(config, Wanted(head_dims=(64, 96)))
    config.rope_parameters["rope_type"] = "yarn"
    config.rope_parameters["factor"] = 4.0
    with pytest.raises(GrowthError, match="head_dim 192: rope type 'yarn'"):
        fit_model(config, Wanted(head_dims=(192,)))


def test_costs_are_those_of_the_table() -> None:
    for family in ("llama", "qwen3", "gpt2", "mixtral", "stablelm"):
        d = decoder_of(AutoConfig.for_model(family))
        assert parameters(d) == count(d)
    d = decoder(6, 3, 1, 2, 5)
    linear = 2 * (6 * 6 + 6 * 2) + 3 * 6 * 5  # q and o, k and v; the MLP
    assert arithmetic(d, 0) == d.layers * linear + 11 * 6
    assert arithmetic(d, 10) - arithmetic(d, 0) == 2 * d.layers * 6 * 10
    assert cache(d) == 2 * d.layers * 2


def test_a_plan_is_a_page() -> None:
    wanted = Wanted(ranks=2, block=4)
    found = fit(decoder(9, 3, 1, 2, 5), wanted, Rules(whole_heads=True))
    page = "\n".join(lines(found, wanted, 100))
    assert "query heads           3 → 4                 divides among 2 ranks" in page
    assert (
        "MLP                   5 → 8                 divides by 2 ranks × blo" in page
    )
    assert "(× " in page
    assert "--block-heads" not in page
    assert "--block-heads" in "\n".join(lines(found, Wanted(ranks=2, block=16), 100))
