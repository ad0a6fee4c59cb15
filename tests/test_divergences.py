"""Divergences against formulas in float64 and closed forms, inequalities over the registries, derivatives at the boundary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from scipy.spatial.distance import jensenshannon

import measure_xent as mx
from measure_xent import generators

from . import registry, spaces
from .sweeps import sweep

rng = np.random.default_rng(7)
ALPHAS = (0.0, 0.3, 0.5, 0.99, 1.0, 1.01, 2.0, 7.0)


def xlogy(p, q):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0)


def power(p, q, a):
    """p^a q^(1−a), 0 where the factor with a positive exponent is, +inf where only the other is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.exp(a * np.log(p) + (1 - a) * np.log(q))
    return np.where((p == 0) & (a > 0) | (q == 0) & (a < 1), 0, np.where((p == 0) & (q > 0) & (a == 0), 0, value))


def by_hand(p, q):
    """Every divergence, of rows of masses."""
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        square = lambda den: np.where((p == q), 0, (p - q) ** 2 / den).sum(-1)
        figures = {
            "kl": xlogy(p, q).sum(-1),
            "jeffreys": (xlogy(p, q) + xlogy(q, p)).sum(-1),
            "jensen_shannon": (xlogy(p, m) + xlogy(q, m)).sum(-1) / 2,
            "total_variation": np.abs(p - q).sum(-1) / 2,
            "hellinger": np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1) / 2),
            "chi2": square(q),
            "neyman": square(p),
            "le_cam": square(2 * (p + q)),
        }
        for a in ALPHAS:
            some = np.where((p > 0) | (q > 0), power(p, q, a), 0).sum(-1)
            kl = figures["kl"]
            figures[f"renyi {a}"] = kl if a == 1 else np.log(some) / (a - 1)
            figures[f"tsallis {a}"] = kl if a == 1 else (some - 1) / (a - 1)
            own = np.where(p > 0, np.where(p > 0, p, 1) ** a, 0).sum(-1)
            shannon = -xlogy(p, 1).sum(-1)
            figures[f"tsallis entropy {a}"] = shannon if a == 1 else (1 - own) / (a - 1)
            figures[f"renyi entropy {a}"] = shannon if a == 1 else np.log(own) / (1 - a)
        figures["renyi inf"] = np.log(np.where(p > 0, p / q, 0).max(-1))
        figures["renyi entropy inf"] = -np.log(p.max(-1))
    return figures


def figures(P, Q):
    f = mx.f_divergence
    return {
        "kl": f(P, Q, generators.kl),
        "jeffreys": mx.jeffreys(P, Q),
        "jensen_shannon": mx.jensen_shannon(P, Q),
        "total_variation": mx.total_variation(P, Q),
        "hellinger": mx.hellinger(P, Q),
        "chi2": mx.chi2(P, Q),
        "neyman": f(P, Q, generators.neyman),
        "le_cam": f(P, Q, generators.le_cam),
        "renyi inf": mx.renyi_divergence(P, Q, jnp.inf),
        "renyi entropy inf": mx.renyi_entropy(P, jnp.inf),
        **{f"renyi {a}": mx.renyi_divergence(P, Q, a) for a in ALPHAS},
        **{f"tsallis {a}": mx.tsallis_divergence(P, Q, a) for a in ALPHAS},
        **{f"renyi entropy {a}": mx.renyi_entropy(P, a) for a in ALPHAS},
        **{f"tsallis entropy {a}": mx.tsallis_entropy(P, a) for a in ALPHAS},
    }


