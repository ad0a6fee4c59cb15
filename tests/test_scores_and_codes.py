"""Scoring rules, sparse softmaxes, codes that are written, and calibration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.metrics import brier_score_loss

import measure_xent as mx
from measure_xent import log

from .sweeps import sweep

rng = np.random.default_rng(10)


@pytest.mark.slow("iterated integrals")
@pytest.mark.parametrize("rule", [lambda Q: -log(Q), mx.brier, mx.spherical], ids=["log", "brier", "spherical"])
def test_proper(rule):
    """The mean score is least at the truth, with a gradient of 0 there and a positive curvature across the simplex."""
    z = jnp.asarray(rng.normal(size=4))
    with jax.enable_x64(True):
        z = z.astype(float)
        P = mx.Categorical(z)
        score = jax.jit(lambda w: P.expect(rule(mx.Categorical(w))))
        np.testing.assert_allclose(jax.jit(jax.grad(score))(z), 0, atol=1e-9)
        assert np.linalg.eigvalsh(jax.jit(jax.hessian(score))(z))[1] > 1e-3
        for w in rng.normal(size=(20, 4)):
            assert score(z) <= score(jnp.asarray(w))


@pytest.mark.long
def test_brier_of_batches():
    """Of a Conditional against scikit-learn, weights and all; of a density, the integral of its square."""
    z, y, w = np.float32(rng.normal(size=(50, 2))), rng.integers(0, 2, 50), rng.uniform(size=50)
    P = mx.Empirical((jnp.asarray(z), jnp.asarray(y)), weights=jnp.asarray(w, jnp.float32))
    p1 = np.exp(z[:, 1]) / np.exp(z).sum(-1)
    expected = 2 * brier_score_loss(y, p1, sample_weight=w)
    np.testing.assert_allclose(P.expect(mx.brier(mx.Conditional(mx.Categorical))), expected, rtol=1e-5)
    density = mx.Normal(0.0, 2.0)
    got = mx.Dirac(1.0).expect(mx.brier(density))
    np.testing.assert_allclose(got, 1 / (4 * np.sqrt(np.pi)) - 2 * stats.norm(0, 2).pdf(1) + 1, rtol=1e-5)


@pytest.mark.slow("iterated integrals")
def test_crps():
    """Closed forms of the normal, of a family of them and of samples; gradients; classes in order."""
    with jax.enable_x64(True):
        loc, scale, y = (jnp.asarray(x) for x in (rng.normal(size=5), rng.uniform(0.3, 2, 5), rng.normal(size=5)))
        crps = lambda loc, scale: mx.Dirac(y).expect(mx.crps(mx.Normal(loc, scale)))
        a, normal = np.asarray((y - loc) / scale), stats.norm
        expected = scale * (a * (2 * normal.cdf(a) - 1) + 2 * normal.pdf(a) - 1 / np.sqrt(np.pi))
        np.testing.assert_allclose(crps(loc, scale), expected, rtol=1e-7)
        slope = jax.grad(lambda loc: crps(loc, scale).sum())(loc)
        np.testing.assert_allclose(slope, 1 - 2 * normal.cdf(a), rtol=1e-6)
        x = rng.normal(size=30)
        ensemble = mx.Empirical(jnp.asarray(x))
        pairs = np.abs(x - 0.4).mean() - np.abs(x[:, None] - x).mean() / 2
        np.testing.assert_allclose(mx.Dirac(0.4).expect(mx.crps(ensemble)), pairs, rtol=1e-9)
        p = np.array([0.2, 0.5, 0.3])
        ranked = np.sum((np.cumsum(p) - (np.arange(3) >= 2)) ** 2)
        np.testing.assert_allclose(mx.Dirac(2).expect(mx.crps(mx.Categorical(probs=jnp.asarray(p)))), ranked, rtol=1e-9)
        exponential = mx.Dirac(0.7).expect(mx.crps(mx.Exponential(1.0)))
        np.testing.assert_allclose(exponential, 0.7 - 2 * (1 - np.exp(-0.7)) + 0.5, rtol=1e-7)


@pytest.mark.sweep(0.5)
@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 2.0, 3.0])
def test_entmax(alpha):
    """It maximises reward and entropy (scipy's SLSQP), is shift invariant and sparse, and its derivative is the limit's."""
    with jax.enable_x64(True):
        z = jnp.asarray(1.5 * rng.normal(size=(2, 5)))
        Q = mx.entmax(z, alpha)
        p = np.stack([jnp.exp(Q.log_density(jnp.full(2, k))) for k in range(5)], -1)
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)

        def reward(q, z):
            q = np.maximum(q, 1e-300)
            h = -np.sum(q * np.log(q)) if alpha == 1 else (1 - np.sum(q**alpha)) / (alpha - 1) / alpha
            return -(q @ z + h)

        for row, logits in zip(p, np.asarray(z), strict=True):
            best = optimize.minimize(
                reward, np.ones(5) / 5, (logits,), method="SLSQP", bounds=[(0, 1)] * 5, tol=1e-14,
                constraints={"type": "eq", "fun": lambda q: q.sum() - 1},
            )  # fmt: skip
            assert reward(row, logits) <= best.fun + 1e-9
            np.testing.assert_allclose(row, best.x, atol=2e-4)
        probs = lambda z: jax.nn.softmax(z) if alpha == 1 else mx.entmax(z, alpha).probs
        np.testing.assert_allclose(probs(z + 7), probs(z), atol=1e-9)
        v = jnp.asarray(rng.normal(size=z.shape))
        numeric = (probs(z + 1e-6 * v) - probs(z - 1e-6 * v)) / 2e-6
        np.testing.assert_allclose(jax.jvp(probs, (z,), (v,))[1], numeric, atol=1e-5)
        np.testing.assert_allclose(jax.jit(jax.vmap(lambda z: mx.entmax(z, alpha).mass))(z), 1)


def exact_entmax(z, alpha):
    """By Brent's method in float64: p = (1 + r (z − τ))₊^(1/r), r = α − 1."""
    z, r = np.asarray(z, np.float64), alpha - 1
    z = z - z.max()
    p = lambda shift: np.exp(np.log1p(np.maximum(r * (z - shift), -1 + 1e-300)) / r) * (r * (z - shift) > -1)
    return p(optimize.brentq(lambda shift: p(shift).sum() - 1, 0, np.log(len(z)) + 1, xtol=1e-15, rtol=1e-15))


@pytest.mark.sweep(1)
@sweep("dtype", ["float32", "float64"], cost=0.34)
@sweep("alpha", [1 + 1e-12, 1.0000001, 1.00001, 1.001, 1.3])
def test_entmax_just_above_one(alpha, dtype):
    """It goes to softmax without losing digits: probabilities, their derivative, and the loss."""
    z = np.array([1.0, 0.5, -2.0, 0.3, -9.0, 2.0])
    tolerance = dict(rtol=2e-6, atol=1e-7) if dtype == "float32" else dict(rtol=1e-11, atol=1e-14)
    with jax.enable_x64(dtype == "float64"):
        probs = lambda z: mx.entmax(z, alpha).probs
        exact = exact_entmax(z, alpha)
        p, jacobian = jax.jit(lambda z: (probs(z), jax.jacrev(probs)(z)))(jnp.asarray(z, dtype))
        assert p.dtype == dtype
        np.testing.assert_allclose(p, exact, **tolerance)
        s = np.where(exact > 0, exact ** (2 - alpha), 0)
        np.testing.assert_allclose(jacobian, np.diag(s) - np.outer(s, s) / s.sum(), **tolerance)
        value, slope = jax.jit(jax.value_and_grad(lambda z: mx.fenchel_young_loss(mx.Dirac(3), z, alpha)))(
            jnp.asarray(z, dtype)
        )
        powers = -np.sum(exact * np.expm1((alpha - 1) * np.log(np.where(exact > 0, exact, 1)))) / (alpha - 1)
        np.testing.assert_allclose(value, exact @ z + powers / alpha - z[3], **tolerance)
        np.testing.assert_allclose(slope, exact - np.eye(6)[3], **tolerance)


@pytest.mark.sweep(1)
@sweep("alpha", [1.0, 1.0000001, 1.5, 2.0, 3.0], cost=0.5)
def test_entmax_of_infinite_logits(alpha):
    """As of a Categorical: −inf forbids, +inf share the mass, nothing but −inf is the null measure. A NaN stays one."""
    inf, nan = np.inf, np.nan
    probs = lambda z: jax.nn.softmax(z) if alpha == 1 else mx.entmax(z, alpha).probs
    rows = jnp.array([[-inf, -inf, -inf], [inf, 0.0, inf], [inf, -inf, 1.0], [-inf, 0.0, 0.0], [nan, 0.0, 1.0]])
    expected = np.array([[0, 0, 0], [0.5, 0, 0.5], [1, 0, 0], [0, 0.5, 0.5], [nan, nan, nan]])
    loss = lambda z: mx.fenchel_young_loss(mx.Dirac(1), z, alpha)
    losses, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss)))(rows)
    np.testing.assert_allclose(losses, [inf, inf, inf, losses[3], nan])  # as infeasible as Categorical says
    np.testing.assert_allclose(slopes, expected - np.eye(3)[1], rtol=1e-6)
    if alpha == 1:
        return
    np.testing.assert_allclose(probs(rows), expected, rtol=1e-6)
    np.testing.assert_array_equal(mx.entmax(rows, alpha).mass[:4], [0, 1, 1, 1])
    jacobians = jax.jit(jax.vmap(jax.jacrev(probs)))(rows)
    assert np.all(np.isfinite(jacobians[:4]))
    assert np.all(np.isnan(jacobians[4, 1:, 1:]))
    np.testing.assert_array_equal(jacobians[0], 0)
    np.testing.assert_allclose(jacobians[:4].sum(-1), 0, atol=1e-6)
    curvature = jax.jit(jax.hessian(lambda z: mx.fenchel_young_loss(mx.Dirac(1), z, alpha)))(rows[0])
    np.testing.assert_array_equal(curvature, 0)


