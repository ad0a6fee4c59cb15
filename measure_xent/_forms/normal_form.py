"""The forms a finite measure lowers to before it is integrated.

Atoms           Σ_j weights_j δ_{points_j} + background·(counting measure on classes) + dense, on one space, the dense part
                written out or deferred;
Disintegration  ∫ δ_x ⊗ P_x dμ(x), a measure on tuples kept as its marginal μ and the laws P_x of the last coordinate,
                so that a Markov kernel is evaluated once per x and never once per pair;
LawForm         a law with a density (``law_form``).

A measure lowers to a tuple of them, whose sum it is.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Union

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from .._integrands.composites import Section
from .._integrands.integral import Integral, align
from .._integrands.integrand import Integrand, as_integrand, at
from .._kernels.classes import accumulator, class_index
from .._kernels.matching import mass_of
from .._kernels.mesh import sum_over, zeros
from .._kernels.null import null_atoms, null_safe_product, values_at, where_supported, without
from .._pytree import pytree, set_fields, static
from .law_form import LawForm, has_law
from .members import without_null


@pytree
class NormalForm:
    """Σ_j weights_j δ_{points_j} + background·# + dense, a family by leading axes; absent parts are None.

    All parts have the family's axes written out, of size 1 where a part is shared; ``points`` leaves and ``weights``
    have the atoms' axis behind them. ``deferred`` are dense parts not written out, so that a kernel may do it a block of rows
    at a time: pytrees like a form, with ``family``, ``scale(c)`` and ``dense()``, [*family, V]. ``certain`` says that no
    weight can be 0, so null atoms need no care.

    Examples:
        >>> import measure_xent as mx
        >>> (smoothed,) = (0.5 * mx.Dirac(2) + 0.5 * mx.DiscreteUniform(4)).forms()
        >>> smoothed.points.tolist(), smoothed.weights.tolist(), smoothed.background.tolist()
        ([2], [0.5], 0.125)
    """

    points: PyTree[Shaped[Array, "..."]] = None
    weights: Float[Array, "*family k"] | None = None
    background: Float[Array, "*family"] | None = None
    dense: Float[Array, "*family V"] | None = None
    deferred: tuple[Any, ...] = ()
    classes: int | None = static(default=None)
    certain: bool = static(default=False)

    @property
    def coordinates(self) -> int:
        """How many coordinates a point has."""
        return len(self.points) if isinstance(self.points, tuple) else 1

    @property
    def family(self) -> tuple[int, ...]:
        shapes = [x.shape[:-1] for x in (self.weights, self.dense) if x is not None]
        shapes += [part.family for part in self.deferred]
        return jnp.broadcast_shapes(*shapes, () if self.background is None else self.background.shape)

    def parts(self) -> Iterator[tuple[Any, Float[Array, "*family k"], bool]]:
        """(points, weights, certain) of the sparse atoms, then of the classes."""
        if self.weights is not None:
            yield self.points, self.weights, self.certain
        if self.classes is not None:
            weights = self.class_weights()
            certain = self.certain and self.dense is None and not self.deferred
            yield jnp.arange(self.classes).reshape((1,) * (weights.ndim - 1) + (-1,)), weights, certain

    def class_weights(self) -> Float[Array, "*family V"]:
        """background + dense as one vector over the classes."""
        written = self.written().dense
        dense = jnp.asarray(0.0)[None] if written is None else written
        background = jnp.asarray(0.0) if self.background is None else self.background
        weights = background[..., None] + dense
        return jnp.broadcast_to(weights, (*weights.shape[:-1], self.classes))

    def written(self) -> "NormalForm":
        """The same with every dense part written out."""
        if not self.deferred:
            return self
        parts = [part.dense() for part in self.deferred] + ([] if self.dense is None else [self.dense])
        return self._with(dense=functools.reduce(jnp.add, parts), deferred=())

    def mass(self) -> Float[Array, "*family"]:
        mass, dense = jnp.asarray(0.0), self.written().dense
        if self.weights is not None:
            mass = mass + self.weights.sum(-1)
        if self.background is not None:
            mass = mass + self.classes * self.background
        if dense is not None:
            mass = mass + dense.sum(-1)
        return jnp.broadcast_to(mass, self.family)

    def size(self) -> Float[Array, "*family"]:
        """The mass of |P|, in which nothing cancels."""
        size = jnp.asarray(0.0)
        if self.weights is not None:
            size = size + jnp.abs(self.weights).sum(-1)
        if self.background is not None:
            size = size + self.classes * jnp.abs(self.background)
        if self.dense is not None:
            size = size + jnp.abs(self.dense).sum(-1)
        return sum((jnp.abs(part.c) for part in self.deferred), start=size)

    def with_family_rank(self, rank: int = 0) -> "NormalForm":
        """The same form with at least ``rank`` family axes, on every part."""
        ranks = [x.ndim - 1 for x in (self.weights, self.dense) if x is not None]
        ranks += [len(part.family) for part in self.deferred]
        rank = max(rank, *ranks, 0 if self.background is None else self.background.ndim)
        grow = lambda x, own: None if x is None else x.reshape((1,) * (rank - own) + x.shape)
        own = 0 if self.weights is None else self.weights.ndim - 1
        return self._with(
            points=jax.tree.map(lambda x: grow(x, own), self.points),
            weights=grow(self.weights, own),
            background=None if self.background is None else grow(self.background, self.background.ndim),
            dense=None if self.dense is None else grow(self.dense, self.dense.ndim - 1),
            deferred=tuple(jax.tree.map(lambda x, p=p: grow(x, len(p.family)), p) for p in self.deferred),
        )

    def scale(self, c: Any) -> "NormalForm":
        certain = self.certain and isinstance(c, int | float) and c != 0
        c = jnp.asarray(c)
        form = self.with_family_rank(c.ndim)
        return form.with_masses(*(None if x is None else align(c, x) * x for x in form.masses))._with(
            deferred=tuple(part.scale(c) for part in form.deferred), certain=certain
        )

    @property
    def masses(self) -> tuple[Any, ...]:
        """All masses that are written out, with the family's axes in front."""
        return self.weights, self.background, self.dense

    def with_masses(self, *masses: Any) -> "NormalForm":
        return self._with(**dict(zip(("weights", "background", "dense"), masses, strict=True)))

    def reweight(self, f: Integrand) -> "NormalForm":
        """f · P. Null atoms stay null, whatever f is there."""
        form = self.with_family_rank(len(f.shape))
        parts = iter([_times(f, *part, form.family) for part in form.parts()])
        weights = None if form.weights is None else next(parts)
        dense = None if form.classes is None else next(parts)
        return form._with(weights=weights, background=None, dense=dense, deferred=(), certain=False).with_family_rank()

    def integrate(self, f: Integrand) -> Integral:
        """∫ f dP over the atoms, pytree-valued where f is."""
        total = None
        for points, weights, certain in self.with_family_rank(len(f.shape)).parts():
            values = factors_at(f, points, weights, certain)
            part = jax.tree.map(lambda v, w=weights: _weighted(w, v).sum(w.ndim - 1), values)
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return Integral.exact(total)

    def by(self, method: Any) -> "NormalForm":
        """Atoms are summed whatever the method."""
        del method
        return self

    def draw(self, stream: Any) -> tuple[Any, Float[Array, "*family"]]:
        """A point and its weight: the mean of weight · f(point) is the integral of f."""
        form = self.with_family_rank()
        points, weights = zip(*((points, weights) for points, weights, _ in form.parts()), strict=True)
        family = jnp.broadcast_shapes(*(w.shape[:-1] for w in weights))
        weights = functools.reduce(lambda a, b: _concatenate(a, b, family), weights)
        points = functools.reduce(lambda a, b: jax.tree.map(lambda x, y: _concatenate(x, y, family), a, b), points)
        i, weight = stream.choose(weights)
        return jax.tree.map(lambda a: _pick(a, i, weights.ndim - 1), points), weight

    def map_family(self, g: Callable) -> "NormalForm":
        """g over the leading axes of every part of a form ``with_family_rank``."""
        return jax.tree.map(g, self)

    def push(self, transform: Any) -> tuple["NormalForm", ...]:
        """The image under a map of points: every class becomes an atom."""
        return tuple(
            NormalForm(as_integrand(transform).values(points, weights.ndim), weights, certain=certain)
            for points, weights, certain in self.parts()
        )

    def density(self, *x: Any, mesh_axes: frozenset[str] = frozenset()) -> Float[Array, "*family"]:
        """The density against counting measure at x, the mass of {x}: this device's share, of a sum over ``mesh_axes``."""
        density, inside = jnp.asarray(0.0), jnp.asarray(False)
        if self.weights is not None:
            density, inside = self._mass_of(x)
        if self.classes is not None:
            (y,) = x
            y = class_index(y)
            weights = self.class_weights()
            family = jnp.broadcast_shapes(weights.shape[:-1], jnp.shape(y))
            index = jnp.broadcast_to(jnp.clip(y, 0, self.classes - 1), family)[..., None]
            mass = jnp.take_along_axis(jnp.broadcast_to(weights, (*family, self.classes)), index, -1)[..., 0]
            valid = (y >= 0) & (y < self.classes)
            density, inside = density + jnp.where(valid, mass, 0), inside | valid
        inside = sum_over(inside.astype(jnp.int32), mesh_axes) > 0
        # Adding 0 times the masses ties the derivative of a point outside the space to every mass.
        return where_supported(inside, density + 0 * self.mass())

    def _mass_of(self, x):
        """(the mass at x, whether an atom is there). Coordinates with axes of their own are equal as a whole."""
        points, lead = self.points if isinstance(self.points, tuple) else (self.points,), self.weights.ndim

        def as_row(atoms, value):
            event, value = atoms.shape[lead:], jnp.asarray(value)
            value = jnp.broadcast_to(value, (*value.shape[: value.ndim - len(event)], *event))
            return atoms.reshape(*atoms.shape[:lead], -1), value.reshape(*value.shape[: value.ndim - len(event)], -1)

        rows = map(as_row, jax.tree.leaves(points), jax.tree.leaves(tuple(x)))
        atoms, values = zip(*rows, strict=True)
        weights: Any = self.weights
        return mass_of(atoms, weights, values)

    def rows(self, ignores_y: bool = False) -> tuple["Disintegration", ...]:
        """A measure on tuples, disintegrated at the last coordinate; for a function ``ignores_y``, one of x alone will do."""
        if ignores_y and not isinstance(self.points, tuple):
            nothing = lambda x, w: jnp.zeros(jax.tree.leaves(x)[0].shape[: w.ndim], jnp.int32)
            paired = (NormalForm((x, nothing(x, w)), w, certain=certain) for x, w, certain in self.parts())
            return tuple(row for form in paired for row in form.rows())
        if self.weights is None or not isinstance(self.points, tuple) or len(self.points) < 2:
            raise TypeError(
                "a Conditional integrates over pairs (x, y): P must be a measure on tuples, such as "
                "Empirical((x, y)) or joint(P, K)"
            )
        *x, y = self.points
        one = jnp.broadcast_to(jnp.asarray(1.0), (*self.weights.shape, 1))
        target = NormalForm(jax.tree.map(lambda y: jnp.expand_dims(y, self.weights.ndim), y), one, certain=True)
        return (Disintegration(tuple(x), self.weights, target, self.certain),)

    def flat(self) -> tuple["NormalForm", ...]:
        return (self,)

    def merge(self, other: Any) -> "NormalForm | None":
        """The sum as one form, or None where it has none."""
        if not isinstance(other, NormalForm):
            return None
        if self.classes and other.classes and self.classes != other.classes:
            raise ValueError(f"P + Q: P is a measure on {self.classes} classes, Q on {other.classes}")
        a = self.with_family_rank()
        b = other.with_family_rank(len(a.family))
        a = a.with_family_rank(len(b.family))
        if a.weights is None or b.weights is None:
            sparse, classes = (a, b) if b.weights is None else (b, a)
            points, weights = sparse.points, sparse.weights
            # A dense part makes the classes uncertain by itself, and says nothing of the sparse atoms.
            certain = sparse.certain and (classes.certain or classes.dense is not None or bool(classes.deferred))
        elif jax.tree.structure(a.points) != jax.tree.structure(b.points):
            return None
        else:
            family = jnp.broadcast_shapes(a.weights.shape[:-1], b.weights.shape[:-1])
            points = jax.tree.map(lambda x, y: _concatenate(x, y, family), a.points, b.points)
            weights = _concatenate(a.weights, b.weights, family)
            certain = a.certain and b.certain
        plus = lambda x, y: y if x is None else x if y is None else x + y
        background, dense = plus(a.background, b.background), plus(a.dense, b.dense)
        deferred = a.deferred + b.deferred
        return NormalForm(points, weights, background, dense, deferred, a.classes or b.classes, certain)

    def _with(self, **changes) -> "NormalForm":
        return _replace(self, **changes)


