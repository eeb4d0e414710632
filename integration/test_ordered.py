"""Stock classes of transformers under `growproof.ordered()`: the same function, exactly.

Native float64 loses 1e-7 of the logits to float32 islands (softmax, norms, rotary
angles) and regroups its sums by size; ordered arithmetic does neither.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import growproof
import pytest
import torch
from growproof import arithmetic, ordered
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
EIGHT = {"head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "stablelm": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": EIGHT,
    "gemma": EIGHT,
    "gemma2": EIGHT,
    "gemma3_text": EIGHT,
    "phi": {},
    "phi3": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "gpt_neox": {},
    "gpt2": {},
    "starcoder2": {},
    "granite": {},
    "smollm3": {},
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS | EIGHT | {"moe_intermediate_size": 24},
    "arcee": {},
    "seed_oss": EIGHT,
    "ernie4_5": EIGHT,
    "glm": EIGHT,
    "cohere": {},
    "falcon": {},
    "opt": {},
    "bloom": {},
    "glm4": EIGHT,
    "helium": EIGHT,
    "gpt_oss": EXPERTS | EIGHT,
}
WITHOUT_SDPA = ("gemma2", "bloom", "gpt_oss")
CASES = [
    pytest.param(family, implementation, id=f"{family}-{implementation}")
    for family in FAMILIES
    for implementation in ("eager", "sdpa")
    if implementation == "eager" or family not in WITHOUT_SDPA
]


def loud(model: Any, seed: int = 0) -> Any:
    """Weights of order one, norms and biases not trivial, in float64."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        x = torch.randn(p.shape, generator=g, dtype=torch.float64)
        if "norm" in name and name.endswith("weight"):
            x = 1 + 0.3 * x
        elif "embed" in name or "wte" in name:
            x = x + 0.5
        else:
            x = 1.5 * x / p.shape[-1] ** 0.5
        p.data = x
    return model.double().eval()


def tiny(family: str, implementation: str = "eager", **sizes: Any) -> Any:
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES[family] | sizes))
    config._attn_implementation = implementation
    return loud(AutoModelForCausalLM.from_config(config))


def tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(1))


def native(model: Any) -> torch.Tensor:
    """The logits as torch computes them; grouped experts know no float64."""
    if hasattr(model.config, "num_experts_per_tok"):
        model = copy.deepcopy(model).float()
    with torch.no_grad():
        return model(tokens()).logits


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((a - b).abs().max() / a.abs().max())


def exact(model: Any) -> torch.Tensor:
    """The logits in ordered arithmetic."""
    with torch.no_grad(), ordered(model):
        return model(tokens()).logits


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_every_family_runs_and_is_the_same_function(family, implementation):
    """Native float64 differs by its float32 islands, and by no more."""
    model = tiny(family, implementation)
    logits = exact(model)
    assert logits.dtype == torch.float64
    assert difference(native(model), logits) < 1e-5


# Where a family says how many MLP units it has; in Bloom it is always 4 D.
MLP_SIZE = {
    "falcon": "ffn_hidden_size",
    "gpt2": "n_inner",
    "opt": "ffn_dim",
    "qwen3_moe": "moe_intermediate_size",
    "bloom": None,
}
WRITERS = ("down_proj", "fc2", "4h_to_h", "mlp.c_proj")


def units(name: str, family: str, old: int, new: int) -> torch.Tensor:
    """Where the old MLP units lie among the new ones, zeros at both ends and between."""
    places = torch.linspace(1, new - 2, old).round().long()
    if "gate_up" not in name:
        return places
    if family == "gpt_oss":  # a gate beside each up
        return torch.stack((2 * places, 2 * places + 1), 1).flatten()
    return torch.cat((places, new + places))


