"""Moments, quantiles and masses up to a point, against scipy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from jax import lax
from jax.scipy.special import ndtr

import measure_xent as mx

from .sweeps import sweep

LEVELS = np.array([1e-4, 0.05, 0.3, 0.5, 0.8, 0.999])
LAWS = {
    "normal": (mx.Normal(1.0, 2.0), st.norm(1, 2)),
    "laplace": (mx.Laplace(-1.0, 0.5), st.laplace(-1, 0.5)),
    "cauchy": (mx.Cauchy(0.5, 1.5), st.cauchy(0.5, 1.5)),
    "student": (mx.StudentT(5.0, 1.0, 2.0), st.t(5, 1, 2)),
    "uniform": (mx.Uniform(-1.0, 3.0), st.uniform(-1, 4)),
    "exponential": (mx.Exponential(2.0), st.expon(scale=0.5)),
    "gamma": (mx.Gamma(2.5, 3.0), st.gamma(2.5, scale=1 / 3)),
    "beta": (mx.Beta(2.0, 3.5), st.beta(2, 3.5)),
    "lognormal": (mx.LogNormal(0.3, 0.6), st.lognorm(0.6, scale=np.exp(0.3))),
    "truncated": (mx.truncate(mx.Normal(0.0, 1.0), -0.5, 2.0), st.truncnorm(-0.5, 2)),
    "restricted": (mx.Normal(0.0, 1.0).restrict(lambda x: x > 1), st.truncnorm(1, np.inf)),
    "tilted": (mx.Normal(0.0, 1.0).reweight(lambda x: 3 * jnp.exp(x)), st.norm(1, 1)),
    "seen through a map": (
        mx.pushforward(lambda x: 1 - 2 * x, mx.Exponential(1.0), inverse=lambda y: (1 - y) / 2),
        st.expon(loc=-1, scale=2),  # of −x
    ),
    "poisson": (mx.Poisson(7.5), st.poisson(7.5)),
    "geometric": (mx.Geometric(0.3), st.geom(0.3, loc=-1)),
    "binomial": (mx.Binomial(20, 0.3), st.binom(20, 0.3)),
    "die": (mx.DiscreteUniform(6), st.randint(0, 6)),
    "classes": (
        mx.Categorical(probs=jnp.array([0.2, 0.0, 0.5, 0.3])),
        st.rv_discrete(values=([0, 2, 3], [0.2, 0.5, 0.3])),
    ),
}


@sweep("name", LAWS, cost=0.1)
def test_against_scipy(name):
    P, theirs = LAWS[name]
    sign = -1 if name == "seen through a map" else 1
    u = LEVELS if sign > 0 else 1 - LEVELS
    x = sign * theirs.ppf(u)
    # What an adaptive integral, or a difference of two cdfs, says it is good for.
    loose = name in ("restricted", "tilted", "truncated")
    np.testing.assert_allclose(P.quantile(jnp.asarray(LEVELS)), x, rtol=3e-3 if loose else 3e-4, atol=3e-5)
    below, above = (theirs.cdf(x), theirs.sf(x)) if sign > 0 else (theirs.sf(-x), theirs.cdf(-x))
    rtol = 1e-3 if loose else 2e-5
    np.testing.assert_allclose(P.cdf(jnp.asarray(x, float)), below, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(P.survival(jnp.asarray(x, float)), above, rtol=rtol, atol=1e-6)
    mean, variance = (P.mean, P.variance) if name == "cauchy" else (sign * theirs.mean(), theirs.var())
    np.testing.assert_allclose([P.mean, P.variance, P.std], [mean, variance, np.sqrt(variance)], rtol=3e-5, atol=3e-7)
    np.testing.assert_allclose(P.median, P.quantile(0.5))
    np.testing.assert_allclose(P.interval(0.9), P.quantile(jnp.array([0.05, 0.95])), rtol=1e-6)
    if name == "cauchy":
        assert jnp.isnan(P.mean)
        assert jnp.isnan(P.variance)


rng = np.random.default_rng(0)
POINTS, WEIGHTS = rng.normal(size=101).astype(np.float32), rng.integers(4, size=101).astype(np.float32)


def test_samples_against_numpy():
    """Null atoms are nothing, whatever they hold; weights count."""
    points = np.where(WEIGHTS == 0, np.nan, POINTS)
    P, repeated = (
        mx.Empirical(jnp.asarray(points), weights=jnp.asarray(WEIGHTS)),
        np.repeat(POINTS, WEIGHTS.astype(int)),
    )
    u = np.linspace(0, 1, 37)
    ours = jax.jit(lambda P, u: P.quantile(u))(P, jnp.asarray(u))
    np.testing.assert_array_equal(ours, np.quantile(repeated, u.astype(np.float32), method="inverted_cdf"))
    x = np.concatenate([POINTS[:5], [-9, 0.0, 9]]).astype(np.float32)
    expected = (repeated <= x[:, None]).mean(-1)
    np.testing.assert_allclose(P.cdf(jnp.asarray(x)), expected, rtol=1e-6)
    np.testing.assert_allclose(P.survival(jnp.asarray(x)), 1 - expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose([P.mean, P.variance], [repeated.mean(), repeated.var()], rtol=1e-5)


def test_ties_are_where_the_weights_say():
    """Ten tenths: the sum of the first seven may be less than 0.7, and that of the last three more than 0.3."""
    P = mx.Discrete(jnp.arange(10), jnp.full(10, 0.1))
    u = jnp.arange(1, 11) / 10
    assert P.quantile(u).tolist() == list(range(10))
    assert P.quantile(0.0).item() == 0


def test_what_is_asked_is_of_the_distribution():
    """Mass does not matter, and of no mass there is nothing."""
    P = mx.Normal(1.0, 2.0) + mx.Atoms(jnp.array([0.0, 5.0]))
    for Q in (3.0 * P, P.normalize()):
        for name in ("mean", "variance", "median"):
            np.testing.assert_allclose(getattr(Q, name), getattr(P, name), rtol=1e-6)
        np.testing.assert_allclose(Q.cdf(0.3), P.cdf(0.3), rtol=1e-6)
    null = 0 * P
    assert [null.mean.item(), null.cdf(0.0).item(), null.survival(0.0).item()] == [0, 0, 0]
    assert jnp.isnan(null.quantile(0.5))
    assert jnp.isnan((P - 5 * mx.Dirac(0)).quantile(0.5))
    assert jnp.isnan(mx.Empirical(jnp.array([1.0, jnp.nan])).quantile(0.5))
    assert jnp.isnan(P.quantile(jnp.array([-0.1, 1.1, jnp.nan]))).all()
    np.testing.assert_array_equal(P.quantile(jnp.array([0.0, 1.0])), [-np.inf, np.inf])


def test_of_atoms_and_laws_at_once():
    """A jump of the cdf is a level, and so are both sides of it."""
    P = 0.5 * mx.Normal(0.0, 1.0) + 0.5 * mx.Dirac(1)
    u = np.array([0.2, 0.4, 0.43, 0.92, 0.95])
    expected = [st.norm.ppf(0.4), st.norm.ppf(0.8), 1, 1, st.norm.ppf(0.9)]
    np.testing.assert_allclose(P.quantile(jnp.asarray(u)), expected, rtol=1e-5)
    np.testing.assert_allclose(P.cdf(jnp.array([1 - 1e-6, 1.0])), [0.4206723, 0.9206723], rtol=1e-5)


def test_families_and_transformations():
    """A family is its members, and so is vmap."""
    loc, c = jnp.array([0.0, 5.0]), jnp.array([[0.3], [0.9], [0.5]])
    family = lambda loc, c: (
        c * mx.Normal(loc, 1.0) + (1 - c) * mx.Atoms(jnp.array([1.0, 2.0]), weights=jnp.array([0.5, 0.5]))
    )
    P = family(loc, c)
    assert P.shape == (3, 2)
    u = jnp.array([0.1, 0.6, 0.8, 0.95])[:, None, None]
    members = [[family(loc[j], c[i, 0]) for j in range(2)] for i in range(3)]
    each = lambda f: np.stack([np.stack([np.asarray(f(m)) for m in row], -1) for row in members], -2)
    of_vmap = jax.vmap(jax.vmap(family, (0, None)), (None, 0))(loc, c[:, 0])
    for f in (lambda P: P.mean, lambda P: P.variance, lambda P: P.median, lambda P: P.interval(0.5)[1]):
        np.testing.assert_allclose(f(P), each(f), rtol=1e-5)
        np.testing.assert_allclose(jax.vmap(jax.vmap(f))(of_vmap), each(f), rtol=1e-5)
    np.testing.assert_allclose(P.quantile(u), each(lambda m: m.quantile(u[:, 0, 0])), rtol=1e-5)
    np.testing.assert_allclose(P.cdf(u), each(lambda m: m.cdf(u[:, 0, 0])), rtol=1e-5)


@pytest.mark.long
def test_vectors_and_tuples():
    x = rng.normal(size=(50, 3)).astype(np.float32)
    w = rng.random(50).astype(np.float32)
    P = mx.Empirical(jnp.asarray(x), weights=jnp.asarray(w))
    mean, covariance = np.average(x, axis=0, weights=w), np.cov(x.T, aweights=w, ddof=0)
    np.testing.assert_allclose(P.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(P.covariance, covariance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(P.variance, np.diag(covariance), rtol=1e-5)
    pairs = mx.Empirical((jnp.asarray(x[:, 0]), jnp.asarray(x[:, 1:])), weights=jnp.asarray(w))
    first, rest = pairs.mean
    np.testing.assert_allclose([first, *rest], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pairs.covariance, covariance, rtol=1e-4, atol=1e-6)
    Q = mx.MultivariateNormal(jnp.array([1.0, 2.0]), jnp.array([[2.0, 0.5], [0.5, 1.0]]))
    mixture = 0.5 * Q + 0.5 * mx.MultivariateNormal(jnp.array([-1.0, 2.0]), jnp.array([[2.0, 0.5], [0.5, 1.0]]))
    np.testing.assert_allclose(mixture.mean, [0, 2], atol=1e-4)
    np.testing.assert_allclose(mixture.covariance, [[3, 0.5], [0.5, 1]], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(Q.covariance, [[2, 0.5], [0.5, 1]], rtol=1e-6)
    a = np.array([2.0, 3.0, 4.0])
    np.testing.assert_allclose(mx.Dirichlet(jnp.asarray(a)).covariance, st.dirichlet(a).cov(), rtol=1e-5)
    line = mx.joint(
        mx.Normal(0.0, 1.0), mx.Conditional(lambda x: mx.Normal(x**2, 1.0))
    )  # uncorrelated, and not independent
    np.testing.assert_allclose(line.covariance, [[1, 0], [0, 3]], rtol=1e-4, atol=1e-4)
    product = mx.product(mx.Normal(1.0, 1.0), mx.power(mx.Exponential(2.0), 2))
    np.testing.assert_allclose(product.mean, [1, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(product.covariance, np.diag([1, 0.25, 0.25]), rtol=1e-6)
    for P in (Q, product, line):
        with pytest.raises(NotImplementedError, match="no numbers"):
            P.quantile(0.5)


# Measures of a parameter, and their cdfs in closed form.
MOVED = {
    "a mixture": (
        lambda t: t * mx.Normal(t, 1.0) + (1 - t) * mx.Normal(1.0, 2 * t),
        lambda t, x: t * ndtr(x - t) + (1 - t) * ndtr((x - 1) / (2 * t)),
    ),
    "truncated": (
        lambda t: mx.truncate(mx.Normal(t, 1.0), t / 4, 2.0),
        lambda t, x: (ndtr(x - t) - ndtr(-t * 3 / 4)) / (ndtr(2 - t) - ndtr(-t * 3 / 4)),
    ),
    "seen through a map": (
        lambda t: mx.pushforward(lambda x: jnp.exp(-t * x), mx.Normal(t, 1.0), inverse=lambda y: -jnp.log(y) / t),
        lambda t, x: 1 - ndtr(-jnp.log(x) / t - t),
    ),
    "reweighted": (
        lambda t: mx.Normal(t, 1.0).reweight(lambda x: jnp.exp(-t * x * x)),
        lambda t, x: ndtr((x - t / (1 + 2 * t)) * jnp.sqrt(1 + 2 * t)),
    ),
}


@sweep("name", MOVED, cost=0.5)
@pytest.mark.long
def test_derivatives(name):
    """Of the cdf, in the point and in what the measure is made of, and of the quantile, to the second order."""
    with jax.enable_x64():
        family, cdf = MOVED[name]
        t, x = jnp.float64(0.6), jnp.float64(0.8)
        u = cdf(t, x)

        def quantile(t, u):  # Newton's from the known root: each step gives one order more
            start = x
            for _ in range(3):
                gap = cdf(t, start) - u
                start = start - gap / lax.stop_gradient(jax.grad(cdf, 1)(t, x))
            return start

        modes = [lambda f: f, lambda f: jax.grad(f, (0, 1)), lambda f: jax.jacfwd(jax.grad(f, (0, 1)), (0, 1))]
        modes += [lambda f: jax.jacrev(jax.jacfwd(f, (0, 1)), (0, 1))]
        for mode in modes:
            for ours, theirs, at in (
                (lambda t, x: family(t).cdf(x), cdf, (t, x)),
                (lambda t, x: -family(t).survival(x), lambda t, x: cdf(t, x) - 1, (t, x)),
                (lambda t, u: family(t).quantile(u), quantile, (t, u)),
            ):
                found, expected = (jax.tree.leaves(jax.jit(mode(f))(*at)) for f in (ours, theirs))
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_derivatives_of_atoms():
    """An atom takes its quantile along; weights do not move one; where nobody knows, the derivative is NaN."""
    x = jnp.array([3.0, 1.0, 2.0])
    move = jax.grad(lambda x: mx.Empirical(x).quantile(0.5))(x)
    np.testing.assert_array_equal(move, [0, 0, 1])
    assert (jax.grad(lambda w: mx.Atoms(x, weights=w).quantile(0.5))(jnp.ones(3)) == 0).all()
    cdf_in_weights = jax.grad(lambda w: mx.Atoms(x, weights=w).cdf(1.5))(jnp.ones(3))
    np.testing.assert_allclose(cdf_in_weights, [-1 / 9, 2 / 9, -1 / 9], rtol=1e-6)
    image = lambda t: mx.pushforward(lambda x: jnp.exp(t * x), mx.Normal(0.0, 1.0))
    assert jnp.isnan(jax.grad(lambda t: image(t).cdf(0.7))(1.0))
    assert jnp.isnan(jax.grad(lambda u: image(1.0).quantile(u))(0.4))
    np.testing.assert_allclose(image(1.0).quantile(0.4), st.lognorm(1).ppf(0.4), rtol=1e-4)


def test_half_precision_and_bad_arguments():
    P = mx.Empirical(jnp.arange(300, dtype=jnp.bfloat16))
    assert P.cdf(jnp.asarray(255.0)).dtype == jnp.float32
    assert P.mean.dtype == jnp.float32
    with pytest.raises(TypeError, match=r"quantile\(u\)"):
        P.quantile("a half")
    with pytest.raises(TypeError, match=r"cdf\(x\)"):
        P.cdf(None)


def test_what_is_shown():
    """``dir`` has what a user may ask, and what a measure of one's own adds."""

    @mx.pytree
    class Own(mx.Measure):
        n: int = mx.static()

        @property
        def shape(self):
            return ()

        def forms(self):
            return mx.DiscreteUniform(self.n).forms()

        def special(self):
            return 0

    for P in (mx.Normal(0.0, 1.0), 2 * mx.Dirac(0) + mx.Dirac(1), mx.Categorical(jnp.zeros(3)), Own(3)):
        shown = dir(P)
        assert {"expect", "integrate", "sample", "mean", "quantile", "normalize", "mass"} <= set(shown)
        assert not {"forms", "parts", "scaled_density", "mesh_axes", "transport", "log_density_of"} & set(shown) - {
            *vars(Own)
        }
        assert not any(name.startswith("_") for name in shown)
    assert {"loc", "scale"} <= set(dir(mx.Normal(0.0, 1.0)))
    assert {"n", "special"} <= set(dir(Own(3)))


