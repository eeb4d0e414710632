"""What is handed back: a model of its own, as it was asked for; the source as it was."""

import copy
import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from growproof.family import Family
from growproof.models import kind, parameters_of
from growproof.table import count
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from . import claims
from .domain import CONFIG_NAME, config_names, table
from .given import (
    FIRST,
    GENERATION,
    PARTLY,
    and_opposite,
    declined,
    hooks_of,
    plain_fields,
    told,
    worn,
)
from .grown import Grown, grow
from .models import Case
from .registry import hygiene, law
from .strategies import cases, fewer
from .world import changed

# config entries that say how a model was made or stored, not what it computes
INCIDENTAL = {
    "architectures", "dtype", "transformers_version", "_name_or_path", "auto_map",
    "norm_size", "model_type", "rope_parameters", "partial_rotary_factor", "head_dim",
    "layer_types", "rope_theta",
}  # fmt: skip


def grows_along(family: Family) -> set[str]:
    """The config entries that a growth of this family may change."""
    sizes = {*family.sizes.values(), *CONFIG_NAME.values()}
    return INCIDENTAL | sizes | {family.eps, *family.writes}


def snapshot(model) -> tuple[dict[str, torch.Tensor], str, bool, dict[str, bool]]:
    """All of a model that growing could disturb."""
    return (
        {n: t.detach().clone() for n, t in model.state_dict().items()},
        json.dumps(told(model.config), sort_keys=True, default=str),
        model.training,
        {n: p.requires_grad for n, p in model.named_parameters()},
    )


@law(hygiene, claim=claims.HYGIENE, version=3)
@fewer(2)
@given(case=cases(max_tokens=2), training=st.booleans())
def test_source_is_untouched(grower, case: Case, training: bool) -> None:
    """Weights (bitwise), config, mode and requires_grad of the source stay."""
    for state in and_opposite(training=training):
        source = case.model().train(state["training"])
        before = snapshot(source)
        refusal = declined(grower, source, dict(case.target))
        after = snapshot(source)
        assert before[0].keys() == after[0].keys()
        for name, w in before[0].items():
            assert torch.equal(w, after[0][name]), f"the source's {name} was changed"
        assert before[1] == after[1], "the source's config was changed"
        assert before[2:] == after[2:], "the source's mode or requires_grad was changed"
        if refusal:
            raise refusal


def inside(x: Any, kinds: Any, where: str = "") -> Iterator[tuple[int, str]]:
    """(identity, place) of everything of these kinds in lists, tuples and dicts."""
    if isinstance(x, kinds):
        yield id(x), where
    if isinstance(x, list | tuple | dict):
        for name, value in x.items() if isinstance(x, dict) else enumerate(x):
            yield from inside(value, kinds, f"{where}.{name}".lstrip("."))


@law(hygiene, claim=claims.HYGIENE, version=4)
@fewer(2)
@given(case=cases(max_tokens=2))
def test_nothing_is_shared(grower, case: Case) -> None:
    """No memory, config or generation config of the source lives on in the result."""
    source = case.model()
    for p in source.parameters():
        p.grad = torch.ones_like(p)
    source.generation_config.update(**GENERATION)
    grown = Grown(case, source, grower(source, dict(case.target)))
    old = {
        p.untyped_storage().data_ptr(): n for n, p in grown.source.named_parameters()
    }
    mine: dict[int, str] = {}
    for name, p in grown.model.named_parameters():
        at = p.untyped_storage().data_ptr()
        other = old.get(at)
        assert other is None, f"{name} shares its memory with the source's {other}"
        assert at not in mine, f"{name} and {mine[at]} are views of one memory"
        assert p.is_contiguous(), f"{name} is not contiguous: strides {p.stride()}"
        assert not p.is_inference(), (
            f"{name} was made in inference mode: it cannot train"
        )
        assert p.is_leaf, f"{name} is the result of a computation, not a leaf"
        assert p.grad is None, f"{name}.grad came along: expected None"
        mine[at] = name
    assert grown.model.config is not grown.source.config, "the config is one object"
    for model in (grown.model, grown.source):
        assert model.generation_config is not None, "there is no generation_config"
    one = grown.model.generation_config is grown.source.generation_config
    assert not one, "generation_config is one object in both models"
    for name in ("config", "generation_config"):
        one, two = (vars(getattr(m, name)) for m in (grown.source, grown.model))
        theirs = dict(inside(one, list | dict))
        for at, where in inside(two, list | dict):
            assert at not in theirs, f"the two models' {name} share {where}"
    held = {id(m) for m in grown.source.modules()}
    for name, module in grown.model.named_modules():
        for at, where in inside(vars(module), torch.nn.Module, name):
            assert at not in held, (
                f"{where} is a module of the source: it is kept alive"
            )
    buffers = {b.data_ptr(): n for n, b in grown.source.named_buffers() if b.numel()}
    for name, b in grown.model.named_buffers():
        other = buffers.get(b.data_ptr())
        assert other is None, f"{name} shares its memory with the source's {other}"


