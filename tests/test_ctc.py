"""The loss of connectionist temporal classification against the sum over all paths, in numbers of 60 digits."""

import functools
import itertools
import unittest

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax.losses
import pytest

from measure_xent import losses

rng = np.random.default_rng(0)
inf, nan = np.inf, np.nan


def oracle(z, labels, blank=0):
    """(the loss, its gradient): every path of the frames z [T, K] that spells the labels."""
    with mpmath.workdps(60):
        weights = [[mpmath.exp(float(x)) if np.isfinite(x) else mpmath.mpf(0) for x in row] for row in z]
        p = [[w / sum(row) for w in row] for row in weights]
        total, passing = mpmath.mpf(0), [[mpmath.mpf(0)] * len(row) for row in p]
        for path in itertools.product(range(len(z[0])), repeat=len(z)):
            if [k for k, _ in itertools.groupby(path) if k != blank] == list(labels):
                weight = mpmath.fprod(row[k] for row, k in zip(p, path, strict=True))
                total += weight
                for row, k in zip(passing, path, strict=True):
                    row[k] += weight
        if total == 0:
            return inf, np.zeros(np.shape(z))
        gradient = [[a - b / total for a, b in zip(*rows, strict=True)] for rows in zip(p, passing, strict=True)]
        return float(-mpmath.log(total)), np.array([[float(g) for g in row] for row in gradient])


def frames(T, K, *classes, gap):
    """Frames that are all but certain, of the class or of the pair of classes named."""
    z = np.full((T, K), -gap)
    for row, of in zip(z, classes, strict=True):
        row[list(np.atleast_1d(of))] = 0
    return z


def cases():
    draw = lambda scale, T, K: scale * rng.normal(size=(T, K))
    yield "even", np.zeros((3, 3)), [1]
    yield "random", draw(1, 5, 3), [1, 2]
    yield "far apart", draw(9, 5, 3), [2, 1]
    yield "a label twice", draw(3, 5, 3), [1, 1, 2]
    yield "twice, just fits", draw(3, 5, 3), [1, 1, 1]
    yield "no label", draw(3, 4, 3), []
    yield "no frame to spare", draw(3, 3, 4), [3, 1, 2]
    yield "two classes", draw(2, 4, 2), [1]
    yield "only blanks", draw(2, 2, 1), []
    yield "a class forbidden", np.where(np.arange(4) == 3, -inf, draw(1, 4, 4)), [1, 2]
    yield "a label forbidden in a frame", np.where(np.arange(12).reshape(4, 3) == 4, -inf, draw(1, 4, 3)), [1, 2]
    yield "certain", frames(4, 4, 1, 0, 2, 2, gap=20.0), [1, 2]
    yield "more certain", frames(3, 4, 1, 0, 2, gap=36.0), [1, 2]
    # Nearly certain by several paths together, no one of which is.
    yield "two alignments", frames(3, 5, 0, (0, 2), 2, gap=18.0), [2]
    yield "three alignments", frames(4, 5, 1, (0, 1), (0, 2), 2, gap=17.0), [1, 2]
    yield "label or label", frames(3, 4, 1, (1, 2), 2, gap=19.0), [1, 2]
    yield "all but likely", frames(4, 4, 1, 0, 2, 2, gap=20.0), [2, 1]
    yield "a small third class", np.where(np.arange(5) == 3, -9.0, frames(3, 5, 0, (0, 2), 2, gap=18.0)), [2]


CASES = {name: (z, labels) for name, z, labels in cases()}


def loss(z, labels, **options):
    z, labels = jnp.asarray(z)[None], jnp.asarray(labels, int)[None]
    return losses.ctc_loss(z, jnp.zeros(z.shape[:2]), labels, jnp.zeros(labels.shape), **options)[0]


def together(dtype):
    """All cases as one batch: frames and labels padded, classes that a case has not forbidden."""
    T, K, N = (max(sizes) for sizes in zip(*((*z.shape, len(y)) for z, y in CASES.values()), strict=True))
    fill = lambda x, shape, value: np.pad(
        x, [(0, n - m) for n, m in zip(shape, np.shape(x), strict=True)], constant_values=value
    )
    every = [
        (fill(z, (*z.shape[:1], K), -inf), np.zeros(len(z)), np.array(y, int), np.zeros(len(y)))
        for z, y in CASES.values()
    ]
    z, padded, labels, unlabelled = zip(*every, strict=True)
    return (
        np.stack([fill(x, (T, K), nan) for x in z]).astype(dtype),
        np.stack([fill(x, (T,), 1) for x in padded]),
        np.stack([fill(x, (N,), -1) for x in labels]),
        np.stack([fill(x, (N,), 1) for x in unlabelled]),
    )