def test_levels_that_are_none():
    """NaN, or −1 of integers; of 0 and 1 the ends of the support."""
    u = jnp.array([0.0, 1.0, -0.1, 1.1, jnp.nan])
    ends = {
        (-np.inf, np.inf): (mx.Normal(0.0, 1.0), mx.Cauchy(0.0, 1.0), mx.Laplace(), mx.StudentT(3.0)),
        (0, np.inf): (mx.Exponential(2.0), mx.Gamma(2.0, 1.0), mx.LogNormal(0.0, 1.0)),
        (1, 2): (mx.Uniform(1.0, 2.0), mx.Empirical(jnp.array([1.0, 2.0])), mx.truncate(mx.Normal(0.0, 1.0), 1.0, 2.0)),
    }
    for both, measures in ends.items():
        for P in measures:
            np.testing.assert_allclose(P.quantile(u), [*both, np.nan, np.nan, np.nan], rtol=1e-6)
    for P in (mx.Binomial(5, 0.3), mx.Empirical(jnp.array([5, 0, 2])), mx.Categorical(jnp.zeros(6))):
        assert P.quantile(u).tolist() == [0, 5, -1, -1, -1]
    assert mx.Poisson(3.0).quantile(u)[2:].tolist() == [-1, -1, -1]
    assert mx.Empirical(jnp.array([16777217, 16777219, 5])).quantile(1.0).item() == 16777219  # no float32
    assert jnp.isnan(mx.Empirical(jnp.array([1.0, 2.0])).cdf(jnp.nan))


