"""Integrals over the rows of hidden @ weight, in blocks of rows, so that the matrix of logits never exists.

``values(axis_name)(logits, shared, rows, indices)`` says what is integrated: a pytree of numbers a row, from the rows' logits
before bias and softcap, arrays ``shared`` by all rows, and each row's own, the indices being what has no derivative. Over the
mesh axes ``axis_name`` each device has a part of the classes.

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
from .blocks import BLOCK_BYTES
from .classes import accumulator
from .layout import CLASSES, rows_of
from .mesh import sum_over, vary, varying, zeros
from .null import differentiated, values_at
from .partition import explicit_mesh, partitioned

# Cost model. A block of R rows reads and writes the accumulated weight gradient once, 8·D·V bytes, beside 6·R·D·V operations
# of its three matrix products: with F operations and B bytes a second, the share of that is 4/3 · F/B / R, whatever D and V
# are. F/B is near 7 on CPUs, where these rows keep the share below a tenth, and 250 on accelerators in bf16, where the sum is
# part of the product: on an H200 4096 rows are 1 % faster than 2048, and take twice the memory.
ROWS = {"cpu": 256, "default": 2048}
# On CPUs the block of logits, R·V numbers, is not to be what fills the memory: at most the weight gradient's size, or this.
# Accelerators have more rows where the block stays below this, else starting kernels would take longer than they run.
LOGITS_BYTES = {"cpu": 8 << 20, "default": 256 << 20}


class Matrix(NamedTuple):
    """hidden ↦ hidden @ weight, the weight [D, V], or [V, D] with ``class_axis`` 0; products accumulate in float32 or wider."""

    weight: Float[Array, "D V"]
    class_axis: int
    precision: Any

    @property
    def classes(self) -> int:
        return self.weight.shape[self.class_axis]

    @property
    def empty(self) -> "Matrix":
        """The same without its weight, for rules of derivatives, which JAX keeps longer than arrays of a trace."""
        return self._replace(weight=None)  # type: ignore[arg-type]

    def logits(self, hidden: Float[Array, "R D"]) -> Float[Array, "R V"]:
        return self._dot(hidden, self.weight, (1, 1 - self.class_axis))

    def rounded(self, residual: Float[Array, "R V"]) -> tuple[Array, Callable]:
        """(2ᵏ · residual in the weight's dtype, what makes 2ᵏ · x of a product with it x).

        A residual has the rows' weights in it, 1/N each, and would underflow in a dtype with fewer exponents than float32: as
        it is rounded, the largest is near the dtype's own. Powers of two round nothing themselves.
        """
        dtype = self.weight.dtype
        if kept_in(dtype) == dtype:
            return residual.astype(dtype), lambda x: x
        largest = jnp.max(jnp.where(jnp.isfinite(residual), jnp.abs(residual), 0))
        # By its bits: exp2 and log2 of an accelerator need not be exact at powers of two.
        wide, bits = (jnp.int64, 52) if residual.dtype == jnp.float64 else (jnp.int32, 23)
        bias = jnp.finfo(residual.dtype).maxexp - 1
        exponent = (lax.bitcast_convert_type(largest, wide) >> bits) - bias
        k = jnp.clip(jnp.finfo(dtype).maxexp - 2 - exponent, -100, 100)
        power = lambda k: lax.bitcast_convert_type((k + bias) << bits, residual.dtype)
        return (residual * power(k)).astype(dtype), lambda x: x * power(-k)

    def hidden_gradient(self, residual: Float[Array, "R V"]) -> Float[Array, "R D"]:
        return self._dot(residual, self.weight, (1, self.class_axis))

    def add_weight_gradient(
        self, total: Array, hidden: Float[Array, "R D"], residual: Float[Array, "R V"], scale: Callable
    ) -> Array:
        """total + scale(hiddenᵀ residual), [D, V] or [V, D]; on CPUs in blocks of classes, for there the product is an array
        first."""
        features, classes = hidden.shape[1], residual.shape[1]
        hidden = hidden.astype(self.weight.dtype)
        product = lambda residual: scale(
            self._dot(*((hidden, residual) if self.class_axis else (residual, hidden)), (0, 0))
        )
        size = max(1, BLOCK_BYTES // (4 * features))

        def in_blocks(total, residual):
            def step(j, total):
                start = jnp.minimum(j * size, classes - size)
                new = product(lax.dynamic_slice_in_dim(residual, start, size, 1))
                if classes % size:  # the last block overlaps
                    at = lax.broadcasted_iota(jnp.int32, new.shape, self.class_axis) + start
                    new = jnp.where(at >= j * size, new, 0)
                old = lax.dynamic_slice_in_dim(total, start, size, self.class_axis)
                return lax.dynamic_update_slice_in_dim(total, old + new, start, self.class_axis)

            return lax.fori_loop(0, -(-classes // size), step, total)

        at_once = lambda total, residual: total + product(residual)
        if classes <= size:
            return at_once(total, residual)
        return lax.platform_dependent(total, residual, cpu=in_blocks, default=at_once)

    def _dot(self, a, b, axes):
        dtype = accumulator(jnp.result_type(a, b))
        numbers = (((axes[0],), (axes[1],)), ((), ()))
        return lax.dot_general(a, b, numbers, precision=self.precision, preferred_element_type=dtype)


def block_rows(count: int, matrix: Matrix, requested: int | None = None) -> dict[str, int]:
    """How many of ``count`` rows of logits to hold at a time, by platform: as asked, or by the cost model.

    Blocks are equal where a divisor of ``count`` is near, else the last is padded.
    """
    features = matrix.weight.size // matrix.classes
    room = {p: size // (accumulator(matrix.weight.dtype).itemsize * matrix.classes) for p, size in LOGITS_BYTES.items()}
    rows = {"cpu": min(ROWS["cpu"], max(features, room["cpu"], 1)), "default": max(ROWS["default"], room["default"])}

    def near(rows):
        rows = min(rows, count)
        divisor = next((r for r in range(rows, rows // 2, -1) if count % r == 0), None)
        return divisor or -(-count // -(-count // rows))

    return {platform: near(requested or size) for platform, size in rows.items()}


def _on_platform(function, sizes, *operands):
    """``function(size, *operands)`` with the platform's size."""
    if len(set(sizes.values())) == 1:
        return function(sizes["cpu"], *operands)
    by_platform = {p: lambda *operands, size=size: function(size, *operands) for p, size in sizes.items()}
    return lax.platform_dependent(*operands, **by_platform)


def _blocks(size, rows):
    """Leaves [N, …] as [blocks, size, …], padded with zeros."""

    def split(x):
        padding = -len(x) % size
        x = jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))) if padding else x
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, rows)


