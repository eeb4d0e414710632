"""The committed detection table is the one that the suite gives, and no good grower fails."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ..errors.ledger import recording
from ..gate.guarded import forget
from ..gate.loading import Grower
from ..growers.known_bad import BY_NAME, FAULTS
from ..growers.known_good import BY_NAME as GOOD
from ..growers.known_good import GROWERS, REFERENCE
from ..laws.registry import items, trainable
from . import detection as power
from .corpus import faulty
from .trials import named, together


def run(tmp_path: Path, *arguments: str) -> tuple[int, object]:
    """`growproof power …` in a process of its own, and the JSON that it stores."""
    path = tmp_path / "power.json"
    done = subprocess.run(
        [sys.executable, "-m", "growproof.cli", "power", *arguments, "--json", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(path.read_text())


def test_every_fault_is_found_by_its_law(tmp_path: Path) -> None:
    """In float64 for the reason it names, one in five; the committed table says so of all."""
    some = [fault.name for fault in FAULTS[::5]]
    code, cells = run(tmp_path, "--dtype", "float64", *some)
    assert code == 0
    assert isinstance(cells, list)
    found = {(c["fault"], c["law"]): c["found"] for c in cells}
    assert len(found) == len(some)
    committed = json.loads(power.RESULTS.read_text())
    stored = {
        (c["fault"], c["law"]): c["found"] for c in committed if c["dtype"] == "float64"
    }
    assert len(stored) == len(FAULTS)
    assert all(stored.values())
    assert found.items() <= stored.items(), (
        "run `growproof power --json properties/power/power.json`"
    )


def test_committed_table_is_complete() -> None:
    """Every fault in every dtype; lower precision hides some, and the table says which."""
    committed = json.loads(power.RESULTS.read_text())
    counts = Counter(c["dtype"] for c in committed)
    assert counts == dict.fromkeys(power.DTYPES, len(FAULTS))
    found = Counter(c["dtype"] for c in committed if c["found"])
    assert found["float64"] == len(FAULTS)
    assert found["float64"] > found["float32"] >= found["bfloat16"] > len(FAULTS) // 2


@recording(None)  # not errors of the grower under test
def test_smallest_examples_show_their_faults() -> None:
    """Each committed example is rejected by its law, for the reason of its fault.

    And it is not one that any grower fails: what is `trainable` passes here, all others
    in the law `where_faults_show`.
    """
    cells = list(faulty())
    assert len(cells) == len(FAULTS)
    passed = 0
    for cell, example in cells:
        item, fault = items()[cell["law"]], BY_NAME[cell["fault"]]
        with pytest.raises(AssertionError, match=fault.reason):
            item.replay(Grower(fault.name, fault), example)
        forget()  # what the fault put in the place of functions is none of the next's
        if item.law.promise is trainable:
            item.replay(Grower("trainable", GOOD["trainable"]), example)
            passed += 1
    assert passed > 0


def test_there_are_enough_faults() -> None:
    """At least 60, each once, each with a law that exists and a reason of its own."""
    assert len({f.name for f in FAULTS}) == len(FAULTS) >= 60
    for fault in FAULTS:
        assert named(fault)
        assert fault.reason
        assert fault.says


def test_what_was_run_is_added_up() -> None:
    """Two records as one; and the committed one has every right grower, and no alarm."""
    one = {"examples": 2, "by_grower": {"a": 2}, "laws": 3, "families": 2, "alarms": [],
           "worst_ratio": {"x": 1.0}, "seconds": 5}  # fmt: skip
    two = one | {"by_grower": {"b": 2}, "worst_ratio": {"x": 0.5, "y": 2.0}, "laws": 1}
    assert together(one, two) == {
        "examples": 4, "by_grower": {"a": 2, "b": 2}, "laws": 3, "families": 2,
        "alarms": [], "worst_ratio": {"x": 1.0, "y": 2.0}, "seconds": 10,
    }  # fmt: skip
    record = json.loads(power.RIGHT.read_text())
    assert record["by_grower"].keys() == {g.name for g in (REFERENCE, *GROWERS)}
    assert sum(record["by_grower"].values()) == record["examples"] > 9000
    assert record["alarms"] == []


def test_no_known_good_grower_is_rejected(tmp_path: Path) -> None:
    """Promised laws on known-good growers, others in each run: no alarm."""
    code, record = run(tmp_path, "--false-alarms", "400")
    assert isinstance(record, dict)
    assert record["alarms"] == []
    assert code == 0
    assert record["examples"] > 200  # some laws ask for fewer
    assert record["families"] == 2
    assert len(record["by_grower"]) > 12
