"""Every kind of number once, with its derivative, as NumPy and SciPy have it: quick, and in every run."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats as st
from scipy.special import entr, rel_entr

import measure_xent as mx
from measure_xent import losses
from measure_xent._kernels import head_function
from measure_xent.cli.totals import Sums
from tests import oracle

LEVELS = np.array([0.02, 0.3, 0.5, 0.9])
LAWS = {
    "Normal": (mx.Normal(1.0, 2.0), st.norm(1, 2)),
    "Laplace": (mx.Laplace(-1.0, 0.5), st.laplace(-1, 0.5)),
    "Cauchy": (mx.Cauchy(0.5, 1.5), st.cauchy(0.5, 1.5)),
    "Uniform": (mx.Uniform(-1.0, 3.0), st.uniform(-1, 4)),
    "Exponential": (mx.Exponential(2.0), st.expon(scale=0.5)),
    "LogNormal": (mx.LogNormal(0.3, 0.6), st.lognorm(0.6, scale=np.exp(0.3))),
    "Gamma": (mx.Gamma(2.5, 3.0), st.gamma(2.5, scale=1 / 3)),
    "Beta": (mx.Beta(2.0, 3.5), st.beta(2, 3.5)),
    "StudentT": (mx.StudentT(5.0, 1.0, 2.0), st.t(5, 1, 2)),
    "Gumbel": (mx.Gumbel(1.0, 2.0), st.gumbel_r(1, 2)),
    "Weibull": (mx.Weibull(2.0, 1.5), st.weibull_min(1.5, scale=2)),
    "Pareto": (mx.Pareto(1.5, 3.5), st.pareto(3.5, scale=1.5)),
    "HalfNormal": (mx.HalfNormal(1.5), st.halfnorm(scale=1.5)),
    "InverseGamma": (mx.InverseGamma(4.5, 2.0), st.invgamma(4.5, scale=2)),
}
COUNTS = {
    "Poisson": (mx.Poisson(7.5), st.poisson(7.5)),
    "Geometric": (mx.Geometric(0.3), st.geom(0.3, loc=-1)),
    "Binomial": (mx.Binomial(20, 0.3), st.binom(20, 0.3)),
    "NegativeBinomial": (mx.NegativeBinomial(2.5, 0.6), st.nbinom(2.5, 0.4)),
}


def test_laws():
    """Density, tails, quantiles, moments, entropy."""

    @jax.jit
    def of(laws, points):
        ours = lambda P, x: (jnp.exp(mx.log(P)(x)), P.cdf(x), P.survival(x), P.mean, P.variance)
        return {name: ours(P, points[name]) for name, P in laws.items()}

    laws = LAWS | COUNTS
    points = {name: jnp.asarray(law.ppf(LEVELS), int if name in COUNTS else float) for name, (_, law) in laws.items()}
    quantiles = jax.jit(lambda laws: {name: P.quantile(jnp.asarray(LEVELS)) for name, P in laws.items()})
    got, inverse = {}, {}
    for names in (list(laws)[i::3] for i in range(3)):  # a program of all is large
        some = {name: laws[name][0] for name in names}
        got |= of(some, {name: points[name] for name in names})
        inverse |= quantiles(some)
    for name, (P, law) in laws.items():
        x = np.asarray(points[name], np.float64)
        density = law.pmf(x) if name in COUNTS else law.pdf(x)
        moments = (np.nan, np.nan) if name == "Cauchy" else (law.mean(), law.var())
        for what, a, b in zip(
            ("density", "cdf", "survival", "mean", "variance"),
            got[name],
            (density, law.cdf(x), law.sf(x), *moments),
            strict=True,
        ):
            if name == "Cauchy" and what == "variance":
                continue  # it has none: infinite or NaN
            np.testing.assert_allclose(a, b, rtol=5e-5, err_msg=f"{name} {what}")
        np.testing.assert_allclose(inverse[name], law.ppf(LEVELS), rtol=3e-4, atol=1e-6, err_msg=name)
        if name in ("Normal", "Laplace", "Cauchy", "Uniform", "Exponential", "LogNormal", "Gamma", "Beta"):
            np.testing.assert_allclose(mx.entropy(P), law.entropy(), rtol=2e-5, err_msg=name)


DIVERGENCES = {
    "kl": (mx.kl_divergence, lambda p, q: rel_entr(p, q).sum()),
    "jeffreys": (mx.jeffreys, lambda p, q: (rel_entr(p, q) + rel_entr(q, p)).sum()),
    "jensen_shannon": (mx.jensen_shannon, lambda p, q: (rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)).sum() / 2),
    "total_variation": (mx.total_variation, lambda p, q: np.abs(p - q).sum() / 2),
    "hellinger": (mx.hellinger, lambda p, q: np.sqrt(1 - np.sqrt(p * q).sum())),
    "chi2": (mx.chi2, lambda p, q: (p**2 / q).sum() - 1),
    "renyi": (lambda P, Q: mx.renyi_divergence(P, Q, 0.7), lambda p, q: np.log((p**0.7 * q**0.3).sum()) / -0.3),
    "tsallis": (lambda P, Q: mx.tsallis_divergence(P, Q, 2.5), lambda p, q: ((p**2.5 * q**-1.5).sum() - 1) / 1.5),
    "cross_entropy": (mx.cross_entropy, lambda p, q: -(p * np.log(q)).sum()),
    "entropy": (lambda P, Q: mx.entropy(Q), lambda p, q: entr(q).sum()),
    "renyi_entropy": (lambda P, Q: mx.renyi_entropy(Q, 0.7), lambda p, q: np.log((q**0.7).sum()) / 0.3),
    "tsallis_entropy": (lambda P, Q: mx.tsallis_entropy(Q, 2.5), lambda p, q: (1 - (q**2.5).sum()) / 1.5),
    "brier": (lambda P, Q: P.expect(mx.brier(Q)), lambda p, q: (q**2).sum() - 2 * (p * q).sum() + 1),
    "spherical": (lambda P, Q: P.expect(mx.spherical(Q)), lambda p, q: -(p * q).sum() / np.sqrt((q**2).sum())),
    "crps": (
        lambda P, Q: P.expect(mx.crps(Q)),
        lambda p, q: sum(p[y] * ((np.cumsum(q) - (np.arange(len(q)) >= y)) ** 2).sum() for y in range(len(p))),
    ),
    "wasserstein": (mx.wasserstein, lambda p, q: np.abs(np.cumsum(p - q)).sum()),
    "energy": (mx.energy_distance, lambda p, q: np.sqrt(2 * (np.cumsum(p - q) ** 2).sum())),
}


def test_functionals_of_classes():
    """Values; derivatives along a direction, against central differences in float64, and 0 of a distance where P is Q."""
    rng = np.random.default_rng(0)
    z, w, dz = rng.normal(size=(3, 5))
    softmax = lambda z: np.exp(z) / np.exp(z).sum()
    p = softmax(z)
    of = lambda P, w: {name: ours(P, mx.Categorical(w)) for name, (ours, _) in DIVERGENCES.items()}
    along = jax.jit(lambda P, w, dw: jax.jvp(lambda w: of(P, w), (w,), (dw,)))
    P = mx.Categorical(jnp.asarray(z, float))
    value, slope = along(P, jnp.asarray(w, float), jnp.asarray(dz, float))
    _, at_itself = along(P, jnp.asarray(z, float), jnp.asarray(dz, float))
    step = 1e-5
    for name, (_, theirs) in DIVERGENCES.items():
        np.testing.assert_allclose(value[name], theirs(p, softmax(w)), rtol=2e-5, err_msg=name)
        difference = (theirs(p, softmax(w + step * dz)) - theirs(p, softmax(w - step * dz))) / (2 * step)
        np.testing.assert_allclose(slope[name], difference, rtol=2e-4, atol=1e-6, err_msg=name)
        if name not in ("entropy", "renyi_entropy", "tsallis_entropy", "wasserstein"):  # W₁ has a kink there
            np.testing.assert_allclose(at_itself[name], 0, atol=1e-5, err_msg=name)


def test_information_of_a_table():
    p = np.random.default_rng(1).dirichlet(np.ones(6)).reshape(2, 3)
    P = mx.table(jnp.asarray(p, float))
    a, b = p.sum(1), p.sum(0)
    np.testing.assert_allclose(mx.mutual_information(P), rel_entr(p, np.outer(a, b)).sum(), rtol=1e-4)
    np.testing.assert_allclose(mx.conditional_entropy(P), entr(p).sum() - entr(a).sum(), rtol=1e-5)


def test_calibration():
    """The reliability diagram and the Brier score in its parts, of rows by hand."""
    p, y = np.array([0.9, 0.9, 0.8, 0.6, 0.6, 0.7]), np.array([0, 1, 0, 0, 1, 0])
    weights = np.array([1.0, 2.0, 1.0, 3.0, 1.0, 0.0])
    P = mx.Atoms((jnp.asarray(np.log(np.stack([p, 1 - p], -1)), float), y), weights=jnp.asarray(weights, float))
    figures = mx.reliability(P, mx.Conditional(mx.Categorical), bins=jnp.array([0.0, 0.65, 0.85, 1.0]))
    w, right = weights / weights.sum(), y == 0
    bins = [slice(3, 5), slice(2, 3), slice(0, 2)]
    share = np.array([w[b].sum() for b in bins])
    mean = lambda x: np.array([(w * x)[b].sum() for b in bins]) / share
    base = (w * right).sum()
    parts = figures.brier
    np.testing.assert_allclose(figures.error, (share * np.abs(mean(p) - mean(right))).sum(), rtol=1e-5)
    np.testing.assert_allclose(parts.score, (w * (p - right) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(parts.reliability, (share * (mean(p) - mean(right)) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(parts.resolution, (share * (mean(right) - base) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(parts.uncertainty, base * (1 - base), rtol=1e-5)


def test_slopes_where_measures_nearly_agree():
    """Of KL and cross-entropy between softmax measures that differ by 1e-4: to what float32 logits tell apart."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(3, 7)).astype(np.float32)
    w = (z + 1e-4 * rng.normal(size=z.shape)).astype(np.float32)
    slope = jax.grad(lambda w: mx.kl_divergence(mx.Categorical(jnp.asarray(z)), mx.Categorical(w)).sum())(
        jnp.asarray(w)
    )
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(-1, keepdims=True) for x in (z, w))
    np.testing.assert_allclose(slope, q - p, rtol=1e-3, atol=1e-3 * np.abs(q - p).max() * 0.1)