@pytree
class Disintegration:
    """∫ δ_x ⊗ P_x dμ(x): atoms x with weights, and the law of the last coordinate given each.

    ``points`` is the tuple of the leading coordinates, with leading axes (*family, k); ``target`` has those as its
    family, of size 1 where it is shared.
    """

    points: tuple
    weights: Float[Array, "*family k"]
    target: Union[NormalForm, "Disintegration", LawForm]
    certain: bool = static(default=False)

    @property
    def coordinates(self) -> int:
        return len(self.points) + self.target.coordinates

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
        if self.certain and getattr(self.target, "certain", True):
            given = inner(*rows, w.ndim)
            values = given.value
        else:
            absent, held = null_atoms(lambda points, target: inner(points, target, w.ndim).value, w, rows)
            given = inner(*without_null_rows(self, absent), w.ndim)
            values = without(absent, given.value, held)

        add = lambda value: _weighted(w, value).sum(w.ndim - 1)
        known = lambda e: jnp.where(w.reshape(w.shape + (1,) * max(0, e.ndim - w.ndim)) == 0, 0, e)
        size = jax.lax.stop_gradient(jnp.abs(w))
        error = lambda e: e if isinstance(e, float) else _weighted(size, known(e)).sum(w.ndim - 1)
        failed = given.status if isinstance(given.status, int) else jnp.where(w == 0, 0, given.status).sum(-1)
        return Integral(jax.tree.map(add, values), jax.tree.map(error, given.error), failed)

    def by(self, method: Any) -> "Disintegration":
        return _replace(self, target=self.target.by(method))

    def draw(self, stream: Any) -> tuple[Any, Float[Array, "*family"]]:
        i, weight = stream.choose(self.weights)
        pick = lambda a: _pick(a, i, self.weights.ndim - 1)
        y, inner = self.target.map_family(pick).draw(stream)
        return (*jax.tree.map(pick, self.points), *_coordinates(y)), weight * inner

    def map_family(self, g: Callable) -> "Disintegration":
        points, weights = jax.tree.map(g, (self.points, self.weights))
        return _replace(self, points=points, weights=weights, target=self.target.map_family(g))

    def mass(self) -> Float[Array, "*family"]:
        mass = self.target.mass()
        return null_safe_product(self.weights, mass).sum(-1)

    def size(self) -> Float[Array, "*family"]:
        size = self.target.size()
        return null_safe_product(jnp.abs(self.weights), size).sum(-1)

    def scale(self, c: Any) -> "Disintegration":
        certain = self.certain and isinstance(c, int | float) and c != 0
        c = jnp.asarray(c)
        form = self.with_family_rank(c.ndim)
        return _replace(form, weights=c[..., None] * form.weights, certain=certain)

    @property
    def masses(self) -> tuple[Any, ...]:
        return (self.weights,)

    def with_masses(self, *masses: Any) -> "Disintegration":
        return _replace(self, weights=masses[0])

    def with_family_rank(self, rank: int = 0) -> "Disintegration":
        extra = max(0, rank + 1 - self.weights.ndim)
        return self.map_family(lambda x: x.reshape((1,) * extra + x.shape)) if extra else self

    def reweight(self, f: Integrand) -> "Disintegration":
        form = self.with_family_rank(len(f.shape))
        return _replace(form, target=_reweight_given(form, form.target, f))

    def push(self, transform: Any) -> tuple["Form", ...]:
        if has_law(self):
            like = jnp.zeros(self.weights.shape)
            (image,) = self.target.push(Section(as_integrand(transform), self.points, like))
            return (_replace(self, points=(), target=image),)
        return tuple(image for form in self.flat() for image in form.push(transform))

    def density(self, *x: Any, mesh_axes: frozenset[str] = frozenset()) -> Float[Array, "*family"]:
        return functools.reduce(jnp.add, [form.density(*x, mesh_axes=mesh_axes) for form in self.flat()])

    def rows(self, ignores_y: bool = False) -> tuple["Disintegration", ...]:
        if isinstance(self.target, Disintegration) and not has_law(self):
            return tuple(row for form in self.flat() for row in form.rows(ignores_y))
        return (self,)

    def marginal(self) -> tuple["Form", ...]:
        """The law of the last coordinate, the mixture Σ_x μ(x) P_x."""
        if isinstance(self.target, Disintegration):
            raise TypeError("bind(P, K): K must give measures on one space, got measures on tuples")
        if isinstance(self.target, LawForm):
            return (_replace(self, points=()),)
        target, mix = self.target.written(), lambda part: null_safe_product(self.weights[..., None], part)
        axis = self.weights.ndim - 1
        shape = jnp.broadcast_shapes(self.weights.shape, target.family)
        merge = lambda a: _merge_axes(jnp.broadcast_to(a, (*shape, *a.shape[axis + 1 :])), axis)
        return (
            target._with(
                points=jax.tree.map(merge, target.points),
                weights=None if target.weights is None else merge(mix(target.weights)),
                background=None if target.background is None else mix(target.background[..., None])[..., 0].sum(axis),
                dense=None if target.dense is None else mix(target.dense).sum(axis),
                certain=self.certain and target.certain,
            ),
        )

    def flat(self) -> tuple[NormalForm, ...]:
        """All pairs as atoms."""
        forms = []
        axis = self.weights.ndim - 1
        for target in self.target.flat():
            for y, inner, certain in target.parts():
                shape = (*jnp.broadcast_shapes(self.weights.shape, inner.shape[:-1]), inner.shape[-1])
                spread = lambda a, shape=shape: _merge_axes(jnp.broadcast_to(a, (*shape, *a.shape[axis + 2 :])), axis)
                x = jax.tree.map(lambda a, spread=spread: spread(jnp.expand_dims(a, axis + 1)), self.points)
                weights = spread(null_safe_product(self.weights[..., None], inner))
                points = (*x, *_coordinates(jax.tree.map(spread, y)))
                forms.append(NormalForm(points, weights, certain=self.certain and certain))
        return tuple(forms)

    def merge(self, other: Any) -> None:
        return None


