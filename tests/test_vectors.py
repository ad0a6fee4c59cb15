"""Measures of vectors and tuples, Markov kernels that are not finite: against closed forms, numpy and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import measure_xent as mx
from measure_xent import log

N = mx.Normal
RNG = np.random.default_rng(0)
S = np.cov(RNG.normal(size=(3, 9)))
M = RNG.normal(size=3)


def test_multivariate_normal():
    """Density, entropy, KL in all three parametrisations, families, derivatives; diagonal ones are independent normals."""
    x = RNG.normal(size=(5, 3))
    with jax.enable_x64(True):
        for P in (
            mx.MultivariateNormal(M, S),
            mx.MultivariateNormal(M, precision_matrix=np.linalg.inv(S)),
            mx.MultivariateNormal(M, scale_tril=np.linalg.cholesky(S)),
        ):
            np.testing.assert_allclose(log(P)(x), stats.multivariate_normal(M, S).logpdf(x), rtol=1e-9)
            np.testing.assert_allclose(mx.entropy(P), stats.multivariate_normal(M, S).entropy(), rtol=1e-9)
        scale = np.array([0.5, 1.0, 2.0])
        P, Q = mx.MultivariateNormal(M, S), mx.independent(N(np.zeros(3), scale))
        inverse = np.diag(scale**-2.0)
        expected = (np.trace(inverse @ S) + M @ inverse @ M - 3 + 2 * np.log(scale).sum() - np.linalg.slogdet(S)[1]) / 2
        np.testing.assert_allclose(mx.kl_divergence(P, Q), expected, rtol=1e-9)
        family = mx.MultivariateNormal(jnp.stack([jnp.zeros(3), jnp.asarray(M)]), S)
        np.testing.assert_allclose(mx.kl_divergence(family, Q)[1], expected, rtol=1e-9)
        np.testing.assert_allclose(mx.kl_divergence(Q, Q), 0, atol=1e-12)
        slope = jax.grad(lambda m: mx.kl_divergence(mx.MultivariateNormal(m, S), Q))(jnp.asarray(M))
        np.testing.assert_allclose(slope, inverse @ M, rtol=1e-9)
        draws = P.sample(jax.random.key(0), (20_000,))
        np.testing.assert_allclose(jnp.cov(draws.T), S, atol=0.06 * np.abs(S).max())
        two = mx.MultivariateNormal(M[:2], S[:2, :2])
        np.testing.assert_allclose(
            two.expect(lambda x: jnp.outer(x, x), method=mx.Quadrature(8)),
            S[:2, :2] + np.outer(M[:2], M[:2]),
            rtol=1e-7,
        )


@pytest.mark.slow("iterated integrals with gradients")
def test_dirichlet():
    a, b = np.array([1.5, 2.5, 3.0]), np.array([2.0, 1.0, 0.7])
    with jax.enable_x64(True):
        P, Q = mx.Dirichlet(a), mx.Dirichlet(b)
        p = np.array([0.2, 0.3, 0.5])
        np.testing.assert_allclose(log(P)(p), stats.dirichlet(a).logpdf(p), rtol=1e-9)
        np.testing.assert_allclose(mx.entropy(P), stats.dirichlet(a).entropy(), rtol=1e-9)
        closed = mx.kl_divergence(P, Q)
        by_nodes = P.expect(lambda p: (log(P)(p) - log(Q)(p), p), method=mx.Quadrature(48))
        np.testing.assert_allclose(by_nodes[0], closed, rtol=1e-2)  # logarithms are no polynomials
        np.testing.assert_allclose(by_nodes[1], a / a.sum(), rtol=1e-7)


@pytest.mark.slow("iterated integrals with gradients")
def test_independent_and_power():
    box = mx.independent(mx.Lebesgue(0.0, jnp.array([1.0, 2.0])))
    np.testing.assert_allclose((box.mass, box.expect(lambda x: x[0] * x[1])), (2, 1), rtol=1e-5)
    plane = mx.power(mx.Lebesgue(), 2)
    np.testing.assert_allclose(plane.expect(lambda x, y: jnp.exp(-(x**2) - y**2)), np.pi, rtol=1e-4)
    counts = mx.independent(mx.Poisson(jnp.array([1.0, 2.0])))
    np.testing.assert_allclose(
        mx.kl_divergence(counts, mx.independent(mx.Poisson(jnp.ones(2)))), 2 * np.log(2) - 1, rtol=1e-5
    )
    pair = mx.power(N(1.0, 2.0), 2)
    np.testing.assert_allclose(mx.entropy(pair), 2 * mx.entropy(N(1.0, 2.0)), rtol=1e-6)


@pytest.mark.slow("iterated integrals")
def test_products_of_mixed_kinds():
    spike, plane = mx.product(mx.Dirac(0.0), N(0.0, 1.0)), mx.product(N(0.0, 1.0), N(0.0, 1.0))
    assert mx.kl_divergence(spike, plane) == np.inf
    np.testing.assert_allclose(mx.kl_divergence(plane, plane), 0, atol=1e-6)
    P = mx.product(N(1.0, 1.0), mx.DiscreteUniform(3))
    Q = mx.product(N(0.0, 1.0), mx.Categorical(jnp.arange(3.0)))
    parts = mx.kl_divergence(N(1.0, 1.0), N(0.0, 1.0)) + mx.kl_divergence(
        mx.DiscreteUniform(3), mx.Categorical(jnp.arange(3.0))
    )
    np.testing.assert_allclose(mx.kl_divergence(P, Q), parts, rtol=1e-5)
    np.testing.assert_allclose(mx.marginal(P, 1).expect(lambda k: k), 1, rtol=1e-6)
    np.testing.assert_allclose(mx.marginal(P, 0).expect(lambda x: x**2), 2, rtol=1e-5)
    with pytest.raises(ValueError, match="P's 2 coordinates"):
        mx.marginal(P, 2)


@pytest.mark.slow("iterated integrals with gradients")
def test_kernels():
    """joint, bind, mixtures, spike-and-slab kernels, and the tower on the line."""
    K = mx.Conditional(lambda x: N(jnp.sin(x), 0.5))
    mixture = mx.bind(mx.Empirical(jnp.array([0.0, 5.0, 9.0]), weights=jnp.array([1.0, 3.0, 0.0])), K)
    by_hand = 0.25 * N(0.0, 0.5) + 0.75 * N(jnp.sin(5.0), 0.5)
    np.testing.assert_allclose(mx.entropy(mixture), mx.entropy(by_hand), rtol=1e-5)
    np.testing.assert_allclose(log(mixture)(jnp.array([0.3, 40.0])), log(by_hand)(jnp.array([0.3, 40.0])), rtol=1e-5)
    J = mx.joint(N(0.0, 1.0), mx.Conditional(lambda x: N(x, 1.0)))
    other = mx.joint(N(1.0, 1.0), mx.Conditional(lambda x: N(x, 2.0)))
    np.testing.assert_allclose(mx.kl_divergence(J, other), 0.5 + mx.kl_divergence(N(0.0, 1.0), N(0.0, 2.0)), rtol=1e-5)
    slope = jax.grad(lambda s: mx.joint(N(0.0, s), mx.Conditional(lambda x: N(x, 1.0))).expect(lambda x, y: y**2))(1.5)
    np.testing.assert_allclose(slope, 3.0, rtol=1e-4)
    labels = mx.joint(N(0.0, 1.0), mx.Conditional(lambda x: mx.Categorical(jnp.stack([x, 0 * x, -x]))))
    np.testing.assert_allclose(labels.expect(lambda x, y: y), 1, rtol=1e-5)
    np.testing.assert_allclose(
        mx.cross_entropy(labels, labels.K), mx.entropy(labels) - mx.entropy(N(0.0, 1.0)), rtol=1e-5
    )


@pytest.mark.slow("iterated integrals with gradients")
def test_bayes():
    """Posteriors on finite spaces to rounding, also where likelihoods underflow; on the line; composition."""
    prior = mx.Categorical(probs=jnp.array([0.5, 0.3, 0.2]))
    K = mx.Conditional(lambda k: N(3.0 * k, 1.0))
    for y in (1.0, 200.0):
        weights = np.log([0.5, 0.3, 0.2]) + stats.norm(3.0 * np.arange(3), 1).logpdf(y)
        got = jnp.exp(jax.vmap(log(mx.posterior(prior, K)(y)))(jnp.arange(3)))
        np.testing.assert_allclose(got, np.exp(weights - np.logaddexp.reduce(weights)), rtol=1e-4, atol=1e-30)
    line = mx.posterior(N(0.0, 2.0), mx.Conditional(lambda x: N(x, 1.0)))(5.0)
    np.testing.assert_allclose(line.expect(lambda x: jnp.stack([x, (x - 4) ** 2])), [4, 0.8], rtol=1e-4)
    flip = mx.Conditional(lambda bit: mx.Bernoulli(probs=jnp.where(bit == 1, 0.9, 0.2)))
    np.testing.assert_allclose(mx.compose(flip, flip)(1).expect(lambda bit: bit), 0.9 * 0.9 + 0.1 * 0.2, rtol=1e-6)


def test_linear_normal():
    """bind, posterior, compose in closed form: p(x) k(y|x) = p(y) k'(x|y), and what composing two does one by one."""
    with jax.enable_x64(True):
        W, V = RNG.normal(size=(3, 2)), RNG.normal(size=(2, 2))
        P, K = mx.MultivariateNormal(M, S), mx.LinearNormal(W, np.arange(2.0), 0.5 * np.eye(2))
        x, y = jnp.array([0.1, 0.2, 0.3]), jnp.array([0.3, -0.2])
        left = log(P)(x) + log(K)(x, y)
        right = log(mx.bind(P, K))(y) + log(mx.posterior(P, K))(y, x)
        np.testing.assert_allclose(left, right, rtol=1e-9)
        L = mx.LinearNormal(V, covariance_matrix=np.eye(2))
        one, two = mx.bind(mx.bind(P, K), L), mx.bind(P, mx.compose(K, L))
        np.testing.assert_allclose(mx.kl_divergence(one, two), 0, atol=1e-9)
        diagonal = mx.bind(mx.independent(N(M, np.ones(3))), K)
        np.testing.assert_allclose(diagonal.covariance_matrix, W.T @ W + 0.5 * np.eye(2), rtol=1e-9)
        batch = mx.Empirical((jnp.stack([x, 2 * x]), jnp.stack([y, -y])))
        rows = [
            stats.multivariate_normal(a @ W + np.arange(2.0), 0.5 * np.eye(2)).logpdf(b)
            for a, b in ((x, y), (2 * x, -y))
        ]
        np.testing.assert_allclose(mx.cross_entropy(batch, K), -np.mean(rows), rtol=1e-9)