def test_accumulated_gradients():
    """(3 + 5) / (3 + 1), and not the mean of 1 and 5."""
    optimizer = mx.accumulate(optax.sgd(1.0), steps=2)
    state = optimizer.init(jnp.zeros(1))
    for total, mass, expected in ((3.0, 3.0, 0.0), (5.0, 1.0, -2.0), (4.0, 4.0, 0.0), (2.0, 2.0, -1.0)):
        update, state = optimizer.update(mx.Integral(jnp.array([total]), 0.0, mass=mass), state)
        np.testing.assert_allclose(update, [expected])


def test_bins_of_counts_and_sizes():
    edges = jnp.array([1.0, 2.5, 4.0])
    for P, law, below in ((mx.Poisson(3.0), st.poisson(3), [0, 2, 3]), (mx.Gamma(2.0, 1.0), st.gamma(2), edges)):
        masses = np.diff([0, *law.cdf(np.asarray(below)), 1])
        np.testing.assert_allclose(mx.quantize(P, edges).probs, masses, rtol=1e-5)


def test_vectors():
    """Density, entries, moments and divergence of a normal law, of one through a linear map and its inverse, of shares."""
    rng = np.random.default_rng(3)
    factors, noise_factor, weight = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 2)), rng.normal(size=(3, 2))
    (A, B), R = factors @ factors.mT + np.eye(3), noise_factor @ noise_factor.T + np.eye(2)
    (a, b, x), y, bias = rng.normal(size=(3, 3)), rng.normal(size=2), rng.normal(size=2)
    alpha = np.array([2.0, 3.0, 4.5])

    @jax.jit
    def ours(a, A, b, B, weight, bias, R, x, y, alpha):
        P, Q = mx.MultivariateNormal(a, A), mx.MultivariateNormal(b, B)
        K, shares = mx.LinearNormal(weight, bias, R), mx.Dirichlet(alpha)
        image, inverse = mx.bind(P, K), mx.posterior(P, K)(y)
        normal = mx.log(P)(x), mx.entropy(P), mx.kl_divergence(P, Q), mx.marginal(P, 1).std, mx.bind(P, K).mean
        linear = image.covariance, inverse.mean, inverse.covariance
        return *normal, *linear, mx.log(shares)(alpha / alpha.sum()), shares.mean, shares.covariance, mx.entropy(shares)

    single = (jnp.asarray(x, float) for x in (a, A, b, B, weight, bias, R, x, y, alpha))
    P, shares, S = st.multivariate_normal(a, A), st.dirichlet(alpha), weight.T @ A @ weight + R
    gap, gain = b - a, A @ weight @ np.linalg.inv(S)
    log_dets = np.log(np.linalg.det(B) / np.linalg.det(A))
    kl = (np.trace(np.linalg.solve(B, A)) + gap @ np.linalg.solve(B, gap) - 3 + log_dets) / 2
    mean = alpha / alpha.sum()
    spread = (np.diag(mean) - np.outer(mean, mean)) / (alpha.sum() + 1)
    normal = P.logpdf(x), P.entropy(), kl, np.sqrt(A[1, 1]), a @ weight + bias
    linear = S, a + gain @ (y - a @ weight - bias), A - gain @ S @ gain.T
    expected = *normal, *linear, shares.logpdf(mean), mean, spread, shares.entropy()
    for i, (got, known) in enumerate(zip(ours(*single), expected, strict=True)):
        np.testing.assert_allclose(got, known, rtol=2e-4, atol=2e-4, err_msg=str(i))


