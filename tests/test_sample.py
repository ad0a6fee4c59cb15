"""Samples have the law of what they are drawn from: by χ² against tables of masses, by Kolmogorov–Smirnov against scipy's.

Keys are fixed, so that a test that has passed passes; a right sampler fails for one key in 10⁵.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as S
from scipy import stats

import measure_xent as mx
from measure_xent._kernels import gumbel

from . import spaces
from .registry import REGISTRY
from .sweeps import sweep

KEY, DRAWS, LEVEL = jax.random.key(0), 1000, 1e-5
rng = np.random.default_rng(0)
f32 = lambda x: np.asarray(x, np.float32)


def check_frequencies(draws, masses, level=LEVEL):
    """Draws of classes 0..n−1 against their masses, rare ones together."""
    draws, masses = np.asarray(draws), np.asarray(masses, np.float64)
    counts = np.bincount(draws, minlength=len(masses))
    assert len(counts) == len(masses)
    assert not counts[masses == 0].any()
    expected = len(draws) * masses / masses.sum()
    rare = expected < 5
    seen, expected = ([*x[~rare], *([x[rare].sum()] if masses[rare].sum() else [])] for x in (counts, expected))
    if len(seen) > 1:
        assert stats.chisquare(seen, expected).pvalue > level


@sweep("entry", REGISTRY, 0.3, ids=repr)
def test_atoms(entry):
    P, table = entry.make(np.random.default_rng(1))
    draws = P.sample(KEY, DRAWS)
    assert jax.tree.leaves(draws)[0].shape == (DRAWS,)
    points = list(zip(*map(np.ravel, draws), strict=True)) if entry.pairs else np.ravel(draws).tolist()
    if min(table.values()) < 0:
        assert set(points) == {-1}
        return
    places = {x: i for i, x in enumerate(table)}
    check_frequencies([places[x] for x in points], list(table.values()))


@sweep("entry", spaces.ENTRIES, 0.3, ids=repr)
def test_laws(entry):
    P, table = entry.make(np.random.default_rng(1))
    if entry.name == "reweighted":
        with pytest.raises(NotImplementedError, match="that a density weighs"):
            P.sample(KEY)
        return
    draws = np.sort(np.asarray(P.sample(KEY, (DRAWS,)), np.float64))
    order = np.argsort(table.x, kind="stable")
    below = np.cumsum(table.mass[order]) / table.mass.sum()
    cdf = lambda x, side: np.concatenate([[0], below])[np.searchsorted(table.x[order], x, side)]
    # Where there are atoms the statistic is smaller than its law says. A table's cell is narrower than what is told apart.
    apart = max(
        (np.arange(1, DRAWS + 1) / DRAWS - cdf(draws, "right")).max(),
        (cdf(draws, "left") - np.arange(DRAWS) / DRAWS).max(),
    )
    assert stats.kstwo.sf(apart - 1e-3, DRAWS) > LEVEL


@pytest.mark.slow("thousands of draws from each")
def test_what_a_sample_is_made_of():
    """Shapes, tuples, members that are independent of each other, kinds of keys, and what cannot be drawn."""
    P = mx.joint(mx.Normal(jnp.zeros(2), 1.0), mx.Conditional(lambda x: mx.Normal(x, 0.1)))
    x, y = P.sample(KEY, (500, 3))
    assert x.shape == y.shape == (500, 3, 2)
    np.testing.assert_allclose(jnp.std(y - x), 0.1, rtol=0.05)
    dice = mx.Discrete(weights=jnp.ones((2, 6)) / 6).sample(KEY, 2000)
    for family in (x.reshape(-1, 2), dice):
        assert abs(np.corrcoef(family.T)[0, 1]) < 0.1
    assert mx.Normal(0.0, 1.0).sample(KEY, 3).shape == (3,)
    assert mx.Categorical(jnp.zeros(3)).sample(jax.random.PRNGKey(0)).shape == ()
    # One key, the same points, in a program too.
    np.testing.assert_array_equal(jax.jit(lambda k: P.sample(k, 4))(KEY)[0], P.sample(KEY, 4)[0])
    for measure in (P, mx.Normal(0.0, 1.0), mx.Categorical(jnp.zeros(3))):
        with pytest.raises(TypeError, match=r"sample\(key\): a jax.random.key\(seed\), got int"):
            measure.sample(0)
        with pytest.raises(TypeError, match=r"got keys of shape \(2,\)"):
            measure.sample(jax.random.split(KEY))
        for shape in (-1, (2, -1), (2, "a")):
            with pytest.raises(ValueError, match=r"sample\(shape\): a number of points"):
                measure.sample(KEY, shape)
        assert jax.tree.leaves(measure.sample(KEY, np.int64(2)))[0].shape[:1] == (2,)
    K = mx.Conditional(lambda x: (1 + x**2) * mx.Normal(x, 1.0))
    assert np.isnan(mx.bind(mx.Normal(0.0, 1.0), K).sample(KEY, 5)).all()  # of no mass that is known
    two = jnp.array([0.0, 1.0]) * mx.Normal(0.0, 1.0)
    np.testing.assert_array_equal(jnp.isnan(two.sample(KEY)), [True, False])
    assert np.isnan(mx.Normal(0.0, 1.0).restrict(lambda x: x > 100).sample(KEY))
    with jax.enable_x64(True):
        draws = mx.Normal(np.float64(0), np.float64(1)).restrict(lambda x: x > 1).sample(KEY, DRAWS)
        assert draws.dtype == np.float64
        assert stats.kstest(draws, stats.truncnorm(1, np.inf).cdf).pvalue > LEVEL


@pytest.mark.slow("thousands of draws from each")
def test_restrictions():
    """Of kernels, of what a map shows, of coordinates behind atoms: by rejection, which has no derivative."""
    K = mx.Conditional(lambda x: mx.Normal(x, 1.0))
    positive = mx.Conditional(lambda x: mx.Normal(x, 1.0).restrict(lambda y: y > 0).normalize())
    x, y = mx.joint(mx.Normal(0.0, 1.0), positive).sample(KEY, DRAWS)
    assert stats.kstest(x, stats.norm.cdf).pvalue > LEVEL
    assert y.min() > 0
    three = mx.Empirical(jnp.arange(3.0))
    masses = stats.norm.cdf(np.arange(3))
    x, y = mx.joint(three, K).restrict(lambda x, y: y > 0).sample(KEY, DRAWS)
    check_frequencies(np.asarray(x, int), masses)
    assert y.min() > 0
    mixture = mx.bind(three, K).restrict(lambda y: y > 0).sample(KEY, DRAWS)
    cdf = lambda t: sum(stats.norm.cdf(t, i) - stats.norm.cdf(-i) for i in range(3)) / masses.sum()
    assert stats.kstest(mixture, cdf).pvalue > LEVEL
    square = mx.pushforward(jnp.square, mx.Normal(0.0, 1.0)).restrict(lambda x: x > 1).sample(KEY, DRAWS)
    assert stats.kstest(square, lambda t: 1 - stats.chi2.sf(t, 1) / stats.chi2.sf(1, 1)).pvalue > LEVEL
    restricted = lambda m: mx.Normal(m, 1.0).restrict(lambda x: x > 0).sample(KEY, 3).sum()
    for derivative in (jax.grad, jax.jacfwd):
        with pytest.raises(NotImplementedError, match="drawn by rejection has no derivative"):
            derivative(restricted)(0.0)
    np.testing.assert_allclose(jax.grad(lambda m: mx.Normal(m, 1.0).sample(KEY, 3).sum())(0.0), 3)


@pytest.mark.parametrize("unit", [1e-37, 1e-24, 1.0, 1e30])
def test_tiny_and_huge_masses(unit):
    for P in (unit * mx.Dirac(0) + 3 * unit * mx.Dirac(1), mx.Discrete(weights=unit * jnp.array([1.0, 3.0]))):
        check_frequencies(P.sample(KEY, DRAWS), [1, 3])


@pytest.mark.long
def test_atoms_given_which_the_mass_differs():
    K = mx.Conditional(lambda x: (1 + x) * mx.Normal(x, 0.1))
    x, _ = mx.joint(mx.Empirical(jnp.arange(3.0)), K).sample(KEY, DRAWS)
    check_frequencies(np.asarray(x, int), [1, 2, 3])
    parts = 0.3 * mx.Normal(0.0, 0.1).restrict(lambda x: x > 0) + 0.7 * mx.Normal(5.0, 0.1)
    check_frequencies(np.asarray(parts.sample(KEY, DRAWS) > 2, int), [0.15, 0.7])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_edges_of_logits(dtype):
    """Forbidden classes never, infinite logits alike, rows without mass or with a NaN none."""
    with jax.enable_x64(dtype == "float64"):
        rows = [[0, -np.inf, 1, 2], [0, np.inf, np.inf, 1], [-np.inf] * 4, [0, np.nan, 0, 0], [1e4, 1e4, -1e4, 0]]
        draws = np.asarray(mx.Categorical(jnp.asarray(rows, dtype)).sample(KEY, DRAWS))
    assert (draws[:, 2:4] == -1).all()
    for i, masses in {0: [1, 0, np.e, np.e**2], 1: [0, 1, 1, 0], 4: [1, 1, 0, 0]}.items():
        check_frequencies(draws[:, i], masses)


def test_the_ends_of_gumbel_s_numbers(monkeypatch):
    """Of 32 bits, the largest ones to their last digit."""
    bits = np.array([0, 1, 5, 2**10 + 1, 2**31, 2**32 - 1], np.uint32)
    monkeypatch.setattr(jax.random, "bits", lambda *_: jnp.asarray(bits))
    u = np.minimum((np.float64(bits) + 0.5) / 2**32, 1 - 2.0**-24)
    np.testing.assert_allclose(gumbel._gumbel(KEY, len(bits), jnp.float32), -np.log(-np.log1p(-u)), rtol=3e-7)


N, D, V = 5, 4, 13


def head(size=2):
    w, h, b = f32(rng.normal(size=(D, V))), f32(rng.normal(size=(N, D))), f32(rng.normal(size=V))
    b[3] = -np.inf
    return mx.LinearSoftmax(w, b, batch_size=size), h, h @ w + b


@pytest.mark.long
def test_heads():
    """In blocks, and of one hidden state, the dense one's points; tempered, restricted, at every rank."""
    Q, h, z = head()
    draws = Q(h).sample(KEY, DRAWS)
    np.testing.assert_array_equal(draws, mx.Categorical(z).sample(KEY, DRAWS))
    np.testing.assert_array_equal(Q(h[0]).sample(KEY, 9), mx.Categorical(z[0]).sample(KEY, 9))
    assert Q(h[:4].reshape(2, 2, D)).sample(KEY, (6, 1)).shape == (6, 1, 2, 2)
    softmax = lambda z: np.exp(z - z.max(-1, keepdims=True))
    even = lambda y: y % 2 == 0
    hot = mx.LinearSoftmax(Q.weight, batch_size=2)(h / 2).sample(KEY, DRAWS)
    few = Q(h).restrict(even).normalize().sample(KEY, DRAWS)
    mixed = (0.5 * Q(h) + 0.5 * mx.DiscreteUniform(V)).sample(KEY, DRAWS)
    for i in range(N):
        p = softmax(z[i])
        check_frequencies(draws[:, i], p)
        check_frequencies(hot[:, i], softmax(h[i] @ np.asarray(Q.weight) / 2))
        check_frequencies(few[:, i], np.where(even(np.arange(V)), p, 0))
        check_frequencies(mixed[:, i], p / p.sum() + 1 / V)
    assert len(np.unique(few, axis=0)) > 100  # rows of a block and blocks do not repeat each other
    keys = jax.random.split(KEY, 3)
    of_keys = jax.vmap(lambda key, h: Q(h).sample(key))(keys, jnp.broadcast_to(h, (3, N, D)))
    np.testing.assert_array_equal(of_keys, [Q(h).sample(key) for key in keys])


