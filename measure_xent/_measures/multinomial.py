"""The law of counts of several outcomes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._forms.normal_form import NormalForm
from .._kernels.checks import check_values, real_array
from .._kernels.classes import accumulator
from .._kernels.scaled import ScaledNumber
from .._pytree import pytree, set_fields, static
from .measure import Measure
from .special import factorial_rest, tilt, whole_power

MOST = 1 << 18


@pytree
class Multinomial(Measure):
    """The counts [d] of d outcomes in total_count trials.

    Integrals are sums over all C(total_count + d − 1, d − 1) vectors of counts. Where those are too many, there are still
    density, draws, mean and covariance.

    Args:
        total_count: an int.
        probs: of the outcomes, [*family, d].

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P = mx.Multinomial(3, jnp.array([0.5, 0.25, 0.25]))
        >>> jnp.exp(P.log_density(jnp.array([1, 1, 1]))).item(), P.expect(lambda x: x.max()).item()
        (0.1875, 2.0)
    """

    total_count: int = static()
    probs: Float[Array, "*family d"]

    def __post_init__(self):
        n = self.total_count
        if not isinstance(n, int) or isinstance(n, bool) or n < 0:
            raise ValueError(f"Multinomial(total_count): an int of at least 0, got {n!r}")
        probs = real_array("Multinomial(probs)", self.probs, floating=True)
        if probs.ndim == 0:
            raise ValueError("Multinomial(probs): needs a last axis for the outcomes, got a scalar")
        set_fields(self, probs=probs.astype(accumulator(probs.dtype)))
        near_one = jnp.abs(self.probs.sum(-1) - 1) < 1e-3
        check_values(jnp.all(self.probs >= 0) & jnp.all(near_one), "Multinomial(probs): probabilities whose sum is 1")

    @property
    def shape(self):
        return self.probs.shape[:-1]

    @property
    def mass(self):
        return jnp.ones(self.shape)

    def forms(self):
        n, d = self.total_count, self.probs.shape[-1]
        if (many := math.comb(n + d - 1, d - 1)) > MOST:
            raise NotImplementedError(
                f"Multinomial: {many} vectors of counts are more than the {MOST} that are summed over; draw from it with "
                "sample, or integrate one count, which is Binomial"
            )
        x = jnp.asarray(_counts(n, d))
        log_mass, powers = self._masses(x.reshape(-1, *(1,) * len(self.shape), d))
        weights = jnp.moveaxis(powers * jnp.exp(log_mass), 0, -1)
        return (NormalForm(jnp.broadcast_to(x, (*self.shape, *x.shape)), weights),)

    def _masses(self, x):
        """(log c, a) of the mass c · a at counts: a has the powers of probabilities that are 0, with their derivatives."""
        x, n = jnp.asarray(x, self.probs.dtype), self.total_count
        none = self.probs == 0
        p = jnp.where(none, 1 / max(n, 2), self.probs)
        powers = whole_power(jnp.where(none, self.probs / p, 1), x).prod(-1)
        # Of probabilities of any sum, what each tilt takes off together is n less n times that.
        tilts = tilt(x, p, n, 0, n * p - x).sum(-1) + n * (p.sum(-1) - 1)
        return factorial_rest(jnp.asarray(n, p.dtype)) - factorial_rest(x).sum(-1) + tilts, powers

    def scaled_density(self, *x):
        (x,) = x
        x = jnp.asarray(x)
        if x.shape[-1:] != self.probs.shape[-1:]:
            raise ValueError(f"Multinomial: counts of {self.probs.shape[-1]} outcomes, got shape {x.shape}")
        inside = jnp.all((x >= 0) & (x == jnp.floor(x)), axis=-1) & (x.sum(-1) == self.total_count)
        log_mass, powers = self._masses(jnp.where(inside[..., None], x, 0))
        return ScaledNumber(jnp.where(inside, log_mass, -jnp.inf), powers)

    def sample(self, key, shape=()):
        shape = (*shape, *self.shape)
        return jax.random.multinomial(key, self.total_count, self.probs, shape=shape).astype(int)

    @property
    def mean(self):
        return self.total_count * self.probs

    @property
    def variance(self):
        return self.mean * (1 - self.probs)

    @property
    def covariance(self):
        p = self.probs
        return self.total_count * (p[..., None] * jnp.eye(p.shape[-1]) - p[..., :, None] * p[..., None, :])

    def closest_to(self, P):
        P = P.normalize()
        return Multinomial(self.total_count, P.expect(lambda x: jnp.asarray(x, float)) / max(self.total_count, 1))


@functools.lru_cache
def _counts(n: int, d: int) -> np.ndarray:
    """All vectors of d counts with sum n."""
    if d == 1:
        return np.full((1, 1), n)
    rest = [_counts(n - k, d - 1) for k in range(n + 1)]
    return np.concatenate([np.insert(x, 0, k, axis=1) for k, x in enumerate(rest)])
