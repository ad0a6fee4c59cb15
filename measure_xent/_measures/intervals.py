"""Measures on an interval: of constant density, and laws cut to one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._integrands.integrand import Constant
from .._kernels.checks import check_values, parameters, real_array
from .._kernels.tanh_sinh import finite, fixed
from .._pytree import pytree, set_fields
from . import gauss
from .laws import Continuous
from .line import LocationScale
from .shapes import static_mass
from .special import half_line
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
    def mass(self):
        low, high = self.support
        return jnp.broadcast_to(jnp.asarray(high - low), self.shape)


static_mass.register(Lebesgue, lambda P: None)


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

    def centred(self):
        if not isinstance(self.P, LocationScale):
            return self, 0.0
        c = self.centre  # in a tail, the law is this end's alone
        low, high = (None if end is None else end - c for end in (self.low, self.high))
        return Truncated(self.P.moved(c), low, high), c

    # P's share in the interval is a difference of two cdfs, or, where those are nearly equal or nearly 0, an integral beside
    # the density at the interval's point that is closest to the bulk: that density itself may underflow.

    def _difference(self, low: Any, high: Any) -> tuple[Any, Any]:
        """P's mass between two points, from the tail that they are in, and whether it has its digits."""
        cdf = lambda x, at_infinity: self.P.cdf(x) if finite(x) else at_infinity
        survival = lambda x, at_infinity: self.P.survival(x) if finite(x) else at_infinity
        above = jnp.asarray(low) > self.P.centre
        tail = jnp.where(above, survival(low, 1.0), cdf(high, 1.0))
        share = tail - jnp.where(above, survival(high, 0.0), cdf(low, 0.0))
        return share, share > jnp.maximum(0.1 * tail, 1e-3)

    def _relative(self, low: Any, high: Any) -> tuple[Any, Any]:
        """(e, log P([low, high]) / p(e)), e the point of the interval that is closest to the centre."""
        start = jnp.clip(self.P.centre, low, high)
        _, slope = jax.jvp(self.P.log_density_of, (start,), (jnp.ones_like(start),))
        size = self.P.width + jnp.abs(start - self.P.centre)
        reach = jax.lax.stop_gradient(1 / (jnp.abs(slope) + 1 / size))  # how far the density goes on as it is
        r, w = half_line(start + jnp.zeros_like(reach))

        def beside(sign: int, end: Any) -> Any:
            rise = lambda x, gap: jnp.exp(self.P.log_rise(x, start, gap))
            if not finite(end):
                seen = (r < jnp.finfo(r.dtype).max ** 0.33).ravel()  # where squares do not overflow
                gap = sign * reach * r[seen]
                return jnp.sum(w[seen] * rise(start + gap, gap), axis=0) * reach
            length = sign * (end - start)
            bent = jax.lax.stop_gradient(jnp.maximum(1, length / reach))
            near, far = length * (r / (r + bent)), length * (bent / (r + bent))
            x = jnp.where(r < bent, start + sign * near, end - sign * far)
            # At the end of P's own support the density, or its derivative, may be infinite.
            seen = True if self.P.finite_derivatives else (x != end) | (end != self.P.support[sign > 0])
            terms = w * bent / (r + bent) ** 2 * rise(jnp.where(seen, x, start), sign * near)
            return jnp.sum(jnp.where(seen, terms, 0), axis=0) * length

        return start, jnp.log(beside(-1, low) + beside(1, high))

    @property
    def _share(self) -> tuple[Any, Any, Any]:
        """(e, log share / p(e), whether a difference has its digits) of the whole interval."""
        start, relative = self._relative(*self.support)

        fine = jax.tree.map(jax.lax.stop_gradient, self)._difference(*map(fixed, self.support))[1]

        def known(law):
            share = jnp.where(fine, law._difference(*law.support)[0], 1)
            return jnp.log(share) - law.P.log_density_of(jnp.clip(law.P.centre, *law.support))

        return start, jnp.where(fine, self._smooth(known, lambda: relative), relative), fine

    def _smooth(self, exact: Callable, integral: Callable) -> Array:
        """The values of a function of this law, with the derivatives of an integral where its cdf has none."""
        if self.P.smooth_transport:
            return exact(self)
        smooth = integral()
        return exact(jax.tree.map(jax.lax.stop_gradient, self)) + smooth - jax.lax.stop_gradient(smooth)

    def log_density_of(self, x):
        low, high = self.support
        inside = (x >= low) & (x <= high)
        start, relative, _ = self._share
        x = jnp.where(inside, x, start)
        return jnp.where(inside, self.P.log_rise(x, start, x - start) - relative, -jnp.inf)

    def _integrated_cdf(self, x):
        low, high = self.support
        start, relative = self._relative(low, high)
        other, part = self._relative(low, jnp.clip(x, low, high))
        return jnp.exp(part - relative + self.P.log_rise(other, start, other - start))

    def _differenced_cdf(self, x):
        def exact(law):
            low, high = law.support
            x_ = x if law is self else jax.lax.stop_gradient(x)
            return law._difference(low, jnp.clip(x_, low, high))[0] / law._difference(low, high)[0]

        return self._smooth(exact, lambda: self._integrated_cdf(x))

    def cdf(self, x):
        share = jnp.where(self._share[2], self._differenced_cdf(x), self._integrated_cdf(x))
        return jnp.clip(share, 0, 1)

    def quantile(self, u):
        by = lambda cdf: lambda: self._inverse(lambda x: (cdf(x), 1 - cdf(x)), u)
        return jax.lax.cond(jnp.all(self._share[2]), by(self._differenced_cdf), by(self._integrated_cdf))

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
