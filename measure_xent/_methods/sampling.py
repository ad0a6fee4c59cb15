"""Means over draws, and over points that fill space evenly."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from .._forms.law_form import LawForm
from .._integrands.composites import Indicator
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand, as_integrand
from .._measures.laws import Integers
from .._measures.nested import Nested, count
from .._pytree import pytree, replaced, set_fields, static
from .draws import Draws, Uniforms
from .leaves import weighted_leaves
from .method import Method
from .mixtures import Mixture


class Sampled(Method):
    """Means over draws."""

    def _terms(self, form: LawForm, f: Integrand, draw: Any, randomness: Any) -> tuple[Array, Any, int]:
        """weight · f at the draws, [*family, leaves, draws]."""
        own = len(form.family)
        rank = max(own, len(f.shape))
        x, w = jax.vmap(draw, out_axes=own)(randomness)
        x, w = jax.tree.map(lambda a: a.reshape((1,) * (rank - own) + a.shape), (x, w))
        terms, back = weighted_leaves(f.values(x, rank + 1), w)
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
            "measure-valued", for one law on the integers, integrates f(x + 1) − f(x) against the measure −∂F/∂θ, where F is
            the cdf: summation by parts makes this the derivative. Its variance is less than the score's.
        antithetic: draws in pairs from u and 1 − u.
        control: a function whose integral is known, or can be had without a method, that goes along with f.
        baseline: in score derivatives, subtract from f its mean over the other draws (Kool et al. 2019). They stay unbiased,
            and their variance is less.

    Source: Glasserman 2003, *Monte Carlo Methods in Financial Engineering*, §4 and §7; Mohamed et al. 2020,
    *Monte Carlo Gradient Estimation in Machine Learning*.

    Examples:
        >>> import jax, jax.numpy as jnp, measure_xent as mx
        >>> mean = mx.Normal(0., 1.).integrate(jnp.exp, method=mx.MonteCarlo(jax.random.key(0), 10_000))
        >>> abs(mean.value - jnp.exp(0.5)).item() < 3 * mean.error.item() < 0.1
        True
        >>> method = mx.MonteCarlo(jax.random.key(0), 10_000, derivative="measure-valued")
        >>> jax.grad(lambda rate: mx.Poisson(rate).expect(lambda k: 2. * k, method=method))(3.).item()
        2.0
    """

    key: Array
    samples: int = static()
    derivative: str | None = static(default=None)
    antithetic: bool = static(default=False)
    control: Any = None
    baseline: bool = static(default=False)

    def __post_init__(self):
        _check_sampling("MonteCarlo", self.key, self.samples, self.derivative, ("pathwise", "score", "measure-valued"))
        set_fields(self, control=None if self.control is None else as_integrand(self.control))

    def integrate(self, form, f):
        derivative = _estimator(form, self.derivative)
        if derivative == "measure-valued":
            return self._by_differences(form, f)
        if self.antithetic:
            n = count(form).uniforms
            half_eps = float(jnp.finfo(jnp.result_type(float)).eps) / 2
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
            exact = form.using(None).integrate(self.control).checked
            exact = weighted_leaves(jax.tree.map(at_one, exact), jnp.ones((1,) * (rank + 1)))[0]
            centred = lambda x: lax.stop_gradient(x - x.mean(-1, keepdims=True))
            spread = (centred(g) ** 2).sum(-1)
            slope = (centred(terms) * centred(g)).sum(-1) / jnp.where(spread == 0, 1, spread)
            terms = terms - slope[..., None] * (g - exact)
        if self.baseline:
            if self.antithetic:
                raise ValueError("MonteCarlo(antithetic, baseline): one of them, got both")
            whole = replaced(form, factors=())
            w = jnp.moveaxis(jax.vmap(lambda key: whole.draw(Draws(key, derivative))[1])(randomness), 0, -1)
            w, mass = (
                a.reshape((1,) * (rank - len(form.family)) + a.shape) for a in (w, whole.using(None).mass()[..., None])
            )
            terms = terms - _mean_of_others(terms, w[..., None, :]) * (w - mass)[..., None, :]
        return mean_of(terms, back)

    def _by_differences(self, form, f):
        """Σ f p + Σ (f(x + 1) − f(x)) (F₀ − F)(x), for draws of p: at F = F₀ that is ∫ f dP, in value and every derivative."""
        law = form.law
        if not isinstance(law, Integers) or self.antithetic or self.baseline or self.control is not None:
            raise ValueError(
                'derivative="measure-valued": of one law on the integers, without antithetic, control or baseline, got '
                f"{type(law).__name__}"
            )
        still = jax.tree.map(lax.stop_gradient, law)
        x = jnp.moveaxis(jax.vmap(still.sample)(jax.random.split(self.key, self.samples)), 0, -1)
        across = law.with_point_axis()
        F = across.cdf(x)
        moved = (lax.stop_gradient(F) - F) * law.mass[..., None]
        p = lax.stop_gradient(jnp.exp(across.log_density_of(x)))
        rank = max(len(form.family), len(f.shape))
        at_draws = lambda a: a.reshape((1,) * (rank + 1 - a.ndim) + a.shape)
        f = form.of_law(f)
        of = lambda x, w: weighted_leaves(f.values(at_draws(x), rank + 1), at_draws(w))
        terms, back = of(x, jnp.broadcast_to(law.mass[..., None], x.shape))
        share = moved / jnp.where(p == 0, 1, p)
        # At the last atom F is 1 whatever the parameters are, and f may be anything behind it.
        end = lax.stop_gradient(F) >= 1
        share, behind = jnp.where(end, 0, share), jnp.where(end, x, x + 1)
        terms = terms + of(behind, share)[0] - of(x, share)[0]
        found = mean_of(terms, back)
        return form.times_c(found, f)


