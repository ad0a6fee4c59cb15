"""Importance sampling and estimators of derivatives: unbiased, as far as standard errors tell, and of less variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import measure_xent as mx

KEY = jax.random.key(0)
N = 20_000


def near(integral, exact, sigmas=5):
    """Within standard errors, which are small beside the value; it has converged."""
    assert int(np.max(integral.status)) == 0
    assert np.all(np.abs(np.asarray(integral.value) - exact) <= sigmas * np.asarray(integral.error) + 1e-6)
    assert np.all(np.asarray(integral.error) < 0.1 * np.abs(exact) + 0.02)


def test_importance_sampling():
    """On the line, of families, counts, vectors and products; of sums of laws, of weighted and restricted ones."""
    by = lambda R: mx.ImportanceSampling(R, KEY, N)
    near(mx.Normal().integrate(jnp.cos, method=by(mx.StudentT(4.0, 0.0, 1.5))), np.exp(-0.5))
    P = mx.Normal(jnp.array([0.0, 0.5, 1.0]), jnp.array([1.0, 0.7, 0.9]))
    near(P.integrate(lambda x: x**2, method=by(mx.Normal(0.3, 1.6))), np.array([1.0, 0.74, 1.81]))
    R = mx.Normal(jnp.array([0.0, 0.4, 1.2]), 1.5)
    near(P.integrate(lambda x: x**2, method=by(R)), np.array([1.0, 0.74, 1.81]))
    near(mx.Poisson(3.0).integrate(lambda k: k * (k - 1.0), method=by(mx.Geometric(0.2))), 9.0)
    V = mx.MultivariateNormal(jnp.array([1.0, -1.0]), jnp.array([[1.0, 0.3], [0.3, 0.5]]))
    wide = mx.MultivariateNormal(jnp.zeros(2) + 0.3, 3 * jnp.eye(2))
    near(V.integrate(lambda x: x[..., 0] * x[..., 1], method=by(wide)), 0.3 - 1.0)
    pair = mx.product(mx.Normal(0.0, 1.0), mx.Exponential(1.0))
    near(pair.integrate(lambda x, y: x**2 * y, method=by(mx.product(mx.Normal(0.2, 1.3), mx.Exponential(0.7)))), 1.0)
    both = 0.25 * mx.Normal(-1.0, 1.0) + 0.75 * mx.Normal(2.0, 0.5) + 2 * mx.Dirac(5.0)
    near(both.integrate(lambda x: x, method=by(mx.Normal(1.0, 2.5))), 0.25 * -1 + 0.75 * 2 + 10)
    tail = mx.pushforward(lambda x: 4 + x, mx.Exponential(4.0), inverse=lambda y: y - 4)
    beyond = mx.Normal().restrict(lambda x: x > 4)
    near((1e5 * beyond).integrate(lambda x: 1.0, method=by(tail)), 3.16712)
    mixed = mx.product(mx.Normal(0.0, 1.0), mx.Poisson(2.0))
    near(mixed.integrate(lambda x, k: x**2 * k, method=by(mx.product(mx.Normal(0.2, 1.3), mx.Geometric(0.3)))), 2.0)
    given = mx.joint(mx.Normal(0.0, 1.0), mx.Conditional(lambda x: mx.Normal(x, 0.5)))
    near(given.integrate(lambda x, y: x * y, method=by(mx.product(mx.Normal(0.0, 1.5), mx.Normal(0.0, 1.7)))), 1.0)
    weighed = mx.Normal().reweight(jnp.exp)
    near(weighed.integrate(lambda x: x, method=by(mx.Normal(1.0, 1.2))), np.exp(0.5))
    seen = mx.pushforward(lambda x: 2 * x + 1, mx.Normal(), inverse=lambda y: (y - 1) / 2)
    near(seen.integrate(lambda y: y**2, method=by(mx.Normal(0.5, 1.5))), 5.0)


def test_weights_that_cannot_be_trusted():
    """A proposal that misses mass, is far away, or much too narrow: never a number without a word."""
    square = lambda x: x**2
    for R in (mx.Uniform(0.0, 1.0), mx.Normal(12.0, 1.0), mx.Normal(0.0, 0.05), mx.Exponential(1.0), mx.Poisson(1.0)):
        found = mx.Normal().integrate(square, method=mx.ImportanceSampling(R, KEY, 2000))
        assert int(found.status) >= 1, R
        assert np.isnan(found.checked)
    expected = N * np.sqrt(7) / 4  # n / ∫ p²/r
    for P in (mx.Normal(), 3 * mx.Normal()):
        effective = mx.ImportanceSampling(mx.Normal(0.0, 2.0), KEY, N).effective_samples(P)
        np.testing.assert_allclose(effective, expected, rtol=0.02)
    of_two = mx.ImportanceSampling(mx.Normal(0.0, 2.0), KEY, N).effective_samples(mx.Normal(jnp.array([0.0, 1.0]), 1.0))
    assert of_two.shape == (2,)
    assert of_two[1] < of_two[0]
    with pytest.raises(ValueError, match="made of atoms"):
        mx.ImportanceSampling(mx.Normal(), KEY, 10).effective_samples(mx.Dirac(0.0))
    wide = mx.ImportanceSampling(mx.Normal(jnp.zeros((2, 1)), 2.0), KEY, N)
    near(mx.Normal(jnp.arange(3.0), 1.0).integrate(square, method=wide), np.array([[1.0, 2.0, 5.0]] * 2))
    vector = mx.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    for P, R in ((mx.Normal(), mx.product(mx.Normal(), mx.Normal())), (vector, mx.Normal())):
        with pytest.raises(ValueError, match="points of shapes"):
            P.integrate(lambda *x: 1.0, method=mx.ImportanceSampling(R, KEY, 10))
    with pytest.raises(TypeError, match="a Measure, got float"):
        mx.ImportanceSampling(1.0, KEY, 10)
    with pytest.raises(ValueError, match="at least 2"):
        mx.ImportanceSampling(mx.Normal(), KEY, 1)


def test_derivatives_of_importance_sampling():
    """By P's parameters, through its density; the proposal has none, though it may be made of them."""
    of = lambda m, R: mx.Normal(m, 1.0).expect(lambda x: x**2, method=mx.ImportanceSampling(R(m), KEY, N))
    for R in (lambda m: mx.Normal(0.5, 1.5), lambda m: mx.Normal(m, 1.5)):
        np.testing.assert_allclose(jax.grad(of)(0.7, R), 1.4, rtol=0.05)
        np.testing.assert_allclose(jax.hessian(of)(0.7, R), 2.0, rtol=0.15)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda m: of(m, lambda m: mx.Normal(0.5, 1.5))))(0.7), 1.4, rtol=0.05)


