"""Measures on tuples as rows: atoms of the leading coordinates, and the law of the last one given each."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._integrands.composites import Section
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand, as_integrand, as_tuple
from .._kernels.null import null_atoms, null_safe_product, without
from .._pytree import pytree, replaced, static
from .axes import merge_axes, pick
from .form import Form, rounding
from .law_form import LawForm, has_law
from .normal_form import NormalForm
from .null_rows import stand_in, weighted


@pytree
class Disintegration(Form):
    """∫ δ_x ⊗ P_x dμ(x): atoms x with weights, and the law of the last coordinate given each.

    ``points`` is the tuple of the leading coordinates, with leading axes (*family, k); ``target`` has those as its
    family, of size 1 where it is shared.
    """

    points: tuple
    weights: Float[Array, "*family k"]
    target: Form
    no_null_atoms: bool = static(default=False)

    @property
    def arity(self) -> int:
        return len(self.points) + self.target.arity

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        return None if self.points else self.target.event_shape

    @property
    def family(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(self.weights.shape, self.target.family)[:-1]

    def integrate(self, f: Integrand) -> Integral:
        if not has_law(self):
            return functools.reduce(Integral.__add__, (form.integrate(f) for form in self.flat()))
        form = self.with_family_rank(len(f.shape))
        return form.outer(lambda x, target, lead: target.integrate(Section(f, x, jnp.zeros(form.weights.shape[:lead]))))

    def outer(self, inner: Callable[[tuple, Any, int], Integral]) -> Integral:
        """∫ inner(x, P_x) dμ(x)."""
        w, rows = self.weights, (self.points, self.target)
        if self.no_null_atoms and getattr(self.target, "no_null_atoms", True):
            given = inner(*rows, w.ndim)
            values = given.value
        else:
            absent, held = null_atoms(lambda points, target: inner(points, target, w.ndim).value, w, rows)
            given = inner(*without_null_rows(self, absent), w.ndim)
            values = without(absent, given.value, held)

        add = lambda value: weighted(w, value).sum(w.ndim - 1)
        known = lambda e: jnp.where(w.reshape(w.shape + (1,) * max(0, e.ndim - w.ndim)) == 0, 0, e)
        size = jax.lax.stop_gradient(jnp.abs(w))
        error = lambda e: e if isinstance(e, float) else weighted(size, known(e)).sum(w.ndim - 1)
        failed = given.status if isinstance(given.status, int) else jnp.where(w == 0, 0, given.status).sum(-1)
        return Integral(jax.tree.map(add, values), jax.tree.map(error, given.error), failed)

    def using(self, method: Any) -> "Disintegration":
        return replaced(self, target=self.target.using(method))

    def draw(self, stream: Any) -> tuple[Any, Float[Array, "*family"]]:
        masses = self.target.proposed()
        i, weight = stream.choose(null_safe_product(self.weights, masses))
        one = lambda a: pick(a, i, self.weights.ndim - 1)
        y, inner = self.target.map_family(one).draw(stream)
        mass = one(jnp.broadcast_to(masses, jnp.broadcast_shapes(masses.shape, self.weights.shape)))
        point = (*jax.tree.map(one, self.points), *as_tuple(y)) if self.points else y
        return point, weight * inner / jnp.where(mass == 0, 1, mass)

    def map_family(self, g: Callable) -> "Disintegration":
        points, weights = jax.tree.map(g, (self.points, self.weights))
        return replaced(self, points=points, weights=weights, target=self.target.map_family(g))

    def mass(self) -> Float[Array, "*family"]:
        mass = self.target.mass()
        return null_safe_product(self.weights, mass).sum(-1)

    def proposed(self) -> Float[Array, "*family"]:
        return null_safe_product(self.weights, self.target.proposed()).sum(-1)

    def mass_and_error(self) -> tuple[Float[Array, "*family"], Float[Array, "*family"]]:
        mass, error = self.target.mass_and_error()
        error = jnp.maximum(error, rounding(jnp.abs(mass)))
        return null_safe_product(self.weights, mass).sum(-1), null_safe_product(jnp.abs(self.weights), error).sum(-1)

    @property
    def at_atoms(self) -> tuple[bool, ...]:
        return (True,) * len(self.points) + self.target.at_atoms

    def scale(self, c: Any) -> "Disintegration":
        no_null_atoms = self.no_null_atoms and isinstance(c, int | float) and c != 0
        c = jnp.asarray(c)
        form = self.with_family_rank(c.ndim)
        return replaced(form, weights=c[..., None] * form.weights, no_null_atoms=no_null_atoms)

    @property
    def masses(self) -> tuple[Any, ...]:
        return (self.weights,)

    def with_masses(self, *masses: Any) -> "Disintegration":
        return replaced(self, weights=masses[0])

    def with_family_rank(self, rank: int = 0) -> "Disintegration":
        extra = max(0, rank + 1 - self.weights.ndim)
        return self.map_family(lambda x: x.reshape((1,) * extra + x.shape)) if extra else self

    def reweight(self, f: Integrand) -> "Disintegration":
        form = self.with_family_rank(len(f.shape))
        return replaced(form, target=form.target.reweight_given(form, f))

    def reweight_given(self, rows: "Disintegration", f: Integrand) -> "Disintegration":
        joined = jax.tree.map(lambda a: jnp.expand_dims(a, rows.weights.ndim), rows.points)
        inner = replaced(self, points=(*joined, *self.points))
        return replaced(self, target=self.target.reweight_given(inner, f))

    def push(self, transform: Any) -> tuple["Form", ...]:
        if has_law(self):
            like = jnp.zeros(self.weights.shape)
            (image,) = self.target.push(Section(as_integrand(transform), self.points, like))
            return (replaced(self, points=(), target=image),)
        return tuple(image for form in self.flat() for image in form.push(transform))

    def density(self, *x: Any, mesh_axes: frozenset[str] = frozenset()) -> Float[Array, "*family"]:
        return functools.reduce(jnp.add, [form.density(*x, mesh_axes=mesh_axes) for form in self.flat()])

    def marginal(self) -> tuple["Form", ...]:
        """The law of the last coordinate, the mixture Σ_x μ(x) P_x."""
        if isinstance(self.target, Disintegration):
            raise TypeError("bind(P, K): K must give measures on one space, got measures on tuples")
        if isinstance(self.target, LawForm):
            return (replaced(self, points=()),)
        assert isinstance(self.target, NormalForm)
        target, mix = self.target.materialise(), lambda part: null_safe_product(self.weights[..., None], part)
        axis = self.weights.ndim - 1
        shape = jnp.broadcast_shapes(self.weights.shape, target.family)
        merge = lambda a: merge_axes(jnp.broadcast_to(a, (*shape, *a.shape[axis + 1 :])), axis)
        return (
            replaced(
                target,
                points=jax.tree.map(merge, target.points),
                weights=None if target.weights is None else merge(mix(target.weights)),
                background=None if target.background is None else mix(target.background[..., None])[..., 0].sum(axis),
                dense=None if target.dense is None else mix(target.dense).sum(axis),
                no_null_atoms=self.no_null_atoms and target.no_null_atoms,
            ),
        )

    def flat(self) -> tuple[NormalForm, ...]:
        """All pairs as atoms."""
        forms = []
        axis = self.weights.ndim - 1
        for target in self.target.flat():
            for y, inner, no_null_atoms in target.atom_lists():
                shape = (*jnp.broadcast_shapes(self.weights.shape, inner.shape[:-1]), inner.shape[-1])
                spread = lambda a, shape=shape: merge_axes(jnp.broadcast_to(a, (*shape, *a.shape[axis + 2 :])), axis)
                x = jax.tree.map(lambda a, spread=spread: spread(jnp.expand_dims(a, axis + 1)), self.points)
                weights = spread(null_safe_product(self.weights[..., None], inner))
                points = (*x, *as_tuple(jax.tree.map(spread, y)))
                forms.append(NormalForm(points, weights, no_null_atoms=self.no_null_atoms and no_null_atoms))
        return tuple(forms)


def disintegrate(form: Form, ignores_y: bool = False) -> tuple[Disintegration | LawForm, ...]:
    """A form on tuples, disintegrated at the last coordinate; for a function ``ignores_y``, one of x alone will do."""
    if isinstance(form, LawForm):
        if not ignores_y and form.arity < 2:
            raise TypeError(
                f"a Conditional integrates over pairs (x, y): P must be a measure on tuples, {type(form.law).__name__} is not"
            )
        return (form,)
    if isinstance(form, Disintegration):
        if isinstance(form.target, Disintegration) and not has_law(form):
            return tuple(row for flat in form.flat() for row in disintegrate(flat, ignores_y))
        return (form,)
    assert isinstance(form, NormalForm)
    if ignores_y and not isinstance(form.points, tuple):
        nothing = lambda x, w: jnp.zeros(jax.tree.leaves(x)[0].shape[: w.ndim], jnp.int32)
        paired = (
            NormalForm((x, nothing(x, w)), w, no_null_atoms=no_null_atoms) for x, w, no_null_atoms in form.atom_lists()
        )
        return tuple(row for pairs in paired for row in disintegrate(pairs))
    if form.weights is None or not isinstance(form.points, tuple) or len(form.points) < 2:
        raise TypeError(
            "a Conditional integrates over pairs (x, y): P must be a measure on tuples, such as "
            "Empirical((x, y)) or joint(P, K)"
        )
    *x, y = form.points
    one = jnp.broadcast_to(jnp.asarray(1.0), (*form.weights.shape, 1))
    target = NormalForm(jax.tree.map(lambda y: jnp.expand_dims(y, one.ndim - 1), y), one, no_null_atoms=True)
    return (Disintegration(tuple(x), form.weights, target, form.no_null_atoms),)


def without_null_rows(rows: Disintegration, null: Shaped[Array, "*family k"]) -> tuple[tuple, Any]:
    """The points and the targets of rows, with a stand-in for every row that is null.

    A row whose target alone is null (all of it restricted away) needs one only for an x that is not finite, such as
    padding: the target's own zeros keep it out of every other derivative.
    """
    target = rows.target
    if not isinstance(target, NormalForm):
        smooth = target.map_family(lambda a: stand_in(a, null)) if isinstance(target, LawForm) else target
        return stand_in(rows.points, null), smooth
    targets = [jnp.all(weights == 0, axis=-1) for _, weights, _ in target.atom_lists()]
    finite = [
        jnp.all(jnp.isfinite(x), axis=tuple(range(null.ndim, x.ndim)))
        for x in jax.tree.leaves(rows.points)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    every = lambda masks: functools.reduce(jnp.logical_and, masks)
    padding = jnp.array(False) if target.no_null_atoms or not finite else every(targets) & ~every(finite)
    return stand_in(rows.points, null | padding), stand_in(target, null)
