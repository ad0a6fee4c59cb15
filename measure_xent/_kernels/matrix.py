"""The product hidden @ weight and what makes logits of it, a block of rows at a time: its gradients, and how many rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._strict import custom_jvp
from .blocks import BLOCK_BYTES
from .classes import accumulator
from .layout import CLASSES

# Cost model. A block of R rows reads and writes the accumulated weight gradient once, 8·D·V bytes, beside 6·R·D·V operations
# of its three matrix products: with F operations and B bytes a second, the share of that is 4/3 · F/B / R, whatever D and V
# are. F/B is near 7 on CPUs, where these rows keep the share below a tenth, and 250 on accelerators in bf16, where the sum is
# part of the product: on an H200 4096 rows are 1 % faster than 2048, and take twice the memory. A TPU that keeps no logits in
# float32 has room for more; so has a kernel that writes none.
ROWS = {"cpu": 256, "default": 2048, "cuda": 4096, "tpu": 8192}
PLATFORMS = tuple(ROWS)
# On CPUs the block of logits, R·V numbers, is not to fill the memory: at most twice the weight gradient's size, or this.
# Accelerators have more rows where the block stays below this, else starting kernels would take longer than they run.
LOGITS_BYTES = {"cpu": 8 << 20, "default": 256 << 20}


class Epilogue(NamedTuple):
    """What makes logits of the product hidden @ weight: softcap · tanh((product + bias) / softcap), where there are such."""

    bias: Float[Array, "V"] | None = None
    softcap: Float[Array, ""] | None = None

    @property
    def dims(self) -> "Epilogue":
        """The names of their axes in their place."""
        return Epilogue(None if self.bias is None else (CLASSES,), None if self.softcap is None else ())  # type: ignore[arg-type]

    def logits(self, product: Float[Array, "R V"]) -> Float[Array, "R V"]:
        if self.bias is not None:
            product = product + self.bias.astype(product.dtype)
        if self.softcap is not None:
            softcap = self.softcap.astype(product.dtype)
            product = softcap * jnp.tanh(product / softcap)
        return product

    def slope(self, logits: Float[Array, "..."]) -> Any:
        """The derivative of logits in the product."""
        return 1 if self.softcap is None else 1 - (logits / self.softcap.astype(logits.dtype)) ** 2


class Matrix(NamedTuple):
    """hidden ↦ hidden @ weight, the weight [D, V], or [V, D] with ``class_axis`` 0; products accumulate in float32 or wider.

    With a ``dtype`` the products are of the weight and the hidden states in it, and the gradient in the weight is not rounded.
    """

    weight: Float[Array, "D V"]
    class_axis: int
    precision: Any
    dtype: Any = None

    @property
    def classes(self) -> int:
        return self.weight.shape[self.class_axis]

    @property
    def rounds(self) -> bool:
        """Whether the gradient in the weight, a sum in float32, is rounded in the end."""
        dtype = self.weight.dtype
        return self.dtype is None and accumulator(dtype) != dtype == kept_in(dtype)

    @property
    def empty(self) -> "Matrix":
        """The same without its weight, for rules of derivatives, which JAX keeps longer than arrays of a trace."""
        return self._replace(weight=None)  # type: ignore[arg-type]

    def of(self, weight: Float[Array, "D V"]) -> "Matrix":
        """The same with another weight, in the dtype of its products."""
        return self._replace(weight=weight if self.dtype is None else weight.astype(self.dtype))

    def logits(self, hidden: Float[Array, "R D"]) -> Float[Array, "R V"]:
        return self._dot(self.rounded_hidden(hidden), self.weight, (1, 1 - self.class_axis))

    def rounded_hidden(self, hidden: Float[Array, "R D"]) -> Float[Array, "R D"]:
        return hidden if self.dtype is None else hidden.astype(self.dtype)

    def part(self, size: int, epilogue: Epilogue) -> tuple["Matrix", Epilogue]:
        """So many of its classes, from the middle, and their epilogue."""
        first = max(0, (self.classes - size) // 2 // 128 * 128)  # accelerators lay weights out in tiles of 128
        cut = lambda x, axis: lax.slice_in_dim(x, first, min(first + size, self.classes), axis=axis)
        bias = None if epilogue.bias is None else cut(epilogue.bias, 0)
        return self._replace(weight=cut(self.weight, self.class_axis)), epilogue._replace(bias=bias)

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
        self,
        total: Array | None,
        hidden: Float[Array, "R D"],
        residual: Float[Array, "R V"],
        scale: Callable,
        rounded: bool = False,
    ) -> Array:
        """total + scale(hiddenᵀ residual), [D, V] or [V, D], the total none yet; on CPUs in blocks of classes, for there the
        product is an array first; ``rounded`` to the weight's dtype if it is all there is."""
        features, classes = hidden.shape[1], residual.shape[1]
        hidden = hidden.astype(self.weight.dtype)
        dtype = self.weight.dtype if rounded and self.rounds else None

        def product(residual):
            operands = (hidden, residual) if self.class_axis else (residual, hidden)
            return scale(self._dot(*operands, (0, 0), dtype).astype(accumulator(self.weight.dtype)))

        if total is None:
            return product(residual)
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

    def _dot(self, a, b, axes, dtype=None):
        dtype = dtype or accumulator(jnp.result_type(a, b))
        numbers = (((axes[0],), (axes[1],)), ((), ()))
        return lax.dot_general(a, b, numbers, precision=self.precision, preferred_element_type=dtype)


