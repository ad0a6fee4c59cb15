"""The error of the loss and its gradient, in ulps, over classes, spreads, margins and dtypes, against float64 and mpmath.

The bound. A surprisal is (r − z) + log1p(Σ exp(z_j − r) without the reference's own term), r the maximum or z itself: sums
of non-negative terms, so relative errors add. With eps the spacing of the dtype sums are kept in,

- a difference z_j − r rounds by ½ eps·|z_j − r|, which exp turns into a relative error of its term: a term a margin from
  the reference carries ½·margin, and terms further below than their share of the sum lets them do not count;
- exp and log1p are good to 2 eps each, products and the last additions to 1;
- a sum of V terms of one sign in an order that a compiler chooses grows like a random walk, √V/2, in vector lanes less.

Together (5 + margin/2 + √V/2) eps, for the loss and, as it is made of the same numbers, for each entry of the gradient,
where margin is the largest difference whose term matters (at most ~90 in float32, where exp underflows).
"""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import measure_xent as mx

from .sweeps import sweep

CLASSES = [1, 2, 3, 10, 65, 1001, 50257]


def exact(z, y):
    """(loss, gradient) of one row at label y, from float64 logits, without cancellation: log1p of the others' ratios."""
    z = np.asarray(z, np.float64)
    others = np.delete(z, y) - z[y]
    if others.size == 0:
        return 0.0, np.zeros(1)
    top = max(others.max(), 0.0)
    ratios = np.exp(others - top).sum()
    loss = np.log1p(ratios) if top == 0 else top + np.log(np.exp(-top) + ratios)
    p = np.exp(z - z[y] - loss)
    p[y] = np.expm1(-loss)
    return loss, p


def bound(eps, margin, classes):
    return (5 + margin / 2 + np.sqrt(classes) / 2) * eps


def rows(classes, rng):
    """Logits of every spread and margin: (spread, margin) → one row with label y at the margin over the rest."""
    for spread in (1e-6, 1e-2, 1.0, 30.0, 1e4):
        for margin in (0.0, 1.0, 20.0, 80.0, 200.0):
            z = spread * rng.normal(size=classes)
            y = int(rng.integers(classes))
            z[y] = np.delete(z, y).max(initial=0.0) + margin
            yield margin, z, y


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loss_and_gradient_to_the_ulp(classes, dtype):
    rng = np.random.default_rng(classes)
    eps = float(jnp.finfo(jnp.float32).eps)
    _, logits, labels = zip(*rows(classes, rng), strict=True)
    z, y = jnp.asarray(np.stack(logits), dtype), jnp.asarray(labels)
    loss = jax.jit(lambda z: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z)))
    values = np.asarray(loss(z))
    assert values.dtype == np.float32
    # the gradient before it is rounded to the logits' dtype
    gradients = np.asarray(jax.jit(jax.grad(lambda z: loss(z).sum()))(z.astype(jnp.float32)))
    for row in range(len(labels)):
        expected, gradient = exact(np.asarray(z[row].astype(jnp.float32), np.float64), labels[row])
        if expected < 1e-34:  # exp underflows: float32 holds no such number
            assert values[row] <= 1e-34
            continue
        span = np.ptp(np.asarray(z[row].astype(jnp.float32), np.float64))
        tolerance = bound(eps, min(span, 90), classes)
        assert abs(values[row] - expected) <= tolerance * expected, (row, values[row], expected)
        normal = np.abs(gradient) > 1e-37
        error = np.abs(gradients[row] - gradient)[normal] / np.abs(gradient)[normal]
        assert error.max(initial=0) <= 2 * tolerance, row
        assert abs(gradients[row].astype(np.float64).sum()) <= 2 * tolerance * np.abs(gradient).sum()


@pytest.mark.parametrize("classes", [1, 2, 7, 200])
def test_float64_against_mpmath(classes):
    rng = np.random.default_rng(classes)
    with jax.enable_x64(True), mpmath.workdps(400):  # 1 + 1e-322 must not round
        for margin, z, y in rows(classes, rng):
            value, gradient = jax.value_and_grad(lambda z, y=y: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z)))(
                jnp.asarray(z)
            )
            assert value.dtype == jnp.float64
            shifted = [mpmath.mpf(float(x)) - mpmath.mpf(float(z[y])) for x in z]
            total = mpmath.fsum(mpmath.exp(x) for x in shifted)
            loss = mpmath.log(total)
            tolerance = bound(2**-52, min(np.ptp(z), 740), classes)
            assert abs(mpmath.mpf(float(value)) - loss) <= tolerance * loss, (margin, float(value), loss)
            for j in range(classes):
                p = mpmath.exp(shifted[j]) / total - (j == y)
                if abs(p) > 1e-300:
                    assert abs(mpmath.mpf(float(gradient[j])) - p) <= 2 * tolerance * abs(p)


def test_the_example_of_the_contract():
    z = jnp.array([20.0, 0.0, 0.0])
    for loss in (lambda z: mx.cross_entropy(mx.Dirac(0), mx.Categorical(z)), lambda z: _in_blocks(z)):
        value, gradient = jax.value_and_grad(loss)(z)
        np.testing.assert_allclose(value, np.log1p(2 * np.exp(-20.0)), rtol=1e-6)
        np.testing.assert_allclose(gradient.sum(), 0, atol=1e-6 * abs(float(gradient[0])))


