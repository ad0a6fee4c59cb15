"""Functions with a case a type of measure: most of what its shapes tell."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._forms.law_form import has_law


def shapes_of(tell: Callable[[], Any]) -> Any:
    """What a function tells that reads shapes and types alone."""
    told: list[Any] = []
    jax.eval_shape(lambda: told.append(tell()))
    return told[0]


@functools.singledispatch
def arity(P: Any) -> int:
    """How many coordinates a point has: 1, or the length of the tuple that it is."""
    try:
        return shapes_of(lambda: P.forms()[0].arity)
    except NotImplementedError:  # a measure without forms is not on tuples
        return 1


@functools.singledispatch
def atom_axes(P: Any) -> tuple[int, ...]:
    """The axes of P's atoms, [n] of a list of n. In ``joint(P, K)`` a family K has them behind those of P's family."""
    lists = shapes_of(lambda: [w for form in P.forms() for _, w, _ in form.atom_lists()])
    return (sum(w.shape[-1] for w in lists),)


@functools.singledispatch
def sample_axes(P: Any) -> tuple[int, ...]:
    """The axes of a batch, whose atoms are samples, each a row of data; () of what is no batch."""
    del P
    return ()


@functools.singledispatch
def static_mass(P: Any) -> int | None:
    """The mass where the shapes alone say it, so that normalising makes no atom null."""
    del P
    return None


@functools.singledispatch
def drawn(P: Any, key: Any, shape: tuple[int, ...]) -> Any:
    """Independent points of P."""
    raise NotImplementedError(f"{type(P).__name__} has no sample")


def enumerable(P: Any) -> bool:
    """Whether P's atoms are all of it, and in a list."""
    return not any(map(has_law, P.forms()))


def family_of(*measures: Any) -> tuple[int, ...]:
    """The shape that the families broadcast to, or an error that names them."""
    shapes: list[tuple[int, ...]] = [P.shape for P in measures]
    try:
        return jnp.broadcast_shapes(*shapes)
    except ValueError:
        names = " and ".join(type(P).__name__ for P in measures)
        raise ValueError(f"the families of {names} do not broadcast: {shapes}") from None


def check_families(P: Any, f: Any) -> None:
    """Refuses a function whose family does not broadcast with the measure's, or pairs up with its samples by chance."""
    try:
        jnp.broadcast_shapes(P.shape, f.shape)
    except ValueError:
        hint = "; rows of class masses, such as one-hot ones, are Discrete(weights=rows)" if len(P.shape) > 1 else ""
        raise ValueError(
            f"expect(f): the family of P, {P.shape}, and that of f, {f.shape}, do not broadcast{hint}"
        ) from None
    if f.shape and f.shape == sample_axes(P):
        raise ValueError(
            f"expect(f): P has samples of shape {f.shape} and f is a family of as many functions, which would be integrated "
            "over all pairs. For one of them a sample give the pairs, such as Empirical((logits, labels)) against "
            "Conditional(Categorical), or a family of point masses, Dirac(labels); for all pairs give the family an axis of "
            f"size 1 behind its own, {(*f.shape, 1)}"
        )
