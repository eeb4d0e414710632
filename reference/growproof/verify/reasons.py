"""What accounting found, in words: the check of all entries, and what kind of no it is."""

from collections import Counter

import torch

from growproof.decoder import Decoder
from growproof.rounding import holds
from growproof.verify.accounting import Accounted
from growproof.verify.entries import Account, Miss
from growproof.verify.outcome import Check
from growproof.verify.placing import integers
from growproof.verify.sides import Side

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def entries(old: Side, new: Side, known: Accounted) -> list[Check]:
    """The check of all entries: passed, or a note of the first that is unaccounted for."""
    account = known.account
    # a code has no scalar, and no neighbour that is as good: it is right, or it is wrong
    passed = False if old.codes and new.codes else None
    if account is None or known.why or account.misses:
        found = f"not accounted for: {known.why}" if known.why else ""
        if account and account.misses:
            names = len({miss.name for miss in account.misses})
            said = f"{names} of {account.tensors} tensors are not accounted for"
            found += f"{'; ' if found else ''}{said}; {account.misses[0]}"
        return [Check(name="entries", found=found, passed=passed)]
    coarser = not holds(new.dtype, old.dtype)
    how = (
        f"rounded to {str(new.dtype)[6:]}"
        if coarser
        else "times a scalar, rounded once"
    )
    checks = [Check(name="entries", found=counted(account, how), passed=True)]
    if new.dtype in SIXTEEN_BITS and sums(old.decoder) != sums(new.decoder):
        found = (
            f"may differ in {str(new.dtype)[6:]} itself: longer sums are grouped "
            "otherwise, and a near tie goes the other way"
        )
        checks.append(Check(name="greedy text", found=found, passed=None))
    return checks


def counted(account: Account, how: str) -> str:
    """How many entries are what; how those that are not equal came to be."""
    found = [f"{account.equal:,} equal"]
    if account.rounded:
        found.append(f"{account.rounded:,} {how}")
    if account.new:
        found.append(f"{account.new:,} new, without effect")
    return "\n".join(found)


def sums(d: Decoder) -> tuple[int, ...]:
    """The lengths of a decoder's sums."""
    return (d.hidden, d.heads, d.head_dim, d.mlp, d.expert_mlp)


def first(known: Accounted) -> str:
    """The first tensor that is wrong, in a sentence; empty where none was looked at."""
    misses = known.account.misses if known.account else []
    return f"The first tensor that is wrong: {misses[0]}." if misses else ""


# --- what kind of no ------------------------------------------------------------------


def unlike(old: Side, new: Side, known: Accounted) -> str:
    """What kind of no it is, as far as the tensors tell."""
    account = known.account
    said = f"The configs differ: {known.why}." if known.why and known.scaling else ""
    if account is None or not account.misses:
        return said
    return f"{said} {unlike_tensors(old, new, known, account)}".strip()


def unlike_tensors(old: Side, new: Side, known: Accounted, account: Account) -> str:
    """What kind of no the tensors with wrong entries make it."""
    misses = account.misses
    moved = rows_moved(old, new) or heads_moved(old, new, known)
    if moved:
        return moved
    narrow = frozenset[torch.dtype].intersection(*(m.narrow for m in misses))
    if narrow:
        dtype = min(map(str, narrow))[6:]
        return f"Stored in {dtype} in between: its entries are the source's, rounded."
    return f"{differing(account, misses)} {first(known)}"


def differing(account: Account, misses: list[Miss]) -> str:
    """N of M tensors differ, most in …: fine-tuned, another layout, or a few faults."""
    names = {miss.name for miss in misses}
    by = Counter[str]()
    for miss in misses:
        by[kind(miss.name)] += 1
    most, count = by.most_common(1)[0]
    said = f"{len(names)} of {account.tensors} tensors differ, most in {most} ({count})"
    typical = sorted(miss.relative for miss in misses)[len(misses) // 2]
    if 2 * len(names) < account.tensors:
        return said + "."
    if typical < 0.3:
        return f"{said}, by {typical:.1%} of themselves: it was trained further."
    return f"{said}, by {typical:.0%} of themselves: another layout, or another model."


def kind(name: str) -> str:
    """layers.3.q.weight → q.weight."""
    return ".".join(name.split(".")[-2:])


def rows_moved(old: Side, new: Side) -> str:
    """Where the vocabulary grew: were rows put before the old ones, or drawn anew?"""
    n, m = old.decoder.vocab, new.decoder.vocab
    if m <= n:
        return ""
    for name in ("embed.weight", "head.weight"):
        if name not in old.state or name not in new.state:
            continue
        x, y = old.state[name], new.state[name]
        if x.shape[1] != y.shape[1] or torch.equal(y[:n], x):
            continue
        for k in range(1, m - n + 1):
            if torch.equal(y[k : k + n], x):
                return f"{name}: {k} new rows were put before the old ones."
        first = int((y[:n] != x).any(1).nonzero()[0])
        if first and torch.equal(y[first + m - n :], x[first:]):
            return f"{name}: {m - n} new rows were put before old row {first}."
        if not (y[:n] == x).all(1).any():
            return f"{name}: no row is the source's; it was drawn anew."
    return ""


def heads_moved(old: Side, new: Side, known: Accounted) -> str:
    """The order of key/value heads, where that is what is wrong."""
    assert known.placed is not None
    for j, at in known.placed.layers.items():
        x = old.state[f"layers.{at.source}.k.weight"]
        y = new.state[f"layers.{j}.k.weight"]
        if x.shape[1] != y.shape[1] or old.decoder.head_dim != new.decoder.head_dim:
            return ""
        x, y = (t.reshape(-1, old.decoder.head_dim, t.shape[1]) for t in (x, y))
        found = [next((i for i, w in enumerate(x) if torch.equal(w, z)), -1) for z in y]
        if found != integers(at.groups) and min(found) >= 0:
            return (
                f"layers.{j}, attention: the order of the key/value heads. They hold the "
                f"old ones {found}, and the query heads are in the order of those "
                f"{integers(at.groups)}."
            )
    return ""
