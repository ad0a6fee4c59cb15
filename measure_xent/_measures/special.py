"""Factorials, and powers beside exponentials, in forms where nothing large cancels.

The density of a law that counts or waits is a ratio of a power to a factorial, such as λᵏ e^(−λ) / k!, and at a parameter of
10⁶ its logarithm is a difference of numbers of 10⁷. Written by what Stirling's formula leaves of the factorial,

    log x! = x log x − x + θ(x),   θ(x) = ½ log 2πx + 1/(12x) − …,

and by how far the power is from its own maximum,

    x log(m/x) − (m − x) = −(m − x)²/(m + x) − …,

it is a sum of small ones. Source: Loader (2000), *Fast and accurate computation of binomial probabilities*.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._kernels.null import differentiated
from .._strict import custom_jvp

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400, 43867 / 244188)
WHOLE, HALF = (8, 9), (3, 5)  # from where on so many of its terms have all digits of float64, of float32


def _odd_series(y: Array, first: int, largest: float) -> Array:
    """Σₖ yᵏ / (2k + first) for 0 ≤ y ≤ largest: (artanh s)/s for first = 1 and y = s²."""
    terms = math.ceil(math.log(float(jnp.finfo(y.dtype).eps)) / math.log(largest))
    return jnp.polyval(jnp.asarray([1 / (2 * k + first) for k in reversed(range(terms))], y.dtype), y)


def _stirling_above_one(x: Array) -> Array:
    total = jnp.zeros_like(x)
    shifts, terms = WHOLE if jnp.finfo(x.dtype).bits == 64 else HALF
    for k in range(shifts):  # μ(x) − μ(x + 1) = (x + ½) log(1 + 1/x) − 1 = (artanh s)/s − 1, s = 1/(2x + 1)
        s = 1 / (2 * (x + k) + 1)
        total = total + s * s * _odd_series(s * s, 3, 1 / (2 * k + 3) ** 2)
    inverse = 1 / (x + shifts)
    return total + inverse * jnp.polyval(jnp.asarray(STIRLING[terms - 1 :: -1], x.dtype), inverse**2)


def stirling(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """μ(x) = log Γ(x) − (x − ½) log x + x − ½ log 2π for x > 0, Binet's function, about 1/(12x)."""
    small = x < 1
    y = jnp.where(small, x, 1)
    below = jnp.where(small, (y + 0.5) * jnp.log1p(1 / y) - 1, 0)
    return _stirling_above_one(jnp.where(small, x + 1, x)) + below


def factorial_rest(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """θ(x) = log x! − x log x + x for x ≥ 0."""
    small = x < 1
    y, z = jnp.where(small & (x > 0), x, 1), jnp.where(small, x + 1, x)
    rest = HALF_LOG_2PI + jnp.log(z) / 2 + _stirling_above_one(z)
    return jnp.where(x == 0, 0, rest + jnp.where(small, y * jnp.log1p(1 / y) - 1, 0))


def log_gamma(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log Γ(x) for x > 0."""
    return factorial_rest(x) + (x - 1) * jnp.log(x) - x


def log1p_over(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 + x) / x for x ≥ 0, 1 at 0, and its derivatives."""
    near = x < 0.5
    y, z = jnp.where(near, x, 0), jnp.where(near, 1, x)
    s = y / (2 + y)
    return jnp.where(near, 2 / (2 + y) * _odd_series(s * s, 1, 0.04), jnp.log1p(z) / z)


def log_less_digamma(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log x − ψ(x) = 1/(2x) − μ′(x): by how much the logarithm of a gamma law's mean is above the mean of its logarithm."""
    return 0.5 / x - jax.jvp(stirling, (x,), (jnp.ones_like(x),))[1]


@functools.partial(custom_jvp, nondiff_argnums=(2,))
def _times_log(c: Array, y: Array, log: Callable) -> Array:
    return jnp.where(c == 0, 0, c * log(y))


def _times_log_jvp(log, primals, tangents):
    c, y = primals
    dc, dy = (differentiated(t) for t in tangents)
    out = _times_log(c, y, log)
    tangent = jnp.zeros_like(out)
    if dc is not None:
        tangent += log(y) * dc
    if dy is not None:
        argument = y if log is jnp.log else 1 + y
        null = (c == 0) & (argument == 0)
        tangent += jnp.where(null, 0, c / jnp.where(null, 1, argument)) * dy
    return out, tangent


_times_log.defjvp(_times_log_jvp, symbolic_zeros=True)


def x_log(c: Any, y: Any) -> Array:
    """c log y, 0 where c is, and so is its derivative in y there: JAX's own has NaN at c = y = 0."""
    return _times_log(*_alike(c, y), jnp.log)


def x_log1p(c: Any, y: Any) -> Array:
    """c log(1 + y), 0 where c is."""
    return _times_log(*_alike(c, y), jnp.log1p)


@custom_jvp
def whole_power(x: Array, k: Array) -> Array:
    """xᵏ for whole numbers k ≥ 0, with all its derivatives in x at 0 too."""
    return jnp.power(x, k)


@whole_power.defjvp
def _whole_power_jvp(primals, tangents):
    x, k = primals
    return whole_power(x, k), k * whole_power(x, jnp.maximum(k - 1, 0)) * tangents[0]


def _alike(*x: Any) -> list[Array]:
    dtype = jnp.result_type(float, *x)
    return list(jnp.broadcast_arrays(*(jnp.asarray(a, dtype) for a in x)))


def tilt(a: Any, y: Any, unit: Any, more: int = 0, gap: Any = None) -> Array:
    """(a + more) log(m/a) − (m − a) with m = unit · y: a power of y beside an exponential, about y = a/unit.

    ``gap`` is m − a, for those who have it with more digits than m.
    """
    a, y, unit = _alike(a, y, unit)
    c, m = a + more, unit * y
    gap = m - a if gap is None else gap
    near = jnp.abs(gap) < 0.2 * (m + a)
    v = jnp.where(near, gap / jnp.where(near, m + a, 1), 0)
    square = v**2
    close = v * (2 * more - gap) + 2 * c * v * square * _odd_series(square, 3, 0.04)  # log(m/a) = 2 artanh v
    y, scale = jnp.where(near, 1, y), jnp.where(near, 1, unit / jnp.where(a == 0, 1, a))
    return jnp.where(near, close, x_log(c, y) + x_log(c, scale) - gap)


def half_line(like: Array) -> tuple[np.ndarray, np.ndarray]:
    """(r, w) with Σ w f(r) ≈ ∫₀^∞ f(r) dr for an f that falls off from r about 1, along an axis before those of an array.

    The nodes are r = exp(π sinh t), as close to 0 as they are far from it (Takahasi & Mori 1974).
    """
    t, step = np.linspace(-3.8, 3.8, 65 if jnp.finfo(like.dtype).bits < 64 else 161, retstep=True)
    r = np.exp(np.pi * np.sinh(t))
    axes = (-1, *(1,) * like.ndim)
    return r.reshape(axes).astype(like.dtype), (step * np.pi * np.cosh(t) * r).reshape(axes).astype(like.dtype)
