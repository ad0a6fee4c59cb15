"""How to integrate, as an object: ``P.expect(f, method=…)``. Atoms are summed whatever the method; it is for what has a law.

Without one, closed forms come first, then ``Adaptive()`` in up to two dimensions.
"""

import abc
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._conditional import AbstractConditional
from .._dispatch import rule
from .._integral import Integral
from .._integrand import Integrand, as_integrand, density_terms
from .._kernels.null import null_safe_product
from .._measure import Indicator
from .._measures.laws import Continuous, Integers, Law, Nested, Vectors, count
from .._pytree import pytree, set_fields, static
from .._smooth_form import Inner, Last, Seen, Smooth, carry, iterated
from .._strict import seen_by_user
from .adaptive import END, Panels, flattened, judged, over_the_integers, over_the_line, weighted
from .mixtures import NODES, Mixture


class Method(abc.ABC):
    """How to integrate against what has a law. A subclass gives ``integrate``."""

    @abc.abstractmethod
    def integrate(self, form: Smooth, f: Integrand) -> Integral:
        """∫ f against T_*(c · Πf · law)."""


class Deterministic(Method):
    """Iterated integrals over the line; a subclass gives the one."""

    def integrate(self, form, f):
        return form.times_c(self.over(form.law, form.of_law(f)), f)

    def over(self, law: Law, f: Integrand) -> Integral:
        """∫ f against a law."""
        if isinstance(law, Mixture) and density_terms(f) < NODES:
            law, f = law.nested, Seen(f, Last())
        if isinstance(law, Nested):
            return iterated(law.outer.by(self).integrate(Inner(f, law.K, self)))
        if isinstance(law, Vectors):
            return law.base.by(self).integrate(f)
        if isinstance(law, Integers):
            return over_the_integers(law, f, None)
        if not isinstance(law, Continuous):
            name = type(getattr(law, "distribution", law)).__name__
            raise ValueError(f"expect(f): no quadrature is known for vectors of {name}; pass method=MonteCarlo(key, n)")
        return self.line(law, f)

    @abc.abstractmethod
    def line(self, law: Continuous, f: Integrand) -> Integral:
        """∫ f(x) p(x) dx."""


@pytree
class Adaptive(Deterministic):
    """Adaptive quadrature on a doubly exponential scale (tanh–sinh), iterated in up to two dimensions: what ``expect`` does
    without a method, where there is no closed form.

    Args:
        tolerance: the error to stop at, beside the integral of |f|; by default the root of the dtype's precision.
        rounds: how often to halve the panels that are furthest off; by default 24, and 40 in float64.

    Source: Piessens et al. 1983, *QUADPACK*; Clenshaw & Curtis 1960; Takahasi & Mori 1974.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.Normal(0., 1.).expect(jnp.abs, method=mx.Adaptive(tolerance=1e-5)).item()  # √(2/π)
        0.79788
    """

    tolerance: float | None = static(default=None)
    rounds: int | None = static(default=None)

    def over(self, law, f):
        if isinstance(law, Nested | Mixture | Vectors) and (n := count(Smooth(law, jnp.ones(()))).laws) > 2:
            raise ValueError(
                f"expect(f): {type(law).__name__} has {n} dimensions, and quadrature without a method is for up to 2; pass "
                "method=QuasiMonteCarlo(key, n), MonteCarlo(key, n), or Quadrature(nodes) for nodes**dimensions nodes"
            )
        return super().over(law, f)

    def line(self, law, f):
        return over_the_line(law, f, self.tolerance, self.rounds)


@rule(Law, Integrand)
def without_a_method(P: Law, f: Integrand) -> Integral:
    """∫ f dP by adaptive quadrature."""
    # One program also where nobody compiles: one for each of its operations would take longer than the integral. A user's
    # function is compiled anew, for what it closes over may have changed.
    compiled = (
        jax.jit(lambda P, f, _: Adaptive().over(P, f), static_argnums=2)
        if _has_function_of_users((P, f))
        else _compiled
    )
    return compiled(P, f, seen_by_user())


@rule(Law, Integrand, AbstractConditional)
def of_conditional(P: Law, f: Integrand) -> Integral:
    """∫ f dP for a function of a Conditional, point by point."""
    return without_a_method(P, f)


