"""Trained weights with each feature of a decoder keep their loss, whatever axis grows.

Losses are told in the suite's unit: what one rounding of the weights does to the same
loss. `clone`: weights in their dtype, all else in float64. `stock`: transformers' own
code in float32, whose sums round as well.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import growproof
import pytest
import torch
import transformers
from growproof import clone
from growproof.decoder import Decoder
from growproof.families import family_of
from growproof.models import decoder_of, state_of
from growproof.padding import State
from growproof.rounding import Responses
from torch import Tensor
from torch.nn.functional import cross_entropy

from properties.errors import ledger
from properties.growers.known_bad import BY_NAME
from properties.laws.checks import BUDGETS, longest_sum

from . import texts, train, train_tiny

AXES = ("hidden", "heads", "groups", "head_dim", "mlp", "layers", "vocab")
DTYPES = ("float64", "float32", "bfloat16")
NAMES = [*train_tiny.MODELS]


@dataclass(frozen=True)
class Trained:
    """A checkpoint of integration/tiny, and the text that it is measured on."""

    name: str
    model: Any
    ids: Tensor

    def decoder(self) -> Decoder:
        return decoder_of(self.model.config)

    def target(self, axis: str) -> dict[str, int]:
        """A growth along the axis, and along what the family's own rule makes follow."""
        d, family = self.decoder(), family_of(self.model.config)
        grown = {
            "hidden": d.hidden + 8, "heads": d.heads + d.groups, "groups": 2 * d.groups,
            "head_dim": d.head_dim + 2, "mlp": d.mlp + 7, "layers": d.layers + 1,
            "vocab": d.vocab + 5,
        }  # fmt: skip
        sizes = {axis: grown[axis]}
        if family.tied_head_dim:
            sizes = {"hidden": {"head_dim": d.head_dim + 2}}.get(axis, sizes)
            if "groups" not in family.sizes and axis == "heads":
                sizes = {"heads": d.heads + 2}
            heads = sizes.get("heads", d.heads)
            lanes = sizes.pop("head_dim", d.head_dim)
            sizes |= {"hidden": heads * lanes} if heads * lanes != d.hidden else {}
        elif family.whole_heads and "heads" in sizes:
            sizes["hidden"] = -(-d.hidden // sizes["heads"]) * sizes["heads"]
        return {family.sizes[field]: size for field, size in sizes.items()}


@functools.cache
def trained(name: str, dtype: str = "float32") -> Trained:
    """The checkpoint of that name, loaded once."""
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    options = {"dtype": getattr(torch, dtype), "attn_implementation": "eager"}
    model = load(train_tiny.TINY / name, experts_implementation="eager", **options)
    return Trained(name, model.eval(), train_tiny.text()[1][None])


def loss_of(logits: Tensor, ids: Tensor, vocab: int) -> Tensor:
    """The mean next-token loss over the old vocabulary, in float64."""
    scores = logits[0, :-1, :vocab].double()
    return cross_entropy(scores, ids[0, 1:])


def losses(d: Decoder, state: State, one: Trained) -> Mapping[str, Tensor]:
    """The clone's loss in float64, of weights in any dtype."""
    exact = {name: state[name].double() for name in state}
    logits = clone.forward(d, exact, one.ids)["logits"]
    return {"loss": loss_of(logits, one.ids, one.decoder().vocab)}


@functools.cache
def unit(name: str, dtype: str) -> tuple[Tensor, float]:
    """The clone's loss before growing, and what one rounding of the weights does to it."""
    one = trained(name, dtype)
    d, state = one.decoder(), state_of(one.model)
    before = losses(d, state, one)
    moved = Responses(lambda s: losses(d, s, one), state, before, getattr(torch, dtype))
    return before["loss"], moved["loss"]


@functools.cache
def stock_loss(name: str) -> Tensor:
    """The loss before growing by transformers' own code."""
    one = trained(name)
    with torch.no_grad():
        return loss_of(one.model(one.ids).logits, one.ids, one.decoder().vocab)


def ratio(one: Trained, grown: Any, dtype: str, kernel: str, axis: str) -> float:
    """How far the losses are apart, in roundings of the weights; into the ledger."""
    old, precision = one.decoder(), getattr(torch, dtype)
    before, response = unit(one.name, dtype)
    if kernel == "clone":
        after = losses(decoder_of(grown.config), state_of(grown), one)["loss"]
    else:
        before = stock_loss(one.name)
        with torch.no_grad():
            after = loss_of(grown(one.ids).logits, one.ids, old.vocab)
    far = abs(float(after - before))
    found = far / (longest_sum(old) ** 0.5 * response)
    ledger.record(
        ledger.Comparison(
            law="trained_loss_is_kept", tap=f"loss, {axis}", family=one.name, dtype=dtype,
            kernel=kernel, device="cpu", size="tiny", ratio=found,
            ulps=far / torch.finfo(precision).eps, relative=far / float(before),
            budget=BUDGETS["low" if kernel == "clone" else "stock"],
            example=f"integration/tiny/{one.name} along {axis}",
        )
    )  # fmt: skip
    return found


def axes_of(name: str) -> list[str]:
    """The axes along which a family grows by itself."""
    alone = "groups" not in family_of(trained(name).model.config).sizes
    tied = family_of(trained(name).model.config).tied_head_dim
    return [
        a for a in AXES if not ((alone and a == "groups") or (tied and a == "head_dim"))
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_is_kept_along_each_axis(name: str, dtype: str) -> None:
    """loss(grow(m)) = loss(m), to the rounding of the grown weights."""
    one = trained(name, dtype)
    found = {
        axis: ratio(
            one, growproof.grow(one.model, one.target(axis)), dtype, "clone", axis
        )
        for axis in axes_of(name)
    }
    assert len(found) >= 5
    assert max(found.values()) <= BUDGETS["low"], found


@pytest.mark.parametrize("name", NAMES)
def test_the_stock_loss_is_kept_along_each_axis(name: str) -> None:
    """The same of transformers' own code in float32."""
    one = trained(name)
    found = {
        axis: ratio(one, growproof.grow(one.model, one.target(axis)), "float32", "eager", axis)
        for axis in axes_of(name)
    }  # fmt: skip
    assert max(found.values()) <= BUDGETS["stock"], found


FAULTS = {
    "gemma2": ("norm_scale_1e6", "hidden"),
    "qwen3": ("output_1e6", "head_dim"),
    "gpt2": ("output_1e6", "heads"),
    "gpt_neox": ("eps_unscaled", "hidden"),
    "mixtral": ("down_1e6", "mlp"),
    "olmo2": ("output_1e6", "heads"),
    "granite": ("layers_copied", "layers"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_shows_in_the_loss(name: str) -> None:
    """A planted fault of 1e-6, an ε that stays, a layer that is not silent."""
    one = trained(name, "float64")
    fault, axis = FAULTS[name]
    with ledger.recording(None):
        right = growproof.grow(one.model, one.target(axis))
        assert ratio(one, right, "float64", "clone", axis) <= BUDGETS["low"]
        wrong = BY_NAME[fault](one.model, one.target(axis))
        assert ratio(one, wrong, "float64", "clone", axis) > 100 * BUDGETS["low"]


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_true(name: str) -> None:
    """The loss on it, to 1e-4; the text that it was trained on; less than half a MB."""
    one, directory = trained(name), train_tiny.TINY / name
    card = (directory / "README.md").read_text("utf-8")
    stated = re.search(r"^\| loss on [^|]*\| ([\d.]+) \|$", card, re.M)
    assert stated
    with torch.no_grad():
        loss = train.loss_on(one.model, one.ids[0])
    assert loss == pytest.approx(float(stated[1]), rel=1e-4)
    assert loss < 0.2, "what is not learnt cannot be lost"
    assert texts.fingerprint(texts.LICENCE) in card
    assert sum(file.stat().st_size for file in directory.iterdir()) < 500_000
    fields = train_tiny.MODELS[name].config
    for field, value in fields.items():
        if field != "rope_parameters":
            assert getattr(one.model.config, field) == value, field


def test_every_directory_has_its_recipe() -> None:
    found = {path.name for path in train_tiny.TINY.iterdir() if path.is_dir()}
    assert found == set(NAMES)


def test_the_script_trains() -> None:
    """Three steps of it: the same weights twice, and not those of before."""
    first, _ = train_tiny.trained("granite", 3)
    again, _ = train_tiny.trained("granite", 3)
    torch.manual_seed(train_tiny.RECIPE.seed)
    fresh = train_tiny.build("granite")
    moved = zip(first.parameters(), again.parameters(), fresh.parameters(), strict=True)
    for one, two, before in moved:
        assert torch.equal(one, two)
        assert not torch.equal(one, before)
