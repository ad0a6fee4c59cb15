"""Measures on the line and on the integers, against scipy and mpmath: values, the errors they tell of, where there are none."""

import itertools
import re
import warnings

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import integrate, stats

import measure_xent as mx
from measure_xent import log

from .sweeps import sweep

# Laws, scipy's own, in (P, scipy's) pairs; parameters that no symmetry hides.
LAWS = {
    "Normal": (lambda: mx.Normal(0.7, 1.3), stats.norm(0.7, 1.3)),
    "Laplace": (lambda: mx.Laplace(-0.4, 0.8), stats.laplace(-0.4, 0.8)),
    "Uniform": (lambda: mx.Uniform(-1.2, 0.9), stats.uniform(-1.2, 2.1)),
    "Exponential": (lambda: mx.Exponential(1.7), stats.expon(scale=1 / 1.7)),
    "Gamma": (lambda: mx.Gamma(2.6, 1.4), stats.gamma(2.6, scale=1 / 1.4)),
    "Beta": (lambda: mx.Beta(2.2, 3.1), stats.beta(2.2, 3.1)),
    "LogNormal": (lambda: mx.LogNormal(0.2, 0.6), stats.lognorm(0.6, scale=np.exp(0.2))),
    "StudentT": (lambda: mx.StudentT(4.5, 0.3, 1.1), stats.t(4.5, 0.3, 1.1)),
    "Cauchy": (lambda: mx.Cauchy(0.5, 0.9), stats.cauchy(0.5, 0.9)),
    "Poisson": (lambda: mx.Poisson(3.3), stats.poisson(3.3)),
    "Geometric": (lambda: mx.Geometric(0.35), stats.geom(0.35, loc=-1)),
}
LINE = [name for name in LAWS if name not in ("Poisson", "Geometric")]


def exact(law, f, points=()):
    """∫ f dP by scipy in pieces, between quantiles and where f is not smooth."""
    low, high = law.support()
    cuts = [low, *(law.ppf(p) for p in (1e-9, 1e-4, 0.02, 0.2, 0.5, 0.8, 0.98, 1 - 1e-4, 1 - 1e-9)), *points, high]
    cuts = sorted({c for c in cuts if low <= c <= high})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        product = lambda x: p * f(x) if (p := law.pdf(x)) > 0 else 0.0
        part = lambda a, b: integrate.quad(product, a, b, limit=300, epsabs=1e-13, epsrel=1e-12)[0]
        return sum(part(a, b) for a, b in itertools.pairwise(cuts))


