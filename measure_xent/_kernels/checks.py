"""Checks of arguments: what a trace can show raises at once, what only values can show is a chex value assertion."""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from .._pytree import set_fields
from .classes import accumulator


def real_array(name: str, value: Any, *, floating: bool = False) -> Shaped[Array, "..."]:
    """value as an array of real numbers, or a TypeError that names it. Integers become floats where asked."""
    try:
        array = jnp.asarray(fitting(value))
    except (TypeError, ValueError):
        raise TypeError(f"{name}: an array of numbers, got {type(value).__name__}") from None
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name}: real numbers, got dtype {array.dtype}")
    return array.astype(float) if floating and jnp.issubdtype(array.dtype, jnp.integer) else array


def fitting(value: Any) -> Any:
    """value, of which integers that JAX's do not hold are clipped and do not wrap: no class has such a label."""
    if isinstance(value, np.ndarray | np.integer) and value.dtype.kind in "iu":
        held = jax.dtypes.canonicalize_dtype(value.dtype)
        if held != value.dtype:
            return np.clip(value, np.iinfo(np.int32).min, np.iinfo(np.int32).max).astype(np.int32)
    return value


def check_values(fine: Bool[Array, ""], message: str) -> None:
    """A chex value assertion: live inside ``chex.chexify``, free everywhere else (no host sync)."""
    if isinstance(fine, jax.core.Tracer):
        import chex  # a tenth of a package's import time, for a check that most programs never make

        try:
            chex.assert_trees_all_equal(fine, jnp.ones_like(fine), custom_message=message)
        except RuntimeError:  # chex's way to say that nobody called chexify
            return


def parameters(law: Any, **conditions: Callable) -> None:
    """Makes a law's fields arrays that broadcast, and asserts what their values have to be."""
    name = type(law).__name__
    fields = {n: real_array(f"{name}({n})", x, floating=True) for n, x in law.__dict__.items() if x is not None}
    try:
        jnp.broadcast_shapes(*(x.shape for x in fields.values()))
    except ValueError:
        shapes = ", ".join(f"{n} of shape {x.shape}" for n, x in fields.items())
        raise ValueError(f"{name}: {shapes} do not broadcast") from None
    for n, condition in conditions.items():
        check_values(jnp.all(condition(fields[n])), f"{name}({n}): {condition.__name__.replace('_', ' ')}")
    set_fields(law, **{n: x.astype(accumulator(x.dtype)) for n, x in fields.items()})


def positive(x):
    return x > 0


def a_probability(x):
    return (x >= 0) & (x <= 1)
