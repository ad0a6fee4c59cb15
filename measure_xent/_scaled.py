"""Densities and their ratios as numbers that do not underflow, and that have derivatives at a mass of 0."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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

    def total(self) -> "ScaledNumber":
        """The sum over the last axis, in units of the greatest scale."""
        log_scale, factor = jnp.broadcast_arrays(*self)
        top = jnp.max(log_scale, axis=-1, where=factor != 0, initial=-jnp.inf)
        top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
        return ScaledNumber(top, jnp.sum(factor * jnp.exp(log_scale - top[..., None]), axis=-1))

    def times(self, other: "ScaledNumber") -> "ScaledNumber":
        return ScaledNumber(self.log_scale + other.log_scale, self.factor * other.factor)

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

    def times(self, other: "Ratio") -> "Ratio":
        return Ratio(self.log_scale + other.log_scale, self.p * other.p, self.q * other.q)

    @property
    def value(self) -> Float[Array, "*family"]:
        return self.p / self.q * jnp.exp(self.log_scale)

    @property
    def log(self) -> Float[Array, "*family"]:
        log = self.log_scale + jnp.log(jnp.abs(self.p)) - jnp.log(jnp.abs(self.q))
        return jnp.where(self.p * self.q < 0, jnp.nan, log)

    @property
    def shares(self) -> tuple[Float[Array, "*family"], Float[Array, "*family"]]:
        """(p, q) / (p + q), each with all its digits."""
        top = jax.lax.stop_gradient(jnp.maximum(self.log_scale, 0))
        p, q = self.p * jnp.exp(self.log_scale - top), self.q * jnp.exp(-top)
        return p / (p + q), q / (p + q)
