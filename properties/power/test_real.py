"""Faults of real use are rejected, each by the law that is there for it."""

import copy
from collections.abc import Iterator
from typing import Any

import growproof
import pytest
from transformers import LlamaForCausalLM
from transformers.initialization import no_init_weights

from ..errors.ledger import recording
from ..gate.loading import Grower
from ..growers.real_use import FAULTS, PUBLISHED
from ..laws import test_decoder as decoder
from ..laws import test_doors as doors
from ..laws import test_handed_back as handed_back
from ..laws import test_real as real
from ..laws import test_world as world
from ..laws.domain import CORE, DOMAIN
from ..laws.registry import Item, item_of


@pytest.fixture(autouse=True)
def llama() -> Iterator[None]:
    """Llamas alone, and no errors of the grower under test."""
    before, DOMAIN.features = DOMAIN.features, {*CORE} - {"stablelm"}
    with recording(None):
        yield
    DOMAIN.features = before


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_real_use_is_rejected(name: str) -> None:
    """By the law that is there for it."""
    item, change = FAULTS[name]
    if item == item_of(real.test_published_configs_are_kept):
        DOMAIN.features |= {"mistral"}
    if item.law.test is PUBLISHED:
        DOMAIN.features |= {*item.arguments.values(), "rope_types"}

    def grow(model: Any, target: Any) -> Any:
        grown = growproof.grow(model, dict(target))
        change(grown, model)
        return grown

    with pytest.raises(AssertionError):
        item.judge(Grower(name, grow))


def test_a_memo_by_the_embedding_is_found() -> None:
    """Two models of the same config and embedding, of which one result is given for both."""
    made: dict[tuple[bytes, str], Any] = {}

    def grow(model: Any, target: Any) -> Any:
        grown = growproof.grow(model, dict(target))
        weights = model.get_input_embeddings().weight.detach().float().numpy().tobytes()
        first = made.setdefault((weights, str(target)), grown.state_dict())
        grown.load_state_dict(first)
        return grown

    with pytest.raises(AssertionError, match="was changed, and the result is the one"):
        item_of(world.test_two_calls_agree).judge(Grower("memo", grow))


def test_a_memo_is_stale_once_the_model_was_trained() -> None:
    """Two calls with one object, whose weights were changed in between."""
    made: dict[tuple[int, str], Any] = {}

    def grow(model: Any, target: Any) -> Any:
        key = id(model), str(target)
        if key not in made or made[key][0] is not model:
            made[key] = model, growproof.grow(model, dict(target)).state_dict()
        grown = growproof.grow(model, dict(target))
        grown.load_state_dict(made[key][1])
        return grown

    with pytest.raises(AssertionError, match="trained on since"):
        item_of(world.test_two_calls_agree).judge(Grower("memo", grow))


@pytest.mark.parametrize("depth", ["prepend", "interleave"])
def test_a_layer_is_frozen_wherever_it_is_put(depth: str) -> None:
    """requires_grad goes with the layer, and not with its number."""
    law = item_of(handed_back.test_dtype_device_and_mode)

    def right(model: Any, target: Any) -> Any:
        return growproof.grow(model, dict(target), depth=depth)

    def by_number(model: Any, target: Any) -> Any:
        grown = right(model, target)
        new = dict(grown.named_parameters())
        for name, p in model.named_parameters():
            new[name].requires_grad_(p.requires_grad)
        return grown

    law.judge(Grower("right", right))
    with pytest.raises(AssertionError, match=r"requires_grad of model\.layers"):
        law.judge(Grower("by number", by_number))


class HeadFirst(LlamaForCausalLM):
    """A Llama whose lm_head comes before its layers, and lends a tied tensor its name."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._modules["model"] = self._modules.pop("model")


@pytest.mark.parametrize(
    "law",
    [
        item_of(decoder.test_logits_are_unchanged, "llama", "layers"),
        item_of(handed_back.test_tying_is_kept),
        item_of(handed_back.test_dtype_device_and_mode),
        item_of(doors.test_saves_and_loads),
    ],
    ids=lambda item: item.name,
)
def test_a_head_that_comes_first_is_right(law: Item) -> None:
    """A parameter has the embedding's name, whichever module has it first."""

    def grow(model: Any, target: Any) -> Any:
        grown = growproof.grow(model, dict(target))
        with no_init_weights():
            new: Any = HeadFirst(copy.deepcopy(grown.config))
        new.load_state_dict(grown.state_dict(), assign=True)
        new.tie_weights()
        for name, p in grown.named_parameters():
            new.get_parameter(name).requires_grad_(p.requires_grad)
        new.generation_config = copy.deepcopy(grown.generation_config)
        return new.train(grown.training)

    law.judge(Grower("head first", grow))
