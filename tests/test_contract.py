"""The contract at its edges: null sets, infeasible points, labels outside the classes, the null measure, precision."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent import log

from . import oracle
from .sweeps import sweep

nan, inf = np.nan, np.inf
rng = np.random.default_rng(1)
logits = rng.normal(size=(4, 5)).astype(np.float32)
labels = np.array([0, 4, 2, 2])
hidden, weight = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32)
close = dict(rtol=2e-6, atol=2e-6)


def batch_loss(h, w, m, y=labels):
    return mx.cross_entropy(mx.Empirical((h, jnp.asarray(y)), weights=m), mx.LinearSoftmax(w))


@pytest.mark.long
@sweep("junk", [nan, inf, -inf, 1e38], cost=0.34)
@sweep("jit", [False, True])
def test_null_rows_are_nothing(junk, jit):
    """Weight 0 over NaN or ±inf: exactly 0 to the value and to every derivative."""
    mask = jnp.array([1.0, 0.0, 2.0, 0.0])
    y = np.array([0, -100, 2, 99])
    padded = hidden.copy()
    padded[[1, 3]] = junk
    keep = [0, 2]
    function = jax.value_and_grad(lambda *a: batch_loss(*a, y=y), (0, 1, 2))
    value, (dh, dw, dm) = (jax.jit(function) if jit else function)(jnp.asarray(padded), jnp.asarray(weight), mask)
    target = oracle.one_hot(labels[keep], 5)
    expected, eh, ew, _, em = oracle.head(hidden[keep], weight, np.zeros(5), target, [1.0, 2.0])
    np.testing.assert_allclose(value, expected, **close)
    np.testing.assert_array_equal(dh[jnp.array([1, 3])], 0)
    np.testing.assert_allclose(dh[jnp.array(keep)], eh, **close)
    np.testing.assert_allclose(dw, ew, **close)
    np.testing.assert_allclose(dm[jnp.array(keep)], em, **close)
    tangents = (jnp.ones_like(padded), jnp.zeros_like(weight), jnp.zeros(4))
    _, tangent = jax.jvp(lambda *a: batch_loss(*a, y=y), (jnp.asarray(padded), jnp.asarray(weight), mask), tangents)
    np.testing.assert_allclose(tangent, eh.sum(), rtol=1e-5, atol=1e-5)


def test_null_atoms_of_any_integrand():
    """Functions of the user's own: their parameters get no NaN from a null atom, and its weight gets its true derivative."""
    x, w = jnp.array([0.0, 1.0, 2.0, nan]), jnp.array([0.0, 1.0, 3.0, 0.0])
    loss = lambda a, w: mx.Atoms(x, weights=w).expect(lambda x: a * jnp.log(x))
    value, (da, dw) = jax.value_and_grad(loss, (0, 1))(2.0, w)
    np.testing.assert_allclose(value, 6 * np.log(2), **close)
    np.testing.assert_allclose(da, 3 * np.log(2), **close)
    np.testing.assert_allclose(dw, [0, 0, 2 * np.log(2), 0], **close)
    # where the integrand is finite, ∂/∂w is the integrand, at weight 0 too
    dw = jax.grad(lambda w: mx.Atoms(jnp.array([3.0, 1.0]), weights=w).expect(jnp.square))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(dw, [9, 1], **close)
    mixed = jax.jacfwd(jax.grad(loss, 0), 1)(2.0, w)
    np.testing.assert_allclose(mixed, [0, 0, np.log(2), 0], **close)


@pytest.mark.slow("second derivatives")
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_null_rows_are_nothing_to_second_derivatives(bad):
    """Reverse over reverse too, in logits and in weights, where a row of the wrong sort of zero would give 0 · NaN."""
    z = rng.normal(size=(3, 5)).astype(np.float32)
    spoiled, w, y = jnp.asarray(z).at[1, 2:4].set(bad), jnp.array([1.0, 0.0, 2.0]), jnp.array([0, 2, 4])

    def loss(z, w):
        smoothed = 0.75 * mx.Dirac(y) + 0.25 * mx.DiscreteUniform(5)
        return mx.cross_entropy(w * smoothed, mx.Categorical(z)).sum()

    p = np.exp(oracle.log_softmax(z))
    fisher = np.einsum(
        "n,nij,nm->nimj", np.asarray(w), np.einsum("ni,ij->nij", p, np.eye(5)) - p[:, :, None] * p[:, None], np.eye(3)
    )
    fisher[1], fisher[:, :, 1] = 0, 0
    cross = np.einsum("ni,nm->nim", p - 0.75 * oracle.one_hot(y, 5) - 0.05, np.eye(3))
    modes = itertools.product((jax.jacrev, jax.jacfwd), repeat=2)
    derivatives = lambda outer, inner: (outer(inner(loss)), outer(inner(loss), 1), outer(inner(loss, 1)))
    orders = [f for outer, inner in modes for f in derivatives(outer, inner)]
    results = iter(jax.jit(lambda z, w: [f(z, w) for f in orders])(spoiled, w))
    for hessian, mixed, other in zip(*[results] * 3, strict=True):
        np.testing.assert_allclose(hessian, fisher, **close)
        for got in (mixed, np.moveaxis(other, 0, -1)):
            assert np.all(np.isfinite(got))
            np.testing.assert_allclose(got[::2], cross[::2], **close)


