"""Laws with large and tiny parameters, at the ends of their supports and of their parameters, and cut far in a tail.

All against mpmath, which has the digits that the formulas of textbooks lose.
"""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy import special

import measure_xent as mx
from measure_xent import log

from .sweeps import sweep

inf = np.inf
either = sweep("x64", [False, True])
rounded = lambda x, x64: float(x if x64 else np.float32(x))


def close(got, expected, x64, ulps=64):
    """To some units in the last place, of the value or of 1."""
    eps = float(jnp.finfo(jnp.float64 if x64 else jnp.float32).eps)
    np.testing.assert_allclose(np.asarray(got, float), np.asarray(expected, float), rtol=ulps * eps, atol=ulps * eps)


def gamma_cross(a, r, b, s):
    """H(Gamma(a, r), Gamma(b, s))."""
    a, r, b, s = map(mp.mpf, (a, r, b, s))
    return mp.loggamma(b) - b * mp.log(s) - (b - 1) * (mp.digamma(a) - mp.log(r)) + s * a / r


def beta_cross(a, b, c, d):
    a, b, c, d = map(mp.mpf, (a, b, c, d))
    log_b = mp.loggamma(c) + mp.loggamma(d) - mp.loggamma(c + d)
    return log_b - (c - 1) * mp.digamma(a) - (d - 1) * mp.digamma(b) + (c + d - 2) * mp.digamma(a + b)


def poisson(k, rate):
    return k * mp.log(mp.mpf(rate)) - mp.mpf(rate) - mp.loggamma(mp.mpf(k) + 1)


def binomial(k, n, p):
    p = mp.mpf(p)
    return mp.log(mp.binomial(n, k)) + k * mp.log(p) + (n - k) * mp.log1p(-p)


def sum_entropy(log_p, low, high):
    return -mp.fsum(mp.exp(log_p(k)) * log_p(k) for k in range(low, high + 1))


def student(z, df):
    z, df = mp.mpf(z), mp.mpf(df)
    scale = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df * mp.pi) / 2
    return scale - (df + 1) / 2 * mp.log1p(z**2 / df)


@pytest.mark.slow("a program a law, in both dtypes")
@either
def test_entropies_at_large_and_tiny_parameters(x64):
    """Nothing as large as the parameter cancels: gamma, beta and Dirichlet laws by their moments, counts by sums."""
    with jax.enable_x64(x64), mp.workdps(40):
        f = lambda x: rounded(x, x64)
        a = np.array([f(x) for x in (1e-6, 1e-3, 0.5, 1, 2.6, 100, 1e3, 1e6, 1e8)])
        b = np.array([f(x) for x in (2, 1e-3, 0.5, 8, 3.1, 1e-2, 2e3, 2e6, 1e8)])

        def figures(a, b):
            P, Q, D = mx.Gamma(a, 0.75), mx.Beta(a, b), mx.Dirichlet(jnp.stack([a, b], axis=-1))
            other = mx.Gamma(1.25 * a, 0.5), mx.Beta(1.25 * a, 0.5 * b)
            return (
                *map(mx.entropy, (P, Q, D)), *map(mx.cross_entropy, (P, Q), other),
                mx.cross_entropy(P, mx.Exponential(2.0)), jax.grad(lambda a: mx.entropy(mx.Gamma(a)).sum())(a),
            )  # fmt: skip

        got = jax.jit(figures)(jnp.asarray(a), jnp.asarray(b))
        pairs = list(zip(a, b, strict=True))
        betas = [beta_cross(*pair, *pair) for pair in pairs]
        slope = [1 + (1 - mp.mpf(x)) * mp.polygamma(1, mp.mpf(x)) for x in a]
        others = [(f(1.25 * x), f(0.5 * y)) for x, y in pairs]
        expected = (
            [gamma_cross(x, 0.75, x, 0.75) for x in a], betas, betas,
            [gamma_cross(x, 0.75, y, 0.5) for x, (y, _) in zip(a, others, strict=True)],
            [beta_cross(*pair, *other) for pair, other in zip(pairs, others, strict=True)],
            [gamma_cross(x, 0.75, 1, 2) for x in a], slope,
        )  # fmt: skip
        for i, (x, y) in enumerate(zip(got, expected, strict=True)):
            close(x, y, x64)
            assert np.all(np.isfinite(x)), i


