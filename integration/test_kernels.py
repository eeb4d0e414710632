"""A grown model on every attention kernel: as near the truth as the original is.

Each kernel is forced, and the profiler proves that it ran (`kernels.attending`). The
sizes are those at which kernels change their mind: head_dim 64 to 128 with 71 (odd) and
72 (a multiple of 8), 511 and 513 tokens (torch's FlashAttention on CPU has key blocks of
512: beyond them the online softmax rescales), one token, left padding, a cache.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import growproof
import pytest
import torch
from growproof.families import family_of
from growproof.growth import Growth
from growproof.models import decoder_of, plan_model
from growproof.scatter import centred, take
from growproof.table import parameters
from torch import Tensor
from transformers import StableLmConfig

from properties.laws.models import make

from . import kernels
from .kernels import DTYPES, KERNELS, Kernel, attending, cast

COLUMNS = [
    pytest.param(kernel, dtype, id=f"{kernel.id}-{dtype}")
    for kernel in KERNELS
    for dtype in kernel.dtypes
]
every_column = pytest.mark.parametrize(("kernel", "dtype"), COLUMNS)
# (heads, groups, head_dim): grown from (2, 1, 64), so that 2 query heads share a key.
GROWTHS = {
    "64": (4, 1, 64), "71": (2, 1, 71), "72": (2, 1, 72), "80": (2, 1, 80),
    "96": (4, 2, 96), "128": (2, 1, 128),
}  # fmt: skip


def requires(kernel: Kernel, head_dim: int = 64) -> None:
    """Skip, with what is missing, where the kernel cannot run."""
    if reason := kernel.missing():
        pytest.skip(reason)
    if not kernel.takes(head_dim):
        pytest.skip(
            f"{kernel.name} takes multiples of {kernel.multiple}, not {head_dim}"
        )


@functools.cache
def original(dtype: str) -> Any:
    """A loud StableLm with weights of `dtype`: 2 query heads on 1 key/value head of 64."""
    config = StableLmConfig(
        vocab_size=64, hidden_size=128, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, use_qkv_bias=True,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=None,
        rope_parameters={
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25
        },
    )  # fmt: skip
    return make(config, 5, dtype=DTYPES[dtype])


@functools.cache
def growth_to(dtype: str, name: str) -> Growth:
    heads, groups, head_dim = GROWTHS[name]
    sizes = {
        "hidden_size": heads * head_dim, "num_attention_heads": heads,
        "num_key_value_heads": groups, "intermediate_size": 128,
    }  # fmt: skip
    return plan_model(original(dtype).config, sizes)


@functools.cache
def grown(dtype: str, name: str) -> Any:
    new = growth_to(dtype, name).new
    sizes = {
        "hidden_size": new.hidden, "num_attention_heads": new.heads,
        "num_key_value_heads": new.groups, "intermediate_size": new.mlp,
    }  # fmt: skip
    return growproof.grow(original(dtype), sizes)


@functools.cache
def text(tokens: int, batch: int, padding: int) -> tuple[Tensor, Tensor | None]:
    """Token ids (B, T), and a mask that hides the first `padding` of the first row."""
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(0, 64, (batch, tokens), generator=generator)
    if not padding:
        return ids, None
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return ids, mask


Case = tuple[int, int, int]  # tokens, batch, padding


def logits(model: Any, kernel: Kernel, case: Case) -> Tensor:
    """Logits of all positions that are no padding, (N, V), on the kernel's device."""
    ids, mask = (x if x is None else x.to(kernel.device) for x in text(*case))
    assert ids is not None
    model = model.to(kernel.device)
    with torch.no_grad(), attending(model, kernel):
        out = model(ids, attention_mask=mask, use_cache=False).logits
    return out[torch.ones_like(ids).bool() if mask is None else mask.bool()]


@functools.cache
def truth(dtype: str, device: str, case: Case) -> Tensor:
    """The original in float64, with the weights that it has in `dtype`."""
    model = cast(original(dtype), "float64", device)
    return logits(model, kernels.named("sdpa_math", device), case)


@functools.cache
def floor(dtype: str, unit: str, device: str, case: Case) -> float:
    """What one rounding of the weights by u of `unit` changes in the truth."""
    shaken = logits(
        kernels.shaken(original(dtype), unit), kernels.named("sdpa_math", device), case
    )
    return kernels.distance(shaken, truth(dtype, device, case))


@functools.cache
def own(kernel: Kernel, dtype: str, case: Case) -> float:
    """The original's own distance from the truth, or the floor."""
    model = cast(original(dtype), dtype, kernel.device)
    exact = truth(dtype, kernel.device, case)
    least = floor(dtype, kernels.rounds_in(kernel, dtype), kernel.device, case)
    return max(kernels.distance(logits(model, kernel, case), exact), least)


def judge(law: str, kernel: Kernel, dtype: str, name: str, case: Case) -> None:
    """The grown model is at most TWICE as far from the truth as the original."""
    model = cast(grown(dtype, name), dtype, kernel.device)
    exact = truth(dtype, kernel.device, case)
    far = kernels.distance(logits(model, kernel, case), exact)
    ratio = far / own(kernel, dtype, case)
    kernels.record(law, ratio, far, kernel, dtype, f"head_dim {name}, {case}")
    assert ratio <= kernels.TWICE, f"{ratio:.3g} times the original's distance"


@every_column
@pytest.mark.parametrize("name", GROWTHS)
def test_head_dims(kernel: Kernel, dtype: str, name: str) -> None:
    """Every head_dim, with grouped heads, in a batch of two, beyond one key block."""
    requires(kernel, GROWTHS[name][2])
    judge("kernel_head_dims", kernel, dtype, name, (513, 2, 0))


