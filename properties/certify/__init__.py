"""Certificates: one growth, decided for all weights.

May import gate and whatever gate may.
"""
