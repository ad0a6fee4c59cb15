"""The contract's edge cases, each in value, gradient, jvp, hvp and in the target's own gradient.

A case is a loss of (logits, target weight), the logits, the weight, and the results by hand: value, gradient in the
logits, the p whose diag(p) − ppᵀ is the second derivative (None where that is 0), and gradient in the weight.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx

nan, inf = np.nan, np.inf
V = 3
third = np.full(V, 1 / 3)
label = lambda y: lambda z, w: mx.cross_entropy(w * mx.Dirac(y), mx.Categorical(z))
sparse = lambda z, w: mx.cross_entropy(mx.Discrete(jnp.arange(2), jnp.stack([1 - w, w])), mx.Categorical(z))
dense = lambda z, w: mx.cross_entropy(mx.Categorical(probs=jnp.stack([w, 1 - w, 0 * w])), mx.Categorical(z))
bit = lambda y: lambda z, w: mx.cross_entropy(w * mx.Dirac(y), mx.Bernoulli(z)).sum()
uniform = lambda z, w: mx.cross_entropy(w * mx.DiscreteUniform(V), mx.Categorical(z))
batch = lambda z, w: mx.cross_entropy(mx.Empirical((z[None], jnp.array([0])), w[None]), mx.Conditional(mx.Categorical))

# name: loss, logits, weight, value, gradient in the logits, p, gradient in the weight
CASES = {
    "a null atom over NaN": (label(0), [nan, 0, 0], 0.0, 0, [0, 0, 0], None, 0),
    "a null atom over +inf": (label(0), [0, inf, 0], 0.0, 0, [0, 0, 0], None, 0),
    "a null atom over -inf": (sparse, [0, -inf, 0], 0.0, np.log(2), [-0.5, 0, 0.5], [0.5, 0, 0.5], -np.log(2)),
    "0 log 0": (dense, [0, 0, -inf], 0.5, np.log(2), [0, 0, 0], [0.5, 0.5, 0], 0),
    "infeasible": (label(1), [0, -inf, 0], 1.0, inf, [0.5, -1, 0.5], [0.5, 0, 0.5], inf),
    "infeasible, smoothed": (uniform, [0, -inf, 0], 1.0, inf, [1 / 6, -1 / 3, 1 / 6], [0.5, 0, 0.5], inf),
    "out of range": (label(V), [0, 0, 0], 1.0, inf, [nan] * V, third, inf),
    "minus one": (label(-1), [0, 0, 0], 1.0, inf, [nan] * V, third, inf),
    "all masked": (batch, [1, nan, 3], 0.0, 0, [0, 0, 0], None, 0),
    "a row of nothing but -inf": (label(0), [-inf] * V, 1.0, inf, [-1, 0, 0], None, inf),
    "+inf at the label": (label(0), [inf, 0, 0], 1.0, 0, [0, 0, 0], None, 0),
    "+inf elsewhere": (label(0), [0, inf, 0], 1.0, inf, [-1, 1, 0], None, inf),
    "+inf twice": (label(0), [inf, inf, 0], 1.0, np.log(2), [-0.5, 0.5, 0], [0.5, 0.5, 0], np.log(2)),
    "a certain bit, right": (bit(1), [inf], 1.0, 0, [0], None, 0),
    "a certain bit, right, of 0": (bit(0), [-inf], 1.0, 0, [0], None, 0),
    "a certain bit, wrong": (bit(1), [-inf], 1.0, inf, [-1], None, inf),
    "a certain bit, null": (bit(1), [-inf], 0.0, 0, [0], None, 0),
}


@pytest.mark.long
@pytest.mark.sweep(0.2)
@pytest.mark.parametrize("name", CASES)
def test_edge(name):
    loss, z, w, value, gradient, p, in_weight = CASES[name]
    z, w, v = jnp.asarray(z, jnp.float32), jnp.asarray(w), jnp.array([0.5, -1.0, 2.0])[: len(z)]
    curvature = np.zeros((len(z),) * 2) if p is None else np.diag(p) - np.outer(p, p)

    def everything(z, w):
        gradient = jax.grad(loss)
        along = lambda z: jax.jvp(lambda z: loss(z, w), (z,), (v,))[1]
        return {
            "value": loss(z, w),
            "grad": gradient(z, w),
            "jacfwd": jax.jacfwd(loss)(z, w),
            "jvp": along(z),
            "weight": jax.grad(loss, 1)(z, w),
            "weight, forward": jax.jvp(lambda w: loss(z, w), (w,), (jnp.ones(()),))[1],
            "hvp": jax.jvp(lambda z: gradient(z, w), (z,), (v,))[1],
            "hvp, reverse over forward": jax.grad(along)(z),
            "hvp, reverse over reverse": jax.grad(lambda z: jnp.vdot(gradient(z, w), v))(z),
        }

    gradient = np.asarray(gradient, float)
    expected = {
        "value": value,
        **dict.fromkeys(["grad", "jacfwd"], gradient),
        "jvp": gradient @ np.asarray(v),
        **dict.fromkeys(["weight", "weight, forward"], in_weight),
        **dict.fromkeys(["hvp", "hvp, reverse over forward", "hvp, reverse over reverse"], curvature @ np.asarray(v)),
    }
    for how, got in jax.jit(everything)(z, w).items():
        np.testing.assert_allclose(got, expected[how], rtol=2e-6, atol=1e-7, err_msg=how)


def test_more_classes_than_float16_counts():
    z = jnp.zeros((2, 70_000), jnp.float16)
    v = jnp.ones_like(z).at[:, 0].set(3)
    loss = lambda z: mx.cross_entropy(mx.Dirac(jnp.array([0, 69_999])), mx.Categorical(z)).sum()
    value, gradient = jax.jit(jax.value_and_grad(loss))(z)
    np.testing.assert_allclose(value, 2 * np.log(70_000), rtol=1e-6)
    assert gradient.dtype == jnp.float16
    np.testing.assert_allclose(gradient[:, 1], [1 / 70_000] * 2, rtol=2e-2)  # float16 has 4 bits left at 1e-5
    np.testing.assert_array_equal(gradient[jnp.arange(2), jnp.array([0, 69_999])], [-1, -1])
    hvp = jax.jit(lambda z: jax.jvp(jax.grad(loss), (z,), (v,))[1])(z)
    np.testing.assert_allclose(hvp[:, 0], [2 / 70_000] * 2, rtol=2e-2)


@pytest.mark.slow("a program an edge")
@pytest.mark.parametrize("classes", [3, 32, 33])
def test_a_nan_where_no_other_class_is_open(classes):
    """Wherever it stands, the row is NaN: loss, by-products and gradient."""
    z = jnp.full(classes, -jnp.inf).at[1].set(jnp.nan)
    Q = mx.Categorical(z)
    figures = mx.Dirac(0).expect((-mx.log(Q), mx.correct(Q), mx.confidence(Q), mx.entropy(Q), mx.log_partition(Q)))
    assert np.all(np.isnan(figures))
    assert np.all(np.isnan(jax.grad(lambda z: mx.cross_entropy(mx.Dirac(0), mx.Categorical(z)))(z)))


@pytest.mark.long
@pytest.mark.sweep(1)
@pytest.mark.parametrize("classes", [97, 100])
def test_axes_of_one_among_others(classes):
    """Where XLA's CPU compiler fails on an argmax over a prime number of classes."""
    z, y = jnp.arange(6.0 * classes).reshape(2, 1, 3, classes) % 7, jnp.full((2, 1, 3), 6)
    right = lambda z, y: mx.Dirac(y).expect(mx.correct(mx.Categorical(z)))
    for f in (right, jax.vmap(right), jax.vmap(jax.vmap(right))):
        np.testing.assert_array_equal(jax.jit(f)(z, y), np.argmax(z, -1) == y)


def test_no_rows_of_many_classes():
    Q, P = mx.Categorical(jnp.zeros((0, 100))), mx.Dirac(jnp.zeros(0, int))
    for figure in (Q.mode, Q.log_partition, mx.entropy(Q), mx.cross_entropy(P, Q), mx.cross_entropy(Q, Q)):
        assert figure.shape == (0,)
    assert jax.grad(lambda z: mx.cross_entropy(P, mx.Categorical(z)).sum())(jnp.zeros((0, 100))).shape == (0, 100)
