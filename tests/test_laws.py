"""The laws of integration and information on finite spaces, over every measure there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import measure_xent as mx
from measure_xent import log, log2

from . import registry as r

seeds = st.integers(0, 2**32 - 1)
# float32 sums of fewer than 50 terms of size O(1) with random O(1) integrands: 50 ulp of 6e-8, with a factor in hand.
close = dict(rtol=1e-5, atol=1e-5)
each = pytest.mark.parametrize("entry", r.REGISTRY, ids=repr)
each_positive = pytest.mark.parametrize("entry", r.POSITIVE, ids=repr)
each_single = pytest.mark.parametrize("entry", [e for e in r.POSITIVE if not e.pairs], ids=repr)
each_pair = pytest.mark.parametrize("entry", r.PAIRS, ids=repr)


def made(entry, seed):
    rng = np.random.default_rng(seed)
    return (*entry.make(rng), rng)


@each
@given(seed=seeds)
def test_integral_is_the_sum(entry, seed):
    P, p, rng = made(entry, seed)
    f, jf = r.random_function(rng, entry.pairs)
    np.testing.assert_allclose(P.expect(jf), r.integral(p, f), **close)


@each
@given(seed=seeds)
def test_linear_in_the_integrand(entry, seed):
    P, p, rng = made(entry, seed)
    (f, jf), (g, jg) = r.random_function(rng, entry.pairs), r.random_function(rng, entry.pairs)
    combined = P.expect(lambda *x: 2 * jf(*x) - 3 * jg(*x))
    np.testing.assert_allclose(combined, 2 * P.expect(jf) - 3 * P.expect(jg), **close)
    np.testing.assert_allclose(combined, 2 * r.integral(p, f) - 3 * r.integral(p, g), **close)


@each
@given(seed=seeds)
def test_linear_in_the_measure(entry, seed):
    P, p, rng = made(entry, seed)
    Q, q, _ = made(entry, seed + 1)
    f, jf = r.random_function(rng, entry.pairs)
    expected = 0.5 * r.integral(p, f) + 2 * r.integral(q, f)
    np.testing.assert_allclose((0.5 * P + 2.0 * Q).expect(jf), expected, **close)
    np.testing.assert_allclose((P - Q).expect(jf), r.integral(p, f) - r.integral(q, f), **close)


@each
@given(seed=seeds)
def test_mass_is_the_integral_of_one(entry, seed):
    P, p, _ = made(entry, seed)
    np.testing.assert_allclose(P.mass, sum(p.values()), **close)
    np.testing.assert_allclose(P.expect(lambda *x: 1.0), P.mass, **close)
    if entry.probability:
        np.testing.assert_allclose(P.mass, 1, **close)
    np.testing.assert_allclose(P.normalize().mass, 1, **close)


@each
@given(seed=seeds)
def test_density_is_the_mass_of_a_point(entry, seed):
    P, p, _ = made(entry, seed)
    for x, mass in p.items():
        point = x if isinstance(x, tuple) else (x,)
        expected = np.nan if mass < 0 else np.log(mass) if mass > 0 else -np.inf
        np.testing.assert_allclose(log(P)(*point), expected, **close)
        np.testing.assert_allclose((P / P)(*point), 1 if mass else np.nan, **close)


@each_positive
@given(seed=seeds)
def test_radon_nikodym(entry, seed):
    P, p, rng = made(entry, seed)
    f, jf = r.random_function(rng, entry.pairs)
    support = mx.Counting(8) if not entry.pairs else mx.product(mx.Counting(8), mx.Counting(8))
    np.testing.assert_allclose(((P / support) * support).expect(jf), r.integral(p, f), **close)


@each_single
@given(seed=seeds)
def test_chain_rule_of_densities(entry, seed):
    P, p, rng = made(entry, seed)
    Q, _ = r.categorical(rng)
    R, _ = r.categorical(rng)
    for x in p:
        if x < r.V:
            np.testing.assert_allclose((P / R)(x), (P / Q)(x) * (Q / R)(x), rtol=1e-4, atol=1e-5)


@each
@given(seed=seeds)
def test_change_of_variables(entry, seed):
    P, p, rng = made(entry, seed)
    f, jf = r.random_function(rng, False)
    T = (lambda x, y: (x + 2 * y) % 5) if entry.pairs else (lambda x: (3 * x) % 5)
    pushed = mx.pushforward(T, P)
    np.testing.assert_allclose(pushed.expect(jf), P.expect(lambda *x: jf(T(*x))), **close)
    np.testing.assert_allclose(pushed.expect(jf), r.integral(p, lambda *x: f(T(*x))), **close)


@each_single
@given(seed=seeds)
def test_fubini(entry, seed):
    P, p, rng = made(entry, seed)
    Q, q = r.categorical(rng)
    f, jf = r.random_function(rng, True)
    together = mx.product(P, Q).expect(jf)
    np.testing.assert_allclose(together, P.expect(lambda x: Q.expect(lambda y: jf(x, y))), **close)
    np.testing.assert_allclose(together, Q.expect(lambda y: P.expect(lambda x: jf(x, y))), **close)
    np.testing.assert_allclose(together, r.integral(p, lambda x: r.integral(q, lambda y: f(x, y))), **close)


@each_single
@given(seed=seeds)
def test_tower(entry, seed):
    P, p, rng = made(entry, seed)
    rows = r.f32(rng.normal(size=(8, r.V)))
    K = mx.Conditional(lambda x: mx.Categorical(jnp.asarray(rows, jnp.float32)[x]))
    f, jf = r.random_function(rng, True)
    J = mx.joint(P, K)
    by_hand = r.integral(p, lambda x: r.softmax(rows[x]) @ [f(x, y) for y in range(r.V)])
    np.testing.assert_allclose(J.expect(jf), by_hand, **close)
    np.testing.assert_allclose(P.expect(lambda x: K(x).expect(lambda y: jf(x, y))), by_hand, **close)
    np.testing.assert_allclose(P.expect(lambda x: K.expect(lambda y: jf(x, y))(x)), by_hand, **close)
    marginal = r.integral(p, lambda x: r.softmax(rows[x]) @ [f(0, y) for y in range(r.V)])
    np.testing.assert_allclose(mx.bind(P, K).expect(lambda y: jf(0, y)), marginal, **close)


@each_positive
@given(seed=seeds)
def test_entropy(entry, seed):
    P, p, _ = made(entry, seed)
    np.testing.assert_allclose(mx.entropy(P), r.cross_entropy(p, p), **close)
    np.testing.assert_allclose(-P.expect(log2(P)), r.cross_entropy(p, p) / np.log(2), **close)


@each_single
@given(seed=seeds, other=st.sampled_from([e for e in r.POSITIVE if not e.pairs]))
def test_cross_entropy_and_gibbs(entry, other, seed):
    P, p, _ = made(entry, seed)
    Q, q, _ = made(other, seed + 1)
    expected = r.cross_entropy(p, q)
    cross = mx.cross_entropy(P, Q)
    np.testing.assert_allclose(cross, expected, **close)
    assert cross == -P.expect(log(Q))  # the same line
    mass_p, mass_q = sum(p.values()), sum(q.values())
    divergence = expected - r.cross_entropy(p, p) + mass_q - mass_p
    kl = mx.kl_divergence(P, Q)
    np.testing.assert_allclose(kl, divergence, **close)
    assert kl >= -1e-5
    np.testing.assert_allclose(mx.kl_divergence(P, P), 0, atol=1e-5)
    if entry.probability and other.probability:
        assert cross >= mx.entropy(P) - 1e-5


@each_single
@given(seed=seeds)
def test_entropy_of_a_joint(entry, seed):
    P, _, rng = made(entry, seed)
    rows = jnp.asarray(rng.normal(size=(8, r.V)), jnp.float32)
    K = mx.Conditional(lambda x: mx.Categorical(rows[x]))
    conditional = P.expect(lambda x: mx.entropy(K(x)))
    np.testing.assert_allclose(mx.entropy(mx.joint(P, K)), mx.entropy(P) + conditional, **close)


@each_single
@given(seed=seeds)
def test_data_processing(entry, seed):
    P, _, rng = made(entry, seed)
    Q, _ = r.categorical(rng)
    T = lambda x: x % 2
    assert mx.kl_divergence(mx.pushforward(T, P), mx.pushforward(T, Q)) <= mx.kl_divergence(P, Q) + 1e-5
    rows = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    K = mx.Conditional(lambda x: mx.Categorical(rows[x]))
    assert mx.kl_divergence(mx.bind(P, K), mx.bind(Q, K)) <= mx.kl_divergence(P, Q) + 1e-5


@each_single
@given(seed=seeds)
def test_kl_scales(entry, seed):
    """KL(aP ‖ bQ) = a KL(P ‖ Q) + (a log(a/b) P(1) …): worked out from the definition of finite measures."""
    P, p, rng = made(entry, seed)
    Q, q = r.categorical(rng)
    a, b = 2.0, 0.5
    mass_p, mass_q = sum(p.values()), sum(q.values())
    expected = (
        a * (r.cross_entropy(p, q) - r.cross_entropy(p, p)) + a * np.log(a / b) * mass_p + b * mass_q - a * mass_p
    )
    np.testing.assert_allclose(mx.kl_divergence(a * P, b * Q), expected, **close)
    np.testing.assert_allclose(mx.kl_divergence(a * P, a * Q), a * mx.kl_divergence(P, Q), **close)


@given(seed=seeds)
def test_the_score_has_mean_zero(seed):
    z = jnp.asarray(np.random.default_rng(seed).normal(size=r.V), jnp.float32)
    score = mx.Categorical(z).expect(jax.grad(lambda z, y: log(mx.Categorical(z))(y)).__get__(z))
    np.testing.assert_allclose(score, np.zeros(r.V), atol=1e-6)


@given(seed=seeds)
def test_likelihood_is_cross_entropy_with_the_same_argmin(seed):
    rng = np.random.default_rng(seed)
    data, z = jnp.asarray(rng.integers(r.V, size=20)), jnp.asarray(rng.normal(size=(6, r.V)), jnp.float32)
    Q = mx.Categorical(z)  # six candidates
    likelihood = jax.vmap(lambda z: log(mx.Categorical(z))(data).sum())(z)
    cross = mx.cross_entropy(mx.Empirical(data), Q)
    np.testing.assert_allclose(likelihood, -20 * cross, **close)
    assert jnp.argmax(likelihood) == jnp.argmin(cross)
    frequencies = np.bincount(np.asarray(data), minlength=r.V) / 20
    best = mx.cross_entropy(mx.Empirical(data), mx.Categorical(probs=jnp.asarray(frequencies, jnp.float32)))
    assert np.all(best <= cross + 1e-6)


def test_family_is_vmap_is_loop():
    """Leading axes, jax.vmap over members, and a Python loop give the same numbers."""
    rng = np.random.default_rng(0)
    z, y, w = (
        jnp.asarray(a) for a in (rng.normal(size=(3, 4, 5)), rng.integers(5, size=(3, 4)), rng.uniform(size=(3, 4)))
    )
    i, v = jnp.asarray(rng.integers(5, size=(3, 4, 2))), jnp.asarray(rng.uniform(size=(3, 4, 2)))
    measures = {
        "dirac": (lambda z, y, w, i, v: mx.Dirac(y)),
        "categorical": (lambda z, y, w, i, v: mx.Categorical(-z)),
        "smoothed": (lambda z, y, w, i, v: w * mx.Dirac(y) + 0.1 * mx.DiscreteUniform(5)),
        "top k": (lambda z, y, w, i, v: mx.Discrete(i, v).normalize()),
        "mixup": (lambda z, y, w, i, v: w * mx.Dirac(y) + (1 - w) * mx.Discrete(i, v)),
        "pushforward": (lambda z, y, w, i, v: mx.pushforward(lambda x: (x + 1) % 5, mx.Categorical(z))),
    }
    functionals = {
        "cross entropy": lambda P, z: mx.cross_entropy(P, mx.Categorical(z)),
        "kl": lambda P, z: mx.kl_divergence(P, mx.Categorical(z)),
        "entropy": lambda P, z: mx.entropy(P),
        "expect": lambda P, z: P.expect(jnp.cos),
        "ratio": lambda P, z: ((P / mx.Categorical(z)) * mx.Categorical(z)).expect(jnp.sin),
        "mass": lambda P, z: jnp.broadcast_to(P.mass, z.shape[:-1]),
        "product": lambda P, z: mx.product(P, mx.Categorical(z)).expect(lambda a, b: jnp.cos(a + 2 * b)),
    }
    arguments = z, y, w, i, v
    for name, measure in measures.items():
        for what, functional in functionals.items():
            both = lambda *a, m=measure, f=functional: f(m(*a), a[0])
            family = both(*arguments)
            mapped = jax.vmap(jax.vmap(both))(*arguments)
            loop = np.array([[both(*(a[i, j] for a in arguments)) for j in range(4)] for i in range(3)])
            np.testing.assert_allclose(family, mapped, **close, err_msg=f"{what} of {name}")
            np.testing.assert_allclose(family, loop, **close, err_msg=f"{what} of {name}")
