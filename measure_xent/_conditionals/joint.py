"""Measures on tuples: product, joint, bind, and what Bayes and Chapman make of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._forms.disintegration import Disintegration
from .._forms.form import Form
from .._forms.law_form import LawForm, has_law
from .._forms.normal_form import NormalForm
from .._forms.null_rows import stand_in
from .._integrands.integrand import as_tuple
from .._kernels.classes import class_index, out_of_range, take
from .._kernels.null import null_atoms, where_supported, without
from .._kernels.scaled import ScaledNumber
from .._measures.laws import Vectors
from .._measures.measure import Measure, Normalized, Scaled, Sum, Weighted, of_parts
from .._measures.nested import DimensionCounter, MassOf, draw_of
from .._measures.product import (
    ProductMeasure,
    atoms_and_laws,
    check_here,
    check_measure,
    nested,
    product,
    scaled_product,
)
from .._measures.pushforward import pushforward
from .._measures.relative_entropy import against_the_first, between
from .._measures.shapes import arity, atom_axes, enumerable, shapes_of
from .._methods.mixtures import NODES, Likelihood, density_over, mixture
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
    return Joint(*_checked(P, K))


def bind(P: Measure, K: AbstractConditional | Measure) -> Measure:
    """∫ K(x) dP(x), the law of y: the mixture of K over P, the last coordinate of ``joint(P, K)``.

    Source: the bind of the Giry monad, https://en.wikipedia.org/wiki/Giry_monad. Arguments and errors are those of ``joint``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> coin = mx.Conditional(lambda x: mx.Categorical(probs=jnp.where(x == 0, jnp.array([.5, .5]), jnp.array([.1, .9]))))
        >>> mx.bind(mx.DiscreteUniform(2), coin).expect(lambda y: y).item()
        0.7
    """
    P, K = _checked(P, K)
    known = NotImplemented if isinstance(K, Measure) else K.after(P)
    return Bind(Joint(P, K)) if known is NotImplemented else known


def marginal(P: Measure, *coordinates: int) -> Measure:
    """The law of some coordinates of a measure on tuples, or of some entries of a measure of vectors.

    Examples:
        >>> import measure_xent as mx
        >>> dice = mx.product(mx.DiscreteUniform(6), mx.DiscreteUniform(2))
        >>> mx.marginal(dice, 1).expect(lambda coin: coin).item()
        0.5
    """
    check_measure("marginal(P): P", P)
    n = dimensions(P)
    if not coordinates or not all(isinstance(i, int) and -n <= i < n for i in coordinates):
        raise ValueError(f"marginal(P, *coordinates): numbers of P's {n} coordinates, from 0, got {coordinates}")
    which = tuple(i % n for i in coordinates)
    return _marginal(P, which) if arity(P) > 1 or n == 1 else _of_entries(P, which)


def dimensions(P: Measure) -> int:
    """How many coordinates a point of P has; of vectors, how many entries."""
    return arity(P) if arity(P) > 1 else max(1, _entries(P) or 1)


def _entries(P: Measure) -> int | None:
    """The length of P's points, if they are vectors."""

    def length() -> int | None:
        x, weight = draw_of(P, DimensionCounter())
        shape = x.shape[weight.ndim :] if hasattr(x, "shape") else ()
        return shape[0] if len(shape) == 1 else None

    try:
        return shapes_of(length)
    except NotImplementedError:  # without forms nobody knows: numbers
        return None


def by_coordinates(P: Measure) -> Measure:
    """Atoms that are vectors as tuples of numbers; anything else as it is."""
    if arity(P) > 1 or (n := _entries(P)) is None or not enumerable(P):
        return P
    return pushforward(Entries(tuple(range(n)), True), P)


def _of_entries(P: Measure, which: tuple[int, ...]) -> Measure:
    match P:
        case Vectors():
            return P if which == tuple(range(_entries(P) or 1)) else P.marginal(which)
        case Scaled(c=c, P=A):
            return c * _of_entries(A, which)
        case Normalized(P=A):
            return _of_entries(A, which).normalize()
        case Sum(terms=terms):
            return Sum(tuple(_of_entries(A, which) for A in terms))
    return pushforward(Entries(which), P)


def _marginal(P: Measure, which: tuple[int, ...]) -> Measure:
    """By the structure of what has a density, which an image would not have; any other by its atoms."""
    if which == tuple(range(arity(P))):
        return P
    match P:
        case ProductMeasure(P=A, Q=B):
            n = arity(A)
            ours, theirs = tuple(i for i in which if i < n), tuple(i - n for i in which if i >= n)
            if (*ours, *(i + n for i in theirs)) == which:
                parts: Any = [_marginal(R, own) if own else R.mass for R, own in ((A, ours), (B, theirs))]
                return product(*parts) if ours and theirs else parts[0] * parts[1]
        case Joint(P=A, K=K):
            n = arity(A)
            if which == (n,) and arity(P) == n + 1:
                return bind(A, K)
            if max(which) < n and isinstance(K, AbstractConditional):
                return _marginal(A.reweight(MassOf(K)), which)
    return pushforward(Coordinates(which), P)


