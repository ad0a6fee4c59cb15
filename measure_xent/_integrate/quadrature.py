"""Integrals over the line by adaptive quadrature, and over the integers by sums.

The line is first bent: x = x(t) with weights that fall off doubly exponentially, so that infinite and singular ends are as good
as any (Takahasi & Mori 1974). Then t is cut where the measure and the integrand are known not to be smooth, and the panels that
are furthest off, by the difference of Gauss's and Kronrod's rules, are halved until what they are off by is small (Piessens et
al. 1983, *QUADPACK*). Where to cut has no derivative; the sum over the panels has, of every order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._dispatch import rule
from .._integral import Integral
from .._integrand import Integrand
from .._kernels.null import null_safe_product
from .._measures.laws import Continuous, Integers, points_of

END = 3.8  # of t: exp(π/2 · sinh t) is 1e15 there
PANELS, HALVED, ROUNDS = 8, 4, 24  # to start with; at a time; at most
WINDOW = 2048  # integers that a sum reaches

_X = np.array([0.991455371120812639, 0.949107912342758525, 0.864864423359769073, 0.741531185599394440,
               0.586087235467691130, 0.405845151377397167, 0.207784955007898468])  # fmt: skip
_K = np.array([0.022935322010529225, 0.063092092629978553, 0.104790010322250184, 0.140653259715525919,
               0.169004726639267903, 0.190350578064785410, 0.204432940075298892])  # fmt: skip
_G = np.array([0.0, 0.129484966168869693, 0.0, 0.279705391489276668, 0.0, 0.381830050505118945, 0.0])
POINTS = np.concatenate([-_X, [0.0], _X[::-1]])
KRONROD = np.concatenate([_K, [0.209482141084727828], _K[::-1]])
GAUSS = np.concatenate([_G, [0.417959183673469388], _G[::-1]])


def bend(P: Continuous) -> tuple[Callable, Callable]:
    """(t ↦ (x, dx/dt), x ↦ t) for the support of P."""
    low, high = P.support
    finite = [not (isinstance(end, float) and np.isinf(end)) for end in (low, high)]
    parameters = tuple(jnp.asarray(c)[..., None] for c in (low, high, P.width))
    half_pi = np.pi / 2

    def line(t):
        _, _, w = parameters
        u, du = half_pi * jnp.sinh(t), half_pi * jnp.cosh(t)
        return w * jnp.sinh(u), w * jnp.cosh(u) * du

    def ray(t):
        a, _, w = parameters
        u, du = half_pi * jnp.sinh(t), half_pi * jnp.cosh(t)
        return a + w * jnp.exp(u), w * jnp.exp(u) * du

    def interval(t):
        a, b, _ = parameters
        u, du = half_pi * jnp.sinh(t), half_pi * jnp.cosh(t)
        left, right = jax.nn.sigmoid(2 * u), jax.nn.sigmoid(-2 * u)
        # Near an end, the distance from it keeps all its digits.
        return jnp.where(t < 0, a + (b - a) * left, b - (b - a) * right), (b - a) * 2 * left * right * du

    def back(x):
        a, b, w = parameters
        if finite == [False, False]:
            u = jnp.arcsinh(x / w)
        elif finite == [True, False]:
            u = jnp.log(jnp.maximum(x - a, 0) / w)
        else:
            u = (jnp.log(jnp.maximum(x - a, 0)) - jnp.log(jnp.maximum(b - x, 0))) / 2
        return jnp.clip(jnp.arcsinh(u / half_pi), -END, END)

    return interval if finite[1] else ray if finite[0] else line, back


@rule(Continuous, Integrand)
def over_the_line(P: Continuous, f: Integrand) -> Integral:
    """∫ f(x) p(x) dx."""
    # One program, where nobody traces: a compilation for each of its operations would take longer than the integral.
    return jax.jit(lambda P, f: _over_the_line(P, f))(P, f)


def _over_the_line(P, f):
    centred, c = P.centred()
    forward, back = bend(centred)
    density, c = centred.each(), jnp.asarray(c)[..., None]
    column = lambda x: jnp.asarray(x)[..., None]
    breaks = [*map(column, centred.breaks), *(column(x) - c for x in points_of(f))]
    rank = max(len(P.shape), len(f.shape))
    family = jnp.broadcast_shapes((1,) * rank, P.shape, f.shape, *(x.shape[:-1] for x in breaks))
    dtype = jnp.result_type(float, P.width, *breaks)
    spread = lambda t: jnp.broadcast_to(jnp.asarray(t, dtype), (*family, jnp.shape(t)[-1]))

    def terms(t: Float[Array, "*family n"]) -> tuple[Any, Any]:
        """(leaves of p(x) f(x) dx/dt, the nodes last, and the structure they have)."""
        x, dx = forward(t)
        w = jnp.exp(density.log_density_of(x) + jnp.log(dx))  # far out p alone underflows
        # Where the density is 0 no derivative is taken: the integrand is looked at where the density is greatest.
        here = jnp.take_along_axis(x, jnp.argmax(w, axis=-1, keepdims=True), axis=-1)
        fine = jnp.isfinite(w) & (w > 0)
        return _products(f, c + jnp.where(fine, x, here), jnp.where(fine, w, 0))

    def of_panels(edges: Float[Array, "*family m+1"]) -> tuple[list, list, list, Any]:
        """Of each leaf, panel by panel: the sum, its error, the sum of absolute values."""
        a, b = edges[..., :-1, None], edges[..., 1:, None]
        t = (a + b) / 2 + (b - a) / 2 * jnp.asarray(POINTS, dtype)
        leaves, tree = terms(t.reshape(*family, -1))
        width = (edges[..., 1:] - edges[..., :-1]) / 2
        sums, gaps, sizes = [], [], []
        for leaf in leaves:
            leaf = leaf.reshape(*leaf.shape[:-1], -1, len(POINTS))
            h = width.reshape(*family, *(1,) * (leaf.ndim - 2 - len(family)), -1)
            known = lax.stop_gradient(jnp.where(jnp.isfinite(leaf), leaf, 0))
            sum_ = leaf @ jnp.asarray(KRONROD, leaf.dtype)
            sums.append(null_safe_product(jnp.broadcast_to(h, sum_.shape), sum_, sum_))  # panels of length 0 at a pole
            size = h * (jnp.abs(known) @ jnp.asarray(KRONROD, leaf.dtype))
            gap = h * jnp.abs(known @ jnp.asarray(KRONROD - GAUSS, leaf.dtype)) / jnp.where(size == 0, 1, size)
            gaps.append(size * jnp.minimum(1, (200 * gap) ** 1.5))  # QUADPACK's estimate: wary where it is not smooth
            sizes.append(size)
        return sums, gaps, sizes, tree

    def off(edges: Any) -> Float[Array, "*family m"]:
        """How far off each panel is, beside the whole: of several leaves and events, the furthest."""
        _, gaps, sizes, _ = of_panels(edges)
        relative = [
            g / jnp.maximum(s.sum(-1, keepdims=True), jnp.finfo(s.dtype).tiny) for g, s in zip(gaps, sizes, strict=True)
        ]
        furthest = [r.max(axis=tuple(range(len(family), r.ndim - 1))) for r in relative]
        return lax.stop_gradient(jnp.stack(furthest).max(0))

    def halve(state):
        i, edges, error = state
        _, worst = lax.top_k(error, HALVED)
        at = lambda e: jnp.take_along_axis(e, worst, axis=-1)
        middles = (at(edges[..., :-1]) + at(edges[..., 1:])) / 2
        edges = jnp.sort(jnp.concatenate([edges[..., :-HALVED], middles], axis=-1), axis=-1)
        return i + 1, edges, off(edges)

    goal = jnp.finfo(dtype).eps ** 0.5 / 4
    grid = [spread(jnp.linspace(-END, END, PANELS + 1))]
    room = [spread(jnp.full(HALVED * ROUNDS, END))]  # panels of length 0, to be used up
    edges = jnp.sort(jnp.concatenate([*grid, *(spread(back(x)) for x in breaks), *room], axis=-1), axis=-1)
    edges = lax.stop_gradient(edges)
    unfinished = lambda state: (state[0] < ROUNDS) & jnp.any(state[2].sum(-1) > goal)
    _, edges, _ = lax.while_loop(unfinished, halve, (0, edges, off(edges)))
    sums, gaps, sizes, tree = of_panels(lax.stop_gradient(edges))
    ends = terms(spread(jnp.asarray([-END, END])))[0]  # what is cut off there, about
    return _judged(
        tree, sums, [g.sum(-1) + jnp.abs(e).sum(-1) for g, e in zip(gaps, ends, strict=True)], sizes, len(family)
    )


@rule(Integers, Integrand)
def over_the_integers(P: Integers, f: Integrand) -> Integral:
    """Σ f(k) p(k) over a window of integers around the mean. What its outer half adds bounds what is left out."""
    start = jnp.maximum(0, jnp.floor(P.mean - WINDOW / 2))
    start = start.reshape((1,) * (len(f.shape) - start.ndim) + start.shape)
    k = start[..., None] + jnp.arange(WINDOW)
    p = jax.nn.softmax(P.each().log_density_of(k), axis=-1)  # log p is large, and its rounding error too
    outside = jnp.abs(k - jnp.asarray(P.mean)[..., None]) > WINDOW // 4
    leaves, tree = _products(f, k.astype(jnp.int32), p)
    mask = lambda leaf: outside.reshape(*outside.shape[:-1], *(1,) * (leaf.ndim - outside.ndim), -1)
    errors = [jnp.abs(jnp.where(mask(leaf), lax.stop_gradient(leaf), 0)).sum(-1) for leaf in leaves]
    return _judged(tree, leaves, errors, [jnp.abs(lax.stop_gradient(leaf)) for leaf in leaves], p.ndim - 1)


def _products(f: Integrand, x: Array, w: Float[Array, "*family n"]) -> tuple[list, Any]:
    """w · f(x) as leaves with the nodes last, and their tree."""

    def product(v):
        v = jnp.moveaxis(v, w.ndim - 1, -1)
        weights = w.reshape(*w.shape[:-1], *(1,) * (v.ndim - w.ndim), w.shape[-1])
        dtype = jnp.result_type(v, w)
        return null_safe_product(weights.astype(dtype), v.astype(dtype), v.astype(dtype))

    leaves, tree = jax.tree.flatten(f.values(x, w.ndim))
    return [product(leaf) for leaf in leaves], tree


def _judged(tree: Any, terms: list, errors: list, sizes: list, rank: int) -> Integral:
    """The sums over the last axis, their errors, and whether those are small beside the sums of absolute values."""
    values, failed, known = [], 0, []
    for term, error, size in zip(terms, errors, sizes, strict=True):
        value, size = term.sum(-1), size.sum(-1)
        eps = jnp.finfo(value.dtype).eps
        # An infinite integrand where there is mass makes an infinite integral, and no mistake.
        wrong = (error > eps**0.5 * size) & ~jnp.isinf(value)
        failed = failed + wrong.reshape(*wrong.shape[:rank], -1).any(-1).astype(jnp.int32)
        values.append(value)
        known.append(lax.stop_gradient(error) + 8 * eps * size)
    return Integral(tree.unflatten(values), tree.unflatten(known), failed)
