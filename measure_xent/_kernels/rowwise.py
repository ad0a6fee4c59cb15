"""Functions of rows, whose derivative is made with them in the cache, and of which nothing else is kept."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from .._strict import custom_jvp
from .blocks import BLOCK_BYTES, in_row_blocks
from .mesh import sum_over, varying
from .null import differentiated

BYTES = BLOCK_BYTES // 16  # of an array's block: a function has as many arrays of its own


def rowwise(
    function: Callable, shared: Sequence[Array], first: Float[Array, "*family V"], *others: Shaped[Array, "..."]
) -> Float[Array, "*family"]:
    """``function(shared, first, *others)``, a number for each row of arrays that have the family's axes in front.

    The derivative in these is by the gradient, a row for each. Plain derivatives would keep every number in between, some ten
    for each class. On CPUs both are made a few rows at a time.
    """
    rows, n = (first, *others), len(shared)
    plain = lambda *x: function(x[:n], *x[n:])
    if 4 * first.size <= BYTES:
        return plain(*shared, *rows)
    in_blocks = not any(jnp.ndim(x) for x in shared)  # those that are arrays may be of the family

    def blocked(f: Callable, *x: Array) -> Any:
        if not in_blocks:
            return f(*x)
        block = lambda first, rest, shared: f(*shared, first, *rest)
        on_cpu = functools.partial(in_row_blocks, block, size=BYTES)
        return lax.platform_dependent(x[n], x[n + 1 :], x[:n], cpu=on_cpu, default=block)

    def along(moving, x):
        """The function of some of its arguments alone."""
        return lambda *moved: plain(*_replaced(x, dict(zip(moving, moved, strict=True))))

    def slopes_of(moving):
        def gradient(*x):
            value, pullback = jax.vjp(along(moving, x), *(x[i] for i in moving))
            return pullback(jnp.ones_like(value))

        slopes = custom_jvp(functools.partial(blocked, gradient))
        slopes.defjvp(lambda primals, tangents: (slopes(*primals), jax.jvp(gradient, primals, tangents)[1]))
        return slopes

    value = custom_jvp(functools.partial(blocked, plain))

    def jvp(primals, tangents):
        out, tangents = value(*primals), list(map(differentiated, tangents))
        total = jnp.zeros_like(out)
        of_shared, of_rows = (
            [i for i, t in enumerate(tangents) if t is not None and (i >= n) == kind] for kind in (0, 1)
        )
        for i, slope in zip(of_rows, slopes_of(of_rows)(*primals) if of_rows else (), strict=True):
            inner = (slope * tangents[i]).sum(range(out.ndim, slope.ndim))
            total += sum_over(inner, varying(inner) - varying(out))
        if of_shared:
            moved, moving = ([x[i] for i in of_shared] for x in (primals, tangents))
            total += jax.jvp(along(of_shared, primals), moved, moving)[1]
        return out, total

    value.defjvp(jvp, symbolic_zeros=True)
    return value(*shared, *rows)


def _replaced(x: Any, new: dict[int, Any]) -> list[Any]:
    return [new.get(i, a) for i, a in enumerate(x)]
