"""A family is its members: every integrand there is, against and of every finite family, is what jax.vmap makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import measure_xent as mx
from measure_xent import log
from measure_xent._integrands.density import Entropy, RatioFunction
from measure_xent._measures.statistics import AbsoluteDeviation, SquaredDeviation
from measure_xent._methods.mixtures import Likelihood

from .registry import SINGLES, V
from .sweeps import sweep

N = 2
# Functions that hold a member's own arrays are what only vmap can tell apart.
FAMILIES = {entry.name: entry for entry in SINGLES if entry.name not in ("reweighted", "bind")}

OF_A_MEASURE = {
    "log": log,
    "log2": mx.log2,
    "brier": mx.brier,
    "spherical": mx.spherical,
    "crps": mx.crps,
    "entropy": Entropy,
    "ratio": lambda Q: Q / mx.DiscreteUniform(V),
    "log ratio": lambda Q: log(mx.Categorical(jnp.zeros(V)) / (Q + mx.DiscreteUniform(V))),
    "function of a ratio": lambda Q: RatioFunction(Q, mx.DiscreteUniform(V), Partial(lambda ratio: ratio.value**2)),
    "mixture density": lambda Q: Likelihood(mx.Conditional(lambda x: mx.Bernoulli(0.1 * x)), 1, jnp.zeros(Q.shape)),
    "sum": lambda Q: mx.brier(Q) - 2 * log(Q),
    "product": lambda Q: mx.brier(Q) * mx.crps(Q),
    "product with a callable": lambda Q: mx.brier(Q) * (lambda y: y + 1.0),
    "power": lambda Q: (log(Q) + 1) ** 2,
    "composed": lambda Q: mx.crps(Q).map(jnp.exp),
    "tree": lambda Q: {"a": log(Q), "b": (mx.brier(Q), lambda y: y**2, 3.0)},
    "constant": lambda Q: Q.expect(lambda y: y + 1.0),
    "multiple": lambda Q: Q.mass * mx.crps(Q),
    "deviations": lambda Q: (SquaredDeviation(Q.mass), AbsoluteDeviation(Q.mass)),
    "callable": lambda Q: lambda y: jnp.stack([y, y + 1.0]),
}
OF_A_ROW = {
    "log-partition": mx.log_partition,
    "confidence": mx.confidence,
    "correct": mx.correct,
    "figures": lambda Q: (log(Q), mx.log_partition(Q) ** 2, Entropy(Q)),
}


def members(entry, seed):
    """N measures of one make, as a family and as the leaves that vmap maps."""
    made = [entry.make(np.random.default_rng(seed + i))[0] for i in range(N)]
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *made)


def check(of, P, Q):
    """∫ f dP of two families, member by member and at once."""

    @jax.jit
    def both(P, Q):
        member = lambda P, Q: {name: P.expect(f(Q)) for name, f in of.items()}
        return member(P, Q), jax.vmap(member)(P, Q)

    family, mapped = both(P, Q)
    for name in of:
        for a, b in zip(jax.tree.leaves(family[name]), jax.tree.leaves(mapped[name]), strict=True):
            if a.shape == b.shape[1:]:  # nothing of a family in it: the members are alike
                a = jnp.broadcast_to(a, b.shape)
            assert a.shape == b.shape, (name, a.shape, b.shape)
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow("every function of a family")
@sweep("name", FAMILIES, cost=1.5)
def test_functions_of_a_family(name):
    entry = FAMILIES[name]
    of = OF_A_MEASURE | (OF_A_ROW if name in ("categorical", "bernoulli") else {})
    if entry.classes == 2:
        of = {key: f for key, f in of.items() if "ratio" not in key}
    check(of, mx.Dirac(jnp.array([0, 1])), members(entry, 20))


@pytest.mark.slow("every functional of a member")
@sweep("name", FAMILIES, cost=1.5)
def test_functions_against_a_family(name):
    entry = FAMILIES[name]
    logits = np.random.default_rng(5).normal(size=(N, entry.classes))
    of = OF_A_MEASURE | OF_A_ROW
    if entry.classes == 2:
        of = {key: f for key, f in of.items() if "ratio" not in key}
    check(of, members(entry, 30), mx.Categorical(jnp.asarray(logits, jnp.float32)))
