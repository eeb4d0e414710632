"""Scores as runs would leave them: what the tests of this room are made of."""

from __future__ import annotations

import dataclasses
from typing import Any

from .document import (
    Besides,
    Cause,
    Count,
    Error,
    Expected,
    JudgedLaw,
    Missed,
    Power,
    Row,
    Score,
)

HOSTILE = "<script>nope()</script> | `a_b` \\end{verbatim} 100 % √x ≈ 1"


def law(name: str = "logits_are_unchanged", **changes: Any) -> JudgedLaw:
    """A law of two items that passed."""
    fields = {
        "name": name, "version": 1, "source": 64 * "a", "promise": "lossless",
        "tier": "sampled", "sentence": "f' = f.",
        "items": {"llama-hidden": "passed", "llama-mlp": "passed"},
    }  # fmt: skip
    return JudgedLaw(**fields | changes)


def score(*laws: JudgedLaw, **changes: Any) -> Score:
    """A whole green run of mine:grow."""
    row = Row(promise="lossless", family="llama", axis="mlp", tier="sampled", passed=2)
    error = Error(law="logits_are_unchanged", dtype="float64", kernel="ordered", cases=12,
                  largest=0.5, ulps=3.0, budget=6.0, example="case 1")  # fmt: skip
    fields = {
        "grower": "mine:grow", "conforms": True, "verdict": "mine:grow conforms: lossless",
        "created": "2026-12-01T00:00:00+00:00", "edition": "", "whole": True,
        "command": "growproof check mine:grow",
        "claims": {"families": ["llama"], "axes": ["mlp"], "options": ["gqa"],
                   "promises": ["lossless"], "without": ["stablelm"]},
        "laws": [*laws] or [law()], "shared": 64 * "b", "score": [row], "errors": [error],
        "causes": [], "besides": [], "expected": [],
        "declined": [Count(what="odd sizes", times=3)],
        "left_out": [Count(what="stablelm", times=7)],
        "domain": {"families": ["llama"], "dtypes": ["float64"],
                   "largest": {"mlp": 331}, "grown": {"mlp": 12}},
        "power": Power(growers=4, found=2, outside=1, by_dtype={"float64": [4, 4]},
                       missed=[Missed(grower="naive", says="at the end", why="not asked")]),
        "run": {"tests": 2, "growths": 24, "profile": "quick", "examples": 12,
                "seed": "derandomized"},
        "versions": {"growproof": "0.1.0", "python": "3.12.1", "torch": "2.13.0+cpu",
                     "transformers": "5.23.0", "hypothesis": "6.155.2"},
        "machine": {"cpu": "AMD EPYC"},
    }  # fmt: skip
    return Score(**fields | changes)


def red() -> Score:
    """One law violated for a cause, one expected to be, and errors that grew."""
    cause = Cause(
        cause=HOSTILE, laws=["logits_are_unchanged"], promise="lossless",
        sentence="f' = f.", message="logits differ", tap="layers.0.mlp", case="llama",
        repeat="growproof check mine:grow -k logits", script=f"# {HOSTILE}\nprint(1)\n",
    )  # fmt: skip
    row = Row(promise="lossless", family="llama", axis="mlp", tier="sampled", failed=1,
              expected=1, worst=None)  # fmt: skip
    return dataclasses.replace(
        score(law(items={"llama-hidden": "failed", "llama-mlp": "expected"})),
        conforms=False, verdict="mine:grow violates lossless: it is wrong", score=[row],
        causes=[cause], besides=[Besides(test="errors::eps", why="1 worse")],
        expected=[Expected(law="test_x", reason="known", expires="2027-01-01")],
    )  # fmt: skip