@pytest.mark.long
@pytest.mark.sweep(1)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_crps_of_families(dtype):
    """Each member's own, Σ_t (F(t) − 1{y ≤ t})², for every finite family; atoms in any order, null ones anywhere."""
    tolerance = dict(rtol=2e-6 if dtype == "float32" else 1e-12)
    with jax.enable_x64(dtype == "float64"):
        z, y = jnp.array([[1.0, 2.0, 0.5], [3.0, 4.0, 5.0]], dtype), jnp.array([0, 1])
        q = np.exp(np.float64(z)) / np.exp(np.float64(z)).sum(-1, keepdims=True)
        ranked = np.sum((np.cumsum(q, -1) - (np.arange(3) >= np.asarray(y)[:, None])) ** 2, -1)
        np.testing.assert_allclose(ranked, [0.61069, 0.45065], atol=1e-5)
        for Q in (
            mx.Categorical(z),
            mx.Categorical(probs=jnp.asarray(q, dtype)),
            mx.Discrete(weights=jnp.asarray(q, dtype)),
            mx.Discrete(jnp.array([2, 0, 1]), jnp.asarray(q[:, [2, 0, 1]], dtype)),
            0.5 * mx.Categorical(z) + 0.5 * mx.Discrete(jnp.array([2, 1, 0]), jnp.asarray(q[:, ::-1], dtype)),
            mx.LinearSoftmax(jnp.eye(3, dtype=dtype))(z),
        ):
            np.testing.assert_allclose(mx.Dirac(y).expect(mx.crps(Q)), ranked, **tolerance)
        x = np.array([[3.0, -1.0, np.nan, 0.5], [2.0, 2.5, 7.0, -4.0]])
        w = np.array([[0.25, 0.5, 0.0, 0.25], [0.1, 0.2, 0.3, 0.4]])
        score = lambda x, w, y: mx.Dirac(y).expect(mx.crps(mx.Discrete(x, w)))
        at = np.array([0.25, 3.0])
        known = np.nan_to_num(x)
        pairs = np.abs(known[:, :, None] - known[:, None])
        by_hand = np.sum(w * np.abs(known - at[:, None]), -1) - np.einsum("ni,nij,nj->n", w, pairs, w) / 2
        arguments = jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.asarray(at, dtype)
        np.testing.assert_allclose(score(*arguments), by_hand, **tolerance)
        dx, dw = jax.jit(jax.grad(lambda *a: score(*a).sum(), (0, 1)))(*arguments)
        slope = w * np.sign(known - at[:, None]) - w * np.einsum(
            "nij,nj->ni", np.sign(known[:, :, None] - known[:, None]), w
        )
        np.testing.assert_allclose(dx, slope, **tolerance, atol=1e-7)
        of_weight = np.abs(known - at[:, None]) - np.einsum("nij,nj->ni", pairs, w)
        np.testing.assert_allclose(np.asarray(dw)[w > 0], of_weight[w > 0], **tolerance, atol=1e-6)


