"""What a grower may promise: a marker of each law that judges it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """What a grower says it keeps: a marker of the laws that judge it.

    asked_for: not of every grower, only where it claims so (`--with`).
    """

    name: str
    says: str
    asked_for: bool = False


lossless = Promise("lossless", "the same logits, however it was done")
zero_padding = Promise(
    "zero_padding", "the article's invariants at every tap, block by block"
)
hygiene = Promise(
    "hygiene",
    "source untouched, nothing shared, dtype, mode, tying, config, disk, cache",
)
trainable = Promise(
    "trainable",
    "no new lane is stuck at the first step (asked for by `--with trainable`)",
    asked_for=True,
)
PROMISES = {p.name: p for p in (lossless, zero_padding, hygiene, trainable)}
# no promise: laws of growproof's own reference, which no other grower is asked for
reference = Promise("reference", "about growproof's own reference, not the grower")
