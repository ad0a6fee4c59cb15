"""Every derivative and every transformation, against float64 finite formulas, on every kind of target."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import measure_xent as mx
from measure_xent import log

from . import oracle, registry
from .sweeps import sweep

N, V = 3, 5
rng = np.random.default_rng(2)
z0 = rng.normal(size=(N, V)).astype(np.float32) * 2
dz = rng.normal(size=(N, V)).astype(np.float32)
du = rng.normal(size=(N, V)).astype(np.float32)
cot = rng.normal(size=N).astype(np.float32)
y, y2 = np.array([0, 3, 4]), np.array([2, 3, 1])
teacher = rng.normal(size=(N, V)).astype(np.float32)
close = dict(rtol=1e-5, atol=1e-5)

TARGETS = {
    "labels": (lambda: mx.Dirac(jnp.asarray(y)), oracle.one_hot(y, V)),
    "smoothed": (
        lambda: 0.875 * mx.Dirac(jnp.asarray(y)) + 0.125 * mx.DiscreteUniform(V),
        0.875 * oracle.one_hot(y, V) + 0.125 / V,
    ),
    "two atoms": (
        lambda: mx.Discrete(jnp.stack([y, y2], -1), jnp.array([0.75, 0.5])),
        0.75 * oracle.one_hot(y, V) + 0.5 * oracle.one_hot(y2, V),
    ),
    "many atoms": (
        lambda: mx.Discrete(jnp.array([0, 1, 1, 2, 3, 4]), jnp.arange(6) / 8.0),
        np.broadcast_to([0, 3 / 8, 3 / 8, 4 / 8, 5 / 8], (N, V)),
    ),
    "teacher": (lambda: mx.Categorical(jnp.asarray(teacher)), np.exp(oracle.log_softmax(teacher))),
    "a null row": (
        lambda: jnp.array([1.0, 0.0, 2.0]) * mx.Dirac(jnp.asarray(y)),
        np.array([1, 0, 2])[:, None] * oracle.one_hot(y, V),
    ),
}
each_target = sweep("name", TARGETS)


def setting(name):
    make, dense = TARGETS[name]
    p = np.exp(oracle.log_softmax(z0))
    mass = dense.sum(-1)
    fisher = mass[:, None, None] * (np.einsum("ni,ij->nij", p, np.eye(V)) - np.einsum("ni,nj->nij", p, p))
    gradient = oracle.rows_gradient(z0, dense)
    return (lambda z: mx.cross_entropy(make(), mx.Categorical(z))), oracle.rows(z0, dense), gradient, fisher


@sweep(("name", "jit"), [("labels", False), *((name, True) for name in TARGETS)])
def test_first_order(name, jit):
    loss, value, gradient, _ = setting(name)
    wrap = jax.jit if jit else lambda f: f
    z = jnp.asarray(z0)
    np.testing.assert_allclose(wrap(loss)(z), value, **close)
    np.testing.assert_allclose(
        wrap(lambda z: jax.vjp(loss, z)[1](jnp.asarray(cot))[0])(z), cot[:, None] * gradient, **close
    )
    out, tangent = wrap(lambda z: jax.jvp(loss, (z,), (jnp.asarray(dz),)))(z)
    np.testing.assert_allclose(out, value, **close)
    np.testing.assert_allclose(tangent, (gradient * dz).sum(-1), **close)
    linear = wrap(lambda z: jax.linearize(loss, z)[1](jnp.asarray(dz)))
    np.testing.assert_allclose(linear(z), (gradient * dz).sum(-1), **close)
    jacobian = np.einsum("nv,nm->nmv", gradient, np.eye(N))
    np.testing.assert_allclose(wrap(jax.jacfwd(loss))(z), jacobian, **close)
    np.testing.assert_allclose(wrap(jax.jacrev(loss))(z), jacobian, **close)
    np.testing.assert_allclose(
        wrap(jax.vmap(jax.grad(lambda z: loss(z[None].repeat(N, 0))[0])))(z)[0], gradient[0], **close
    )


@each_target
def test_second_order(name):
    loss, _, _, fisher = setting(name)
    total = lambda z: jnp.dot(loss(z), jnp.asarray(cot))
    z, v, u = (jnp.asarray(a) for a in (z0, dz, du))
    product = cot[:, None] * np.einsum("nij,nj->ni", fisher, dz)
    full = np.einsum("n,nij,nm->nimj", cot, fisher, np.eye(N))

    @jax.jit
    def derivatives(z):
        products = (
            jax.jvp(jax.grad(total), (z,), (v,))[1],
            jax.grad(lambda z: jnp.vdot(jax.grad(total)(z), v))(z),
            jax.grad(lambda z: jax.jvp(total, (z,), (v,))[1])(z),
            jax.vjp(jax.grad(total), z)[1](v)[0],
        )
        third = jax.jvp(lambda z: jax.jvp(jax.grad(total), (z,), (v,))[1], (z,), (u,))[1]
        return products, jax.hessian(total)(z), third

    products, hessian, third = derivatives(z)
    for got in products:
        np.testing.assert_allclose(got, product, **close)
    np.testing.assert_allclose(hessian, full, **close)
    with jax.enable_x64(True):  # finite differences of the second order, in float64
        h = 1e-4
        hvp = jax.jit(lambda z: jax.jvp(jax.grad(lambda z: jnp.dot(loss(z), cot)), (z,), (jnp.asarray(dz, float),))[1])
        numeric = (hvp(jnp.asarray(z0 + h * du, float)) - hvp(jnp.asarray(z0 - h * du, float))) / (2 * h)
    np.testing.assert_allclose(third, numeric, rtol=1e-4, atol=1e-4)


@pytest.mark.slow("every mode of derivatives")
@pytest.mark.parametrize("classes", [5, 40])
def test_several_targets_a_row_of_logits(classes):
    """Labels [3] against logits [V], and [2, 3] against [2, 1, V]: every kind of target, with any cotangents."""
    z = rng.normal(size=(2, 1, classes)).astype(np.float32)
    labels, c = np.array([[0, 1, 2], [4, 4, 0]]), rng.normal(size=(2, 3)).astype(np.float32)
    targets = {
        "labels": (mx.Dirac(jnp.asarray(labels)), oracle.one_hot(labels, classes)),
        "smoothed": (
            0.75 * mx.Dirac(jnp.asarray(labels)) + 0.25 * mx.DiscreteUniform(classes),
            0.75 * oracle.one_hot(labels, classes) + 0.25 / classes,
        ),
        "dense": (mx.Categorical(probs=jnp.full((2, 3, classes), 1 / classes)), np.full((2, 3, classes), 1 / classes)),
    }
    p = np.exp(oracle.log_softmax(z))
    for name, (P, dense) in targets.items():
        total = lambda z, P=P: jnp.sum(mx.cross_entropy(P, mx.Categorical(z)) * c)
        expected = (c[..., None] * (p - dense)).sum(1, keepdims=True)
        value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(z))
        np.testing.assert_allclose(value, (c * oracle.rows(np.broadcast_to(z, dense.shape), dense)).sum(), **close)
        np.testing.assert_allclose(gradient, expected, **close, err_msg=name)
        np.testing.assert_allclose(jax.jit(jax.jacfwd(total))(jnp.asarray(z)), expected, **close)
    one = jax.grad(lambda z: mx.Dirac(jnp.arange(3)).expect(mx.log_partition(mx.Categorical(z))).sum())(
        jnp.asarray(z[0, 0])
    )
    np.testing.assert_allclose(one, 3 * p[0, 0], **close)


def test_hessian_is_the_fisher_information():
    z = jnp.asarray(z0[0])
    p = np.exp(oracle.log_softmax(z0[0]))
    hessian = jax.hessian(lambda z: mx.cross_entropy(mx.Dirac(1), mx.Categorical(z)))(z)
    np.testing.assert_allclose(hessian, np.diag(p) - np.outer(p, p), rtol=1e-6, atol=1e-7)


@pytest.mark.long
@pytest.mark.sweep(1)
@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd, lambda f: jax.jit(jax.grad(f))])
def test_gradients_in_the_target(mode):
    """∂H/∂P is the surprisal, at null atoms too: mixing coefficients, sparse and dense teachers learn."""
    surprisal = -oracle.log_softmax(z0)
    Q = mx.Categorical(jnp.asarray(z0))
    weights = jnp.array([[0.5, 0.0], [0.0, 0.0], [1.0, -0.5]])
    indices = np.stack([y, y2], -1)
    loss = lambda w: jnp.dot(mx.cross_entropy(mx.Discrete(jnp.asarray(indices), w), Q), jnp.asarray(cot))
    expected = cot[:, None] * np.take_along_axis(surprisal, indices, -1)
    np.testing.assert_allclose(mode(loss)(weights), expected, **close)
    mixed = lambda lam: jnp.dot(
        mx.cross_entropy(lam * mx.Dirac(jnp.asarray(y)) + (1 - lam) * mx.DiscreteUniform(V), Q), jnp.asarray(cot)
    )
    at_y = np.take_along_axis(surprisal, y[:, None], -1)[:, 0]
    for lam in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(mode(mixed)(lam), cot @ (at_y - surprisal.mean(-1)), **close)
    # Labels that a compiled function is given, and the derivative is taken outside.
    of_labels = jax.jit(lambda lam, y: mx.cross_entropy(lam * mx.Dirac(y) + (1 - lam) * mx.DiscreteUniform(V), Q) @ cot)
    np.testing.assert_allclose(
        mode(lambda lam: of_labels(lam, jnp.asarray(y)))(0.3), cot @ (at_y - surprisal.mean(-1)), **close
    )
    p = jnp.array([0.5, 0.0, 0.25, 0.25, 0.0])
    dense = lambda p: jnp.dot(mx.cross_entropy(mx.Categorical(probs=p), Q), jnp.asarray(cot))
    np.testing.assert_allclose(mode(dense)(p), cot @ surprisal, **close)
    distil = lambda t: jnp.dot(mx.kl_divergence(mx.Categorical(t), Q), jnp.asarray(cot))
    q = np.exp(oracle.log_softmax(teacher))
    log_ratio = oracle.log_softmax(teacher) - oracle.log_softmax(z0)
    expected = cot[:, None] * q * (log_ratio - (q * log_ratio).sum(-1, keepdims=True))
    np.testing.assert_allclose(mode(distil)(jnp.asarray(teacher)), expected, **close)


@pytest.mark.slow("every mode of derivatives")
def test_mixed_derivatives_of_logits_and_weights():
    indices, weights = jnp.asarray(np.stack([y, y2], -1)), jnp.array([[0.5, 0.0], [0.25, 1.0], [1.0, 0.5]])
    loss = lambda w, z: jnp.dot(mx.cross_entropy(mx.Discrete(indices, w), mx.Categorical(z)), jnp.asarray(cot))
    p = np.exp(oracle.log_softmax(z0))
    expected = cot[:, None, None] * (p[:, None, :] - oracle.one_hot(indices, V))  # ∂²/∂w_nk ∂z_nv
    for mixed in (jax.jacfwd(jax.grad(loss, 0), 1), jax.jacrev(jax.grad(loss, 0), 1)):
        got = mixed(weights, jnp.asarray(z0))
        np.testing.assert_allclose(np.einsum("nknv->nkv", got), expected, **close)
    for mixed in (jax.jacfwd(jax.grad(loss, 1), 0), jax.jacrev(jax.grad(loss, 1), 0)):
        got = mixed(weights, jnp.asarray(z0))
        np.testing.assert_allclose(np.einsum("nvnk->nkv", got), expected, **close)


@sweep("entry", registry.REGISTRY, ids=repr)
def test_measures_cross_every_boundary(entry):
    """jit, vmap, scan, cond, checkpoint, grad: a measure goes in and comes out as the same measure."""
    P, p = entry.make(np.random.default_rng(3))
    f, jf = registry.random_function(np.random.default_rng(4), entry.pairs)
    expected = registry.integral(p, f)
    leaves, structure = jax.tree.flatten(P)
    assert structure == jax.tree.structure(jax.tree.unflatten(structure, leaves))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(P)[0]]
    assert len(set(paths)) == len(leaves)
    integral = lambda P: P.expect(jf)
    np.testing.assert_allclose(jax.jit(lambda P: P)(P).expect(jf), expected, **close)

    @jax.jit
    def crossed(P):
        stacked = jax.tree.map(lambda x: jnp.stack([x, x]), P)
        return (
            jax.checkpoint(integral)(P),
            jax.lax.scan(lambda c, _: (c, integral(c)), P, None, length=2)[1],
            jax.lax.cond(True, integral, lambda P: 0 * integral(P), P),
            jax.vmap(integral, axis_size=2)(stacked),
            jax.grad(integral, allow_int=True)(P),
        )

    *values, gradient = crossed(P)
    for value in values:
        np.testing.assert_allclose(value, np.broadcast_to(expected, value.shape), **close)
    assert jax.tree.structure(gradient) == structure


def test_training_steps():
    """Under jit, scan over steps, checkpoint and optax.MultiSteps the loss is what float64 numpy says it is."""
    hidden = rng.normal(size=(8, 4)).astype(np.float32)
    labels = rng.integers(V, size=8)
    w0 = rng.normal(size=(4, V)).astype(np.float32)

    def loss(w, h, y):
        return -mx.Empirical((h, y)).expect(log(mx.LinearSoftmax(w)))

    def trained(optimizer, loss, steps):
        @functools.partial(jax.jit)
        def run(w):
            def step(carry, _):
                w, state = carry
                value, g = jax.value_and_grad(jax.checkpoint(loss))(w, jnp.asarray(hidden), jnp.asarray(labels))
                updates, state = optimizer.update(g, state, w)
                return (optax.apply_updates(w, updates), state), value

            return jax.lax.scan(step, (w, optimizer.init(w)), None, length=steps)

        (w, _), values = run(jnp.asarray(w0))
        return w, values

    w, values = trained(optax.sgd(0.5), loss, 5)
    reference = w0.astype(np.float64)
    for value in values:
        expected, _, gradient, *_ = oracle.head(hidden, reference, np.zeros(V), oracle.one_hot(labels, V), np.ones(8))
        np.testing.assert_allclose(value, expected, **close)
        reference -= 0.5 * gradient
    np.testing.assert_allclose(w, reference, **close)
    accumulated, _ = trained(optax.MultiSteps(optax.sgd(0.5), 2), loss, 2)
    single, _ = trained(optax.sgd(0.5), loss, 1)
    np.testing.assert_allclose(accumulated, single, **close)
