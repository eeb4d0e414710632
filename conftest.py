"""Names the plugins; everything else is there."""

pytest_plugins = ("properties.gate.plugin", "integration.plugin")
