"""What the suite is worth: every known-bad grower, and the law that finds it.

growproof power                      # each fault × its law × dtype, as a table
growproof power --all-laws FAULT …   # every law on some faults, --picture as SVG
growproof power --smallest           # shrunk: the smallest example that shows each
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import Phase, settings
from tqdm import tqdm

from ..errors.ledger import Ledger, recording
from ..gate.explain import describe
from ..gate.loading import Grower
from ..growers.known_bad import BY_NAME, FAULTS, Fault
from ..growers.known_good import GROWERS, REFERENCE, Good
from ..laws import registry
from ..laws.strategies import CORE, DOMAIN, latest, parse
from .picture import Matrix, picture

DTYPES = ("float64", "float32", "bfloat16")
PROMISED: dict[str, set[str]] = {}  # the promises that each law is about
FAILURES: list[str] = []  # the arguments of each failure of a run
RESULTS = Path(__file__).with_name("power.json")


@dataclass(frozen=True)
class Cell:
    """One law on one fault: whether it was found, after how many examples, and why.

    example: the arguments that it was found with; shrunk, if that was asked for.
    """

    fault: str
    law: str
    dtype: str
    found: bool
    examples: int
    seconds: float
    message: str
    example: str = ""


@functools.cache
def laws() -> dict[str, Callable[..., None]]:
    """Every law of the grower under test, by its pytest name: law(grower, example)."""
    found: dict[str, Callable[..., None]] = {}
    for law in registry.laws().values():
        if law.promise is not registry.reference:
            for name, arguments in law.variants.items():
                found[name] = bind(law.test, arguments)
                PROMISED[name] = law.promises
    return found


def bind(test: Any, params: dict[str, Any]) -> Callable[..., None]:
    """The law as a function of the grower alone, or on an example: see `parsed`."""
    inner = test.hypothesis.inner_test
    wanted = inspect.signature(inner).parameters
    if "record_share" in wanted:
        params = {**params, "record_share": lambda *_: None}

    @functools.wraps(inner)
    def kept(**drawn: Any) -> None:
        try:
            inner(**drawn)
        except Exception:
            told = {k: v for k, v in drawn.items() if k not in ("grower", *params)}
            told["case"] = (told.pop("data", None) and latest()) or told["case"]
            FAILURES.append(
                ", ".join(f"{name}={value!r}" for name, value in sorted(told.items()))
            )
            raise

    def law(grower: Any, example: str | None = None) -> None:
        if example is not None:
            drawn = parsed(example)
            if "data" in wanted:
                drawn = {"data": SimpleNamespace(draw=lambda *_, c=drawn["case"]: c)}
            inner(grower=grower, **params, **drawn)
            return
        test.hypothesis.inner_test = kept
        try:
            test(grower=grower, **params)
        finally:
            test.hypothesis.inner_test = inner

    return law


def parsed(example: str) -> dict[str, Any]:
    """The arguments in a Cell's example: a case, literals and dtypes."""
    call = ast.parse(f"dict({example})", mode="eval").body
    assert isinstance(call, ast.Call)

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Call):
            return parse(ast.unparse(node))
        if isinstance(node, ast.Attribute):
            return getattr(torch, node.attr)
        return ast.literal_eval(node)

    return {str(keyword.arg): value(keyword.value) for keyword in call.keywords}


