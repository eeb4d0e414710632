"""Known-bad growers (to be filled)."""


def likely_cause(grown) -> str:
    """The known-bad grower whose result this is, if any."""
    return "unknown"
