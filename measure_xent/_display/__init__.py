"""Measures show themselves, to Jupyter and to matplotlib."""

import html

from .._measure import Measure
from .formula import formula, plain, words
from .picture import picture, plot
from .svg import svg

__all__ = ["formula", "mimebundle", "picture", "plot"]


def mimebundle(P: Measure) -> dict[str, str]:
    """What Jupyter shows: ``text/plain``, ``text/html`` and ``text/latex``."""
    seen = picture(P)
    tex = formula(P)
    drawing = "" if seen is None else f"<div>{svg(seen)}</div>"
    page = f'<div style="line-height:1.5">{html.escape(plain(tex))}<br><small>{html.escape(words(P))}</small>{drawing}</div>'
    return {"text/plain": repr(P), "text/html": page, "text/latex": f"${tex}$"}
