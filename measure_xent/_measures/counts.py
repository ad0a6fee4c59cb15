"""Named families on the integers 0, 1, 2, …"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import special
from jaxtyping import Array, Float

from .._kernels.checks import a_probability, check_values, parameters, positive
from .._kernels.cumulative import without_derivative
from .._pytree import pytree
from .exponential_family import Natural
from .laws import Integers
from .special import factorial_rest, tilt, whole_power, x_log1p
from .statistics import Exponent, Identity, LogFactorial, moments

# At the end of a parameter's range, where only one count has mass, the logarithms of the others' masses are −∞ and have no
# derivatives. The masses have: beside those of another parameter they are powers of it.


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
        parameters(self, rate=not_negative)

    @property
    def mean(self):
        return self.rate

    @property
    def variance(self):
        return self.rate

    def log_density_of(self, x):
        return self._log_density(x, self.rate)

    def _log_density(self, x, rate):
        x = jnp.asarray(x, float)
        whole = (x >= 0) & (x == jnp.floor(x))
        x = jnp.where(whole, x, 0)
        return jnp.where(whole, tilt(x, rate, 1) - factorial_rest(x), -jnp.inf)

    def density_of(self, x):
        at_end = self.rate == 0
        rate, end = jnp.where(at_end, 1, self.rate), jnp.where(at_end, self.rate, 1)
        return jnp.exp(self._log_density(x, rate) + 1 - end) * whole_power(end, x)

    def sample(self, key, shape=()):
        return jax.random.poisson(key, self.rate, (*shape, *self.shape), int)

    def cdf(self, x):
        return jnp.where(x < 0, 0, special.gammaincc(jnp.floor(jnp.maximum(x, 0)) + 1, self.rate))

    @property
    def natural(self):
        return Natural((jnp.log(self.rate),), (Identity(),), self.rate, (-LogFactorial(),))

    @property
    def affine(self):
        return None  # E log x! has no closed form, and nearly cancels

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
        x = jnp.where(whole, x, 0)
        return jnp.where(whole, x_log1p(x, -self.probs) + jnp.log(self.probs), -jnp.inf)

    def density_of(self, x):
        at_end = self.probs == 1
        probs, end = jnp.where(at_end, 0.5, self.probs), jnp.where(at_end, self.probs, 0.5)
        return jnp.exp(x_log1p(x, -probs)) * self.probs * whole_power((1 - end) / 0.5, x)

    def sample(self, key, shape=()):
        return jax.random.geometric(key, self.probs, (*shape, *self.shape)) - 1

    def cdf(self, x):
        return jnp.where(x < 0, 0, -jnp.expm1((jnp.floor(jnp.maximum(x, 0)) + 1) * jnp.log1p(-self.probs)))

    @property
    def natural(self):
        return Natural((jnp.log1p(-self.probs),), (Identity(),), -jnp.log(self.probs))

    @property
    def affine(self):
        return Exponent(-self.probs) + jnp.log(self.probs)  # 0 · log 0 = 0

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
        return self._log_density(x, self.probs)

    def _log_density(self, x, probs):
        n, x = self.total_count, jnp.asarray(x, float)
        inside = (x >= 0) & (x <= n) & (x == jnp.floor(x))
        x = jnp.where(inside, x, 0)
        gap = n * probs - x  # and less that of the failures
        tilts = tilt(x, probs, n, 0, gap) + tilt(n - x, 1 - probs, n, 0, -gap)
        rest = factorial_rest(n) - factorial_rest(n - x) - factorial_rest(x)
        return jnp.where(inside, tilts + rest, -jnp.inf)

    def density_of(self, x):
        n, at_end = self.total_count, (self.probs == 0) | (self.probs == 1)
        one = 1 / jnp.maximum(n, 2)  # about one success, or failure
        other = jnp.where(self.probs == 1, 1 - one, one)
        probs, end = jnp.where(at_end, other, self.probs), jnp.where(at_end, self.probs, other)
        k = jnp.clip(x, 0, n)
        powers = whole_power(end / other, k) * whole_power((1 - end) / (1 - other), n - k)
        return jnp.exp(self._log_density(x, probs)) * powers

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


@pytree
class NegativeBinomial(Integers):
    """The number of successes, each of probability probs, before total_count failures; numpyro's NegativeBinomialProbs.

    ``total_count`` need not be whole: the law is Poisson's, of a rate of Gamma(total_count, 1 / probs − 1).

    Examples:
        >>> import measure_xent as mx
        >>> P = mx.NegativeBinomial(2., 0.75)
        >>> P.mean.item(), P.variance.item()
        (6.0, 24.0)
    """

    total_count: Float[Array, "*family"]
    probs: Float[Array, "*family"]

    def __post_init__(self):
        parameters(self, total_count=positive, probs=a_probability)

    @property
    def mean(self):
        return self.total_count * self.probs / (1 - self.probs)

    @property
    def variance(self):
        return self.mean / (1 - self.probs)

    def _last_fails(self, x):
        """The law of successes among x + total_count trials, and the share of which the last is a failure."""
        x = jnp.maximum(jnp.asarray(x, float), 0)
        n = x + self.total_count
        return Binomial(n, self.probs), self.total_count / n

    def log_density_of(self, x):
        trials, share = self._last_fails(x)
        return trials.log_density_of(x) + jnp.log(share)

    def density_of(self, x):
        trials, share = self._last_fails(x)
        return trials.density_of(x) * share

    def sample(self, key, shape=()):
        rate, count = jax.random.split(key)
        r = jnp.broadcast_to(self.total_count, self.shape)
        rates = jax.random.gamma(rate, r, (*shape, *self.shape), r.dtype) * self.probs / (1 - self.probs)
        return jax.random.poisson(count, rates, dtype=int)

    def cdf(self, x):
        above = self.survival(x)
        inside = special.betainc(self.total_count, jnp.floor(jnp.maximum(x, 0)) + 1, 1 - self.probs)
        # 1 − probs is rounded, which as many trials multiply.
        return jnp.where(x < 0, 0, jnp.where(above < 0.99, 1 - above, inside))

    def survival(self, x):
        inside = special.betainc(jnp.floor(jnp.maximum(x, 0)) + 1, self.total_count, self.probs)
        return jnp.where(x < 0, 1, inside)

    def moment(self, statistic):
        return moments(self.mean, self.variance)(statistic)


@pytree
class Hypergeometric(Integers):
    """The number of successes among draws without replacement; scipy's hypergeom(M=population, n=successes, N=draws).

    Examples:
        >>> import measure_xent as mx
        >>> hand = mx.Hypergeometric(52, 4, 5)                          # the aces among five cards
        >>> hand.expect(lambda k: k >= 1).item(), hand.mean.item()
        (0.34116, 0.384615)
    """

    population: Float[Array, "*family"]
    successes: Float[Array, "*family"]
    draws: Float[Array, "*family"]

    def __post_init__(self):
        parameters(self, population=positive, successes=not_negative, draws=not_negative)
        for name in ("successes", "draws"):
            within = jnp.all(getattr(self, name) <= self.population)
            check_values(within, f"Hypergeometric({name}): at most the population")

    @property
    def support(self):
        return 0.0, jnp.minimum(self.successes, self.draws)

    @property
    def mean(self):
        return self.draws * (self.successes / self.population)

    @property
    def variance(self):
        others = jnp.maximum(self.population - 1, 1)
        left = (self.population - self.draws) / others
        return self.mean * (1 - self.successes / self.population) * left

    def log_density_of(self, x):
        # Of the draws, p of all, as many successes are drawn as if each of the population were with probability p.
        p = (self.draws + 0.5) / (self.population + 1)
        of = lambda n, k: Binomial(n, p).log_density_of(k)
        failures = self.draws - jnp.asarray(x, float)
        inside = (failures >= 0) & (failures <= self.population - self.successes)
        value = of(self.successes, x) + of(self.population - self.successes, failures) - of(self.population, self.draws)
        return jnp.where(inside, value, -jnp.inf)

    def sample(self, key, shape=()):
        tiny = jnp.finfo(jnp.result_type(float)).tiny
        return self.quantile(jax.random.uniform(key, (*shape, *self.shape), minval=tiny))

    def cdf(self, x):
        return self._both_tails(x)[0]

    def survival(self, x):
        return self._both_tails(x)[1]

    def _both_tails(self, x):
        """(mass up to x, mass above), the smaller one summed from x outwards, where its terms fall."""
        n, K, rest = self.draws, self.successes, self.population - self.successes
        x = jnp.floor(jnp.asarray(x, float))
        left = x < self.mean
        k = jnp.clip(jnp.where(left, x, x + 1), -1, self.support[1] + 1)
        ratio_up = lambda k: (K - k) * (n - k) / ((k + 1) * jnp.maximum(rest - n + k + 1, 1))
        ratio_down = lambda k: k * (rest - n + k) / ((K - k + 1) * (n - k + 1))

        def add(state):
            k, term, total = state
            ratio = jnp.where(left, ratio_down(k), ratio_up(k))
            term = term * jnp.maximum(ratio, 0)
            return jnp.where(left, k - 1, k + 1), term, total + term

        first = jnp.exp(self.log_density_of(k))
        eps = jnp.finfo(first.dtype).eps
        start = k, first, first
        _, _, tail = lax.while_loop(lambda s: jnp.any(s[1] > eps * s[2]), add, jax.tree.map(lax.stop_gradient, start))
        below, above = jnp.where(left, tail, 1 - tail), jnp.where(left, 1 - tail, tail)
        return tuple(without_derivative(jnp.where(jnp.isnan(x), jnp.nan, t), (self, x)) for t in (below, above))

    def moment(self, statistic):
        return moments(self.mean, self.variance)(statistic)


def not_negative(x):
    return x >= 0
