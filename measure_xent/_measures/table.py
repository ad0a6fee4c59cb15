"""Tables of masses: measures on tuples of classes."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._forms.normal_form import NormalForm
from .._kernels.checks import check_values, real_array
from .._kernels.classes import accumulator, class_index
from .._kernels.null import where_supported
from .._kernels.scaled import ScaledNumber
from .._pytree import pytree
from .discrete import Discrete
from .measure import Measure
from .shapes import arity, atom_axes


def table(p: Float[ArrayLike, "..."], *, normalize: bool = False) -> Measure:
    """The measure on tuples (i, j, …) of classes that has mass p[i, j, …] there, such as a contingency table.

    Its marginals are sums: ``marginal(table(p), 0)`` is ``table(p.sum(1))``. One axis makes a ``Discrete``.

    Args:
        p: masses, an axis a coordinate; a family of tables is ``jax.vmap``'s.
        normalize: whether p are counts, to be divided by their sum; a table of nothing stays null.

    Raises:
        TypeError: p is no array of numbers.
        ValueError: p has no axis, or one of no classes.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P = mx.table(jnp.array([[30, 10], [10, 50]]), normalize=True)
        >>> mx.marginal(P, 1).expect(lambda y: y).item(), mx.mutual_information(P).item()
        (0.6, 0.17774)
    """
    p = real_array("table(p)", p, floating=True)
    if p.ndim == 0 or 0 in p.shape:
        raise ValueError(f"table(p): an axis of at least one class a coordinate, got shape {p.shape}")
    check_values(jnp.all(p >= 0), "table(p): masses, not negative")
    p = p.astype(accumulator(p.dtype))
    P = Discrete(weights=p) if p.ndim == 1 else Table(p)
    return P.normalize() if normalize else P


@pytree
class Table(Measure):
    """Σ p[i, j, …] δ(i, j, …)."""

    p: Float[Array, "..."]

    @property
    def shape(self):
        return ()

    def forms(self):
        return (NormalForm(tuple(jnp.indices(self.p.shape).reshape(self.p.ndim, -1)), self.p.ravel()),)

    @property
    def mass(self):
        return self.p.sum()

    def marginal(self, which: Sequence[int]) -> Measure:
        """The sums over all other coordinates."""
        rest = tuple(i for i in range(self.p.ndim) if i not in which)
        order = [sorted(which).index(i) for i in which]
        return table(jnp.transpose(self.p.sum(rest), order))

    def scaled_density(self, *x):
        index = tuple(map(class_index, x))
        valid = [(i >= 0) & (i < n) for i, n in zip(index, self.p.shape, strict=True)]
        inside: Any = math.prod(valid, start=jnp.asarray(True))
        mass = self.p[tuple(jnp.clip(i, 0, n - 1) for i, n in zip(index, self.p.shape, strict=True))]
        return ScaledNumber.of(where_supported(inside, mass + 0 * self.mass))


arity.register(Table, lambda P: P.p.ndim)
atom_axes.register(Table, lambda P: (P.p.size,))
