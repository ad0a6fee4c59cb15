"""The heaviest classes of a measure: what truncated sampling draws from, and sparse teachers are."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._kernels.checks import check_values
from .._measures.discrete import Discrete
from .._program import program


@program
def top_k(Q: Any, k: int) -> Discrete:
    """Q on its k most probable classes: a ``Discrete`` of their masses, which ``normalize()`` makes a distribution.

    Of a head's family ``Q(h)`` a block of rows at a time, without the logits of all. The masses have derivatives; which classes
    these are has none. Of equally probable ones the first are taken.

    Args:
        Q: a ``Categorical``, or a head at hidden states.
        k: how many, at most as many as there are classes.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> top = mx.top_k(mx.Categorical(probs=jnp.array([0.1, 0.5, 0.15, 0.25])), 2)
        >>> top.indices.tolist(), top.weights.tolist(), mx.entropy(top.normalize()).round(4).item()
        ([1, 3], [0.5, 0.25], 0.6365)
    """
    if not hasattr(Q, "heaviest"):
        raise NotImplementedError(
            f"top_k: of a Categorical, or of a head at hidden states, Q(h); got {type(Q).__name__}"
        )
    try:
        count = operator.index(k)
    except TypeError:
        raise TypeError(f"top_k(Q, k): k must be a whole number, got {k!r}") from None
    if not 1 <= count <= Q.classes:
        raise ValueError(f"top_k(Q, k): k must be from 1 to the number of classes, {Q.classes}, got {count}")
    at = Q.heaviest(count)
    return Discrete(at, jnp.exp(jnp.moveaxis(Q.log_density(jnp.moveaxis(at, -1, 0)), 0, -1)))


@program
def top_p(Q: Any, p: Float[Array, "*family"] | float, k: int) -> Discrete:
    """Q on the fewest of its most probable classes that have a mass of at least p, the nucleus, but at most on k of them.

    A ``Discrete`` of k atoms a row, as ``top_k`` gives it; those outside the nucleus are at −1, which is no class, with mass 0.
    Source: Holtzman et al. (2020), *The curious case of neural text degeneration*.

    Args:
        p: a mass in (0, 1], one or one a row.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> nucleus = mx.top_p(mx.Categorical(probs=jnp.array([0.1, 0.5, 0.15, 0.25])), 0.7, 3)
        >>> nucleus.indices.tolist(), nucleus.weights.tolist(), nucleus.normalize().log_density(3).round(4).item()
        ([1, 3, -1], [0.5, 0.25, 0.0], -1.0986)
    """
    check_values(jnp.all((jnp.asarray(p) > 0) & (jnp.asarray(p) <= 1)), "top_p(Q, p, k): p in (0, 1]")
    top: Any = top_k(Q, k)
    before = jnp.cumsum(jax.lax.stop_gradient(top.weights), axis=-1) - jax.lax.stop_gradient(top.weights)
    inside = before < jnp.asarray(p)[..., None]
    return Discrete(jnp.where(inside, top.indices, -1), jnp.where(inside, top.weights, 0))
