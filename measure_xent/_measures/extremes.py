"""Named families of extremes: Gumbel on the line, Weibull on x ≥ 0, Pareto above its scale."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array, Float

from .._kernels.checks import parameters, positive
from .._pytree import pytree
from .laws import Continuous
from .line import LocationScale
from .statistics import moments


@pytree
class Gumbel(LocationScale):
    """The Gumbel distribution of maxima, cdf exp(−exp(−(x − loc) / scale)).

    Examples:
        >>> import measure_xent as mx
        >>> mx.Gumbel(1., 2.).mean.item()  # 1 + 2 γ
        2.15443
    """

    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def standard_log_density(self, z):
        inside = _not_far_below(z)
        return jnp.where(z == -jnp.inf, -jnp.inf, -inside - jnp.exp(-inside))

    def standard_sample(self, key, shape):
        return jax.random.gumbel(key, shape, self.scale.dtype)

    def standard_cdf(self, z):
        return jnp.exp(-jnp.exp(-_not_far_below(z)))

    def survival(self, x):
        return -jnp.expm1(-jnp.exp(-_not_far_below((x - self.loc) / self.scale)))

    def quantile(self, u):
        return self.loc - self.scale * jnp.log(-jnp.log(u))

    def moment(self, statistic):
        return moments(self.loc + np.euler_gamma * self.scale, np.pi**2 / 6 * self.scale**2)(statistic)


def _not_far_below(z):
    """z, where exp(−z) is finite: below, the density is 0 and so are its derivatives."""
    return jnp.maximum(z, -0.98 * np.log(float(jnp.finfo(jnp.result_type(z, float)).max)))


@pytree
class Weibull(Continuous):
    """The Weibull distribution, survival exp(−(x / scale)^concentration) on x ≥ 0.

    Examples:
        >>> import measure_xent as mx
        >>> mx.Weibull(2., 1.).survival(2.).item()  # 1 / e
        0.36788
    """

    scale: Float[Array, "*family"]
    concentration: Float[Array, "*family"]

    def __post_init__(self):
        parameters(self, scale=positive, concentration=positive)

    @property
    def centre(self):
        return self.scale

    @property
    def width(self):
        return self.scale / jnp.maximum(self.concentration, 1)

    @property
    def support(self):
        return 0.0, float("inf")

    finite_derivatives = False  # at 0 it may be infinite

    def _hazard(self, x):
        """(x / scale)^concentration, of x > 0, and the logarithm of x / scale."""
        log_ratio = jnp.log(jnp.where(x <= 0, self.scale, x) / self.scale)
        return jnp.where(x <= 0, 0, jnp.exp(self.concentration * log_ratio)), log_ratio

    def log_density_of(self, x):
        k = self.concentration
        hazard, log_ratio = self._hazard(x)
        at_zero = jnp.where(k == 1, 0, jnp.where(k < 1, jnp.inf, -jnp.inf))
        rise = jnp.where(x == 0, at_zero, (k - 1) * jnp.where(x == jnp.inf, 0, log_ratio))
        return jnp.where(x >= 0, jnp.log(k / self.scale) + rise - hazard, -jnp.inf)

    def cdf(self, x):
        return -jnp.expm1(-self._hazard(x)[0])

    def survival(self, x):
        return jnp.exp(-self._hazard(x)[0])

    def quantile(self, u):
        return self.scale * (-jnp.log1p(-u)) ** (1 / self.concentration)

    def moment(self, statistic):
        of = lambda n: special.gammaln(1 + n / self.concentration)
        mean = self.scale * jnp.exp(of(1))
        variance = mean**2 * jnp.expm1(of(2) - 2 * of(1))
        log_mean = jnp.log(self.scale) - np.euler_gamma / self.concentration
        return moments(mean, variance, Logarithm=log_mean)(statistic)


@pytree
class Pareto(Continuous):
    """The Pareto distribution, survival (scale / x)^alpha on x ≥ scale.

    Examples:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.Pareto(1., 2.)).item()  # 3/2 − log 2
        0.80685
    """

    scale: Float[Array, "*family"]
    alpha: Float[Array, "*family"]

    def __post_init__(self):
        parameters(self, scale=positive, alpha=positive)

    @property
    def centre(self):
        return self.scale * 2 ** (1 / self.alpha)

    @property
    def width(self):
        return self.scale * jnp.expm1(jnp.minimum(1 / self.alpha, 10))

    @property
    def support(self):
        return self.scale, float("inf")

    def log_density_of(self, x):
        inside = x >= self.scale
        log_ratio = jnp.log(jnp.where(inside, x, self.scale) / self.scale)
        return jnp.where(inside, jnp.log(self.alpha / self.scale) - (self.alpha + 1) * log_ratio, -jnp.inf)

    def cdf(self, x):
        return -jnp.expm1(self._log_survival(x))

    def survival(self, x):
        return jnp.exp(self._log_survival(x))

    def _log_survival(self, x):
        return -self.alpha * jnp.log(jnp.maximum(x, self.scale) / self.scale)

    def quantile(self, u):
        return self.scale * jnp.exp(-jnp.log1p(-u) / self.alpha)

    def moment(self, statistic):
        a = self.alpha
        mean = jnp.where(a > 1, self.scale * a / jnp.where(a > 1, a - 1, 1), jnp.inf)
        some = jnp.where(a > 2, a, 3)
        variance = jnp.where(a > 2, self.scale**2 * some / ((some - 1) ** 2 * (some - 2)), jnp.inf)
        return moments(mean, variance, Logarithm=jnp.log(self.scale) + 1 / a)(statistic)
