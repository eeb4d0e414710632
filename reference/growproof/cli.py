"""growproof: grow or fit a checkpoint, verify a growth, check a grower.

Exit codes are pytest's: 0 conforms, 1 violates, 4 bad input or usage; 130 interrupted.
"""

import argparse
import difflib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from growproof.commands import OK, SIZES, fit, grow, verify
from growproof.init import add_init
from growproof.supervised import supervised

USAGE, INTERRUPTED = 4, 130
NOTHING_COLLECTED = 5  # pytest's code for it
DTYPES = ("float64", "float32", "bfloat16", "float16")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
# subcommands that hand their arguments on, unread
FORWARDED = {
    "power": ("power.detection", "which laws reject which known-bad growers"),
    "certify": ("certify.command", "a growth, certified for all weights"),
    "report": ("score.report", "the page of a run, or its score"),
    "refresh": ("power.refresh", "in a checkout: what is committed, made anew"),
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose usage errors exit with 4, as pytest's do."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """An unknown option is an error of the subcommand, which says what may be meant."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            known = re.findall(r"--[\w-]+", self.format_help())
            near = difflib.get_close_matches(rest[0].split("=")[0], known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Print usage and message to stderr, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["check"]:
            return check(arguments[1:])
        if arguments and arguments[0] in FORWARDED:
            return forward(arguments[0], arguments[1:])
        options = parser().parse_args(arguments)
        return options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"growproof: {error}", file=sys.stderr)
        return USAGE
    except MemoryError as error:
        print(f"growproof: out of memory {error}".strip(), file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("growproof: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # 1 would be a verdict
        traceback.print_exc()
        said = f"an error of its own, and no verdict ({type(error).__name__})"
        print(f"growproof: {said}", file=sys.stderr)
        return USAGE


def parser() -> Parser:
    """The command line."""
    top = Parser(
        prog="growproof",
        description="Grow a trained transformer, and prove that it is the same function.",
    )
    top.add_argument("--version", action="version", version=versions())
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    add_grow(commands)
    add_fit(commands)
    add_verify(commands)
    add_init(commands)
    commands.add_parser(
        "check", help="run the laws against a grower (default growproof:grow)"
    )
    for name, (_, text) in FORWARDED.items():
        commands.add_parser(name, help=text, add_help=False)
    return top


def add_grow(commands: Any) -> None:
    """The options of `growproof grow`."""
    p = commands.add_parser(
        "grow",
        help="write a larger checkpoint that computes the same function",
        description="Grow a checkpoint. A size left out is kept.",
    )
    p.add_argument("source", type=Path, help="checkpoint directory or .gguf file")
    p.add_argument("destination", type=Path, help="directory to write")
    for name, text in SIZES.items():
        p.add_argument("--" + name.replace("_", "-"), type=int, metavar="N", help=text)
    p.add_argument(
        "--depth",
        default="append",
        metavar="WHERE",
        help="where new layers go: append, prepend, interleave, or every:N for one "
        "behind every N-th (default: append)",
    )
    p.add_argument(
        "--spread",
        type=int,
        default=1,
        metavar="N",
        help="pad the MLP in N equal blocks, each at its end (default: 1)",
    )
    p.add_argument(
        "--optimizer",
        type=Path,
        metavar="FILE",
        help="an optimizer's state dict (AdamW, SGD, Muon) to grow as well, to "
        "DESTINATION/optimizer.pt",
    )
    add_policies(p)
    p.set_defaults(run=grow)


def add_policies(p: argparse.ArgumentParser) -> None:
    """The options of whatever writes a grown checkpoint."""
    p.add_argument(
        "--norm",
        choices=("scaled", "centred", "averaged", "masked"),
        help="how the norms keep their statistics (default: the exact one)",
    )
    p.add_argument(
        "--fill",
        choices=("zeros", "trainable"),
        default="zeros",
        help="new entries: all zero, or so that they train (default: zeros)",
    )
    p.add_argument(
        "--rotary",
        choices=("parted", "between"),
        help="new lanes of a head: behind each half, with a larger rope_theta, or "
        "between the old ones (default: between, at a multiple of head_dim)",
    )
    p.add_argument("--seed", type=int, default=0, help="of --fill trainable")
    p.add_argument("--dtype", choices=DTYPES, help="of the stored parameters")
    p.add_argument("--force", action="store_true", help="replace DESTINATION")
    p.add_argument(
        "--shard-size",
        type=byte_count,
        default="4GB",
        metavar="SIZE",
        help="largest file, such as 500MB (default: 4GB)",
    )
    p.add_argument(
        "--memory",
        type=byte_count,
        default="64MB",
        metavar="SIZE",
        help="for the tensors in flight, whatever their sizes (default: 64MB); codes of "
        "a quantised checkpoint are grown a tensor at a time",
    )


def add_fit(commands: Any) -> None:
    """The options of `growproof fit`."""
    p = commands.add_parser(
        "fit",
        help="the least growth that makes a checkpoint run where it must",
        description="Find the least exact growth (parameters, then key/value cache) "
        "whose sizes divide as asked, print it, grow, and verify.",
    )
    p.add_argument("source", type=Path, help="checkpoint directory or .gguf file")
    p.add_argument("destination", type=Path, help="directory to write")
    p.add_argument(
        "--tp",
        type=int,
        default=1,
        metavar="N",
        help="ranks among which heads and MLP are shared out; key/value heads are, or "
        "ranks share them",
    )
    p.add_argument(
        "--whole-kv-heads",
        action="store_true",
        help="no two ranks share a key/value head (transformers' own tp_plan)",
    )
    p.add_argument(
        "--block",
        type=int,
        default=1,
        metavar="N",
        help="divides hidden_size, and the MLP of each rank (quantisation, kernels)",
    )
    p.add_argument(
        "--block-heads",
        action="store_true",
        help="and the heads of each rank, which the output projection reads",
    )
    p.add_argument(
        "--head-dim",
        type=whole_numbers,
        default=(),
        metavar="N[,N…]",
        help="sizes that are supported (default: the one it has)",
    )
    p.add_argument("--vocab-multiple", type=int, default=1, metavar="N")
    p.add_argument(
        "--max-growth", type=float, metavar="X", help="most parameters, times the old"
    )
    p.add_argument("--dry-run", action="store_true", help="print the plan, and stop")
    p.add_argument(
        "--spread",
        action="store_true",
        help="pad the MLP of each rank at its end, not the whole",
    )
    p.add_argument(
        "--measure", action="store_true", help="run both models on a text as well"
    )
    add_policies(p)
    p.set_defaults(run=fit, optimizer=None, text=None, tokens=512, json=None)


def add_verify(commands: Any) -> None:
    """The options of `growproof verify`."""
    p = commands.add_parser(
        "verify",
        help="is DESTINATION the same function as SOURCE, whatever made it?",
        description="Compare two checkpoints, of any family: every entry is accounted "
        "for, or else logits and loss are measured on a text. Exit 1 where they are not "
        "the same function.",
    )
    p.add_argument("source", type=Path, help="checkpoint directory or .gguf file")
    p.add_argument("destination", type=Path, help="what was grown from it")
    p.add_argument("--text", type=Path, help="UTF-8 file (default: Python's licence)")
    p.add_argument("--tokens", type=int, default=512, help="how many (default: 512)")
    p.add_argument(
        "--measure",
        action="store_true",
        help="run both, even if every entry is accounted for (as --text does)",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    p.set_defaults(run=verify)


def check(arguments: Sequence[str]) -> int:
    """`growproof check`: pytest on the laws, in a process of its own."""
    laws, prefix = suite()
    if str(laws.parent) not in sys.path and prefix == "properties":
        sys.path.insert(0, str(laws.parent))
    options = importlib.import_module(f"{prefix}.gate.command")
    words = options.read(list(arguments))
    if words is None:
        return OK
    ini = Path(__file__).with_name("pytest.ini")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ini),
        "-p",
        f"{prefix}.score.plugin",
        "-p",
        "no:benchmark",
    ]
    command += [f"--rootdir={laws.parent}", *words]
    if "no:cacheprovider" not in words:  # a wheel's own folder may be read-only
        command += ["-o", f"cache_dir={Path.cwd() / '.pytest_cache'}"]
    if not any(is_within(word, laws) for word in words):
        command.append(str(laws))
    # xdist workers do not get the current directory from `python -m`
    here = [os.getcwd(), *((str(laws.parent),) if prefix == "properties" else ())]
    path = os.pathsep.join(filter(None, (*here, os.environ.get("PYTHONPATH"))))
    limit = options.time_limit(words)
    code = supervised(command, os.environ | {"PYTHONPATH": path}, limit)
    if code == NOTHING_COLLECTED:
        print(f"growproof: {options.nothing(words)}", file=sys.stderr)
        return USAGE
    return code


def versions() -> str:
    """growproof's version, and of what its verdicts depend on."""
    from importlib.metadata import PackageNotFoundError, version

    told: list[str] = []
    for name in ("growproof", "torch", "transformers", "hypothesis", "pytest"):
        try:
            told.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            told.append(f"{name} not installed")
    return ", ".join(told)


def is_within(argument: str, laws: Path) -> bool:
    """True where a pytest argument already names a file or test of the suite."""
    path = Path(argument.split("::")[0]).absolute()
    return path.is_relative_to(laws) and os.path.exists(path)  # which takes any length


def forward(name: str, arguments: Sequence[str]) -> int:
    """`growproof power`, `certify`, `report`: the suite's own command."""
    place = f"{suite()[1]}.{FORWARDED[name][0]}"
    if importlib.util.find_spec(place) is None:
        raise ImportError(f"growproof {name} works in a checkout, and this is none")
    module = importlib.import_module(place)
    return module.main(list(arguments)) or OK


def suite() -> tuple[Path, str]:
    """(directory, module prefix) of the laws, importable: a checkout's, or the wheel's.

    Raises ImportError where neither is there.
    """
    checkout = Path(__file__).parents[2]
    if (checkout / "properties" / "gate" / "plugin.py").is_file():
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        return checkout / "properties", "properties"
    shipped = Path(__file__).parent / "properties"
    if shipped.is_dir():
        return shipped, "growproof.properties"
    raise ImportError(
        f"the laws are in neither {checkout / 'properties'} nor {shipped}: "
        "install growproof from a wheel or a checkout"
    )


def whole_numbers(text: str) -> tuple[int, ...]:
    """64,128: several sizes."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"sizes are such as 64,128, got {text}")
    return tuple(map(int, text.split(",")))


def byte_count(text: str) -> int:
    """500MB, 4GB, 123: how many bytes."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?)B?", text.strip().upper())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"a size is such as 500MB or 4GB, got {text}")
    return int(match[1]) * UNITS[match[2]]


if __name__ == "__main__":
    sys.exit(main())
