"""Integrals of many atoms, a few at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._kernels.mesh import zeros
from .._pytree import replaced
from .disintegration import Disintegration
from .form import Form
from .normal_form import NormalForm


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
        return NormalForm(jax.tree.map(cut, form.points), cut(form.weights), no_null_atoms=form.no_null_atoms)

    batch = jax.checkpoint(lambda start: integrate(piece(start, size)))
    full, rest = divmod(atoms, size)
    zero = jax.tree.map(zeros, jax.eval_shape(batch, 0))
    step = lambda total, i: (jax.tree.map(jnp.add, total, batch(i * size)), None)
    total, _ = jax.lax.scan(step, zero, jnp.arange(full))
    remainder = [integrate(piece(full * size, rest))] if rest else []
    if isinstance(form, NormalForm) and form.classes is not None:
        remainder.append(integrate(replaced(form, points=None, weights=None)))
    return jax.tree.map(lambda *terms: sum(terms), total, *remainder)
