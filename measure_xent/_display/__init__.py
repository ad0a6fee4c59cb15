"""Measures show themselves, to Jupyter and to matplotlib: here they learn how, for nothing below knows of pictures."""

import html
from typing import Any

from .._integrands.integrand import Integrand
from .._measures.measure import Measure
from .._strict import promoting
from .formula import formula, plain, words
from .heat import heat_map
from .picture import picture
from .plotting import plot
from .svg import svg, svg_of_heat

__all__ = ["formula", "mimebundle", "plot"]


def mimebundle(P: Measure) -> dict[str, str]:
    """What Jupyter shows: ``text/plain``, ``text/html`` and ``text/latex``."""
    seen = picture(P)
    tex = formula(P)
    heat = heat_map(P) if seen is None else None
    drawn = svg(seen) if seen is not None else svg_of_heat(heat) if heat is not None else ""
    drawing = f"<div>{drawn}</div>" if drawn else ""
    page = f'<div style="line-height:1.5">{html.escape(plain(tex))}<br><small>{html.escape(words(P))}</small>{drawing}</div>'
    return {"text/plain": repr(P), "text/html": page, "text/latex": f"${tex}$"}


def _repr_mimebundle_(self: Measure, include: Any = None, exclude: Any = None) -> dict[str, str]:
    """The picture and the formula that Jupyter shows."""
    return mimebundle(self)


def _repr_latex_(self: Integrand) -> str:
    return f"${formula(self)}$"


setattr(Measure, _repr_mimebundle_.__name__, promoting(_repr_mimebundle_))
setattr(Integrand, _repr_latex_.__name__, promoting(_repr_latex_))
