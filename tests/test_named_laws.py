"""Gumbel, Weibull, Pareto, HalfNormal, InverseGamma, VonMises, NegativeBinomial, Hypergeometric, Multinomial: against scipy,
over their parameters' range."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import i0e

import measure_xent as mx
from measure_xent.testing import check_measure

from .sweeps import sweep


class Angle:
    """scipy's vonmises has no ends: here they are −π and π."""

    def __init__(self, loc, kappa):
        self.loc, self.kappa = loc, kappa

    def pdf(self, x):
        return np.exp(-2 * self.kappa * np.sin((x - self.loc) / 2) ** 2) / (2 * np.pi * i0e(self.kappa))

    def logpdf(self, x):
        return np.log(self.pdf(x))

    def integral(self, f, low, high):
        marks = [self.loc + 2 * np.pi * n + w / np.sqrt(self.kappa + 1) for n in (-1, 0, 1) for w in (-8, 0, 8)]
        inside = sorted(m for m in marks if low < m < high)
        return quad(lambda x: f(x) * self.pdf(x), low, high, points=inside or None, limit=200)[0]

    def cdf(self, x):
        return np.vectorize(lambda x: self.integral(lambda _: 1, -np.pi, x), otypes=[float])(x)

    def sf(self, x):
        return np.vectorize(lambda x: self.integral(lambda _: 1, x, np.pi), otypes=[float])(x)

    def ppf(self, u):
        return np.vectorize(lambda u: brentq(lambda x: self.cdf(x) - u, -np.pi, np.pi))(u)

    def stats(self, _):
        mean, square = (self.integral(f, -np.pi, np.pi) for f in (lambda x: x, np.square))
        return mean, square - mean**2


CASES = {
    "Gumbel": (mx.Gumbel, lambda m, s: st.gumbel_r(m, s), [(0.0, 1.0), (50.0, 0.1), (-3.0, 40.0)]),
    "Weibull": (mx.Weibull, lambda s, k: st.weibull_min(k, scale=s), [(1.0, 1.0), (2.0, 0.6), (0.01, 8.0)]),
    "Pareto": (mx.Pareto, lambda s, a: st.pareto(a, scale=s), [(1.0, 2.5), (30.0, 0.7), (0.02, 40.0)]),
    "HalfNormal": (mx.HalfNormal, lambda s: st.halfnorm(scale=s), [(1.0,), (0.003,), (200.0,)]),
    "InverseGamma": (mx.InverseGamma, lambda a, r: st.invgamma(a, scale=r), [(3.0, 2.0), (0.8, 1.0), (80.0, 5.0)]),
    "NegativeBinomial": (
        mx.NegativeBinomial,
        lambda r, p: st.nbinom(r, 1 - p),
        [(3.0, 0.5), (0.4, 0.7), (40.0, 0.95), (2.0, 0.001)],
    ),
    "Hypergeometric": (
        mx.Hypergeometric,
        lambda N, K, n: st.hypergeom(int(N), int(K), int(n)),
        [(52.0, 4.0, 5.0), (10000.0, 3000.0, 500.0), (30.0, 25.0, 20.0), (7.0, 7.0, 3.0)],
    ),
    "VonMises": (mx.VonMises, Angle, [(0.5, 2.0), (3.0, 4.0), (-1.0, 0.5), (2.0, 500.0)]),
}
COUNTS = ("NegativeBinomial", "Hypergeometric")


ALL = [(name, parameters) for name, (_, _, cases) in CASES.items() for parameters in cases]


def law_of(name, parameters):
    ours, theirs, _ = CASES[name]
    return ours(*parameters), theirs(*parameters)