def test_made_of_others():
    """Products, images, parts, mixtures, Bayes, two steps of a chain: density, mass and mean."""
    p, rows, then = np.array([0.2, 0.5, 0.3]), np.array([[0.1, 0.9], [0.5, 0.5], [0.8, 0.2]]), np.array([0.25, 0.9])
    x = np.array([0.4, 1.3])

    @jax.jit
    def ours(p, rows, then, x):
        K = mx.Conditional(lambda i: mx.Categorical(probs=rows[i]))
        L = mx.Conditional(lambda j: mx.Bernoulli(probs=then[j]))
        P, N = mx.Categorical(probs=p), mx.Normal(0.0, 1.0)
        given = mx.posterior(P, K)(1)
        squared = mx.pushforward(jnp.square, N, inverse=(jnp.sqrt, lambda y: -jnp.sqrt(y)))
        mixture, pair = 0.3 * mx.Normal(-1.0, 0.5) + 0.7 * mx.Gamma(2.0, 1.0), mx.product(P, mx.Bernoulli(probs=0.3))
        part = mx.truncate(N, 0.0, 1.0)
        bayes = given.mass, given.expect(lambda i: i), mx.bind(P, K).expect(lambda j: j), mx.compose(K, L)(2).mean
        image = jnp.exp(mx.log(squared)(x)), squared.mean
        others = jnp.exp(mx.log(mixture)(x)), mixture.mean, part.mean, jnp.exp(mx.log(part)(x)), mx.entropy(pair)
        return *bayes, *image, *others, (P / mx.DiscreteUniform(3))(jnp.arange(3)), pair.expect(lambda i, j: i * j)

    weighed = p * rows[:, 1]
    bayes = 1.0, weighed @ np.arange(3) / weighed.sum(), weighed.sum(), rows[2] @ then
    density = 0.3 * st.norm(-1, 0.5).pdf(x) + 0.7 * st.gamma(2).pdf(x)
    inside = st.truncnorm(0, 1)
    others = density, -0.3 + 1.4, inside.mean(), inside.pdf(x), entr(p).sum() + entr([0.3, 0.7]).sum()
    expected = *bayes, st.chi2(1).pdf(x), 1.0, *others, 3 * p, 0.3 * (p @ np.arange(3))
    got = ours(*(jnp.asarray(a, float) for a in (p, rows, then, x)))
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=str(i))


