"""The derivatives of functions of the rows of hidden @ weight, whose matrix of logits never exists.

The scalar integral Σᵢ wᵢ values(hᵢ W, …) knows the weights of its rows, so that a block of logits gives the value and, times
its softmax residual, both gradients: three matrix products in all. Of the values of each row the weights are the cotangents
that come later: their gradient is the integral's with these, and a fourth product made the values.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._strict import custom_jvp
from .classes import accumulator
from .head_function import Dimensions, HeadFunction, Points, tangent_along
from .linear import Linear
from .matrix import Epilogue, Matrix
from .mesh import sum_over, vary, varying, zeros
from .null import differentiated
from .partition import placed_as
from .summand import Gradient, OfFigures, is_smooth, smooth_leaves


def per_row(
    values: Callable,
    hidden: Float[Array, "*rows D"],
    matrix: Matrix,
    epilogue: Epilogue,
    shared: PyTree[Array],
    rows: PyTree[Array],
    indices: PyTree[Array],
    dimensions: Dimensions,
    *,
    of_figures: OfFigures | None = None,
    parts: frozenset[str] = frozenset(),
    size: int | None = None,
    residual_bytes: int = 0,
    copies: int = 1,
) -> PyTree[Float[Array, "*rows"]]:
    """``values(axis_name)(hidden @ weight, shared, rows, indices)`` of every row, a block at a time.

    Over the mesh axes ``parts`` each device has a part of the classes. A gradient takes four matrix products; or three, where
    the exponentials of all logits are no more than ``residual_bytes`` and are kept for it.
    """
    points = jax.tree.map(jnp.asarray, Points(hidden, matrix.weight, epilogue, shared, rows, indices))
    points = _varied(points, parts)
    dims = Points.dims(hidden.ndim - 1, matrix.empty, epilogue, dimensions, indices)
    kept: Any = dict(residual_bytes=residual_bytes, copies=copies)
    function = HeadFunction(values, of_figures, matrix.empty, dims, size, of_each=True, **kept)
    value = custom_jvp(_in_batches(function, HeadFunction.values_of_rows))

    def jvp(primals, tangents):
        points, moved = Points(*primals), Points(*tangents)
        wanted = _wanted(moved)
        if function.keeps(wanted, points):
            out, kept = _value_and_kept(function, value)(*primals)
        else:
            out, kept = value(*primals), None
        instantiate = lambda t, x: zeros(jax.typeof(x)) if differentiated(t) is None else t
        moving = jax.tree.map(instantiate, moved.parts(wanted), points.parts(wanted))
        tangent = iter(_derivative(function, wanted)((points, kept), moving, smooth_leaves(out)[0]))
        return out, jax.tree.map(lambda x: next(tangent) if is_smooth(x) else _still(x), out)

    value.defjvp(jvp, symbolic_zeros=True)
    return value(*points)


def _still(x):
    return jax.custom_derivatives.zero_from_primal(x, symbolic_zeros=True)


def _value_and_kept(function, value):
    """Of the points. What is kept is a constant of the derivative, whose own derivative is that of plain operations."""
    both = custom_jvp(_in_batches(function, HeadFunction.values_and_kept))

    def jvp(primals, tangents):
        out, kept = both(*primals)
        return (out, kept), (tangent_along(value, primals, tangents), jax.tree.map(_still, kept))

    both.defjvp(jvp, symbolic_zeros=True)
    return both


def _in_batches(function, method):
    """A method of the function of each row; of a batch by one more axis of rows."""
    in_batches = jax.custom_batching.custom_vmap(functools.partial(method, function))

    @in_batches.def_vmap
    def _(size, here, *points):
        of_batch = function.of_batch(Points(*here))
        if of_batch is None:
            axes = jax.tree.map(lambda x: 0 if x else None, tuple(here))
            out = jax.vmap(functools.partial(method, function), in_axes=axes)(*points)
        else:
            function_of_batch, taken = of_batch
            spread = lambda x, here, taken: jnp.broadcast_to(x, (size, *x.shape)) if taken and not here else x
            out = _in_batches(function_of_batch, method)(*jax.tree.map(spread, points, tuple(here), tuple(taken)))
        return out, jax.tree.map(lambda _: True, out)

    return in_batches


def _derivative(function: HeadFunction, wanted: Gradient) -> Linear:
    """The derivative of the values along those parts of the points; its transpose is the integral's gradient."""

    def along(known, moving):
        points, _ = known
        values = lambda parts: smooth_leaves(function.plain_values(*points.with_parts(wanted, parts)))[0]
        return jax.jvp(values, (points.parts(wanted),), (moving,))[1]

    def transpose(known, cotangents):
        points, kept = known
        if kept is None:
            # Else a compiler may make the logits of values and gradient together, and write them.
            indices, cotangents = lax.optimization_barrier((points.indices, cotangents))
            points = points._replace(indices=indices)
        _, (gradient,) = function.with_gradients(wanted, cotangents, points, kept)
        return jax.tree.map(lambda g, x: placed_as(g.astype(x.dtype), x), gradient, points.parts(wanted))

    def of_batch(known, moving):
        points, kept = known
        together = jax.tree.leaves((moving.weight, moving.epilogue, moving.shared))
        if any(together) or (of_batch := function.of_batch(points)) is None:
            return None
        function_of_batch, taken = of_batch
        all_of = lambda tree: jax.tree.map(lambda _: True, tree)
        moving = moving._replace(hidden=all_of(moving.hidden), rows=all_of(moving.rows))
        return _derivative(function_of_batch, wanted), (taken, all_of(kept)), moving

    return Linear(along, transpose, of_batch)


