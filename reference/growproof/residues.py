# pyright: standard
"""Residues modulo several primes at once: exact sums, products, quotients and roots.

Every prime is near 2³¹ and 7 modulo 8, and small primes are squares modulo each. Then
of x and −x just one is a square, as if it were the positive one; x^((p+1)/4) is the
square that squares to ±x, so that √(xy) = √x·√y for all x and y, and (√q)² = q for the
fractions q that scales are made of. A real number is read as ±q, ±√q, ±⁴√q or ±(√q − 1)
where one of small height rounds to it; any other is a symbol, a random residue of its own.

A *random function* maps the residues of a number modulo all primes together to random
ones, so that two different terms give it one argument only if they agree modulo each.

The last axis of every tensor of residues (int64) runs over the primes.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

SQUARES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)  # and 2: 7 modulo 8
READ = 1e-12  # a real number against the exact one that it rounds
HEIGHT = 10_000  # of a denominator
MARK = -1  # what stands for the −∞ of a mask


class Unlucky(ArithmeticError):
    """A zero was divided by, or has no root of its own: draw again."""


def prime(n: int) -> bool:
    """Miller and Rabin's test, certain below 4.7e9 with the bases 2, 7 and 61."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 7, 61):
        x = pow(base, odd, n)
        if x != 1 and all(pow(x, 2**i, n) != n - 1 for i in range(twos)):
            return False
    return n > 61


@functools.cache
def primes(count: int, seed: int, squares: tuple[int, ...] = ()) -> list[int]:
    """Random primes p = 7 modulo 8 just below 2³¹; SQUARES and `squares` are squares.

    q is a square modulo p just when (−1)^((q−1)/2) p is one modulo q (reciprocity).
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    while len(found) < count:
        start = int(torch.randint(2**22, (1,), generator=generator))
        p = 2**31 - 1 - 8 * (start + torch.arange(2**20))
        for q in sorted({*SQUARES, *squares} - {2}):
            roots = {x * x % q for x in range(1, q)}
            keep = torch.tensor([(r * (-1) ** (q // 2)) % q in roots for r in range(q)])
            p = p[keep[p % q]]
        found += [n for n in p.tolist() if prime(n) and n not in found][:1]
    return found


@functools.cache
def factors(n: int) -> frozenset[int]:
    """The primes that divide n."""
    found, p = set[int](), 2
    while p * p <= n:
        found |= {p} if n % p == 0 else set()
        n, p = (n // p, p) if n % p == 0 else (n, p + 1)
    return frozenset(found | ({n} if n > 1 else set()))


def fraction(x: float) -> Fraction | None:
    """The fraction of small height, times a power of ten, that rounds to x > 0."""
    for shift in {0, -math.floor(math.log10(x))}:
        q = Fraction(x) * Fraction(10) ** shift
        near = q.limit_denominator(HEIGHT)
        if near and abs(q / near - 1) <= READ:
            return near / Fraction(10) ** shift
    return None


def nearly(x: Tensor) -> Tensor:
    """Whether `fraction` may find one for x > 0: a fraction that near is a convergent
    of x (Legendre), or of x times a power of ten.
    """
    x = torch.stack((x, x * 10 ** -x.log10().floor()))
    found = x > 1e3  # a fraction near it need not be a convergent
    rest, ends, sizes = x, (1.0, x.floor()), (0.0, torch.ones_like(x))
    while (small := sizes[1] <= HEIGHT).any():
        found |= small & ((ends[1] / sizes[1] / x - 1).abs() <= 2 * READ)
        rest = 1 / (rest - rest.floor()).clamp(min=1 / HEIGHT**2)
        ends = (ends[1], rest.floor() * ends[1] + ends[0])
        sizes = (sizes[1], rest.floor() * sizes[1] + sizes[0])
    return found.any(0)


def mixed(x: Tensor) -> Tensor:
    """A bijection of 64-bit words that looks random (Steele, Lea & Flood 2014)."""
    for shift, factor in (
        (30, -0x40A7B892E31B1A47),
        (27, -0x6B2FB644ECCEEE15),
        (31, 1),
    ):
        high = (x >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        x = high.bitwise_xor_(x).mul_(factor)
    return x


def key_of(*parts: object) -> int:
    """A 63-bit key for a name."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """The different numbers in x, ascending, and for each entry its number's place."""
    pair: Any = torch.unique(x, return_inverse=True)
    return pair