def random_rows(n, V):
    p = rng.dirichlet(np.full(V, 0.5), size=n) + 1e-6
    p[: n // 2] *= rng.uniform(size=(n // 2, V)) > 0.3
    p[:, 0] += 0.05
    return p / p.sum(-1, keepdims=True)


@pytest.mark.slow("adaptive integrals of a dozen divergences")
@sweep("make", ["probs", "logits", "atoms"], cost=3)
def test_thousands_of_pairs(make):
    """With zeros on either side, as probabilities, as logits and as lists of atoms in another order."""
    p, q = random_rows(2000, 7), random_rows(2000, 7)
    p[-1], q[0] = q[-1], p[0]
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        if make == "atoms":
            order = rng.permutation(7)
            P, Q = mx.Discrete(jnp.arange(7), jnp.asarray(p)), mx.Discrete(jnp.asarray(order), jnp.asarray(q[:, order]))
        elif make == "logits":
            P, Q = (mx.Categorical(jnp.asarray(np.log(x) + 3)) for x in (p, q))
        else:
            P, Q = (mx.Categorical(probs=jnp.asarray(x)) for x in (p, q))
        got = jax.jit(figures)(P, Q)
    for name, expected in by_hand(p, q).items():
        np.testing.assert_allclose(
            got[name], expected, rtol=1e-9, atol=1e-8 if name == "hellinger" else 1e-12, err_msg=name
        )
    np.testing.assert_allclose(got["jensen_shannon"], jensenshannon(p.T, q.T) ** 2, atol=1e-12)
    np.testing.assert_allclose(got["kl"], stats.entropy(p.T, q.T), rtol=1e-9, atol=1e-12)


@pytest.mark.slow("every divergence")
def test_float32_keeps_small_divergences():
    """Rows that differ by 1e-3, where differences of entropies have nothing left."""
    p = random_rows(200, 7)[100:]
    q = p * np.exp(1e-3 * rng.normal(size=p.shape))
    q /= q.sum(-1, keepdims=True)
    p, q = np.float32(p), np.float32(q)
    got = figures(mx.Categorical(probs=jnp.asarray(p)), mx.Categorical(probs=jnp.asarray(q)))
    expected = by_hand(p.astype(np.float64), q.astype(np.float64))
    # dP/dM is good to an ulp, 6e-8 of a difference of 5e-4; the masses do not sum to 1 by as much.
    for name in ("chi2", "neyman", "le_cam"):
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-3, err_msg=name)
    np.testing.assert_allclose(got["hellinger"], expected["hellinger"], rtol=2e-3)


def scipy_divergence(f, p, q, low, high, cuts=()):
    at = lambda x: f(p.pdf(x), q.pdf(x))
    return integrate.quad(at, low, high, points=cuts or None, limit=400, epsabs=1e-12)[0]


@pytest.mark.slow("adaptive integrals of a dozen divergences")
def test_continuous_pairs():
    """Closed forms, scipy's quadrature, and supports that do not match."""
    with jax.enable_x64(True):
        P, Q = mx.Normal(0.3, 1.0), mx.Normal(-0.5, 1.7)
        m, s, t = 0.8, 1.0, 1.7
        affinity = np.sqrt(2 * s * t / (s**2 + t**2)) * np.exp(-(m**2) / 4 / (s**2 + t**2))
        np.testing.assert_allclose(mx.hellinger(P, Q), np.sqrt(1 - affinity), rtol=1e-7)
        np.testing.assert_allclose(mx.renyi_divergence(P, Q, 0.5), -2 * np.log(affinity), rtol=1e-7)
        a = 2.5
        variance = a * t**2 + (1 - a) * s**2
        renyi = np.log(t / s) + np.log(t**2 / variance) / (2 * (a - 1)) + a * m**2 / (2 * variance)
        np.testing.assert_allclose(mx.renyi_divergence(P, Q, a), renyi, rtol=1e-7)
        p, q = stats.norm(0.3, 1.0), stats.norm(-0.5, 1.7)
        np.testing.assert_allclose(
            mx.total_variation(P, Q),
            scipy_divergence(lambda p, q: abs(p - q) / 2, p, q, -15, 15, (-1.2, 0.3, 1.7)),
            rtol=1e-6,
        )
        m = lambda p, q: (p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q))) / 2
        np.testing.assert_allclose(mx.jensen_shannon(P, Q), scipy_divergence(m, p, q, -12, 12), rtol=1e-6)
        np.testing.assert_allclose(mx.chi2(mx.Exponential(1.5), mx.Exponential(1.0)), 2.25 / 2 - 1, rtol=1e-6)
        U, W = mx.Uniform(0.0, 1.0), mx.Uniform(0.5, 2.5)
        np.testing.assert_allclose(mx.total_variation(U, W), 0.75, rtol=1e-7)
        np.testing.assert_allclose(mx.hellinger(U, W) ** 2, 1 - 0.5 * np.sqrt(0.5), rtol=1e-7)
        np.testing.assert_allclose(mx.jensen_shannon(U, mx.Uniform(2.0, 3.0)), np.log(2), rtol=1e-7)
        assert mx.chi2(U, W) == jnp.inf
        np.testing.assert_allclose(mx.renyi_divergence(U, W, 0.0), -np.log(0.25), rtol=1e-7)
        R = mx.Poisson(2.0), mx.Poisson(3.5)
        np.testing.assert_allclose(
            mx.hellinger(*R) ** 2, 1 - np.exp(-0.5 * (np.sqrt(3.5) - np.sqrt(2)) ** 2), rtol=1e-7
        )
        # Binomial is nowhere in the far tail of its mixture, which there is e⁻³²² and less.
        B, G = mx.Binomial(8, 0.4), mx.Geometric(0.3)
        np.testing.assert_allclose(mx.total_variation(B, 0.5 * B + 0.5 * G), mx.total_variation(B, G) / 2, rtol=1e-7)
        spike = 0.3 * mx.Dirac(0.0) + 0.7 * mx.Normal()
        np.testing.assert_allclose(mx.total_variation(spike, mx.Normal()), 0.3, rtol=1e-7)
        np.testing.assert_allclose(mx.total_variation(mx.Dirac(0.0), mx.Normal()), 1, rtol=1e-7)
        np.testing.assert_allclose(
            mx.f_divergence(spike, mx.Normal(), generators.squared_hellinger), 1 - np.sqrt(0.7), rtol=1e-7
        )
        np.testing.assert_allclose(mx.tsallis_entropy(mx.Normal(0.0, 2.0), 2), 1 - 1 / (4 * np.sqrt(np.pi)), rtol=1e-7)
        np.testing.assert_allclose(mx.renyi_entropy(mx.Normal(0.0, 2.0), 2), np.log(4 * np.sqrt(np.pi)), rtol=1e-7)


