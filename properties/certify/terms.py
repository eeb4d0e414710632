"""Random terms over what models are made of, and their normal forms.

A term is a number, a variable, a sum, a product, a root, or a function of a term. Its
normal form is a polynomial with rational coefficients in atoms: variables, roots of
square-free integers, roots and functions of normal forms. Two terms are the same function for
whatever the functions are just when their normal forms are equal.

`python -m properties.certify.terms` draws 100,000 terms, and as many near misses, and
writes what it saw to soundness.json.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from growproof.field import Field, FieldTensor
from growproof.residues import Unlucky, primes

Term = tuple[Any, ...]
Monomial = tuple[tuple[Any, int], ...]  # (atom, power), sorted by repr
Form = dict[
    tuple[int, Monomial], Fraction
]  # (square-free n, monomial) → coefficient of √n
VARIABLES, NUMBERS = (
    4,
    (Fraction(1), Fraction(2), Fraction(-1), Fraction(1, 3), Fraction(3, 2)),
)
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def drawn(rng: random.Random, depth: int) -> Term:
    """A random term, of leaves alone at depth zero."""
    kind = rng.choice(("+", "+", "*", "*", "√", "f")) if depth else rng.choice("xxxn")
    if kind == "x":
        return "x", rng.randrange(VARIABLES)
    if kind == "n":
        return "n", rng.choice(NUMBERS)
    if kind in "+*":
        return kind, drawn(rng, depth - 1), drawn(rng, depth - 1)
    if kind == "√":  # of 1 + x² + …: positive, and no product
        y = drawn(rng, depth - 1)
        return "√", ("+", ("n", Fraction(1)), ("*", y, y))
    return rng.choice(list(FUNCTIONS)), drawn(rng, depth - 1)


def squarefree(n: int) -> tuple[int, int]:
    """(a, b) with n = a² b, b square-free."""
    a, p = 1, 2
    while p * p <= n:
        while n % (p * p) == 0:
            n, a = n // (p * p), a * p
        p += 1
    return a, n


def added(a: Form, b: Form) -> Form:
    out = dict(a)
    for key, c in b.items():
        out[key] = out.get(key, Fraction(0)) + c
    return {key: c for key, c in out.items() if c}


def multiplied(a: Form, b: Form) -> Form:
    out: Form = {}
    for (n, x), c in a.items():
        for (m, y), d in b.items():
            outer, inner = squarefree(n * m)
            powers = dict(x)
            for atom, k in y:
                powers[atom] = powers.get(atom, 0) + k
            key = inner, tuple(sorted(powers.items(), key=repr))
            out = added(out, {key: c * d * outer})
    return out


def frozen(form: Form) -> tuple[Any, ...]:
    return tuple(sorted(form.items(), key=repr))


def rooted(form: Form) -> Form:
    """√(q e) = √q √e, with e monic; q's root is that of a square-free integer."""
    if form.keys() <= {(1, ())}:
        q = abs(form.get((1, ()), Fraction(0)))
        rest: Monomial = ()
    else:
        q = abs(frozen(form)[0][1])
        rest = ((("√", frozen({key: c / q for key, c in form.items()})), 1),)
    outer, inner = squarefree(q.numerator * q.denominator)
    return {(inner, rest): Fraction(outer, q.denominator)} if q else {}


def normal(term: Term) -> Form:
    """The normal form."""
    kind, *parts = term
    if kind == "n":
        return {(1, ()): parts[0]}
    if kind == "x":
        return {(1, ((parts[0], 1),)): Fraction(1)}
    if kind == "+":
        return added(normal(parts[0]), normal(parts[1]))
    if kind == "*":
        return multiplied(normal(parts[0]), normal(parts[1]))
    inner = normal(parts[0])
    if kind == "√":
        return rooted(inner)
    if not inner and kind != "sigmoid":
        return {}
    return {(1, (((kind, frozen(inner)), 1),)): Fraction(1)}


def value(term: Term, field: Field, variables: FieldTensor) -> Any:
    """The term over residues, by torch's own operations."""
    kind, *parts = term
    if kind == "n":
        return field.of(float(parts[0]))
    if kind == "x":
        return variables[parts[0]]
    a, *rest = (value(part, field, variables) for part in parts)
    if kind == "+":
        return a + rest[0]
    if kind == "*":
        return a * rest[0]
    return torch.sqrt(a) if kind == "√" else FUNCTIONS[kind](a)


def places(term: Term, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """The path of each leaf."""
    if term[0] in "xn":
        yield path
    else:
        for i, part in enumerate(term[1:], 1):
            yield from places(part, (*path, i))


def missed(rng: random.Random, term: Term) -> Term:
    """The term with one leaf another number, variable or sign."""
    path = rng.choice(list(places(term)))

    def changed(t: Term, left: tuple[int, ...]) -> Term:
        if left:
            return tuple(
                changed(p, left[1:]) if i == left[0] else p for i, p in enumerate(t)
            )
        how = rng.choice(("index", "coefficient", "sign"))
        if how == "sign":
            return "*", ("n", Fraction(-1)), t
        if t[0] == "x" and how == "index":
            return "x", (t[1] + rng.randrange(1, VARIABLES)) % VARIABLES
        return "*", ("n", rng.choice((Fraction(2), Fraction(10001, 10000)))), t

    return changed(term, path)


def soundness(count: int, seed: int) -> dict[str, int]:
    """Terms whose values agree and forms differ (none may be), or the other way round.

    terms, classes: how many, and of how many different forms. misses: how many near misses
    with another form; equal_misses: those that the field takes for equal.
    """
    rng, field = random.Random(seed), Field(primes(3, seed), seed)
    variables = field.random((VARIABLES,))
    values: dict[tuple[int, ...], Any] = {}
    forms: dict[Any, tuple[int, ...]] = {}
    found = dict.fromkeys(
        ("terms", "classes", "merged", "split", "misses", "equal_misses", "unlucky"), 0
    )

    def seen(term: Term) -> tuple[tuple[int, ...], Any]:
        at = tuple(value(term, field, variables).residues.tolist())
        return at, frozen(normal(term))

    while min(found["terms"], found["misses"]) < count:
        term = drawn(rng, rng.choice((1, 2, 2, 3)))
        try:
            (at, form), (near, other) = seen(term), seen(missed(rng, term))
        except Unlucky:
            found["unlucky"] += 1
            continue
        found["terms"] += 1
        found["merged"] += values.setdefault(at, form) != form
        found["split"] += forms.setdefault(form, at) != at
        if other != form:
            found["misses"] += 1
            found["equal_misses"] += near == at
    found["classes"] = len(forms)
    return found


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    result = {"count": count, "seed": 0, "degree_bits": 0, **soundness(count, 0)}
    del result["degree_bits"]
    Path(__file__).with_name("soundness.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )
    print(result)
