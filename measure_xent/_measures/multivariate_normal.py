"""The multivariate normal."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special
from jax.scipy.linalg import solve_triangular
from jax.tree_util import Partial
from jaxtyping import Array, Float

from .._kernels.checks import check_values, real_array
from .._pytree import pytree, set_fields
from .exponential_family import Statistic
from .laws import Vectors
from .line import LOG_2PI, Normal
from .vectors import Independent, Transform, _behind, _product


@pytree
class SquaredDistance(Statistic):
    """x ↦ |L⁻¹(x − c)|², a family by leading axes."""

    c: Float[Array, "*family d"]
    scale_tril: Float[Array, "*family d d"]

    def __call__(self, *x):
        return (_solve(self.scale_tril, x[0] - self.c) ** 2).sum(-1)

    @property
    def shape(self):
        return jnp.broadcast_shapes(self.c.shape[:-1], self.scale_tril.shape[:-2])

    def values(self, points, lead):
        rank = len(self.shape)
        c, L = _behind(self.c, 1, rank, lead - rank), _behind(self.scale_tril, 2, rank, lead - rank)
        return (_solve(L, points - c) ** 2).sum(-1)


def _solve(scale_tril, x):
    """L⁻¹ x, broadcast."""
    shape = jnp.broadcast_shapes(scale_tril.shape[:-1], x.shape)
    L = jnp.broadcast_to(scale_tril, (*shape, shape[-1]))
    return solve_triangular(L, jnp.broadcast_to(x, shape)[..., None], lower=True)[..., 0]


@pytree
class Affine(Transform):
    """z ↦ loc + L z."""

    loc: Float[Array, "*family d"]
    scale_tril: Float[Array, "*family d d"]

    @property
    def shape(self):
        return jnp.broadcast_shapes(self.loc.shape[:-1], self.scale_tril.shape[:-2])

    def behind(self, rank, extra):
        return Affine(_behind(self.loc, 1, rank, extra), _behind(self.scale_tril, 2, rank, extra))

    def vector(self, z):
        return self.loc + jnp.einsum("...ij,...j->...i", self.scale_tril, z)


@pytree
class MultivariateNormal(Vectors):
    """The normal distribution of vectors. A diagonal one is ``independent(Normal(loc, scale))`` too.

    Args:
        loc: the mean, [*family, d].
        covariance_matrix: [*family, d, d], symmetric and positive definite; or instead
        precision_matrix: its inverse, or
        scale_tril: its lower Cholesky factor.

    Raises:
        TypeError: not exactly one of the three.
        ValueError: the shapes do not fit.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P = mx.MultivariateNormal(jnp.zeros(2), jnp.array([[2., 1.], [1., 1.]]))
        >>> mx.entropy(P).item(), P.expect(lambda x: x[0] * x[1]).item()  # 1 + log 2π, 1
        (2.83788, 1.0)
        >>> mx.kl_divergence(P, mx.MultivariateNormal(jnp.ones(2), jnp.eye(2))).item()
        1.5
    """

    event_ranks = {"loc": 1, "scale_tril": 2}  # noqa: RUF012

    loc: Float[Array, "*family d"]
    scale_tril: Float[Array, "*family d d"]

    def __init__(
        self, loc: Any = 0.0, covariance_matrix: Any = None, precision_matrix: Any = None, scale_tril: Any = None
    ):
        given = dict(covariance_matrix=covariance_matrix, precision_matrix=precision_matrix, scale_tril=scale_tril)
        given = {name: x for name, x in given.items() if x is not None}
        if len(given) != 1:
            raise TypeError(
                f"MultivariateNormal: exactly one of covariance_matrix, precision_matrix and scale_tril, got {list(given)}"
            )
        ((name, matrix),) = given.items()
        matrix = real_array(f"MultivariateNormal({name})", matrix, floating=True)
        loc = jnp.atleast_1d(real_array("MultivariateNormal(loc)", loc, floating=True))
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or loc.shape[-1] not in (1, matrix.shape[-1]):
            raise ValueError(
                f"MultivariateNormal: loc [*family, d] and {name} [*family, d, d], got {loc.shape} and {matrix.shape}"
            )
        loc = jnp.broadcast_to(loc, (*loc.shape[:-1], matrix.shape[-1]))
        if name == "covariance_matrix":
            matrix = jnp.linalg.cholesky(matrix)
        elif name == "precision_matrix":
            eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
            lower = jnp.flip(jnp.linalg.cholesky(jnp.flip(matrix, (-2, -1))), (-2, -1)).mT  # Λ = Uᵀ… with L = U⁻¹ lower
            matrix = solve_triangular(lower, jnp.broadcast_to(eye, lower.shape), lower=True)
        check_values(jnp.all(jnp.isfinite(matrix)), f"MultivariateNormal({name}): positive definite")
        set_fields(self, loc=loc, scale_tril=matrix)

    @property
    def dimension(self):  # type: ignore[override]
        return self.loc.shape[-1]

    @property
    def covariance_matrix(self) -> Float[Array, "*family d d"]:
        return self.scale_tril @ self.scale_tril.mT

    @property
    def mean(self):
        return jnp.broadcast_to(self.loc, (*self.shape, self.dimension))

    @property
    def covariance(self):
        return jnp.broadcast_to(self.covariance_matrix, (*self.shape, self.dimension, self.dimension))

    @property
    def variance(self):
        return jnp.diagonal(self.covariance, axis1=-2, axis2=-1)

    @property
    def base(self):
        standard = Normal(jnp.zeros(self.shape), jnp.ones(self.shape))
        return _product([standard] * self.dimension, Affine(self.loc, self.scale_tril))

    def marginal(self, which):
        i = jnp.asarray(which)
        loc, covariance = self.loc[..., i], self.covariance_matrix[..., i[:, None], i]
        return (
            Normal(loc[..., 0], jnp.sqrt(covariance[..., 0, 0]))
            if len(which) == 1
            else MultivariateNormal(loc, covariance)
        )

    def uncoupled(self, groups):
        group = jnp.repeat(jnp.arange(len(groups)), jnp.asarray(groups), total_repeat_length=self.dimension)
        return MultivariateNormal(self.loc, jnp.where(group[:, None] == group, self.covariance_matrix, 0))

    @property
    def _log_scale(self):
        return jnp.log(jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1)).sum(-1)

    def log_density_of(self, x):
        z = _solve(self.scale_tril, x - self.loc)
        return -((z**2).sum(-1) + self.dimension * LOG_2PI) / 2 - self._log_scale

    def sample(self, key, shape=()):
        z = jax.random.normal(key, (*shape, *self.shape, self.dimension), self.loc.dtype)
        return self.loc + jnp.einsum("...ij,...j->...i", self.scale_tril, z)

    def transport(self, u):
        return self.loc + jnp.einsum("...ij,...j->...i", self.scale_tril, special.ndtri(u))

    def closest_to(self, P):
        P = P.normalize()
        if (known := gaussian(P)) is not None:
            return known
        if P.shape:
            raise NotImplementedError(
                f"project(P, MultivariateNormal): one measure P, got a family {P.shape}; vmap over it"
            )
        loc = P.expect(lambda x: x)
        return MultivariateNormal(loc, P.expect(Partial(_deviation, loc)))

    @property
    def affine(self):
        constant = self.dimension * LOG_2PI / 2 + self._log_scale
        return -0.5 * SquaredDistance(self.loc, self.scale_tril) - constant

    def moment(self, statistic):
        match statistic:
            case SquaredDistance(c=c, scale_tril=L):
                return _squared_distance(self.loc, self.scale_tril, c, L)
        return NotImplemented


def _deviation(c, x):
    return jnp.outer(x - c, x - c)


def _squared_distance(mean, scale_tril, c, L):
    """E|L⁻¹(x − c)|² from a mean and a factor of the covariance."""
    shape = jnp.broadcast_shapes(L.shape, scale_tril.shape)
    spread = solve_triangular(jnp.broadcast_to(L, shape), jnp.broadcast_to(scale_tril, shape), lower=True)
    return (spread**2).sum((-2, -1)) + (_solve(L, mean - c) ** 2).sum(-1)


def gaussian(P: Any) -> MultivariateNormal | None:
    """P as a multivariate normal, if it is one."""
    if isinstance(P, Independent) and isinstance(P.P, Normal):
        loc, scale = jnp.broadcast_arrays(P.P.loc, P.P.scale)
        return MultivariateNormal(loc, scale_tril=scale[..., None] * jnp.eye(scale.shape[-1], dtype=scale.dtype))
    return P if isinstance(P, MultivariateNormal) else None
