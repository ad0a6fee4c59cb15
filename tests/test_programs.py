"""Programs 1 to 4 of the design as users write them, against float64 loops: values and gradients."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent import log

from . import oracle
from .sweeps import sweep

N, D, V, EPS = 7, 4, 11, 0.1
rng = np.random.default_rng(0)
hidden, weight, bias = (rng.normal(size=s).astype(np.float32) for s in ((N, D), (D, V), (V,)))
logits = (3 * rng.normal(size=(N, V))).astype(np.float32)
labels, others = rng.integers(V, size=N), rng.integers(V, size=N)
mask = np.array([1, 0, 1, 1, 0, 1, 1], np.float32)
class_weight = rng.uniform(0.5, 2, size=V).astype(np.float32)
cotangent = rng.normal(size=N).astype(np.float32)
# Float32 rounding of O(1) logits and sums of fewer than 100 terms.
close = dict(rtol=2e-6, atol=2e-6)


def teacher_probs():
    return np.exp(oracle.log_softmax(logits[::-1] / 2.0))


TARGETS = {
    "labels": (lambda: mx.Dirac(jnp.asarray(labels)), oracle.one_hot(labels, V)),
    "smoothed": (
        lambda: (1 - EPS) * mx.Dirac(jnp.asarray(labels)) + EPS * mx.DiscreteUniform(V),
        (1 - EPS) * oracle.one_hot(labels, V) + EPS / V,
    ),
    "mixup": (
        lambda: 0.3 * mx.Dirac(jnp.asarray(labels)) + (1 - 0.3) * mx.Dirac(jnp.asarray(others)),
        0.3 * oracle.one_hot(labels, V) + 0.7 * oracle.one_hot(others, V),
    ),
    "mixup, one coefficient a row": (
        lambda: jnp.asarray(mask) * mx.Dirac(jnp.asarray(labels)) + (1 - mask) * mx.Dirac(jnp.asarray(others)),
        mask[:, None] * oracle.one_hot(labels, V) + (1 - mask)[:, None] * oracle.one_hot(others, V),
    ),
    "top k": (
        lambda: mx.Discrete(jnp.stack([labels, others], -1), jnp.array([0.75, 0.25])),
        0.75 * oracle.one_hot(labels, V) + 0.25 * oracle.one_hot(others, V),
    ),
    "many atoms": (
        lambda: mx.Discrete(jnp.broadcast_to(jnp.arange(8) % V, (N, 8)), jnp.full((N, 8), 0.125)),
        np.broadcast_to(np.where(np.arange(V) < 8, 0.125, 0), (N, V)),
    ),
    "teacher": (lambda: mx.Categorical(jnp.asarray(logits[::-1].copy()) / 2.0), teacher_probs()),
    "teacher with labels": (
        lambda: 0.5 * mx.Categorical(jnp.asarray(logits[::-1].copy()) / 2.0) + 0.5 * mx.Dirac(jnp.asarray(labels)),
        0.5 * teacher_probs() + 0.5 * oracle.one_hot(labels, V),
    ),
    "classes weighted": (
        lambda: mx.Dirac(jnp.asarray(labels)).reweight(lambda y: jnp.asarray(class_weight)[y]),
        class_weight * oracle.one_hot(labels, V),
    ),
}
targets = sweep("name", TARGETS)


@targets
def test_family_of_losses(name):
    P, dense = TARGETS[name]
    loss = lambda z: mx.cross_entropy(P(), mx.Categorical(z))
    value, pullback = jax.vjp(loss, jnp.asarray(logits))
    np.testing.assert_allclose(value, oracle.rows(logits, dense), **close)
    (gradient,) = pullback(jnp.asarray(cotangent))
    np.testing.assert_allclose(gradient, cotangent[:, None] * oracle.rows_gradient(logits, dense), **close)


def head_loss(P, h, w, b, m, **options):
    joint = mx.joint(mx.Empirical(h, weights=m), P())
    return -joint.normalize().expect(log(mx.LinearSoftmax(w, b, **options)))


@pytest.mark.long
@targets
@sweep("softcap", [None, 2.0])
def test_training_loss_is_one_integral(name, softcap):
    P, dense = TARGETS[name]
    arguments = tuple(map(jnp.asarray, (hidden, weight, bias, mask)))
    loss, gradients = jax.value_and_grad(lambda *a: 1.7 * head_loss(P, *a, softcap=softcap), (0, 1, 2, 3))(*arguments)
    expected, *expected_gradients = oracle.head(hidden, weight, bias, dense, mask, softcap)
    np.testing.assert_allclose(loss, 1.7 * expected, **close)
    for gradient, oracles in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, 1.7 * oracles, **close)


@pytest.mark.slow("every combinator")
def test_labels_in_the_empirical_measure():
    P = mx.Empirical((jnp.asarray(hidden), jnp.asarray(labels)), weights=jnp.asarray(mask))
    Q = mx.LinearSoftmax(jnp.asarray(weight), jnp.asarray(bias))
    expected, *_ = oracle.head(hidden, weight, bias, oracle.one_hot(labels, V), mask)
    np.testing.assert_allclose(-P.expect(log(Q)), expected, **close)
    np.testing.assert_allclose(mx.cross_entropy(P, Q), expected, **close)
    K = mx.Conditional(lambda h: mx.Categorical(h @ jnp.asarray(weight) + bias))
    np.testing.assert_allclose(mx.cross_entropy(P, K), expected, **close)
    np.testing.assert_allclose(-P.expect(log(Q), batch_size=3), expected, **close)
    slow = -P.expect(lambda h, y: jax.nn.log_softmax(h @ jnp.asarray(weight) + bias)[y])
    np.testing.assert_allclose(slow, expected, **close)


def test_atoms_may_have_two_axes():
    """weights.shape names the atoms' axes: [batch, time]."""
    h, y, m = np.stack([hidden] * 2), np.stack([labels, others]), np.stack([mask, 1 - mask])
    Q = mx.LinearSoftmax(jnp.asarray(weight), jnp.asarray(bias))
    P = mx.Empirical((jnp.asarray(h), jnp.asarray(y)), weights=jnp.asarray(m))
    flat = [a.reshape(14, *a.shape[2:]) for a in (h, y, m)]
    expected, *_ = oracle.head(flat[0], weight, bias, oracle.one_hot(flat[1], V), flat[2])
    np.testing.assert_allclose(-P.expect(log(Q)), expected, **close)
    J = mx.joint(mx.Empirical(jnp.asarray(h), weights=jnp.asarray(m)), mx.Dirac(jnp.asarray(y)))
    np.testing.assert_allclose(-J.expect(log(Q)), expected, **close)