def test_pushforward_densities():
    """One branch, two branches, vectors with a Jacobian; without an inverse the density is refused, the integral is not."""
    chi2 = mx.pushforward(jnp.square, N(0.0, 1.0), inverse=(jnp.sqrt, lambda y: -jnp.sqrt(y)))
    y = jnp.array([0.5, 2.0, -1.0])
    np.testing.assert_allclose(log(chi2)(y), [*stats.chi2(1).logpdf([0.5, 2.0]), -np.inf], rtol=1e-5)
    A = jnp.array([[2.0, 1.0], [0.0, 1.0]])
    image = mx.pushforward(
        lambda x: A @ x, mx.independent(N(jnp.zeros(2), 1.0)), inverse=lambda y: jnp.linalg.solve(A, y)
    )
    gauss = stats.multivariate_normal(np.zeros(2), np.asarray(A @ A.T))
    np.testing.assert_allclose(log(image)(jnp.array([0.3, -0.4])), gauss.logpdf([0.3, -0.4]), rtol=1e-5)
    bare = mx.pushforward(jnp.exp, N(0.0, 1.0))
    np.testing.assert_allclose(bare.expect(lambda y: jnp.log(y) ** 2), 1, rtol=1e-5)
    with pytest.raises(NotImplementedError, match=r"pass pushforward\(T, P, inverse"):
        log(bare)(1.0)


