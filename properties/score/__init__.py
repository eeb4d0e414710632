"""The score page of a grower: collected, rendered, compared, bound; editions of the laws.

May import power, gate and whatever they may.
"""
