"""Integrals and divergences against heads, from blocks of their logits."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._forms.disintegration import Disintegration, disintegrate
from .._forms.members import by_members, deferred_families, identity
from .._forms.normal_form import NormalForm
from .._integrands.density import LogDensity, Perspective
from .._integrands.integrand import Integrand, with_model
from .._integrands.rules import integrate, rule
from .._kernels.classes import Classes, accumulator
from .._kernels.head import integral
from .._kernels.head_function import Dimensions
from .._kernels.mesh import AxisName, axes_of, varying
from .._kernels.partition import explicit_mesh
from .._kernels.softmax import log_softmax, rows
from .._kernels.summand import OfFigures
from .._kernels.target import Target, expand
from .._measures.categorical import Row
from .._measures.measure import Measure, Sum
from .._measures.perspectives import sum_of_perspectives
from .._measures.relative_entropy import between, divergence, is_sum_of, mass_outside, sum_over_classes
from .._measures.shapes import sample_axes
from .._measures.target import check_labels, materialised_target, target
from .._program import parts_of
from .linear_softmax import (
    LinearCategorical,
    LinearSoftmax,
    as_figures,
    axes_of_parts,
    dims_of,
    operands_of,
    row_of,
    row_of_figures,
    sparse_target,
    target_of,
)


@rule(Measure, Integrand, LinearCategorical)
def rows_of_head(P: Measure, f: Any) -> PyTree:
    """∫ f dP for functions of Categorical(h @ weight), one number a row, from blocks of logits."""
    Q: Any = f.model
    if Q is None:
        return NotImplemented
    if isinstance(f, LogDensity) and identity(P) == identity(Q):
        return -Q.row(Target(), ("entropy",)).entropy
    forms: Any = P.forms()
    if _are_written(P, forms) and (value := by_members(lambda *of: integrate(*of).checked, P, f)) is not NotImplemented:
        return value
    total: Any = None
    for form in forms:
        check_labels(form, Q.shape, Q.head.classes)
        against = target(form, Q.head.classes, "LinearSoftmax")
        if jnp.broadcast_shapes(form.family, Q.shape) == Q.shape:
            row = Q.row(_here(against, Q.head), f.row_statistics, form.deferred)  # type: ignore[union-attr]
        else:  # several targets a row of logits
            against, logits = materialised_target(form, Q.head.classes, "LinearSoftmax"), Q.dense.logits
            row = Row.of(against, rows(logits, against, f.row_statistics), Classes.of(logits))
        part = f.integrate_row(row)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total


def _are_written(P: Measure, forms: Any) -> bool:
    """Whether forms are dense of a measure that is made of heads."""
    return bool(deferred_families(P)) and any(form.dense is not None for form in forms)


def _one_batch(pair: Any) -> bool:
    return pair.weights.ndim == 1 and [x.ndim for x in jax.tree.leaves(pair.points)] == [2]


@rule(Measure, Integrand, LinearSoftmax)
def integral_of_head(P: Measure, f: Any) -> PyTree:
    """∫ f(h, y) dP for functions of Categorical(h @ weight): P has the rows' weights, so one pass gives value and gradient."""
    Q = f.model
    pairs: Any = [pair for form in P.forms() for pair in disintegrate(form, f.ignores_y)]
    plain = lambda pair: isinstance(pair, Disintegration) and isinstance(pair.target, NormalForm)
    if f.shape or not all(plain(pair) and _one_batch(pair) for pair in pairs):
        return NotImplemented  # a family of integrals, or a law, is the tower's
    function, row_statistics = jax.tree.map(jnp.asarray, with_model(f, None)), f.row_statistics
    # −f is integrated: the cotangent of −P.expect(log(Q)) is 1 then, and the gradient [D, V] is not copied to change its sign.
    sign = -1 if any(isinstance(term, LogDensity) for term in getattr(f, "terms", (f,))) else 1

    def values(axis_name, axes, logits, shared, own, indices):
        function, shared = shared
        value = function.integrate_row(row_of(axis_name, axes, logits, shared, own, indices, row_statistics))
        return jax.tree.map(lambda v: sign * v, value)

    def of_figures(figures, classes, shared, own, indices):
        function, against = shared[0], sparse_target(shared[1], own, indices)
        value = function.integrate_row(row_of_figures(figures, against, classes, row_statistics))
        return jax.tree.map(lambda v: sign * v, value)

    def one(pair):
        (hidden,) = jax.tree.leaves(pair.points)
        hidden = Q(hidden).hidden  # checked
        against = _here(target(pair.target, Q.classes, "LinearSoftmax"), Q)
        (own, indices), shared = operands_of(against, pair.target.deferred, pair.weights.shape)
        shared = function, shared
        of_target = dict(row_statistics=row_statistics, at=lambda shared: shared[1])
        read = as_figures(against, pair.target.deferred, of_figures, Q.axis_name, **of_target)
        how = dict(no_null_rows=pair.no_null_atoms and pair.target.no_null_atoms, deferred=pair.target.deferred)
        return over_rows(P, values, Q, hidden, pair.weights, shared, own, indices, read, **how)

    total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), map(one, pairs))
    return jax.tree.map(lambda v: sign * v, total)


