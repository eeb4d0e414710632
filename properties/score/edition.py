"""Editions: which laws, in which version, a score is a score of.

    growproof refresh edition                          # note the laws' new versions
    python -m properties.score.edition --freeze 2027   # an edition is today's laws

editions.json holds the source hash of every version of every law, and of each edition
its laws' versions; an edition may be frozen again until it is out. A law whose source changed is another law: its version is raised, so
that a changed verdict can be told from changed code. What the laws share (how cases are
drawn, what is close enough) has one hash, which every score carries.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import io
import json
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors.storage import write
from ..laws import registry
from ..laws.registry import SUITE, Law, reference

FILE = Path(__file__).with_name("editions.json")
SAYS_NOTHING = ("claim", "proof", "version")  # of @law: they ask nothing of a grower
NOT_SHARED = ("registry.py", "claims.py", "promises.py", "__init__.py")


def judging() -> dict[str, Law]:
    """Every law of the suite that judges a grower, by its name."""
    found = registry.laws(SUITE).values()
    return {law.name: law for law in found if law.promise is not reference}


# --- sources --------------------------------------------------------------------------


@functools.cache
def bare(path: Path) -> tuple[ast.Module, str]:
    """A module, and its text without comments and docstrings, every node at its place."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    tree = ast.parse(text)
    told = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, told) and ast.get_docstring(node) is not None:
            first = node.body[0]
            for row in range(first.lineno - 1, first.end_lineno or 0):
                lines[row] = ""
    return tree, "\n".join(lines) + "\n"


def hashed(pieces: Iterable[str]) -> str:
    """The SHA-256 of code, whatever its layout."""
    return hashlib.sha256("".join("".join(pieces).split()).encode()).hexdigest()


def pieces(test: ast.FunctionDef, text: str) -> Iterator[str]:
    """A law's decorators but for what asks nothing, its arguments and its body."""
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "law":
            parts = [*decorator.args]
            parts += [k for k in decorator.keywords if k.arg not in SAYS_NOTHING]
        else:
            parts = [decorator]
        yield from (ast.get_source_segment(text, part) or "" for part in parts)
    for part in (*test.args.args, *test.args.kwonlyargs, *test.body):
        yield ast.get_source_segment(text, part) or ""


def module_of(law: Law) -> Path:
    """The file that declares it."""
    return Path(str(sys.modules[law.test.__module__].__file__))


def source(law: Law) -> str:
    """The hash of a law's own code: of its test and of what it is decorated with."""
    tree, text = bare(module_of(law))
    name = law.test.__name__
    (test,) = (
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return hashed(pieces(test, text))


def shared() -> str:
    """The hash of what the laws share: the code of their room but for the laws."""
    found: list[str] = []
    for path in sorted(Path(str(registry.__file__)).parent.glob("*.py")):
        if path.name not in NOT_SHARED:
            tree, text = bare(path)
            found += [
                ast.get_source_segment(text, node) or ""
                for node in tree.body
                if not (isinstance(node, ast.FunctionDef) and node.name[:5] == "test_")
            ]
    return hashed(found)


# --- the list -------------------------------------------------------------------------


def listed() -> dict[str, Any]:
    """What is committed: "laws": name → version → hash, "editions": name → law → version."""
    return json.loads(FILE.read_text("utf-8"))


def edition(name: str) -> dict[str, tuple[int, str]]:
    """law → version and source hash. Raises ValueError for an edition that is none."""
    known = listed()
    if name not in known["editions"]:
        names = ", ".join(known["editions"])
        raise ValueError(f"there is no edition {name}; there is {names}")
    versions = known["editions"][name]
    return {law: (n, known["laws"][law][str(n)]) for law, n in versions.items()}


def edition_of(laws: dict[str, tuple[int, str]]) -> str:
    """The edition whose list this is, the last one; "" where it is none's."""
    names = reversed(listed()["editions"])
    return next((name for name in names if edition(name) == laws), "")


def present() -> dict[str, tuple[int, str]]:
    """law → version and source hash, of the laws as they are."""
    return {name: (law.version, source(law)) for name, law in judging().items()}


def not_raised(laws: dict[str, tuple[int, str]], known: dict[str, Any]) -> list[str]:
    """A sentence for each law that changed under its old version: what to do."""
    return [
        f"{name} changed, and is version {version} as before: raise version= in its @law "
        f"to {version + 1}, and run `growproof refresh edition`"
        for name, (version, code) in laws.items()
        if known["laws"].get(name, {}).get(str(version), code) != code
    ]


def not_noted(laws: dict[str, tuple[int, str]], known: dict[str, Any]) -> list[str]:
    """A sentence for each law whose version is not in the list: what to do."""
    return [
        f"version {version} of {name} is not in {FILE.name}: run "
        "`growproof refresh edition`"
        for name, (version, _) in laws.items()
        if str(version) not in known["laws"].get(name, {})
    ]


def differences(
    laws: dict[str, tuple[int, str]], wanted: dict[str, tuple[int, str]]
) -> list[str]:
    """Why these laws are not those of an edition; laws that it lacks do not count."""
    return [
        f"{name} is version {laws[name][0]} here and {version} there"
        if laws.get(name, (version,))[0] != version
        else f"{name} is {'changed' if name in laws else 'not here'}"
        for name, (version, code) in wanted.items()
        if laws.get(name) != (version, code)
    ]


def noted(known: dict[str, Any], laws: dict[str, tuple[int, str]]) -> dict[str, Any]:
    """The list with these laws' versions. Raises ValueError where one was not raised."""
    if changed := not_raised(laws, known):
        raise ValueError("; ".join(changed))
    old = known["laws"]
    new = {
        name: {**old.get(name, {}), str(v): code} for name, (v, code) in laws.items()
    }
    return known | {"laws": dict(sorted((old | new).items()))}


def frozen(known: dict[str, Any], name: str, laws: Iterable[Law]) -> dict[str, Any]:
    """The list with an edition of this name: these laws, in their versions."""
    versions = {law.name: law.version for law in laws}
    return known | {
        "editions": known["editions"] | {name: dict(sorted(versions.items()))}
    }


def main() -> None:
    """Note the versions, and freeze the edition that is asked for."""
    usage = argparse.ArgumentParser(description=__doc__)
    usage.add_argument("--freeze", metavar="NAME")
    options = usage.parse_args()
    known = noted(listed(), present())
    if options.freeze:
        known = frozen(known, options.freeze, judging().values())
    write(FILE, json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
