"""Names the plugins; everything else is there."""

pytest_plugins = ("properties.score.plugin", "integration.plugin")