def _mean_of_others(terms, w):
    """Each draw's mean of f over the others, for terms w · f, where w is the mass."""
    mass = jnp.where(w == 0, 1, w)
    f = lax.stop_gradient(jnp.where(w == 0, 0, terms / mass))
    return (f.sum(-1, keepdims=True) - f) / (f.shape[-1] - 1)


def mean_of(terms, back):
    n = terms.shape[-1]
    value, known = terms.mean(-1), lax.stop_gradient(terms)
    squares = (known - known.mean(-1, keepdims=True)) ** 2
    total, largest = squares.sum(-1), squares.max(-1)
    one_decides = jnp.any((largest > total / 4) & (n >= 100), axis=-1)
    error = jnp.sqrt(total / (float(n) * (n - 1)))
    return Integral(
        back(value), jax.tree.map(jnp.abs, back(error)), (one_decides | jnp.isnan(value).any(-1)).astype(jnp.int32)
    )


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
        digits = min(
            32, jnp.finfo(jnp.result_type(float)).nmant
        )  # the middle of a cell that the dtype can tell from its neighbours
        u = ((bits >> (32 - digits)).astype(float) + 0.5) * 2.0**-digits
        of = lambda u: form.draw(Uniforms(u, derivative))
        terms, back, _ = self._terms(form, f, of, u.reshape(-1, n))
        terms = terms.reshape(*terms.shape[:-1], self.replicates, 2**m).mean(-1)
        return mean_of(terms, back)


@functools.lru_cache
def _sobol(dimension: int, m: int) -> np.ndarray:
    from scipy.stats import qmc

    points = qmc.Sobol(dimension, scramble=False, bits=32).random_base2(m)
    return np.asarray(points * 2.0**32, np.uint32)


def _check_sampling(name, key, samples, derivative, known=("pathwise", "score")):
    check_draws(name, key, samples)
    if derivative not in (None, *known):
        *some, last = map('"{}"'.format, known)
        raise ValueError(f"{name}(derivative): None, {', '.join(some)} or {last}, got {derivative!r}")


def check_draws(name, key, samples):
    try:
        jax.eval_shape(jax.random.split, key)
    except (TypeError, ValueError):
        raise TypeError(f"{name}(key): a jax.random.key(seed), got {type(key).__name__}") from None
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 2:
        raise ValueError(f"{name}(samples): an int of at least 2, got {samples!r}")


def _estimator(form: Any, derivative: str | None) -> str | None:
    """The estimator of derivatives: what was asked for, if it can be, and score where a restriction makes a jump."""
    jumps = _jumps(form)
    if derivative == "pathwise" and (jumps or not form.law.pathwise):
        what = "restrict makes the integrand jump" if jumps else f"{type(form.law).__name__} is on the integers"
        raise ValueError(f'derivative="pathwise": {what}, so draws have no derivative; "score" has')
    return "score" if jumps and derivative != "measure-valued" else derivative


def _jumps(form: Any) -> bool:
    inner = [form.law.outer] if isinstance(getattr(form, "law", None), Nested | Mixture) else []
    return any(isinstance(f, Indicator) for f in getattr(form, "factors", ())) or any(map(_jumps, inner))
