"""The committed figures of integration/scaling, and that they can be measured again."""

import math

from .scaling import (
    BEYOND,
    FAMILIES,
    RESULT,
    SIZES,
    estimate,
    measure,
    picture,
    results,
)


def test_every_size_is_there() -> None:
    """Both families from 10 million to 2 billion, and the picture is of these figures."""
    rows = results()["rows"]
    assert [row["family"] for row in rows] == [*FAMILIES] * len(SIZES)
    for row, millions in zip(rows, [m for m in SIZES for _ in FAMILIES], strict=True):
        assert abs(math.log10(row["parameters"] / 1e6 / millions)) < 0.05
    assert RESULT.with_suffix(".svg").read_text() == picture(rows)
    assert all(results()["machine"].values())


def test_memory_of_files_does_not_grow_with_the_model() -> None:
    """Under 300 MB beyond the imports at any size; in memory a twentieth at most."""
    for row in results()["rows"]:
        assert row["file_bytes"] < 3e8
        assert row["memory"] < 1.05 or row["parameters"] < 2e8


def test_the_least_size_can_be_measured() -> None:
    """Every figure of a row, anew; nothing here passes or fails by the clock."""
    row = measure("stablelm", 10)
    assert row.keys() == results()["rows"][0].keys()
    assert min(row["seconds"].values()) > 0
    assert 0.9 < row["parameters"] / 1e7 < 1.1


def test_an_estimate_is_the_largest_size_times_the_parameters() -> None:
    """Linear, and in no other way."""
    rows = [
        {"family": "llama", "parameters": n, "seconds": {"grow": s}}
        for n, s in ((1e6, 9.0), (1e9, 2.0))
    ]
    assert estimate(rows, "llama", "grow", BEYOND["70B"]) == 140


def test_the_readme_says_what_was_measured() -> None:
    """Its sentence on speed, from 300 million parameters on."""
    found: dict[str, list[float]] = {}
    for row in results()["rows"]:
        if row["parameters"] > 2.9e8:
            s = row["seconds"]
            found.setdefault(row["family"], []).append(s["grow"] / s["zeros"])
            found.setdefault("files", []).append(s["files"] / s["cp"])
        assert row["file_bytes"] < 25e6
    assert max(found["llama"]) < 1.3
    assert all(1.9 < ratio < 3.1 for ratio in found["stablelm"])
    assert all(1.9 < ratio < 4.2 for ratio in found["files"])
    readme = " ".join((RESULT.parents[2] / "README.md").read_text().split())
    assert "From directory to directory, twice to four times `cp -r`" in readme
