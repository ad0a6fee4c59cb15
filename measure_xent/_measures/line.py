"""Named families on the whole line. Names and parameters are numpyro's; samplers and special functions are JAX's."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array, Float

from .._kernels.checks import parameters, positive
from .._pytree import pytree, replaced
from .._strict import custom_jvp
from . import gauss
from .exponential_family import Natural
from .laws import Continuous
from .special import HALF_LOG_2PI, half_line, log1p_over, stirling
from .statistics import AbsoluteDeviation, Identity, SquaredDeviation, moments

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
        return self.moved(self.loc), self.loc

    def moved(self, c: Any) -> "LocationScale":
        """The law of x − c."""
        return replaced(self, loc=self.loc - c)

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


@pytree
class Normal(LocationScale):
    """The normal distribution N(loc, scale²).

    Raises:
        TypeError, ValueError: parameters that are not numbers, or do not broadcast. scale > 0 is a chex value assertion.

    Examples:
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

    def log_rise(self, x, c, gap):
        del x
        return -gap / self.scale * ((c - self.loc) + gap / 2) / self.scale

    def gauss(self, nodes):
        return gauss.carried(self, *gauss.scaled(gauss.hermite(nodes), self.loc, self.scale))

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

    Examples:
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
        return gauss.carried(self, *gauss.scaled(gauss.two_sided(gauss.laguerre(nodes // 2)), self.loc, self.scale))

    @property
    def natural(self):
        return Natural((-1 / self.scale,), (AbsoluteDeviation(self.loc),), jnp.log(2 * self.scale))

    def closest_to(self, P):
        loc = jnp.asarray(P.median, float)
        return Laplace(loc, P.normalize().expect(AbsoluteDeviation(loc)))

    def moment(self, statistic):
        def absolute(statistic):
            gap = jnp.abs(self.loc - statistic.c)
            return gap + self.scale * jnp.exp(-gap / self.scale)

        return moments(self.loc, 2 * self.scale**2, AbsoluteDeviation=absolute)(statistic)


@pytree
class Cauchy(LocationScale):
    """The Cauchy distribution. It has no mean, and says so: NaN.

    Examples:
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
    """Student's t distribution with df degrees of freedom, moved and scaled; with df = ∞ the normal distribution.

    Examples:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.StudentT(3.)).item()
        1.7735
    """

    df: Float[Array, "*family"]
    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        parameters(self, df=positive, scale=positive)

    def standard_log_density(self, z):
        return _student_log_density(z, self.df)

    def standard_sample(self, key, shape):
        df = jnp.broadcast_to(self.df, self.shape)
        one, two = jax.random.split(key)
        half = jnp.where(jnp.isinf(df), 1, df) / 2
        log_share = jax.random.loggamma(two, half, shape, df.dtype) - jnp.log(half)
        return jax.random.normal(one, shape, df.dtype) * jnp.exp(-jnp.where(jnp.isinf(df), 0, log_share) / 2)

    def standard_cdf(self, z):
        above = _student_survival(*jnp.broadcast_arrays(jnp.abs(z), self.df))
        return jnp.where(z < 0, above, 1 - above)


def _student_log_density(z, df):
    root = jnp.sqrt(df)
    near = jnp.abs(z) < root  # and everywhere for df = ∞, the normal distribution
    close, far = jnp.where(near, z, 0), jnp.where(near, 2, jnp.abs(z) / root)
    # (df + 1)/2 · log(1 + z²/df), where z² would overflow too.
    tail = (1 + 1 / df) * close**2 / 2 * log1p_over(close**2 / df)
    tail = jnp.where(near, tail, (df + 1) / 2 * (2 * jnp.log(far) + jnp.log1p((1 / far) ** 2)))
    scale = stirling(df / 2 + 0.5) - stirling(df / 2) + (log1p_over(1 / df) - 1) / 2
    return scale - HALF_LOG_2PI - tail


@custom_jvp
def _student_survival(z, df):
    """P(z, ∞) for z ≥ 0: p(z) (1 + z²/df) ∫ e^(−r) dr / √(z² + df (1 − e^(−2r/df))), by x² = z² + (df + z²)(e^(2r/df) − 1)."""
    z, (r, w) = jnp.minimum(z, 1e18), half_line(z)
    ratio = 2 * r / df
    grown = jnp.where(ratio == 0, 1, -jnp.expm1(-ratio) / jnp.where(ratio == 0, 1, ratio))
    integral = (w * jnp.exp(-r) / jnp.sqrt(z**2 + 2 * r * grown)).sum(0)
    return jnp.exp(_student_log_density(z, df)) * (1 + z**2 / df) * integral


_student_survival.defjvps(
    lambda dz, _, z, df: -jnp.exp(_student_log_density(z, df)) * dz,
    lambda ddf, _, z, df: jax.jvp(lambda df: _student_survival.fun(z, df), (df,), (ddf,))[1],
)
