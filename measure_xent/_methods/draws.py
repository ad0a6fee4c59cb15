"""Streams of points that forms draw from."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._forms.law_form import score_weight
from .._measures.laws import Law


class Draws:
    """A stream of independent draws of laws."""

    def __init__(self, key: Array, derivative: str | None):
        self.key, self.derivative = key, derivative

    def next(self) -> Any:
        self.key, key = jax.random.split(self.key)
        return key

    def point(self, law: Law) -> Any:
        return law.sample(self.next())

    def differentiable(self, law: Law) -> bool:
        return True

    def uniform(self) -> Array:
        return jax.random.uniform(self.next())

    def draw(self, law: Any) -> tuple[Any, Float[Array, "*family"]]:
        """A point of a law, and its weight: 1, with the derivative of the density where that of the point is not taken."""
        if hasattr(law, "draw"):
            return law.draw(self)
        weight = jnp.asarray(law.mass, float)
        if self.derivative != "score" and law.pathwise and self.differentiable(law):
            return self.point(law), weight
        x = lax.stop_gradient(
            self.point(jax.tree.map(lax.stop_gradient, law))
        )  # a sampler may have no derivative at all
        return x, score_weight(lax.stop_gradient(weight), law.log_density_of(x))

    def choose(self, weights: Float[Array, "*family k"]) -> tuple[Array, Float[Array, "*family"]]:
        """The index of an atom, one a member, and what its being drawn stands for."""
        p = lax.stop_gradient(jnp.abs(weights))
        total = p.sum(-1)
        edges = jnp.cumsum(p, axis=-1)
        u = self.uniform() * total
        i = jnp.minimum((edges <= u[..., None]).sum(-1), p.shape[-1] - 1)
        at = lambda a: jnp.take_along_axis(a, i[..., None], axis=-1)[..., 0]
        return i, at(weights) * total / jnp.where(at(p) == 0, 1, at(p))


class Uniforms(Draws):
    """A stream of points made of given uniform numbers."""

    def __init__(self, u: Float[Array, "dimension"], derivative: str | None):
        self.u, self.at, self.derivative = u, 0, derivative

    def differentiable(self, law):
        return self.derivative == "pathwise" or law.smooth_transport

    def point(self, law):
        self.at += law.dimension
        return law.transport(self.u[self.at - law.dimension : self.at])

    def uniform(self):
        self.at += 1
        return self.u[self.at - 1]
