"""Laws: measures given by one density, on an interval, on the integers, on vectors.

log q of an exponential family is affine in its statistics, so a cross-entropy is a log-partition less a pairing with moments of
P, whatever family P is of: no table of pairs.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._forms.law_form import LawForm
from .._integrands.density import LogDensity, along_the_path, relative_to
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand
from .._integrands.rules import integrate, rule
from .._kernels.cumulative import quantile
from .._kernels.scaled import ScaledNumber
from .._kernels.tanh_sinh import finite
from .._pytree import replaced
from .exponential_family import Natural, Statistic
from .measure import Measure
from .shapes import arity, static_mass
from .summaries import ROUNDING


class Law(Measure):
    """A measure with one density. Its fields are its parameters, and broadcast to the family.

    A subclass gives ``log_density_of``, ``sample``, and what its base asks for.
    """

    event_ranks: dict[str, int] = {}  # how many axes of each field, if any, are not the family's  # noqa: RUF012
    pathwise = True  # whether a sample has derivatives in the parameters
    smooth_transport = True  # whether ``transport`` has them: JAX's betainc has none in its parameters
    dimension = 1  # how many uniform numbers make a point

    @property
    def shape(self) -> Any:
        own = lambda name, x: jnp.shape(x)[: jnp.ndim(x) - self.event_ranks.get(name, 0)]
        return jnp.broadcast_shapes(*(own(n, x) for n, field in self.__dict__.items() for x in jax.tree.leaves(field)))

    @property
    def mass(self):
        return jnp.ones(self.shape)

    def forms(self) -> Any:
        return (LawForm(self, jnp.ones(self.shape)),)

    def scaled_density(self, *x):
        (x,) = x
        return ScaledNumber.exp(self.log_density_of(jnp.asarray(x)))

    def with_family_rank(self, rank: int) -> Any:
        """The same with at least ``rank`` family axes on every field."""

        def grow(name, field):
            event = self.event_ranks.get(name, 0)
            one = lambda x: jnp.reshape(x, (1,) * (rank - jnp.ndim(x) + event) + jnp.shape(x))
            return jax.tree.map(one, field)

        return replaced(self, **{name: grow(name, field) for name, field in self.__dict__.items()})

    def with_point_axis(self) -> Any:
        """The same with an axis behind the family's, for the points of each member."""
        rank = len(self.shape)
        return jax.tree.map(lambda x: jnp.expand_dims(x, rank), self.with_family_rank(rank))

    def one_point(self) -> Any:
        """The shape and dtype of a point, or of one a member."""
        return jax.eval_shape(self.sample, jax.eval_shape(lambda: jax.random.key(0)))

    @abc.abstractmethod
    def parts(self) -> Any: ...

    @abc.abstractmethod
    def log_density_of(self, x: Float[Array, "*family"]) -> Float[Array, "*family"]:
        """log p, −inf off the support."""

    def density_of(self, x: Float[Array, "*family"]) -> Float[Array, "*family"]:
        """p, of laws on the integers with its derivatives where it is 0 too."""
        return jnp.exp(self.log_density_of(x))

    @abc.abstractmethod
    def sample(self, key: Array, shape: Any = ()) -> Float[Array, "..."]:
        """Independent draws, each of the whole family."""

    def transport(self, u: Float[Array, "dimension"]) -> Float[Array, "*family"]:
        """The point that uniform numbers in (0, 1) stand for."""
        raise NotImplementedError(
            f"{type(self).__name__} is not made of uniform numbers: pass method=MonteCarlo(key, n)"
        )

    @property
    def affine(self) -> Integrand | None:
        """log p as an affine function of statistics on its support, if this is an exponential family."""
        return None if self.natural is None else self.natural.log_density

    @property
    def natural(self) -> "Natural | None":
        """The natural parameters, sufficient statistics and log-partition, if this is an exponential family."""
        return None

    @property
    def log_partition(self):
        if self.natural is None:
            raise NotImplementedError(f"{type(self).__name__} has no log-partition: it is not an exponential family")
        return self.natural.log_partition

    def moment(self, statistic: "Statistic") -> Any:
        """The mean of a statistic in closed form, or NotImplemented."""
        return NotImplemented

    def closest_to(self, P: Measure) -> Any:
        """The member of this one's family that is closest to P, where it is known how to get it, else NotImplemented."""
        return NotImplemented


