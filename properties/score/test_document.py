"""A score is read strictly, and whoever has the file alone sees that it was changed."""

import json
from pathlib import Path

import pytest

from ..errors.ledger import LedgerError
from . import document, edition, report
from .document import dumps, loads, problem
from .samples import law, red, score


@pytest.mark.parametrize("made", [score(), red()], ids=["green", "red"])
@pytest.mark.parametrize("sign", [True, False])
def test_what_is_written_is_read_again(made: document.Score, sign: bool) -> None:
    """By the schema, digest and all."""
    found = loads(dumps(made, sign=sign))
    assert found == made
    assert bool(found.digest) == sign


def test_every_letter_is_bound() -> None:
    """A signed score is unchanged; with any one of its letters changed, it is not."""
    text = dumps(score(), sign=True)
    assert problem(text) == ""
    for at, letter in enumerate(text):
        other = "0" if letter != "0" else "1"
        changed = text[:at] + other + text[at + 1 :]
        assert problem(changed), text[max(0, at - 20) : at + 20]
    assert problem(text + " ")
    assert "without --sign" in problem(dumps(score()))


def test_zeros_elsewhere_are_left_alone() -> None:
    """What stands for the digest may stand in a cause as well."""
    text = dumps(score(verdict=document.NO_DIGEST), sign=True)
    assert problem(text) == ""
    assert loads(text).verdict == document.NO_DIGEST


WRONG = {
    "another file": ('{"benchmarks": []}', "not a score"),
    "newer": (dumps(score()).replace('"schema_version": 1', '"schema_version": 2'), "newer"),
    "misspelt": (dumps(score()).replace('"laws"', '"lwas"'), "'laws' is a required"),
    "another outcome": (dumps(score()).replace('-mlp": "passed"', '-mlp": "ok"'), "'ok'"),
    "truncated": (dumps(score())[:-3], "truncated"),
    "no whole number": (dumps(score()).replace('"outside": 1', '"outside": 1.0'), "1.0 is not"),
    "more than all": (dumps(score()).replace('"outside": 1', '"outside": 9'), "11 of 4"),
    "past all sizes": (dumps(score()).replace('"outside": 1', f'"outside": {10**30}'), "maximum"),
    "nan": (dumps(score()).replace('"largest": 0.5', '"largest": NaN'), "finite"),
    "no float": (
        dumps(score()).replace('"largest": 0.5', f'"largest": {10**400}'), "finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_score(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, with the file; exit 4, also where it says that it is a score."""
    text, said = WRONG[name]
    path = tmp_path / "score.json"
    path.write_text(text)
    with pytest.raises(LedgerError, match=said):
        document.load(str(path))
    assert report.main([str(path)]) == 4
    assert "score.json" in capsys.readouterr().err
    end = text.rstrip().removesuffix("}") + f', "digest": "{document.NO_DIGEST}"\n}}\n'
    signed = document.digest_of(end).join(end.rsplit(document.NO_DIGEST, 1))
    assert problem(signed) == ""
    assert report.main(["--check", written(path, signed)]) == 4
    assert "score.json" in capsys.readouterr().err


def written(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


def test_check_is_0_1_and_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As signed, changed by a letter, not signed, an edition that it is not, no file."""
    path = tmp_path / "score.json"
    text = dumps(score(), sign=True)
    assert report.main(["--check", written(path, text)]) == 0
    assert "as it was signed, sha256:" in capsys.readouterr().out
    assert report.main(["--check", written(path, text.replace("0.5", "0.4"))]) == 1
    assert "changed since it was signed" in capsys.readouterr().out
    assert report.main(["--check", written(path, dumps(score()))]) == 1
    assert "ends in no digest" in capsys.readouterr().out
    claimed = dumps(score(edition="2027"), sign=True)
    assert report.main(["--check", written(path, claimed)]) == 1
    assert "is not that edition's" in capsys.readouterr().out
    unknown = dumps(score(edition="1999"), sign=True)
    assert report.main(["--check", written(path, unknown)]) == 1
    assert "there is no edition 1999" in capsys.readouterr().out
    version, source = edition.edition("2027")["logits_are_unchanged"]
    own = score(law(version=version, source=source), edition="2027")
    assert report.main(["--check", written(path, dumps(own, sign=True))]) == 0
    assert report.main(["--check", str(tmp_path / "none.json")]) == 4
    assert report.main(["--check"]) == 4
    assert report.main(["--check", str(path), str(path)]) == 4


def test_the_schema_knows_every_field() -> None:
    """What is written keeps it, and it requires all but the digest."""
    told = json.loads(dumps(red(), sign=True))
    assert set(document.SCHEMA["required"]) == told.keys() - {"digest"}
    assert document.SCHEMA["properties"].keys() == told.keys()
