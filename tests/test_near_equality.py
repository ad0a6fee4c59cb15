"""Divergences of what is nearly equal: at least 0, and with all their digits, as are their gradients and Hessians."""

import inspect

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import measure_xent as mx

from .sweeps import sweep

rng = np.random.default_rng(3)
GAPS = (1e-2, 1e-4, 1e-6)


def f32(x):
    return np.asarray(x, np.float32)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    return z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))


def excess(x):
    """eˣ − 1 − x in float64, by its series where the difference has no digits."""
    return np.where(np.abs(x) < 1e-3, x**2 / 2 * (1 + x / 3 + x**2 / 12), np.expm1(x) - x)


FIGURES = {
    "kl": (mx.kl_divergence, lambda p, q, u: p * excess(-u)),
    "jeffreys": (mx.jeffreys, lambda p, q, u: q * np.expm1(u) * u),
    "chi2": (mx.chi2, lambda p, q, u: q * np.expm1(u) ** 2),
    "total variation": (mx.total_variation, lambda p, q, u: np.abs(q * np.expm1(u)) / 2),
    "hellinger": (lambda P, Q: mx.hellinger(P, Q) ** 2, lambda p, q, u: q * np.expm1(u / 2) ** 2 / 2),
    "jensen–shannon": (
        mx.jensen_shannon,
        lambda p, q, u: (p * excess(np.log1p(np.expm1(-u) / 2)) + q * excess(np.log1p(np.expm1(u) / 2))) / 2,
    ),
    "tsallis": (lambda P, Q: mx.tsallis_divergence(P, Q, 2.0), lambda p, q, u: q * np.expm1(u) ** 2),
    "renyi": (lambda P, Q: mx.renyi_divergence(P, Q, 2.0), lambda p, q, u: q * np.expm1(u) ** 2),
    "alpha": (
        lambda P, Q: mx.f_divergence(P, Q, mx.generators.alpha(0.5)),
        lambda p, q, u: 2 * q * np.expm1(u / 2) ** 2,
    ),
}


@pytest.mark.slow("draws of rows against mpmath")
@pytest.mark.parametrize("make", ["logits", "probs", "atoms"])
def test_rows(make):
    """Rows of 50 classes, by logits, by masses, as lists of atoms in another order, whose logarithms differ by 1e-2 to 1e-6."""
    names = ["kl", "jensen–shannon"] if make == "atoms" else FIGURES
    z = f32(rng.normal(size=(len(GAPS) * 20, 50)))
    w = f32(z + np.repeat(GAPS, 20)[:, None] * rng.normal(size=z.shape))
    order = rng.permutation(50)
    if make == "logits":
        log_p, log_q = log_softmax(z), log_softmax(w)
        p, q, u = np.exp(log_p), np.exp(log_q), log_p - log_q
        P, Q = (mx.Categorical(jnp.asarray(x)) for x in (z, w))
    else:
        p, q = (f32(np.exp(log_softmax(x))) for x in (z, w))
        P, Q = (mx.Categorical(probs=jnp.asarray(x)) for x in (p, q))
        if make == "atoms":
            P, Q = (
                mx.Discrete(jnp.arange(50), jnp.asarray(p)),
                mx.Discrete(jnp.asarray(order), jnp.asarray(q[:, order])),
            )
        p, q = p.astype(np.float64), q.astype(np.float64)
        u = np.log1p((p - q) / q)
    got = jax.jit(lambda P, Q: {name: FIGURES[name][0](P, Q) for name in names})(P, Q)
    for name in names:
        expected = FIGURES[name][1](p, q, u).sum(-1)
        expected = np.log1p(expected) if name == "renyi" else expected
        assert np.all(got[name] >= 0), name
        # Rényi's and Jeffreys's of masses take them for normalised, which they are to 1e-7.
        rtol = 1e-2 if make == "probs" and name == "renyi" else 3e-6
        keep = slice(40) if make == "probs" and name == "renyi" else slice(None)
        np.testing.assert_allclose(got[name][keep], expected[keep], rtol=rtol, err_msg=name)


