"""A law that changes is another law: its version says so, or a test fails."""

import dataclasses
from pathlib import Path

import pytest

from ..laws.registry import Law
from . import edition
from .edition import differences, frozen, listed, not_noted, not_raised, noted

CODE = '''
"""Of norms."""
from x import law

LIMIT = 3  # tokens

@law(zero_padding, claim=claims.MLP, budget="block")
@given(case=cases())
def test_a(grower, case):
    """mlp' = mlp."""
    # as the article has it
    close(grow(case, grower), limit=LIMIT)
'''


def hash_of(code: str, folder: Path) -> str:
    """The source hash of the only law in a module with this code."""
    path = folder / f"module_{len(list(folder.iterdir()))}.py"
    path.write_text(code)
    tree, text = edition.bare(path)
    test = tree.body[-1]
    return edition.hashed(edition.pieces(test, text))  # type: ignore[arg-type]


def test_every_version_is_noted() -> None:
    """No law changed under its version; each version is in editions.json."""
    laws, known = edition.present(), listed()
    assert len(laws) > 30
    assert not_raised(laws, known) == []
    assert not_noted(laws, known) == []


def test_a_law_that_changes_without_its_version_is_told() -> None:
    """By name, with what to run; raised, it is only to be noted, and then all is well."""
    laws, known = edition.present(), listed()
    name, (version, _) = next(iter(laws.items()))
    changed = laws | {name: (version, 64 * "0")}
    (said,) = not_raised(changed, known)
    assert said.startswith(f"{name} changed, and is version {version} as before")
    assert f"to {version + 1}, and run `growproof refresh edition`" in said
    with pytest.raises(ValueError, match=name):
        noted(known, changed)
    raised = laws | {name: (version + 1, 64 * "0")}
    assert not_raised(raised, known) == []
    (said,) = not_noted(raised, known)
    assert "`growproof refresh edition`" in said
    new = noted(known, raised)
    assert not_noted(raised, new) == []
    assert new["laws"][name] == {**known["laws"][name], str(version + 1): 64 * "0"}
    assert new["editions"] == known["editions"], "what is frozen stays"


@pytest.mark.parametrize(
    ("old", "new"),
    [("# as the article has it", "# otherwise"), ("mlp' = mlp.", "MLP."),
     ("close(grow(case, grower), limit=LIMIT)",
      "close(\n        grow(case, grower),\n        limit=LIMIT)"),
     ("claims.MLP", "claims.LINEAR"), ("budget=", "version=2, budget=")],
    ids=["comment", "docstring", "layout", "claim", "version"],
)  # fmt: skip
def test_what_asks_for_nothing_else_is_the_same_law(
    old: str, new: str, tmp_path: Path
) -> None:
    assert old in CODE
    assert hash_of(CODE.replace(old, new), tmp_path) == hash_of(CODE, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [("cases()", "cases(max_tokens=2)"), ("limit=LIMIT", "limit=4"), ('"block"', '"low"'),
     ("(grower, case)", "(grower, case, other)"), ("zero_padding", "lossless")],
)  # fmt: skip
def test_what_asks_for_something_else_is_another(
    old: str, new: str, tmp_path: Path
) -> None:
    assert hash_of(CODE.replace(old, new, 1), tmp_path) != hash_of(CODE, tmp_path)


def test_a_hash_in_a_string_is_no_comment(tmp_path: Path) -> None:
    code = CODE.replace("LIMIT)", 'LIMIT, says="# a")')
    other = CODE.replace("LIMIT)", 'LIMIT, says="# b")')
    assert hash_of(code, tmp_path) != hash_of(other, tmp_path)


def test_what_laws_share_is_not_a_law() -> None:
    """The hash is one of code; laws and the claims' sentences are no part of it."""
    assert edition.shared() == edition.shared()
    assert len(edition.shared()) == 64


def test_an_edition_is_a_list() -> None:
    """2027: names, versions and hashes; another name is refused with those there are."""
    laws = edition.edition("2027")
    assert len(laws) > 30
    assert all(len(code) == 64 for _, code in laws.values())
    with pytest.raises(ValueError, match="no edition 1999; there is 2027"):
        edition.edition("1999")
    assert edition.edition_of(laws) == "2027"
    name = next(iter(laws))
    other = laws | {name: (2, 64 * "0")}
    assert edition.edition_of(other) == ""
    assert differences(laws, laws) == []
    assert differences(other, laws) == [f"{name} is version 2 here and 1 there"]
    assert differences(laws | {name: (1, 64 * "0")}, laws) == [f"{name} is changed"]
    assert differences({}, {name: laws[name]}) == [f"{name} is not here"]
    assert differences(laws | {"another": (1, "")}, laws) == []


def test_freezing_is_of_todays_versions() -> None:
    """An edition that is frozen names each law's version."""
    laws = list(edition.judging().values())
    first: Law = dataclasses.replace(laws[0], version=7)
    made = frozen(listed(), "2028", [first, *laws[1:]])
    assert made["editions"]["2028"][first.name] == 7
    assert made["editions"].keys() == {"2027", "2028"}