class Dimensions(NamedTuple):
    """The names of the axes of what is shared, and of what each row has, for the partition."""

    shared: PyTree
    rows: PyTree

    def operands(self, rank: int, matrix: Matrix, indices: PyTree) -> tuple[Any, ...]:
        """Of the hidden states with so many axes of rows, the weight, and all that follows them."""
        of_rows = rows_of(rank)
        weight = ("features", CLASSES) if matrix.class_axis else (CLASSES, "features")
        of_indices = jax.tree.map(lambda x: (*of_rows, *(None,) * (x.ndim - rank)), indices)
        return (*of_rows, None), weight, self.shared, self.rows, of_indices


def per_row(
    values: Callable,
    hidden: Float[Array, "*rows D"],
    matrix: Matrix,
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

        def blocked(size, weight, shared, *rows):
            logits = _differentiable_logits(empty._replace(weight=weight))
            block = jax.checkpoint(lambda hidden, *rows: value(logits(hidden), shared, *rows))
            out = lax.scan(lambda _, xs: (None, block(*xs)), None, _blocks(size, rows))[1]
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(rows[0])], out)

        def of_rows(hidden, weight, shared, rows, indices):
            lead = hidden.shape[:rank]
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[rank:]), (hidden, rows, indices))
            sizes = block_rows(len(flat[0]), empty._replace(weight=weight), size)
            out = _on_platform(blocked, sizes, weight, shared, *flat)
            return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)

        return of_rows

    operands = hidden, matrix.weight, shared, rows, indices
    names = rows_of(rank)
    out_dims = functools.partial(jax.tree.map, lambda x: (*names, *(None,) * (x.ndim - rank)))
    return partitioned(local, operands, dimensions.operands(rank, empty, indices), out_dims)