def test_points_and_families_broadcast():
    """A family with an axis of size 1, and places or levels with more of that axis."""
    family = jax.vmap(jax.vmap(mx.Empirical))(jnp.array([[[0.0, 1.0]], [[10.0, 11.0]]]))
    np.testing.assert_allclose(family.cdf(jnp.array([[0.5] * 3, [10.5] * 3])), 0.5)
    found = family.quantile(jnp.array([[0.25, 0.75, 0.25]] * 2))
    np.testing.assert_array_equal(found, [[0, 1, 0], [10, 11, 10]])
    mixed = 0.5 * mx.Normal(jnp.array([[0.0], [10.0]]), 1.0) + 0.5 * family
    expected = [st.norm.ppf(0.2), 0, 1]
    np.testing.assert_allclose(
        mixed.quantile(jnp.array([[0.1, 0.4, 0.9]] * 2)) - jnp.array([[0], [10]]), [expected] * 2, atol=1e-5
    )


def test_atoms_of_maps_and_of_counts():
    """A falling map takes what is from x on to what is up to its image; a count's atom stays where it is."""
    P = mx.pushforward(lambda x: -x, 0.5 * mx.Dirac(1.0) + 0.5 * mx.Normal(0.0, 1.0), inverse=lambda y: -y)
    np.testing.assert_allclose([P.cdf(-1.0), P.survival(-1.0)], [0.5793276, 0.4206724], rtol=1e-5)
    counts = mx.pushforward(lambda k: -k, mx.Poisson(2.0), inverse=lambda y: -y)
    at = np.array([-3.0, -2.0, 0.0])
    np.testing.assert_allclose(counts.cdf(jnp.asarray(at)), st.poisson.sf(-at - 1, 2), rtol=1e-5)
    assert counts.quantile(jnp.array([0.2, 0.5])).tolist() == [-3, -2]
    mixture = lambda r: 0.5 * mx.Poisson(r) + 0.5 * mx.Normal(0.0, 1.0)
    value, slopes = jax.value_and_grad(lambda r, u: mixture(r).quantile(u), (0, 1))(2.0, 0.3)
    assert (value, *slopes) == (0, 0, 0)
    assert jax.grad(lambda x: mx.Empirical(x).std)(jnp.array([2.0])) == 0


