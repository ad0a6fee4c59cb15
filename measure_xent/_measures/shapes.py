"""What the shapes of a measure tell: functions, most with a case a type of measure."""

import functools
from collections.abc import Callable
from typing import Any

import jax

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


def enumerable(P: Any) -> bool:
    """Whether P's atoms are all of it, and in a list."""
    return not any(map(has_law, P.forms()))