def posterior(P: Measure, K: AbstractConditional) -> AbstractConditional:
    """y ↦ the law of x given y, where x is from P and y from K given x. Source: Bayes' theorem.

    On a finite P it is exact, of a ``LinearNormal`` in closed form, and else what P weighted by the likelihood is.

    Raises:
        TypeError: P is not a Measure, or K not a Conditional.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> ill = mx.Categorical(probs=jnp.array([0.99, 0.01]))
        >>> test = mx.Conditional(lambda ill: mx.Bernoulli(probs=jnp.where(ill == 1, 0.9, 0.05)))
        >>> mx.posterior(ill, test)(1).expect(lambda ill: ill).item()
        0.15385
    """
    check_measure("posterior(P, K): P", P)
    if not isinstance(K, AbstractConditional):
        raise TypeError(f"posterior(P, K): K must be a Conditional, got {type(K).__name__}")
    known = K.inverse(P)
    return Posterior(P, K) if known is NotImplemented else known


def compose(K: AbstractConditional, L: AbstractConditional) -> AbstractConditional:
    """x ↦ ∫ L(y) K(x, dy): K, then L. Source: Chapman & Kolmogorov.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> flip = mx.Conditional(lambda bit: mx.Bernoulli(probs=jnp.where(bit == 1, 0.9, 0.1)))
        >>> mx.compose(flip, flip)(1).expect(lambda bit: bit).item()
        0.82
    """
    for name, kernel in (("K", K), ("L", L)):
        if not isinstance(kernel, AbstractConditional):
            raise TypeError(f"compose(K, L): {name} must be a Conditional, got {type(kernel).__name__}")
    known = K.then(L)
    return Composition(K, L) if known is NotImplemented else known


def _checked(P, K):
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


def _parts_of(K: AbstractConditional | Measure, P: Measure) -> dict[tuple[bool, ...], Any]:
    """The parts of K(x), as told by their shapes at a point of P."""
    if isinstance(K, Measure):
        return K.parts()
    kinds = shapes_of(lambda: [*K.family(as_tuple(draw_of(P, DimensionCounter())[0]), len(P.shape)).parts()])
    return {kind: PartOf(K, kind) for kind in kinds} if len(kinds) > 1 else {kinds[0]: K}


@pytree
class Joint(Measure):
    """P ⊗ K."""

    P: Measure
    K: AbstractConditional | Measure

    @property
    def shape(self):
        return self.P.shape

    @property
    def mesh_axes(self):
        return self.P.mesh_axes

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
        return {(*p, *k): Joint(P, K) for p, P in self.P.parts().items() for k, K in _parts_of(self.K, P).items()}

    def scaled_density(self, *x):
        if isinstance(self.K, Measure):
            return super().scaled_density(*x)
        n = arity(self.P)
        return scaled_product(self.P.scaled_density(*x[:n]), self.K(*x[:n]).scaled_density(*x[n:]))


@pytree
class Coordinates:
    """(x₀, …) ↦ some of them."""

    which: Any = static()  # numbers of coordinates

    def __call__(self, *x: Any) -> Any:
        chosen: Any = self.chosen(x)
        return chosen if len(chosen) > 1 else chosen[0]

    def chosen(self, x: tuple) -> tuple:
        return tuple(x[i] for i in self.which)


@pytree
class Entries:
    """x ↦ some entries of a vector: a number of one, a vector of several, or a tuple."""

    which: Any = static()  # numbers of coordinates
    apart: bool = static(default=False)

    def __call__(self, x: Any) -> Any:
        if self.apart:
            return tuple(x[i] for i in self.which)
        return x[jnp.asarray(self.which)] if len(self.which) > 1 else x[self.which[0]]


@pytree
class Composition(AbstractConditional):
    """x ↦ ∫ L(y) K(x, dy)."""

    K: AbstractConditional
    L: AbstractConditional

    def __call__(self, *x):
        return bind(self.K(*x), self.L)

    def family(self, x, lead):
        return bind(self.K.family(x, lead), self.L)


@pytree
class Posterior(AbstractConditional):
    """y ↦ P weighted by the likelihood of y."""

    P: Measure
    K: AbstractConditional

    def __call__(self, *y):
        return self.family(y, 0)

    def family(self, x, lead):
        (y,) = x
        # Divided by the evidence's scale, the likelihood does not underflow where it matters.
        log_scale = Bind(Joint(self.P, self.K)).scaled_density(y).log_scale
        weighted = Weighted(Likelihood(self.K, y, log_scale, jnp.ndim(y) - lead), self.P)
        return Scaled(1 / weighted.mass, weighted)  # NaN, not null, where no likelihood is left


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
        kinds = _parts_of(self.joint.K, self.joint.P)
        if len(kinds) == 1:
            return dict.fromkeys(kinds, self)
        return {kind: Bind(Joint(self.joint.P, K)) for kind, K in kinds.items()}

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


def _one_axis(form: Form, axes: tuple[int, ...], rank: int) -> Form:
    """A family over ``axes`` with those behind its first ``rank`` merged into one, the axis of P's atoms."""

    def merge(x):
        own, rest = x.shape[: len(axes)], x.shape[len(axes) :]
        if all(n == 1 for n in own[rank:]):  # shared by all atoms
            return x.reshape(*own[:rank], 1, *rest)
        return jnp.broadcast_to(x, (*own[:rank], *axes[rank:], *rest)).reshape(*own[:rank], -1, *rest)

    return form.with_family_rank(len(axes)).map_family(merge)


between(Measure, Bind)(against_the_first)  # against Q its costly density would be integrated too
