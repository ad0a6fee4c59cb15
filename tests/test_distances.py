"""Wasserstein's, energy and kernel distances, against scipy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import measure_xent as mx

from .sweeps import sweep

rng = np.random.default_rng(0)
X, Y = rng.normal(size=50).astype(np.float32), (1 + 2 * rng.normal(size=73)).astype(np.float32)
W, V = rng.random(50).astype(np.float32), rng.integers(3, size=73).astype(np.float32)
NULL = np.where(V == 0, np.nan, Y)  # null atoms are nothing


def samples(x=X, y=NULL, w=W, v=V):
    return mx.Empirical(jnp.asarray(x), weights=jnp.asarray(w)), mx.Atoms(jnp.asarray(y), weights=jnp.asarray(v))


def transport(x, y, w, v, p):
    """By float64's quantiles, on a fine grid of levels."""
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    at = lambda x, w: np.sort(x)[np.searchsorted(np.cumsum(w[np.argsort(x)]) / w.sum(), u)]
    return (np.abs(at(x, w.astype(float)) - at(y, v.astype(float))) ** p).mean() ** (1 / p)


def test_samples():
    P, Q = samples()
    np.testing.assert_allclose(mx.wasserstein(P, Q), st.wasserstein_distance(X, Y, W, V), rtol=1e-5)
    np.testing.assert_allclose(mx.energy_distance(P, Q), st.energy_distance(X, Y, W, V), rtol=1e-5)
    for p in (2, 3.5):
        np.testing.assert_allclose(mx.wasserstein(P, Q, p), transport(X, Y, W, V, p), rtol=1e-4)
    assert mx.wasserstein(P, P).item() == 0
    assert mx.energy_distance(P, 3 * P).item() < 1e-6  # of the distributions
    by_pairs = mx.maximum_mean_discrepancy(P, Q, lambda x, y: -jnp.abs(x - y))
    np.testing.assert_allclose(by_pairs, mx.energy_distance(P, Q), rtol=1e-4)


@sweep("name", ["wasserstein", "order 2", "energy"])
def test_gradients_of_samples(name):
    """In the points and in the weights, against float64's differences."""
    f = {
        "wasserstein": mx.wasserstein,
        "order 2": lambda P, Q: mx.wasserstein(P, Q, p=2),
        "energy": mx.energy_distance,
    }[name]
    with jax.enable_x64():
        x, y, w, v = (jnp.asarray(a, jnp.float64) for a in (X[:7], Y[:9], W[:7], 1 + V[:9]))
        loss = lambda x, y, w, v: f(*samples(x, y, w, v))
        gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(x, y, w, v)
        forward = jax.jacfwd(loss, (0, 1, 2, 3))(x, y, w, v)
        direction = [jnp.asarray(rng.normal(size=a.shape)) for a in (x, y, w, v)]
        moved = lambda t: loss(*(a + t * d for a, d in zip((x, y, w, v), direction, strict=True)))
        slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
        for found in (gradients, forward):
            np.testing.assert_allclose(
                sum(jnp.vdot(g, d) for g, d in zip(found, direction, strict=True)), slope, rtol=1e-6
            )


