"""Functions of functions of points, as forms and iterated integrals make them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._kernels.null import null_safe_product
from .._pytree import as_node, pytree, set_fields
from .._strict import of_user
from .integrand import Integrand, as_tuple


@pytree
class Last(Integrand):
    """(x…, y) ↦ y."""

    def __call__(self, *x):
        return x[-1]

    def values(self, points, lead):
        return points[-1]


@pytree
class Times(Integrand):
    """x ↦ Π wᵢ(x) · f(x) with scalar wᵢ, 0 where a w is, whatever the others are."""

    w: tuple[Integrand, ...]
    f: Integrand

    def __call__(self, *x):
        return self._product([w(*x) for w in self.w], self.f(*x), 0)

    @property
    def shape(self):
        return jnp.broadcast_shapes(self.f.shape, *(w.shape for w in self.w))

    def values(self, points, lead):
        return self._product([w.values(points, lead) for w in self.w], self.f.values(points, lead), lead)

    def leaves_to_converge(self, leaves):
        return self.f.leaves_to_converge(leaves)

    @property
    def noise(self):
        return self.f.noise

    def _product(self, weights, values, lead):
        def times(v):
            for w in map(jnp.asarray, weights):
                if w.ndim > max(lead, len(self.shape)):
                    raise ValueError(f"f * P: f must be scalar-valued, got values of shape {w.shape[lead:]}")
                w = w.reshape(w.shape + (1,) * max(0, jnp.ndim(v) - max(lead, w.ndim)))
                dtype = jnp.result_type(float, v, w)
                v = null_safe_product(w.astype(dtype), v.astype(dtype))
            return v

        return jax.tree.map(times, values)


@pytree
class Pullback(Integrand):
    """x ↦ f(T(x))."""

    f: Integrand
    T: Integrand

    def __call__(self, *x):
        y = self.T(*x)
        return self.f(*y) if isinstance(y, tuple) else self.f(y)

    @property
    def shape(self):
        return jnp.broadcast_shapes(self.f.shape, self.T.shape)

    def values(self, points, lead):
        return self.f.values(self.T.values(points, lead), lead)

    def leaves_to_converge(self, leaves):
        return self.f.leaves_to_converge(leaves)

    @property
    def noise(self):
        return self.f.noise

    def by_ratio(self):
        known = self.f.by_ratio()
        return None if known is None else (Pullback(known[0], self.T), known[1])

    def places(self, x, lead):
        y = self.T.values(x, lead)
        return y if jnp.shape(y) == x.shape else x


@pytree
class Section(Integrand):
    """y ↦ f(x, y), one x a member of the family whose axes are those of ``like``."""

    f: Integrand
    x: tuple
    like: Float[Array, "*family"]

    def __call__(self, *y):
        return self.f(*self.x, *y)

    @property
    def shape(self):
        return jnp.shape(self.like)

    def values(self, points, lead):
        own = jnp.ndim(self.like)
        y = as_tuple(points)
        x = jax.tree.map(lambda a: a.reshape((1,) * (lead - 1 - own) + a.shape[:own] + (1,) + a.shape[own:]), self.x)
        shape = jnp.broadcast_shapes(*(a.shape[:lead] for a in jax.tree.leaves((x, y))))
        x, y = jax.tree.map(lambda a: jnp.broadcast_to(a, (*shape, *a.shape[lead:])), (x, y))
        if not self.f.shape:
            return self.f.values((*x, *y), lead)
        # A family of functions takes its own axes and then one of points, of all the nodes of all the atoms.
        one_axis = lambda a: a.reshape(*a.shape[: own - 1], -1, *a.shape[lead:])
        values = self.f.values(jax.tree.map(one_axis, (*x, *y)), own)
        return jax.tree.map(lambda v: v.reshape(*v.shape[: own - 1], *shape[own - 1 :], *v.shape[own:]), values)


@pytree
class Indicator(Integrand):
    """1_A: 1 where the predicate holds, else 0."""

    A: Callable

    def __post_init__(self):
        set_fields(self, A=as_node(self.A))

    def __call__(self, *x):
        return jnp.where(of_user(self.A)(*x), 1.0, 0.0)