def test_ctc():
    """Loss and gradient, by all paths; a label that comes twice must have a blank between."""
    z, labels = np.random.default_rng(4).normal(size=(2, 5, 3)), np.array([[1, 1], [1, 2]])
    log_p = oracle.log_softmax(z)
    spells = lambda path: [c for c, _ in itertools.groupby(path) if c]
    paths = np.array(list(itertools.product(range(3), repeat=5)))
    pads = jnp.zeros((2, 5)), jnp.asarray(labels), jnp.zeros((2, 2))
    value, slope = jax.jit(jax.value_and_grad(lambda z: jnp.sum(losses.ctc_loss(z, *pads) * jnp.array([1.0, -2.0]))))(
        jnp.asarray(z, float)
    )
    loss, gradient = np.zeros(2), np.exp(log_p)
    for row in range(2):
        mine = paths[[spells(path) == list(labels[row]) for path in paths]]
        weights = np.exp(log_p[row, np.arange(5), mine].sum(-1))
        loss[row] = -np.log(weights.sum())
        gradient[row] -= np.einsum("n,ntc->tc", weights / weights.sum(), oracle.one_hot(mine, 3))
    np.testing.assert_allclose(value, loss @ [1, -2], rtol=1e-5)
    np.testing.assert_allclose(slope, gradient * np.array([1, -2])[:, None, None], rtol=1e-4, atol=1e-6)


