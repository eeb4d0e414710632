"""Assertions, and the one table of budgets.

Every numerical comparison goes through `close`, which measures, records in the ledger,
and judges. The unit of error is what rounding the weights once does to the same value:
a grown model's weights are the old ones times a scalar, rounded once, so an exact
grower in exact arithmetic shows about one such unit, in any dtype, at any depth, on a
well or an ill conditioned example. That makes one number a budget for all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from growproof import decoder
from growproof.arithmetic import ORDERED, Arithmetic
from growproof.decoder import Layer, Taps, rotation
from growproof.layout import Row, factors, taps
from growproof.models import shape_of, state_of
from growproof.padding import State, place
from growproof.shape import Growth, GrowthError, Shape
from hypothesis import Phase, currently_in_test_context, target
from torch import Tensor

from ..errors import ledger
from .registry import Budget, running
from .strategies import Case, profile

# ratio = error / (√n · response), response the change of the same value when every
# weight is multiplied by 1 ± u at random, n the longest sum behind it.
#
# block: one block. Each grown weight is rounded once more (≤ 1 response in the worst
#   direction, where random signs show about 1/√n of it) and each of the n products and
#   n − 1 sums of a scaled row rounds anew: √n by Higham & Mary 2019, Theorem 2.4.
# decoder: as for a block, through L blocks; errors that earlier blocks hand on are
#   amplified by the same factors as the response is, so that the ratio stays.
# stock: transformers' own forward, whose softmax, rotary and RMSNorm run in float32;
#   u is float32's there, whatever the dtype.
# low: a decoder whose weights are stored in 8 to 24 bits. The response is as large as
#   everything else by then, and the √n of the sums, done in float64, is slack. A grower
#   that pads with the mean rounds that as well, and was seen at 4.5 with two lanes that
#   nearly cancel; all others stay below 1.
# In runs over right growers that searched for the worst (runs.json) block, decoder and
# stock stay below 3, and near 1 if each weight is rounded once: 6 leaves room for a
# second rounding and for other processors.
# weights: one stored weight, against the exactly scaled one rounded once, in units of u:
#   0 where the scale is the table's. An estimated scale, a mean of (1 + δ), |δ| ≤ u, is
#   off by u at most; numbers that near round to neighbours, one last place or 2u apart.
BUDGETS: dict[Budget, float] = {
    "block": 6.0,
    "decoder": 6.0,
    "stock": 4.0,
    "low": 6.0,
    "weights": 2.0,
}


class Violation(AssertionError):
    """A law that does not hold, with the place where it fails."""

    def __init__(
        self,
        message: str,
        *,
        tap: str,
        case: Case | None = None,
        ratio: float = math.inf,
    ) -> None:
        super().__init__(message)
        self.tap, self.case, self.ratio = tap, case, ratio


@dataclass(frozen=True)
class Grown:
    """A grown model as the laws see it, whatever grew it.

    scale, growth.norm: how it writes the residual stream, read off the embedding.
    layers: the new index of each old layer: those that add to the residual, in order.
    """

    case: Case
    source: Any
    model: Any

    @functools.cached_property
    def old_state(self) -> State:
        """The parameters before, as float64."""
        return {name: w.double() for name, w in state_of(self.source).items()}

    @functools.cached_property
    def state(self) -> State:
        """The parameters after, as float64."""
        return {name: w.double() for name, w in state_of(self.model).items()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the parameters are stored in, whose u the budgets are in."""
        return self.source.dtype

    @functools.cached_property
    def shape(self) -> Shape:
        """The grown model's own Shape, from its own config."""
        try:
            return shape_of(self.model.config)
        except GrowthError as error:
            raise Violation(
                f"the grown config is not a model: {error}",
                tap="config",
                case=self.case,
            ) from error

    @functools.cached_property
    def stream(self) -> tuple[bool, float]:
        """(whether the embedding was centred, its scale): what all writers share."""
        old = self.old_state["model.embed_tokens.weight"].double()
        new = self.state["model.embed_tokens.weight"].double()[:, : old.shape[1]]
        fits = []
        for is_centred in (False, True):
            e = old - old.mean(1, keepdim=True) if is_centred else old
            scale = float((new * e).sum() / (e * e).sum().clamp_min(1e-300))
            fits.append((float((new - scale * e).abs().max()), is_centred, scale))
        return min(fits)[1:]

    @functools.cached_property
    def growth(self) -> Growth:
        """The growth from the old shape to what the grown model says it is."""
        norm = "centred" if self.stream[0] else "scaled"
        return Growth(old=self.case.shape, new=self.shape, norm=norm)

    @functools.cached_property
    def rows(self) -> dict[str, Row]:
        """How each tap grows, with the scale of this model's stream."""
        rows = taps(self.growth)
        for name, row in rows.items():
            if name in ("embedding",) or name.endswith(
                (".attention", ".mlp", "residual")
            ):
                rows[name] = dataclasses.replace(row, scale=self.stream[1])
        return rows

    @functools.cached_property
    def layers(self) -> list[int]:
        """The new index of each old layer. Violation unless there are L of them."""
        writers = ("self_attn.o_proj", "mlp.down_proj")
        loud = [
            i
            for i in range(self.shape.layers)
            if any(
                bool(p.any())
                for name, p in self.state.items()
                if name.startswith(f"model.layers.{i}.")
                and any(w in name for w in writers)
            )
        ]
        if len(loud) != self.case.shape.layers:
            raise Violation(
                f"{len(loud)} layers add to the residual, expected the "
                f"{self.case.shape.layers} old ones: new layers must be silent",
                tap="layers",
                case=self.case,
            )
        return loud

    def row(self, tap: str) -> Row:
        """The row of a concrete tap name."""
        parts = tap.split(".")
        return self.rows[
            ".".join(["layers", "{layer}", *parts[2:]] if parts[2:] else parts)
        ]

    def renamed(self, tap: str) -> str:
        """The grown model's name of an old tap: its layer's new index."""
        parts = tap.split(".")
        if len(parts) == 3:
            parts[1] = str(self.layers[int(parts[1])])
        return ".".join(parts)

    def renamed_parameter(self, name: str) -> str:
        """The grown model's name of an old parameter: its layer's new index."""
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(self.layers[int(parts[2])])
        return ".".join(parts)

    def layer(self, i: int, *, old: bool, sums: Arithmetic = ORDERED) -> Layer:
        """Layer i of the old model, before or after growing."""
        if old:
            return Layer(self.case.shape, self.old_state, f"model.layers.{i}.", sums)
        return Layer(self.shape, self.state, f"model.layers.{self.layers[i]}.", sums)