@functools.cache
def digits(exponents: tuple[int, ...]) -> list[Tensor]:
    """Their hexadecimal digits, the first one first."""
    length = -(-max(exponents).bit_length() // 4)
    return [
        *torch.tensor(
            [[e >> 4 * i & 15 for e in exponents] for i in range(length)]
        ).flip(0)
    ]


class Known:
    """Real numbers, each read as the first one seen within READ of it."""

    def __init__(self) -> None:
        self.seen = torch.zeros(1, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        """x (any shape), its numbers replaced by those seen first."""
        values, back = distinct(x.double())
        slack = READ * values.abs()
        at = torch.searchsorted(self.seen, values - slack).clamp(max=len(self.seen) - 1)
        near = (self.seen[at] - values).abs() <= slack
        fresh = values[~near]
        if len(fresh):  # of fresh numbers within READ of each other, the least
            first = torch.ones_like(fresh, dtype=torch.bool)
            first[1:] = fresh.diff() > READ * fresh[1:].abs()
            self.seen = torch.cat((self.seen, fresh[first])).sort().values
            return self(x)
        return self.seen[at][back].reshape(x.shape)


class Residues:
    """The ring of residues modulo `primes`, with its random functions and symbols."""

    def __init__(self, primes: Sequence[int], seed: int) -> None:
        self.primes, self.seed = list(primes), seed
        self.p = torch.tensor(self.primes)
        self.known = Known()
        self.numbers = dict[float, Tensor]()
        self.generator = torch.Generator().manual_seed(key_of("draw", seed))

    def random(self, shape: Sequence[int]) -> Tensor:
        """Independent random residues."""
        high = torch.iinfo(torch.int64).max  # 2³² to 1 over p: as good as uniform
        size = (*shape, len(self.primes))
        return torch.randint(high, size, generator=self.generator) % self.p

    def exact(self, q: Fraction | int) -> Tensor:
        """A fraction."""
        q = Fraction(q)
        parts = [q.numerator * pow(q.denominator, -1, p) % p for p in self.primes]
        return torch.tensor(parts)

    def function(self, name: object, x: Tensor) -> Tensor:
        """A random function of that name, of the numbers with residues x.

        Modulo each prime a random affine form in all residues, modulo 2⁶⁴ (Carter &
        Wegman 1979), mixed: each prime's value is one of its own.
        """
        forms = self.forms(key_of(self.seed, name), x.shape[-1])
        words = mixed((x @ forms[:-1]).add_(forms[-1]))
        return words.bitwise_right_shift_(1).remainder_(self.p)

    @functools.cache  # noqa: B019
    def forms(self, key: int, width: int) -> Tensor:
        """Random coefficients modulo 2⁶⁴ and a constant, one column for each prime."""
        limits, size = torch.iinfo(torch.int64), (width + 1, len(self.primes))
        generator = torch.Generator().manual_seed(key)
        return torch.randint(limits.min, limits.max, size, generator=generator)

    def words(self, x: Tensor) -> Tensor:
        """Real numbers as `function` takes them, each as the first one seen like it."""
        return mixed(self.known(x).view(torch.int64))[..., None]

    def power(self, x: Tensor, exponents: Sequence[int]) -> Tensor:
        """x to an exponent for each prime: four bits of them at a time."""
        table = [torch.ones_like(x), x]
        while len(table) < 16:
            table.append((table[-1] * x).remainder_(self.p))
        powers, out = torch.stack(table), table[0]
        for digit in digits(tuple(exponents)):
            for _ in range(4):
                out = (out * out).remainder_(self.p)
            out *= powers.gather(0, digit.expand(1, *x.shape))[0]
            out.remainder_(self.p)
        return out

    def inverse(self, x: Tensor) -> Tensor:
        """1/x; Unlucky where x is zero."""
        if not x.all():
            raise Unlucky("A zero was divided by.")
        return self.power(x, [p - 2 for p in self.primes])

    def root(self, x: Tensor) -> Tensor:
        """√x, multiplicative."""
        return self.power(x, [(p + 1) // 4 for p in self.primes])

    def inverse_root(self, x: Tensor) -> Tensor:
        """1/√x; Unlucky where x is zero."""
        if not x.all():
            raise Unlucky("A zero was divided by.")
        return self.power(x, [p - 1 - (p + 1) // 4 for p in self.primes])

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """(…, M, K, primes) × (…, K, N, primes): float64 products of 15 or 16 by 31
        bits, of which 64 add up exactly, and in int64 a thousand times as many.
        """
        rank = max(a.dim(), b.dim())
        a, b = (x.movedim(-1, 0) for x in (a, b))
        a, b = (
            x.reshape(len(x), *[1] * (rank - x.dim()), *x.shape[1:]) for x in (a, b)
        )
        small, axis = (a, -2) if a.numel() <= b.numel() else (b, -1)
        halves = torch.cat((small >> 16, small & 0xFFFF), axis).double()
        x, y = (halves, b.double()) if axis == -2 else (a.double(), halves)
        parts = zip(x.split(64, -1), y.split(64, -2), strict=True)
        total = functools.reduce(torch.add, [(x @ y).long() for x, y in parts])
        high, low = total.chunk(2, axis)
        p = self.p.reshape(-1, *[1] * (rank - 1))
        high = high.remainder_(p).bitwise_left_shift_(16).add_(low).remainder_(p)
        return high.movedim(0, -1).contiguous()

    def number(self, x: float) -> Tensor:
        """The residues of a real number."""
        return self.lift(torch.tensor(x, dtype=torch.float64))

    def exactly(self, x: float) -> Tensor | None:
        """q, √q, ⁴√q or ±(√q − 1) where one of small height rounds to x > 0."""
        for degree in (1, 2, 4):
            q = fraction(x**degree)
            if q and degree == 1:
                return self.exact(q)
            if q and self.squares(q):
                root = self.root(self.exact(q))
                return root if degree == 2 else self.root(root)
        for sign, root in ((1, x + 1), (-1, 1 - x)):  # √q − 1, and 1 − √q
            q = fraction(root**2) if root > 0 else None
            if q and self.squares(q):
                return sign * (self.root(self.exact(q)) - 1) % self.p
        return None

    def read(self, x: Tensor) -> Tensor:
        """Real numbers ≥ 0: exactly, or each as a symbol."""
        out = torch.zeros((len(x), len(self.primes)), dtype=torch.int64)
        forms = torch.stack((x, x**2, x**4, (1 + x) ** 2, (1 - x) ** 2))
        hope = (nearly(forms.clamp(min=1e-300)) & (forms > 0)).any(0) & (x > 0)
        for i in hope.nonzero().flatten().tolist():
            found = self.exactly(float(x[i]))
            hope[i] = found is not None
            out[i] = 0 if found is None else found
        rest = (x > 0) & ~hope
        out[rest] = self.function("symbol", self.words(x[rest]))
        return out

    def squares(self, q: Fraction) -> bool:
        """Whether all prime factors of q are squares modulo every prime."""
        if max(q.numerator, q.denominator) > HEIGHT**2:
            return False
        parts = factors(q.numerator) | factors(q.denominator)
        return all(pow(n, (p - 1) // 2, p) == 1 for n in parts for p in self.primes)

    def lift(self, x: Tensor) -> Tensor:
        """The residues of real numbers, −x those of x negated; zero where not finite."""
        values, back = distinct(x.detach().double().nan_to_num(0, 0, 0))
        if not values.numel():
            return torch.zeros((*x.shape, len(self.primes)), dtype=torch.int64)
        found = values.tolist()
        if fresh := [v for v in found if v not in self.numbers]:
            new = torch.tensor(fresh, dtype=torch.float64)
            signed = new.sign().long()[:, None] * self.read(new.abs()) % self.p
            self.numbers |= zip(fresh, signed, strict=True)
        return torch.stack([self.numbers[v] for v in found])[back]
