"""What is known of one failed law: its smallest case, the first wrong tap, the causes."""

from __future__ import annotations

import copy
import dataclasses
import os
import pprint
import re
import shlex
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..laws import examples
from ..laws.domain import CONFIG_NAME, DOMAIN, table
from ..laws.examples import Example
from ..laws.models import Case
from ..laws.registry import Item, Law, zero_padding
from . import explain, replay
from .causes import causes, first_line
from .judged import Judged
from .loading import DEFAULT
from .verdict import same_but_numbers, same_fault

SWITCHES = (
    "attention_bias", "mlp_bias", "use_qkv_bias", "use_parallel_residual", "qk_layernorm",
    "tie_word_embeddings",
)  # fmt: skip
SECONDS = 5.0  # for looking for a smaller case
LOOKED = 3  # failures of a law in a family whose causes are looked for, a second each


def found(
    law: Law,
    item: Item | None,
    example: Example,
    error: BaseException,
    judged: Judged,
    known: dict[str, dict[str, Any]],
    looked: Counter[tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """All of it, as strings and numbers, to be sent and shown.

    item: what can be run again on another example. known: cause → what was found of it
    before: its case is not made smaller again. looked: (law, family) → how often causes
    were looked for: no more than LOOKED times.
    """  # fmt: skip
    case, message, again = example.get("case"), spoken(error), repeat(judged, law)
    law = item.law if item else law  # that which is replayed
    told: dict[str, Any] = {
        "law": law.name, "promise": law.promise.name,
        "sentence": law.sentence, "message": message,
        "causes": [], "tap": "", "case": "", "family": "", "axes": "", "size": 0,
        "repeat": again,
    }  # fmt: skip
    if case is None:
        return told
    if looked is not None:
        looked[law.name, case.family] += 1
        if looked[law.name, case.family] > LOOKED:
            return told | {"case": explain.describe(case), "family": case.family}
    try:
        return told | known_of(told, item, example, error, judged, known)
    except Exception as crash:  # an explanation never ends the run
        return told | {
            "tap": f"not known: looking for it gave {type(crash).__name__}: {crash}",
            "case": f"{case.family}, growing {case.target}", "family": case.family,
        }  # fmt: skip


def known_of(
    told: dict[str, Any],
    item: Item | None,
    example: Example,
    error: BaseException,
    judged: Judged,
    known: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """The causes, the smallest case that shows them, and its first wrong tap."""
    case, message = example["case"], told["message"]
    padded = told["promise"] == zero_padding.name
    told["causes"] = caused(case, judged, padded=padded)
    first = (told["causes"] or [message])[0]
    if first in known:
        return told | {
            k: known[first][k] for k in ("tap", "case", "family", "axes", "size")
        }
    if item:

        def shows(candidate: Case) -> bool:
            """Whether the law fails as before, for the same causes."""
            other = replay.run(item, judged.grower, {**example, "case": candidate})
            if type(other) is not type(error):
                return False
            causes = caused(candidate, judged, padded=padded)
            return same_causes(causes, told["causes"])

        case = smallest(case, shows)
    told |= {
        "case": explain.describe(case), "family": case.family, "axes": axes(case),
        "size": case.decoder.hidden * case.decoder.layers + len(case.target),
        "tap": explain.tap(case, judged.grower),
    }  # fmt: skip
    known[first] = told
    return told


def spoken(error: BaseException) -> str:
    """What an exception says, on one line; its kind, where it is no law that speaks."""
    said = first_line(error) if str(error).strip() else ""
    told = (
        ""
        if isinstance(error, AssertionError)
        else f"it raises {type(error).__name__}: "
    )
    return told + (said or type(error).__name__)


def cause(finding: Mapping[str, Any]) -> str:
    """All that is wrong, in one sentence: the causes, or what the law says."""
    return "; ".join(finding["causes"]) or finding["message"]


def axes(case: Case) -> str:
    """The axes that a case grows, by their names."""
    return ", ".join(explain.grows(case)) or "growing nothing"


USUAL: dict[str, Any] = {"dtype": torch.float64, "training": False, "frozen": set()}
TELLING = re.compile(  # a state, as it is, or chance, which is in every state
    r"float|requires_grad|mode|subnormal|never written|from call to call|came back"
)


def caused(case: Case, judged: Judged, *, padded: bool) -> list[str]:
    """The causes in the state in which the model was seen, and what shows in it alone."""
    seen = judged.seen

    def there(state: Mapping[str, Any]) -> list[str]:
        source = sources(case, state)
        return causes(source, judged.grower, case.target, padded=padded)

    found = there(seen)
    odd = {name: seen[name] for name in USUAL if seen and seen[name] != USUAL[name]}
    asked = [c for c in found if not TELLING.search(c)]
    if not odd or not asked:
        return found
    usual = there(seen | USUAL)
    here = {c for c in asked if not any(same_fault(c, other) for other in usual)}
    for name, value in odd.items() if here else ():
        alone = there(seen | USUAL | {name: value}) if len(odd) > 1 else found
        if any(same_fault(c, other) for c in here for other in alone):
            where = {
                "dtype": f"in {str(value)[6:]}, not in float64",
                "training": "in training mode, not in evaluation mode",
                "frozen": "where parameters are frozen, not elsewhere",
            }[name]
            return [f"{c} ({where})" if c in here else c for c in found]
    return found


def sources(case: Case, seen: Mapping[str, Any]) -> Callable[[], Any]:
    """New models as the grower was given them last: dtype, mode, config, frozen or not."""

    def source() -> Any:
        model = copy.deepcopy(case.model(seen.get("dtype")))
        if seen and seen["config"].to_dict().keys() == model.config.to_dict().keys():
            for name in ("attention_dropout", "hidden_dropout"):
                if hasattr(seen["config"], name):
                    setattr(model.config, name, getattr(seen["config"], name))
        for name, p in model.named_parameters():
            p.requires_grad_(name not in seen.get("frozen", ()))
        return model.train(seen.get("training", False))

    return source


def smaller(case: Case) -> Iterator[Case]:
    """Cases with one thing less: a growth, a switch, a layer, a token."""
    for name in case.target:
        kept = {n: size for n, size in case.target.items() if n != name}
        yield dataclasses.replace(case, target=kept)
    for name in SWITCHES:
        if case.config.get(name):
            yield dataclasses.replace(case, config=case.config | {name: False})
    own, usual = table(case.family).sizes["layers"], CONFIG_NAME["layers"]
    if case.config[own] > 1:
        less = case.config[own] - 1
        target = dict(case.target)
        if usual in target:
            target[usual] -= less
        yield dataclasses.replace(case, config=case.config | {own: 1}, target=target)
    for field, value in (("batch", 1), ("tokens", 2)):
        if getattr(case, field) > value:
            yield dataclasses.replace(case, **{field: value})


def same_causes(some: list[str], others: list[str]) -> bool:
    """Whether two lists say the same, numbers aside."""
    pairs = zip(some, others, strict=False)
    return len(some) == len(others) and all(same_but_numbers(a, b) for a, b in pairs)


def smallest(case: Case, shows: Callable[[Case], bool]) -> Case:
    """A case from which nothing can be left out, in so far as there is time."""
    limit = time.monotonic() + SECONDS
    shrinking = True
    while shrinking:
        shrinking = False
        for candidate in smaller(case):
            if time.monotonic() > limit:
                return case
            if shows(candidate):
                case, shrinking = candidate, True
                break
    return case


def repeat(judged: Judged, law: Law) -> str:
    """A command that runs the law again."""
    grower = judged.grower
    words = ["--grower-command", grower.name] if grower.command else [grower.name]
    if grower.name == DEFAULT:
        words = []
    return shlex.join(["growproof", "check", *words, *DOMAIN.asked, "-k", law.name])


def told(finding: Mapping[str, Any], error: BaseException) -> str:
    """The failure in full, for -v and the files: no source but the grower's own."""
    names = ("sentence", "message", "case", "tap", "causes", "repeat")
    lines = [f"{name}: {finding[name]}" for name in names if finding[name]]
    if not isinstance(error, AssertionError):
        lines += traceback.format_exception(type(error), error, error.__traceback__, -4)
    return "\n".join(lines)


# --- scripts --------------------------------------------------------------------------

SCRIPT = '''"""Repeats one failure of `growproof check`: exit 1 while it is there, 0 once mended,
2 where it cannot be run.

{sentence}
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / {folder!r}  # where the check was run
GROWER = {grower!r}
COMMAND = {command!r}  # whether that is a program on checkpoint directories
LIMIT = {limit!r}  # the seconds that such a program may take
CALLS = {calls}  # growths before this one: each is seeded by its number
TEST = {test!r}
EXAMPLE = {example}
CLAIMED = {claimed}

if __name__ == "__main__":
    try:
        from growproof.cli import suite

        replay = importlib.import_module(f"{{suite()[1]}}.gate.replay")
        code = replay.main(
            FOLDER, GROWER, COMMAND, LIMIT, CALLS, TEST, EXAMPLE, CLAIMED
        )
    except Exception as error:  # what the law says is in the code
        print(f"cannot be run: {{type(error).__name__}}: {{error}}")
        sys.exit(2)
    sys.exit(code)
'''


def script(folder: Path, item: Item, example: Example, judged: Judged) -> str:
    """A program to be kept in the folder: the law that failed, on the example that did.

    A law that draws none is run as it is, with what the grower claims.
    """
    return SCRIPT.format(
        sentence=item.law.sentence.replace("\\", "\\\\"),
        folder=os.path.relpath(Path.cwd(), folder.resolve()),
        grower=judged.grower.name,
        command=judged.grower.command,
        limit=judged.grower.limit,
        calls=judged.before(example),
        test=item.name,
        example=pprint.pformat(examples.to_json(example), width=84, sort_dicts=False),
        claimed=pprint.pformat(sorted(DOMAIN.features), width=84, compact=True),
    )


def write_script(folder: Path, item: Item, example: Example, judged: Judged) -> Path:
    """repeat_LAW.py in the folder: the law that failed, on the example that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "_", item.name.removeprefix("test_")).strip("_")
    path = folder / f"repeat_{name}.py"
    path.write_text(script(folder, item, example, judged), encoding="utf-8")
    return path
