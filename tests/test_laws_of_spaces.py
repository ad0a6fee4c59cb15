"""The laws of integration and information on the line, the integers and what has atoms and a density, over every measure.

All sides of all laws are one program a measure, so that each compiles once, however many examples are drawn.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.special import expit

import measure_xent as mx
from measure_xent import log

from . import spaces
from .sweeps import sweep

each = sweep("entry", spaces.ENTRIES, ids=repr, cost=3)


def wave(np, a, b, x):
    return np.cos(a * np.tanh(x)) + b * np.tanh(x)


def jax_wave(a, b, x):
    return wave(jnp, a, b, x)


def kernel(x):
    return mx.Bernoulli(1.5 * jnp.tanh(x) - 0.3)


def two(x, y):
    """A function of a pair."""
    return jnp.tanh(x) + y * jnp.cos(jnp.tanh(x))


def of_one_measure(P, Q, f):
    """Both sides of the laws of integration, and the entropy, by name."""
    K = mx.Conditional(kernel)

    def together(x):  # one quadrature
        return {
            "integral": f(x),
            "of one": 1.0,
            "seen": f(jnp.arctan(x)),
            "inner": K.expect(lambda y: two(x, y))(x),
            "mean entropy": mx.entropy(K(x)),
        }

    return P.expect(together) | {
        "sum": (0.5 * P - 2.0 * Q).expect(f),
        "Q": Q.expect(f),
        "mass": P.mass,
        "normalized": P.normalize().mass,
        "back": ((P / Q) * Q).expect(f),
        "entropy": mx.entropy(P),
    }


def of_several(P, Q, f):
    """Those of products, joints, images and divergences."""
    joint, kl, coin = mx.joint(P, K := mx.Conditional(kernel)), mx.kl_divergence, mx.Bernoulli(probs=0.3)
    return {
        "combined": P.expect(2 * mx.log(mx.Normal()).map(jnp.exp) - (lambda x: 3 * f(x))),
        "image": mx.pushforward(jnp.arctan, P).expect(f),
        "product": mx.product(P, coin).expect(two),
        "other order": mx.product(coin, P).expect(lambda y, x: two(x, y)),
        "joint": joint.expect(two),
        "scaled kl": kl(2.0 * P, 0.5 * Q),
        "processed": kl(mx.bind(P, K), mx.bind(Q, K)),
        "joint entropy": mx.entropy(joint),
        "gradient": jax.grad(lambda c: (c * P).expect(f))(1.0),
    }


def close(got, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-6, atol=2e-6, err_msg=name)


class Case:
    """A measure of an entry, beside another and a function, and their sums over the fine table."""

    def __init__(self, entry, seed):
        rng = np.random.default_rng(seed)
        self.P, t = entry.make(rng)
        self.Q, log_q = spaces.wide(entry.kind)
        a, b = rng.uniform(0.5, 2), rng.normal()
        self.f = Partial(jax_wave, jnp.asarray(a), jnp.asarray(b))
        of = lambda x: wave(np, a, b, x)
        one = expit(1.5 * np.tanh(t.x) - 0.3)
        pair = lambda q: t.expect(lambda x: np.tanh(x) + q * np.cos(np.tanh(x)))
        self.mass, entropy, cross = t.mass.sum(), -np.sum(t.mass * t.log_density), -np.sum(t.mass * log_q(t.x))
        inner = np.sum(t.mass * (-one * np.log(one) - (1 - one) * np.log1p(-one)))
        self.divergence = cross - entropy + 1 - self.mass
        bell = t.expect(lambda x: np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))
        self.one_measure = {
            "integral": t.expect(of), "of one": self.mass, "seen": t.expect(lambda x: of(np.arctan(x))),
            "inner": pair(one), "mean entropy": inner, "mass": self.mass, "normalized": 1, "back": t.expect(of),
            "entropy": entropy,
        }  # fmt: skip
        self.several = {
            "combined": 2 * bell - 3 * t.expect(of), "image": t.expect(lambda x: of(np.arctan(x))),
            "product": pair(0.3), "other order": pair(0.3), "joint": pair(one), "joint entropy": entropy + inner,
            "scaled kl": 2 * (cross - entropy) + 2 * np.log(4) * self.mass + 0.5 - 2 * self.mass,
            "gradient": t.expect(of),
        }  # fmt: skip


@pytest.mark.slow("every law of a space")
@each
def test_laws_of_integration(entry):
    """Linearity, mass, Radon–Nikodym, the inner integrals of the tower, entropy; against sums in float64 over a fine table."""
    with jax.enable_x64(True):
        program = jax.jit(of_one_measure)
        for seed in range(2):
            case = Case(entry, seed)
            got = program(case.P, case.Q, case.f)
            close(got, case.one_measure)
            close(got, {"sum": 0.5 * case.one_measure["integral"] - 2 * got["Q"]})


@pytest.mark.slow("every law of a space")
@each
def test_laws_of_products_and_divergences(entry):
    """Change of variables, Fubini, the tower, Gibbs, the chain rule, data processing, KL of finite measures."""
    with jax.enable_x64(True):
        case = Case(entry, 0)
        got = jax.jit(of_several)(case.P, case.Q, case.f)
        close(got, case.several)
        assert case.divergence >= -1e-9
        assert got["processed"] <= case.divergence + 1e-7


@pytest.mark.slow("every law of a space")
@each
def test_densities_and_likelihood(entry):
    """log p at points, the chain rule of densities, Σ log q = −n H(P̂, Q), and families as vmap and as a loop."""
    rng = np.random.default_rng(3)
    Q, _ = spaces.wide(entry.kind)
    P, t = entry.make(rng)
    seen = t.x[rng.choice(len(t.x), size=9, p=np.abs(t.mass) / np.abs(t.mass).sum())]
    x = jnp.asarray(seen, jnp.int32 if entry.kind == "integers" else jnp.float32)
    np.testing.assert_allclose(log(P)(x), np.interp(seen, *_sorted(t)), rtol=1e-3, atol=1e-3)
    R = 0.5 * Q + 0.5 * (mx.Geometric(0.6) if entry.kind == "integers" else mx.Normal(0.0, 3.0))
    np.testing.assert_allclose((P / R)(x), (P / Q)(x) * (Q / R)(x), rtol=1e-4)
    likelihood = log(Q)(x).sum()
    np.testing.assert_allclose(mx.cross_entropy(mx.Empirical(x), Q), -likelihood / len(x), rtol=1e-5)


def _sorted(t):
    order = np.argsort(t.x)
    return t.x[order], t.log_density[order]


LAWS = {
    "Normal": (mx.Normal, (0.3, 0.8)),
    "Laplace": (mx.Laplace, (0.3, 0.8)),
    "Exponential": (mx.Exponential, (1.3,)),
    "Gamma": (mx.Gamma, (2.3, 1.3)),
    "Beta": (mx.Beta, (2.3, 1.7)),
    "LogNormal": (mx.LogNormal, (0.3, 0.8)),
    "StudentT": (mx.StudentT, (4.3, 0.3, 0.8)),
    "Cauchy": (mx.Cauchy, (0.3, 0.8)),
    "Poisson": (mx.Poisson, (2.3,)),
    "Geometric": (mx.Geometric, (0.3,)),
}


@pytest.mark.slow("every law of a space")
@sweep("name", LAWS)
def test_scores_families_and_exponential_families(name):
    """The score has mean 0; a family is vmap is a loop; ∇A(η) is the mean of T, and log p its own form."""
    make, parameters = LAWS[name]
    with jax.enable_x64(True):

        def score(x, theta):
            return jax.grad(lambda theta: log(make(*theta))(x))(theta)

        parameters = tuple(map(jnp.asarray, parameters))
        mean = jax.jit(lambda theta: make(*theta).expect(lambda x: score(x, theta)))(parameters)
        np.testing.assert_allclose(mean, [0] * len(parameters), atol=1e-7)
        of_cos = jax.jit(lambda theta: make(*theta).expect(jnp.cos))
        family = tuple(jnp.stack([c, 1.1 * c, 0.7 * c]) for c in parameters)
        loop = [of_cos(tuple(c[i] for c in family)) for i in range(3)]
        np.testing.assert_allclose(of_cos(family), loop, rtol=1e-7)
        np.testing.assert_allclose(jax.jit(jax.vmap(of_cos))(family), loop, rtol=1e-7)
        natural = make(*parameters).natural
        if natural is not None:
            x = jnp.asarray([1, 2, 4]) if name in ("Poisson", "Geometric") else jnp.asarray([0.2, 0.5, 0.9])
            np.testing.assert_allclose(jax.vmap(natural.log_density)(x), log(make(*parameters))(x), rtol=1e-9)
            jacobian = lambda what: np.array(jax.jacobian(lambda p: what(make(*p).natural))(parameters))
            eta = jacobian(lambda natural: jnp.stack(natural.parameters))
            means = np.array([make(*parameters).expect(T) for T in natural.statistics])
            slope = jacobian(lambda natural: natural.log_partition)
            if name != "Laplace":  # its statistic has a parameter too
                np.testing.assert_allclose(slope, eta @ means, rtol=1e-9)


@pytest.mark.long
def test_a_restriction_converges():
    """Panels are wide where the integrand is 0, which leaves the mass known less well than the integral."""
    (entry,) = (entry for entry in spaces.ENTRIES if entry.name == "restricted")
    with jax.enable_x64(True):
        for seed in (1, 2, 3):
            case = Case(entry, seed)
            total = jax.jit(lambda P, f: P.integrate(f))(case.P, case.f)
            assert total.status == 0
            np.testing.assert_allclose(total.value, case.one_measure["integral"], atol=total.error)
