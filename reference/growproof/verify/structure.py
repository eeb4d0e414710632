"""What config and weights say, before anything is run."""

import json
from math import inf
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from growproof.blocks import blocks
from growproof.checkpoints import weight_files
from growproof.clone import capped
from growproof.decoder import Decoder, Rotary
from growproof.families import family_of
from growproof.family import SIZES
from growproof.quantised import Quantised
from growproof.reading import safetensors_in
from growproof.rotary import by_length, frequencies, lengthened
from growproof.rounding import holds, largest, unit_roundoff
from growproof.table import count, template_of
from growproof.verify.outcome import Check
from growproof.verify.sides import Side

hub: Any = transformers  # untyped
CURVES = ("activation", "score_cap", "logit_cap")
FREQUENCIES = "rotary frequencies"
MORE = {"experts": "experts", "expert_mlp": "size of an expert"}
# what a quantization_config tells a loader, beside what decoding reads of it → its default
TOLD: dict[str, Any] = {
    "quant_method": None, "sym": False, "desc_act": False, "zero_point": False,
    "activation_scheme": None, "lm_head": False, "dynamic": {},
    "modules_to_not_convert": [], "modules_in_block_to_quantize": [],
}  # fmt: skip
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def structure(old: Side, new: Side) -> list[Check]:
    """Every check of structure."""
    a, b = old.decoder, new.decoder
    sizes = {name: (getattr(a, f), getattr(b, f)) for f, name in (SIZES | MORE).items()}
    grown = [f"{n} {i:,} → {j:,}" for n, (i, j) in sizes.items() if i != j]
    dtypes = [stored_dtypes(side.directory) for side in (old, new)]
    tied = ["tied" if d.tied else "untied" for d in (a, b)]
    families = [family_of(s.config).model_type for s in (old, new)]
    checks = [
        Check(
            name="family",
            found=changed(*families),
            passed=True if families[0] == families[1] else None,
        ),
        Check(
            name="sizes",
            found="\n".join(grown) or "unchanged",
            passed=all(j >= i for i, j in sizes.values()),
        ),
        Check(
            name="parameters",
            found=changed(f"{count(a):,}", f"{count(b):,}"),
            passed=True,  # or `Side.of` had raised
        ),
        Check(
            name="embedding, head",
            found=changed(*tied),
            passed=True if a.tied == b.tied else None,
        ),
        Check(
            name="dtype",
            found=changed(*dtypes),
            passed=True if dtypes[0] == dtypes[1] else None,
        ),
        *same_loaded_dtype(old, new),
    ]
    if old.codes or new.codes:
        checks.append(same_format(old, new))
    if old.has_clone and new.has_clone:
        checks.append(same_frequencies(a, b))
    elif rotaries(a) or rotaries(b):
        checks.append(same_stock_frequencies(old, new))
    if a.eps and b.eps and a.vocab <= b.vocab and "attn_norm" in a.norms:
        checks.append(same_eps(old, new))
    return [
        *checks,
        *same_curves(a, b),
        *same_windows(old, new),
        *fewer_positions(old, new),
    ]


def same_curves(a: Decoder, b: Decoder) -> list[Check]:
    """Functions of one number that have another name or cap: no weight makes up for one.

    Compared in float64 from -64 to 64, where nothing but their own terms is rounded.
    """
    x = torch.linspace(-64, 64, 4097, dtype=torch.float64)
    budget = 64 * unit_roundoff(torch.float64) * largest(x)
    checks = list[Check]()
    for name in CURVES:
        said = [getattr(d, name) for d in (a, b)]
        if said[0] != said[1]:
            before, after = (curve(name, value, x) for value in said)
            error, found = largest(after - before), f"{said[0]} → {said[1]}"
            passed = error <= budget
            checks.append(
                Check(name=name, found=found, passed=passed, error=error, budget=budget)
            )
    return checks


