"""Training state: what an optimizer has accumulated, grown by the same table.

Growing is p' = s · pad(p), and the grown model computes the same function of p, so that
∂L/∂p = s · ∂L'/∂p' at the old coordinates: the gradients that the grown model would have
seen there are g / s. A moment that is linear in them (AdamW's first, the momentum of SGD
and of Muon) is divided by s, one that is quadratic (AdamW's second) by s². New
coordinates get fresh moments, which are zeros; parameters of new layers get none, and
start at step 0.

Where the next step is the old one. AdamW moves p' as s times its move of p if, for that
parameter, lr' = s · lr, ε' = ε / s and weight decay' = weight decay / s; SGD if lr' = s² ·
lr and weight decay' = weight decay / s². With unchanged hyperparameters that is where
s = 1. Clipping by a global norm, decay of a norm that has an offset, and Muon's step,
which is one of whole matrices, new coordinates too, are others in the grown model.

A new token has a logit, and so a share in the softmax of a training loss, where no bias
can carry −2¹⁵ (`growproof.vocabulary`): the gradients are those of the old loss only if
new tokens are masked in it.

Not to be had. Centring (and averaging) removes from a writer a direction in which the old
function does not change and the grown one does: what the gradients along it would have
been, no moment says. A repeated key/value head has the sum of its copies' gradients, not
each one's.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from growproof.decoder import GrowthError
from growproof.families import family_of
from growproof.growth import Growth, Policies, layers_before
from growproof.models import config_of, model_class, plan_model
from growproof.padding import refuse_overflow
from growproof.scatter import place
from growproof.table import Row, layer_of, pairs, parameters

# key of a torch optimizer's state → the power of the gradients in it
POWERS = {
    "exp_avg": 1, "momentum_buffer": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2,
}  # fmt: skip
Names = Sequence[Sequence[str]]  # of the parameters, group by group


def grow_optimizer(
    state: Mapping[str, Any],
    config: Any,
    target: Mapping[str, int],
    policies: Policies | None = None,
    *,
    names: Names | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The state dict of an optimizer, for the model that `growproof.grow` makes.

    state: `optimizer.state_dict()` of torch's AdamW, Adam, SGD or Muon over the
    parameters of a model of `config`, numbered, or by name as
    `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict` has it; the result
    is so too. target, policies, options: as for `grow`. names: of
    the parameters, group by group, where the state has no param_names and the groups are
    neither all in order nor matrices and vectors apart (as transformers' Trainer has
    them) nor matrices alone (as Muon has them).
    The result is for an optimizer over the same groups of the grown model's parameters,
    each in the order of `named_parameters`.
    Raises GrowthError for a growth whose moments cannot be derived, and for a state that
    is not known.
    """
    growth = plan_model(config, target, policies or Policies(**options))
    refuse(growth)
    refuse_unknown(state)
    model, bigger = blank_model(config), blank_model(config_of(config, growth))
    groups = [list(group) for group in names or named(state, model)]
    homes = {name: i for i, group in enumerate(groups) for name in group}
    unknown = sorted(homes.keys() - dict(model.named_parameters()).keys())
    if unknown:
        raise GrowthError(f"{unknown[:3]} are no parameters of the model")
    group_of = grown_groups(homes, model, bigger, growth)
    after: list[list[str]] = [[] for _ in groups]
    for name, _ in bigger.named_parameters():
        if name in group_of:
            after[group_of[name]].append(name)
    return assembled(state, after, moments_of(state, groups, config, growth))


