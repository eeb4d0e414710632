"""torch's sums in index order, and its curved functions spelled by exp, erf, tanh, √.

((0 + x₀) + x₁) + … : an inserted zero is an exact no-op of such a sum (x + 0 = x,
0 · y = 0), for arbitrary weights (`properties/proofs/Insertion.v`). BLAS and torch's own
`sum` regroup by size and promise no such thing. torch's `sigmoid`, `silu`, `gelu`,
`rsqrt` and `pow` have one formula for whole vectors and another for what is left over,
so that a value depends on where it sits; `addcmul` rounds once where a vector fits.

Each function has the signature of the aten operator that it stands for, and a product
that is added has two roundings, never one. Written for float64 on a CPU.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Axes = list[int] | int | None


class NotOrdered(RuntimeError):
    """An operator whose value may depend on the order of a sum or on places."""


# Float64 entries that stay in a cache: of all products at once, or of one block of sums,
# which is below the 32768 from which on torch would wake its threads for each step.
PRODUCTS, BLOCK = 1 << 17, 30_000


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """((0 + a₀b₀) + a₁b₁) + … : (…, M, N) × (…, N, P) → (…, M, P)."""
    if a.numel() * b.shape[-1] <= PRODUCTS:
        return running(a.unsqueeze(-2) * b.mT.unsqueeze(-3))
    blocks = math.ceil(a.shape[:-1].numel() * b.shape[-1] / BLOCK)
    parts = torch.chunk(b, blocks, -1)
    return torch.cat([summed(a, part.contiguous()) for part in parts], -1)


def summed(a: Tensor, b: Tensor) -> Tensor:
    """The same product, one column of a and one row of b at a time."""
    out = a.new_zeros((*a.shape[:-1], b.shape[-1]))
    product = torch.empty_like(out)
    columns, rows = a.unsqueeze(-1).unbind(-2), b.unsqueeze(-3).unbind(-2)
    for column, row in zip(columns, rows, strict=True):
        out.add_(torch.mul(column, row, out=product))
    return out


def addmm(
    c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """β c + α a b; a factor of one is no product, and where β is 0 c may be anything."""
    if beta == 0:
        return matmul(a, b) if alpha == 1 else alpha * matmul(a, b)
    return added(c if beta == 1 else beta * c, matmul(a, b), alpha=alpha)


def added(x: Tensor, y: Tensor, *, alpha: float = 1) -> Tensor:
    """x + α y."""
    return x + (y if alpha == 1 else alpha * y)


def taken(x: Tensor, y: Tensor, *, alpha: float = 1) -> Tensor:
    """x − α y."""
    return x - (y if alpha == 1 else alpha * y)


def taken_from(x: Tensor, y: Tensor, alpha: float = 1) -> Tensor:
    """y − α x."""
    return taken(y, x, alpha=alpha)


def mv(a: Tensor, x: Tensor) -> Tensor:
    """A x: (M, N) × (N) → (M)."""
    return matmul(a, x[:, None])[:, 0]


def dot(x: Tensor, y: Tensor) -> Tensor:
    """x · y: (N) × (N) → ()."""
    return total(x * y)


def grouped_mm(a: Tensor, b: Tensor, offs: Tensor | None = None) -> Tensor:
    """A product for each group of rows, columns or summands; group i ends at offs[i]."""
    if offs is None:
        return matmul(a, b)
    ends = [int(end) for end in offs]
    spans = [slice(i, j) for i, j in zip([0, *ends], ends, strict=False)]
    if a.ndim == b.ndim == 2:  # experts' gradients: the tokens are summed over
        return torch.stack([matmul(a[:, s], b[s]) for s in spans])
    if a.ndim == 2:
        return torch.cat([matmul(a[s], y) for s, y in zip(spans, b, strict=True)])
    return torch.cat([matmul(x, b[:, s]) for x, s in zip(a, spans, strict=True)], 1)


def total(
    x: Tensor, dim: Axes = None, keepdim: bool = False, *, dtype: object = None
) -> Tensor:
    """((0 + x₀) + x₁) + … over the axes `dim` (all of them by default), last fastest."""
    dims = [dim] if isinstance(dim, int) else dim or range(x.ndim)
    axes = sorted({d % x.ndim for d in dims}) if x.ndim else []
    kept = [d for d in range(x.ndim) if d not in axes]
    count = math.prod(x.shape[d] for d in axes)
    lines = (
        x.double().permute([*kept, *axes]).reshape([x.shape[d] for d in kept] + [count])
    )
    out = running(lines)
    for d in axes if keepdim else ():
        out = out.unsqueeze(d)
    return out


def running(lines: Tensor) -> Tensor:
    """((0 + x₀) + x₁) + … of each line: torch's running sum is that loop on a CPU."""
    return lines.cumsum(-1)[..., -1].contiguous() if lines.shape[-1] else lines.sum(-1)


