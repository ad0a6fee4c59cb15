"""The parameters that have given moments, where there is no formula for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array, Float

from .._forms.normal_form import NormalForm
from .laws import Line, implicit
from .measure import Measure


def median(P: Measure) -> Any:
    """The least x with P((−∞, x]) of at least half of the mass, of a law or of numbers in one list, else NotImplemented."""
    if isinstance(P, Line):
        return P.quantile(jnp.full(P.shape, 0.5))
    parts = [part for form in P.forms() if isinstance(form, NormalForm) for part in form.atom_lists()]
    if len(parts) != 1 or len(P.forms()) != 1 or isinstance(parts[0][0], tuple):
        return NotImplemented
    points, weights = jnp.broadcast_arrays(*parts[0][:2])
    order = jnp.argsort(points, axis=-1)
    points, weights = (jnp.take_along_axis(a, order, axis=-1) for a in (points, weights))
    below = jnp.cumsum(weights, axis=-1)
    first = jnp.argmax(2 * below >= below[..., -1:], axis=-1)
    return jnp.take_along_axis(points, first[..., None], axis=-1)[..., 0].astype(float)


def gamma_concentration(gap: Float[Array, "*family"]) -> Float[Array, "*family"]:
    """The a whose log a − ψ(a) is a gap > 0, by Newton's method on 1/a. Source: Minka (2002), *Estimating a gamma …*."""
    s = jax.lax.stop_gradient(gap)
    excess = lambda a: jnp.log(a) - special.digamma(a)
    slope = lambda a: 1 / a - special.polygamma(1, a)
    start = (3 - s + jnp.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    a = jax.lax.fori_loop(0, 6, lambda _, a: 1 / (1 / a + (excess(a) - s) / (a**2 * slope(a))), start)
    a = jax.lax.stop_gradient(a)
    return implicit(a, (gap - excess(a)) / slope(a))


def dirichlet_concentration(means: Float[Array, "*family d"]) -> Float[Array, "*family d"]:
    """The a for which ψ(aᵢ) − ψ(Σa) are given means of log xᵢ: fixed points, then Newton's method.

    Source: Minka (2000), *Estimating a Dirichlet distribution*.
    """
    t = jax.lax.stop_gradient(means)
    digamma, trigamma = special.digamma, lambda a: special.polygamma(1, a)
    total = lambda a: jnp.sum(a, axis=-1, keepdims=True)

    def inverse_digamma(y):
        start = jnp.where(y >= -2.22, jnp.exp(y) + 0.5, -1 / (y + np.euler_gamma))
        return jax.lax.fori_loop(0, 5, lambda _, a: a - (digamma(a) - y) / trigamma(a), start)

    def step(a, t):
        # The Hessian is a diagonal plus a constant: Sherman and Morrison's formula.
        gap, diagonal, constant = digamma(total(a)) - digamma(a) + t, trigamma(a), trigamma(total(a))
        common = total(gap / diagonal) / (1 / constant - total(1 / diagonal))
        return (gap + common) / diagonal

    a = jax.lax.fori_loop(0, 30, lambda _, a: inverse_digamma(digamma(total(a)) + t), jnp.ones_like(t))
    a = jax.lax.fori_loop(0, 12, lambda _, a: jnp.maximum(a + step(a, t), a / 4), a)
    a = jax.lax.stop_gradient(a)
    return implicit(a, step(a, means))
