"""One law on one example, without a search: what a script repeats, and what is made smaller."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from ..laws import examples
from ..laws.examples import Example
from ..laws.registry import Item, items
from .loading import BrokenGrower, command_grower, load_grower

MENDED, FAILS, BROKEN = 0, 1, 2


def run(item: Item, grower: Any, example: Example) -> BaseException | None:
    """What the law says of an example; None: that it holds."""
    try:
        item.replay(grower, example)
    except Exception as error:
        return error
    return None


def main(folder: Path, spec: str, command: bool, test: str, example: Example) -> int:
    """Run the law on the example, and say what it says."""
    os.chdir(folder)
    sys.path.insert(0, str(folder.resolve()))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    item = items().get(test)
    try:
        grower = command_grower(spec) if command else load_grower(spec)
        if item is None:
            raise BrokenGrower(f"this growproof has no law {test}")
    except BrokenGrower as error:
        print(f"cannot be run: {error}")
        return BROKEN
    print(item.law.sentence)
    error = run(item, grower, examples.from_json(example))
    if error is None:
        print("it holds on this example")
        return MENDED
    if isinstance(error, NotImplementedError):
        print(f"cannot be run: the grower declines this example: {error}")
        return BROKEN
    print(f"{type(error).__name__}: {error}")
    return FAILS
