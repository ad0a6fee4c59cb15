"""Mixtures over laws, ∫ K(x) dμ(x): their density is an integral over x at every point y.

Far from the bulk p(x) · K(x)(y) underflows wherever x is, and its integral too. So what is integrated is
exp(log p(x) + log K(x)(y) − s), s the greatest exponent, and the density is kept as that integral and s.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from .._forms.law_form import LawForm
from .._integrands.composites import Times
from .._integrands.integrand import Integrand, as_tuple, in_blocks, room_for
from .._integrands.rules import integrate
from .._kernels.scaled import ScaledNumber
from .._kernels.tanh_sinh import end_of, fixed, tanh_sinh_map
from .._measures.laws import Continuous
from .._measures.measure import Lowered
from .._measures.nested import DimensionCounter, Nested
from .._measures.shapes import shapes_of, static_mass
from .._pytree import pytree, static
from .draws import Draws

NODES = 2048  # of an adaptive integral, about


@pytree
class Likelihood(Integrand):
    """x ↦ K(x)(y) / exp(log_scale), of a point y with ``event`` axes of its own, or one a member of a family."""

    K: Any
    y: Any
    log_scale: Any
    event: int = static(default=0)

    def __call__(self, *x):
        return _value(self.scaled(*x))

    @property
    def shape(self):
        y = jnp.shape(self.y)
        return jnp.broadcast_shapes(y[: len(y) - self.event], jnp.shape(self.log_scale))

    @property
    def breakpoints(self):
        """Where the likelihood may have its bulk: near y, if K is noise."""
        return () if self.event else (jnp.asarray(self.y, float),)

    def scaled(self, *x):
        return self._relative(self.K(*x).scaled_density(self.y), self.log_scale)

    def scaled_values(self, points: Any, lead: int) -> ScaledNumber:
        """The values at an array of points."""
        y = _behind(self.y, jnp.ndim(self.y) - self.event, lead)
        log_scale = _behind(self.log_scale, jnp.ndim(self.log_scale), lead)
        return self._relative(self.K.family(as_tuple(points), lead).scaled_density(y), log_scale)

    def values(self, points, lead):
        return _value(self.scaled_values(points, lead))

    @staticmethod
    def _relative(density, log_scale):
        log_density, factor = density
        return ScaledNumber(log_density - jnp.where(jnp.isfinite(log_scale), log_scale, 0), factor)


def _behind(v: Any, own: int, lead: int) -> Array:
    """v, of so many axes of a family, with an axis for the points behind those."""
    return jnp.reshape(v, (*(1,) * (lead - 1 - own), *jnp.shape(v)[:own], 1, *jnp.shape(v)[own:]))


def _value(number: ScaledNumber) -> Array:
    return number.factor * jnp.exp(number.log_scale)


@pytree
class Tail(Integrand):
    """x ↦ the mass of K(x) up to y, or above it."""

    K: Any
    y: Float[Array, "*family"]
    above: bool = static()

    def __call__(self, *x):
        return self.K(*x)._tails("cdf")(self.y)[self.above]

    @property
    def shape(self):
        return jnp.shape(self.y)

    @property
    def breakpoints(self):
        """Where the mass may go from one side of y to the other: near y, if K is noise."""
        return (self.y,)

    def values(self, points, lead):
        return self.K.family(as_tuple(points), lead)._tails("cdf")(_behind(self.y, jnp.ndim(self.y), lead))[self.above]


@pytree
class Factor(Integrand):
    """x ↦ the factor of K(x)(y), whose exponent a ``Tilted`` law has."""

    likelihood: Likelihood

    def __call__(self, *x):
        return self.likelihood.scaled(*x).factor

    @property
    def shape(self):
        return self.likelihood.shape

    def values(self, points, lead):
        return self.likelihood.scaled_values(points, lead).factor


@pytree
class Tilted(Continuous):
    """K(·)(y) / exp(log_scale) · law, of unknown mass, seen from its peak."""

    finite_derivatives = False

    law: Continuous
    likelihood: Likelihood
    transform: Integrand | None
    log_scale: Float[Array, "*family"]
    peak: Float[Array, "*family"]

    @property
    def shape(self):
        return jnp.shape(self.peak)

    @property
    def mass(self):
        return jnp.full(self.shape, jnp.inf)

    @property
    def support(self):
        return self.law.support

    @property
    def centre(self):
        return self.peak

    @property
    def width(self):
        return self.law.width

    @property
    def kinks(self):
        return self.law.kinks

    def with_point_axis(self):
        grown = (jnp.expand_dims(x, -1) for x in (self.log_scale, self.peak))
        return Tilted(self.law.with_point_axis(), self.likelihood, self.transform, *grown)

    def with_family_rank(self, rank):
        grow = lambda x: x.reshape((1,) * (rank - x.ndim) + x.shape)
        scale, peak = grow(self.log_scale), grow(self.peak)
        return Tilted(self.law.with_family_rank(rank), self.likelihood, self.transform, scale, peak)

    def log_density_of(self, x):
        return _exponent(self.law, self.likelihood, self.transform, x) - self.log_scale

    def sample(self, key, shape=()):
        raise NotImplementedError


def _exponent(law: Continuous, likelihood: Likelihood, transform: Integrand | None, x: Array) -> Array:
    """log p(x) + log K(T(x))(y) at points [*family, n] of a law ``each``."""
    points = x if transform is None else transform.values(x, x.ndim)
    return law.log_density_of(x) + likelihood.scaled_values(points, x.ndim).log_scale


def density_over(form: LawForm, K: Any, y: Array, event: int) -> ScaledNumber:
    """∫ K(x)(y) dμ(x) over a form, at y, or at one y a member of a family."""
    likelihood = Likelihood(K, y, jnp.zeros(()), event)
    if not isinstance(form.law, Continuous):
        return ScaledNumber.of(Lowered((form,)).expect(likelihood))
    shape = jnp.broadcast_shapes(form.family, likelihood.shape)
    law = form.law.with_family_rank(len(shape))
    log_scale, peak = (jnp.broadcast_to(x, shape) for x in _greatest(law, likelihood, form.transform, shape))
    f = form.pull_back(Factor(likelihood))
    total = integrate(
        Tilted(law, likelihood, form.transform, log_scale, peak), Times(form.factors, f) if form.factors else f
    )
    return ScaledNumber(log_scale, form.times_c(total, f).checked)


def _greatest(law: Continuous, likelihood: Likelihood, transform: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """(s, x): the greatest exponent and where, by a scan over the bent line and near y, then ever closer to the best."""
    each = law.with_point_axis()
    origin = fixed(each.bounds_centre())
    forward, back = tanh_sinh_map(*map(fixed, each.bounds()))
    end = end_of(jnp.result_type(float, law.width))
    grid = jnp.linspace(-end, end, 129)
    spread = lambda t: jnp.broadcast_to(t, (*shape, t.shape[-1]))
    near_y = [jnp.clip(back(stop_gradient(mark)[..., None] - origin), -end, end) for mark in likelihood.breakpoints]
    t = jnp.concatenate([spread(x) for x in (grid, *near_y)], axis=-1)

    def best(t):
        u, log_slope, _ = forward(t)
        g = stop_gradient(_exponent(each, likelihood, transform, origin + u) + log_slope)
        g = jnp.where(jnp.isnan(g) | (g == jnp.inf), -jnp.inf, g)
        at = jnp.argmax(g, axis=-1, keepdims=True)
        return tuple(jnp.take_along_axis(jnp.broadcast_to(x, g.shape), at, axis=-1) for x in (g, t, origin + u))

    def closer(i, found):
        step = (grid[1] - grid[0]) * 8.0 ** -i.astype(grid.dtype)
        return best(jnp.clip(found[1] + step * jnp.linspace(-1, 1, 17), -end, end))

    s, _, x = jax.lax.fori_loop(0, 6, closer, best(t))
    return jnp.where(jnp.isfinite(s), s, 0)[..., 0], x[..., 0]


@pytree
class Mixture(Continuous):
    """∫ K(x) dμ(x), the law on the line of y where x is from a form and y from K given x.

    Integrals over y are over x and then over y given x, unless the integrand is an integral over x itself, as log of this
    one's own density is: then y comes first, and there are two integrals in one another, not three.
    """

    outer: LawForm
    K: Any  # a Conditional
    low: float = static(default=-math.inf)
    high: float = static(default=math.inf)

    @property
    def nested(self) -> Nested:
        """The law of (x…, y)."""
        return Nested(self.outer, self.K)

    @property
    def shape(self):
        return self.nested.shape

    @property
    def mass(self):
        return self.nested.mass

    def proposed(self) -> Array:
        return self.nested.proposed()

    @property
    def support(self):
        return self.low, self.high

    def draw(self, stream: Any) -> tuple[Any, Array]:
        """A point and its weight."""
        (*_, y), weight = self.nested.draw(stream)
        return y, weight

    def _probe(self):
        """Points that show where the mass is; which they are does not matter to any integral."""
        keys = jax.random.split(jax.random.key(0), 256)
        return stop_gradient(jnp.sort(jax.vmap(lambda key: self.draw(Draws(key, None))[0])(keys), axis=0))

    @property
    def centre(self):
        return self._probe()[128]

    @property
    def width(self):
        probe = self._probe()
        return (probe[192] - probe[64]) / 2 + jnp.finfo(probe.dtype).tiny

    def sample(self, key, shape=()):
        one = lambda key: self.draw(Draws(key, None))[0]
        return (
            jax.vmap(one)(jax.random.split(key, math.prod(shape))).reshape(*shape, *self.shape) if shape else one(key)
        )

    def cdf(self, x):
        return Lowered((self.outer,)).expect(Tail(self.K, jnp.asarray(x, float), False))

    def survival(self, x):
        return Lowered((self.outer,)).expect(Tail(self.K, jnp.asarray(x, float), True))

    def with_family_rank(self, rank):
        return Mixture(self.outer.with_family_rank(rank), self.K, self.low, self.high)

    def with_point_axis(self):
        rank = len(self.shape)
        outer = self.outer.with_family_rank(rank).map_family(lambda x: jnp.expand_dims(x, rank))
        return Mixture(outer, self.K, self.low, self.high)

    def log_density_of(self, x):
        density = lambda y: _safe_log(*density_over(self.outer, self.K, y, 0))
        at_once = room_for(NODES * math.prod(self.shape))
        if self.shape[-1:] != (1,) or x.shape[-1] <= at_once:
            return density(x)
        one = lambda y: density(y[..., None])[..., 0]
        return jnp.moveaxis(in_blocks(one, jnp.moveaxis(x, -1, 0), at_once), 0, -1)


static_mass.register(Mixture, lambda P: None)


def _safe_log(log_scale: Array, factor: Array) -> Array:
    """The logarithm, −inf without a derivative where there is nothing."""
    some = factor > 0
    return jnp.where(some, log_scale + jnp.log(jnp.where(some, factor, 1)), -jnp.inf)


def mixture(outer: LawForm, K: Any) -> Mixture | None:
    """The law of y on the line, if K's measures have densities there."""

    def ends() -> Any:
        x, weight = outer.draw(DimensionCounter())
        measure = K.family(as_tuple(x), weight.ndim)
        if [*measure.parts()] != [(False,)] or any(form.event_rank for form in measure.forms()):
            return None
        return zip(
            *((-math.inf, math.inf) if form.transform else form.law.support for form in measure.forms()), strict=True
        )

    known = lambda end, otherwise: end if isinstance(end, float) else otherwise
    try:
        found = shapes_of(ends)
    except NotImplementedError:  # a measure without forms
        return None
    if found is None:
        return None
    lows, highs = found
    low, high = min(known(x, -math.inf) for x in lows), max(known(x, math.inf) for x in highs)
    return Mixture(outer, K, low, high)