@pytest.mark.slow("iterated integrals with gradients")
def test_gradients_where_things_jump():
    """Moving ends, jumps of the integrand, kinks of the density: first and second derivatives."""
    with jax.enable_x64(True):
        mass = jax.jit(jax.grad(lambda m: N(m, 1.0).restrict(lambda x: x > 0).mass))
        np.testing.assert_allclose(mass(0.3), stats.norm.pdf(0.3), rtol=1e-6)
        ends = lambda a, b: mx.Uniform(a, b).expect(lambda x: x**3)
        exact = lambda a, b: (b**4 - a**4) / (4 * (b - a))
        for d in (jax.grad, lambda f: jax.hessian(f, (0, 1)), lambda f: jax.jacfwd(jax.grad(f, 1), 0)):
            np.testing.assert_allclose(jax.jit(d(ends))(0.5, 2.0), d(exact)(0.5, 2.0), rtol=1e-6)
        step = jax.jit(jax.grad(lambda b: mx.Uniform(0.0, b).expect(lambda x: x < 1)))
        np.testing.assert_allclose(step(2.0), -0.25, rtol=1e-6)
        curve = jax.jit(jax.hessian(lambda m: mx.Laplace(m, 1.0).expect(jnp.cos)))
        np.testing.assert_allclose(curve(0.5), -np.cos(0.5) / 2, rtol=1e-5)
        cut = jax.jit(jax.grad(lambda h: mx.truncate(N(0.0, 1.0), -1.0, h).expect(lambda x: x)))
        share = stats.norm.cdf(0.5) - stats.norm.cdf(-1)
        mean = (stats.norm.pdf(-1) - stats.norm.pdf(0.5)) / share
        np.testing.assert_allclose(cut(0.5), stats.norm.pdf(0.5) / share * (0.5 - mean), rtol=1e-6)
        square = jax.jit(jax.grad(lambda h: mx.Lebesgue(0.0, h).expect(lambda x: x**2)))
        np.testing.assert_allclose(square(2.0), 4.0, rtol=1e-7)


