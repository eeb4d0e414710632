"""The article's ladder: what each step of growing a StableLm does to its loss.

    python -m integration.ladder                      # the shipped model, as a table
    python -m integration.ladder --write              # ... and results/ladder-cpu.json, .svg
    python -m integration.ladder --stablelm stabilityai/stablelm-2-1_6b
    python -m integration.ladder --dtype bfloat16 --kernel flash_attention_2

The losses are those of the Python licence text.

The article's figures are bfloat16 losses, rounded to bfloat16 themselves: its 0.7734375
and 0.77734375, "0.5 % higher", are neighbours, one unit in the last place apart. Here a
loss is summed in float64 from the model's logits, so that smaller changes are seen.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from properties.errors import ledger, storage
from properties.errors.environment import environment

from . import kernels
from .kernels import DTYPES, KERNELS, Kernel, cast
from .picture import picture
from .steps import (
    ALONE,
    ARTICLE_ORIGINAL,
    STEPS,
    Step,
    grown,
    head_dim,
    label,
    tolerance,
)

HERE = Path(__file__).parent
SHIPPED = HERE / "stablelm"
LICENCE = HERE / "licence.txt"
RESULTS = HERE / "results" / "ladder-cpu.json"
VARIABLE = "GROWPROOF_STABLELM"
# Of the shipped model's 3,944 tokens of licence: over 512, so that FlashAttention on CPU
# rescales (its key blocks are that long), and few enough for 200 forward passes a minute.
SHIPPED_TOKENS = 640


def results(model: str = SHIPPED.name) -> Path:
    """Where this machine's measurements are kept: a file for each device and model."""
    device = kernels.device_name("cuda" if torch.cuda.is_available() else "cpu")
    parts = ["ladder", *([] if model == SHIPPED.name else [model]), device]
    return RESULTS.with_name("-".join(parts).replace(" ", "-").lower() + ".json")


# --- the model ----------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """The model that is grown: float32, on the CPU, with its text as one sequence."""

    name: str
    model: Any
    tokens: Tensor  # (1, T)
    published: bool  # whether it is the article's own model


def chosen(option: str | None = None) -> str | None:
    """The path or hub id of another model than the shipped one, if one was named."""
    return option or os.environ.get(VARIABLE) or None


def load(path: str | None = None, tokens: int | None = None) -> Subject:
    """The shipped model, or the StableLm at `path` (a directory or a hub id).

    Raises FileNotFoundError where the shipped one is not there, ValueError for a model
    that is not a StableLm.
    """
    where = path or str(SHIPPED)
    if path is None and not (SHIPPED / "config.json").is_file():
        raise FileNotFoundError(
            f"{SHIPPED} holds no model: git checked it out incompletely, or it is still "
            "to be trained, by `python integration/train.py stablelm --out "
            "integration/stablelm`"
        )
    model: Any = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    config = model.config
    if config.model_type != "stablelm":
        raise ValueError(
            f"the ladder grows a StableLm, {where} is a {config.model_type}"
        )
    text = LICENCE.read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(where)(text)["input_ids"]
    limit = tokens or (SHIPPED_TOKENS if path is None else len(ids))
    sizes = (config.hidden_size, config.num_attention_heads, config.num_hidden_layers)
    name = Path(where).name if Path(where).exists() else where
    return Subject(
        name=name,
        model=model.eval().requires_grad_(False),
        tokens=torch.tensor([ids[:limit]]),
        published=sizes == (2048, 32, 24),
    )


# --- measuring ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One forward pass: its loss, and how far its logits are from the float64 truth.

    distance: ‖logits − truth‖ / ‖truth‖ (Frobenius), the truth being the original with
    the same, already rounded, weights, in float64.
    """

    loss: float
    distance: float


@dataclass(frozen=True, kw_only=True)
class Column:
    """All steps of the ladder in one dtype on one kernel that really ran."""

    model: str
    family: str
    kernel: Kernel
    dtype: str
    original: Measured
    floor: float
    cells: dict[Step, Measured]

    def relative(self, row: Step) -> float:
        """grown loss / original loss − 1."""
        return self.cells[row].loss / self.original.loss - 1

    def ratio(self, row: Step) -> float:
        """Distance from the truth, in units of the original's own (see kernels.TWICE)."""
        return self.cells[row].distance / max(self.original.distance, self.floor)


