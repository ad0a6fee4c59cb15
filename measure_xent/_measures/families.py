"""The named families. Names, parameters and their order are numpyro's; densities, samplers and special functions are JAX's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special, stats
from jaxtyping import Array, Float

from .._pytree import pytree, set_fields
from .checks import check_values, real_array
from .laws import Continuous, Integers, Statistic

# ---- statistics


@pytree
class Identity(Statistic):
    """x ↦ x."""

    def __call__(self, *x):
        return jnp.asarray(x[0], float)


@pytree
class SquaredDeviation(Statistic):
    """x ↦ (x − c)²."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return (x[0] - self.c) ** 2

    @property
    def shape(self):
        return jnp.shape(self.c)


@pytree
class AbsoluteDeviation(Statistic):
    """x ↦ |x − c|."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return jnp.abs(x[0] - self.c)

    @property
    def shape(self):
        return jnp.shape(self.c)

    @property
    def breaks(self):
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
class SquaredLogDeviation(Statistic):
    """x ↦ (log x − c)²."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return (jnp.log(x[0]) - self.c) ** 2

    @property
    def shape(self):
        return jnp.shape(self.c)


@pytree
class LogFactorial(Statistic):
    """x ↦ log x!."""

    def __call__(self, *x):
        return special.gammaln(x[0] + 1.0)


def _parameters(law: Any, **conditions: Callable) -> None:
    """Makes a law's fields arrays that broadcast, and asserts what their values have to be."""
    name = type(law).__name__
    fields = {n: real_array(f"{name}({n})", x, floating=True) for n, x in law.__dict__.items() if x is not None}
    try:
        jnp.broadcast_shapes(*(x.shape for x in fields.values()))
    except ValueError:
        shapes = ", ".join(f"{n} of shape {x.shape}" for n, x in fields.items())
        raise ValueError(f"{name}: {shapes} do not broadcast") from None
    for n, condition in conditions.items():
        check_values(jnp.all(condition(fields[n])), f"{name}({n}): {condition.__name__.replace('_', ' ')}")
    set_fields(law, **fields)


def positive(x):
    return x > 0


def a_probability(x):
    return (x >= 0) & (x <= 1)


def _moments(mean: Any, variance: Any, **others: Any) -> Callable[[Statistic], Any]:
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


LOG_2PI = 1.8378770664093453


@pytree
class Normal(Continuous):
    """The normal distribution N(loc, scale²).

    Example:
        >>> import measure_xent as mx
        >>> P, Q = mx.Normal(0., 1.), mx.Laplace(0., 2.)
        >>> mx.cross_entropy(P, Q).item(), mx.entropy(P).item()
        (1.7852, 1.4189)
    """

    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        _parameters(self, scale=positive)

    @property
    def width(self):
        return self.scale

    @property
    def breaks(self):
        return (self.loc,)

    def centred(self):
        return Normal(jnp.zeros(()), self.scale), self.loc

    def log_density_of(self, x):
        return stats.norm.logpdf(x, self.loc, self.scale)

    def sample(self, key, shape=()):
        return self.loc + self.scale * jax.random.normal(key, (*shape, *self.shape), self.scale.dtype)

    @property
    def affine(self):
        return (-0.5 / self.scale**2) * SquaredDeviation(self.loc) - (jnp.log(self.scale) + LOG_2PI / 2)

    def moment(self, statistic):
        def folded(statistic):
            gap = self.loc - statistic.c
            z = gap / self.scale
            return self.scale * jnp.sqrt(2 / jnp.pi) * jnp.exp(-(z**2) / 2) + gap * special.erf(z / jnp.sqrt(2.0))

        return _moments(self.loc, self.scale**2, AbsoluteDeviation=folded)(statistic)


@pytree
class Laplace(Continuous):
    """The Laplace distribution, density exp(−|x − loc| / scale) / (2 scale).

    Example:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.Laplace(0., 1.)).item()  # 1 + log 2
        1.6931
    """

    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        _parameters(self, scale=positive)

    @property
    def width(self):
        return self.scale

    @property
    def breaks(self):
        return (self.loc,)

    def centred(self):
        return Laplace(jnp.zeros(()), self.scale), self.loc

    def log_density_of(self, x):
        return stats.laplace.logpdf(x, self.loc, self.scale)

    def sample(self, key, shape=()):
        return self.loc + self.scale * jax.random.laplace(key, (*shape, *self.shape), self.scale.dtype)

    @property
    def affine(self):
        return (-1 / self.scale) * AbsoluteDeviation(self.loc) - jnp.log(2 * self.scale)

    def moment(self, statistic):
        def absolute(statistic):
            gap = jnp.abs(self.loc - statistic.c)
            return gap + self.scale * jnp.exp(-gap / self.scale)

        return _moments(self.loc, 2 * self.scale**2, AbsoluteDeviation=absolute)(statistic)


