"""Gauss's quadrature rules from the recurrence of orthogonal polynomials. Source: Golub & Welsch 1969."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._forms.law_form import score_weight

TAIL = 4  # polynomials of the highest degrees, to see whether an integrand has any of them left


def _rule(vectors: Any) -> tuple[Any, Any]:
    first = vectors[..., 0, :]
    return first**2, first[..., None, :] * vectors[..., -TAIL:, :]


def constant(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nodes, weights, weights · the highest orthonormal polynomials) of x pₖ = b₍ₖ₊₁₎ p₍ₖ₊₁₎ + aₖ pₖ + bₖ p₍ₖ₋₁₎."""
    from scipy.linalg import eigh_tridiagonal

    nodes, vectors = eigh_tridiagonal(a, b)
    return (nodes, *_rule(vectors))


def of_parameters(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """The same for recurrences [*family, n] and [*family, n − 1] that are traced; no derivative is taken."""
    off = jnp.zeros((*b.shape[:-1], a.shape[-1], a.shape[-1])).at[
        ..., jnp.arange(b.shape[-1]), 1 + jnp.arange(b.shape[-1])
    ]
    off = off.set(b)
    nodes, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(a[..., None] * jnp.eye(a.shape[-1]) + off + off.mT))
    return (nodes, *_rule(vectors))


@functools.lru_cache
def hermite(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the standard normal distribution."""
    return constant(np.zeros(n), np.sqrt(np.arange(1.0, n)))


@functools.lru_cache
def legendre(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the uniform distribution on [−1, 1]."""
    k = np.arange(1.0, n)
    return constant(np.zeros(n), k / np.sqrt(4 * k**2 - 1))


@functools.lru_cache
def laguerre(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the exponential distribution of rate 1."""
    return constant(2 * np.arange(n) + 1.0, np.arange(1.0, n))


def gamma(concentration: Array, n: int) -> tuple[Array, Array, Array]:
    """For gamma distributions of rate 1: generalised Laguerre polynomials."""
    k = jnp.arange(n, dtype=float)
    a = concentration[..., None]
    return of_parameters(2 * k + a, jnp.sqrt(k[1:] * (k[1:] + a - 1)))


def jacobi(concentration1: Array, concentration0: Array, n: int) -> tuple[Array, Array, Array]:
    """For beta distributions, on (0, 1)."""
    p, q = concentration0[..., None] - 1, concentration1[..., None] - 1  # (1 − x)^p (1 + x)^q on (−1, 1)
    k = jnp.arange(1, n, dtype=float)
    s = 2 * k + p + q
    first = (q - p) / (p + q + 2)
    rest = (q**2 - p**2) / jnp.where(s == 0, 1, s * (s + 2))
    low = jnp.where(k == 1, 4 * (1 + p) * (1 + q) / ((2 + p + q) ** 2 * (3 + p + q)), 0)
    middle = s**2 * (s + 1) * (s - 1)
    high = 4 * k * (k + p) * (k + q) * (k + p + q) / jnp.where(middle == 0, 1, middle)
    x, w, tail = of_parameters(jnp.concatenate([first, rest], -1), jnp.sqrt(jnp.where(k == 1, low, high)))
    return (1 + x) / 2, w, tail


def two_sided(rule: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A rule on x > 0 and its mirror image, half the mass each."""
    x, w, tail = rule
    nothing = np.zeros_like(tail)
    return np.concatenate([-x, x]), np.tile(w, 2) / 2, np.block([[tail, nothing], [nothing, tail]]) / 2


def scaled(rule: tuple, loc: Any, scale: Any) -> tuple[Array, Array, Array]:
    """A rule moved and scaled, without the nodes whose weights the dtype cannot tell from 0."""
    kept = rule[1] > jnp.finfo(jnp.result_type(float)).tiny
    x, w, tail = (jnp.asarray(part[..., kept], float) for part in rule)
    return loc + scale * x, w, tail


def carried(law: Any, x: Array, w: Array, tail: Array) -> tuple[Array, Array, Array]:
    """A rule whose nodes have no derivative, and whose weights have the density's."""
    x = jax.lax.stop_gradient(x)
    log_p = law.log_density_of(x)
    return x, score_weight(jnp.broadcast_to(w, log_p.shape), log_p), tail
