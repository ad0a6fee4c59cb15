"""The parameters that have given moments, where there is no formula for them."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special
from jaxtyping import Array, Float

from .._kernels.cumulative import root


def gamma_concentration(gap: Float[Array, "*family"]) -> Float[Array, "*family"]:
    """The a whose log a − ψ(a) is a gap > 0, by Newton's method on 1/a. Source: Minka (2002), *Estimating a gamma …*."""
    excess = lambda a: jnp.log(a) - special.digamma(a)
    slope = lambda a: 1 / a - special.polygamma(1, a)

    def solve():
        start = (3 - gap + jnp.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
        return lax.fori_loop(0, 6, lambda _, a: 1 / (1 / a + (excess(a) - gap) / (a**2 * slope(a))), start)

    return root(lambda a: excess(a) - gap, solve)


def dirichlet_concentration(means: Float[Array, "*family d"]) -> Float[Array, "*family d"]:
    """The a for which ψ(aᵢ) − ψ(Σa) are given means of log xᵢ: fixed points, then Newton's method.

    Source: Minka (2000), *Estimating a Dirichlet distribution*.
    """
    digamma, trigamma = special.digamma, lambda a: special.polygamma(1, a)
    total = lambda a: jnp.sum(a, axis=-1, keepdims=True)
    gap = lambda a: digamma(total(a)) - digamma(a) + means

    def inverse_digamma(y):
        start = jnp.where(y >= -2.22, jnp.exp(y) + 0.5, -1 / (y + np.euler_gamma))
        return lax.fori_loop(0, 5, lambda _, a: a - (digamma(a) - y) / trigamma(a), start)

    def over_hessian(diagonal, constant, y):
        # A diagonal less a constant, by Sherman and Morrison's formula.
        return (y + total(y / diagonal) / (1 / constant - total(1 / diagonal))) / diagonal

    def newton(a):
        return jnp.maximum(a + over_hessian(trigamma(a), trigamma(total(a)), gap(a)), a / 4)

    def solve(_, a):
        a = lax.fori_loop(0, 30, lambda _, a: inverse_digamma(digamma(total(a)) + means), a)
        return lax.fori_loop(0, 12, lambda _, a: newton(a), a)

    def over_tangent(g, y):
        # Of a constant less a diagonal, g, what a vector whose sum is 0 tells, and then the ones.
        v = jnp.ones_like(y).at[..., -1].set(1.0 - y.shape[-1])
        diagonal = -g(v) / v
        return -over_hessian(diagonal, (g(jnp.ones_like(y)) + diagonal)[..., :1] / y.shape[-1], y)

    return lax.custom_root(gap, jnp.ones_like(means), solve, over_tangent)