def test_heads():
    """A loss with every gradient, and the figures, losses a row and divergences of heads."""
    rng = np.random.default_rng(5)
    h, w, b, w2 = rng.normal(size=(6, 4)), rng.normal(size=(4, 9)), rng.normal(size=9), rng.normal(size=(4, 9))
    y, weights = rng.integers(9, size=6), np.array([1.0, 0.5, 0.0, 2.0, 1.0, 1.0])
    cotangents = np.linspace(-1, 1, 6)
    single = [jnp.asarray(a, float) for a in (h, w, b, weights)]

    @jax.jit
    def ours(h, w, b, weights):
        smoothed = 0.75 * mx.Dirac(y) + 0.25 * mx.DiscreteUniform(9)
        mean = lambda *a: mx.cross_entropy(
            mx.joint(mx.Empirical(a[0], weights=a[3]), smoothed), mx.LinearSoftmax(*a[1:3])
        )
        each = lambda w: cotangents @ mx.cross_entropy(mx.Dirac(y), mx.LinearSoftmax(w)(h))
        Q, R = mx.LinearSoftmax(w)(h), mx.LinearSoftmax(jnp.asarray(w2, float))(h)
        rows = mx.entropy(Q), Q.log_partition, mx.kl_divergence(Q, R), mx.jensen_shannon(Q, R), mx.total_variation(Q, R)
        return jax.value_and_grad(mean, argnums=(0, 1, 2, 3))(h, w, b, weights), jax.grad(each)(w), rows

    (value, slopes), of_each, rows = ours(*single)
    target = 0.75 * oracle.one_hot(y, 9) + 0.25 / 9
    expected = oracle.head(h, w, b, target, weights)
    for got, known in zip((value, *slopes), expected, strict=True):
        np.testing.assert_allclose(got, known, rtol=1e-4, atol=1e-6)
    slope = oracle.rows_gradient(h @ w, oracle.one_hot(y, 9))
    np.testing.assert_allclose(of_each, h.T @ (cotangents[:, None] * slope), rtol=1e-4, atol=1e-5)
    log_q, log_r = oracle.log_softmax(h @ w), oracle.log_softmax(h @ w2)
    q, r = np.exp(log_q), np.exp(log_r)
    middle = np.log((q + r) / 2)
    partition = (h @ w)[:, 0] - log_q[:, 0]
    js = (q * (log_q - middle) + r * (log_r - middle)).sum(-1) / 2
    known = -(q * log_q).sum(-1), partition, (q * (log_q - log_r)).sum(-1), js, np.abs(q - r).sum(-1) / 2
    for got, figure in zip(rows, known, strict=True):
        np.testing.assert_allclose(got, figure, rtol=1e-4, atol=1e-6)


def test_rows_of_every_target():
    """One, two and many atoms, smoothed, dense and mixed targets; ties of the maximum, a forbidden class, a null row."""
    rng = np.random.default_rng(6)
    for V in (7, 40):
        z, p, y = (
            rng.normal(size=(5, V)).astype(np.float32),
            rng.dirichlet(np.ones(V), size=5),
            rng.integers(3, V, size=5),
        )
        z[0, 1:3] = z[0].max() + 1  # two maxima
        z[1, 0], p[1, 0] = -np.inf, 0
        mask, hit = np.array([1.0, 2.0, 0.0, 1.0, 0.5]), oracle.one_hot(y, V)
        kept = np.argsort(p)[:, -6:]
        top = np.take_along_axis(p, kept, -1)
        targets = {
            "label": (mx.Dirac(y), hit),
            "smoothed": (0.75 * mx.Dirac(y) + 0.25 * mx.DiscreteUniform(V), 0.75 * hit + 0.25 / V),
            "dense": (mx.Discrete(weights=jnp.asarray(p, float)), p),
            "mixed": (0.5 * mx.Dirac(y) + 0.5 * mx.Discrete(weights=jnp.asarray(p, float)), 0.5 * hit + 0.5 * p),
            "top": (mx.Discrete(kept, jnp.asarray(top, float)), np.where(p >= top[:, :1], p, 0)),
        }
        cotangents = np.linspace(-1, 2, 5)
        total = lambda z: {
            n: cotangents @ mx.cross_entropy(mask * P, mx.Categorical(z)) for n, (P, _) in targets.items()
        }
        value, slope = jax.jit(lambda z: (total(z), jax.jacrev(total)(z)))(jnp.asarray(z))
        for name, (_, target) in targets.items():
            target = mask[:, None] * target
            finite = slice(None) if name != "smoothed" else [0, 2, 3, 4]
            if name != "smoothed":  # which has mass on the forbidden class
                np.testing.assert_allclose(value[name], cotangents @ oracle.rows(z, target), rtol=1e-5, err_msg=name)
            known = cotangents[:, None] * oracle.rows_gradient(z, target)
            np.testing.assert_allclose(
                np.asarray(slope[name])[finite], known[finite], rtol=1e-4, atol=1e-6, err_msg=name
            )
            assert not np.any(slope[name][2])