relative_to.register(Law, along_the_path)
static_mass.register(Law, lambda P: 1)


class Line(Law):
    """A law of real numbers."""

    @property
    def support(self) -> tuple[Any, Any]:
        """The ends of the interval that it is on; a float where they are the same for all parameters."""
        return -math.inf, math.inf

    def one_point(self):
        return jax.ShapeDtypeStruct(self.shape, jnp.result_type(float))

    @property
    @abc.abstractmethod
    def centre(self) -> Float[Array, "*family"]:
        """A point amid the bulk of the mass."""

    @property
    @abc.abstractmethod
    def width(self) -> Float[Array, "*family"]:
        """The size of what the density's graph shows."""

    def cdf(self, x: Float[Array, "*family"]) -> Float[Array, "*family"]:
        """P((−∞, x])."""
        raise NotImplementedError(f"{type(self).__name__} has no cdf")

    def survival(self, x: Float[Array, "*family"]) -> Float[Array, "*family"]:
        """P((x, ∞)), with all its digits where it is small."""
        return 1 - self.cdf(x)

    @abc.abstractmethod
    def quantile(self, u: Float[Array, "*family"]) -> Float[Array, "*family"]:
        """The least x with cdf(x) ≥ u."""

    def transport(self, u):
        return self.quantile(jnp.broadcast_to(u[0], self.shape))


class Continuous(Line):
    """A law with a density on an interval of the line."""

    def parts(self):
        return {(False,): self}

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Where the density is not smooth inside its support."""
        return ()

    def centred(self) -> tuple["Continuous", Any]:
        """(the law of x − c, c): near a c that is large beside the width, x alone has few digits left."""
        return self, 0.0

    finite_derivatives = True  # whether log p has finite derivatives wherever it is evaluated, where p is 0 too
    parameter_free_nodes = True  # whether its Gauss rule is one for all parameters

    def gauss(self, nodes: int) -> tuple[Array, Array, Array] | None:
        """(nodes, weights, the highest orthonormal polynomials at the nodes), a Gauss rule for the family if it has one."""
        del nodes
        return None

    def log_rise(self, x: Array, c: Array, gap: Array) -> Float[Array, "*family"]:
        """log p(x) − log p(c), from the points and from x − c, which may have digits that x has not."""
        del gap
        return self.log_density_of(x) - self.log_density_of(c)

    def sample(self, key, shape=()):
        tiny = jnp.finfo(jnp.result_type(float)).tiny
        return self.quantile(jax.random.uniform(key, (*shape, *self.shape), minval=tiny))

    def quantile(self, u):
        return self._inverse(lambda x: (self.cdf(x), self.survival(x)), u)

    def _inverse(self, tails: Callable, u: Any) -> Array:
        u = jnp.asarray(u, float)
        return quantile(tails, jnp.broadcast_to(u, jnp.broadcast_shapes(u.shape, self.shape)))

    def bounds(self) -> tuple[Any, Any, Any]:
        """(low, high, width) of the law of x − centre."""
        low, high = self.support
        centre = self.bounds_centre()
        move = lambda end: end - centre if finite(end) else end
        return move(low), move(high), self.width

    def bounds_centre(self) -> Any:
        """Where a graph on the whole line is centred; a support with an end is measured from there."""
        return 0.0 if any(map(finite, self.support)) else self.centre


arity.register(Line, lambda P: 1)


class Integers(Line):
    """A law on the integers 0, 1, 2, …"""

    pathwise = False

    def parts(self):
        return {(True,): self}

    def one_point(self):
        return jax.ShapeDtypeStruct(self.shape, jnp.result_type(int))

    @property
    def support(self) -> tuple[Any, Any]:
        return 0.0, math.inf

    @property
    def centre(self):
        return self.mean

    @property
    def width(self):
        return jnp.sqrt(self.variance)

    @property
    @abc.abstractmethod
    def mean(self) -> Float[Array, "*family"]: ...

    @property
    @abc.abstractmethod
    def variance(self) -> Float[Array, "*family"]: ...

    def quantile(self, u):
        top = jnp.ceil(self.centre + 50 * self.width + 50)
        u = u - ROUNDING * jnp.finfo(jnp.result_type(float)).eps * jnp.minimum(u, 1 - u)

        def halve(_, ends):
            low, high = ends
            middle = jnp.floor((low + high) / 2)
            above = self.cdf(middle) < u
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        shape = jnp.broadcast_shapes(jnp.shape(u), self.shape)
        ends = jnp.full(shape, -1.0), jnp.broadcast_to(top, shape)
        return jax.lax.stop_gradient(jax.lax.fori_loop(0, 40, halve, ends)[1]).astype(int)


class Vectors(Law):
    """A law of vectors: the image of independent laws of real numbers."""

    def parts(self):
        return {(False,): self}

    @property
    @abc.abstractmethod
    def base(self) -> LawForm:
        """The law as an image of a product of laws on the line."""

    def marginal(self, which: tuple[int, ...]) -> Measure:
        """The law of some entries: a number of one, a vector of several."""
        raise NotImplementedError(f"marginal(P): the law of entries {which} of a {type(self).__name__} is not known")

    def uncoupled(self, groups: tuple[int, ...]) -> Measure:
        """The law of vectors whose groups of so many entries have the same laws, and are independent."""
        raise NotImplementedError(f"{type(self).__name__} with independent entries is not known")


arity.register(Vectors, lambda P: 1)


@rule(Law, Statistic)
def moment(P: Law, f: Statistic) -> Any:
    """∫ T dP, from P's own table: exact but for rounding, of which it tells."""
    value = P.moment(f)
    return NotImplemented if value is NotImplemented else Integral(value, rounding(value))


