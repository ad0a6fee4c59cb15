"""Measures and functions in words and in LaTeX."""

import functools
import math
import re
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .._conditionals.bind import Bind
from .._conditionals.conditional import AbstractConditional
from .._conditionals.joint import Joint
from .._forms.law_form import has_law
from .._forms.normal_form import NormalForm
from .._integrands.composites import Indicator
from .._integrands.density import LogDensity, RadonNikodym
from .._integrands.integrand import Composed, Function, Integrand, Multiple, Product
from .._integrands.integrand import Sum as SumOfFunctions
from .._measures.atoms import Atoms
from .._measures.discrete import Dirac
from .._measures.measure import Measure, Normalized, Scaled, Sum, Weighted
from .._measures.product import ProductMeasure
from .._measures.pushforward import Pushforward
from .._measures.shapes import arity, atom_axes


def words(P: Any) -> str:
    """What P is, where it lives and how much of it there is."""
    if not isinstance(P, Measure):
        return f"a {type(P).__name__}"
    family = f"a family of shape {P.shape} of measures" if P.shape else "a measure"
    try:
        mass = np.asarray(P.mass)
        if not mass.size:
            return f"{family} {_space(P)}"
        total = f"mass {mass.min():.4g}" + (f" to {mass.max():.4g}" if mass.min() != mass.max() else "")
    except (TypeError, NotImplementedError, jax.errors.JAXTypeError):
        total = "mass not known here"
    return f"{family} {_space(P)}, {total}"


def _space(P: Measure) -> str:
    try:
        forms, n = P.forms(), arity(P)
    except (TypeError, NotImplementedError, jax.errors.JAXTypeError):
        return "on a space not known here"
    if n > 1:
        return f"on tuples of {n} coordinates"
    classes = {form.classes for form in forms if isinstance(form, NormalForm) and form.classes}
    if classes and all(isinstance(form, NormalForm) for form in forms):
        return f"on the {max(classes)} classes 0…{max(classes) - 1}"
    return " and ".join(sorted(dict.fromkeys(map(_place, forms))))


def _place(form: Any) -> str:
    if not has_law(form):
        return "made of atoms"
    if form.at_atoms[-1]:
        return "on the integers"
    return f"with a density on {'vectors' if form.event_shape else 'the line'}"


@functools.singledispatch
def formula(P: Any) -> str:
    """P in LaTeX."""
    parts = [_value(v) for k, v in getattr(P, "__dict__", {}).items() if _is_parameter(P, k, v)]
    return rf"\mathrm{{{type(P).__name__}}}" + (f"({', '.join(parts)})" if parts else "")


def _is_parameter(P: Any, name: str, value: Any) -> bool:
    return value is not None and not name.startswith("_") and name not in {"axis_name", "axes", "event", "class_axis"}


def _value(x: Any) -> str:
    """A parameter: a formula, a number, the shape of an array, or a function's name."""
    if isinstance(x, Sum | SumOfFunctions):
        return rf"\left({formula(x)}\right)"
    if isinstance(x, Measure | Integrand | AbstractConditional):
        return formula(x)
    if isinstance(x, Tracer) or getattr(x, "shape", ()):
        return rf"\text{{{np.dtype(x.dtype).name}[{', '.join(map(str, x.shape))}]}}"
    if isinstance(x, int | float | np.ndarray | jax.Array):
        return f"{float(x):.4g}".replace("inf", r"\infty")
    name = getattr(getattr(x, "func", x), "__name__", type(x).__name__)
    return r"\text{" + name.strip("<>").replace("_", r"\_") + "}"


def _written(kind: type, template: str) -> None:
    formula.register(kind, lambda P: template.format(**{k: _value(v) for k, v in P.__dict__.items()}))


_written(Dirac, r"\delta_{{{point}}}")
_written(Scaled, r"{c} \cdot {P}")
_written(Weighted, r"{f} \cdot {P}")
_written(Normalized, r"\overline{{{P}}}")
_written(ProductMeasure, r"{P} \otimes {Q}")
_written(Joint, r"{P} \otimes {K}")
_written(Bind, r"\text{{last of }} {joint}")
_written(Pushforward, r"{T}_* {P}")
_written(Function, "{f}")
_written(Multiple, r"{c} \cdot {f}")
_written(Composed, r"{g}({f})")
_written(Indicator, r"\mathbf{{1}}_{{{A}}}")
_written(LogDensity, r"\log {Q}")
_written(RadonNikodym, r"\frac{{d {P}}}{{d {Q}}}")
for kind in (Sum, SumOfFunctions):
    formula.register(kind, lambda P: " + ".join(map(formula, P.terms)).replace("+ -", "- ").replace(r"- 1 \cdot", "-"))
formula.register(Product, lambda f: r" \cdot ".join(map(formula, f.factors)))
formula.register(
    Atoms,
    lambda P: rf"\sum_{{i < {math.prod(atom_axes(P))}}} " + ("" if P.weights is None else "w_i ") + r"\delta_{x_i}",
)

_PLAIN = {
    r"\\(?:mathrm|text|overline|mathbf)\{([^{}]*)\}": r"\1",
    r"\\delta_\{([^{}]*)\}": r"δ(\1)",
    r"_\{([^{}]*)\}": r"_\1",
    r"\\frac\{d ([^{}]*)\}\{d ([^{}]*)\}": r"d \1 / d \2",
    r"\\left|\\right": "",
    r"\\cdot": "·",
    r"\\otimes": "⊗",
    r"\\infty": "∞",
    r"\\sum": "Σ",
    r"\\log": "log",
    r"\\_": "_",
}


def plain(tex: str) -> str:
    """The formula for a page that has no mathematics."""
    before = None
    while tex != before:  # braces from the inside out
        before = tex
        for pattern, text in _PLAIN.items():
            tex = re.sub(pattern, text, tex)
    return tex
