"""Exact numbers: sums of fractions times fourth roots of integers."""

import functools
import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar

READ = 1e-12  # a scale, ε or frequency against the exact number that it rounds
DENOMINATOR = 10_000


class Surd:
    """Σ q · n^(1/4), n fourth-power-free: zero only if every q is (Besicovitch 1940).

    Equal numbers are one object, so that == is `is`, and sums and products are cached.

    >>> print(Surd.root(Fraction(2, 3)) * Surd.root(Fraction(3, 8)))
    1/2
    """

    known: ClassVar[dict[tuple[tuple[int, Fraction], ...], "Surd"]] = {}
    terms: tuple[tuple[int, Fraction], ...]

    @classmethod
    def of(cls, terms: Mapping[int, Fraction]) -> "Surd":
        key = tuple(sorted((n, q) for n, q in terms.items() if q))
        if key not in cls.known:
            cls.known[key] = cls()
            cls.known[key].terms = key
        return cls.known[key]

    @classmethod
    def root(cls, q: Fraction, degree: int = 2) -> "Surd":
        """q^(1/degree), degree 1, 2 or 4, q > 0."""
        power = q ** (4 // degree)
        outer, inner = reduced(power.numerator * power.denominator**3)
        return cls.of({inner: Fraction(outer, power.denominator)})

    @functools.cache  # noqa: B019
    def __add__(self, other: "Surd") -> "Surd":
        terms = dict(self.terms)
        for n, q in other.terms:
            terms[n] = terms.get(n, Fraction(0)) + q
        return Surd.of(terms)

    @functools.cache  # noqa: B019
    def __mul__(self, other: "Surd") -> "Surd":
        terms: dict[int, Fraction] = {}
        for (n, p), (m, q) in itertools.product(self.terms, other.terms):
            outer, inner = reduced(n * m)
            terms[inner] = terms.get(inner, Fraction(0)) + p * q * outer
        return Surd.of(terms)

    def __neg__(self) -> "Surd":
        return Surd.of({n: -q for n, q in self.terms})

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def rational(self) -> Fraction | None:
        """The number itself where it is a fraction."""
        parts = dict(self.terms)
        return parts.get(1, Fraction(0)) if parts.keys() <= {1} else None

    def __str__(self) -> str:
        def part(n: int, q: Fraction) -> str:
            if n == 1:
                return str(q)
            square, sign = math.isqrt(n), "-" if q < 0 else ""
            even = square * square == n
            return sign + (f"√({q * q * square})" if even else f"({q**4 * n})^(1/4)")

        return " + ".join(part(n, q) for n, q in self.terms) or "0"


@functools.cache
def reduced(n: int) -> tuple[int, int]:
    """(outer, inner) with n = outer⁴ · inner and inner free of fourth powers."""
    outer, inner, p = 1, 1, 2
    while n > 1:
        p, e = (p if p * p <= n else n), 0
        while n % p == 0:
            n, e = n // p, e + 1
        outer, inner, p = outer * p ** (e // 4), inner * p ** (e % 4), p + 1
    return outer, inner


@functools.cache
def rational(q: Fraction | int) -> Surd:
    return Surd.of({1: Fraction(q)})


NOTHING, ONE = rational(0), rational(1)


@functools.cache
def recognised(x: float) -> Surd | None:
    """±q, ±√q or ±q^(1/4), for the small fraction q that puts it within READ of x."""
    for degree in (1, 2, 4):
        power = abs(x) ** degree
        q = Fraction(power).limit_denominator(DENOMINATOR)
        if q and abs(power / q - 1) <= degree * READ:
            root = Surd.root(q, degree)
            return root if x > 0 else -root
    return None