def forward(model: Any, tokens: Tensor, kernel: Kernel) -> Tensor:
    """Logits (T, V) of a model on a kernel, proved to have run."""
    with torch.no_grad(), kernels.attending(model, kernel):
        return model(tokens, use_cache=False).logits[0]


def measured(logits: Tensor, tokens: Tensor, truth: Tensor) -> Measured:
    """The loss, mean next-token nats, and the distance; both summed in float64."""
    loss = error = scale = 0.0
    for first in range(0, len(logits), 512):  # float64 logits of all tokens are large
        here = slice(first, first + 512)
        x, exact = logits[here].double(), truth[here]
        error += float((x - exact).square().sum())
        scale += float(exact.square().sum())
        labels = tokens[0, 1:][here].to(x.device)
        x = x[: len(labels)]
        loss += float(torch.nn.functional.cross_entropy(x, labels, reduction="sum"))
    return Measured(
        loss=loss / (tokens.shape[1] - 1), distance=math.sqrt(error / scale)
    )


def column(
    subject: Subject, kernel: Kernel, dtype: str, rows: Sequence[Step] = STEPS + ALONE
) -> Column:
    """Grow and run the subject for every step that the kernel takes.

    Left out are head_dims that are no multiple of the kernel's (35 and 71 of those of 8).
    Raises WrongKernel (see `kernels`).
    """
    tokens = subject.tokens.to(kernel.device)
    truth = truth_of(subject, dtype, kernel.device)
    model = cast(subject.model, dtype, kernel.device)
    cells = {}
    for row in (r for r in rows if kernel.takes(head_dim(model.config, r))):
        larger = grown(model, row)
        cells[row] = measured(forward(larger, tokens, kernel), tokens, truth)
        del larger
    return Column(
        model=subject.name,
        family=subject.model.config.model_type,
        kernel=kernel,
        dtype=dtype,
        original=measured(forward(model, tokens, kernel), tokens, truth),
        floor=floor_of(subject, dtype, kernels.rounds_in(kernel, dtype), kernel.device),
        cells=cells,
    )


@functools.lru_cache(maxsize=2)
def truth_of(subject: Subject, dtype: str, device: str) -> Tensor:
    """The original's logits in float64, its weights rounded to `dtype` first."""
    exact = cast(cast(subject.model, dtype, device), "float64", device)
    return forward(exact, subject.tokens.to(device), kernels.named("sdpa_math", device))


@functools.cache
def floor_of(subject: Subject, dtype: str, unit: str, device: str) -> float:
    """How far one rounding of the weights, by u of `unit`, moves the truth."""
    model = kernels.shaken(cast(subject.model, dtype, device), unit)
    kernel = kernels.named("sdpa_math", device)
    logits = forward(model, subject.tokens.to(device), kernel)
    return kernels.distance(logits, truth_of(subject, dtype, device))


def record(found: Column) -> None:
    """Put a column's losses and distances into the current error ledger."""
    device = kernels.device_name(found.kernel.device)
    where = {"dtype": found.dtype, "kernel": found.kernel.name, "device": device}
    for row, cell in found.cells.items():
        bound = tolerance(row, found.dtype, found.kernel)
        ledger.record_loss(
            ledger.Loss(
                name=label(row), model=found.model, original=found.original.loss,
                grown=cell.loss, relative=found.relative(row),
                tolerance=bound and bound.most, published=row.published(found.dtype),
                **where,
            )
        )  # fmt: skip
        if row.kind == "exact":
            kernels.record(
                f"ladder_nears_the_truth[{label(row)}]", found.ratio(row), cell.distance,
                found.kernel, found.dtype, "python -m integration.ladder",
            )  # fmt: skip


# --- showing ------------------------------------------------------------------------


def percent(x: float | None) -> str:
    """+0.50 %, or +1.2e-09 where two decimals would be zero."""
    if x is None:
        return "–"
    return f"{x:+.2%}" if abs(x) >= 5e-5 else f"{x:+.0e}"


