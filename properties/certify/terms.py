"""Random terms over what models are made of, and their normal forms.

A term is a number, a variable, a sum, a product, a root, or a function of a term. Its
normal form is a polynomial with rational coefficients in atoms: variables, roots of
square-free integers, roots and functions of normal forms. Two terms are the same function for
whatever the functions are just when their normal forms are equal.

`python -m properties.certify.terms` draws 100,000 terms, and as many near misses, and
writes what it saw to soundness.json.
"""

import functools
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from growproof.field import Field
from growproof.residues import primes
from sympy import factorint

Term = tuple[Any, ...]
Monomial = tuple[tuple[int, int], ...]  # (number of an atom, power), sorted
Form = dict[
    tuple[int, Monomial], Fraction
]  # (square-free n, monomial) → coefficient of √n
VARIABLES, TOKENS = 4, 16  # a root's sign is a coin for each token and prime
NUMBERS = (Fraction(1), Fraction(2), Fraction(-1), Fraction(1, 3), Fraction(3, 2))
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def drawn(rng: random.Random, depth: int) -> Term:
    """A random term whose leaves are ("leaf", kind, number); leaves alone at depth 0."""
    kind = rng.choice("++**√f") if depth else rng.choice("xxxn")
    if kind in "xn":
        return "leaf", kind
    if kind in "+*":
        return kind, drawn(rng, depth - 1), drawn(rng, depth - 1)
    if kind == "√":  # of 1 + x² + …: positive, and no product
        y = drawn(rng, depth - 1)
        return "√", ("+", ("n", Fraction(1)), ("*", y, y))
    return rng.choice(list(FUNCTIONS)), drawn(rng, depth - 1)


NUMBER: dict[Any, int] = {}  # atom → its number: what it is made of is written once


def atom(kind: str, inner: Any) -> Monomial:
    """A variable, or the function of a normal form, as a monomial."""
    return ((NUMBER.setdefault((kind, inner), len(NUMBER)), 1),)


