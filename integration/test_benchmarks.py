"""How long growing takes, beside a copy of the same bytes and the article's own loop.

    pytest integration/test_benchmarks.py --benchmark-json=bench.json
    GROWPROOF_BENCHMARK=large pytest …    # 271 million parameters, not 10
    GROWPROOF_BENCHMARK=cuda pytest …     # the article's model, 1.6 billion, on a GPU

Nothing here passes or fails by the clock. `extra_info` carries the ratios, which mean
more than milliseconds on a shared machine, and the error of the very same call.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import growproof
import pytest
import torch
from growproof.checkpoints import grow_checkpoint
from growproof.growth import Policies
from growproof.models import state_of
from transformers import AutoModelForCausalLM, StableLmConfig

from properties.errors import ledger
from properties.laws.models import make

from .article import grow_proj

if importlib.util.find_spec("pytest_benchmark") is None:
    pytest.skip(
        "pytest-benchmark is not installed: pip install 'growproof[test]'",
        allow_module_level=True,
    )

WHICH = os.environ.get("GROWPROOF_BENCHMARK", "small")
ON = "cuda" if WHICH == "cuda" else "cpu"
# vocabulary, hidden, MLP, layers, heads
OF = {
    "small": (4096, 512, 1408, 2, 8),
    "large": (32_000, 1024, 2816, 16, 16),
    "cuda": (100_352, 2048, 5632, 24, 32),
}
NAMES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads",
)  # fmt: skip
SIZES: dict[str, Any] = dict(zip(NAMES, OF[WHICH], strict=True))
TARGET = {"hidden_size": 5 * SIZES["hidden_size"] // 4}
DTYPES = ["float32", "bfloat16"]


@functools.cache
def model(dtype: str) -> Any:
    """A StableLm of 10 million parameters, of 271 million, or of 1.6 billion on a GPU."""
    config = StableLmConfig(
        **SIZES, num_key_value_heads=SIZES["num_attention_heads"], use_qkv_bias=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return make(config, 0, dtype=getattr(torch, dtype)).to(ON)


def memcpy(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """A copy of every byte of a state dict."""
    return [x.clone() for x in state.values()]


def zeros_and_copy(
    old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    """The least that growing can be: zeros of the new sizes, old entries in a corner."""
    found = []
    for name, x in old.items():
        y = torch.zeros_like(new[name])
        y[tuple(map(slice, x.shape))] = x
        found.append(y)
    return found


def article_loop(old: Any) -> Any:
    """The article's script up to the scaling: build, initialise, cast, copy."""
    config = copy.deepcopy(old.config)
    config.hidden_size = TARGET["hidden_size"]
    with torch.device(ON):
        bigger = type(old)(config).to(old.dtype)
    heads = config.num_key_value_heads
    for name, p in old.named_parameters():
        to = bigger.get_parameter(name)
        if "q_proj" in name or "k_proj" in name or "v_proj" in name:
            to.data[:] = grow_proj(p.data, heads, heads, config.hidden_size)
        elif "o_proj" in name:
            to.data[:] = grow_proj(p.data.T, heads, heads, config.hidden_size).T
        else:
            to.data[:] = 0
            to.data[tuple(slice(n) for n in p.shape)] = p.data
    return bigger


def finished(call: Callable[[], Any]) -> Any:
    """What a call returns, once the device has done what it was told."""
    result = call()
    if ON == "cuda":
        torch.cuda.synchronize()
    return result


def seconds(call: Callable[[], object], rounds: int = 5) -> float:
    """The least time of a few calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        finished(call)
        times.append(time.perf_counter() - start)
    return min(times)


def beside(call: Callable[[], object], limit: Callable[[], object]) -> float:
    """The median of five ratios of times, each of two calls one right after the other."""
    return statistics.median(seconds(call, 1) / seconds(limit, 1) for _ in range(5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["centred", "scaled", "masked"])
def test_growing(benchmark: Any, norm: Any, dtype: str) -> None:
    """growproof.grow, 4 → 5 wide; its time over a memcpy's, that of zeros and a copy of
    the same bytes, and the article's loop."""
    source = model(dtype)
    growing = functools.partial(growproof.grow, source, TARGET, norm=norm)
    grown = benchmark.pedantic(finished, args=(growing,), rounds=5, warmup_rounds=1)
    copying = seconds(lambda: memcpy(state_of(grown)))
    looping = seconds(lambda: article_loop(source), rounds=2)
    if benchmark.stats is not None:  # None under --benchmark-disable
        taken = benchmark.stats.stats.min
        benchmark.extra_info |= {
            "over_memcpy": taken / copying,
            "over_zeros_and_copy": beside(
                growing,
                lambda: zeros_and_copy(state_of(source), state_of(grown)),
            ),
            "over_article_loop": taken / looping,
            "article_loop_over_memcpy": looping / copying,
        }
    say_error(benchmark, grown)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["centred", "scaled"])
def test_from_directory_to_directory(
    benchmark: Any, norm: Any, dtype: str, tmp_path: Path
) -> None:
    """growproof grow of files, 4 → 5 wide; its time over that of `cp -r` of the result."""
    source, destination = tmp_path / "source", tmp_path / "grown"
    model(dtype).save_pretrained(source)

    def grown_from_files() -> None:
        grow_checkpoint(
            source, destination, TARGET, policies=Policies(norm=norm), force=True,
            progress=False,
        )  # fmt: skip

    benchmark.pedantic(grown_from_files, rounds=5, warmup_rounds=1)
    command = ["cp", "-r", str(destination), str(tmp_path / "copy")]

    def copied() -> None:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        subprocess.run(command, check=True)

    if benchmark.stats is not None:
        benchmark.extra_info["over_cp"] = beside(grown_from_files, copied)
    grown = AutoModelForCausalLM.from_pretrained(destination, dtype="auto").eval()
    say_error(benchmark, grown)


def say_error(benchmark: Any, grown: Any) -> None:
    """Leave the grown model's bytes and error beside the time; the error is a number."""
    error = error_of(grown)
    benchmark.extra_info |= {
        "bytes": sum(p.nbytes for p in grown.parameters()),
        "ratio": error.ratio,
        "ulps": error.ulps,
        "relative": error.relative,
    }
    assert math.isfinite(error.relative)


def error_of(grown: Any) -> ledger.Measured:
    """The grown model's logits against the original's, both in float64."""
    source = model(str(grown.dtype)[6:])
    ids = torch.arange(64, device=ON)[None] * 37 % source.config.vocab_size
    with torch.no_grad():
        a, b = (copy.deepcopy(m).double()(ids).logits for m in (grown, source))
    return ledger.measure(a, b, n=source.config.hidden_size, dtype=grown.dtype)