def test_crps_of_many_atoms():
    """No array has a number for each pair of atoms: of 200 000 samples, the normal's own score but for noise."""
    Q = mx.Empirical(jnp.asarray(np.random.default_rng(3).normal(size=200_000), jnp.float32))
    np.testing.assert_allclose(mx.Dirac(0.0).expect(mx.crps(Q)), (np.sqrt(2) - 1) / np.sqrt(np.pi), atol=2e-3)


@pytest.mark.slow("a projection a row and order")
@sweep("alpha", [1.0, 1.5, 2.0], cost=3)
def test_fenchel_young(alpha):
    """At least 0, 0 at its own minimiser, gradient entmax − P; KL from softmax at α = 1."""
    with jax.enable_x64(True):
        z = jnp.asarray(rng.normal(size=(3, 4)))
        P = 0.8 * mx.Dirac(jnp.array([0, 3, 2])) + 0.2 * mx.DiscreteUniform(4)
        loss = lambda z: mx.fenchel_young_loss(P, z, alpha)
        assert np.all(loss(z) >= 0)
        np.testing.assert_allclose(mx.fenchel_young_loss(mx.entmax(z, alpha), z, alpha), 0, atol=1e-12)
        target = 0.8 * np.eye(4)[[0, 3, 2]] + 0.05
        q = np.asarray(jax.nn.softmax(z)) if alpha == 1 else np.asarray(mx.entmax(z, alpha).probs)
        gradient = jax.grad(lambda z: -1.7 * loss(z).sum())(z)
        np.testing.assert_allclose(gradient, -1.7 * (q - target), atol=1e-9)
        if alpha == 1:
            np.testing.assert_allclose(loss(z), mx.kl_divergence(P, mx.Categorical(z)), rtol=1e-9)


