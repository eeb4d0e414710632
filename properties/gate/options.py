"""How a run is told what to do: its options, its markers, its Hypothesis profiles."""

from __future__ import annotations

import argparse
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, settings

from ..laws.domain import USUAL, known_families
from ..laws.registry import PROMISES, reference
from .domain import FEATURES, MORE
from .loading import DEFAULT

MARKERS = {
    "law": "a property that is claimed, declared by @law",
    # xdist's own, for where it is not installed
    "xdist_group(name)": "tests that one worker runs, for what they share is dear",
    "needs(*features)": "the law is for growers that claim these promises or features",
    **{p.name: p.says for p in (*PROMISES.values(), reference)},
}
# Every field is set, so that nothing of Hypothesis's own `ci` profile leaks in.
COMMON: dict[str, Any] = {
    "deadline": None,
    "print_blob": False,
    "report_multiple_bugs": False,
    "stateful_step_count": 50,
    "verbosity": Verbosity.normal,
    "backend": "hypothesis",
    "suppress_health_check": (
        HealthCheck.too_slow,  # a law builds whole models
        HealthCheck.filter_too_much,  # a grower may decline most of what is drawn
        HealthCheck.differing_executors,
    ),
}
settings.register_profile(
    "quick",
    max_examples=12,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # a cause is made small, not each law
    **COMMON,
)
settings.register_profile(
    "thorough",
    max_examples=1000,
    derandomize=False,
    database=settings.get_profile("default").database,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.target),
    **COMMON,
)
settings.load_profile("quick")


def add_options(parser: pytest.Parser) -> None:
    """The options of a run: the grower, what it claims, what is expected and written."""
    group = parser.getgroup("growproof")
    group.addoption(
        "--grower",
        metavar="MODULE:CALLABLE",
        default=os.environ.get("GROWPROOF_GROWER"),
        help="the grower under test, e.g. mypackage.grow:grow or grow.py:grow (default: "
        f"$GROWPROOF_GROWER, else {DEFAULT})",
    )
    group.addoption(
        "--grower-command",
        metavar="COMMAND",
        help="a program as the grower, e.g. "
        "'mygrow {source} {destination} {target_json}' on checkpoint directories",
    )
    group.addoption(
        "--grower-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="the most that one growth may take, of --grower-command or where the run "
        "is isolated (default: 60)",
    )
    group.addoption(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        help="of `growproof check`: end the run where one growth takes longer than that, "
        "or the grower ends its process (default where $CI is set)",
    )
    group.addoption(
        "--without",
        action="append",
        default=[],
        metavar="FEATURE",
        help="what the grower does not claim, e.g. --without layers,biases, of: "
        f"{', '.join(FEATURES)}",
    )
    group.addoption(
        "--with",
        action="append",
        default=[],
        dest="with_features",
        metavar="FEATURE",
        help=f"what it claims beyond the core, of: {', '.join(MORE)}",
    )
    group.addoption(
        "--family",
        action="append",
        default=[],
        metavar="FAMILY",
        help="the families that the grower is for, e.g. qwen2,gemma2 (default: "
        f"{', '.join(USUAL)}; all for {DEFAULT}), of: {', '.join(known_families())}",
    )
    group.addoption(
        "--xfails",
        metavar="FILE",
        help="expected failures, a line each: law | reason | link | expires | ceiling",
    )
    group.addoption(
        "--write-xfails",
        metavar="FILE",
        help="write this run's failures as such a file",
    )
    group.addoption(
        "--repro-dir",
        metavar="DIR",
        help="write a stand-alone script for each failure there",
    )
