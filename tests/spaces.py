"""Measures that are not lists of atoms, each with a fine table of points and masses in float64 by scipy: laws run over them.

``make(rng)`` gives (P, table). The table's points stand close enough that sums over it are integrals to 1e-7 of what the laws
integrate; atoms are points of it too. A new measure is tested by standing here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import stats

import measure_xent as mx

LEGENDRE = np.polynomial.legendre.leggauss(20)


@dataclass(frozen=True)
class Table:
    x: np.ndarray
    mass: np.ndarray
    log_density: np.ndarray  # of the atoms where there are any at x, else against Lebesgue measure

    def expect(self, f) -> float:
        return float(np.sum(self.mass * f(self.x)))

    def scaled(self, c) -> "Table":
        return Table(self.x, c * self.mass, self.log_density + np.log(np.abs(c)))

    def __add__(self, other: "Table") -> "Table":
        """Of measures with nothing in common."""
        return Table(*(np.concatenate(pair) for pair in zip(self.rows, other.rows, strict=True)))

    @property
    def rows(self):
        return self.x, self.mass, self.log_density


@dataclass(frozen=True)
class Entry:
    name: str
    make: Callable[[np.random.Generator], tuple[mx.Measure, Table]]
    kind: str = "line"  # or "positive", "unit", "integers", "mixed"

    def __repr__(self):
        return self.name


def continuous(law: Any, low=None, high=None) -> Table:
    """A frozen distribution of scipy, between two points, by Gauss–Legendre panels between its quantiles."""
    ends = [law.support()[0] if low is None else low, law.support()[1] if high is None else high]
    inside = law.ppf(
        np.concatenate([np.logspace(-13, -3, 40), np.linspace(0.002, 0.998, 120), 1 - np.logspace(-3, -13, 40)])
    )
    edges = np.unique([*inside[(inside > ends[0]) & (inside < ends[1])], *(e for e in ends if np.isfinite(e))])
    a, b = edges[:-1, None], edges[1:, None]
    x = ((a + b) / 2 + (b - a) / 2 * LEGENDRE[0]).ravel()
    log_p = np.asarray(law.logpdf(x), np.float64)
    return Table(x, np.exp(log_p) * ((b - a) / 2 * LEGENDRE[1]).ravel(), log_p)


def integers(law: Any, n: int = 400) -> Table:
    k = np.arange(n)
    log_p = law.logpmf(k)
    return Table(k, np.exp(log_p), log_p)


def f32(x):
    return float(np.float32(x))


def location(rng):
    return f32(rng.uniform(-1, 1)), f32(np.exp(rng.uniform(-0.7, 0.7)))


def normal(rng):
    a, b = location(rng)
    return mx.Normal(a, b), continuous(stats.norm(a, b))


def laplace(rng):
    a, b = location(rng)
    return mx.Laplace(a, b), continuous(stats.laplace(a, b))


def student(rng):
    a, b = location(rng)
    return mx.StudentT(6.0, a, b), continuous(stats.t(6.0, a, b))


def uniform(rng):
    a, b = location(rng)
    return mx.Uniform(a, a + b), continuous(stats.uniform(a, f32(np.float32(a) + np.float32(b)) - a))


def lebesgue(rng):
    P, t = uniform(rng)
    c = float(P.high - P.low)
    return mx.Lebesgue(P.low, P.high), t.scaled(c)


def exponential(rng):
    _, b = location(rng)
    return mx.Exponential(b), continuous(stats.expon(scale=1 / b))


def gamma(rng):
    a, b = f32(rng.uniform(1.2, 4)), location(rng)[1]
    return mx.Gamma(a, b), continuous(stats.gamma(a, scale=1 / b))


def beta(rng):
    a, b = f32(rng.uniform(1.2, 4)), f32(rng.uniform(1.2, 4))
    return mx.Beta(a, b), continuous(stats.beta(a, b))


def log_normal(rng):
    a, b = f32(rng.uniform(-0.5, 0.5)), f32(rng.uniform(0.3, 0.7))
    return mx.LogNormal(a, b), continuous(stats.lognorm(b, scale=np.exp(a)))


def truncated(rng):
    a, b = location(rng)
    law = stats.norm(a, b)
    low, high = f32(a - 0.5), f32(a + 1.5)
    share = law.cdf(high) - law.cdf(low)
    return mx.truncate(mx.Normal(a, b), low, high), continuous(law, low, high).scaled(1 / share)


def poisson(rng):
    rate = f32(rng.uniform(0.5, 6))
    return mx.Poisson(rate), integers(stats.poisson(rate))


def geometric(rng):
    p = f32(rng.uniform(0.2, 0.8))
    return mx.Geometric(p), integers(stats.geom(p, loc=-1))


def binomial(rng):
    n, p = int(rng.integers(3, 12)), f32(rng.uniform(0.2, 0.8))
    return mx.Binomial(n, p), integers(stats.binom(n, p), n + 1)


def mixture(rng):
    (a, b), c = location(rng), f32(rng.uniform(0.2, 0.8))
    P = c * mx.Normal(a, b) + (1 - c) * mx.Laplace(0.5, 1.0)
    one, two = continuous(stats.norm(a, b)), continuous(stats.laplace(0.5, 1.0))
    x, mass = np.concatenate([one.x, two.x]), np.concatenate([c * one.mass, (1 - c) * two.mass])
    return P, Table(x, mass, np.log(c * stats.norm(a, b).pdf(x) + (1 - c) * stats.laplace(0.5, 1.0).pdf(x)))


def spike_and_slab(rng):
    P, t = normal(rng)
    c = f32(rng.uniform(0.2, 0.8))
    atom = Table(np.zeros(1), np.ones(1), np.zeros(1))
    return c * mx.Dirac(0.0) + (1 - c) * P, atom.scaled(c) + t.scaled(1 - c)


def tilt(x):
    return 1 / (1 + x**2)


def reweighted(rng):
    P, t = normal(rng)
    mass = np.sum(t.mass * tilt(t.x))
    return P.reweight(tilt).normalize(), Table(t.x, t.mass * tilt(t.x) / mass, t.log_density + np.log(tilt(t.x) / mass))


def above(x):
    return x > 0.25


def restricted(rng):
    a, b = location(rng)
    return mx.Normal(a, b).restrict(above), continuous(stats.norm(a, b), low=0.25)


def pushed(rng):
    P, t = normal(rng)
    image = mx.pushforward(jnp.sinh, P, inverse=jnp.arcsinh)
    return image, Table(np.sinh(t.x), t.mass, t.log_density - np.log(np.cosh(t.x)))


ENTRIES = [
    Entry("normal", normal),
    Entry("laplace", laplace),
    Entry("student", student),
    Entry("uniform", uniform),
    Entry("lebesgue on an interval", lebesgue),
    Entry("exponential", exponential, "positive"),
    Entry("gamma", gamma, "positive"),
    Entry("beta", beta),
    Entry("log-normal", log_normal, "positive"),
    Entry("truncated", truncated),
    Entry("poisson", poisson, "integers"),
    Entry("geometric", geometric, "integers"),
    Entry("binomial", binomial, "integers"),
    Entry("mixture", mixture),
    Entry("spike and slab", spike_and_slab, "mixed"),
    Entry("reweighted", reweighted),
    Entry("restricted", restricted),
    Entry("pushforward", pushed),
]


def wide(kind: str) -> tuple[mx.Measure, Callable[[np.ndarray], np.ndarray]]:
    """A probability measure that every one of a kind has a density against, and its log-density in numpy."""
    if kind == "integers":
        return mx.Geometric(0.3), stats.geom(0.3, loc=-1).logpmf
    if kind == "mixed":
        slab = lambda x: np.where(x == 0, np.log(0.25), np.log(0.75) + stats.t(3.0, 0.0, 2.0).logpdf(x))
        return 0.25 * mx.Dirac(0.0) + 0.75 * mx.StudentT(3.0, 0.0, 2.0), slab
    return mx.StudentT(3.0, 0.0, 2.0), stats.t(3.0, 0.0, 2.0).logpdf