_compiled = jax.jit(lambda P, f, _: Adaptive().over(P, f), static_argnums=2)


def _has_function_of_users(node: Any) -> bool:
    is_function = lambda node: isinstance(node, jax.tree_util.Partial)
    functions = [leaf for leaf in jax.tree.leaves(node, is_leaf=is_function) if is_function(leaf)]
    return any(not _is_constant(f.func) or _has_function_of_users((f.args, f.keywords)) for f in functions)


def _is_constant(f: Callable) -> bool:
    """Whether a function reads nothing but its arguments, as those written at the top of this package's modules and JAX's."""
    home = (getattr(f, "__module__", None) or "").partition(".")[0]
    return home in ("jax", __package__.partition(".")[0]) and getattr(f, "__closure__", None) is None


@pytree
class Quadrature(Deterministic):
    """A fixed number of nodes in each dimension: Gauss's rule for the law where it has one, else tanh–sinh on its support.

    Its error is what the integrand's expansion in the rule's polynomials has left at its end, or the gap to half the nodes.
    Integers are summed.

    Args:
        nodes: how many, at least 8.

    Source: Golub & Welsch 1969; Takahasi & Mori 1974.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.Normal(0., jnp.array([1., 2.])).expect(jnp.cos, method=mx.Quadrature(32)).tolist()  # exp(−σ²/2)
        [0.60653, 0.13534]
    """

    nodes: int = static()

    def __post_init__(self):
        if not isinstance(self.nodes, int) or self.nodes < 8:
            raise ValueError(f"Quadrature(nodes): an int of at least 8, got {self.nodes!r}")

    def line(self, law, f):
        rank = max(len(law.shape), len(f.shape))
        each = law.at_rank(rank).each()
        rule = each.gauss(self.nodes)
        if rule is None:
            return self._tanh_sinh(law, f)
        x, w, tail = rule
        flat, w, back = flattened(f.values(x, rank + 1), w)
        # A product that need not look for weights of 0 becomes one pass with its sum.
        terms = w * flat if law.fixed_rule else null_safe_product(w, flat)
        known = lax.stop_gradient(jnp.where(jnp.isfinite(flat), flat, 0))
        left = jnp.einsum("...ln,...kn->...lk", known, tail.astype(known.dtype))
        return judged(terms.sum(-1), jnp.linalg.norm(left, axis=-1), jnp.abs(w * known).sum(-1), back, f, None, False)

    def _tanh_sinh(self, law, f):
        line, n = Panels(law, f), self.nodes + 1 - self.nodes % 2
        t = line.spread(jnp.linspace(-END, END, n))
        nodes = line.nodes(t, 2 * END / (n - 1))
        tails = lax.stop_gradient(line.learn(line.look(line.watched, line.unknown(), as_is=line.watched.u.shape[-1])))
        look, terms, beside = (
            jax.tree.map(lambda x: lax.stop_gradient(x[..., :n]), x) for x in line.terms(nodes, tails, n)
        )
        terms, value = terms[..., :-1, :], terms[..., :-1, :].sum(-1)
        value = line.derived(value, nodes, tails, look.used)
        known = jnp.where(jnp.isfinite(terms), terms, 0)
        gap = jnp.abs(known.sum(-1) - 2 * known[..., ::2].sum(-1)) + beside.sum(-1)
        return judged(value, gap, jnp.abs(known).sum(-1), line.back, f, None, False)


class Sampled(Method):
    """Means over draws."""

    def _terms(self, form: Smooth, f: Integrand, draw: Any, randomness: Any) -> tuple[Array, Any, int]:
        """weight · f at the draws, [*family, leaves, draws]."""
        own = len(form.family)
        rank = max(own, len(f.shape))
        x, w = jax.vmap(draw, out_axes=own)(randomness)
        x, w = jax.tree.map(lambda a: a.reshape((1,) * (rank - own) + a.shape), (x, w))
        terms, back = weighted(f.values(x, rank + 1), w)
        return terms, back, rank


