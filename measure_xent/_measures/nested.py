"""Laws of a point and of what depends on it; streams that only count."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._integrands.integrand import Integrand, as_tuple
from .._kernels.null import null_safe_product
from .._kernels.scaled import ScaledNumber
from .._pytree import pytree, static
from .laws import Law
from .measure import Lowered, Measure
from .shapes import arity, static_mass


@pytree
class Nested(Law):
    """x from a form that is not all atoms, then y from K given x: points (x…, y…)."""

    outer: Any  # a form
    K: Any  # a Conditional

    @property
    def shape(self) -> Any:
        return jnp.broadcast_shapes(self.outer.family, self.K.shape)

    @property
    def mass(self):
        if isinstance(self.K, ConstantKernel):
            return jnp.broadcast_to(self.outer.mass() * self.K.Q.mass, self.shape)
        return self.outer.integrate(MassOf(self.K)).checked

    def proposed(self) -> Any:
        """The mass of what is drawn from; of the measures given x it is taken to be 1."""
        given = 1.0
        if isinstance(self.K, ConstantKernel):
            given = functools.reduce(jnp.add, [form.proposed() for form in self.K.Q.forms()])
        return jnp.broadcast_to(self.outer.proposed() * given, self.shape)

    def parts(self):
        given = list(self.K.Q.parts()) if isinstance(self.K, ConstantKernel) else []
        if len(given) == 1:
            return {(*self.outer.at_atoms, *given[0]): self}
        return {(False,) * arity(self): self}

    def sample(self, key, shape=()):
        raise NotImplementedError

    def one_point(self):
        return jax.eval_shape(lambda: self.draw(DimensionCounter())[0])

    def draw(self, stream: Any) -> tuple[tuple, Float[Array, "*family"]]:
        """A point and its weight."""
        x, weight = self.outer.draw(stream)
        x = as_tuple(x)
        y, inner = stream.given(self.K.family(x, jnp.ndim(weight)))
        y, total = as_tuple(y), weight * inner
        spread = lambda w: (
            lambda a: jnp.broadcast_to(
                a.reshape((1,) * (total.ndim - w.ndim) + a.shape), (*total.shape, *a.shape[w.ndim :])
            )
        )
        return (*jax.tree.map(spread(weight), x), *jax.tree.map(spread(inner), y)), total

    def scaled_density(self, *x):
        form, n = self.outer, self.outer.arity
        if form.transform is not None:
            raise NotImplementedError("the density of a joint measure whose first coordinates are seen through a map")
        density = ScaledNumber(*form.law.scaled_density(*x[:n]))
        Q = self.K.Q if isinstance(self.K, ConstantKernel) else self.K(*x[:n])
        density = density.times(ScaledNumber(*Q.scaled_density(*x[n:])))
        factor = density.factor * form.c
        for f in form.factors:
            factor = null_safe_product(factor, jnp.asarray(f(*x[:n]), factor.dtype))
        return ScaledNumber(density.log_scale, factor)

    def log_density_of(self, x):
        raise NotImplementedError


static_mass.register(Nested, lambda P: None)


@pytree
class MassOf(Integrand):
    """x ↦ K(x)(1)."""

    K: Any

    def __call__(self, *x):
        return self.K(*x).mass

    def values(self, points, lead):
        return self.K.family(as_tuple(points), lead).mass


@pytree
class ConstantKernel:
    """The Conditional that gives the same family of measures at all points."""

    Q: Measure
    rank: int = static()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.Q.shape

    def family(self, x: tuple, lead: int) -> Measure:
        del x
        grow = lambda form: form.with_family_rank(self.rank).map_family(
            lambda a: _expanded(a, self.rank, lead - self.rank)
        )
        return Lowered(tuple(grow(form) for form in self.Q.forms()))


def _expanded(a, axis, n):
    return a.reshape(*a.shape[:axis], *(1,) * n, *a.shape[axis:])


class DimensionCounter:
    """A stream of points that only their shapes matter of; it counts what they take."""

    def __init__(self):
        self.laws = self.uniforms = 0

    def draw(self, law: Any) -> tuple[Any, Array]:
        if hasattr(law, "draw"):
            return law.draw(self)
        self.laws, self.uniforms = self.laws + law.dimension, self.uniforms + law.dimension
        return jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), law.one_point()), jnp.ones(law.shape)

    def given(self, P: Measure) -> tuple[Any, Array]:
        return draw_of(P, self)

    def choose(self, weights: Array) -> tuple[Array, Array]:
        self.uniforms += 1
        return jnp.zeros(weights.shape[:-1], int), jnp.ones(weights.shape[:-1])


def count(form: Any) -> DimensionCounter:
    """How many ``laws`` a point of a form takes, one integral each, and how many ``uniforms``."""
    blank = DimensionCounter()
    jax.eval_shape(lambda: form.draw(blank))
    return blank


def draw_of(P: Measure, stream: Any) -> tuple[Any, Array]:
    """A point of a measure and its weight: of one of its forms, by their masses."""
    forms = P.forms()
    if len(forms) == 1:
        return forms[0].draw(stream)
    masses = jnp.stack(jnp.broadcast_arrays(*(form.proposed() for form in forms)), axis=-1)
    i, weight = stream.choose(masses)
    points, weights = zip(*(form.draw(stream) for form in forms), strict=True)
    own = [w / jnp.where(m == 0, 1, m) for w, m in zip(weights, jnp.moveaxis(masses, -1, 0), strict=True)]
    pick = lambda *leaves: _of_form(i, leaves)
    return jax.tree.map(pick, *points), weight * pick(*own)


def _of_form(i, leaves):
    where = lambda n: (i == n).reshape(i.shape + (1,) * (leaves[0].ndim - i.ndim))
    return functools.reduce(lambda a, b: jnp.where(where(b[0]), b[1], a), enumerate(leaves[1:], 1), leaves[0])
