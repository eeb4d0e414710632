"""What one rounding of the weights does to a value: the unit in which errors are told.

A grown weight is the old one times a scalar, rounded once. So the change that a value
makes when every weight is multiplied by 1 ± u, its *response*, is the size of the error
that an exact growth may show, in any dtype, at any depth, on a well or an ill
conditioned example. Where a growth has no scalar, no weight had to be rounded, and the
response is that of float64.
"""

import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from growproof.padding import State, generator_of

Precision = torch.dtype | Callable[[str], torch.dtype]


def unit_roundoff(dtype: torch.dtype) -> float:
    """u = ε / 2: 1.1e-16 for float64, 6.0e-8 for float32, 3.9e-3 for bfloat16."""
    return torch.finfo(dtype).eps / 2


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every number of one dtype is a number of the other, wider or the same."""
    return torch.promote_types(wide, narrow) == wide


def step(x: Tensor, dtype: torch.dtype) -> Tensor:
    """By how much one rounding to `dtype` may move each entry of x (float64).

    u · |x|, at least half the least subnormal, and nothing for a zero. In float64 itself
    1 ± u rounds to 1 − u or 1, so it is 2u there.
    """
    info = torch.finfo(dtype)
    u = info.eps if dtype == torch.float64 else info.eps / 2
    least = info.smallest_normal * info.eps / 2
    return x.abs().mul_(u).clamp_(min=least).masked_fill_(x == 0, 0)


def signs(name: str, like: Tensor, seed: int) -> Tensor:
    """±1 for each entry of a parameter, by its name and the seed."""
    generator = generator_of(name, seed)
    flips = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return flips.to(like).mul_(2).sub_(1)


def rounded(name: str, x: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """x · (1 ± u), in float64: as one rounding to `dtype` could change it."""
    x = x.double()
    return step(x, dtype).mul_(signs(name, x, seed)).add_(x)


class Perturbed(Mapping[str, Tensor]):
    """A state with each weight moved by one rounding, made when it is asked for.

    precision: the dtype rounded to, for all, or a function of the parameter's name.
    """

    def __init__(self, state: State, precision: Precision, seed: int) -> None:
        self.state, self.seed = state, seed
        self.precision = precision

    def __getitem__(self, name: str) -> Tensor:
        p = self.precision
        dtype = p if isinstance(p, torch.dtype) else p(name)
        return rounded(name, self.state[name], dtype, self.seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

    def __contains__(self, name: object) -> bool:
        return name in self.state


def neighbours(got: Tensor, exact: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """True where `got` is one of the two numbers of `dtype` around the exact one.

    exact: float64. size: the largest of the terms that it is a sum of; what float64
    itself rounds of these is allowed for.
    """
    slack = 8 * unit_roundoff(torch.float64) * size
    return (got - exact).abs() <= 2 * step(exact, dtype) + slack


def largest(x: Tensor) -> float:
    """max |x|; 0 for nothing."""
    return float(x.abs().max()) if x.numel() else 0.0


class Responses(dict[str, float]):
    """Tap → the largest change that one rounding of the weights makes, of 2 draws.

    Drawn when it is first asked for. Never less than `least`, one rounding of the tap's
    own largest value, which costs nothing. run: the taps as a
    function of the weights, truth: those of `state`. Where two lanes nearly cancel, as
    in a LayerNorm of two, half of all draws leave their difference alone: `most` draws
    30 others, for a verdict that would be against the grower.
    """

    def __init__(
        self,
        run: Callable[[State], Mapping[str, Tensor]],
        state: State,
        truth: Mapping[str, Tensor],
        precision: Precision,
        *,
        floor: torch.dtype = torch.float64,
    ) -> None:
        self.run, self.state, self.truth = run, state, truth
        self.precision = precision
        u = unit_roundoff(floor)
        self.least = {tap: u * largest(x) for tap, x in truth.items()}
        super().__init__()

    def __missing__(self, tap: str) -> float:
        self.update(self.drawn(self.least, range(1, 3)))
        return self.get(tap, 0.0)

    def drawn(self, least: Mapping[str, float], seeds: range) -> dict[str, float]:
        """The largest changes of these draws, and no less than that."""
        found = dict(least)
        for seed in seeds:
            moved = self.run(Perturbed(self.state, self.precision, seed))
            for tap, x in moved.items():
                found[tap] = max(found[tap], largest(x - self.truth[tap]))
        return found

    @functools.cached_property
    def most(self) -> dict[str, float]:
        """The same of 32 draws."""
        return self.drawn({tap: self[tap] for tap in self.least}, range(3, 33))