Form = NormalForm | Disintegration | LawForm


def in_batches(integrate: Callable[[Form], Any], form: NormalForm | Disintegration, size: int) -> Any:
    """Σ ``integrate`` over slices of at most ``size`` atoms, one held at a time, forwards and backwards."""
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"expect(batch_size): a positive int, got {size!r}")
    if form.weights is None or form.weights.shape[-1] <= size:
        return integrate(form)
    axis, atoms = form.weights.ndim - 1, form.weights.shape[-1]

    def piece(start, length):
        cut = lambda x: x if x.shape[axis] == 1 else jax.lax.dynamic_slice_in_dim(x, start, length, axis)
        if isinstance(form, Disintegration):
            return jax.tree.map(cut, form)
        return NormalForm(jax.tree.map(cut, form.points), cut(form.weights), certain=form.certain)

    batch = jax.checkpoint(lambda start: integrate(piece(start, size)))
    full, rest = divmod(atoms, size)
    zero = jax.tree.map(zeros, jax.eval_shape(batch, 0))
    step = lambda total, i: (jax.tree.map(jnp.add, total, batch(i * size)), None)
    total, _ = jax.lax.scan(step, zero, jnp.arange(full))
    remainder = [integrate(piece(full * size, rest))] if rest else []
    if isinstance(form, NormalForm) and form.classes is not None:
        remainder.append(integrate(form._with(points=None, weights=None)))
    return jax.tree.map(lambda *terms: sum(terms), total, *remainder)