@pytree
class Uniform(Continuous):
    """The uniform distribution on [low, high].

    Example:
        >>> import measure_xent as mx
        >>> mx.entropy(0.5 * mx.Uniform(0., 1.) + 0.5 * mx.Uniform(2., 3.)).item()  # log 2
        0.6931
    """

    low: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    high: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        _parameters(self)
        check_values(jnp.all(jnp.asarray(self.low) < self.high), "Uniform(high): above low")

    @property
    def width(self):
        return self.high - self.low

    @property
    def support(self):
        return self.low, self.high

    def log_density_of(self, x):
        inside = (x >= self.low) & (x <= self.high)
        return jnp.where(inside, -jnp.log(self.high - self.low), -jnp.inf)

    def sample(self, key, shape=()):
        return jax.random.uniform(key, (*shape, *self.shape), self.low.dtype, self.low, self.high)

    @property
    def affine(self):
        return Identity() * 0.0 - jnp.log(self.high - self.low)

    def moment(self, statistic):
        return _moments((self.low + self.high) / 2, (self.high - self.low) ** 2 / 12)(statistic)


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
        _parameters(self, rate=positive)

    @property
    def width(self):
        return 1 / self.rate

    @property
    def support(self):
        return jnp.zeros(()), float("inf")

    def log_density_of(self, x):
        return jnp.where(x >= 0, jnp.log(self.rate) - self.rate * x, -jnp.inf)

    def sample(self, key, shape=()):
        return jax.random.exponential(key, (*shape, *self.shape), self.rate.dtype) / self.rate

    @property
    def affine(self):
        return (-self.rate) * Identity() + jnp.log(self.rate)

    def moment(self, statistic):
        mean = 1 / self.rate
        return _moments(mean, mean**2, Logarithm=-jnp.euler_gamma - jnp.log(self.rate))(statistic)


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
        _parameters(self, concentration=positive, rate=positive)

    @property
    def width(self):
        return (1 + jnp.sqrt(self.concentration)) / self.rate

    @property
    def breaks(self):
        return (self.concentration / self.rate,)

    @property
    def support(self):
        return jnp.zeros(()), float("inf")

    def log_density_of(self, x):
        a, r = self.concentration, self.rate
        log_density = special.xlogy(a - 1, jnp.where(x > 0, x, 1)) - r * x + a * jnp.log(r) - special.gammaln(a)
        return jnp.where(x > 0, log_density, -jnp.inf)

    def sample(self, key, shape=()):
        a = jnp.broadcast_to(self.concentration, self.shape)
        return jax.random.gamma(key, a, (*shape, *self.shape), a.dtype) / self.rate

    @property
    def affine(self):
        a, r = self.concentration, self.rate
        return (a - 1) * Logarithm() - r * Identity() + (a * jnp.log(r) - special.gammaln(a))

    def moment(self, statistic):
        a, r = self.concentration, self.rate
        return _moments(a / r, a / r**2, Logarithm=special.digamma(a) - jnp.log(r))(statistic)


def _betaln(a, b):
    return (
        special.gammaln(a) + special.gammaln(b) - special.gammaln(a + b)
    )  # JAX's own is good to 1e-7 alone, in float64 too


@pytree
class Beta(Continuous):
    """The beta distribution, density ∝ x^(concentration1 − 1) · (1 − x)^(concentration0 − 1) on (0, 1).

    Example:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.Beta(2., 3.)).item()
        -0.2349
    """

    concentration1: Float[Array, "*family"]
    concentration0: Float[Array, "*family"]

    def __post_init__(self):
        _parameters(self, concentration1=positive, concentration0=positive)

    @property
    def width(self):
        return jnp.ones(self.shape)

    @property
    def breaks(self):
        return (self.concentration1 / (self.concentration1 + self.concentration0),)

    @property
    def support(self):
        return jnp.zeros(()), jnp.ones(())

    def log_density_of(self, x):
        a, b = self.concentration1, self.concentration0
        inside = (x > 0) & (x < 1)
        x = jnp.where(inside, x, 0.5)
        log_density = special.xlogy(a - 1, x) + special.xlog1py(b - 1, -x) - _betaln(a, b)
        return jnp.where(inside, log_density, -jnp.inf)

    def sample(self, key, shape=()):
        a, b = (jnp.broadcast_to(c, self.shape) for c in (self.concentration1, self.concentration0))
        return jax.random.beta(key, a, b, (*shape, *self.shape), a.dtype)

    @property
    def affine(self):
        a, b = self.concentration1, self.concentration0
        return (a - 1) * Logarithm() + (b - 1) * LogarithmOfRest() - _betaln(a, b)

    def moment(self, statistic):
        a, b = self.concentration1, self.concentration0
        log_sum = special.digamma(a + b)
        others = dict(Logarithm=special.digamma(a) - log_sum, LogarithmOfRest=special.digamma(b) - log_sum)
        return _moments(a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1)), **others)(statistic)


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
        _parameters(self, scale=positive)

    @property
    def width(self):
        return jnp.exp(self.loc + self.scale)

    @property
    def breaks(self):
        return (jnp.exp(self.loc),)

    @property
    def support(self):
        return jnp.zeros(()), float("inf")

    def log_density_of(self, x):
        log_x = jnp.log(jnp.where(x > 0, x, 1))
        return jnp.where(x > 0, stats.norm.logpdf(log_x, self.loc, self.scale) - log_x, -jnp.inf)

    def sample(self, key, shape=()):
        return jnp.exp(self.loc + self.scale * jax.random.normal(key, (*shape, *self.shape), self.scale.dtype))

    @property
    def affine(self):
        constant = jnp.log(self.scale) + LOG_2PI / 2
        return (-0.5 / self.scale**2) * SquaredLogDeviation(self.loc) - Logarithm() - constant

    def moment(self, statistic):
        mean, variance = (
            jnp.exp(self.loc + self.scale**2 / 2),
            jnp.expm1(self.scale**2) * jnp.exp(2 * self.loc + self.scale**2),
        )
        deviation = lambda statistic: self.scale**2 + (self.loc - statistic.c) ** 2
        return _moments(mean, variance, Logarithm=self.loc, SquaredLogDeviation=deviation)(statistic)


