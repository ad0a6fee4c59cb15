"""``check_measure`` passes every measure of the package, and fails what is wrong in one way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent.testing import check_measure

from . import spaces
from .sweeps import sweep


@mx.pytree
class Logistic(mx.Continuous):
    """The logistic distribution, by what a third party gives."""

    loc: jax.Array

    @property
    def centre(self):
        return self.loc

    @property
    def width(self):
        return jnp.ones_like(self.loc)

    def log_density_of(self, x):
        z = x - self.loc
        return -z - 2 * jax.nn.softplus(-z)

    def cdf(self, x):
        return jax.nn.sigmoid(x - self.loc)


@mx.pytree
class Unnormalised(Logistic):
    def log_density_of(self, x):
        return super().log_density_of(x) + 0.01


@mx.pytree
class WrongTail(Logistic):
    def cdf(self, x):
        return jnp.where(x < self.loc, 1, 1.02) * super().cdf(x)


@mx.pytree
class Narrow(Logistic):
    def sample(self, key, shape=()):
        return self.loc + 0.9 * jax.random.logistic(key, (*shape, *self.shape))


@mx.pytree
class ShortSample(Logistic):
    def sample(self, key, shape=()):
        return jax.random.logistic(key, shape)


@mx.pytree
class NoDerivative(Logistic):
    def log_density_of(self, x):
        z = x - jax.lax.stop_gradient(self.loc)
        return -z - 2 * jax.nn.softplus(-z)


@mx.pytree
class Fluent(mx.DiscreteUniform):
    """Its density is not what its atoms weigh."""

    def scaled_density(self, *x):
        return jnp.asarray(0.0), jnp.asarray(0.4)


WRONG = {
    "the integral of 1, and the mass": Unnormalised,
    "the derivative of the cdf": WrongTail,
    "draws": Narrow,
    "has shape": ShortSample,
    "the derivative of the integral of": NoDerivative,
}


@pytest.mark.slow("all of a law in one program")
@sweep("what", [*WRONG], cost=1)
def test_what_is_wrong_is_named(what):
    with pytest.raises(AssertionError, match=what):
        check_measure(WRONG[what](jnp.array([0.3, -1.0])))


def test_a_density_that_is_not_its_atoms():
    check_measure(mx.DiscreteUniform(3))
    with pytest.raises(AssertionError, match="the density at an atom"):
        check_measure(Fluent(3))


@pytest.mark.slow("all of a law in one program")
@sweep("entry", [entry for entry in spaces.ENTRIES if entry.kind != "mixed"], ids=repr, cost=4)
def test_the_package_s_own(entry):
    check_measure(entry.make(np.random.default_rng(0))[0], fixed=("total_count",))
