"""Integrands beside an end of the support that floating-point numbers blur.

A node knows its distance d from an end with all digits, but its place x = high − d has few of them left where d is near the
rounding of the end. A singular integrand is infinite there, or a flight of steps. So within a small δ of such an end the
integrand goes on as it does at δ, 2δ and 4δ, which differ from the end exactly (Sterbenz 1974): f as a + b·dᵅ and log p as
log p(δ) + β·log(d/δ). Powers and logarithms of d are of this form, and what else there is, is O(δ) on a mass of O(δ); δ is
the geometric mean of the end's rounding and the law's width. How far f(8δ) is from the form tells the error.

Where an end moves with the parameters and f is infinite at it, f has a derivative at the distance d from the end, and none
at x. So in a layer beside such an end nodes move with the end, and what the layer leaves or takes is Leibniz's boundary term.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

PROBES = 1, 2, 4  # δ that f and log p are known from
PLACES = len(PROBES) + 3  # that tell what an end is like
LOG_2 = np.log(2)


class Nodes(NamedTuple):
    """Places u, with log du/dt, the length of t that each stands for, and its distances from both ends."""

    u: Float[Array, "*family n"]
    log_slope: Float[Array, "*family n"]
    lengths: Float[Array, "*family n"]
    from_low: Float[Array, "*family n"]
    from_high: Float[Array, "*family n"]

    @classmethod
    def join(cls, parts: list["Nodes"]) -> "Nodes":
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *parts)


class End(NamedTuple):
    """A finite end of the support: what of it is known before anybody looks."""

    sign: int  # −1 of the low end, 1 of the high one
    at: Float[Array, "*family 1"]
    near: Float[Array, "*family 1"]  # δ
    layer: Float[Array, "*family 1"]  # up to this distance nodes move with an end, where f is singular
    edge: Float[Array, "*family 1"]  # where that is

    def places(self, tip: Array) -> Float[Array, "*family 6"]:
        """Where ``Tail.of`` needs f and log p: at the probes, at 8δ, at the last node and at the end."""
        at = lax.stop_gradient(self.at)
        return jnp.concatenate([*(at - self.sign * k * self.near for k in (*PROBES, 8)), tip, at], axis=-1)

    def distance(self, nodes: Nodes) -> Float[Array, "*family n"]:
        return nodes.from_high if self.sign > 0 else nodes.from_low


class Tail(NamedTuple):
    """What the integrand and the density do beside an end."""

    use: Bool[Array, "*family 1"]  # whether one of them is singular at the end, and so goes on from δ as it is there
    moving: Bool[Array, "*family 1"]  # whether nodes in the layer move with the end
    off: Float[Array, "*family leaves 1"]  # |f(8δ)| more than it should be, and the same beside f(δ) − f(2δ)
    relative: Float[Array, "*family leaves 1"]

    @classmethod
    def of(
        cls, end: End, flat: Float[Array, "*family leaves 6"], log_p: Array, rise_to_8: Array, finite_derivatives: bool
    ) -> "Tail":
        """From f and log p at the end's ``places``, and from what f(8δ) − f(δ) is by the form that it goes on with.

        A density without ``finite_derivatives`` may be singular in those alone, as of a Beta(2, 1) in its second parameter.
        """
        blurred = lax.stop_gradient(end.at) != 0

        def singular(values, blurred):
            # Far more happens up to the end than from 2δ to δ. An end of 0 is not blurred, but for what f adds to it.
            one, two, tip = (values[..., i : i + 1] for i in (0, 1, 4))
            known = jnp.isfinite(values[..., :3]).all(-1, keepdims=True)
            return known & (~jnp.isfinite(tip) | (blurred & (jnp.abs(tip - one) > 4 * jnp.abs(one - two))))

        use = singular(flat, blurred[..., None, :]).any(-2) | singular(log_p, blurred)
        if not finite_derivatives:
            use |= blurred & jnp.isfinite(log_p[..., :3]).all(-1, keepdims=True)
        one, two, eight = (flat[..., i : i + 1] for i in (0, 1, 3))
        off = jnp.abs(eight - one - rise_to_8)
        off = jnp.where(jnp.isfinite(off), off, 0)
        relative = jnp.minimum(off / jnp.where(one == two, jnp.inf, jnp.abs(one - two)), 1)
        return cls(use, use | ~jnp.isfinite(flat[..., 5:]).all(-2), off, relative)

    @classmethod
    def unknown(cls, end: End, zero: Float[Array, "*family leaves 1"]) -> "Tail":
        """Before one has looked; ``zero`` has the shape and dtype of f."""
        no = jnp.zeros(end.near.shape, bool)
        return cls(no, no, zero, zero)

    def probes(self, end: End, elsewhere: Array) -> Float[Array, "*family 3"]:
        return jnp.where(self.use, end.at - end.sign * end.near * jnp.asarray(PROBES, end.near.dtype), elsewhere)

    def depth(self, end: End, nodes: Nodes) -> Float[Array, "*family n"]:
        """log(d/δ) within δ, 0 elsewhere."""
        d = end.distance(nodes)
        near = self.use & (d < end.near)
        return jnp.where(near, jnp.log(jnp.where(near, d, end.near) / end.near), 0)

    def place(self, end: End, u: Array, nodes: Nodes, depth: Array) -> Array:
        """Where to look at the integrand: δ from the end within δ, and in the layer with the end's derivative."""
        layer = self.moving & (end.distance(nodes) < end.layer)
        moved = u + jnp.where(layer, end.at - lax.stop_gradient(end.at), 0)
        return jnp.where(depth < 0, end.at - end.sign * end.near, moved)

    def log_density_rise(self, at_probes: Array, depth: Array) -> Array:
        """log p(d) − log p(δ)."""
        return power_rise(jnp.where(self.use, at_probes, 0), depth)

    def error(self, rise: Float[Array, "*family leaves n"], depth: Array) -> Array:
        """What f is off by within δ, where it rises by so much from δ."""
        return jnp.where(depth[..., None, :] < 0, self.off + self.relative * jnp.abs(rise), 0)

    def edge(self, end: End) -> Float[Array, "*family 1"]:
        """Where the boundary term is taken."""
        return jnp.where(self.moving, end.edge, lax.stop_gradient(end.at))


