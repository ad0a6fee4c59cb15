"""Gumbel, Weibull, Pareto, HalfNormal, InverseGamma, NegativeBinomial: against scipy, over their parameters' range."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from scipy.integrate import quad

import measure_xent as mx
from measure_xent.testing import check_measure

from .sweeps import sweep

CASES = {
    "Gumbel": (mx.Gumbel, lambda m, s: st.gumbel_r(m, s), [(0.0, 1.0), (50.0, 0.1), (-3.0, 40.0)]),
    "Weibull": (mx.Weibull, lambda s, k: st.weibull_min(k, scale=s), [(1.0, 1.0), (2.0, 0.6), (0.01, 8.0)]),
    "Pareto": (mx.Pareto, lambda s, a: st.pareto(a, scale=s), [(1.0, 2.5), (30.0, 0.7), (0.02, 40.0)]),
    "HalfNormal": (mx.HalfNormal, lambda s: st.halfnorm(scale=s), [(1.0,), (0.003,), (200.0,)]),
    "InverseGamma": (mx.InverseGamma, lambda a, r: st.invgamma(a, scale=r), [(3.0, 2.0), (0.8, 1.0), (80.0, 5.0)]),
    "NegativeBinomial": (
        mx.NegativeBinomial,
        lambda r, p: st.nbinom(r, 1 - p),
        [(3.0, 0.5), (0.4, 0.8), (40.0, 0.95), (2.0, 0.001)],
    ),
}
ALL = [(name, parameters) for name, (_, _, cases) in CASES.items() for parameters in cases]


def law_of(name, parameters):
    ours, theirs, _ = CASES[name]
    return ours(*parameters), theirs(*parameters)


@sweep("case", ALL, cost=0.2)
def test_density_tails_quantiles_and_draws(case):
    P, law = law_of(*case)
    u = np.array([1e-4, 0.05, 0.3, 0.5, 0.8, 0.999])
    x = law.ppf(u)
    whole = case[0] == "NegativeBinomial"
    at = jnp.asarray(x, int if whole else float)
    log_p = law.logpmf(x) if whole else law.logpdf(np.asarray(at, np.float64))
    # x itself is rounded: the density is as far off as it rises.
    np.testing.assert_allclose(mx.log(P)(at), log_p, rtol=3e-5, atol=1e-4)
    for ours, theirs in ((P.cdf, law.cdf), (P.survival, law.sf)):
        np.testing.assert_allclose(ours(at), theirs(np.asarray(at, np.float64)), rtol=3e-4, atol=1e-6)
    np.testing.assert_allclose(P.quantile(jnp.asarray(u)), x, rtol=1e-3)
    outside = jnp.array([-1.0]) if case[0] != "Gumbel" else jnp.array([-jnp.inf])
    np.testing.assert_array_equal(P.cdf(outside), 0)
    np.testing.assert_array_equal(mx.log(P)(outside), -np.inf)
    mean, variance = law.stats("mv")
    np.testing.assert_allclose(P.mean, mean, rtol=2e-5)
    if np.isfinite(mean):  # else there is no variance
        np.testing.assert_allclose(P.variance, variance, rtol=2e-5)
    draws = np.asarray(P.sample(jax.random.key(1), (4000,)), np.float64)
    if whole:
        edges = np.unique(law.ppf(np.linspace(0.05, 0.95, 12)))
        share = np.diff([0, *law.cdf(edges), 1])
        count = np.histogram(draws, [-1, *(edges + 0.5), np.inf])[0]
        assert len(share) < 3 or st.chisquare(count, len(draws) * share).pvalue > 1e-4
    else:
        assert st.kstest(draws, law.cdf).pvalue > 1e-4


@sweep("case", ALL, cost=1)
def test_checks_of_a_measure(case):
    check_measure(law_of(*case)[0])


@sweep("name", CASES, cost=0.3)
def test_integrals(name):
    """Entropy and cross-entropy, and their derivatives, against sums and quadratures in float64."""
    parameters = CASES[name][2][0]
    others = (
        tuple(1.3 * p if p > 0 else 0.4 for p in parameters)
        if name != "Pareto"
        else (parameters[0], 1.3 * parameters[1])
    )
    if name == "NegativeBinomial":
        others = (4.0, 0.6)
    ours = CASES[name][0]

    def exact(parameters, others):
        P, Q = CASES[name][1](*parameters), CASES[name][1](*others)
        if name == "NegativeBinomial":
            k = np.arange(2000)
            return -(P.pmf(k) * Q.logpmf(k)).sum()
        cuts = [P.ppf(1e-14), *P.ppf([0.01, 0.5, 0.99, 1 - 1e-6]), P.ppf(1 - 1e-15)]
        f = lambda x: -P.pdf(x) * Q.logpdf(x)
        return sum(quad(f, a, b, limit=200, epsabs=1e-13)[0] for a, b in itertools.pairwise(cuts))

    np.testing.assert_allclose(mx.entropy(ours(*parameters)), exact(parameters, parameters), rtol=3e-5)
    value, slopes = jax.value_and_grad(lambda p, q: mx.cross_entropy(ours(*p), ours(*q)), argnums=(0, 1))(
        parameters, others
    )
    np.testing.assert_allclose(value, exact(parameters, others), rtol=3e-5)
    for which, slope in enumerate(slopes):
        for i, s in enumerate(slope):
            if name == "Pareto" and i == 0:
                continue  # where its support moves there is no derivative of a cross-entropy that is infinite on one side
            moved = [[list(parameters), list(others)] for _ in range(2)]
            h = 1e-4 * max(abs(moved[0][which][i]), 1)
            moved[0][which][i] -= h
            moved[1][which][i] += h
            np.testing.assert_allclose(s, (exact(*moved[1]) - exact(*moved[0])) / (2 * h), rtol=2e-3, atol=1e-4)


def test_errors():
    for make, words in (
        (lambda: mx.Weibull(jnp.ones(2), jnp.ones(3)), "do not broadcast"),
        (lambda: mx.HalfNormal("a"), "array of numbers"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            make()
    P = mx.NegativeBinomial(2.0, jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(jnp.exp(mx.log(P)(jnp.array(0))), [1.0, 0.25], rtol=1e-6)
    np.testing.assert_allclose(mx.log(P)(1), [-np.inf, np.log(0.25)], rtol=1e-6)


def test_ends_of_parameters_and_points():
    """Tails beyond the last digit of 1; families; infinity and NaN; far below a Gumbel's location."""
    np.testing.assert_allclose(mx.NegativeBinomial(10.0, 0.01).survival(3.0), st.nbinom(10, 0.99).sf(3), rtol=1e-3)
    np.testing.assert_allclose(mx.NegativeBinomial(2.0, 0.5).survival(60.0), st.nbinom(2, 0.5).sf(60), rtol=1e-3)
    rates = [1.0, 2.0, 7.0]
    for law in (mx.Poisson, lambda r: mx.NegativeBinomial(r, 0.5)):
        np.testing.assert_array_equal(law(jnp.array(rates)).quantile(0.5), [law(rate).quantile(0.5) for rate in rates])
    weibulls = mx.Weibull(1.0, 1.0), mx.Weibull(1.0, 0.5)
    for P in (*weibulls, mx.Pareto(1.0, 2.0), mx.HalfNormal(1.0), mx.InverseGamma(0.5, 2.0)):
        assert mx.log(P)(jnp.inf) == -jnp.inf
        assert jnp.isnan(P.cdf(jnp.nan))
        assert jnp.isnan(P.survival(jnp.nan))
    G = mx.Gumbel(0.0, 1.0)
    for f in (G.cdf, G.survival, lambda x: jnp.exp(mx.log(G)(x)), lambda s: mx.Gumbel(0.0, -s / 800).cdf(-800.0)):
        assert jax.grad(f)(-800.0) == 0
