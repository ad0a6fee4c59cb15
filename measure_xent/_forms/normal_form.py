"""Lists of atoms, on any space and on classes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from .._integrands.integral import Integral, align
from .._integrands.integrand import Integrand, as_integrand, as_tuple
from .._kernels.classes import class_index
from .._kernels.matching import mass_of
from .._kernels.mesh import sum_over
from .._kernels.null import where_supported
from .._kernels.partition import unsplit
from .._pytree import pytree, replaced, static
from .axes import concatenate, pick
from .form import Form, rounding
from .null_rows import factors_at, weighted
from .reweighting import times, times_given


@pytree
class NormalForm(Form):
    """Σ_j weights_j δ_{points_j} + background·(counting measure on classes) + dense, a family by leading axes.

    Absent parts are None. All have the family's axes written out, of size 1 where a part is shared; ``points`` leaves and
    ``weights`` have the atoms' axis behind them. ``deferred`` are dense parts that a kernel may write out a block of rows at a
    time: c times probabilities, pytrees with ``family``, ``c``, ``scale(c)`` and ``dense()``, [*family, V].
    ``no_null_atoms`` says that no weight can be 0, so null atoms need no care.

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
    no_null_atoms: bool = static(default=False)

    @property
    def arity(self) -> int:
        """How many coordinates a point has."""
        return len(self.points) if isinstance(self.points, tuple) else 1

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        if self.weights is None:
            return ()
        return self.points.shape[self.weights.ndim :] if hasattr(self.points, "shape") else None

    @property
    def family(self) -> tuple[int, ...]:
        shapes = [x.shape[:-1] for x in (self.weights, self.dense) if x is not None]
        shapes += [part.family for part in self.deferred]
        return jnp.broadcast_shapes(*shapes, () if self.background is None else self.background.shape)

    def atom_lists(self) -> Iterator[tuple[Any, Float[Array, "*family k"], bool]]:
        """(points, weights, no_null_atoms) of the sparse atoms, then of the classes."""
        if self.weights is not None:
            yield self.points, self.weights, self.no_null_atoms
        if self.classes is not None:
            weights = unsplit(self.class_weights())
            no_null_atoms = self.no_null_atoms and self.dense is None and not self.deferred
            yield jnp.arange(self.classes).reshape((1,) * (weights.ndim - 1) + (-1,)), weights, no_null_atoms

    def class_weights(self) -> Float[Array, "*family V"]:
        """background + dense as one vector over the classes."""
        written = self.materialise().dense
        dense = jnp.asarray(0.0)[None] if written is None else written
        background = jnp.asarray(0.0) if self.background is None else self.background
        weights = background[..., None] + dense
        return jnp.broadcast_to(weights, (*weights.shape[:-1], self.classes))

    def materialise(self) -> "NormalForm":
        """The same with every dense part written out."""
        if not self.deferred:
            return self
        parts = [part.dense() for part in self.deferred] + ([] if self.dense is None else [self.dense])
        return replaced(self, dense=functools.reduce(jnp.add, parts), deferred=())

    def mass(self) -> Float[Array, "*family"]:
        mass, dense = jnp.asarray(0.0), self.materialise().dense
        if self.weights is not None:
            mass = mass + self.weights.sum(-1)
        if self.background is not None:
            mass = mass + self.classes * self.background
        if dense is not None:
            mass = mass + dense.sum(-1)
        return jnp.broadcast_to(mass, self.family)

    def mass_and_error(self) -> tuple[Float[Array, "*family"], Float[Array, "*family"]]:
        size = sum((jnp.abs(part.c) for part in self.deferred), start=jnp.asarray(0.0))
        if self.weights is not None:
            size = size + jnp.abs(self.weights).sum(-1)
        if self.background is not None:
            size = size + self.classes * jnp.abs(self.background)
        if self.dense is not None:
            size = size + jnp.abs(self.dense).sum(-1)
        return self.mass(), rounding(size)

    @property
    def at_atoms(self) -> tuple[bool, ...]:
        return (True,) * self.arity

    def with_family_rank(self, rank: int = 0) -> "NormalForm":
        """The same form with at least ``rank`` family axes, on every part."""
        ranks = [x.ndim - 1 for x in (self.weights, self.dense) if x is not None]
        ranks += [len(part.family) for part in self.deferred]
        rank = max(rank, *ranks, 0 if self.background is None else self.background.ndim)
        grow = lambda x, own: None if x is None else x.reshape((1,) * (rank - own) + x.shape)
        own = 0 if self.weights is None else self.weights.ndim - 1
        return replaced(
            self,
            points=jax.tree.map(lambda x: grow(x, own), self.points),
            weights=grow(self.weights, own),
            background=None if self.background is None else grow(self.background, self.background.ndim),
            dense=None if self.dense is None else grow(self.dense, self.dense.ndim - 1),
            deferred=tuple(jax.tree.map(lambda x, p=p: grow(x, len(p.family)), p) for p in self.deferred),
        )

    def scale(self, c: Any) -> "NormalForm":
        no_null_atoms = self.no_null_atoms and isinstance(c, int | float) and c != 0
        c = jnp.asarray(c)
        form = self.with_family_rank(c.ndim)
        return replaced(
            form.with_masses(*(None if x is None else align(c, x) * x for x in form.masses)),
            deferred=tuple(part.scale(c) for part in form.deferred),
            no_null_atoms=no_null_atoms,
        )

    @property
    def masses(self) -> tuple[Any, ...]:
        """All masses that are written out, with the family's axes in front."""
        return self.weights, self.background, self.dense

    def with_masses(self, *masses: Any) -> "NormalForm":
        return replaced(self, **dict(zip(("weights", "background", "dense"), masses, strict=True)))

    def reweight(self, f: Integrand) -> "NormalForm":
        """f · P. Null atoms stay null, whatever f is there."""
        form = self.with_family_rank(len(f.shape))
        parts = iter([times(f, *part, form.family) for part in form.atom_lists()])
        weights = None if form.weights is None else next(parts)
        dense = None if form.classes is None else next(parts)
        return replaced(
            form, weights=weights, background=None, dense=dense, deferred=(), no_null_atoms=False
        ).with_family_rank()

    def reweight_given(self, rows: Any, f: Integrand) -> "NormalForm":
        parts = iter([times_given(f, rows, rows.weights.ndim, *part) for part in self.atom_lists()])
        weights = None if self.weights is None else next(parts)
        dense = None if self.classes is None else next(parts)
        changed = dict(weights=weights, background=None, dense=dense, deferred=(), no_null_atoms=False)
        return replaced(self, **changed).with_family_rank()

    def integrate(self, f: Integrand) -> Integral:
        """∫ f dP over the atoms, pytree-valued where f is."""
        total = None
        for points, weights, no_null_atoms in self.with_family_rank(len(f.shape)).atom_lists():
            values = factors_at(f, points, weights, no_null_atoms)
            part = jax.tree.map(lambda v, w=weights: weighted(w, v).sum(w.ndim - 1), values)
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return Integral.exact(total)

    def using(self, method: Any) -> "NormalForm":
        """Atoms are summed whatever the method."""
        del method
        return self

    def draw(self, stream: Any) -> tuple[Any, Float[Array, "*family"]]:
        """A point and its weight: the mean of weight · f(point) is the integral of f."""
        form = self.with_family_rank()
        points, weights = zip(*((points, weights) for points, weights, _ in form.atom_lists()), strict=True)
        family = jnp.broadcast_shapes(*(w.shape[:-1] for w in weights))
        weights = functools.reduce(lambda a, b: concatenate(a, b, family), weights)
        points = functools.reduce(lambda a, b: jax.tree.map(lambda x, y: concatenate(x, y, family), a, b), points)
        i, weight = stream.choose(weights)
        return jax.tree.map(lambda a: pick(a, i, weights.ndim - 1), points), weight

    def map_family(self, g: Callable) -> "NormalForm":
        """g over the leading axes of every part of a form ``with_family_rank``."""
        return jax.tree.map(g, self)

    def push(self, transform: Any) -> tuple["NormalForm", ...]:
        """The image under a map of points: every class becomes an atom."""
        return tuple(
            NormalForm(as_integrand(transform).values(points, weights.ndim), weights, no_null_atoms=no_null_atoms)
            for points, weights, no_null_atoms in self.atom_lists()
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
        points, lead = as_tuple(self.points), self.weights.ndim

        def as_row(atoms, value):
            event, value = atoms.shape[lead:], jnp.asarray(value)
            value = jnp.broadcast_to(value, (*value.shape[: value.ndim - len(event)], *event))
            return atoms.reshape(*atoms.shape[:lead], -1), value.reshape(*value.shape[: value.ndim - len(event)], -1)

        rows = map(as_row, jax.tree.leaves(points), jax.tree.leaves(tuple(x)))
        atoms, values = zip(*rows, strict=True)
        weights: Any = self.weights
        return mass_of(atoms, weights, values)

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
            dense = classes.dense is not None or bool(classes.deferred)
            no_null_atoms = sparse.no_null_atoms and (classes.no_null_atoms or dense)
        elif jax.tree.structure(a.points) != jax.tree.structure(b.points):
            return None
        else:
            family = jnp.broadcast_shapes(a.weights.shape[:-1], b.weights.shape[:-1])
            points = jax.tree.map(lambda x, y: concatenate(x, y, family), a.points, b.points)
            weights = concatenate(a.weights, b.weights, family)
            no_null_atoms = a.no_null_atoms and b.no_null_atoms
        plus = lambda x, y: y if x is None else x if y is None else x + y
        background, dense = plus(a.background, b.background), plus(a.dense, b.dense)
        deferred = a.deferred + b.deferred
        return NormalForm(points, weights, background, dense, deferred, a.classes or b.classes, no_null_atoms)
