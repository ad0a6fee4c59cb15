"""Atoms of weight 0: what stands in for them, and functions at atoms as factors of their weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

from .._integrands.integrand import Integrand
from .._kernels.classes import accumulator
from .._kernels.null import null_atoms, without
from .._kernels.partition import take_one
from .members import without_null


def stand_in(points: PyTree, null: Shaped[Array, "*family k"]) -> PyTree:
    """The points, with another atom's in place of each null one, so that no derivative is taken at a null atom.

    The stand-in is the first atom that is not null, a point where the integral needs the integrand anyway; where all
    atoms are null it is 0.
    """
    axis = null.ndim - 1
    first = jnp.argmin(null, axis=-1, keepdims=True)

    def replace(x):
        if x.shape[axis] == 1 != null.shape[axis]:  # shared by all atoms
            return x
        event = (1,) * (x.ndim - null.ndim)
        lead = jnp.broadcast_shapes(null.shape, x.shape[: null.ndim])
        x = jnp.broadcast_to(x, (*lead, *x.shape[null.ndim :]))
        index = jnp.broadcast_to(first, (*lead[:-1], 1)).reshape(*lead[:-1], 1, *event)
        other = take_one(x, index, axis)
        none = jnp.all(null, axis=-1, keepdims=True)
        other = jnp.where(none.reshape(none.shape + event), jnp.zeros((), x.dtype), other)
        return jnp.where(null.reshape(null.shape + event), other, x)

    return jax.tree.map(replace, points)


def factors_at(f: Integrand, points: Any, weights: Any, no_null_atoms: bool) -> Any:
    """f at the atoms, as a factor of their weights."""
    lead = weights.ndim
    if no_null_atoms:
        return f.values(points, lead)
    leads = [x.shape[:lead] for x in jax.tree.leaves(points)]
    weights = jnp.broadcast_to(weights, jnp.broadcast_shapes(weights.shape, *leads))
    absent, held = null_atoms(lambda points: f.values(points, lead), weights, (points,))
    present, away = without_null(f, jnp.all(absent, axis=-1)), absent
    if not f.shape:  # one function for the whole family: a shared point is null only where it is so for all members
        shared = tuple(i for i, n in enumerate(leads[0][:-1]) if n == 1)
        away = jnp.all(absent, axis=shared, keepdims=True)
    return without(absent, present.values(stand_in(points, away), lead), held)


def weighted(weights, value):
    w = weights.reshape(weights.shape + (1,) * max(0, value.ndim - weights.ndim))
    dtype = jnp.result_type(accumulator(jnp.result_type(value.dtype, jnp.bfloat16)), w.dtype)
    return w.astype(dtype) * value.astype(dtype)
