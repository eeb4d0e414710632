"""What a grower finds: a model in the state that real ones are in, and torch's own state.

`found` takes stock of all that a grower could disturb, `changed` names what it did.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging as root_logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers.utils import logging

Stock = dict[str, Any]


def torch_stock() -> Stock:
    """The settings of torch, transformers and the process."""
    return {name: read() for name, (read, _) in SETTINGS.items()}


def folder() -> str:
    """The current directory, or that there is none any more."""
    try:
        return os.getcwd()
    except OSError:
        return "a directory that is gone"


def back_to(path: str) -> None:
    """The current directory again, if it is there."""
    with contextlib.suppress(OSError):
        os.chdir(path)


def environment() -> dict[str, str]:
    """The variables, but for pytest's own, which change with each test."""
    return {k: v for k, v in os.environ.items() if "PYTEST" not in k}


def put_environment(known: dict[str, str]) -> None:
    """These variables, and no others."""
    for name in environment().keys() - known.keys():
        del os.environ[name]
    os.environ.update(known)


SIGNALS = (signal.SIGTERM, signal.SIGINT)


def handlers() -> tuple[Any, ...]:
    """What is done about these signals."""
    return tuple(map(signal.getsignal, SIGNALS))


def handle(known: tuple[Any, ...]) -> None:
    """Do that about them; where Python can, which is in its main thread."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(SIGNALS, known, strict=True):
            signal.signal(number, handler)


def keeps_subnormals() -> bool:
    """Whether arithmetic gives numbers below the least normal one, or zeros for them."""
    return bool(torch.full((), 2.0**-1073, dtype=torch.float64, device="cpu") * 0.5)


def attention_kernels() -> tuple[bool, ...]:
    """Which of its attention kernels torch may choose."""
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled(),
    )  # fmt: skip


def allow(kernels: tuple[bool, ...]) -> None:
    """Let torch choose among these attention kernels."""
    cuda = torch.backends.cuda
    cuda.enable_flash_sdp(kernels[0])
    cuda.enable_mem_efficient_sdp(kernels[1])
    cuda.enable_math_sdp(kernels[2])
    cuda.enable_cudnn_sdp(kernels[3])


# torch keeps the hooks that every module and every optimizer runs in these dictionaries
EVERY = {
    name: value
    for home in (torch.nn.modules.module, sys.modules[torch.optim.Optimizer.__module__])
    for name, value in vars(home).items()
    if name.startswith("_global") and isinstance(value, dict)
}


def hooks_of_all() -> dict[str, list[Any]]:
    """The hooks that every module or optimizer runs, by their kind."""
    return {name: list(hooks.values()) for name, hooks in EVERY.items() if hooks}


def hook_all(hooks: dict[str, list[Any]]) -> None:
    """Only these, of the hooks that every module or optimizer runs."""
    for name, held in EVERY.items():
        for key in [k for k, hook in held.items() if hook not in hooks.get(name, [])]:
            del held[key]


def infer(inference: bool) -> None:
    """torch's inference mode, on or off: whoever holds it is not known here."""
    if torch.is_inference_mode_enabled() != inference:
        HELD.append(torch.inference_mode(inference))
        HELD[-1].__enter__()


def be_deterministic(how: tuple[bool, bool]) -> None:
    """Use deterministic algorithms or not, and warn or raise where there is none."""
    torch.use_deterministic_algorithms(how[0], warn_only=how[1])


def on_device(device: torch.device) -> None:
    """torch's default device."""
    torch.set_default_device(None if device.type == "cpu" else device)


