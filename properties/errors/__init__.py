"""Errors: the ledger of a run, its comparison with another run, and the report of both.

May import growproof alone.
"""
