"""Rows that are masked: whatever they hold, no function of measures and no divergence has a value or a derivative there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent import log
from measure_xent._integrands.density import Entropy

from .sweeps import sweep

nan, inf = np.nan, np.inf
rng = np.random.default_rng(12)
N, V = 4, 3
labels, mass = jnp.array([1, 0, 2, 1]), np.array([1, 0, 0.5, 2], np.float32)
z0 = np.float32(rng.normal(size=(N, V)))
p0 = np.float32(rng.dirichlet(np.ones(V), size=N))
h0, weight = np.float32(rng.normal(size=(N, 2))), np.float32(rng.normal(size=(2, V)))

MODELS = {  # of a row's own numbers
    "logits": (mx.Categorical, z0),
    "probs": (lambda p: mx.Categorical(probs=p), p0),
    "head": (lambda h: mx.LinearSoftmax(jnp.asarray(weight, h.dtype))(h), h0),
    "mixture": (lambda z: 0.5 * mx.Categorical(z) + 0.5 * mx.DiscreteUniform(V), z0),
    "weights": (lambda p: mx.Discrete(weights=p), p0),
    "normalized": (lambda p: mx.Discrete(weights=p).normalize(), p0),
    "scaled": (lambda z: jnp.arange(1.0, N + 1) * mx.Categorical(z), z0),
}
INTEGRANDS = {
    "log": lambda Q: -log(Q),
    "log²": lambda Q: log(Q) ** 2,
    "entropy": Entropy,
    "brier": mx.brier,
    "spherical": mx.spherical,
    "crps": mx.crps,
    "dict": lambda Q: {"loss": -log(Q), "entropy": Entropy(Q)},
    "sum": lambda Q: mx.brier(Q) + 2 * mx.spherical(Q),
    "product": lambda Q: log(Q) * mx.crps(Q),
    "ratio": lambda Q: Q / mx.DiscreteUniform(V),
    "of a ratio": lambda Q: log(mx.DiscreteUniform(V) / Q).map(jnp.tanh),
}
OF_LOGITS = {
    "log-partition": lambda Q: mx.log_partition(Q) ** 2,
    "confidence": mx.confidence,
    "correct": mx.correct,
}
TARGETS = {
    "labels": lambda: mx.Dirac(labels),
    "smoothed": lambda: 0.5 * mx.Dirac(labels) + 0.5 * mx.DiscreteUniform(V),
    "soft": lambda: mx.Categorical(probs=jnp.asarray(p0[::-1])),
}


def total(values):
    """One number that tells the values and their places apart."""
    return sum(jnp.sum(v * jnp.cos(jnp.arange(v.size).reshape(v.shape))) for v in jax.tree.leaves(values))


def agree(functions, rows, spoil):
    """Values and gradients in the rows and in the masses are those of the rows as they were, and 0 in the spoiled row."""

    @jax.jit
    def all_of_them(x, m):
        of = lambda f: (f(x, m), jax.grad(lambda x, m: total(f(x, m)), (0, 1))(x, m))
        return {name: of(f) for name, f in functions.items()}

    expected = all_of_them(jnp.asarray(rows), jnp.asarray(mass))
    for junk in spoil:
        spoiled = np.array(rows)
        spoiled[1] = junk
        got = all_of_them(jnp.asarray(spoiled), jnp.asarray(mass))
        for name, (value, (dx, dm)) in got.items():
            exact, (ex, em) = expected[name]
            for v, e in zip(jax.tree.leaves(value), jax.tree.leaves(exact), strict=True):
                np.testing.assert_allclose(v, e, rtol=1e-5, err_msg=f"{name}, {junk}")
                assert v[1] == 0
            np.testing.assert_array_equal(dx[1], 0, err_msg=f"{name}, {junk}")
            np.testing.assert_allclose(dx, ex, rtol=1e-4, atol=1e-6, err_msg=f"{name}, {junk}")
            assert np.isfinite(dm[1]), (name, junk)
            np.testing.assert_allclose(np.delete(dm, 1), np.delete(em, 1), rtol=1e-5, err_msg=f"{name}, {junk}")


@pytest.mark.slow("every integrand, masked in several ways")
@sweep("model", MODELS, cost=1.5)
@sweep("target", TARGETS)
def test_integrands_of_a_family(model, target):
    make, rows = MODELS[model]
    integrands = INTEGRANDS | (OF_LOGITS if model in ("logits", "head") else {})
    functions = {name: lambda x, m, f=f: (m * TARGETS[target]()).expect(f(make(x))) for name, f in integrands.items()}
    agree(functions, rows, (nan, -inf, inf))


@pytest.mark.slow("every integrand, masked in several ways")
@pytest.mark.parametrize("target", ["labels", "soft"])
def test_integrands_of_a_family_as_listed(target):
    """The quick ones of the sweep, of a model by logits and by probabilities."""
    for model in ("logits", "probs", "head"):
        make, rows = MODELS[model]
        functions = {
            name: lambda x, m, f=f, make=make: (m * TARGETS[target]()).expect(f(make(x)))
            for name, f in INTEGRANDS.items()
            if name in ("entropy", "brier", "spherical", "dict")
        }
        agree(functions, rows, (nan, -inf))


DIVERGENCES = {
    "kl": mx.kl_divergence,
    "total variation": mx.total_variation,
    "hellinger": mx.hellinger,
    "chi2": mx.chi2,
    "jensen-shannon": mx.jensen_shannon,
    "jeffreys": mx.jeffreys,
    "renyi": lambda P, Q: mx.renyi_divergence(P, Q, 0.5),
    "tsallis": lambda P, Q: mx.tsallis_divergence(P, Q, 2),
    "entropy": lambda P, Q: mx.entropy(P),
    "renyi entropy": lambda P, Q: mx.renyi_entropy(P, 2.0),
}


@pytest.mark.slow("every divergence, masked in several ways")
@sweep("model", ["logits", "probs", "head", "weights"], cost=1.5)
def test_divergences_of_masked_families(model):
    """Of two families with one mask, in the rows of either."""
    make, rows = MODELS[model]
    other = mx.Categorical(jnp.asarray(rng.normal(size=(N, V)), jnp.float32))
    functions = {
        f"{name}, {side}": lambda x, m, f=f, side=side: f(*((m * make(x)), m * other)[:: 1 if side == "P" else -1])
        for name, f in DIVERGENCES.items()
        for side in "PQ"
    }
    agree(functions, rows, (nan, -inf))


@pytest.mark.slow("every divergence, masked in several ways")
@pytest.mark.parametrize("name", ["kl", "total variation", "hellinger", "chi2", "jensen-shannon", "renyi"])
def test_divergences_as_listed(name):
    """Two softmaxes, of which a row is padding in both."""
    f = DIVERGENCES[name]
    agree({name: lambda x, m: f(m * mx.Categorical(x), m * mx.Categorical(0.5 * x))}, z0, (nan, -inf))


@pytest.mark.long
def test_a_row_under_vmap():
    """One measure, no family: the mass is a number that vmap brings."""
    spoiled = z0.copy()
    spoiled[1] = nan
    for f in (mx.brier, mx.spherical, lambda Q: log(Q) ** 2):
        loss = lambda z, m, f=f: jax.vmap(lambda z, y, m: (m * mx.Dirac(y)).expect(f(mx.Categorical(z))))(z, labels, m)
        gradient = jax.jit(jax.grad(lambda z, loss=loss: loss(z, jnp.asarray(mass)).sum()))
        got, expected = gradient(jnp.asarray(spoiled)), gradient(jnp.asarray(z0))
        np.testing.assert_array_equal(got[1], 0)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow("every integrand, masked in several ways")
def test_rows_of_a_batch():
    """The same of an Empirical: padding of weight 0 in a Conditional's x."""
    K = mx.Conditional(mx.Categorical)
    of = {
        "log": log,
        "log²": lambda K: log(K) ** 2,
        "brier": mx.brier,
        "spherical": mx.spherical,
        "crps": mx.crps,
        "entropy": mx.entropy,
        "confidence": mx.confidence,
        "dict": lambda K: {"loss": -log(K), "entropy": mx.entropy(K)},
    }

    @jax.jit
    def all_of_them(z, m):
        loss = lambda f: lambda z, m: total(mx.Empirical((z, labels), weights=m).expect(f(K)))
        return {name: jax.value_and_grad(loss(f), (0, 1))(z, m) for name, f in of.items()}

    expected = all_of_them(jnp.asarray(z0), jnp.asarray(mass))
    for junk in (nan, -inf, inf):
        spoiled = z0.copy()
        spoiled[1] = junk
        got = all_of_them(jnp.asarray(spoiled), jnp.asarray(mass))
        for name, (value, (dz, dm)) in got.items():
            exact, (ez, em) = expected[name]
            np.testing.assert_allclose(value, exact, rtol=1e-5, err_msg=name)
            np.testing.assert_array_equal(dz[1], 0, err_msg=name)
            np.testing.assert_allclose(dz, ez, rtol=1e-4, atol=1e-6, err_msg=name)
            assert np.isfinite(dm[1]), name
            np.testing.assert_allclose(np.delete(dm, 1), np.delete(em, 1), rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.long
def test_masked_laws_of_targets():
    """A target that is itself padding: its masses are NaN where it weighs nothing."""
    spoiled = p0.copy()
    spoiled[1] = nan
    for make in (
        lambda p: mx.Categorical(probs=p),
        lambda p: mx.Discrete(weights=p),
        lambda p: mx.Categorical(jnp.log(p)),
    ):
        loss = lambda p, m, make=make: (m * make(p)).expect(-log(mx.Categorical(jnp.asarray(z0))))
        value = jax.jit(loss)(jnp.asarray(spoiled), jnp.asarray(mass))
        log_q = z0 - np.log(np.exp(np.float64(z0)).sum(-1, keepdims=True))
        expected = np.where(mass == 0, 0, -mass * np.sum(p0 * log_q, -1))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        dp, dm = jax.jit(jax.grad(lambda p, m, loss=loss: loss(p, m).sum(), (0, 1)))(
            jnp.asarray(spoiled), jnp.asarray(mass)
        )
        assert np.all(np.isfinite(dp[np.array([0, 2, 3])]))
        np.testing.assert_array_equal(dm[1], 0)


@pytest.mark.slow("six orders, with gradients")
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fenchel_young_of_any_mass(alpha, dtype):
    """m times the loss of mass 1, gradient m · entmax − P; of a null target 0, over any logits."""
    with jax.enable_x64(dtype == "float64"):
        tolerance = dict(rtol=1e-6, atol=1e-6) if dtype == "float32" else dict(rtol=1e-12, atol=1e-12)
        y, z = jnp.array([1, 1, 0, 2]), jnp.asarray(z0, dtype)
        m, x = jnp.asarray(mass, dtype), jnp.array([[3.0, 4.0, 5.0]] * 4, dtype) + z
        both = jax.jit(jax.value_and_grad(lambda z, m: total(mx.fenchel_young_loss(m * mx.Dirac(y), z, alpha)), (0, 1)))
        loss = mx.fenchel_young_loss(mx.Dirac(y), x, alpha)
        np.testing.assert_allclose(mx.fenchel_young_loss(m * mx.Dirac(y), x, alpha), mass * loss, **tolerance)
        q = jax.nn.softmax(x) if alpha == 1 else mx.entmax(x, alpha).probs
        cot = np.cos(np.arange(4))
        for junk in (0.0, nan, -inf, inf):
            value, (dx, dm) = both(x.at[1].set(junk), m)
            np.testing.assert_allclose(value, np.sum(cot * mass * np.asarray(loss)), **tolerance)
            expected = (cot * mass)[:, None] * (np.asarray(q) - np.eye(V)[y])
            np.testing.assert_allclose(np.delete(dx, 1, 0), np.delete(expected, 1, 0), **tolerance)
            np.testing.assert_array_equal(dx[1], 0)
            assert np.isfinite(dm[1]) or junk != nan
            np.testing.assert_allclose(np.delete(dm, 1), np.delete(cot * np.asarray(loss), 1), **tolerance)
    null = jax.value_and_grad(lambda z: mx.fenchel_young_loss(0.0 * mx.Dirac(1), z, alpha))(jnp.array([3.0, 4.0, 5.0]))
    np.testing.assert_array_equal(null[0], 0)
    np.testing.assert_array_equal(null[1], 0)


def test_a_divergence_with_both_sides_masked():
    """Rows of NaN, the teacher's and the student's, behind a mask on both measures: 0, with gradient 0."""
    rng = np.random.default_rng(3)
    z, w = (jnp.asarray(x, float) for x in rng.normal(size=(2, 4, 7)))
    mask, bad = jnp.array([1.0, 0.0, 1.0, 0.0]), jnp.array([False, True, False, True])[:, None]
    teacher, student = jnp.where(bad, jnp.nan, z), jnp.where(bad, jnp.nan, w)
    loss = lambda z, w: mx.kl_divergence(mask * mx.Categorical(z), mask * mx.Categorical(w)).sum() / mask.sum()
    value, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(teacher, student)
    expected, of_kept = jax.value_and_grad(loss, (0, 1))(z, w)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for got, known in zip(slopes, of_kept, strict=True):
        np.testing.assert_allclose(got[::2], known[::2], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(got[1::2], 0)
