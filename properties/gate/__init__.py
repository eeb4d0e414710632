"""The gate: a grower is loaded, judged by the laws, and told what is wrong with it.

The pytest plugin, the score page, expected failures, explanations, repro scripts. May
import growers, laws and errors.
"""