def inequalities(P, Q, f):
    kl, tv, h = mx.kl_divergence(P, Q), mx.total_variation(P, Q), mx.hellinger(P, Q)
    return {
        "Pinsker": kl - 2 * tv**2,
        "Bretagnolle and Huber": jnp.sqrt(1 - jnp.exp(-kl)) - tv,
        "Le Cam": tv - h**2,
        "Le Cam, above": jnp.sqrt(2) * h - tv,
        "chi2 above KL": jnp.log1p(mx.chi2(P, Q)) - kl,
        "KL above 2 H²": kl - 2 * h**2,
        "Jensen–Shannon below log 2": jnp.log(2.0) - mx.jensen_shannon(P, Q),
        "Renyi rises": mx.renyi_divergence(P, Q, 1.0) - mx.renyi_divergence(P, Q, 0.5),
        "at ½": 1e-6 - abs(mx.renyi_divergence(P, Q, 0.5) + 2 * jnp.log1p(-(h**2))),
        "processed": h - mx.hellinger(*(mx.Bernoulli(probs=R.expect(f)) for R in (P, Q))),
    }


GENERATORS = {
    name: getattr(generators, name)
    for name in [
        "kl",
        "reverse_kl",
        "total_variation",
        "squared_hellinger",
        "chi2",
        "neyman",
        "jensen_shannon",
        "le_cam",
    ]
} | {"alpha 0.3": generators.alpha(0.3)}


def is_large(x):
    """A channel of one bit: the chance of a 1."""
    return jax.nn.sigmoid(1.5 * jnp.tanh(x) - 0.3)


@pytest.mark.slow("every divergence of a space")
@sweep("entry", spaces.ENTRIES, ids=repr, cost=3)
def test_inequalities_on_any_space(entry):
    with jax.enable_x64(True):
        P, Q = entry.make(np.random.default_rng(0))[0], spaces.wide(entry.kind)[0]
        gaps = jax.jit(lambda P, Q: inequalities(P.normalize(), Q, is_large))(P, Q)
    for name, gap in gaps.items():
        assert float(gap) >= -1e-7, (name, gap)


@pytest.mark.slow("every divergence of a space")
@sweep("name", GENERATORS)
@sweep("entry", spaces.ENTRIES, ids=repr, cost=3)
def test_convex_and_processed(entry, name):
    """Convex in the pair: at the middle of it and (Q, Q), or (P, P), at most half; and no channel adds to it."""
    f = GENERATORS[name]

    def figures(P, Q):
        P, M = P.normalize(), 0.5 * P.normalize() + 0.5 * Q
        whole = mx.f_divergence(P, Q, f)
        half = mx.f_divergence(M, Q, f), mx.f_divergence(P, M, f)
        bits = (mx.Bernoulli(probs=R.expect(is_large)) for R in (P, Q))
        return whole, half, mx.f_divergence(*bits, f)

    with jax.enable_x64(True):
        P, Q = entry.make(np.random.default_rng(0))[0], spaces.wide(entry.kind)[0]
        whole, half, processed = jax.jit(figures)(P, Q)
    assert not np.isnan(whole)
    for part in half:  # (M, Q) is the middle of (P, Q) and (Q, Q), (P, M) of (P, P) and (P, Q)
        assert part <= whole / 2 + 1e-7 * max(1, whole)
    assert processed <= whole + 1e-7 * max(1, whole)


