"""The log-sum-exp of a row as a pair, lse = r + s: a reference, one of the row's logits, and s = log Σ_c exp(z_c − r)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .classes import Classes, entry

# Measured on an H200: half precision waits for arithmetic as much as for memory, and from here on one reduction is faster than
# a maximum and a sum. Merging two partial results costs more than adding a term to one, so each takes a class from every part.
LONG_ROW, PARTS = 512, 8
# XLA's CPU compiler sums rows of up to so many numbers at the speed of memory, longer ones up to twelve times as slowly. Those
# are summed in tiles of so many.
LONGEST_SUM, TILE = 1 << 15, 1 << 10


class Relative(NamedTuple):
    """A row's log-sum-exp as one of its logits and what is more, log Σ_c exp(z_c − reference)."""

    reference: Float[Array, "*family 1"]
    log_sum: Float[Array, "*family 1"]
    at: Int[Array, "*family 1"]  # the class of the reference, V in a row with a NaN


def relative_to_top(classes: Classes, z: Float[Array, "*family V"], platform: str) -> Relative:
    """Relative to the first maximum; on "cuda" by one reduction, else by two.

    The reference is left out of the sum, for 1 + tail would round a tail below 6e-8 away. Its index tells it: XLA may compute
    logits again in each loop that reads them, with another last bit.
    """
    if platform == "cuda":
        top, tail, at = _in_one_pass(z)
    else:
        top, at = classes.top(z, platform)
        # Not z < top: a NaN, which an order may pass over, has to reach the sum.
        tail = classes.sum(lambda z, c: jnp.where(c == at, 0, jnp.exp(above(top, z))), z)
    undefined = jnp.isnan(top) | jnp.isnan(tail)
    log_sum = jnp.where(top == -jnp.inf, jnp.inf, jnp.log1p(tail))
    top, log_sum = (jnp.where(undefined, jnp.nan, x) for x in (top, log_sum))
    return Relative(top, log_sum, jnp.where(undefined, classes.count, at))


