"""The docs as a site: `sphinx-build -W docs build/docs`. Nothing is fetched, ever."""

import re
from typing import Any

project = "growproof"
author = "the growproof authors"
copyright = "the growproof authors, Apache-2.0"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nitpicky = True
smartquotes = False  # a prime is a prime
html_theme = "furo"
html_title = "growproof"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_copy_source = False
html_show_sphinx = False


def beside(app: Any, name: str, source: list[str]) -> None:
    """A Markdown file outside of docs is handed along, like any other that is linked."""
    source[0] = re.sub(r"\]\((\.\./[^)]+\.md)\)", r"](path:\1)", source[0])


def setup(app: Any) -> None:
    """Sphinx asks for it."""
    app.connect("source-read", beside)
