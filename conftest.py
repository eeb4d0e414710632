"""Names the plugin; everything else is there."""

pytest_plugins = ("properties.plugin",)
