"""The form of what has a law and no list of atoms: T_*(c · Πf · law), and the integrands that integrating it makes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._integrands.integral import Integral
from .._integrands.integrand import Integrand, as_integrand
from .._integrands.rules import integrate
from .._kernels.null import null_safe_product
from .._pytree import pytree, set_fields
from .._strict import custom_jvp


@pytree
class Smooth:
    """T_*(c · Πf · law): a law with one density, weighted by functions of its points, which are then seen through T.

    ``method`` says how to integrate; None leaves it to the rules.
    """

    law: Any
    c: Float[Array, "*family"]
    factors: tuple[Integrand, ...] = ()
    transform: Integrand | None = None
    method: Any = None

    @property
    def family(self) -> tuple[int, ...]:
        shapes: list[tuple[int, ...]] = [self.law.shape, jnp.shape(self.c), *(f.shape for f in self.factors)]
        return jnp.broadcast_shapes(*shapes)

    def integrate(self, f: Integrand) -> Integral:
        if self.method is not None:
            return self.method.integrate(self, f)
        return self.times_c(integrate(self.law, self.of_law(f)), f)

    def times_c(self, total: Integral, f: Integrand) -> Integral:
        """c · ∫ f, families broadcast from the right."""
        return total.scale(self.c, max(len(self.family), len(f.shape)))

    def of_law(self, f: Integrand) -> Integrand:
        """f and the factors as one function of the law's own points."""
        f = self.seen(f)
        return Times(self.factors, f) if self.factors else f

    def seen(self, f: Integrand) -> Integrand:
        return f if self.transform is None else Seen(f, self.transform)

    def mass(self) -> Float[Array, "*family"]:
        if not self.factors:
            return jnp.broadcast_to(self.c * self.law.mass, self.family)
        return self.integrate(as_integrand(1.0)).checked

    def size(self) -> Float[Array, "*family"]:
        return jnp.abs(self.mass())

    @property
    def masses(self) -> tuple[Any, ...]:
        return ()

    def with_masses(self) -> "Smooth":
        return self

    def scale(self, c: Any) -> "Smooth":
        return self._with(c=jnp.asarray(c) * self.c)

    def reweight(self, f: Integrand) -> "Smooth":
        return self._with(factors=(*self.factors, self.seen(f)))

    def push(self, transform: Any) -> tuple["Smooth", ...]:
        return (self._with(transform=self.seen(as_integrand(transform))),)

    def by(self, method: Any) -> "Smooth":
        """The same, to be integrated by a method."""
        return self._with(method=method)

    def draw(self, stream: Any) -> tuple[Any, Float[Array, "*family"]]:
        """A point and its weight: the mean of weight · f(point) is the integral of f."""
        x, weight = stream.draw(self.law)
        lead = len(self.family)
        for f in self.factors:
            weight = null_safe_product(weight, jnp.asarray(f.values(x, lead), weight.dtype))
        return x if self.transform is None else self.transform.values(x, lead), self.c * weight

    def at_rank(self, rank: int = 0) -> "Smooth":
        """The same form with at least ``rank`` family axes, on every part."""
        law = self.law.at_rank(max(rank, len(self.family)))
        c = jnp.asarray(self.c)
        return self._with(law=law, c=c.reshape((1,) * (len(law.shape) - c.ndim) + c.shape))

    def map_family(self, g: Any) -> "Smooth":
        """g over the leading axes of every part of a form ``at_rank``."""
        if any(f.shape for f in (*self.factors, *([] if self.transform is None else [self.transform]))):
            raise NotImplementedError(
                f"joint and product: {type(self.law).__name__} with a family of functions against it; give a Conditional"
            )
        return self._with(law=jax.tree.map(g, self.law), c=g(self.c))

    def density(self, *x: Any, mesh_axes: frozenset[str] = frozenset()) -> Float[Array, "*family"]:
        raise NotImplementedError(f"the density of a measure made of {type(self.law).__name__} laws is not known here")

    def flat(self) -> tuple["Smooth", ...]:
        return (self,)

    def marginal(self) -> tuple["Smooth", ...]:
        """The law of the last coordinate."""
        return self.push(Last())

    def merge(self, other: Any) -> None:
        return None

    @property
    def _point(self) -> Any:
        """The shapes of a point, one a member."""
        point, T, lead = self.law.one_point(), self.transform, len(self.family)
        return point if T is None else jax.eval_shape(lambda x: T.values(x, lead), point)

    @property
    def event_rank(self) -> int:
        """How many axes the last coordinate of a point has."""
        return len(self.event_shape)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of the last coordinate of a point."""
        return jax.tree.leaves(self._point)[-1].shape[len(self.family) :]

    @property
    def coordinates(self) -> int:
        """How many coordinates a point has."""
        return len(self._point) if isinstance(self._point, tuple) else 1

    def rows(self, of_x: bool = False) -> tuple["Smooth", ...]:
        if not of_x and self.coordinates < 2:
            raise TypeError(
                f"a Conditional integrates over pairs (x, y): P must be a measure on tuples, {type(self.law).__name__} is not"
            )
        return (self,)

    def parts(self) -> Any:
        raise NotImplementedError(f"{type(self.law).__name__} has no list of atoms")

    def _with(self, **changes: Any) -> "Smooth":
        new = object.__new__(Smooth)
        set_fields(new, **{**self.__dict__, **changes})
        return new


@pytree
class Last(Integrand):
    """(x…, y) ↦ y."""

    def __call__(self, *x):
        return x[-1]

    def values(self, points, lead):
        return points[-1]


def is_smooth(form: Any) -> bool:
    """Whether somewhere in a form there is a law, and so no list of all its atoms."""
    return isinstance(form, Smooth) or (hasattr(form, "target") and is_smooth(form.target))


def has_density(form: Any) -> bool:
    """Whether what a form lists or draws has a density against Lebesgue measure, and is no atoms."""
    if isinstance(form, Smooth):
        return form.law.split()[1] is not None
    return hasattr(form, "target") and has_density(form.target)


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

    def watched(self, leaves):
        return self.f.watched(leaves)

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
class Seen(Integrand):
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

    def watched(self, leaves):
        return self.f.watched(leaves)

    @property
    def noise(self):
        return self.f.noise

    def by_ratio(self):
        known = self.f.by_ratio()
        return None if known is None else (Seen(known[0], self.T), known[1])

    def places(self, x, lead):
        y = self.T.values(x, lead)
        return y if jnp.shape(y) == x.shape else x


@pytree
class Given(Integrand):
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
        y = points if isinstance(points, tuple) else (points,)
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
        x = points if isinstance(points, tuple) else (points,)
        like = jnp.zeros(jax.tree.leaves(x)[0].shape[:lead])
        known = hasattr(self.f.model, "family")  # a function of a Conditional: there may be a closed form
        f = self.f.given(self.f.model.family(x, lead)) if known else Given(self.f, x, like)
        measure = self.K.family(x, lead)
        total = integrate(measure if self.method is None else measure.by(self.method), f)
        error = jax.tree.map(lambda v, e: jnp.broadcast_to(e, jnp.shape(v)), total.value, total.error)
        return total.value, error, jnp.asarray(total.status, like.dtype) + like

    def watched(self, leaves):
        return (leaves - 1) // 2


def iterated(total: Integral) -> Integral:
    """The iterated integral, from the outer integral of an ``Inner``."""
    value, inner, failed = total.value
    error = jax.tree.map(lambda outer, inner: outer + jnp.abs(inner), total.error[0], inner)
    return Integral(value, error, total.status + jnp.asarray(failed != 0, jnp.int32))


@custom_jvp
def carry(weight: Float[Array, "..."], log_p: Float[Array, "..."]) -> Float[Array, "..."]:
    """The weight, with the derivative of weight · exp(log_p − log_p): a fixed point whose density moves."""
    del log_p
    return weight


@carry.defjvp
def _carry_jvp(primals, tangents):
    weight = carry(*primals)  # a carried weight again, so that all further derivatives are right too
    return weight, tangents[0] + weight * tangents[1]