def mean(
    x: Tensor, dim: Axes = None, keepdim: bool = False, *, dtype: object = None
) -> Tensor:
    """Σ x / N."""
    out = total(x, dim, keepdim)
    return out / (x.numel() / max(out.numel(), 1))


def accumulated(out: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """`out` with values[i] added to its entry number where[i], for i = 0, 1, …."""
    flat = out.flatten().index_add(
        0, where.flatten(), values.expand_as(where).flatten()
    )
    return flat.view(out.shape)


def places(x: Tensor) -> Tensor:
    """The number of each entry of x."""
    return torch.arange(x.numel()).view(x.shape)


def index_add(
    x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1
) -> Tensor:
    """x with slice i of α · source added to slice index[i], for i = 0, 1, …."""
    where = places(x).index_select(dim, index)
    return accumulated(x, where, source if alpha == 1 else alpha * source)


def scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """x with each source[i] added where index[i] says along `dim`."""
    corner = tuple(slice(n) for n in index.shape)
    return accumulated(x, places(x).gather(dim, index), source[corner])


def index_put(
    x: Tensor,
    indices: list[Tensor | None],
    values: Tensor,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Tensor:
    """x with values added (`accumulate`) or put at x[indices]."""
    if not accumulate:
        return torch.ops.aten.index_put(x, indices, values)
    where = torch.ops.aten.index(places(x), indices)
    return accumulated(x, where, values.expand(where.shape))


def embedding_dense_backward(
    grad: Tensor, indices: Tensor, rows: int, padding_idx: int, by_frequency: bool
) -> Tensor:
    """The gradient of a table's rows, summed over the tokens in their order."""
    if by_frequency:
        raise NotOrdered("embedding with scale_grad_by_freq is not spelled out")
    lanes = grad.shape[-1]
    keep = indices.flatten() != padding_idx
    chosen, values = indices.flatten()[keep], grad.reshape(-1, lanes)[keep]
    return index_add(grad.new_zeros(rows, lanes), 0, chosen, values)


def arange(
    start: float, end: float | None = None, step: float = 1, **_: object
) -> Tensor:
    """start + i · step; torch's own adds steps up within a vector."""
    if end is None:
        start, end = 0, start
    return start + torch.arange(math.ceil((end - start) / step)).double() * step


def power(x: Tensor | float, n: Tensor | float) -> Tensor:
    """xⁿ: products and roots where n is 1, 2, 3, ½, −½ or −1, else entry by entry."""
    if isinstance(x, Tensor) and not isinstance(n, Tensor) and n in POWERS:
        return POWERS[n](x)
    base, exponent = torch.as_tensor(x).double(), torch.as_tensor(n).double()
    like = base + exponent
    bases, exponents = (
        base.expand_as(like).flatten(),
        exponent.expand_as(like).flatten(),
    )
    out = [a.pow(b) for a, b in zip(bases, exponents, strict=True)]
    return torch.stack(out).view_as(like) if out else like


POWERS: dict[float, Callable[[Tensor], Tensor]] = {
    1: torch.clone,
    2: lambda x: x * x,
    3: lambda x: x * x * x,
    0.5: torch.sqrt,
    -0.5: lambda x: 1 / torch.sqrt(x),
    -1: lambda x: 1 / x,
}


def rsqrt(x: Tensor) -> Tensor:
    """1 / √x."""
    return 1 / torch.sqrt(x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(−x))."""
    return 1 / (1 + torch.exp(-x))


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), spelled x / (1 + exp(−x))."""
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x · Φ(x) by erf, or its approximation by tanh (Hendrycks & Gimpel 2016)."""
    if approximate == "none":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return (
        0.5
        * x
        * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    )


def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + exp(βx)) / β, and x itself where βx is past the threshold."""
    return torch.where(beta * x > threshold, x, torch.log1p(torch.exp(beta * x)) / beta)


def softmax(x: Tensor, dim: int, dtype: object = None) -> Tensor:
    """exp(x − max x) / Σ exp(x − max x)."""
    weights = torch.exp(x - x.amax(dim, True))
    return weights / total(weights, dim, True)


def safe_softmax(x: Tensor, dim: int, dtype: object = None) -> Tensor:
    """softmax, but zeros where every score is −∞."""
    return softmax(x, dim).masked_fill((x == -math.inf).all(dim, True), 0)


def log_softmax(x: Tensor, dim: int, dtype: object = None) -> Tensor:
    """(x − max x) − log Σ exp(x − max x)."""
    x = x - x.amax(dim, True)
    return x - total(x.exp(), dim, True).log()


def layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """w · c / √(E c² + ε) + b with c = x − E x, and E x, and 1 / √(E c² + ε)."""
    axes = list(range(-len(shape), 0))
    middle = mean(x, axes, True)
    y, scale = rms_norm(x - middle, shape, weight, eps)
    return y if bias is None else y + bias, middle, scale


def rms_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    """w · x / √(E x² + ε), and 1 / √(E x² + ε)."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scale = rsqrt(mean(x * x, list(range(-len(shape), 0)), True) + eps)
    y = x * scale
    return y if weight is None else y * weight, scale


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scale + mask) v: scores and their softmax whole, as eager does.

    (B, H, T, K), (B, G, S, K), (B, G, S, K) → (B, H, T, K), and log Σ exp (B, H, T).
    """
    k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
    scores = attention_scores(q, k, dropout, causal, attn_mask, scale)
    largest = scores.amax(-1, True)
    sums = largest + total(torch.exp(scores - largest), -1, True).log()
    return matmul(softmax(scores, -1), v), sums.squeeze(-1)


def attention_scores(
    q: Tensor,
    k: Tensor,
    dropout: float,
    causal: bool,
    mask: Tensor | None,
    scale: float | None,
) -> Tensor:
    """q kᵀ · scale + mask: (B, H, T, S)."""
    if dropout:
        raise NotOrdered("scaled_dot_product_attention with dropout is random")
    scores = matmul(q, k.mT) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return scores if mask is None else scores + mask


def repeated(x: Tensor, heads: int) -> Tensor:
    """Each key/value head as often as query heads read it: (B, G, S, K) → (B, H, S, K)."""
    return x.repeat_interleave(heads // x.shape[1], 1)


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    dropout: float,
    causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v: dS = P · (dP − Σ P dP), dq = dS k, dk = dSᵀ q."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    wide_k, wide_v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
    p = softmax(attention_scores(q, wide_k, dropout, causal, attn_mask, scale), -1)
    dp = matmul(grad, wide_v.mT)
    ds = p * (dp - total(p * dp, -1, True)) * factor

    def shared(x: Tensor) -> Tensor:
        """Summed over the query heads that read one key/value head."""
        return total(x.view(len(k), k.shape[1], -1, *k.shape[2:]), 2)

    return matmul(ds, wide_k), shared(matmul(ds.mT, q)), shared(matmul(p.mT, grad))
