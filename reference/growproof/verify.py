"""Whatever made the larger checkpoint: is it the same function?

Four questions, from the general to the particular. *Structure*: do config and weights
agree with each other, and did nothing shrink? *Function, exactly*: logits and loss of
the eager clone in float64. *Function, in practice*: transformers' own forward pass and
a greedy continuation in float32. And where these part, *the first tap* that does.

The budget. A grown parameter is rounded once to the dtype it is stored in, so no fair
budget lies below what one such rounding does to the source. It is measured: every
weight of the source is multiplied by 1 ± u (u: half an ulp of 1 in the destination's
dtype, signs drawn with a seed), and the logits may differ by 4 times what this changes
in them, the largest and the root mean square change alike, the loss by 4 times the mean
change of a token's loss (no cancelling between tokens), and all by no less than
64 u(float64) · max |logit|. A rounding error is at most u, and 0.4 u in root mean
square, so that an exact growth lands near a tenth of its budgets; a float32 forward pass
has noise of its own, and there it lands near a quarter.

What passes although it is wrong: a change smaller than that, which for bfloat16 is the
change that storing in bfloat16 makes (hence ε and the rotary frequencies are compared
by themselves, to more digits); a change that the text does not reach, such as in
positions beyond its length or, but for the norm of each row, in embeddings of tokens
that are not in it; and a model that will train otherwise, such as with zero readers or
with a tied pair come apart, which is the same function for now.
"""

import json
import math
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from growproof.arithmetic import ACTIVATIONS, BLAS
from growproof.checkpoints import (
    Lazy,
    model_class,
    opened,
    read_config,
    read_weights,
    weight_files,
)
from growproof.decoder import Layer, Taps, block, rotation
from growproof.layout import Row, count, factors, index_maps, taps
from growproof.models import SIZES, shape_of
from growproof.padding import centred, check, old_entries, place
from growproof.shape import SURVIVING_ROPE_TYPES, Depth, Growth, NormPolicy, Shape

hub: Any = transformers  # untyped

FACTOR = 4  # of the source's response to one rounding of its weights
FLOOR = 64 * torch.finfo(torch.float64).eps / 2  # of the largest value compared
PROMPT = 64  # tokens before the greedy continuation
FALLBACK = """\
A model that was trained for months holds in its weights whatever it has learned, and
one would rather not lose that when a larger one is wanted. So the larger model begins
as the smaller one: every matrix is written into a larger matrix, zeros stand around it,
and a few scalars make up for the sizes that a norm or a softmax divides by. Nothing has
been learned by this, and nothing has been forgotten. What comes next, the training of
the parameters that are new, begins at the loss at which the old training ended.
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison. passed: None for a note. error ≤ budget where there are both."""

    name: str
    found: str
    passed: bool | None
    error: float | None = None
    budget: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was compared, and the outcome."""

    source: str
    destination: str
    text: str
    tokens: int
    checks: tuple[Check, ...]
    parting: str | None = None

    @property
    def same(self) -> bool:
        """True where nothing that was compared differs beyond its budget."""
        return all(c.passed is not False for c in self.checks)

    @property
    def reasons(self) -> list[str]:
        """The names of what differs."""
        return [c.name for c in self.checks if c.passed is False]

    def to_json(self) -> str:
        """The same as JSON; a number that is not finite becomes null."""
        fields: dict[str, Any] = asdict(self)
        for c in fields["checks"]:
            c |= {k: finite(c[k]) for k in ("error", "budget")}
        fields |= {"same": self.same, "reasons": self.reasons}
        return json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(x: float | None) -> float | None:
    """x, or None where it is no finite number."""
    return x if x is not None and math.isfinite(x) else None


@dataclass(frozen=True)
class Side:
    """A checkpoint: its directory, config, sizes and parameters (read at access)."""

    directory: Path
    config: Any
    shape: Shape
    state: Lazy

    @classmethod
    def of(cls, directory: Path) -> "Side":
        """Raises ValueError where there is none, or config and weights disagree."""
        config = read_config(directory)
        shape = shape_of(config)
        state = read_weights(directory, tied=shape.tied)
        check(state, shape)
        return cls(directory, config, shape, state)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the embedding is stored in."""
        return self.state["model.embed_tokens.weight"].dtype


