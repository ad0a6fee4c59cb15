"""Methods as objects: nodes, draws, quasi-random points; their errors, and their estimators of derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx

from .sweeps import sweep

KEY = jax.random.key(0)
FINE = mx.Quadrature(48)
LAWS = {
    "Normal": lambda a: mx.Normal(a, 0.7),
    "Laplace": lambda a: mx.Laplace(a, 0.7),
    "Uniform": lambda a: mx.Uniform(-1.0, a + 1),
    "Exponential": lambda a: mx.Exponential(a + 1),
    "Gamma": lambda a: mx.Gamma(a + 1.5, 1.3),
    "Beta": lambda a: mx.Beta(a + 1.5, 2.2),
    "LogNormal": lambda a: mx.LogNormal(a, 0.4),
    "StudentT": lambda a: mx.StudentT(5.0, a, 0.7),
    "truncated": lambda a: mx.truncate(mx.Normal(a, 0.7), -1.0, 1.0),
    "Poisson": lambda a: mx.Poisson(a + 1.5),
    "Binomial": lambda a: mx.Binomial(7, 0.3 + a / 2),
    "Dirichlet": lambda a: mx.pushforward(
        lambda p: 3 * p[0], mx.Dirichlet(jnp.stack([a + 1, jnp.ones_like(a), 2 + 0 * a]))
    ),
    "joint": lambda a: mx.bind(mx.Normal(a, 0.5), mx.Conditional(lambda x: mx.Normal(jnp.sin(x), 0.3))),
    "spike and slab": lambda a: 0.3 * mx.Dirac(a) + 0.7 * mx.Normal(a, 0.6),
    "restricted": lambda a: mx.Normal(a, 0.7).restrict(lambda x: x > 0),
}


@pytest.mark.slow("every method on a law")
@sweep("name", LAWS, cost=3)
def test_methods_agree(name):
    """Value and derivative in the parameter: of nodes to rounding, of draws within 4 standard errors."""
    a, f = jnp.asarray(0.3), lambda x: jnp.sin(1.3 * x)
    step = name == "restricted"
    with jax.enable_x64(True):
        value_and_grad = lambda method: jax.jit(
            jax.value_and_grad(lambda a: LAWS[name](a).integrate(f, method=method).value)
        )(jnp.asarray(0.3, float))
        value, slope = value_and_grad(mx.Adaptive())
        if not step:
            # 49 nodes of tanh–sinh where there is no Gauss rule; the logarithm in a gamma law's score is no polynomial.
            near = {"StudentT": 2e-3, "truncated": 2e-3, "Gamma": 1e-4, "Beta": 1e-4, "Dirichlet": 1e-3}.get(name, 1e-6)
            np.testing.assert_allclose(value_and_grad(FINE), (value, slope), rtol=near, atol=near)
    methods = {
        "pathwise": mx.MonteCarlo(
            KEY, 20_000, derivative=None if name in ("Poisson", "Binomial", "restricted") else "pathwise"
        ),
        "quasi": mx.QuasiMonteCarlo(
            KEY, 2**13, derivative="score" if name in ("Beta", "Dirichlet", "StudentT") else None
        ),
        "score": mx.MonteCarlo(KEY, 20_000, derivative="score"),
    }
    for kind, method in methods.items():
        total = LAWS[name](a).integrate(f, method=method)
        assert abs(total.value - value) < 4.5 * total.error + 1e-5, kind
        assert 0 < total.error < 0.02
        pathwise_jump = step and kind != "score"  # restrict makes a jump, which pathwise does not see
        moving_end = name == "Uniform" and kind == "score"  # nor score a support that moves
        if not pathwise_jump and not moving_end:
            got = jax.grad(lambda a, m=method: LAWS[name](a).expect(f, method=m))(a)
            assert abs(got - slope) < 0.05, (kind, got, slope)


@pytest.mark.long
def test_variance_reduction():
    """Antithetic draws and a control have a smaller standard error, and a true one."""
    f, truth = lambda x: jnp.exp(0.5 * x), np.exp(0.125)
    plain = mx.Normal().integrate(f, method=mx.MonteCarlo(KEY, 10_000))
    for method in (mx.MonteCarlo(KEY, 10_000, antithetic=True), mx.MonteCarlo(KEY, 10_000, control=lambda x: x)):
        total = mx.Normal().integrate(f, method=method)
        assert total.error < 0.5 * plain.error
        assert abs(total.value - truth) < 4 * total.error


@pytest.mark.slow("thousands of estimates")
def test_standard_errors_are_what_they_say():
    """Over 200 keys, the true error is within two standard errors about as often as of a normal distribution."""
    P, f, truth = mx.Gamma(2.0, 1.0), jnp.sqrt, 1.329340
    for make in (lambda key: mx.MonteCarlo(key, 500), lambda key: mx.QuasiMonteCarlo(key, 512)):
        total = jax.vmap(lambda key, make=make: P.integrate(f, method=make(key)))(jax.random.split(KEY, 200))
        within = jnp.mean(jnp.abs(total.value - truth) < 2 * total.error)
        assert 0.88 < within < 0.99


@pytest.mark.slow("every method")
def test_families_and_dimensions():
    """Families of laws, families of functions, trees; more dimensions than quadrature without a method is for."""
    loc = jnp.array([0.0, 1.0])
    for method in (mx.Quadrature(16), mx.MonteCarlo(KEY, 40_000), mx.QuasiMonteCarlo(KEY, 2**14)):
        got = mx.Normal(loc, 1.0).expect(lambda x: {"x": x, "both": jnp.stack([x, x**2])}, method=method)
        np.testing.assert_allclose(got["both"], [[0, 1], [1, 2]], atol=0.04)
        np.testing.assert_allclose(got["x"], loc, atol=0.04)
        density = -mx.Normal().expect(mx.log(mx.Laplace(loc, 2.0)), method=method)
        np.testing.assert_allclose(density, mx.cross_entropy(mx.Normal(), mx.Laplace(loc, 2.0)), atol=0.02)
        five = mx.MultivariateNormal(jnp.arange(3.0), 2 * jnp.eye(3)).expect(lambda x: x @ x, method=method)
        np.testing.assert_allclose(five, 11, rtol=0.03)
    with pytest.raises(ValueError, match=r"3 dimensions.*method=QuasiMonteCarlo"):
        mx.power(mx.Normal(), 3).expect(lambda x, y, z: x * y * z)


def test_more_nodes_tell_more():
    """A fixed rule's error falls with its nodes, and covers the true one."""
    for P, truth in ((mx.Normal(0.0, 1.0), np.exp(-2)), (mx.Uniform(0.0, 3.0), np.sin(6) / 6)):
        few, many = (P.integrate(lambda x: jnp.cos(2 * x), method=mx.Quadrature(n)) for n in (8, 24))
        assert many.error < 0.1 * few.error
        assert abs(few.value - truth) <= few.error + 1e-6
        assert abs(many.value - truth) <= many.error + 1e-6