LAWS = {
    "Poisson": (lambda a: mx.Poisson(2.0 * a), st.poisson, lambda a: (2.0 * a,)),
    "Binomial": (lambda a: mx.Binomial(7, 0.3 * a), st.binom, lambda a: (7, 0.3 * a)),
    "Geometric": (lambda a: mx.Geometric(0.3 * a), lambda p: st.geom(p, loc=-1), lambda a: (0.3 * a,)),
}


def exact(name, f, a, step=1e-3):
    """∫ f dP and its first two derivatives, by sums in float64."""
    _, law, parameters = LAWS[name]
    k = np.arange(400)
    at = lambda a: (law(*parameters(a)).pmf(k) * f(k.astype(float))).sum()
    slope = (at(a + step) - at(a - step)) / (2 * step)
    return at(a), slope, (at(a + step) - 2 * at(a) + at(a - step)) / step**2


def of_keys(P, f, method, keys=200):
    """Means and standard errors, over keys, of the value and its first two derivatives at 1.1; and the slope's variance."""
    of = lambda a, key: P(a).expect(f, method=method(key))
    slope = jax.grad(of)
    each = jax.jit(jax.vmap(lambda key: jnp.stack([g(1.1, key) for g in (of, slope, jax.grad(slope))])))
    found = np.asarray(each(jax.random.split(KEY, keys)), np.float64)
    return found.mean(0), found.std(0) / np.sqrt(keys), found.var(0)[1]


