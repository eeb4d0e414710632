"""Residues: exact where they claim to be, and different wherever functions are."""

import json
import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import growproof
import pytest
import torch
from growproof.families import family_of
from growproof.field import Field, Wide, held
from growproof.growth import plan
from growproof.models import decoder_of, state_of
from growproof.residues import SQUARES, Residues, fraction, nearly, prime, primes
from growproof.rounding import unit_roundoff
from growproof.scatter import take
from growproof.table import Row, pairs, parameters
from transformers import AutoModelForCausalLM

from ..laws.doors import cache_name
from . import terms
from .command import FAMILIES, TINY, config_of
from .equality import compared, grown_by, over, source, state
from .recovery import Map, recover
from .runs import eager, runs
from .terms import normal, soundness

PRIMES = primes(3, 0)
F = torch.nn.functional


def residues(x: Any) -> torch.Tensor:
    return x.residues


@pytest.fixture
def ring() -> Residues:
    return Residues(PRIMES, 0)


def test_small_primes_are_squares() -> None:
    assert len(set(PRIMES)) == 3
    for p in PRIMES:
        assert prime(p)
        assert 2**30 < p < 2**31
        assert p % 8 == 7
        assert all(pow(q, (p - 1) // 2, p) == 1 for q in (2, *SQUARES))


def test_numbers_are_read_as_roots_of_fractions(ring: Residues) -> None:
    """√(2/3)² = 2/3, ⁴√5⁴ = 5, eps · D/D' · D'/D = eps; else a symbol, equal to itself."""
    p = ring.p
    root, fourth = ring.number(math.sqrt(2 / 3)), ring.number(-(5**0.25))
    assert torch.equal(root * root % p, ring.exact(Fraction(2, 3)))
    assert torch.equal(ring.power(fourth, [4] * 3), ring.exact(5))
    eps = ring.number(1e-5 * 8 / 12)
    assert torch.equal(eps * 3 % p, ring.number(1e-5) * 2 % p)
    assert torch.equal(ring.number(math.pi), ring.number(math.pi * (1 + 1e-15)))
    assert torch.equal(ring.number(-math.pi), -ring.number(math.pi) % p)
    assert not torch.equal(ring.number(math.pi), ring.number(math.pi * (1 + 1e-10)))
    assert not torch.equal(ring.number(2 / 3), ring.number(2 / 3 + 1e-10))


def test_no_fraction_is_overlooked() -> None:
    """Where `fraction` finds one, `nearly` says that it may: at all sizes, and at READ's edge."""
    rng = random.Random(0)
    drawn = [
        float(Fraction(rng.randint(1, 10 ** rng.randint(1, 9)), rng.randint(1, 10_000)))
        * 10.0 ** rng.choice((0, 0, rng.randint(-12, 12)))
        * (1 + rng.choice((0, 9e-13, -9e-13)))
        for _ in range(5_000)
    ] + [abs(rng.gauss()) for _ in range(5_000)]
    hopes = nearly(torch.tensor(drawn, dtype=torch.float64)).tolist()
    found = [fraction(x) is not None for x in drawn]
    assert [x for x, f, h in zip(drawn, found, hopes, strict=True) if f and not h] == []
    assert sum(found[:5_000]) > 3_000
    assert sum(hopes[5_000:]) < 50


def test_the_ring_is_exact(ring: Residues) -> None:
    """A (b x) = (A b) x, x · 1/x = 1, √x √y = √(xy), also past 64 products."""
    p = ring.p
    a, b, x = ring.random((5, 130)), ring.random((130, 70)), ring.random((70, 1))
    left = ring.matmul(a, ring.matmul(b, x))
    assert torch.equal(left, ring.matmul(ring.matmul(a, b), x))
    y, z = ring.random((50,)), ring.random((50,))
    assert (y * ring.inverse(y) % p == 1).all()
    assert torch.equal(ring.root(y) * ring.root(z) % p, ring.root(y * z % p))
    assert torch.equal(ring.inverse_root(y), ring.inverse(ring.root(y)))


def test_softmax_ignores_what_is_masked() -> None:
    field = Field(PRIMES, 0)
    scores, more = field.random((2, 5)), field.random((2, 3))
    mask = torch.zeros(2, 8, dtype=torch.float64)
    mask[:, 5:] = torch.finfo(torch.float64).min
    wide = torch.cat((scores, more), -1) + mask
    both = torch.softmax(scores, -1), torch.softmax(wide, -1)
    assert torch.equal(residues(both[0]), residues(both[1][:, :5]))
    assert not residues(both[1][:, 5:]).any()
    assert (residues(both[0].sum(-1)) == 1).all()


def test_functions_that_are_zero_at_zero_stay_so() -> None:
    field = Field(PRIMES, 0)
    zero = field.of(0)
    assert not residues(F.silu(zero)).any()
    assert not residues(torch.tanh(zero)).any()
    assert residues(torch.sigmoid(zero)).all()


def test_what_has_no_residue_is_refused_by_name() -> None:
    field = Field(PRIMES, 0)
    x = field.random((4,))
    marked = torch.where(torch.tensor([True, False, False, False]), -math.inf, x)
    for operation, name in (
        (lambda: torch.cumprod(x, 0), "aten::cumprod"),
        (lambda: x[0].item(), "aten::_local_scalar_dense"),
        (lambda: marked * x, "−∞"),
        (lambda: torch.zeros(4).add_(x), "aten::add_"),
        (lambda: x**0.3, "power 0.3"),
    ):
        with pytest.raises(NotImplementedError, match=name):
            operation()


def test_views_share_their_residues() -> None:
    field = Field(PRIMES, 0)
    x = field.random((4, 6))
    x[:, 2:4] = 0
    x.view(2, 2, 6)[1].mul_(2)
    assert not residues(x[:, 2:4]).any()
    assert residues(x[:, :2]).all()


@pytest.mark.parametrize("family", TINY)
def test_stock_code_with_a_cache_is_stock_code_without(family: str) -> None:
    with Wide():
        model = AutoModelForCausalLM.from_config(
            config_of(family, FAMILIES[family])
        ).eval()
    model.config._attn_implementation = "eager"
    field = Field(PRIMES, 0)
    values = {id(p): field.random(p.shape) for p in model.parameters()}
    tokens = torch.arange(12).reshape(2, 6) % 11
    with field, held(model, values):
        whole = model(tokens, use_cache=False).logits
        first = model(tokens[:, :4], use_cache=True)
        cache = cache_name(model)
        rest = model(tokens[:, 4:], **{cache: first[cache]}).logits
    assert torch.equal(residues(whole[:, 4:]), residues(rest))
    assert field.degree > 20
    assert field.error() < -30


# ------------------------------------------------------------------ rounded once

MOVED = ("q.weight", "q.bias", "norm.weight")  # what a Llama's growth scales
WIDER = {"hidden_size": 12, "head_dim": 6, "intermediate_size": 9}


def dyadic(field: Field, x: torch.Tensor) -> torch.Tensor:
    """The residues of floats, each as the fraction that it is."""
    parts = [field.ring.exact(Fraction(v)) for v in x.double().flatten().tolist()]
    return torch.stack(parts).reshape(*x.shape, -1)


def as_stored(model: Any, field: Field) -> dict[str, torch.Tensor]:
    """Canonical name → the parameter's residues."""
    return {name: dyadic(field, x) for name, x in state_of(model).items()}


def stored_names(model: Any) -> dict[str, str]:
    """Canonical name → transformers' name."""
    state = state_of(model)
    tags = {name: torch.full_like(x, i) for i, (name, x) in enumerate(state.items())}
    stored = family_of(model.config).write(tags, decoder_of(model.config))
    known = list(state)
    return {known[int(x.flatten()[0])]: name for name, x in stored}


def backward(old: Any, new: Any) -> tuple[str, float]:
    """Why the grown model is not the old one with its scaled weights moved (or ""), and
    how far the farthest moved, in roundings of itself.

    A weight w that is stored as w' where s · w is meant has moved to w'/s.
    """
    growth = plan(decoder_of(old.config), hidden=12, head_dim=6, mlp=9)
    field, farthest = Field(PRIMES, 0), 0.0
    before, after = as_stored(old, field), as_stored(new, field)
    state, table = state_of(old), parameters(growth.old, growth)
    for name, known, row in pairs(growth, table):
        if known is None or not name.endswith(MOVED):
            continue
        mine = take(state_of(new)[name].double(), Row(row.axes, row.writes), growth)
        root = field.ring.inverse(field.ring.number(row.scale))
        before[known] = dyadic(field, mine) * root % field.ring.p
        apart = (mine / row.scale / state[known].double() - 1).abs()
        farthest = max(farthest, float(apart.max()) / unit_roundoff(old.dtype))
    run, names = runs(old.config, 11)[0], (stored_names(old), stored_names(new))
    values, grown = (
        {names[i][name]: field.tensor(x, 1) for name, x in state.items()}
        for i, state in enumerate((before, after))
    )
    with eager(old, new):
        truth = over(field, old, values, run)
        return compared(field, grown, [((run, new), truth)]), farthest


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def rounded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A Llama of a low precision, and what grow makes of it."""
    old = source(config_of("llama", TINY["llama"]), 0).to(request.param)
    return old, growproof.grow(old, WIDER)


def test_a_rounded_growth_is_the_old_model_moved(rounded: tuple[Any, Any]) -> None:
    """Grower.v, llama_backward: all other weights as they are, these by one rounding.

    Over residues, in which nothing else is rounded: the very same logits.
    """
    why, farthest = backward(*rounded)
    assert why == ""
    assert 0.1 < farthest <= 1 + 1e-9


def test_a_weight_rounded_twice_has_moved_farther(rounded: tuple[Any, Any]) -> None:
    old, new = rounded
    with torch.no_grad():
        for layer in new.model.layers:
            w = layer.self_attn.q_proj.weight
            w *= torch.tensor(1.01, dtype=w.dtype)
    assert backward(old, new)[1] > 1


def test_a_weight_that_has_no_scalar_may_not_move(rounded: tuple[Any, Any]) -> None:
    """One last place of one entry of k: no old model with other q and norms is the same."""
    old, new = rounded
    with torch.no_grad():
        w = new.model.layers[0].self_attn.k_proj.weight
        w[0, 0] = torch.nextafter(w[0, 0], torch.tensor(9.0, dtype=w.dtype))
    assert "differ over residues" in backward(old, new)[0]


# ------------------------------------------------------------------ soundness


def test_terms_agree_just_when_their_normal_forms_do() -> None:
    found = soundness(2000, 1)
    assert min(found["classes"], found["misses"]) > 500
    assert (found["merged"], found["split"], found["equal_misses"]) == (0, 0, 0)
    stored = json.loads(Path(terms.__file__).with_name("soundness.json").read_text())
    assert min(stored["terms"], stored["misses"]) >= 100_000
    assert (stored["merged"], stored["split"], stored["equal_misses"]) == (0, 0, 0)


def test_normal_forms_know_the_laws() -> None:
    x, y, two = ("x", 0), ("x", 1), ("n", Fraction(2))
    square = ("*", ("+", x, y), ("+", x, y))
    spread = ("+", ("*", x, x), ("+", ("*", y, y), ("*", two, ("*", x, y))))
    assert normal(square) == normal(spread)
    e = ("+", ("n", Fraction(1)), ("*", x, x))
    assert normal(("√", ("*", two, e))) == normal(("*", ("√", two), ("√", e)))
    assert normal(("silu", ("+", x, y))) == normal(("silu", ("+", y, x)))
    assert normal(("silu", ("*", two, x))) != normal(("*", two, ("silu", x)))


@pytest.mark.parametrize("fault", ["index", "sign", "coefficient"])
def test_one_entry_of_a_map_is_enough(fault: str) -> None:
    """Any copied entry moved, negated or scaled by 1 + 1e-6: some logits differ."""
    config = config_of("llama", TINY["llama"])
    olds = [source(config, run) for run in range(4)]
    news = [grown_by(growproof.grow, old, {"hidden_size": 12}) for old in olds]
    right = recover([state(m) for m in olds], [state(m) for m in news], 4)
    copied = (right.form >= 0).nonzero()[0]
    plan, generator = runs(config, 11)[-1:], torch.Generator().manual_seed(0)

    def why(entries: Map) -> str:
        field = Field(PRIMES, 0)
        values = {n: field.random(p.shape) for n, p in olds[0].named_parameters()}
        grown = entries.residues(field, values)
        with eager(olds[0], news[0]):
            truth = over(field, olds[0], values, plan[0])
            return compared(field, grown, [((plan[0], news[0]), truth)])

    assert why(right) == ""
    for at in torch.randint(len(copied), (4,), generator=generator).tolist():
        n = copied[at]
        wrong = Map(
            **{**vars(right), "form": right.form.copy(), "scale": right.scale.copy()}
        )
        if fault == "index":
            wrong.form[n] = wrong.form[copied[at - 1]]
        wrong.scale[n] *= {"index": 1, "sign": -1, "coefficient": 1 + 1e-6}[fault]
        assert "differ over residues" in why(wrong), n
