"""Intervals of the line, infinite ones too, as images of one: x = x(t) of doubly exponential slope (Takahasi & Mori 1974)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

END = 3.8  # of t: exp(π/2 · sinh t) is 1e15 there, whose square float32 still holds
WIDE = 5.0  # of t in float64: 1e50


def finite(end: Any) -> bool:
    """Whether an end of a support is there: an infinite one is a float."""
    return not (isinstance(end, float) and math.isinf(end))


def fixed(end: Any) -> Any:
    """An end without its derivative; one that is a float stays one."""
    return end if isinstance(end, float) else jax.lax.stop_gradient(end)


def end_of(dtype: Any) -> float:
    """How far t reaches."""
    return WIDE if jnp.finfo(dtype).bits == 64 else END


def tanh_sinh_map(low: Any, high: Any, width: Any) -> tuple[Callable, Callable]:
    """(t ↦ (x, log dx/dt, distances from both ends), x ↦ t) for an interval and the size of what there is to see."""
    half_pi = np.pi / 2

    def sinh(s):
        """(sinh s, log cosh s), to the rounding of 1 where they are small: of one exponential, little to compile."""
        e = jnp.exp(s)
        return (e - 1 / e) / 2, jnp.log((e + 1 / e) / 2)

    def u_of(t):
        u, log_du = sinh(t)
        return half_pi * u, np.log(half_pi) + log_du

    def line(t):
        u, log_du = u_of(t)
        x, log_dx = sinh(u)
        return width * x, jnp.log(width) + log_dx + log_du, (np.inf, np.inf)

    def ray(t):
        u, log_du = u_of(t)
        gap = width * jnp.exp(u)
        return low + gap, jnp.log(width) + u + log_du, (gap, np.inf)

    def left_ray(t):
        u, log_du = u_of(t)
        gap = width * jnp.exp(-u)
        return high - gap, jnp.log(width) - u + log_du, (np.inf, gap)

    def interval(t):
        u, log_du = u_of(t)
        left, right = jax.nn.sigmoid(2 * u), jax.nn.sigmoid(-2 * u)
        gaps = (high - low) * left, (high - low) * right
        x = jnp.where(t < 0, low + gaps[0], high - gaps[1])
        return x, jnp.log((high - low) * 2) + jnp.log(left * right) + log_du, gaps

    from_low = lambda x: jnp.log(jnp.maximum(x - low, 0))
    from_high = lambda x: jnp.log(jnp.maximum(high - x, 0))
    forward, back = {
        (False, False): (line, lambda x: jnp.arcsinh(x / width)),
        (True, False): (ray, lambda x: from_low(x) - jnp.log(width)),
        (False, True): (left_ray, lambda x: jnp.log(width) - from_high(x)),
        (True, True): (interval, lambda x: (from_low(x) - from_high(x)) / 2),
    }[finite(low), finite(high)]
    return forward, lambda x: jnp.arcsinh(back(x) / half_pi)
