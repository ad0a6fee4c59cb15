"""Streams of points that forms draw from, and samples of measures."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._forms.disintegration import Disintegration
from .._forms.law_form import LawForm, score_weight
from .._forms.members import by_members
from .._integrands.composites import Indicator, Pullback, Section
from .._kernels.gumbel import Keys
from .._measures.laws import Law
from .._measures.measure import Measure
from .._measures.nested import ConstantKernel, Nested, draw_of
from .._measures.shapes import drawn
from .._strict import custom_jvp


class Draws:
    """A stream of independent draws of laws."""

    def __init__(self, key: Array, derivative: str | None):
        self.key, self.derivative = key, derivative

    def next(self) -> Any:
        self.key, key = jax.random.split(self.key)
        return key

    def point(self, law: Law) -> Any:
        return law.sample(self.next())

    def differentiable(self, law: Law) -> bool:
        return True

    def uniform(self, family: tuple[int, ...]) -> Array:
        return jax.random.uniform(self.next(), family)

    def draw(self, law: Any) -> tuple[Any, Float[Array, "*family"]]:
        """A point of a law, and its weight: 1, with the derivative of the density where that of the point is not taken."""
        if hasattr(law, "draw"):
            return law.draw(self)
        weight = jnp.asarray(law.mass, float)
        if self.derivative != "score" and law.pathwise and self.differentiable(law):
            return self.point(law), weight
        x = lax.stop_gradient(
            self.point(jax.tree.map(lax.stop_gradient, law))
        )  # a sampler may have no derivative at all
        return x, score_weight(lax.stop_gradient(weight), law.log_density_of(x))

    def choose(self, weights: Float[Array, "*family k"]) -> tuple[Array, Float[Array, "*family"]]:
        """The index of an atom, one a member, and what its being drawn stands for."""
        p = lax.stop_gradient(jnp.abs(weights))
        edges = jnp.cumsum(p, axis=-1)
        total = edges[..., -1]
        # 1 − u is not 0, and no more than 1: the first edge that reaches it is that of an atom with a mass.
        u = jnp.broadcast_to((1 - self.uniform(p.shape[:-1])) * total, total.shape)
        i = jax.vmap(jnp.searchsorted)(edges.reshape(-1, p.shape[-1]), u.reshape(-1)).reshape(u.shape)
        at = lambda a: jnp.take_along_axis(a, i[..., None], axis=-1)[..., 0]
        return i, at(weights) / jnp.where(at(p) == 0, 1, at(p)) * total

    def given(self, P: Measure) -> tuple[Any, Float[Array, "*family"]]:
        """A point of a measure that depends on the points before, and its weight."""
        return draw_of(P, self)


class Uniforms(Draws):
    """A stream of points made of given uniform numbers."""

    def __init__(self, u: Float[Array, "dimension"], derivative: str | None):
        self.u, self.at, self.derivative = u, 0, derivative

    def differentiable(self, law):
        return self.derivative == "pathwise" or law.smooth_transport

    def point(self, law):
        self.at += law.dimension
        return law.transport(self.u[self.at - law.dimension : self.at])

    def uniform(self, family):
        del family
        self.at += 1
        return self.u[self.at - 1]


TRIES = 10_000  # at a point of a restriction: one whose share is much less is not found


@drawn.register(Measure)
def _drawn(P: Measure, key: Array, shape: tuple[int, ...]) -> Any:
    """Points of P / P(1): of one of its forms by their masses, and again while they are outside of a restriction."""
    if P.mesh_axes:
        raise NotImplementedError(f"sample: {type(P).__name__} is a sum over devices, {sorted(P.mesh_axes)}")
    keys = Keys.of(key, P.shape)
    lead, n = len(shape), len(P.shape)

    def of_block(P, words):
        drawn = _of_forms(P, keys._replace(words=words).each()[0], shape)
        own = len(P.shape)
        return jax.tree.map(lambda x: jnp.moveaxis(x, range(lead), range(own, own + lead)), drawn)

    found = by_members(of_block, P, keys.words)
    if found is NotImplemented:
        return _of_forms(P, key, shape)
    return jax.tree.map(lambda x: jnp.moveaxis(x, range(n, n + lead), range(lead)), found)


class Points(Draws):
    """A stream of draws as they are: outside of a restriction they are drawn again."""

    def given(self, P):
        factors = [f for form in P.forms() for f in _factors(form)]
        if not all(map(_is_restriction, factors)):
            raise NotImplementedError(
                "sample: a law that a density weighs is not drawn from; its integrals are, with method=MonteCarlo(key, n)"
            )
        if not factors:
            return draw_of(P, self)
        point, weight = _until_inside(lambda key: draw_of(P, Points(key, None)), self.next())
        return jax.tree.map(_without_derivative, point), jnp.where(weight == 0, 0, P.mass)


def _of_forms(P: Measure, key: Array, shape: tuple[int, ...]) -> Any:
    keys = jax.random.split(key, math.prod(shape))
    points, weights = jax.vmap(lambda key: Points(key, None).given(P))(keys)
    # Nothing negative is drawn, nothing of no mass, and what K gives in bind(P, K) is of mass 1.
    mass = P.mass if any(_factors(form) for form in P.forms()) else sum(form.proposed() for form in P.forms())
    fine = (mass > 0) & (jnp.abs(weights - mass) <= 1e-3 * mass)

    def marked(x):
        nothing = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else -1
        x = jnp.where(fine.reshape(fine.shape + (1,) * (x.ndim - fine.ndim)), x, nothing)
        return x.reshape(*shape, *x.shape[1:])

    return jax.tree.map(marked, points)


@custom_jvp
def _without_derivative(x):
    return x


@_without_derivative.defjvp
def _no_derivative(primals, tangents):
    raise NotImplementedError(
        "sample: what is drawn by rejection has no derivative; of truncate(P, low, high) a draw has"
    )


def _is_restriction(f: Any) -> bool:
    """Whether a function is an indicator, perhaps seen through a map or given the coordinates before."""
    return isinstance(f, Indicator) or (isinstance(f, Pullback | Section) and _is_restriction(f.f))


def _factors(form: Any) -> list[Any]:
    """The functions that weigh laws."""
    if isinstance(form, Disintegration):
        return _factors(form.target)
    if not isinstance(form, LawForm):
        return []
    inner = getattr(form.law, "nested", form.law)
    found = list(form.factors)
    if isinstance(inner, Nested):
        found += _factors(inner.outer)
        found += [f for q in inner.K.Q.forms() for f in _factors(q)] if isinstance(inner.K, ConstantKernel) else []
    return found


def _until_inside(attempt: Any, key: Array) -> Any:
    """A draw whose weight is not 0, of every member."""
    first = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(attempt, key))

    def again(state):
        tries, key, (points, weights) = state
        key, own = jax.random.split(key)
        new, weight = attempt(own)
        pick = lambda x, y: jnp.where((weights != 0).reshape(weights.shape + (1,) * (x.ndim - weights.ndim)), x, y)
        return tries + 1, key, (jax.tree.map(pick, points, new), pick(weights, weight))

    missing = lambda state: (state[0] < TRIES) & jnp.any(state[2][1] == 0)
    return jax.lax.while_loop(missing, again, (0, key, first))[2]
