"""Arrays inside shard_map: which mesh axes they vary over, and sums over those."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array

AxisName = str | tuple[str, ...]


def axes_of(axis_name: AxisName | None) -> frozenset[str]:
    """The axes that a name, several or none names."""
    return frozenset(() if axis_name is None else (axis_name,) if isinstance(axis_name, str) else axis_name)


def varying(*arrays: Any) -> frozenset[str]:
    """The mesh axes that some leaf of the arrays varies over."""
    types = [getattr(jax.typeof(x), "manual_axis_type", None) for x in jax.tree.leaves(arrays)]
    return frozenset().union(*(kind.varying for kind in types if kind is not None))


def checked_name(argument: str, axis_name: Any) -> AxisName | None:
    """A mesh axis's name, or a tuple of different ones, or None."""
    names = axis_name if isinstance(axis_name, tuple | list) else (axis_name,)
    if axis_name is not None and (not all(isinstance(n, str) for n in names) or not 0 < len(set(names)) == len(names)):
        raise ValueError(f"{argument}: the name of a mesh axis, or a tuple of different ones, got {axis_name!r}")
    return tuple(axis_name) if isinstance(axis_name, list) else axis_name


def check_axis(argument: str, axis_name: AxisName | None) -> None:
    """Whether a name is of mesh axes that shard_map keeps track of: else no transpose of a sum over them would be right."""
    try:
        known = varying(*map(lax.axis_index, axes_of(axis_name)))
    except NameError:
        raise ValueError(f"{argument}: {axis_name!r} is no mesh axis here; it is one inside jax.shard_map") from None
    if known != axes_of(axis_name):
        raise ValueError(
            f"{argument}: {axis_name!r} needs jax.shard_map with check_vma=True, its default; without it gradients of sums "
            "over the axis are not known to be such"
        )


def vary(x: Array, axes: frozenset[str]) -> Array:
    """x as an array that varies over the axes too. The transpose sums over them."""
    missing = axes - varying(x)
    return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def sum_over(x: Any, axes: frozenset[str]) -> Any:
    """The sum over the devices of the axes. Its transpose leaves a cotangent as it is."""
    return lax.psum(x, tuple(sorted(axes))) if axes else x


def zeros(like: Any, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Array:
    """Zeros of an abstract array's shape and dtype, or those given, that vary over the axes it does, and are where it is.

    A loop's carry has to start as what it will become.
    """
    kind, sharding = getattr(like, "manual_axis_type", None), getattr(like, "sharding", None)
    x = jnp.zeros(like.shape if shape is None else shape, dtype or like.dtype)
    if shape is None and AxisType.Explicit in getattr(getattr(sharding, "mesh", None), "axis_types", ()):
        x = jax.reshard(x, sharding)
    return x if kind is None else vary(x, kind.varying)
