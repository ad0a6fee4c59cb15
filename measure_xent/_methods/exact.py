"""Exact integration: linearity in the integrand, and enumeration of atoms."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp

from .._forms.form import Form, check_one_space
from .._forms.law_form import LawForm
from .._forms.members import by_members
from .._forms.normal_form import NormalForm
from .._integrands.density import LogDensity, LogRatio, log
from .._integrands.integral import Integral, together
from .._integrands.integrand import Constant, Integrand, Multiple, Sum, Tree
from .._integrands.rules import integrate, rule
from .._kernels.null import null_safe_product
from .._measures.laws import Continuous, Integers
from .._measures.measure import Measure


@rule(Measure, Integrand)
def enumerate_atoms(P, f):
    """Σ_x P({x}) f(x), and ∫ f of each law in it."""
    by_member = by_members(lambda P, f: integrate(P, f).checked, P, f)
    if by_member is not NotImplemented:
        return by_member
    alike: dict[Any, list[Form]] = {}
    for form in P.forms():
        alike.setdefault(_kind(form) or len(alike), []).append(form)
    return functools.reduce(Integral.__add__, (_integrate(forms, f) for forms in alike.values()))


def _kind(form: Form) -> Any:
    """What laws on the line have in common whose integrals are one program, of a family; None of anything else."""
    if not isinstance(form, LawForm) or not isinstance(form.law, Continuous | Integers):
        return None
    if form.factors or form.transform is not None or form.method is not None:
        return None
    leaves, tree = jax.tree.flatten(form)
    return tree, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)


def _integrate(forms: list[Any], f: Integrand) -> Integral:
    if len(forms) == 1:
        return forms[0].integrate(f)
    rank = max(len(forms[0].family), len(f.shape))
    family = jax.tree.map(lambda *x: jnp.stack(x), *(form.with_family_rank(rank) for form in forms))
    return jax.tree.map(lambda x: x.sum(0) if jnp.ndim(x) else x, family.integrate(f))


@rule(Measure, LogDensity, Measure)
def one_space(P, f):
    """Refuses measures on different numbers of classes, or on points of different shapes; integrating is the next rule's."""
    p, q = (_classes(measure) for measure in (P, f.Q))
    if p and q and p != q:
        raise ValueError(f"P is a measure on {p} classes, Q = {type(f.Q).__name__} on {q}")
    with contextlib.suppress(NotImplementedError):
        jax.eval_shape(lambda: check_one_space([*P.forms(), *f.Q.forms()]))
    return NotImplemented


@rule(Measure, LogRatio)
def difference_of_logarithms(P, f):
    """∫ log dP/dQ = ∫ log p − ∫ log q, functions that rules know, where both measures have one part, of one kind."""
    kinds = [*f.P.parts(), *f.Q.parts()]
    return integrate(P, log(f.P) - log(f.Q)) if len(kinds) == 2 and kinds[0] == kinds[1] else NotImplemented


def _classes(measure):
    found = []
    note = lambda: found.extend(
        form.classes for form in measure.forms() if isinstance(form, NormalForm) and form.classes
    )
    try:
        jax.eval_shape(note)  # a form's shapes are enough
    except NotImplementedError:
        return None
    return found[0] if found else None


@rule(Measure, Constant)
def mass(P, f):
    """∫ c dP = c · P(1)."""
    c = jnp.asarray(f.c)
    # Of a sum over devices, the mass of this device's share.
    mass = functools.reduce(jnp.add, [form.mass() for form in P.forms()]) if P.mesh_axes else P.mass
    return null_safe_product(mass, c)


@rule(Measure, Sum)
def add(P, f):
    """∫ Σ fᵢ dP = Σ ∫ fᵢ dP."""
    return functools.reduce(Integral.__add__, (integrate(P, term) for term in f.terms))


@rule(Measure, Tree)
def each(P, f):
    """(∫ f₁ dP, ∫ f₂ dP, …)."""
    return together(f.map_integrands(lambda f: integrate(P, f)))


@rule(Measure, Multiple)
def scale(P, f):
    """∫ c f dP = c ∫ f dP."""
    return integrate(P, f.f).scale(f.c, max(len(P.shape), len(f.shape)))
