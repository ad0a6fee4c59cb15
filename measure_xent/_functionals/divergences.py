"""Divergences of two measures and more: each the integral of a function of their densities. Nats.

f-divergences are taken against P + Q, which both have a density against: what only one of them has is a term like any other.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special
from jax.tree_util import Partial
from jaxtyping import Array, Float

from .. import generators
from .._forms.members import by_members, without_null
from .._forms.null_rows import factors_at
from .._integrands.density import Perspective, RatioFunction, log
from .._integrands.integrand import Integrand, as_integrand
from .._kernels.checks import check_values, real_array
from .._kernels.classes import Classes
from .._kernels.null import nan_where
from .._kernels.ratio import excess, log1p_over
from .._kernels.scaled import Ratio
from .._kernels.softmax import log_softmax
from .._measures import perspectives as perspectives  # their rule
from .._measures.categorical import Categorical
from .._measures.measure import Measure
from .._measures.relative_entropy import logits_of
from .._measures.shapes import enumerable, static_mass
from .._program import program
from ..generators import Generator
from .information import functional, in_units, kl_divergence


@functional(r"D_f(P \,\|\, Q) = \int f\left(\frac{dP}{dQ}\right) dQ + f'(\infty) \, P(Q = 0)")
def f_divergence(
    P: Measure, Q: Measure, f: Generator | Callable, *, slope: float | None = None, method: Any = None
) -> Float[Array, "*family"]:
    """D_f(P‖Q) = ∫ f(dP/dQ) dQ + f′(∞) · P(Q = 0), of a convex f with f(1) = 0.

    Source: Liese & Vajda (2006), *On divergences and informations*, eq. 8; against P + Q both singular parts, f(0) · Q(P = 0)
    the other, are values of the integrand q · f(p/q).

    Args:
        f: one of ``measure_xent.generators``, or a function of t = p/q.
        slope: f′(∞) of a function, what a unit of P's mass outside Q costs; by default its derivative at ∞.
        method: how to integrate what has a density, as for ``expect``: ``MonteCarlo(key, n)`` in many dimensions.

    Raises:
        ValueError: f is not convex, f(1) is not 0, or f′(∞) cannot be told.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P, Q = mx.Categorical(probs=jnp.array([0.5, 0.5, 0.])), mx.Categorical(probs=jnp.array([0.25, 0.25, 0.5]))
        >>> mx.f_divergence(P, Q, lambda t: jnp.abs(t - 1) / 2).item()
        0.5
        >>> mx.f_divergence(P, Q, mx.generators.kl).item()  # log 2
        0.6931
    """
    if f is generators.kl or f is generators.reverse_kl:  # there are rules for them
        return kl_divergence(*((P, Q) if f is generators.kl else (Q, P)), method=method)
    generator = f if isinstance(f, Generator) else generators.from_function(f, slope)
    return (P + Q).expect(Perspective(P, Q, generator), method=method)


@functional(r"\mathrm{TV}(P, Q) = \tfrac{1}{2} \int |dP - dQ|")
def total_variation(P: Measure, Q: Measure, *, method: Any = None) -> Float[Array, "*family"]:
    """½ ∫ |dP − dQ|, in [0, 1] for probability measures: the most that P(A) and Q(A) differ by. ``method`` as for ``expect``.

    Examples:
        >>> import measure_xent as mx
        >>> mx.total_variation(mx.Dirac(0), 0.75 * mx.Dirac(0) + 0.25 * mx.Dirac(1)).item()
        0.25
    """
    return f_divergence(P, Q, generators.total_variation, method=method)


@functional(r"\sqrt{\tfrac{1}{2} \int \left(\sqrt{dP} - \sqrt{dQ}\right)^2}")
def hellinger(P: Measure, Q: Measure, *, method: Any = None) -> Float[Array, "*family"]:
    """√(½ ∫ (√dP − √dQ)²), Hellinger's distance, √(1 − ∫ √(dP dQ)) for probability measures; its derivative where P = Q is 0.

    ``method`` as for ``expect``.

    Examples:
        >>> import measure_xent as mx
        >>> mx.hellinger(mx.Dirac(0), mx.Dirac(1)).item()
        1.0
    """
    square = f_divergence(P, Q, generators.squared_hellinger, method=method)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


@functional(r"\chi^2(P \,\|\, Q) = \int \left(\frac{dP}{dQ} - 1\right)^2 dQ")
def chi2(P: Measure, Q: Measure, *, method: Any = None) -> Float[Array, "*family"]:
    """Pearson's ∫ (dP/dQ − 1)² dQ, +inf unless P ≪ Q. ``method`` as for ``expect``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.chi2(mx.Dirac(0), mx.DiscreteUniform(4)).item()
        3.0
    """
    return f_divergence(P, Q, generators.chi2, method=method)


@functional(r"\mathrm{KL}(P \,\|\, Q) + \mathrm{KL}(Q \,\|\, P)")
def jeffreys(P: Measure, Q: Measure, *, base: float | None = None, method: Any = None) -> Float[Array, "*family"]:
    """KL(P‖Q) + KL(Q‖P), the symmetrised divergence, in nats or units of ``base``; ``method`` as for ``expect``.

    Source: Jeffreys (1946).

    Examples:
        >>> import measure_xent as mx
        >>> mx.jeffreys(mx.Normal(0., 1.), mx.Normal(1., 1.)).item()
        1.0
    """
    kl: Any = functools.partial(kl_divergence, method=method)
    return kl(P, Q) + kl(Q, P)


@in_units
def jensen_shannon(
    P: Measure,
    Q: Measure,
    *others: Measure,
    weights: Sequence[float] | None = None,
    base: float | None = None,
    method: Any = None,
) -> Float[Array, "*family"]:
    """Σ wᵢ KL(Pᵢ‖M), M = Σ wᵢ Pᵢ: the divergence, not its root; of n measures with equal weights at most log n.

    Source: Lin (1991), *Divergence measures based on the Shannon entropy*.

    Args:
        weights: one a measure, equal by default.
        method: how to integrate what has a density, as for ``expect``.

    Raises:
        ValueError: there is not one weight a measure.

    Examples:
        >>> import measure_xent as mx
        >>> mx.jensen_shannon(mx.Dirac(0), mx.Dirac(1), base=2).item()
        1.0
    """
    measures = (P, Q, *others)
    if not all(isinstance(R, Measure) for R in measures):
        raise TypeError(
            f"jensen_shannon: measures, got {[type(R).__name__ for R in measures]}; probabilities are Categorical(probs=p)"
        )
    weights = [1 / len(measures)] * len(measures) if weights is None else list(weights)
    if len(weights) != len(measures):
        raise ValueError(f"jensen_shannon(weights): one a measure, got {len(weights)} for {len(measures)} measures")
    (total, M), *rest = [(w, R) for w, R in zip(weights, measures, strict=True) if not _is_zero(w)] or [(0.0, P)]
    value: Any = 0.0
    # The grouping property: what tells the next one from the mixture M of those before it, whose weights have that total.
    for w, R in rest:
        both = total + w
        share = total / _or_one(both)
        value = value + both * f_divergence(M, R, generators.mixed(share), method=method)
        total, M = both, share * M + (1 - share) * R
    if isinstance(total, float) and math.isclose(total, 1, abs_tol=1e-6):
        return value
    # Weights of another sum W make KL(Pᵢ‖W M) of KL(Pᵢ‖M).
    unequal = total * (total - 1) - special.xlogy(total, total)
    return value + unequal * sum(w * R.mass for w, R in zip(weights, measures, strict=True))


def _or_one(total: Any) -> Any:
    if isinstance(total, int | float):
        return total or 1.0
    return jnp.where(total == 0, 1, total)


def _is_zero(weight: Any) -> bool:
    return isinstance(weight, int | float) and weight == 0


@functional(r"D_\alpha(P \,\|\, Q) = \frac{1}{\alpha - 1} \log \int p^\alpha q^{1 - \alpha}")
def renyi_divergence(
    P: Measure, Q: Measure, alpha: Any, *, base: float | None = None, method: Any = None
) -> Float[Array, "*family"]:
    """D_α(P‖Q) = log E_P[(dP/dQ)^(α−1)] / (α − 1), in nats or units of ``base``.

    KL at 1, log sup dP/dQ at ∞, −log Q(P > 0) at 0; P and Q are probability measures.
    Source: van Erven & Harremoës (2014), *Rényi divergence and Kullback–Leibler divergence*.

    Args:
        alpha: the order, a number ≥ 0 or ∞, or an array that broadcasts with the family, finite.
        method: how to integrate what has a density, as for ``expect``.

    Raises:
        ValueError: α < 0.
        NotImplementedError: α = ∞, and P is not finite.

    Examples:
        >>> import measure_xent as mx
        >>> mx.renyi_divergence(mx.Normal(0., 1.), mx.Normal(1., 1.), 0.5).item()  # α/2
        0.25
    """

    def of(alpha, P, Q):
        if (value := _renyi_of_logits(P, Q, _order(alpha))) is not None:
            return value
        kl: Any = functools.partial(kl_divergence, P, Q, method=method)
        return _renyi(P, RatioFunction(P, Q, _log), alpha, kl, method)

    return _of_present(of, alpha, P, Q)


@functional(r"H_\alpha(P) = \frac{1}{1 - \alpha} \log \int p^\alpha")
def renyi_entropy(P: Measure, alpha: Any, *, base: float | None = None, method: Any = None) -> Float[Array, "*family"]:
    """H_α(P) = log E_P[p^(α−1)] / (1 − α), in nats or units of ``base``: log |supp P| at 0, Shannon's at 1, −log sup p at ∞.

    Source: Rényi (1961), *On measures of entropy and information*. Arguments and errors are those of ``renyi_divergence``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P = mx.Categorical(probs=jnp.array([0.5, 0.25, 0.25, 0.]))
        >>> [mx.renyi_entropy(P, a, base=2).item() for a in (0, 1, 2, jnp.inf)]
        [1.585, 1.5, 1.415, 1.0]
    """

    def of(alpha, P):
        mean: Any = functools.partial(P.expect, log(P), method=method)
        return -_renyi(P, log(P), alpha, mean, method)

    return _of_present(of, alpha, P)


@functional(r"D_\alpha(P \,\|\, Q) = \frac{1}{\alpha - 1} \left(\int p^\alpha q^{1 - \alpha} - 1\right)")
def tsallis_divergence(P: Measure, Q: Measure, alpha: Any, *, method: Any = None) -> Float[Array, "*family"]:
    """∫ ((dP/dQ)^(α−1) − 1) / (α − 1) dP: KL at 1, χ² at 2. Source: Tsallis (1998).

    Arguments are those of ``renyi_divergence``.

    Examples:
        >>> import measure_xent as mx
        >>> mx.tsallis_divergence(mx.Dirac(0), mx.DiscreteUniform(4), 2).item()
        3.0
    """
    return f_divergence(P, Q, generators.tsallis(_order(alpha) - 1), method=method) + (P.mass - Q.mass)


@functional(r"H_\alpha(P) = \frac{1}{\alpha - 1} \left(1 - \int p^\alpha\right)")
def tsallis_entropy(P: Measure, alpha: Any, *, method: Any = None) -> Float[Array, "*family"]:
    """(1 − ∫ p^α) / (α − 1), whose limit at 1 is Shannon's entropy in nats; 1 − Σ p² is Gini's. ``method`` as for ``expect``.

    Source: Tsallis (1988).

    Examples:
        >>> import measure_xent as mx
        >>> mx.tsallis_entropy(mx.DiscreteUniform(4), 2).item()
        0.75
    """
    return -P.expect(RatioFunction(P, None, Partial(_power_log, _order(alpha) - 1)), method=method)


def _power_log(r: Any, ratio: Ratio) -> Array:
    """(tʳ − 1)/r, the logarithm of t as r goes to 0."""
    log_t = ratio.log
    near = jnp.abs(jnp.asarray(r)) < 1e-20
    return jnp.where(near, log_t, jnp.expm1(r * log_t) / jnp.where(near, 1, r))


def _log(ratio: Ratio) -> Array:
    return ratio.log


def _renyi(P: Measure, log_ratio: Integrand, alpha: Any, mean: Callable[[], Any], method: Any) -> Any:
    """log E_P[exp(r · log_ratio)] / r, by its limits where r = α − 1 has one; ``mean`` is E_P[log_ratio], with its digits."""
    r = _order(alpha) - 1
    if isinstance(r, float):
        if r == 0:
            return mean()
        if math.isinf(r):
            return supremum(P, log_ratio)
        return _cumulant(P, r * log_ratio, r * mean(), method) / r
    at_one, first = r == 0, mean()
    some = jnp.where(at_one, 1, r)
    variance = P.expect((log_ratio - jax.lax.stop_gradient(first)) ** 2, method=method)
    return jnp.where(at_one, first + r * variance / 2, _cumulant(P, some * log_ratio, some * first, method) / some)


def _renyi_of_logits(P: Measure, Q: Measure, alpha: Any) -> Any:
    """log Σ p^α q^(1−α) / (α − 1) of two softmaxes; near equality, where that cancels, from Tsallis' divergence T of order
    r + 1, as log(1 + r T) / r."""
    z, w, r = logits_of(P), logits_of(Q), alpha - 1
    if z is None or w is None or z.shape != w.shape or (isinstance(r, float) and (r == 0 or math.isinf(r))):
        return None
    classes = Classes.of(z)
    log_p, log_q = log_softmax(classes, z), log_softmax(classes, w)
    of_class = jnp.asarray(alpha)[..., None] if jnp.ndim(alpha) else alpha
    some, both = log_p > -jnp.inf, (log_p > -jnp.inf) & (log_q > -jnp.inf)
    p, q = (jnp.where(both, x, 0) for x in (log_p, log_q))
    beyond = jnp.where(some & (jnp.asarray(of_class) > 1), jnp.inf, -jnp.inf)  # where Q has no mass
    total = Categorical(jnp.where(both, q + of_class * (p - q), beyond)).log_partition
    near = jax.lax.stop_gradient(jnp.abs(total)) < 0.5
    # Elsewhere T may overflow, and its derivative is not taken.
    tsallis = f_divergence(Categorical(z), Categorical(jnp.where(near[..., None], w, z)), generators.tsallis(r))
    of_log = tsallis * log1p_over(jnp.where(jnp.isfinite(tsallis), r * tsallis, 0))
    return jnp.where(near, of_log, total / jnp.where(near, 1, r))


def _of_present(of: Callable[..., Any], alpha: Any, P: Measure, *others: Measure) -> Any:
    """A functional of what is not null, 0 for null members of a family: a logarithm has no derivative there."""
    by_member = by_members(functools.partial(_of_present, of), alpha, P, *others)  # all of its integrals at once
    if by_member is not NotImplemented:
        return by_member
    if not P.shape or static_mass(P) is not None or (isinstance(alpha, float) and math.isinf(alpha)):
        return of(alpha, P, *others)
    null = P.mass == 0
    return jnp.where(null, 0, of(alpha, *(without_null(R, null) for R in (P, *others))))


def _order(alpha: Any) -> Any:
    if isinstance(alpha, int | float) and not isinstance(alpha, bool):
        if not alpha >= 0:
            raise ValueError(f"alpha: an order ≥ 0, got {alpha}")
        return float(alpha)
    alpha = real_array("alpha", alpha, floating=True)
    check_values(jnp.all((alpha >= 0) & jnp.isfinite(alpha)), "alpha: orders ≥ 0, finite in an array")
    return alpha


def cumulant(P: Measure, f: Any, *, method: Any = None) -> Float[Array, "*family"]:
    """log E_P[eᶠ], the cumulant generating function of f under P, in nats. ``method`` as for ``expect``.

    By Jensen at least E_P[f], and about E_P[f] + Var f / 2 for a small f, with all its digits. NaN where eᶠ overflows under
    a density, which float64 puts off.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.cumulant(mx.Normal(0., 1.), lambda x: 0.5 * x).item()  # ⅛
        0.125
        >>> mx.cumulant(mx.DiscreteUniform(2), lambda x: 1000.0 * x).item()  # 1000 − log 2
        999.3069
    """
    return _cumulant(P, as_integrand(f), None, method)


@program
def _cumulant(P: Measure, f: Integrand, mean: Any, method: Any) -> Any:
    """With E_P[f], if it is known with digits that a sum has not."""
    mass = jnp.where(P.mass == 0, 1, P.mass)
    expect = lambda g: jax.tree.map(lambda v: v / mass, P.expect(g, method=method))
    finite, above, below = expect(f.map(_finite_and_not))
    mean = finite if mean is None else jnp.where(jnp.isfinite(mean), mean / mass, finite)
    # Around the mean nothing cancels: E[eᶠ⁻ᵐ] = 1 + E[eᶠ⁻ᵐ − 1 − (f − m)], a mean of what is nowhere negative.
    centre, far = mean, jnp.asarray(False)
    if enumerable(P):  # where the sum would overflow there, around a little less than the greatest
        shift = jax.lax.stop_gradient(supremum(P, f) - 80)
        far = jnp.isfinite(shift) & (shift > mean)
        centre = jnp.where(far, shift, mean)
    shifted, excess_ = expect((f - centre).map(_shifted))
    value = centre + jnp.log1p(jnp.where(far, shifted, excess_ + below * (mean - 1)))
    if enumerable(P):
        return value
    # An overflow is not infinity: that takes an f that is infinite on some mass.
    return nan_where(jnp.isinf(value) & ~(above > 0), value)


def _finite_and_not(y: Array) -> tuple[Array, Array, Array]:
    """What is finite; whether it is +∞; whether it is −∞."""
    at = lambda end: (y == end).astype(y.dtype)
    return jnp.where(jnp.isfinite(y), y, 0), at(jnp.inf), at(-jnp.inf)


def _shifted(y: Array) -> tuple[Array, Array]:
    return jnp.expm1(y), jnp.where(y == -jnp.inf, 0, excess(jnp.where(y == -jnp.inf, 0, y)))


@program
def supremum(P: Measure, f: Any) -> Float[Array, "*family"]:
    """The greatest value of f where P has mass, ess sup f, of a finite measure.

    Raises:
        NotImplementedError: P has a density.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.supremum(mx.Atoms(jnp.array([1., 5., 3.]), weights=jnp.array([1., 0., 1.])), lambda x: x).item()
        3.0
    """
    if not enumerable(P):
        raise NotImplementedError(f"a supremum needs a list of atoms, which a {type(P).__name__} has not")
    f = as_integrand(f)
    by_member = by_members(supremum, P, f)
    if by_member is not NotImplemented:
        return by_member
    parts = [part for form in P.forms() for part in form.with_family_rank(len(f.shape)).atom_lists()]
    greatest = lambda x, w, no_null_atoms: jnp.max(
        jnp.where(w == 0, -jnp.inf, factors_at(f, x, w, no_null_atoms)), axis=-1
    )
    return functools.reduce(jnp.maximum, (greatest(*part) for part in parts))