def drawn(p):
    p = np.asarray(p, np.float64)
    return rng.choice(len(p), p=p / p.sum())


def skewed():
    p = jnp.array([0.97, 0.01, 0.01, 0.01])
    return mx.Categorical(probs=p), rng.choice(4, p=[0.97, 0.01, 0.01, 0.01], size=20000)


def family():
    z = jnp.asarray(2 * rng.normal(size=(4000, 9)), jnp.float32)
    return mx.Categorical(z), np.array([drawn(p) for p in jax.nn.softmax(z)])


def uniform():
    return mx.DiscreteUniform(250), rng.integers(0, 250, 5000)


def mixture():
    return 0.5 * mx.DiscreteUniform(6) + 0.5 * mx.Categorical(jnp.arange(6.0)), rng.integers(0, 6, 3000)


def quantized():
    law, edges = mx.Normal(0.5, 2.0), jnp.linspace(-8, 8, 64)
    return mx.quantize(law, edges), np.asarray(jnp.digitize(law.sample(jax.random.key(0), (6000,)), edges))


def chain():
    z, x = jnp.asarray(2 * rng.normal(size=(5, 5)), jnp.float32), [0]
    for _ in range(300):
        x.append(drawn(jax.nn.softmax(z[x[-1]])))
    return lambda before: mx.Categorical(z[before[-1] if len(before) else 0]), np.array(x)


@pytest.mark.slow("a code of each model")
@pytest.mark.parametrize("model", [skewed, family, uniform, mixture, quantized, chain])
def test_codes(model):
    """What is written comes back, in the bits that the cross-entropy says and the coder's own."""
    Q, x = model()
    words = mx.encode(Q, x)
    np.testing.assert_array_equal(mx.decode(Q, words, len(x)), x)
    if not isinstance(Q, mx.Measure):
        ideal = -sum(float(mx.log2(Q(x[:i]))(x[i])) for i in range(len(x)))
    elif Q.shape:
        ideal = float(mx.cross_entropy(mx.Dirac(jnp.asarray(x)), Q, base=2).sum())
    else:
        ideal = float(mx.code_length(Q, jnp.asarray(x)))
        np.testing.assert_allclose(len(x) * mx.cross_entropy(mx.Empirical(jnp.asarray(x)), Q, base=2), ideal, rtol=1e-5)
    # 64 bits to end on, and fixed point probabilities: 2⁻²⁴ each, of 250 classes.
    assert ideal - 1 <= 32 * len(words) <= ideal + 64 + 2e-4 * ideal