@pytest.mark.slow("a program a law, in both dtypes")
@either
def test_entropies_of_counts(x64):
    with jax.enable_x64(x64), mp.workdps(30):
        p, rates = rounded(0.3, x64), [rounded(1e-3, x64), 3.5, 700.0]
        many = 1e6  # log 2πeλ / 2 − 1/12λ
        P, Q = mx.Poisson(jnp.asarray([*rates, many])), mx.Binomial(jnp.array([10, 1000]), p)
        one, two = jax.jit(lambda P, Q: (P.integrate(-log(P)), Q.integrate(-log(Q))))(P, Q)
        sums = [sum_entropy(lambda k, r=r: poisson(k, r), 0, int(2 * r + 60)) for r in rates]
        close(one.value, [*sums, mp.log(2 * mp.pi * mp.e * many) / 2 - 1 / (12 * many)], x64)
        close(two.value, [sum_entropy(lambda k, n=n: binomial(k, n, p), 0, n) for n in (10, 1000)], x64)
        gamma = mx.Gamma(1e3).integrate(-log(mx.Gamma(1e3)))
        assert abs(float(gamma.value) - float(gamma_cross(1e3, 1, 1e3, 1))) <= gamma.error  # a closed form rounds, too
        assert 0 < gamma.error < 1e-4


@either
def test_log_densities_at_large_and_tiny_parameters(x64):
    """Near the bulk, where they are as small as the law is wide, and their derivatives in the parameters."""
    with jax.enable_x64(x64), mp.workdps(40):
        f = lambda x: rounded(x, x64)
        rates = [f(x) for x in (1e-6, 0.5, 3.3, 1e4, 1e6)]
        counts = [0, 1, 4, 10_100, 999_000]
        n, p = [1000, 1000, 10**6, 10**6], [f(1e-6), f(0.3), 0.5, f(1e-3)]
        k = [0, 310, 500_100, 1030]
        df, z = np.meshgrid([f(x) for x in (0.5, 4.5, 1e4, 1e6, 1e8)], [0, f(0.1), 3, 1000])

        def figures(rates, p, df, z):
            of_poisson = lambda r: log(mx.Poisson(r))(jnp.asarray(counts, float))
            of_student = lambda df: log(mx.StudentT(df))(z)
            return (
                of_poisson(rates), jax.grad(lambda r: of_poisson(r).sum())(rates),
                log(mx.Binomial(jnp.asarray(n), p))(jnp.asarray(k)), of_student(df),
                df * jax.grad(lambda df: of_student(df).sum())(df),
            )  # fmt: skip

        got = jax.jit(figures)(*map(jnp.asarray, (rates, p, df, z)))
        slope = lambda z, df: mp.mpf(df) * mp.diff(lambda df: student(z, df), df)
        expected = (
            [poisson(*pair) for pair in zip(counts, rates, strict=True)],
            [mp.mpf(c) / mp.mpf(r) - 1 for c, r in zip(counts, rates, strict=True)],
            [binomial(*three) for three in zip(k, n, p, strict=True)],
            np.vectorize(student, otypes=[float])(z, df), np.vectorize(slope, otypes=[float])(z, df),
        )  # fmt: skip
        for x, y in zip(got, expected, strict=True):
            close(x, y, x64)
        # Relative accuracy where the probability is nearly 1.
        for x, y in ((got[0], expected[0]), (got[2], expected[2])):
            np.testing.assert_allclose(float(x[0]), float(y[0]), rtol=1e-6)


