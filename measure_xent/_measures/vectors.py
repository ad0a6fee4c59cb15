"""Laws of vectors of independent coordinates."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._integrands.integrand import Integrand, as_tuple
from .._pytree import pytree
from .laws import Line, Vectors
from .measure import Measure
from .product import product
from .shapes import static_mass


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
        points = as_tuple(points)
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

    def parts(self) -> Any:
        return dict.fromkeys(self.P.parts(), self)

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
    def mass(self):
        return jnp.prod(jnp.broadcast_to(self.P.mass, self.P.shape), axis=-1)

    @property
    def members(self) -> list[Line]:
        whole = self.P.with_family_rank(len(self.P.shape))
        take = lambda i: lambda x: jnp.take(x, 0 if x.shape[-1] == 1 else i, axis=-1)
        return [jax.tree.map(take(i), whole) for i in range(self.dimension)]

    @property
    def mean(self):
        return jnp.broadcast_to(self.P.mean, self.P.shape)

    @property
    def variance(self):
        return jnp.broadcast_to(self.P.variance, self.P.shape)

    @property
    def covariance(self):
        return self.variance[..., None] * jnp.eye(self.dimension)

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

    def with_family_rank(self, rank):
        return Independent(self.P.with_family_rank(rank + 1))


static_mass.register(Independent, lambda P: static_mass(P.P))


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