@pytest.mark.slow("draws against mpmath")
def test_derivatives_of_rows():
    """The gradients keep their digits, and at equality the Hessian is Fisher's information, of either argument."""
    z = f32(rng.normal(size=50))
    w = f32(z + 1e-5 * rng.normal(size=50))
    log_p, log_q = log_softmax(z), log_softmax(w)
    p, u = np.exp(log_p), log_p - log_q
    kl = lambda z, w: mx.kl_divergence(mx.Categorical(z), mx.Categorical(w))
    for mode in (jax.grad, jax.jacfwd):
        in_p, in_q = jax.jit(mode(kl, (0, 1)))(jnp.asarray(z), jnp.asarray(w))
        scale = np.abs(p * u).max()
        np.testing.assert_allclose(in_p, p * (u - (p * u).sum()), atol=3e-6 * scale)
        np.testing.assert_allclose(in_q, p * np.expm1(-u), atol=3e-6 * scale)
    fisher = np.diag(p) - np.outer(p, p)
    for which in (0, 1):
        np.testing.assert_allclose(jax.jit(jax.hessian(kl, which))(jnp.asarray(z), jnp.asarray(z)), fisher, atol=1e-7)


@pytest.mark.long
def test_rows_at_the_edge():
    """Forbidden classes, sure ones, targets that are labels: against sums by hand; the gradient of +inf is finite."""
    inf = jnp.inf
    z = jnp.array([0.0, -inf, 0.0])
    value, slope = jax.value_and_grad(lambda z: mx.kl_divergence(mx.DiscreteUniform(3), mx.Categorical(z)))(z)
    assert value == inf
    np.testing.assert_allclose(slope, [1 / 6, -1 / 3, 1 / 6], rtol=1e-6)
    kl = lambda P, z: mx.kl_divergence(P, mx.Categorical(jnp.asarray(z)))
    np.testing.assert_allclose(kl(mx.Dirac(0), [20.0, 0.0, 0.0]), 2 * np.exp(-20.0), rtol=1e-5)
    np.testing.assert_allclose(kl(mx.Categorical(z), [1.0, -inf, 1.0]), 0)
    np.testing.assert_allclose(kl(mx.Categorical(z), [0.0, 0.0, 0.0]), np.log(1.5), rtol=1e-6)
    assert kl(mx.Categorical(jnp.zeros(3)), z) == inf
    assert np.isnan(kl(mx.Dirac(0) - 0.5 * mx.Dirac(1), [0.0, 0.0, 0.0]))
    value, slope = jax.value_and_grad(lambda z: kl(mx.Dirac(-100), z))(jnp.zeros(3))
    assert value == inf
    assert np.all(np.isnan(slope))
    masses = mx.kl_divergence(3.0 * mx.Dirac(0), 2.0 * mx.Categorical(probs=jnp.array([0.25, 0.75])))
    np.testing.assert_allclose(masses, 3 * np.log(6) - 1, rtol=1e-6)


def gamma_kl(a, r, b, s):
    return (
        mpmath.loggamma(b) - mpmath.loggamma(a) - (b - a) * mpmath.digamma(a) + b * mpmath.log(r / s) + a * (s / r - 1)
    )


def beta_kl(a, b, c, d):
    log_beta = lambda a, b: mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)
    slope = (c - a) * mpmath.digamma(a) + (d - b) * mpmath.digamma(b) - (c + d - a - b) * mpmath.digamma(a + b)
    return log_beta(c, d) - log_beta(a, b) - slope


def normal_kl(m, s, n, t):
    return mpmath.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - mpmath.mpf(1) / 2


