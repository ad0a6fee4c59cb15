"""What else the pass over the logits knows: log-partition and z-loss, confidence, mode, correct predictions, entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent import confidence, correct, log, log_partition
from measure_xent._kernels import softmax
from measure_xent._kernels.target import Target

from . import oracle

nan = np.nan
rng = np.random.default_rng(5)
N, V = 6, 7
z0 = (3 * rng.normal(size=(N, V))).astype(np.float32)
y0 = np.array([0, 6, 2, 2, -100, 5])
w0 = np.array([1.0, 2.0, 0.5, 0.0, 0.0, 3.0], np.float32)
z0[5, 5] = z0[5].max() + 1  # one prediction that is right
z0[3] = nan  # padding
used = w0 > 0
cot = {"loss": -1.5, "z": 0.25, "confidence": 2.0}
close = dict(rtol=2e-6, atol=2e-6)


def integrands(Q):
    return {"loss": -log(Q), "z": log_partition(Q) ** 2, "confidence": confidence(Q), "accuracy": correct(Q)}


def figures(z, w=w0, together=True):
    P, Q = mx.Empirical((z, jnp.asarray(y0)), weights=w), mx.Conditional(mx.Categorical)
    f = integrands(Q)
    return P.expect(f) if together else {name: P.expect(g) for name, g in f.items()}


def exact():
    """Values, gradient of the combination by ``cot`` in the logits, and its Hessian, in float64."""
    z, y, w = z0[used].astype(np.float64), y0[used], w0[used] / w0.sum()
    log_p = oracle.log_softmax(z)
    p, lse, top = np.exp(log_p), (z - log_p)[:, 0], z.argmax(-1)
    one, best = oracle.one_hot(y, V), oracle.one_hot(top, V)
    confidence = p.max(-1)
    values = {
        "loss": w @ -log_p[np.arange(len(y)), y],
        "z": w @ lse**2,
        "confidence": w @ confidence,
        "accuracy": w @ (top == y),
    }
    fisher = np.einsum("ni,ij->nij", p, np.eye(V)) - np.einsum("ni,nj->nij", p, p)
    gradient = cot["loss"] * (p - one) + cot["z"] * 2 * lse[:, None] * p
    gradient += cot["confidence"] * confidence[:, None] * (best - p)
    hessian = cot["loss"] * fisher + cot["z"] * 2 * (np.einsum("ni,nj->nij", p, p) + lse[:, None, None] * fisher)
    hessian += cot["confidence"] * confidence[:, None, None] * (np.einsum("ni,nj->nij", best - p, best - p) - fisher)
    full = np.zeros((N, V))
    full[used] = w[:, None] * gradient
    curvature = np.zeros((N, V, V))
    curvature[used] = w[:, None, None] * hessian
    return values, full, curvature


@pytest.mark.slow("every mode of derivatives")
@pytest.mark.parametrize("together", [True, False])
def test_values_and_derivatives(together):
    values, gradient, curvature = exact()
    z, v = jnp.asarray(z0), jnp.asarray(rng.normal(size=(N, V)), jnp.float32)
    got = jax.jit(lambda z: figures(z, together=together))(z)
    for name, value in values.items():
        np.testing.assert_allclose(got[name], value, **close, err_msg=name)

    def total(z):
        got = figures(z, together=together)
        return sum(c * got[name] for name, c in cot.items()) + got["accuracy"]

    @jax.jit
    def derivatives(z):
        gradient = jax.grad(total)
        products = (
            jax.jvp(gradient, (z,), (v,))[1],
            jax.grad(lambda z: jnp.vdot(gradient(z), v))(z),
            jax.grad(lambda z: jax.jvp(total, (z,), (v,))[1])(z),
        )
        return gradient(z), jax.jacfwd(total)(z), products

    *firsts, products = derivatives(z)
    for first in firsts:
        np.testing.assert_allclose(first, gradient, rtol=1e-5, atol=1e-5)
    for product in products:
        np.testing.assert_allclose(product, np.einsum("nij,nj->ni", curvature, np.asarray(v)), rtol=2e-5, atol=2e-5)


def test_inside_the_loss():
    """A linear combination of them is one integrand, and one coefficient a member of a family is the member's own."""
    z, y, c = jnp.asarray(z0[:3]), jnp.asarray(y0[:3]), jnp.array([1.0, 0.0, -2.0])
    Q = mx.Categorical(z)
    got = mx.Dirac(y).expect(log(Q) - c * log_partition(Q) ** 2)
    lse = (z0[:3] - oracle.log_softmax(z0[:3]))[:, 0]
    expected = -oracle.rows(z0[:3], oracle.one_hot(y0[:3], V)) - np.asarray(c) * lse**2
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    K = mx.Conditional(mx.Categorical)
    stacked = mx.Atoms((jnp.stack([z, z + 1]), jnp.stack([y, y])), weights=jnp.ones((2, 3)))
    one_by_one = sum(mx.Atoms((z + i, y)).expect(log(K) + 2 * log_partition(K)) for i in range(2))
    np.testing.assert_allclose(stacked.expect(log(K) + 2 * log_partition(K)), one_by_one, rtol=1e-5)
    families = jax.vmap(lambda z, c: mx.Atoms((z, y)).expect(c * log(K) + log_partition(K)))(
        jnp.stack([z, z + 1]), c[:2]
    )
    by_hand = [float(c[i] * mx.Atoms((z + i, y)).expect(log(K)) + (lse + i).sum()) for i in range(2)]
    np.testing.assert_allclose(families, by_hand, rtol=1e-5)


