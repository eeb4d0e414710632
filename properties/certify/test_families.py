"""Right and wrong growths by hand, of any causal LM that transformers has."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from .certificates import certify
from .command import FAMILIES, config_of

MLP = {
    "gpt2": "n_inner",
    "qwen3_moe": "moe_intermediate_size",
}  # else intermediate_size


def config_grown(model: Any, target: Mapping[str, int]) -> Any:
    config = copy.deepcopy(model.config)
    for name, size in target.items():
        setattr(config, name, size)
    if getattr(config, "layer_types", None):
        config.layer_types += config.layer_types[: config.num_hidden_layers][
            : config.num_hidden_layers - len(config.layer_types)
        ]
    if hasattr(config, "no_rope_layers"):
        config.no_rope_layers = [*config.no_rope_layers, 1, 1][
            : config.num_hidden_layers
        ]
    return config


def grown(model: Any, target: Mapping[str, int], *, fused: bool = True) -> Any:
    """Old entries first along each axis, each half of a fused matrix; zeros elsewhere."""
    new = type(model)(config_grown(model, target)).to(model.dtype).train(model.training)
    old = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in new.named_parameters():
            p.zero_()
            if name not in old:
                continue
            axis = 1 if p.dim() == 3 else 0
            parts = 2 if "gate_up" in name and fused else 1
            pairs = zip(p.chunk(parts, axis), old[name].chunk(parts, axis), strict=True)
            for a, b in pairs:
                a[tuple(slice(n) for n in b.shape)] = b
    return new


def wide(family: str) -> dict[str, int]:
    return {MLP.get(family, "intermediate_size"): 13 if family != "gpt2" else 131}


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_neurons_and_silent_layers_are_certified(family: str) -> None:
    """One model with both: any family, no table of names."""
    config = config_of(family, FAMILIES[family])
    target = wide(family) | {"num_hidden_layers": 3}
    found = certify(grown, config, target)
    assert found.verdict == "certified", found.reason
    assert found.error is not None
    assert found.error < -100


def copied_layer(model: Any, target: Mapping[str, int]) -> Any:
    """The new layer is a copy of the last, and speaks."""
    new = grown(model, target)
    state = new.state_dict()
    for name in state:
        if ".2." in name:
            state[name].copy_(state[name.replace(".2.", ".1.", 1)])
    return new


def other_eps(model: Any, target: Mapping[str, int]) -> Any:
    """Every norm's eps is twice what it was, in the live model alone."""
    new, count = grown(model, target), 0
    for module in new.modules():
        for name in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 2 * getattr(module, name))
                count += 1
    assert count
    return new


def lost_neuron(model: Any, target: Mapping[str, int]) -> Any:
    """One old entry of one writer is zero."""
    new = grown(model, target)
    writers = ("down_proj", "fc2", "c_proj", "4h_to_h")
    names = [
        n
        for n, p in new.named_parameters()
        if any(w in n for w in writers) and p.dim() > 1
    ]
    with torch.no_grad():
        dict(new.named_parameters())[names[-1]].view(-1)[0] = 0
    return new


def fused_end(model: Any, target: Mapping[str, int]) -> Any:
    """Zeros at the end of gate and up stacked, instead of after each."""
    return grown(model, target, fused=False)


FUSED = ("phi3", "mixtral", "qwen3_moe")
WRONG = [
    *((family, copied_layer, {"num_hidden_layers": 3}) for family in FAMILIES),
    *(
        (family, other_eps, wide(family))
        for family in ("gemma3_text", "gpt_neox", "qwen3")
    ),
    *((family, lost_neuron, wide(family)) for family in FAMILIES),
    *((family, fused_end, wide(family)) for family in FUSED),
]


@pytest.mark.parametrize(
    ("family", "grower", "target"), WRONG, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_wrong_growths_are_refused(
    family: str, grower: Any, target: dict[str, int]
) -> None:
    found = certify(grower, config_of(family, FAMILIES[family]), target)
    assert found.verdict == "refused", found.reason
