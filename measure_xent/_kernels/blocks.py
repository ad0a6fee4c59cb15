"""Row blocks: a pass over a matrix in pieces that fit the cache, where a compiler would walk memory once an operation."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from .mesh import zeros

# Cost model, measured on x86 CPUs: rows of up to 32 columns are best written out column by column; longer ones are read
# from memory once an operation, and up to four times as fast in blocks of about this size, which stay in the cache.
BLOCK_BYTES = 4 << 20
SHORT_ROW = 32


def in_row_blocks(
    f: Callable,
    matrix: Shaped[Array, "*rows V"],
    rows: Any = (),
    shared: Any = (),
    size: int = BLOCK_BYTES,
    longer_than: int = SHORT_ROW,
) -> Any:
    """``f(matrix, rows, shared)``, on a CPU, in blocks of rows, of so many bytes in float32, where that is faster.

    ``f`` maps each row by itself: every leaf of ``rows`` and of the result has ``matrix``'s leading axes.
    """
    shape = matrix.shape[:-1]
    count, columns = math.prod(shape), matrix.shape[-1]
    some = max(1, size // (4 * columns))
    if not isinstance(count, int) or columns <= longer_than or count <= some:
        return f(matrix, rows, shared)
    return _blocked(f, shape, some, matrix, rows, shared)


def _blocked(f, shape, size, matrix, rows, shared):
    n, count = len(shape), math.prod(shape)
    size = -(-count // -(-count // size))  # so many blocks, but of one size: what overlaps is done twice
    if matrix.shape[-1] <= 2 * SHORT_ROW:
        size = min(count, size + -size % LANES)  # see is_odd
    flatten = lambda x: x.reshape(count, *x.shape[n:])
    matrix, rows = flatten(matrix), jax.tree.map(flatten, rows)

    def block(start):
        cut = lambda x: lax.dynamic_slice_in_dim(x, start, size)
        if matrix.dtype.itemsize == 2:
            # XLA slices 16-bit floats by way of a float32 copy of all of the matrix; their bits, as integers, it slices as
            # they are. Without the barrier it would lift all of the bits out of the loop, another copy.
            bits = lax.bitcast_convert_type(lax.optimization_barrier((matrix, start))[0], jnp.uint16)
            piece = lax.bitcast_convert_type(cut(bits), matrix.dtype)
        else:
            piece = cut(matrix)
        return f(piece, jax.tree.map(cut, rows), shared)

    out = jax.tree.map(lambda a: zeros(a, (count, *a.shape[1:])), jax.eval_shape(block, 0))

    def step(i, out):
        start = jnp.minimum(i * size, count - size)  # the last block overlaps, and writes the same again
        return jax.tree.map(lambda o, b: lax.dynamic_update_slice_in_dim(o, b, start, 0), out, block(start))

    out = lax.fori_loop(0, -(-count // size), step, out)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), out)


LANES, MANY_ROWS = 8, 1 << 8


def is_odd(matrix: Shaped[Array, "*rows V"]) -> bool:
    """Whether rows are many, short, and in a number that XLA's CPU compiler makes no vectors of: what is done once a row then
    takes it seven times as long."""
    count = math.prod(matrix.shape[:-1])
    return matrix.shape[-1] <= 2 * SHORT_ROW and isinstance(count, int) and count > MANY_ROWS and count % LANES > 0


def in_even_rows(f: Callable) -> Callable:
    """``f(matrix, rows, shared)`` as ``in_row_blocks`` takes it, of the last few rows by itself."""

    def parted(matrix, rows, shared):
        lead = matrix.shape[:-1]
        count = math.prod(lead)
        even = count - count % LANES
        flat = lambda x: x.reshape(count, *x.shape[len(lead) :])
        cut = lambda part: jax.tree.map(lambda x: flat(x)[part], (matrix, rows))
        # A barrier a leaf: what nobody reads of them is not made.
        one = lambda part: jax.tree.map(lax.optimization_barrier, f(*cut(part), shared))
        parts = [one(slice(even)), one(slice(even, count))]
        join = lambda *x: jnp.concatenate(x).reshape(*lead, *x[0].shape[1:])
        return jax.tree.map(join, *parts)

    return parted


def in_float32(f: Callable) -> Callable:
    """``f(matrix, rows, shared)`` of the matrix in float32, some rows at a time: the columns of short rows are read one by one,
    and XLA's CPU compiler would convert a number as often as it is read, which takes five times as long."""
    wide = lambda matrix, rows, shared: f(lax.optimization_barrier(matrix.astype(jnp.float32)), rows, shared)

    def blocked(matrix, rows, shared):
        lead, size = matrix.shape[:-1], BLOCK_BYTES // matrix.shape[-1]
        at_once = math.prod(lead) <= size
        return wide(matrix, rows, shared) if at_once else _blocked(wide, lead, size, matrix, rows, shared)

    return blocked