@pytest.mark.slow("every mode of derivatives")
def test_any_target_and_any_measure():
    """Soft targets weigh correctness by their mass at the mode; probabilities and sigmoids have the same functions."""
    z, y = jnp.asarray(z0[:3]), jnp.asarray(z0[:3].argmax(-1))
    smoothed = 0.75 * mx.Dirac(y) + 0.25 * mx.DiscreteUniform(V)
    np.testing.assert_allclose(smoothed.expect(correct(mx.Categorical(z))), 0.75 + 0.25 / V, rtol=1e-6)
    probs = jax.nn.softmax(z)
    for target in (smoothed, mx.Categorical(probs=probs)):
        by_logits, by_probs = (
            target.expect((correct(Q), confidence(Q))) for Q in (mx.Categorical(z), mx.Categorical(probs=probs))
        )
        np.testing.assert_allclose(by_logits, by_probs, rtol=1e-5)
    bits, b = jnp.array([2.0, -1.0, 0.0]), jnp.array([1, 1, 0])
    Q = mx.Bernoulli(bits)
    got = mx.Dirac(b).expect((correct(Q), confidence(Q), log_partition(Q)))
    p = 1 / (1 + np.exp(-np.abs(np.asarray(bits, np.float64))))
    np.testing.assert_allclose(got, ([1, 0, 1], p, np.log1p(np.exp(np.asarray(bits, np.float64)))), rtol=1e-6)
    np.testing.assert_array_equal(mx.Categorical(jnp.array([[0.0, 2.0, 2.0]])).mode, [1])
    assert mx.Dirac(0).expect(correct(mx.DiscreteUniform(3))) == 1  # the first of several modes
    with pytest.raises(NotImplementedError, match="Normal has no mode"):
        mx.Dirac(0.0).expect(correct(mx.Normal(0.0, 1.0)))
    with pytest.raises(TypeError, match=r"correct\(Q\): Q must be a Measure or a Conditional, got list"):
        correct([1.0])


