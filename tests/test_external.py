"""Distributions of numpyro, distrax and TFP as measures; our numbers and gradients beside theirs, scipy's and efax's.

Of the peers, numpyro comes with the ``test`` extra, and TFP, of which no release works with new JAX, with ``dev``. distrax asks
for such a release, efax for Python 3.12: they are tested where they are installed.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import measure_xent as mx

from .sweeps import sweep


def module(name):
    """The module, or a skip where it is not installed, or not with a JAX that it can work with."""
    try:
        return importlib.import_module(name)
    except (ImportError, AttributeError) as error:
        pytest.skip(f"{name}: {error}")


@pytest.fixture
def numpyro():
    return module("numpyro.distributions")


@pytest.fixture
def tfp():
    return module("tensorflow_probability.substrates.jax").distributions


# Ours, and the same in the words of others; random parameters a, b > 0 and a location c.
FAMILIES = {
    "Normal": (lambda a, b, c: mx.Normal(c, a), lambda d, a, b, c: d.Normal(c, a)),
    "Laplace": (lambda a, b, c: mx.Laplace(c, a), lambda d, a, b, c: d.Laplace(c, a)),
    "Exponential": (lambda a, b, c: mx.Exponential(a), lambda d, a, b, c: d.Exponential(a)),
    "Gamma": (lambda a, b, c: mx.Gamma(a, b), lambda d, a, b, c: d.Gamma(a, b)),
    "Beta": (lambda a, b, c: mx.Beta(a, b), lambda d, a, b, c: d.Beta(a, b)),
    "Uniform": (lambda a, b, c: mx.Uniform(c, c + a), lambda d, a, b, c: d.Uniform(c, c + a)),
    "Cauchy": (lambda a, b, c: mx.Cauchy(c, a), lambda d, a, b, c: d.Cauchy(c, a)),
    "StudentT": (lambda a, b, c: mx.StudentT(a, c, b), lambda d, a, b, c: d.StudentT(a, c, b)),
    "LogNormal": (lambda a, b, c: mx.LogNormal(c, a), lambda d, a, b, c: d.LogNormal(c, a)),
    "Dirichlet": (
        lambda a, b, c: mx.Dirichlet(jnp.stack([a, b, a + b], -1)),
        lambda d, a, b, c: d.Dirichlet(jnp.stack([a, b, a + b], -1)),
    ),
}


@pytest.mark.slow("a program a distribution, ours and theirs")
@sweep("name", FAMILIES)
def test_densities_entropies_and_gradients(name, numpyro, tfp):
    """On random parameters, against TFP's entropy and numpyro's log_prob, with gradients; and taken from both packages."""
    ours, theirs = FAMILIES[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        a, b, c = (jnp.asarray(np.exp(rng.uniform(-0.5, 1.5, 6))) for _ in range(3))
        arguments, P, d = (a, b, c), ours(a, b, c), theirs(numpyro, a, b, c)
        x = d.sample(jax.random.key(0))
        loss = lambda what: jax.value_and_grad(lambda args: what(*args).sum(), allow_int=True)(arguments)
        got = loss(lambda *args: mx.log(ours(*args))(x))
        expected = loss(lambda *args: theirs(numpyro, *args).log_prob(x))
        jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-6, atol=1e-7), got, expected)
        got = loss(lambda *args: mx.entropy(ours(*args)))
        expected = loss(lambda *args: theirs(tfp, *args).entropy())
        # betaln, which TFP's entropy of a t distribution has, is good to 1e-7; quadrature to 1.5e-8 of ∫ |p log p|.
        jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=2e-6, atol=1e-6), got, expected)
        for package in (numpyro, tfp):
            taken = mx.from_distribution(theirs(package, a, b, c))
            assert type(taken) is type(P)
            assert taken.shape == (6,)
            np.testing.assert_allclose(mx.log(taken)(x), mx.log(P)(x), rtol=1e-9)


@pytest.mark.slow("a program a distribution, ours and theirs")
def test_divergences_against_theirs(numpyro, tfp):
    """KL of pairs that TFP or numpyro have closed forms for, and gradients."""
    pairs = {
        "Normal": lambda d, a, b: d.Normal(a, b),
        "Gamma": lambda d, a, b: d.Gamma(a, b),
        "Beta": lambda d, a, b: d.Beta(a, b),
        "Exponential": lambda d, a, b: d.Exponential(a * b),
        "Laplace": lambda d, a, b: d.Laplace(a, b),
    }
    with jax.enable_x64(True):
        one, two = (
            (jnp.asarray([1.3, 0.7]), jnp.asarray([0.9, 2.1])),
            (jnp.asarray([0.4, 1.9]), jnp.asarray([1.1, 0.6])),
        )
        for name, make in pairs.items():
            ours = lambda p, q, make=make: mx.kl_divergence(make(mx, *p), make(mx, *q)).sum()
            theirs = lambda p, q, make=make: make(tfp, *p).kl_divergence(make(tfp, *q)).sum()
            got, expected = (jax.value_and_grad(f, (0, 1))(one, two) for f in (ours, theirs))
            jax.tree.map(lambda u, v, n=name: np.testing.assert_allclose(u, v, rtol=2e-6, err_msg=n), got, expected)


@pytest.mark.slow("a program a distribution, ours and theirs")
def test_numpyro_measures(numpyro):
    """Families of ours, independent ones, batches; others by log_prob and sampler, on their support; what cannot be is said."""
    d, take = numpyro, mx.from_distribution
    assert isinstance(take(d.Categorical(logits=jnp.arange(3.0))), mx.Categorical)
    assert isinstance(take(d.Bernoulli(probs=0.3)), mx.Bernoulli)
    for given, expected in (
        (d.Gumbel(0.5, 2.0), np.log(2) + np.euler_gamma + 1),
        (d.Weibull(1.0, 2.0), 0.595461),
        (d.HalfNormal(2.0), 0.5 * np.log(np.pi * 4 / 2) + 0.5),
        (d.TruncatedNormal(0.0, 1.0, low=0.0), 0.5 * np.log(np.pi / 2) + 0.5),
        (d.Geometric(0.3), d.Geometric(0.3).entropy()),
        (d.NegativeBinomial2(2.0, 3.0), 1.847332),
        (d.Binomial(5, 0.3), 1.413615),
        (d.Normal(0.0, jnp.ones(3)).to_event(1), 3 * 1.4189385),
        (d.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), 2 * 1.4189385),
    ):
        np.testing.assert_allclose(mx.entropy(take(given)), expected, rtol=3e-5)
    family = take(d.Gumbel(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0])))
    np.testing.assert_allclose(mx.entropy(family), [np.euler_gamma + 1, np.log(2) + np.euler_gamma + 1], rtol=3e-5)
    # Exponential's log_prob off its support is a number; the measure's is not.
    assert mx.log(take(d.Weibull(1.0, 2.0)))(-1.0) == -jnp.inf
    mixed = 0.5 * mx.Dirac(0.0) + 0.5 * take(d.Gumbel(0.0, 1.0))
    np.testing.assert_allclose(mixed.expect(lambda x: x), np.euler_gamma / 2, rtol=1e-4)
    with pytest.raises(TypeError, match="with log_prob and sample, got float"):
        take(1.0)
    with pytest.raises(NotImplementedError, match="points of shape"):
        take(d.Wishart(3.0, jnp.eye(2)))
    slope = jax.grad(lambda s: take(d.Gumbel(0.0, s)).expect(lambda x: x))(2.0)
    np.testing.assert_allclose(slope, np.euler_gamma, rtol=1e-3)
    total = take(d.Gumbel(0.0, 1.0)).integrate(jnp.sin, method=mx.MonteCarlo(jax.random.key(0), 20_000))
    np.testing.assert_allclose(total.value, take(d.Gumbel(0.0, 1.0)).expect(jnp.sin), atol=4 * total.error)


@pytest.mark.slow("a program a distribution, ours and theirs")
def test_tfp_measures(tfp):
    for given in (tfp.Gumbel(0.5, 2.0), tfp.Weibull(2.0, 1.5), tfp.Logistic(0.3, 0.7)):
        np.testing.assert_allclose(mx.entropy(mx.from_distribution(given)), given.entropy(), rtol=3e-5)
    for given in (
        tfp.Bernoulli(logits=1.0),
        tfp.Geometric(probs=0.3),
        tfp.MultivariateNormalTriL(jnp.zeros(2), jnp.eye(2)),
        tfp.Independent(tfp.Normal(jnp.zeros(3), 2.0), 1),
    ):
        np.testing.assert_allclose(mx.entropy(mx.from_distribution(given)), given.entropy(), rtol=1e-5)
    counts = mx.from_distribution(tfp.NegativeBinomial(3.0, probs=0.4))
    np.testing.assert_allclose(counts.expect(lambda k: k), 2.0, rtol=1e-4)


@pytest.mark.slow("a program a distribution, ours and theirs")
def test_distrax_measures():
    distrax = module("distrax")
    for given in (
        distrax.Gumbel(0.5, 2.0),
        distrax.Logistic(0.3, 0.7),
        distrax.Normal(0.3, jnp.array([1.0, 2.0])),
        distrax.Gamma(2.0, 3.0),
        distrax.Categorical(probs=jnp.array([0.2, 0.8])),
        distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)),
    ):
        np.testing.assert_allclose(mx.entropy(mx.from_distribution(given)), given.entropy(), rtol=3e-5)
    kl = distrax.Gamma(2.0, 3.0).kl_divergence(distrax.Gamma(1.0, 2.0))
    np.testing.assert_allclose(mx.kl_divergence(mx.Gamma(2.0, 3.0), mx.Gamma(1.0, 2.0)), kl, rtol=1e-5)


def vector_laws(package):
    """Laws of vectors that are no product: (density, lattice), as each library has them."""
    d = module({"tfp": "tensorflow_probability.substrates.jax"}.get(package, package))
    d = getattr(d, "distributions", d)
    loc, diagonal, factor, p = jnp.zeros(3), jnp.ones(3), jnp.full((3, 1), 0.5), jnp.array([0.2, 0.3, 0.5])
    if package == "numpyro":
        return d.LowRankMultivariateNormal(loc, factor, diagonal), d.Multinomial(4, probs=p)
    low_rank = d.MultivariateNormalDiagPlusLowRank
    if package == "tfp":
        return low_rank(loc, diagonal, factor), d.Multinomial(4.0, probs=p)
    return low_rank(loc, diagonal, factor, factor), d.Multinomial(4, probs=p)


@pytest.mark.slow("a program a distribution, ours and theirs")
@pytest.mark.parametrize("package", ["numpyro", "tfp", "distrax"])
def test_vectors_and_lattices(package):
    """A low rank is a MultivariateNormal; a lattice has masses and no density; without a method, the error names one."""
    normal, multinomial = vector_laws(package)
    low_rank = np.eye(3) + 0.25  # numpyro's covariance; the others' scale
    covariance = low_rank if package == "numpyro" else low_rank @ low_rank
    expected = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    np.testing.assert_allclose(mx.entropy(mx.from_distribution(normal)), expected, rtol=1e-5)

    counts = mx.from_distribution(multinomial)
    method = mx.MonteCarlo(jax.random.key(0), 4000)
    for quadrature in (None, mx.Adaptive(), mx.Quadrature(16)):
        with pytest.raises(ValueError, match=r"vectors of Multinomial.*MonteCarlo"):
            counts.expect(jnp.sum, method=quadrature)
    np.testing.assert_allclose(counts.expect(lambda k: k, method=method), [0.8, 1.2, 2.0], atol=0.1)
    exact = stats.multinomial(4, [0.2, 0.3, 0.5]).entropy()
    np.testing.assert_allclose(-counts.expect(mx.log(counts), method=method), exact, atol=0.05)
    assert mx.log(counts)(jnp.array([0.5, 1.5, 2.0])) == -jnp.inf
    # Of what has masses against what has a density, either way, each is singular to the other.
    gauss = mx.MultivariateNormal(jnp.zeros(3), jnp.eye(3))
    assert counts.expect(mx.log(counts / gauss), method=method) == jnp.inf
    assert gauss.expect(mx.log(gauss / counts), method=method) == jnp.inf


@pytest.mark.long
def test_point_masses_and_classes_of_others(numpyro, tfp):
    """A Delta is a Dirac, of mass exp(log_density); what derives from a family that is ours is ours, without a mean too."""
    take = mx.from_distribution
    delta = take(numpyro.Delta(jnp.array([1.0, 3.0]), jnp.log(jnp.array([1.0, 0.5]))))
    np.testing.assert_allclose(delta.expect(lambda x: x), [1.0, 1.5], rtol=1e-6)
    np.testing.assert_allclose(mx.entropy(take(numpyro.Delta(1.0))), 0.0)
    vector = take(numpyro.Delta(jnp.array([[1.0, 3.0], [2.0, 5.0]]), event_dim=1))
    np.testing.assert_allclose(vector.expect(lambda x: x @ x), [10.0, 29.0])
    np.testing.assert_allclose(take(tfp.Deterministic(2.0)).expect(lambda x: x), 2.0)
    np.testing.assert_allclose(take(tfp.VectorDeterministic(jnp.array([1.0, 2.0]))).expect(lambda x: x), [1.0, 2.0])
    ordered = numpyro.OrderedLogistic(0.3, jnp.array([-1.0, 0.0, 1.0]))
    p = np.asarray(ordered.probs, np.float64)
    np.testing.assert_allclose(mx.entropy(take(ordered)), -np.sum(p * np.log(p)), rtol=1e-5)
    # Chi2 derives from Gamma; an inflated count is none of ours.
    np.testing.assert_allclose(mx.entropy(take(numpyro.Chi2(3.0))), stats.chi2(3).entropy(), rtol=1e-5)
    inflated = take(numpyro.ZeroInflatedPoisson(0.3, 2.0))
    np.testing.assert_allclose(inflated.expect(lambda k: k), 1.4, rtol=1e-5)


def test_efax():
    """Entropy and cross-entropy of natural families by moments, as efax has them."""
    efax = module("efax")
    p, q = efax.NormalNP(jnp.asarray(1.0), jnp.asarray(-0.5)), efax.NormalNP(jnp.asarray(0.3), jnp.asarray(-0.25))
    ours = [mx.Normal(m, s) for m, s in ((1.0, 1.0), (0.6, 2**0.5))]
    np.testing.assert_allclose(mx.entropy(ours[0]), p.entropy(), rtol=1e-5)
    np.testing.assert_allclose(mx.cross_entropy(*ours), p.to_exp().cross_entropy(q), rtol=1e-5)
    rates = efax.PoissonEP(jnp.asarray(3.0)), efax.PoissonEP(jnp.asarray(5.0))
    np.testing.assert_allclose(mx.kl_divergence(mx.Poisson(3.0), mx.Poisson(5.0)), 3 * np.log(3 / 5) + 2, rtol=1e-5)
    np.testing.assert_allclose(mx.Poisson(3.0).natural.parameters[0], rates[0].to_nat().log_mean, rtol=1e-5)