def test_wide_and_odd_rows():
    """A loss alone: of more classes than are summed at once, labels in a tile and in what is left over, confident ones too; of
    an odd number of short rows; half precision. The heaviest classes."""
    rng = np.random.default_rng(16)
    for shape, dtype in (((4, 34001), "float32"), ((261, 5), "float32"), ((259, 40), "float32"), ((3, 70), "bfloat16")):
        z, y = jnp.asarray(2 * rng.normal(size=shape), dtype), rng.integers(shape[1], size=shape[0])
        y[:2] = 2, shape[1] - 1
        z = z.at[0, 2].set(40.0)
        got = jax.jit(lambda z, y: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z)))(z, jnp.asarray(y))
        exact = np.asarray(z.astype(jnp.float32), float)
        others = np.exp(exact - exact[np.arange(len(y)), y][:, None])
        others[np.arange(len(y)), y] = 0
        np.testing.assert_allclose(got, np.log1p(others.sum(-1)), rtol=3e-6, err_msg=str(shape))
        top = mx.top_p(mx.Categorical(z), 0.5, 3)
        order = np.argsort(-exact, axis=-1, kind="stable")[:, :3]
        np.testing.assert_array_equal(np.where(top.indices < 0, order, top.indices), order)
        assert top.indices[0].tolist() == [2, -1, -1]


def test_draws():
    """Means of 20000 draws, within five standard errors."""
    key, n = jax.random.key(0), 20_000
    p = jnp.array([0.1, 0.6, 0.3])
    K = mx.Conditional(lambda i: mx.Normal(2.0 * i, 0.5))
    measures = {
        "classes": (mx.Categorical(probs=p), lambda i: i),
        "atoms": (mx.Empirical(jnp.array([1.0, 5.0]), weights=jnp.array([3.0, 1.0])), lambda x: x),
        "mixture": (0.25 * mx.Normal(-1.0, 1.0) + 0.75 * mx.Exponential(0.5), lambda x: x),
        "joint": (mx.joint(mx.Categorical(probs=p), K), lambda i, x: i * x),
        "bind": (mx.bind(mx.Categorical(probs=p), K), lambda x: x),
        "product": (mx.product(mx.Poisson(3.0), mx.Gamma(2.0, 1.0)), lambda k, x: k - x),
        "restricted": (mx.Categorical(probs=p).restrict(lambda i: i > 0).normalize(), lambda i: i),
    }
    for name, (P, f) in measures.items():
        drawn = P.sample(key, n)
        values = np.asarray(jax.vmap(f)(*drawn) if isinstance(drawn, tuple) else f(drawn), np.float64)
        error = 5 * values.std() / np.sqrt(n)
        np.testing.assert_allclose(values.mean(), P.expect(f), atol=error, err_msg=name)


def test_losses_of_other_names():
    """optax's and torch's, value and derivative along a direction, by their formulas in float64."""
    rng = np.random.default_rng(7)
    z, dz = rng.normal(size=(2, 4, 5))
    p, y, binary = rng.dirichlet(np.ones(5), size=4), rng.integers(5, size=4), rng.integers(2, size=(4, 5))
    single = lambda x: jnp.asarray(x, float)
    q, log_q, hit = lambda z: np.exp(oracle.log_softmax(z)), oracle.log_softmax, oracle.one_hot(y, 5)
    weight, target = np.linspace(1, 2, 5), np.array([y[0], -100, *y[2:]])
    counts = weight[y] * (target >= 0)
    right = lambda z: 1 / (1 + np.exp(np.where(binary == 1, -z, z)))
    smoothed = 0.9 * hit + 0.1 / 5
    cases = {
        "labels": (
            lambda z: losses.softmax_cross_entropy_with_integer_labels(z, y),
            lambda z: -(hit * log_q(z)).sum(-1),
        ),
        "dense": (lambda z: losses.softmax_cross_entropy(z, single(p)), lambda z: -(p * log_q(z)).sum(-1)),
        "smooth": (
            lambda z: losses.softmax_cross_entropy(z, losses.smooth_labels(single(hit), 0.1)),
            lambda z: -(smoothed * log_q(z)).sum(-1),
        ),
        "poly": (
            lambda z: losses.poly_loss_cross_entropy(z, single(p), epsilon=1.5),
            lambda z: (p * (1.5 * (1 - q(z)) - log_q(z))).sum(-1),
        ),
        "kl": (lambda z: losses.kl_divergence(z, single(p)), lambda z: (p * (np.log(p) - z)).sum(-1)),
        "generalized": (
            lambda z: losses.generalized_kl_divergence(z, single(2 * p)),
            lambda z: (2 * p * (np.log(2 * p) - z) - 2 * p + np.exp(z)).sum(-1),
        ),
        "binary": (
            lambda z: losses.sigmoid_binary_cross_entropy(z, single(binary)),
            lambda z: -np.log(right(z)),
        ),
        "focal": (
            lambda z: losses.sigmoid_focal_loss(z, single(binary), alpha=0.25, gamma=1.5),
            lambda z: -np.where(binary == 1, 0.25, 0.75) * (1 - right(z)) ** 1.5 * np.log(right(z)),
        ),
        "torch": (
            lambda z: losses.cross_entropy_loss(z, target, single(weight), label_smoothing=0.1),
            lambda z: ((target >= 0) * (weight * smoothed * -log_q(z)).sum(-1)).sum() / counts.sum(),
        ),
        "sparsemax": (
            lambda z: losses.sparsemax_loss(z, binary),
            lambda z: _sparsemax_of_two(np.where(binary == 1, z, -z)),
        ),
    }
    ours = {name: loss for name, (loss, _) in cases.items()}
    value, slope = jax.jit(
        lambda z, dz: jax.jvp(lambda z: {name: loss(z) for name, loss in ours.items()}, (z,), (dz,))
    )(single(z), single(dz))
    step = 1e-6
    for name, (_, known) in cases.items():
        np.testing.assert_allclose(value[name], known(z), rtol=1e-5, atol=1e-7, err_msg=name)
        difference = (known(z + step * dz) - known(z - step * dz)) / (2 * step)
        np.testing.assert_allclose(slope[name], difference, rtol=1e-4, atol=1e-6, err_msg=name)


