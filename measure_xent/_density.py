"""Integrands: functions that ``expect`` can look into. log(Q), P / Q, and what + − * make of them."""

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from ._pytree import as_node, pytree, set_fields


class Integrand(abc.ABC):
    """A function on points that ``P.expect`` may recognise and integrate in closed form.

    A subclass gives ``__call__`` on one point (a measure on pairs calls it with both coordinates) and is, like
    everything here, a pytree. Integrands add, subtract and multiply with each other, with numbers and with callables.

    Example:
        >>> import measure_xent as mx
        >>> @mx.pytree
        ... class Power(mx.Integrand):
        ...     n: int
        ...     def __call__(self, x):
        ...         return x**self.n
        >>> die = mx.DiscreteUniform(6)
        >>> float(die.expect(Power(2) - 2 * Power(1)))
        4.16667
    """

    @abc.abstractmethod
    def __call__(self, *x: Any) -> Any:
        """The value at a point."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The family axes: an integrand with shape (n,) is n functions."""
        return ()

    @property
    def pattern(self) -> tuple[Any, ...]:
        """What rules match on: the integrand, then whatever it is made of that a rule may ask for."""
        return (self,)

    def values(self, points: Any, lead: int) -> Any:
        """The values at an array of points: ``lead`` axes, the family's and then the atoms', come first on every leaf."""
        function = lambda point: at(self, point)
        for _ in range(lead):
            function = jax.vmap(function)
        return function(points)

    def __add__(self, other: Any) -> "Integrand":
        return NotImplemented if (other := _as_operand(other)) is None else Sum((self, other))

    def __radd__(self, other: Any) -> "Integrand":
        return NotImplemented if (other := _as_operand(other)) is None else Sum((other, self))

    def __sub__(self, other: Any) -> "Integrand":
        return NotImplemented if (other := _as_operand(other)) is None else Sum((self, -1 * other))

    def __rsub__(self, other: Any) -> "Integrand":
        return NotImplemented if (other := _as_operand(other)) is None else Sum((other, -1 * self))

    def __neg__(self) -> "Integrand":
        return Multiple(-1.0, self)

    def __mul__(self, other: Any) -> "Integrand":
        if is_number(other):
            return Multiple(other, self)
        return NotImplemented if (other := _as_operand(other)) is None else Product((self, other))

    def __rmul__(self, other: Any) -> "Integrand":
        return self * other

    def __truediv__(self, other: Any) -> "Integrand":
        return Multiple(1 / other, self) if is_number(other) else NotImplemented

    # NumPy scalars and arrays then leave c * f to f.
    __array_ufunc__ = None


def at(f: Callable, point: Any) -> Any:
    """f at a point: the coordinates of a tuple are its arguments."""
    return f(*point) if isinstance(point, tuple) else f(point)


def is_number(x: Any) -> bool:
    """Whether x is a number or an array of numbers, one a member of a family."""
    return isinstance(x, int | float | complex) or (hasattr(x, "dtype") and hasattr(x, "shape"))


def as_integrand(f: Any) -> Integrand:
    """Any callable, or number, as an integrand."""
    if isinstance(f, Integrand):
        return f
    if (g := _as_operand(f)) is None:
        raise TypeError(f"expect(f): f must be a callable on points, got {type(f).__name__}")
    return g


def _as_operand(f: Any) -> Integrand | None:
    if isinstance(f, Integrand):
        return f
    if is_number(f):
        return Constant(f)
    return Function(f) if callable(f) else None


@pytree
class Function(Integrand):
    """A plain callable, opaque to rules."""

    f: Callable

    def __post_init__(self):
        set_fields(self, f=as_node(self.f))

    def __call__(self, *x):
        return self.f(*x)


@pytree
class Constant(Integrand):
    """x ↦ c, one c a member of a family."""

    c: Shaped[ArrayLike, "*family"]

    def __call__(self, *x):
        return jnp.asarray(self.c)

    @property
    def shape(self):
        return jnp.shape(self.c)

    def values(self, points, lead):
        return jnp.asarray(self.c)[..., None]


@pytree
class Sum(Integrand):
    """x ↦ Σ fᵢ(x)."""

    terms: tuple[Integrand, ...]

    def __call__(self, *x):
        return sum(f(*x) for f in self.terms)

    @property
    def shape(self):
        return jnp.broadcast_shapes(*(f.shape for f in self.terms))

    def values(self, points, lead):
        return sum(f.values(points, lead) for f in self.terms)