def test_restricted_rows_may_be_padding():
    padded = np.where(np.arange(4)[:, None] == 1, nan, hidden).astype(np.float32)
    y = np.where(np.arange(4) == 1, -100, labels)

    def loss(h, w):
        P = mx.Empirical((h, jnp.asarray(y))).restrict(lambda h, y: y != -100).normalize()
        return mx.cross_entropy(P, mx.LinearSoftmax(w))

    value, (dh, dw) = jax.value_and_grad(loss, (0, 1))(jnp.asarray(padded), jnp.asarray(weight))
    keep = [0, 2, 3]
    expected, eh, ew, *_ = oracle.head(hidden[keep], weight, np.zeros(5), oracle.one_hot(labels[keep], 5), np.ones(3))
    np.testing.assert_allclose(value, expected, **close)
    np.testing.assert_allclose(dh[jnp.array(keep)], eh, **close)
    np.testing.assert_array_equal(dh[1], 0)
    np.testing.assert_allclose(dw, ew, **close)


def test_zero_log_zero():
    p = jnp.array([0.5, 0.0, 0.5])
    value, gradient = jax.value_and_grad(lambda p: mx.entropy(mx.Categorical(probs=p)))(p)
    np.testing.assert_allclose(value, np.log(2), **close)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient[jnp.array([0, 2])], np.log(2) - 1, **close)
    z = jnp.array([0.0, -inf, 0.0])
    value, gradient = jax.value_and_grad(lambda z: mx.cross_entropy(mx.Categorical(probs=p), mx.Categorical(z)))(z)
    np.testing.assert_allclose(value, np.log(2), **close)
    np.testing.assert_array_equal(gradient, 0)
    dq = jax.grad(lambda q: mx.cross_entropy(mx.Categorical(probs=p), mx.Categorical(probs=q)))(p)
    np.testing.assert_allclose(dq, [-1, 0, -1], **close)


def test_infeasible_is_infinite_with_a_finite_gradient_in_the_logits():
    z = jnp.array([0.0, -inf, 0.0])
    loss = lambda z: mx.cross_entropy(mx.Dirac(1), mx.Categorical(z))
    value, gradient = jax.value_and_grad(loss)(z)
    assert value == inf
    np.testing.assert_array_equal(gradient, [0.5, -1, 0.5])
    assert mx.kl_divergence(mx.DiscreteUniform(3), mx.Categorical(z)) == inf
    assert mx.kl_divergence(mx.Categorical(jnp.zeros(3)), mx.Dirac(0)) == inf
    assert mx.kl_divergence(mx.Dirac(0), mx.Categorical(jnp.zeros(3))) == pytest.approx(np.log(3))
    hard_zero = jax.grad(lambda q: mx.cross_entropy(mx.Dirac(0), mx.Categorical(probs=q)))(jnp.array([0.0, 1.0]))
    assert hard_zero[0] == -inf


@pytest.mark.parametrize("label", [-1, -100, 5, 2**31 - 1])
@pytest.mark.parametrize("parameter", ["logits", "probs"])
def test_labels_outside_the_classes(label, parameter):
    """Nothing wraps: the loss is +inf and the gradient NaN, so that no run trains on by accident."""
    loss = lambda q: mx.cross_entropy(mx.Dirac(label), mx.Categorical(**{parameter: q}))
    value, gradient = jax.value_and_grad(loss)(jnp.full(5, 0.2))
    assert value == inf
    assert np.all(np.isnan(gradient)) if parameter == "logits" else np.any(np.isnan(gradient))
    _, tangent = jax.jvp(loss, (jnp.full(5, 0.2),), (jnp.ones(5),))
    assert np.isnan(tangent)
    assert log(mx.Categorical(jnp.zeros(5)))(label) == -inf