def test_errors():
    P = mx.Normal()
    with pytest.raises(TypeError, match=r"MonteCarlo\(key\): a jax.random.key"):
        mx.MonteCarlo(1000, 10)
    with pytest.raises(TypeError, match="key"):
        mx.MonteCarlo(samples=1000)
    with pytest.raises(ValueError, match=r"samples\): an int of at least 2, got 0"):
        mx.MonteCarlo(KEY, 0)
    with pytest.raises(ValueError, match='"pathwise", "score" or "measure-valued", got \'reparam\''):
        mx.MonteCarlo(KEY, 10, derivative="reparam")
    with pytest.raises(ValueError, match="Poisson is on the integers"):
        mx.Poisson(2.0).expect(jnp.sin, method=mx.MonteCarlo(KEY, 10, derivative="pathwise"))
    with pytest.raises(ValueError, match="restrict makes the integrand jump"):
        P.restrict(lambda x: x > 0).expect(jnp.sin, method=mx.MonteCarlo(KEY, 10, derivative="pathwise"))
    with pytest.raises(TypeError, match=r"expect\(method\): such as MonteCarlo\(key, n\)"):
        P.expect(jnp.sin, method="monte carlo")
    with pytest.raises(ValueError, match=r"Quadrature\(nodes\)"):
        mx.Quadrature(2)
    with pytest.raises(ValueError, match="has no samples"):
        mx.Lebesgue().expect(jnp.sin, method=mx.MonteCarlo(KEY, 10))
    with pytest.raises(ValueError, match="f must be scalar-valued"):
        P.reweight(lambda x: jnp.stack([x, x])).expect(jnp.sin)
    with pytest.raises(ValueError, match="batch_size"):
        mx.Atoms(jnp.arange(3.0)).expect(jnp.sin, batch_size=0)
    assert mx.Cauchy().integrate(lambda x: x, method=mx.MonteCarlo(KEY, 10_000)).status == 1


@pytest.mark.slow("an integral by each method, in batches")
def test_batches_keep_the_method_and_the_status():
    J = mx.joint(mx.Empirical(jnp.arange(5.0)), mx.Conditional(lambda x: mx.Cauchy(x, 1.0)))
    assert J.integrate(lambda x, y: y**2, batch_size=2).status > 0
    assert jnp.isnan(J.expect(lambda x, y: y**2, batch_size=2))
    f = lambda x, y: jnp.tanh(y - x) + x
    drawn = J.integrate(f, batch_size=2, method=mx.MonteCarlo(jax.random.key(0), 1000))
    assert drawn.status == 0
    assert 1e-3 < drawn.error < 0.1
    assert abs(drawn.value - 2) < 4 * drawn.error


def test_no_point_is_at_infinity(monkeypatch):
    """The last of float32's uniform numbers is less than 1, whatever the bits."""
    ones = lambda key, shape, dtype: jnp.full(shape, jnp.iinfo(dtype).max, dtype)
    monkeypatch.setattr(jax.random, "bits", ones)
    method = mx.QuasiMonteCarlo(jax.random.key(0), 64)
    with jax.disable_jit():
        mean = mx.Normal(0.0, 1.0).expect(lambda x: x, method=method)
    assert jnp.isfinite(mean)