def integral(
    values: Callable,
    hidden: Float[Array, "*rows D"],
    matrix: Matrix,
    weights: Float[Array, "*rows"],
    shared: PyTree[Array],
    rows: PyTree[Array],
    indices: PyTree[Array],
    dimensions: Dimensions,
    *,
    no_null_rows: bool = False,
    parts: frozenset[str] = frozenset(),
    size: int | None = None,
) -> PyTree[Float[Array, ""]]:
    """Σᵢ weightsᵢ · valuesᵢ, and with it, where it is differentiated, its gradient: three matrix products.

    A row of weight 0 contributes exactly 0, whatever it holds, to the value and to every derivative; ``no_null_rows`` says that
    there is none. Inside shard_map the total is of this device's rows; over the mesh axes ``parts`` each device has a part
    of the classes, and ``values`` sums over them.
    """
    arguments = hidden, matrix.weight, weights, shared, rows, indices
    # Arguments are marked as varying over devices: a gradient is of this device's total, and the transpose of ``vary`` sums.
    arguments = jax.tree.map(lambda x: vary(x, varying(arguments) - parts), arguments)
    matrix, rank = matrix.empty, weights.ndim
    of_hidden, of_weight, *others = dimensions.operands(rank, matrix, indices)
    dims = of_hidden, of_weight, rows_of(rank), *others

    def local(blocked, axes):
        """``blocked`` with what it is to know of a device's part: the rows a block, and those of weight 0."""

        def on_device(hidden, weight, weights, shared, rows, indices):
            lead, flatten = weights.shape, lambda x: x.reshape(-1, *x.shape[rank:])
            hidden, weights, rows, indices = jax.tree.map(flatten, (hidden, weights, rows, indices))
            sizes = block_rows(len(hidden), matrix._replace(weight=weight), size)
            whole = all(len(hidden) % size == 0 for size in sizes.values())  # padding has weight 0
            nulls = _Nulls(no_null_rows and whole)
            function = functools.partial(blocked, values(axes.get(CLASSES) or None), nulls)
            value, gradients = _on_platform(function, sizes, hidden, weight, weights, shared, rows, indices)
            return value, [gradient.with_rows(lead) for gradient in gradients]

        return on_device

    def total(values, nulls, size, hidden, weight, weights, shared, rows, indices):
        def block(hidden, weights, rows, indices):
            null = weights == 0
            hidden, rows = nulls.present(null, (hidden, rows))
            value = values(matrix._replace(weight=weight).logits(hidden), shared, rows, indices)
            return _weigh(weights, nulls.known(null, value))

        blocks = _blocks(size, (hidden, weights, rows, indices))
        first = jax.eval_shape(block, *jax.tree.map(lambda x: x[0], blocks))
        start = jax.tree.map(zeros, first)
        return lax.scan(lambda total, xs: (jax.tree.map(jnp.add, total, block(*xs)), None), start, blocks)[0], []

    def total_and_gradients(wanted, values, nulls, size, hidden, weight, weights, shared, rows, indices):
        """The total, and for each of its numbers the gradients that are wanted, summed in float32 or wider."""
        product = matrix._replace(weight=weight)
        smooth, rebuild = _smooth(shared)

        def of_block(hidden, weights, rows, indices):
            held, null = 0, weights == 0
            if wanted.weights:  # the derivative in the weight of a null row is its value as it is
                original = values(product.logits(hidden), shared, rows, indices)
                held = jax.tree.map(lambda o: jnp.where(jnp.isfinite(o), o, 0), original)
            hidden, rows = nulls.present(null, (hidden, rows))

            def function(logits, smooth=smooth, rows=rows):
                value = values(logits, rebuild(smooth), rows, indices)
                return _weigh(weights, nulls.known(null, value)), value

            others = {"smooth": smooth} if wanted.shared else {}
            others |= {"rows": rows} if wanted.rows else {}
            by = lambda logits, others: function(logits, **others)
            total, pullback, value = jax.vjp(by, product.logits(hidden), others, has_aux=True)
            gradients = []
            for cotangent, at in zip(_basis(total), jax.tree.leaves(nulls.known(null, value, held)), strict=True):
                residual, found = pullback(cotangent)
                of_weights = at.astype(weights.dtype) if wanted.weights else None
                gradients.append((residual, Gradient(None, None, of_weights, found.get("smooth"), found.get("rows"))))
            return hidden, total, gradients

        def step(sums, block):
            hidden, value, gradients = of_block(*block)
            kept, of_rows = [], []
            for sum_, (residual, new) in zip(sums[1], gradients, strict=True):
                residual, scale = product.rounded(residual)
                if wanted.weight:
                    added = product.add_weight_gradient(sum_.weight, hidden, residual, scale)
                    sum_ = sum_._replace(weight=added)
                if wanted.hidden:
                    new = new._replace(hidden=scale(product.hidden_gradient(residual)).astype(kept_in(hidden.dtype)))
                kept.append(sum_._replace(shared=jax.tree.map(jnp.add, sum_.shared, new.shared)))
                of_rows.append(new._replace(shared=None))
            return (jax.tree.map(jnp.add, sums[0], value), kept), of_rows

        blocks = _blocks(size, (hidden, weights, rows, indices))
        _, first, gradients = jax.eval_shape(of_block, *jax.tree.map(lambda x: x[0], blocks))
        wide = lambda like, x: zeros(like, x.shape, accumulator(x.dtype))
        start = [
            Gradient(
                weight=wide(residual, weight) if wanted.weight else None,
                shared=jax.tree.map(wide, new.shared, smooth) if wanted.shared else None,
            )
            for residual, new in gradients
        ]
        (value, sums), of_rows = lax.scan(step, (jax.tree.map(wide, first, first), start), blocks)
        of_rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(weights)], of_rows)
        # Where each device has a part of the classes, so is a hidden state's gradient a sum over the parts.
        over_parts = lambda dh: None if dh is None else sum_over(dh, varying(dh) - varying(hidden))
        gradients = [
            of_row._replace(hidden=over_parts(of_row.hidden), weight=sum_.weight, shared=sum_.shared)
            for sum_, of_row in zip(sums, of_rows, strict=True)
        ]
        return value, gradients

    def plain(wanted, *arguments):
        """The same from operations that JAX differentiates, in blocks that it makes again."""
        hidden, weight, weights, shared, rows, indices = arguments
        smooth, rebuild = _smooth(shared)
        nulls = _Nulls(no_null_rows)

        def row(hidden, rows, weight, smooth):
            here = matrix._replace(weight=weight)
            return per_row(values, hidden, here, rebuild(smooth), rows, indices, dimensions, size)

        def total(weights, *points):
            if no_null_rows:
                return _weigh(weights, row(*points))
            stand_in = lambda absent, hidden, rows, *shared: (*nulls.present(absent, (hidden, rows)), *shared)
            return _weigh(weights, values_at(row, weights, points, stand_in))

        # Apart: the derivative in the weights is what looks at null rows, and need not be asked for.
        points = hidden, rows, weight, smooth
        value, pullback = jax.vjp(lambda *points: total(weights, *points), *points)
        of_weights = jax.vjp(lambda weights: total(weights, *points), weights)[1]

        def gradient(cotangent):
            dhidden, drows, dweight, dsmooth = pullback(cotangent)
            dhidden, dweight = dhidden.astype(kept_in(hidden.dtype)), dweight.astype(accumulator(weight.dtype))
            return wanted.of(dhidden, dweight, *of_weights(cotangent), dsmooth, drows)

        return value, [gradient(cotangent) for cotangent in _basis(value)]

    def gradient_dims(wanted, out):
        value, gradients = out
        of_smooth, _ = _smooth(shared, dims[3])
        each = wanted.of(of_hidden, of_weight, rows_of(rank), of_smooth, dims[4])
        return jax.tree.map(lambda x: (), value), [each] * len(gradients)

    @functools.partial(custom_jvp, nondiff_argnums=(0,))
    def with_gradients(wanted, *arguments):
        blocked = functools.partial(total_and_gradients, wanted)
        return partitioned(functools.partial(local, blocked), arguments, dims, functools.partial(gradient_dims, wanted))

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
        return partitioned(functools.partial(local, total), arguments, dims, scalars)[0]

    def jvp(primals, tangents):
        *most, shared, rows, _ = tangents
        smooth = [t for t, x in zip(jax.tree.leaves(shared), jax.tree.leaves(primals[3]), strict=True) if _is_smooth(x)]
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


