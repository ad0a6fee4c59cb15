"""Every kind of number once, with its derivative, as NumPy and SciPy have it: quick, and in every run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats as st
from scipy.special import entr, rel_entr

import measure_xent as mx

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
    got = of({name: P for name, (P, _) in laws.items()}, points)
    quantiles = jax.jit(lambda laws: {name: P.quantile(jnp.asarray(LEVELS)) for name, P in laws.items()})
    inverse = quantiles({name: P for name, (P, _) in laws.items()})
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
