"""New weights of atoms: times a function of their points."""

import jax
import jax.numpy as jnp

from .._integrands.integrand import as_tuple, at
from .._kernels.null import null_safe_product, values_at
from .axes import merge_axes
from .null_rows import factors_at, stand_in, weighted


def times(f, points, weights, no_null_atoms, family):
    values = factors_at(f, points, weights, no_null_atoms)
    own = values.shape[weights.ndim :]
    if own and len(own) <= len(family) and all(n in (1, m) for n, m in zip(own[::-1], family[::-1], strict=False)):
        values = _each_members_own(values, len(family))
    elif own:
        raise ValueError(
            f"f * P: f must be scalar-valued, or have a value for each member of a family {family}, got values of shape {own}; "
            "if a batch has more than one axis, weights of its shape name them all, such as weights=jnp.ones((B, T))"
        )
    return weighted(weights, values)


def _each_members_own(value, axes):
    """Of values [*family, k, *own], whose own axes are the last of the family, those of each member itself, [*family, k]."""
    for axis in range(axes - 1, 2 * axes - value.ndim, -1):
        if value.shape[axis] == 1:  # at points that all members share
            value = jnp.squeeze(jnp.moveaxis(value, -1, axis), axis + 1)
        else:
            mine = jnp.arange(value.shape[axis])[:, None] == jnp.arange(value.shape[-1])
            mine |= value.shape[-1] == 1
            mine = jnp.expand_dims(mine, tuple(range(1, value.ndim - 1 - axis)))
            value = jnp.sum(jnp.where(mine, value, 0), axis=-1)
    return value


def times_given(f, rows, lead, y, inner, no_null_atoms):
    if y.shape[:-1] == (1,) * (y.ndim - 1) if isinstance(y, jax.Array) else False:
        shared = _independent_of_x(f, rows.points, y.reshape(-1), lead)
        if shared is not None:
            return null_safe_product(inner, shared)
    shape = (*jnp.broadcast_shapes(rows.weights.shape, inner.shape[:-1]), inner.shape[-1])
    spread = lambda a: merge_axes(jnp.broadcast_to(a, (*shape, *a.shape[lead + 1 :])), lead - 1)
    x = jax.tree.map(lambda a: spread(jnp.expand_dims(a, lead)), rows.points)
    points = (*x, *as_tuple(jax.tree.map(spread, y)))
    # The pairs' weights: a row of weight 0 has the density that it has, for derivatives in its weight.
    weights = spread(null_safe_product(rows.weights[..., None], inner))
    values = values_at(lambda *x: f.values(x, lead), weights, points, lambda absent, *x: stand_in(x, absent))
    return weighted(inner, values.reshape(*values.shape[: lead - 1], *shape[lead - 1 :]))


def _independent_of_x(f, x, classes, lead):
    """f(x, ·) over the classes where it reads nothing of x: class weights stay one vector, not one a row."""
    if f.shape:
        return None
    function = jax.vmap(lambda x, y: at(f, (*x, y)), in_axes=(None, 0))
    for _ in range(lead):
        function = jax.vmap(function, in_axes=(0, None), out_axes=None)
    try:
        value = function(x, classes)
    except ValueError:  # vmap's own check: the output depends on x
        return None
    return value