@pytest.mark.slow("codes of many sizes")
def test_quantize():
    edges = jnp.array([-1.0, 0.0, 2.0])
    for law, frozen in ((mx.Normal(0.3, 1.5), stats.norm(0.3, 1.5)), (mx.Laplace(0.3, 1.5), stats.laplace(0.3, 1.5))):
        cdf = np.concatenate([[0], frozen.cdf(edges), [1]])
        np.testing.assert_allclose(mx.quantize(law, edges).probs, np.diff(cdf), rtol=1e-5)
    poisson = mx.quantize(mx.Poisson(2.0), jnp.array([1.0, 3.0])).probs
    np.testing.assert_allclose(poisson, np.diff([0, *stats.poisson(2).cdf([0, 2]), 1]), rtol=1e-5)
    family = mx.quantize(mx.Normal(jnp.zeros(3), 1.0), edges)
    assert family.shape == (3,)
    mixed = mx.quantize(0.5 * mx.Dirac(1.0) + 0.5 * mx.Dirac(-3.0), edges)
    np.testing.assert_allclose(mixed.probs, [0.5, 0, 0.5, 0])
    far = mx.quantize(mx.Normal(), jnp.array([8.0, 9.0])).probs
    np.testing.assert_allclose(far[1:], [stats.norm.sf(8) - stats.norm.sf(9), stats.norm.sf(9)], rtol=1e-4)


@pytest.mark.slow("calibration in several ways")
def test_calibration():
    """Against sums by hand, with weights; the decomposition adds up; batches add; a calibrated model has an error of noise."""
    n, V = 4000, 5
    z = np.float32(2 * rng.normal(size=(n, V)))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    y = np.array([rng.choice(V, p=row / row.sum()) for row in p.astype(np.float64)])
    w = np.float32(rng.uniform(size=n) + 0.1)
    batch = lambda s: mx.Atoms((jnp.asarray(z[s]), jnp.asarray(y[s])), weights=jnp.asarray(w[s]))
    sharp = mx.Conditional(lambda z: mx.Categorical(1.7 * z))
    q = np.exp(1.7 * z) / np.exp(1.7 * z).sum(-1, keepdims=True)
    confidence, correct = q.max(-1), q.argmax(-1) == y
    bins = np.clip((confidence * 15).astype(int), 0, 14)
    gap = [abs(np.sum((w * (correct - confidence))[bins == b])) for b in range(15)]
    P = batch(slice(None))
    np.testing.assert_allclose(mx.calibration_error(P, sharp), np.sum(gap) / w.sum(), rtol=1e-3)
    parts = mx.reliability(P, sharp).brier
    np.testing.assert_allclose(parts.score, np.average((confidence - correct) ** 2, weights=w), rtol=1e-4)
    np.testing.assert_allclose(
        parts.score, parts.reliability - parts.resolution + parts.uncertainty + parts.within, rtol=1e-5
    )
    assert abs(parts.within) < 0.1 * parts.score
    halves = [mx.reliability(batch(s), sharp)[1:] for s in (slice(0, 1500), slice(1500, None))]
    for a, b, whole in zip(*halves, mx.reliability(P, sharp)[1:], strict=True):
        np.testing.assert_allclose(a + b, whole, rtol=1e-4, atol=1e-3)
    truth = mx.calibration_error(mx.Empirical((jnp.asarray(z), jnp.asarray(y))), mx.Conditional(mx.Categorical))
    assert truth < 0.03 < mx.calibration_error(P, sharp)
    jitted = jax.jit(lambda z: mx.calibration_error(mx.Empirical((z, jnp.asarray(y))), sharp))(jnp.asarray(z))
    assert np.isfinite(jitted)
    bits = mx.Empirical((jnp.array([2.0, -2.0, 0.1]), jnp.array([1, 0, 0])))
    edges = jnp.array([0.0, 0.6, 1.0])
    figures = mx.reliability(bits, mx.Conditional(mx.Bernoulli), bins=edges)
    np.testing.assert_allclose(figures.mass, [1 / 3, 2 / 3], rtol=1e-6)
    axes = figures.plot(count=3)
    assert axes.get_xlabel() == "predicted probability"