def integral(
    values: Callable,
    hidden: Float[Array, "*rows D"],
    matrix: Matrix,
    epilogue: Epilogue,
    weights: Float[Array, "*rows"],
    shared: PyTree[Array],
    rows: PyTree[Array],
    indices: PyTree[Array],
    dimensions: Dimensions,
    *,
    of_figures: OfFigures | None = None,
    no_null_rows: bool = False,
    parts: frozenset[str] = frozenset(),
    size: int | None = None,
    copies: int = 1,
) -> PyTree[Float[Array, ""]]:
    """Σᵢ weightsᵢ · valuesᵢ, and with it, where it is differentiated, its gradient: three matrix products.

    A row of weight 0 contributes exactly 0, whatever it holds, to the value and to every derivative; ``no_null_rows`` says that
    there is none. Inside shard_map the total is of this device's rows; over the mesh axes ``parts`` each device has a part of
    the classes, and ``values`` sums over them.
    """
    points = Points(hidden, matrix.weight, epilogue, shared, rows, indices)
    weights, *points = _varied((weights, *points), parts)
    dims = Points.dims(weights.ndim, matrix.empty, epilogue, dimensions, indices)
    how: Any = dict(of_each=False, no_null_rows=no_null_rows, copies=copies)
    function = HeadFunction(values, of_figures, matrix.empty, dims, size, **how)
    value = custom_jvp(function.integral)

    def jvp(primals, tangents):
        weights, *points = primals
        dweights, *dpoints = tangents
        wanted = _wanted(Points(*dpoints), dweights)
        moved = Points(*dpoints).parts(wanted)._replace(weights=dweights if wanted.weights else None)
        out, gradients = function.with_gradients(wanted, weights, Points(*points))
        inner = lambda *pair: sum_over(_inner(*pair), varying(_inner(*pair)) & parts)
        along = lambda gradient: sum(map(inner, jax.tree.leaves(gradient), jax.tree.leaves(moved)))
        leaves, tree = jax.tree.flatten(out)
        tangent = [jnp.asarray(along(g), x.dtype) for x, g in zip(leaves, gradients, strict=True)]
        return out, jax.tree.unflatten(tree, tangent)

    value.defjvp(jvp, symbolic_zeros=True)
    return value(weights, *points)


def _varied(arguments, parts):
    """Arguments as varying over devices: a gradient is of this device's rows, and the transpose of ``vary`` sums."""
    return jax.tree.map(lambda x: vary(x, varying(arguments) - parts), arguments)


def _wanted(moved: Points, weights: Any = None) -> Gradient:
    """What has a tangent, by leaf of what is shared and of rows."""
    moves = lambda tree: tuple(differentiated(t) is not None for t in jax.tree.leaves(tree))
    one = lambda tree: any(moves(tree))
    by_leaf = lambda tree: moves(tree) if one(tree) else None
    hidden, weight, epilogue, weights = map(one, (moved.hidden, moved.weight, moved.epilogue, weights))
    return Gradient(hidden, weight, epilogue, weights, by_leaf(moved.shared), by_leaf(moved.rows))


def _inner(gradient, tangent):
    tangent = differentiated(tangent)
    if tangent is None:
        return 0
    gradient = placed_as(gradient, tangent)
    dtype = accumulator(gradient.dtype)
    return jnp.sum(gradient.astype(dtype) * tangent.astype(dtype))