LAWS = {
    "Normal": (mx.Normal, normal_kl, (0.3, 1.2)),
    "LogNormal": (mx.LogNormal, normal_kl, (0.3, 1.2)),
    "Laplace": (
        mx.Laplace,
        lambda m, s, n, t: mpmath.log(t / s) + abs(m - n) / t + s / t * mpmath.exp(-abs(m - n) / s) - 1,
        (0.3, 1.2),
    ),
    "Cauchy": (mx.Cauchy, lambda m, s, n, t: mpmath.log(((s + t) ** 2 + (m - n) ** 2) / (4 * s * t)), (0.3, 1.2)),
    "Exponential": (mx.Exponential, lambda a, b: mpmath.log(a / b) + b / a - 1, (1.3,)),
    "Poisson": (mx.Poisson, lambda a, b: a * mpmath.log(a / b) - a + b, (700.0,)),
    "Geometric": (
        mx.Geometric,
        lambda p, q: mpmath.log(p / q) + (1 - p) / p * mpmath.log((1 - p) / (1 - q)),
        (0.3,),
    ),
    "Gamma": (mx.Gamma, gamma_kl, (100.0, 2.0)),
    "Gamma, small": (mx.Gamma, gamma_kl, (0.02, 2.0)),
    "Beta": (mx.Beta, beta_kl, (200.0, 300.0)),
    "Beta, small": (mx.Beta, beta_kl, (0.1, 0.7)),
}


@sweep("x64", [False, True], cost=0.1)
@sweep("name", LAWS)
def test_laws(name, x64):
    """Against their closed forms in 60 digits, from parameters a part in 1e6 apart to those far from each other."""
    make, exact, parameters = LAWS[name]
    dtype = np.float64 if x64 else np.float32
    theirs = [dtype(c * (1 + gap)) for gap in (0, 1e-6, 1e-4, 1e-2, 0.3, 1.5) for c in parameters]
    theirs = np.reshape(theirs, (-1, len(parameters)))
    theirs[1:, 0] = dtype(theirs[1:, 0] * (1 + 2e-5))
    ours = np.asarray(parameters, dtype)
    with jax.enable_x64(x64), mpmath.workdps(60):
        got = mx.kl_divergence(make(*jnp.asarray(ours)), make(*jnp.asarray(theirs.T)))
        mine = [mpmath.mpf(float(x)) for x in ours]
        in_order = lambda other: exact(*mine, *(mpmath.mpf(float(x)) for x in other))
        expected = np.array([float(in_order(other)) for other in theirs])
    assert got[0] == 0
    assert np.all(got >= 0)
    np.testing.assert_allclose(got[1:], expected[1:], rtol=1e-8 if x64 else 2e-5)


@pytest.mark.slow("Hessians of divergences")
def test_fisher_of_laws():
    """At equality the Hessian of KL in the parameters is Fisher's information."""
    with jax.enable_x64(True):
        trigamma = float(mpmath.psi(1, 3))
        for make, at, fisher in (
            (mx.Normal, [0.0, 2.0], np.diag([0.25, 0.5])),
            (mx.Laplace, [0.0, 2.0], np.diag([0.25, 0.25])),
            (mx.Cauchy, [0.0, 2.0], np.diag([0.125, 0.125])),
            (mx.Gamma, [3.0, 2.0], [[trigamma, -0.5], [-0.5, 0.75]]),
            (mx.Poisson, [3.0], [[1 / 3]]),
        ):
            kl = lambda ours, theirs, make=make: mx.kl_divergence(make(*ours), make(*theirs))
            at = jnp.asarray(at)
            for which in (0, 1):
                np.testing.assert_allclose(jax.hessian(kl, which)(at, at), fisher, rtol=1e-9, atol=1e-9)


NEAR = {
    "StudentT": (lambda e: mx.StudentT(5.0, 0.0, 1.0 + e), 5 / 8),
    "mixture": (lambda e: 0.5 * mx.Normal(e, 1.0) + 0.5 * mx.Normal(40.0, 1.0), 1 / 4),
    "truncated": (lambda e: mx.truncate(mx.Normal(e, 1.0), -1.0, 1.0), None),
}