@pytest.mark.slow("a program a law, in both dtypes")
@either
def test_densities_at_the_ends_of_supports(x64):
    """Value, derivatives in the parameters and in the point: those of the formula, as far as it has them."""
    with jax.enable_x64(x64):
        of = lambda make: lambda *theta: log(make(*theta[:-1]))(theta[-1])
        cases = (
            (of(mx.Exponential), (2.0, 0.0), np.log(2), (0.5, -2)),
            (of(mx.Gamma), (1.0, 2.0, 0.0), np.log(2), (-inf, 0.5, -2)),
            (of(mx.Gamma), (2.0, 2.0, 0.0), -inf, (-inf, 1, inf)),
            (of(mx.Gamma), (0.5, 2.0, 0.0), inf, (-inf, 0.25, -inf)),
            (of(mx.Beta), (1.0, 8.0, 0.0), np.log(8), (-inf, 1 / 8, -7)),
            (of(mx.Beta), (8.0, 1.0, 1.0), np.log(8), (1 / 8, -inf, 7)),
            (of(mx.Beta), (2.0, 1.0, 0.0), -inf, None),
            (of(lambda a: mx.Beta(a, 1.0)), (1.0, 1.0), 0, None),
            (of(lambda a, b: mx.Dirichlet(jnp.stack([a, b, 3.0]))), (1.0, 2.0, jnp.array([0.0, 0.5, 0.5])), np.log(7.5), None),
            (of(mx.Uniform), (0.0, 2.0, 2.0), -np.log(2), (0.5, -0.5, 0)),
            (of(mx.LogNormal), (0.0, 1.0, 0.0), -inf, (0, 0, 0)),
        )  # fmt: skip
        for f, theta, value, slopes in cases:
            theta = tuple(map(jnp.asarray, theta))
            got, gradient = jax.jit(lambda *theta, f=f: (f(*theta), jax.grad(f, range(len(theta)))(*theta)))(*theta)
            close(got, value, x64)
            if slopes is not None:
                close(jnp.stack(gradient), slopes, x64)


