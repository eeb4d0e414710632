"""What is left out is never drawn, probed or needed; what is declined is drawn around."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from ..laws.domain import AXES, CORE, DOMAIN, needed
from ..laws.registry import laws
from ..laws.strategies import cases, smallest
from . import score
from .domain import UnknownName, narrow
from .judged import Asked, Judged
from .loading import Grower

LEFT_OUT = [
    *((axis,) for axis in AXES),
    *(tuple(a for a in AXES if a != axis) for axis in AXES),
    ("hidden", "gqa"),
    ("heads", "hidden", "head_dim"),
    ("hidden", "head_dim", "mlp", "layers"),
]
quick = settings(
    max_examples=10, database=None, derandomize=True, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip


@pytest.fixture(autouse=True)
def _domain():
    """Whatever a test leaves out is back after it."""
    yield
    DOMAIN.features = set(CORE)


@pytest.mark.parametrize("left_out", LEFT_OUT, ids="-".join)
def test_what_is_left_out_is_never_drawn_or_probed(left_out) -> None:
    """Every case needs claimed features alone; a law that forces an axis sees growth."""
    DOMAIN.features = {f for f in CORE if f not in left_out}
    drawn: Counter[str] = Counter()

    @quick
    @given(plain=cases(), forced=cases(axis="groups"), exact=cases(power_of_four=True))
    def claimed(**found) -> None:
        for name, case in found.items():
            need = set(needed(case.family, case.config, case.target))
            assert need <= DOMAIN.features, (name, need - DOMAIN.features, case)
            assert case.decoder.hidden % case.decoder.heads == 0
            drawn[name] += bool(case.target)

    claimed()
    assert drawn["forced"] >= 10
    assert drawn["plain"]
    for case in smallest():
        assert case.target
        assert set(needed(case.family, case.config, case.target)) <= DOMAIN.features
    assert {case.family for case in smallest()} == set(DOMAIN.families)


def test_key_value_heads_alone_are_repeated_under_their_heads() -> None:
    """Without heads, only num_key_value_heads grows, to a divisor of the heads."""
    narrow(["heads,hidden,head_dim,mlp,layers,stablelm"], [])
    grown = []

    @quick
    @given(case=cases(axis="groups"))
    def repeated(case) -> None:
        assert set(case.target) == {"num_key_value_heads"}
        g, new = case.decoder.groups, case.target["num_key_value_heads"]
        assert new % g == 0
        assert case.decoder.heads % new == 0
        grown.append(new)

    repeated()
    assert grown


@pytest.mark.parametrize(
    ("without", "more", "said"),
    [
        (["wings"], [], "--without knows no wings"),
        (["hiden"], [], "did you mean hidden?"),
        (["num_atention_heads"], [], "did you mean num_attention_heads?"),
        ([], ["tranable"], "did you mean trainable?"),
        (["hidden,heads,groups,head_dim,mlp,layers"], [], "leaves nothing that can grow"),
        (["llama", "hidden", "heads,groups", "mlp,layers"], [], "a StableLm's hidden size"),
    ],
)  # fmt: skip
def test_unknown_features(without: list[str], more: list[str], said: str) -> None:
    """A feature that is none is named, with the one that was meant."""
    with pytest.raises(UnknownName, match=said.replace("?", r"\?")):
        narrow(without, more)


@pytest.mark.parametrize(
    "given", [(["wings"], []), ([], ["wings"]), ([], [], ["wings"])]
)
def test_what_there_is_is_listed_once(given: tuple[list[str], ...]) -> None:
    """By --without, --with and --family: a llama and a stablelm are of the core as well."""
    with pytest.raises(UnknownName) as error:
        narrow(*given)
    listed = str(error.value).partition("It takes: ")[2].split(", ")
    assert len(listed) == len({*listed}) > 20
    assert {"llama", "stablelm", "qwen3"} <= {*listed}


def test_features_by_commas_and_by_their_config_names() -> None:
    """--without --hidden_size,num-attention-heads is --without hidden,heads."""
    assert narrow(["--hidden_size,num-attention-heads", "mlp"], []) == [
        "hidden", "heads", "mlp",
    ]  # fmt: skip


def declining(least: int):
    """A grower that offers an intermediate size from `least` on, and nothing smaller."""

    def grow(model, target):
        if target["intermediate_size"] < least:
            raise NotImplementedError(f"{target['intermediate_size']} is too little")
        return model

    return Judged(Grower("somebody:grow", grow))


def test_what_is_declined_is_drawn_around() -> None:
    """All examples that were asked for are found, and each refusal is counted."""
    narrow(["hidden,heads,groups,head_dim,layers,stablelm"], [])
    judged, seen = declining(12), []

    @settings(quick, suppress_health_check=[HealthCheck.filter_too_much])
    @given(case=cases(axis="mlp"))
    def law(case) -> None:
        seen.append(judged(case.model(torch.float64), case.target))

    law()
    assert judged.asked.calls["growths"] == len(seen) >= 10
    assert judged.asked.axes["mlp"] == len(seen)
    assert judged.asked.largest["mlp"] >= 12
    assert list(judged.asked.declined) == ["2 is too little"]  # numbers aside
    assert score.nothing_judged({}, judged.asked) is None
    judged = declining(1000)
    with pytest.raises(Unsatisfiable):
        law()
    assert "declined all" in str(score.nothing_judged({}, judged.asked))


def test_a_setup_error_is_no_verdict() -> None:
    """Errors before a law are told as such; with a failure there is a verdict."""
    error = SimpleNamespace(when="setup", nodeid="a.py::test_x")
    said = score.nothing_judged({"error": [error]}, Asked())
    assert said is not None
    assert "could not be set up" in said
    assert score.nothing_judged({"error": [error], "failed": [error]}, Asked()) is None


@pytest.mark.parametrize(("needs", "reason"), [("llama", "llama"), ("qk_norm", "qk_norm"),
                                               ("granite", None), ("mlp", None)])  # fmt: skip
def test_what_is_not_claimed_is_not_replayed(
    needs: str, reason: str | None, pytestconfig: pytest.Config
) -> None:
    """Not of a family or an option that the grower is not for, though none was left out."""
    narrow([], [], ["granite"])
    plugin: Any = pytestconfig.pluginmanager.get_plugin("growproof")
    marks = [pytest.mark.needs(needs).mark]
    item = SimpleNamespace(
        function=laws()["logits_are_unchanged"].test, callspec=None,
        iter_markers=lambda name: marks, get_closest_marker=lambda name: None,
    )  # fmt: skip
    assert plugin.left_out_by(item) == reason
