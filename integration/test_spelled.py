"""What `ordered` lets through does not depend on places, and its sums are in index order.

Each elementwise operator on its list is evaluated at every place: in a vector's body and
in what is left over, aligned and not, with steps, alone. Each spelled sum is compared
with a loop in Python, and takes inserted zeros without changing a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from growproof import spelled
from growproof.arithmetic import ELEMENTWISE, MOVED, SPELLED, ordered
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten
# How to call what has more than one argument; all else is called with x alone.
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda x: aten.clamp(x, -0.3, 0.7),
    "clamp_max": lambda x: aten.clamp_max(x, 0.7),
    "clamp_min": lambda x: aten.clamp_min(x, -0.3),
    "masked_fill": lambda x: aten.masked_fill(x, x > 0.1, 0.3),
    "threshold": lambda x: aten.threshold(x, 0.1, 0.3),
    "threshold_backward": lambda x: aten.threshold_backward(x, x * x, 0.1),
    "where": lambda x: aten.where(x > 0.1, x, -x),
} | {
    name: lambda x, name=name: getattr(aten, name)(x, x * x + 0.3)
    for name in (
        *("div", "eq", "ge", "gt", "le", "logical_and", "logical_or", "lt"),
        *("maximum", "minimum", "mul", "ne"),
    )
}
# Of what is spelled out, all that keeps the shape of its input.
CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "power": lambda x: x.abs() ** 2.3,
    "exponential": lambda x: 10000.0**x,
    "add": lambda x: torch.add(x, x * x, alpha=0.3),
    "sub": lambda x: torch.sub(x, x * x, alpha=0.3),
    "rsub": lambda x: torch.rsub(x, x * x, alpha=0.3),
    "silu_backward": lambda x: aten.silu_backward(x, x * x),
    "gelu_backward": lambda x: aten.gelu_backward(x, x * x),
    "sigmoid_backward": lambda x: aten.sigmoid_backward(x, x * x),
    "tanh_backward": lambda x: aten.tanh_backward(x, x * x),
    "softplus_backward": lambda x: aten.softplus_backward(x, x * x, 1, 20),
}


def entries(count: int, seed: int) -> Tensor:
    """Numbers of every size, an infinity and a zero of either sign among them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dtype=torch.float64, generator=g)
    x = x * 10 ** torch.randint(-3, 3, (count,), generator=g).double()
    x[:4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf], dtype=x.dtype)[:count]
    return x[torch.randperm(count, generator=g)]


def bits(x: Tensor) -> Tensor:
    """Its bits, every NaN alike."""
    x = torch.nan_to_num(x, nan=-1e300, posinf=torch.inf, neginf=-torch.inf)
    return x.view(torch.int64) if x.is_floating_point() else x


def placed(x: Tensor) -> Iterator[Tensor]:
    """The entries of x at other places: behind 1 … 7 others, far on, with steps."""
    for offset in range(1, 8):
        yield torch.cat((x.new_ones(offset), x))[offset:]
    yield torch.stack((x, x.new_ones(len(x))), 1)[:, 0]
    yield x.view(-1, 1).expand(-1, 3).t().contiguous()[1]


