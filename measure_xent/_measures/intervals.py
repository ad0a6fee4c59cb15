"""Measures on an interval: of constant density, and laws cut to one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._integrand import Constant
from .._pytree import pytree, set_fields
from .._smooth_form import finite
from . import gauss
from .checks import check_values, parameters, real_array
from .laws import Continuous
from .statistics import moments


class Interval(Continuous):
    """A measure with a constant density between two ends."""

    @property
    def height(self) -> Any:
        """The density."""
        return 1.0

    def log_density_of(self, x):
        low, high = self.support
        return jnp.where((x >= low) & (x <= high), jnp.log(self.height), -jnp.inf)

    @property
    def centre(self):
        ends = [end for end in self.support if finite(end)]
        return jnp.broadcast_to(jnp.asarray(sum(ends) / max(1, len(ends)), float), self.shape)

    @property
    def width(self):
        low, high = self.support
        return high - low if finite(low) and finite(high) else jnp.ones(self.shape)

    def sample(self, key, shape=()):
        return self.quantile(jax.random.uniform(key, (*shape, *self.shape), self._ends()[0].dtype))

    def quantile(self, u):
        low, high = self._ends()
        return low + (high - low) * u

    def cdf(self, x):
        low, high = self._ends()
        return jnp.clip(x - low, 0, high - low) * self.height

    def gauss(self, nodes):
        low, high = self.support
        if not (finite(low) and finite(high)):
            return None
        x, w, tail = gauss.scaled(gauss.legendre(nodes), (low + high) / 2, (high - low) / 2)
        mass = self.height * (high - low)
        return x, mass * w, mass[..., None] * tail

    def _ends(self):
        low, high = self.support
        if not (finite(low) and finite(high)):
            raise ValueError(f"{type(self).__name__}: an infinite measure has no samples; restrict it to an interval")
        return low, high


@pytree
class Uniform(Interval):
    """The uniform distribution on [low, high].

    Examples:
        >>> import measure_xent as mx
        >>> mx.entropy(0.5 * mx.Uniform(0., 1.) + 0.5 * mx.Uniform(2., 3.)).item()  # log 2
        0.6931
    """

    low: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    high: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        parameters(self)
        check_values(jnp.all(jnp.asarray(self.low) < self.high), "Uniform(high): above low")

    @property
    def support(self):
        return self.low, self.high

    @property
    def height(self):
        return 1 / (self.high - self.low)

    @property
    def affine(self):
        return Constant(jnp.log(self.height))

    def moment(self, statistic):
        return moments((self.low + self.high) / 2, (self.high - self.low) ** 2 / 12)(statistic)


@pytree
class Lebesgue(Interval):
    """Length: Lebesgue measure on the line, or on an interval of it. Boxes and ℝⁿ are ``power`` and ``independent`` of it.

    Args:
        low, high: the ends; None or ±inf where there is none.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.Lebesgue(0., 2.).mass.item(), mx.Lebesgue().expect(lambda x: jnp.exp(-x**2)).item()  # 2, √π
        (2.0, 1.77245)
        >>> ((mx.Normal(0., 1.) / mx.Lebesgue()) * mx.Lebesgue()).mass.item()
        1.0
    """

    low: Float[Array, "*family"] | None = None
    high: Float[Array, "*family"] | None = None

    def __post_init__(self):
        infinite = lambda end: end is None or (isinstance(end, float | int) and np.isinf(end))
        set_fields(self, **{name: None for name, end in self.__dict__.items() if infinite(end)})
        parameters(self)
        if self.low is not None and self.high is not None:
            check_values(jnp.all(self.low < self.high), "Lebesgue(high): above low")

    @property
    def support(self):
        return -float("inf") if self.low is None else self.low, float("inf") if self.high is None else self.high

    @property
    def certain_mass(self):
        return None

    @property
    def mass(self):
        low, high = self.support
        return jnp.broadcast_to(jnp.asarray(high - low), self.shape)


@pytree
class Truncated(Continuous):
    """A law given that it is in [low, high]: the restriction to an interval, of mass 1."""

    P: Continuous
    low: Float[Array, "*family"] | None
    high: Float[Array, "*family"] | None

    @property
    def support(self):
        low, high = self.P.support
        upper = lambda a, b: a if b is None else b if isinstance(a, float) and np.isinf(a) else jnp.maximum(a, b)
        lower = lambda a, b: a if b is None else b if isinstance(a, float) and np.isinf(a) else jnp.minimum(a, b)
        return upper(low, self.low), lower(high, self.high)

    @property
    def kinks(self):
        return self.P.kinks

    @property
    def centre(self):
        return jnp.clip(self.P.centre, *self.support)

    @property
    def width(self):
        return self.P.width

    def _between(self, low: Any, high: Any) -> Any:
        """P's mass between two points, from the tail that they are in, so that it keeps its digits there."""
        cdf = lambda x, at_infinity: self.P.cdf(x) if finite(x) else at_infinity
        survival = lambda x, at_infinity: self.P.survival(x) if finite(x) else at_infinity
        lower, upper = cdf(high, 1.0) - cdf(low, 0.0), survival(low, 1.0) - survival(high, 0.0)
        return jnp.where(jnp.asarray(low) > self.P.centre, upper, lower)

    def log_density_of(self, x):
        low, high = self.support
        share = self._between(low, high)
        return jnp.where((x >= low) & (x <= high), self.P.log_density_of(x) - jnp.log(share), -jnp.inf)

    def cdf(self, x):
        low, high = self.support
        return self._between(low, jnp.clip(x, low, high)) / self._between(low, high)

    def sample(self, key, shape=()):
        return self.quantile(jax.random.uniform(key, (*shape, *self.shape)))


def truncate(P: Continuous, low: Any = None, high: Any = None) -> Continuous:
    """P given that its point is in [low, high], with derivatives in the ends; either may be None.

    Raises:
        TypeError: P is not a named law on the line; ``P.restrict(A).normalize()`` is for any measure and predicate.

    Examples:
        >>> import measure_xent as mx
        >>> mx.truncate(mx.Normal(0., 1.), low=0.).expect(lambda x: x).item()  # √(2/π)
        0.79788
    """
    if not isinstance(P, Continuous):
        raise TypeError(
            f"truncate(P): P must be a law on the line, got {type(P).__name__}; P.restrict(lambda x: x > a).normalize() is "
            "for any measure"
        )
    ends = {"low": low, "high": high}
    infinite = lambda x: x is None or (not isinstance(x, Tracer) and bool(np.all(np.isinf(np.asarray(x)))))
    ends = [None if infinite(x) else real_array(f"truncate({n})", x, floating=True) for n, x in ends.items()]
    return Truncated(P, *ends)
