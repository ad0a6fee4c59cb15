"""Masses up to a point, and their inverse, with derivatives of any order."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._strict import custom_jvp


def moving_end(density: Callable[[Array], Array], x: Array) -> Array:
    """0, with the derivatives in x of a mass up to x: of an integrand's jump there no quadrature tells.

    It is the integral of the density from where x stands to where it goes, by Gauss's rule of two nodes, which is exact to the
    fourth derivative.
    """
    here = lax.stop_gradient(x)
    step = jnp.where(jnp.isfinite(x), x - here, 0)
    height = lambda t: jnp.nan_to_num(density(here + t * step), nan=jnp.nan)
    return step * (height(0.5 - 12**-0.5) + height(0.5 + 12**-0.5)) / 2


@custom_jvp
def without_derivative(value: Array, others: PyTree) -> Array:
    """The value, with NaN for its derivatives, in others too: nobody knows them."""
    del others
    return value


@without_derivative.defjvp
def _without_derivative_jvp(primals, tangents):
    moved = [t.sum() for t in jax.tree.leaves(tangents) if t.dtype != jax.dtypes.float0]
    return without_derivative(*primals), jnp.broadcast_to(jnp.nan * sum(moved), primals[0].shape)


def root(gap: Callable, solve: Callable[[], Array]) -> Array:
    """The x where gap(x) = 0, entry by entry, as ``solve`` finds it, with the derivatives of the implicit function; 0 where gap
    does not change."""

    def over_slope(g, y):
        slope = g(jnp.ones_like(y))
        return jnp.where(slope == 0, 0, y / jnp.where(slope == 0, 1, slope))

    found = lax.stop_gradient(solve())
    return lax.custom_root(gap, found, lambda _, found: found, over_slope)


def quantile(
    tails: Callable[[Array], tuple[Array, Array]], u: Float[Array, "..."], rounding: float = 0.0
) -> Float[Array, "..."]:
    """The least x with cdf(x) ≥ u, by bisection of the floats themselves: in as many steps as they have bits.

    Args:
        tails: x ↦ (the mass up to x, the mass above it).
        u: of 0 and 1 the x are where the tails round to 0.
        rounding: what the masses may be off by, in units of eps.
    """
    whole = jnp.int32 if u.dtype == jnp.float32 else jnp.int64
    # The integers in whose order the floats are.
    number = lambda k: lax.bitcast_convert_type(jnp.where(k < 0, k ^ jnp.iinfo(whole).max, k), u.dtype)
    last = lax.bitcast_convert_type(jnp.asarray(jnp.inf, u.dtype), whole)
    slack = rounding * jnp.finfo(u.dtype).eps * jnp.minimum(u, 1 - u)

    def reached(x):
        """By the smaller of the tails, whose digits are all there."""
        below, above = tails(x)
        from_left = jnp.where(u == 0, below > 0, share(below, above) >= u - slack)
        return jnp.where(u < 0.5, from_left, share(above, below) <= 1 - u + slack), jnp.isnan(below + above)

    def halve(_, state):
        low, high, lost = state
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        done, unknown = reached(number(middle))
        return jnp.where(done, low, middle), jnp.where(done, middle, high), lost | unknown

    def solve():
        start = jnp.full(u.shape, ~last), jnp.full(u.shape, last), jnp.isnan(u)
        _, x, lost = lax.fori_loop(0, jnp.finfo(u.dtype).bits, halve, start)
        return jnp.where(lost, jnp.nan, number(x))

    return root(lambda x: share(*tails(x)) - u, solve)


def just_below(x: Array) -> Array:
    """A float before x, with its derivative; before 0 it is no subnormal one, which processors take for 0."""
    info = jnp.finfo(x.dtype)
    step = jnp.where(jnp.isfinite(x), jnp.maximum(jnp.abs(x) * info.eps, info.tiny), 0)
    return x - lax.stop_gradient(step)


def share(part: Array, rest: Array) -> Array:
    """part / (part + rest), of nothing 0."""
    whole = part + rest
    return jnp.where(whole == 0, 0, part / jnp.where(whole == 0, 1, whole))