def depends_on_place(f: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether an entry of f differs with neighbours, or where it sits, from f alone."""
    alone = bits(torch.cat([f(x[i : i + 1].clone()) for i in range(len(x))]))
    same = [torch.equal(bits(f(x)), alone)]
    same += [torch.equal(bits(f(y)), alone) for y in placed(x)]
    padded = f(torch.cat((x.new_ones(5), x, x.new_ones(40_000))))
    return not all((*same, torch.equal(bits(padded)[5 : 5 + len(x)], alone)))


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
@given(count=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_an_elementwise_operator_ignores_places(name, count, seed):
    """f(x)[i] is f of x[i], to the last bit, wherever x[i] sits."""
    f = CALLS.get(name) or getattr(aten, name)
    assert not depends_on_place(f, entries(count, seed))


@pytest.mark.parametrize("name", sorted(CURVES))
@given(count=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_a_spelled_function_ignores_places(name, count, seed):
    """So does what `ordered` spells out, its gradients included."""
    f = CURVES[name]

    def spelled_out(x: Tensor) -> Tensor:
        with ordered():
            return f(x)

    assert not depends_on_place(spelled_out, entries(count, seed))


@pytest.mark.parametrize("name", ["sigmoid", "silu", "gelu", "power", "exponential"])
def test_torch_itself_does_not(name):
    """The test above would see it."""
    assert any(depends_on_place(CURVES[name], entries(60, seed)) for seed in range(9))


def test_torch_fuses_a_product_with_a_sum():
    """x + αy and addcmul round once in a vector, which is why `add` is spelled out."""
    x, y, z = (entries(1000, seed) for seed in range(3))
    assert not torch.equal(bits(torch.addcmul(x, y, z)), bits(x + y * z))
    with ordered():
        total = torch.add(x, y, alpha=0.3)
    assert torch.equal(bits(total), bits(x + 0.3 * y))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=g)


def looped(x: Tensor) -> Tensor:
    """((0 + x₀) + x₁) + … over the last axis."""
    out = torch.zeros_like(x[..., 0])
    for n in range(x.shape[-1]):
        out = out + x[..., n]
    return out


@pytest.mark.parametrize("dim", [None, 0, 1, 2, [0, 2], [-1, 0], [0, 1, 2]])
def test_a_total_is_a_loop(dim):
    """The last of several axes is the fastest."""
    x = numbers(5, 70, 41)
    axes = sorted(d % 3 for d in ([dim] if isinstance(dim, int) else dim or range(3)))
    kept = [d for d in range(3) if d not in axes]
    lines = x.permute(*kept, *axes).reshape(*(x.shape[d] for d in kept), -1)
    with ordered():
        assert torch.equal(x.sum(dim), looped(lines))
        assert torch.equal(x.mean(dim), looped(lines) / lines.shape[-1])
        shape = [1 if d in axes else n for d, n in enumerate(x.shape)]
        assert list(x.sum(dim, keepdim=True).shape) == shape


def test_an_empty_total_is_zero():
    a, b = numbers(3, 0), numbers(0, 2)
    with ordered():
        assert torch.equal(a.sum(-1), torch.zeros(3))
        assert torch.equal(a @ b, torch.zeros(3, 2))


# Small ones are one running sum; large ones are blocks of columns.
SIZES = [(3, 5, 4), (1, 1, 1), (9, 64, 33), (40, 130, 50), (3, 20, 30_000)]


@pytest.mark.parametrize(("m", "n", "p"), SIZES)
def test_a_product_is_a_loop(m, n, p):
    """mm, bmm, addmm, baddbmm, linear and einsum are sums of products in index order."""
    a, b, c = numbers(m, n), numbers(p, n, seed=1).t(), numbers(m, p, seed=2)
    expected = torch.zeros(m, p, dtype=torch.float64)
    for i in range(n):
        expected = expected + a[:, i, None] * b[i]
    with ordered():
        assert torch.equal(a @ b, expected)
        assert torch.equal(torch.bmm(a[None], b[None])[0], expected)
        assert torch.equal(torch.addmm(c, a, b), c + expected)
        assert torch.equal(
            torch.addmm(c, a, b, beta=3, alpha=0.3), 3 * c + 0.3 * expected
        )
        assert torch.equal(torch.baddbmm(c[None], a[None], b[None])[0], c + expected)
        for beside in (c, c / 0):  # uninitialised, as baddbmm(torch.empty(…), …) has it
            assert torch.equal(torch.addmm(beside, a, b, beta=0), expected)
        assert torch.equal(F.linear(a, b.t(), c[0]), c[0] + expected)
        assert torch.equal(torch.einsum("mn,np->mp", a, b), expected)
        assert torch.equal(torch.mv(a, b[:, 0]), expected[:, 0])
        assert torch.equal(torch.dot(a[0], b[:, 0]), expected[0, 0])


@given(
    n=st.integers(1, 200),
    new=st.integers(1, 60),
    m=st.sampled_from([1, 5, 90]),
    p=st.sampled_from([1, 7, 40]),
    seed=st.integers(0, 2**32),
)
def test_an_inserted_zero_is_nothing(n, new, m, p, seed):
    """pad(a) pad(b) = a b in every bit, whatever sits beside the zeros of a."""
    g = torch.Generator().manual_seed(seed)
    places = torch.randperm(n + new, generator=g)[:n].sort().values
    a, b = numbers(m, n, seed=seed), numbers(n, p, seed=seed + 1)
    wide_a = torch.zeros(m, n + new, dtype=a.dtype).index_copy(1, places, a)
    wide_b = numbers(n + new, p, seed=seed + 2).index_copy(0, places, b)
    with ordered():
        assert torch.equal(wide_a @ wide_b, a @ b)
        assert torch.equal(wide_a.sum(-1), a.sum(-1))
        assert torch.equal(wide_a.cumsum(-1)[:, -1], a.sum(-1))


@given(seed=st.integers(0, 2**32), tokens=st.integers(1, 30))
def test_what_is_added_at_one_place_is_added_in_order(seed, tokens):
    """index_add, index_put, scatter_add and an embedding's gradient are loops."""
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(0, 4, (tokens,), generator=g)
    start, rows = numbers(4, 3, seed=seed), numbers(tokens, 3, seed=seed + 1)
    expected, fresh = start.clone(), torch.zeros_like(start)
    for i, row in zip(index, rows, strict=True):
        expected[i] = expected[i] + row
        fresh[i] = fresh[i] + row
    with ordered():
        assert torch.equal(start.index_add(0, index, rows), expected)
        assert torch.equal(start.clone().index_add_(0, index, rows), expected)
        assert torch.equal(start.index_put((index,), rows, accumulate=True), expected)
        where = index[:, None].expand(-1, 3)
        assert torch.equal(start.scatter_add(0, where, rows), expected)
        turned = start.t().index_put((torch.arange(3)[:, None], index), rows.t(), True)
        assert torch.equal(turned, expected.t())
        table = start.clone().requires_grad_()
        F.embedding(index, table).backward(rows)
        assert table.grad is not None
        assert torch.equal(table.grad, fresh)


@pytest.mark.parametrize("offs", [[2, 2, 7], [0, 5, 7], [7, 7, 7]])
def test_a_grouped_product_is_a_product_for_each_group(offs):
    """Also its gradients, of which one sums over the tokens of a group."""
    ends = torch.tensor(offs, dtype=torch.int32)
    a, b = numbers(7, 8).requires_grad_(), numbers(3, 8, 16, seed=1).requires_grad_()
    weights = numbers(7, 16, seed=2)
    spans = [slice(i, j) for i, j in zip([0, *offs[:-1]], offs, strict=True)]
    with ordered():
        out = F.grouped_mm(a, b, offs=ends)
        apart = torch.cat([a[s] @ b[i] for i, s in enumerate(spans)])
        assert torch.equal(out, apart)
        found = torch.autograd.grad((out * weights).sum(), (a, b))
        wanted = torch.autograd.grad((apart * weights).sum(), (a, b))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_sdpa_is_eager_attention(causal, groups):
    """In values and gradients, with fewer key/value heads than query heads as well."""
    q = numbers(2, 4, 5, 8).requires_grad_()
    k, v = (numbers(2, groups, 5, 8, seed=i).requires_grad_() for i in (1, 2))
    weights = numbers(2, 4, 5, 8, seed=3)
    with ordered():
        fused = F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=groups < 4
        )
        wide_k, wide_v = (x.repeat_interleave(4 // groups, 1) for x in (k, v))
        scores = q @ wide_k.mT * 8**-0.5
        future = torch.ones(5, 5, dtype=torch.bool).triu(1) & causal
        eager = scores.masked_fill(future, -torch.inf).softmax(-1) @ wide_v
        assert (fused - eager).abs().max() < 1e-15
        found = torch.autograd.grad((fused * weights).sum(), (q, k, v))
        wanted = torch.autograd.grad((eager * weights).sum(), (q, k, v))
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < 1e-14


VALUES: dict[str, Callable[[Tensor], Tensor]] = CURVES | {
    "softmax": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(0),
    "layer_norm": lambda x: F.layer_norm(x, x.shape, x + 1, x * 2, 1e-5),
    "rms_norm": lambda x: F.rms_norm(x, x.shape, x + 1, 1e-5),
    "cross_entropy": lambda x: F.cross_entropy(
        x.expand(3, -1), torch.tensor([0, -100, 5])
    ),
    "std": lambda x: (x - x.mean()).pow(2).mean().sqrt(),
    "arange": lambda x: x + torch.arange(0.5, 0.3 * len(x) + 0.4, 0.3),
}


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_spelling_is_the_same_function(name):
    """To a few roundings torch's own, and so are its gradients."""
    f, x = VALUES[name], numbers(40).abs() if name == "rsqrt" else numbers(40)
    x.requires_grad_("backward" not in name)
    with ordered():
        found = value_and_gradient(f, x)
    torch.set_default_dtype(torch.float64)
    wanted = value_and_gradient(f, x)
    torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


def value_and_gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """f(x) and, where x asks for one, the gradient of Σ i f(x)ᵢ."""
    y = f(x)
    loss = (y * torch.arange(y.numel()).view(y.shape)).sum()
    return [y.detach(), *(torch.autograd.grad(loss, x) if x.requires_grad else ())]


def test_every_name_is_an_operator():
    """And each stands on one list only."""
    names = [*ELEMENTWISE, *MOVED, *SPELLED]
    assert len(set(names)) == len(names)
    assert all(hasattr(aten, name) or hasattr(aten, f"{name}_") for name in names)
    assert set(CALLS) <= ELEMENTWISE
    assert spelled.matmul is SPELLED["mm"]
