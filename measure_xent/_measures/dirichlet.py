"""The Dirichlet distribution."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special
from jaxtyping import Array, Float

from .._kernels.checks import check_values, positive, real_array
from .._pytree import pytree, set_fields
from .exponential_family import Statistic
from .fits import dirichlet_concentration
from .laws import Vectors
from .positive import Beta, log_dirichlet_scale
from .special import log_less_digamma, tilt
from .vectors import Transform, _behind, _product


@pytree
class LogCoordinates(Statistic):
    """x ↦ Σ cᵢ log xᵢ, a family by leading axes."""

    c: Float[Array, "*family d"]

    def __call__(self, *x):
        return special.xlogy(self.c, x[0]).sum(-1)

    @property
    def shape(self):
        return self.c.shape[:-1]

    def values(self, points, lead):
        rank = len(self.shape)
        return special.xlogy(_behind(self.c, 1, rank, lead - rank), points).sum(-1)


@pytree
class Tilts(Statistic):
    """x ↦ Σ (aᵢ − 1) log(nxᵢ/aᵢ) − (nxᵢ − aᵢ), n = Σ a: what log p of a Dirichlet law has of x, without large numbers."""

    a: Float[Array, "*family d"]

    def __call__(self, *x):
        return self.vector(self.a, x[0])

    def vector(self, a, x):
        return tilt(a, x, a.sum(-1, keepdims=True), -1).sum(-1)

    @property
    def shape(self):
        return self.a.shape[:-1]

    def values(self, points, lead):
        rank = len(self.shape)
        return self.vector(_behind(self.a, 1, rank, lead - rank), points)


@pytree
class Sticks(Transform):
    """(z₁, …, z_{d−1}) ↦ the pieces of a unit stick, of which zᵢ is broken off the rest each time."""

    def vector(self, z):
        one = jnp.ones((*z.shape[:-1], 1), z.dtype)
        left = jnp.cumprod(1 - z, axis=-1)
        return jnp.concatenate([z, one], -1) * jnp.concatenate([one, left], -1)


@pytree
class Dirichlet(Vectors):
    """The Dirichlet distribution of probability vectors, with a density in all coordinates but the last.

    Args:
        concentration: positive numbers, [*family, d], d ≥ 2.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P = mx.Dirichlet(jnp.array([2., 3., 4.]))
        >>> P.expect(lambda p: p[2]).item(), mx.entropy(P).item()
        (0.44444, -1.31256)
    """

    event_ranks = {"concentration": 1}  # noqa: RUF012
    smooth_transport = False

    concentration: Float[Array, "*family d"]

    def __post_init__(self):
        concentration = real_array("Dirichlet(concentration)", self.concentration, floating=True)
        if concentration.ndim == 0 or concentration.shape[-1] < 2:
            raise ValueError(f"Dirichlet(concentration): [*family, d] with d of at least 2, got {concentration.shape}")
        check_values(jnp.all(positive(concentration)), "Dirichlet(concentration): positive")
        set_fields(self, concentration=concentration)

    @property
    def dimension(self):  # type: ignore[override]
        return self.concentration.shape[-1] - 1

    def _betas(self) -> list[Beta]:
        a = self.concentration
        rest = jnp.flip(jnp.cumsum(jnp.flip(a, -1), -1), -1)
        return [Beta(a[..., i], rest[..., i + 1]) for i in range(self.dimension)]

    @property
    def base(self):
        return _product(self._betas(), Sticks())

    def marginal(self, which: Any) -> Any:
        if len(which) > 1:
            raise NotImplementedError(f"marginal(P): entries {which} of a Dirichlet are on no simplex; take one")
        a = self.concentration[..., which[0]]
        return Beta(a, self.concentration.sum(-1) - a)

    @property
    def mean(self):
        return self.concentration / self.concentration.sum(-1, keepdims=True)

    @property
    def variance(self):
        return self.mean * (1 - self.mean) / (self.concentration.sum(-1, keepdims=True) + 1)

    @property
    def covariance(self):
        mean, total = self.mean, self.concentration.sum(-1)[..., None, None]
        return (jnp.eye(mean.shape[-1]) * mean[..., None] - mean[..., :, None] * mean[..., None, :]) / (total + 1)

    @property
    def _log_scale(self):
        return log_dirichlet_scale(self.concentration, self.concentration.sum(-1))

    def log_density_of(self, x):
        inside = jnp.all(x >= 0, axis=-1) & (jnp.abs(x.sum(-1) - 1) < 1e-4)
        log_density = Tilts(self.concentration)(jnp.where(inside[..., None], x, 0.5)) + self._log_scale
        return jnp.where(inside, log_density, -jnp.inf)

    def sample(self, key, shape=()):
        return jax.random.dirichlet(key, self.concentration, (*shape, *self.shape), self.concentration.dtype)

    def transport(self, u):
        z = [beta.quantile(jnp.broadcast_to(u[i], self.shape)) for i, beta in enumerate(self._betas())]
        return Sticks().vector(jnp.stack(z, axis=-1))

    def closest_to(self, P):
        P = P.normalize()
        means = [P.expect(LogCoordinates(e)) for e in jnp.eye(self.concentration.shape[-1])]
        return Dirichlet(dirichlet_concentration(jnp.stack(means, axis=-1)))

    @property
    def affine(self):
        return Tilts(self.concentration) + self._log_scale

    def moment(self, statistic):
        total = self.concentration.sum(-1, keepdims=True)
        mean, gap = self.concentration / total, log_less_digamma(self.concentration) - log_less_digamma(total)
        match statistic:
            case LogCoordinates(c=c):
                return (c * (jnp.log(mean) - gap)).sum(-1)
            case Tilts(a=a):
                return statistic.vector(a, mean) - ((a - 1) * gap).sum(-1)
        return NotImplemented
