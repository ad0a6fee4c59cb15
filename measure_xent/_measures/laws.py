"""What is not finite: a measure given by one density, on the line or on all the integers.

log q of an exponential family is affine in its statistic, so a cross-entropy is a log-partition less a pairing with moments of
P, whatever family P is of: no table of pairs.
"""

import abc
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._density import LogDensity
from .._dispatch import integrate, rule
from .._integral import Integral
from .._integrand import Integrand, Product, as_integrand
from .._measure import Measure
from .._pytree import pytree


class Law(Measure):
    """A measure with one density, a subclass's ``log_density_of``. Its parameters are its leaves, and broadcast."""

    @property
    @abc.abstractmethod
    def support(self) -> tuple[Any, Any]:
        """The ends of the interval that it is on; an infinite one is a float."""

    @property
    def shape(self):
        return jnp.broadcast_shapes(*(jnp.shape(x) for x in jax.tree.leaves(self)))

    @property
    def mass(self):
        return jnp.ones(self.shape)

    def forms(self) -> Any:
        return (Smooth(self, jnp.ones(self.shape)),)

    def log_abs_density(self, *x):
        (x,) = x
        log_density = self.log_density_of(jnp.asarray(x))
        return log_density, jnp.ones_like(log_density)

    def each(self) -> Any:
        """The same with an axis behind the family's, for the points of each member."""
        return jax.tree.map(lambda x: jnp.asarray(x)[..., None], self)

    @abc.abstractmethod
    def log_density_of(self, x: Float[Array, "*family"]) -> Float[Array, "*family"]:
        """log p, −inf off the support."""

    @abc.abstractmethod
    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws, each of the whole family."""

    @property
    def breaks(self) -> tuple[Any, ...]:
        """Where the density is not smooth, or has its bulk."""
        return ()

    @property
    def affine(self) -> Integrand | None:
        """log p as an affine function of statistics on its support, if this is an exponential family."""
        return None

    def moment(self, statistic: "Statistic") -> Any:
        """The mean of a statistic in closed form, or NotImplemented."""
        return NotImplemented


class Continuous(Law):
    """A law with a density on an interval of the line."""

    def split(self):
        return None, self

    @property
    def support(self) -> tuple[Any, Any]:
        return -math.inf, math.inf

    @property
    @abc.abstractmethod
    def width(self) -> Float[Array, "*family"]:
        """The size of what the density's graph shows."""

    def centred(self) -> tuple["Continuous", Any]:
        """(the law of x − c, c): near a c that is large beside the width, x alone has few digits left."""
        return self, 0.0


class Integers(Law):
    """A law on the integers 0, 1, 2, …"""

    @property
    def support(self):
        return 0.0, math.inf

    @property
    @abc.abstractmethod
    def mean(self) -> Float[Array, "*family"]: ...

    @property
    @abc.abstractmethod
    def variance(self) -> Float[Array, "*family"]: ...


@pytree
class Smooth:
    """c · Πf · law: the normal form of what is not finite."""

    law: Law
    c: Float[Array, "*family"]
    factors: tuple[Integrand, ...] = ()

    @property
    def family(self) -> tuple[int, ...]:
        shapes: list[tuple[int, ...]] = [self.law.shape, jnp.shape(self.c), *(f.shape for f in self.factors)]
        return jnp.broadcast_shapes(*shapes)

    def integrate(self, f: Integrand) -> Integral:
        product = Product((*self.factors, f)) if self.factors else f
        return integrate(self.law, product).scale(self.c)

    def mass(self) -> Float[Array, "*family"]:
        return self.integrate(as_integrand(1.0)).checked

    def scale(self, c: Any) -> "Smooth":
        return Smooth(self.law, jnp.asarray(c) * self.c, self.factors)

    def reweight(self, f: Integrand) -> "Smooth":
        return Smooth(self.law, self.c, (*self.factors, f))

    def density(self, *x: Any) -> Float[Array, "*family"]:
        (x,) = x
        log_p, _ = self.law.log_abs_density(x)
        return functools.reduce(lambda d, f: d * f(x), self.factors, self.c * jnp.exp(log_p))

    def flat(self) -> tuple["Smooth", ...]:
        return (self,)

    def merge(self, other: Any) -> None:
        return None

    @property
    def points(self) -> Any:
        return None

    def push(self, transform: Any) -> Any:
        raise NotImplementedError(
            f"pushforward(T, P): P = {type(self.law).__name__} is not finite; give the image's own law"
        )

    def rows(self, of_x: bool = False) -> Any:
        raise TypeError(
            f"a Conditional integrates over pairs (x, y): P must be a measure on tuples, but {type(self.law).__name__} is not"
        )

    def parts(self) -> Any:
        raise NotImplementedError(f"joint and product: P = {type(self.law).__name__} is not finite")


class Statistic(Integrand):
    """A function whose mean some laws have in closed form."""

    @property
    def breaks(self) -> tuple[Any, ...]:
        """Where it is not smooth."""
        return ()


@rule(Law, Statistic)
def moment(P: Law, f: Statistic) -> Any:
    """∫ T dP, from P's own table."""
    return P.moment(f)


@rule(Law, LogDensity, Law)
def pairing(P: Law, f: LogDensity) -> Any:
    """∫ log q dP = ⟨η, ∫ T dP⟩ − A + ∫ log h dP; −inf where P has mass that Q has not."""
    Q: Law = f.Q
    if Q.affine is None or isinstance(P, Integers) != isinstance(Q, Integers):
        return NotImplemented
    (low, high), (a, b) = P.support, Q.support
    inside = (jnp.asarray(low) >= a) & (jnp.asarray(high) <= b)
    total = integrate(P, Q.affine)
    return Integral(jnp.where(inside, total.value, -jnp.inf), total.error, jnp.where(inside, total.status, 0))


def points_of(f: Any) -> list[Any]:
    """Where an integrand made of laws and statistics is not smooth."""
    nodes = jax.tree.leaves(f, is_leaf=lambda node: isinstance(node, Law | Statistic))
    ends = lambda law: [end for end in law.support if not (isinstance(end, float) and math.isinf(end))]
    laws = [x for law in nodes if isinstance(law, Continuous) for x in (*law.breaks, *ends(law))]
    return laws + [x for node in nodes if isinstance(node, Statistic) for x in node.breaks]
