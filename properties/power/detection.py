"""What the suite is worth: every known-bad grower, and the law that finds it.

growproof power                      # each fault × its law × dtype, as a table
growproof power --all-laws FAULT …   # every law on some faults, --picture as SVG
growproof power --smallest           # shrunk: the smallest example that shows each
growproof power --families           # each fault in each family: found, or no fault there
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from hypothesis import Phase, settings

from ..gate import plugin  # noqa: F401  it registers the profiles

DTYPES = ("float64", "float32", "bfloat16")
RESULTS = Path(__file__).with_name("power.json")
RIGHT = Path(__file__).with_name("right.json")  # of --false-alarms


def quiet(**changes: Any) -> None:
    """The quick profile without shrinking: to find, not to explain.

    With more examples, so that no fault is found by luck: how many it took is told.
    """
    changes = {
        "max_examples": 60,
        "phases": (Phase.explicit, Phase.generate),
        "print_blob": False,
    } | changes
    settings.register_profile("power", settings.get_profile("quick"), **changes)
    settings.load_profile("power")
    torch.set_num_threads(1)


def by_line(entries: Iterable[Any]) -> str:
    """A list as JSON, an entry a line."""
    return "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n"


def parser() -> argparse.ArgumentParser:
    """The options of `growproof power`."""
    p = argparse.ArgumentParser("growproof power", description=__doc__)
    p.add_argument("faults", nargs="*", metavar="FAULT", help="default: all")
    p.add_argument("--dtype", action="append", choices=DTYPES, help="default: all")
    p.add_argument(
        "--all-laws",
        action="store_true",
        help="every law, not one: fault → law → examples, where it is found, as --json",
    )
    p.add_argument("--picture", metavar="FILE", type=Path, help="of --all-laws")
    p.add_argument(
        "--families", action="store_true",
        help="instead, in a checkout: in each family, on what `check --family` draws, in "
        "float64; with --json FILE, a run that was stopped goes on",
    )  # fmt: skip
    p.add_argument("--smallest", action="store_true", help="shrink what is found")
    p.add_argument("--json", metavar="FILE", type=Path, help="store the table")
    p.add_argument(
        "--false-alarms", metavar="N", type=int, default=0,
        help="instead: about N random examples of the laws on known-good growers",
    )  # fmt: skip
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the table; exit 1 if a fault is not found by its law in float64."""
    options = parser().parse_args(argv)
    shrink = (Phase.explicit, Phase.generate, Phase.shrink)
    if options.false_alarms:  # of each law a few, the first of which is the simplest
        quiet(derandomize=False, max_examples=6)
    elif options.families:
        settings.load_profile("quick")
        torch.set_num_threads(1)
    else:
        quiet(**({"phases": shrink} if options.smallest else {}))
    from ..growers.known_bad import BY_NAME  # the laws, which take these settings
    from . import trials

    if unknown := sorted(set(options.faults) - set(BY_NAME)):
        print(f"no known-bad grower is called {', '.join(unknown)}", file=sys.stderr)
        return 4
    if options.families:
        if not Path(__file__).with_name("by_family.py").exists():
            print("--families needs a checkout of growproof", file=sys.stderr)
            return 4
        from . import by_family

        return by_family.main(options)
    if options.false_alarms:
        return trials.false_alarms(options.false_alarms, options.json)
    return trials.detect(options)