SINGLE = [e for e in registry.POSITIVE if e.probability and not e.pairs]


@pytest.mark.slow("every divergence of a space")
@sweep("entry", SINGLE, ids=repr)
def test_inequalities_on_classes(entry):
    program = jax.jit(functools.partial(inequalities, f=is_large))
    for seed in range(3):
        P, p = entry.make(np.random.default_rng(seed))
        Q = mx.Categorical(jnp.asarray(np.random.default_rng(seed + 9).normal(size=max(8, max(p) + 1)), jnp.float32))
        if entry.classes != 8:
            Q = mx.Categorical(Q.logits[: entry.classes])
        for name, gap in program(P, Q).items():
            assert gap >= -2e-5, (name, gap)


def derivative(f, slope, p, q):
    """∇_p and ∇_q of Σ q f(p/q): f′(t), and f(t) − t f′(t); 0 by convention where infinite."""
    t = p / q
    return slope(t), f(t) - t * slope(t)


CASES = {
    "chi2": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)),
    "total_variation": (lambda t: abs(t - 1) / 2, lambda t: np.sign(t - 1) / 2),
    "le_cam": (lambda t: (t - 1) ** 2 / (2 * (t + 1)), lambda t: ((t - 1) * (t + 3)) / (2 * (t + 1) ** 2)),
    "kl": (
        lambda t: np.where(t > 0, t * np.log(np.where(t > 0, t, 1)), 0) - t + 1,
        lambda t: np.log(np.where(t > 0, t, 1)),
    ),
}


@pytest.mark.slow("second derivatives of divergences")
@sweep("name", CASES, cost=3)
def test_derivatives_at_the_boundary(name):
    """In masses of which one is 0, and in logits of which one is −inf, in every mode, with a cotangent that is not 1."""
    p, q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
    g = getattr(generators, name)
    dp, dq = derivative(*CASES[name], p, q)
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        of_masses = lambda p, q: -1.7 * mx.f_divergence(mx.Discrete(jnp.arange(4), p), mx.Discrete(jnp.arange(4), q), g)
        of_logits = lambda z, w: -1.7 * mx.f_divergence(mx.Categorical(z), mx.Categorical(w), g)
        z, w = jnp.log(jnp.asarray(p)), jnp.log(jnp.asarray(q))
        in_logits = [x * (d - x @ d) for x, d in ((p, np.where(p > 0, dp, 0)), (q, dq))]
        for mode in (jax.grad, jax.jacfwd, jax.jacrev):
            for got, expected in zip(
                jax.jit(mode(of_masses, (0, 1)))(jnp.asarray(p), jnp.asarray(q)), (dp, dq), strict=True
            ):
                np.testing.assert_allclose(got, -1.7 * expected, rtol=1e-9, atol=1e-12)
            for got, expected in zip(jax.jit(mode(of_logits, (0, 1)))(z, w), in_logits, strict=True):
                np.testing.assert_allclose(got, -1.7 * expected, rtol=1e-9, atol=1e-12)
        gradient = jax.jit(jax.grad(of_logits))
        numeric = [(gradient(z + h, w) - gradient(z - h, w)) / 2e-5 for h in 1e-5 * jnp.eye(4)[:3]]
        for outer in (jax.jacfwd, jax.jacrev):
            for inner in (jax.grad, jax.jacfwd):
                np.testing.assert_allclose(jax.jit(outer(inner(of_logits)))(z, w)[:3], numeric, atol=1e-7)


