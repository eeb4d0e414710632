"""Training state grows by the same table: moments, and where the next step is the same."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof import GrowthError, Policies, forward, grow, grow_optimizer
from growproof.checkpoints import OPTIMIZER
from growproof.cli import main
from growproof.families import family_of
from growproof.models import config_of, decoder_of, plan_model
from growproof.optimizer import blank_model
from growproof.padding import grow_state
from growproof.scatter import take
from growproof.table import pairs, parameters
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, StableLmConfig

from properties.laws.models import loud

from .small import llama, saved

SIZES: dict[str, Any] = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 20,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
CONFIG = LlamaConfig(**SIZES, head_dim=8)
TARGET = {
    "hidden_size": 24, "head_dim": 16, "num_attention_heads": 4,
    "intermediate_size": 28, "num_hidden_layers": 3,
}  # fmt: skip
GROWTH = plan_model(CONFIG, TARGET)
FAMILY = family_of(CONFIG)
TOKENS = torch.arange(30).reshape(2, 15) * 7 % 23
State = Mapping[str, Tensor]


def gradients(d: Any, state: State) -> dict[str, Tensor]:
    """∂ loss / ∂ parameter by stored names, float64, for weights by canonical names."""
    leaves = {name: x.clone().requires_grad_() for name, x in state.items()}
    logits = forward(d, leaves, TOKENS)["logits"][:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())
    found = torch.autograd.grad(loss, list(leaves.values()))
    return dict(FAMILY.write(dict(zip(leaves, found, strict=True)), d))


def parameters_of(config: Any, state: State) -> dict[str, nn.Parameter]:
    """Fresh parameters by stored names, in the order of the model's."""
    stored = dict(FAMILY.write(state, decoder_of(config)))
    order = [name for name, _ in blank_model(config).named_parameters()]
    return {name: nn.Parameter(stored[name].clone()) for name in order}


def accumulated(make: Any, config: Any, history: Iterable[State]) -> dict[str, Any]:
    """What an optimizer has accumulated that saw the gradients at these weights."""
    d, kept = decoder_of(config), None
    for state in history:
        own = parameters_of(config, state)
        optimizer = make(own.values(), lr=0.0)
        if kept:
            optimizer.load_state_dict(kept)
        step(optimizer, own, gradients(d, state))
        kept = optimizer.state_dict()
    assert kept
    return kept


def step(optimizer: Any, own: Mapping[str, nn.Parameter], grads: State) -> None:
    for name, p in own.items():
        p.grad = grads[name]
    optimizer.step()


def at_old(state: State) -> dict[str, Tensor]:
    """The entries of the grown model's tensors at the old coordinates, as they are."""
    grown = FAMILY.read(dict(state), GROWTH.new)
    return {
        was: take(grown[new], replace(row, scale=1.0), GROWTH)
        for new, was, row in pairs(GROWTH, parameters(GROWTH.old, GROWTH))
        if was
    }


def by_name(state: Mapping[str, Any], config: Any, key: str) -> dict[str, Tensor]:
    names = [name for name, _ in blank_model(config).named_parameters()]
    return {names[i]: entry[key] for i, entry in state["state"].items()}


def adamw(parameters: Any, **options: Any) -> Any:
    return torch.optim.AdamW(parameters, amsgrad=True, **options)


def sgd(parameters: Any, **options: Any) -> Any:
    return torch.optim.SGD(parameters, momentum=0.9, **options)


HISTORY = [loud(GROWTH.old, seed) for seed in range(3)]
NEW_CONFIG = config_of(CONFIG, GROWTH)


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (adamw, ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
        (sgd, ["momentum_buffer"]),
    ],
)
def test_grown_moments_are_what_the_grown_model_would_have(
    make: Any, keys: list[str]
) -> None:
    """m' = m / s and v' = v / s² at the old coordinates, whatever the history was."""
    grown = grow_optimizer(accumulated(make, CONFIG, HISTORY), CONFIG, TARGET)
    states = [grow_state(state, GROWTH) for state in HISTORY]
    would = accumulated(make, NEW_CONFIG, states)
    old_layers = {i for i, entry in grown["state"].items() if entry}
    checked = 0
    for key in keys:
        names = [name for name, _ in blank_model(NEW_CONFIG).named_parameters()]
        zeros = {
            n: torch.zeros_like(x) for n, x in by_name(would, NEW_CONFIG, key).items()
        }
        own = zeros | by_name(grown, NEW_CONFIG, key)
        found, expected = at_old(own), at_old(by_name(would, NEW_CONFIG, key))
        for name, x in expected.items():
            torch.testing.assert_close(found[name], x, rtol=1e-9, atol=1e-14, msg=name)
            checked += bool(x.any())
        assert sum(int((x != 0).sum()) for x in own.values()) <= sum(
            x.numel() for x in HISTORY[0].values()
        )  # new coordinates have fresh moments
        assert {names[i] for i in grown["state"]} == {
            name for name in names if "layers.2." not in name
        }
    assert checked > 10 * len(keys)
    assert len(old_layers) == len(HISTORY[0])


