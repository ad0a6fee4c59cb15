"""What is integrated against: finite measures on the classes, in one normal form."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .classes import Classes, out_of_range
from .layout import CLASSES, rows_of

# So many are comparisons, which fuse into the loop that writes or reads a row; a scatter would not.
FEW_ATOMS = 4


class Target(NamedTuple):
    """A finite measure on the classes 0..V−1 in normal form, Σ_j weights_j δ_{indices_j} + background·# + dense.

    Parts that are absent are None. Leading axes index a family and broadcast against the logits'.
    """

    indices: Int[Array, "*family k"] | None = None
    weights: Float[Array, "*family k"] | None = None
    background: Float[Array, "*family"] | None = None
    dense: Float[Array, "*family V"] | None = None

    def dims(self, rank: int) -> "Target":
        """The names of each part's axes in its place, so many of them rows."""
        tails = {"indices": (None,), "weights": (None,), "background": (), "dense": (CLASSES,)}
        names: Any = {name: (*rows_of(rank), *tail) for name, tail in tails.items() if getattr(self, name) is not None}
        return Target(**names)


def split_by_row(target: Target, family: tuple[Any, ...]) -> tuple[Target, Target]:
    """The target as the parts that are each row's by_row, with the family's axes, and those shared by all, with none."""
    by_row, shared = {}, {}
    for name, x in target._asdict().items():
        if x is not None:
            tail = x.ndim - (name != "background")
            lead, event = x.shape[:tail], x.shape[tail:]
            if math.prod(lead) == 1 < math.prod(family):
                shared[name] = x.reshape(event)
            else:
                by_row[name] = jnp.broadcast_to(x, (*family, *event))
    return Target(**by_row), Target(**shared)


def join(by_row: Target, shared: Target) -> Target:
    return Target(*(a if b is None else b for a, b in zip(by_row, shared, strict=True)))


def mass(target: Target, classes: Classes) -> Float[Array, "*family"]:
    """The target's mass, a row."""
    total = jnp.asarray(0.0)
    if target.weights is not None:
        total += jnp.sum(target.weights, axis=-1)
    if target.background is not None:
        total += classes.count * target.background
    if target.dense is not None:
        total += classes.all_parts(jnp.sum(target.dense, axis=-1))
    return total


def mass_at(target: Target, index: Int[Array, "*family"], classes: Classes) -> Float[Array, "*family"]:
    """The target's mass at one class a row."""
    total = jnp.zeros(index.shape)
    if target.weights is not None:
        total += jnp.sum(jnp.where(target.indices == index[..., None], target.weights, 0), axis=-1)
    if target.background is not None:
        total += target.background
    if target.dense is not None:
        total += classes.take(target.dense, index[..., None])[..., 0]
    return total


def expand(classes: Classes, *target: Any) -> tuple[Array, Array]:
    """(mass [*, 1], target as a vector over the classes here [*, V]), linear in the measure."""
    indices, weights, background, dense = target
    vector = jnp.asarray(0.0)[None]
    if weights is not None:
        vector += _scatter(indices - classes.first, weights, classes.here)
    if background is not None:
        vector += background[..., None]
    if dense is not None:
        vector += dense
    return mass(Target(*target), classes)[..., None], vector


def is_null(classes, weights, background, dense):
    """Whether each row's target is the null measure, [*, 1]."""
    null = jnp.ones((1,), bool)
    if weights is not None:
        null &= jnp.all(weights == 0, axis=-1, keepdims=True)
    if background is not None:
        null &= background[..., None] == 0
    if dense is not None:
        null &= classes.all_parts(jnp.sum(dense != 0, axis=-1, keepdims=True)) == 0
    return null


def _scatter(indices, weights, classes):
    if indices.shape[-1] <= FEW_ATOMS:
        at = jnp.arange(classes)
        atoms = range(indices.shape[-1])
        return sum(jnp.where(at == indices[..., j : j + 1], weights[..., j : j + 1], 0) for j in atoms)
    indices, weights = jnp.broadcast_arrays(indices, weights)
    indices = jnp.where(out_of_range(indices, classes), classes, indices).reshape(-1, indices.shape[-1])
    rows = jnp.arange(indices.shape[0])[:, None]
    flat = weights.reshape(indices.shape)
    out = jnp.zeros((indices.shape[0], classes), weights.dtype).at[rows, indices].add(flat, mode="drop")
    return out.reshape(*weights.shape[:-1], classes)
