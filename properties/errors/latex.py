"""The report as LaTeX: a document of its own, for pdfLaTeX and the engines after it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .sections import Page, Section
from .text import shortened, side

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&",
    "#": r"\#", "%": r"\%", "_": r"\_\allowbreak{}", "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}", "/": r"/\allowbreak{}", "=": r"=\allowbreak{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "\n": r"\newline ",
}  # fmt: skip
# what our own texts hold and pdfLaTeX's fonts lack; the engines after it have it all
SIGNS = {
    "√": r"\surd", "·": r"\cdot", "×": r"\times", "÷": r"\div", "≤": r"\leq",
    "≥": r"\geq", "→": r"\to", "′": r"\prime", "−": "-", "∞": r"\infty",
    "≠": r"\neq", "⁻": "{}^{-}", "η": r"\eta", "θ": r"\theta", "ε": r"\varepsilon",
    "γ": r"\gamma", "∈": r"\in", "↔": r"\leftrightarrow", "‖": r"\|", "✓": r"\surd",
    "✗": r"\times",
}  # fmt: skip
HEAD = r"""\documentclass[10pt,a4paper]{article}
\usepackage[T1]{fontenc}
\usepackage[margin=2cm]{geometry}
\usepackage{iftex,longtable,array,verbatim}
\usepackage[hidelinks]{hyperref}
\ifPDFTeX
%s
\fi
\setlength{\parindent}{0pt}
\setlength{\LTleft}{0pt}
\begin{document}
"""
WIDTH = 0.98  # of a line, for the columns of a table


def latex(page: Page) -> str:
    """The page as a document to compile."""
    lines = [
        f"\\section*{{{tex(page.heading)}}}",
        rf"\textbf{{{tex(page.verdict)}}}",
        "",
    ]
    lines += _facts(page.facts)
    for section in page.sections:
        if section.rows:
            lines += _section(section)
    body = "\n".join([*lines, r"\end{document}", ""])
    signs = [
        rf"\DeclareUnicodeCharacter{{{ord(sign):04X}}}{{\ensuremath{{{how}}}}}"
        for sign, how in SIGNS.items()
    ]
    return HEAD % "\n".join(signs) + body


def tex(text: str) -> str:
    """Text in which nothing is markup, that may break inside a name."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def _facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Name and value, a line each."""
    rows = [rf"\item[{tex(name)}] {tex(value)}" for name, value in facts]
    return [r"\begin{description}", *rows, r"\end{description}"] if rows else []


def _section(section: Section) -> list[str]:
    """A section: its note, its table or list, its scripts."""
    shown, more = section.rows[: section.limit], len(section.rows) - section.limit
    body = _list(shown) if section.stacked else _table(section, shown)
    return [
        rf"\subsection*{{{tex(section.title)}}}", tex(section.note), "", *body,
        *([f"and {more} more", ""] if more > 0 else []),
        *(line for name, text in section.scripts for line in _script(name, text)),
    ]  # fmt: skip


def _list(rows: Iterable[Iterable[str]]) -> list[str]:
    """Rows whose first two cells are their heads."""
    items = [
        rf"\item[{tex(head)}] {tex(key)}\newline " + tex(shortened("\n".join(rest)))
        for head, key, *rest in rows
    ]
    return [r"\begin{description}", *items, r"\end{description}"]


def _table(section: Section, rows: Iterable[Iterable[str]]) -> list[str]:
    """A table that may run over several pages, its columns as wide as they need."""
    cells = [section.columns, *([*row] for row in rows)]
    longest = [max(len(row[i]) for row in cells) + 2 for i in range(len(cells[0]))]
    shares = [min(n, 40) for n in longest]
    columns = "".join(
        rf">{{\{'raggedleft' if side(section, i) == 'right' else 'raggedright'}"
        rf"\arraybackslash}}p{{{WIDTH * share / sum(shares):.3f}\linewidth}}"
        for i, share in enumerate(shares)
    )
    lines = [" & ".join(tex(shortened(cell)) for cell in row) + r" \\" for row in cells]
    return [
        rf"{{\small\setlength{{\tabcolsep}}{{0pt}}\begin{{longtable}}{{{columns}}}",
        lines[0], r"\hline\endhead", *lines[1:], r"\end{longtable}}", "",
    ]  # fmt: skip


def _script(name: str, text: str) -> list[str]:
    r"""A file, letter by letter: \end{verbatim} cannot stand in it."""
    kept = re.sub(r"\\end\{verbatim\}", r"\\end {verbatim}", text.rstrip("\n"))
    return [rf"\texttt{{{tex(name)}}}", r"{\scriptsize\begin{verbatim}", kept,
            r"\end{verbatim}}"]  # fmt: skip
