"""All shapes: a rule that is kept is certified, and what follows none is not."""

import json
from pathlib import Path
from typing import Any

import growproof
import jsonschema
import numpy as np
import pytest
from growproof.residues import factors

from ..growers.known_bad import BY_NAME as BAD
from ..growers.known_good import BY_NAME as GOOD
from ..laws.domain import CORE, EXTRAS
from . import certificates
from .certificates import Certificate
from .command import TINY, main
from .shapes import AXES, BASES, Question, all_shapes, deciding, questions
from .test_certificates import edited, root, times

EVERYTHING = {*CORE, *EXTRAS}


def question(family: str = "llama", name: str = "") -> Question:
    """With the box cut to its least sizes, of which each axis grows, and all of them."""
    asked = next(q for q in questions([family], EVERYTHING) if q.name == name)
    return asked._replace(shapes=asked.shapes[: len(asked.axes) + 1])


def judged(grower: Any) -> Certificate:
    """Of a Llama, by the largest of these shapes, which decides nothing, but is quick."""
    asked = question()
    return all_shapes(grower, asked._replace(decides=asked.shapes[-1]))


@pytest.mark.parametrize(
    ("family", "name"), [(f, name) for f, names in BASES.items() for name in names]
)
def test_growproof_is_certified_at_all_shapes(family: str, name: str) -> None:
    found = all_shapes(growproof.grow, question(family, name))
    assert found.verdict == "certified", found.reason
    assert "q_proj.weight × (head_dim'/head_dim)^0.5" in found.covers
    assert any("not run" in said for said in found.assumed)


@pytest.mark.parametrize("family", TINY)
def test_the_ratios_that_decide_are_independent(family: str) -> None:
    """No product of powers of them is 1: each has a prime that the ones before lack."""
    old, new, _ = deciding(family, {}, AXES)
    free = [a for a in old if a != "layers"]
    primes = sorted(set().union(*(factors(old[a] * new[a]) for a in free)))

    def power(p: int, n: int) -> int:
        return next(k for k in range(64) if n % p ** (k + 1))

    matrix = [[power(p, new[a]) - power(p, old[a]) for p in primes] for a in free]
    assert np.linalg.matrix_rank(np.array(matrix)) == len(free)
    assert all(new[a] > old[a] for a in free)


def test_the_box_grows_every_axis_alone_and_all_of_them() -> None:
    for family in TINY:
        asked = questions([family], EVERYTHING)[0]
        for axis in asked.axes:
            grows = [{a for a in o if n[a] > o[a]} for o, n, _ in asked.shapes]
            assert sum(axis in some for some in grows) >= 10
        assert {*asked.axes} in [
            {a for a in o if n[a] > o[a]} for o, n, _ in asked.shapes
        ]


split = times(
    q_proj=lambda n, o: root("head_dim")(n, o) ** -0.5,
    k_proj=lambda n, o: root("head_dim")(n, o) ** 0.5,
)


def test_another_rule_is_certified_too() -> None:
    """q and k share √(K'/K)."""
    found = judged(split)
    assert found.verdict == "certified", found.reason
    assert "k_proj.weight × (head_dim'/head_dim)^0.25" in found.covers


def shared(new: Any, old: Any) -> float:
    return root("num_hidden_layers")(new, old)


def elsewhere(new: Any, old: Any) -> None:
    """Right where the layers grow, alone."""
    if new.config.num_hidden_layers == old.config.num_hidden_layers:
        new.lm_head.weight *= 1.01


def other_activation(new: Any, old: Any) -> None:
    if new.config.num_hidden_layers == 1:
        new.config.hidden_act = "gelu"


NO_RULE = {
    "wrong at other shapes": (edited(elsewhere), "no power of the ratios"),
    "depends on depth": (
        times(q_proj=shared, k_proj=lambda n, o: 1 / shared(n, o)),
        "number of layers",
    ),
    "another config": (edited(other_activation), "not what its config and weights make"),
    "trainable": (
        edited(lambda new, old: None, fill="trainable"),
        "new entries are not zero",
    ),
    "another place": (GOOD["permuted_heads"], "front of each factor"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_RULE)
def test_what_follows_no_rule_is_undecided(name: str) -> None:
    """Certified at the shape that decides, and it says why not at all of them."""
    grower, reason = NO_RULE[name]
    found = judged(grower)
    assert found.verdict == "undecided", found.reason
    assert reason in found.reason
    assert found.covers == ""


@pytest.mark.parametrize("fault", ["q_scale_missing", "eps_unscaled"])
def test_a_wrong_rule_is_refused(fault: str) -> None:
    found = judged(BAD[fault])
    assert found.verdict == "refused", found.reason


def test_axes_that_are_not_claimed_are_left_out(tmp_path: Path) -> None:
    """A grower of MLPs and layers alone, by the command; the certificate says of what."""
    file = tmp_path / "all.json"
    kept = "hidden", "heads", "groups", "head_dim", "biases", "parallel"
    left = [word for feature in kept for word in ("--without", feature)]
    assert (
        main(["--all-shapes", "--family", "stablelm", *left, "--json", str(file)]) == 0
    )
    schema = Path(certificates.__file__).with_name("certificate.schema.json")
    (found,) = json.loads(file.read_text("utf-8"))
    jsonschema.validate(found, json.loads(schema.read_text("utf-8")))
    assert "every growth of mlp, layers in which" in found["covers"]
    assert "use_qkv_bias=False" in found["covers"]


@pytest.mark.parametrize(
    "argv", [["--family", "gemma"], ["--family", "llama", "--target", "hidden_size=12"]]
)
def test_there_is_no_theorem_for_the_rest(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--all-shapes", *argv])
    assert caught.value.code == 4
    assert "--all-shapes" in capsys.readouterr().err