def _in_one_pass(z: Float[Array, "*family V"]) -> tuple[Array, Array, Array]:
    """(maximum, Σ over the other classes of exp(z_c − maximum), the maximum's class) by one reduction, of pieces of a row that
    are each relative to their own maximum (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax")."""

    def merge(a, b):
        first = (a[0] > b[0]) | ((a[0] == b[0]) & (a[2] < b[2]))
        (top, tail, at), (lower, more, _) = (
            jax.tree.map(functools.partial(jnp.where, first), *ab) for ab in ((a, b), (b, a))
        )
        return top, tail + jnp.where(lower == top, 1, jnp.exp(lower - top)) * (1 + more), at

    axis = z.ndim - 1
    size = -(-z.shape[-1] // PARTS)
    z = jnp.pad(z, [(0, 0)] * axis + [(0, PARTS * size - z.shape[-1])], constant_values=-jnp.inf)
    pieces = [z[..., part * size : (part + 1) * size] for part in range(PARTS)]
    top = functools.reduce(jnp.maximum, pieces)
    part, alike, tail = jnp.full(top.shape, PARTS, jnp.int32), jnp.full_like(top, -1), jnp.zeros_like(top)
    for k, piece in reversed(list(enumerate(pieces))):
        part = jnp.where(piece == top, k, part)
        alike += piece == top
        tail += jnp.where(piece == top, 0, jnp.exp(piece - top))
    at = part * size + lax.broadcasted_iota(jnp.int32, top.shape, axis)
    nothing = jnp.full((), -jnp.inf, z.dtype), jnp.zeros((), z.dtype), jnp.int32(PARTS * size)
    out = lax.reduce((top, tail + alike, at), nothing, merge, (axis,))
    return tuple(x[..., None] for x in out)


def relative_to_class(z: Float[Array, "*family V"], at: Int[Array, "*family 1"]) -> Relative:
    """Relative to any class, in one pass, of plain arithmetic: NaN or infinite where that fails.

    The sum overflows where the class is too far below the maximum, or −inf.
    """
    logit = entry(z, at)
    # e^16 larger: terms too small for a float32 one by one may add up to a number that it holds.
    lower = materialise_row(logit - 16)
    larger = materialise_row(sum_in_tiles(lambda c, z: jnp.exp(z - along(lower, z)) * all_but(c, at), z))
    return Relative(logit, jnp.log1p(jnp.exp(lower - logit) * larger), at)


def relative_to_maximum(z: Float[Array, "*family V"]) -> Relative:
    """Relative to the maximum by plain arithmetic, told by its value: NaN where that is infinite, and no class is named."""
    top = jnp.max(z, axis=-1, keepdims=True)
    lower = materialise_row(top)
    tail = sum_in_tiles(lambda _, z: jnp.exp(z - along(lower, z)) * below(top, z), z)
    alike = z.shape[-1] - sum_in_tiles(lambda _, z: below(top, z, "background"), z)
    return Relative(top, jnp.log1p(tail + (alike - 1)), jnp.full(top.shape, -1, jnp.int32))


def sum_in_tiles(f: Callable, *arrays: Float[Array, "*family V"]) -> Float[Array, "*family 1"]:
    """Σ_c f(c, *arrays at c), for CPUs; c are floating-point numbers, for comparisons of integers are not kept in the loop.

    Of long rows arrays and classes are tiles, [*family, V / n, n] and [V / n, n], and what they have left over.
    """
    count = arrays[0].shape[-1]
    c = jnp.arange(count, dtype=jnp.float32)
    tiles = 0 if count <= LONGEST_SUM else count // TILE
    first = tiles * TILE
    total: Any = 0
    if tiles:
        cut = lambda x: x[..., :first].reshape(*x.shape[:-1], tiles, TILE)
        sums = lax.optimization_barrier(jnp.sum(f(cut(c), *map(cut, arrays)), axis=-1))
        total = jnp.sum(sums, axis=-1, keepdims=True)
    if first < count:
        total += jnp.sum(f(*(x[..., first:] if first else x for x in (c, *arrays))), axis=-1, keepdims=True)
    return total


def along(row: Float[Array, "*family 1"], z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The row's number for a piece of it, or for its tiles."""
    return row.reshape(*row.shape, *(1,) * (z.ndim - row.ndim))


def all_but(c: Float[Array, "..."], at: Int[Array, "*family 1"], of: str = "tail") -> Float[Array, "..."]:
    """0 for the class ``at``, 1 for the others, by floating-point arithmetic, which XLA keeps in the loop over the classes."""
    number = lambda x: x.astype(jnp.float32)
    if c.ndim == 1:
        return jnp.minimum(jnp.abs(c - materialise_row(number(at), of)), _alike(at, 1, of))
    # Its tile's distance and that within the tile: no numbers of all classes are read for each row.
    inside = at % c.shape[1]
    tile = materialise_row(jnp.abs(c[:, 0] - number(at - inside)), of)
    within = materialise_row(jnp.abs(c[0] - number(inside)), of)
    return jnp.minimum(tile[..., None] + within[..., None, :], _alike(at, 1, of)[..., None])


def below(top: Float[Array, "*family 1"], z: Float[Array, "..."], of: str = "tail") -> Float[Array, "..."]:
    """0 where z is ``top``, 1 where it is less, in the same way: any distance is a number of the smallest."""
    numbers = materialise_row(top, of), _alike(top, float(jnp.finfo(z.dtype).max), of), _alike(top, 1, of)
    row, largest, one = (along(x, z) for x in numbers)
    return jnp.minimum((row - z) * largest, one)


def _alike(row: Float[Array, "*family 1"], number: float, of: str) -> Float[Array, "*family 1"]:
    """The same number a row: a literal would be shared with other sums, see below."""
    return materialise_row(0.0 * row + number, of)


def materialise_row(row: Float[Array, "*family 1"], of: str = "tail") -> Float[Array, "*family 1"]:
    """The same array [*, 1], which XLA's CPU compiler then stores instead of computing it again for every class.

    Each sum needs a copy of its own, told by ``of``: with a shared one XLA stores the terms of the sums, an array [*, V].
    """
    # A selection that changes nothing, which is not fused into a loop. A barrier does not keep JAX 0.10 from fusing.
    return jnp.where(jnp.isnan(row), {"tail": jnp.nan, "background": 0, "dense": 1, "entropy": 2}[of], row)


def distance(reference: Float[Array, "*family 1"], z: Float[Array, "*family V"]) -> Float[Array, "*family V"]:
    """reference − z, where equal values are 0 apart, infinite ones too."""
    alike = z == reference
    # ∞ − ∞ is not computed and then left out: jax_debug_nans would report it.
    return jnp.where(alike, 0, reference - jnp.where(alike, 0, z))


def above(reference: Float[Array, "*family 1"], z: Float[Array, "*family V"]) -> Float[Array, "*family V"]:
    """−distance, or a number as good for its exponential, which is one operation a class less."""
    largest = float(jnp.finfo(z.dtype).max)
    return jnp.where(z == reference, 0, z - jnp.clip(reference, -largest, largest))