def widened(model: Any, more: int = 8) -> tuple[Any, dict[str, tuple[Any, ...]]]:
    """The model with more MLP units, loud ones that write nothing, and where the old lie.

    In the dtype of the model, on stock code; every other parameter is kept.
    """
    family = model.config.model_type
    name = MLP_SIZE.get(family, "intermediate_size")
    assert name is not None
    old = getattr(model.config, name) or 4 * model.config.hidden_size
    config = copy.deepcopy(model.config)
    setattr(config, name, old + more)
    grown = loud(AutoModelForCausalLM.from_config(config), seed=1)
    where: dict[str, tuple[Any, ...]] = {}
    for (key, new), p in zip(grown.named_parameters(), model.parameters(), strict=True):
        where[key] = tuple(
            slice(None) if n == m else units(key, family, old, old + more)
            for n, m in zip(p.shape, new.shape, strict=True)
        )
        if p.shape == new.shape or any(writer in key for writer in WRITERS):
            new.data.zero_()
        new.data[where[key]] = p.data
    return grown, where


PADDED = [case for case in CASES if MLP_SIZE.get(str(case.values[0]), "") is not None]


@pytest.mark.parametrize(("family", "implementation"), PADDED)
def test_a_padded_mlp_is_bitwise_equal(family, implementation):
    """Logits and the gradient of every old entry, to the last bit, on stock code."""
    model = tiny(family, implementation)
    grown, where = widened(model)
    assert torch.equal(exact(model), exact(grown))
    old, new = gradients(model), gradients(grown)
    assert old.keys() == new.keys()
    assert all(torch.equal(g, new[key][where[key]]) for key, g in old.items())


def test_native_arithmetic_is_not_bitwise_equal():
    """BLAS regroups its sums, so that the test above needs `ordered`."""
    models = [tiny(family) for family in FAMILIES if family != "bloom"]
    assert not all(torch.equal(native(m), native(widened(m)[0])) for m in models)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """The gradient of the loss by every parameter that has one, in ordered arithmetic."""
    model.zero_grad()
    with ordered(model):
        model(tokens(), labels=tokens()).loss.backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


# Natively, products grouped by experts know no float64.
DENSE = [case for case in CASES if "num_experts" not in FAMILIES[str(case.values[0])]]


@pytest.mark.parametrize(("family", "implementation"), DENSE)
def test_gradients_are_those_of_the_same_function(family, implementation):
    """Native ones differ by the float32 islands, relative to the largest of all."""
    model = tiny(family, implementation)
    found = gradients(model)
    model.zero_grad()
    model(tokens(), labels=tokens()).loss.backward()
    wanted = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    largest = max(g.abs().max() for g in wanted.values())
    assert all(
        (g - found[key]).abs().max() < 1e-5 * largest for key, g in wanted.items()
    )


# A power of four scales weights by powers of two, which rounds nothing.
FOURS = {
    "hidden": {"hidden_size": 128, "num_attention_heads": 16, "num_key_value_heads": 8},
    "mlp": {"intermediate_size": 43},
    "layers": {"num_hidden_layers": 3},
}


