"""Ratios near 1: their logarithms, and what those add to second order, with all their digits.

A divergence near equality is half the mean square of u = log p/q. As a sum of p · u its terms cancel down to their rounding
errors. As one of p · (e⁻ᵘ − 1 + u) they are nowhere negative, and an error of u by a part in n is one of theirs by two. So what
is needed is a u whose error is small beside u, and not beside log p.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._strict import custom_jvp
from .classes import Classes
from .softmax import log_softmax, softmax


@custom_jvp
def excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """eˣ − 1 − x, at least 0: near 0 by its series x²/2 · (1 + x/3 · (1 + x/4 · (…)))."""
    small = jnp.abs(x) < 0.5
    near, far = jnp.where(small, x, 0), jnp.where(small, 1, x)
    series = jnp.ones_like(near)
    for n in range(15, 2, -1):
        series = 1 + near / n * series
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
    """log softmax(z) − log softmax(w), 0 at a class that neither has.

    Of near rows, the difference Δ of the logits, which has no rounding error, less log E_w[exp Δ], of a Δ that is shifted to
    be small.
    """
    classes = classes or Classes.of(z)
    z, w = jnp.broadcast_arrays(z, w)
    log_p, log_q = log_softmax(classes, z), log_softmax(classes, w)
    both = jnp.isfinite(log_p) & jnp.isfinite(log_q)
    neither = (log_p == -jnp.inf) & (log_q == -jnp.inf)
    far = jnp.where(neither, 0, log_p) - jnp.where(neither, 0, log_q)
    gap = lax.stop_gradient(jnp.where(both, z, 0) - jnp.where(both, w, 0))
    largest = _over_parts(classes, jnp.max(gap, axis=-1, keepdims=True, where=both, initial=-jnp.inf), jnp.max)
    least = _over_parts(classes, jnp.min(gap, axis=-1, keepdims=True, where=both, initial=jnp.inf), jnp.min)
    odd = classes.all_parts(jnp.sum(~(both | neither), axis=-1, keepdims=True))
    fine = both & (odd == 0) & (largest - least <= 1)
    gap = jnp.where(fine, gap - largest, 0)
    mean = classes.all_parts(jnp.sum(lax.stop_gradient(softmax(w, classes)) * jnp.expm1(gap), axis=-1, keepdims=True))
    return valued(gap - jnp.log1p(jnp.where(fine, mean, 0)), far, fine)


def _over_parts(classes, x, reduce):
    return x if classes.axis_name is None else reduce(lax.all_gather(x, classes.axis_name, to="invarying"), axis=0)
