"""Named families on the line. Names and parameters are numpyro's; samplers and special functions are JAX's."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy import special
from jaxtyping import Array, Float

from .._integrand import Constant
from .._measure import Measure
from .._normal_form import NormalForm
from .._pytree import pytree, set_fields
from .._smooth_form import carry, finite
from . import gauss
from .checks import check_values, parameters, positive, real_array
from .laws import Continuous, Line, Natural
from .statistics import (
    AbsoluteDeviation,
    Identity,
    Logarithm,
    LogarithmOfRest,
    SquaredDeviation,
    SquaredLogDeviation,
    moments,
)

LOG_2PI = 1.8378770664093453


class LocationScale(Continuous):
    """The law of loc + scale · z, for a z that a subclass knows."""

    loc: Any
    scale: Any

    def __post_init__(self):
        parameters(self, scale=positive)

    @property
    def centre(self):
        return self.loc

    @property
    def width(self):
        return self.scale

    def centred(self):
        new = object.__new__(type(self))
        set_fields(new, **{**self.__dict__, "loc": jnp.zeros_like(self.loc)})
        return new, self.loc

    def log_density_of(self, x):
        return self.standard_log_density((x - self.loc) / self.scale) - jnp.log(self.scale)

    def sample(self, key, shape=()):
        return self.loc + self.scale * self.standard_sample(key, (*shape, *self.shape))

    def cdf(self, x):
        return self.standard_cdf((x - self.loc) / self.scale)

    def survival(self, x):
        return self.standard_cdf((self.loc - x) / self.scale)  # all of them are symmetric

    @abc.abstractmethod
    def standard_log_density(self, z: Array) -> Array: ...

    @abc.abstractmethod
    def standard_sample(self, key: Array, shape: tuple[int, ...]) -> Array: ...

    @abc.abstractmethod
    def standard_cdf(self, z: Array) -> Array: ...


def _scaled(rule: tuple, loc: Any, scale: Any) -> tuple[Array, Array, Array]:
    """A rule moved and scaled, without the nodes whose weights the dtype cannot tell from 0."""
    kept = rule[1] > jnp.finfo(float).tiny
    x, w, tail = (jnp.asarray(part[..., kept], float) for part in rule)
    return loc + scale * x, w, tail


def _carried(law: Continuous, x: Array, w: Array, tail: Array) -> tuple[Array, Array, Array]:
    """A rule whose nodes have no derivative, and whose weights have the density's."""
    x = jax.lax.stop_gradient(x)
    log_p = law.log_density_of(x)
    return x, carry(jnp.broadcast_to(w, log_p.shape), log_p), tail


@pytree
class Normal(LocationScale):
    """The normal distribution N(loc, scale²).

    Raises:
        TypeError, ValueError: parameters that are not numbers, or do not broadcast. scale > 0 is a chex value assertion.

    Example:
        >>> import measure_xent as mx
        >>> P, Q = mx.Normal(0., 1.), mx.Laplace(0., 2.)
        >>> mx.cross_entropy(P, Q).item(), mx.entropy(P).item()
        (1.7852, 1.4189)
    """

    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def standard_log_density(self, z):
        return -(z**2) / 2 - LOG_2PI / 2

    def standard_sample(self, key, shape):
        return jax.random.normal(key, shape, self.scale.dtype)

    def standard_cdf(self, z):
        return special.ndtr(z)

    def quantile(self, u):
        return self.loc + self.scale * special.ndtri(u)

    def gauss(self, nodes):
        return _carried(self, *_scaled(gauss.hermite(nodes), self.loc, self.scale))

    @property
    def natural(self):
        precision = 1 / self.scale**2
        log_partition = self.loc**2 * precision / 2 + jnp.log(self.scale) + LOG_2PI / 2
        return Natural(
            (self.loc * precision, -precision / 2), (Identity(), SquaredDeviation(jnp.zeros(()))), log_partition
        )

    def closest_to(self, P):
        P = P.normalize()
        loc = P.expect(Identity())
        return Normal(loc, jnp.sqrt(P.expect(SquaredDeviation(loc))))

    @property
    def affine(self):
        # About the mean, where the natural form loses the digits that loc² / scale² has too many of.
        return (-0.5 / self.scale**2) * SquaredDeviation(self.loc) - (jnp.log(self.scale) + LOG_2PI / 2)

    def moment(self, statistic):
        def folded(statistic):
            gap = self.loc - statistic.c
            z = gap / self.scale
            return self.scale * jnp.sqrt(2 / jnp.pi) * jnp.exp(-(z**2) / 2) + gap * special.erf(z / jnp.sqrt(2.0))

        return moments(self.loc, self.scale**2, AbsoluteDeviation=folded)(statistic)


