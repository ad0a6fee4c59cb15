"""Integrals over the rows of hidden @ weight, in blocks of rows, so that the matrix of logits never exists.

``values(axis_name)(logits, shared, rows, indices)`` says what is integrated: a pytree of numbers a row, from the rows' logits,
arrays ``shared`` by all rows, and each row's own, the indices being what has no derivative. Over the mesh axes ``axis_name``
each device has a part of the classes.

The scalar integral Σᵢ wᵢ values(hᵢ W, …) knows the weights of its rows, so that a block of logits gives the value and, times
its softmax residual, both gradients: three matrix products in all, where a reduction outside of the kernel would take a fourth
to make the logits again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._strict import custom_jvp
from .classes import accumulator
from .layout import CLASSES, rows_of
from .matrix import Epilogue, Matrix, block_rows, differentiable_logits, kept_in
from .mesh import sum_over, vary, varying
from .null import differentiated, values_at
from .partition import explicit_mesh, partitioned
from .summand import (
    Gradient,
    Nulls,
    OfFigures,
    Summand,
    basis,
    in_blocks,
    is_smooth,
    smooth_leaves,
    total,
    total_and_gradients,
    weigh,
)


def _on_platform(function, sizes, *operands):
    """``function(platform, size, *operands)`` with the platform's size."""
    by_platform = {p: functools.partial(function, p, size) for p, size in sizes.items()}
    return lax.platform_dependent(*operands, **by_platform)


class Dimensions(NamedTuple):
    """The names of the axes of what is shared, and of what each row has, for the partition."""

    shared: PyTree
    rows: PyTree

    def operands(self, rank: int, matrix: Matrix, epilogue: Epilogue, indices: PyTree) -> tuple[Any, ...]:
        """Of the hidden states with so many axes of rows, the weight, what makes logits, and all that follows them."""
        of_rows = rows_of(rank)
        weight = ("features", CLASSES) if matrix.class_axis else (CLASSES, "features")
        of_indices = jax.tree.map(lambda x: (*of_rows, *(None,) * (x.ndim - rank)), indices)
        return (*of_rows, None), weight, epilogue.dims, self.shared, self.rows, of_indices


