"""Fit: the least exact growth after which a decoder divides as the hardware wants it.

`fit` is arithmetic on sizes. Every cost is increasing in every size, so that for each
number of query heads the least other sizes are at hand, and the search over heads ends
where more of them cannot be cheaper. What it returns is the optimum: the parameters
are the fewest, and among those the key/value cache is the smallest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import count as counting
from math import inf, lcm, prod

from growproof.decoder import Decoder, GrowthError
from growproof.growth import Growth
from growproof.reading import MOST
from growproof.table import names, rows, size

SAID = {
    "hidden": "hidden size", "heads": "query heads", "groups": "key/value heads",
    "head_dim": "head_dim", "mlp": "MLP", "expert_mlp": "MLP of an expert",
    "vocab": "vocabulary",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the sizes must satisfy.

    ranks: T divides the query heads, and divides the key/value heads or is divided by
    them; whole_groups: divides them, so that no two ranks hold the same head. block:
    divides the hidden size, and ranks · block the MLP and the experts. blocked_heads:
    ranks · block divides H · K, which the output projection reads. head_dims: those that
    are supported; empty for the old one. vocab_multiple: divides the vocabulary.
    max_growth: the largest ratio of parameters.
    """

    ranks: int = 1
    whole_groups: bool = False
    block: int = 1
    blocked_heads: bool = False
    head_dims: tuple[int, ...] = ()
    vocab_multiple: int = 1
    max_growth: float | None = None

    def __post_init__(self) -> None:
        for name in ("ranks", "block", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise GrowthError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        largest = max(self.ranks, self.block, self.vocab_multiple, *self.head_dims, 1)
        if largest > MOST:
            raise GrowthError(f"{largest:,} is asked for, expected {MOST:,} at most")
        if self.max_growth is not None and not 1 <= self.max_growth < inf:
            raise GrowthError(
                f"max_growth must be a finite number from 1 on, got {self.max_growth}"
            )


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a family asks of its sizes besides.

    whole_heads: the hidden size is a multiple of the query heads. tied_head_dim: it is
    heads · head_dim. grouped: there may be fewer key/value heads than query heads.
    """

    whole_heads: bool = False
    tied_head_dim: bool = False
    grouped: bool = True


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The old decoder, the least one that fits, and why each size is what it is."""

    old: Decoder
    new: Decoder
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def growth(self) -> float:
        """Parameters, new over old."""
        return parameters(self.new) / parameters(self.old)


def fit(old: Decoder, wanted: Wanted, rules: Rules | None = None) -> Plan:
    """The least growth of `old` to what is wanted, by the rules of its family.

    Raises GrowthError where there is none, with the constraint that cannot be met and
    what could be.
    """
    rules = rules or Rules()
    if wanted.head_dims and max(wanted.head_dims) < old.head_dim:
        raise GrowthError(
            f"head_dim {old.head_dim} is larger than every supported size "
            f"({', '.join(map(str, wanted.head_dims))}): name a larger one"
        )
    new = least(old, wanted, rules)
    plan = Plan(old=old, new=new, reasons=dict(reasons(old, new, wanted, rules)))
    limit = wanted.max_growth
    if limit is not None and plan.growth > limit:
        raise GrowthError(too_large(plan, wanted, rules, limit))
    return plan


# --- the search -----------------------------------------------------------------------


def least(old: Decoder, wanted: Wanted, rules: Rules) -> Decoder:
    """The cheapest decoder that satisfies everything."""
    base = replace(old, **unattended(old, wanted))
    best, least_cost = base, (inf, inf)
    for heads in counting(ceiling(old.heads, wanted.ranks), wanted.ranks):
        if cost(floor(base, heads, rules)) > least_cost:
            break
        new = candidate(base, heads, wanted, rules)
        if new is not None and cost(new) < least_cost:
            best, least_cost = new, cost(new)
    return best


def has_dense(d: Decoder) -> bool:
    """True where some layer has an MLP that is not one of experts."""
    return any(not kind.sparse for kind in d.kinds)


def unattended(old: Decoder, wanted: Wanted) -> dict[str, int]:
    """The least sizes of what has nothing to do with attention."""
    share = wanted.ranks * wanted.block
    return {
        "vocab": ceiling(old.vocab, wanted.vocab_multiple),
        "hidden": ceiling(old.hidden, wanted.block),
        "mlp": ceiling(old.mlp, share) if has_dense(old) else old.mlp,
        "expert_mlp": ceiling(old.expert_mlp, share),
    }


def floor(base: Decoder, heads: int, rules: Rules) -> Decoder:
    """No dearer than any decoder with so many heads, and dearer with each more."""
    tied = heads * base.head_dim if rules.tied_head_dim else 0
    groups = 1 if rules.grouped else heads
    return replace(base, heads=heads, groups=groups, hidden=max(base.hidden, tied))


def candidate(
    base: Decoder, heads: int, wanted: Wanted, rules: Rules
) -> Decoder | None:
    """The cheapest decoder with so many query heads, None where there is none."""
    groups = range(base.groups, heads + 1)
    fitting = (g for g in groups if shared(base, heads, g, wanted, rules))
    group, head_dim = next(fitting, None), least_head_dim(base, heads, wanted, rules)
    if group is None or head_dim is None:
        return None
    hidden = heads * head_dim if rules.tied_head_dim else base.hidden
    if rules.whole_heads:
        hidden = ceiling(hidden, lcm(heads, wanted.block))
    return replace(base, heads=heads, groups=group, head_dim=head_dim, hidden=hidden)


def shared(d: Decoder, heads: int, groups: int, wanted: Wanted, rules: Rules) -> bool:
    """True where so many key/value heads can serve the query heads, on every rank."""
    split = groups % wanted.ranks == 0
    split = split or (not wanted.whole_groups and wanted.ranks % groups == 0)
    if heads % groups or not split or not (rules.grouped or groups == heads):
        return False
    try:
        return Growth(old=d, new=replace(d, heads=heads, groups=groups)).copies > 0
    except GrowthError:
        return False


def least_head_dim(d: Decoder, heads: int, wanted: Wanted, rules: Rules) -> int | None:
    """The least head_dim that serves: the old one, a supported one, or what is tied."""
    among: Iterable[int] = (d.head_dim,)
    if wanted.head_dims:
        among = sorted(k for k in wanted.head_dims if k >= d.head_dim)
    elif rules.tied_head_dim:
        among = counting(d.head_dim)
    share = wanted.ranks * wanted.block if wanted.blocked_heads else 1
    share = lcm(share, wanted.block if rules.tied_head_dim else 1)
    return next((k for k in among if heads * k % share == 0), None)


def ceiling(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple


# --- the costs ------------------------------------------------------------------------


def cost(d: Decoder) -> tuple[int, int]:
    """Parameters, then the key/value cache."""
    return parameters(d), cache(d)


def parameters(d: Decoder) -> int:
    """How many parameters d has, from the table, without naming each."""
    return sum(
        sum(1 for _ in names(d, template, row))
        * prod(size(d, axis) for axis in row.axes)
        for template, row in rows(d).items()
    )


def cache(d: Decoder) -> int:
    """Keys and values that are kept for each token of a text."""
    return 2 * d.layers * d.groups * d.head_dim


def arithmetic(d: Decoder, context: int) -> int:
    """Multiply-adds for one token that looks back on so many, in linear maps and q·k·v."""
    done = 2 * d.layers * d.heads * d.head_dim * context
    for template, row in rows(d).items():
        if row.norm or row.reads in (None, "vocab", "position"):
            continue
        lengths = [size(d, axis) for axis in row.axes]
        if len(lengths) > 2:  # of all experts, only those that are chosen
            lengths[0] = d.active
        done += sum(1 for _ in names(d, template, row)) * prod(lengths)
    return done + d.tied * d.vocab * d.hidden


# --- the words ------------------------------------------------------------------------


def reasons(
    old: Decoder, new: Decoder, wanted: Wanted, rules: Rules
) -> Iterator[tuple[str, str]]:
    """(size, why it has grown), for each that has."""
    on, block = f"{wanted.ranks} ranks", f"blocks of {wanted.block}"
    shares = [on] * (wanted.ranks > 1) + [block] * (wanted.block > 1)
    share = " × ".join(shares) or on
    why = {
        "heads": f"divides among {on}"
        if wanted.ranks > 1
        else f"with head_dim: {block}",
        "groups": f"divides among {on}, or they among it",
        "head_dim": "a supported size",
        "mlp": f"divides by {share}",
        "expert_mlp": f"divides by {share}",
        "hidden": f"divides into {block}",
        "vocab": f"a multiple of {wanted.vocab_multiple}",
    }
    if wanted.whole_groups:
        why["groups"] = f"divides among {on}"
    if Growth(old=old, new=new).copies > 1:
        why["groups"] += ": each repeated, and its query heads dealt out"
    if rules.tied_head_dim:
        why["hidden"] = f"num_attention_heads · head_dim = {new.heads} · {new.head_dim}"
        why["head_dim"] = f"hidden_size / num_attention_heads, in {block}"
    elif rules.whole_heads and ceiling(old.hidden, wanted.block) < new.hidden:
        why["hidden"] = f"transformers wants a multiple of the {new.heads} query heads"
    if not rules.grouped:
        why["groups"] = "as many as query heads, in this family"
    elif old.heads == old.groups:
        why["groups"] += f", and {new.heads} query heads by it"
    for name, reason in why.items():
        if getattr(new, name) > getattr(old, name):
            yield name, reason


def lines(plan: Plan, wanted: Wanted, context: int) -> Iterator[str]:
    """The plan: each size before and after and why, and what it costs."""
    old, new = plan.old, plan.new
    for name in ("hidden", "heads", "groups", "head_dim", "mlp", "expert_mlp", "vocab"):
        before, after = getattr(old, name), getattr(new, name)
        arrow = f"{before:,} → {after:,}" if after > before else f"{before:,}"
        if after:
            yield f"{SAID[name]:<22}{arrow:<22}{plan.reasons.get(name, '')}".rstrip()
    for name, measure, unit in (
        ("parameters", parameters, ""),
        ("key/value cache", cache, " values a token"),
        ("arithmetic", partial(arithmetic, context=context),
         f" multiply-adds a token, {context:,} behind it"),
    ):  # fmt: skip
        before, after = measure(old), measure(new)
        yield f"{name:<22}{before:,} → {after:,}{unit} (× {after / before:.3f})"
    lanes = new.heads * new.head_dim
    if lanes % (wanted.ranks * wanted.block):
        yield (
            f"note: the output projection reads {lanes:,} lanes, no multiple of "
            f"{wanted.ranks} × {wanted.block}: --block-heads wants that as well"
        )


def too_large(plan: Plan, wanted: Wanted, rules: Rules, limit: float) -> str:
    """What the least growth is, and how much less would be without each constraint."""
    said = [
        f"the least exact growth has {plan.growth:.3f} times the parameters, more than "
        f"max_growth {limit}"
    ]
    for option in fields(Wanted):
        usual = option.default
        if option.name == "max_growth" or getattr(wanted, option.name) == usual:
            continue
        new = least(plan.old, replace(wanted, **{option.name: usual}), rules)
        without = Plan(old=plan.old, new=new).growth
        said.append(f"without {option.name} it would have {without:.3f}")
    for ranks in range(wanted.ranks - 1, 1, -1):
        new = least(plan.old, replace(wanted, ranks=ranks), rules)
        if Plan(old=plan.old, new=new).growth <= limit:
            return "; ".join([*said, f"with {ranks} ranks it fits"])
    return "; ".join(said)
