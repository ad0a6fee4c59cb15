"""A third party adds a measure, an integrand and rules from its own file: this one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent import log


@mx.pytree
class Benford(mx.Measure):
    """P(d) = log10(1 + 1/(d+1)) on the leading digits, counted from 0: a finite measure is its forms."""

    @property
    def shape(self):
        return ()

    def forms(self):
        return (mx.NormalForm(dense=jnp.log10(1 + 1 / jnp.arange(1.0, 10.0)), classes=9),)


@mx.pytree
class Linear(mx.Integrand):
    """x ↦ a·x + b, known to be linear."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x):
        return self.a * x + self.b


@mx.pytree
class Exponential(mx.Measure):
    """The exponential distribution: no atoms, so rules say what it integrates."""

    rate: jax.Array

    @property
    def shape(self):
        return self.rate.shape

    @property
    def mass(self):
        return jnp.ones(self.shape)

    def scaled_density(self, x):
        return jnp.log(self.rate) - self.rate * x, jnp.ones(self.shape)


@mx.rule(Exponential, Linear)
def mean(P, f):
    return f.a / P.rate + f.b


@mx.rule(Exponential, mx.LogDensity, Exponential)
def moments(P, f):
    return jnp.log(f.Q.rate) - f.Q.rate / P.rate


def test_a_measure_of_their_own_joins_everything():
    P, p = Benford(), np.log10(1 + 1 / np.arange(1, 10))
    np.testing.assert_allclose(P.mass, 1, rtol=1e-6)
    np.testing.assert_allclose(P.expect(jnp.square), p @ np.arange(9) ** 2, rtol=1e-6)
    np.testing.assert_allclose(mx.entropy(P), -(p @ np.log(p)), rtol=1e-6)
    z = jnp.linspace(-1, 1, 9)
    lq = np.asarray(z, np.float64) - np.log(np.exp(np.asarray(z, np.float64)).sum())
    np.testing.assert_allclose(mx.cross_entropy(P, mx.Categorical(z)), -(p @ lq), rtol=1e-6)
    mixed = 0.5 * P + 0.5 * mx.Dirac(3)
    np.testing.assert_allclose(mx.cross_entropy(mixed, mx.Categorical(z)), -0.5 * (p @ lq) - 0.5 * lq[3], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda P: P.normalize().expect(jnp.sin))(P), p @ np.sin(np.arange(9)), rtol=1e-6)


def test_a_rule_of_their_own_is_found():
    P, Q = Exponential(jnp.array([1.0, 2.0])), Exponential(jnp.array(3.0))
    np.testing.assert_allclose(P.expect(Linear(jnp.array(2.0), jnp.array(1.0))), [3, 2])
    np.testing.assert_allclose(mx.cross_entropy(P, Q), 3 / np.array([1, 2]) - np.log(3), rtol=1e-6)
    np.testing.assert_allclose(mx.kl_divergence(P, Q), np.log(P.rate / 3) + 3 / np.array([1, 2]) - 1, rtol=1e-6)
    # inside combinations, too
    both = 2 * Linear(jnp.array(1.0), jnp.array(0.0)) - log(Q)
    np.testing.assert_allclose(P.expect(both), 2 / P.rate + 3 / P.rate - np.log(3), rtol=1e-6)


def test_a_rule_may_decline():
    class Square(mx.Integrand):
        def __call__(self, x):
            return x**2

    asked = []

    @mx.rule(mx.DiscreteUniform, Square)
    def even_only(P, f):
        asked.append(P.classes)
        return NotImplemented if P.classes % 2 else jnp.asarray(-1.0)

    assert mx.DiscreteUniform(4).expect(Square()) == -1
    np.testing.assert_allclose(mx.DiscreteUniform(3).expect(Square()), 5 / 3, rtol=1e-6)
    assert asked == [4, 3]


def test_rules_that_are_equally_near_are_an_error():
    @mx.pytree
    class Near(mx.Integrand):
        Q: mx.Measure

        @property
        def dispatch_on(self):
            return self, self.Q

        def __call__(self, x):
            return x

    @mx.pytree
    class Nearer(Near): ...

    @mx.pytree
    class Fair(mx.DiscreteUniform): ...

    mx.rule(mx.Measure, Near, Fair)(lambda P, f: 1.0)
    mx.rule(mx.Measure, Nearer, mx.DiscreteUniform)(lambda P, f: 2.0)
    assert mx.Dirac(0).expect(Near(Fair(2))) == 1.0
    assert mx.Dirac(0).expect(Nearer(mx.DiscreteUniform(2))) == 2.0
    with pytest.raises(TypeError, match=r"rule\(Measure, Near, Fair\).*equally near to \(Dirac, Nearer, Fair\)"):
        mx.Dirac(0).expect(Nearer(Fair(2)))
    mx.rule(mx.Measure, Nearer, Fair)(lambda P, f: 3.0)
    assert mx.Dirac(0).expect(Nearer(Fair(2))) == 3.0