def curve(name: str, value: Any, x: Tensor) -> Tensor:
    """An activation, by transformers' own code, or a cap, at x; NaN for one not known."""
    if name != "activation":
        return capped(x, value)
    known = hub.activations.ACT2FN
    return known[value](x) if value in known else x * torch.nan


def fewer_positions(old: Side, new: Side) -> list[Check]:
    """A note where the config allows shorter texts than the source's."""
    name = "max_position_embeddings"
    a, b = (getattr(side.config, name, None) for side in (old, new))
    if not a or not b or b >= a:
        return []
    found = f"{a:,} → {b:,}: loaders may refuse longer texts, which the source takes"
    return [Check(name=name, found=found, passed=None)]


def same_loaded_dtype(old: Side, new: Side) -> list[Check]:
    """A wrong one where from_pretrained rounds the stored weights, and no source's."""
    before, after = loaded_dtype(old), loaded_dtype(new)
    if holds(after, before) or holds(after, new.dtype):
        return []
    words = changed(*(str(dtype).removeprefix("torch.") for dtype in (before, after)))
    said = f"{words}: config.json has from_pretrained round what is stored"
    return [Check(name="dtype when loaded", found=said, passed=False)]


def loaded_dtype(side: Side) -> torch.dtype:
    """The dtype that transformers gives a model unless it is told: config.json's."""
    said = getattr(side.config, "dtype", None)
    named = getattr(torch, said, None) if isinstance(said, str) else said
    return named if isinstance(named, torch.dtype) else side.dtype


def same_format(old: Side, new: Side) -> Check:
    """Whether both are quantised alike: the same maps, and to be read in the same way."""
    a, b = (dict(s.codes.said) if s.codes else dict[str, Any]() for s in (old, new))
    found = changed(*(json.dumps(x, sort_keys=True) if x else "not quantised"
                      for x in (a, b)))  # fmt: skip
    wrong = [
        f"{name} {a.get(name)} → {b.get(name)}: loaders read the codes otherwise"
        for name, usual in TOLD.items()
        if a and b and (a.get(name) or usual) != (b.get(name) or usual)
    ]
    if old.codes and new.codes:
        before, after = (coverage(codes) for codes in (old.codes, new.codes))
        wrong += [
            f"{name} is quantised in one of the two only, or in part"
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        ]
    if wrong:
        return Check(name="quantised", found="\n".join([found, *wrong]), passed=False)
    return Check(name="quantised", found=found, passed=True if a == b else None)


def coverage(codes: Quantised) -> dict[str, set[tuple[bool, ...]]]:
    """Template of a parameter → which of its pieces are quantised, over all layers."""
    found: dict[str, set[tuple[bool, ...]]] = {}
    for name, held in codes.coverage().items():
        found.setdefault(template_of(name), set()).add(held)
    return found


def stored_dtypes(directory: Path) -> str:
    """The dtypes in a checkpoint, from the headers of its files."""
    dtypes = [safetensors_in(path)[1] for path in weight_files(directory)]
    kinds = {kind for found in dtypes for kind in found.values()}
    return ", ".join(sorted(DTYPES.get(kind, kind) for kind in kinds))


def changed(a: str, b: str) -> str:
    """`a`, or `a → b`."""
    return a if a == b else f"{a} → {b}"


def rotaries(d: Decoder) -> list[Rotary]:
    """The rotary embeddings of a decoder's layers, each once, in order."""
    return list(dict.fromkeys(kind.rotary for kind in d.kinds if kind.rotary))


def same_frequencies(a: Decoder, b: Decoder) -> Check:
    """The rotary frequencies of the source are among the destination's.

    Positions beyond the text show a wrong one, and a text does not. 1e-6: transformers
    computes them in float32.
    """
    f, g = ([r.frequencies() for r in rotaries(d)] for d in (a, b))
    return among(a, b, f, g)