def stand_in(points: PyTree, null: Shaped[Array, "*family k"]) -> PyTree:
    """The points, with another atom's in place of each null one, so that no derivative is taken at a null atom.

    The stand-in is the first atom that is not null, a point where the integral needs the integrand anyway; where all
    atoms are null it is 0.
    """
    axis = null.ndim - 1
    first = jnp.argmin(null, axis=-1, keepdims=True)

    def replace(x):
        if x.shape[axis] == 1 != null.shape[axis]:  # shared by all atoms
            return x
        event = (1,) * (x.ndim - null.ndim)
        lead = jnp.broadcast_shapes(null.shape, x.shape[: null.ndim])
        x = jnp.broadcast_to(x, (*lead, *x.shape[null.ndim :]))
        index = jnp.broadcast_to(first, (*lead[:-1], 1)).reshape(*lead[:-1], 1, *event)
        other = jnp.take_along_axis(x, index, axis=axis)
        none = jnp.all(null, axis=-1, keepdims=True)
        other = jnp.where(none.reshape(none.shape + event), jnp.zeros((), x.dtype), other)
        return jnp.where(null.reshape(null.shape + event), other, x)

    return jax.tree.map(replace, points)


def check_one_space(forms: Iterable[Any]) -> None:
    """Refuses points of different shapes: a number, a class, and vectors of each length."""
    shapes = {shape for form in forms if (shape := _event_shape(form)) is not None}
    if len(shapes) > 1:
        raise ValueError(
            f"P and Q: measures on one space, got points of shapes {' and '.join(map(str, sorted(shapes)))}; a label is an "
            "integer, and probabilities of classes are a measure: joint(Empirical(x), Discrete(weights=p))"
        )


