"""Laws of some coordinates of a measure, or of some entries of a vector."""

from typing import Any

import jax.numpy as jnp

from .._measures.laws import Vectors
from .._measures.measure import Measure, Normalized, Scaled, Sum
from .._measures.nested import DimensionCounter, MassOf, draw_of
from .._measures.product import ProductMeasure, check_measure, product
from .._measures.pushforward import pushforward
from .._measures.shapes import arity, enumerable, shapes_of
from .._measures.table import Table
from .._pytree import pytree, static
from .bind import bind
from .conditional import AbstractConditional
from .joint import Joint


def marginal(P: Measure, *coordinates: int) -> Measure:
    """The law of some coordinates of a measure on tuples, or of some entries of a measure of vectors.

    Examples:
        >>> import measure_xent as mx
        >>> dice = mx.product(mx.DiscreteUniform(6), mx.DiscreteUniform(2))
        >>> mx.marginal(dice, 1).expect(lambda coin: coin).item()
        0.5
    """
    check_measure("marginal(P): P", P)
    n = dimensions(P)
    if not coordinates or not all(isinstance(i, int) and -n <= i < n for i in coordinates):
        raise ValueError(f"marginal(P, *coordinates): numbers of P's {n} coordinates, from 0, got {coordinates}")
    which = tuple(i % n for i in coordinates)
    return _marginal(P, which) if arity(P) > 1 or n == 1 else _of_entries(P, which)


def dimensions(P: Measure) -> int:
    """How many coordinates a point of P has; of vectors, how many entries."""
    return arity(P) if arity(P) > 1 else max(1, _entries(P) or 1)


def _entries(P: Measure) -> int | None:
    """The length of P's points, if they are vectors."""

    def length() -> int | None:
        x, weight = draw_of(P, DimensionCounter())
        shape = x.shape[weight.ndim :] if hasattr(x, "shape") else ()
        return shape[0] if len(shape) == 1 else None

    try:
        return shapes_of(length)
    except NotImplementedError:  # without forms nobody knows: numbers
        return None


def by_coordinates(P: Measure) -> Measure:
    """Atoms that are vectors as tuples of numbers; anything else as it is."""
    if arity(P) > 1 or (n := _entries(P)) is None or not enumerable(P):
        return P
    return pushforward(Entries(tuple(range(n)), True), P)


def _of_entries(P: Measure, which: tuple[int, ...]) -> Measure:
    match P:
        case Vectors():
            return P if which == tuple(range(_entries(P) or 1)) else P.marginal(which)
        case Scaled(c=c, P=A):
            return c * _of_entries(A, which)
        case Normalized(P=A):
            return _of_entries(A, which).normalize()
        case Sum(terms=terms):
            return Sum(tuple(_of_entries(A, which) for A in terms))
    return pushforward(Entries(which), P)


def _marginal(P: Measure, which: tuple[int, ...]) -> Measure:
    """By the structure of what has a density, which an image would not have; any other by its atoms."""
    if which == tuple(range(arity(P))):
        return P
    match P:
        case Table() if len(set(which)) == len(which):
            return P.marginal(which)
        case Normalized(P=Table()):
            return _marginal(P.P, which).normalize()
        case ProductMeasure(P=A, Q=B):
            n = arity(A)
            ours, theirs = tuple(i for i in which if i < n), tuple(i - n for i in which if i >= n)
            if (*ours, *(i + n for i in theirs)) == which:
                parts: Any = [_marginal(R, own) if own else R.mass for R, own in ((A, ours), (B, theirs))]
                return product(*parts) if ours and theirs else parts[0] * parts[1]
        case Joint(P=A, K=K):
            n = arity(A)
            if which == (n,) and arity(P) == n + 1:
                return bind(A, K)
            if max(which) < n and isinstance(K, AbstractConditional):
                return _marginal(A.reweight(MassOf(K)), which)
    return pushforward(Coordinates(which), P)


@pytree
class Coordinates:
    """(x₀, …) ↦ some of them."""

    which: Any = static()  # numbers of coordinates

    def __call__(self, *x: Any) -> Any:
        chosen: Any = self.chosen(x)
        return chosen if len(chosen) > 1 else chosen[0]

    def chosen(self, x: tuple) -> tuple:
        return tuple(x[i] for i in self.which)


@pytree
class Entries:
    """x ↦ some entries of a vector: a number of one, a vector of several, or a tuple."""

    which: Any = static()  # numbers of coordinates
    apart: bool = static(default=False)

    def __call__(self, x: Any) -> Any:
        if self.apart:
            return tuple(x[i] for i in self.which)
        return x[jnp.asarray(self.which)] if len(self.which) > 1 else x[self.which[0]]
