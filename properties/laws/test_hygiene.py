"""What a user of a grown model takes for granted: it runs as the old one, in any dtype."""

import copy
import inspect
import logging
import warnings
from typing import Any

import torch
from growproof.models import kind
from growproof.rounding import unit_roundoff
from growproof.scatter import take
from growproof.table import pairs, parameters
from hypothesis import given
from hypothesis import strategies as st

from . import claims
from .checks import close, plain
from .doors import cache_name
from .grown import grow
from .models import Case
from .registry import hygiene, law, lossless, zero_padding
from .strategies import cases, fewer
from .test_decoder import logits_are_equal


def quietly(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The result of a call that must neither warn nor log a warning."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = function(*args, **kwargs)
    finally:
        logger.removeHandler(handler)
    assert not records, f"warned: {records[0]}"
    return result


def step_by_step(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a text (B, T) fed token by token through the key/value cache."""
    accepted = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in accepted else "past_key_values"  # from 5.24 on
    cache, steps = None, []
    for token in ids.split(1, 1):
        out = model(token, use_cache=True, **{name: cache})
        cache = out[name]
        steps.append(out.logits)
    return torch.cat(steps, 1)


@law(hygiene, claim=claims.CACHE, proof=("cache_whole", "cache_grown"))
@fewer(3)
@given(case=cases(min_tokens=2, max_tokens=6))
def test_generates_with_a_cache(grower, case: Case) -> None:
    """Logits with a key/value cache are those without, token by token."""
    model = grow(case, grower).model
    with torch.no_grad():
        whole = model(case.ids, use_cache=False).logits
        try:
            stepwise = step_by_step(model, case.ids)
            ids = model.generate(
                case.ids,
                max_new_tokens=3,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        except RuntimeError as error:
            raise AssertionError(f"with a cache the model raises: {error}") from error
    worst = float((whole - stepwise).abs().max() / whole.abs().max())
    assert worst < 1e-5, f"with a cache the logits differ by {worst:.3g} of their scale"
    assert ids.shape[1] == case.tokens + 3, f"generate() returned {ids.shape[1]} tokens"


@law(hygiene, claim=claims.HYGIENE, version=2)
@fewer(3)
@given(case=cases(min_tokens=2, max_tokens=6), padding=st.integers(1, 4))
def test_left_padding(grower, case: Case, padding: int) -> None:
    """A left-padded batch of unequal lengths gives each row its own logits; with a cache, too."""
    model = grow(case, grower).model
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")  # eager gives NaN on a fully masked row
    else:  # but in float32
        model = model.float()
    row = case.ids[:1]
    padded = torch.cat((torch.zeros(1, padding, dtype=torch.long), row), 1)
    longer = torch.cat((row, row[:, :1].expand(1, padding)), 1)
    ids = torch.cat((padded, longer))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = model(row).logits[0]
        both = model(ids, attention_mask=mask, position_ids=positions).logits
        prompt = {"attention_mask": mask[:, :-1], "position_ids": positions[:, :-1]}
        out = model(ids[:, :-1], use_cache=True, **prompt)
        rest = {"attention_mask": mask, "position_ids": positions[:, -1:]}
        past = {cache_name(model): out[cache_name(model)]}
        last = model(ids[:, -1:], use_cache=True, **rest, **past).logits[:, -1]
    worst = max(
        float((both[0, padding:] - alone).abs().max()),
        float((both[1, : case.tokens] - alone).abs().max()),
        float((last - both[:, -1]).abs().max()),
    ) / float(alone.abs().max())
    within = 1e-5 if model.dtype == torch.float64 else 1e-4
    assert worst < within, (
        f"in a padded batch the logits differ by {worst:.3g} of scale"
    )


@law(
    lossless,
    claim=claims.PRECISION,
    budget="low",
    dtype=("float32", "bfloat16", "float16"),
)
@fewer(2)
@given(case=cases(max_tokens=8))
def test_low_precision_loses_one_rounding(grower, dtype: str, case: Case) -> None:
    """Grown in bf16, fp16 or fp32, the weights are those of an exact growth, rounded."""
    logits_are_equal(grow(case, grower, getattr(torch, dtype)))


def rounded_once(low: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Where an entry is the exact one (float64) rounded to its dtype.

    float64's own rounding may tip what lies half way: 1e-13 of the largest is allowed.
    """
    slack = 1e-13 * float(exact.abs().max())
    below, above = ((exact + s).to(low.dtype) for s in (-slack, slack))
    return (low >= below) & (low <= above)


@law(
    hygiene, claim=claims.PRECISION, version=2, dtype=("float32", "bfloat16", "float16")
)
@fewer(2)
@given(case=cases(max_tokens=2))
def test_growing_commutes_with_rounding(grower, dtype: str, case: Case) -> None:
    """grow(w) = round(grow(double w)), entry by entry, for w stored in that dtype."""
    commutes_with_rounding(grower, case, dtype)


def commutes_with_rounding(grower, case: Case, dtype: str) -> None:
    """The same, of one growth."""
    source = case.model(getattr(torch, dtype))
    exact = grower(copy.deepcopy(source).double(), dict(case.target))
    grown = grower(source, dict(case.target))
    low = {name: p.detach() for name, p in grown.named_parameters()}
    for name, w in exact.named_parameters():
        assert low[name].dtype == source.dtype, f"{name} is {low[name].dtype}"
        wrong = ~rounded_once(low[name], w.detach())
        where = tuple(int(i) for i in wrong.nonzero()[0]) if wrong.any() else ()
        assert not wrong.any(), (
            f"{name} {list(where)} is {float(low[name][where]):.9g} in {dtype}, and "
            f"{float(w.detach()[where]):.9g} when grown in float64 ({int(wrong.sum())} of "
            f"{wrong.numel()} entries are not the float64 ones rounded once)"
        )


@law(hygiene, claim=claims.HYGIENE)
@fewer(3)
@given(case=cases(max_tokens=2))
def test_dropout_is_kept(grower, case: Case) -> None:
    """attention_dropout and hidden_dropout survive, and evaluation ignores them."""
    source = case.model()
    source.config.attention_dropout = 0.125
    model = grower(copy.deepcopy(source), dict(case.target))
    got = model.config.attention_dropout
    assert got == 0.125, f"config.attention_dropout was 0.125 and is {got}"
    with torch.no_grad():
        logits = [model(case.ids).logits for _ in range(2)]
    assert torch.equal(*logits), "two evaluations differ: dropout is on"


@law(
    zero_padding,
    claim=claims.PRECISION,
    budget="weights",
    dtype=("float32", "bfloat16"),
)
@fewer(2)
@given(case=cases(max_tokens=2))
def test_weights_are_rounded_once(grower, dtype: str, case: Case) -> None:
    """Each stored weight is s · w rounded once, to one last place of the largest.

    s: the table's scale or, where a grower shares it out otherwise, one scalar a tensor.
    A scale or a product that was rounded once more is within that place: the ledger
    shows it (0 for the exact scale), and comparing two runs finds it.
    """
    grown = grow(case, grower, getattr(torch, dtype))
    u = unit_roundoff(grown.dtype)
    layers: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for _, old_name, row in pairs(grown.growth, parameters(case.decoder, grown.growth)):
        # what writes into LayerNorms may be centred by a grower, wherever it likes
        mean = row.is_writer and case.decoder.norm == "layer"
        if old_name is None or row.centre or mean:
            continue
        new_name = grown.renamed(old_name)
        old = grown.old_state[old_name]
        new = take(grown.state[new_name], plain(row), grown.growth)
        whole = old + row.offset  # what is scaled
        if not whole.any():
            continue
        free = float(((new + row.offset) * whole).sum() / (whole * whole).sum())
        # an estimate within rounding of the table's scale is the table's scale
        scale = row.scale if abs(free / row.scale - 1) < 4 * u else free
        once = (whole * scale - row.offset).to(grown.dtype).double()
        layers.setdefault(kind(old_name), []).append((new, once))
    assert layers
    for tap, both in layers.items():  # one comparison a kind: target() takes no second
        new, once = (torch.stack(tensors) for tensors in zip(*both, strict=True))
        close(
            new,
            once,
            tap=tap,
            case=case,
            response=u * float(once.abs().max()),
            n=1,
            dtype=grown.dtype,
            kernel="weights",
        )