def scaled_groups(power: int) -> list[dict[str, Any]]:
    """A group for each parameter of the grown model, with the hyperparameters of s.

    power: 1 for AdamW, whose step does not know how large gradients are; 2 for SGD.
    """
    scale = {
        n: row.scale for n, _, row in pairs(GROWTH, parameters(GROWTH.old, GROWTH))
    }
    stored = FAMILY.index(
        [n for n, _ in blank_model(NEW_CONFIG).named_parameters()], GROWTH.new
    )
    s = {home.pieces[0]: scale[name] for name, home in stored.items()}
    return [
        {"name": n, "lr": 1e-2 * s[n] ** power, "weight_decay": 0.1 / s[n] ** power}
        | ({"eps": 1e-3 / s[n]} if power == 1 else {})
        for n, _ in blank_model(NEW_CONFIG).named_parameters()
    ]


@pytest.mark.parametrize(("make", "power"), [(adamw, 1), (sgd, 2)])
@pytest.mark.parametrize("adjusted", [True, False])
def test_one_resumed_step(make: Any, power: int, adjusted: bool) -> None:
    """p' moves as s · p does: with lr, ε and decay adjusted; unadjusted where s = 1."""
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
    options |= {"eps": 1e-3} if power == 1 else {}
    kept = accumulated(make, CONFIG, HISTORY)
    state, grown_state = HISTORY[-1], grow_state(HISTORY[-1], GROWTH)
    own, bigger = parameters_of(CONFIG, state), parameters_of(NEW_CONFIG, grown_state)
    old = make(own.values(), **options)
    resume(old, kept)
    groups = scaled_groups(power)
    new = make(
        [
            {"params": [bigger[g["name"]]], **(g if adjusted else options)}
            for g in groups
        ],
        **options,
    )
    resume(new, grow_optimizer(kept, CONFIG, TARGET))
    step(old, own, gradients(GROWTH.old, state))
    step(new, bigger, gradients(GROWTH.new, grown_state))
    moved = at_old({name: p.detach() for name, p in bigger.items()})
    expected = FAMILY.read({n: p.detach() for n, p in own.items()}, GROWTH.old)
    scales = {
        was: row.scale for _, was, row in pairs(GROWTH, parameters(GROWTH.old, GROWTH))
    }
    for name, x in expected.items():
        same = torch.allclose(moved[name], scales[name] * x, rtol=1e-9, atol=1e-12)
        assert same == (adjusted or scales[name] == 1), name
    assert {scales[name] == 1 for name in expected} == {True, False}


def resume(optimizer: Any, kept: Mapping[str, Any]) -> None:
    """Take the moments, and leave the optimizer its own hyperparameters."""
    own = optimizer.state_dict()
    optimizer.load_state_dict(
        {"state": kept["state"], "param_groups": own["param_groups"]}
    )