def _event_shape(form: Any) -> tuple[int, ...] | None:
    """The shape of a point of one coordinate, where that is an array."""
    if isinstance(form, NormalForm):
        if form.weights is None:
            return ()
        return form.points.shape[form.weights.ndim :] if hasattr(form.points, "shape") else None
    return form.event_shape if isinstance(form, LawForm) and form.coordinates == 1 else None


def without_null_rows(rows: Disintegration, null: Shaped[Array, "*family k"]) -> tuple[tuple, Any]:
    """The points and the targets of rows, with a stand-in for every row that is null.

    A row whose target alone is null (all of it restricted away) needs one only for an x that is not finite, such as
    padding: the target's own zeros keep it out of every other derivative.
    """
    target = rows.target
    if not isinstance(target, NormalForm):
        smooth = target.map_family(lambda a: stand_in(a, null)) if isinstance(target, LawForm) else target
        return stand_in(rows.points, null), smooth
    targets = [jnp.all(weights == 0, axis=-1) for _, weights, _ in target.parts()]
    finite = [
        jnp.all(jnp.isfinite(x), axis=tuple(range(null.ndim, x.ndim)))
        for x in jax.tree.leaves(rows.points)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    every = lambda masks: functools.reduce(jnp.logical_and, masks)
    padding = jnp.array(False) if target.certain or not finite else every(targets) & ~every(finite)
    return stand_in(rows.points, null | padding), stand_in(target, null)


def factors_at(f: Integrand, points: Any, weights: Any, certain: bool) -> Any:
    """f at the atoms, as a factor of their weights."""
    lead = weights.ndim
    if certain:
        return f.values(points, lead)
    leads = [x.shape[:lead] for x in jax.tree.leaves(points)]
    weights = jnp.broadcast_to(weights, jnp.broadcast_shapes(weights.shape, *leads))
    absent, held = null_atoms(lambda points: f.values(points, lead), weights, (points,))
    present, away = without_null(f, jnp.all(absent, axis=-1)), absent
    if not f.shape:  # one function for the whole family: a shared point is null only where it is so for all members
        shared = tuple(i for i, n in enumerate(leads[0][:-1]) if n == 1)
        away = jnp.all(absent, axis=shared, keepdims=True)
    return without(absent, present.values(stand_in(points, away), lead), held)


def _weighted(weights, value):
    w = weights.reshape(weights.shape + (1,) * max(0, value.ndim - weights.ndim))
    dtype = jnp.result_type(accumulator(jnp.result_type(value.dtype, jnp.bfloat16)), w.dtype)
    return w.astype(dtype) * value.astype(dtype)


def _times(f, points, weights, certain, family):
    values = factors_at(f, points, weights, certain)
    own = values.shape[weights.ndim :]
    if own and len(own) <= len(family) and all(n in (1, m) for n, m in zip(own[::-1], family[::-1], strict=False)):
        values = _each_members_own(values, len(family))
    elif own:
        raise ValueError(
            f"f * P: f must be scalar-valued, or have a value for each member of a family {family}, got values of shape {own}; "
            "if a batch has more than one axis, weights of its shape name them all, such as weights=jnp.ones((B, T))"
        )
    return _weighted(weights, values)


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


def _reweight_given(rows, target, f):
    """f(x, ·) · P_x for every x: the target's new weights."""
    if isinstance(target, LawForm):
        return target.reweight(Section(f, rows.points, jnp.zeros(rows.weights.shape)))
    if isinstance(target, Disintegration):
        joined = jax.tree.map(lambda a: jnp.expand_dims(a, rows.weights.ndim), rows.points)
        inner = _replace(target, points=(*joined, *target.points))
        return _replace(target, target=_reweight_given(inner, target.target, f))
    lead = rows.weights.ndim
    parts = iter([_times_given(f, rows, lead, *part) for part in target.parts()])
    weights = None if target.weights is None else next(parts)
    dense = None if target.classes is None else next(parts)
    return target._with(weights=weights, background=None, dense=dense, deferred=(), certain=False).with_family_rank()


def _times_given(f, rows, lead, y, inner, certain):
    if y.shape[:-1] == (1,) * (y.ndim - 1) if isinstance(y, jax.Array) else False:
        shared = _independent_of_x(f, rows.points, y.reshape(-1), lead)
        if shared is not None:
            return null_safe_product(inner, shared)
    shape = (*jnp.broadcast_shapes(rows.weights.shape, inner.shape[:-1]), inner.shape[-1])
    spread = lambda a: _merge_axes(jnp.broadcast_to(a, (*shape, *a.shape[lead + 1 :])), lead - 1)
    x = jax.tree.map(lambda a: spread(jnp.expand_dims(a, lead)), rows.points)
    points = (*x, *_coordinates(jax.tree.map(spread, y)))
    # The pairs' weights: a row of weight 0 has the density that it has, for derivatives in its weight.
    weights = spread(null_safe_product(rows.weights[..., None], inner))
    values = values_at(lambda *x: f.values(x, lead), weights, points, lambda absent, *x: stand_in(x, absent))
    return _weighted(inner, values.reshape(*values.shape[: lead - 1], *shape[lead - 1 :]))


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


def _pick(a, i, axis):
    """The entry of every member, one i a member, of an axis that is gone then."""
    if a.shape[axis] == 1:
        return jnp.take(a, 0, axis=axis)
    family = jnp.broadcast_shapes(i.shape, a.shape[:axis])
    i, a = jnp.broadcast_to(i, family), jnp.broadcast_to(a, (*family, *a.shape[axis:]))
    return jnp.take_along_axis(a, i.reshape(*i.shape, 1, *(1,) * (a.ndim - axis - 1)), axis=axis).squeeze(axis)


def _concatenate(x, y, family):
    lead = len(family)
    spread = lambda a: jnp.broadcast_to(a, (*family, *a.shape[lead:]))
    return jnp.concatenate([spread(x), spread(y)], axis=lead)


def _merge_axes(a, axis):
    """Axes axis and axis + 1 as one."""
    return a.reshape(*a.shape[:axis], a.shape[axis] * a.shape[axis + 1], *a.shape[axis + 2 :])


def _coordinates(points):
    return points if isinstance(points, tuple) else (points,)


def _replace(node, **changes):
    new = object.__new__(type(node))
    set_fields(new, **{**node.__dict__, **changes})
    return new
