"""Measures on classes as the kernels take them."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._forms.form import Form
from .._forms.law_form import LawForm
from .._forms.normal_form import NormalForm
from .._kernels.classes import Classes, class_index
from .._kernels.target import Target, expand
from .measure import Measure


def outcomes(target: Target, dtype: jnp.dtype) -> tuple[Array, Array, Array]:
    """The masses of 0, of 1, and of anything else."""
    none = jnp.zeros((), dtype)
    p0, p1, other = none, none, none
    if target.weights is not None:
        weights = target.weights.astype(dtype)
        at = lambda outcome: jnp.sum(jnp.where(outcome, weights, 0), axis=-1)
        p0, p1 = at(target.indices == 0), at(target.indices == 1)
        other = jnp.sum(jnp.where((target.indices < 0) | (target.indices > 1), jnp.abs(weights), 0), axis=-1)
    if target.background is not None:
        p0, p1 = p0 + target.background.astype(dtype), p1 + target.background.astype(dtype)
    if target.dense is not None:
        p0, p1 = p0 + target.dense[..., 0].astype(dtype), p1 + target.dense[..., 1].astype(dtype)
    return p0, p1, other


def check_labels(form: Form, rows: tuple[int, ...], classes: int) -> None:
    """Refuses one-hot rows in place of labels, where they would broadcast with as many rows of logits as there are classes."""
    if rows and isinstance(form, NormalForm) and form.points is not None and form.family == (*rows, classes):
        raise ValueError(
            f"point masses at labels of shape {form.family} against {rows} measures on {classes} classes: one-hot rows are "
            f"Discrete(weights=rows), and labels of that shape take logits of shape {(*rows, 1, classes)}"
        )


def masses(P: Measure, classes: int, name: str) -> Float[Array, "*family V"]:
    """P's share of each class; they sum to less than 1 where P has mass on none."""
    vectors = [expand(Classes(classes), *materialised_target(form, classes, name)) for form in P.forms()]
    mass, vector = (functools.reduce(jnp.add, parts) for parts in zip(*vectors, strict=True))
    return vector / jnp.where(mass == 0, jnp.nan, mass)


def target(form: Form, classes: int, name: str) -> Target:
    """A form as the kernels take it, but for its deferred parts, checked against the number of classes."""
    if isinstance(form, LawForm):
        raise TypeError(
            f"log({name}) is a function of a class, but P has a density: {type(form.law).__name__} is not on classes"
        )
    if not isinstance(form, NormalForm) or isinstance(form.points, tuple | dict | list):
        raise TypeError(f"log({name}) is a function of a class, but P is a measure on tuples; take a Conditional")
    if form.classes not in (None, classes):
        hint = "; V counts the classes on all devices, of axis_name" if name == "LinearSoftmax" else ""
        raise ValueError(f"P is a measure on {form.classes} classes, Q = {name} on {classes}{hint}")
    points = None if form.weights is None else class_index(form.points)
    if points is not None and points.ndim != form.weights.ndim:
        raise ValueError(
            f"log({name}) is a function of one class, but the points of P have shape {points.shape[form.weights.ndim :]}: "
            "labels are integers with no axis of their own"
        )
    return Target(points, form.weights, form.background, form.dense)


def materialised_target(form: Form, classes: int, name: str) -> Target:
    """The same with every dense part written out."""
    return target(form.materialise() if isinstance(form, NormalForm) else form, classes, name)
