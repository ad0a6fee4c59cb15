"""The laws of integration and information on finite spaces, over every measure there is.

The two sides of a law are one jitted function of the measures, so that a law compiles once a measure, however many
examples are drawn.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

import measure_xent as mx
from measure_xent import log, log2
from measure_xent._measures.shapes import arity

from . import registry as r
from .sweeps import sweep

seeds = st.integers(0, 2**32 - 1)
# float32 sums of fewer than 50 terms of size O(1) with random O(1) integrands: 50 ulp of 6e-8, with a factor in hand.
close = dict(rtol=1e-5, atol=1e-5)
each = sweep("entry", r.REGISTRY, ids=repr, cost=2)
each_positive = sweep("entry", r.POSITIVE, ids=repr, cost=2)
each_single = sweep("entry", [e for e in r.POSITIVE if not e.pairs], ids=repr, cost=2)


def made(entry, seed):
    rng = np.random.default_rng(seed)
    return (*entry.make(rng), rng)


def all_close(got, *expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, **close)


@jax.jit
def expect(P, f):
    return P.expect(f)


@each
@given(seed=seeds)
def test_integral_is_the_sum(entry, seed):
    P, p, rng = made(entry, seed)
    f, jf = r.random_function(rng, entry.pairs)
    np.testing.assert_allclose(expect(P, jf), r.integral(p, f), **close)


@jax.jit
def combined(P, Q, f, g):
    return (
        P.expect(lambda *x: 2 * f(*x) - 3 * g(*x)),
        2 * P.expect(f) - 3 * P.expect(g),
        (0.5 * P + 2.0 * Q).expect(f),
        (P - Q).expect(f),
    )


@each
@given(seed=seeds)
def test_linear_in_the_integrand_and_in_the_measure(entry, seed):
    P, p, rng = made(entry, seed)
    Q, q, _ = made(entry, seed + 1)
    (f, jf), (g, jg) = r.random_function(rng, entry.pairs), r.random_function(rng, entry.pairs)
    pf, pg, qf = r.integral(p, f), r.integral(p, g), r.integral(q, f)
    all_close(combined(P, Q, jf, jg), 2 * pf - 3 * pg, 2 * pf - 3 * pg, 0.5 * pf + 2 * qf, pf - qf)


@jax.jit
def masses(P):
    return P.mass, P.expect(lambda *x: 1.0), P.normalize().mass


@each
@given(seed=seeds)
def test_mass_is_the_integral_of_one(entry, seed):
    P, p, _ = made(entry, seed)
    mass = sum(p.values())
    all_close(masses(P), mass, mass, 1)
    if entry.probability:
        np.testing.assert_allclose(mass, 1, **close)


@jax.jit
def densities(P, points):
    return jax.vmap(log(P))(*points), jax.vmap(P / P)(*points)


@each
@given(seed=seeds)
def test_density_is_the_mass_of_a_point(entry, seed):
    P, p, _ = made(entry, seed)
    points = np.indices((8, 8)).reshape(2, -1) if entry.pairs else np.arange(8)[None]
    mass = np.array([p.get(tuple(x) if entry.pairs else x[0], 0.0) for x in points.T.tolist()])
    with np.errstate(divide="ignore", invalid="ignore"):
        all_close(densities(P, tuple(points)), np.log(mass), np.where(mass != 0, 1.0, np.nan))


@jax.jit
def through_counting(P, f):
    support = mx.Counting(8) if arity(P) == 1 else mx.product(mx.Counting(8), mx.Counting(8))
    return ((P / support) * support).expect(f)


@each_positive
@given(seed=seeds)
def test_radon_nikodym(entry, seed):
    P, p, rng = made(entry, seed)
    f, jf = r.random_function(rng, entry.pairs)
    np.testing.assert_allclose(through_counting(P, jf), r.integral(p, f), **close)


@jax.jit
def ratios(P, Q, R):
    x = jnp.arange(r.V)
    ratio = lambda P, Q: jax.vmap(P / Q)(x)
    return ratio(P, R), ratio(P, Q) * ratio(Q, R)


@each_single
@given(seed=seeds)
def test_chain_rule_of_densities(entry, seed):
    P, _, rng = made(entry, seed)
    direct, chained = ratios(P, r.categorical(rng)[0], r.categorical(rng)[0])
    np.testing.assert_allclose(direct, chained, rtol=1e-4, atol=1e-5)


def transform(*x):
    return (3 * x[0] + 2 * sum(x[1:])) % 5


@jax.jit
def changed(P, f):
    return mx.pushforward(transform, P).expect(f), P.expect(lambda *x: f(transform(*x)))


@each
@given(seed=seeds)
def test_change_of_variables(entry, seed):
    P, p, rng = made(entry, seed)
    f, jf = r.random_function(rng, False)
    all_close(changed(P, jf), *[r.integral(p, lambda *x: f(transform(*x)))] * 2)


@jax.jit
def twice(P, Q, f):
    return (
        mx.product(P, Q).expect(f),
        P.expect(lambda x: Q.expect(lambda y: f(x, y))),
        Q.expect(lambda y: P.expect(lambda x: f(x, y))),
    )


@each_single
@given(seed=seeds)
def test_fubini(entry, seed):
    P, p, rng = made(entry, seed)
    Q, q = r.categorical(rng)
    f, jf = r.random_function(rng, True)
    all_close(twice(P, Q, jf), *[r.integral(p, lambda x: r.integral(q, lambda y: f(x, y)))] * 3)


@jax.jit
def towers(P, K, f):
    return (
        mx.joint(P, K).expect(f),
        P.expect(lambda x: K(x).expect(lambda y: f(x, y))),
        P.expect(lambda x: K.expect(lambda y: f(x, y))(x)),
        mx.bind(P, K).expect(lambda y: f(0, y)),
    )


@pytest.mark.long
@each_single
@given(seed=seeds)
def test_tower(entry, seed):
    P, p, rng = made(entry, seed)
    rows = r.f32(rng.normal(size=(8, r.V)))
    f, jf = r.random_function(rng, True)
    by_hand = r.integral(p, lambda x: r.softmax(rows[x]) @ [f(x, y) for y in range(r.V)])
    marginal = r.integral(p, lambda x: r.softmax(rows[x]) @ [f(0, y) for y in range(r.V)])
    all_close(towers(P, r.conditional(rows), jf), by_hand, by_hand, by_hand, marginal)


@jax.jit
def entropies(P):
    return mx.entropy(P), -P.expect(log2(P))


@each_positive
@given(seed=seeds)
def test_entropy(entry, seed):
    P, p, _ = made(entry, seed)
    nats = r.cross_entropy(p, p)
    all_close(entropies(P), nats, nats / np.log(2))


@jax.jit
def information(P, Q):
    return mx.cross_entropy(P, Q), -P.expect(log(Q)), mx.kl_divergence(P, Q), mx.entropy(P), mx.kl_divergence(P, P)


@each_single
@given(seed=seeds, data=st.data())
def test_cross_entropy_and_gibbs(entry, data, seed):
    other = data.draw(st.sampled_from([e for e in r.POSITIVE if not e.pairs and e.classes == entry.classes]))
    P, p, _ = made(entry, seed)
    Q, q, _ = made(other, seed + 1)
    cross, line, kl, entropy, own = information(P, Q)
    expected = r.cross_entropy(p, q)
    np.testing.assert_allclose(cross, expected, **close)
    assert cross == line
    divergence = expected - r.cross_entropy(p, p) + sum(q.values()) - sum(p.values())
    np.testing.assert_allclose(kl, divergence, **close)
    assert kl >= -1e-5
    np.testing.assert_allclose(own, 0, atol=1e-5)
    if entry.probability and other.probability:
        assert cross >= entropy - 1e-5


@jax.jit
def joint_entropy(P, K):
    return mx.entropy(mx.joint(P, K)), mx.entropy(P) + P.expect(lambda x: mx.entropy(K(x)))


@pytest.mark.slow("every law of a space")
@each_single
@given(seed=seeds)
def test_entropy_of_a_joint(entry, seed):
    P, _, rng = made(entry, seed)
    together, chained = joint_entropy(P, r.conditional(rng.normal(size=(8, r.V))))
    np.testing.assert_allclose(together, chained, **close)


@jax.jit
def processed(P, Q, K):
    parity = lambda P: mx.pushforward(lambda x: x % 2, P)
    kl = mx.kl_divergence
    return kl(P, Q), kl(parity(P), parity(Q)), kl(mx.bind(P, K), mx.bind(Q, K))


@pytest.mark.slow("every law of a space")
@each_single
@given(seed=seeds)
def test_data_processing(entry, seed):
    P, _, rng = made(entry, seed)
    Q, _ = r.full_support(entry, rng)
    divergence, pushed, bound = processed(P, Q, r.conditional(rng.normal(size=(8, 3))))
    assert pushed <= divergence + 1e-5
    assert bound <= divergence + 1e-5


@jax.jit
def scaled_divergences(P, Q):
    return mx.kl_divergence(2.0 * P, 0.5 * Q), mx.kl_divergence(2.0 * P, 2.0 * Q), 2 * mx.kl_divergence(P, Q)


@pytest.mark.long
@each_single
@given(seed=seeds)
def test_kl_scales(entry, seed):
    """KL(aP ‖ bQ) = a ∫ log(dP/dQ) dP + a log(a/b) P(1) + b Q(1) − a P(1), for finite measures."""
    P, p, rng = made(entry, seed)
    Q, q = r.full_support(entry, rng)
    mass_p, mass_q = sum(p.values()), sum(q.values())
    log_ratio = r.cross_entropy(p, q) - r.cross_entropy(p, p)
    expected = 2 * log_ratio + 2 * np.log(4) * mass_p + 0.5 * mass_q - 2 * mass_p
    same = 2 * (log_ratio + mass_q - mass_p)
    all_close(scaled_divergences(P, Q), expected, same, same)


@jax.jit
def mean_score(z):
    score = lambda z, y: jax.grad(lambda z: log(mx.Categorical(z))(y))(z)
    return mx.Categorical(z).expect(Partial(score, z))


@given(seed=seeds)
def test_the_score_has_mean_zero(seed):
    z = jnp.asarray(np.random.default_rng(seed).normal(size=r.V), jnp.float32)
    np.testing.assert_allclose(mean_score(z), np.zeros(r.V), atol=1e-6)


@jax.jit
def likelihoods(data, z, frequencies):
    best = mx.cross_entropy(mx.Empirical(data), mx.Categorical(probs=frequencies))
    likelihood = jax.vmap(lambda z: log(mx.Categorical(z))(data).sum())(z)
    return likelihood, mx.cross_entropy(mx.Empirical(data), mx.Categorical(z)), best


@given(seed=seeds)
def test_likelihood_is_cross_entropy_with_the_same_argmin(seed):
    rng = np.random.default_rng(seed)
    data, z = rng.integers(r.V, size=20), jnp.asarray(rng.normal(size=(6, r.V)), jnp.float32)  # six candidates
    frequencies = jnp.asarray(np.bincount(data, minlength=r.V) / 20, jnp.float32)
    likelihood, cross, best = likelihoods(jnp.asarray(data), z, frequencies)
    np.testing.assert_allclose(likelihood, -20 * cross, **close)
    assert jnp.argmax(likelihood) == jnp.argmin(cross)
    assert np.all(best <= cross + 1e-6)


@pytest.mark.slow("every law of a space")
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
        one = jax.jit(lambda *a, m=measure: {what: f(m(*a), a[0]) for what, f in functionals.items()})
        family, mapped = one(*arguments), jax.jit(jax.vmap(jax.vmap(one)))(*arguments)
        members = [[one(*(a[i, j] for a in arguments)) for j in range(4)] for i in range(3)]
        for what in functionals:
            loop = np.array([[member[what] for member in row] for row in members])
            np.testing.assert_allclose(family[what], mapped[what], **close, err_msg=f"{what} of {name}")
            np.testing.assert_allclose(family[what], loop, **close, err_msg=f"{what} of {name}")


def test_masses_of_joints():
    P = mx.Atoms(jnp.arange(3.0), weights=jnp.array([1.0, 2.0, 0.5]))
    one = mx.joint(P, mx.Conditional(lambda x: (1 + x) * mx.DiscreteUniform(2)))
    np.testing.assert_allclose([one.mass, one.expect(lambda x, y: 1.0)], 1 + 4 + 1.5, rtol=1e-6)
    np.testing.assert_allclose(mx.product(P, 2.0 * mx.Normal(0.0, 1.0)).mass, 7, rtol=1e-6)
