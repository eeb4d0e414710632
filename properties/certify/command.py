"""`growproof certify`: the certifier on a built-in set of growths, or on one of yours."""

import argparse
import copy
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from growproof.cli import Parser
from growproof.models import CLASSES, SIZES, shape_of
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PretrainedConfig

from ..gate.loading import DEFAULT, BrokenGrower, load_grower
from .certificates import Certificate, Grower, certify


class Case(NamedTuple):
    """A growth of the built-in set: a config's fields, and the sizes it grows to."""

    name: str
    family: str
    fields: Mapping[str, Any]
    target: Mapping[str, int]


TINY: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "head_dim": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e3},
    },
    "stablelm": {
        "vocab_size": 11, "hidden_size": 16, "intermediate_size": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "use_qkv_bias": True, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
        },
    },
}  # fmt: skip
# per family: an axis, its sizes by the order of SIZES (None: as it was)
AXES: dict[str, dict[str, tuple[int | None, ...]]] = {
    "llama": {
        "nothing": (),
        "hidden": (12,),
        "mlp": (None, 9),
        "layers": (None, None, 3),
        "heads": (None, None, None, 8),
        "groups": (None, None, None, 8, 4),
        "head_dim": (None, None, None, None, None, 6),
        "all": (12, 9, 3, 12, 3, 6),
    },
    "stablelm": {
        "nothing": (),
        "head_dim": (20,),
        "mlp": (None, 9),
        "layers": (None, None, 3),
        "heads": (24, None, None, 6),
        "groups": (24, None, None, 6, 3),
        "all": (36, 9, 3, 6, 3),
    },
}
# further bases, grown along all axes at once, but for the sizes given here
VARIANTS: dict[str, dict[str, tuple[dict[str, Any], dict[str, int]]]] = {
    "llama": {
        "tied": ({"tie_word_embeddings": True}, {}),
        "no biases": ({"attention_bias": False, "mlp_bias": False}, {}),
        "one head a group, gelu": (
            {"num_key_value_heads": 4, "hidden_act": "gelu"},
            {"num_key_value_heads": 12},
        ),
        "deeper": ({"num_hidden_layers": 3}, {"num_hidden_layers": 5}),
    },
    "stablelm": {
        "parallel": ({"use_parallel_residual": True}, {}),
        "no biases": ({"use_qkv_bias": False}, {}),
        "one head a group, gelu": (
            {"num_key_value_heads": 4, "hidden_act": "gelu"},
            {"num_key_value_heads": 6},
        ),
        "odd head_dim": ({"hidden_size": 20}, {"hidden_size": 42}),
    },
}


def cases() -> list[Case]:
    """Each family and axis alone, all together, and all together for each variant."""
    found = []
    for family, axes in AXES.items():
        for axis, sizes in axes.items():
            target = {n: k for n, k in zip(SIZES, sizes, strict=False) if k}
            found.append(Case(axis, family, TINY[family], target))
        everything = found[-1].target
        for name, (fields, target) in VARIANTS[family].items():
            base = TINY[family] | fields
            found.append(Case(f"all, {name}", family, base, {**everything, **target}))
    return found


def config_of(family: str, fields: Mapping[str, Any]) -> PretrainedConfig:
    kind: Any = CLASSES[family][1].config_class
    return kind(**copy.deepcopy(dict(fields)))


def assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value JSON where it can be."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def options_of(argv: Sequence[str] | None) -> tuple[Any, Grower, list[Case]]:
    """The options, the grower and the growths; exits with 4 where they make no sense."""
    usage = Parser(prog="growproof certify", description=main.__doc__)
    usage.add_argument("grower", metavar="MODULE:CALLABLE", nargs="?", default=DEFAULT)
    usage.add_argument("--family", choices=sorted(TINY))
    pairs: dict[str, Any] = {"nargs": "+", "action": "extend", "type": assignment}
    for name, text in (
        ("--shape", "fields of the config to grow, over a tiny one: hidden_size=24"),
        ("--target", "the sizes to grow to: hidden_size=36 num_hidden_layers=3"),
    ):
        usage.add_argument(name, metavar="NAME=VALUE", default=[], help=text, **pairs)
    usage.add_argument("--json", metavar="FILE", type=Path, help="write certificates")
    usage.add_argument("--coq", metavar="DIR", type=Path, help="write proofs for coqc")
    options = usage.parse_args(argv)
    chosen = [case for case in cases() if options.family in (None, case.family)]
    target = dict(options.target)
    if options.shape or target:
        if options.family is None:
            usage.error("--shape and --target need a --family")
        fields = TINY[options.family] | dict(options.shape)
        name = ", ".join(f"{n}={v}" for n, v in target.items()) or "nothing"
        chosen = [Case(name, options.family, fields, target)]
    for name, size in target.items():
        if name not in SIZES or not isinstance(size, int):
            usage.error(f"no size to grow to: {name}={size} (of {', '.join(SIZES)})")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        for case in chosen:
            shape_of(config_of(case.family, case.fields))
        return options, load_grower(options.grower), chosen
    except (BrokenGrower, StrictDataclassError, ValueError, TypeError) as error:
        usage.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    """Certify a grower: 0 all certified, 1 any refused, 3 any undecided, 4 usage."""
    options, grower, chosen = options_of(argv)
    table = Table("family", "growth", "verdict", "reason", "seconds")
    colour = {"certified": "green", "refused": "red", "undecided": "yellow"}
    found: list[Certificate] = []
    for case in chosen:
        c = certify(grower, config_of(case.family, case.fields), case.target)
        found.append(c)
        verdict = f"[{colour[c.verdict]}]{c.verdict}"
        table.add_row(
            c.family, case.name, verdict, escape(c.reason), f"{c.seconds:.2f}"
        )
        if options.coq and c.coq:
            options.coq.mkdir(parents=True, exist_ok=True)
            stem = re.sub(r"\W+", "_", f"{c.family} {case.name}")
            (options.coq / f"{stem}.v").write_text(c.coq, "utf-8")
    Console().print(table)
    if options.json:
        options.json.write_text(
            json.dumps([c.json() for c in found], indent=1), "utf-8"
        )
    verdicts = {c.verdict for c in found}
    return 1 if "refused" in verdicts else 3 if "undecided" in verdicts else 0
