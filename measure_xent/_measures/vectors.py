"""Laws of vectors: independent coordinates, the multivariate normal, Dirichlet."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special
from jax.scipy.linalg import solve_triangular
from jax.tree_util import Partial
from jaxtyping import Array, Float

from .._integrands.density import LogDensity
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand
from .._integrands.rules import integrate, rule
from .._kernels.checks import check_values, positive, real_array
from .._pytree import pytree, set_fields
from .exponential_family import Statistic
from .fits import dirichlet_concentration
from .laws import Line, Vectors
from .line import LOG_2PI, Normal
from .measure import Measure
from .positive import Beta, log_dirichlet_scale
from .product import product
from .special import log_less_digamma, tilt


def _product(laws: Sequence[Line], transform: Integrand) -> Any:
    """The image of independent laws under a function of their points, given one by one."""
    (form,) = functools.reduce(product, laws).forms()
    return form.push(transform)[0]


def _behind(x: Array, event: int, rank: int, extra: int) -> Array:
    """x [*family, *event] with ``rank`` family axes, and ``extra`` axes of size 1 behind them."""
    family = (1,) * (rank + event - x.ndim) + x.shape[: x.ndim - event]
    return x.reshape(*family, *(1,) * extra, *x.shape[x.ndim - event :])


class Transform(Integrand):
    """A function of several numbers that makes a vector; a subclass says how, for arrays [*family, d]."""

    def __call__(self, *x):
        return self.vector(jnp.stack(jnp.broadcast_arrays(*x), axis=-1))

    def values(self, points, lead):
        points = points if isinstance(points, tuple) else (points,)
        z = jnp.stack(jnp.broadcast_arrays(*points), axis=-1)
        extra = lead - len(self.shape)  # axes of nodes, between the family's and the vector's
        return self.behind(len(self.shape), extra).vector(z)

    def behind(self, rank: int, extra: int) -> Any:
        """The same with ``extra`` axes behind the family's."""
        del rank, extra
        return self

    def vector(self, z: Float[Array, "*family d"]) -> Float[Array, "*family d"]:
        return z


@pytree
class Stacked(Transform):
    """(z₁, …, z_d) ↦ the vector of them."""


@pytree
class Independent(Vectors):
    """The product of the members of a family along its last axis: vectors of independent coordinates."""

    event_ranks = {"P": 1}  # noqa: RUF012

    P: Line

    def split(self) -> Any:
        return tuple(None if part is None else self for part in self.P.split())

    @property
    def dimension(self):  # type: ignore[override]
        return self.P.shape[-1]

    @property
    def pathwise(self):  # type: ignore[override]
        return self.P.pathwise

    @property
    def shape(self):
        return self.P.shape[:-1]

    @property
    def certain_mass(self):
        return self.P.certain_mass

    @property
    def mass(self):
        return jnp.prod(jnp.broadcast_to(self.P.mass, self.P.shape), axis=-1)

    @property
    def members(self) -> list[Line]:
        whole = self.P.at_rank(len(self.P.shape))
        take = lambda i: lambda x: jnp.take(x, 0 if x.shape[-1] == 1 else i, axis=-1)
        return [jax.tree.map(take(i), whole) for i in range(self.dimension)]

    def marginal(self, which):
        members = self.members
        if len(which) == 1:
            return members[which[0]]
        return Independent(jax.tree.map(lambda *x: jnp.stack(x, axis=-1), *(members[i] for i in which)))

    def uncoupled(self, groups):
        return self

    def closest_to(self, P):
        known = NotImplemented if not isinstance(P, Independent) else self.P.closest_to(P.P)
        return known if known is NotImplemented else Independent(known)

    @property
    def base(self):
        return _product(self.members, Stacked())

    def log_density_of(self, x):
        return self.P.log_density_of(x).sum(-1)

    def sample(self, key, shape=()):
        return self.P.sample(key, shape)

    def transport(self, u):
        return self.P.quantile(jnp.broadcast_to(u, self.P.shape))

    def at_rank(self, rank):
        return Independent(self.P.at_rank(rank + 1))


def independent(P: Line) -> Measure:
    """The product of a family's members along its last axis, a measure of vectors: ``to_event`` elsewhere.

    Raises:
        TypeError: P is not a law of numbers; products of other measures are ``product`` and ``power``, on tuples.
        ValueError: P has no family axis.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> diagonal = mx.independent(mx.Normal(jnp.zeros(3), jnp.array([1., 2., 3.])))
        >>> mx.entropy(diagonal).item()  # 3/2 log 2πe + log 6
        6.04857
        >>> box = mx.independent(mx.Lebesgue(0., jnp.array([1., 2.])))
        >>> box.mass.item(), box.expect(lambda x: x[0] * x[1]).item()
        (2.0, 1.0)
    """
    if not isinstance(P, Line):
        raise TypeError(f"independent(P): P must be a law of numbers, got {type(P).__name__}; see product and power")
    if not P.shape:
        raise ValueError("independent(P): P must be a family; its last axis becomes the vector's")
    return Independent(P)


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
            return super().marginal(which)
        a = self.concentration[..., which[0]]
        return Beta(a, self.concentration.sum(-1) - a)

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


def one_space(P: Any, Q: Any) -> None:
    """Refuses vectors of different lengths or kinds."""
    if isinstance(P, Dirichlet) != isinstance(Q, Dirichlet):
        raise ValueError(f"P is a measure on {_space(P)}, Q on {_space(Q)}")
    if (p := _length(P)) != (q := _length(Q)):
        raise ValueError(f"P is a measure of vectors of length {p}, Q of length {q}")


@rule(Vectors, LogDensity, Vectors)
def pairing(P: Any, f: LogDensity) -> Any:
    """∫ log q dP from P's moments, coordinate by coordinate where both have independent ones."""
    Q: Any = f.Q
    one_space(P, Q)
    if isinstance(P, Independent) and isinstance(Q, Independent):
        total = integrate(P.P, LogDensity(Q.P))
        add: Any = lambda x: (
            x if isinstance(x, float | int) else jnp.sum(jnp.broadcast_to(x, total.value.shape), axis=-1)
        )
        return Integral(add(total.value), add(total.error), add(total.status))
    p, q = gaussian(P), gaussian(Q)
    if p is not None and q is not None:
        return integrate(p, q.affine)
    return NotImplemented if Q.affine is None or type(P) is not type(Q) else integrate(P, Q.affine)


def gaussian(P: Any) -> MultivariateNormal | None:
    """P as a multivariate normal, if it is one."""
    if isinstance(P, Independent) and isinstance(P.P, Normal):
        loc, scale = jnp.broadcast_arrays(P.P.loc, P.P.scale)
        return MultivariateNormal(loc, scale_tril=scale[..., None] * jnp.eye(scale.shape[-1], dtype=scale.dtype))
    return P if isinstance(P, MultivariateNormal) else None


def _space(P: Any) -> str:
    return "probability vectors" if isinstance(P, Dirichlet) else "all vectors"


def _length(P: Any) -> int:
    return P.dimension + isinstance(P, Dirichlet)