@pytest.mark.slow("adaptive integrals of a dozen divergences")
def test_of_a_function():
    """f given as a function of t is the generator; what only its values show is refused."""
    P, Q = (mx.Categorical(probs=jnp.asarray(x)) for x in np.float32(random_rows(2, 6)))
    with np.errstate(divide="ignore"):
        for f, g in (
            (lambda t: t * jnp.log(t) - t + 1, generators.kl),
            (lambda t: (t - 1) ** 2, generators.chi2),
            (lambda t: jnp.abs(t - 1) / 2, generators.total_variation),
            (lambda t: (jnp.sqrt(t) - 1) ** 2 / 2, generators.squared_hellinger),
            (lambda t: -jnp.log(t) + t - 1, generators.reverse_kl),
        ):
            np.testing.assert_allclose(mx.f_divergence(P, Q, f), mx.f_divergence(P, Q, g), rtol=1e-5)
            one = 0.5 * mx.Dirac(0) + 0.5 * mx.Dirac(9)
            for R, S in ((one, mx.Dirac(0)), (mx.Dirac(0), one)):
                np.testing.assert_allclose(mx.f_divergence(R, S, f), mx.f_divergence(R, S, g), rtol=1e-5)
    for f, words in (
        (lambda t: t, "must be 0"),
        (lambda t: -((t - 1) ** 2), "convex"),
        (lambda t: jnp.sin(t - 1), "convex"),
    ):
        with pytest.raises(ValueError, match=words):
            mx.f_divergence(P, Q, f)
        with pytest.raises(ValueError, match=words):
            generators.Generator(lambda p, q, f=f: q * f(p / q))
    with pytest.raises(TypeError, match="Generator or a function"):
        mx.f_divergence(P, Q, "kl")
    for alpha in (-0.5, jnp.nan):
        with pytest.raises(ValueError, match="order"):
            mx.renyi_divergence(P, Q, alpha)
    with pytest.raises(NotImplementedError, match="atoms"):
        mx.renyi_entropy(mx.Normal(), jnp.inf)
    with pytest.raises(ValueError, match="weight"):
        mx.jensen_shannon(P, Q, weights=[1.0])
    with pytest.raises(TypeError, match="measures"):
        mx.jensen_shannon(P, Q, jnp.ones(3))
    with pytest.raises(ValueError, match="classes"):
        mx.total_variation(P, mx.DiscreteUniform(4))


@pytest.mark.slow("adaptive integrals of a dozen divergences")
def test_orders_as_arrays():
    """A vector of orders, 1 among them, and its derivative; by vmap too."""
    with jax.enable_x64(True):
        P, Q = (mx.Categorical(probs=jnp.asarray(x)) for x in random_rows(12, 5)[-2:])
        alphas = jnp.array([0.5, 1.0, 2.0])
        expected = [mx.renyi_divergence(P, Q, float(a)) for a in alphas]
        np.testing.assert_allclose(jax.vmap(lambda a: mx.renyi_divergence(P, Q, a))(alphas), expected, rtol=1e-9)
        np.testing.assert_allclose(mx.renyi_divergence(P, Q, alphas), expected, rtol=1e-9)
        slope = jax.grad(lambda a: mx.renyi_divergence(P, Q, a))(2.0)
        numeric = (mx.renyi_divergence(P, Q, 2 + 1e-5) - mx.renyi_divergence(P, Q, 2 - 1e-5)) / 2e-5
        np.testing.assert_allclose(slope, numeric, rtol=1e-6)


def test_many_measures():
    rows = np.float32(random_rows(3, 5))
    M = rows.mean(0)
    got = mx.jensen_shannon(*(mx.Categorical(probs=jnp.asarray(p)) for p in rows))
    np.testing.assert_allclose(got, np.mean([xlogy(p, M).sum() for p in rows.astype(np.float64)]), rtol=1e-5)


@pytest.mark.slow("large arrays")
def test_large_vocabularies_take_memory_of_their_own_size():
    z = jnp.zeros((2, 8192))
    program = jax.jit(lambda z: mx.renyi_divergence(mx.Categorical(z[0]), mx.Categorical(z[1]), 2.0))
    assert program.lower(z).compile().memory_analysis().temp_size_in_bytes < 64 * 8192


def test_values_by_their_definitions():
    """Of two rows of probabilities that are far from equal, against sums in float64."""
    p, q = (np.array(x, np.float32).astype(float) for x in ([0.7, 0.2, 0.1, 0.0], [0.1, 0.3, 0.35, 0.25]))
    P, Q = (mx.Discrete(weights=jnp.asarray(x, jnp.float32)) for x in (p, q))
    log, m = lambda x: np.log(np.where(x == 0, 1, x)), (p + q) / 2
    expected = {
        "hellinger": np.sqrt(np.sum((np.sqrt(p) - np.sqrt(q)) ** 2) / 2),
        "total_variation": np.sum(np.abs(p - q)) / 2,
        "chi2": np.sum((p - q) ** 2 / q),
        "jensen_shannon": np.sum(p * log(p / m) + q * log(q / m)) / 2,
        "kl_divergence": np.sum(p * log(p / q) - p + q),
    }
    got = jax.jit(lambda P, Q: {name: getattr(mx, name)(P, Q) for name in expected})(P, Q)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=3e-6, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("apart", [1e-4, 1.0, 40.0])
