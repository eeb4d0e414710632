"""The grower under test: a Python callable, or a program on checkpoint directories."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import random
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from growproof.models import parameters_of
from transformers import AutoModelForCausalLM

from ..errors import ledger
from ..laws.domain import DOMAIN
from ..laws.models import Case
from ..laws.patches import note_models
from ..laws.strategies import smallest
from .guarded import guarded, refuse_meta, undisturbed

DEFAULT = "growproof:grow"


class BrokenGrower(Exception):
    """A grower that cannot be run at all, as against one that grows wrongly."""


@dataclass(eq=False)
class Grower:
    """grow(model, target), and what it was chosen by: its name, or a command.

    limit: the seconds that a command may take. calls: how many there were; the number of
    a call is what every generator is seeded with.
    """

    name: str
    function: Callable[[Any, Mapping[str, int]], Any]
    command: bool = False
    limit: float | None = None
    calls: int = 0

    def __call__(self, model: Any, target: Mapping[str, int]) -> Any:
        """The grown model. Raises BrokenGrower where none comes back.

        The target is handed on as it is: a law sees what becomes of it.
        """
        self.calls += 1
        reseed(self.calls)
        grown = guarded(self.name, lambda: self.function(model, target))
        if not hasattr(grown, "state_dict") or not hasattr(grown, "config"):
            raise BrokenGrower(
                f"{self.name} returned {type(grown).__name__}, expected a transformers "
                "model (StableLmForCausalLM or LlamaForCausalLM)"
            )
        refuse_meta(self.name, grown, model)
        ledger.grew()
        return grown


def reseed(call: int) -> None:
    """Seed every generator as it was for no other call.

    Hypothesis gives Python's and NumPy's the same seed for each example, so that a
    random grower would be taken for one that is not.
    """
    seed = 104729 * call % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the one that growers would use
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # else torch keeps a list of what to do then
        torch.cuda.manual_seed_all(seed)


def load_grower(spec: str) -> Grower:
    """The grower named MODULE:CALLABLE or FILE.py:CALLABLE. Raises BrokenGrower."""
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        raise BrokenGrower(
            f"a grower is named MODULE:CALLABLE or FILE.py:CALLABLE, got {spec!r}"
        )
    note_models(DOMAIN.families)
    try:
        with undisturbed():
            found: Any = module_of(place)
            for part in attribute.split("."):
                found = getattr(found, part)
            path = list(sys.path)
        sys.path[:] = path or sys.path  # what it adds stays: it may import later
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything, or exit
        said = " ".join(f"{type(error).__name__}: {error}".split())
        known = vars(sys.modules.get(place, object)) if hasattr(error, "name") else {}
        near = difflib.get_close_matches(attribute, [str(n) for n in known], n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise BrokenGrower(f"cannot import the grower {spec}: {said}{hint}") from None
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


def module_of(place: str) -> Any:
    """A module by its name, or by the path of its file, beside which it may import."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {place}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    return importlib.import_module(path.stem)


def command_grower(template: str, limit: float | None = 60) -> Grower:
    """The program `mygrow {source} {destination} {target_json}`, as a grower.

    It finds a checkpoint directory at source, and leaves one at destination, in at most
    `limit` seconds.
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
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=limit
                )
            except subprocess.TimeoutExpired:
                raise RuntimeError(
                    f"`{shlex.join(command)}` took more than {limit:g} s: see "
                    "--grower-timeout"
                ) from None
            except OSError as error:
                raise BrokenGrower(f"cannot run {command[0]}: {error}") from None
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
                # the default knows no float64
                experts_implementation=getattr(
                    model.config, "_experts_implementation", None
                ),
            )
        return like(grown, model)

    return Grower(template, run, command=True, limit=limit)


def substitute(word: str, values: Mapping[str, str]) -> str:
    """A word of the command with its fields filled in."""
    for field, value in values.items():
        word = word.replace(field, value)
    return word


def like(grown: Any, model: Any) -> Any:
    """A reloaded model in the mode of the original: a directory cannot carry it."""
    frozen = {n for n, p in parameters_of(model).items() if not p.requires_grad}
    for name, p in parameters_of(grown).items():
        p.requires_grad_(name not in frozen)
    return grown.train(model.training)


def probe(grower: Grower) -> list[tuple[Case, Any]]:
    """The smallest model of a family, grown: the grower's first call, for a law to judge.

    Raises BrokenGrower if none grows.
    """
    reasons = []
    for case in smallest():
        try:
            grown = grower(case.model(), dict(case.target))
            return [(case, grown)]
        except NotImplementedError:  # declined, which is not broken
            return []
        except Exception as error:
            reasons.append(f"{case.family}: {type(error).__name__}: {error}")
    raise BrokenGrower(
        f"{grower.name} is broken, not wrong: it raises on the smallest models, "
        + "; ".join(reasons)
    )
