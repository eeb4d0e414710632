"""growproof: grow a checkpoint, verify a growth, check a grower.

Exit codes are pytest's: 0 conforms, 1 violates, 4 bad input or usage; 130 interrupted.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

OK, VIOLATED, USAGE, INTERRUPTED = 0, 1, 4, 130
NOTHING_COLLECTED = 5  # pytest's code for it
SIZES = {
    "hidden_size": "D', width of the residual stream",
    "num_attention_heads": "H', query heads",
    "num_key_value_heads": "G', key/value heads",
    "head_dim": "K', lanes of a head (Llama; a StableLm's is hidden_size / heads)",
    "intermediate_size": "F', width of the MLP",
    "num_hidden_layers": "L', layers",
}
DTYPES = ("float64", "float32", "bfloat16", "float16")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
# subcommands that hand their arguments on, unread
FORWARDED = {
    "power": "power: which laws reject which known-bad growers",
    "certify": "certificates: a growth, certified for all weights",
    "report": "report: the page of the last runs",
}
MODULES = {
    "power": "power.detection",
    "certify": "certify.command",
    "report": "errors.report",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose usage errors exit with 4, as pytest's do."""

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
    except KeyboardInterrupt:
        print("growproof: interrupted", file=sys.stderr)
        return INTERRUPTED


def parser() -> Parser:
    """The command line."""
    top = Parser(
        prog="growproof",
        description="Grow a trained transformer, and prove that it is the same function.",
    )
    top.add_argument("--version", action="version", version=versions())
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    add_grow(commands)
    add_verify(commands)
    commands.add_parser(
        "check", help="run the laws against a grower (default growproof:grow)"
    )
    for name, text in FORWARDED.items():
        commands.add_parser(name, help=text, add_help=False)
    return top


def add_grow(commands: Any) -> None:
    """The options of `growproof grow`."""
    p = commands.add_parser(
        "grow",
        help="write a larger checkpoint that computes the same function",
        description="Grow a StableLm or Llama checkpoint. A size left out is kept.",
    )
    p.add_argument("source", type=Path, help="checkpoint directory or .gguf file")
    p.add_argument("destination", type=Path, help="directory to write")
    for name, text in SIZES.items():
        p.add_argument("--" + name.replace("_", "-"), type=int, metavar="N", help=text)
    p.add_argument(
        "--norm",
        choices=("scaled", "centred", "masked"),
        help="how the norms keep their statistics (default: the exact one)",
    )
    p.add_argument(
        "--fill",
        choices=("zeros", "trainable"),
        default="zeros",
        help="new entries: all zero, or so that they train (default: zeros)",
    )
    p.add_argument(
        "--depth",
        choices=("append", "interleave"),
        default="append",
        help="where new layers go (default: append)",
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
    p.set_defaults(run=grow)


def add_verify(commands: Any) -> None:
    """The options of `growproof verify`."""
    p = commands.add_parser(
        "verify",
        help="is DESTINATION the same function as SOURCE, whatever made it?",
        description="Compare two checkpoints: structure, logits and loss on a text. "
        "Exit 1 where they are not the same function within the budget.",
    )
    p.add_argument("source", type=Path, help="checkpoint directory or .gguf file")
    p.add_argument("destination", type=Path, help="what was grown from it")
    p.add_argument("--text", type=Path, help="UTF-8 file (default: Python's licence)")
    p.add_argument("--tokens", type=int, default=512, help="how many (default: 512)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    p.set_defaults(run=verify)


def grow(options: argparse.Namespace) -> int:
    """`growproof grow`: write the checkpoint, say what became of the sizes."""
    quiet_transformers()
    import torch

    from growproof.checkpoints import grow_checkpoint
    from growproof.layout import count
    from growproof.models import SIZES as FIELDS

    target = {name: getattr(options, name) for name in SIZES}
    target = {name: size for name, size in target.items() if size is not None}
    if not target and not options.dtype:
        raise ValueError("nothing to grow: give at least one size, see grow --help")
    growth = grow_checkpoint(
        options.source,
        options.destination,
        target,
        norm=options.norm,
        fill=options.fill,
        depth=options.depth,
        seed=options.seed,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        force=options.force,
        shard_bytes=options.shard_size,
    )
    for name, field in FIELDS.items():
        before, after = getattr(growth.old, field), getattr(growth.new, field)
        arrow = f" → {after:,}" if after != before else ""
        print(f"{name:<20} {before:,}{arrow}")
    print(f"{'parameters':<20} {count(growth.old):,} → {count(growth.new):,}")
    print(f"{'norm, fill':<20} {growth.norm}, {growth.fill}")
    print(f"\nwritten to {options.destination}; now see for yourself:")
    print(f"growproof verify {options.source} {options.destination}")
    return OK


def verify(options: argparse.Namespace) -> int:
    """`growproof verify`: print the table, exit by its verdict."""
    quiet_transformers()
    from growproof.verify import render, verify

    text = options.text.read_text("utf-8") if options.text else None
    result = verify(
        options.source, options.destination, text=text, tokens=options.tokens
    )
    render(result)
    if options.json:
        options.json.write_text(result.to_json(), "utf-8")
    return OK if result.same else VIOLATED


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
        f"{prefix}.gate.plugin",
    ]
    command += [f"--rootdir={laws.parent}", *words]
    if "no:cacheprovider" not in words:  # a wheel's own folder may be read-only
        command += ["-o", f"cache_dir={Path.cwd() / '.pytest_cache'}"]
    if not any(is_within(word, laws) for word in words):
        command.append(str(laws))
    # xdist workers do not get the current directory from `python -m`
    here = [os.getcwd(), *((str(laws.parent),) if prefix == "properties" else ())]
    path = os.pathsep.join(filter(None, (*here, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path})
    if done.returncode == NOTHING_COLLECTED:
        print(f"growproof: {options.nothing(words)}", file=sys.stderr)
        return USAGE
    return done.returncode


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
    return path.exists() and path.is_relative_to(laws)


def forward(name: str, arguments: Sequence[str]) -> int:
    """`growproof power`, `certify`, `report`: the suite's own command."""
    module = importlib.import_module(f"{suite()[1]}.{MODULES[name]}")
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


def byte_count(text: str) -> int:
    """500MB, 4GB, 123: how many bytes."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?)B?", text.strip().upper())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"a size is such as 500MB or 4GB, got {text}")
    return int(match[1]) * UNITS[match[2]]


def quiet_transformers() -> None:
    """Only errors: its progress and load reports say nothing that ours do not."""
    from transformers.utils import logging

    quiet: Any = logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
