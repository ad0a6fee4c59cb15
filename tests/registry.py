"""Every measure there is, with its masses worked out in float64 by hand: the laws run over this list.

``make(rng)`` gives a measure and its table {point: mass}; points of measures on tuples are tuples. A new measure is
tested by standing here.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import measure_xent as mx

V = 5
Table = dict


@dataclass(frozen=True)
class Entry:
    name: str
    make: Callable[[np.random.Generator], tuple[mx.Measure, Table]]
    probability: bool = True
    pairs: bool = False
    classes: int = V

    def __repr__(self):
        return self.name


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def table(points, masses) -> Table:
    out = defaultdict(float)
    for x, p in zip(points, masses, strict=True):
        out[x] += float(p)
    return dict(out)


def scaled(t, c):
    return {x: c * p for x, p in t.items()}


def added(*tables):
    return table([x for t in tables for x in t], [p for t in tables for p in t.values()])


def lookup(array, *x):
    """A function of a point given by its table; as ``Partial(lookup, array)`` its array is data, not code."""
    return array[x]


def categorical_of(rows, x):
    return mx.Categorical(rows[x])


def conditional(rows):
    """x ↦ softmax(rows[x])."""
    return mx.Conditional(Partial(categorical_of, jnp.asarray(rows, jnp.float32)))


def not_one(*x):
    return x[-1] != 1


def mod_three(x):
    return x % 3


def f32(x):
    """Values that float32 holds exactly, so that the oracle sees the same numbers."""
    return np.asarray(x, np.float32).astype(np.float64)


def dirac(rng):
    y = int(rng.integers(V))
    return mx.Dirac(y), {y: 1.0}


def categorical(rng):
    z = f32(rng.normal(size=V) * 2)
    return mx.Categorical(jnp.asarray(z, jnp.float32)), table(range(V), softmax(z))


def forbidden(rng):
    z = f32(rng.normal(size=V))
    z[rng.integers(V)] = -np.inf
    return mx.Categorical(jnp.asarray(z, jnp.float32)), table(range(V), softmax(z))


def by_probs(rng):
    p = rng.dirichlet(np.ones(V))
    p[rng.integers(V)] = 0.0
    p = f32(p / p.sum())
    return mx.Categorical(probs=jnp.asarray(p, jnp.float32)), table(range(V), p)


def bernoulli(rng):
    z = f32(rng.normal() * 2)
    p = 1 / (1 + np.exp(-z))
    return mx.Bernoulli(jnp.asarray(z, jnp.float32)), {0: 1 - p, 1: p}


def bernoulli_by_probs(rng):
    p = f32(rng.choice([0.0, 1.0, rng.uniform()]))
    return mx.Bernoulli(probs=jnp.asarray(p, jnp.float32)), {0: 1 - p, 1: float(p)}


def discrete(rng):
    i = rng.integers(V, size=4)
    w = f32(rng.dirichlet(np.ones(4)))
    w[1] = 0.0
    return mx.Discrete(jnp.asarray(i), jnp.asarray(w, jnp.float32)).normalize(), table(i.tolist(), w / w.sum())


def discrete_uniform(rng):
    return mx.DiscreteUniform(V), table(range(V), np.full(V, 1 / V))


def counting(rng):
    return mx.Counting(V), table(range(V), np.ones(V))


def empirical(rng):
    x, w = rng.integers(V, size=7), f32(rng.uniform(size=7))
    w[2] = 0.0
    return mx.Empirical(jnp.asarray(x), jnp.asarray(w, jnp.float32)), table(x.tolist(), w / w.sum())


def atoms(rng):
    x = rng.integers(V, size=6)
    return mx.Atoms(jnp.asarray(x)), table(x.tolist(), np.ones(6))


def mixture(rng):
    (P, p), (Q, q) = categorical(rng), dirac(rng)
    return 0.25 * P + 0.75 * Q, added(scaled(p, 0.25), scaled(q, 0.75))


def smoothing(rng):
    P, p = dirac(rng)
    return 0.875 * P + 0.125 * mx.DiscreteUniform(V), added(scaled(p, 0.875), table(range(V), np.full(V, 0.125 / V)))


def signed(rng):
    (P, p), (Q, q) = categorical(rng), dirac(rng)
    return P - 0.5 * Q, added(p, scaled(q, -0.5))


def scaled_measure(rng):
    P, p = categorical(rng)
    return np.float32(2.5) * P, scaled(p, 2.5)


def reweighted(rng):
    P, p = smoothing(rng)
    c = f32(rng.uniform(0.5, 2, size=V))
    f = {x: c[x] * m for x, m in p.items()}
    return P.reweight(Partial(lookup, jnp.asarray(c, jnp.float32))).normalize(), scaled(f, 1 / sum(f.values()))


def restricted(rng):
    P, p = categorical(rng)
    kept = {x: m for x, m in p.items() if x != 1}
    return P.restrict(not_one), kept


def pushed(rng):
    P, p = categorical(rng)
    return mx.pushforward(mod_three, P), table([x % 3 for x in p], p.values())


def bound(rng):
    P, p = categorical(rng)
    rows = f32(rng.normal(size=(V, V)))
    q = softmax(rows)
    masses = sum(p[i] * q[i] for i in range(V))
    return mx.bind(P, conditional(rows)), table(range(V), masses)


def product(rng):
    (P, p), (Q, q) = categorical(rng), empirical(rng)
    return mx.product(P, Q), {(x, y): a * b for x, a in p.items() for y, b in q.items()}


def joint_conditional(rng):
    P, p = empirical(rng)
    rows = f32(rng.normal(size=(V, V)))
    q = softmax(rows)
    return mx.joint(P, conditional(rows)), {(x, y): a * q[x, y] for x, a in p.items() for y in range(V)}


def joint_family(rng):
    n = 4
    labels, w = rng.integers(V, size=n), f32(rng.uniform(0.1, 1, size=n))
    target = 0.75 * mx.Dirac(jnp.asarray(labels)) + 0.25 * mx.DiscreteUniform(V)
    P = mx.joint(mx.Empirical(jnp.arange(n), jnp.asarray(w, jnp.float32)), target)
    t = {(i, y): w[i] / w.sum() * (0.75 * (y == labels[i]) + 0.25 / V) for i in range(n) for y in range(V)}
    return P, t


def joint_restricted(rng):
    P, t = joint_family(rng)
    kept = {(x, y): m for (x, y), m in t.items() if y != 1}
    return P.restrict(not_one).normalize(), scaled(kept, 1 / sum(kept.values()))


def pair_atoms(rng):
    x, y = rng.integers(3, size=6), rng.integers(V, size=6)
    w = f32(rng.uniform(size=6))
    w[0] = 0.0
    P = mx.Empirical((jnp.asarray(x), jnp.asarray(y)), jnp.asarray(w, jnp.float32))
    return P, table(list(zip(x.tolist(), y.tolist(), strict=True)), w / w.sum())


REGISTRY = [
    Entry("dirac", dirac),
    Entry("categorical", categorical),
    Entry("categorical with forbidden class", forbidden),
    Entry("categorical by probs", by_probs),
    Entry("bernoulli", bernoulli, classes=2),
    Entry("bernoulli by probs", bernoulli_by_probs, classes=2),
    Entry("discrete", discrete),
    Entry("discrete uniform", discrete_uniform),
    Entry("counting", counting, probability=False),
    Entry("empirical", empirical),
    Entry("atoms", atoms, probability=False),
    Entry("mixture", mixture),
    Entry("smoothing", smoothing),
    Entry("signed", signed, probability=False),
    Entry("scaled", scaled_measure, probability=False),
    Entry("reweighted", reweighted),
    Entry("restricted", restricted, probability=False),
    Entry("pushforward", pushed),
    Entry("bind", bound),
    Entry("product", product, pairs=True),
    Entry("joint with a conditional", joint_conditional, pairs=True),
    Entry("joint with a family", joint_family, pairs=True),
    Entry("joint, restricted", joint_restricted, pairs=True),
    Entry("empirical pairs", pair_atoms, pairs=True),
]
SINGLES = [e for e in REGISTRY if not e.pairs]
PAIRS = [e for e in REGISTRY if e.pairs]
POSITIVE = [e for e in REGISTRY if e.name != "signed"]


def full_support(entry, rng):
    """A measure on the entry's space that has mass everywhere."""
    return bernoulli(rng) if entry.classes == 2 else categorical(rng)


def integral(t: Table, f) -> float:
    """Σ_x mass · f(x), null atoms left out."""
    return sum(p * f(*x) if isinstance(x, tuple) else p * f(x) for x, p in t.items() if p != 0)


def cross_entropy(p: Table, q: Table) -> float:
    """−Σ p log q in float64."""
    return -sum(m * (np.log(q[x]) if q.get(x, 0) > 0 else -np.inf) for x, m in p.items() if m != 0)


def random_function(rng, pairs):
    """A random bounded function of a point, once in numpy and once in jax."""
    a = f32(rng.normal(size=(8, 8) if pairs else 8))
    return (lambda *x: a[x]), Partial(lookup, jnp.asarray(a, jnp.float32))
