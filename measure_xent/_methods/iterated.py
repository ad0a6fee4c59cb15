"""Iterated integrals: the inner one as a function of the outer point."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._integrands.composites import Section
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand, as_tuple
from .._integrands.rules import integrate
from .._measures.measure import using
from .._pytree import pytree

# Outer points at a time. An inner integral by quadrature takes thousands of nodes, each with what its derivatives keep.
POINTS = 512


@pytree
class Inner(Integrand):
    """x ↦ ∫ f(x, y) K(x, dy), its error and its status: the integrand of an iterated integral."""

    f: Integrand
    K: Any  # a Conditional
    method: Any = None

    def __call__(self, *x):
        values = self.values(tuple(jnp.asarray(a)[None] for a in x), 1)
        return jax.tree.map(lambda v: v[0], values)

    @property
    def shape(self) -> Any:
        return jnp.broadcast_shapes(self.f.shape, self.K.shape)

    def values(self, points, lead):
        """In pieces along the points' last axis of ``lead``, which derivatives go through again one by one."""
        family, n = jax.tree.leaves(points)[0].shape[: lead - 1], jax.tree.leaves(points)[0].shape[lead - 1]
        size = max(1, POINTS // math.prod(family))
        if n <= size:
            return self._values(points, lead)
        pieces = -(-n // size)
        size = -(-n // pieces)
        # The last piece is filled with the last point again.
        at = jnp.minimum(jnp.arange(pieces * size), n - 1).reshape(pieces, size)
        piece = lambda at: self._values(jax.tree.map(lambda x: jnp.take(x, at, lead - 1), points), lead)
        values = lax.map(jax.checkpoint(piece, prevent_cse=False), at)
        join = lambda v: jnp.moveaxis(v, 0, lead - 1).reshape(*v.shape[1:lead], pieces * size, *v.shape[lead + 1 :])
        return jax.tree.map(lambda v: lax.slice_in_dim(join(v), 0, n, axis=lead - 1), values)

    def _values(self, points, lead):
        x = as_tuple(points)
        like = jnp.zeros(jax.tree.leaves(x)[0].shape[:lead])
        known = hasattr(self.f.model, "family")  # a function of a Conditional: there may be a closed form
        f = self.f.given(self.f.model.family(x, lead)) if known else Section(self.f, x, like)
        measure = self.K.family(x, lead)
        total = integrate(measure if self.method is None else using(measure, self.method), f)
        error = jax.tree.map(lambda v, e: jnp.broadcast_to(e, jnp.shape(v)), total.value, total.error)
        return total.value, error, jnp.asarray(total.status, like.dtype) + like

    def leaves_to_converge(self, leaves):
        return (leaves - 1) // 2


def iterated(total: Integral) -> Integral:
    """The iterated integral, from the outer integral of an ``Inner``."""
    value, inner, failed = total.value
    error = jax.tree.map(lambda outer, inner: outer + jnp.abs(inner), total.error[0], inner)
    return Integral(value, error, total.status + jnp.asarray(failed != 0, jnp.int32))
