"""Growers to judge the suite by: known-bad ones, one fault each, and known-good ones.

May import laws.
"""
