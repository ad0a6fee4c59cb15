"""Axes of families, and the axis of atoms behind them."""

import jax.numpy as jnp


def pick(a, i, axis):
    """The entry of every member, one i a member, of an axis that is gone then."""
    if a.shape[axis] == 1:
        return jnp.take(a, 0, axis=axis)
    family = jnp.broadcast_shapes(i.shape, a.shape[:axis])
    i, a = jnp.broadcast_to(i, family), jnp.broadcast_to(a, (*family, *a.shape[axis:]))
    return jnp.take_along_axis(a, i.reshape(*i.shape, 1, *(1,) * (a.ndim - axis - 1)), axis=axis).squeeze(axis)


def concatenate(x, y, family):
    lead = len(family)
    spread = lambda a: jnp.broadcast_to(a, (*family, *a.shape[lead:]))
    return jnp.concatenate([spread(x), spread(y)], axis=lead)


def merge_axes(a, axis):
    """Axes axis and axis + 1 as one."""
    return a.reshape(*a.shape[:axis], a.shape[axis] * a.shape[axis + 1], *a.shape[axis + 2 :])
