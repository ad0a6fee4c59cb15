"""The values of an integrand, a pytree, as one array, and the way back with errors and status."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._integrands.integral import Integral
from .._integrands.integrand import Integrand
from .._kernels.null import null_safe_product


def weighted_leaves(values: Any, w: Float[Array, "*family n"]) -> tuple[Float[Array, "*family leaves n"], Callable]:
    """w · f(x), all of f's leaves flat, and how to make of an array [*family, leaves] what they were."""
    flat, w, back = flattened(values, w)
    return null_safe_product(w, flat), back


def flattened(values: Any, w: Float[Array, "*family n"]) -> tuple[Array, Array, Callable]:
    """f(x) and w as arrays [*family, leaves, n], and the way back."""
    rank = w.ndim - 1
    leaves, tree = jax.tree.flatten(values)
    leaves = [jnp.asarray(v) for v in leaves]
    leaves = [v.reshape(v.shape + (1,) * (w.ndim - v.ndim)) for v in leaves]
    of_two = [jnp.iscomplexobj(v) for v in leaves]  # a complex number is two, each with an error
    leaves = [jnp.stack([v.real, v.imag], axis=-1) if two else v for v, two in zip(leaves, of_two, strict=True)]
    events = [v.shape[w.ndim :] for v in leaves]
    family = jnp.broadcast_shapes(w.shape, *(v.shape[: w.ndim] for v in leaves))
    flat = [
        jnp.broadcast_to(v.reshape(*v.shape[: w.ndim], -1), (*family, int(np.prod(v.shape[w.ndim :])))) for v in leaves
    ]
    flat = jnp.moveaxis(jnp.concatenate(flat, axis=-1), -1, -2)
    dtype = jnp.result_type(flat, w)
    flat, w = flat.astype(dtype), jnp.broadcast_to(w[..., None, :], flat.shape).astype(dtype)
    stops = np.cumsum([int(np.prod(e)) for e in events])[:-1]

    def back(x: Array) -> Any:
        parts = [
            part.reshape(*x.shape[:rank], *e) for part, e in zip(jnp.split(x, stops, axis=rank), events, strict=True)
        ]
        joined = lambda part: lax.complex(part[..., 0], part[..., 1])
        return tree.unflatten([joined(part) if two else part for part, two in zip(parts, of_two, strict=True)])

    return flat, w, back


def with_convergence(
    value: Array,
    error: Array,
    size: Array,
    back: Callable,
    f: Integrand,
    tolerance: float | None,
    converges: bool = True,
) -> Integral:
    """Values [*family, leaves] as an integral: their errors, and whether those are small beside the sums of absolute values."""
    eps = jnp.finfo(value.dtype).eps
    goal = eps**0.5 if tolerance is None else max(tolerance, float(eps))
    # An infinite integrand where there is mass makes an infinite integral, and no mistake.
    far = (error > goal * size + f.noise * eps) & ~jnp.isinf(value) if converges else jnp.zeros(value.shape, bool)
    wrong = far | jnp.isnan(value)
    # The logarithm of a density that is far from 1 has few digits behind its point.
    error = lax.stop_gradient(error + 32 * eps * size + jnp.finfo(value.dtype).tiny)
    watched = f.leaves_to_converge(value.shape[-1])
    return Integral(back(value), jax.tree.map(jnp.abs, back(error)), wrong[..., :watched].any(-1).astype(jnp.int32))