@pytest.mark.slow("many shapes of a scan")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_and_gradient(dtype):
    """To relative accuracy, the gradient to that of the largest in its frame; both modes; the blank anywhere."""
    with jax.enable_x64(dtype == "float64"):
        z, *rest = together(dtype)
        of = lambda z: losses.ctc_loss(z, *rest)
        values, gradients = jax.jit(lambda z: (of(z), jax.grad(lambda z: of(z).sum())(z)))(z)
        single = dtype == "float32"
        for i, (name, (x, labels)) in enumerate(CASES.items()):
            (T, K), (value, gradient) = x.shape, oracle(x.astype(dtype), labels)
            np.testing.assert_allclose(values[i], value, rtol=1e-6 if single else 1e-14, err_msg=name)
            # A class as probable given the labels as without has a gradient that rounding of its probability swamps.
            least = 1e-30 if value < np.log(2) else 0.1
            largest = np.maximum(np.abs(gradient).max(-1, keepdims=True), least)
            error = np.abs(gradients[i, :T, :K] - gradient) / largest
            assert error.max() < (4e-6 if single else 4e-14), name
            np.testing.assert_array_equal(gradients[i, T:], 0)
        direction = np.where(np.isfinite(z), rng.normal(size=z.shape), 0).astype(dtype)
        along = jax.jit(lambda z: jax.jvp(of, (z,), (direction,))[1])(z)
        np.testing.assert_allclose(along, np.sum(gradients * direction, (1, 2)), rtol=1e-5, atol=1e-5)


def test_the_blank_may_be_any_class():
    z, padded, labels, unlabelled = together("float32")
    expected = jax.jit(losses.ctc_loss)(z, padded, labels, unlabelled)
    last = jax.jit(functools.partial(losses.ctc_loss, blank_id=z.shape[-1] - 1))
    np.testing.assert_allclose(last(np.roll(z, -1, axis=-1), padded, labels - 1, unlabelled), expected, rtol=1e-6)


@pytest.mark.long
def test_where_optax_is_wrong():
    assert loss(np.array([[0, 0, 0, 0, 0, 0, -inf]]), [1]) == pytest.approx(1.791759, rel=1e-6)  # log 6
    z = rng.normal(size=(2, 5))
    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    value, gradient = value_and_gradient(z, (1, 1))  # no path is long enough
    assert value == inf
    np.testing.assert_array_equal(gradient, 0)
    for labels in ((1, 5), (-1, 1), (1, 0)):  # no class, or the blank
        value, gradient = value_and_gradient(z, labels)
        assert value == inf
        assert np.isnan(gradient).all()
    half = jnp.asarray(8 * rng.normal(size=(2, 5)), jnp.bfloat16)
    value, gradient = value_and_gradient(half, (1, 2))
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(value, value_and_gradient(half.astype(jnp.float32), (1, 2))[0], rtol=1e-6)


@pytest.mark.slow("scans over many shapes")
def test_padding_may_hold_anything():
    """NaN and ±inf in frames that do not count, any number for labels; sequences of no frame, of no label."""
    z = rng.normal(size=(4, 4, 5)).astype(np.float32)
    lengths, counts = np.array([4, 2, 3, 0]), np.array([2, 1, 2, 0])
    y = np.array([[1, 2], [3, -100], [2, 2], [9, 9]])
    padded, unlabelled = np.arange(4) >= lengths[:, None], np.arange(2) >= counts[:, None]
    of = lambda z: losses.ctc_loss(z, padded.astype(float), y, unlabelled.astype(float))
    for junk in (nan, inf, -inf):
        dirty = jnp.asarray(np.where(padded[..., None], junk, z))
        value, gradient = jax.jit(lambda z: (of(z), jax.grad(lambda z: of(z).sum())(z)))(dirty)
        np.testing.assert_array_equal(gradient[padded], 0)
        for i, (T, N) in enumerate(zip(lengths, counts, strict=True)):
            expected = oracle(z[i, :T], y[i, :N]) if T else (0, 0)
            np.testing.assert_allclose(value[i], expected[0], rtol=1e-6)
            np.testing.assert_allclose(gradient[i, :T], expected[1], atol=1e-6)


