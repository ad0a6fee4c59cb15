"""The classes, the last axis of logits and of dense targets: their indices, sums and extrema."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from .blocks import SHORT_ROW
from .layout import CLASSES, rows_of
from .mesh import AxisName, axes_of, sum_over
from .partition import explicit_mesh, partitioned


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype sums are kept in: float32 for half precision, else the dtype itself."""
    return jnp.promote_types(dtype, jnp.float32)


def class_index(x: Shaped[Array, "..."]) -> Int[Array, "..."]:
    """x as class indices: signed integers wide enough that the number of classes fits, or a TypeError.

    A number too large for them becomes a negative one, of no class either.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"class labels must be integers, got points of dtype {x.dtype}: a measure on the line is not one on "
            "classes; a soft target is Categorical(probs=...) or Discrete(indices, weights)"
        )
    # Not unsigned: with these a difference would wrap, and of 64 bits be a float.
    wide = jnp.iinfo(x.dtype).max > jnp.iinfo(jnp.int32).max
    return x.astype(jax.dtypes.canonicalize_dtype(jnp.int64) if wide else jnp.int32)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes, an array's last axis: all of them, or the equal part that each device of a mesh axis has.

    Sums and extrema are over all of them: of parts, by collectives of one number a row. A part is known to shard_map as
    varying over its axis, which is what makes the transposes of these sums, the gradients, right.
    """

    here: int
    axis_name: AxisName | None = None

    @classmethod
    def of(cls, z: Float[Array, "*family V"], axis_name: AxisName | None = None) -> "Classes":
        return cls(z.shape[-1], axis_name)

    @property
    def count(self) -> int:
        """V."""
        return self.here if self.axis_name is None else self.here * lax.axis_size(self.axis_name)

    @property
    def first(self) -> Any:
        """The index of the first class here."""
        return 0 if self.axis_name is None else self.here * lax.axis_index(self.axis_name)

    def all_parts(self, sums: Any) -> Any:
        """The sums over the classes here, summed over all parts."""
        return sum_over(sums, axes_of(self.axis_name))

    def of_parts(self, reduce: Callable, extrema: Array) -> Array:
        """The extremum over the classes here, of all parts, by the same reduction."""
        if self.axis_name is None:
            return extrema
        return reduce(lax.all_gather(extrema, self.axis_name, to="invarying"), axis=0)

    def largest(self, of_part: Array) -> Array:
        """The largest of all parts'; without a derivative."""
        return of_part if self.axis_name is None else lax.pmax(of_part, self.axis_name)

    def sum(self, f: Callable, z: Float[Array, "*family V"]) -> Float[Array, "*family 1"]:
        """Σ_c f(z_c, c)."""
        # A compiler vectorises the loop over the classes. Where they are few, written out they vectorise over the rows.
        if self.here <= SHORT_ROW:
            total = sum(f(z[..., c : c + 1], self.first + c) for c in range(self.here))
        else:
            total = jnp.sum(f(z, self.first + jnp.arange(self.here)), axis=-1, keepdims=True)
        return self.all_parts(total)

    def top(
        self, z: Float[Array, "*family V"], platform: str
    ) -> tuple[Float[Array, "*family 1"], Int[Array, "*family 1"]]:
        """(the largest logit, the first class that has it)."""
        top, at = first_maximum(z, platform)
        if self.axis_name is None:
            return top, at
        # Not pmax, which has no derivative: JAX 0.10 forgets a custom rule where it linearises a scan, and takes this one's.
        tops, at = lax.all_gather((top, at + self.first), self.axis_name, to="invarying")
        top = jnp.max(tops, axis=0)
        return top, jnp.min(jnp.where(tops == top, at, jnp.iinfo(at.dtype).max), axis=0)

    def heaviest(self, z: Float[Array, "*family V"], k: int) -> Int[Array, "*family k"]:
        """The classes of the k largest logits, those first, and of equal ones the first."""
        if explicit_mesh(z) is None:
            return self._heaviest(z, k)
        local = lambda axes: lambda z: Classes.of(z, axes.get(CLASSES) or None)._heaviest(z, k)
        rows = rows_of(z.ndim - 1)
        return partitioned(local, (z,), ((*rows, CLASSES),), lambda _: (*rows, None))

    def _heaviest(self, z, k):
        values, at = lax.top_k(lax.stop_gradient(z), min(k, self.here))
        if self.axis_name is None:
            return at
        both = lax.all_gather((values, at + self.first), self.axis_name, to="invarying")
        values, at = (jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1) for x in both)
        return entry(at, lax.top_k(values, k)[1])

    def take(self, z: Float[Array, "*family V"], indices: Int[Array, "*family k"]) -> Float[Array, "*family k"]:
        """z at class indices, family axes broadcast; an index out of range reads some number."""
        if self.axis_name is not None:
            at = indices - self.first
            return self.all_parts(jnp.where(out_of_range(at, self.here), 0, take(z, at)))
        if explicit_mesh((z, indices)) is None:
            return take(z, indices)
        # JAX does not index an axis that is spread over devices.
        family = jnp.broadcast_shapes(z.shape[:-1], indices.shape[:-1])
        z, indices = (jnp.broadcast_to(x, (*family, x.shape[-1])) for x in (z, indices))
        local = lambda axes: lambda z, indices: Classes.of(z, axes.get(CLASSES) or None).take(z, indices)
        rows = rows_of(len(family))
        return partitioned(local, (z, indices), ((*rows, CLASSES), (*rows, None)), lambda _: (*rows, None))

    def part(self, z: Float[Array, "*family V"]) -> Float[Array, "*family here"]:
        """Of all classes, those here."""
        return z if self.axis_name is None else lax.dynamic_slice_in_dim(z, self.first, self.here, -1)

    def gather(self, z: Float[Array, "*family here"]) -> Float[Array, "*family V"]:
        """All of the rows whose classes here are z."""
        if self.axis_name is None:
            return z
        empty = jnp.zeros((*z.shape[:-1], self.count), z.dtype)
        return self.all_parts(lax.dynamic_update_slice_in_dim(empty, z, self.first, -1))

    def excludes(self, indices: Int[Array, "*family k"]) -> Bool[Array, "*family k"]:
        """Whether an index is of no class at all."""
        return out_of_range(indices, self.count)


