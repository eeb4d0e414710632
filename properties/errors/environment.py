"""What a run ran in: versions, processor, and the grower, profile and seed it had."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment(
    *,
    grower: str | None = None,
    profile: str | None = None,
    seed: str | int | None = None,
) -> dict[str, Any]:
    """What this process runs in, with the grower, profile and seed that it is told."""
    build = torch.__config__.show()
    mkl = re.search(r"Math Kernel Library Version (\S+)", build)
    blas = re.search(r"BLAS_INFO=(\w+)", build)
    return {
        "grower": grower,
        "profile": profile,
        "seed": seed,
        "commit": _commit(),
        "growproof": _version("growproof"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "blas": f"mkl {mkl[1]}" if mkl else blas[1] if blas else "unknown",
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the current directory, "-dirty" if it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _cpu() -> str:
    """The processor's name, as the system gives it."""
    try:
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
