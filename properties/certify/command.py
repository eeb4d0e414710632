"""`growproof certify`: the certifier on a built-in set of growths, or on one of yours."""

import argparse
import copy
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from growproof.cli import Parser
from growproof.decoder import GrowthError
from growproof.reading import refused
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ..gate.loading import DEFAULT, BrokenGrower, load_grower
from ..gate.verdict import wrapped
from ..laws.domain import CORE, EXTRAS, needed
from .certificates import Certificate, certify
from .equality import Grower

if TYPE_CHECKING:
    from .shapes import Question


class Case(NamedTuple):
    """A growth of the built-in set: a config's fields, and the sizes it grows to.

    asks: what a grower must claim for it beyond what the sizes show.
    """

    name: str
    family: str
    fields: Mapping[str, Any]
    target: Mapping[str, int]
    asks: tuple[str, ...] = ()


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
SMALL: dict[str, Any] = {
    "vocab_size": 11, "hidden_size": 32, "intermediate_size": 10,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "max_position_embeddings": 96, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2}
# what a tiny model of a family needs beside SMALL: any causal LM of transformers will do
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 16}, "qwen2": {}, "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8}, "gemma2": {"head_dim": 8, "sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16}, "phi": {}, "phi3": {},
    "olmo2": {}, "gpt_neox": {}, "gpt2": {}, "starcoder2": {}, "granite": {},
    "smollm3": {}, "mixtral": EXPERTS | {"num_local_experts": 4},
    "qwen3_moe": EXPERTS | {"num_experts": 4, "moe_intermediate_size": 10, "head_dim": 8},
}  # fmt: skip
FAMILIES = TINY | {family: SMALL | fields for family, fields in OTHERS.items()}
SIZES = dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"))  # fmt: skip
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
# ways of fitting a model to hardware: base, sizes, and what a grower must ask for
DEALT = {"num_attention_heads": 8, "num_key_value_heads": 4}
WAYS: dict[str, dict[str, tuple[dict[str, Any], dict[str, int], tuple[str, ...]]]] = {
    "llama": {
        "repeated": ({}, {"num_key_value_heads": 4}, ("dealt",)),
        "all, dealt": (
            {"hidden_size": 12, "num_attention_heads": 6},
            {"hidden_size": 16, "head_dim": 6, **DEALT}, ("dealt",)),
        "all, between": ({}, {"head_dim": 8}, ()),
        "all, vocabulary": ({}, {"vocab_size": 16}, ("vocab",)),
        "vocabulary, tied": ({"tie_word_embeddings": True}, {"vocab_size": 16}, ("vocab",)),
    },
    "stablelm": {
        "all, dealt": (
            {"hidden_size": 24, "num_attention_heads": 6}, {"hidden_size": 48, **DEALT},
            ("dealt",)),
        "all, vocabulary": ({}, {"vocab_size": 16}, ("vocab",)),
    },
}  # fmt: skip


def needs(case: Case) -> set[str]:
    """The features that a grower must claim for this growth to be its business."""
    known = case.family in TINY
    shown = needed(case.family, case.fields, case.target) if known else {case.family}
    return {*shown, *case.asks}


def cases() -> list[Case]:
    """For Llama and StableLm, which grow in every direction: each family and axis alone,
    all together, and all together for each variant; then the ways to fit hardware.
    """
    found = []
    for family, axes in AXES.items():
        for axis, sizes in axes.items():
            target = {n: k for n, k in zip(SIZES, sizes, strict=False) if k}
            found.append(Case(axis, family, TINY[family], target))
        everything = found[-1].target
        for name, (fields, target) in VARIANTS[family].items():
            base = TINY[family] | fields
            found.append(Case(f"all, {name}", family, base, {**everything, **target}))
        for name, (fields, target, asks) in WAYS[family].items():
            more = everything if name.startswith("all") else {}
            target = {**more, **target}
            found.append(Case(name, family, TINY[family] | fields, target, asks))
    return found


def config_of(family: str, fields: Mapping[str, Any]) -> PretrainedConfig:
    return AutoConfig.for_model(family, **copy.deepcopy(dict(fields)))


def assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value JSON where it can be."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def options_of(
    argv: Sequence[str] | None,
) -> "tuple[Any, Grower, list[Case], list[Question]]":
    """The options, the grower, the growths, and with --all-shapes what is asked of all.

    Exits with 4 where they make no sense.
    """
    from .shapes import questions

    usage = Parser(prog="growproof certify", description=main.__doc__)
    usage.add_argument("grower", metavar="MODULE:CALLABLE", nargs="?", default=DEFAULT)
    usage.add_argument(
        "--family", choices=sorted(FAMILIES), help="default: " + ", ".join(TINY)
    )
    usage.add_argument(
        "--without", metavar="FEATURE", action="append", default=[], choices=sorted(CORE),
        help="leave out the growths that need it (repeatable): " + ", ".join(sorted(CORE)),
    )  # fmt: skip
    usage.add_argument(
        "--with", metavar="FEATURE", action="append", default=[], choices=EXTRAS,
        dest="claimed", help="what the grower claims besides (repeatable; of "
        f"{DEFAULT}, all): {', '.join(EXTRAS)}",
    )  # fmt: skip
    pairs: dict[str, Any] = {"nargs": "+", "action": "extend", "type": assignment}
    for name, text in (
        ("--shape", "fields of the config to grow, over a tiny one: hidden_size=24"),
        ("--target", "the sizes to grow to: hidden_size=36 num_hidden_layers=3"),
    ):
        usage.add_argument(name, metavar="NAME=VALUE", default=[], help=text, **pairs)
    usage.add_argument(
        "--all-shapes",
        action="store_true",
        help="every size of a Llama and a StableLm, by the rule that the grower follows",
    )
    usage.add_argument("--json", metavar="FILE", type=Path, help="write certificates")
    options = usage.parse_args(argv)
    claimed = {*CORE, *(EXTRAS if options.grower == DEFAULT else options.claimed)}
    chosen = [
        case
        for case in cases()
        if options.family in (None, case.family)
        and needs(case) <= claimed - {*options.without}
    ]
    target = dict(options.target)
    if options.shape or target:
        if options.family is None:
            usage.error("--shape and --target need a --family")
        fields = FAMILIES[options.family] | dict(options.shape)
        name = ", ".join(f"{n}={v}" for n, v in target.items()) or "nothing"
        chosen = [Case(name, options.family, fields, target)]
    for name, size in target.items():
        assert options.family is not None
        known = SIZES if options.family in TINY else FAMILIES[options.family] | SIZES
        if name not in known or not isinstance(size, int):
            usage.error(f"no size to grow to: {name}={size} (of {', '.join(known)})")
    asked: list[Question] = []
    if options.all_shapes:
        if options.shape or target:
            usage.error("--all-shapes leaves no choice of --shape and --target")
        if options.family not in (None, *TINY):
            usage.error(
                f"no theorem carries a {options.family} from one shape to all: "
                f"--all-shapes certifies {' and '.join(TINY)}"
            )
        families = [options.family] if options.family else [*TINY]
        asked = questions(families, claimed - {*options.without})
        chosen = [question.decides[2] for question in asked]
    if not chosen:
        usage.error("no growth is left: --family and --without take away all of them")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        for case in chosen:
            with refused("--shape", f"fields that a {case.family} is made of"):
                AutoModelForCausalLM.from_config(config_of(case.family, case.fields))
        return options, load_grower(options.grower), chosen, asked
    except (BrokenGrower, GrowthError) as error:
        usage.error(str(error))


def reasons_of(cases: Sequence[Case], found: Sequence[Certificate]) -> list[str]:
    """Each reason once, with the first growth that it is given for."""
    alike: dict[str, list[str]] = {}
    for case, c in zip(cases, found, strict=True):
        said = f"{c.verdict.capitalize()} {c.family} {case.name}: {c.reason}"
        key = re.sub(r"[\d.]+(e-\d+)?", "#", f"{c.verdict} {c.reason}")
        alike.setdefault(key, []).append(said)
    return [
        same[0] + (f" (Alike: {len(same) - 1} more.)" if len(same) > 1 else "")
        for same in alike.values()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Certify a grower: 0 all certified, 1 any refused, 3 any undecided, 4 usage.

    What it declines is shown and counts for nothing: if it declines all, that is 4.
    """
    from .shapes import all_shapes

    options, grower, chosen, asked = options_of(argv)
    table = Table("family", "growth", "verdict", "seconds")
    colour = {"certified": "green", "refused": "red"}
    found: list[Certificate] = []
    for i, case in enumerate(tqdm(chosen, unit="growth", disable=None, leave=False)):
        if asked:
            c = all_shapes(grower, asked[i])
        else:
            c = certify(grower, config_of(case.family, case.fields), case.target)
        found.append(c)
        verdict = f"[{colour.get(c.verdict, 'yellow')}]{c.verdict}"
        table.add_row(c.family, escape(case.name), verdict, f"{c.seconds:.2f}")
    console = Console()
    console.print(table)
    reasons = reasons_of(chosen, found)
    if options.json:
        options.json.write_text(
            json.dumps([c.json() for c in found], indent=1), "utf-8"
        )
    verdicts = {c.verdict for c in found}
    covered = [f"Covers: {c.covers}" for c in found if c.covers]
    assumed = dict.fromkeys(f"Assumed: {said}" for c in found for said in c.assumed)
    for said in (*reasons, *covered, *assumed):
        for line in wrapped(said, console.width, "", "  "):
            print(line)
    codes = {"refused": 1, "undecided": 3, "certified": 0, "declined": 4}
    return next(code for verdict, code in codes.items() if verdict in verdicts)
