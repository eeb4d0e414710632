"""What `growproof grow`, `fit` and `verify` do: checkpoints in, checkpoints out.

The options come from `growproof.cli`. torch and transformers are imported only when a
command runs.
"""

import argparse
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growproof.growth import Growth, Policies

OK, VIOLATED = 0, 1
CONTEXT = 4096  # tokens that a plan's arithmetic looks back on
SIZES = {
    "hidden_size": "D', width of the residual stream",
    "num_attention_heads": "H', query heads",
    "num_key_value_heads": "G', key/value heads",
    "head_dim": "K', lanes of a head (a StableLm's is hidden_size / heads)",
    "intermediate_size": "F', width of the MLP",
    "moe_intermediate_size": "F', width of an expert, in a Qwen3-MoE",
    "num_hidden_layers": "L', layers",
    "vocab_size": "V', tokens; new ones are never chosen",
}


def grow(options: argparse.Namespace) -> int:
    """`growproof grow`: write the checkpoint, say what became of the sizes."""
    quiet_transformers()
    target = {name: getattr(options, name) for name in SIZES}
    target = {name: size for name, size in target.items() if size is not None}
    policies = policies_of(options, depth=options.depth, spread=options.spread)
    if not target and not options.dtype and not options.depth.startswith("every:"):
        raise ValueError("nothing to grow: give at least one size, see grow --help")
    written(options, target, policies)
    print("now see for yourself:")
    print(f"growproof verify {options.source} {options.destination}")
    return OK


def fit(options: argparse.Namespace) -> int:
    """`growproof fit`: print the plan, write the checkpoint, verify it."""
    quiet_transformers()
    from growproof.checkpoints import refuse_overwriting
    from growproof.fit import Wanted, lines
    from growproof.models import fit_model
    from growproof.quantised import is_quantised, rehearse

    wanted = Wanted(
        ranks=options.tp,
        whole_groups=options.whole_kv_heads,
        block=options.block,
        blocked_heads=options.block_heads,
        head_dims=options.head_dim,
        vocab_multiple=options.vocab_multiple,
        max_growth=options.max_growth,
    )
    policies = policies_of(options, spread=options.tp if options.spread else 1)
    plan, target = fit_model(source_config(options.source), wanted, policies)
    if target and options.dry_run and is_quantised(options.source):
        rehearse(options.source, target, policies)
    print("\n".join(lines(plan, wanted, CONTEXT)))
    if not target and not options.dtype:
        print(
            f"\nnothing to grow: {options.source} fits as it is, and nothing is written"
        )
        return OK
    if options.dry_run:
        refuse_overwriting(options.source, options.destination, force=options.force)
        return OK
    print()
    written(options, target, policies)
    return verify(options)


def source_config(source: Path) -> Any:
    """The config of a checkpoint; of a quantised one, as if it were not."""
    from growproof.checkpoints import config_at
    from growproof.quantised import is_quantised, plain_config

    return plain_config(source)[0] if is_quantised(source) else config_at(source)


def policies_of(options: argparse.Namespace, **more: Any) -> "Policies":
    """The Policies of a command line."""
    from growproof.growth import Policies

    named = {n: getattr(options, n) for n in ("norm", "fill", "rotary", "seed")}
    return Policies(**named, **more)


def written(
    options: argparse.Namespace, target: Mapping[str, int], policies: "Policies"
) -> None:
    """Grow the checkpoint, and say what became of its sizes and of its softmax."""
    from growproof.checkpoints import left_behind
    from growproof.family import SIZES as FIELDS
    from growproof.quantised import is_quantised
    from growproof.table import count

    coded = is_quantised(options.source)
    growth = (written_codes if coded else written_weights)(options, target, policies)
    sparse = {kind.sparse for kind in growth.old.kinds}
    left_out = {n for n, s in (("mlp", False), ("expert_mlp", True)) if s not in sparse}
    fields = FIELDS | {"expert_mlp": "MLP of an expert"}
    for field, name in ((f, n) for f, n in fields.items() if f not in left_out):
        before, after = getattr(growth.old, field), getattr(growth.new, field)
        arrow = f" → {after:,}" if after != before else ""
        print(f"{name:<20} {before:,}{arrow}")
    print(f"{'parameters':<20} {count(growth.old):,} → {count(growth.new):,}")
    print(f"{'norm, fill':<20} {growth.policies.norm}, {growth.policies.fill}")
    if growth.new.vocab > growth.old.vocab:
        print("\n" + textwrap.fill(new_tokens(options.destination, growth), 88))
    if coded:
        print(
            "every code and scale is the old one; decoded, all old weights are the same "
            "and all new ones zero"
        )
    if left := left_behind(options.source, options.destination):
        said = f"not taken along: {', '.join(left)}"
        if any(name.endswith(".py") for name in left):
            said += (
                " (code is neither run nor copied: add it where the tokenizer needs it)"
            )
        print("\n" + textwrap.fill(said, 88))
    print(f"\nwritten to {options.destination}")


def written_weights(
    options: argparse.Namespace, target: Mapping[str, int], policies: "Policies"
) -> "Growth":
    """The growth of a checkpoint of floats, written."""
    import torch

    from growproof.checkpoints import grow_checkpoint

    return grow_checkpoint(
        options.source,
        options.destination,
        target,
        policies=policies,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        force=options.force,
        shard_bytes=options.shard_size,
        memory=options.memory,
        optimizer=options.optimizer,
    )


def written_codes(
    options: argparse.Namespace, target: Mapping[str, int], policies: "Policies"
) -> "Growth":
    """The growth of a quantised checkpoint, written, decoded and compared."""
    from growproof.quantised import grow_quantised

    if options.dtype:
        raise ValueError("quantised weights keep their format: leave --dtype out")
    if options.optimizer:
        raise ValueError("nothing trains quantised weights: leave --optimizer out")
    return grow_quantised(
        options.source,
        options.destination,
        target,
        policies=policies,
        force=options.force,
        shard_bytes=options.shard_size,
    )


def new_tokens(directory: Path, growth: "Growth") -> str:
    """What became of the softmax in a grown checkpoint, in words."""
    from growproof.verify import Side
    from growproof.vocabulary import carrier, said

    return said(growth, carrier(Side.of(directory).state, growth))


def verify(options: argparse.Namespace) -> int:
    """`growproof verify`: print the table, exit by its verdict."""
    quiet_transformers()
    from growproof.reading import text_in
    from growproof.verify import render, verify

    text = text_in(options.text) if options.text else None
    if options.json and not options.json.absolute().parent.is_dir():
        raise ValueError(f"{options.json}: there is no such directory")
    result = verify(
        options.source,
        options.destination,
        text=text,
        tokens=options.tokens,
        measure=options.measure,
    )
    render(result)
    if options.json:
        options.json.write_text(result.to_json(), "utf-8")
    return OK if result.same else VIOLATED


def quiet_transformers() -> None:
    """Only errors: its progress and load reports say nothing that ours do not."""
    from transformers.utils import logging

    quiet: Any = logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