@every_column
@pytest.mark.parametrize("tokens", [1, 511, 513, 2048])
def test_lengths(kernel: Kernel, dtype: str, tokens: int) -> None:
    """One token, either side of a key block, and many."""
    requires(kernel)
    judge("kernel_lengths", kernel, dtype, "80", (tokens, 1, 0))


@every_column
def test_left_padding(kernel: Kernel, dtype: str) -> None:
    """Padding on the left of one row of a batch changes nothing in the rest."""
    requires(kernel)
    if not kernel.masks:
        pytest.skip(f"{kernel.id} takes no mask: see test_no_mask_is_refused")
    if (kernel.name, dtype) == ("eager", "float64"):
        pytest.skip("transformers' eager attention has NaN there: see the next test")
    judge("kernel_left_padding", kernel, dtype, "80", (513, 2, 37))


def test_eager_in_float64_has_nan_under_left_padding() -> None:
    """Why the test above leaves it out: −1.8e308 of the mask is −inf in float32.

    When this fails, transformers was mended, and the skip above can go.
    """
    model, (ids, mask) = cast(original("float64"), "float64", "cpu"), text(8, 2, 3)
    with torch.no_grad(), attending(model, kernels.named("eager", "cpu")):
        assert model(ids, attention_mask=mask).logits.isnan().any()


@every_column
def test_generate_with_a_cache(kernel: Kernel, dtype: str) -> None:
    """Greedy text is the original's, and so are the logits of every step up to there.

    In bfloat16 two tokens may lie closer than rounding: there the texts may part.
    """
    requires(kernel)
    prompt, steps = text(20, 1, 0)[0].to(kernel.device), 12
    found = []
    for source in (original(dtype), grown(dtype, "80")):
        model = cast(source, dtype, kernel.device)
        with attending(model, kernel):
            found.append(generate(model, prompt, steps))
    (old, old_logits), (new, new_logits) = found
    exact = dtype != "bfloat16" and dtype not in kernel.autocast
    same = steps if exact else int((old == new).long().cumprod(0).sum())
    assert same >= 1
    assert old[:same].tolist() == new[:same].tolist()
    unit = torch.finfo(DTYPES[kernels.rounds_in(kernel, dtype)]).eps
    # the weights are loud: they amplify a rounding up to some 100 times in two layers
    assert kernels.distance(new_logits[:same], old_logits[:same]) <= 100 * unit


def generate(model: Any, prompt: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """`steps` greedy tokens, (steps,), and their logits, (steps, V), with a KV cache."""
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=steps,
        do_sample=False, use_cache=True, output_logits=True, pad_token_id=0,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert out.past_key_values is not None
    return out.sequences[0, prompt.shape[1] :], torch.cat(out.logits)


# --- backward -----------------------------------------------------------------------


def gradients(model: Any, kernel: Kernel, case: Case) -> dict[str, Tensor]:
    """The loss's gradient by every parameter, float64."""
    ids, _ = text(*case)
    ids = ids.to(kernel.device)
    model = model.requires_grad_(True)
    with attending(model, kernel):
        model(ids, labels=ids, use_cache=False).loss.backward()
    found = {n: p.grad.detach().double() for n, p in model.named_parameters()}
    return family_of(model.config).read(found, decoder_of(model.config))


def pulled_back(grads: dict[str, Tensor], growth: Growth) -> dict[str, Tensor]:
    """∂L/∂w of the old weights, from those of the new: the chain rule through the table.

    w' = scale · centred(w), padded: the transpose of that map gathers, scales, centres.
    """
    back = {}
    for template, row in parameters(growth.old, growth).items():
        for i in range(growth.old.layers if "{layer}" in template else 1):
            name = template.format(layer=i)
            g = take(grads[name], replace(row, scale=1.0), growth)
            back[name] = centred(g * row.scale, row, growth)
    return back


@every_column
def test_gradients_of_old_parameters(kernel: Kernel, dtype: str) -> None:
    """Backward through the kernel: the gradients by old parameters are the original's.

    All of them together, as one vector: at most TWICE as far from the float64 truth.
    """
    requires(kernel)
    case = (513, 1, 0)
    exact = gradients(
        cast(original(dtype), "float64", kernel.device),
        kernels.named("sdpa_math", kernel.device), case,
    )  # fmt: skip
    unit = kernels.rounds_in(kernel, dtype)
    shaken = cast(kernels.shaken(original(dtype), unit), "float64", kernel.device)
    least = apart(
        gradients(shaken, kernels.named("sdpa_math", kernel.device), case), exact
    )
    try:
        old = gradients(cast(original(dtype), dtype, kernel.device), kernel, case)
    except RuntimeError as error:
        if "backward" not in str(error):
            raise
        pytest.skip(f"this build of {kernel.name} has no backward pass: {error}")
    new = gradients(cast(grown(dtype, "80"), dtype, kernel.device), kernel, case)
    back = pulled_back(new, growth_to(dtype, "80"))
    assert back.keys() == exact.keys()
    ratio = apart(back, exact) / max(apart(old, exact), least)
    kernels.record(
        "kernel_gradients", ratio, apart(back, exact), kernel, dtype, "head_dim 80"
    )
    assert ratio <= kernels.TWICE


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The relative distance of all gradients as one vector."""
    x, y = (torch.cat([g[name].flatten() for name in sorted(b)]) for g in (a, b))
    return kernels.distance(x, y)