def rounding(value: Any) -> Array:
    """What a few operations may be off by."""
    value = jax.lax.stop_gradient(jnp.asarray(value, float))
    return jnp.where(jnp.isfinite(value), 16 * jnp.finfo(value.dtype).eps * jnp.abs(value), 0)


@rule(Line, LogDensity, Line)
def pairing(P: Line, f: LogDensity) -> Any:
    """∫ log q dP = ⟨η, ∫ T dP⟩ − A + ∫ log h dP; −inf where P has mass that Q has not."""
    Q: Line = f.Q
    if Q.affine is None or isinstance(P, Integers) != isinstance(Q, Integers):
        return NotImplemented
    (low, high), (a, b) = P.support, Q.support
    inside = (jnp.asarray(low) >= a) & (jnp.asarray(high) <= b)
    total = integrate(P, Q.affine)
    value = jnp.where(inside, total.value, -jnp.inf)
    return Integral(value, total.error + rounding(value), jnp.where(inside, total.status, 0))


def _nodes(f: Any) -> list[Any]:
    is_leaf = lambda node: hasattr(node, "kinks")  # laws, statistics, and what sees to those in it
    return [node for node in jax.tree.leaves(f, is_leaf=is_leaf) if is_leaf(node)]


def kinks_of(f: Any) -> list[Any]:
    """Where an integrand made of laws and statistics is not smooth."""
    return [x for node in _nodes(f) for x in node.kinks]


def breakpoints_of(f: Any) -> list[Any]:
    """Where the laws in an integrand have their ends and their bulk."""
    laws = [node for node in _nodes(f) if isinstance(node, Continuous)]
    bulk = [law.centre + c * law.width for law in laws for c in (-2, 0, 2)]
    is_leaf = lambda node: hasattr(node, "breakpoints")
    others = [x for node in jax.tree.leaves(f, is_leaf=is_leaf) if is_leaf(node) for x in node.breakpoints]
    return bulk + others + [end for law in laws for end in law.support if finite(end)]
