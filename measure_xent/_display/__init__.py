"""Measures show themselves, to Jupyter and to matplotlib: here they learn how, for nothing below knows of pictures."""

import html
from typing import Any

from .._integrands.integrand import Integrand
from .._measures.measure import Measure
from .._strict import promoting
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


def _repr_mimebundle_(self: Measure, include: Any = None, exclude: Any = None) -> dict[str, str]:
    """The picture and the formula that Jupyter shows."""
    return mimebundle(self)


def _repr_latex_(self: Integrand) -> str:
    return f"${formula(self)}$"


setattr(Measure, _repr_mimebundle_.__name__, promoting(_repr_mimebundle_))
setattr(Integrand, _repr_latex_.__name__, promoting(_repr_latex_))