def verify(
    source: str | Path,
    destination: str | Path,
    *,
    text: str | None = None,
    tokens: int = 512,
    continuation: int = 16,
    seed: int = 0,
) -> Verification:
    """Compare two checkpoints as functions.

    source, destination: directories with safetensors, or .gguf files. text: what to run
    them on, by the source's tokenizer (default: the licence of Python, as in the
    article; without a tokenizer, seeded random tokens). tokens: how many of it.
    continuation: the length of the greedy continuation. seed: of the signs of the
    budget. Memory: one tensor in float64 for the clone, one model in float32 for
    transformers. Raises GrowthError or ValueError for what cannot be compared at all.
    """
    with ExitStack() as stack:
        scratch = Path(tempfile.gettempdir())
        a = stack.enter_context(opened(Path(source), scratch))
        b = stack.enter_context(opened(Path(destination), scratch))
        old = Side.of(a)
        ids, described = tokens_of(old, text, tokens, seed)
        compared = compare(old, b, ids, continuation, seed)
    return Verification(
        source=str(source),
        destination=str(destination),
        text=described,
        tokens=ids.shape[1],
        checks=tuple(compared[0]),
        parting=compared[1],
    )


def compare(
    old: Side, directory: Path, ids: Tensor, continuation: int, seed: int
) -> tuple[list[Check], str | None]:
    """Every check, and where the two part ways if they do."""
    read_config(directory)
    weight_files(directory)
    try:
        new = Side.of(directory)
    except ValueError as error:
        return [Check(name="weights and config", found=str(error), passed=False)], None
    checks = structure(old, new)
    if old.shape.vocab != new.shape.vocab:
        return checks, None
    u = torch.finfo(new.dtype).eps / 2
    if has_clone(old.shape) and has_clone(new.shape):
        checks += in_the_clone(old, new, ids, seed)
    else:
        found = f"the clone has no {old.shape.activation}, {old.shape.rotary.kind} rope"
        checks.append(Check(name="float64", found=found, passed=None))
    checks += in_transformers(old, new, ids, continuation, u, seed)
    failed = any(c.passed is False for c in checks)
    if not failed or not (has_clone(old.shape) and has_clone(new.shape)):
        return checks, None
    return checks, parting(old, new, ids, seed)


def has_clone(shape: Shape) -> bool:
    """True where the eager clone has the shape's activation and rope type."""
    rope = shape.rotary.kind in SURVIVING_ROPE_TYPES
    return rope and shape.activation in ACTIVATIONS


# Structure


def structure(old: Side, new: Side) -> list[Check]:
    """What config and weights say, before anything is run."""
    a, b = old.shape, new.shape
    fields = {**SIZES, "vocab_size": "vocab"}
    sizes = {name: (getattr(a, f), getattr(b, f)) for name, f in fields.items()}
    grown = [f"{n} {i:,} → {j:,}" for n, (i, j) in sizes.items() if i != j]
    shrunk = any(j < i for i, j in sizes.values()) or a.vocab != b.vocab
    held = sum(x.numel() for x in new.state.values())
    dtypes = [
        sorted({str(x.dtype).removeprefix("torch.") for x in s.values()})
        for s in (old.state, new.state)
    ]
    tied = ["tied" if s.tied else "untied" for s in (a, b)]
    checks = [
        Check(
            name="family",
            found=changed(a.family, b.family),
            passed=a.family == b.family,
        ),
        Check(
            name="sizes",
            found="\n".join(grown) or "unchanged",
            passed=not shrunk,
        ),
        Check(
            name="parameters",
            found=f"{held:,}" if held == count(b) else f"{held:,}, not {count(b):,}",
            passed=held == count(b),
        ),
        Check(
            name="embedding, head",
            found=changed(*tied),
            passed=True if a.tied == b.tied else None,
        ),
        Check(
            name="dtype",
            found=changed(*(", ".join(d) for d in dtypes)),
            passed=True if dtypes[0] == dtypes[1] else None,
        ),
    ]
    if has_clone(a) and has_clone(b):
        checks.append(same_frequencies(a, b))
    if a.eps and b.eps and a.vocab == b.vocab:
        checks.append(same_eps(old, new))
    return checks