def _sparsemax_of_two(margin):
    return np.where(margin >= 1, 0, np.where(margin <= -1, -margin, (1 - margin) ** 2 / 4))


def test_likelihood():
    """A fit, the projection on a mean, the Fisher information and a product with it."""
    x, weights = np.array([0, 1, 1, 2]), np.array([1.0, 2.0, 3.0, 1.0])
    p = np.bincount(x, weights, 3) / weights.sum()
    P = mx.Empirical(jnp.asarray(x), weights=jnp.asarray(weights, float))
    np.testing.assert_allclose(mx.project(P, mx.Poisson(1.0)).rate, p @ np.arange(3), rtol=1e-5)
    die = mx.Categorical(probs=jnp.full(6, 1 / 6))
    tilted = mx.information_projection(die, lambda face: face + 1.0, jnp.array([4.5]))
    q = np.exp(jax.vmap(mx.log(tilted))(jnp.arange(6)))
    slopes = np.diff(np.log(q))
    np.testing.assert_allclose([q.sum(), q @ np.arange(1, 7)], [1, 4.5], rtol=1e-4)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-3)  # exponential in the face
    normal, theta = lambda theta: mx.Normal(theta[0], theta[1]), jnp.array([1.0, 2.0])
    fisher = np.diag([1 / 4, 2 / 4])
    np.testing.assert_allclose(mx.fisher_information(normal, theta), fisher, atol=1e-5)
    v = jnp.array([3.0, -1.0])
    np.testing.assert_allclose(mx.fisher_vector_product(normal, theta)(v), fisher @ v, rtol=1e-4)


def test_sums_of_scores():
    """What ``measure-xent score`` adds up, row by row: of two models, two parts of the rows, three bins."""
    rng = np.random.default_rng(8)
    models, w, part = rng.random((2, 4, 20)), rng.integers(0, 3, 20).astype(float), rng.integers(0, 2, 20)
    models[:, 1] = models[:, 1] > 0.5
    sums = Sums.of(models, w, part, parts=2, bins=3)
    figures = np.concatenate([models, models[1:] - models[:1]])[:, :3]
    for k in range(2):
        own = part == k
        moments = [
            [[sum(w[own] * f[own]), sum(w[own] ** 2 * f[own]), sum((w[own] * f[own]) ** 2)] for f in m] for m in figures
        ]
        np.testing.assert_allclose(sums[k].moments, moments)
        np.testing.assert_allclose(
            [sums[k].rows, sums[k].mass, sums[k].square], [(w[own] > 0).sum(), w[own].sum(), (w[own] ** 2).sum()]
        )
        for m, (_, c, _, p) in enumerate(models):
            for b in range(3):
                rows = own & (np.floor(3 * p) == b)
                each = np.stack([w, w * p, w * c, w**2 * (c - p) ** 2, w * p**2, w * p * c])
                np.testing.assert_allclose(sums[k].bins[m, b], each[:, rows].sum(-1))


