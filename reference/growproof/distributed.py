"""Models that are sharded over ranks: grown parameter by parameter, and left sharded.

Whatever the mesh and the placements (FSDP2, tensor parallel), a parameter is a DTensor.
One stored tensor at a time is gathered, grown on every rank alike, and each rank keeps
its own shard of the result: no rank ever holds more than that one tensor, before and
after.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from growproof.building import fill_buffers
from growproof.decoder import GrowthError
from growproof.families import family_of
from growproof.growth import Growth, Policies
from growproof.models import config_of, decoder_of, plan_model, suppress
from growproof.padding import grown_parameter
from growproof.shards import Lazy
from growproof.table import grown_rows


def grown_config(
    config: Any,
    target: Mapping[str, int],
    policies: Policies | None = None,
    **options: Any,
) -> Any:
    """The config of the model that `grow` would make, to build and to shard one of."""
    return config_of(
        config, plan_model(config, target, policies or Policies(**options))
    )


def grow_into(
    bigger: Any,
    model: Any,
    target: Mapping[str, int],
    policies: Policies | None = None,
    **options: Any,
) -> Any:
    """Fill `bigger` with what `growproof.grow(model, target)` would hold; returns it.

    model: a causal LM, sharded or not. bigger: one of `grown_config`, sharded as it is
    wanted, on the device of `model` or on meta (as `fully_shard` leaves it where nothing
    was to be initialised). Called by every rank of the mesh alike.
    Raises GrowthError as `grow` does, and where `bigger` is of other sizes.
    """
    growth = plan_model(model.config, target, policies or Policies(**options))
    if decoder_of(bigger.config) != growth.new:
        raise GrowthError(
            "the model to fill is not of the sizes that growing leads to: build it from "
            "growproof.grown_config with the same target and policies"
        )
    if any(p.is_meta for p in bigger.parameters()):
        fill_buffers(bigger)
        filled = [(module, dict(module._buffers)) for module in bigger.modules()]
        bigger.to_empty(device=next(model.parameters()).device)
        for module, buffers in filled:
            module._buffers.update(buffers)
    homes = dict(bigger.named_parameters())
    for name, x in grown_tensors(model, growth):
        put(homes.pop(name), x)
    if homes:
        raise GrowthError(f"nothing was grown for {sorted(homes)[:3]}")
    return suppress(bigger, growth)


def grown_tensors(model: Any, growth: Growth) -> Iterator[tuple[str, Tensor]]:
    """(stored name, whole tensor) of the grown model, made one after the other."""
    family = family_of(model.config)
    shards = dict(model.named_parameters())
    homes = family.index(shards, growth.old)

    def gather(name: str) -> Tensor:
        return homes[name].load(lambda stored: whole(shards[stored]), growth.old)

    state = Lazy(homes.keys(), gather)
    rows = grown_rows(growth)
    grown = Lazy(
        rows.keys(), lambda name: grown_parameter(name, *rows[name], state, growth)
    )
    yield from family.write(grown, growth.new)


def whole(p: Tensor) -> Tensor:
    """A parameter, gathered from all ranks where it is sharded."""
    p = p.detach()
    return p.full_tensor() if isinstance(p, DTensor) else p


def put(p: Tensor, x: Tensor) -> None:
    """Store in p what is this rank's share of x, which every rank has."""
    with torch.no_grad():
        if isinstance(p, DTensor):
            whole: Any = distribute_tensor(
                x, p.device_mesh, p.placements, src_data_rank=None
            )
            mine: Tensor = cast(Any, p).detach().to_local()
            mine.copy_(whole.to_local())
        else:
            p.copy_(x)