@pytest.mark.long
def test_laws():
    N = mx.Normal
    np.testing.assert_allclose(mx.wasserstein(N(0.0, 1.0), N(0.0, 2.0)), np.sqrt(2 / np.pi), rtol=1e-5)
    np.testing.assert_allclose(mx.wasserstein(N(0.0, 1.0), N(3.0, 5.0), p=2), 5, rtol=1e-5)
    np.testing.assert_allclose(
        mx.wasserstein(mx.Uniform(0.0, 1.0), mx.Uniform(2.0, 5.0), p=3), 30 ** (1 / 3), rtol=1e-4
    )
    # E|X − Y| of normals is √(2/π) of the deviation, about a mean of 0.
    energy = np.sqrt(2 / np.pi) * (2 * np.sqrt(1 + 4) - np.sqrt(2) - np.sqrt(8))
    np.testing.assert_allclose(mx.energy_distance(N(0.0, 1.0), N(0.0, 2.0)), np.sqrt(energy), rtol=1e-4)
    k = np.arange(80)
    F, G = st.poisson.cdf(k, 3), st.poisson.cdf(k, 5)
    np.testing.assert_allclose(mx.wasserstein(mx.Poisson(3.0), mx.Poisson(5.0)), np.abs(F - G).sum(), rtol=1e-4)
    cauchy = mx.Cauchy(0.0, 1.0), mx.Cauchy(1.0, 1.0)  # no mean, and a distance
    np.testing.assert_allclose(mx.wasserstein(*cauchy), 1, rtol=1e-4)
    np.testing.assert_allclose(mx.wasserstein(N(0.0, 1e-4), N(1e4, 1.0)), 1e4, rtol=1e-5)
    assert mx.energy_distance(N(0.0, 1.0), N(0.0, 1.0)).item() < 1e-5
    family = mx.wasserstein(N(jnp.arange(3.0), 1.0), N(3.0, 1.0))
    np.testing.assert_allclose(family, [3, 2, 1], rtol=1e-5)
    slope = jax.grad(lambda m: mx.wasserstein(N(m, 1.0), N(3.0, 2.0), p=2))(0.5)
    np.testing.assert_allclose(slope, -2.5 / np.sqrt(2.5**2 + 1), rtol=1e-4)


@pytest.mark.long
def test_a_sample_from_a_law():
    P, Q = mx.Empirical(jnp.asarray(X)), mx.Normal(0.0, 1.0)
    grid = np.linspace(-9, 9, 2_000_001)
    gap = np.searchsorted(np.sort(X), grid, side="right") / 50 - st.norm.cdf(grid)
    step = grid[1] - grid[0]
    np.testing.assert_allclose(mx.wasserstein(P, Q), np.abs(gap).sum() * step, rtol=1e-4)
    np.testing.assert_allclose(mx.energy_distance(P, Q), np.sqrt(2 * (gap**2).sum() * step), rtol=1e-4)
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    cost = (np.quantile(X, u, method="inverted_cdf") - st.norm.ppf(u)) ** 2
    np.testing.assert_allclose(mx.wasserstein(P, Q, p=2), np.sqrt(cost.mean()), rtol=1e-4)


def test_vectors():
    x, y = rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=(30, 3)).astype(np.float32)
    P, Q = mx.Empirical(jnp.asarray(x)), mx.Empirical(jnp.asarray(y))
    distance = lambda a, b: np.linalg.norm(a[:, None].astype(float) - b, axis=-1).mean()
    expected = 2 * distance(x, y) - distance(x, x) - distance(y, y)
    np.testing.assert_allclose(mx.energy_distance(P, Q), np.sqrt(expected), rtol=1e-4)
    assert jnp.isfinite(jax.grad(lambda x: mx.energy_distance(mx.Empirical(x), Q))(jnp.asarray(x))).all()
    k = lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2))
    gram = lambda a, b: np.exp(-((a[:, None].astype(float) - b) ** 2).sum(-1)).mean()
    expected = gram(x, x) + gram(y, y) - 2 * gram(x, y)
    np.testing.assert_allclose(mx.maximum_mean_discrepancy(P, Q, k, squared=True), expected, rtol=1e-4)
    assert mx.maximum_mean_discrepancy(P, P, k).item() < 1e-3
    assert jax.grad(lambda t: mx.maximum_mean_discrepancy(mx.Dirac(t), mx.Dirac(0.0), lambda x, y: x * y))(0.0) == 0


def test_null_atoms_have_a_derivative_in_their_weight():
    """That of an atom where they are; what they hold has none."""
    with jax.enable_x64():
        x, y, v = (jnp.asarray(a, jnp.float64) for a in (X[:6], Y[:5], 1 + V[:5]))
        x, w = x.at[2].set(4), jnp.asarray(W[:6], jnp.float64).at[2].set(0)
        for f in (
            mx.wasserstein,
            lambda P, Q: mx.wasserstein(P, Q, 2),
            lambda P, Q: mx.wasserstein(Q, P, 3),
            mx.energy_distance,
        ):
            loss = lambda w, x, f=f: f(*samples(x, y, w, v))
            slope = (loss(w.at[2].set(1e-7), x) - loss(w, x)) / 1e-7
            np.testing.assert_allclose(jax.grad(loss)(w, x)[2], slope, rtol=1e-5)
            for held in (jnp.nan, jnp.inf):
                np.testing.assert_allclose(loss(w, x.at[2].set(held)), loss(w, x), rtol=1e-12)
                assert jax.grad(loss, 1)(w, x.at[2].set(held))[2] == 0


