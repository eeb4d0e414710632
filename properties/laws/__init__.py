"""The laws: what must hold of a grown model, one short test each.

Strategies draw a model and a growth, `checks` looks at the grown model and judges it.
Tests of growproof's own reference stand apart, in `reference/`. May import errors.
"""