@pytest.mark.slow("calibration in several ways")
def test_calibration_in_bins_of_equal_mass_and_of_each_class():
    """Against numpy: as many rows a bin, weights, each class's own probability; any integer counts; nothing of no mass is 0."""
    n, V, bins = 600, 3, 10
    z, y, w = 2 * rng.normal(size=(n, V)), rng.integers(V, size=n), rng.choice([0.0, 1.0, 2.0], size=n)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    P, Q = mx.Empirical((jnp.asarray(z), jnp.asarray(y))), mx.Conditional(mx.Categorical)

    def by_rank(p, hit, w):
        order = np.argsort(p)
        middle = np.cumsum(w[order]) - w[order] / 2
        bin = np.minimum((middle / w.sum() * bins).astype(int), bins - 1)
        return sum(abs(np.sum((w * (hit - p))[order][bin == b])) for b in range(bins)) / w.sum()

    def by_width(p, hit):
        bin = np.minimum((p * bins).astype(int), bins - 1)
        return sum(abs(np.sum((hit - p)[bin == b])) for b in range(bins)) / n

    top, right, ones = p.max(-1), p.argmax(-1) == y, np.ones(n)
    figures = mx.reliability(P, Q, bins, equal="mass")
    np.testing.assert_allclose(figures.mass, np.full(bins, 1 / bins), rtol=1e-5)
    np.testing.assert_allclose(figures.error, by_rank(top, right, ones), rtol=1e-4)
    weighted = mx.Empirical((jnp.where(w[:, None] == 0, jnp.nan, z), jnp.asarray(y)), weights=jnp.asarray(w))
    error = jax.jit(lambda P: mx.calibration_error(P, Q, bins, equal="mass"))(weighted)
    np.testing.assert_allclose(error, by_rank(top, right, w), rtol=1e-4)
    by_class = jax.jit(lambda P: mx.calibration_error(P, Q, np.int64(bins), classes=jnp.arange(V)))(P)
    np.testing.assert_allclose(by_class, [by_width(p[:, c], y == c) for c in range(V)], rtol=1e-4)
    np.testing.assert_allclose(mx.calibration_error(P, Q, bins, classes=2), by_class[2], rtol=1e-6)
    by_class = mx.reliability(P, Q, bins, equal="mass", classes=np.arange(V))
    np.testing.assert_allclose(by_class.error, [by_rank(p[:, c], y == c, ones) for c in range(V)], rtol=1e-4)
    np.testing.assert_allclose(by_class.brier.score, [np.mean((p[:, c] - (y == c)) ** 2) for c in range(V)], rtol=1e-4)
    with pytest.raises(ValueError, match="3 classes"):
        by_class.plot()

    plain = mx.calibration_error(P, Q, 4)
    for count in (np.int32(4), np.uint8(4), np.array(4), jnp.array(4), np.linspace(0, 1, 5), [0, 0.25, 0.5, 0.75, 1]):
        assert mx.calibration_error(P, Q, count) == plain
    masked = mx.Empirical((jnp.full((2, V), jnp.nan), jnp.zeros(2, int)), weights=jnp.zeros(2))
    for equal in ("width", "mass"):
        figures = mx.reliability(masked, Q, equal=equal)
        assert figures.error == figures.brier.score == figures.brier.within == 0
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda edges: mx.calibration_error(P, Q, edges))(jnp.array([0.0, 0.5, 1.0]))
    for bad in (0, -3, True, 2.5, np.array([0.2, 1]), "ten"):
        with pytest.raises(ValueError, match="positive int, or edges"):
            mx.calibration_error(P, Q, bad)
    with pytest.raises(ValueError, match="equal"):
        mx.calibration_error(P, Q, [0, 1], equal="mass")


def test_errors():
    Q = mx.Categorical(probs=jnp.array([0.5, 0.5, 0.0]))
    for call, words in (
        (lambda: mx.encode(Q, jnp.array([0, 2])), "symbol 2 at 1"),
        (lambda: mx.encode(Q, jnp.array([0, 3])), "symbol 3 at 1"),
        (lambda: mx.encode(mx.Normal(), jnp.array([0])), "on classes"),
        (lambda: mx.encode(Q, jnp.array([[0]])), "vector"),
        (lambda: mx.encode(mx.Categorical(jnp.zeros((3, 2))), jnp.array([0, 1])), "one a symbol"),
        (lambda: mx.quantize(mx.Normal(), jnp.array([1.0, 0.0])), "rising"),
        (lambda: mx.reliability(mx.Dirac(jnp.array([0, 1])), Q), "family"),
        (lambda: mx.reliability(mx.Dirac(0), Q, bins=jnp.array([0.2, 1.0])), "edges"),
        (lambda: mx.entmax(jnp.ones(3), alpha=0.5), "at least 1"),
        (lambda: mx.generators.alpha(jnp.inf), "finite"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    for call in (lambda: mx.brier(jnp.ones(3)), lambda: mx.crps(3), lambda: mx.spherical("x")):
        with pytest.raises(TypeError, match="Measure or a Conditional"):
            call()