def test_groups_are_kept() -> None:
    """Matrices before vectors, as the Trainer has them; or by their names."""
    own = parameters_of(CONFIG, HISTORY[0])
    split: list[dict[str, Any]] = [
        {"params": [(n, p) for n, p in own.items() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [(n, p) for n, p in own.items() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(split)
    step(optimizer, own, gradients(GROWTH.old, HISTORY[0]))
    state = optimizer.state_dict()
    by_names = grow_optimizer(state, CONFIG, TARGET)
    for group in state["param_groups"]:
        del group["param_names"]
    by_sizes = grow_optimizer(state, CONFIG, TARGET)
    for grown in (by_names, by_sizes):
        counts = [len(group["params"]) for group in grown["param_groups"]]
        assert counts == [2 + 3 * 7, 1 + 3 * 2]
        assert [g["weight_decay"] for g in grown["param_groups"]] == [0.1, 0.0]
    assert (
        "model.layers.2.mlp.up_proj.weight"
        in by_names["param_groups"][0]["param_names"]
    )
    matrices, vectors = state["param_groups"]
    state["param_groups"] = [vectors, matrices]
    turned = grow_optimizer(state, CONFIG, TARGET)
    assert [len(g["params"]) for g in turned["param_groups"]] == counts[::-1]
    some = {k: v for k, v in state["state"].items() if k in matrices["params"]}
    alone = grow_optimizer(
        {"state": some, "param_groups": [matrices]}, CONFIG, TARGET
    )  # as Muon has them
    assert [len(g["params"]) for g in alone["param_groups"]] == counts[:1]
    name = by_names["param_groups"][0]["param_names"][3]
    at = by_names["param_groups"][0]["params"][3]
    for grown in (by_sizes, alone):
        found = grown["state"][at]["exp_avg"]
        assert torch.equal(found, by_names["state"][at]["exp_avg"]), name
    state["param_groups"] = [matrices | {"params": matrices["params"][1:]}]
    with pytest.raises(GrowthError, match=r"over model\.named_parameters"):
        grow_optimizer(state, CONFIG, TARGET)


def test_a_layer_keeps_its_group_and_what_had_none_has_none() -> None:
    """Rates by layer, layers put between; and an optimizer of the second layer alone."""
    own = parameters_of(CONFIG, HISTORY[0])
    layers = [
        {n: p for n, p in own.items() if f"layers.{i}." in n}
        for i in range(CONFIG.num_hidden_layers)
    ]
    rates = [10.0 ** -(3 + i) for i in range(len(layers))]
    groups = [
        {"params": [*layer.items()], "lr": rate}
        for layer, rate in zip(layers, rates, strict=True)
    ]
    deep = {"num_hidden_layers": 2 * len(layers)}
    for chosen in (groups, groups[1:2]):
        state = torch.optim.AdamW(chosen).state_dict()
        grown = grow_optimizer(
            state, CONFIG, deep, policies=Policies(depth="interleave")
        )
        for group, was in zip(grown["param_groups"], chosen, strict=True):
            i = rates.index(was["lr"])
            named = {int(n.split(".")[2]) for n in group["param_names"]}
            assert group["lr"] == was["lr"]
            # old layer i is layer 2i + 1 now; a new one has the rate of the one before it
            assert named <= {2 * i + 1, 2 * i + 2} | ({0} if i == 0 else set())
            assert len(group["params"]) % len(was["params"]) == 0


HEADS: dict[str, Any] = SIZES | {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
REFUSED: dict[str, tuple[Any, dict[str, int], Policies, str]] = {
    "centred": (StableLmConfig(**SIZES), {"hidden_size": 32}, Policies(), "a mean that"),
    "averaged": (
        StableLmConfig(**SIZES, tie_word_embeddings=True), {"hidden_size": 32},
        Policies(), "a mean that",
    ),
    "approximate": (
        StableLmConfig(**SIZES), {"hidden_size": 32}, Policies(norm="scaled"),
        "only approximates",
    ),
    "repeated": (
        LlamaConfig(**HEADS), {"num_key_value_heads": 2}, Policies(), "sum of its copies",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_derived_is_refused(case: str) -> None:
    config, target, policies, message = REFUSED[case]
    with pytest.raises(GrowthError, match=message):
        grow_optimizer({"state": {}, "param_groups": []}, config, target, policies)


def test_a_sum_has_the_gradient_of_all_copies() -> None:
    """Why repeated heads are refused: g is the sum of the copies' gradients, not any."""
    config = LlamaConfig(**HEADS)
    growth = plan_model(config, {"num_key_value_heads": 2})
    state = loud(growth.old, 0)
    name = "model.layers.0.self_attn.v_proj.weight"
    g = gradients(growth.old, state)[name]
    copies = gradients(growth.new, grow_state(state, growth))[name].unflatten(
        0, (2, -1)
    )
    torch.testing.assert_close(copies.sum(0), g, rtol=1e-9, atol=1e-14)
    assert not torch.allclose(copies[0], g)


def test_unknown_states_are_refused() -> None:
    kept = accumulated(adamw, CONFIG, HISTORY[:1])
    kept["state"][0]["exp_avg_diff"] = kept["state"][0]["exp_avg"]
    with pytest.raises(GrowthError, match="exp_avg_diff"):
        grow_optimizer(kept, CONFIG, TARGET)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """growproof grow --optimizer: an optimizer.pt that the grown model's AdamW takes."""
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters())
    model(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    source, grown = saved(model, tmp_path / "source"), tmp_path / "grown"
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    words = [
        "grow",
        str(source),
        str(grown),
        "--hidden-size=24",
        "--num-hidden-layers=3",
    ]
    assert main([*words, "--optimizer", str(tmp_path / "state.pt")]) == 0
    bigger = AutoModelForCausalLM.from_pretrained(grown)
    again = torch.optim.AdamW(bigger.parameters())
    again.load_state_dict(torch.load(grown / OPTIMIZER, weights_only=True))
    bigger(TOKENS, labels=TOKENS).loss.backward()
    again.step()
    torch.save(AutoConfig, tmp_path / "code.pt")  # a pickle that names a class
    words[2] = str(tmp_path / "other")
    assert main([*words, "--optimizer", str(tmp_path / "code.pt")]) == 4
    assert "could run code" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "other").exists()


def test_a_state_by_names_is_read_by_them() -> None:
    """As torch.distributed.checkpoint has it: in another order than the model's."""
    model = llama(num_key_value_heads=2)
    named = [*model.named_parameters()]
    own = sorted(named, key=lambda entry: entry[0])
    optimizer = torch.optim.AdamW([p for _, p in own], lr=1e-2)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    state: Any = get_optimizer_state_dict(model, optimizer)
    found = grow_optimizer(state, model.config, {"intermediate_size": 28})
    for name, p in named:
        old = state["state"][name]["exp_avg"]
        new = found["state"][name]["exp_avg"]
        assert torch.equal(new[tuple(map(slice, p.shape))], old), name
    bigger = grow(model, {"intermediate_size": 28})
    resumed = torch.optim.AdamW(bigger.parameters(), lr=1.0)
    set_optimizer_state_dict(bigger, resumed, optim_state_dict=found)
    assert resumed.param_groups[0]["lr"] == 1e-2
