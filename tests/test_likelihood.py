"""Projections are the fits of scipy, scikit-learn and statsmodels on real data; curvature; the natural gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import statsmodels.api as sm
from jax.tree_util import Partial
from scipy import optimize, stats
from sklearn import datasets
from sklearn.linear_model import LogisticRegression

import measure_xent as mx
from measure_xent import log

from .sweeps import sweep

rng = np.random.default_rng(8)
IRIS, CANCER = datasets.load_iris(), datasets.load_breast_cancer()
PETALS, RADII = IRIS.data[:, 2], CANCER.data[:, 0]
SHARES = CANCER.data[:, 4] / CANCER.data[:, 4].max() * 0.99
COUNTS = datasets.load_digits().data[:, 20].astype(int)  # of 16 grey levels

FITS = {
    "Normal": (mx.Normal(0.0, 1.0), PETALS, lambda x: stats.norm.fit(x)),
    "Laplace": (mx.Laplace(0.0, 1.0), RADII, lambda x: stats.laplace.fit(x)),
    "LogNormal": (mx.LogNormal(0.0, 1.0), PETALS, lambda x: stats.norm.fit(np.log(x))),
    "Exponential": (mx.Exponential(1.0), PETALS, lambda x: [1 / stats.expon.fit(x, floc=0)[1]]),
    "Gamma": (mx.Gamma(1.0, 1.0), RADII, lambda x: [(f := stats.gamma.fit(x, floc=0))[0], 1 / f[2]]),
    "Beta": (mx.Beta(1.0, 1.0), SHARES, lambda x: stats.beta.fit(x, floc=0, fscale=1)[:2]),
    "Poisson": (mx.Poisson(1.0), COUNTS, lambda x: [x.mean()]),
    "Geometric": (mx.Geometric(0.5), COUNTS, lambda x: [1 / (1 + x.mean())]),
    "Binomial": (mx.Binomial(16, 0.5), COUNTS, lambda x: [16, x.mean() / 16]),
    "Categorical": (mx.Categorical(probs=jnp.ones(17) / 17), COUNTS, lambda x: [np.bincount(x, minlength=17) / len(x)]),
    "logits": (mx.Categorical(jnp.zeros(17)), COUNTS, lambda x: [np.log(np.bincount(x, minlength=17) / len(x))]),
    "Bernoulli": (mx.Bernoulli(probs=0.5), CANCER.target, lambda x: [x.mean()]),
}


@sweep("name", FITS)
def test_fits_of_families(name):
    """The parameters of scipy's maximum likelihood on iris, breast cancer and digits; the score's mean there is 0."""
    family, data, fit = FITS[name]
    with jax.enable_x64(True):
        family = jax.tree.map(lambda x: jnp.asarray(x, float), family)
        P = mx.Empirical(jnp.asarray(data))
        got = mx.project(P, family)
        with np.errstate(divide="ignore"):
            expected = fit(data)
        for a, b in zip(jax.tree.leaves(got), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6)  # scipy's simplex stops at 1e-8 of the likelihood
        if name not in ("Binomial", "Categorical", "Laplace", "logits"):
            slope = jax.grad(lambda Q: mx.cross_entropy(P, Q))(got)
            np.testing.assert_allclose(jax.tree.leaves(slope), 0, atol=1e-7)


@pytest.mark.slow("fits models")
def test_vectors():
    data = IRIS.data[:, :3]
    with jax.enable_x64(True):
        P = mx.Empirical(jnp.asarray(data))
        normal = mx.project(P, mx.MultivariateNormal(jnp.zeros(3), jnp.eye(3)))
        np.testing.assert_allclose(normal.loc, data.mean(0), rtol=1e-9)
        np.testing.assert_allclose(normal.covariance_matrix, np.cov(data.T, bias=True), rtol=1e-9)
        a = np.array([2.0, 3.0, 0.7])
        sample = np.random.default_rng(0).dirichlet(a, size=500)
        fit = mx.project(mx.Empirical(jnp.asarray(sample)), mx.Dirichlet(jnp.ones(3)))
        slope = jax.grad(lambda c: mx.cross_entropy(mx.Empirical(jnp.asarray(sample)), mx.Dirichlet(c)))(
            fit.concentration
        )
        np.testing.assert_allclose(slope, 0, atol=1e-9)
        again = mx.project(mx.Dirichlet(jnp.asarray(a)), mx.Dirichlet(jnp.ones(3)))
        np.testing.assert_allclose(again.concentration, a, rtol=1e-9)


@pytest.mark.slow("fits models")
def test_of_measures():
    """Families by vmap's rule, weights, other laws, derivatives in the data, and what has no projection."""
    with jax.enable_x64(True):
        x = jnp.asarray(rng.gamma(3.0, size=(2, 40)))
        families = mx.project(jax.vmap(mx.Empirical)(x), mx.Gamma(1.0, 1.0))
        one = mx.project(mx.Empirical(x[1]), mx.Gamma(1.0, 1.0))
        np.testing.assert_allclose(
            [families.concentration[1], families.rate[1]], [one.concentration, one.rate], rtol=1e-9
        )
        fit = lambda x: mx.project(mx.Empirical(x), mx.Gamma(1.0, 1.0)).concentration
        h = 1e-5 * jnp.eye(40)[3]
        np.testing.assert_allclose(jax.grad(fit)(x[0])[3], (fit(x[0] + h) - fit(x[0] - h)) / 2e-5, rtol=1e-6)
        P = mx.Gamma(2.0, 3.0)
        for Q in (mx.Exponential(1.0), mx.LogNormal(0.0, 1.0), mx.Normal(0.0, 1.0)):
            best = mx.project(P, Q)
            slope = jax.grad(lambda Q: mx.cross_entropy(P, Q))(best)
            np.testing.assert_allclose(jax.tree.leaves(slope), 0, atol=1e-6)
        # Pythagoras: H(P, R) − H(P, Q*) = KL(Q*‖R) for R of the family.
        R, best = mx.Gamma(1.5, 2.0), mx.project(mx.LogNormal(0.0, 0.5), mx.Gamma(1.0, 1.0))
        gap = mx.cross_entropy(mx.LogNormal(0.0, 0.5), R) - mx.cross_entropy(mx.LogNormal(0.0, 0.5), best)
        np.testing.assert_allclose(gap, mx.kl_divergence(best, R), rtol=1e-7)
    assert np.isnan(mx.project(mx.Normal(), mx.Exponential(1.0)).rate)
    assert np.isnan(mx.project(mx.Empirical(jnp.array([0, 7])), mx.Categorical(jnp.zeros(3))).logits).all()
    weighted = mx.Empirical(jnp.array([3.0, 1.0, 2.0, 9.0]), weights=jnp.array([1.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(jax.tree.leaves(mx.project(weighted, mx.Laplace())), [2, 2 / 3], rtol=1e-6)
    fit = mx.project(mx.Normal(0.5, 2.0), lambda p: mx.Normal(p[0], jnp.exp(p[1])), (0.0, 0.0))
    np.testing.assert_allclose(jax.tree.leaves(fit), [0.5, 2.0], rtol=1e-3)
    with pytest.raises(ValueError, match="vmap"):
        mx.project(mx.Normal(jnp.zeros(2), 1.0), lambda m: mx.Normal(m, 1.0), 0.0)
    with pytest.raises(TypeError, match="pass its start"):
        mx.project(mx.Normal(), lambda m: mx.Normal(m, 1.0))
    with pytest.raises(TypeError, match="P must be a Measure"):
        mx.project(jnp.ones(3), mx.Normal())


def standardised(X):
    return (X - X.mean(0)) / X.std(0)


@pytest.mark.slow("fits models")
def test_logistic_regression_without_a_penalty():
    """Data that no plane separates: project, and statsmodels' Newton."""
    X, y = standardised(CANCER.data[:, [1, 4, 8]]), CANCER.target
    expected = sm.Logit(y, sm.add_constant(X)).fit(disp=0)
    with jax.enable_x64(True):
        P = mx.Empirical((jnp.asarray(X), jnp.asarray(y)))
        Q = mx.project(P, lambda p: mx.Conditional(Partial(logistic, p)), (jnp.zeros(3), jnp.zeros(())), tolerance=1e-8)
        w, b = jax.tree.leaves(Q)
        np.testing.assert_allclose([b, *w], expected.params, rtol=1e-5)
        np.testing.assert_allclose(mx.log_likelihood(Q, (jnp.asarray(X), jnp.asarray(y))), expected.llf, rtol=1e-9)
        softmax = mx.project(P, mx.LinearSoftmax(jnp.zeros((3, 2)), jnp.zeros(2)), tolerance=1e-7)
        np.testing.assert_allclose(-len(y) * mx.cross_entropy(P, softmax), expected.llf, rtol=1e-9)


@pytest.mark.slow("L-BFGS through integrals")
def test_temperature_scaling():
    """A family of Conditionals that close over their parameter: it can be read, leaves jit, and is scipy's."""
    rng = np.random.default_rng(0)
    z = 5 * rng.normal(size=(400, 4))
    y = np.array([rng.choice(4, p=p / p.sum()) for p in np.exp(z / 2.7)])

    def loss(T):
        return np.mean(np.log(np.exp(z / T).sum(-1)) - z[np.arange(400), y] / T)

    expected = optimize.minimize_scalar(loss, bounds=(0.5, 10), method="bounded", options={"xatol": 1e-10}).x
    P = mx.Empirical((jnp.asarray(z), jnp.asarray(y)))
    family = lambda T: mx.Conditional(lambda z: mx.Categorical(z / T))
    for fit in (mx.project, jax.jit(mx.project, static_argnums=1)):
        softened = fit(P, family, 1.0)
        (T,) = jax.tree.leaves(softened)
        assert isinstance(softened, mx.Conditional)
        assert T == softened.function.parameters == pytest.approx(expected, rel=1e-4)
        assert mx.cross_entropy(P, softened) == pytest.approx(loss(expected), rel=1e-6)
    vector = lambda p: mx.Conditional(lambda z: mx.Categorical(z * p["scale"] + p["shift"]))
    fitted = mx.project(P, vector, {"scale": jnp.ones(4), "shift": jnp.zeros(4)})
    assert jax.tree.map(jnp.shape, fitted.function.parameters) == {"scale": (4,), "shift": (4,)}
    assert mx.cross_entropy(P, fitted) < loss(expected)


def logistic(p, x):
    return mx.Bernoulli(x @ p[0] + p[1])


@pytest.mark.slow("fits models")
@pytest.mark.parametrize("name", ["iris", "breast cancer", "digits"])
def test_ridge_against_scikit_learn(name):
    """With a penalty, by optax's L-BFGS on the line of the loss."""
    data = {"iris": IRIS, "breast cancer": CANCER, "digits": datasets.load_digits()}[name]
    X, y = standardised(data.data[:, data.data.std(0) > 0]), data.target
    V = y.max() + 1
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(X, y)
    with jax.enable_x64(True):
        P = mx.Empirical((jnp.asarray(X), jnp.asarray(y)))

        def loss(p):
            # Two classes are a sigmoid to scikit-learn, whose one weight is the difference of a softmax's two.
            weight, bias = p if V > 2 else (jnp.concatenate([-x / 2, x / 2], -1) for x in p)
            return -P.expect(log(mx.LinearSoftmax(weight, bias))) + jnp.sum(p[0] ** 2) / (2 * len(X))

        k = 1 if V == 2 else V
        params, solver = (jnp.zeros((X.shape[1], k)), jnp.zeros(k)), optax.lbfgs()

        @jax.jit
        def step(params, state):
            value, gradient = optax.value_and_grad_from_state(loss)(params, state=state)
            update, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
            return optax.apply_updates(params, update), state

        state = solver.init(params)
        for _ in range(400):
            params, state = step(params, state)
    np.testing.assert_allclose(params[0], model.coef_.T, atol=2e-4)


@pytest.mark.slow("fits models")
def test_information_projection():
    """The means are met, of dice and on the line; Pythagoras; what cannot be met is NaN; derivatives in the means."""
    face = lambda x: jnp.reshape(x + 1.0, 1)
    die = mx.DiscreteUniform(6)
    with jax.enable_x64(True):
        Q = mx.information_projection(die, face, jnp.array([4.5]))
        np.testing.assert_allclose(Q.mass, 1, rtol=1e-9)
        R = mx.Categorical(probs=jnp.array([0.05, 0.1, 0.1, 0.2, 0.15, 0.4]))
        R = mx.information_projection(R, face, jnp.array([4.5]))  # another with the mean
        gap = mx.kl_divergence(R, die) - mx.kl_divergence(R, Q) - mx.kl_divergence(Q, die)
        np.testing.assert_allclose(gap, 0, atol=1e-9)
        tilted = mx.information_projection(mx.Normal(0.0, 1.0), lambda x: jnp.stack([x, x**2]), jnp.array([1.0, 1.5]))
        np.testing.assert_allclose(tilted.expect(jnp.cos), mx.Normal(1.0, np.sqrt(0.5)).expect(jnp.cos), rtol=1e-6)
        height = lambda t: mx.kl_divergence(mx.information_projection(die, face, jnp.array([t])), die)
        numeric = (height(4.5 + 1e-5) - height(4.5 - 1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(height)(4.5), numeric, rtol=1e-6)
        assert np.isnan(mx.information_projection(die, face, jnp.array([7.0])).mass)
    np.testing.assert_allclose(mx.information_projection(die, lambda x: x + 1.0, 4.5).expect(face), [4.5], rtol=1e-5)
    twice = mx.information_projection(die, lambda x: jnp.stack([x, 2.0 * x]), jnp.array([3.5, 7.0]))
    np.testing.assert_allclose(twice.expect(face), [4.5], rtol=1e-5)
    with pytest.raises(ValueError, match="vector"):
        mx.information_projection(die, face, jnp.ones((2, 2)))


@pytest.mark.slow("fits models")
def test_scores_and_fisher_information():
    """Known matrices; products with them; the Gauss–Newton matrix of a net against J, H written out."""
    with jax.enable_x64(True):
        families = {
            "normal": (lambda t: mx.Normal(t[0], t[1]), (0.3, 2.0), np.diag([0.25, 0.5])),
            "poisson": (lambda t: mx.Poisson(t[0]), (2.5,), [[0.4]]),
            "bernoulli": (lambda t: mx.Bernoulli(t[0]), (0.4,), [[1 / (2 + 2 * np.cosh(0.4))]]),
        }
        for family, theta, expected in families.values():
            theta = tuple(map(jnp.asarray, theta))
            F = mx.fisher_information(family, theta)
            np.testing.assert_allclose(F, expected, rtol=1e-7, atol=1e-9)
            v = tuple(jnp.asarray(x) for x in rng.normal(size=len(theta)))
            np.testing.assert_allclose(
                mx.fisher_vector_product(family, theta)(v), F @ jnp.stack(v), rtol=1e-6, atol=1e-9
            )
            mean = family(theta).expect(mx.score(family, theta))
            np.testing.assert_allclose(jnp.stack(mean), 0, atol=1e-9)
        X, y = jnp.asarray(IRIS.data[:20]), jnp.asarray(IRIS.target[:20])
        net = lambda w: jnp.tanh(X @ w) @ jnp.ones((3, 3)) * jnp.arange(3.0)
        w = jnp.asarray(rng.normal(size=(4, 3)))
        v = jnp.asarray(rng.normal(size=w.shape))
        J = jax.jacobian(net)(w).reshape(60, 12)
        p = jax.nn.softmax(net(w))
        H = jax.scipy.linalg.block_diag(*(jnp.diag(r) - jnp.outer(r, r) for r in p)) / 20
        mean_loss = mx.joint(mx.Empirical(jnp.arange(20)), mx.Dirac(y))
        model = lambda w: mx.Conditional(Partial(row_of, net(w)))
        got = mx.fisher_vector_product(model, w, mx.Empirical(jnp.arange(20)))(v)
        np.testing.assert_allclose(got.ravel(), J.T @ H @ J @ v.ravel(), rtol=1e-7)
        got = mx.gauss_newton(mean_loss, model, w)(v)
        np.testing.assert_allclose(got.ravel(), J.T @ H @ J @ v.ravel(), rtol=1e-7)
    closed, P = (
        lambda w: mx.Conditional(lambda x: mx.Categorical(w * jnp.arange(2.0))),
        mx.Empirical((jnp.ones(2), jnp.arange(2))),
    )
    with pytest.raises(TypeError, match="as leaves"):
        mx.gauss_newton(P, closed, 1.0)
    with pytest.raises(TypeError, match="measure P of x"):
        mx.fisher_information(lambda w: mx.LinearSoftmax(w), jnp.ones((2, 3)))


def row_of(logits, i):
    return mx.Categorical(logits[i])


@pytest.mark.slow("fits models")
def test_natural_gradient_beats_adam():
    """A badly scaled logistic regression: after 12 steps of each, Adam at the best of its learning rates."""
    X = jnp.asarray(standardised(CANCER.data[:, :6]) * np.array([10, 3, 1, 0.3, 0.1, 0.03]), jnp.float32)
    P, inputs = mx.Empirical((X, jnp.asarray(CANCER.target))), mx.Empirical(X)
    model = lambda p: mx.LinearSoftmax(p[0], p[1])
    loss = lambda p: -P.expect(log(model(p)))
    start = jnp.zeros((6, 2)), jnp.zeros(2)

    @functools.partial(jax.jit, static_argnums=0)
    def after(optimizer, rate):
        def step(carry, _):
            p, state = carry
            curvature = mx.fisher_vector_product(model, p, inputs)
            update, state = optimizer.update(jax.grad(loss)(p), state, p, curvature=curvature)
            return (optax.apply_updates(p, jax.tree.map(lambda u: -rate * u, update)), state), None

        return loss(jax.lax.scan(step, (start, optimizer.init(start)), length=12)[0][0])

    natural = after(mx.natural_gradient(1e-4), 0.7)
    adam = jax.vmap(functools.partial(after, optax.with_extra_args_support(optax.scale_by_adam())))(
        jnp.array([0.03, 0.1, 0.3, 1.0, 3.0])
    ).min()
    assert natural < 0.8 * adam, (natural, adam)


@pytest.mark.slow("Hessians through an optimum")
def test_second_derivatives_of_an_information_projection():
    """The height's is the inverse variance of what is met; of an exponential law E[x²] = 2t²; forward and reverse."""
    die = mx.DiscreteUniform(6)
    with jax.enable_x64(True):
        project = lambda P, t: mx.information_projection(P, lambda x: x, t, tolerance=1e-9)
        height = lambda t: mx.kl_divergence(project(die, t), die)
        variance = project(die, 3.5).expect(lambda x: (x - 3.5) ** 2)
        for mode in (lambda f: jax.jit(jax.hessian(f)), lambda f: jax.jacrev(jax.jacrev(f))):
            np.testing.assert_allclose(mode(height)(3.5), 1 / variance, rtol=1e-6)
        square = lambda t: project(mx.Exponential(1.0), t).expect(lambda x: x**2)
        np.testing.assert_allclose(jax.jit(jax.hessian(square))(3.0), 4, rtol=1e-5)


def test_a_projection_onto_hidden_parameters_says_how_to_show_them():
    P = mx.Empirical((jnp.zeros((2, 3)), jnp.arange(2)))
    with pytest.raises(TypeError, match=r"project\(P, lambda T: Conditional"):
        mx.project(P, mx.Conditional(lambda z: mx.Categorical(z / 1.5)))