class Gradient(NamedTuple):
    """The gradient in each argument of an integral, or whether it is wanted; None where it is not."""

    hidden: Any = None
    weight: Any = None
    weights: Any = None
    shared: Any = None
    rows: Any = None

    def with_rows(self, shape: tuple[int, ...]) -> "Gradient":
        """What is a row's, of rows of that shape."""
        reshape = lambda x: x.reshape(*shape, *x.shape[1:])
        of_rows = jax.tree.map(reshape, (self.hidden, self.weights, self.rows))
        return self._replace(**dict(zip(("hidden", "weights", "rows"), of_rows, strict=True)))

    def of(self, *parts: Any) -> "Gradient":
        """Of the parts, those that are wanted."""
        return Gradient(*(part if wanted else None for wanted, part in zip(self, parts, strict=True)))


class _Nulls(NamedTuple):
    """Rows of weight 0, if there are any."""

    none: bool

    def present(self, null, arrays):
        """The rows, with zeros in the place of those that are null."""
        expand = lambda x: null.reshape(*null.shape, *(1,) * (x.ndim - null.ndim))
        return arrays if self.none else jax.tree.map(lambda x: jnp.where(expand(x), 0, x), arrays)

    def known(self, null, value, held=0):
        """The rows' values, those of null rows replaced."""
        held = jax.tree.map(lambda _: held, value) if isinstance(held, int) else held
        return value if self.none else jax.tree.map(lambda v, h: jnp.where(null, h, v), value, held)