def block_rows(
    count: int,
    matrix: Matrix,
    requested: int | None = None,
    scaled: frozenset[str] = frozenset(),
    copies: int = 1,
    rounds: bool = True,
) -> dict[str, int]:
    """How many of ``count`` rows of logits to hold at a time, by platform: as asked, or by the cost model; ``scaled`` are those
    that keep none but exponentials in the weight's dtype, ``copies`` where there are so many arrays like them, ``rounds`` where
    one block makes the weight's gradient without a sum in float32.

    Blocks are equal where a divisor of ``count`` is near, else the last is padded.
    """
    dtype = matrix.weight.dtype
    features, wide = matrix.weight.size // matrix.classes, accumulator(dtype).itemsize
    room = {p: size // (wide * matrix.classes) for p, size in LOGITS_BYTES.items()}
    rows = {
        "cpu": min(ROWS["cpu"], max(2 * features, room["cpu"], 1)),
        "default": max(ROWS["default"], room["default"]),
    }
    rows["tpu"] = rows["default"]
    for platform in scaled:
        # All rows at once where what is kept of them is no larger than a block's and the sum that rounding then needs not.
        # A GPU has a float32 weight's rounded copy beside the block.
        at_least = ROWS["default" if platform == "cuda" and matrix.dtype else platform]
        most = max(at_least, room["default"])
        whole = most + (features * wide // dtype.itemsize if rounds else 0)
        rows[platform] = whole if count <= whole else most

    def near(rows):
        rows = min(rows, count)
        divisor = next((r for r in range(rows, rows // 2, -1) if count % r == 0), None)
        return divisor or -(-count // -(-count // rows))

    sizes = {platform: near(requested or max(1, size // copies)) for platform, size in rows.items()}
    if "cuda" in sizes:
        sizes["cuda"] += -sizes["cuda"] % 8  # its arrays are copied in tiles
    return sizes


def kept_in(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that a gradient is kept in until its cotangent has come: wider for one with fewer exponents than float32."""
    return accumulator(dtype) if jnp.finfo(dtype).minexp > jnp.finfo(jnp.float32).minexp else dtype


def differentiable_logits(matrix: Matrix, weight: Float[Array, "D V"]) -> Callable:
    """``matrix.of(weight).logits`` as JAX differentiates it, with a gradient in the weight that adds up in float32."""
    if accumulator(matrix.of(weight).weight.dtype) == matrix.of(weight).weight.dtype:
        return matrix.of(weight).logits

    @custom_jvp
    def logits(hidden, weight, wide):
        return matrix.of(weight).logits(hidden)

    @logits.defjvp
    def _(primals, tangents):
        (hidden, weight, wide), (dhidden, _, dwide) = primals, tangents
        along_weight = matrix._replace(weight=dwide, dtype=None).logits(
            matrix.rounded_hidden(hidden).astype(wide.dtype)
        )
        return logits(*primals), matrix.of(weight).logits(dhidden) + along_weight

    wide = weight.astype(accumulator(weight.dtype))
    return lambda hidden: logits(hidden, lax.stop_gradient(weight), wide)