@pytest.mark.sweep(0.34)
@sweep("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"], cost=0.34)
def test_labels_of_any_integers(dtype):
    """In a family, a sparse target, a head and a sigmoid, with x64 on; a number beyond int64 is no class."""
    with jax.enable_x64(True):
        y, z = labels.astype(dtype), jnp.asarray(logits, jnp.float64)
        expected = oracle.rows(logits, oracle.one_hot(labels, 5))
        found = {
            "labels": mx.cross_entropy(mx.Dirac(y), mx.Categorical(z)),
            "atoms": mx.cross_entropy(mx.Discrete(y[:, None], jnp.ones((4, 1))), mx.Categorical(z)),
            "head": mx.cross_entropy(mx.Dirac(y), mx.LinearSoftmax(jnp.eye(5))(z)),
            "density": -log(mx.Categorical(z))(y),
        }
        for name, value in found.items():
            np.testing.assert_allclose(value, expected, rtol=1e-12, err_msg=name)
        value = mx.cross_entropy(mx.Dirac(y % 2), mx.Bernoulli(z[:, 0]))
        np.testing.assert_allclose(
            value, np.logaddexp(0, np.where(labels % 2, -1, 1) * logits[:, 0].astype(np.float64))
        )
        largest = np.full(4, np.iinfo(dtype).max, dtype)
        assert np.all(mx.cross_entropy(mx.Dirac(largest), mx.Categorical(z)) == inf)
        with pytest.raises(TypeError, match="real numbers, got dtype bool"):
            mx.cross_entropy(mx.Dirac(labels > 2), mx.Categorical(z))


def test_ignoring_is_asked_for():
    y = jnp.array([0, -100])
    weighted = lambda z: mx.cross_entropy(jnp.array([1.0, 0.0]) * mx.Dirac(y), mx.Categorical(z))
    value, gradient = weighted(logits[:2]), jax.jacrev(lambda z: weighted(z).sum())(jnp.asarray(logits[:2]))
    np.testing.assert_allclose(value, [-oracle.log_softmax(logits[0])[0], 0], **close)
    np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.long
@pytest.mark.parametrize("h", [0.0, nan])
def test_the_null_measure(h):
    """An all-ignored batch has loss 0 and gradient 0, and normalize() leaves the null measure null."""
    value, gradients = jax.value_and_grad(batch_loss, (0, 1))(jnp.full((4, 3), h), jnp.asarray(weight), jnp.zeros(4))
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)
    P = mx.Empirical((jnp.full((4, 3), h), jnp.full(4, -100))).restrict(lambda h, y: y >= 0).normalize()
    assert P.mass == 0
    value, gradient = jax.value_and_grad(lambda w: mx.cross_entropy(P, mx.LinearSoftmax(w)))(jnp.asarray(weight))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    null = (0 * mx.Dirac(1)).normalize()
    assert null.mass == 0
    assert null.expect(lambda x: nan) == 0
    assert mx.entropy(null) == 0
    assert mx.kl_divergence(null, mx.DiscreteUniform(3)) == 1  # Q(1) − P(1)


def test_kl_of_finite_measures():
    P, Q = mx.Categorical(jnp.asarray(logits[0])), mx.Categorical(jnp.asarray(logits[1]))
    p, q = (np.exp(oracle.log_softmax(z)) for z in logits[:2])
    expected = (2 * p * np.log(2 * p / (3 * q))).sum() + 3 - 2
    np.testing.assert_allclose(mx.kl_divergence(2 * P, 3.0 * Q), expected, **close)


@pytest.mark.slow("second derivatives")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_accumulates_in_float32(dtype):
    z = jnp.asarray(rng.normal(size=(3, 50_000)), dtype)
    y = jnp.array([1, 2, 3])
    loss = lambda z: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z))
    assert loss(z).dtype == jnp.float32
    exact = np.asarray(z.astype(jnp.float32), np.float64)
    np.testing.assert_allclose(loss(z), oracle.rows(exact, oracle.one_hot(y, 50_000)), rtol=1e-6)
    gradient = jax.grad(lambda z: loss(z).sum())(z)
    assert gradient.dtype == dtype
    expected = oracle.rows_gradient(exact, oracle.one_hot(y, 50_000))
    # rounded once: half an ulp of the result's dtype, and the smallest subnormal of float16
    np.testing.assert_allclose(gradient.astype(np.float32), expected, rtol=float(jnp.finfo(dtype).eps), atol=6e-8)
    P = mx.Empirical(jnp.asarray(hidden, dtype))
    assert P.expect(lambda x: x).dtype == jnp.float32
    Q = mx.LinearSoftmax(jnp.asarray(weight, dtype))
    both = mx.Empirical((jnp.asarray(hidden, dtype), jnp.asarray(labels)))
    value, gradient = jax.value_and_grad(lambda h: mx.cross_entropy(mx.Empirical((h, jnp.asarray(labels))), Q))(
        jnp.asarray(hidden, dtype)
    )
    assert value.dtype == mx.cross_entropy(both, Q).dtype == jnp.float32
    assert gradient.dtype == dtype