def _weigh(weights, value):
    return jax.tree.map(lambda v: jnp.sum(weights * v), value)


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


def kept_in(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that a gradient is kept in until its cotangent has come: wider for one with fewer exponents than float32."""
    return accumulator(dtype) if jnp.finfo(dtype).minexp > jnp.finfo(jnp.float32).minexp else dtype


def _replaced(leaves, new):
    return [new.get(i, x) for i, x in enumerate(leaves)]


def _is_smooth(x):
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _smooth(tree, of=None):
    """The leaves that have derivatives, or ``of`` those, and how to put them back among the others."""
    leaves, structure = jax.tree.flatten(tree)

    def rebuild(smooth):
        smooth = iter(smooth)
        return jax.tree.unflatten(structure, [next(smooth) if _is_smooth(x) else x for x in leaves])

    parts = leaves if of is None else structure.flatten_up_to(of)
    return [part for part, x in zip(parts, leaves, strict=True) if _is_smooth(x)], rebuild


def _basis(value):
    """The cotangents that pick each number of a pytree in turn."""
    leaves, tree = jax.tree.flatten(value)
    unit = lambda k: [jnp.ones_like(x) if i == k else jnp.zeros_like(x) for i, x in enumerate(leaves)]
    return [jax.tree.unflatten(tree, unit(k)) for k in range(len(leaves))]


def _differentiable_logits(matrix):
    """``matrix.logits`` as JAX differentiates it, with a gradient in a half-precision weight that adds up in float32."""
    if accumulator(matrix.weight.dtype) == matrix.weight.dtype:
        return matrix.logits
    empty = matrix.empty

    @custom_jvp
    def logits(hidden, weight, wide):
        return empty._replace(weight=weight).logits(hidden)

    @logits.defjvp
    def _(primals, tangents):
        (hidden, weight, wide), (dhidden, _, dwide) = primals, tangents
        along_weight = empty._replace(weight=dwide).logits(hidden.astype(wide.dtype))
        return logits(*primals), empty._replace(weight=weight).logits(dhidden) + along_weight

    wide = matrix.weight.astype(accumulator(matrix.weight.dtype))
    return lambda hidden: logits(hidden, lax.stop_gradient(matrix.weight), wide)