@law(hygiene, claim=claims.HYGIENE, version=6)
@given(
    case=cases(max_tokens=2),
    dtype=st.sampled_from(("float32", "bfloat16", "float64", "float16")),
    training=st.booleans(),
    frozen=st.sampled_from(("nothing", "all", "mlp", PARTLY, FIRST)),
)
def test_dtype_device_and_mode(grower, case: Case, dtype, training, frozen) -> None:
    """dtype, device, train/eval mode and requires_grad are those of the source."""
    for state in and_opposite(dtype=dtype, training=training, frozen=frozen):
        as_it_was_given(grower, case, state)


def as_it_was_given(grower, case: Case, state: dict[str, Any]) -> Grown:
    """The same, of one growth of a model in this state; it is returned."""
    source = worn(case, **state, attention="eager", used=False)
    if state["training"]:  # as a model's is that was cast since it was loaded
        source.config.dtype = torch.float32
    model = grower(source, dict(case.target))
    assert model.training == source.training, "the mode (train/eval) changed"
    for name, m in model.named_modules():
        bare = isinstance(m, torch.nn.ModuleList)  # whose mode says nothing
        assert bare or m.training == source.training, (
            f"{name} is in training mode: {m.training}, the source: {source.training}"
        )
    says, said = (getattr(m.config, "dtype", None) for m in (model, source))
    assert says in (None, said, source.dtype), f"config.dtype is {says}"
    grown = Grown(case, source, model)
    new = parameters_of(model)
    for name, old in source.named_parameters():
        there = grown.placed(name)
        p = new.pop(there, None)
        assert p is not None, f"{there} is gone"
        assert p.dtype == old.dtype, f"{there} is {p.dtype}, expected {old.dtype}"
        assert p.device == source.device, f"{there} is on {p.device}"
        got, on = p.requires_grad, old.requires_grad
        assert got == on, f"requires_grad of {there} is {got}, not {on}"
    dtypes = {kind(n): old.dtype for n, old in source.named_parameters()}
    for name, p in new.items():
        assert p.dtype == dtypes[kind(name)], f"the new {name} is {p.dtype}"
    bits = {kind(n): b.element_size() for n, b in source.named_buffers()}
    for name, b in model.named_buffers():
        least = min(bits.get(kind(name), 1), 4)  # float32, as transformers has them
        assert b.element_size() >= least, f"{name} is {b.dtype}: rounded once more"
    return grown


@law(hygiene, claim=claims.HYGIENE)
@fewer(2)
@given(case=cases(max_tokens=2))
def test_everything_is_finite(grower, case: Case) -> None:
    """No NaN or infinity in any parameter or buffer, not even where nothing reads it."""
    model = grow(case, grower).model
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        assert x.isfinite().all(), f"{name} holds a NaN or an infinity"


@law(hygiene, claim=claims.HYGIENE, version=2)
@fewer(2)
@given(case=cases(max_tokens=2, features=("tied",)) | cases(max_tokens=2))
def test_tying_is_kept(grower, case: Case) -> None:
    """Embedding and lm_head are one tensor exactly if they were, and the config says so."""
    for each in (case, replace(case, regime="tidy")):  # whose ends are equal if untied
        model = grow(each, grower).model
        ends = model.get_output_embeddings(), model.get_input_embeddings()
        tied = ends[0].weight is ends[1].weight
        assert tied == case.decoder.tied, f"tied: {tied}, expected {case.decoder.tied}"
        says = model.config.tie_word_embeddings
        assert says == case.decoder.tied, f"config.tie_word_embeddings is {says}"


def entries(config: Any, free: set[str], layers: list[int]) -> dict[str, Any]:
    """A config's entries that no growth explains, layer_types those of the old layers."""
    found = {k: v for k, v in config.to_dict().items() if k not in free}
    types = getattr(config, "layer_types", None)
    if types:
        assert len(types) == config.num_hidden_layers, (
            f"{len(types)} layer_types for {config.num_hidden_layers} layers"
        )
        found["layer_types"] = [types[i] for i in layers]
    rope = getattr(config, "rope_parameters", None)
    return found | ({"rope_parameters": unturned(rope)} if rope else {})


def unturned(rope: dict[str, Any]) -> dict[str, Any]:
    """Rope parameters but for those that follow head_dim."""
    return {
        name: unturned(value) if isinstance(value, dict) else value
        for name, value in rope.items()
        if name not in ("rope_theta", "partial_rotary_factor")
    }


