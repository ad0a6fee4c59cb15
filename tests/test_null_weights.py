"""Derivatives in weights at weights of 0: an atom's value, with all of that one's derivatives, where they are finite."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent import log

from . import oracle
from .sweeps import sweep

rng = np.random.default_rng(7)
f32 = lambda x: np.asarray(x, np.float32)
N, D, V = 5, 3, 6
hidden, weight = f32(rng.normal(size=(N, D))), f32(rng.normal(size=(D, V)))
labels, teacher = np.array([0, 5, 2, 3, 1]), f32(rng.dirichlet(np.ones(V), N))
MODES = list(itertools.product((jax.jacrev, jax.jacfwd), repeat=2))
close = dict(rtol=2e-5, atol=2e-6)

TARGETS = {
    "hard": oracle.one_hot(labels, V),
    "smoothed": 0.75 * oracle.one_hot(labels, V) + 0.25 / V,
    "dense": teacher.astype(np.float64),
}
MODELS = {
    "head": lambda w: mx.LinearSoftmax(w, batch_size=2),
    "conditional": lambda w: mx.Conditional(lambda h: mx.Categorical(h @ w)),
}


def total(kind, model, h, w, e):
    """Σ eᵢ H(Pᵢ, Q(hᵢ))."""
    if kind == "hard":
        P = mx.Atoms((h, jnp.asarray(labels)), weights=e)
    else:
        smoothed = 0.75 * mx.Dirac(labels) + 0.25 * mx.DiscreteUniform(V)
        P = mx.joint(mx.Atoms(h, weights=e), smoothed if kind == "smoothed" else mx.Categorical(probs=teacher))
    return -P.expect(log(MODELS[model](w)))


def gradients(kind):
    """Each row's gradient in the weight, [N, D, V]."""
    z = hidden.astype(np.float64) @ weight
    return hidden[:, :, None] * oracle.rows_gradient(z, TARGETS[kind])[:, None, :]


@pytest.mark.long
@sweep("mode", range(4))
@sweep(("kind", "model"), list(itertools.product(TARGETS, MODELS)), cost=3)
def test_a_rows_gradient(kind, model, mode):
    """Both orders of the mixed derivative at weights of 0, forward and reverse; rows that hold no number have none."""
    outer, inner = MODES[mode]
    bad = np.array([1, 3])
    spoiled = hidden.copy()
    spoiled[bad] = [[np.nan] * D, [np.inf, 0, 0]]
    expected = gradients(kind)
    expected[bad] = 0

    def both(h, w, e):
        loss = lambda h, w, e: total(kind, model, h, w, e)
        return outer(inner(loss, 1), 2)(h, w, e), outer(inner(loss, 2), 1)(h, w, e), jax.grad(loss, (0, 1))(h, w, e)

    mixed, other, first = jax.jit(both)(spoiled, weight, jnp.zeros(N))
    np.testing.assert_allclose(np.moveaxis(mixed, -1, 0), expected, **close)
    np.testing.assert_allclose(other, expected, **close)
    for gradient in first:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow("mixed second derivatives")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_learning_to_reweight_examples(model, dtype):
    """Ren et al. 2018 (https://arxiv.org/abs/1803.09050), eq. 7: the weights start at 0, and their gradient after one step of
    the weighted loss is −α times the inner product of an example's gradient with that of the clean loss."""
    with jax.enable_x64(dtype is np.float64):
        h, w = jnp.asarray(hidden, dtype), jnp.asarray(weight, dtype)
        clean, y = jnp.asarray(rng.normal(size=(4, D)), dtype), jnp.array([0, 1, 2, 3])

        def after_a_step(e):
            step = w - 0.1 * jax.grad(lambda w: total("hard", model, h, w, e))(w)
            return mx.cross_entropy(mx.Empirical((clean, y)), MODELS[model](step))

        got = jax.jit(jax.grad(after_a_step))(jnp.zeros(N, dtype))
        target = oracle.one_hot(y, V)
        _, _, of_clean, *_ = oracle.head(clean, weight, np.zeros(V), target, np.ones(4))
        expected = -0.1 * (gradients("hard") * of_clean).sum((1, 2))
        np.testing.assert_allclose(got, expected, rtol=1e-12 if dtype is np.float64 else 1e-4, atol=1e-7)


