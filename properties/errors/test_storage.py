"""The file's own tests: it keeps its schema, comes back the same, and is read strictly."""

import json
import math
import os
from pathlib import Path

import jsonschema
import pytest

from . import storage
from .comparison import accept
from .ledger import Failure, Ledger, LedgerError, Run, Tally
from .samples import BAD, GOOD, book, comparison, loss


def full() -> Ledger:
    made = book(comparison(1.5, 1), comparison(math.nan, 2, tap="norm"), seed=3)
    made.run.failures = [Failure(law="test_norm", case="case 1", cause="a slip")]
    made.run.score = [Tally(promise="lossless", family="llama", axis="heads", failed=1)]
    for x in (loss(0.001), loss(math.nan, name="broken", original=2.0)):
        made.add_loss(x)
    accept(made, made, "first", 2.0)
    return made


def test_stored_ledger_keeps_the_schema_and_comes_back_the_same() -> None:
    text = storage.dumps(full())
    jsonschema.validate(json.loads(text), storage.SCHEMA)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert storage.dumps(storage.loads(text)) == text
    assert json.loads(text)["comparisons"][1]["ratio"] is None


def test_schema_is_a_schema_that_knows_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(storage.SCHEMA)
    data = json.loads(storage.dumps(full()))
    spots = [data, data["environment"], data["run"], *data["accepted"],
             *data["comparisons"], *data["losses"], *data["run"]["failures"],
             *data["run"]["score"]]  # fmt: skip
    assert len(spots) > 8
    for spot in spots:
        spot["surprise"] = 1
        with pytest.raises(LedgerError, match="surprise"):
            storage.loads(json.dumps(data))
        del spot["surprise"]
    storage.loads(json.dumps(data))


@pytest.mark.parametrize("name", [n for n in BAD if n != "another grower"])
def test_bad_input_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    text, message = BAD[name]
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(LedgerError, match=message):
        storage.load(tmp_path / "bad.json")


def test_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "errors.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write(path, GOOD)
    assert [p.name for p in tmp_path.iterdir()] == ["errors.json"]
    assert path.read_text() == "old"


def test_a_run_block_of_an_older_growproof_is_read() -> None:
    """It knows no failures and no score, and perhaps no growths."""
    data = json.loads(storage.dumps(full()))
    data["run"] = {"tests": 3, "failed": 1}
    assert storage.loads(json.dumps(data)).run == Run(tests=3, failed=1)
