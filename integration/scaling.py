"""Time and memory of growing, against the number of parameters, from 10 million to 2 billion.

    python -m integration.scaling     # every size, in a process of its own; 20 minutes

Each of the two families is grown 4 → 5 wide by its default, in bfloat16: a Llama by scaled
norms, a StableLm by centred writers. In memory beside zeros and a copy of the same bytes;
from directory to directory beside `cp -r` of the result. Calls alternate, and of each the
median counts. What lies beyond the largest size is an estimate, by the largest size.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import growproof
import torch
from growproof.checkpoints import grow_checkpoint
from growproof.models import state_of
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM

from properties.errors.environment import environment
from properties.power.picture import GRID, text

from .sparse import forget, peak

RESULT = Path(__file__).parent / "results" / "scaling-cpu.json"
# hidden size and layers of about 10, 30, 100, 300 million, 1 and 2 billion parameters
SIZES = {10: (128, 8), 30: (320, 8), 100: (640, 12), 300: (1024, 18),
         1000: (2048, 17), 2000: (2560, 23)}  # fmt: skip
FAMILIES = {"llama": "scaled", "stablelm": "centred"}
ROUNDS = 3
BEYOND = {"70B": 70e9, "1T": 1e12}
NAMES = {"grow": "growproof.grow", "zeros": "zeros and a copy",
         "files": "growproof grow, of files", "cp": "cp -r of the result"}  # fmt: skip


def source(family: str, millions: int) -> Any:
    """A model of about so many parameters, of random weights."""
    hidden, layers = SIZES[millions]
    heads = max(1, hidden // 64)
    config = AutoConfig.for_model(
        family, vocab_size=32_000, hidden_size=hidden, num_hidden_layers=layers,
        intermediate_size=11 * hidden // 4, num_attention_heads=heads,
        num_key_value_heads=heads, tie_word_embeddings=False, dtype=torch.bfloat16,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-0.1, 0.1)
    return model.eval()


def target(model: Any) -> dict[str, int]:
    """4 → 5 wide: heads of a Llama stay, and those of a StableLm are wider."""
    return {"hidden_size": 5 * model.config.hidden_size // 4}


def zeros_and_copy(old: dict[str, Any], sizes: dict[str, Any]) -> list[torch.Tensor]:
    """The least that growing can be: zeros of the new sizes, old entries in a corner."""
    found = []
    for name, x in old.items():
        y = torch.zeros(sizes[name], dtype=x.dtype)
        y[tuple(map(slice, x.shape))] = x
        found.append(y)
    return found


def timed(**calls: Callable[[], object]) -> dict[str, float]:
    """The median seconds of each call, by turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            made = call()
            taken[name].append(time.perf_counter() - began)
            del made
    return {name: statistics.median(times) for name, times in taken.items()}


def most(call: Callable[[], object]) -> int:
    """The bytes by which a call's peak lies above what was resident before it."""
    forget()
    before = peak()
    call()
    return peak() - before


def in_memory(model: Any) -> dict[str, Any]:
    """Sizes, seconds, and the extra peak in bytes over those of what is grown."""
    growing = functools.partial(growproof.grow, model, target(model))
    state = state_of(model)
    sizes = {name: tuple(x.shape) for name, x in state_of(growing()).items()}
    grown = sum(map(math.prod, sizes.values()))
    seconds = timed(grow=growing, zeros=lambda: zeros_and_copy(state, sizes))
    return {
        "parameters": sum(x.numel() for x in state.values()),
        "grown": grown,
        "memory": most(growing) / (2 * grown),
        "seconds": seconds,
    }


def from_files(here: Path, wide: dict[str, int]) -> dict[str, Any]:
    """Seconds, and the extra peak in bytes."""

    def growing() -> None:
        grow_checkpoint(
            here / "source", here / "grown", wide, force=True, progress=False
        )

    def copied() -> None:
        shutil.rmtree(here / "copy", ignore_errors=True)
        subprocess.run(
            ["cp", "-r", str(here / "grown"), str(here / "copy")], check=True
        )

    return {"file_bytes": most(growing), "seconds": timed(files=growing, cp=copied)}


def measure(family: str, millions: int) -> dict[str, Any]:
    """One size of one family, in memory and from files."""
    model = source(family, millions)
    wide, row = target(model), in_memory(model)
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(Path(name) / "source")
        del model
        files = from_files(Path(name), wide)
    seconds = row["seconds"] | files["seconds"]
    return {"family": family, "norm": FAMILIES[family]} | row | files | {
        "seconds": seconds
    }  # fmt: skip


def all_sizes() -> Iterator[dict[str, Any]]:
    """Each in a process of its own, so that none finds the other's pages."""
    cases = [(family, millions) for millions in SIZES for family in FAMILIES]
    for family, millions in tqdm(cases, unit="size", disable=None):
        command = [sys.executable, "-m", "integration.scaling", "--one", family]
        done = subprocess.run(
            [*command, str(millions)], check=True, text=True, stdout=subprocess.PIPE
        )
        yield json.loads(done.stdout.splitlines()[-1])