@pytest.mark.slow("adaptive integrals")
@sweep("name", NEAR, cost=2)
def test_by_quadrature(name):
    """Where there is no closed form: half Fisher's information times the square of the gap."""
    make, half_fisher = NEAR[name]
    if half_fisher is None:
        from scipy.stats import truncnorm

        half_fisher = truncnorm(-1, 1).var() / 2
    e = float(f32(1 + 1e-4) - 1)
    np.testing.assert_allclose(mx.kl_divergence(make(0.0), make(e)), half_fisher * e**2, rtol=1e-3)


@pytest.mark.slow("adaptive integrals")
def test_of_normals_otherwise():
    gap = 5e-4
    P, Q = mx.Normal(0.0, 1.0), mx.Normal(gap, 1.0)
    np.testing.assert_allclose(mx.jensen_shannon(P, Q), gap**2 / 8, rtol=1e-4)
    np.testing.assert_allclose(mx.renyi_divergence(P, Q, 3.0), 3 * gap**2 / 2, rtol=1e-4)


def test_vectors():
    tril = np.array([[1.0, 0.0], [0.3, 2.0]])
    other = tril + 1e-4 * np.array([[1.0, 0.0], [1.0, -1.0]])
    for x64 in (False, True):
        with jax.enable_x64(x64):
            P, Q = (mx.MultivariateNormal(jnp.zeros(2), scale_tril=jnp.asarray(L, float)) for L in (tril, other))
            L, M = (np.asarray(R.scale_tril, np.float64) for R in (P, Q))
            near = np.linalg.solve(M, L - M)
            expected = (near[1, 0] ** 2 + excess(2 * np.log1p(np.diag(L - M) / np.diag(M))).sum()) / 2
            np.testing.assert_allclose(mx.kl_divergence(P, Q), expected, rtol=1e-8 if x64 else 1e-5)
            assert mx.kl_divergence(P, P) == 0


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_mutual_information_of_nearly_independent_tables(noise):
    x, y = np.indices((30, 40)).reshape(2, -1)
    p = np.outer(rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(40))).ravel()
    p = f32(p * np.exp(noise * rng.normal(size=p.size)))
    got = jax.jit(lambda w: mx.mutual_information(mx.Atoms((jnp.asarray(x), jnp.asarray(y)), weights=w).normalize()))(p)
    t = p.astype(np.float64).reshape(30, 40) / p.astype(np.float64).sum()
    independent = t.sum(1, keepdims=True) * t.sum(0)
    expected = (t * excess(-np.log1p((t - independent) / independent))).sum()
    assert got >= 0
    np.testing.assert_allclose(got, expected, rtol=5e-3, atol=1e-12)


@pytest.mark.slow("every functional")
def test_every_functional_takes_a_method():
    names = (
        "entropy cross_entropy kl_divergence perplexity mutual_information conditional_entropy total_correlation "
        "conditional_mutual_information interaction_information f_divergence total_variation hellinger chi2 jeffreys "
        "jensen_shannon renyi_divergence renyi_entropy tsallis_divergence tsallis_entropy cumulant"
    )
    for name in names.split():
        assert inspect.signature(getattr(mx, name)).parameters["method"].kind == inspect.Parameter.KEYWORD_ONLY, name
        assert "method" in inspect.getdoc(getattr(mx, name)) or "those of" in inspect.getdoc(getattr(mx, name)), name
    method = mx.MonteCarlo(jax.random.key(0), 20_000)
    P, Q = mx.power(mx.Normal(), 3), mx.power(mx.Normal(0.5, 1.0), 3)
    np.testing.assert_allclose(mx.kl_divergence(P, Q, method=method), 0.375, rtol=0.05)
    np.testing.assert_allclose(mx.entropy(P, method=method), 1.5 * np.log(2 * np.pi * np.e), rtol=0.02)