def per_row(
    values: Callable,
    hidden: Float[Array, "*rows D"],
    matrix: Matrix,
    epilogue: Epilogue,
    shared: PyTree[Array],
    rows: PyTree[Array],
    indices: PyTree[Array],
    dimensions: Dimensions,
    size: int | None = None,
) -> PyTree[Float[Array, "*rows"]]:
    """``values(axis_name)(hidden @ weight, shared, rows, indices)`` of every row, a block at a time.

    A derivative makes the logits of a block again: four matrix products for a gradient.
    """
    rank, empty = hidden.ndim - 1, matrix.empty

    def local(axes):
        value = values(axes.get(CLASSES) or None)

        def blocked(platform, size, weight, epilogue, shared, *rows):
            del platform
            product = differentiable_logits(empty, weight)
            block = jax.checkpoint(lambda hidden, *rows: value(epilogue.logits(product(hidden)), shared, *rows))
            out = lax.scan(lambda _, xs: (None, block(*xs)), None, in_blocks(size, rows))[1]
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(rows[0])], out)

        def of_rows(hidden, weight, epilogue, shared, rows, indices):
            lead = hidden.shape[:rank]
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[rank:]), (hidden, rows, indices))
            sizes = block_rows(len(flat[0]), empty.of(weight), size)
            out = _on_platform(blocked, sizes, weight, epilogue, shared, *flat)
            return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)

        return of_rows

    operands = hidden, matrix.weight, epilogue, shared, rows, indices
    names = rows_of(rank)
    out_dims = functools.partial(jax.tree.map, lambda x: (*names, *(None,) * (x.ndim - rank)))
    return partitioned(local, operands, dimensions.operands(rank, empty, epilogue, indices), out_dims)


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
) -> PyTree[Float[Array, ""]]:
    """Σᵢ weightsᵢ · valuesᵢ, and with it, where it is differentiated, its gradient: three matrix products.

    A row of weight 0 contributes exactly 0, whatever it holds, to the value and to every derivative; ``no_null_rows`` says that
    there is none. ``of_figures`` are the same values where they are functions of a row's figures. Inside shard_map the total is
    of this device's rows; over the mesh axes ``parts`` each device has a part of the classes, and ``values`` sums over them.
    """
    arguments = hidden, matrix.weight, epilogue, weights, shared, rows, indices
    # Arguments are marked as varying over devices: a gradient is of this device's total, and the transpose of ``vary`` sums.
    arguments = jax.tree.map(lambda x: vary(x, varying(arguments) - parts), arguments)
    matrix, rank = matrix.empty, weights.ndim
    of_hidden, of_weight, of_epilogue, *others = dimensions.operands(rank, matrix, epilogue, indices)
    dims = of_hidden, of_weight, of_epilogue, rows_of(rank), *others

    def cast(arguments):
        """With the weight as its products have it: what devices gather."""
        hidden, weight, *others = arguments
        return hidden, matrix.of(weight).weight, *others

    def local(blocked, wanted, axes):
        """``blocked`` of a device's part, with the rows a block."""

        def on_device(hidden, weight, epilogue, weights, shared, rows, indices):
            lead, flatten = weights.shape, lambda x: x.reshape(-1, *x.shape[rank:])
            of_rows = jax.tree.map(flatten, (hidden, weights, rows, indices))
            axis_name = axes.get(CLASSES) or None
            known = values(axis_name), of_figures, axis_name, matrix.of(weight), epilogue, shared
            summand = Summand(*known, Nulls(no_null_rows))
            sizes = block_rows(weights.size, summand.matrix, size, summand.scales("tpu", wanted))
            whole = all(weights.size % size == 0 for size in sizes.values())  # padding has weight 0
            summand = summand._replace(nulls=Nulls(no_null_rows and whole))
            # What a branch closes over is one of its operands.
            value, gradients = _on_platform(functools.partial(blocked, summand), sizes, of_rows)
            return value, [gradient.with_rows(lead) for gradient in gradients]

        return on_device

    def plain(wanted, *arguments):
        """The same from operations that JAX differentiates, in blocks that it makes again."""
        hidden, weight, epilogue, weights, shared, rows, indices = arguments
        smooth, rebuild = smooth_leaves(shared)
        nulls = Nulls(no_null_rows)

        def row(hidden, rows, weight, epilogue, smooth):
            here = matrix._replace(weight=weight)
            return per_row(values, hidden, here, epilogue, rebuild(smooth), rows, indices, dimensions, size)

        def total(weights, *points):
            if no_null_rows:
                return weigh(weights, row(*points))
            stand_in = lambda absent, hidden, rows, *shared: (*nulls.present(absent, (hidden, rows)), *shared)
            return weigh(weights, values_at(row, weights, points, stand_in))

        # Apart: the derivative in the weights is what looks at null rows, and need not be asked for.
        points = hidden, rows, weight, epilogue, smooth
        value, pullback = jax.vjp(lambda *points: total(weights, *points), *points)
        of_weights = jax.vjp(lambda weights: total(weights, *points), weights)[1]

        def gradient(cotangent):
            dhidden, drows, dweight, depilogue, dsmooth = pullback(cotangent)
            dhidden, dweight = dhidden.astype(kept_in(hidden.dtype)), dweight.astype(accumulator(weight.dtype))
            return wanted.of(dhidden, dweight, depilogue, *of_weights(cotangent), dsmooth, drows)

        return value, [gradient(cotangent) for cotangent in basis(value)]

    def gradient_dims(wanted, out):
        value, gradients = out
        of_smooth, _ = smooth_leaves(shared, dims[4])
        each = wanted.of(of_hidden, of_weight, of_epilogue, rows_of(rank), of_smooth, dims[5])
        return jax.tree.map(lambda x: (), value), [each] * len(gradients)

    @functools.partial(custom_jvp, nondiff_argnums=(0,))
    def with_gradients(wanted, *arguments):
        blocked = functools.partial(total_and_gradients, wanted)
        return partitioned(
            functools.partial(local, blocked, wanted), cast(arguments), dims, functools.partial(gradient_dims, wanted)
        )

    def with_gradients_jvp(wanted, primals, tangents):
        # The blocked gradient is not made to be differentiated: its own derivative is that of the plain one.
        leaves, tree = jax.tree.flatten(primals)
        moving = {i: t for i, t in enumerate(jax.tree.leaves(tangents)) if differentiated(t) is not None}
        along = lambda *moved: plain(wanted, *tree.unflatten(_replaced(leaves, dict(zip(moving, moved, strict=True)))))
        _, tangent = jax.jvp(along, [leaves[i] for i in moving], list(moving.values()))
        out = with_gradients(wanted, *primals)
        return out, jax.tree.map(_placed_as, tangent, out)

    with_gradients.defjvp(with_gradients_jvp, symbolic_zeros=True)

    @custom_jvp
    def value(*arguments):
        scalars = functools.partial(jax.tree.map, lambda x: ())
        return partitioned(functools.partial(local, total, Gradient()), cast(arguments), dims, scalars)[0]

    def jvp(primals, tangents):
        *most, shared, rows, _ = tangents
        smooth = [t for t, x in zip(jax.tree.leaves(shared), jax.tree.leaves(primals[4]), strict=True) if is_smooth(x)]
        moved = *most, smooth, rows
        wanted = Gradient(*(any(differentiated(t) is not None for t in jax.tree.leaves(part)) for part in moved))
        out, gradients = with_gradients(wanted, *primals)
        inner = lambda *pair: sum_over(_inner(*pair), varying(_inner(*pair)) & parts)
        along = lambda gradient: sum(map(inner, jax.tree.leaves(gradient), jax.tree.leaves(wanted.of(*moved))))
        leaves, tree = jax.tree.flatten(out)
        tangent = [jnp.asarray(along(g), x.dtype) for x, g in zip(leaves, gradients, strict=True)]
        return out, jax.tree.unflatten(tree, tangent)

    value.defjvp(jvp, symbolic_zeros=True)
    return value(*arguments)


def _inner(gradient, tangent):
    tangent = differentiated(tangent)
    if tangent is None:
        return 0
    gradient = _placed_as(gradient, tangent)
    dtype = accumulator(gradient.dtype)
    return jnp.sum(gradient.astype(dtype) * tangent.astype(dtype))


def _placed_as(x, like):
    """x where another array is, along explicit axes: a kernel, and what JAX differentiates, may have it elsewhere."""
    return x if explicit_mesh(like) is None else jax.reshard(x, jax.typeof(like).sharding)


def _replaced(leaves, new):
    return [new.get(i, x) for i, x in enumerate(leaves)]