def _in_blocks(z):
    """The same row, 40 000 times padded with forbidden classes, so that it takes the path in blocks."""
    wide = jnp.concatenate([z, jnp.full(97, -jnp.inf)])
    many = jnp.broadcast_to(wide, (40_000, 100))
    return mx.cross_entropy(mx.Dirac(jnp.zeros(40_000, int)), mx.Categorical(many)).mean()


@sweep("shape", [(3000, 1000), (701, 1001), (3, 300_001), (5, 7, 20_003)])
@sweep("dtype", ["float32", "bfloat16", "float16"])
def test_blocks_of_rows(shape, dtype):
    """Row counts and class counts that divide no block, every kind of target, values and gradients, under vmap too."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=shape) * 3, dtype)
    exact_z = np.asarray(z.astype(jnp.float32), np.float64)
    log_q = exact_z - exact_z.max(-1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(-1, keepdims=True))
    y = rng.integers(shape[-1], size=shape[:-1])
    lam = rng.uniform(size=shape[:-1]).astype(np.float32)
    cot = rng.normal(size=shape[:-1]).astype(np.float32)
    smoothed = lambda: jnp.asarray(lam) * mx.Dirac(jnp.asarray(y)) + 0.25 * mx.DiscreteUniform(shape[-1])
    loss = jax.jit(lambda z: mx.cross_entropy(smoothed(), mx.Categorical(z)))
    at_label = np.take_along_axis(log_q, y[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss(z), -lam * at_label - 0.25 * log_q.mean(-1), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda z: jnp.vdot(loss(z), jnp.asarray(cot))))(z)
    assert gradient.dtype == z.dtype
    expected = (lam + 0.25)[..., None] * np.exp(log_q) - 0.25 / shape[-1]
    np.put_along_axis(expected, y[..., None], np.take_along_axis(expected, y[..., None], -1) - lam[..., None], -1)
    expected *= cot[..., None]
    eps = float(jnp.finfo(z.dtype).eps)
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected, rtol=max(eps, 2e-4), atol=6e-8)
    mapped = jax.jit(jax.vmap(lambda z, y: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z))))(z, jnp.asarray(y))
    np.testing.assert_allclose(mapped, -at_label, rtol=1e-5)


@pytest.mark.parametrize("classes", [5, 40])
def test_a_confident_class_that_is_not_the_first_atom(classes):
    """Null atoms, repeated ones and a dense part: where the mass is decides, not which atom is listed or heaviest."""
    z = jnp.zeros((2, classes)).at[:, 3].set(30.0)
    tail = (classes - 1) * np.exp(-30.0)
    one_hot = mx.Categorical(probs=jnp.zeros((2, classes)).at[:, 3].set(1.0))
    weight = jnp.array([0.5, 0.0])
    targets = {
        "null": weight * mx.Dirac(jnp.array([3, -100])) + (1 - weight) * one_hot,
        "two": 0.25 * mx.Dirac(jnp.array([3, 3])) + 0.25 * mx.Dirac(jnp.array([3, 3])) + 0.5 * one_hot,
    }
    for name, P in targets.items():
        value, gradient = jax.value_and_grad(lambda z, P=P: mx.cross_entropy(P, mx.Categorical(z))[1])(z)
        np.testing.assert_allclose(value, np.log1p(tail), rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(gradient[1, 3], -tail, rtol=1e-5, err_msg=name)
    counts = mx.Discrete(jnp.full(4000, 3).at[0].set(1), jnp.ones(4000))
    np.testing.assert_allclose(mx.cross_entropy(counts, mx.Categorical(z[0])), 30 + 4000 * tail, rtol=1e-6)
    lopsided = mx.Discrete(jnp.array([1, 3]), jnp.array([1e-9, 1.0]))
    np.testing.assert_allclose(mx.cross_entropy(lopsided, mx.Categorical(z[0])), 30e-9 + tail, rtol=1e-5)


@pytest.mark.parametrize("case", ["far below", "forbidden", "light", "undefined"])
def test_rows_that_the_label_s_logit_cannot_stand_for(case):
    """Of 40 classes, one row whose sum overflows, or whose mass is elsewhere, takes all rows relative to their maximum."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 40)).astype(np.float32)
    y = np.array([1, 5, 7])
    z[1, 5] = {"far below": -200.0, "forbidden": -np.inf, "light": 0.0, "undefined": np.nan}[case]
    P, dense = mx.Dirac(jnp.asarray(y)), 1.0 * (y[:, None] == np.arange(40))
    if case == "light":
        z[1, 9] = 25.0
        P = mx.Discrete(
            jnp.stack([jnp.asarray(y), jnp.full(3, 9)], -1), jnp.array([0.5, 0.5])
        ) + 4.0 * mx.DiscreteUniform(40)
        dense = 0.5 * (y[:, None] == np.arange(40)) + 0.5 * (np.arange(40) == 9) + 4.0 / 40
    exact_z = z.astype(np.float64)
    log_p = exact_z - np.log(np.exp(exact_z - exact_z.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_p -= exact_z.max(-1, keepdims=True)
    expected = np.where(dense == 0, 0, -dense * log_p).sum(-1)
    slope = dense.sum(-1, keepdims=True) * np.exp(log_p) - dense
    function = lambda z: mx.cross_entropy(P, mx.Categorical(z))
    value, gradient = jax.jit(lambda z: (function(z), jax.grad(lambda z: function(z).sum())(z)))(jnp.asarray(z))
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