HELD: list[Any] = []  # modes of torch that end with what is here
# what a grower may not leave otherwise: how it is read, and how it is put back
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch's default device": (torch.get_default_device, on_device),
    "torch's inference mode": (torch.is_inference_mode_enabled, infer),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "whether gradients are on": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's use of deterministic algorithms": (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        be_deterministic,
    ),
    "torch's matmul precision": (
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision,
    ),
    "torch's autocast": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda on: torch.set_autocast_enabled("cpu", on),
    ),
    "torch's detection of anomalies": (
        torch.is_anomaly_enabled, torch.set_anomaly_enabled,
    ),
    "torch's choice of attention kernels": (attention_kernels, allow),
    "whether subnormal numbers are kept": (
        keeps_subnormals, lambda kept: torch.set_flush_denormal(not kept),
    ),
    "the hooks of all modules or optimizers": (hooks_of_all, hook_all),
    "transformers' verbosity": (logging.get_verbosity, logging.set_verbosity),
    "the current directory": (folder, back_to),
    "an environment variable": (environment, put_environment),
    "garbage collection": (
        gc.isenabled, lambda on: gc.enable() if on else gc.disable(),
    ),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "the level that logging is disabled at": (
        lambda: root_logging.root.manager.disable, root_logging.disable,
    ),
    "the level of the root logger": (
        lambda: root_logging.root.level, root_logging.root.setLevel,
    ),
    "whether torch uses oneDNN": (
        lambda: torch.backends.mkldnn.enabled,
        lambda on: setattr(torch.backends.mkldnn, "enabled", on),
    ),
    "what NumPy does about errors": (np.geterr, lambda how: np.seterr(**how)),
    "what SIGTERM and SIGINT do": (handlers, handle),
    "cuDNN's benchmarks": (
        lambda: torch.backends.cudnn.benchmark,
        lambda on: setattr(torch.backends.cudnn, "benchmark", on),
    ),
}  # fmt: skip


def changed(before: Any, after: Any, what: str = "") -> Iterator[str]:
    """A sentence for each difference between two stocks."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before.keys() | after.keys():
            said = f"{what} of {name}" if what and name else what or str(name)
            if name not in after:
                yield f"{said} is gone"
            elif name not in before:
                yield f"{said} was added"
            else:
                yield from changed(before[name], after[name], said)
    elif isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        if before.dtype != after.dtype or not torch.equal(before, after):
            yield f"{what} was changed"
    elif type(before) is not type(after) or before != after:
        yield f"{what} was {before}, and is {after}"


GENERATORS = {
    "torch's": lambda: torch.get_rng_state().numpy().tobytes(),
    "Python's": lambda: repr(random.getstate()),
    "NumPy's": lambda: repr(np.random.get_state()),  # noqa: NPY002
}


def generators() -> dict[str, Any]:
    """The state of every generator that a grower may draw from, or seed."""
    return {name: state() for name, state in GENERATORS.items()}


LEFT: list[str] = []  # what the last call of a grower changed of torch's settings


@contextlib.contextmanager
def kept(left: list[str] | None = None) -> Iterator[None]:
    """torch's settings are what they were, whatever a grower does to them.

    left: is filled with what it did, in sentences.
    """
    before = torch_stock()
    try:
        yield
    finally:
        now = torch_stock()
        if left is not None:
            left[:] = changed(before, now)
        for name, (_, put) in SETTINGS.items():
            if now[name] != before[name]:
                put(before[name])


def full_of_nan(make: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy's `empty` or `empty_like`, with NaN for what memory had."""

    @functools.wraps(make)
    def made(*arguments: Any, **options: Any) -> Any:
        x = make(*arguments, **options)
        if np.issubdtype(x.dtype, np.inexact):
            x.fill(np.nan)
        return x

    return made


@contextlib.contextmanager
def filled() -> Iterator[None]:
    """Fresh memory is full of NaN, torch's and NumPy's."""
    numpys: Any = {
        name: full_of_nan(getattr(np, name)) for name in ("empty", "empty_like")
    }
    with kept(), mock.patch.multiple(np, **numpys):
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Other settings: no gradients, two threads, and fresh memory that is full of NaN."""
    with filled(), torch.no_grad():
        torch.set_num_threads(2)
        yield
