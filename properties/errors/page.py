"""The report as one HTML page: no script, no request, both themes, wide and narrow."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from .charts import Bars, Grid
from .sections import Page
from .text import shortened, side

OPEN, ROWS = 12, 60  # of a list: how many stand open, and how many there are at all


def page(shown: Page) -> str:
    """The page; its policy forbids the browser every request and every script."""
    return TEMPLATE.render(shown=shown, open=OPEN, most=ROWS).lstrip()


def breakable(text: str) -> Markup:
    """Text that may break inside a name, and not inside a number."""
    return Markup(re.sub(r"([_=/]|\.(?!\d))", r"\1<wbr>", str(escape(text))))


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"breakable": breakable, "shortened": shortened}
ENVIRONMENT.tests["bars"] = lambda chart: isinstance(chart, Bars)
ENVIRONMENT.tests["grid"] = lambda chart: isinstance(chart, Grid)
ENVIRONMENT.globals["side"] = side
TEMPLATE = ENVIRONMENT.get_template("page.html.jinja")
