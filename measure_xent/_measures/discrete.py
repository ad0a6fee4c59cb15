"""Measures on classes by their masses: point masses, and masses that are the same everywhere."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from .._forms.normal_form import NormalForm
from .._kernels.checks import real_array
from .._kernels.classes import accumulator
from .._pytree import pytree, set_fields, static
from .measure import Measure


@pytree
class Dirac(Measure):
    """δ_x, the unit mass at a point; an array of points is a family, one measure each.

    Args:
        point: the points; all axes are the family's. Against a Categorical they are class labels, integers; a one-hot row is
            ``Discrete(weights=row)``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.Dirac(jnp.array([3, 1])).expect(lambda x: x**2).tolist()
        [9.0, 1.0]
    """

    point: Num[Array, "*family"]

    def __post_init__(self):
        set_fields(self, point=real_array("Dirac(point)", self.point))

    @property
    def shape(self):
        return self.point.shape

    def forms(self):
        unit = jnp.broadcast_to(jnp.asarray(1.0), (*self.shape, 1))
        return (NormalForm(self.point[..., None], unit, no_null_atoms=True),)


@pytree
class Discrete(Measure):
    """Σ_j w_j δ_{i_j}: finitely many atoms, the last axis; leading axes index a family. A sparse teacher is one.

    Args:
        indices: the atoms, [*family, k]; repeated atoms add up. Without them the atoms are the classes 0..k−1.
        weights: their masses, [*family, k], of any sum; a negative one makes a signed measure.

    Raises:
        TypeError: there are no weights.
        ValueError: the shapes do not broadcast, or there is no atom.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> teacher = mx.Discrete(jnp.array([7, 2]), jnp.array([0.75, 0.25]))
        >>> mx.cross_entropy(teacher, mx.Categorical(jnp.zeros(10))).item()  # log 10
        2.3026
        >>> mx.Discrete(weights=jnp.array([1., 2., 4.])).mass.item()
        7.0
    """

    indices: Num[Array, "*family k"] | None = None
    weights: Float[Array, "*family k"] | None = None

    def __post_init__(self):
        if self.weights is None:
            raise TypeError("Discrete(indices, weights): weights are missing, the masses of the atoms")
        weights = real_array("Discrete(weights)", self.weights, floating=True)
        indices = None if self.indices is None else real_array("Discrete(indices)", self.indices)
        for name, array in (("indices", indices), ("weights", weights)):
            if array is not None and array.ndim == 0:
                raise ValueError(f"Discrete({name}): needs a last axis for the atoms, got a scalar")
        if weights.shape[-1] == 0:
            raise ValueError("Discrete(weights): an empty list of atoms; the null measure is 0 * P")
        if indices is not None and indices.shape[-1] != weights.shape[-1]:
            raise ValueError(f"Discrete: {indices.shape[-1]} indices but {weights.shape[-1]} weights on the last axis")
        set_fields(self, indices=indices, weights=weights)
        try:
            _ = self.shape
        except ValueError:
            raise ValueError(
                f"Discrete: indices of shape {indices.shape} and weights of shape {weights.shape} do not broadcast"
            ) from None

    @property
    def shape(self):
        return jnp.broadcast_shapes(() if self.indices is None else self.indices.shape, self.weights.shape)[:-1]

    def forms(self):
        weights = self.weights.astype(accumulator(self.weights.dtype))
        if self.indices is None:
            return (NormalForm(dense=weights, classes=weights.shape[-1]),)
        shape = jnp.broadcast_shapes(self.indices.shape, self.weights.shape)
        return (NormalForm(jnp.broadcast_to(self.indices, shape), jnp.broadcast_to(weights, shape)),)


@pytree
class Counting(Measure):
    """Counting measure on the classes 0..V−1: mass 1 each. Its integral is the sum.

    Args:
        classes: V, a positive int.

    Examples:
        >>> import measure_xent as mx
        >>> float(mx.Counting(4).expect(lambda y: y**2))
        14.0
    """

    classes: int = static()

    def __post_init__(self):
        _check_classes("Counting(classes)", self.classes)

    @property
    def shape(self):
        return ()

    def forms(self):
        return (NormalForm(background=jnp.asarray(1.0), classes=self.classes, no_null_atoms=True),)


@pytree
class DiscreteUniform(Measure):
    """The uniform distribution on the classes 0..V−1. Label smoothing mixes it in.

    Args:
        classes: V, a positive int.

    Examples:
        >>> import measure_xent as mx
        >>> smoothed = 0.9 * mx.Dirac(2) + 0.1 * mx.DiscreteUniform(5)
        >>> smoothed.expect(lambda y: y == 2).item()
        0.92
    """

    classes: int = static()

    def __post_init__(self):
        _check_classes("DiscreteUniform(classes)", self.classes)

    @property
    def shape(self):
        return ()

    def forms(self):
        return (NormalForm(background=jnp.asarray(1 / self.classes), classes=self.classes, no_null_atoms=True),)


def _check_classes(name, classes):
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise ValueError(f"{name}: a positive int, got {classes!r}")
