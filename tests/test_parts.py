"""Measures of atoms and of densities, and mixtures: ratios by parts, logarithms that do not underflow, modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent import log

COIN = mx.DiscreteUniform(2)
SPIKED = mx.Conditional(lambda x: 0.5 * mx.Dirac(0.0) + 0.5 * mx.Normal(0.0, 1.0))
SMOOTH = mx.Conditional(lambda x: mx.Normal(0.0, 1.0))
LOGITS = jnp.array([[0.0, -150.0], [0.0, -160.0]])
ROWS = mx.Conditional(lambda x: mx.Categorical(LOGITS[x]))


@mx.pytree
class Exponential(mx.Measure):
    """A third party's: a density and no forms."""

    rate: jax.Array

    @property
    def shape(self):
        return ()

    @property
    def mass(self):
        return jnp.ones(())

    def scaled_density(self, x):
        return jnp.where(x < 0, -jnp.inf, jnp.log(self.rate) - self.rate * x), jnp.ones(())


@pytest.mark.slow("joints of atoms and densities")
def test_ratio_of_joints_of_atoms_and_densities():
    """A Conditional's parts are its joint's: where one has an atom and the other a density there is no ratio but +inf."""
    spiked, smooth = mx.joint(COIN, SPIKED), mx.joint(COIN, SMOOTH)
    assert mx.kl_divergence(spiked, smooth) == jnp.inf
    np.testing.assert_allclose(mx.kl_divergence(smooth, spiked), np.log(2), rtol=1e-5)
    np.testing.assert_allclose(log(spiked / smooth)(1, 0.5), np.log(0.5), rtol=1e-6)
    assert log(spiked / smooth)(1, 0.0) == jnp.inf
    assert log(2 * spiked / mx.product(COIN, mx.Normal(0.0, 1.0)))(1, 0.0) == jnp.inf


@pytest.mark.slow("joints of atoms and densities")
@pytest.mark.parametrize("x64", [False, True])
def test_a_density_of_a_third_party(x64):
    with jax.enable_x64(x64):
        Q = Exponential(jnp.array(1.0))
        assert Q.parts() == {(False,): Q}
        np.testing.assert_allclose(mx.kl_divergence(mx.Uniform(0.0, 1.0), Q), 0.5, rtol=1e-5)
        assert mx.kl_divergence(mx.Normal(0.0, 1.0), Q) == jnp.inf


def by_logits(z):
    """Mixtures whose parts all underflow at 1, in every way to write one, and how likely 1 is in nats."""
    rows, P = mx.Conditional(jax.tree_util.Partial(lambda z, x: mx.Categorical(z[x]), z)), mx.DiscreteUniform(2)
    measures = {
        "family": mx.bind(P, mx.Categorical(z)),
        "conditional": mx.bind(P, rows),
        "sum": 0.5 * mx.Categorical(z[0]) + 0.5 * mx.Categorical(z[1]),
        "marginal": mx.marginal(mx.joint(P, rows), 1),
        "marginal of a family": mx.marginal(mx.joint(P, mx.Categorical(z)), 1),
        "composition": mx.compose(mx.Conditional(lambda x: P), rows)(0),
        "sigmoids": mx.bind(P, mx.Bernoulli(z[:, 1] - z[:, 0])),
    }
    return {name: mx.cross_entropy(mx.Dirac(1), Q) for name, Q in measures.items()}


@pytest.mark.slow("joints of atoms and densities")
def test_mixtures_add_in_logarithms():
    expected = 150 + np.log(2) - np.log1p(np.exp(-10.0))
    values, slopes = jax.jit(lambda z: (by_logits(z), jax.jacrev(by_logits)(z)))(LOGITS)
    share = 1 / (1 + np.exp(-10.0))
    for name, value in values.items():
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(
            slopes[name], [[share, -share], [1 - share, share - 1]], rtol=1e-4, atol=1e-7, err_msg=name
        )


@pytest.mark.slow("joints of atoms and densities")
def test_posteriors_keep_what_underflows():
    prior = mx.Categorical(jnp.array([0.0, -140.0]))
    np.testing.assert_allclose(log(mx.posterior(prior, ROWS)(1))(1), -150, rtol=1e-6)
    labels = mx.Dirac(jnp.array([0, 1]))
    np.testing.assert_allclose(mx.cross_entropy(labels, mx.bind(mx.Categorical(LOGITS[0]), ROWS)), [0, 150], rtol=1e-6)


@pytest.mark.slow("every mixture")
def test_modes_of_mixtures():
    """The class of most mass, the first of several; of atoms the heaviest point."""
    z = jnp.array([[0.1, -0.1, 0.6, 0.1], [-0.5, 0.4, 1.3, 0.9], [-0.7, -1.3, -0.6, 0.0]])
    uniform, labels = mx.DiscreteUniform(4), jnp.array([2, 2, 0])
    Q = 0.5 * mx.Categorical(z) + 0.5 * uniform
    p = 0.5 * jax.nn.softmax(z) + 0.125
    assert Q.mode.tolist() == [2, 2, 3]
    assert mx.Dirac(labels).expect(mx.correct(Q)).tolist() == [1, 1, 0]
    np.testing.assert_allclose(mx.Dirac(labels).expect(mx.confidence(Q)), p.max(-1), rtol=1e-6)
    K = mx.Conditional(lambda x: 0.5 * mx.Categorical(x) + 0.5 * uniform)
    error = np.abs((np.array([1, 1, 0]) - p.max(-1)).sum()) / 3  # all in one bin
    np.testing.assert_allclose(mx.calibration_error(mx.Empirical((z, labels)), K, bins=1), error, rtol=1e-5)
    bound = mx.bind(COIN, mx.Categorical(z[:2]))
    np.testing.assert_allclose(mx.Dirac(2).expect(mx.confidence(bound)), jax.nn.softmax(z[:2]).mean(0).max(), rtol=1e-6)
    assert (0.4 * mx.Dirac(3) + 0.6 * mx.Dirac(1)).mode == 1
    assert mx.Discrete(jnp.array([5, 2, 2]), jnp.array([0.4, 0.3, 0.3])).mode == 2
    assert (0.5 * mx.Dirac(3) + 0.5 * mx.Dirac(1) + 0 * uniform).mode == 1