def among(a: Decoder, b: Decoder, before: list[Tensor], after: list[Tensor]) -> Check:
    """The check that old frequencies are among new ones, of one rotary after the other."""
    name, found = FREQUENCIES, f"{a.rotary.dims} → {b.rotary.dims} lanes"
    pairs = list(zip(before, after, strict=False))
    if len(before) != len(after) or any(len(g) < len(f) for f, g in pairs):
        return Check(name=name, found=found, passed=False)
    errors = [(g / f[:, None] - 1).abs().amin(1).max().item() for f, g in pairs]
    error = max([0.0, *errors])
    return Check(name=name, found=found, passed=error <= 1e-6, error=error, budget=1e-6)


def same_stock_frequencies(old: Side, new: Side) -> Check:
    """The same, by transformers' own module: its rope types mix lengths and scales in.

    Where frequencies depend on the length of a text, what they depend on must be the same
    number: a text of this length would not show it.
    """
    configs = (old.config, new.config)
    if any(by_length(c.rope_parameters) for c in configs):
        a, b = map(lengths, configs)
        told = [f"{k} {a.get(k)} → {b.get(k)}" for k in a | b if a.get(k) != b.get(k)]
        if told:
            return Check(name=FREQUENCIES, found="; ".join(told), passed=False)
    f, g = (
        [x for c in (config, lengthened(config)) for x in frequencies(c).values()]
        for config in configs
    )
    return among(old.decoder, new.decoder, f, g)


def lengths(config: Any) -> dict[str, Any]:
    """What the frequencies of a rope type depend on beside the number of the lane."""
    rope = config.rope_parameters
    names = ("rope_type", "factor", "original_max_position_embeddings")
    limit = config.max_position_embeddings
    return {n: rope.get(n) for n in names} | {"max_position_embeddings": limit}


def same_windows(old: Side, new: Side) -> list[Check]:
    """A wrong one where layers look back less, or further, than the source's.

    A text that is shorter than the windows does not show it. New layers, which add
    nothing, may have any.
    """
    limit = getattr(old.config, "max_position_embeddings", None) or inf
    a, b = (
        [min(k.window or inf, limit) for k in side.decoder.kinds] for side in (old, new)
    )
    rest = iter(b)
    if all(window in rest for window in a):  # in this order
        return []
    words = [windows_said(side) for side in (a, b)]
    found = f"{changed(*words)}: it shows in texts that are longer than that"
    return [Check(name="attention windows", found=found, passed=False)]


def windows_said(windows: list[float]) -> str:
    """The windows of a decoder's layers, each once."""
    each = dict.fromkeys(windows)
    return ", ".join(f"{w:,}" if w < inf else "all positions" for w in each)


def same_eps(old: Side, new: Side) -> Check:
    """Variance ÷ ε of every embedding row, as the first norm sees it, is kept.

    A norm divides by √(variance + ε): whatever is done to the residual, the ratio of
    the two must stay, or the outputs are not proportional. The rounding of the grown
    rows moves a variance by at most 2 u.
    """
    n = old.decoder.vocab
    a, b = (variances(side)[:n] / side.decoder.eps for side in (old, new))
    error = ((b - a).abs() / torch.maximum(a, b).clamp(min=1e-30)).max().item()
    budget = 4 * unit_roundoff(new.dtype) + 1e-6
    return Check(
        name="variance ÷ ε",
        found=f"ε {old.decoder.eps:.3g} → {new.decoder.eps:.3g}",
        passed=error <= budget,
        error=error,
        budget=budget,
    )


def variances(side: Side) -> Tensor:
    """Of each row of the embedding, by the norm's divisor and its mean: (V,) float64."""
    d = side.decoder
    size, scale = d.norm_size, d.embedding_scale
    scale *= d.hidden**0.5 if d.root_embedding else 1.0

    def variance(rows: Tensor) -> Tensor:
        x = rows.double() * scale
        if d.norm == "layer":
            lanes = torch.arange(x.shape[1]) < size
            x = x - x.sum(1, keepdim=True) / size * lanes
        return (x * x).sum(1) / size

    embedding = side.state["embed.weight"]
    found = blocks(len(embedding), embedding.shape[1])
    return torch.cat([variance(embedding[rows]) for rows in found])