@pytree
class Multiple(Integrand):
    """x ↦ c · f(x), one c a member of a family."""

    c: Shaped[ArrayLike, "*family"]
    f: Integrand

    def __call__(self, *x):
        return self.c * self.f(*x)

    @property
    def shape(self):
        return jnp.broadcast_shapes(jnp.shape(self.c), self.f.shape)

    def values(self, points, lead):
        return jax.tree.map(lambda v: _align(self.c, v) * v, self.f.values(points, lead))


def _align(c, value):
    # c has the leading (family) axes of value
    return jnp.reshape(c, jnp.shape(c) + (1,) * (value.ndim - jnp.ndim(c)))


@pytree
class Product(Integrand):
    """x ↦ Π fᵢ(x)."""

    factors: tuple[Integrand, ...]

    def __call__(self, *x):
        return math.prod(f(*x) for f in self.factors)

    @property
    def shape(self):
        return jnp.broadcast_shapes(*(f.shape for f in self.factors))

    def values(self, points, lead):
        return math.prod(f.values(points, lead) for f in self.factors)


@pytree
class LogDensity(Integrand):
    """x ↦ log q(x) in nats, the density of Q against counting measure; for a Conditional, (x…, y) ↦ log q(y | x…).

    What ``log(Q)`` gives, and what a rule for it matches on, as ``rule(P, LogDensity, Q)``.

    Example:
        >>> import measure_xent as mx
        >>> isinstance(mx.log(mx.DiscreteUniform(6)), mx.LogDensity)
        True
    """

    Q: Any

    def __call__(self, *x):
        return self.Q.log_density(*x)

    @property
    def shape(self):
        return self.Q.shape

    @property
    def pattern(self):
        return self, self.Q

    def values(self, points, lead):
        return _family_values(self, points, lead)


@pytree
class RadonNikodym(Integrand):
    """dP/dQ as a function: P(x)/Q(x), 0 where only Q has mass, +inf where only P has, NaN where neither has.

    Source: https://en.wikipedia.org/wiki/Radon–Nikodym_theorem. ``(P / Q) * Q`` is P where P ≪ Q.

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> ratio = mx.Categorical(probs=jnp.array([0.5, 0.5, 0.])) / mx.DiscreteUniform(3)
        >>> [float(ratio(x)) for x in range(3)]
        [1.5, 1.5, 0.0]
    """

    P: Any
    Q: Any

    def __call__(self, *x):
        # The difference of logarithms holds where both densities underflow.
        (log_p, sign_p), (log_q, sign_q) = self.P.log_abs_density(*x), self.Q.log_abs_density(*x)
        return sign_p * sign_q * jnp.exp(log_p - log_q)

    @property
    def shape(self) -> tuple[int, ...]:
        shapes: list[tuple[int, ...]] = [self.P.shape, self.Q.shape]
        return jnp.broadcast_shapes(*shapes)

    def values(self, points, lead):
        return _family_values(self, points, lead)


def _family_values(f, points, lead):
    """The values of a function that broadcasts its family against points by itself: all but the atoms' axis."""
    if not f.shape:
        return Integrand.values(f, points, lead)
    return jax.vmap(lambda point: at(f, point), in_axes=lead - 1, out_axes=-1)(points)


def log(Q: Any) -> Integrand:
    """The log-density of a measure, a Markov kernel or a ratio P / Q, as a function that ``expect`` can look into.

    Args:
        Q: a Measure (density against counting measure), a Conditional (log(K) is a function of (x…, y)), or P / Q.

    Returns:
        An Integrand in nats: call it on points, add and multiply it, integrate it.

    Raises:
        TypeError: Q is none of these.

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> from measure_xent import log
        >>> Q = mx.Categorical(probs=jnp.array([0.5, 0.25, 0.25]))
        >>> log(Q)(jnp.array([0, 1])).tolist()
        [-0.6931, -1.3863]
        >>> float(-mx.Dirac(1).expect(log(Q)))
        1.3863
    """
    if isinstance(Q, RadonNikodym):
        return log(Q.P) - log(Q.Q)
    if hasattr(Q, "log_density"):
        return LogDensity(Q)
    raise TypeError(f"log(Q): Q must be a Measure, a Conditional or a ratio P / Q, got {type(Q).__name__}")


def log2(Q: Any) -> Integrand:
    """log(Q) in bits: see ``log``.

    Example:
        >>> import measure_xent as mx
        >>> float(-mx.Dirac(3).expect(mx.log2(mx.DiscreteUniform(8))))
        3.0
    """
    return log(Q) / math.log(2)


def log_abs(density: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(log|d|, sign d) of a density that may be signed."""
    return jnp.log(jnp.abs(density)), jnp.where(density < 0, -1, 1)