def grown_groups(
    homes: Mapping[str, int], model: Any, bigger: Any, growth: Growth
) -> dict[str, int]:
    """Grown parameter → group: that of the old one, or of one like it in the layer before.

    What no group had, none has.
    """
    family, lies = family_of(model.config), layers_before(growth)
    now, then = (
        family.index(dict(m.named_parameters()), d)
        for m, d in ((bigger, growth.new), (model, growth.old))
    )
    found: dict[str, int] = {}
    for new, was, _ in pairs(growth, parameters(growth.old, growth)):
        if was is None:
            layer = layer_of(new)
            assert layer is not None  # all that is new is a layer's
            was = new.replace(f"layers.{layer}.", f"layers.{lies[layer]}.", 1)
        group = homes.get(then[was].pieces[0])
        found |= {} if group is None else dict.fromkeys(now[new].pieces, group)
    return found


def refuse(growth: Growth) -> None:
    """Raise GrowthError where moments of the grown model do not follow from the old."""
    old, policies = growth.old, growth.policies
    table = parameters(old, growth)
    if any(row.centre or row.averaged for row in table.values()):
        raise GrowthError(
            "a mean that is removed from, or put into, the weights leaves a direction "
            "whose gradients the old model never had: its moments are not known. Leave "
            "hidden_size (with q/k norms: head_dim) alone, choose norm='masked', or "
            "begin with a fresh optimizer"
        )
    if policies.norm == "scaled" and old.norm == "layer" and growth.wider > 1:
        raise GrowthError(
            "norm='scaled' only approximates a LayerNorm, and so would the moments: "
            "choose norm='masked', or begin with a fresh optimizer"
        )
    if growth.copies > 1:
        raise GrowthError(
            "a repeated key/value head has the sum of its copies' gradients, and not "
            "each one's: grow the key/value heads without repeating them, or begin with "
            "a fresh optimizer"
        )


def refuse_unknown(state: Mapping[str, Any]) -> None:
    """Raise GrowthError for what an optimizer keeps that no power of gradients is."""
    kept = {key for entry in state["state"].values() for key in entry}
    if unknown := sorted(kept - {*POWERS, "step"}):
        raise GrowthError(
            f"what an optimizer keeps as {unknown[0]!r} is not known: only "
            f"{', '.join(POWERS)} grow by the table"
        )


def blank_model(config: Any) -> Any:
    """The model of a config on the meta device, for the order of its parameters."""
    with torch.device("meta"):
        model = model_class(config)(config)
    if config.tie_word_embeddings:
        model.tie_weights()
    return model


def named(state: Mapping[str, Any], model: nn.Module) -> Names:
    """The names of the parameters, group by group: as stored, or by the sizes alone."""
    groups: list[dict[str, Any]] = state["param_groups"]
    if is_by_name(state):
        return [group["params"] for group in groups]
    if all("param_names" in group for group in groups):
        return [group["param_names"] for group in groups]
    sizes = {name: p.shape for name, p in model.named_parameters()}
    matrices = [name for name, size in sizes.items() if len(size) > 1]
    vectors = [name for name, size in sizes.items() if len(size) < 2]
    for guess in (
        [[*sizes]], [matrices, vectors], [vectors, matrices], [matrices],
    ):  # fmt: skip
        if fits(state, guess, sizes):
            return guess
    raise GrowthError(
        f"the optimizer has groups of {[len(g['params']) for g in groups]} parameters "
        "without param_names, and they are neither all of the model's in order nor its "
        "matrices and its vectors apart, nor its matrices alone: make the optimizer over "
        "model.named_parameters(), whose state has their names, or give them to "
        "growproof.grow_optimizer(names=...)"
    )


def is_by_name(state: Mapping[str, Any]) -> bool:
    """Whether parameters are known by names, not numbers: torch.distributed.checkpoint."""
    return any(isinstance(p, str) for g in state["param_groups"] for p in g["params"])


def fits(state: Mapping[str, Any], names: Names, sizes: Mapping[str, Any]) -> bool:
    """True where every moment has the size of the parameter of that name."""
    indices = [group["params"] for group in state["param_groups"]]
    if [len(group) for group in indices] != [len(group) for group in names]:
        return False
    return all(
        x.shape in (sizes[name], torch.Size())
        for group, own in zip(indices, names, strict=True)
        for i, name in zip(group, own, strict=True)
        for x in state["state"].get(i, {}).values()
        if isinstance(x, Tensor)
    )