def changed(a: str, b: str) -> str:
    """`a`, or `a → b`."""
    return a if a == b else f"{a} → {b}"


def same_frequencies(a: Shape, b: Shape) -> Check:
    """The rotary frequencies of the source are the destination's first ones.

    Positions beyond the text show a wrong one, and a text does not. 1e-6: transformers
    computes them in float32.
    """
    f, g = a.rotary.frequencies(), b.rotary.frequencies()
    found = f"{2 * len(f)} → {2 * len(g)} lanes"
    if len(g) < len(f):
        return Check(name="rotary frequencies", found=found, passed=False)
    nearest = (g / f[:, None] - 1).abs().amin(1) if len(f) else torch.zeros(1)
    error = nearest.max().item()
    return Check(
        name="rotary frequencies",
        found=found,
        passed=error <= 1e-6,
        error=error,
        budget=1e-6,
    )


def same_eps(old: Side, new: Side) -> Check:
    """Variance ÷ ε of every embedding row, as the first norm sees it, is kept.

    A norm divides by √(variance + ε): whatever is done to the residual, the ratio of
    the two must stay, or the outputs are not proportional. The rounding of the grown
    rows moves a variance by at most 2 u.
    """
    a, b = variances(old) / old.shape.eps, variances(new) / new.shape.eps
    error = ((b - a).abs() / torch.maximum(a, b).clamp(min=1e-30)).max().item()
    budget = 4 * torch.finfo(new.dtype).eps / 2 + 1e-6
    return Check(
        name="variance ÷ ε",
        found=f"ε {old.shape.eps:.3g} → {new.shape.eps:.3g}",
        passed=error <= budget,
        error=error,
        budget=budget,
    )


def variances(side: Side) -> Tensor:
    """Of each row of the embedding, by the norm's divisor and its mean: (V,) float64."""
    size = side.shape.norm_size

    def variance(rows: Tensor) -> Tensor:
        x = rows.double()
        if side.shape.layer_norm:
            lanes = torch.arange(x.shape[1]) < size
            x = x - x.sum(1, keepdim=True) / size * lanes
        return (x * x).sum(1) / size

    embedding = side.state["model.embed_tokens.weight"]
    starts = range(0, len(embedding), 4096)
    return torch.cat([variance(embedding[i : i + 4096]) for i in starts])


# Function


def signs(name: str, like: Tensor, seed: int) -> Tensor:
    """±1 for each entry of a parameter, by its name and the seed."""
    generator = torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(name.encode()))
    flips = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return 2.0 * flips.to(like.dtype) - 1