@pytree
class Laplace(LocationScale):
    """The Laplace distribution, density exp(−|x − loc| / scale) / (2 scale).

    Example:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.Laplace(0., 1.)).item()  # 1 + log 2
        1.6931
    """

    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    @property
    def kinks(self):
        return (self.loc,)

    def standard_log_density(self, z):
        return -jnp.abs(z) - np.log(2)

    def standard_sample(self, key, shape):
        return jax.random.laplace(key, shape, self.scale.dtype)

    def standard_cdf(self, z):
        half = jnp.exp(-jnp.abs(z)) / 2
        return jnp.where(z < 0, half, 1 - half)

    def quantile(self, u):
        return self.loc + self.scale * jnp.where(u < 0.5, jnp.log(2 * u), -jnp.log(2 * (1 - u)))

    def gauss(self, nodes):
        return _carried(self, *_scaled(gauss.two_sided(gauss.laguerre(nodes // 2)), self.loc, self.scale))

    @property
    def natural(self):
        return Natural((-1 / self.scale,), (AbsoluteDeviation(self.loc),), jnp.log(2 * self.scale))

    def closest_to(self, P):
        loc = median(P)
        return loc if loc is NotImplemented else Laplace(loc, P.normalize().expect(AbsoluteDeviation(loc)))

    def moment(self, statistic):
        def absolute(statistic):
            gap = jnp.abs(self.loc - statistic.c)
            return gap + self.scale * jnp.exp(-gap / self.scale)

        return moments(self.loc, 2 * self.scale**2, AbsoluteDeviation=absolute)(statistic)


@pytree
class Cauchy(LocationScale):
    """The Cauchy distribution. It has no mean, and says so: NaN.

    Example:
        >>> import measure_xent as mx
        >>> mx.Cauchy(0., 1.).expect(lambda x: x).item(), mx.entropy(mx.Cauchy(0., 1.)).item()  # none, log 4π
        (nan, 2.5310)
    """

    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def standard_log_density(self, z):
        # log(1 + z²), where z² would overflow too.
        return -jnp.logaddexp(0.0, 2 * jnp.log(jnp.abs(jnp.where(z == 0, 1e-30, z)))) - jnp.log(jnp.pi)

    def standard_sample(self, key, shape):
        return jax.random.cauchy(key, shape, self.scale.dtype)

    def standard_cdf(self, z):
        return jnp.arctan2(1.0, -z) / jnp.pi  # keeps the digits of a small probability

    def quantile(self, u):
        return self.loc - self.scale / jnp.tan(jnp.pi * u)


@pytree
class StudentT(LocationScale):
    """Student's t distribution with df degrees of freedom, moved and scaled.

    Example:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.StudentT(3.)).item()
        1.7735
    """

    smooth_transport = False

    df: Float[Array, "*family"]
    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        parameters(self, df=positive, scale=positive)

    def standard_log_density(self, z):
        df = self.df
        log_z = 2 * jnp.log(jnp.abs(jnp.where(z == 0, 1e-30, z)))
        tail = (df + 1) / 2 * jnp.logaddexp(0.0, log_z - jnp.log(df))
        return special.gammaln((df + 1) / 2) - special.gammaln(df / 2) - jnp.log(df * jnp.pi) / 2 - tail

    def standard_sample(self, key, shape):
        df = jnp.broadcast_to(self.df, self.shape)
        return jax.random.t(key, df, shape, df.dtype)

    def standard_cdf(self, z):
        half = special.betainc(self.df / 2, 0.5, self.df / (self.df + z**2)) / 2
        return jnp.where(z < 0, half, 1 - half)


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
        x, w, tail = _scaled(gauss.legendre(nodes), (low + high) / 2, (high - low) / 2)
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

    Example:
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

    Example:
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
class Exponential(Continuous):
    """The exponential distribution, density rate · exp(−rate x) on x ≥ 0.

    Example:
        >>> import measure_xent as mx
        >>> mx.kl_divergence(mx.Exponential(2.), mx.Exponential(1.)).item()  # log 2 − 1/2
        0.1931
        >>> mx.kl_divergence(mx.Normal(0., 1.), mx.Exponential(1.)).item()
        inf
    """

    rate: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        parameters(self, rate=positive)

    @property
    def centre(self):
        return 1 / self.rate

    @property
    def width(self):
        return 1 / self.rate

    @property
    def support(self):
        return 0.0, float("inf")

    def log_density_of(self, x):
        return jnp.where(x >= 0, jnp.log(self.rate) - self.rate * x, -jnp.inf)

    def sample(self, key, shape=()):
        return jax.random.exponential(key, (*shape, *self.shape), self.rate.dtype) / self.rate

    def cdf(self, x):
        return -jnp.expm1(-self.rate * jnp.maximum(x, 0))

    def survival(self, x):
        return jnp.exp(-self.rate * jnp.maximum(x, 0))

    def quantile(self, u):
        return -jnp.log1p(-u) / self.rate

    def gauss(self, nodes):
        return _carried(self, *_scaled(gauss.laguerre(nodes), 0.0, 1 / self.rate))

    @property
    def natural(self):
        return Natural((-self.rate,), (Identity(),), -jnp.log(self.rate))

    def closest_to(self, P):
        P = P.normalize()
        return Exponential(1 / P.expect(Identity()))

    def moment(self, statistic):
        mean = 1 / self.rate
        return moments(mean, mean**2, Logarithm=-np.euler_gamma - jnp.log(self.rate))(statistic)


@pytree
class Gamma(Continuous):
    """The gamma distribution, density ∝ x^(concentration − 1) · exp(−rate x) on x > 0.

    Example:
        >>> import measure_xent as mx
        >>> mx.Gamma(3., 2.).expect(lambda x: x).item()
        1.5
    """

    concentration: Float[Array, "*family"]
    rate: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        parameters(self, concentration=positive, rate=positive)

    @property
    def centre(self):
        return self.concentration / self.rate

    @property
    def width(self):
        return jnp.sqrt(self.concentration) / self.rate

    @property
    def support(self):
        return 0.0, float("inf")

    def log_density_of(self, x):
        a, r = self.concentration, self.rate
        log_density = special.xlogy(a - 1, jnp.where(x > 0, x, 1)) - r * x + a * jnp.log(r) - special.gammaln(a)
        return jnp.where(x > 0, log_density, -jnp.inf)

    def sample(self, key, shape=()):
        a = jnp.broadcast_to(self.concentration, self.shape)
        return jax.random.gamma(key, a, (*shape, *self.shape), a.dtype) / self.rate

    def cdf(self, x):
        return special.gammainc(self.concentration, self.rate * jnp.maximum(x, 0))

    def survival(self, x):
        return special.gammaincc(self.concentration, self.rate * jnp.maximum(x, 0))

    fixed_rule = False

    def gauss(self, nodes):
        x, w, tail = gauss.gamma(jnp.broadcast_to(self.concentration, self.shape)[..., 0], nodes)
        return _carried(self, x / self.rate, w, tail)

    @property
    def natural(self):
        a, r = self.concentration, self.rate
        return Natural((a - 1, -r), (Logarithm(), Identity()), special.gammaln(a) - a * jnp.log(r))

    def closest_to(self, P):
        P = P.normalize()
        mean = P.expect(Identity())
        concentration = gamma_concentration(jnp.log(mean) - P.expect(Logarithm()))
        return Gamma(concentration, concentration / mean)

    def moment(self, statistic):
        a, r = self.concentration, self.rate
        return moments(a / r, a / r**2, Logarithm=special.digamma(a) - jnp.log(r))(statistic)


def median(P: Measure) -> Any:
    """The least x with P((−∞, x]) of at least half of the mass, of a law or of numbers in one list, else NotImplemented."""
    if isinstance(P, Line):
        return P.quantile(jnp.full(P.shape, 0.5))
    parts = [part for form in P.forms() if isinstance(form, NormalForm) for part in form.parts()]
    if len(parts) != 1 or len(P.forms()) != 1 or isinstance(parts[0][0], tuple):
        return NotImplemented
    points, weights = jnp.broadcast_arrays(*parts[0][:2])
    order = jnp.argsort(points, axis=-1)
    points, weights = (jnp.take_along_axis(a, order, axis=-1) for a in (points, weights))
    below = jnp.cumsum(weights, axis=-1)
    first = jnp.argmax(2 * below >= below[..., -1:], axis=-1)
    return jnp.take_along_axis(points, first[..., None], axis=-1)[..., 0].astype(float)


def gamma_concentration(gap: Float[Array, "*family"]) -> Float[Array, "*family"]:
    """The a whose log a − ψ(a) is a gap > 0, by Newton's method on 1/a. Source: Minka (2002), *Estimating a gamma …*."""
    s = jax.lax.stop_gradient(gap)
    excess = lambda a: jnp.log(a) - special.digamma(a)
    slope = lambda a: 1 / a - special.polygamma(1, a)
    start = (3 - s + jnp.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    a = jax.lax.fori_loop(0, 6, lambda _, a: 1 / (1 / a + (excess(a) - s) / (a**2 * slope(a))), start)
    a = jax.lax.stop_gradient(a)
    return _implicit(a, (gap - excess(a)) / slope(a))


def dirichlet_concentration(means: Float[Array, "*family d"]) -> Float[Array, "*family d"]:
    """The a for which ψ(aᵢ) − ψ(Σa) are given means of log xᵢ: fixed points, then Newton's method.

    Source: Minka (2000), *Estimating a Dirichlet distribution*.
    """
    t = jax.lax.stop_gradient(means)
    digamma, trigamma = special.digamma, lambda a: special.polygamma(1, a)
    total = lambda a: jnp.sum(a, axis=-1, keepdims=True)

    def inverse_digamma(y):
        start = jnp.where(y >= -2.22, jnp.exp(y) + 0.5, -1 / (y + np.euler_gamma))
        return jax.lax.fori_loop(0, 5, lambda _, a: a - (digamma(a) - y) / trigamma(a), start)

    def step(a, t):
        # The Hessian is a diagonal plus a constant: Sherman and Morrison's formula.
        gap, diagonal, constant = digamma(total(a)) - digamma(a) + t, trigamma(a), trigamma(total(a))
        common = total(gap / diagonal) / (1 / constant - total(1 / diagonal))
        return (gap + common) / diagonal

    a = jax.lax.fori_loop(0, 30, lambda _, a: inverse_digamma(digamma(total(a)) + t), jnp.ones_like(t))
    a = jax.lax.fori_loop(0, 12, lambda _, a: jnp.maximum(a + step(a, t), a / 4), a)
    a = jax.lax.stop_gradient(a)
    return _implicit(a, step(a, means))


def _implicit(root: Array, step: Array) -> Array:
    """One step of Newton's from a root: nothing to the value, all to the derivative."""
    return root + step - jax.lax.stop_gradient(step)


def betaln(a: Array, b: Array) -> Array:
    """log B(a, b). JAX's own is good to 1e-7 alone, in float64 too."""
    return special.gammaln(a) + special.gammaln(b) - special.gammaln(a + b)


@pytree
class Beta(Continuous):
    """The beta distribution, density ∝ x^(concentration1 − 1) · (1 − x)^(concentration0 − 1) on (0, 1).

    Example:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.Beta(2., 3.)).item()
        -0.2349
    """

    smooth_transport = False

    concentration1: Float[Array, "*family"]
    concentration0: Float[Array, "*family"]

    def __post_init__(self):
        parameters(self, concentration1=positive, concentration0=positive)

    @property
    def _mean(self):
        return self.concentration1 / (self.concentration1 + self.concentration0)

    @property
    def _variance(self):
        return self._mean * (1 - self._mean) / (self.concentration1 + self.concentration0 + 1)

    @property
    def centre(self):
        return self._mean

    @property
    def width(self):
        return jnp.sqrt(self._variance)

    @property
    def support(self):
        return 0.0, 1.0

    def log_density_of(self, x):
        a, b = self.concentration1, self.concentration0
        inside = (x > 0) & (x < 1)
        x = jnp.where(inside, x, 0.5)
        log_density = special.xlogy(a - 1, x) + special.xlog1py(b - 1, -x) - betaln(a, b)
        return jnp.where(inside, log_density, -jnp.inf)

    def sample(self, key, shape=()):
        a, b = (jnp.broadcast_to(c, self.shape) for c in (self.concentration1, self.concentration0))
        return jax.random.beta(key, a, b, (*shape, *self.shape), a.dtype)

    def cdf(self, x):
        return special.betainc(self.concentration1, self.concentration0, jnp.clip(x, 0, 1))

    def survival(self, x):
        return special.betainc(self.concentration0, self.concentration1, 1 - jnp.clip(x, 0, 1))

    fixed_rule = False

    def gauss(self, nodes):
        a, b = (jnp.broadcast_to(c, self.shape)[..., 0] for c in (self.concentration1, self.concentration0))
        return _carried(self, *gauss.jacobi(a, b, nodes))

    @property
    def natural(self):
        a, b = self.concentration1, self.concentration0
        return Natural((a - 1, b - 1), (Logarithm(), LogarithmOfRest()), betaln(a, b))

    def closest_to(self, P):
        P = P.normalize()
        means = jnp.stack([P.expect(Logarithm()), P.expect(LogarithmOfRest())], axis=-1)
        return Beta(*jnp.moveaxis(dirichlet_concentration(means), -1, 0))

    def moment(self, statistic):
        a, b = self.concentration1, self.concentration0
        log_sum = special.digamma(a + b)
        others = dict(Logarithm=special.digamma(a) - log_sum, LogarithmOfRest=special.digamma(b) - log_sum)
        return moments(self._mean, self._variance, **others)(statistic)


@pytree
class LogNormal(Continuous):
    """The law of exp(N(loc, scale²)).

    Example:
        >>> import measure_xent as mx
        >>> mx.LogNormal(0., 1.).expect(lambda x: x).item()  # exp(1/2)
        1.6487
    """

    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        parameters(self, scale=positive)

    @property
    def _log(self):
        return Normal(self.loc, self.scale)

    @property
    def centre(self):
        return jnp.exp(self.loc)

    @property
    def width(self):
        return jnp.exp(self.loc)

    @property
    def support(self):
        return 0.0, float("inf")

    def log_density_of(self, x):
        log_x = jnp.log(jnp.where(x > 0, x, 1))
        return jnp.where(x > 0, self._log.log_density_of(log_x) - log_x, -jnp.inf)

    def sample(self, key, shape=()):
        return jnp.exp(self._log.sample(key, shape))

    def cdf(self, x):
        return jnp.where(x > 0, self._log.cdf(jnp.log(jnp.where(x > 0, x, 1))), 0)

    def survival(self, x):
        return jnp.where(x > 0, self._log.survival(jnp.log(jnp.where(x > 0, x, 1))), 1)

    def quantile(self, u):
        return jnp.exp(self._log.quantile(u))

    def gauss(self, nodes):
        x, w, tail = _scaled(gauss.hermite(nodes), self.loc, self.scale)
        return _carried(self, jnp.exp(x), w, tail)

    @property
    def natural(self):
        precision = 1 / self.scale**2
        log_partition = self.loc**2 * precision / 2 + jnp.log(self.scale) + LOG_2PI / 2
        statistics = Logarithm(), SquaredLogDeviation(jnp.zeros(()))
        return Natural((self.loc * precision, -precision / 2), statistics, log_partition, (-Logarithm(),))

    def closest_to(self, P):
        P = P.normalize()
        loc = P.expect(Logarithm())
        return LogNormal(loc, jnp.sqrt(P.expect(SquaredLogDeviation(loc))))

    @property
    def affine(self):
        constant = jnp.log(self.scale) + LOG_2PI / 2
        return (-0.5 / self.scale**2) * SquaredLogDeviation(self.loc) - Logarithm() - constant

    def moment(self, statistic):
        variance = jnp.expm1(self.scale**2) * jnp.exp(2 * self.loc + self.scale**2)
        deviation = lambda statistic: self.scale**2 + (self.loc - statistic.c) ** 2
        mean = jnp.exp(self.loc + self.scale**2 / 2)
        return moments(mean, variance, Logarithm=self.loc, SquaredLogDeviation=deviation)(statistic)


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

    Example:
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
