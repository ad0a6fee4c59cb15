"""Ratios near 1: their logarithms, and what those add to second order, with all their digits.

A divergence near equality is half the mean square of u = log p/q. As a sum of p · u its terms cancel down to their rounding
errors. As one of p · (e⁻ᵘ − 1 + u) they are nowhere negative, and an error of u by a part in n is one of theirs by two. So what
is needed is a u whose error is small beside u, and not beside log p.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._strict import custom_jvp
from .blocks import in_row_blocks
from .classes import Classes
from .null import differentiated
from .softmax import log_softmax


@custom_jvp
def excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """eˣ − 1 − x, at least 0: near 0 by its series x²/2 · (1 + x/3 · (1 + x/4 · (…)))."""
    small = jnp.abs(x) < 0.5
    near, far = jnp.where(small, x, 0), jnp.where(small, 1, x)
    series = jnp.ones_like(near)
    for n in range(15 if jnp.finfo(near.dtype).bits == 64 else 8, 2, -1):
        series = 1 + near * (1 / n) * series
    return jnp.where(small, near * near / 2 * series, jnp.expm1(far) - jnp.minimum(far, 1e30))


@excess.defjvp
def _excess_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return excess(x), jnp.expm1(x) * dx


def log_ratio(p: Float[Array, "..."], q: Float[Array, "..."]) -> Float[Array, "..."]:
    """log p/q of numbers of one sign: of near ones by their difference, which has no rounding error."""
    p, q = jnp.broadcast_arrays(p, q)
    near = jnp.abs(p - q) < jnp.abs(q) / 2
    by_difference = jnp.log1p(jnp.where(near, p - q, 0) / jnp.where(near, q, 1))
    return jnp.where(near, by_difference, jnp.log(jnp.abs(p)) - jnp.log(jnp.abs(q)))


def log1p_over(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 + x) / x, 1 at 0."""
    return _over(x, jnp.log1p, [(-1) ** k / (k + 1) for k in range(9)], 1e-2)


def expm1_over(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """(eˣ − 1) / x, 1 at 0."""
    return _over(x, jnp.expm1, [1 / math.factorial(k + 1) for k in range(12)], 0.2)


def excess_over(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """(eˣ − 1 − x) / x, 0 at 0."""
    return _over(x, excess, [0, *(1 / math.factorial(k + 1) for k in range(1, 12))], 0.2)


def _over(x, function, series, radius):
    """function(x) / x, by its power series near 0, where the derivatives of the quotient would cancel."""
    near = jnp.abs(x) < radius
    small, far = jnp.where(near, x, 0), jnp.where(near, 1, x)
    return jnp.where(near, functools.reduce(lambda total, c: total * small + c, series[::-1]), function(far) / far)


def relative(p: Float[Array, "..."], q: Float[Array, "..."], u: Float[Array, "..."]) -> Float[Array, "..."]:
    """p log(p/q) − p + q with u = log p/q, at least 0; no derivative in a p of 0, where it is −inf."""
    near = jnp.abs(u) < 1
    small = p * excess(jnp.where(near, -u, 0))
    return jnp.where(near, small, p * (jnp.where(p == 0, 1, u) - 1) + q)


def valued(value: Float[Array, "..."], function: Float[Array, "..."], fine: Array) -> Float[Array, "..."]:
    """``function``, and its derivatives; its value is the better one where that is ``fine``."""
    value, inside = lax.stop_gradient(jnp.where(fine, value, 0)), jnp.where(fine, function, 0)
    return jnp.where(fine, value + (inside - lax.stop_gradient(inside)), function)


def log_ratio_of_softmaxes(
    z: Float[Array, "*family V"], w: Float[Array, "*family V"], classes: Classes | None = None
) -> Float[Array, "*family V"]:
    """log softmax(z) − log softmax(w), 0 at a class that neither has."""
    classes = classes or Classes.of(z)
    z, w = jnp.broadcast_arrays(z, w)
    return difference(classes, z, w, log_softmax(classes, z), log_softmax(classes, w))


def difference(classes: Classes, z: Array, w: Array, log_p: Array, log_q: Array) -> Array:
    """log p − log q, of near rows as the difference Δ of the logits, which has no rounding error, less log E_q[exp Δ], of a Δ
    that is shifted to be small."""
    both = jnp.isfinite(log_p) & jnp.isfinite(log_q)
    neither = (log_p == -jnp.inf) & (log_q == -jnp.inf)
    far = jnp.where(neither, 0, log_p) - jnp.where(neither, 0, log_q)
    gap = lax.stop_gradient(jnp.where(both, z, 0) - jnp.where(both, w, 0))
    largest = classes.of_parts(jnp.max, jnp.max(gap, axis=-1, keepdims=True, where=both, initial=-jnp.inf))
    # A class that one row alone has makes them as far apart as any.
    least = jnp.min(jnp.where(both, gap, jnp.where(neither, jnp.inf, -jnp.inf)), axis=-1, keepdims=True)
    close = largest - classes.of_parts(jnp.min, least) <= 1
    fine = both & close
    gap = jnp.where(fine, gap - largest, 0)
    q = lax.stop_gradient(jnp.exp(log_q))
    mean = classes.all_parts(jnp.sum(q * jnp.expm1(gap), axis=-1, keepdims=True))
    return valued(gap - jnp.log1p(jnp.where(close, mean, 0)), far, fine)


@custom_jvp
def divergence_of_softmaxes(z: Float[Array, "*family V"], w: Float[Array, "*family V"]) -> Float[Array, "*family"]:
    """KL(softmax(z) ‖ softmax(w)) of every row."""
    return _in_blocks(lambda z, w: relative(*_of_softmaxes(z, w)).sum(-1), z, w)


def _in_blocks(f, z, w):
    blocks = lambda z, w: in_row_blocks(lambda z, w, _: f(z, w), z, w)
    return lax.platform_dependent(z, w, cpu=blocks, default=f)


def _of_softmaxes(z, w):
    """The masses, and the logarithms of their ratios."""
    classes = Classes.of(z)
    log_p, log_q = log_softmax(classes, z), log_softmax(classes, w)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    return p, q, jnp.where(p == 0, jnp.where(q == 0, 0, -jnp.inf), difference(classes, z, w, log_p, log_q))


def _divergence_jvp(primals, tangents):
    value = divergence_of_softmaxes(*primals)
    along = lambda slope, d: (_slope(slope, *primals) * d).sum(-1)
    terms = [
        along(*pair) for pair in zip((_in_p, _in_q), map(differentiated, tangents), strict=True) if pair[1] is not None
    ]
    return value, sum(terms, jnp.zeros_like(value))


divergence_of_softmaxes.defjvp(_divergence_jvp, symbolic_zeros=True)


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _slope(of, z, w):
    return _in_blocks(of, z, w)


@_slope.defjvp
def _slope_jvp(of, primals, tangents):
    return _slope(of, *primals), jax.jvp(of, primals, tangents)[1]


def _in_p(z, w):
    """The derivative in z, p (u − E_p[u])."""
    p, q, u = _of_softmaxes(z, w)
    mean = relative(p, q, u).sum(-1, keepdims=True)
    return p * (jnp.where(p == 0, 0, u) - jnp.where(jnp.isfinite(mean), mean, 0))


def _in_q(z, w):
    """The derivative in w, q − p."""
    p, q, u = _of_softmaxes(z, w)
    near = jnp.abs(u) < 1
    return jnp.where(near, p * jnp.expm1(jnp.where(near, -u, 0)), q - p)