@functools.cache
def squarefree(n: int) -> tuple[int, int]:
    """(a, b) with n = a² b, b square-free."""
    powers = factorint(n)
    root = math.prod(p ** (k // 2) for p, k in powers.items())
    return root, n // root**2


def added(*forms: Form) -> Form:
    out: Form = {}
    for key, c in (item for form in forms for item in form.items()):
        out[key] = out.get(key, Fraction(0)) + c
    return {key: c for key, c in out.items() if c}


def multiplied(a: Form, b: Form) -> Form:
    parts: list[Form] = []
    for (n, x), c in a.items():
        for (m, y), d in b.items():
            both = math.gcd(n, m)  # n, m square-free: √n √m = both √(n m / both²)
            powers = dict(x)
            for one, k in y:
                powers[one] = powers.get(one, 0) + k
            key = n * m // both**2, tuple(sorted(powers.items()))
            parts.append({key: c * d * both})
    return added(*parts)


def frozen(form: Form) -> tuple[Any, ...]:
    return tuple(sorted(form.items()))


def rooted(form: Form) -> Form:
    """√(q e) = √q √e, with e monic; q's root is that of a square-free integer."""
    if form.keys() <= {(1, ())}:
        q = abs(form.get((1, ()), Fraction(0)))
        rest: Monomial = ()
    else:
        q = abs(frozen(form)[0][1])
        rest = atom("√", frozen({key: c / q for key, c in form.items()}))
    outer, inner = squarefree(q.numerator * q.denominator)
    return {(inner, rest): Fraction(outer, q.denominator)} if q else {}


def normal(term: Term) -> Form:
    """The normal form."""
    kind, *parts = term
    if kind == "n":
        return {(1, ()): parts[0]}
    if kind == "x":
        return {(1, atom("x", parts[0])): Fraction(1)}
    if kind == "+":
        return added(normal(parts[0]), normal(parts[1]))
    if kind == "*":
        return multiplied(normal(parts[0]), normal(parts[1]))
    inner = normal(parts[0])
    if kind == "√":
        return rooted(inner)
    if not inner and kind != "sigmoid":
        return {}
    return {(1, atom(kind, frozen(inner))): Fraction(1)}


def numbered(term: Term, leaves: list[str]) -> Term:
    """The term with its leaves numbered, and their kinds in `leaves`.

    The two sides of a square are one subterm, and its leaves count once.
    """
    if term[0] == "leaf":
        leaves.append(term[1])
        return "leaf", term[1], len(leaves) - 1
    if term[0] == "n":
        return term
    if term[0] == "*" and term[1] is term[2]:
        part = numbered(term[1], leaves)
        return "*", part, part
    return term[0], *(numbered(part, leaves) for part in term[1:])


def filled(term: Term, leaves: Sequence[tuple[Any, Fraction]]) -> Term:
    """The term with (variable or number, factor) for each leaf."""
    if term[0] == "leaf":
        what, factor = leaves[term[2]]
        return "*", ("n", factor), (term[1], what)
    return term if term[0] == "n" else (term[0], *(filled(p, leaves) for p in term[1:]))


def value(term: Term, field: Field, leaves: Sequence[Any]) -> Any:
    """The term over residues, by torch's own operations, for many leaves at once."""
    kind, *parts = term
    if kind == "leaf":
        return leaves[parts[1]]
    if kind == "n":
        return field.of(float(parts[0]))
    a, *rest = (value(part, field, leaves) for part in parts)
    if kind == "+":
        return a + rest[0]
    if kind == "*":
        return a * rest[0]
    return torch.sqrt(a) if kind == "√" else FUNCTIONS[kind](a)


Leaf = tuple[Any, Fraction]


def near(
    rng: random.Random, kinds: Sequence[str], leaves: Sequence[Leaf]
) -> list[Leaf]:
    """The leaves, one of them with another variable, coefficient or sign."""
    found, at = list(leaves), rng.randrange(len(leaves))
    what, factor = found[at]
    how = rng.choice(("index", "sign", "coefficient"))
    if how == "index" and kinds[at] == "x":
        found[at] = (what + rng.randrange(1, VARIABLES)) % VARIABLES, factor
    elif how == "sign":
        found[at] = what, -factor
    else:
        found[at] = what, factor * rng.choice((Fraction(2), Fraction(10001, 10000)))
    return found


def values_of(
    field: Field, term: Term, kinds: Sequence[str], many: Any, variables: Any
) -> Any:
    """The residues of a term for each list of leaves, for all tokens and primes."""
    columns = []
    for k, kind in enumerate(kinds):
        factor = torch.tensor([float(row[k][1]) for row in many], dtype=torch.float64)
        what = torch.tensor([float(row[k][0]) for row in many], dtype=torch.float64)
        x = variables[what.long()] if kind == "x" else field.lift(what)[:, None]
        columns.append(x * field.lift(factor)[:, None])
    residues = value(term, field, columns).residues
    return [
        tuple(row) for row in residues.expand(len(many), TOKENS, -1).flatten(1).tolist()
    ]


def soundness(count: int, seed: int, batch: int = 100) -> dict[str, int]:
    """Terms whose values agree and forms differ, or the other way round: none may.

    terms, classes: how many, and of how many different forms. misses: near misses of
    another form; equal_misses: those that the field takes for equal. merged, split:
    values of two forms, and forms of two values.
    """
    rng, field = random.Random(seed), Field(primes(7, seed), seed)
    variables = field.random((VARIABLES, TOKENS))
    values: dict[Any, Any] = {}
    forms: dict[Any, Any] = {}
    names = "terms", "classes", "merged", "split", "misses", "equal_misses"
    found = dict.fromkeys(names, 0)
    while min(found["terms"], found["misses"]) < count:
        kinds: list[str] = []
        term = numbered(drawn(rng, rng.choice((1, 2, 2, 3))), kinds)
        many = [
            [(rng.randrange(VARIABLES) if k == "x" else rng.choice(NUMBERS), Fraction(1))
             for k in kinds]
            for _ in range(batch)
        ]  # fmt: skip
        missed = [near(rng, kinds, leaves) for leaves in many]
        rows = zip(
            values_of(field, term, kinds, many, variables),
            values_of(field, term, kinds, missed, variables),
            many, missed, strict=True,
        )  # fmt: skip
        for at, other_at, leaves, others in rows:
            form, other = (frozen(normal(filled(term, x))) for x in (leaves, others))
            found["terms"] += 1
            found["merged"] += values.setdefault(at, form) != form
            found["split"] += forms.setdefault(form, at) != at
            if other != form:
                found["misses"] += 1
                found["equal_misses"] += other_at == at
    return found | {"classes": len(forms)}


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    result = {"seed": 0, **soundness(count, 0)}
    file = Path(__file__).with_name("soundness.json")
    file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(result)
