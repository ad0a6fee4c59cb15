"""Named families on the integers 0, 1, 2, …"""

import jax
import jax.numpy as jnp
from jax.scipy import special, stats
from jaxtyping import Array, Float

from .._pytree import pytree
from .checks import a_probability, parameters, positive
from .laws import Integers, Natural
from .statistics import Identity, LogFactorial, moments


@pytree
class Poisson(Integers):
    """The Poisson distribution on 0, 1, 2, …

    Examples:
        >>> import measure_xent as mx
        >>> mx.kl_divergence(mx.Poisson(2.), mx.Poisson(1.)).item()  # 2 log 2 − 1
        0.3863
    """

    rate: Float[Array, "*family"] = 1.0  # type: ignore[assignment]

    def __post_init__(self):
        parameters(self, rate=positive)

    @property
    def mean(self):
        return self.rate

    @property
    def variance(self):
        return self.rate

    def log_density_of(self, x):
        return stats.poisson.logpmf(x, self.rate)

    def sample(self, key, shape=()):
        return jax.random.poisson(key, self.rate, (*shape, *self.shape), int)

    def cdf(self, x):
        return jnp.where(x < 0, 0, special.gammaincc(jnp.floor(jnp.maximum(x, 0)) + 1, self.rate))

    @property
    def natural(self):
        return Natural((jnp.log(self.rate),), (Identity(),), self.rate, (-LogFactorial(),))

    def closest_to(self, P):
        P = P.normalize()
        return Poisson(P.expect(Identity()))

    def moment(self, statistic):
        return moments(self.mean, self.variance)(statistic)


@pytree
class Geometric(Integers):
    """The number of failures before the first success, on 0, 1, 2, …

    Examples:
        >>> import measure_xent as mx
        >>> mx.entropy(mx.Geometric(0.5)).item()  # 2 log 2
        1.3863
    """

    probs: Float[Array, "*family"]

    def __post_init__(self):
        parameters(self, probs=a_probability)

    @property
    def mean(self):
        return (1 - self.probs) / self.probs

    @property
    def variance(self):
        return (1 - self.probs) / self.probs**2

    def log_density_of(self, x):
        x = jnp.asarray(x, float)
        whole = (x >= 0) & (x == jnp.floor(x))
        return jnp.where(whole, special.xlog1py(x, -self.probs) + jnp.log(self.probs), -jnp.inf)

    def sample(self, key, shape=()):
        return jax.random.geometric(key, self.probs, (*shape, *self.shape)) - 1

    def cdf(self, x):
        return jnp.where(x < 0, 0, -jnp.expm1((jnp.floor(jnp.maximum(x, 0)) + 1) * jnp.log1p(-self.probs)))

    @property
    def natural(self):
        return Natural((jnp.log1p(-self.probs),), (Identity(),), -jnp.log(self.probs))

    def closest_to(self, P):
        P = P.normalize()
        return Geometric(1 / (1 + P.expect(Identity())))

    def moment(self, statistic):
        return moments(self.mean, self.variance)(statistic)


@pytree
class Binomial(Integers):
    """The number of successes in total_count trials.

    Examples:
        >>> import measure_xent as mx
        >>> mx.Binomial(10, 0.3).expect(lambda k: k == 3).item()
        0.26683
    """

    total_count: Float[Array, "*family"]
    probs: Float[Array, "*family"]

    def __post_init__(self):
        parameters(self, total_count=not_negative, probs=a_probability)

    @property
    def support(self):
        return 0.0, self.total_count

    @property
    def mean(self):
        return self.total_count * self.probs

    @property
    def variance(self):
        return self.mean * (1 - self.probs)

    def log_density_of(self, x):
        n, x = self.total_count, jnp.asarray(x, float)
        inside = (x >= 0) & (x <= n) & (x == jnp.floor(x))
        x = jnp.where(inside, x, 0)
        ways = special.gammaln(n + 1) - special.gammaln(x + 1) - special.gammaln(n - x + 1)
        log_density = ways + special.xlogy(x, self.probs) + special.xlog1py(n - x, -self.probs)
        return jnp.where(inside, log_density, -jnp.inf)

    def sample(self, key, shape=()):
        return jax.random.binomial(key, self.total_count, self.probs, (*shape, *self.shape)).astype(int)

    def cdf(self, x):
        x = jnp.floor(x)
        inside = special.betainc(jnp.maximum(self.total_count - x, 1e-30), jnp.maximum(x, 0) + 1, 1 - self.probs)
        return jnp.where(x < 0, 0, jnp.where(x >= self.total_count, 1, inside))

    def moment(self, statistic):
        return moments(self.mean, self.variance)(statistic)

    def closest_to(self, P):
        P = P.normalize()
        return Binomial(self.total_count, P.expect(Identity()) / self.total_count)


def not_negative(x):
    return x >= 0