def first_maximum(
    z: Float[Array, "*family V"], platform: str = "default"
) -> tuple[Float[Array, "*family 1"], Int[Array, "*family 1"]]:
    """(the largest, the first index that has it), as is fastest on that platform; a NaN may pass for anything."""
    if z.shape[-1] <= SHORT_ROW:
        columns = [z[..., c : c + 1] for c in range(z.shape[-1])]
        larger = lambda a, b: jax.tree.map(functools.partial(jnp.where, b[0] > a[0]), b, a)
        return functools.reduce(larger, [(x, jnp.full(x.shape, c, jnp.int32)) for c, x in enumerate(columns)])
    argmax = lambda z: jnp.argmax(z, axis=-1, keepdims=True).astype(jnp.int32)
    if platform != "cpu":
        at = argmax(z)
        return entry(z, at), at
    # XLA's CPU compiler makes a maximum at the speed of memory, an argmax ten times as slowly: that of a part has to do.
    size = part_size(z.shape[-1])
    count = z.shape[-1] // size
    if count * size < z.shape[-1]:
        (top, at), (last, at_last) = (first_maximum(x, platform) for x in jnp.split(z, [count * size], axis=-1))
        return jnp.where(last > top, last, top), jnp.where(last > top, count * size + at_last, at)
    parts = z.reshape(*z.shape[:-1], count, size)
    part = argmax(jnp.max(parts, axis=-1))
    at = part * size + argmax(jnp.take_along_axis(parts, part[..., None], axis=-2, mode="promise_in_bounds")[..., 0, :])
    return entry(z, at), at


@functools.cache
def part_size(n: int) -> int:
    """A divisor of n that is near its root, or large enough; else the root."""
    root = math.isqrt(n)
    divisor = next(k for k in range(root, 0, -1) if n % k == 0)
    return divisor if divisor >= min(16, root / 3) else root


def take(z: Float[Array, "*family V"], indices: Int[Array, "*family k"]) -> Float[Array, "*family k"]:
    """z at indices along the last axis, family axes broadcast; an index out of range reads some class."""
    indices = jnp.clip(indices, 0, z.shape[-1] - 1)
    if z.ndim == 1:
        return z[indices]
    family = jnp.broadcast_shapes(z.shape[:-1], indices.shape[:-1])
    z, indices = jnp.broadcast_to(z, (*family, z.shape[-1])), jnp.broadcast_to(indices, (*family, indices.shape[-1]))
    return entry(z, indices)


def entry(z: Float[Array, "*family V"], at: Int[Array, "*family k"]) -> Float[Array, "*family k"]:
    """z at indices that are in bounds: to look whether they are takes XLA's CPU compiler 60 ns a row."""
    return jnp.take_along_axis(z, at, axis=-1, mode="promise_in_bounds")


def out_of_range(indices: Int[Array, "*family k"], classes: int) -> Bool[Array, "*family k"]:
    """Whether an index is not among 0..classes−1."""
    return (indices < 0) | (indices >= classes)
