"""Named families on x > 0, and Beta on (0, 1): exponential families in x and log x."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array, Float

from .._kernels.checks import parameters, positive
from .._pytree import pytree
from . import gauss
from .exponential_family import Natural
from .fits import dirichlet_concentration, gamma_concentration
from .laws import Continuous
from .line import LOG_2PI, Normal
from .special import factorial_rest, log_gamma, log_less_digamma, tilt
from .statistics import Identity, Logarithm, LogarithmOfRest, SquaredLogDeviation, Tilt, TiltOfRest, moments


@pytree
class Exponential(Continuous):
    """The exponential distribution, density rate · exp(−rate x) on x ≥ 0.

    Examples:
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
        return gauss.carried(self, *gauss.scaled(gauss.laguerre(nodes), 0.0, 1 / self.rate))

    @property
    def natural(self):
        return Natural((-self.rate,), (Identity(),), -jnp.log(self.rate))

    def closest_to(self, P):
        P = P.normalize()
        return Exponential(1 / P.expect(Identity()))

    def moment(self, statistic):
        mean = 1 / self.rate
        return moments(mean, mean**2, gap=jnp.asarray(np.euler_gamma, mean.dtype))(statistic)


@pytree
class Gamma(Continuous):
    """The gamma distribution, density ∝ x^(concentration − 1) · exp(−rate x) on x ≥ 0.

    Examples:
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

    finite_derivatives = False  # at 0 it may be infinite

    @property
    def _log_scale(self):
        return jnp.log(self.rate) - factorial_rest(self.concentration)

    def log_density_of(self, x):
        inside, a = x >= 0, self.concentration
        log_density = tilt(a, jnp.where(inside, x, 1), self.rate, -1) + self._log_scale
        return jnp.where(inside, log_density, -jnp.inf)

    def sample(self, key, shape=()):
        a = jnp.broadcast_to(self.concentration, self.shape)
        return jax.random.gamma(key, a, (*shape, *self.shape), a.dtype) / self.rate

    def cdf(self, x):
        return special.gammainc(self.concentration, self.rate * jnp.maximum(x, 0))

    def survival(self, x):
        return special.gammaincc(self.concentration, self.rate * jnp.maximum(x, 0))

    parameter_free_nodes = False

    def gauss(self, nodes):
        x, w, tail = gauss.gamma(jnp.broadcast_to(self.concentration, self.shape)[..., 0], nodes)
        return gauss.carried(self, x / self.rate, w, tail)

    @property
    def natural(self):
        a, r = self.concentration, self.rate
        return Natural((a - 1, -r), (Logarithm(), Identity()), log_gamma(a) - a * jnp.log(r))

    @property
    def affine(self):
        return Tilt(self.concentration, self.rate) + self._log_scale

    def closest_to(self, P):
        P = P.normalize()
        mean = P.expect(Identity())
        concentration = gamma_concentration(jnp.log(mean) - P.expect(Logarithm()))
        return Gamma(concentration, concentration / mean)

    def moment(self, statistic):
        a, r = self.concentration, self.rate
        return moments(a / r, a / r**2, gap=log_less_digamma(a))(statistic)


def log_dirichlet_scale(a: Float[Array, "*family d"], total: Any) -> Float[Array, "*family"]:
    """log of the density of Dirichlet(a) less its tilts."""
    return (a.shape[-1] - 1) * jnp.log(total) + factorial_rest(total) - factorial_rest(a).sum(-1)


@pytree
class Beta(Continuous):
    """The beta distribution, density ∝ x^(concentration1 − 1) · (1 − x)^(concentration0 − 1) on [0, 1].

    Examples:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.Beta(2., 3.)).item()
        -0.2349
    """

    smooth_transport = False

    concentration1: Float[Array, "*family"]
    concentration0: Float[Array, "*family"]

    def __post_init__(self):
        parameters(self, concentration1=positive, concentration0=positive)

    finite_derivatives = False  # at the ends it may be infinite

    @property
    def _total(self):
        return self.concentration1 + self.concentration0

    @property
    def _variance(self):
        return self.centre * (self.concentration0 / self._total) / (self._total + 1)

    @property
    def centre(self):
        return self.concentration1 / self._total

    @property
    def width(self):
        return jnp.sqrt(self._variance)

    @property
    def support(self):
        return 0.0, 1.0

    @property
    def _log_scale(self):
        both = jnp.broadcast_arrays(self.concentration1, self.concentration0)
        return log_dirichlet_scale(jnp.stack(both, axis=-1), self._total)

    def log_density_of(self, x):
        a, b, n = self.concentration1, self.concentration0, self._total
        inside = (x >= 0) & (x <= 1)
        x = jnp.where(inside, x, 0.5)
        gap = b * x - a * (1 - x)  # n x − a, and less n (1 − x) − b
        log_density = tilt(a, x, n, -1, gap) + tilt(b, 1 - x, n, -1, -gap) + self._log_scale
        return jnp.where(inside, log_density, -jnp.inf)

    def sample(self, key, shape=()):
        a, b = (jnp.broadcast_to(c, self.shape) for c in (self.concentration1, self.concentration0))
        return jax.random.beta(key, a, b, (*shape, *self.shape), a.dtype)

    def cdf(self, x):
        return special.betainc(self.concentration1, self.concentration0, jnp.clip(x, 0, 1))

    def survival(self, x):
        return special.betainc(self.concentration0, self.concentration1, 1 - jnp.clip(x, 0, 1))

    parameter_free_nodes = False

    def gauss(self, nodes):
        a, b = (jnp.broadcast_to(c, self.shape)[..., 0] for c in (self.concentration1, self.concentration0))
        return gauss.carried(self, *gauss.jacobi(a, b, nodes))

    @property
    def natural(self):
        a, b = self.concentration1, self.concentration0
        log_partition = -(a * jnp.log1p(b / a) + b * jnp.log1p(a / b)) + jnp.log(1 / a + 1 / b)
        log_partition += factorial_rest(a) + factorial_rest(b) - factorial_rest(self._total)
        return Natural((a - 1, b - 1), (Logarithm(), LogarithmOfRest()), log_partition)

    @property
    def affine(self):
        n = self._total
        return Tilt(self.concentration1, n) + TiltOfRest(self.concentration0, n) + self._log_scale

    def closest_to(self, P):
        P = P.normalize()
        means = jnp.stack([P.expect(Logarithm()), P.expect(LogarithmOfRest())], axis=-1)
        return Beta(*jnp.moveaxis(dirichlet_concentration(means), -1, 0))

    def moment(self, statistic):
        a, b, n = self.concentration1, self.concentration0, self._total
        gap = lambda c: log_less_digamma(c) - log_less_digamma(n)
        return moments(self.centre, self._variance, gap=gap(a), rest=(b / n, gap(b)))(statistic)


@pytree
class LogNormal(Continuous):
    """The law of exp(N(loc, scale²)).

    Examples:
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

    def log_rise(self, x, c, gap):
        gap = jnp.log1p(gap / c)
        return -gap * ((2 * (jnp.log(c) - self.loc) + gap) / (2 * self.scale**2) + 1)

    def sample(self, key, shape=()):
        return jnp.exp(self._log.sample(key, shape))

    def cdf(self, x):
        return jnp.where(x > 0, self._log.cdf(jnp.log(jnp.where(x > 0, x, 1))), 0)

    def survival(self, x):
        return jnp.where(x > 0, self._log.survival(jnp.log(jnp.where(x > 0, x, 1))), 1)

    def quantile(self, u):
        return jnp.exp(self._log.quantile(u))

    def gauss(self, nodes):
        x, w, tail = gauss.scaled(gauss.hermite(nodes), self.loc, self.scale)
        return gauss.carried(self, jnp.exp(x), w, tail)

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
        # Where the mean overflows its logarithm does not.
        log_mean = dict(gap=self.scale**2 / 2, Logarithm=self.loc)
        return moments(mean, variance, **log_mean, SquaredLogDeviation=deviation)(statistic)