def power_rise(log_at_probes: Array, depth: Any) -> Array:
    """log p(d) − log p(δ) of a power p, by its logarithms at δ and 2δ; depth = log(d/δ)."""
    one, two = log_at_probes[..., :1], log_at_probes[..., 1:2]
    known = jnp.isfinite(one) & jnp.isfinite(two)
    return (jnp.where(known, two, 0) - jnp.where(known, one, 0)) / LOG_2 * depth


def ratio_rise(log_at_probes: Array, depth: Any) -> Array:
    """log r(d) − log r(δ) of a ratio of densities, by its logarithms at δ, 2δ and 4δ: a square of log d, as of powers and of
    what is normal in log d; depth = log(d/δ)."""
    one, two, four = (log_at_probes[..., i : i + 1] for i in range(3))
    known = jnp.isfinite(one) & jnp.isfinite(two) & jnp.isfinite(four)
    one, two, four = (jnp.where(known, x, 0) for x in (one, two, four))
    bend, steps = (one - 2 * two + four) / 2, depth / LOG_2
    noise = 64 * jnp.finfo(bend.dtype).eps * jnp.maximum(jnp.abs(one), jnp.abs(four))
    return (two - one) * steps + jnp.where(jnp.abs(bend) > noise, bend, 0) * steps * (steps - 1)


def rise(at_probes: Array, depth: Array) -> Array:
    """f(d) − f(δ) of f = a + b·dᵅ, by its values at δ, 2δ and 4δ; depth = log(d/δ)."""
    one, two, four = (at_probes[..., i : i + 1] for i in range(3))
    step, next_step = one - two, two - four
    # What turns, or does not change but for rounding, or is not finite, is left as it is at δ.
    known = jnp.isfinite(step) & jnp.isfinite(next_step) & (step * next_step > 0)
    step, next_step = jnp.where(known, step, 0), jnp.where(known, next_step, 1)
    power = jnp.clip(-jnp.log(jnp.where(known, step, 1) / next_step) / LOG_2, -1, 2)
    return -step * (depth / LOG_2) * _exprel(power * depth) / _exprel(power * LOG_2)


def _exprel(z: Array) -> Array:
    """(exp z − 1)/z, with its derivatives at 0."""
    small = jnp.abs(z) < 0.03
    near, far = jnp.where(small, z, 0), jnp.where(small, 1, z)
    series: Any = 1.0
    for n in (7, 6, 5, 4, 3, 2):
        series = 1 + near / n * series
    return jnp.where(small, series, jnp.expm1(far) / far)


def near_of(end: Array, width: Array) -> tuple[Array, Array]:
    """(δ, the width of the layer that moves with an end), by the rounding of places beside the end and the law's width."""
    grain = jnp.finfo(end.dtype).eps * jnp.maximum(jnp.abs(end) / width, 1)
    near = jnp.minimum(jnp.sqrt(grain), 1 / 64) * width
    # A power of 2: the probes' distance from the end is exact.
    return near / (2 * jnp.frexp(near)[0]), jnp.minimum(grain**0.25, 1 / 8) * width
