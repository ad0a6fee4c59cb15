"""A function of the rows of hidden @ weight, a block of them at a time: its values, its gradients, and what JAX differentiates.

``values(axis_name)(logits, shared, rows, indices)`` says what is wanted: a pytree of numbers a row, from the rows' logits,
arrays ``shared`` by all rows, and each row's own, the indices being what has no derivative. Over the mesh axes ``axis_name``
each device has a part of the classes. ``of_figures`` are the same values where they are functions of a row's figures.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from .._strict import custom_jvp
from .classes import accumulator
from .exponentials import Exponentials
from .layout import CLASSES, rows_of
from .matrix import PLATFORMS, Epilogue, Matrix, block_rows, differentiable_logits, kept_in
from .null import differentiated, values_at
from .partition import partitioned, placed_as
from .summand import (
    Gradient,
    Nulls,
    OfFigures,
    Summand,
    basis,
    each,
    in_blocks,
    picked,
    smooth_leaves,
    total,
    total_and_gradients,
    weigh,
)


def _on_platform(function, sizes, *operands):
    """``function(platform, size, *operands)`` with the platform's size."""
    by_platform = {p: functools.partial(function, p, size) for p, size in sizes.items()}
    return lax.platform_dependent(*operands, **by_platform)


class Dimensions(NamedTuple):
    """The names of the axes of what is shared, and of what each row has, for the partition."""

    shared: PyTree
    rows: PyTree


class Points(NamedTuple):
    """What values are functions of, or what stands for each array of it: the names of its axes, whether it has a batch's."""

    hidden: Any
    weight: Any
    epilogue: Any
    shared: Any
    rows: Any
    indices: Any

    @classmethod
    def dims(cls, rank: int, matrix: Matrix, epilogue: Epilogue, given: Dimensions, indices: PyTree) -> "Points":
        """The names of the axes, so many of them rows."""
        of_rows = rows_of(rank)
        weight = ("features", CLASSES) if matrix.class_axis else (CLASSES, "features")
        of_indices = jax.tree.map(lambda x: (*of_rows, *(None,) * (x.ndim - rank)), indices)
        return cls((*of_rows, None), weight, epilogue.dims, *given, of_indices)

    def parts(self, wanted: Gradient, like: "Points | None" = None) -> Gradient:
        """What is wanted of them; ``like`` are arrays where these are not."""
        like = like or self
        of_shared, of_rows = (
            picked(getattr(like, x), getattr(wanted, x), getattr(self, x))[0] for x in ("shared", "rows")
        )
        return wanted.of(self.hidden, self.weight, self.epilogue, None, of_shared, of_rows)

    def with_parts(self, wanted: Gradient, parts: Gradient) -> "Points":
        """With those parts in their place."""
        new = {name: x for name, x in parts._asdict().items() if x is not None}
        for name in {"shared", "rows"} & set(new):
            new[name] = picked(getattr(self, name), getattr(wanted, name))[1](new[name])
        return self._replace(**new)


