"""Is what a grower returned the model that its config and its weights make?"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from growproof.models import model_class, parameters_of
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .runs import Run, eager, note_modes, runs
from .witness import WITNESS, apart, logits, outputs

SAVED = "saved and loaded"
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def breach(old: Any, models: Sequence[Any], target: Mapping[str, int]) -> str:
    """How these are no models of the wanted sizes and kind; empty where they are."""
    first = models[0]
    if not all(hasattr(m, "config") and hasattr(m, "state_dict") for m in models):
        return f"The grower returned {type(first).__name__}, no transformers model."
    said = [m.config.to_dict() | {"_name_or_path": ""} for m in models]
    if any(config != said[0] for config in said):
        return "The grown config is another one at each call, or for other weights."
    if any(not p.isfinite().all() for m in models for p in m.parameters()):
        return "The grown weights hold a NaN or an infinity."
    shapes = [{n: p.shape for n, p in parameters_of(m).items()} for m in models]
    if any(shape != shapes[0] for shape in shapes):
        return "The grown parameters' shapes depend on the values of the weights."
    for name in (*SIZES, *target):
        before, now = getattr(old.config, name, None), getattr(first.config, name, None)
        if name == "head_dim" and name not in target:
            continue
        own = getattr(first.config, "attribute_map", {}).get(name, name)
        wanted = target.get(name, target.get(own, before))
        if wanted is not None and now != wanted:
            return f"The config's {name} is {now}, not {wanted}."
    return ""


def stock(model: Any) -> tuple[Any, str]:
    """The model that its config and state dict make, or why that is not this one's.

    And what is assumed of it: that its class comes along, where transformers has another
    for its config.
    """
    cls, own = type(model), ""
    with suppress(KeyError):
        cls = model_class(model.config)
    made, why = loaded(cls, model)
    if why and not issubclass(type(model), cls):
        why = f"{cls.__name__} is what its config makes: {why}"
    elif why and cls is not type(model):
        made, why = loaded(type(model), model)
        own = f"Its class, {type(model).__name__}, is there where it is loaded."
    return why or made, own


def loaded(cls: Any, model: Any) -> tuple[Any, str]:
    """The model of that class, and why it does not hold what this one does."""
    try:
        made = cls(copy.deepcopy(model.config)).double().train(model.training)
        mine, its = (
            {n: tuple(p.shape) for n, p in parameters_of(m).items()}
            for m in (model, made)
        )
        if differ := sorted(n for n in mine | its if mine.get(n) != its.get(n)):
            name = differ[0]
            return made, (
                f"It cannot be saved and loaded: {name} is {mine.get(name, 'not there')}, "
                f"and {its.get(name, 'not there')} in what its config makes."
            )
        made.load_state_dict(model.state_dict(), strict=False)
        return made, ""
    except Exception as error:
        return None, f"It cannot be saved and loaded: {type(error).__name__}: {error}."


def live(new: Any, made: Any, plan: Sequence[Run]) -> str:
    """Where the model as it was returned is not the one that its config and weights make.

    In float64, and with the attention that it came with; experts as their plain loop.
    """
    kernel = getattr(new.config, "_attn_implementation", None) or "eager"
    known = getattr(ALL_ATTENTION_FUNCTIONS.get(kernel), "__module__", "transformers.")
    for model in (new, made):
        note_modes(model)
    for run in plan:
        try:
            with eager(new, made, attention=False):
                mine, its = logits(new, run), logits(made, run)
            how = f"once it is {SAVED}"
            if apart(mine, its) <= WITNESS and not known.startswith("transformers."):
                with eager(new):
                    its, how = logits(new, run), f"by eager attention, not {kernel!r}"
        except Exception:  # refused with its reason later
            return ""
        if (off := apart(mine, its)) > WITNESS:
            with eager(new, made, attention=False):
                at = first_apart(new, made, run)
            where = f", from {at} on" if at else ""
            return (
                "It is not what its config and weights make: the logits differ by "
                f"{off:.1e} of the largest{where} {how} ({run.name})."
            )
    return ""


def unlike_stock(old: Any, news: Sequence[Any], target: Mapping[str, int]) -> str:
    """Why these are no models of the wanted sizes that config and weights make."""
    if why := breach(old, news, target):
        return why
    made, _ = stock(news[0])
    plan = runs(old.config, old.config.vocab_size)
    return made if isinstance(made, str) else live(news[0], made, plan)


def first_apart(new: Any, made: Any, run: Run) -> str:
    """The first module whose outputs are not the same, if any."""
    with outputs(new) as mine, outputs(made) as its:
        for model in (new, made):
            logits(model, run)
    return next((n for n in mine if n in its and apart(mine[n], its[n]) > WITNESS), "")
