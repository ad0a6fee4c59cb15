"""Statistics: functions whose means the named families know."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._integrands.integrand import as_tuple
from .._pytree import pytree, static
from .exponential_family import Statistic
from .special import log_gamma, tilt, x_log1p


class OfParameters(Statistic):
    """A function with parameters, one of each a member of a family."""

    @property
    def shape(self):
        return jnp.broadcast_shapes(*map(jnp.shape, jax.tree.leaves(self)))

    def values(self, points, lead):
        return jax.tree.map(lambda c: jnp.asarray(c)[..., None], self)(*as_tuple(points))


@pytree
class Identity(Statistic):
    """x ↦ x."""

    def __call__(self, *x):
        return jnp.asarray(x[0], float)


@pytree
class SquaredDeviation(OfParameters):
    """x ↦ (x − c)²."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return (x[0] - self.c) ** 2


@pytree
class AbsoluteDeviation(OfParameters):
    """x ↦ |x − c|."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return jnp.abs(x[0] - self.c)

    @property
    def kinks(self):
        return (self.c,)


@pytree
class OnOneSide(OfParameters):
    """x ↦ 1 where x ≤ c, or where x is above it, else 0."""

    c: Float[Array, "*family"]
    above: bool = static()

    def __call__(self, *x):
        return jnp.asarray(x[0] > self.c if self.above else x[0] <= self.c, float)

    @property
    def kinks(self):
        return (self.c,)


@pytree
class Logarithm(Statistic):
    """x ↦ log x."""

    def __call__(self, *x):
        return jnp.log(x[0])


@pytree
class LogarithmOfRest(Statistic):
    """x ↦ log(1 − x)."""

    def __call__(self, *x):
        return jnp.log1p(-x[0])


@pytree
class SquaredLogDeviation(OfParameters):
    """x ↦ (log x − c)²."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return (jnp.log(x[0]) - self.c) ** 2


@pytree
class LogFactorial(Statistic):
    """x ↦ log x!."""

    def __call__(self, *x):
        return log_gamma(x[0] + 1.0)


@pytree
class Exponent(OfParameters):
    """x ↦ x log(1 + c), 0 at 0."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return x_log1p(x[0], self.c)


@pytree
class Tilt(OfParameters):
    """x ↦ (a − 1) log(ux/a) − (ux − a): what log p of gamma laws has of x, about the mean and so without large numbers."""

    a: Float[Array, "*family"]
    u: Float[Array, "*family"]

    def __call__(self, *x):
        return tilt(self.a, x[0], self.u, -1)

    def of_moments(self, mean: Any, gap: Any) -> Any:
        """Its mean, from that of x and log E x − E log x."""
        return tilt(self.a, mean, self.u, -1) - (self.a - 1) * gap


@pytree
class TiltOfRest(Tilt):
    """The same of 1 − x."""

    a: Float[Array, "*family"]
    u: Float[Array, "*family"]

    def __call__(self, *x):
        return tilt(self.a, 1 - x[0], self.u, -1)


def moments(mean: Any, variance: Any, gap: Any = None, rest: Any = None, **others: Any) -> Callable[[Statistic], Any]:
    """Moments as a function of the statistic: those by the statistic's name, and others that a mean and a variance give.

    ``gap`` is log E x − E log x, and ``rest`` the mean and the gap of 1 − x, of those who have them.
    """

    def moment(statistic: Statistic) -> Any:
        if (value := others.get(type(statistic).__name__)) is not None:
            return value(statistic) if callable(value) else value
        match statistic:
            case Identity():
                return mean
            case SquaredDeviation(c=c):
                return variance + (mean - c) ** 2
            case Exponent(c=c):
                return x_log1p(mean, c)
            case Logarithm() if gap is not None:
                return jnp.log(mean) - gap
            case LogarithmOfRest() if rest is not None:
                return jnp.log(rest[0]) - rest[1]
            case TiltOfRest():
                return NotImplemented if rest is None else statistic.of_moments(*rest)
            case Tilt():
                return NotImplemented if gap is None else statistic.of_moments(mean, gap)
        return NotImplemented

    return moment