@pytest.mark.long
@sweep("name", LINE, cost=2)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_parameters_where_float64_is_on(dtype, name):
    """All of it is in float64, but for the parameters, which are what they are, and their gradient."""
    make, _ = LAWS[name]
    with jax.enable_x64(True):
        exactly = lambda P: jax.tree.map(lambda x: x.astype("float64"), P)
        narrow = jax.tree.map(lambda x: x.astype(dtype), make())
        value, gradient = jax.value_and_grad(lambda P: P.expect(jnp.cos))(narrow)
        want, slope = jax.value_and_grad(lambda P: P.expect(jnp.cos))(exactly(narrow))
        assert value.dtype == "float64"
        np.testing.assert_allclose(value, want, rtol=1e-12)
        for got, x in zip(jax.tree.leaves(gradient), jax.tree.leaves(slope), strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(got.astype("float64"), x, rtol=4 * float(jnp.finfo(dtype).eps), atol=1e-6)


@pytest.mark.slow("an adaptive integral a law")
@sweep("name", LAWS)
@sweep("x64", [False, True])
def test_a_law_is_what_scipy_says(name, x64):
    """Mass, density, mean, variance, entropy; samples by their empirical distribution."""
    make, law = LAWS[name]
    with jax.enable_x64(x64):
        P, rtol = make(), 1e-9 if x64 else 3e-5
        draws = np.asarray(P.sample(jax.random.key(1), (4000,)), np.float64)
        x = draws[:50]
        log_p = law.logpmf(x) if name not in LINE else law.logpdf(x)
        np.testing.assert_allclose(log(P)(jnp.asarray(x)), log_p, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(mx.entropy(P), law.entropy(), rtol=rtol, atol=rtol)
        if name == "Cauchy":
            assert np.isnan(P.expect(lambda x: x))
        else:
            mean, variance = law.stats("mv")
            one, first, second = P.expect(lambda x: (1.0, x, (x - mean) ** 2))
            np.testing.assert_allclose(one, 1, rtol=rtol)
            np.testing.assert_allclose(first, mean, rtol=rtol, atol=rtol)
            np.testing.assert_allclose(second, variance, rtol=10 * rtol)
    if name in LINE:
        assert stats.kstest(draws, law.cdf).pvalue > 1e-3
    else:
        np.testing.assert_allclose(draws.mean(), law.mean(), atol=5 * law.std() / 4000**0.5)


@pytest.mark.slow("an adaptive integral a law")
@sweep("p", LINE, cost=3)
def test_cross_entropy_of_pairs(p):
    """No table of pairs: moments where they are known, quadrature where not, +inf where P has mass that Q has not."""
    make, law = LAWS[p]
    P = make()
    for q in LINE:
        Q, other = LAWS[q][0](), LAWS[q][1]
        (a, b), (c, d) = law.support(), other.support()
        got = mx.cross_entropy(P, Q)
        if a < c or b > d:
            assert got == np.inf, q
        elif p == "Cauchy" and q in ("Normal", "Laplace"):
            assert not np.isfinite(got), q  # no second moment, and no first
        else:
            # scipy's own logpdf of a Laplace is the logarithm of what has underflowed.
            far = lambda x: np.abs(x + 0.4) / 0.8 + np.log(1.6)
            expected = exact(law, far if q == "Laplace" else lambda x: -other.logpdf(x), [c, d, other.median()])
            np.testing.assert_allclose(got, expected, rtol=1e-4, err_msg=q)


@pytest.mark.slow("an adaptive integral a law")
def test_where_others_fail():
    """The values that libraries get wrong."""
    N, inf = mx.Normal, np.inf
    spike = 0.5 * mx.Dirac(0.0) + 0.5 * N(0.0, 1.0)
    half = 0.5 * np.log(2 * np.pi * np.e)
    for got, expected in (
        (mx.kl_divergence(mx.Dirac(0.0), N(0.0, 1.0)), inf),
        (-mx.Dirac(0.0).expect(log(N(0.0, 1.0))), 0.5 * np.log(2 * np.pi)),
        (mx.cross_entropy(N(0.0, 1.0), mx.Laplace(0.0, 2.0)), np.log(4) + np.sqrt(2 / np.pi) / 2),
        (mx.kl_divergence(mx.Poisson(3.0), mx.Poisson(5.0)), 3 * np.log(3 / 5) + 2),
        (mx.kl_divergence(mx.Exponential(3.0), mx.Exponential(5.0)), np.log(3 / 5) + 5 / 3 - 1),
        (mx.entropy(0.5 * N(-50.0, 0.01) + 0.5 * N(50.0, 0.01)), half + np.log(0.01) + np.log(2)),
        (mx.entropy(0.5 * mx.Uniform(0.0, 1.0) + 0.5 * mx.Uniform(2.0, 3.0)), np.log(2)),
        (mx.entropy(spike), np.log(2) + half / 2),
        (mx.kl_divergence(spike, N(0.0, 1.0)), inf),
        (mx.kl_divergence(N(0.0, 1.0), spike), np.log(2)),
        (mx.kl_divergence(spike, 0.25 * mx.Dirac(0.0) + 0.75 * N(0.0, 1.0)), np.log(2) / 2 + np.log(2 / 3) / 2),
        (mx.kl_divergence(N(0.0, 1.0), mx.Exponential(1.0)), inf),
        (mx.kl_divergence(mx.Uniform(0.0, 2.0), mx.Uniform(0.0, 1.0)), inf),
        (mx.kl_divergence(mx.Uniform(0.0, 1.0), mx.Uniform(0.0, 2.0)), np.log(2)),
    ):
        np.testing.assert_allclose(got, expected, rtol=5e-5)


@pytest.mark.slow("an adaptive integral a law")
def test_where_there_is_no_integral():
    """Means that do not exist, poles, tails that are too heavy: NaN, and a status that says so."""
    for P, f in (
        (mx.Cauchy(0.0, 1.0), lambda x: x),
        (mx.Cauchy(3.0, 2.0), lambda x: jnp.maximum(x, 0)),
        (mx.StudentT(2.0), lambda x: x**2),
        (mx.Normal(0.0, 1.0), lambda x: 1 / x),
        (mx.Exponential(1.0), lambda x: 1 / x),
        (mx.LogNormal(0.0, 1.0), lambda x: jnp.exp(x)),
    ):
        total = P.integrate(f)
        assert not np.isfinite(total.checked)
        assert total.status == 1 or np.isinf(total.value)
    # One member of a family that has none leaves the others alone.
    np.testing.assert_allclose(mx.StudentT(jnp.array([1.0, 5.0]), 2.0).expect(lambda x: x), [np.nan, 2.0], rtol=1e-5)


@pytest.mark.slow("an adaptive integral a law")
def test_errors_are_not_understated(request):
    """Random laws and integrands, smooth ones and not: at most one in a hundred is off by more than it says."""
    rng, budget = np.random.default_rng(0), 3 * request.config.getoption("--examples")
    functions = {
        "wave": lambda a, c: lambda x, np: np.cos(a * (x - c)),
        "bump": lambda a, c: lambda x, np: np.exp(-a * (x - c) ** 2),
        "pole beside": lambda a, c: lambda x, np: 1 / (1 + (x - c) ** 2),
        "tanh": lambda a, c: lambda x, np: np.tanh(a * (x - c)),
        "kink": lambda a, c: lambda x, np: np.minimum(np.abs(x - c), 5),
        "step": lambda a, c: lambda x, np: np.where(x > c, 1.0, 0.0),
    }
    understated = 0
    with jax.enable_x64(True):
        for i in range(budget):
            name = LINE[i % len(LINE)]
            a, c = np.exp(rng.uniform(-1, 1.5)), rng.uniform(-2, 2)
            f = list(functions.values())[rng.integers(len(functions))](a, c)
            P, law = LAWS[name]
            got = P().integrate(lambda x, f=f: f(x, jnp))
            expected = exact(law, lambda x, f=f: f(x, np), [c, c - 5, c + 5])
            understated += not (got.status or abs(got.value - expected) <= got.error + 1e-9)
    assert understated <= budget / 100


@pytest.mark.slow("an adaptive integral a law")
def test_derivatives():
    """In parameters of P and Q, through moments and through quadrature, of a mixture's entropy; second ones too."""
    with jax.enable_x64(True):

        def entropy(m):
            p = lambda x: (mpmath.npdf(x, -m, 1) + mpmath.npdf(x, m, 1)) / 2
            return -mpmath.quad(lambda x: p(x) * mpmath.log(p(x)), [-12, -4, -m, 0, m, 4, 12])

        ours = lambda m: mx.entropy(0.5 * mx.Normal(-m, 1.0) + 0.5 * mx.Normal(m, 1.0))
        np.testing.assert_allclose(jax.grad(ours)(1.3), float(mpmath.diff(entropy, 1.3)), rtol=1e-6)
        np.testing.assert_allclose(jax.hessian(ours)(1.3), float(mpmath.diff(entropy, 1.3, 2)), rtol=1e-4)

        def against_laplace(loc, scale, b):
            return mx.cross_entropy(mx.Normal(loc, scale), mx.Laplace(0.0, b))

        folded = lambda m, s, b: (
            mpmath.log(2 * b) + mpmath.quad(lambda x: abs(x) * mpmath.npdf(x, m, s), [-20, 0, 20]) / b
        )
        for i in range(3):
            expected = mpmath.diff(folded, (0.4, 1.2, 2.0), tuple(int(i == j) for j in range(3)))
            np.testing.assert_allclose(jax.grad(against_laplace, i)(0.4, 1.2, 2.0), float(expected), rtol=1e-6)
        score = lambda m: mx.Normal(0.3, 1.0).expect(lambda x: jax.grad(lambda m: log(mx.Normal(m, 1.0))(x))(m))
        np.testing.assert_allclose(score(0.3), 0, atol=1e-9)


@pytest.mark.slow("an adaptive integral a law")
def test_algebra():
    """Restriction, densities, ratios, families, and regression by a Conditional; jit and vmap give the same."""
    N = mx.Normal(0.0, 1.0)
    positive = N.restrict(lambda x: x > 0).normalize()
    np.testing.assert_allclose(N.restrict(lambda x: x > 0).mass, 0.5, rtol=1e-4)
    np.testing.assert_allclose(positive.expect(lambda x: x), np.sqrt(2 / np.pi), rtol=3e-4)
    ratio = N / mx.Normal(1.0, 2.0)
    np.testing.assert_allclose((ratio * mx.Normal(1.0, 2.0)).expect(jnp.cos), np.exp(-0.5), rtol=1e-5)
    np.testing.assert_allclose((2 * N - N).expect(jnp.cos), np.exp(-0.5), rtol=1e-5)
    loc = jnp.array([0.0, 1.0, -2.0])
    each = [mx.entropy(0.3 * mx.Normal(m, 1.0) + 0.7 * mx.Cauchy(0.0, 2.0)) for m in loc]
    family = lambda loc: mx.entropy(0.3 * mx.Normal(loc, 1.0) + 0.7 * mx.Cauchy(0.0, 2.0))
    np.testing.assert_allclose(family(loc), each, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(family)(loc), each, rtol=1e-4)
    np.testing.assert_allclose(jax.vmap(family)(loc), each, rtol=1e-4)
    x, y = jnp.arange(5.0), jnp.array([0.5, 1.0, 1.5, 3.0, 4.5])
    loss = mx.cross_entropy(mx.Empirical((x, y)), mx.Conditional(lambda x: mx.Normal(x, 0.5)))
    np.testing.assert_allclose(loss, -stats.norm(x, 0.5).logpdf(y).mean(), rtol=1e-6)
    values = N.expect(lambda x: {"x": x, "both": jnp.stack([x, x**2])})
    np.testing.assert_allclose(values["both"], [0, 1], atol=1e-5)


@pytest.mark.slow("many adaptive integrals")
def test_integrals_merge():
    """Values, errors and masses add; a mean is divided once; they cross scan and psum."""
    Q = mx.Categorical(jnp.arange(4.0))
    labels, weights = jnp.array([0, 1, 2, 3, 3, 1]), jnp.array([1.0, 0.0, 2.0, 1.0, 3.0, 1.0])
    parts = [mx.Atoms(labels[i : i + 2], weights=weights[i : i + 2]).integrate(-log(Q)) for i in (0, 2, 4)]
    whole = mx.cross_entropy(mx.Empirical(labels, weights=weights), Q)
    np.testing.assert_allclose(sum(parts).mean, whole, rtol=1e-6)

    def step(total, batch):
        return total + mx.Atoms(batch[0], weights=batch[1]).integrate(-log(Q)), None

    zero = jax.tree.map(jnp.zeros_like, parts[0])
    total, _ = jax.lax.scan(step, zero, (labels.reshape(3, 2), weights.reshape(3, 2)))
    np.testing.assert_allclose(total.mean, whole, rtol=1e-6)
    summed = jax.vmap(lambda y, w: jax.lax.psum(mx.Atoms(y, weights=w).integrate(-log(Q)), "i"), axis_name="i")(
        labels.reshape(3, 2), weights.reshape(3, 2)
    )
    np.testing.assert_allclose(summed.mean, [whole] * 3, rtol=1e-6)
    assert (mx.Cauchy().integrate(lambda x: x) + mx.Normal().integrate(lambda x: x)).status == 1
    assert np.isnan((mx.Cauchy().integrate(lambda x: x) + mx.Normal().integrate(lambda x: x)).mean)
    null = mx.Atoms(labels, weights=0 * weights).integrate(-log(Q))
    assert null.mean == 0


def test_errors():
    with pytest.raises(ValueError, match=r"Normal: loc of shape \(3,\), scale of shape \(2,\) do not broadcast"):
        mx.Normal(jnp.zeros(3), jnp.ones(2))
    with pytest.raises(TypeError, match=r"Gamma\(rate\)"):
        mx.Gamma(1.0, "fast")
    with pytest.raises(TypeError, match="Normal is not"):
        mx.cross_entropy(mx.Normal(), mx.LinearSoftmax(jnp.ones((2, 3))))
    with pytest.raises(TypeError, match="Normal is not on classes"):
        mx.cross_entropy(mx.Normal(), mx.Categorical(jnp.zeros(3)))


@pytest.mark.slow("an adaptive integral a law")
@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="GPUs compute an integrand again in each fusion that reads it"
)
@pytest.mark.parametrize(
    "law",
    [
        lambda a: mx.Normal(a, 2.0),
        lambda a: mx.Uniform(0.0, a),
        lambda a: mx.product(mx.Normal(a, 1.0), mx.Normal(0.0, 1.0)),
    ],
    ids=["line", "ends", "plane"],
)
def test_a_program_has_its_integrand_once(law):
    """And once more where a derivative is taken: compilers take long over large integrands."""
    value = lambda a: law(a).expect(lambda *x: jnp.cbrt(sum(x) - 0.3))
    for times, function in ((1, value), (2, jax.grad(value)), (2, jax.hessian(value))):
        assert len(re.findall(r"\bcbrt\(", jax.jit(function).lower(1.0).compile().as_text())) == times


@pytest.mark.slow("an adaptive integral a law")
def test_a_value_takes_the_memory_of_a_turn():
    """Not of all nodes times all of their nodes: the sums of panels are kept, not their terms."""
    plane = mx.product(mx.Normal(0.5, 1.0), mx.Gamma(2.0, 1.0))
    program = jax.jit(lambda P: P.expect(lambda x, y: jnp.tanh(x * y))).lower(plane).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2**23  # seen 1.7 MiB, and 165 where terms were kept


@pytest.mark.parametrize("f", [jnp.log, lambda x: jnp.where(x > 0, jnp.nan, 1.0)], ids=["log", "step"])
def test_a_value_that_is_no_number_did_not_converge(f):
    total = mx.Normal(0.0, 1.0).integrate(f)
    assert np.isnan(total.value)
    assert total.status == 1


@pytest.mark.slow("an adaptive integral a law")
def test_the_gradient_of_an_iterated_integral_takes_the_memory_of_a_piece():
    """All of its nodes of nodes at once take 15 MiB and more."""
    noisy = mx.Conditional(lambda x: mx.Normal(jnp.sin(x), 0.3))
    gradient = jax.grad(lambda a: mx.bind(mx.Normal(a, 0.5), noisy).expect(jnp.cos))
    assert jax.jit(gradient).lower(0.3).compile().memory_analysis().temp_size_in_bytes < 10 << 20


CHARACTERISTIC = {  # E exp(itX)
    "normal": (lambda: mx.Normal(0.5, 2.0), lambda t: np.exp(0.5j * t - 2 * t**2)),
    "gamma": (lambda: mx.Gamma(2.0, 3.0), lambda t: (1 - 1j * t / 3) ** -2),
    "uniform": (lambda: mx.Uniform(0.0, 1.0), lambda t: (np.exp(1j * t) - 1) / (1j * t)),
    "poisson": (lambda: mx.Poisson(2.0), lambda t: np.exp(2 * (np.exp(1j * t) - 1))),
    "mixed": (
        lambda: 0.5 * mx.Dirac(1.0) + 0.5 * mx.Normal(0.0, 1.0),
        lambda t: (np.exp(1j * t) + np.exp(-t * t / 2)) / 2,
    ),
}


@pytest.mark.long
@pytest.mark.sweep(1)
@sweep("name", CHARACTERISTIC, cost=0.5)
def test_characteristic_functions(name):
    """Complex integrands, by every method; a derivative in t."""
    P, of = CHARACTERISTIC[name]
    total = P().integrate(lambda x: jnp.exp(1.3j * x))
    np.testing.assert_allclose(total.value, of(1.3), atol=2e-6)
    assert total.status == 0
    assert jnp.isrealobj(total.error)
    assert abs(total.value - of(1.3)) <= total.error + 1e-6
    sampled = P().integrate(lambda x: jnp.exp(1.3j * x), method=mx.MonteCarlo(jax.random.key(0), 10_000))
    assert abs(sampled.value - of(1.3)) <= 5 * sampled.error + 1e-6
    slope = jax.jacfwd(lambda t: P().expect(lambda x: jnp.exp(1j * t * x)))(1.3)
    np.testing.assert_allclose(slope, (of(1.3 + 1e-5) - of(1.3 - 1e-5)) / 2e-5, atol=1e-4)


@pytest.mark.slow("two programs to compare")
def test_a_mixture_of_like_laws_is_one_program():
    """The integrals against laws that are alike are one, of a family: five laws compile in about as much as one."""
    lines = lambda n: len(
        jax.jit(lambda: mx.entropy(sum(mx.Normal(float(i), 1.0) / n for i in range(n)))).lower().as_text().splitlines()
    )
    assert lines(5) < 1.5 * lines(2)
    P = sum(mx.Normal(jnp.array([0.0, i]), 1.0) / 3 for i in (1.0, 2.0, 4.0))
    got = P.expect({"mean": lambda x: x, "square": lambda x: jnp.stack([x**2, 1 + x])})
    np.testing.assert_allclose(got["mean"], [0, 7 / 3], atol=1e-5)
    np.testing.assert_allclose(got["square"], [[1, 1], [8, 10 / 3]], rtol=1e-5)
