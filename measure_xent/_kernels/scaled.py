"""Densities and their ratios as numbers that do not underflow, and that have derivatives at a mass of 0."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .mesh import sum_over
from .null import null_safe_product
from .ratio import log_ratio


class ScaledNumber(NamedTuple):
    """factor · exp(log_scale): a law's tail is all scale, a mass all factor, which unlike its logarithm is smooth at 0."""

    log_scale: Float[Array, "*family"]
    factor: Float[Array, "*family"]

    @classmethod
    def exp(cls, log_value: Float[Array, "*family"]) -> "ScaledNumber":
        return cls(log_value, jnp.ones_like(log_value))

    @classmethod
    def of(cls, value: Float[Array, "*family"]) -> "ScaledNumber":
        return cls(jnp.zeros_like(value), value)

    @classmethod
    def sum(cls, terms: Sequence[tuple[Array, Array]]) -> "ScaledNumber":
        parts = (jnp.stack(jnp.broadcast_arrays(*part), axis=-1) for part in zip(*terms, strict=True))
        return cls(*parts).total()

    def total(self, weights: Float[Array, "*family n"] | None = None) -> "ScaledNumber":
        """The sum over the last axis, weighted or not, in units of the greatest scale."""
        number = self
        if weights is not None:
            number = ScaledNumber(self.log_scale, jnp.where(weights == 0, 0, weights * self.factor))
        log_scale, factor = jnp.broadcast_arrays(*number)
        top = jnp.max(log_scale, axis=-1, where=(factor != 0) & (log_scale < jnp.inf), initial=-jnp.inf)
        top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
        relative = self.factor * jnp.exp(self.log_scale - top[..., None])
        return ScaledNumber(
            top, jnp.sum(relative if weights is None else null_safe_product(weights, relative), axis=-1)
        )

    def over_devices(self, mesh_axes: frozenset[str]) -> "ScaledNumber":
        """The sum over the devices of mesh axes."""
        if not mesh_axes:
            return self
        top = jax.lax.pmax(jax.lax.stop_gradient(self.log_scale), tuple(sorted(mesh_axes)))
        return ScaledNumber(top, sum_over(self.factor * jnp.exp(self.log_scale - top), mesh_axes))

    def times(self, other: "ScaledNumber") -> "ScaledNumber":
        return ScaledNumber(self.log_scale + other.log_scale, self.factor * other.factor)

    @property
    def value(self) -> Float[Array, "*family"]:
        """As a number, which may underflow."""
        return self.factor * jnp.exp(self.log_scale)

    @property
    def log(self) -> Float[Array, "*family"]:
        """Its logarithm, NaN where the number is negative."""
        return jnp.where(self.factor < 0, jnp.nan, self.log_scale + jnp.log(jnp.abs(self.factor)))


class Ratio(NamedTuple):
    """p/q · exp(log_scale)."""

    log_scale: Float[Array, "*family"]
    p: Float[Array, "*family"]
    q: Float[Array, "*family"]

    @classmethod
    def of(cls, p: ScaledNumber, q: ScaledNumber) -> "Ratio":
        # An exponent of −inf is written as a factor of 0 in the other's scale: two of them do not make NaN, and one of them
        # does not make the other underflow.
        no_p, no_q = p.log_scale == -jnp.inf, q.log_scale == -jnp.inf
        log_p = jnp.where(no_p, jnp.where(no_q, 0, q.log_scale), p.log_scale)
        log_q = jnp.where(no_q, jnp.where(no_p, 0, p.log_scale), q.log_scale)
        factors = jnp.where(no_p, 0, p.factor), jnp.where(no_q, 0, q.factor)
        return cls(*jnp.broadcast_arrays(log_p - log_q, *factors))

    @property
    def value(self) -> Float[Array, "*family"]:
        return self.p / self.q * jnp.exp(self.log_scale)

    @property
    def log(self) -> Float[Array, "*family"]:
        return jnp.where(self.p * self.q < 0, jnp.nan, self.log_scale + log_ratio(self.p, self.q))

    @property
    def inside(self) -> Bool[Array, "*family"]:
        """Whether neither is 0."""
        return (self.p != 0) & (self.q != 0)

    def with_log(self, log: Float[Array, "*family"]) -> "Ratio":
        """The ratio whose logarithm is known, where neither is 0."""
        return Ratio(*(jnp.where(self.inside, a, b) for a, b in zip((log, 1, 1), self, strict=True)))

    @property
    def log_inside(self) -> Float[Array, "*family"]:
        """The logarithm, of which no derivative is taken where it is infinite."""
        p, q = (jnp.where(self.inside, x, 1) for x in (self.p, self.q))
        return jnp.where(self.inside, self._replace(p=p, q=q).log, jnp.where(self.p == 0, -jnp.inf, jnp.inf))

    @property
    def shares(self) -> tuple[Float[Array, "*family"], Float[Array, "*family"]]:
        """(p, q) / (p + q), each with all its digits."""
        top = jax.lax.stop_gradient(jnp.maximum(self.log_scale, 0))
        p, q = self.p * jnp.exp(self.log_scale - top), self.q * jnp.exp(-top)
        null = (p == 0) & (q == 0)  # where neither is, they are alike
        total = jnp.where(null, 1, p + q)
        return jnp.where(null, 0.5, p / total), jnp.where(null, 0.5, q / total)
