"""What an integral is: a number, how far off it may be, and the mass it was taken against."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from .._kernels.null import nan_where
from .._pytree import pytree


@pytree
class Integral:
    """∫ f dP with its error. All fields are sums: integrals against parts of a measure add up to that against the whole.

    Micro-batches, devices and hosts each have one; ``+``, ``jax.lax.psum`` and a scan's carry merge them, and ``mean`` divides
    once, which a mean of means is not.

    Args:
        value: ∫ f dP, a number or a pytree as f's values are.
        error: an estimate of |value − ∫ f dP|, like value; 0 where the integral is exact but for rounding.
        status: how many of the sums and quadratures behind it did not converge; 0 where all is well.
        mass: P(1).

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> one, two = mx.Atoms(jnp.array([1., 2., 6.])), mx.Atoms(jnp.array([7.]))
        >>> total = one.integrate(lambda x: x) + two.integrate(lambda x: x)
        >>> float(total.value), float(total.mean)
        (16.0, 4.0)
    """

    value: PyTree[Shaped[Array, "..."]]
    error: PyTree[Float[Array, "..."]]
    status: Int[Array, "*family"] | int = 0
    mass: Float[Array, "*family"] | None = None

    @classmethod
    def exact(cls, value: Any) -> "Integral":
        return cls(value, jax.tree.map(lambda _: 0.0, value))

    def __add__(self, other: "Integral") -> "Integral":
        if not isinstance(other, Integral):
            return NotImplemented
        mass = None if self.mass is None or other.mass is None else self.mass + other.mass
        add = functools.partial(jax.tree.map, lambda a, b: a + b)
        return Integral(add(self.value, other.value), add(self.error, other.error), self.status + other.status, mass)

    def __radd__(self, other: Any) -> "Integral":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum([a, b]) starts from 0

    def __neg__(self) -> "Integral":
        return self.scale(-1)

    def scale(self, c: Any, rank: int = 0) -> "Integral":
        """c · ∫ f dP, one c a member of a family, of which the values have ``rank`` axes, or as many as c."""
        c = jnp.asarray(c)
        c = c.reshape((1,) * (rank - c.ndim) + c.shape)  # families broadcast from the right
        times = lambda c: lambda v: align(c, v) * v
        error = lambda e: e if isinstance(e, float) else times(jnp.abs(c))(e)
        return Integral(jax.tree.map(times(c), self.value), jax.tree.map(error, self.error), self.status, self.mass)

    @property
    def checked(self) -> PyTree[Shaped[Array, "..."]]:
        """The value, NaN where something did not converge: silence is never accuracy."""
        if isinstance(self.status, int) and self.status == 0:
            return self.value
        failed = jnp.asarray(self.status) != 0
        return jax.tree.map(lambda v: nan_where(align(failed, v), v), self.value)

    @property
    def mean(self) -> PyTree[Shaped[Array, "..."]]:
        """value / mass, 0 where the mass is."""
        mass = jnp.asarray(self.mass)
        null = mass == 0
        divide = lambda v: jnp.where(align(null, v), 0, v / align(jnp.where(null, 1, mass), v))
        return jax.tree.map(divide, self.checked)


def align(c: Any, value: Any) -> Array:
    """c with axes of size 1 behind its own, which are the leading ones of value."""
    return jnp.reshape(c, jnp.shape(c) + (1,) * max(0, jnp.ndim(value) - jnp.ndim(c)))


def together(parts: Any) -> Integral:
    """A pytree of integrals as the integral of a pytree."""
    is_leaf = lambda part: isinstance(part, Integral)
    field = lambda name: jax.tree.map(lambda part: getattr(part, name), parts, is_leaf=is_leaf)
    return Integral(
        field("value"), field("error"), sum(part.status for part in jax.tree.leaves(parts, is_leaf=is_leaf))
    )
