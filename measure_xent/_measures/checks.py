"""Checks of arguments: what a trace can show raises at once, what only values can show is a chex value assertion."""

from typing import Any

import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped


def real_array(name: str, value: Any, *, floating: bool = False) -> Shaped[Array, "..."]:
    """value as an array of real numbers, or a TypeError that names it. Integers become floats where asked."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: an array of numbers, got {type(value).__name__}") from None
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name}: real numbers, got dtype {array.dtype}")
    return array.astype(float) if floating and jnp.issubdtype(array.dtype, jnp.integer) else array


def check_values(fine: Bool[Array, ""], message: str) -> None:
    """A chex value assertion: live inside ``chex.chexify``, free everywhere else (no host sync)."""
    if isinstance(fine, jax.core.Tracer):
        import chex  # a tenth of a package's import time, for a check that most programs never make

        try:
            chex.assert_trees_all_equal(fine, jnp.ones_like(fine), custom_message=message)
        except RuntimeError:  # chex's way to say that nobody called chexify
            return
