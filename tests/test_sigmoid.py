"""Multi-label cross-entropy on the contract: exact tails, ±inf logits, soft labels, every derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx

inf, nan = np.inf, np.nan
rng = np.random.default_rng(0)


def exact(z, p1):
    z = np.asarray(z, np.float64)
    softplus = lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    sigmoid = lambda x: np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))
    return p1 * softplus(-z) + (1 - p1) * softplus(z), (1 - p1) * sigmoid(z) - p1 * sigmoid(-z)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_labels_to_the_ulp(dtype):
    z = jnp.asarray(np.concatenate([rng.normal(size=60) * s for s in (1e-6, 1, 20, 80)]), dtype)
    y = jnp.asarray(rng.integers(2, size=z.shape))
    loss = lambda z: mx.cross_entropy(mx.Dirac(y), mx.Bernoulli(z))
    expected, slope = exact(z.astype(jnp.float32), np.asarray(y))
    assert loss(z).dtype == jnp.float32
    normal = expected > 1e-37  # float32 holds no smaller number but subnormals, which XLA may flush
    # exp's argument is exact here: 2 eps each for exp and log1p, one for the sum
    np.testing.assert_allclose(np.asarray(loss(z))[normal], expected[normal], rtol=8e-7)
    gradient = jax.grad(lambda z: jnp.vdot(loss(z), jnp.arange(1.0, z.size + 1)))(z.astype(jnp.float32))
    np.testing.assert_allclose(gradient[normal], (np.arange(1.0, z.size + 1) * slope)[normal], rtol=2e-6)
    assert jax.grad(lambda z: loss(z).sum())(z).dtype == z.dtype


def test_infinite_logits():
    z, y = jnp.array([inf, inf, -inf, -inf]), jnp.array([1, 0, 1, 0])
    loss = lambda z: mx.cross_entropy(mx.Dirac(y), mx.Bernoulli(z))
    np.testing.assert_array_equal(loss(z), [0, inf, inf, 0])
    np.testing.assert_array_equal(jax.jacfwd(loss)(z).diagonal(), [0, 1, -1, 0])
    np.testing.assert_array_equal(jax.jacrev(loss)(z).diagonal(), [0, 1, -1, 0])


@pytest.mark.parametrize("label", [-1, 2, -100])
def test_labels_outside(label):
    loss = lambda z: mx.cross_entropy(mx.Dirac(label), mx.Bernoulli(z))
    value, gradient = jax.value_and_grad(loss)(0.5)
    assert value == inf
    assert np.isnan(gradient)
    ignored = lambda z: mx.cross_entropy(0.0 * mx.Dirac(label), mx.Bernoulli(z))
    assert jax.value_and_grad(ignored)(nan) == (0, 0)
    assert mx.log(mx.Bernoulli(probs=0.5))(label) == -inf


def test_soft_labels_and_their_gradient():
    z, t = jnp.asarray(rng.normal(size=7), jnp.float32), jnp.array([0.0, 0.25, 0.5, 1.0, 0.1, 0.9, 0.3])
    loss = lambda z, t: mx.cross_entropy(mx.Bernoulli(probs=t), mx.Bernoulli(z)).sum()
    expected, slope = exact(z, np.asarray(t, np.float64))
    np.testing.assert_allclose(loss(z, t), expected.sum(), rtol=1e-6)
    dz, dt = jax.grad(loss, (0, 1))(z, t)
    np.testing.assert_allclose(dz, slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dt, -np.asarray(z, np.float64), rtol=1e-5, atol=1e-6)
    smoothed = 0.875 * mx.Dirac(jnp.ones(7, int)) + 0.125 * mx.DiscreteUniform(2)
    np.testing.assert_allclose(mx.cross_entropy(smoothed, mx.Bernoulli(z)), exact(z, 0.9375)[0], rtol=1e-6)


def test_second_order():
    z, y = jnp.asarray(rng.normal(size=4), jnp.float32), jnp.array([0, 1, 1, 0])
    total = lambda z: jnp.vdot(mx.cross_entropy(mx.Dirac(y), mx.Bernoulli(z)), jnp.array([1.0, -2.0, 3.0, 0.5]))
    s = 1 / (1 + np.exp(-np.asarray(z, np.float64)))
    np.testing.assert_allclose(jax.hessian(total)(z), np.diag(s * (1 - s) * [1, -2, 3, 0.5]), rtol=1e-5, atol=1e-7)


def test_a_classifier_of_many_labels():
    """[batch, labels] with a mask a label: one loss each, and one integral in all."""
    hidden, weight = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    y, mask = rng.integers(2, size=(5, 4)), rng.integers(2, size=(5, 4)).astype(np.float32)
    z = jnp.asarray(hidden) @ jnp.asarray(weight)
    losses = mx.cross_entropy(mx.Dirac(jnp.asarray(y)), mx.Bernoulli(z))
    expected, _ = exact(hidden.astype(np.float64) @ weight, y)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    P = mx.Empirical((z, jnp.asarray(y)), weights=jnp.asarray(mask))
    mean = mx.cross_entropy(P, mx.Conditional(lambda z: mx.Bernoulli(z)))
    np.testing.assert_allclose(mean, (mask * expected).sum() / mask.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "w", [3.0, np.array([2.0, 5.0, 0.5]), np.array([[2.0], [1.0]])], ids=["one", "classes", "rows"]
)
def test_a_weight_of_the_outcome_1(w):
    """torch's pos_weight: of soft and hard labels, one weight or one for each member of the family; value and gradient."""
    z, soft = rng.normal(size=(2, 3)), rng.uniform(size=(2, 3))
    hard = (soft > 0.5).astype(int)
    softplus = lambda x: np.log1p(np.exp(x))
    weight = lambda k: jnp.where(k == 1, w, 1.0)
    for y, P in ((soft, mx.Bernoulli(probs=jnp.asarray(soft))), (hard, mx.Dirac(jnp.asarray(hard)))):
        loss = lambda z, P=P: mx.cross_entropy(P.reweight(weight), mx.Bernoulli(z))
        expected = w * y * softplus(-z) + (1 - y) * softplus(z)
        np.testing.assert_allclose(loss(jnp.asarray(z)), expected, rtol=1e-5)
        sigmoid = 1 / (1 + np.exp(-z))
        gradient = jax.grad(lambda z: loss(z).sum())(jnp.asarray(z))
        np.testing.assert_allclose(gradient, (1 - y) * sigmoid - w * y * (1 - sigmoid), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"member of a family \(2, 3\)"):
        mx.Bernoulli(probs=jnp.asarray(soft)).reweight(lambda k: jnp.ones(4)).expect(lambda k: k)