@pytest.mark.slow("a program a law, in both dtypes")
@either
def test_counts_at_the_ends_of_parameters(x64):
    """Where one count has all mass: values, divergences, derivatives of every order through the masses of the others."""
    kl, square = mx.kl_divergence, lambda k: k**2.0

    def figures(zero, one):
        P, B, G = mx.Poisson, lambda p: mx.Binomial(5, p), mx.Geometric
        second = lambda make: lambda theta: make(theta).expect(square)
        derivatives = lambda make, at: (jax.grad(second(make))(at), jax.hessian(second(make))(at))
        return {
            "poisson": (log(P(zero))(jnp.arange(2)), [0, -inf]),
            "its slope": (jax.grad(lambda r: log(P(r))(0))(zero), -1),
            "its entropy, divergences": ((mx.entropy(P(zero)), kl(P(zero), P(one)), kl(P(one), P(zero))), (0, 1, inf)),
            "slope of kl": (jax.grad(lambda r: kl(P(zero), P(r)))(one), 1),
            "second moment": (derivatives(P, zero), (1, 2)),
            "never": (log(B(zero))(jnp.arange(3)), [0, -inf, -inf]),
            "always": (log(B(one))(jnp.array([5, 4])), [0, -inf]),
            "slopes": ((jax.grad(lambda p: log(B(p))(0))(zero), jax.grad(lambda p: log(B(p))(5))(one)), (-5, 5)),
            "entropies": ((mx.entropy(B(zero)), mx.entropy(B(one))), (0, 0)),
            "kl": ((kl(B(zero), B(one / 2)), kl(B(one), B(one / 2)), kl(B(one / 2), B(one))), (5 * np.log(2),) * 2 + (inf,)),
            "second moments": (derivatives(B, zero) + derivatives(B, one), (5, 40, 45, 40)),
            "geometric": ((kl(G(one), G(one / 2)), mx.entropy(G(one)), kl(G(one / 2), G(one))), (np.log(2), 0, inf)),
            "slope": ((jax.grad(lambda p: log(G(p))(0))(one), jax.grad(lambda q: kl(G(one), G(q)))(one / 2)), (1, -2)),
            "cosine": (jax.grad(lambda p: G(p).expect(lambda k: jnp.cos(1.0 * k)))(one), np.cos(0) - np.cos(1)),
        }  # fmt: skip

    with jax.enable_x64(x64):
        expected = {}

        def got(*ends):
            table = figures(*ends)
            expected.update({name: y for name, (_, y) in table.items()})
            return {name: x for name, (x, _) in table.items()}

        for name, x in jax.jit(got)(jnp.asarray(0.0), jnp.asarray(1.0)).items():
            np.testing.assert_allclose(np.ravel(x), np.ravel(expected[name]), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow("a program a law, in both dtypes")
@either
@pytest.mark.parametrize("df", [1e6, 1e10, inf])
def test_student_goes_to_the_normal(df, x64):
    with jax.enable_x64(x64):
        T, N, x = mx.StudentT(df, 0.3, 1.25), mx.Normal(0.3, 1.25), jnp.array([0.0, 3.0, -5.0])
        of = lambda P: (log(P)(x), P.cdf(x), P.quantile(jnp.asarray(0.3)), mx.entropy(P))
        mine, its, divergence, slope, draws = jax.jit(
            lambda T, N: (
                of(T), of(N), mx.kl_divergence(T, N), jax.grad(lambda T: log(T)(2.0))(T), T.sample(jax.random.key(0), (1000,))
            )
        )(T, N)  # fmt: skip
        for a, b in zip(mine, its, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5 if x64 else 1e-4, atol=2e-6)
        np.testing.assert_allclose(divergence, 0, atol=2e-6)
        np.testing.assert_allclose(slope.loc, 1.7 / 1.25**2, rtol=1e-5)
        assert abs(slope.df) < 1e-11
        np.testing.assert_allclose([draws.mean(), draws.std()], [0.3, 1.25], atol=0.15)


TAILS = {  # a law, its log-density but for a constant, the interval, a point in it
    "normal": (lambda: mx.Normal(0.0, 1.0), lambda u: -(u**2) / 2, -40, -39, -39.9375),
    "normal, a ray": (lambda: mx.Normal(0.0, 1.0), lambda u: -(u**2) / 2, 14, None, 14.125),
    "normal, very far": (lambda: mx.Normal(0.0, 1.0), lambda u: -(u**2) / 2, 100, None, 100.0078125),
    "narrow": (lambda: mx.Normal(0.0, 1.0), lambda u: -(u**2) / 2, 3, 3 + 2**-10, 3 + 2**-11),
    "narrow, in the bulk": (lambda: mx.Normal(0.0, 1.0), lambda u: -(u**2) / 2, -(2**-10), 2**-10, 2**-11),
    "laplace": (lambda: mx.Laplace(0.0, 1.0), lambda u: -abs(u), 200, 203, 201),
    "exponential": (lambda: mx.Exponential(2.0), lambda u: -2 * u, 100, None, 100.5),
    "cauchy": (lambda: mx.Cauchy(0.0, 1.0), lambda u: -mp.log(1 + u**2), 10_000, 20_000, 15_000),
    "gamma": (lambda: mx.Gamma(3.0), lambda u: 2 * mp.log(u) - u, 150, None, 151),
    "gamma, below": (lambda: mx.Gamma(30.0), lambda u: 29 * mp.log(u) - u, 0, 0.25, 0.2421875),
    "log-normal": (lambda: mx.LogNormal(0.0, 0.5), lambda u: -2 * mp.log(u) ** 2 - mp.log(u), 1e5, None, 1.1e5),
    "student": (lambda: mx.StudentT(50.0), lambda u: -25.5 * mp.log1p(u**2 / 50), 100, None, 101),
    "beta": (lambda: mx.Beta(2.0, 60.0), lambda u: mp.log(u) + 59 * mp.log1p(-u), 0.75, None, 0.7578125),
    "beta, in the bulk": (lambda: mx.Beta(2.0, 3.0), lambda u: mp.log(u) + 2 * mp.log1p(-u), 0.25, 0.75, 0.5),
}


@pytest.mark.slow("a program a law, in both dtypes")
@sweep("x64", [False, True], cost=0.25)
@sweep("name", TAILS, cost=0.25)
def test_truncated_far_in_a_tail(name, x64):
    """The density at a point, the mean, and the derivative of the density in the end."""
    make, log_p, low, high, x = TAILS[name]
    with jax.enable_x64(x64), mp.workdps(30):
        end = {"beta": 1}.get(name, high)
        width = mp.mpf(10) / abs(mp.diff(log_p, low if low > 0 else 0.25)) if high is None else high - mp.mpf(low)
        cuts = mp.linspace(low, min(low + 6 * width, end or inf) if high is None else high, 25)
        top = log_p(mp.mpf(x))
        mass, first = (mp.quad(lambda u, g=g: g(u) * mp.exp(log_p(u) - top), cuts) for g in (lambda u: 1, lambda u: u))

        def figures(law, low, high):
            P = mx.truncate(law, low, high)
            return log(P)(x), P.expect(lambda x: x), jax.grad(lambda low: log(mx.truncate(law, low, high))(x))(low)

        arguments = make(), jnp.asarray(low, float), None if high is None else jnp.asarray(high, float)
        value, mean, slope = jax.jit(figures)(*arguments)
        scale = 1e-10 if x64 else 2e-5
        at_low = mp.exp(log_p(mp.mpf(low)) - top) / mass if low else 0
        np.testing.assert_allclose(value, float(-mp.log(mass)), rtol=scale, atol=scale)
        np.testing.assert_allclose(mean, float(first / mass), rtol=scale, atol=scale * float(width))
        np.testing.assert_allclose(slope, float(at_low), rtol=20 * scale, atol=scale)


@pytest.mark.slow("a program a law, in both dtypes")
def test_draws_and_derivatives_far_in_a_tail():
    """Samples lie in the interval and have its mean; an optimiser sees finite derivatives in all parameters."""
    P = mx.truncate(mx.Normal(0.0, 1.0), 30.0)
    draws = P.sample(jax.random.key(0), (500,))
    assert np.all(draws >= 30)
    np.testing.assert_allclose(draws.mean() - 30, 1 / 30, rtol=0.15)
    loss = lambda loc, scale: -log(mx.truncate(mx.Normal(loc, scale), -40.0, -39.0))(-39.5)
    slopes = jax.grad(loss, (0, 1))(0.0, 1.0)
    with jax.enable_x64(True):
        np.testing.assert_allclose(slopes, jax.grad(loss, (0, 1))(0.0, 1.0), rtol=1e-3)
        step = 1e-5
        difference = (loss(step, 1.0) - loss(-step, 1.0)) / (2 * step)
        np.testing.assert_allclose(jax.grad(loss)(0.0, 1.0), difference, rtol=1e-6)
        mass = lambda a: log(mx.truncate(mx.Beta(a, 3.0), 0.25, 0.75))(0.5)
        np.testing.assert_allclose(jax.grad(mass)(2.0), (mass(2 + step) - mass(2 - step)) / (2 * step), rtol=1e-6)


LOG_DENSITIES = {
    mx.Gamma: lambda a, r, x: a * mp.log(r) - mp.loggamma(a) + (a - 1) * mp.log(x) - r * x,
    mx.Beta: lambda a, b, x: (a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x) - mp.log(mp.beta(a, b)),
    mx.StudentT: lambda df, m, s, x: student((x - m) / s, df) - mp.log(s),
    mx.LogNormal: lambda m, s, x: -(((mp.log(x) - m) / s) ** 2) / 2 - mp.log(s * x) - mp.log(2 * mp.pi) / 2,
    mx.Exponential: lambda r, x: mp.log(r) - r * x,
    mx.Normal: lambda m, s, x: -(((x - m) / s) ** 2) / 2 - mp.log(s) - mp.log(2 * mp.pi) / 2,
}
ONES = (1.0, 0.5, 2.0, 1.0)  # what formulas of powers and factorials may have a seam at


@pytest.mark.slow("second derivatives of each law")
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("make", LOG_DENSITIES, ids=lambda make: make.__name__)
def test_second_derivatives_of_log_densities(make, x64):
    """In the parameters and in the point, at round parameters, at the law's bulk and near its ends."""
    with jax.enable_x64(x64):
        of = LOG_DENSITIES[make]
        count = of.__code__.co_argcount - 1
        thetas = [[ONES[(i + j) % 4] for j in range(count)] for i in range(4)] + [[1.0] * count]
        points = [1e-6, 0.1, 0.5, 0.9] + ([] if make is mx.Beta else [1.0, 3.0, 30.0])
        at = jnp.asarray([[*theta, x] for theta in thetas for x in points])
        got = jax.jit(jax.vmap(jax.hessian(lambda t: log(make(*t[:-1]))(t[-1]))))(at)
        for t, hessian in zip(np.asarray(at, float), got, strict=True):
            for i in range(count + 1):
                for j in range(i + 1):
                    order = tuple((k == i) + (k == j) for k in range(count + 1))
                    with mp.workdps(40):
                        true = float(mp.diff(of, tuple(map(mp.mpf, t)), order))
                    # Of what adds up to it: at 1e-6 the logarithm's own derivatives are 1e6 and 1e12.
                    eps = float(jnp.finfo(at.dtype).eps)
                    np.testing.assert_allclose(
                        hessian[i, j], true, rtol=1e3 * eps, atol=1e3 * eps, err_msg=str((t, i, j))
                    )


MEANS = {
    mx.Gamma: lambda a, r: a / r,
    mx.Beta: lambda a, b: a / (a + b),
    mx.LogNormal: lambda m, s: jnp.exp(m + s**2 / 2),
    mx.Exponential: lambda r: 1 / r,
    mx.Uniform: lambda low, high: (low + high) / 2,
    mx.Laplace: lambda m, s: m + 0 * s,
    mx.Normal: lambda m, s: m + 0 * s,
}


@pytest.mark.slow("adaptive integrals and their derivatives")
@sweep("make", list(MEANS), cost=1)
@pytest.mark.parametrize("image", [False, True], ids=["law", "image"])
def test_derivatives_of_integrals_at_round_parameters(make, image):
    """Value, gradient and Hessian of a mean by quadrature, in parameters of 1 and in those of an affine image."""
    mean = MEANS[make]
    count = mean.__code__.co_argcount
    start = jnp.asarray(([0.0, 1.0] if make is mx.Uniform else [1.0] * count) + [3.0, -2.0])

    def integral(t):
        law = make(*t[:count])
        return (mx.pushforward(lambda x: t[-2] + t[-1] * x, law) if image else law).expect(lambda x: x)

    def closed(t):
        return t[-2] + t[-1] * mean(*t[:count]) if image else mean(*t[:count])

    figures = lambda f: (f(start), jax.jacfwd(f)(start), jax.hessian(f)(start))
    for got, true in zip(jax.jit(lambda: figures(integral))(), figures(closed), strict=True):
        np.testing.assert_allclose(got, true, rtol=1e-4, atol=1e-4)


@pytest.mark.slow("a program a law, in both dtypes")
@either
@pytest.mark.parametrize("p", [0.2, 0.03, 0.004, 1e-4])
def test_counts_with_a_bulk_beside_0_and_a_long_tail(p, x64):
    """Integrals, divergences and derivatives of a geometric law, against the sums over all integers."""
    p = rounded(p, x64)
    k = np.arange(int(60 / p))
    mass = p * np.exp(k * np.log1p(-p))
    with jax.enable_x64(x64):
        rtol = 1e-8 if x64 else 1e-5
        for of in (lambda n, k: n.sqrt(k), lambda n, k: 1 / (1 + k), lambda n, k: n.cos(p * k)):
            got = mx.Geometric(p).expect(lambda k, of=of: of(jnp, 1.0 * k))
            np.testing.assert_allclose(got, mass @ of(np, 1.0 * k), rtol=rtol)
        square = lambda p: mx.Geometric(p).expect(lambda k: (1.0 * k) ** 2)
        closed = lambda p: (1 - p) * (2 - p) / p**2
        figures = lambda f: [f(p), jax.grad(f)(p), jax.grad(jax.grad(f))(p)]
        np.testing.assert_allclose(figures(square), figures(closed), rtol=rtol)
        log_other = k * np.log(50.0) - 50 - special.gammaln(k + 1.0)
        np.testing.assert_allclose(
            mx.kl_divergence(mx.Geometric(p), mx.Poisson(50.0)), mass @ (np.log(mass) - log_other), rtol=rtol
        )


@pytest.mark.long
def test_kinks_at_an_end_and_beyond():
    """Derivatives in where a Laplace law is, inside of an interval and not, forwards and backwards; of two such laws."""
    inside, U = lambda m: mx.truncate(mx.Laplace(m, 1.0), 0.0, 3.0).mean, mx.Uniform(0.0, 3.0)
    two = lambda m: mx.cross_entropy(U, 0.5 * mx.Laplace(m, 1.0) + 0.5 * mx.Laplace(2.0, 1.0))
    at = np.array([-2.0, 0.0, 1.0, 2.5, 3.0, 4.0])
    x = np.linspace(0, 3, 300_001)
    mean_over = lambda f: (f[1:] + f[:-1]).mean() / 2
    density = lambda m: np.exp(-np.abs(x - m)) / 2

    def of(m):
        p = density(m)
        return np.stack([mean_over(x * p) / mean_over(p), -mean_over(np.log(p / 2 + density(2.0) / 2))])

    both = lambda m: jnp.stack([inside(m), two(m)])
    slopes = jax.jit(jax.vmap(lambda m: (both(m), jax.jacfwd(both)(m), jax.jacrev(both)(m))))(jnp.asarray(at, float))
    h = 1e-4
    known = np.stack([of(m) for m in at]), np.stack([(of(m + h) - of(m - h)) / (2 * h) for m in at])
    for got, expected in zip(slopes, (known[0], known[1], known[1]), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=3e-4)