@sweep("case", ALL, cost=0.2)
def test_density_tails_quantiles_and_draws(case):
    P, law = law_of(*case)
    u = np.array([1e-4, 0.05, 0.3, 0.5, 0.8, 0.999])
    x = law.ppf(u)
    whole = case[0] in COUNTS
    at = jnp.asarray(x, int if whole else float)
    log_p = law.logpmf(x) if whole else law.logpdf(np.asarray(at, np.float64))
    # x itself is rounded: the density is as far off as it rises.
    np.testing.assert_allclose(mx.log(P)(at), log_p, rtol=3e-5, atol=1e-4)
    for ours, theirs in ((P.cdf, law.cdf), (P.survival, law.sf)):
        # JAX's incomplete beta function is off by up to 4e-4 of itself in float32.
        np.testing.assert_allclose(ours(at), theirs(np.asarray(at, np.float64)), rtol=5e-4, atol=1e-6)
    np.testing.assert_allclose(P.quantile(jnp.asarray(u)), x, rtol=1e-3, atol=1e-5)
    outside = jnp.array([{"Gumbel": -jnp.inf, "VonMises": -4.0}.get(case[0], -1.0)])
    np.testing.assert_array_equal(P.cdf(outside), 0)
    np.testing.assert_array_equal(mx.log(P)(outside), -np.inf)
    mean, variance = law.stats("mv")
    np.testing.assert_allclose(P.mean, mean, rtol=2e-5, atol=1e-6)
    if np.isfinite(mean):  # else there is no variance
        np.testing.assert_allclose(P.variance, variance, rtol=2e-5)
    draws = np.asarray(P.sample(jax.random.key(1), (4000,)), np.float64)
    if whole:
        edges = np.unique(law.ppf(np.linspace(0.05, 0.95, 12)))
        share = np.diff([0, *law.cdf(edges), 1])
        count = np.histogram(draws, [-1, *(edges + 0.5), np.inf])[0]
        assert len(share) < 3 or st.chisquare(count, len(draws) * share).pvalue > 1e-4
    else:
        assert st.kstest(draws[: 500 if case[0] == "VonMises" else None], law.cdf).pvalue > 1e-4


# Of parameters near 1, which is what its differences are for.
@sweep("name", CASES, cost=1)
def test_checks_of_a_measure(name):
    fixed = ("population", "successes", "draws") if name == "Hypergeometric" else ()
    check_measure(law_of(name, CASES[name][2][0])[0], fixed=fixed)


