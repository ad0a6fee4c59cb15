"""Mixtures: the law of what is drawn last."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._forms.law_form import LawForm, has_law
from .._forms.normal_form import NormalForm
from .._forms.null_rows import stand_in
from .._integrands.integrand import as_tuple
from .._kernels.classes import class_index, out_of_range, take
from .._kernels.null import null_atoms, where_supported, without
from .._kernels.scaled import ScaledNumber
from .._measures.laws import breakpoints_of, kinks_of
from .._measures.measure import Measure, of_parts
from .._measures.nested import DimensionCounter
from .._measures.product import atoms_and_laws
from .._measures.relative_entropy import against_the_first, between
from .._measures.shapes import atom_axes, shapes_of
from .._methods.mixtures import NODES, density_over, mixture
from .._pytree import pytree
from .conditional import AbstractConditional
from .joint import Joint, checked, parts_of

FEW = 16  # members whose places are marks of an adaptive integral


def bind(P: Measure, K: AbstractConditional | Measure) -> Measure:
    """∫ K(x) dP(x), the law of y: the mixture of K over P, the last coordinate of ``joint(P, K)``.

    Source: the bind of the Giry monad, https://en.wikipedia.org/wiki/Giry_monad. Arguments and errors are those of ``joint``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> coin = mx.Conditional(lambda x: mx.Categorical(probs=jnp.where(x == 0, jnp.array([.5, .5]), jnp.array([.1, .9]))))
        >>> mx.bind(mx.DiscreteUniform(2), coin).expect(lambda y: y).item()
        0.7
    """
    P, K = checked(P, K)
    known = NotImplemented if isinstance(K, Measure) else K.after(P)
    return Bind(Joint(P, K)) if known is NotImplemented else known


@pytree
class Bind(Measure):
    """The law of the last coordinate of a joint."""

    joint: Joint

    @property
    def shape(self):
        return self.joint.shape

    @property
    def mesh_axes(self):
        return self.joint.mesh_axes

    @property
    def mass(self):
        return self.joint.mass

    def forms(self):
        return tuple(part for form in self.joint.forms() for part in self._marginal(form))

    @staticmethod
    def _marginal(form):
        law = mixture(form.law.outer, form.law.K) if isinstance(form, LawForm) else None
        return form.marginal() if law is None else (LawForm(law, form.c),)

    def parts(self) -> Any:
        kinds = parts_of(self.joint.K, self.joint.P)
        if len(kinds) == 1:
            return dict.fromkeys(kinds, self)
        return {kind: Bind(Joint(self.joint.P, K)) for kind, K in kinds.items()}

    @property
    def kinks(self) -> list[Array]:
        """Those of a family K, one a member; a Conditional's nobody knows."""
        return self._of_members(kinks_of)

    @property
    def breakpoints(self) -> list[Array]:
        return self._of_members(breakpoints_of)

    def _of_members(self, of: Any) -> list[Array]:
        if not isinstance(K := self.joint.K, Measure) or math.prod(axes := atom_axes(self.joint.P)) > FEW:
            return []
        each = (jnp.broadcast_to(x, jnp.broadcast_shapes(jnp.shape(x), axes)) for x in of(K))
        return [x[(..., *i)] for x in each for i in np.ndindex(*axes)]

    @property
    def density_terms(self) -> int:
        """How many numbers the density at a point takes, of classes none: one table serves all points."""

        def counted():
            atoms, laws = atoms_and_laws(self.joint.P, 0)
            return (sum(w.shape[-1] for _, w, _ in atoms) if self._space()[0] is None else 0) + NODES * len(laws)

        return shapes_of(counted)

    def scaled_density(self, *y):
        """The mixture's density, the sum of its parts', as one of logarithms: where all underflow, their sum does not."""
        if len(parts := self.parts()) > 1:
            return of_parts(parts, y)
        classes, events = shapes_of(self._space)
        if classes is None:
            return self._at(y, events).over_devices(self.mesh_axes)
        # All classes at once, whichever is asked for: one table serves all the points that vmap may bring.
        each = jax.vmap(lambda c: tuple(self._at((c,), [0])), out_axes=-1)(jnp.arange(classes))
        each, y = ScaledNumber(*each).over_devices(self.mesh_axes), class_index(y[0])
        log_p, factor = (take(row, y[..., None])[..., 0] for row in each)
        return ScaledNumber(log_p, where_supported(~out_of_range(y, classes), factor))

    def _space(self) -> tuple[int | None, list[int]]:
        """(V, if y are classes and nothing else, how many axes of its own each coordinate of y has)."""
        targets = [target for form in self.joint.forms() for target in _targets(form)]
        counts = {t.classes if isinstance(t, NormalForm) and t.weights is None else None for t in targets}
        events = [[t.event_rank] if has_law(t) else _events(t) for t in targets]
        return counts.pop() if len(counts) == 1 else None, [max(each) for each in zip(*events, strict=True)]

    def _at(self, y: tuple, events: list[int]) -> ScaledNumber:
        atoms, laws = atoms_and_laws(self.joint.P, len(self.shape))
        return ScaledNumber.sum(
            [_of_atoms(self.joint, *group, y, events) for group in atoms]
            + [density_over(form, self.joint.K, y[0], events[0]) for form in laws]
        )


def _of_atoms(
    joint: Joint, points: tuple, weights: Array, no_null_atoms: bool, y: tuple, events: list[int]
) -> ScaledNumber:
    """Σ weight · K(point)(y)."""
    K, axes = joint.K, atom_axes(joint.P) if isinstance(joint.K, Measure) else weights.shape[-1:]
    n = len(axes)
    # The family's axes, then those of P's atoms, then y's own.
    y = tuple(jnp.expand_dims(v, [*range(rest := jnp.ndim(v) - e, rest + n)]) for v, e in zip(y, events, strict=True))
    one_axis = lambda v: jnp.broadcast_to(v, jnp.broadcast_shapes(v.shape, axes)).reshape(*v.shape[: v.ndim - n], -1)

    def density(points):
        family = K if isinstance(K, Measure) else K.family(points, weights.ndim)
        return ScaledNumber(*(one_axis(jnp.asarray(v)) for v in family.scaled_density(*y)))

    if no_null_atoms or isinstance(K, Measure):
        return density(points).total(weights)
    shape = jnp.broadcast_shapes(weights.shape, *(v.shape for v in jax.eval_shape(density, points)))
    each, extra = jnp.broadcast_to(weights, shape), tuple(range(len(shape) - weights.ndim))
    absent, held = null_atoms(density, each, (points,))
    return without(absent, density(stand_in(points, jnp.all(absent, axis=extra))), held).total(each)


def _targets(form: Any) -> Any:
    """The forms of y given x, of a form of (x, y)."""
    if not isinstance(form, LawForm):
        return (form.target,)
    x, weight = form.law.outer.draw(DimensionCounter())
    return form.law.K.family(as_tuple(x), weight.ndim).forms()


def _events(form: NormalForm) -> list[int]:
    """How many axes of its own each coordinate of a point has."""
    if form.weights is None:
        return [0]
    return [jax.tree.leaves(x)[0].ndim - form.weights.ndim for x in as_tuple(form.points)]


between(Measure, Bind)(against_the_first)  # against Q its costly density would be integrated too