def generation(config: Any) -> dict[str, Any]:
    """What a generation config says, but for how it was made.

    One that transformers derives from the grown config is taken as well, where that of
    the source was derived: from there it is read again where a checkpoint has none.
    """
    told = config.to_dict()
    made = ("transformers_version", "_from_model_config")
    return {name: value for name, value in told.items() if name not in made}


@law(hygiene, claim=claims.HYGIENE, version=4)
@given(case=cases(max_tokens=2), used=st.booleans())
def test_sizes_are_those_asked_for(grower, case: Case, used: bool) -> None:
    """The config says the asked sizes, the weights have them, the rest is as it was."""
    plain = {"dtype": "float64", "training": False, "frozen": "nothing"}
    for state in and_opposite(used=used):
        attention = "sdpa" if state["used"] else "eager"
        source = worn(case, **plain, **state, attention=attention)
        as_asked(Grown(case, source, grower(source, dict(case.target))))


def as_asked(grown: Grown) -> None:
    """The same, of one growth."""
    case, source = grown.case, grown.source
    new, old = grown.model.config, source.config
    for axis, usual in config_names(case.family).items():
        name = table(case.family).sizes.get(axis, usual)
        if usual not in case.target and not hasattr(old, name):
            continue
        asked = case.target.get(usual, getattr(old, name, None))
        got = getattr(new, name, None)
        assert got == asked, (
            f"the config says {name} = {got}, asked for {asked} ({axis})"
        )
    free, layers = grows_along(table(case.family)), grown.layers
    before = entries(old, free, list(range(case.decoder.layers)))
    told = [*changed(before, entries(new, free, layers))]
    assert not told, f"config.{told[0]}"
    assert new._attn_implementation == old._attn_implementation, "attention changed"
    got, had = (generation(m.generation_config) for m in (grown.model, source))
    told = [*changed(had, got)]
    derived = [generation(GenerationConfig.from_model_config(c)) for c in (old, new)]
    assert not told or [had, got] == derived, f"generation_config.{told[0]}"
    got = sum(p.numel() for p in grown.model.parameters())
    expected = count(grown.decoder)
    assert got == expected, f"{got} parameters, the table counts {expected}"
    order = [m.layer_idx for m in grown.model.modules() if hasattr(m, "layer_idx")]
    order = list(dict.fromkeys(order))
    assert order == list(range(grown.decoder.layers)), (
        f"the layers' layer_idx are {order}"
    )


def own_forward(module: torch.nn.Module) -> bool:
    """Whether it runs another function than its class says: no checkpoint keeps that.

    accelerate's hooks, which move what is on several devices, are known by their name.
    """
    return "forward" in vars(module) and not hasattr(module, "_hf_hook")


@law(hygiene, claim=claims.HYGIENE, version=4)
@fewer(2)
@given(case=cases(max_tokens=2), used=st.booleans())
def test_it_is_as_one_that_was_made_of_its_config(
    grower, case: Case, used: bool
) -> None:
    """Sizes, rates and switches of each module, hooks, order: as transformers has them."""
    state = {"dtype": "float64", "training": False, "frozen": "nothing"}
    source = worn(case, **state, attention="eager", used=used)
    as_of_its_config(grower(source, dict(case.target)))


def as_of_its_config(model: Any) -> None:
    """The same, of one result."""
    twin = type(model)(copy.deepcopy(model.config)).eval()
    names = [[n for n, _ in m.named_parameters()] for m in (model, twin)]
    assert names[0] == names[1], (
        "the parameters are in another order than reloaded ones"
    )
    theirs = dict(twin.named_modules())
    for name, module in model.named_modules():
        assert name in theirs, f"a reloaded model has no module {name}"
        kinds = [type(m).__name__ for m in (theirs[name], module)]
        assert kinds[0] == kinds[1], (
            f"{name or 'the model'} is a {kinds[1]}, and a {kinds[0]} once reloaded"
        )
        assert not own_forward(module), (
            f"{name or 'the model'} has a forward of its own"
        )
        known, says = plain_fields(theirs[name]), plain_fields(module)
        told = [
            *changed(known, {k: v for k, v in says.items() if hasattr(theirs[name], k)})
        ]
        assert not told, f"{name or 'the model'}, beside a reloaded one: {told[0]}"
        hooks = hooks_of(module)
        assert hooks == hooks_of(theirs[name]), f"{name} has {hooks} hooks"
        own = getattr(module, "config", model.config)
        if (
            theirs[name] is not twin
            and getattr(theirs[name], "config", None) is twin.config
        ):
            assert own is model.config, f"{name} has a config of its own"
    for name, p in model.named_parameters():
        size, kept = p.numel() * p.element_size(), p.untyped_storage().nbytes()
        assert kept == size, f"{name} has {size} bytes, and keeps {kept}"
    asked = list(inspect.signature(model.forward).parameters)
    assert asked == list(inspect.signature(twin.forward).parameters), (
        f"forward takes {', '.join(asked)}"
    )