@sweep("name", CASES, cost=0.3)
def test_integrals(name):
    """Entropy and cross-entropy, and their derivatives, against sums and quadratures in float64."""
    parameters = CASES[name][2][0]
    others = (
        tuple(1.3 * p if p > 0 else 0.4 for p in parameters)
        if name != "Pareto"
        else (parameters[0], 1.3 * parameters[1])
    )
    others = {"NegativeBinomial": (4.0, 0.6), "Hypergeometric": (52.0, 6.0, 5.0)}.get(name, others)
    ours = CASES[name][0]

    def exact(parameters, others):
        P, Q = CASES[name][1](*parameters), CASES[name][1](*others)
        if name in COUNTS:
            k = np.arange(5 if name == "Hypergeometric" else 2000)
            return -(P.pmf(k) * Q.logpmf(k)).sum()
        if name == "VonMises":
            return quad(lambda x: -P.pdf(x) * Q.logpdf(x), -np.pi, np.pi)[0]
        cuts = [P.ppf(1e-14), *P.ppf([0.01, 0.5, 0.99, 1 - 1e-6]), P.ppf(1 - 1e-15)]
        f = lambda x: -P.pdf(x) * Q.logpdf(x)
        return sum(quad(f, a, b, limit=200, epsabs=1e-13)[0] for a, b in itertools.pairwise(cuts))

    np.testing.assert_allclose(mx.entropy(ours(*parameters)), exact(parameters, parameters), rtol=3e-5)
    value, slopes = jax.value_and_grad(lambda p, q: mx.cross_entropy(ours(*p), ours(*q)), argnums=(0, 1))(
        parameters, others
    )
    np.testing.assert_allclose(value, exact(parameters, others), rtol=3e-5)
    if name == "Hypergeometric":  # whose parameters are whole
        return
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
        (lambda: mx.Multinomial(2.0, jnp.ones(2) / 2), "total_count"),
        (lambda: mx.Multinomial(2, 1.0), "last axis"),
        (lambda: mx.entropy(mx.Multinomial(1000, jnp.ones(6) / 6)), "too many|more than"),
        (lambda: mx.Weibull(jnp.ones(2), jnp.ones(3)), "do not broadcast"),
        (lambda: mx.HalfNormal("a"), "array of numbers"),
    ):
        with pytest.raises((TypeError, ValueError, NotImplementedError), match=words):
            make()
    P = mx.NegativeBinomial(2.0, jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(jnp.exp(mx.log(P)(jnp.array(0))), [1.0, 0.25], rtol=1e-6)
    np.testing.assert_allclose(mx.log(P)(1), [-np.inf, np.log(0.25)], rtol=1e-6)


@pytest.mark.long
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


@sweep("case", [(0, 2), (1, 3), (5, 3), (12, 2), (7, 4), (300, 2)], cost=0.3)
def test_multinomial(case):
    """Of every vector of counts; a family; probabilities of 0, with derivatives; draws by χ²."""
    n, d = case
    rng = np.random.default_rng(n)
    p, q = rng.dirichlet(np.ones(d), size=(2, 2))
    P, Q = (mx.Multinomial(n, jnp.asarray(x, float)) for x in (p, q))
    for i in range(2):
        law = st.multinomial(n, p[i])
        own = mx.Multinomial(n, jnp.asarray(p[i], float))
        x = np.asarray(law.rvs(9, random_state=0))
        np.testing.assert_allclose(mx.log(own)(jnp.asarray(x)), law.logpmf(x), rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(P.covariance[i], law.cov(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mx.entropy(P)[i], law.entropy(), rtol=3e-5, atol=3e-6)
        kl = n * (p[i] * np.log(p[i] / q[i])).sum()
        np.testing.assert_allclose(mx.kl_divergence(P, Q)[i], kl, rtol=2e-4, atol=1e-5)
        draws = np.asarray(own.sample(jax.random.key(i), 2000))
        assert draws.shape == (2000, d)
        assert (draws.sum(-1) == n).all()
        if n > 1:
            first = st.binom(n, p[i, 0])
            edges = np.unique(first.ppf(np.linspace(0.05, 0.95, 8)))
            share = np.diff([0, *first.cdf(edges), 1])
            count = np.histogram(draws[:, 0], [-1, *(edges + 0.5), np.inf])[0]
            assert len(share) < 3 or st.chisquare(count, 2000 * share).pvalue > 1e-4
    slope = jax.jacrev(lambda p: mx.Multinomial(2, p).expect(lambda x: x[0] * x[1]))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(slope, [2, 0])  # of 2 p₀ p₁
    assert mx.log(P)(jnp.full(d, n + 1)).tolist() == [-np.inf] * 2  # one vector, of a family whose length is another


@pytest.mark.long
def test_angles():
    """Cross-entropies in closed form; the direction; derivatives of the cdf, in loc where the bulk goes over the end."""
    P, Q = mx.VonMises(2.9, 3.0), mx.VonMises(-1.0, 0.7)
    p, q = Angle(2.9, 3.0), Angle(-1.0, 0.7)
    np.testing.assert_allclose(mx.cross_entropy(P, Q), -p.integral(q.logpdf, -np.pi, np.pi), rtol=1e-5)
    np.testing.assert_allclose(jnp.arctan2(P.expect(jnp.sin), P.expect(jnp.cos)), 2.9, rtol=1e-5)
    slopes = jax.grad(lambda m, k: mx.VonMises(m, k).cdf(-2.5), argnums=(0, 1))(2.9, 3.0)
    of = lambda m, k: Angle(m, k).cdf(-2.5)
    expected = [(of(2.9 + a, 3.0 + b) - of(2.9 - a, 3.0 - b)) / 2e-4 for a, b in ((1e-4, 0.0), (0.0, 1e-4))]
    np.testing.assert_allclose(slopes, expected, rtol=1e-4)
    everywhere = mx.VonMises(1.0, 0.0)
    np.testing.assert_allclose(everywhere.quantile(jnp.array([0.1, 0.7])), [-0.8 * np.pi, 0.4 * np.pi], rtol=1e-5)
    # ∂/∂κ of log density at 0 is cos(x − loc).
    np.testing.assert_allclose(jax.grad(lambda k: mx.log(mx.VonMises(1.0, k))(2.5))(0.0), np.cos(1.5), rtol=1e-5)
