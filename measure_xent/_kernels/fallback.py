"""What is tried first, and what is done where it failed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool


@jax.custom_batching.custom_vmap
def _all(x):
    return jnp.all(x)


@_all.def_vmap
def _all_of_a_batch(axis_size, in_batched, x):
    # One answer for the whole batch keeps a cond one: under vmap, with an answer for each, it would always run both sides.
    return _all(x), False


def unless(fine: Bool[Array, "..."], out: Any, otherwise: Callable[[], Any]) -> Any:
    """``out`` where all is fine, else ``otherwise()``."""
    return lax.cond(_all(fine), lambda out: out, lambda _: otherwise(), out)
