"""Gradients as integrals: micro-batches of any masks, in a scan, over devices and under optax, are the one large batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import measure_xent as mx

rng = np.random.default_rng(0)
X = jnp.asarray(rng.normal(size=(4, 6, 3)), jnp.float32)
Y = jnp.asarray(rng.integers(5, size=(4, 6)))
MASK = jnp.asarray(np.arange(6) < np.array([[6], [2], [0], [5]]), jnp.float32)  # ragged, one empty
PARAMS = {"weight": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32), "bias": jnp.zeros(5)}


def loss(params, x, y, mask):
    Q = mx.LinearSoftmax(params["weight"], params["bias"])
    return mx.Atoms((x, y), weights=mask).integrate(-mx.log(Q))


def whole(params):
    return loss(params, X.reshape(24, 3), Y.reshape(24), MASK.reshape(24)).mean


def by_hand():
    """The mean loss of the tokens that count, and its gradient in the weight, in float64."""
    x, y, w = (np.asarray(a, np.float64).reshape(24, -1) for a in (X, Y, MASK))
    z = x @ np.asarray(PARAMS["weight"], np.float64)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    y = y.astype(int)[:, 0]
    value = -(w[:, 0] * np.log(p[np.arange(24), y])).sum() / w.sum()
    return value, x.T @ (w * (p - np.eye(5)[y])) / w.sum()


def close(value, gradient):
    expected, slope = by_hand()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient["weight"], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.slow("many programs")
def test_micro_batches_in_a_loop_and_in_a_scan():
    step = mx.value_and_grad(loss)
    parts = [step(PARAMS, *part) for part in zip(X, Y, MASK, strict=True)]
    value, gradient = (sum(integrals) for integrals in zip(*parts, strict=True))
    close(value.mean, gradient.mean)

    @jax.jit
    def scanned(params):
        parts = (X, Y, MASK)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(step, params, X[0], Y[0], MASK[0]))
        add = lambda total, part: (jax.tree.map(jnp.add, total, step(params, *part)), None)
        return jax.lax.scan(add, zero, parts)[0]

    value, gradient = scanned(PARAMS)
    close(value.mean, gradient.mean)


@pytest.mark.parametrize("varied", [False, True])
def test_over_devices(varied):
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    share = PartitionSpec("data")

    def shard(params, *part):
        vary = lambda a: jax.lax.pcast(a, ("data",), to="varying") if varied else a
        total = mx.value_and_grad(loss)(jax.tree.map(vary, params), *(a[0] for a in part))
        value, gradient = jax.lax.psum(jax.tree.map(jnp.asarray, total), "data")
        return value.mean, gradient.mean

    run = jax.shard_map(shard, mesh=mesh, in_specs=(PartitionSpec(), share, share, share), out_specs=PartitionSpec())
    close(*jax.jit(run)(PARAMS, X, Y, MASK))


@pytest.mark.long
@pytest.mark.parametrize(("axis", "spec"), [(None, PartitionSpec()), ("model", PartitionSpec(None, "model"))])
def test_a_closure_over_devices_of_data_and_classes(axis, spec):
    """A gradient is of this device's rows, as its integral and mass are, whatever JAX sums for parameters that do not vary."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    h, y, mask = X.reshape(24, 3), Y.reshape(24), MASK.reshape(24)
    weight = jnp.pad(PARAMS["weight"], [(0, 0), (0, 1)])  # six classes, for two devices
    share = PartitionSpec("data")

    def shard(h, y, mask, weight):
        part = mx.Atoms((h, y), weights=mask)
        total = mx.value_and_grad(lambda w: part.integrate(-mx.log(mx.LinearSoftmax(w, axis_name=axis))))(weight)
        value, gradient = jax.lax.psum(total, "data")
        return value.mean, gradient.mean

    run = jax.shard_map(shard, mesh=mesh, in_specs=(share, share, share, spec), out_specs=(PartitionSpec(), spec))
    got = jax.jit(run)(h, y, mask, weight)
    P = mx.Empirical((h, y), weights=mask)
    true = jax.value_and_grad(lambda w: mx.cross_entropy(P, mx.LinearSoftmax(w)))(weight)
    for x, y in zip(got, true, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_multi_steps_of_optax_alone_is_not_the_large_batch():
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, PARAMS, jax.grad(whole)(PARAMS))
    step = mx.value_and_grad(loss)

    def run(optimizer, of):
        params, state = PARAMS, optimizer.init(PARAMS)
        for part in zip(X, Y, MASK, strict=True):
            updates, state = jax.jit(optimizer.update)(of(step(params, *part)[1]), state, params)
            params = optax.apply_updates(params, updates)
        return params["weight"]

    ours = run(mx.accumulate(optax.sgd(0.5), 4), lambda gradient: gradient)
    theirs = run(optax.MultiSteps(optax.sgd(0.5), 4), lambda gradient: gradient.mean)
    np.testing.assert_allclose(ours, expected["weight"], rtol=1e-5, atol=1e-7)
    assert np.abs(theirs - expected["weight"]).max() > 1e-2


