"""Measures on tuples: x, then y given x."""

from typing import Any

import jax.numpy as jnp

from .._forms.disintegration import Disintegration
from .._forms.form import Form
from .._integrands.integrand import as_tuple
from .._measures.measure import Measure, Transformed, by_forms
from .._measures.nested import DimensionCounter, draw_of
from .._measures.product import (
    atoms_and_laws,
    check_here,
    check_measure,
    nested,
    scaled_product,
)
from .._measures.shapes import arity, atom_axes, sample_axes, shapes_of
from .._pytree import pytree, static
from .conditional import AbstractConditional


def joint(P: Measure, K: AbstractConditional | Measure) -> Measure:
    """P ⊗ K on tuples (x…, y): x from P, then y from K given x.

    Args:
        P: the measure of x.
        K: a Conditional, or a family of measures, one an atom of P: its axes are P's family axes, then the axes of P's
            atoms (of an Empirical: of its weights).

    Raises:
        ValueError: the axes of K are not those of P's atoms.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> hidden, labels = jnp.eye(3)[:2], jnp.array([0, 1])
        >>> smoothed = 0.9 * mx.Dirac(labels) + 0.1 * mx.DiscreteUniform(3)
        >>> P = mx.joint(mx.Empirical(hidden), smoothed)
        >>> mx.cross_entropy(P, mx.LinearSoftmax(jnp.eye(3))).item()
        0.6181
    """
    return Joint(*checked(P, K))


def checked(P, K):
    check_measure("joint(P, K): P", P)
    if not isinstance(K, AbstractConditional | Measure):
        raise TypeError(
            f"joint(P, K): K must be a Conditional or a family of measures such as Dirac(labels), got {type(K).__name__}"
        )
    if isinstance(K, Measure):
        check_here("joint(P, K): K", K)
        axes = (*P.shape, *atom_axes(P))
        if len(K.shape) > len(axes) or any(k not in (1, n) for k, n in zip(K.shape[::-1], axes[::-1], strict=False)):
            raise ValueError(
                f"joint(P, K): K needs one measure for each atom of P, axes {axes}, but is a family {K.shape}; "
                "if a batch has more than one axis, weights of its shape name them all, such as weights=jnp.ones((B, T))"
            )
    return P, K


@pytree
class PartOf(AbstractConditional):
    """x ↦ a part of K(x)."""

    K: AbstractConditional
    kind: tuple[bool, ...] = static()

    def __call__(self, *x):
        return self.K(*x).parts()[self.kind]


def parts_of(K: AbstractConditional | Measure, P: Measure) -> dict[tuple[bool, ...], Any]:
    """The parts of K(x), as told by their shapes at a point of P."""
    if isinstance(K, Measure):
        return K.parts()
    kinds = shapes_of(lambda: [*K.family(as_tuple(draw_of(P, DimensionCounter())[0]), len(P.shape)).parts()])
    return {kind: PartOf(K, kind) for kind in kinds} if len(kinds) > 1 else {kinds[0]: K}


@pytree
class Joint(Transformed):
    """P ⊗ K."""

    P: Measure
    K: AbstractConditional | Measure

    def forms(self):
        rank = len(self.shape)
        atoms, laws_of_x = atoms_and_laws(self.P, rank)
        if isinstance(self.K, Measure):
            if laws_of_x:
                raise ValueError(
                    f"joint(P, K): P = {type(self.P).__name__} has no list of atoms to index a family; K is a Conditional"
                )
            (p,) = atoms  # a measure of several forms has no one list of atoms to index
            laws = [(p, _one_axis(form, (*self.P.shape, *atom_axes(self.P)), rank)) for form in self.K.forms()]
        else:
            laws = [
                (p, form.with_family_rank(rank + 1)) for p in atoms for form in self.K.family(p[0], p[1].ndim).forms()
            ]
        rows = tuple(Disintegration(x, weights, form, no_null_atoms) for (x, weights, no_null_atoms), form in laws)
        return rows + tuple(nested(form, self.K, self.shape) for form in laws_of_x)

    def parts(self) -> Any:
        return {(*p, *k): Joint(P, K) for p, P in self.P.parts().items() for k, K in parts_of(self.K, P).items()}

    def scaled_density(self, *x):
        if isinstance(self.K, Measure):
            return by_forms(self, x)
        n = arity(self.P)
        return scaled_product(self.P.scaled_density(*x[:n]), self.K(*x[:n]).scaled_density(*x[n:]))


def _one_axis(form: Form, axes: tuple[int, ...], rank: int) -> Form:
    """A family over ``axes`` with those behind its first ``rank`` merged into one, the axis of P's atoms."""

    def merge(x):
        own, rest = x.shape[: len(axes)], x.shape[len(axes) :]
        if all(n == 1 for n in own[rank:]):  # shared by all atoms
            return x.reshape(*own[:rank], 1, *rest)
        return jnp.broadcast_to(x, (*own[:rank], *axes[rank:], *rest)).reshape(*own[:rank], -1, *rest)

    return form.with_family_rank(len(axes)).map_family(merge)


sample_axes.register(Joint, lambda J: sample_axes(J.P))