@pytree
class MonteCarlo(Sampled):
    """The mean over independent draws, with its standard error.

    It has not converged where one draw has a quarter of all squares: the variance is not finite, as far as the draws show.

    Args:
        key: a jax.random.key.
        samples: how many draws.
        derivative: the estimator of derivatives in the measure's parameters. "pathwise" differentiates the draws (the integrand
            has to be continuous), "score" weighs them by the derivative of the log-density (any integrand, a fixed
            support). By default pathwise, and score for laws on the integers. Atoms that come first are enumerated.
        antithetic: draws in pairs from u and 1 − u.
        control: a function whose integral is known, or can be had without a method, that goes along with f.

    Source: Glasserman 2003, *Monte Carlo Methods in Financial Engineering*, §4 and §7.

    Examples:
        >>> import jax, jax.numpy as jnp, measure_xent as mx
        >>> mean = mx.Normal(0., 1.).integrate(jnp.exp, method=mx.MonteCarlo(jax.random.key(0), 10_000))
        >>> abs(mean.value - jnp.exp(0.5)).item() < 3 * mean.error.item() < 0.1
        True
    """

    key: Array
    samples: int = static()
    derivative: str | None = static(default=None)
    antithetic: bool = static(default=False)
    control: Any = None

    def __post_init__(self):
        _check_sampling("MonteCarlo", self.key, self.samples, self.derivative)
        set_fields(self, control=None if self.control is None else as_integrand(self.control))

    def integrate(self, form, f):
        derivative = _estimator(form, self.derivative)
        if self.antithetic:
            n = count(form).uniforms
            half_eps = float(jnp.finfo(float).eps) / 2
            u = jax.random.uniform(self.key, (self.samples // 2, n), minval=half_eps, maxval=1 - half_eps)
            of = lambda u: form.draw(Uniforms(u, derivative))
            terms, back, rank = self._terms(form, f, of, u)
            terms = (terms + self._terms(form, f, of, 1 - u)[0]) / 2
            draw, randomness = of, u
        else:
            draw = lambda key: form.draw(Draws(key, derivative))
            randomness = jax.random.split(self.key, self.samples)
            terms, back, rank = self._terms(form, f, draw, randomness)
        if self.control is not None:
            if self.antithetic:
                raise ValueError("MonteCarlo(antithetic, control): one of them, got both")
            g = self._terms(form, self.control, draw, randomness)[0]
            at_one = lambda v: jnp.expand_dims(v, max(len(form.family), len(self.control.shape)))
            exact = form.by(None).integrate(self.control).checked
            exact = weighted(jax.tree.map(at_one, exact), jnp.ones((1,) * (rank + 1)))[0]
            centred = lambda x: lax.stop_gradient(x - x.mean(-1, keepdims=True))
            spread = (centred(g) ** 2).sum(-1)
            slope = (centred(terms) * centred(g)).sum(-1) / jnp.where(spread == 0, 1, spread)
            terms = terms - slope[..., None] * (g - exact)
        return _mean(terms, back)


def _mean(terms, back):
    n = terms.shape[-1]
    value, known = terms.mean(-1), lax.stop_gradient(terms)
    squares = (known - known.mean(-1, keepdims=True)) ** 2
    total, largest = squares.sum(-1), squares.max(-1)
    one_decides = jnp.any((largest > total / 4) & (n >= 100), axis=-1)
    error = jnp.sqrt(total / (float(n) * (n - 1)))
    return Integral(back(value), back(error), (one_decides | jnp.isnan(value).any(-1)).astype(jnp.int32))


@pytree
class QuasiMonteCarlo(Sampled):
    """The mean over Sobol' points, shifted digitally at random ``replicates`` times, with the standard error over those.

    Args:
        key: a jax.random.key.
        samples: how many points in all, rounded down to replicates · 2ᵐ.
        derivative: as for ``MonteCarlo``.
        replicates: how many independent shifts.

    Source: L'Ecuyer & Lemieux 2002, *Recent advances in randomized quasi-Monte Carlo methods*; Sobol' points by scipy.

    Examples:
        >>> import jax, jax.numpy as jnp, measure_xent as mx
        >>> P = mx.product(mx.Normal(0., 1.), mx.product(mx.Uniform(0., 1.), mx.Exponential(1.)))
        >>> sum_ = P.integrate(lambda x, y, z: jnp.exp(x) * y + z, method=mx.QuasiMonteCarlo(jax.random.key(0), 2**14))
        >>> abs(sum_.value - (jnp.exp(0.5) / 2 + 1)).item() < 4 * sum_.error.item() < 0.01
        True
    """

    key: Array
    samples: int = static()
    derivative: str | None = static(default=None)
    replicates: int = static(default=16)

    def __post_init__(self):
        _check_sampling("QuasiMonteCarlo", self.key, self.samples, self.derivative)
        if self.samples < 2 * self.replicates or self.replicates < 2:
            raise ValueError(
                f"QuasiMonteCarlo(samples, replicates): at least 2 of each, got {self.samples} for {self.replicates} replicates"
            )

    def integrate(self, form, f):
        derivative = _estimator(form, self.derivative)
        m, n = int(math.log2(self.samples / self.replicates)), count(form).uniforms
        shifts = jax.random.bits(self.key, (self.replicates, 1, n), jnp.uint32)
        bits = jnp.asarray(_sobol(n, m)) ^ shifts
        digits = min(32, jnp.finfo(float).nmant)  # the middle of a cell that the dtype can tell from its neighbours
        u = ((bits >> (32 - digits)).astype(float) + 0.5) * 2.0**-digits
        of = lambda u: form.draw(Uniforms(u, derivative))
        terms, back, _ = self._terms(form, f, of, u.reshape(-1, n))
        terms = terms.reshape(*terms.shape[:-1], self.replicates, 2**m).mean(-1)
        return _mean(terms, back)


@functools.lru_cache
def _sobol(dimension: int, m: int) -> np.ndarray:
    from scipy.stats import qmc

    points = qmc.Sobol(dimension, scramble=False, bits=32).random_base2(m)
    return np.asarray(points * 2.0**32, np.uint32)


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

    def uniform(self) -> Array:
        return jax.random.uniform(self.next())

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
        return x, carry(lax.stop_gradient(weight), law.log_density_of(x))

    def choose(self, weights: Float[Array, "*family k"]) -> tuple[Array, Float[Array, "*family"]]:
        """The index of an atom, one a member, and what its being drawn stands for."""
        p = lax.stop_gradient(jnp.abs(weights))
        total = p.sum(-1)
        edges = jnp.cumsum(p, axis=-1)
        u = self.uniform() * total
        i = jnp.minimum((edges <= u[..., None]).sum(-1), p.shape[-1] - 1)
        at = lambda a: jnp.take_along_axis(a, i[..., None], axis=-1)[..., 0]
        return i, at(weights) * total / jnp.where(at(p) == 0, 1, at(p))


class Uniforms(Draws):
    """A stream of points made of given uniform numbers."""

    def __init__(self, u: Float[Array, "dimension"], derivative: str | None):
        self.u, self.at, self.derivative = u, 0, derivative

    def differentiable(self, law):
        return self.derivative == "pathwise" or law.smooth_transport

    def point(self, law):
        self.at += law.dimension
        return law.transport(self.u[self.at - law.dimension : self.at])

    def uniform(self):
        self.at += 1
        return self.u[self.at - 1]


def _check_sampling(name, key, samples, derivative):
    try:
        jax.eval_shape(jax.random.split, key)
    except (TypeError, ValueError):
        raise TypeError(f"{name}(key): a jax.random.key(seed), got {type(key).__name__}") from None
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 2:
        raise ValueError(f"{name}(samples): an int of at least 2, got {samples!r}")
    if derivative not in (None, "pathwise", "score"):
        raise ValueError(f'{name}(derivative): None, "pathwise" or "score", got {derivative!r}')


def _estimator(form: Any, derivative: str | None) -> str | None:
    """The estimator of derivatives: what was asked for, if it can be, and score where a restriction makes a jump."""
    jumps = _jumps(form)
    if derivative == "pathwise" and (jumps or not form.law.pathwise):
        what = "restrict makes the integrand jump" if jumps else f"{type(form.law).__name__} is on the integers"
        raise ValueError(f'derivative="pathwise": {what}, so draws have no derivative; "score" has')
    return "score" if jumps else derivative


def _jumps(form: Any) -> bool:
    inner = [form.law.outer] if isinstance(getattr(form, "law", None), Nested | Mixture) else []
    return any(isinstance(f, Indicator) for f in getattr(form, "factors", ())) or any(map(_jumps, inner))