def rows_of(book: ledger.Ledger) -> tuple[list[str], list[list[str]]]:
    """The ladder as header and rows: a step each, a column for each dtype and kernel."""
    losses = list(book.losses.values())
    columns = list(dict.fromkeys((x.dtype, x.kernel) for x in losses))
    names = list(dict.fromkeys(x.name for x in losses))
    cell = {(x.name, x.dtype, x.kernel): x for x in losses}
    header = [
        "step",
        "article bf16",
        *(f"{kernel} {dtype}" for dtype, kernel in columns),
    ]
    first = losses[0].model
    rows = [[f"loss of {first}", f"{ARTICLE_ORIGINAL}"]]
    rows[0] += [f"{cell[names[0], d, k].original:.6f}" for d, k in columns]
    for name in names:
        published = [
            x.published for x in losses if x.name == name and x.dtype == "bfloat16"
        ]
        measured = (cell.get((name, *c)) for c in columns)
        found = [percent(x and x.relative) for x in measured]
        rows.append([name, percent(published[0] if published else None), *found])
    return header, rows


def condensed(results: Path, *columns: str) -> str:
    """A ladder, without the rows that leave one thing out."""
    header, rows = rows_of(storage.load(results))
    names = ["step", "article bf16", *columns]
    kept = [header.index(name) for name in names]
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[row[i] for i in kept] for row in rows if ", but " not in row[0]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def at_the_articles_sizes() -> str:
    """The table that was measured on a GPU."""
    return condensed(
        RESULTS.with_name("ladder-stablelm_2_1_6b-nvidia-h200.json"),
        "torch_flash bfloat16", "flash_attention_2 bfloat16",
        "flash_attention_3 bfloat16", "flash_attention_2 float32",
    )  # fmt: skip


def of_the_shipped() -> str:
    """The table that CI recomputes."""
    return condensed(
        RESULTS, *(f"sdpa_math {x}" for x in ("bfloat16", "float32", "float64"))
    )


def table(book: ledger.Ledger) -> Table:
    """For the terminal."""
    header, rows = rows_of(book)
    out = Table(title="Change of the loss by growing")
    for i, name in enumerate(header):
        out.add_column(
            name.replace(" ", "\n") if i else name, justify="right" if i else "left"
        )
    for row in rows:
        out.add_row(*row)
    return out


def markdown(book: ledger.Ledger) -> str:
    """For the README."""
    header, rows = rows_of(book)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.ladder", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--stablelm", metavar="PATH_OR_ID", help=f"also ${VARIABLE}")
    parser.add_argument(
        "--tokens", type=int, help="of the licence text; default: see above"
    )
    parser.add_argument("--markdown", action="store_true", help="print it as Markdown")
    parser.add_argument(
        "--write", nargs="?", const="", metavar="FILE",
        help="the results, and a picture beside them (default: "
        f"results/{results('[MODEL]').name})",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES, help="only this; repeatable"
    )
    parser.add_argument(
        "--kernel", action="append", choices=sorted({k.name for k in KERNELS}),
        help="only this, if it can run here; repeatable",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    path = chosen(options.stablelm)
    if path is None:
        torch.set_num_threads(1)  # as in the tests: a small model, and the same sums
    columns = [
        (kernel, dtype)
        for dtype in options.dtype or DTYPES
        for kernel in kernels.available()
        if dtype in kernel.dtypes and kernel.name in (options.kernel or [kernel.name])
    ]
    if not columns:
        missing = {k.missing() for k in KERNELS if k.name in options.kernel}
        parser.error(f"nothing of that runs here: {'; '.join(filter(None, missing))}")
    subject = load(path, options.tokens)
    book = compute(subject, columns)
    print(markdown(book), end="") if options.markdown else Console().print(table(book))
    if options.write is not None:
        file = Path(options.write) if options.write else results(subject.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write(file, storage.dumps(book))
        file.with_suffix(".svg").write_text(picture(book), encoding="utf-8")


def compute(subject: Subject, columns: Sequence[tuple[Kernel, str]]) -> ledger.Ledger:
    """Those columns of the ladder, measured here, as a ledger."""
    book = ledger.Ledger(
        environment=environment(grower="growproof:grow"), created=storage.now()
    )
    with ledger.recording(book):
        for kernel, dtype in tqdm(columns, unit="column", disable=None):
            record(column(subject, kernel, dtype))
    return book


if __name__ == "__main__":
    main()