@pytree
class StudentT(Continuous):
    """Student's t distribution with df degrees of freedom, moved and scaled.

    Example:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.StudentT(3.)).item()
        1.7735
    """

    df: Float[Array, "*family"]
    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        _parameters(self, df=positive, scale=positive)

    @property
    def width(self):
        return self.scale

    @property
    def breaks(self):
        return (self.loc,)

    def centred(self):
        return StudentT(self.df, jnp.zeros(()), self.scale), self.loc

    def log_density_of(self, x):
        return stats.t.logpdf(x, self.df, self.loc, self.scale)

    def sample(self, key, shape=()):
        df = jnp.broadcast_to(self.df, self.shape)
        return self.loc + self.scale * jax.random.t(key, df, (*shape, *self.shape), df.dtype)


@pytree
class Cauchy(Continuous):
    """The Cauchy distribution. It has no mean, and says so: NaN.

    Example:
        >>> import measure_xent as mx
        >>> mx.Cauchy(0., 1.).expect(lambda x: x).item(), mx.entropy(mx.Cauchy(0., 1.)).item()  # none, log 4π
        (nan, 2.5310)
    """

    loc: Float[Array, "*family"] = 0.0  # type: ignore[assignment]
    scale: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        _parameters(self, scale=positive)

    @property
    def width(self):
        return self.scale

    @property
    def breaks(self):
        return (self.loc,)

    def centred(self):
        return Cauchy(jnp.zeros(()), self.scale), self.loc

    def log_density_of(self, x):
        z = (x - self.loc) / self.scale
        # log(1 + z²), where z² would overflow too.
        return -jnp.logaddexp(0.0, 2 * jnp.log(jnp.abs(jnp.where(z == 0, 1e-30, z)))) - jnp.log(jnp.pi * self.scale)

    def sample(self, key, shape=()):
        return self.loc + self.scale * jax.random.cauchy(key, (*shape, *self.shape), self.scale.dtype)


@pytree
class Poisson(Integers):
    """The Poisson distribution on 0, 1, 2, …

    Example:
        >>> import measure_xent as mx
        >>> mx.kl_divergence(mx.Poisson(2.), mx.Poisson(1.)).item()  # 2 log 2 − 1
        0.3863
    """

    rate: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        _parameters(self, rate=positive)

    @property
    def mean(self):
        return self.rate

    @property
    def variance(self):
        return self.rate

    def log_density_of(self, x):
        return stats.poisson.logpmf(x, self.rate)

    def sample(self, key, shape=()):
        return jax.random.poisson(key, self.rate, (*shape, *self.shape))

    @property
    def affine(self):
        return jnp.log(self.rate) * Identity() - LogFactorial() - self.rate

    def moment(self, statistic):
        return _moments(self.mean, self.variance)(statistic)


@pytree
class Geometric(Integers):
    """The number of failures before the first success, on 0, 1, 2, …

    Example:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.Geometric(0.5)).item()  # 2 log 2
        1.3863
    """

    probs: Float[Array, "*family"]

    def __post_init__(self):
        _parameters(self, probs=a_probability)

    @property
    def mean(self):
        return (1 - self.probs) / self.probs

    @property
    def variance(self):
        return (1 - self.probs) / self.probs**2

    def log_density_of(self, x):
        whole = (x >= 0) & (x == jnp.floor(x))
        return jnp.where(whole, special.xlog1py(x, -self.probs) + jnp.log(self.probs), -jnp.inf)

    def sample(self, key, shape=()):
        return jax.random.geometric(key, self.probs, (*shape, *self.shape)) - 1

    @property
    def affine(self):
        return jnp.log1p(-self.probs) * Identity() + jnp.log(self.probs)

    def moment(self, statistic):
        return _moments(self.mean, self.variance)(statistic)
