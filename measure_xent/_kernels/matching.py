"""Which atoms a point is, of many points, without comparing all with all.

Integers that span few values are looked up in a table of sums; anything else is sorted once and found by bisection. Both keep
what depends on the atoms alone apart from the point, so that ``vmap`` over points shares it.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

FEW = 64  # atoms that are compared, in one pass
COLUMNS = 8  # of numbers that a point may be, to be sorted by


def mass_of(
    atoms: Sequence[Shaped[Array, "*family k e"]],
    weights: Float[Array, "*family k"],
    x: Sequence[Shaped[Array, "*family e"]],
) -> tuple[Float[Array, "*family"], Bool[Array, "*family"]]:
    """(Σ weights of the atoms that are x, whether there is one), each coordinate a row of numbers."""
    k = weights.shape[-1]
    if k <= FEW or sum(a.shape[-1] for a in atoms) > COLUMNS:
        return _by_comparison(atoms, weights, x, k if k <= FEW else 1024)
    pairs = [(a[..., i], v[..., i]) for a, v in zip(atoms, x, strict=True) for i in range(a.shape[-1])]
    shape = jnp.broadcast_shapes(weights.shape[:-1], *(v.shape for _, v in pairs))
    kinds = [_comparable(a.dtype, v.dtype) for a, v in pairs]
    atoms = [jnp.broadcast_to(a, weights.shape).astype(t) for (a, _), t in zip(pairs, kinds, strict=True)]
    x = [jnp.broadcast_to(v, shape).astype(t) for (_, v), t in zip(pairs, kinds, strict=True)]
    return _of_members(tuple(atoms), weights, tuple(x))


def _comparable(a, b):
    """The dtype to compare in: of integers one that differences fit."""
    dtype = jnp.promote_types(a, b)
    small = not jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize < 4
    return jnp.dtype(jnp.int32) if small else dtype


def _by_comparison(atoms, weights, x, block):
    def of(atoms, weights):
        same = (jnp.all(a == v[..., None, :], axis=-1) for a, v in zip(atoms, x, strict=True))
        hits = functools.reduce(jnp.logical_and, same)
        return jnp.where(hits, weights, 0).sum(-1), hits.any(-1)

    axis, k = weights.ndim - 1, weights.shape[-1]
    if k <= block:
        return of(atoms, weights)

    @jax.checkpoint
    def step(total, start):
        cut = lambda a: a if a.shape[axis] == 1 else lax.dynamic_slice_in_dim(a, start, block, axis)
        mass, hit = of([cut(a) for a in atoms], cut(weights))
        return (total[0] + mass, total[1] | hit), None

    whole = k - k % block
    first = of(
        [a if a.shape[axis] == 1 else a[(slice(None),) * axis + (slice(whole, None),)] for a in atoms],
        weights[..., whole:],
    )
    return lax.scan(step, first, jnp.arange(0, whole, block))[0]


def _of_members(atoms, weights, x):
    """Member by member of the family, whose axes come last in x."""
    if weights.ndim == 1:
        return _of_one(atoms, weights, x)
    axis = x[0].ndim - (weights.ndim - 1)
    if weights.shape[0] != 1:
        return jax.vmap(_of_members, in_axes=(0, 0, axis), out_axes=axis)(atoms, weights, x)
    shared = functools.partial(_of_members, tuple(a[0] for a in atoms), weights[0])
    return jax.vmap(shared, in_axes=axis, out_axes=axis)(x)


@jax.jit
def _of_one(atoms, weights, x):
    if not all(jnp.issubdtype(a.dtype, jnp.integer) for a in atoms):
        return _by_bisection(atoms, weights, x)
    size = 4 * weights.shape[-1]
    span = [a.max().astype(float) - a.min().astype(float) + 1 for a in atoms]
    few = math.prod(span) <= size
    return lax.cond(few, functools.partial(_by_table, size), _by_bisection, atoms, weights, x)


def _by_table(size, atoms, weights, x):
    """The atoms' values as one index, mixed radix, into a table of sums."""
    low, high = [a.min() for a in atoms], [a.max() for a in atoms]

    def index(values):
        i = jnp.zeros(values[0].shape, jnp.int32)
        for v, a, b in zip(values, low, high, strict=True):
            # Where the table is not used the span may be anything.
            i = i * jnp.clip(b - a + 1, 1, size).astype(jnp.int32) + jnp.clip(v - a, 0, size - 1).astype(jnp.int32)
        return i

    inside = functools.reduce(jnp.logical_and, ((v >= a) & (v <= b) for v, a, b in zip(x, low, high, strict=True)))
    at, here = index(atoms), index(x)
    mass = jnp.zeros(size, weights.dtype).at[at].add(weights, mode="drop")
    known = jnp.zeros(size, bool).at[at].set(True, mode="drop")
    hit = inside & known[here]
    return jnp.where(hit, mass[here], 0), hit


def _by_bisection(atoms, weights, x):
    k = weights.shape[-1]
    *atoms, order = lax.sort((*(a + jnp.zeros((), a.dtype) for a in atoms), jnp.arange(k)), num_keys=len(atoms))
    starts = functools.reduce(jnp.logical_or, (a[1:] != a[:-1] for a in atoms))
    segment = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(starts)])
    mass = jax.ops.segment_sum(weights[order], segment, k, indices_are_sorted=True)

    def below(i):
        """Whether atom i comes before x."""
        less, same = jnp.asarray(False), jnp.asarray(True)
        for a, v in zip(atoms, x, strict=True):
            less, same = less | (same & (a[i] < v)), same & (a[i] == v)
        return less

    def halve(_, ends):
        low, high = ends
        middle = (low + high) // 2
        less = (low < high) & below(jnp.minimum(middle, k - 1))
        return jnp.where(less, middle + 1, low), jnp.where(less | (low >= high), high, middle)

    ends = jnp.zeros(x[0].shape, int), jnp.full(x[0].shape, k)
    at, _ = lax.fori_loop(0, k.bit_length() + 1, halve, ends)
    at = jnp.minimum(at, k - 1)
    hit = functools.reduce(jnp.logical_and, (a[at] == v for a, v in zip(atoms, x, strict=True)))
    return jnp.where(hit, mass[segment[at]], 0), hit