def moments_of(
    state: Mapping[str, Any], names: Names, config: Any, growth: Growth
) -> dict[str, dict[str, Any]]:
    """Grown parameter → its state; none for what is new."""
    index = {
        name: state["state"][i]
        for group, own in zip(state["param_groups"], names, strict=True)
        for i, name in zip(group["params"], own, strict=True)
        if i in state["state"]
    }
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(key for entry in index.values() for key in entry):
        old = {
            n: entry[key] for n, entry in index.items() if entry.get(key) is not None
        }
        if key == "step":
            grown = carried(old, config, growth)
        else:
            grown = grow_moment(old, config, growth, POWERS[key])
        for name, x in grown.items():
            found.setdefault(name, {})[key] = x
    return found


def grow_moment(
    moments: Mapping[str, Tensor], config: Any, growth: Growth, power: int
) -> dict[str, Tensor]:
    """Moments by stored names of the old model → by those of the grown one: s^−power."""
    family = family_of(config)
    old = family.read(moments, growth.old)
    grown: dict[str, Tensor] = {}
    for name, was, row in pairs(growth, parameters(growth.old, growth)):
        if was in old:
            grown[name] = place(old[was], moment_row(row, power), growth)
            refuse_overflow(f"the moment of {name}", old[was], grown[name])
    found: dict[str, Tensor] = {}
    for template, stored, layer in family.in_order(growth.new, disk=False):
        parts = [part.format(layer=layer) for part in stored.parts]
        if all(part in grown for part in parts):
            whole = stored.join([grown[part] for part in parts], growth.new)
            found |= family.pieces(template, layer, whole, growth.new)
    return found


def moment_row(row: Row, power: int) -> Row:
    """How a moment grows that has this power of the gradients of a parameter."""
    return replace(
        row, scale=row.scale**-power, centre=None, averaged=False, offset=0.0
    )


def carried(values: Mapping[str, Any], config: Any, growth: Growth) -> dict[str, Any]:
    """One number for each parameter, by the names of the grown model: its step.

    Each its own copy, for optimizers count in place.
    """
    family = family_of(config)
    bigger = dict(blank_model(config_of(config, growth)).named_parameters())
    after, before = family.index(bigger, growth.new), family.index(values, growth.old)
    return {
        name: copy.deepcopy(values[before[was].pieces[0]])
        for new, was, _ in pairs(growth, parameters(growth.old, growth))
        if was in before
        for name in after[new].pieces
    }


def assembled(
    state: Mapping[str, Any],
    after: Names,
    moments: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """A state dict in torch's form, parameters numbered group by group, or by name."""
    numbers: dict[str, int | str] = {}
    by_name = is_by_name(state)
    groups: list[dict[str, Any]] = []
    for group, own in zip(state["param_groups"], after, strict=True):
        first = len(numbers)
        numbers |= {n: n if by_name else first + i for i, n in enumerate(own)}
        fresh = {**group, "params": [numbers[name] for name in own]}
        groups.append(
            fresh | ({"param_names": [*own]} if "param_names" in group else {})
        )
    entries = {numbers[name]: dict(entry) for name, entry in moments.items()}
    return {"state": entries, "param_groups": groups}


def load(file: Path) -> dict[str, Any]:
    """An optimizer's state dict from a file, of tensors and plain values alone."""
    if not file.is_file():
        raise GrowthError(f"there is no optimizer's file {file}")
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise GrowthError(
            f"{file} is no torch file of tensors and plain values alone "
            f"({type(error).__name__}), and anything else could run code: save "
            "optimizer.state_dict() with torch.save"
        ) from None
    if not isinstance(found, dict) or not {"state", "param_groups"} <= found.keys():
        raise GrowthError(f"{file} holds no optimizer's state dict")
    return dict(found)  # pyright: ignore[reportUnknownArgumentType]
