"""Which laws a promise selects, of the suite and of its corpus."""

from pathlib import Path

import pytest

from ..growers import known_good
from .test_gate import SUITE, run


@pytest.mark.parametrize(("grower", "code"), [("trainable", 0), ("REFERENCE", 1)])
def test_trainable_is_a_promise_of_its_own(tmp_path: Path, grower, code: int) -> None:
    """--with trainable: a fill of zeros breaks it, and the share that moves is shown."""
    done = run(
        tmp_path, "-m", "growproof.cli", "check",
        f"{known_good.__name__}:{grower}",
        "--with=trainable", "-m", "trainable",
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    assert "new parameters with a gradient at the first step: " in done.stdout
    if code:
        assert "is stuck: no writer of it" in done.stdout


def test_a_replayed_law_has_its_own_promise(tmp_path: Path) -> None:
    """-m lossless leaves out what replays a law of zero padding, as --without does."""
    chosen, corpus = [], str(SUITE / "power" / "test_corpus.py")
    for promise in ("lossless", "zero_padding"):
        done = run(
            tmp_path, "-m", "growproof.cli", "check", corpus, "-m", promise,
            "-k", "where_faults_show", "--collect-only",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        chosen.append({x for x in done.stdout.split() if "where_faults_show[" in x})
    assert all("[projections_are_padded-" not in name for name in chosen[0])
    assert any("[projections_are_padded-" in name for name in chosen[1])
    assert any("[logits_are_unchanged[" in name for name in chosen[0])
    assert not chosen[0] & chosen[1]