def test_steps_dtypes_and_extra_arguments():
    params = {"a": jnp.ones(2, jnp.bfloat16)}
    optimizer = mx.accumulate(optax.chain(optax.scale_by_adam(), optax.scale(-0.1)), 2)
    state = optimizer.init(params)
    gradient = lambda g, mass: mx.Integral({"a": jnp.full(2, g, jnp.bfloat16)}, 0.0, mass=mass)
    first, state = optimizer.update(gradient(1.0, 1.0), state, params)
    assert first["a"].dtype == jnp.bfloat16
    assert not first["a"].any()
    assert state.gradient["a"].dtype == jnp.float32
    second, state = optimizer.update(gradient(2.0, 2.0), state, params)
    np.testing.assert_allclose(second["a"].astype(float), -0.1, rtol=1e-2)
    assert state.mass == 0
    empty, state = optimizer.update(gradient(0.0, 0.0), state, params)
    empty, state = optimizer.update(gradient(0.0, 0.0), state, params)
    assert np.isfinite(empty["a"].astype(float)).all()


def test_what_does_not_converge_is_nan():
    heavy = lambda scale: mx.Cauchy(0.0, scale).integrate(lambda x: x)
    value, gradient = mx.value_and_grad(heavy)(1.0)
    assert np.isnan(value.mean)
    assert value.status > 0
    assert np.isnan(gradient.checked)


def test_bad_input():
    with pytest.raises(TypeError, match="gives an Integral"):
        mx.value_and_grad(lambda x: x**2)(1.0)
    with pytest.raises(ValueError, match="steps"):
        mx.accumulate(optax.sgd(1.0), 0)
    optimizer = mx.accumulate(optax.sgd(1.0), 2)
    with pytest.raises(TypeError, match="Integral"):
        optimizer.update(jnp.zeros(1), optimizer.init(jnp.zeros(1)))
    with pytest.raises(TypeError, match="has_aux"):
        mx.value_and_grad(lambda z: mx.Atoms(jnp.zeros(2)).integrate(lambda x: {"a": z, "b": x}))(1.0)


def test_other_figures_beside_the_loss():
    """has_aux, and the sign of an integral."""
    P = mx.Atoms(jnp.array([0, 2]), weights=jnp.array([1.0, 0.5]))

    def loss(z):
        Q = mx.Categorical(z)
        return -P.integrate(mx.log(Q)), P.integrate(mx.correct(Q))

    (total, right), gradient = mx.value_and_grad(loss, has_aux=True)(jnp.array([2.0, 0.0, 0.0]))
    alone, slope = mx.value_and_grad(lambda z: loss(z)[0])(jnp.array([2.0, 0.0, 0.0]))
    np.testing.assert_allclose(total.mean, alone.mean)
    np.testing.assert_allclose(gradient.mean, slope.mean)
    np.testing.assert_allclose(right.mean, 1 / 1.5, rtol=1e-6)
