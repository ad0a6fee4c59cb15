"""What is shared and what is a family's own: shapes that broadcast, sizes that coincide, batches, blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent import log
from measure_xent._measures.shapes import arity

from .sweeps import sweep

rng = np.random.default_rng(0)
jitted = lambda thunk: jax.jit(thunk)()  # one compilation, where eager code makes eighty
close = dict(rtol=1e-5, atol=1e-5)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.slow("a program a member")
@pytest.mark.parametrize("n", [3, 5])  # 5 is the number of classes, too
def test_one_measure_against_a_family(n):
    z = rng.normal(size=(n, 5)).astype(np.float32)
    v = np.array([0.125, 0.25, 0.25, 0.125, 0.25])
    lq, q = log_softmax(z), np.exp(log_softmax(z))
    by_probs = mx.Categorical(probs=jnp.asarray(q / q.sum(-1, keepdims=True), jnp.float32))
    for Q in (mx.Categorical(jnp.asarray(z)), by_probs, 0.5 * by_probs + 0.5 * mx.Categorical(jnp.asarray(z))):
        P = mx.Categorical(probs=jnp.asarray(v, jnp.float32))
        np.testing.assert_allclose(jitted(lambda: mx.cross_entropy(P, Q)), -lq @ v, **close)
        np.testing.assert_allclose(jitted(lambda: mx.cross_entropy(mx.DiscreteUniform(5), Q)), -lq.mean(-1), **close)
        smoothed = 0.75 * mx.Dirac(jnp.arange(n)) + 0.25 * mx.DiscreteUniform(5)
        expected = -0.75 * lq[np.arange(n), np.arange(n)] - 0.25 * lq.mean(-1)
        np.testing.assert_allclose(jitted(lambda: mx.cross_entropy(smoothed, Q)), expected, **close)
        np.testing.assert_allclose(jitted(lambda: P.expect(Q / P)), np.ones(n), **close)
        np.testing.assert_allclose(jitted(lambda: ((Q / P) * P).expect(jnp.sin)), q @ np.sin(np.arange(5)), **close)
    p = 0.75 * np.eye(5)[:n] + 0.05
    np.testing.assert_allclose(jitted(lambda: mx.entropy(smoothed)), -(p * np.log(p)).sum(-1), **close)
    np.testing.assert_allclose(
        jitted(lambda: mx.kl_divergence(smoothed, by_probs)), (p * (np.log(p) - lq)).sum(-1), **close
    )


def test_a_vector_times_one_measure_is_a_family():
    c = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(jitted(lambda: (c * mx.Dirac(3)).expect(lambda x: x * 1.0)), [3, 6])
    np.testing.assert_allclose(
        jitted(lambda: (c * mx.Discrete(jnp.arange(3), jnp.ones(3))).expect(lambda x: x * 1.0)), [3, 6]
    )
    np.testing.assert_allclose(jitted(lambda: (c * mx.Atoms(jnp.ones((3, 2)))).expect(lambda x: x.sum())), [6, 12])
    Q = mx.LinearSoftmax(jnp.ones((2, 3)))
    P = mx.Empirical((jnp.ones((3, 2)), jnp.arange(3)))
    np.testing.assert_allclose(jitted(lambda: (c * P).expect(log(Q))), np.array([-1, -2]) * np.log(3), **close)
    lam = jnp.linspace(0, 1, 5)
    mixed = lam * mx.Dirac(jnp.arange(5)) + (1 - lam) * mx.Dirac(0)
    np.testing.assert_allclose(
        jitted(lambda: mx.cross_entropy(mixed, mx.Categorical(jnp.zeros((5, 5))))), np.full(5, np.log(5)), **close
    )


LAWS = {  # of a label, one for all rows or one a row, with its masses on 5 classes
    "one label": (lambda y: mx.Dirac(2), lambda y: np.eye(5)[[2] * 5]),
    "labels": (lambda y: mx.Dirac(y), lambda y: np.eye(5)[y]),
    "one smoothed": (
        lambda y: 0.75 * mx.Dirac(2) + 0.25 * mx.DiscreteUniform(5),
        lambda y: 0.75 * np.eye(5)[[2] * 5] + 0.05,
    ),
    "smoothed": (lambda y: 0.75 * mx.Dirac(y) + 0.25 * mx.DiscreteUniform(5), lambda y: 0.75 * np.eye(5)[y] + 0.05),
    "uniform": (lambda y: mx.DiscreteUniform(5), lambda y: np.full((5, 5), 0.2)),
    "as many atoms as rows": (
        lambda y: mx.Discrete(jnp.arange(5), jnp.array([0.125, 0.25, 0.25, 0.125, 0.25])),
        lambda y: np.array([[0.125, 0.25, 0.25, 0.125, 0.25]] * 5),
    ),
    "a conditional": (
        lambda y: mx.Conditional(lambda h: 0.5 * mx.DiscreteUniform(5) + 0.5 * mx.Dirac(1)),
        lambda y: np.full((5, 5), 0.1) + 0.5 * np.eye(5)[[1] * 5],
    ),
}
CHANGES = {
    "as it is": (lambda P: P, np.ones(5)),
    "restricted": (lambda P: P.restrict(lambda h, y: y != 1).normalize(), np.array([1, 0, 1, 1, 1.0])),
    "class weights": (lambda P: P.reweight(lambda h, y: 1.0 + y).normalize(), 1.0 + np.arange(5)),
}


@pytest.mark.slow("a program a member")
@sweep("law", LAWS)
@sweep("change", CHANGES)
@sweep("masked", [False, True])
def test_joints_in_batches(law, change, masked):
    """Shared or not, changed or not, masked or not: in one piece and in batches, values and gradients."""
    h, w = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32)
    y, mask = jnp.array([0, 3, 2, 2, 4]), np.array([1, 0, 2, 0, 1.0]) if masked else np.ones(5)
    (make, masses), (alter, factor) = LAWS[law], CHANGES[change]
    target = masses(np.asarray(y)) * factor
    lq = log_softmax(h.astype(np.float64) @ w)
    total = (mask[:, None] * target).sum()
    expected = -(mask[:, None] * target * lq).sum() / total
    g = mask[:, None] * (target.sum(-1, keepdims=True) * np.exp(lq) - target) / total

    def loss(w, batch_size=None):
        P = mx.Empirical(jnp.asarray(h), weights=jnp.asarray(mask, jnp.float32) if masked else None)
        return -alter(mx.joint(P, make(y))).expect(log(mx.LinearSoftmax(w)), batch_size=batch_size)

    for batch_size in (None, 2):
        value, gradient = jax.jit(jax.value_and_grad(lambda w, b=batch_size: loss(w, b)))(jnp.asarray(w))
        np.testing.assert_allclose(value, expected, **close)
        np.testing.assert_allclose(gradient, h.T @ g, rtol=1e-4, atol=1e-5)


@pytest.mark.slow("a program a member")
def test_targets_that_broadcast_over_blocks():
    """On the path in blocks of rows: shared targets, sizes that coincide, targets over part of the axes."""
    z = rng.normal(size=(1001, 1001)).astype(np.float32)
    lq = log_softmax(z)
    # Arguments, for of constants XLA would make the sums while it compiles.
    loss = lambda P, z: jax.jit(lambda P, z: mx.cross_entropy(P, mx.Categorical(z)))(P, jnp.asarray(z))
    i, w = rng.integers(0, 1001, 1001), rng.uniform(size=1001).astype(np.float32)
    np.testing.assert_allclose(loss(mx.Discrete(jnp.asarray(i), jnp.asarray(w)), z), -(lq[:, i] @ w), rtol=1e-5)
    p = np.exp(log_softmax(rng.normal(size=1001)))
    shared = mx.Categorical(probs=jnp.asarray(p, jnp.float32))
    np.testing.assert_allclose(loss(shared, z), -(lq @ p), rtol=1e-5)
    cube = jnp.asarray(z[:1000]).reshape(4, 250, 1001)
    cube = jnp.concatenate([cube, cube], axis=1)
    lq = log_softmax(cube)
    for y in (np.arange(500), np.arange(4)[:, None]):
        expected = -np.take_along_axis(lq, np.broadcast_to(y, (4, 500))[..., None], -1)[..., 0]
        np.testing.assert_allclose(loss(mx.Dirac(jnp.asarray(y)), cube), expected, rtol=1e-5)


@pytest.mark.slow("a program a member")
def test_edges_are_the_same_in_blocks():
    """±inf, NaN and forbidden rows: one row by itself, and the same row in the path in blocks."""
    z = rng.normal(size=(700, 1001)).astype(np.float32)
    z[0, [5, 7]] = np.inf
    z[1, 7] = np.inf
    z[2] = -np.inf
    z[3, 5] = -np.inf
    z[4, 9] = np.nan
    z[5] = -np.inf
    z[5, 5] = 3.0
    y = jnp.full(700, 5)
    loss = lambda z: mx.cross_entropy(mx.Dirac(y[: len(z)]), mx.Categorical(z))
    gradient = jax.grad(lambda z: jnp.where(jnp.isfinite(loss(z)), loss(z), 0).sum())
    np.testing.assert_allclose(loss(jnp.asarray(z))[:8], loss(jnp.asarray(z[:8])), rtol=1e-5)
    np.testing.assert_allclose(loss(jnp.asarray(z))[:6], [np.log(2), np.inf, np.inf, np.inf, np.nan, 0], rtol=1e-5)
    np.testing.assert_allclose(gradient(jnp.asarray(z))[:4], gradient(jnp.asarray(z[:8]))[:4], rtol=1e-4, atol=1e-7)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_labels_of_any_integer_type(dtype):
    label, classes = (7, 40_000) if dtype == "int16" else (99, 1000)
    y = jnp.array([label], dtype)
    for Q in (mx.Categorical(jnp.zeros((1, classes))), mx.DiscreteUniform(classes)):
        np.testing.assert_allclose(jitted(lambda: mx.cross_entropy(mx.Dirac(y), Q)), [np.log(classes)], rtol=1e-6)


@pytest.mark.slow("a program a member")
def test_joints_of_joints():
    w = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    K = mx.Conditional(lambda i: mx.Categorical(w[i]))
    J = mx.joint(mx.joint(mx.DiscreteUniform(3), K), mx.Conditional(lambda i, j: mx.Categorical(w[i] * j)))
    assert arity(J) == 3
    p = np.exp(log_softmax(w)) / 3
    inner = np.exp(log_softmax(np.asarray(w)[:, None] * np.arange(5)[None, :, None]))
    table = p[..., None] * inner
    np.testing.assert_allclose(jitted(lambda: mx.entropy(J)), -(table * np.log(table)).sum(), **close)
    np.testing.assert_allclose(jitted(lambda: J.mass), 1, **close)
    uniform = mx.product(mx.DiscreteUniform(3), mx.DiscreteUniform(5))
    pairs = mx.joint(mx.DiscreteUniform(3), mx.Categorical(w))
    np.testing.assert_allclose(jitted(lambda: mx.kl_divergence(pairs, uniform)), (p * np.log(p * 15)).sum(), **close)
    two = mx.Discrete(jnp.array([1, 4]), jnp.array([0.25, 0.75]))
    np.testing.assert_allclose(jitted(lambda: mx.bind(mx.Empirical(jnp.arange(10)), two).expect(jnp.square)), 12.25)