def run(fault: Fault, names: list[str], dtype: str) -> Cell:
    """The first of these laws that finds the fault, or the last one, that did not."""
    DOMAIN.dtype = getattr(torch, dtype)
    started, calls, message, found = time.perf_counter(), 0, "", False

    def counted(model: Any, target: Any) -> Any:
        nonlocal calls
        calls += not FAILURES  # what comes after the first is shrinking
        return fault(model, target)

    table = laws()
    FAILURES.clear()
    name, example = names[-1], ""
    for name in names:
        try:
            table[name](Grower(fault.name, counted))
        except Exception as error:
            kind = (
                "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            )
            message, found = kind + (str(error).splitlines() or [""])[0], True
            example = FAILURES[-1]
            break
    DOMAIN.dtype = torch.float64
    seconds = round(time.perf_counter() - started, 2)
    return Cell(fault.name, name, dtype, found, calls, seconds, message, example)


def named(fault: Fault) -> list[str]:
    """The laws that a fault's `law` stands for: one, or all its parametrisations."""
    return [
        name for name in laws() if name == fault.law or name.startswith(fault.law + "[")
    ]


def claimed(fault: Fault) -> list[str]:
    """Every law, but for `trainable`: that is a promise of faults that break it alone."""
    trains = set(named(fault))
    return [n for n in laws() if "trainable" not in PROMISED[n] or n in trains]


def right_reason(fault: Fault, cell: Cell) -> bool:
    """Rejected by an assertion that says what the fault says, not by a crash."""
    crash = re.match(r"\w+(Error|Exception): ", cell.message)
    return (
        cell.found and not crash and re.search(fault.reason, cell.message) is not None
    )


def quiet(**changes: Any) -> None:
    """The quick profile without shrinking: to find, not to explain."""
    changes = {
        "phases": (Phase.explicit, Phase.generate),
        "print_blob": False,
    } | changes
    settings.register_profile("power", settings.get_profile("quick"), **changes)
    settings.load_profile("power")
    torch.set_num_threads(1)


def promised(good: Good) -> list[str]:
    """The laws that a known-good grower promises to keep."""
    return [name for name in laws() if PROMISED[name] <= set(good.promises)]


def false_alarms(total: int, store: Path | None) -> int:
    """Run about `total` random examples over all known-good growers; exit 1 on an alarm.

    Random ones, evenly over growers and laws; what was run is counted and stored.
    """
    # before the laws are imported: they take the settings of their definition
    quiet(derandomize=False, max_examples=max(1, total // 250))
    growers = (REFERENCE, *GROWERS)
    jobs = [(good, name) for good in growers for name in promised(good)]
    record = Ledger()
    counts: Counter[str] = Counter()
    alarms: list[dict[str, str]] = []
    started = time.perf_counter()
    for good, name in tqdm(jobs, unit="law", disable=None):

        def counted(model: Any, target: Any, good: Good = good) -> Any:
            counts[good.name] += 1
            return good(model, target)

        DOMAIN.features = (set(CORE) | set(good.with_features)) - set(good.without)
        try:
            with recording(record):
                laws()[name](Grower(good.name, counted))
        except Exception as error:
            alarms.append({"grower": good.name, "law": name, "message": str(error)})
            print(f"FALSE ALARM {good.name} {name}: {error}")
    DOMAIN.features = set(CORE)
    worst = {law: max(r.ratio for r in rs) for law, rs in record.laws.items()}
    result = {
        "examples": counts.total(),
        "by_grower": dict(counts),
        "laws": len({name for _, name in jobs}),
        "alarms": alarms,
        "worst_ratio": {law: round(ratio, 4) for law, ratio in sorted(worst.items())},
        "seconds": round(time.perf_counter() - started),
    }
    print(json.dumps(result, indent=1))
    if store:
        store.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(alarms))


def matrix(cells: list[Cell], store: Path | None, drawn: Path | None) -> int:
    """What --all-laws stores, and draws of its first dtype.

    Exit 1 if there is a fault that no law finds in float64.
    """
    found: dict[str, Matrix] = {}
    for c in cells:
        laws_of = found.setdefault(c.dtype, {}).setdefault(c.fault, {})
        if c.found:
            laws_of[c.law] = c.examples
    if store:
        store.write_text(json.dumps(found, indent=1) + "\n")
    if drawn:
        dtype, faults = next(iter(found.items()))
        drawn.write_text(picture(faults, dtype))
    for dtype, faults in found.items():
        least = min(faults, key=lambda fault: len(faults[fault]))
        print(f"{dtype}: found by the fewest laws, {len(faults[least])}: {least}")
    return int(not all(found.get("float64", {}).values()))


def table(cells: list[Cell], *, smallest: bool = False) -> str:
    """The detection table as text, 100 columns; below each line the smallest case."""
    lines = [f"{'fault':<26}{'law':<46}{'dtype':<10}{'found':<7}{'after':>5}{'s':>7}"]
    for c in cells:
        found = "yes" if c.found else "no"
        law = c.law.removeprefix("test_")[:44]
        lines.append(
            f"{c.fault:<26}{law:<46}{c.dtype:<10}{found:<7}{c.examples:>5}{c.seconds:>7.1f}"
        )
        if smallest and c.found:
            lines.append(f"    {describe(parsed(c.example)['case'])}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the table; exit 1 if a fault is not found by its law in float64."""
    parser = argparse.ArgumentParser("growproof power", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="default: all")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: all")
    parser.add_argument(
        "--all-laws",
        action="store_true",
        help="every law, not one: fault → law → examples, where it is found, as --json",
    )
    parser.add_argument("--picture", metavar="FILE", type=Path, help="of --all-laws")
    parser.add_argument("--smallest", action="store_true", help="shrink what is found")
    parser.add_argument("--json", metavar="FILE", type=Path, help="store the table")
    parser.add_argument("--false-alarms", metavar="N", type=int, default=0)
    options = parser.parse_args(argv)
    unknown = sorted(set(options.faults) - set(BY_NAME))
    if unknown:
        print(f"no known-bad grower is called {', '.join(unknown)}", file=sys.stderr)
        return 4
    if options.false_alarms:
        return false_alarms(options.false_alarms, options.json)
    shrink = (Phase.explicit, Phase.generate, Phase.shrink)
    quiet(**({"phases": shrink} if options.smallest else {}))
    faults = [BY_NAME[name] for name in options.faults] or list(FAULTS)
    jobs = [
        (fault, names, dtype)
        for fault in faults
        for dtype in options.dtype or DTYPES
        for names in (
            [[n] for n in claimed(fault)] if options.all_laws else [named(fault)]
        )
    ]
    cells = [run(*job) for job in tqdm(jobs, unit="cell", disable=None)]
    print(table(cells, smallest=options.smallest))
    if options.all_laws:
        return matrix(cells, options.json, options.picture)
    if options.json:
        options.json.write_text(json.dumps([asdict(c) for c in cells], indent=1) + "\n")
    truth = [c for c in cells if c.dtype == "float64"]
    missed = [c for c in truth if not right_reason(BY_NAME[c.fault], c)]
    for c in missed:
        wanted = f"{BY_NAME[c.fault].law} to say {BY_NAME[c.fault].reason!r}"
        print(f"MISSED {c.fault}: expected {wanted}, got {c.message or 'nothing'}")
    print(
        f"{len(truth) - len(missed)} of {len(truth)} found in float64, for their reason"
    )
    return int(bool(missed))
