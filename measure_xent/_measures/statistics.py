"""Statistics: functions whose means the named families know."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.scipy import special
from jaxtyping import Array, Float

from .._pytree import pytree
from .laws import Statistic


class Deviation(Statistic):
    """A function of x − c, one c a member of a family."""

    c: Float[Array, "*family"]

    @property
    def shape(self):
        return jnp.shape(self.c)

    def values(self, points, lead):
        c = jnp.asarray(self.c)
        shifted: Any = type(self)(c[..., None])  # type: ignore[call-arg]
        return shifted(points)


@pytree
class Identity(Statistic):
    """x ↦ x."""

    def __call__(self, *x):
        return jnp.asarray(x[0], float)


@pytree
class SquaredDeviation(Deviation):
    """x ↦ (x − c)²."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return (x[0] - self.c) ** 2


@pytree
class AbsoluteDeviation(Deviation):
    """x ↦ |x − c|."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return jnp.abs(x[0] - self.c)

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
class SquaredLogDeviation(Deviation):
    """x ↦ (log x − c)²."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return (jnp.log(x[0]) - self.c) ** 2


@pytree
class LogFactorial(Statistic):
    """x ↦ log x!."""

    def __call__(self, *x):
        return special.gammaln(x[0] + 1.0)


def moments(mean: Any, variance: Any, **others: Any) -> Callable[[Statistic], Any]:
    """Moments as a function of the statistic: those that a mean and a variance give, and others by the statistic's name."""

    def moment(statistic: Statistic) -> Any:
        match statistic:
            case Identity():
                return mean
            case SquaredDeviation(c=c):
                return variance + (mean - c) ** 2
        value = others.get(type(statistic).__name__, NotImplemented)
        return value(statistic) if callable(value) else value

    return moment