@pytest.mark.long
def test_options_of_a_loss_are_measures():
    smoothed = (1 - EPS) * mx.Dirac(jnp.asarray(labels)) + EPS * mx.DiscreteUniform(V)
    dense = (1 - EPS) * oracle.one_hot(labels, V) + EPS / V
    P = mx.joint(mx.Empirical(jnp.asarray(hidden), weights=jnp.asarray(mask)), smoothed)
    Q = mx.LinearSoftmax(jnp.asarray(weight), jnp.asarray(bias))
    weighted = P.reweight(lambda h, y: jnp.asarray(class_weight)[y]).normalize()
    expected, *_ = oracle.head(hidden, weight, bias, dense * class_weight, mask)
    np.testing.assert_allclose(-weighted.expect(log(Q)), expected, **close)
    by_row = P.reweight(lambda h, y: jnp.abs(h[0]) * jnp.asarray(class_weight)[y]).normalize()
    expected, *_ = oracle.head(hidden, weight, bias, dense * class_weight * np.abs(hidden[:, :1]), mask)
    np.testing.assert_allclose(-by_row.expect(log(Q)), expected, **close)
    ignored = np.where(np.arange(N) % 3 == 0, -100, labels)
    P = mx.Empirical((jnp.asarray(hidden), jnp.asarray(ignored))).restrict(lambda h, y: y != -100).normalize()
    keep = ignored != -100
    expected, *_ = oracle.head(hidden[keep], weight, bias, oracle.one_hot(labels[keep], V), np.ones(keep.sum()))
    np.testing.assert_allclose(-P.expect(log(Q)), expected, **close)


def test_class_weights_stay_one_vector():
    """f(h, y) that reads only y must not make a target of N × V numbers."""
    P = mx.joint(mx.Empirical(jnp.asarray(hidden)), mx.Dirac(jnp.asarray(labels)) + mx.DiscreteUniform(V))
    (form,) = P.reweight(lambda h, y: jnp.asarray(class_weight)[y]).forms()
    assert form.target.dense.size == V


