"""The grower under test: a Python callable, or a program on checkpoint directories."""

from __future__ import annotations

import importlib
import inspect
import json
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from ..errors import ledger

DEFAULT = "growproof:grow"


class BrokenGrower(Exception):
    """A grower that cannot be run at all, as against one that grows wrongly."""


@dataclass(frozen=True)
class Grower:
    """grow(model, target), and the name it was chosen by."""

    name: str
    function: Callable[[Any, Mapping[str, int]], Any]

    def __call__(self, model: Any, target: Mapping[str, int]) -> Any:
        """The grown model. Raises BrokenGrower where none comes back."""
        grown = self.function(model, dict(target))
        if not hasattr(grown, "state_dict") or not hasattr(grown, "config"):
            raise BrokenGrower(
                f"{self.name} returned {type(grown).__name__}, expected a transformers "
                "model (StableLmForCausalLM or LlamaForCausalLM)"
            )
        ledger.grew()
        return grown


def load_grower(spec: str) -> Grower:
    """The grower named MODULE:CALLABLE. Raises BrokenGrower with the reason."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise BrokenGrower(f"a grower is named MODULE:CALLABLE, got {spec!r}")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise BrokenGrower(f"cannot import the grower {spec}: {error}") from error
    if not callable(found):
        raise BrokenGrower(f"{spec} is a {type(found).__name__}, expected a callable")
    try:
        inspect.signature(found).bind("model", {"hidden_size": 1})
    except TypeError as error:
        raise BrokenGrower(
            f"{spec} must accept (model, target): {error}. The contract is "
            "`def grow(model, target)` with target a dict of config names to sizes"
        ) from error
    except ValueError:  # a builtin without a signature: try it
        pass
    return Grower(spec, found)


def command_grower(template: str) -> Grower:
    """The program `mygrow {source} {destination} {target_json}`, as a grower.

    It finds a checkpoint directory at source, and leaves one at destination.
    """
    for field in ("{source}", "{destination}", "{target_json}"):
        if field not in template:
            raise BrokenGrower(
                f"--grower-command needs {field}, got {template!r}; for example "
                "'mygrow {source} {destination} {target_json}'"
            )
    words = shlex.split(template)

    def run(model: Any, target: Mapping[str, int]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            source, destination = Path(folder, "source"), Path(folder, "destination")
            model.save_pretrained(source)
            values = {
                "{source}": str(source),
                "{destination}": str(destination),
                "{target_json}": json.dumps(dict(target)),
            }
            command = [substitute(word, values) for word in words]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode or not destination.is_dir():
                raise RuntimeError(
                    f"`{shlex.join(command)}` exited {done.returncode} and "
                    f"{'left' if destination.is_dir() else 'left no'} checkpoint: "
                    f"{done.stderr.strip()[-2000:]}"
                )
            grown = AutoModelForCausalLM.from_pretrained(
                destination,
                dtype=model.dtype,
                attn_implementation=model.config._attn_implementation,
            )
        return like(grown, model)

    return Grower(template, run)


def substitute(word: str, values: Mapping[str, str]) -> str:
    """A word of the command with its fields filled in."""
    for field, value in values.items():
        word = word.replace(field, value)
    return word


def like(grown: Any, model: Any) -> Any:
    """A reloaded model in the mode of the original: a directory cannot carry it."""
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    for name, p in grown.named_parameters():
        p.requires_grad_(name not in frozen)
    return grown.train(model.training)