@dataclasses.dataclass(frozen=True, eq=False)
class HeadFunction:
    """Values of the rows, or with ``of_each`` false their integral against the rows' weights; all of it but its arrays."""

    values: Callable
    of_figures: OfFigures | None
    matrix: Matrix  # without its weight
    dims: Points
    size: int | None
    of_each: bool
    no_null_rows: bool = False
    residual_bytes: int = 0
    copies: int = 1  # arrays like the logits that the values are made with

    @property
    def rank(self) -> int:
        return len(self.dims.hidden) - 1

    def of_rows(self, tree: PyTree) -> PyTree:
        """The names of the axes of arrays whose first ones are the rows'."""
        return jax.tree.map(lambda x: (*rows_of(self.rank), *(None,) * (x.ndim - self.rank)), tree)

    def blocked(
        self, function: Callable, wanted: Gradient, out_dims: Callable, operands: tuple, at_once: Iterable[str] = ()
    ) -> Any:
        """``function(summand, platform, size, rows)`` gives (value, gradients); each device its share of both.

        The operands are weights, the rows' exponentials where they are kept, and all points; on platforms ``at_once`` all rows
        are one block.
        """
        weights, kept, *points = operands
        points = Points(*points)
        # What devices gather is the weight as its products have it.
        operands = weights, kept, *points._replace(weight=self.matrix.of(points.weight).weight)
        of_kept = None if kept is None else kept.dims(rows_of(self.rank))
        dims = self.of_rows(weights), of_kept, *self.dims
        return partitioned(functools.partial(self._local, function, wanted, at_once), operands, dims, out_dims)

    def _local(self, function, wanted, at_once, axes):
        def on_device(weights, kept, *points):
            points = Points(*points)
            lead = points.hidden.shape[: self.rank]
            flatten = lambda x: x.reshape(-1, *x.shape[self.rank :])
            of_rows = jax.tree.map(flatten, (points.hidden, weights, points.rows, points.indices, kept))
            axis_name = axes.get(CLASSES) or None
            known = self.values(axis_name), self.of_figures, axis_name, self.matrix.of(points.weight)
            nulls, alone = Nulls(self.no_null_rows), not any(axes.values())
            summand = Summand(*known, points.epilogue, points.shared, nulls, alone, self.of_each)
            count = math.prod(lead)
            scaled = summand.without_logits(wanted, of_rows[0], *of_rows[2:4])
            rounds = bool(scaled) and summand.rounds(wanted)
            sizes = block_rows(count, summand.matrix, self.size, scaled, self.copies, rounds)
            if count * summand.matrix.classes < 1 << 31:  # beyond, a TPU writes logits that it need not
                sizes |= dict.fromkeys(sizes.keys() & at_once, count)
            whole = all(count % size == 0 for size in sizes.values())  # padding has weight 0
            summand = summand._replace(nulls=Nulls(weights is None or (self.no_null_rows and whole)))
            # What a branch closes over is one of its operands.
            value, gradients = _on_platform(functools.partial(function, summand), sizes, of_rows)
            value = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), value) if self.of_each else value
            return value, [gradient.with_rows(lead) for gradient in gradients]

        return on_device

    def integral(self, weights: PyTree, *points: Any) -> PyTree:
        out_dims = functools.partial(jax.tree.map, lambda x: ())
        return self.blocked(total, Gradient(), out_dims, (weights, None, *points))[0]

    def values_of_rows(self, *points: Any) -> PyTree:
        return self.blocked(functools.partial(each, False), Gradient(), self.of_rows, (None, None, *points))[0]

    def values_and_kept(self, *points: Any) -> tuple[PyTree, Exponentials]:
        """Each row's value, and what its gradient is made of without its logits."""

        def out_dims(out):
            (value, kept), _ = out
            return (self.of_rows(value), kept.dims(rows_of(self.rank))), []

        # A TPU and a GPU's kernel make no logits beside them, and those of blocks would be copied.
        at_once = () if self.size else ("tpu", "cuda")
        return self.blocked(functools.partial(each, True), Gradient(), out_dims, (None, None, *points), at_once)[0]

    def keeps(self, wanted: Gradient, points: Points) -> bool:
        """Whether there is room for that. One row alone is likely one of a batch, and how many there are is not known."""
        matrix = self.matrix.of(points.weight)
        summand = Summand(self.values, self.of_figures, None, matrix, points.epilogue, points.shared, Nulls(True), True)
        rows = math.prod(points.hidden.shape[:-1])
        room = rows * matrix.classes * matrix.weight.dtype.itemsize <= self.residual_bytes
        return self.rank > 0 and room and summand.can_scale(wanted)

    def with_gradients(
        self, wanted: Gradient, weights: PyTree, points: Points, kept: Exponentials | None = None
    ) -> tuple[Any, list[Gradient]]:
        """(The integral, of each of its numbers the gradient), or with ``of_each`` (None, one for the cotangents that are the
        weights)."""

        def out_dims(out):
            value, gradients = out
            parts = self.dims.parts(wanted, points)
            parts = parts._replace(weights=rows_of(self.rank) if wanted.weights else None)
            return jax.tree.map(lambda x: (), value), [parts] * len(gradients)

        @custom_jvp
        def with_gradients(weights, kept, *points):
            function = functools.partial(total_and_gradients, wanted)
            at_once = () if kept is None else PLATFORMS  # no logits are made, so that blocks would save nothing
            return self.blocked(function, wanted, out_dims, (weights, kept, *points), at_once)

        def jvp(primals, tangents):
            # The blocked gradient is not made to be differentiated: its own derivative is that of the plain one.
            tangent = tangent_along(functools.partial(self.plain, wanted), primals, tangents)
            out = with_gradients(*primals)
            return out, jax.tree.map(placed_as, tangent, out)

        with_gradients.defjvp(jvp, symbolic_zeros=True)
        return with_gradients(weights, kept, *points)

    def plain(self, wanted: Gradient, weights: PyTree, kept: Any, *points: Any) -> tuple[Any, list[Gradient]]:
        """The same from operations that JAX differentiates, in blocks that it makes again."""
        del kept
        points = Points(*points)
        parts = points.parts(wanted)

        def total(weights, parts):
            hidden, weight, epilogue, shared, rows, indices = points.with_parts(wanted, parts)
            smooth, rebuild = smooth_leaves(shared)

            def row(hidden, rows, weight, epilogue, smooth):
                return self.plain_values(hidden, weight, epilogue, rebuild(smooth), rows, indices)

            def stand_in(absent, hidden, rows, *others):
                absent = jnp.all(absent, axis=tuple(range(self.rank, absent.ndim)))
                return *nulls.present(absent, (hidden, rows)), *others

            held, nulls = (hidden, rows, weight, epilogue, smooth), Nulls(self.no_null_rows)
            if nulls.none:
                return weigh(weights, row(*held))
            if not self.of_each:
                return weigh(weights, values_at(row, weights, held, stand_in))
            one = lambda k: lambda *held: smooth_leaves(row(*held))[0][k]
            present = ((one(k), ct) for k, ct in enumerate(weights) if ct is not None)
            return sum(weigh(ct, values_at(value, ct, held, stand_in)) for value, ct in present)

        # Apart: the derivative in the weights is what looks at null rows, and need not be asked for.
        value, pullback = jax.vjp(functools.partial(total, weights), parts)
        of_weights = (lambda _: (None,)) if self.of_each else jax.vjp(lambda weights: total(weights, parts), weights)[1]
        cotangents = basis(value)

        def gradient(cotangent):
            (found,) = pullback(cotangent)
            kept = lambda x, dtype: None if x is None else x.astype(dtype(x.dtype))
            return found._replace(
                hidden=kept(found.hidden, kept_in),
                weight=kept(found.weight, accumulator),
                weights=of_weights(cotangent)[0] if wanted.weights else None,
            )

        return None if self.of_each else value, [gradient(cotangent) for cotangent in cotangents]

    def plain_values(self, *points: Any) -> PyTree:
        """Of each row."""
        rank = self.rank

        def local(axes):
            value = self.values(axes.get(CLASSES) or None)

            def blocked(platform, size, weight, epilogue, shared, *rows):
                del platform
                product = differentiable_logits(self.matrix, weight)
                block = jax.checkpoint(lambda hidden, *rows: value(epilogue.logits(product(hidden)), shared, *rows))
                out = lax.scan(lambda _, xs: (None, block(*xs)), None, in_blocks(size, rows))[1]
                return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(rows[0])], out)

            def of_rows(hidden, weight, epilogue, shared, rows, indices):
                lead = hidden.shape[:rank]
                flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[rank:]), (hidden, rows, indices))
                sizes = block_rows(len(flat[0]), self.matrix.of(weight), self.size, copies=self.copies)
                out = _on_platform(blocked, sizes, weight, epilogue, shared, *flat)
                return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)

            return of_rows

        return partitioned(local, points, tuple(self.dims), self.of_rows)

    def of_batch(self, here: Points) -> "tuple[HeadFunction, Points] | None":
        """The function of a batch, whose axis is one more of rows, and which arrays it takes with it; given which have it.

        None where there is a head a member, or all have the same hidden states.
        """
        if not here.hidden or any(jax.tree.leaves((here.weight, here.epilogue, here.shared))):
            return None
        rank, lead = self.rank, rows_of(self.rank + 1)

        def longer(places, dims):
            tree = jax.tree.structure(places)
            return tree.unflatten([(*lead, *names[rank:]) for names in tree.flatten_up_to(dims)])

        rows = dict(zip(("hidden", "rows", "indices"), (here.hidden, here.rows, here.indices), strict=True))
        dims = self.dims._replace(**{name: longer(x, getattr(self.dims, name)) for name, x in rows.items()})
        taken = here._replace(**jax.tree.map(lambda _: True, rows))
        return dataclasses.replace(self, dims=dims), taken


def tangent_along(function, primals, tangents):
    """Along those arguments that have a tangent."""
    leaves, tree = jax.tree.flatten(primals)
    moving = {i: t for i, t in enumerate(jax.tree.leaves(tangents)) if differentiated(t) is not None}

    def along(*moved):
        new = dict(zip(moving, moved, strict=True))
        return function(*tree.unflatten([new.get(i, x) for i, x in enumerate(leaves)]))

    return jax.jvp(along, [leaves[i] for i in moving], list(moving.values()))[1]