def test_no_nan_on_the_way():
    z, y = jnp.array([[[0.0, 1.0, -inf], [-inf, 0.0, 2.0]]] * 2), jnp.array([[1, 2], [2, 1]])  # feasible, and not
    paddings = jnp.zeros((2, 2))
    with jax.debug_nans(True):
        jax.jit(jax.grad(lambda z, c: c @ losses.ctc_loss(z, paddings, y, paddings)))(
            z, jnp.ones(2)
        ).block_until_ready()


@pytest.mark.slow("many shapes of a scan")
def test_long_sequences_against_float64():
    """1000 frames, of a loss of thousands: what a gradient is made of is relative to the state it is in."""
    z, y = 3 * rng.normal(size=(1, 1000, 20)), rng.integers(1, 20, size=(1, 60))
    f = lambda z: losses.ctc_loss(z, jnp.zeros((1, 1000)), y, jnp.zeros((1, 60)))[0]
    single = jax.jit(jax.value_and_grad(f))(jnp.asarray(z, jnp.float32))
    with jax.enable_x64(True):
        double = jax.jit(jax.value_and_grad(f))(jnp.asarray(np.float32(z), jnp.float64))
    np.testing.assert_allclose(single[0], double[0], rtol=1e-6)
    np.testing.assert_allclose(single[1], double[1], atol=6e-5)  # 1000 roundings; of optax 1e-3


@pytest.mark.slow("second derivatives of a scan")
def test_forward_probabilities_and_second_derivatives():
    """optax's where it has a number; the Hessian forward over reverse, reverse over reverse and under vmap."""
    z = rng.normal(size=(2, 4, 5))
    y, padded, unlabelled = (
        jnp.array([[1, 2], [3, 1]]),
        jnp.array([[0.0] * 4, [0, 0, 0, 1]]),
        jnp.array([[0.0, 0], [0, 1]]),
    )
    with jax.enable_x64(True):
        ours, theirs = (
            jax.jit(m.ctc_loss_with_forward_probs)(z, padded, y, unlabelled) for m in (losses, optax.losses)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            finite = b > -1e4
            np.testing.assert_allclose(np.where(finite, a, 0), np.where(finite, b, 0), rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(a[~finite], -inf)
        of = lambda m: lambda z: m.ctc_loss(z, padded, y, unlabelled).sum()
        expected = jax.jit(jax.hessian(of(optax.losses)))(z)
        np.testing.assert_allclose(jax.jit(jax.hessian(of(losses)))(z), expected, atol=1e-12)
        np.testing.assert_allclose(jax.jit(jax.jacrev(jax.jacrev(of(losses))))(z), expected, atol=1e-12)
        both = jax.jit(jax.vmap(of(losses)))(jnp.stack([z, 2 * z]))
        np.testing.assert_allclose(both[0], ours[0].sum(), rtol=1e-12)


def test_bad_input():
    z, y, frame, label = jnp.zeros((3, 4, 5)), jnp.ones((3, 2), int), jnp.zeros((3, 4)), jnp.zeros((3, 2))
    for call, error, words in (
        (lambda f: f(z[0], frame, y, label), ValueError, r"logits \(4, 5\)"),
        (lambda f: f(z, frame, y[:2], label[:2]), ValueError, "as many rows"),
        (lambda f: f(z, frame, y, frame), ValueError, r"label_paddings \(3, 4\)"),
        (lambda f: f(z, label, y, label), ValueError, r"logit_paddings \(3, 2\)"),
        (lambda f: f(z, frame, label, label), TypeError, "integers"),
        (lambda f: f(z, frame, y, label, blank_id=5), ValueError, "blank_id"),
    ):
        for f in (losses.ctc_loss, losses.ctc_loss_with_forward_probs):
            with pytest.raises(error, match=words):
                call(f)


@pytest.mark.slow("many shapes of a scan")
def test_the_suite_of_optax(monkeypatch):
    suite = pytest.importorskip("optax.losses._classification_test")
    for name in ("ctc_loss", "ctc_loss_with_forward_probs"):
        monkeypatch.setattr(suite._classification, name, getattr(losses, name))
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(suite.CTCTest).run(result)
    assert result.testsRun > 2
    assert result.wasSuccessful(), result.errors + result.failures
