"""Integrands: functions that ``expect`` can look into, and what + − * ** make of them."""

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Shaped

from .._pytree import as_node, pytree, set_fields, static
from .._strict import of_user


class Integrand(abc.ABC):
    """A function on points that ``P.expect`` may recognise and integrate in closed form.

    A subclass gives ``__call__`` on one point (a measure on pairs calls it with both coordinates) and is, like
    everything here, a pytree. Integrands add, subtract and multiply with each other, with numbers and with callables.

    Examples:
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
    def dispatch_on(self) -> tuple[Any, ...]:
        """What rules match on: the integrand, then whatever it is made of that a rule may ask for."""
        return (self,)

    @property
    def model(self) -> Any:
        """The one measure or Conditional whose rows this is a function of, as log(Q) is of Q; None where there is none."""
        return None

    @property
    def row_statistics(self) -> tuple[str, ...]:
        """With a model: what ``integrate_row`` reads of a row beside its cross-entropy and log-partition."""
        return ()

    @property
    def ignores_y(self) -> bool:
        """With a Conditional for a model: whether this reads x alone, as x ↦ H(Q(x)) does, and no y."""
        return False

    def integrate_row(self, row: Any) -> Any:
        """With a model: the integral against a row's target, from what a kernel says of the row."""
        raise NotImplementedError

    def given(self, Q: Any) -> "Integrand":
        """With a model: the same function of another Q, a family with one more axis."""
        raise NotImplementedError

    def scaled(self, *x: Any) -> tuple[Any, Any]:
        """(log_scale, factor): the value as factor · exp(log_scale), which need not underflow."""
        return 0.0, self(*x)

    def values(self, points: Any, lead: int) -> Any:
        """The values at an array of points: ``lead`` axes, the family's and then the atoms', come first on every leaf."""
        function = lambda point: at(self, point)
        for _ in range(lead):
            function = jax.vmap(function)
        return function(points)

    def leaves_to_converge(self, leaves: int) -> int:
        """How many of its values, the first ones, have to converge: all, but where some tell of the others' errors."""
        return leaves

    @property
    def noise(self) -> float:
        """What its values are off by for rounding errors, in units of eps, however small they are: less need not converge."""
        return 0.0

    def by_ratio(self) -> tuple["Integrand", Callable] | None:
        """(g, F) if this is F ∘ g and g a ratio of densities: beside an end g goes on like a power of the distance."""
        return None

    def places(self, x: Any, lead: int) -> Any:
        """Where on the line it is looked at, from points of an integral over the line."""
        return x

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

    def __pow__(self, n: float) -> "Integrand":
        return self.map(Power(n))

    def map(self, g: Callable) -> "Integrand":
        """x ↦ g(f(x)).

        Examples:
            >>> import jax.numpy as jnp, measure_xent as mx
            >>> P = mx.DiscreteUniform(4)
            >>> float(P.expect(mx.log(P).map(jnp.exp)))  # Σ p²
            0.25
        """
        return Composed(g, self)

    # NumPy scalars and arrays then leave c * f to f.
    __array_ufunc__ = None


@pytree
class Power:
    """x ↦ xⁿ."""

    n: float = static()

    def __call__(self, x):
        return x**self.n


def as_tuple(points: Any) -> tuple:
    """The coordinates of a point, or of points."""
    return points if isinstance(points, tuple) else (points,)


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
        raise TypeError(
            f"expect(f): f must be a callable on points, or a dict or tuple of them, got {type(f).__name__}"
        )
    return g


def _as_operand(f: Any) -> Integrand | None:
    if isinstance(f, Integrand):
        return f
    if isinstance(f, dict | list | tuple):
        return Tree(f)
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
        return of_user(self.f)(*x)


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


class Pointwise(Integrand):
    """A function of the values that others, its ``children``, have at the same point."""

    linear = True  # whether its integral is the same function of theirs

    @property
    @abc.abstractmethod
    def children(self) -> tuple[Integrand, ...]: ...

    @abc.abstractmethod
    def with_children(self, children: list[Integrand]) -> Integrand:
        """The same function of others."""

    @abc.abstractmethod
    def combine(self, values: list[Any], lead: int | None = None) -> Any:
        """The value, of the children's values at one point, or with ``lead`` axes, the family's and the atoms', in front."""

    def __call__(self, *x):
        return self.combine([f(*x) for f in self.children])

    def values(self, points, lead):
        return self.combine([f.values(points, lead) for f in self.children], lead)

    @property
    def shape(self):
        return jnp.broadcast_shapes(*(f.shape for f in self.children))

    @property
    def model(self):
        models = [f.model for f in self.children]
        return models[0] if self.linear and models and all(model is models[0] for model in models) else None

    @property
    def dispatch_on(self):
        return (self,) if self.model is None else (self, self.model)

    @property
    def row_statistics(self):
        return tuple(sorted({name for f in self.children for name in f.row_statistics}))

    @property
    def ignores_y(self):
        return all(f.ignores_y for f in self.children)

    def integrate_row(self, row):
        return self.combine([f.integrate_row(row) for f in self.children])

    def given(self, Q):
        return self.with_children([f.given(Q) for f in self.children])