@pytest.mark.long
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_meshes(kind):
    """Rows and classes over devices: the right law, and devices that have parts of the classes tell each other a row's best."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    w, h = f32(rng.normal(size=(D, 16))), f32(rng.normal(size=(4, D)))
    place = lambda x, *dims: jax.device_put(x, NamedSharding(mesh, S(*dims)))
    sample = jax.jit(lambda w, h: mx.LinearSoftmax(w)(h).sample(KEY, DRAWS))
    with jax.set_mesh(mesh):
        operands = place(w, None, "model"), place(h, "data", None)
        draws = np.asarray(sample(*operands))
        text = sample.lower(*operands).compile().as_text()
    for i in range(4):
        check_frequencies(draws[:, i], np.exp(h[i] @ w))
        z = jax.jit(lambda w, h: h @ w)(*operands)
        of_logits = np.asarray(jax.jit(lambda z: mx.Categorical(z).sample(KEY, DRAWS))(z))
    for i in range(4):
        check_frequencies(of_logits[:, i], np.exp(h[i] @ w))
    assert " all-gather" in str(text)
    assert not re.search(r"f32\[\d+,16\]", str(text))  # all classes of some rows
    local = lambda w, h: mx.LinearSoftmax(w, axis_name="model")(h).sample(KEY, DRAWS)
    inside = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(S(None, "model"), S()), out_specs=S()))
    draws = np.asarray(inside(place(w, None, "model"), place(h)))
    for i in range(4):
        check_frequencies(draws[:, i], np.exp(h[i] @ w))