def rounded(name: str, x: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """x (float64) · (1 ± u(dtype)): as one rounding to that dtype could change it."""
    info = torch.finfo(dtype)
    step = (x.abs() * info.eps / 2).clamp(min=info.smallest_normal * info.eps / 2)
    return x + torch.where(x == 0, 0, step) * signs(name, x, seed)


def stages(
    shape: Shape, state: Lazy, ids: Tensor
) -> Generator[tuple[int | None, Taps]]:
    """The taps of `decoder.forward`, a layer at a time, so that they can be dropped.

    Yields (None, embedding), (i, the taps of layer i) …, (None, norm and logits).
    """
    x = state["model.embed_tokens.weight"][ids]
    yield None, {"embedding": x}
    cos, sin = rotation(shape, ids.shape[1], x)
    for i in range(shape.layers):
        inner = block(Layer(shape, state, f"model.layers.{i}.", BLAS), x, cos, sin)
        x = inner["residual"]
        yield i, inner
    normed = Layer(shape, state, "model.", BLAS).norm("norm", x)
    head = state["model.embed_tokens.weight" if shape.tied else "lm_head.weight"]
    yield None, {"norm": normed, "logits": BLAS.matmul(normed, head.mT)}


def runs(
    old: Side, new: Side, ids: Tensor, seed: int
) -> tuple[Iterator[tuple[int | None, Taps]], ...]:
    """The source, the source with its weights rounded once, and the destination."""
    exact = old.state.map(lambda _, x: x.double())
    shaken = exact.map(lambda name, x: rounded(name, x, new.dtype, seed))
    grown = new.state.map(lambda _, x: x.double())
    return (
        stages(old.shape, exact, ids),
        stages(old.shape, shaken, ids),
        stages(new.shape, grown, ids),
    )


def last_logits(run: Iterator[tuple[int | None, Taps]]) -> Tensor:
    """(T, V) of a run."""
    end: Taps = {}
    for _, end in run:  # noqa: B007
        pass
    return end["logits"][0]


def losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross entropy of each next token, (T − 1,), of logits (T, V)."""
    return cross_entropy(logits[:-1], ids[0, 1:], reduction="none")


def largest(x: Tensor) -> float:
    """max |x|."""
    return x.abs().max().item()


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.double().square().mean().sqrt().item()


def budget_of(response: float, like: Tensor) -> float:
    """4 times the response of the source, at least the floor."""
    return max(FACTOR * response, FLOOR * largest(like))


def function_checks(
    name: str, want: Tensor, shaken: Tensor, got: Tensor, ids: Tensor
) -> list[Check]:
    """Logits (T, V), by their largest and their rms change, and loss."""
    response, change = shaken - want, got - want
    a, b, c = (losses(x, ids) for x in (want, shaken, got))
    lost = abs((c.mean() - a.mean()).item())

    def row(what: str, found: str, error: float, response: float) -> Check:
        budget = budget_of(response, want)
        return Check(
            name=f"{what}, {name}",
            found=found,
            passed=error <= budget,
            error=error,
            budget=budget,
        )

    values = f"up to {largest(want):.4g} → {largest(got):.4g}"
    total = f"{a.mean().item():.6f} → {c.mean().item():.6f}"
    return [
        row("logits max", values, largest(change), largest(response)),
        row("logits rms", "", rms(change), rms(response)),
        row("loss", total, lost, (b - a).abs().mean().item()),
    ]


@torch.no_grad()
def in_the_clone(old: Side, new: Side, ids: Tensor, seed: int) -> list[Check]:
    """Logits and loss of the eager clone in float64."""
    want, shaken, got = (last_logits(run) for run in runs(old, new, ids, seed))
    return function_checks("float64", want, shaken, got, ids)


@torch.no_grad()
def in_transformers(
    old: Side, new: Side, ids: Tensor, continuation: int, u: float, seed: int
) -> list[Check]:
    """Logits, loss and a greedy continuation of transformers' own forward in float32.

    The source is rounded as in the clone, to float32 at the finest, so that the budget
    holds the noise of a float32 forward pass as well.
    """
    name = "transformers"
    model = load(old)
    want = model(ids).logits[0]
    words, scores = continued(model, ids, continuation)
    coarse = torch.float32 if u < torch.finfo(torch.float32).eps / 2 else new.dtype
    for parameter_name, p in model.named_parameters():
        p.copy_(rounded(parameter_name, p.double(), coarse, seed))
    shaken = model(ids).logits[0]
    del model
    try:
        model = load(new)
        got = model(ids).logits[0]
        words_new, _ = continued(model, ids, continuation)
    except Exception as error:  # whatever a stranger's checkpoint makes it raise
        found = f"{type(error).__name__}: {error}"
        return [Check(name=f"runs in {name}", found=found, passed=False)]
    checks = function_checks(name, want, shaken, got, ids)
    margin = 2 * budget_of(largest(shaken - want), want)
    return [*checks, same_words(words, words_new, scores, margin)]


def load(side: Side) -> Any:
    """The checkpoint in transformers, float32. Raises ValueError where it is partial."""
    model, info = model_class(side.config.model_type).from_pretrained(
        side.directory, dtype=torch.float32, output_loading_info=True
    )
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if wrong:
        raise ValueError(f"transformers loads it only in part: {wrong}")
    return model.eval()


def continued(model: Any, ids: Tensor, length: int) -> tuple[list[int], Tensor]:
    """Greedy tokens after the first ones of the text, by generate() with its cache.

    Returns them and the logits they were chosen by, (length, V).
    """
    model.generation_config = hub.GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    prompt = ids[:, :PROMPT]
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt))
    return out.sequences[0, prompt.shape[1] :].tolist(), torch.cat(out.logits)


def same_words(a: list[int], b: list[int], scores: Tensor, margin: float) -> Check:
    """The same tokens, or the first other one lost by less than the budget allows."""
    name, total = "greedy continuation", len(a)
    equal = next((i for i in range(total) if a[i] != b[i]), total)
    if equal == total:
        return Check(name=name, found=f"the same {total} tokens", passed=True)
    lost = (scores[equal, a[equal]] - scores[equal, b[equal]]).item()
    return Check(
        name=name,
        found=f"token {equal + 1} of {total} differs, ahead by {lost:.1e}",
        passed=lost <= margin,
        error=lost,
        budget=margin,
    )


# The first tap


def parting(old: Side, new: Side, ids: Tensor, seed: int) -> str:
    """Where a zero-padded growth of the source and the destination first differ.

    Growths between the two configs differ in what they centre and where layers go: the
    one that goes furthest is reported.
    """
    a, b = old.shape, new.shape
    along_old, along_new = factors(a), factors(b)
    if a.family != b.family or any(
        i > j
        for axis in along_old
        for i, j in zip(along_old[axis], along_new[axis], strict=True)
    ):
        return "the sizes are not those of a growth, so that no taps can be compared"
    norms: tuple[NormPolicy, ...] = ("scaled",)
    if a.layer_norm and b.hidden > a.hidden and not a.tied:
        norms = ("centred", "scaled")
    depths: tuple[Depth, ...] = ("append", "interleave")
    found: list[tuple[int, str]] = []
    for norm in norms:
        for depth in depths[: 1 if a.layers == b.layers else 2]:
            growth = Growth(old=a, new=b, norm=norm, depth=depth)
            found.append(first_parting(growth, old, new, ids, seed))
    return max(found, key=lambda f: f[0])[1]


@torch.no_grad()
def first_parting(
    growth: Growth, old: Side, new: Side, ids: Tensor, seed: int
) -> tuple[int, str]:
    """(stages that agree, what is wrong at the next), by the table of the taps."""
    want, shaken, got = runs(old, new, ids, seed)
    layers = set(index_maps(growth)["layer"])
    table = taps(growth)
    scale = 1.0
    x: Taps = {}
    y: Taps = {}
    for n, (layer, z) in enumerate(got):
        fresh = layer is not None and layer not in layers
        if fresh:  # a new layer, which leaves the residual as it was
            x, y, z = (
                {"residual": t.get("residual", t.get("embedding", ids))}
                for t in (x, y, z)
            )
        else:
            x, y = next(want)[1], next(shaken)[1]
        prefix = "" if layer is None else "layers.{layer}."
        rows = {name: table[prefix + name] for name in x}
        if n == 0:
            placed = place(x["embedding"], rows["embedding"], growth)
            scale = factor(placed, z["embedding"])
        for name in rows.keys() & {"embedding", "attention", "mlp", "residual"}:
            rows[name] = replace(rows[name], scale=scale)
        wrong = {
            name: said
            for name in x
            if (said := differs(x[name], y[name], z[name], rows[name], growth))
        }
        if layer is not None:
            wrong = without_detours(wrong)
        if wrong:
            name, said = next(iter(wrong.items()))
            if n == 0:
                said += (
                    ". The residual is not the source's, padded with zeros, so that no "
                    "later tap can be compared: another layout, or a wrong embedding"
                )
            where = prefix.format(layer=layer)
            if fresh:
                said += " (a new layer, which should leave the residual as it was)"
            return n, f"{where}{name} {said}"
    return sys.maxsize, "no tap parts beyond its budget on this text"


def without_detours(wrong: dict[str, str]) -> dict[str, str]:
    """`wrong` less what the layer makes good again: (2 q) · (k / 2) are the scores."""
    front = ("input_norm", "query", "key", "query_rotated", "key_rotated")
    attention = (*front, "value", "scores", "probabilities", "context")
    mlp = ("post_norm", "gate", "up", "activated")
    for goal, before in (
        ("scores", front),
        ("attention", attention),
        ("mlp", mlp),
        ("residual", (*attention, "attention", *mlp, "mlp")),
    ):
        if goal not in wrong:
            wrong = {k: v for k, v in wrong.items() if k not in before}
    return wrong


def factor(want: Tensor, got: Tensor) -> float:
    """The k for which k · want is nearest to got; 1 where it is nearly that."""
    k = ((want * got).sum() / (want * want).sum()).item()
    return k if math.isfinite(k) and abs(k - 1) > 1e-3 else 1.0


def differs(x: Tensor, y: Tensor, z: Tensor, row: Row, growth: Growth) -> str | None:
    """How the tap z differs from x, grown; None within 4 times |y − x|, grown.

    New lanes of the residual must be zero; elsewhere they are free.
    """
    if "residual" in row.axes:
        want, got, response = place(x, row, growth), z, place(y - x, row, growth)
    else:
        got = old_entries(z.contiguous(), x, row, growth)
        want = (centred(x, row, growth) * row.scale).reshape(got.shape)
        response = centred(y - x, row, growth) * row.scale
    error, budget = largest(got - want), budget_of(largest(response), want)
    if error <= budget:
        return None
    said = f"is off by {error:.1e} (budget {budget:.1e}, values to {largest(want):.3g})"
    k = factor(want, got)
    if k != 1 and largest(got - k * want) <= max(1, abs(k)) * budget:
        said += f": it is {k:.4g} of what it should be"
    return said


# The text


def tokens_of(
    side: Side, text: str | None, length: int, seed: int
) -> tuple[Tensor, str]:
    """((1, T) token ids, what they are), T at most `length` and the model's positions."""
    length = min(length, getattr(side.config, "max_position_embeddings", length))
    if length < 2:
        raise ValueError(f"a loss needs at least 2 tokens, got {length}")
    tokenizer = tokenizer_of(side.directory)
    if tokenizer is None:
        if text is not None:
            raise ValueError(f"{side.directory} has no tokenizer to read the text with")
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(side.shape.vocab, (1, length), generator=generator)
        return ids, "random tokens, as the source has no tokenizer"
    text, described = (text, "the given text") if text is not None else licence()
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :length]
    if ids.shape[1] < 2 or ids.max() >= side.shape.vocab:
        raise ValueError(
            f"the tokenizer in {side.directory} makes {ids.shape[1]} tokens of the text, "
            f"up to id {ids.max() if ids.numel() else None}: at least 2 are needed, all "
            f"below the vocabulary's {side.shape.vocab}"
        )
    return ids, described