def test_float64_throughout():
    with jax.enable_x64(True):
        z = jnp.asarray(rng.normal(size=(4, 5)))
        smoothed = (1 - 0.1) * mx.Dirac(jnp.asarray(labels)) + 0.1 * mx.DiscreteUniform(5)
        value = mx.cross_entropy(smoothed, mx.Categorical(z))
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, oracle.rows(z, 0.9 * oracle.one_hot(labels, 5) + 0.02), rtol=1e-15)
        single = mx.cross_entropy(smoothed, mx.Categorical(z.astype(jnp.float32)))
        assert single.dtype == jnp.float32
        P = mx.Empirical(jnp.asarray(hidden), weights=jnp.ones(4, jnp.float32))
        assert P.expect(jnp.sum).dtype == jnp.float32


def test_confident_rows_keep_relative_accuracy():
    z = jnp.array([20.0, 0.0, 0.0])
    value, gradient = jax.value_and_grad(lambda z: mx.cross_entropy(mx.Dirac(0), mx.Categorical(z)))(z)
    np.testing.assert_allclose(value, np.log1p(2 * np.exp(-20.0)), rtol=1e-6)
    np.testing.assert_allclose(gradient[0], -(gradient[1] + gradient[2]), rtol=1e-6)
    assert gradient[0] < 0


def test_value_assertions_live_under_chexify():
    bad = jnp.array([0.5, 0.6])
    f = lambda p: mx.entropy(mx.Categorical(probs=p))
    jax.jit(f)(bad)  # free, silent
    checked = chex.chexify(jax.jit(lambda p: f(p)), async_check=False)
    checked(jnp.array([0.5, 0.5]))
    with pytest.raises(AssertionError, match="sum to 1"):
        checked(bad)


@pytest.mark.parametrize(
    "weights",
    [np.array([1.0, -1.0, 0.0]), np.array([0.1, 0.2, -0.3]), np.random.default_rng(0).normal(size=3)],
    ids=["exactly", "but for rounding", "not"],
)
def test_masses_of_both_signs_that_cancel_have_no_mean(weights):
    """Advantages, centred: their mean is of no measure, and is NaN, not 0. Masks and a null batch are as ever."""
    w, x = jnp.asarray(weights, jnp.float32), jnp.array([1.0, 2.0, 4.0])
    P = mx.Empirical(x, weights=w)
    joint = mx.joint(mx.Atoms(x, weights=w), mx.Dirac(jnp.array([0, 1, 0]))).normalize()
    signed = mx.Discrete(weights=w).normalize()
    expected = np.sum(weights * [1, 2, 4]) / weights.sum() if abs(weights.sum()) > 1e-6 else np.nan
    for mean in (P.expect(lambda x: x), joint.expect(lambda x, y: x), signed.expect(lambda k: 2.0**k)):
        np.testing.assert_allclose(mean, expected, rtol=1e-4)
    np.testing.assert_allclose(mx.Atoms(x, weights=w).expect(lambda x: x), np.sum(weights * [1, 2, 4]), rtol=1e-5)
    assert mx.Empirical(x, weights=0 * w).expect(lambda x: x) == 0


def test_perplexity_is_of_the_normalised_measure():
    counts = mx.Atoms(jnp.arange(3), weights=jnp.array([50.0, 30.0, 20.0]))
    p = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(mx.perplexity(counts), np.exp(-np.sum(p * np.log(p))), rtol=1e-5)
    np.testing.assert_allclose(mx.perplexity(counts, mx.DiscreteUniform(3)), 3.0, rtol=1e-5)
    assert mx.perplexity(0 * counts, mx.DiscreteUniform(3)) == 1


def test_information_is_of_the_normalised_measure():
    """A table of counts has the information of its frequencies, not a divergence of masses n and n²."""
    counts = np.array([[50.0, 10.0], [5.0, 35.0]])
    p = counts / counts.sum()
    expected = np.sum(p * np.log(p / (p.sum(1, keepdims=True) * p.sum(0))))
    P = mx.Atoms(tuple(jnp.indices((2, 2)).reshape(2, -1)), weights=jnp.asarray(counts.ravel()))
    np.testing.assert_allclose(mx.mutual_information(P), expected, rtol=1e-5)
    np.testing.assert_allclose(mx.total_correlation(P), expected, rtol=1e-5)
    np.testing.assert_allclose(mx.pointwise_mutual_information(P)(0, 0), np.log(0.5 / (0.6 * 0.55)), rtol=1e-5)
    rows = p / p.sum(1, keepdims=True)
    np.testing.assert_allclose(mx.conditional_entropy(P), -np.sum(p * np.log(rows)), rtol=1e-5)