def over_rows(
    P: Measure,
    values: Callable,
    Q: LinearSoftmax,
    hidden: Float[Array, "N D"],
    weights: Float[Array, "N"],
    shared: Any,
    own: Any,
    indices: Any,
    of_figures: OfFigures | None,
    *,
    no_null_rows: bool,
    deferred: tuple = (),
    copies: int = 1,
) -> Any:
    """The integral of ``values(axis_name, axes, logits, shared, own, indices)`` over the rows of a batch P."""
    _check_same(weights, Q, "weights")
    # A batch [B, T] may be sharded by both axes, which one axis of rows could not tell.
    batch = sample_axes(P)
    if math.prod(batch) != len(hidden) or explicit_mesh(hidden) is not None:
        batch = weights.shape
    rows = jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), (hidden, weights, own, indices))
    hidden, weights, own, indices = rows
    return integral(
        lambda axes: functools.partial(values, axes or Q.axis_name, axes),
        hidden,
        Q.matrix,
        Q.epilogue,
        weights,
        shared,
        own,
        indices,
        Dimensions(dims_of(shared, 0), dims_of(own, len(batch))),
        of_figures=of_figures,
        no_null_rows=no_null_rows,
        parts=axes_of_parts(Q, deferred),
        size=Q.batch_size,
        copies=copies,
    )


@between(Measure, LinearCategorical)
def divergence_from_head(P: Measure, Q: LinearCategorical) -> Any:
    """KL(P‖Q), one number a row, from blocks of logits."""
    forms: Any = P.forms()
    if _are_written(P, forms):
        return NotImplemented  # of any two measures it is made by members
    if len(forms) > 1 or jnp.broadcast_shapes(forms[0].family, Q.shape) != Q.shape:
        return divergence(P, Q.dense)
    against = _here(target(forms[0], Q.head.classes, "LinearSoftmax"), Q.head)
    return Q.per_row(_divergence, against, forms[0].deferred)  # type: ignore[union-attr]


def _divergence(
    axis_name: AxisName | None, axes: AxisName | None, z: Array, shared: tuple, own: Any, indices: Any
) -> Array:
    """The divergences of a block of rows' targets from their softmax."""
    classes = Classes.of(z, axis_name)
    against = target_of(own, indices, shared, classes, axes)
    log_q = log_softmax(classes, z.astype(accumulator(z.dtype)))
    p, q = jnp.broadcast_arrays(expand(classes, *against)[1], jnp.exp(log_q))
    u = jnp.log(jnp.where(p == 0, 1, p)) - jnp.where(p == 0, 0, log_q)
    return sum_over_classes(p, q, u, mass_outside(classes, against), classes)


@rule(Sum, Perspective, LinearCategorical, LinearCategorical)
def perspective_of_heads(S: Sum, f: Any) -> Any:
    """An f-divergence of two heads: where their classes are spread over devices, by sums of each one's."""
    P, Q = f.P, f.Q
    known = parts_of(f.generator)
    alike = P.shape == Q.shape and P.classes == Q.classes and P.head.axis_name == Q.head.axis_name
    if not alike or not is_sum_of(S, f) or known is None or any(map(jnp.ndim, known.arrays)):
        return NotImplemented

    def of_block(parts, logits, own, arrays):
        z, w = ((x, True, jnp.asarray(0.0)) for x in logits)
        return sum_of_perspectives(known.make(arrays), [w, z], parts[0])

    return Q.in_parts(of_block, [P], [], known.arrays)


def _here(target: Target, head: LinearSoftmax) -> Target:
    """The target on the classes that this device has; atoms count all."""
    for name, part in target._replace(dense=None)._asdict().items():
        _check_same(part, head, f"target's {name}")
    if target.dense is None or head.axis_name is None:
        return target
    return target._replace(dense=head.parts.part(target.dense))


def _check_same(x: Any, head: LinearSoftmax, what: str) -> None:
    if axes := varying(x) & axes_of(head.axis_name):
        raise ValueError(
            f"LinearSoftmax(axis_name={head.axis_name!r}): the {what} vary over {', '.join(sorted(axes))}, and have to be the "
            "same on every device that has a part of the classes; leave the axis out of their in_specs"
        )