@pytest.mark.slow("iterated integrals with gradients")
def test_families_of_families():
    """Families of unequal ranks broadcast from the right, weights with them; equal sizes must not hide a wrong axis."""
    m, s, w = jnp.array([0.0, 1.0, 2.0]), jnp.array([[1.0], [2.0], [3.0]]), jnp.array([1.0, 10.0, 100.0])
    table = w * mx.cross_entropy(N(0.0, 1.0), N(0.0, s))
    np.testing.assert_allclose(-(w * N(0.0, 1.0)).expect(log(N(0.0, s))), table, rtol=1e-5)
    np.testing.assert_allclose(-(w * N(0.0, 1.0)).expect(lambda x: 0.0 * x + 1.0), -w, rtol=1e-6)
    np.testing.assert_allclose((w * N(jnp.zeros((2, 3)), 1.0)).expect(mx.log(N(m, 1.0)) * w)[1],
                               -(w**2) * mx.cross_entropy(N(0.0, 1.0), N(m, 1.0)), rtol=1e-5)  # fmt: skip
    pair = mx.product(N(m, 1.0), N(0.0, s)).expect(lambda a, b: jnp.cos(a + b), method=mx.Quadrature(32))
    np.testing.assert_allclose(pair, jnp.cos(m) * jnp.exp(-0.5 - s**2 / 2), atol=1e-4)
    mixing = mx.Categorical(probs=jnp.array([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]]))
    bound = mx.bind(mixing, mx.Conditional(lambda i: N(4.0 * i, 1.0)))
    by_hand = mixing.probs[:, 0] * N(0.0, 1.0) + mixing.probs[:, 1] * N(4.0, 1.0)
    np.testing.assert_allclose(mx.entropy(bound), mx.entropy(by_hand), rtol=1e-5)
    prior = mx.Categorical(probs=jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    post = mx.posterior(prior, mx.Conditional(lambda i: N(30.0 * i, 1.0)))(0.0)
    np.testing.assert_allclose(post.expect(lambda i: i), [0, 1])


@pytest.mark.slow("iterated integrals with gradients")
def test_far_tails():
    """Truncation where the cdf is 1 to rounding, half precision, mass that nobody sees: a number, or NaN, never 0."""
    np.testing.assert_allclose(mx.truncate(N(0.0, 1.0), 10.0).expect(lambda x: x), 10.098093, rtol=1e-5)
    np.testing.assert_allclose(mx.truncate(mx.Exponential(1.0), 20.0).expect(lambda x: x), 21, rtol=1e-5)
    np.testing.assert_allclose(
        mx.truncate(N(0.0, 1.0), 0.0, jnp.inf).expect(lambda x: x), (2 / np.pi) ** 0.5, rtol=1e-5
    )
    far = mx.posterior(N(0.0, 1.0), mx.Conditional(lambda x: N(x, 1.0)))(60.0)
    assert np.isnan(far.expect(lambda x: x))
    half = N(jnp.bfloat16(0.25), jnp.bfloat16(1))
    np.testing.assert_allclose(half.expect(jnp.cos), np.exp(-0.5) * np.cos(0.25), rtol=1e-5)
    assert jax.grad(lambda m: N(m, 1.0).expect(jnp.cos))(jnp.bfloat16(0.25)).dtype == jnp.bfloat16


def test_errors():
    three = mx.MultivariateNormal(jnp.zeros(3), jnp.eye(3))
    for make, match in (
        (lambda: mx.MultivariateNormal(jnp.zeros(2)), "exactly one of"),
        (lambda: mx.MultivariateNormal(jnp.zeros(2), jnp.eye(3)), r"\(2,\) and \(3, 3\)"),
        (lambda: mx.Dirichlet(2.0), "d of at least 2"),
        (lambda: mx.independent(mx.DiscreteUniform(3)), "a law of numbers"),
        (lambda: mx.independent(N()), "must be a family"),
        (lambda: mx.power(N(), 0), "a positive int"),
        (lambda: mx.truncate(mx.Dirac(0.0), 0.0), "restrict"),
        (lambda: mx.posterior(N(), N()), "K must be a Conditional"),
        (lambda: mx.compose(N(), N()), "K must be a Conditional"),
        (lambda: mx.LinearNormal(jnp.ones(3)), r"\[d, k\]"),
        (lambda: mx.joint(N(), mx.Normal(jnp.zeros(3), 1.0)), "K"),
        (lambda: mx.cross_entropy(mx.Dirichlet(jnp.ones(3)), three), "probability"),
        (lambda: mx.cross_entropy(mx.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), three), "length 2, Q of length 3"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError, NotImplementedError), match=match):
            make()