def mixtures_by_bind():
    w, loc, scale = jnp.array([0.3, 0.7]), jnp.array([-2.0, 1.0]), jnp.array([0.5, 1.0])
    K = mx.Conditional(lambda i: mx.Normal(loc[i], scale[i]))
    P = mx.Categorical(probs=w)
    of_means = mx.Conditional(lambda x: mx.Normal(x, jnp.where(x > 0, 1.0, 0.5)))
    return {
        "family": mx.bind(P, mx.Normal(loc, scale)),
        "conditional": mx.bind(P, K),
        "marginal": mx.marginal(mx.joint(P, K), 1),
        "samples": mx.bind(mx.Empirical(jnp.array([-2.0, 1.0, jnp.nan]), weights=jnp.array([3.0, 7.0, 0.0])), of_means),
    }


@sweep("name", ["family", "conditional", "marginal", "samples"], cost=0.5)
def test_mixtures_by_bind(name):
    """As the sum of its parts, in everything that is asked of it; a distance; the derivative of a quantile."""
    exact, P = 0.3 * mx.Normal(-2.0, 0.5) + 0.7 * mx.Normal(1.0, 1.0), mixtures_by_bind()[name]
    x, u = jnp.array([-3.0, 0.0, 1.0, 7.0]), jnp.array([0.0, 1e-4, 0.05, 0.5, 0.95, 1.0])

    @jax.jit
    def asked(P):
        W = mx.wasserstein(P, mx.Normal(0.0, 1.0))
        return P.mean, P.std, P.median, P.cdf(x), P.survival(x), P.quantile(u), P.interval(0.9), W

    for ours, expected in zip(jax.tree.leaves(asked(P)), jax.tree.leaves(asked(exact)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.long
def test_mixtures_by_bind_of_other_kinds():
    """Of counts, with atoms, a family, over a law; a quantile's derivative; their pictures."""
    w = jnp.array([0.3, 0.7])
    counts = mx.bind(mx.Categorical(probs=w), mx.Conditional(lambda i: mx.Poisson(3.0 * i + 1)))
    of_sum = 0.3 * mx.Poisson(1.0) + 0.7 * mx.Poisson(4.0)
    k, u = jnp.array([-1, 0, 3, 9]), jnp.array([0.0, 0.1, 0.5, 0.9])
    np.testing.assert_allclose(counts.cdf(k), of_sum.cdf(k), rtol=1e-5)
    np.testing.assert_array_equal(counts.quantile(u), of_sum.quantile(u))
    atoms = mx.bind(
        mx.Categorical(probs=w), mx.Conditional(lambda i: 0.5 * mx.Dirac(1.0 * i) + 0.5 * mx.Normal(0.0, 1.0))
    )
    np.testing.assert_allclose(atoms.cdf(jnp.array([-1e-3, 0.0])), [0.2498, 0.4], atol=1e-5)
    family = mx.bind(mx.Categorical(probs=jnp.array([[0.3, 0.7], [0.5, 0.5]])), mx.Normal(jnp.array([-2.0, 1.0]), 1.0))
    one = lambda p: (p * mx.Normal(-2.0, 1.0) + (1 - p) * mx.Normal(1.0, 1.0)).median
    np.testing.assert_allclose(family.median, [one(0.3), one(0.5)], rtol=1e-5, atol=1e-6)
    noisy = mx.bind(mx.Normal(0.0, 1.0), mx.Conditional(lambda x: mx.Normal(x, 1.0)))
    np.testing.assert_allclose(noisy.cdf(jnp.array([0.0, 1.0])), st.norm(0, 2**0.5).cdf([0, 1]), rtol=1e-5)
    np.testing.assert_allclose(noisy.survival(6.0), st.norm(0, 2**0.5).sf(6), rtol=1e-4)
    slope = jax.grad(lambda m: mx.bind(mx.Categorical(probs=w), mx.Normal(jnp.stack([m, 1.0]), 1.0)).quantile(0.3))(
        -2.0
    )
    expected = jax.grad(lambda m: (0.3 * mx.Normal(m, 1.0) + 0.7 * mx.Normal(1.0, 1.0)).quantile(0.3))(-2.0)
    np.testing.assert_allclose(slope, expected, rtol=1e-4)
    for P in (counts, atoms, family, noisy):
        assert "<svg" in P._repr_mimebundle_()["text/html"]