def test_heads_as_accelerators_make_them(monkeypatch):
    """By scaled exponentials, the programs of TPUs and GPUs: labels with a softcap, smoothed ones with a bias."""
    rng = np.random.default_rng(9)
    h, w, b = rng.normal(size=(6, 4)), 2 * rng.normal(size=(4, 40)), rng.normal(size=40)
    y, weights = rng.integers(40, size=6), np.array([1.0, 0.5, 0.0, 2.0, 1.0, 1.0])

    def loss(eps, softcap, h, w, b):
        target = (1 - eps) * mx.Dirac(y) + eps * mx.DiscreteUniform(40) if eps else mx.Dirac(y)
        P = mx.joint(mx.Empirical(h, weights=jnp.asarray(weights, float)), target)
        return mx.cross_entropy(P, mx.LinearSoftmax(w, b, softcap))

    for platform in ("tpu", "default"):

        def on_platform(f, sizes, *operands, platform=platform):
            return f(platform, sizes[platform], *operands)

        monkeypatch.setattr(head_function, "_on_platform", on_platform)
        for eps, softcap, numbers in ((0.0, 4.0, (0, 1)), (0.25, None, (0, 1, 2))):
            slopes = jax.jit(jax.value_and_grad(functools.partial(loss, eps, softcap), argnums=numbers))
            value, slopes = slopes(*(jnp.asarray(a, float) for a in (h, w, b)))
            target = (1 - eps) * oracle.one_hot(y, 40) + eps / 40
            known, *gradients, _ = oracle.head(h, w, b, target, weights, softcap)
            np.testing.assert_allclose(value, known, rtol=1e-5, err_msg=platform)
            for got, expected in zip(slopes, gradients, strict=False):
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6, err_msg=platform)
        # Entropy and accuracy in the same pass; of equal logits the first class is the mode.
        of = lambda h, w, y: mx.Empirical((h, y)).expect(
            lambda h, y: mx.entropy(mx.LinearSoftmax(w)(h)) - mx.log(mx.LinearSoftmax(w))(h, y)
        )
        right = jax.jit(lambda h, w, y: mx.Empirical((h, y)).expect(mx.correct(mx.LinearSoftmax(w))))
        H, W = jnp.asarray(h, float), jnp.asarray(w, float)
        for labels, W_ in ((y, W), ((h @ w).argmax(-1), W), (np.zeros(6, int), 0 * W), (np.ones(6, int), 0 * W)):
            accuracy = np.mean(labels == np.argmax(np.asarray(H @ W_), axis=-1))
            np.testing.assert_allclose(right(H, W_, jnp.asarray(labels)), accuracy, rtol=1e-6)
        value, slope = jax.jit(jax.value_and_grad(of, 1))(H, W, jnp.asarray(y))
        log_q = h @ w - np.log(np.exp(h @ w).sum(-1, keepdims=True))
        entropy = -(np.exp(log_q) * log_q).sum(-1, keepdims=True)
        residual = np.exp(log_q) * (1 - log_q - entropy) - oracle.one_hot(y, 40)
        np.testing.assert_allclose(value, np.mean(entropy[:, 0] - log_q[np.arange(6), y]), rtol=1e-5)
        np.testing.assert_allclose(slope, h.T @ residual / 6, rtol=1e-4, atol=1e-6)


def test_masses_of_atoms():
    """Of few, of whole numbers, of real ones, of vectors that are too long to be sorted: those that come twice add up."""
    rng = np.random.default_rng(10)
    spaces = {
        "few": rng.integers(0, 9, 40),
        "whole": rng.integers(0, 99, 1500),
        "real": rng.integers(0, 99, 1500) / 7,
        "vectors": rng.integers(0, 2, (1500, 9)),
    }
    for name, points in spaces.items():
        weights = rng.random(len(points))
        P = mx.Atoms(jnp.asarray(points), weights=jnp.asarray(weights, float))
        at = points[:5]
        same = (points[:, None] == at).reshape(len(points), 5, -1).all(-1)
        got = jax.jit(jax.vmap(P.log_density))(jnp.asarray(at))
        np.testing.assert_allclose(np.exp(got), weights @ same, rtol=1e-5, err_msg=name)


def test_sums_over_wide_counts():
    """Over a thousand and more integers beside 0, by every so many of them."""
    for p in (1e-3, 1e-4):
        got = mx.Geometric(p).expect(lambda k, w=3 * p: jnp.cos(w * k))
        np.testing.assert_allclose(got, (p / (1 - (1 - p) * np.exp(3j * p))).real, atol=1e-6)


def test_fixed_rules():
    """Means of cubes by eight nodes of the laws' own rules."""
    laws = {name: LAWS[name] for name in ("Normal", "Uniform", "Exponential", "Gamma", "Beta", "Laplace")}
    rule = mx.Quadrature(8)
    cubes = jax.jit(lambda laws: {name: P.expect(lambda x: x**3, method=rule) for name, P in laws.items()})
    got = cubes({name: P for name, (P, _) in laws.items()})
    for name, (_, law) in laws.items():
        np.testing.assert_allclose(got[name], law.moment(3), rtol=2e-5, err_msg=name)
