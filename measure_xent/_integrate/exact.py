"""Exact integration: linearity in the integrand, and enumeration of atoms."""

import jax
import jax.numpy as jnp

from .._density import Constant, Integrand, Multiple, Sum
from .._dispatch import integrate, rule
from .._kernels.null import null_safe_product
from .._measure import Measure
from .._normal_form import integrate_form


@rule(Measure, Integrand)
def enumerate_atoms(P, f):
    """Σ_x P({x}) f(x)."""
    return jax.tree.map(lambda *terms: sum(terms), *(integrate_form(form, f) for form in P.forms()))


@rule(Measure, Constant)
def mass(P, f):
    """∫ c dP = c · P(1)."""
    c = jnp.asarray(f.c)
    return null_safe_product(P.mass, c, c)


@rule(Measure, Sum)
def add(P, f):
    """∫ Σ fᵢ dP = Σ ∫ fᵢ dP."""
    return jax.tree.map(lambda *terms: sum(terms), *(integrate(P, term) for term in f.terms))


@rule(Measure, Multiple)
def scale(P, f):
    """∫ c f dP = c ∫ f dP."""
    return jax.tree.map(
        lambda v: jnp.reshape(f.c, jnp.shape(f.c) + (1,) * (v.ndim - jnp.ndim(f.c))) * v, integrate(P, f.f)
    )