@pytest.mark.parametrize("name", LAWS)
def test_measure_valued_derivatives(name):
    """Value and two derivatives are unbiased, and vary less than the score's; f need not be smooth, or exist beyond the end."""
    f = lambda k: np.sqrt(k + 1) + (k > 2) * 3.0 if isinstance(k, np.ndarray) else jnp.sqrt(k + 1.0) + 3.0 * (k > 2)
    P = LAWS[name][0]
    by = lambda derivative: lambda key: mx.MonteCarlo(key, 100, derivative=derivative)
    means, errors, spread = of_keys(P, f, by("measure-valued"))
    for got, error, expected in zip(means, errors, exact(name, f, 1.1), strict=True):
        assert abs(got - expected) < 5 * error + 1e-4 * abs(expected), (got, error, expected)
    assert spread < 0.5 * of_keys(P, f, by("score"))[2]
    if name == "Binomial":
        ends = lambda k: jnp.where(k > 7, jnp.nan, k * 1.0)
        assert np.isfinite(of_keys(P, ends, by("measure-valued"), keys=3)[0]).all()


def test_measure_valued_of_families_and_weighed_laws():
    method = mx.MonteCarlo(KEY, N, derivative="measure-valued")
    rates = jnp.array([1.0, 4.0])
    mean = lambda r: mx.Poisson(r).expect(lambda k: k * k, method=method).sum()  # λ + λ²
    np.testing.assert_allclose(jax.grad(mean)(rates), [3.0, 9.0], rtol=0.05)
    weighed = lambda r: (2.0 * mx.Poisson(r)).reweight(lambda k: 0.5**k).integrate(lambda k: 1.0, method=method).value
    value, slope = jax.value_and_grad(weighed)(1.5)  # 2 exp(−λ/2)
    np.testing.assert_allclose([value, slope], [2 * np.exp(-0.75), -np.exp(-0.75)], rtol=0.03)
    for P, how in ((mx.Normal(), {}), (mx.Poisson(1.0), {"baseline": True}), (mx.Poisson(1.0), {"antithetic": True})):
        with pytest.raises(ValueError, match="one law on the integers"):
            P.expect(lambda k: k, method=mx.MonteCarlo(KEY, 10, derivative="measure-valued", **how))
    with pytest.raises(ValueError, match='None, "pathwise" or "score"'):
        mx.QuasiMonteCarlo(KEY, 64, derivative="measure-valued")


@pytest.mark.parametrize("name", ["Normal", "Poisson", "product", "restricted"])
def test_baseline(name):
    """As far off in the mean, 0, and of a tenth of the variance, where f is far from 0."""
    P, f, expected = {
        "Normal": (lambda a: mx.Normal(a, 1.0), lambda x: x**2 + 20, 2 * 1.1),
        "Poisson": (lambda a: mx.Poisson(2 * a), lambda k: k + 20.0, 2.0),
        "product": (lambda a: mx.product(mx.Normal(a, 1.0), mx.Poisson(a)), lambda x, k: x * k + 20.0, 2.2),
        "restricted": (
            lambda a: mx.Normal(a, 1.0).restrict(lambda x: x > 0),
            lambda x: 20.0 + 0 * x,
            20 * st.norm.pdf(1.1),
        ),
    }[name]
    by = lambda baseline: lambda key: mx.MonteCarlo(key, 64, derivative="score", baseline=baseline)
    (_, slope, _), (_, error, _), spread = of_keys(P, f, by(True))
    assert abs(slope - expected) < 5 * error
    without = of_keys(P, f, by(False))[2]
    assert spread < (0.5 if name == "restricted" else 0.1) * without
    if name == "Normal":
        with pytest.raises(ValueError, match="one of them"):
            P(1.0).expect(f, method=mx.MonteCarlo(KEY, 10, antithetic=True, baseline=True))