@pytest.mark.sweep(1)
@pytest.mark.parametrize("classes", [1, 5, 33, 1001])
def test_entropy_and_mode_of_rows(classes):
    """Ties, forbidden classes, infinite and confident rows; few classes and many, in blocks too."""
    z = np.asarray(rng.normal(size=(5, classes)) * 4, np.float32)
    z[1, : classes // 2] = -np.inf
    z[2] = z[2, 0]
    z[3, classes // 3] = 60.0
    asked = lambda z: softmax.rows(z, Target(), ("mode", "entropy"))
    for rows in (z, np.tile(z, (40_000_000 // (20 * classes) // 100, 1))):
        got = jax.jit(asked)(jnp.asarray(rows))
        with np.errstate(invalid="ignore"):
            log_p = oracle.log_softmax(rows)
            p, gap = np.exp(log_p), rows.max(-1, keepdims=True) - rows.astype(np.float64)
            tail = np.sort(np.exp(-gap), axis=-1)[:, :-1].sum(-1)  # in the place of −log p, which rounds to 0 beside 1
            expected = np.log1p(tail) + np.where(p > 0, p * gap, 0).sum(-1)
        np.testing.assert_allclose(got.entropy, expected, rtol=2e-5, atol=1e-30)
        np.testing.assert_array_equal(got.mode, rows.argmax(-1))
        np.testing.assert_allclose(got.surprisal, np.log1p(tail), rtol=2e-5, atol=1e-30)
    v = jnp.asarray(rng.normal(size=z.shape), jnp.float32)
    along = jax.jit(lambda z: jax.jvp(lambda z: asked(z).entropy, (z,), (v,))[1])
    log_p = log_p[:5]
    p, h = p[:5], expected[:5]
    slope = np.where(p > 0, p * (-np.where(p > 0, log_p, 0) - h[:, None]), 0)
    np.testing.assert_allclose(along(jnp.asarray(z)), (slope * np.asarray(v)).sum(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.slow("every mode of derivatives")
@pytest.mark.parametrize(
    "model", [lambda w: mx.LinearSoftmax(w), lambda w: mx.Conditional(lambda h: mx.Categorical(h @ w))]
)
def test_functions_of_x_alone(model):
    """Against a measure on x, without labels: the mean entropy of predictions, and the value at one x."""
    h, w = (np.asarray(rng.normal(size=shape), np.float32) for shape in ((6, 3), (3, 5)))
    Q, mass = model(jnp.asarray(w)), np.array([1, 0, 2, 1, 1, 3], np.float32)
    h[1] = nan
    log_p = oracle.log_softmax(h.astype(np.float64) @ w)
    each = -(np.exp(log_p) * log_p).sum(-1), np.exp(log_p).max(-1)
    P = mx.Empirical(jnp.asarray(h), weights=mass)
    got = P.expect((mx.entropy(Q), confidence(Q)))
    for a, b in zip(got, each, strict=True):
        np.testing.assert_allclose(a, np.nansum(mass * b) / 8, rtol=1e-5)
    np.testing.assert_allclose(mx.entropy(Q)(jnp.asarray(h[0])), each[0][0], rtol=1e-5)
    gradient = jax.grad(lambda w: P.expect(mx.entropy(model(w)) + log_partition(model(w))))(jnp.asarray(w))
    assert np.all(np.isfinite(gradient))
    with pytest.raises(TypeError, match="integrates over pairs"):
        P.expect(mx.entropy(Q) - log(Q))


def test_one_pass():
    """All of them together read blocks of logits in one loop."""
    z, y = jax.ShapeDtypeStruct((20_000, 1000), jnp.float32), jax.ShapeDtypeStruct((20_000,), jnp.int32)

    def several(z, y):
        Q = mx.Categorical(z)
        return mx.Dirac(y).expect(integrands(Q))

    assert jax.jit(several).lower(z, y).compile().as_text().count(" while(") == 1


def test_null_rows_of_a_family_and_infinite_logits():
    """Weight 0 over NaN in reverse mode; conventions at ±inf; an offset common to all logits takes nothing away."""
    z = jnp.array([[0.0, 0.0], [nan, 0.0]])
    for f in (
        lambda Q: log_partition(Q) ** 2,
        confidence,
        lambda Q: confidence(Q) ** 2,
        lambda Q: log(Q) + log_partition(Q),
    ):
        total = lambda z, f=f: (jnp.array([1.0, 0.0]) * mx.Dirac(jnp.array([0, 0]))).expect(f(mx.Categorical(z))).sum()
        gradient = jax.grad(total)(z)
        assert np.all(np.isfinite(gradient))
        np.testing.assert_array_equal(gradient[1], 0)
    inf = jnp.inf
    for row, sure, lse in (
        ([inf, 0, 1], 1, inf),
        ([inf, inf, 1], 0.5, inf),
        ([-inf] * 3, 0, -inf),
        ([1e4 + 0.5, 1e4, 1e4], 0.451863, 1e4 + 1.294),
    ):
        Q = mx.Categorical(jnp.array(row))
        got = mx.Dirac(0).expect((confidence(Q), log_partition(Q)))
        np.testing.assert_allclose(got, (sure, lse), rtol=1e-6)
    assert mx.DiscreteUniform(3).expect(correct(mx.Categorical(jnp.zeros((4, 3))))).shape == (4,)
    assert np.isnan(mx.Categorical(probs=jnp.array([0.5, 0.5])).expect(correct(mx.Categorical(jnp.array([nan, 0.0])))))
    parts = mx.Dirac(0).expect(log_partition(mx.Categorical(jnp.zeros(4))).map(lambda a: {"a": a, "b": a * a}))
    np.testing.assert_allclose(parts["b"], np.log(4) ** 2, rtol=1e-6)
    assert mx.Dirac(0).expect({}) == {}