@pytree
class Sum(Pointwise):
    """x ↦ Σ fᵢ(x)."""

    terms: tuple[Integrand, ...]

    @property
    def children(self):
        return self.terms

    def with_children(self, children):
        return Sum(tuple(children))

    def combine(self, values, lead=None):
        return sum(values)


@pytree
class Multiple(Pointwise):
    """x ↦ c · f(x), one c a member of a family."""

    c: Shaped[ArrayLike, "*family"]
    f: Integrand

    @property
    def children(self):
        return (self.f,)

    def with_children(self, children):
        return Multiple(self.c, *children)

    def combine(self, values, lead=None):
        c = jnp.asarray(self.c)
        if lead is not None:
            c = c.reshape((1,) * (lead - 1 - c.ndim) + c.shape)  # families broadcast from the right
        # c has the leading (family) axes of the value
        return jax.tree.map(lambda v: c.reshape(c.shape + (1,) * (jnp.ndim(v) - c.ndim)) * v, values[0])

    def __call__(self, *x):
        return self.c * self.f(*x)

    @property
    def shape(self):
        return jnp.broadcast_shapes(jnp.shape(self.c), self.f.shape)

    @property
    def dispatch_on(self):
        return (self,)  # c is put before the integral, whatever f is of

    def given(self, Q):
        return Multiple(jnp.asarray(self.c)[..., None], self.f.given(Q))


@pytree
class Product(Pointwise):
    """x ↦ Π fᵢ(x)."""

    factors: tuple[Integrand, ...]
    linear = False

    @property
    def children(self):
        return self.factors

    def with_children(self, children):
        return Product(tuple(children))

    def combine(self, values, lead=None):
        return math.prod(values)


@pytree
class Composed(Pointwise):
    """x ↦ g(f(x))."""

    g: Callable
    f: Integrand

    def __post_init__(self):
        set_fields(self, g=as_node(self.g))

    @property
    def children(self):
        return (self.f,)

    def with_children(self, children):
        return Composed(self.g, *children)

    def combine(self, values, lead=None):
        return jax.tree.map(of_user(self.g), values[0])

    @property
    def model(self):
        return self.f.model if hasattr(self.f, "value_of_row") else None

    def integrate_row(self, row):
        value_of_row = self.f.value_of_row  # type: ignore[attr-defined]
        return row.integrate(lambda row: of_user(self.g)(value_of_row(row)))


@pytree
class Tree(Pointwise):
    """Several integrands as one, with a value for each: a dict, list or tuple of them."""

    f: Any

    def __post_init__(self):
        set_fields(self, f=jax.tree.map(as_integrand, self.f, is_leaf=lambda f: not isinstance(f, dict | list | tuple)))

    def map_integrands(self, function: Callable[[Integrand], Any]) -> Any:
        return jax.tree.map(function, self.f, is_leaf=lambda f: isinstance(f, Integrand))

    @property
    def children(self):
        return tuple(jax.tree.leaves(self.f, is_leaf=lambda f: isinstance(f, Integrand)))

    def with_children(self, children):
        return Tree(self.combine(children))

    def combine(self, values, lead=None):
        each = iter(values)
        return self.map_integrands(lambda _: next(each))


ROOM = 2**22  # numbers of an array that an integrand may need at its points


def density_terms(f: Any) -> int:
    """How many numbers a value of f takes, by the mixtures' densities in it."""
    is_leaf = lambda node: hasattr(node, "density_terms")
    return sum(node.density_terms for node in jax.tree.leaves(f, is_leaf=is_leaf) if is_leaf(node))


def room_for(size: int) -> int:
    """How many arrays of a size to hold at a time."""
    return max(1, ROOM // max(1, size))


def in_blocks(f: Callable, x: Any, size: int) -> Any:
    """f mapped over the leading axis of x, ``size`` points at a time, forwards and backwards."""
    if jax.tree.leaves(x)[0].shape[0] <= size:
        return jax.vmap(f)(x)
    return jax.lax.map(jax.checkpoint(f), x, batch_size=size)


def with_model(f: Integrand, Q: Any) -> Any:
    """f as the same function of another Q, or with None in its place."""
    return jax.tree.map(lambda node: Q if node is f.model else node, f, is_leaf=lambda node: node is f.model)