def test_renyi_of_softmaxes(apart):
    """Near equality and far, of orders around 1 and in an array, with classes that one or both have not; and its slopes."""
    rng = np.random.default_rng(4)
    z, gap = rng.normal(size=(5, 11)), rng.normal(size=(5, 11))
    z[1, 3] = z[2, 5] = -np.inf
    w = np.where(z == -np.inf, 0.3 if apart >= 1 else -np.inf, z) + apart * gap
    w[2, 5] = -np.inf
    z, w = z.astype(np.float32), w.astype(np.float32)
    orders = np.array([0.0, 0.9, 1.1, 2.0, 5.0], np.float32)
    has = z > -np.inf

    def exact(z, w, orders):
        log_p, log_q = (jax.nn.log_softmax(x) for x in (z, w))
        orders = orders[:, None]
        powers = orders * jnp.where(has, log_p, 0) + (1 - orders) * jnp.where(has, log_q, 0)
        return jax.nn.logsumexp(powers, axis=-1, where=has) / (orders[:, 0] - 1)

    ours = lambda z, w, orders: mx.renyi_divergence(mx.Categorical(z), mx.Categorical(w), orders)
    each = [lambda z, w, _, a=float(a), k=k: ours(z[k], w[k], a) for k, a in enumerate(orders)]
    cotangents = np.array([1.0, -2.0, 0.5, 3.0, -1.0], np.float32)
    got, pullback = jax.vjp(jax.jit(ours), z, w, orders)
    slopes = pullback(jnp.asarray(cotangents))
    alone = np.stack([jax.jit(f)(z, w, orders) for f in each])
    with jax.enable_x64():
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (z, w, orders)]
        expected, pullback = jax.vjp(exact, *wide)
        of_exact = pullback(jnp.asarray(cotangents, jnp.float64))
    np.testing.assert_allclose(alone, expected, rtol=2e-5, atol=1e-8 * apart)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-8 * apart)
    for slope, e in zip(slopes, of_exact, strict=True):
        np.testing.assert_allclose(slope, np.nan_to_num(e), rtol=2e-4, atol=2e-5 * np.nanmax(np.abs(e)))


@pytest.mark.long
def test_slope_in_an_order_of_one():
    """Half of the variance of log p/q, with more terms for Tsallis' divergence."""
    z, w = np.float32([1.0, 0.0, -0.5, -np.inf]), np.float32([0.1, 0.7, 0.0, 0.3])
    log_p, log_q = (x[:3].astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64)) for x in (z, w))
    p, u = np.exp(log_p), log_p - log_q
    for f, expected in (
        (mx.renyi_divergence, (p @ u**2 - (p @ u) ** 2) / 2),
        (mx.tsallis_divergence, p @ u**2 / 2),
    ):
        of_order = lambda a, f=f: f(mx.Categorical(z), mx.Categorical(w), a)
        np.testing.assert_allclose(jax.grad(of_order)(1.0), expected, rtol=1e-5)
        np.testing.assert_allclose(jax.jvp(of_order, (1.0,), (1.0,))[1], expected, rtol=1e-5)
        for near in (1 - 1e-5, 1 + 1e-5, 1 + 1e-4):
            np.testing.assert_allclose(jax.grad(of_order)(near), expected, rtol=1e-3)
    # Where Q has not all of P's mass.
    v = np.float32([1.0, -np.inf, 0.0, 0.3])
    for order, expected in ((0.0, 0.0), (0.5, None), (1.0, np.inf), (2.0, np.inf)):
        got = jax.jit(lambda a: mx.renyi_divergence(mx.Categorical(w), mx.Categorical(v), a))(order)
        q, of_w = np.exp(v - np.logaddexp.reduce(v)), np.exp(w - np.logaddexp.reduce(w))
        expected = -2 * np.log(np.sqrt(q * of_w).sum()) if expected is None else expected
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