def grow(case: Case, grower: Any, dtype: torch.dtype | None = None) -> Grown:
    """The case, grown: in `dtype`, by default that of the domain."""
    source = case.model(dtype)
    return Grown(case, source, grower(source, case.target))


def unit_roundoff(dtype: torch.dtype) -> float:
    """u = ε / 2: 1.1e-16 for float64, 6.0e-8 for float32, 2.0e-3 for bfloat16."""
    return torch.finfo(dtype).eps / 2


def perturbed(state: State, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Every weight times 1 ± u at random, in float64: one rounding's worth of change."""
    generator = torch.Generator().manual_seed(seed)
    u = unit_roundoff(dtype)
    # in float64 itself 1 ± u rounds to 1 − u or 1, so step by 2u there
    step = 2 * u if dtype == torch.float64 else u
    shaken = {}
    for name, w in state.items():
        sign = torch.randint(0, 2, w.shape, generator=generator).double() * 2 - 1
        shaken[name] = w.double() * (1 + step * sign)
    return shaken


class Responses(dict[str, float]):
    """Tap → the largest change that one rounding of the weights makes, of 2 draws.

    Never less than one rounding of the tap's own largest value. run: the taps as a
    function of the weights, truth: those of `state`. Where two lanes nearly cancel, as
    in a LayerNorm of two, half of all draws leave their difference alone: `more` draws
    30 others, for a verdict that would be against the grower.
    """

    def __init__(
        self,
        run: Callable[[State], Taps],
        state: State,
        truth: Taps,
        dtype: torch.dtype,
    ) -> None:
        u = unit_roundoff(dtype)
        self.run, self.state, self.truth, self.dtype = run, state, truth, dtype
        least = {tap: u * float(x.abs().max()) for tap, x in truth.items()}
        super().__init__(self.drawn(least, range(1, 3)))

    def drawn(self, least: dict[str, float], seeds: range) -> dict[str, float]:
        """The largest changes of these draws, and no less than that."""
        found = dict(least)
        for seed in seeds:
            for tap, x in self.run(perturbed(self.state, self.dtype, seed)).items():
                change = float((x - self.truth[tap]).abs().max())
                found[tap] = max(found[tap], change)
        return found

    @functools.cached_property
    def most(self) -> dict[str, float]:
        """The same of 32 draws."""
        return self.drawn(self, range(3, 33))

    def more(self, tap: str) -> float:
        """That of one tap."""
        return self.most[tap]


def close(
    actual: Tensor,
    expected: Tensor,
    *,
    tap: str,
    case: Case,
    response: float,
    more: Callable[[], float] | None = None,
    n: int | None = None,
    dtype: torch.dtype = torch.float64,
    kernel: str = "ordered",
    law: str | None = None,
    budget: Budget | None = None,
) -> None:
    """|actual − expected| ≤ BUDGETS[budget] · √n · response, recorded. Or Violation.

    Both must be finite and of the same shape. law, budget: those of the law that is
    being tested, unless they are said. tap: the name in the old model. more: the response of more draws, asked for where these give more
    than one unit. n: the longest sum, by default over the grown axes of the case.
    """
    __tracebackhide__ = True
    if actual.shape != expected.shape:
        raise Violation(
            f"{tap} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}",
            tap=tap,
            case=case,
        )
    if not actual.isfinite().all():
        raise Violation(f"{tap} holds a NaN or an infinity", tap=tap, case=case)
    law, budget = law or running().name, budget or running().budget
    assert budget, f"{law} compares numbers, and names no budget"
    n = n or longest_sum(case.shape)
    u = unit_roundoff(dtype)
    measure = functools.partial(ledger.measure, actual, expected, n=n, dtype=dtype)
    got = measure(scale=max(response / u, 1e-300))
    if more is not None and got.ratio > 1:
        got = measure(scale=max(more() / u, 1e-300))
    size = "tiny" if case.shape.hidden <= 64 else "small"
    ledger.record(
        ledger.Comparison(
            law=law, tap=tap, family=case.family, dtype=str(dtype)[6:], kernel=kernel,
            device=str(actual.device.type), size=size, ratio=got.ratio, ulps=got.ulps,
            relative=got.relative, budget=BUDGETS[budget], example=case.text,
        )
    )  # fmt: skip
    steered = Phase.target in profile().phases and currently_in_test_context()
    if steered and math.isfinite(got.ratio):
        target(got.ratio, label=f"{law} {tap}")  # steer `thorough` to the worst case
    if not got.ratio <= BUDGETS[budget]:
        worst = float((actual - expected).abs().max())
        raise Violation(
            f"{tap} differs by {worst:.3g} at {got.where}: got "
            f"{float(actual[got.where]):.17g}, expected {float(expected[got.where]):.17g}; "
            f"{got.ratio:.3g} units against a budget of {BUDGETS[budget]:g} "
            f"(a unit is √{n} roundings of the weights in {str(dtype)[6:]})",
            tap=tap,
            case=case,
            ratio=got.ratio,
        )


def longest_sum(shape: Shape) -> int:
    """The most terms that any contraction of a decoder adds up."""
    return max(shape.hidden, shape.mlp, shape.heads * shape.head_dim)


def zeros(
    actual: Tensor, old: Tensor, row: Row, growth: Growth, tap: str, case: Case
) -> None:
    """Every new entry of a tap is exactly zero. Or Violation, with the place."""
    __tracebackhide__ = True
    if row.axes[1] == "head":
        return  # a new head has probabilities as well: it is silent further on
    new = new_entries(old, row, growth, tap)
    if new.shape != actual.shape:
        raise Violation(
            f"{tap} has shape {tuple(actual.shape)}, expected {tuple(new.shape)}",
            tap=tap,
            case=case,
        )
    wrong = new & (actual != 0)
    if wrong.any():
        where = tuple(int(i) for i in wrong.nonzero()[0])
        raise Violation(
            f"{tap} must be zero in its new lanes, got {float(actual[where]):.3g} at "
            f"{where} ({int(wrong.sum())} of {int(new.sum())} new entries are not zero)",
            tap=tap,
            case=case,
        )


def new_entries(old: Tensor, row: Row, growth: Growth, tap: str) -> Tensor:
    """Where the grown tap must be zero: everywhere but at the old entries.

    A new query head of an old group reads the group's values, so that its context is
    not zero, and only o_proj silences it.
    """
    new = place(torch.ones_like(old), Row(row.axes), growth) == 0
    if tap.endswith("context"):
        heads = new.view(*new.shape[:2], *factors(growth.new)["query"])
        lanes = (slice(n) for n in factors(growth.old)["head_dim"])
        heads[(..., slice(growth.old.groups), slice(None), *lanes)] = False
    return new


def free_scale(actual: Tensor, old: Tensor, row: Row, growth: Growth) -> Row:
    """The row, with the scale that this grower chose: q and k may share √(K'/K)."""
    base = place(old, dataclasses.replace(row, scale=1.0), growth)
    if base.shape != actual.shape or not base.any():
        return row
    scale = float((actual * base).sum() / (base * base).sum())
    return dataclasses.replace(row, scale=scale)


def inputs(case: Case) -> Tensor:
    """Hidden states for a block: (B, T, D), order one, with a mean; float64."""
    generator = torch.Generator().manual_seed(case.seed + 2)
    size = (case.batch, case.tokens, case.shape.hidden)
    return torch.randn(size, generator=generator, dtype=torch.float64) + 0.3


def pad(x: Tensor, growth: Growth, scale: float = 1.0) -> Tensor:
    """Hidden states (B, T, D) padded with zeros to (B, T, D')."""
    return place(x, Row(("batch", "tokens", "residual"), scale), growth)


Block = Callable[[Layer, Tensor], Taps]


def block_is_padded(grown: Grown, run: Block, *names: str) -> None:
    """At each named tap, block'(pad x) = pad(block(x)), for every layer.

    run: a block as a function of (layer, x), returning its taps. Zeros are exact,
    originals within the law's budget; a query and a key may differ by one scalar.
    """
    __tracebackhide__ = True
    x, checked = inputs(grown.case), 0
    for i in range(grown.case.shape.layers):
        layer = grown.layer(i, old=True)
        old = run(layer, x)
        new = run(grown.layer(i, old=False), pad(x, grown.growth))
        response = Responses(
            lambda state, layer=layer: run(dataclasses.replace(layer, state=state), x),
            weights_below(layer.prefix, grown.old_state),
            old,
            grown.dtype,
        )
        for name in names:
            row, tap = grown.rows["layers.{layer}." + name], f"layers.{i}.{name}"
            zeros(new[name], old[name], row, grown.growth, tap, grown.case)
            if name.startswith(("query", "key")):
                row = free_scale(new[name], old[name], row, grown.growth)
            close_to_padded(
                grown, tap, new[name], old[name], row, response[name],
                more=functools.partial(response.more, name),
            )  # fmt: skip
            checked += 1
    assert checked > 0


def close_to_padded(
    grown: Grown,
    tap: str,
    actual: Tensor,
    old: Tensor,
    row: Row,
    response: float,
    more: Callable[[], float] | None = None,
) -> None:
    """`close`, to the old value placed by its row: at the old entries only.

    What lies in the new ones is for `zeros` to judge (probabilities have none).
    """
    __tracebackhide__ = True
    here = place(torch.ones_like(old), Row(row.axes), grown.growth) != 0
    expected = place(old, row, grown.growth)
    if actual.shape == expected.shape:
        actual, expected = actual * here, expected * here
    close(
        actual,
        expected,
        tap=tap,
        case=grown.case,
        response=response * abs(row.scale),
        more=more and (lambda: more() * abs(row.scale)),
        dtype=grown.dtype,
    )


def weights_below(prefix: str, state: State) -> dict[str, Tensor]:
    """The parameters of one layer."""
    return {name: w for name, w in state.items() if name.startswith(prefix)}


def attention_block(layer: Layer, x: Tensor) -> Taps:
    """`decoder.attention`, with the rotation of the layer's own shape."""
    return decoder.attention(layer, x, *rotation(layer.shape, x.shape[1], x))