@pytree
class HalfNormal(Continuous):
    """The law of |N(0, scale²)|.

    Examples:
        >>> import measure_xent as mx
        >>> mx.HalfNormal(1.).mean.item()  # √(2/π)
        0.79788
    """

    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        parameters(self, scale=positive)

    @property
    def _both_sides(self):
        return Normal(jnp.zeros_like(self.scale), self.scale)

    @property
    def centre(self):
        return self.scale

    @property
    def width(self):
        return self.scale

    @property
    def support(self):
        return 0.0, float("inf")

    def log_density_of(self, x):
        return jnp.where(x >= 0, self._both_sides.log_density_of(x) + np.log(2), -jnp.inf)

    def sample(self, key, shape=()):
        return jnp.abs(self._both_sides.sample(key, shape))

    def cdf(self, x):
        return special.erf(jnp.maximum(x, 0) / (np.sqrt(2) * self.scale))

    def survival(self, x):
        return special.erfc(jnp.maximum(x, 0) / (np.sqrt(2) * self.scale))

    def quantile(self, u):
        return np.sqrt(2) * self.scale * special.erfinv(u)

    def moment(self, statistic):
        variance = (1 - 2 / np.pi) * self.scale**2
        return moments(np.sqrt(2 / np.pi) * self.scale, variance)(statistic)


@pytree
class InverseGamma(Continuous):
    """The law of 1 / x for x of Gamma(concentration, rate).

    Examples:
        >>> import measure_xent as mx
        >>> mx.InverseGamma(3., 2.).mean.item()  # rate / (concentration − 1)
        1.0
    """

    concentration: Float[Array, "*family"]
    rate: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        parameters(self, concentration=positive, rate=positive)

    @property
    def _inverse_of(self):
        return Gamma(self.concentration, self.rate)

    @property
    def centre(self):
        return self.rate / (self.concentration + 1)

    @property
    def width(self):
        return self.centre / jnp.sqrt(self.concentration + 1)

    @property
    def support(self):
        return 0.0, float("inf")

    def log_density_of(self, x):
        inside = (x > 0) & (x < jnp.inf)
        inverse = 1 / jnp.where(inside, x, 1)
        return jnp.where(inside, self._inverse_of.log_density_of(inverse) + 2 * jnp.log(inverse), -jnp.inf)

    def sample(self, key, shape=()):
        return 1 / self._inverse_of.sample(key, shape)

    def cdf(self, x):
        return jnp.where(x <= 0, 0, self._inverse_of.survival(1 / jnp.where(x <= 0, 1, x)))

    def survival(self, x):
        return jnp.where(x <= 0, 1, self._inverse_of.cdf(1 / jnp.where(x <= 0, 1, x)))

    def moment(self, statistic):
        a, r = self.concentration, self.rate
        mean = jnp.where(a > 1, r / jnp.where(a > 1, a - 1, 1), jnp.inf)
        some = jnp.where(a > 2, a, 3)
        variance = jnp.where(a > 2, r**2 / ((some - 1) ** 2 * (some - 2)), jnp.inf)
        return moments(mean, variance, Logarithm=jnp.log(r) - special.digamma(a))(statistic)