def test_any_integrand():
    """Of the user's own: finite values with infinite derivatives, infinite values, and NaN are at one with the others."""
    x = jnp.array([0.0, 4.0, np.nan, np.inf, -1.0])
    loss = lambda a, w: mx.Atoms(x, weights=w).expect(lambda x: jnp.sqrt(a * x))
    derivatives = [(f, *argnums) for f in MODES for argnums in ((0, 1), (1, 0))]
    everything = lambda a, w: (
        jax.value_and_grad(loss, (0, 1))(a, w),
        [outer(inner(loss, i), j)(a, w) for (outer, inner), i, j in derivatives],
        jax.jacfwd(jax.jacrev(jax.grad(loss, 1)))(a, w),
    )
    (value, (da, dw)), mixed, third = jax.jit(everything)(2.0, jnp.zeros(5))
    assert value == da == 0
    np.testing.assert_allclose(dw, [0, np.sqrt(8), 0, 0, 0], rtol=1e-6)
    for got in mixed:
        np.testing.assert_allclose(got, [0, 4 / (2 * np.sqrt(8)), 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(third, [0, -16 / (4 * 8**1.5), 0, 0, 0], rtol=1e-6)


def test_integrands_with_a_rule_for_reverse_mode():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, ct: (3 * x**2 * ct,))
    loss = lambda a, w: mx.Atoms(jnp.array([1.0, 2.0, np.nan]), weights=w).expect(lambda x: cube(a * x))
    for mode in (jax.grad, lambda f, n: jax.jit(jax.grad(f, n)), lambda f, n: jax.grad(jax.jit(f), n)):
        da, dw = mode(loss, (0, 1))(1.0, jnp.array([1.0, 0.0, 0.0]))
        np.testing.assert_allclose(da, 3)
        np.testing.assert_allclose(dw, [1, 8, 0])


def test_third_derivatives():
    """A null row's Fisher information is in the weight's derivative of the Hessian; of a row's functions too."""
    z, y = jnp.asarray(hidden @ weight).at[1].set(np.nan), jnp.asarray(labels)
    loss = lambda z, m: (m * mx.Dirac(y)).expect(mx.log_partition(mx.Categorical(z)) - log(mx.Categorical(z))).sum()
    got = jax.jit(jax.jacfwd(jax.hessian(loss), 1))(z, jnp.zeros(N))
    p = np.exp(oracle.log_softmax(hidden.astype(np.float64) @ weight))
    fisher = np.einsum("ni,ij->nij", p, np.eye(V)) - p[:, :, None] * p[:, None]
    fisher[1] = 0
    for i in range(N):
        np.testing.assert_allclose(got[i, :, i, :, i], 2 * fisher[i], **close)


def test_outcomes():
    """Against a sigmoid: an outcome's probability less what came, but at a NaN."""
    z, y = np.array([0.5, -2.0, np.nan, np.inf, 3.0]), np.array([1, 0, 1, 1, 0])
    loss = lambda z, m: mx.cross_entropy(m * mx.Dirac(y), mx.Bernoulli(z)).sum()
    everything = lambda z, m: [outer(inner(loss, i), 1 - i)(z, m) for outer, inner in MODES for i in (0, 1)]
    expected = np.where(np.isnan(z), 0, 1 / (1 + np.exp(-z)) - y)
    for mixed in jax.jit(everything)(f32(z), jnp.zeros(5)):
        np.testing.assert_allclose(mixed, np.diag(expected), **close)


@pytest.mark.slow("mixed second derivatives")
def test_a_part_of_a_target():
    """A teacher that is a head, with a share of 0: what it would add to the loss moves with its weight."""
    u = f32(rng.normal(size=(D, V)))

    def loss(c, u):
        K = mx.Dirac(labels) + c * mx.LinearSoftmax(u)(hidden)
        return -mx.joint(mx.Atoms(hidden), K).expect(log(mx.LinearSoftmax(weight)))

    both = lambda c, u: (jax.jacrev(jax.grad(loss, 1))(c, u), jax.grad(lambda u: jax.grad(loss)(c, u).sum())(u))
    mixed, other = jax.jit(both)(jnp.zeros(N), u)
    log_p = oracle.log_softmax(hidden.astype(np.float64) @ weight)
    p = np.exp(oracle.log_softmax(hidden.astype(np.float64) @ u))
    # d Σ_c p_c s_c, of the softmax p of hidden @ u
    rows = p * (-log_p - (p * -log_p).sum(-1, keepdims=True))
    expected = hidden[:, :, None] * rows[:, None, :]
    np.testing.assert_allclose(other, expected.sum(0), **close)
    np.testing.assert_allclose(np.moveaxis(mixed, -1, 0), expected, **close)


@pytest.mark.long
def test_class_weights():
    """Reweighted rows of weight 0: their own class weights, in the mixed derivative too."""
    class_weight = f32([0.5, 2.0, 1.0, 3.0, 0.7, 0.1])

    def loss(w, e):
        P = mx.Atoms((hidden, jnp.asarray(labels)), weights=e).reweight(lambda h, y: jnp.asarray(class_weight)[y])
        return -P.expect(log(mx.LinearSoftmax(w)))

    got = jax.jit(jax.jacfwd(jax.grad(loss), 1))(weight, jnp.zeros(N))
    expected = gradients("hard") * class_weight[labels, None, None]
    np.testing.assert_allclose(np.moveaxis(got, -1, 0), expected, **close)


@pytest.mark.long
def test_masses_of_both_signs_that_cancel_have_no_mean():
    """Of a law, too: what is left is the error of the integral. A measure of nothing is null."""
    P = mx.Normal(0.0, 1.0)
    signed = P.reweight(lambda x: x).normalize()
    assert jnp.isnan(signed.mass)
    assert jnp.isnan(signed.expect(lambda x: x))
    assert jnp.isnan((P - P).normalize().mass)
    np.testing.assert_allclose(P.reweight(lambda x: x + 0.5).normalize().expect(lambda x: x), 2.0, rtol=1e-5)
    assert P.restrict(lambda x: x > 1e9).normalize().mass == 0
    rows = mx.joint(
        mx.Atoms(jnp.arange(2.0), weights=jnp.array([1.0, -1.0])), mx.Conditional(lambda x: mx.Normal(x, 1.0))
    )
    assert jnp.isnan(rows.normalize().mass)
