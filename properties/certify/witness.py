"""Where two models differ in float64: on which run, by how much, and from which module on."""

import itertools
import math
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from growproof.field import Wide, widened
from torch import Tensor

from .runs import Run, with_values

WITNESS = 1e-11  # relative difference of logits: float64 rounding stays near 1e-15
SPANNED = 1e-8  # what is left of a lane outside the span of others, relative to it


class Certain(Wide):
    """And nothing left to chance: dropout loses nothing, and noise is at its bound."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        certain = CERTAIN.get(func.overloadpacket)
        return certain(*args) if certain else func(*args, **widened(kwargs or {}))


def undropped(
    x: Tensor, rate: float, train: bool | None = True
) -> tuple[Tensor, Tensor]:
    """What dropout makes of x, and its mask, where it loses nothing."""
    x = x if train is False else x / (1 - rate)
    return x, torch.ones_like(x, dtype=torch.bool)


CERTAIN = {
    torch.ops.aten.bernoulli_: lambda x, *_: x.fill_(1),
    torch.ops.aten.uniform_: lambda x, low=0, high=1: x.fill_(high),
    torch.ops.aten.native_dropout: undropped,
}


def logits(model: Any, run: Run) -> Tensor:
    """The logits in float64, no float below it."""
    with Certain(), with_values(model, {}):
        return run.logits(model, run.tokens).detach().double()


# the logits of models before any growth, which are there for many growths
SEEN: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest entry; NaN where one is not finite."""
    if a.shape != b.shape:
        return math.inf
    return float((a - b).abs().max() / a.abs().max())


def difference(old: Any, new: Any, run: Run, vocab: int) -> float:
    """How far apart their logits are; what is not finite is infinitely far."""
    kept = SEEN.setdefault(old, {})
    if run.name not in kept:
        kept[run.name] = logits(old, run)
    found = apart(kept[run.name], logits(new, run)[..., :vocab])
    return found if math.isfinite(found) else math.inf


@contextmanager
def outputs(model: Any) -> Generator[dict[str, Tensor]]:
    """module → its output as (texts and tokens, lanes), in the order they were computed."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            if isinstance(x, Tensor) and x.is_floating_point() and x.dim() >= 2:
                found.setdefault(name, x.detach().flatten(0, -2).double())

        return hook

    handles = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if n]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def spanned(x: Tensor, y: Tensor) -> bool:
    """Whether each column of x is a linear form in the columns of y and 1."""
    y = torch.cat((y, torch.ones_like(y[:, :1])), 1)
    if y.shape[1] >= y.shape[0]:  # too few tokens to tell
        return True
    rest = x - y @ torch.linalg.lstsq(y, x, driver="gelsd").solution
    return bool(rest.norm() <= SPANNED * x.norm() + 1e-300)


def layer_of(name: str) -> int:
    found = re.search(r"\.(\d+)\.", f".{name}.")
    return int(found[1]) if found else 0


def parted(old: Any, new: Any, run: Run) -> str:
    """The first old module whose output no like module of the grown model has.

    Lanes are compared as spaces, so that any order, scale and copies will do; where all
    agree as spaces, it is the last. A grown layer may come later than the old one that
    it stands for.
    """
    taps = []
    for model in (old, new):
        with outputs(model) as found:
            logits(model, run)
        taps.append(found)
    grown: dict[str, list[str]] = {}
    for name in taps[1]:
        grown.setdefault(re.sub(r"\.\d+\.", ".#.", f"{name}."), []).append(name)
    for name, x in taps[0].items():
        like = grown.get(re.sub(r"\.\d+\.", ".#.", f"{name}."), [])
        later = [n for n in like if layer_of(n) >= layer_of(name)]
        if not any(same_space(x, taps[1][n]) for n in later):
            return name
    return next(reversed(taps[0]), "")


def same_space(x: Tensor, y: Tensor) -> bool:
    """Whether the lanes of one are forms of the other's; silence is not another's form."""
    if len(x) != len(y) or bool(x.any()) != bool(y.any()):
        return False
    return spanned(x, y) or spanned(y, x)


def witness(
    pairs: Sequence[tuple[str, Any, Any]], all_runs: Sequence[Run], vocab: int
) -> dict[str, Any]:
    """The first run on which the logits differ, else the one on which they nearly do."""
    found: dict[str, Any] = {"relative": -1.0}
    for run, (weights, old, new) in itertools.product(all_runs, pairs):
        off = difference(old, new, run, vocab)
        if off > found["relative"]:
            found = {"relative": min(off, 1.7e308), "weights": weights}
            found |= {"run": run.name, "tokens": run.tokens.tolist()}
        if off > WITNESS:
            break
    return found