def test_families():
    """Each member by itself, whatever the families."""
    points, weights = rng.normal(size=(3, 5)).astype(np.float32), rng.random((3, 5)).astype(np.float32)
    others, theirs = rng.normal(size=(4, 1, 7)).astype(np.float32), rng.random((4, 1, 7)).astype(np.float32)
    P, Q = mx.Discrete(jnp.asarray(points), jnp.asarray(weights)), mx.Discrete(jnp.asarray(others), jnp.asarray(theirs))
    for f, scipy in ((mx.wasserstein, st.wasserstein_distance), (mx.energy_distance, st.energy_distance)):
        found = f(P, Q)
        assert found.shape == (4, 3)
        expected = [[scipy(points[j], others[i, 0], weights[j], theirs[i, 0]) for j in range(3)] for i in range(4)]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert mx.wasserstein(P, Q, 2).shape == (4, 3)
    assert jnp.isnan(mx.wasserstein(0 * P, Q)).all()


def test_tuples_and_integers():
    pairs = [mx.product(mx.Dirac(0), mx.Dirac(y)) for y in (1, 4)]
    np.testing.assert_allclose(mx.energy_distance(*pairs), np.sqrt(2 * 3), rtol=1e-6)
    assert mx.maximum_mean_discrepancy(*pairs, lambda x, y: x[1] * y[1], squared=True).item() == 9
    far = [mx.Empirical(jnp.array([[x, 0]], jnp.int32)) for x in (50000, 0)]
    np.testing.assert_allclose(mx.energy_distance(*far), np.sqrt(1e5), rtol=1e-6)
    with pytest.raises(ValueError, match="one space"):
        mx.energy_distance(far[0], mx.Empirical(jnp.ones(2)))


def test_errors():
    P, Q = samples()
    for p in (0.5, float("inf"), True, "2"):
        with pytest.raises(ValueError, match=r"wasserstein\(p\)"):
            mx.wasserstein(P, Q, p=p)
    with pytest.raises(NotImplementedError, match="no numbers"):
        mx.wasserstein(P, mx.Empirical(jnp.ones((3, 2))))
    with pytest.raises(TypeError, match="must be a Measure"):
        mx.wasserstein(P, X)
    with pytest.raises(TypeError, match=r"maximum_mean_discrepancy\(k\)"):
        mx.maximum_mean_discrepancy(P, Q, 1.0)


@pytest.mark.long
def test_many_samples_against_a_law():
    """By one rule for all pieces, an outlier far from the law among them; the derivative in the law's place."""
    rng = np.random.default_rng(5)
    x = np.append(1.2 * rng.normal(size=300) + 0.3, 60.0)
    P = mx.Empirical(jnp.asarray(x, float))
    grid = np.linspace(-12, 70, 2_000_001)
    F, dx = np.searchsorted(np.sort(x), grid, side="right") / len(x), grid[1] - grid[0]
    first = lambda m: (np.abs(F - st.norm(m).cdf(grid)) * dx).sum()
    distance = jax.jit(jax.value_and_grad(lambda m: mx.wasserstein(P, mx.Normal(m, 1.0))))
    value, slope = distance(0.1)
    np.testing.assert_allclose(value, first(0.1), rtol=1e-5)
    np.testing.assert_allclose(slope, (first(0.101) - first(0.099)) / 2e-3, rtol=1e-3)
    energy = np.sqrt(2 * ((F - st.norm().cdf(grid)) ** 2).sum() * dx)
    np.testing.assert_allclose(mx.energy_distance(P, mx.Normal(0.0, 1.0)), energy, rtol=1e-5)