@pytest.mark.slow("every combinator")
def test_algebra():
    P, Q = mx.Categorical(jnp.asarray(logits[0])), mx.Categorical(jnp.asarray(logits[1]))
    p, q = (np.exp(oracle.log_softmax(z)) for z in logits[:2])
    np.testing.assert_allclose((P / Q)(jnp.arange(V)), p / q, rtol=1e-5)
    np.testing.assert_allclose(log(P / Q)(jnp.arange(V)), np.log(p / q), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(((P / Q) * Q).expect(jnp.sin), p @ np.sin(np.arange(V)), **close)
    np.testing.assert_allclose(((lambda x: x**2) * P).mass, p @ np.arange(V) ** 2, rtol=1e-5)
    for c in (2, 2.0, np.float32(2), np.float64(2), jnp.float32(2), np.array(2.0)):
        np.testing.assert_allclose((c * P).mass, 2, **close)
        np.testing.assert_allclose((P * c).mass, 2, **close)
        np.testing.assert_allclose((c * log(P))(0), 2 * np.log(p[0]), rtol=1e-5)
    np.testing.assert_allclose((P / 2).mass, 0.5, **close)
    np.testing.assert_allclose(sum([P, Q]).mass, 2, **close)
    np.testing.assert_allclose((-P).mass, -1, **close)
    # densities are linear where the parts are signed, too
    np.testing.assert_allclose(((P - Q) / Q)(jnp.arange(V)), p / q - 1, rtol=1e-4, atol=1e-5)


@pytest.mark.slow("every combinator")
def test_integrands_are_closed_under_arithmetic():
    P, Q = mx.Categorical(jnp.asarray(logits[0])), mx.Categorical(jnp.asarray(logits[1]))
    p, (lp, lq) = np.exp(oracle.log_softmax(logits[0])), oracle.log_softmax(logits[:2])
    cases = {
        "difference": (log(P) - log(Q), lp - lq),
        "square": (log(P) * log(P), lp**2),
        "affine": (3 - 2 * log(Q) / 4, 3 - lq / 2),
        "with a callable": (log(Q) * jnp.cos + jnp.sin, lq * np.cos(np.arange(V)) + np.sin(np.arange(V))),
        "negated": (-log(Q), -lq),
        "from the left": ((lambda x: x + 1.0) - log(Q), np.arange(V) + 1 - lq),
    }
    for name, (f, values) in cases.items():
        np.testing.assert_allclose(P.expect(f), p @ values, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose([f(x) for x in range(V)], values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_definition_is_the_source():
    assert inspect.getsource(mx.cross_entropy).rstrip().endswith("return -P.expect(log(Q), method=method)")
    assert inspect.getsource(mx.entropy).rstrip().endswith("return -P.expect(log(P), method=method)")
    kl = "return (P + Q).expect(KullbackLeibler(P, Q), method=method)"
    assert inspect.getsource(mx.kl_divergence).rstrip().endswith(kl)


def test_expect_takes_pytrees_and_batches():
    x = jnp.asarray(hidden)
    P = mx.Empirical({"x": x, "y": jnp.asarray(labels)}, weights=jnp.asarray(mask))
    f = lambda point: {"outer": jnp.outer(point["x"], point["x"]), "y": point["y"]}
    h = hidden.astype(np.float64)
    expected = np.einsum("n,ni,nj->ij", mask, h, h) / mask.sum()
    for batch_size in (None, 1, 2, 3, 7, 100):
        got = P.expect(f, batch_size=batch_size)
        np.testing.assert_allclose(got["outer"], expected, **close)
        np.testing.assert_allclose(got["y"], (mask * labels).sum() / mask.sum(), **close)


def test_batches_bound_memory():
    """Forwards and backwards, an integral over n atoms in batches of b holds O(b), not O(n)."""

    def temporaries(n, batch_size):
        def loss(w, x):
            return mx.Empirical(x).expect(lambda x: jnp.tanh(x @ w).sum(), batch_size=batch_size)

        shapes = jax.ShapeDtypeStruct((64, 512), jnp.float32), jax.ShapeDtypeStruct((n, 64), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8192, 256) < 1.1 * temporaries(2048, 256)
    assert temporaries(8192, 256) < 0.25 * temporaries(8192, None)
