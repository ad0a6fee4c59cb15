"""Integrals over the integers: sums over a window, the far ones every so many."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._integrands.integral import Integral
from .._integrands.integrand import Integrand
from .._kernels.null import values_at
from .._measures.laws import Integers
from .leaves import flattened, with_convergence

WINDOW = 2048  # integers that a sum looks at
HEAD, STEPS = 512, 64  # of a graded one: those at first, each one, and those of a block after it


@functools.cache
def graded(coarser: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(k, w) with Σ w f(k) ≈ Σ f(k) over the integers from 0 to 10⁹: all at first, then ever fewer.

    A block of steps of s integers is s times the sum over its nodes, less by Euler and Maclaurin's formula
    (s − 1)/2 (f(a) + f(b)) + (s² − 1)/12 (f′(b) − f′(a)), the slopes by four nodes. A coarser sum, which tells the error,
    has a weight of 0 at the nodes that it leaves out.
    """
    k, w = np.arange(float(WINDOW)), np.where(np.arange(WINDOW) < HEAD, 1.0, 0)
    for block, start in enumerate(range(HEAD - 1, WINDOW - 1, STEPS)):
        s = 2.0**block
        k[start : start + STEPS + 1] = k[start] + s * np.arange(STEPS + 1)
        nodes, step = np.arange(start, start + STEPS + 1, coarser), s * coarser
        of_block = np.full(len(nodes), step)
        of_block[[0, -1]] -= (step - 1) / 2
        slope = np.array([-11, 18, -9, 2]) / (6 * step) * (step**2 - 1) / 12
        of_block[:4] += slope
        of_block[-4:] += slope[::-1]
        of_block[0] -= 1  # the block before has it
        w[nodes] += of_block
    return k, w


def over_the_integers(P: Integers, f: Integrand, tolerance: float | None) -> Integral:
    """Σ f(k) p(k) over a window of integers around the mean. What its outer half adds bounds what is left out."""
    rank = max(len(P.shape), len(f.shape))
    P = P.with_family_rank(rank)
    mean, sd = (jnp.broadcast_to(lax.stop_gradient(x), P.shape)[..., None] for x in (P.centre, P.width))
    # A pmf that is wide is a smooth curve: every so many integers will do. One with a bulk beside 0 has an edge there.
    stride, edge = jnp.maximum(1, jnp.ceil(32 * sd / WINDOW)), (sd > 16) & (mean < 16 * sd)
    (from_0, fine), (_, coarse) = graded(), graded(2)
    k = jnp.maximum(0, jnp.floor(mean - stride * WINDOW / 2)) + stride * jnp.arange(WINDOW)
    k = jnp.where(edge, jnp.asarray(from_0, k.dtype), k)
    p = P.with_point_axis().density_of(k) * jnp.where(edge, jnp.asarray(fine, k.dtype), 1)
    p = p / p.sum(-1, keepdims=True)  # of so many integers, or with a rounding error of its own
    outside = jnp.where(edge, np.arange(WINDOW) >= WINDOW - STEPS, jnp.abs(k - mean) > stride * (WINDOW // 4))
    here = jnp.take_along_axis(k, jnp.argmax(p, axis=-1, keepdims=True), axis=-1)
    # A mass of 0 has a derivative at the end of a parameter's range.
    values = values_at(
        lambda k: f.values(k.astype(int), rank + 1),
        p,
        (jnp.broadcast_to(k, p.shape),),
        lambda absent, k: (jnp.where(absent, here, k),),
    )
    flat, w, back = flattened(values, p)
    terms = w * flat
    known = jnp.abs(lax.stop_gradient(terms))
    other = jnp.where(edge, coarse / fine, 2.0 * (np.arange(WINDOW) % 2 == 0)).astype(terms.dtype)[..., None, :]
    between = jnp.abs(lax.stop_gradient((other * terms).sum(-1) - terms.sum(-1)))
    error = jnp.where(outside[..., None, :], known, 0).sum(-1) + jnp.where(edge | (stride > 1), between, 0)
    return with_convergence(terms.sum(-1), error, known.sum(-1), back, f, tolerance)