@pytest.mark.parametrize("family", ["llama", "stablelm"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("target", FOURS.values(), ids=list(FOURS))
def test_a_growth_by_four_is_bitwise_equal(family, implementation, target):
    """logits(grow(m)) = logits(m) in every bit, on stock code (StableLm: masked norms)."""
    model = tiny(family, implementation)
    norm = "masked" if family == "stablelm" else None
    grown = growproof.grow(model, target, norm=norm)
    grown.set_attn_implementation(implementation)
    assert torch.equal(exact(model), exact(grown))


@pytest.mark.parametrize("family", ["llama", "stablelm"])
def test_another_ratio_is_equal_to_a_few_roundings(family):
    """√(D/D') rounds once a weight; the whole pass stays within 1e-13 of its largest."""
    model = tiny(family)
    grown = growproof.grow(model, {"hidden_size": 48, "num_attention_heads": 6})
    assert 0 < difference(exact(model), exact(grown)) < 1e-13


@pytest.mark.parametrize("family", ["llama", "stablelm", "mixtral"])
def test_narrow_weights_are_read_as_they_are(family):
    """A float32 model under `ordered` is its weights in float64, without a copy of it."""
    model = tiny(family).float()
    assert torch.equal(exact(model), exact(copy.deepcopy(model).double()))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_cache_changes_no_bit(family):
    """Token by token with a key/value cache, the logits are those of the whole text."""
    model, whole = tiny(family), exact(tiny(family))
    arguments = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in arguments else "past_key_values"  # from 5.24 on
    with torch.inference_mode(), ordered(model):
        first = model(tokens()[:, :4], use_cache=True)
        rest = model(tokens()[:, 4:], **{name: first[name]})
    assert torch.equal(torch.cat((first.logits, rest.logits), 1), whole)


def without_frequencies(model: Any, before: dict[str, torch.Tensor]) -> None:
    """Fails, within `ordered`, where all the model's constants are others."""
    assert all(b is not before[name] for name, b in model.named_buffers())
    torch.rand(1)


def test_constants_are_put_back():
    """The rotary frequencies of the model are its own again, after an error as well."""
    model = tiny("gemma3_text")
    before = dict(model.named_buffers())
    with pytest.raises(growproof.NotOrdered), ordered(model):
        without_frequencies(model, before)
    assert all(b is before[name] for name, b in model.named_buffers())
    assert torch.get_default_dtype() == torch.float32


def test_a_float32_island_would_show(monkeypatch):
    """Without the rule that no cast goes below float64 the logits are off by 1e-7."""
    model = tiny("llama")
    logits = exact(model)
    monkeypatch.setattr(arithmetic, "is_narrow", lambda dtype: False)
    assert 1e-9 < difference(logits, exact(model)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
def test_frequencies_of_float32_would_show(family):
    """Without its constants made anew the logits are off by 1e-8."""
    model = tiny(family)
    with torch.no_grad(), ordered():
        stale = model(tokens()).logits
    assert 1e-10 < difference(exact(model), stale) < 1e-5


@pytest.mark.parametrize("family", list(FAMILIES))
def test_one_unit_in_the_last_place_shows(family):
    """An entry of the first token's embedding, moved to the next float64."""
    model = tiny(family)
    logits = exact(model)
    row = model.get_input_embeddings().weight.data[tokens()[0, 0]]
    entry = row[row.abs().argmax()]
    entry.copy_(torch.nextafter(entry, 2 * entry))
    assert 0 < difference(logits, exact(model)) < 1e-13


UNKNOWN = {
    "prod": lambda x: x.prod(),
    "cumprod": lambda x: x.cumprod(0),
    "exp2": torch.exp2,
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "lerp": lambda x: torch.lerp(x, x, 0.3),
    "logsumexp": lambda x: torch.logsumexp(x, 0),
    "linalg_vector_norm": lambda x: torch.linalg.vector_norm(x),
    "var": lambda x: x.var(),
    "linspace": lambda x: x + torch.linspace(0, 1, 4),
    "rand": lambda x: x * torch.rand(4),
    "bernoulli_": lambda x: torch.dropout(x, 0.5, True),
    "convolution": lambda x: torch.conv1d(x.view(1, 1, 4), x.view(1, 1, 4)),
    "_fft_r2c": torch.fft.rfft,
    "view": lambda x: x.view(torch.int64),
    "scatter": lambda x: x.scatter(0, torch.tensor([0, 0]), x, reduce="add"),
    "mm": lambda x: torch.mm(x[None], x[:, None], out=x[None, :1]),
}


@pytest.mark.parametrize("name", sorted(UNKNOWN))
def test_an_unknown_operator_is_refused_by_name(name):
    """What reduces, draws or is not listed is an error and never a number."""
    x = torch.ones(4, dtype=torch.float64)
    with pytest.raises(growproof.NotOrdered, match=name), ordered():
        UNKNOWN[name](x)


def test_writing_into_float32_is_refused():
    """The digits would be lost in silence."""
    narrow = torch.ones(4)
    with pytest.raises(growproof.NotOrdered, match=r"mul_.*double"), ordered():
        narrow.mul_(0.3)


def test_another_device_is_refused():
    """Elsewhere running sums need not be loops."""
    with pytest.raises(growproof.NotOrdered, match="meta"), ordered():
        torch.ones(4, device="meta").sum()


def test_unknown_constants_are_refused_by_name():
    """A float32 buffer that no checkpoint holds, of a module that cannot be made anew."""
    model = tiny("llama")
    model.model.norm.register_buffer("table", torch.ones(3), persistent=False)
    with (
        pytest.raises(growproof.NotOrdered, match=r"model\.norm.*table"),
        ordered(model),
    ):
        pass
