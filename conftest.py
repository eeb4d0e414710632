"""Names the plugins; everything else is there."""

pytest_plugins = ("properties.plugin", "integration.plugin")
