"""Empirical measures: weighted samples of any kind."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from .._forms.normal_form import NormalForm
from .._kernels.checks import real_array
from .._kernels.classes import accumulator
from .._kernels.mesh import AxisName, axes_of, check_axis, checked_name
from .._pytree import pytree, set_fields, static
from .measure import Measure
from .shapes import arity, atom_axes, sample_axes, static_mass


@pytree
class Atoms(Measure):
    """Σ wᵢ δ(xᵢ), the unnormalised empirical measure, of mass Σ wᵢ: its integral is the sum over the batch.

    Args:
        points: the samples, an array or any pytree of arrays; a tuple makes a measure on tuples.
        weights: wᵢ, 1 each by default. ``weights.shape`` names the atoms' axes, which come first on every leaf of
            points; without weights, the leading axis of every leaf. Booleans (masks) are weights 0 and 1.
        axis_name: inside ``jax.shard_map``, the mesh axes over whose devices the atoms are spread: the measure is the sum of
            every device's, and so are its mass and its integrals, the same numbers on each.

    Raises:
        ValueError: a leaf does not start with the atoms' axes, or the sample is empty.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P = mx.Atoms(jnp.array([1., 2., jnp.nan]), weights=jnp.array([1., 1., 0.]))
        >>> float(P.mass), float(P.expect(jnp.square))
        (2.0, 5.0)
    """

    points: PyTree[Shaped[Array, "..."]]
    weights: Float[Array, "*atoms"] | None = None
    axes: int = static(default=1)
    event: int = static(default=0)
    axis_name: AxisName | None = static(default=None)

    def __init__(self, points: Any, weights: Any = None, axis_name: AxisName | None = None):
        leaves = jax.tree.leaves(points)
        if not leaves:
            raise ValueError("Atoms(points): an empty sample; give at least one array")
        points = jax.tree.map(jnp.asarray, points)
        if weights is None:
            lengths = {jnp.shape(x)[:1] for x in leaves}
            if len(lengths) > 1 or () in lengths:
                shapes = [jnp.shape(x) for x in leaves]
                hint = (
                    "; a list is a pytree of its entries, an array is one sample each"
                    if isinstance(points, list)
                    else ""
                )
                raise ValueError(f"Atoms(points): leaves must share their leading axis, got shapes {shapes}{hint}")
            shape = lengths.pop()
        else:
            weights = jnp.asarray(weights)
            weights = real_array(
                "Atoms(weights)", weights.astype(float) if weights.dtype == bool else weights, floating=True
            )
            shape = weights.shape
            for x in leaves:
                if jnp.shape(x)[: len(shape)] != shape:
                    raise ValueError(
                        f"Atoms(weights): shape {shape} names the atoms' axes, which must come first on every leaf of "
                        f"points, but one has shape {jnp.shape(x)}"
                    )
        if 0 in shape:
            raise ValueError(f"Atoms(points): an empty sample, the atoms' axes have shape {shape}")
        event = jnp.ndim(leaves[0]) - len(shape)
        axis_name = checked_name("Atoms(axis_name)", axis_name)
        set_fields(self, points=points, weights=weights, axes=len(shape), event=event, axis_name=axis_name)

    @property
    def shape(self):
        # Only a transformation that mapped the whole node adds axes in front of the atoms'.
        first = jax.tree.leaves(self.points)[0]
        return first.shape[: first.ndim - self.event - self.axes]

    @property
    def mesh_axes(self):
        check_axis("Atoms(axis_name)", self.axis_name)
        return axes_of(self.axis_name)

    def forms(self):
        lead, axes = len(self.shape), self.axes
        merge = lambda x: x.reshape(*x.shape[:lead], -1, *x.shape[lead + axes :])
        points = jax.tree.map(merge, self.points)
        if self.weights is None:
            atoms = jax.tree.leaves(points)[0].shape[: lead + 1]
            return (NormalForm(points, jnp.broadcast_to(jnp.asarray(1.0), atoms), no_null_atoms=True),)
        weights = merge(self.weights)
        return (NormalForm(points, weights.astype(accumulator(weights.dtype))),)


@sample_axes.register(Atoms)
@atom_axes.register(Atoms)
def _axes(P: Atoms) -> tuple[int, ...]:
    first = jax.tree.leaves(P.points)[0]
    return first.shape[len(P.shape) : first.ndim - P.event]


@static_mass.register(Atoms)
def _count(P: Atoms) -> int | None:
    if P.weights is not None:
        return None
    return math.prod(atom_axes(P)) * math.prod(map(jax.lax.axis_size, P.mesh_axes))


arity.register(Atoms, lambda P: len(P.points) if isinstance(P.points, tuple) else 1)


def Empirical(
    points: PyTree[Shaped[Array, "..."]],
    weights: Float[Array, "*atoms"] | None = None,
    axis_name: AxisName | None = None,
) -> Measure:
    """Σ wᵢ δ(xᵢ) / Σ wᵢ, the empirical measure of a batch: ``Atoms(…).normalize()``.

    Its integral is the weighted mean; with all weights 0 it is the null measure, which integrates everything to 0. Weights of
    both signs that cancel, as centred advantages do, have no mean: it is NaN. What was meant is the integral against ``Atoms``
    over the number of rows. With an ``axis_name`` it is the mean over the batches of all devices, however many weights each
    has.
    Arguments and errors are those of ``Atoms``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> x, mask = jnp.array([1., 3., 100.]), jnp.array([True, True, False])
        >>> float(mx.Empirical(x, weights=mask).expect(lambda x: x))
        2.0
    """
    return Atoms(points, weights=weights, axis_name=axis_name).normalize()