def estimate(rows: list[dict[str, Any]], family: str, what: str, n: float) -> float:
    """Seconds at n parameters, by those of the largest size that was measured."""
    last = max(
        (row for row in rows if row["family"] == family), key=lambda r: r["parameters"]
    )
    return last["seconds"][what] / last["parameters"] * n


# --- the picture and the table ----------------------------------------------------------

LEFT, TOP, WIDE, HIGH = 70, 60, 400, 320
X, Y = (7.0, 9.5), (-2.5, 2.5)  # decades of parameters and of seconds
LINES = {
    ("llama", "grow"): ("#1d4ed8", ""), ("stablelm", "grow"): ("#c2410c", ""),
    ("llama", "zeros"): ("#6b7280", ""), ("llama", "files"): ("#1d4ed8", "6 4"),
    ("stablelm", "files"): ("#c2410c", "6 4"), ("llama", "cp"): ("#6b7280", "6 4"),
}  # fmt: skip


def picture(rows: list[dict[str, Any]]) -> str:
    """Seconds against parameters, both on log axes: straight lines, one a way."""
    height, width = TOP + HIGH + 50, LEFT + WIDE + 250
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        "<title>Time of growing against parameters</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(14, 24, "Growing 4 → 5 wide, bfloat16, two cores", weight="bold"),
        text(LEFT, TOP - 10, "seconds"),
        text(LEFT + WIDE, TOP + HIGH + 36, "parameters before", anchor="end"),
    ]
    for decade in range(math.ceil(X[0]), math.floor(X[1]) + 1):
        x = across(10.0**decade)
        parts.append(f'<path d="M{x:.1f} {TOP} V{TOP + HIGH}" stroke="{GRID}"/>')
        words = {7: "10M", 8: "100M", 9: "1B"}[decade]
        parts.append(text(x, TOP + HIGH + 18, words, anchor="middle"))
    for decade in range(math.ceil(Y[0]), math.floor(Y[1]) + 1):
        y = down(10.0**decade)
        parts.append(f'<path d="M{LEFT} {y:.1f} H{LEFT + WIDE}" stroke="{GRID}"/>')
        parts.append(text(LEFT - 8, y + 4, f"{10.0**decade:g}", anchor="end"))
    ends: list[tuple[float, str, str, str]] = []
    for (family, what), (colour, dashes) in LINES.items():
        points = [
            (across(r["parameters"]), down(r["seconds"][what]))
            for r in rows
            if r["family"] == family
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dashes}"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
            for x, y in points
        ]
        whose = f", {family}" if what in ("grow", "files") else ""
        ends.append((points[-1][1], NAMES[what] + whose, colour, dashes))
    at = 0.0
    for y, words, colour, dashes in sorted(ends):
        at = max(y, at + 16)
        x = LEFT + WIDE + 14
        parts.append(
            f'<path d="M{x} {at:.1f} h22" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dashes}"/>'
        )
        parts.append(text(x + 28, at + 4, words))
    return "\n".join([*parts, "</svg>"]) + "\n"


def across(parameters: float) -> float:
    return LEFT + WIDE * (math.log10(parameters) - X[0]) / (X[1] - X[0])


def down(seconds: float) -> float:
    return TOP + HIGH * (Y[1] - math.log10(seconds)) / (Y[1] - Y[0])


def results() -> dict[str, Any]:
    """What is committed."""
    return json.loads(RESULT.read_text())


def ratios() -> str:
    """A table: each way beside its limit, and what memory it takes."""
    lines = [
        "| parameters | family, norm | over zeros and a copy | memory over the grown bytes "
        "| files, over cp -r | memory of files |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in results()["rows"]:
        s = row["seconds"]
        lines.append(
            f"| {row['parameters'] / 1e6:,.0f}M | {row['family']}, {row['norm']} "
            f"| {s['grow'] / s['zeros']:.1f} | {row['memory']:.2f} "
            f"| {s['files'] / s['cp']:.1f} | {row['file_bytes'] / 1e6:,.0f} MB |"
        )
    return "\n".join(lines)


def estimates() -> str:
    """What the largest size says of larger ones, in minutes."""
    lines = [
        "| parameters | family | in memory | files |",
        "| ---: | --- | ---: | ---: |",
    ]
    for words, n in BEYOND.items():
        for family in FAMILIES:
            took = [
                estimate(results()["rows"], family, what, n) / 60
                for what in ("grow", "files")
            ]
            lines.append(
                f"| {words} | {family} | {took[0]:,.0f} min | {took[1]:,.0f} min |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the results and their picture."""
    usage = argparse.ArgumentParser(description=__doc__)
    usage.add_argument("--one", nargs=2, metavar=("FAMILY", "MILLIONS"))
    args = usage.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    machine = environment()
    kept = ("python", "torch", "transformers", "cpu", "cpu_capability", "threads")
    found = {"machine": {k: machine[k] for k in kept}, "rows": list(all_sizes())}
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    RESULT.with_suffix(".svg").write_text(picture(found["rows"]))
    print(ratios(), estimates(), sep="\n\n")


if __name__ == "__main__":
    main()