def tokenizer_of(directory: Path) -> Any:
    """The tokenizer in a checkpoint directory, or None."""
    if not any(directory.glob("tokenizer*")):
        return None
    return hub.AutoTokenizer.from_pretrained(directory)


def licence() -> tuple[str, str]:
    """The article's text, which this interpreter prints, and its description."""
    command = "license.MAXLINES=1<<30;license()"
    printed = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", command],
        capture_output=True,
        encoding="utf-8",
        check=False,
    ).stdout
    if "PYTHON SOFTWARE FOUNDATION" in printed:
        return printed, "the Python licence text"
    return FALLBACK, "a built-in paragraph, as this Python prints no licence"


# The table


def render(result: Verification, console: Console | None = None) -> None:
    """Print the table of what was compared, and the verdict."""
    console = console or Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("compared", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("budget", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    marks = {True: "[green]ok[/]", False: "[red]NO[/]", None: "[yellow]note[/]"}
    for c in result.checks:
        numbers = ["" if x is None else f"{x:.1e}" for x in (c.error, c.budget)]
        table.add_row(c.name, escaped(c.found), *numbers, marks[c.passed])
    console.print(f"source       {escaped(result.source)}", soft_wrap=True)
    console.print(f"destination  {escaped(result.destination)}", soft_wrap=True)
    console.print(f"run on       {result.tokens} tokens of {result.text}")
    console.print(table)
    for line in verdict(result):
        console.print(escaped(line))


def verdict(result: Verification) -> Sequence[str]:
    """The outcome in a sentence or two."""
    if result.same:
        return ["The same function, within the rounding of its stored weights."]
    lines = [f"NOT the same function: {', '.join(result.reasons)}."]
    return lines + ([f"First parting: {result.parting}."] if result.parting else [])


def escaped(text: str) -> str:
    """Text that rich prints as it is."""
    return text.replace("[", r"\[")
