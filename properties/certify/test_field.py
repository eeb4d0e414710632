"""Residues: exact where they claim to be, and different wherever functions are."""

import math
from fractions import Fraction
from typing import Any

import growproof
import pytest
import torch
from growproof.field import Field, Wide, held
from growproof.residues import SQUARES, Residues, prime, primes
from transformers import AutoModelForCausalLM

from .certificates import compared, grown_by, source, state
from .command import FAMILIES, TINY, config_of
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
        rest = model(tokens[:, 4:], past_key_values=first.past_key_values).logits
    assert torch.equal(residues(whole[:, 4:]), residues(rest))
    assert field.degree > 20
    assert field.error() < -30


# ------------------------------------------------------------------ soundness


def test_terms_agree_just_when_their_normal_forms_do() -> None:
    found = soundness(2000, 1)
    assert min(found["classes"], found["misses"]) > 500
    assert (found["merged"], found["split"], found["equal_misses"]) == (0, 0, 0)


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
            return compared(field, olds[0], values, grown, [(plan[0], news[0])])

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
