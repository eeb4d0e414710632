"""The report as LaTeX: a document of its own, for pdfLaTeX and the engines after it."""

from __future__ import annotations

import re
import unicodedata
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
# signs that pdfLaTeX's fonts lack; another one is told by its name
SIGNS = {
    "√": r"\surd", "≤": r"\leq", "≥": r"\geq", "≠": r"\neq", "≈": r"\approx",
    "≡": r"\equiv", "→": r"\to", "↔": r"\leftrightarrow", "′": r"\prime", "−": "-",
    "∞": r"\infty", "∈": r"\in", "‖": r"\|", "✓": r"\surd", "✗": r"\times",
    "η": r"\eta", "θ": r"\theta", "ε": r"\varepsilon", "γ": r"\gamma", "σ": r"\sigma",
    "μ": r"\mu", "⁻": "{}^{-}", "₀": "{}_0", "₁": "{}_1", "₂": "{}_2", "⁴": "{}^4",
}  # fmt: skip
KNOWN = "–—‘’“”„…"  # to pdfLaTeX, beside Latin letters
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
    return HEAD % "\n".join(map(declared, unknown(body))) + body


def unknown(text: str) -> list[str]:
    """The signs of a text that pdfLaTeX does not know by itself."""
    return sorted({sign for sign in text if ord(sign) > 0x17F and sign not in KNOWN})


def declared(sign: str) -> str:
    """What pdfLaTeX sets for it."""
    name = unicodedata.name(sign, f"U+{ord(sign):04X}").lower()
    how = rf"\ensuremath{{{SIGNS[sign]}}}" if sign in SIGNS else f"[{name}]"
    return rf"\DeclareUnicodeCharacter{{{ord(sign):04X}}}{{{how}}}"


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
