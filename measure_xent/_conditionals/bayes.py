"""Posteriors, by Bayes; kernels one after the other, by Chapman and Kolmogorov."""

import jax.numpy as jnp

from .._measures.measure import Measure, Scaled, Weighted
from .._measures.product import check_measure
from .._methods.mixtures import Likelihood
from .._pytree import pytree
from .bind import Bind, bind
from .conditional import AbstractConditional
from .joint import Joint


def posterior(P: Measure, K: AbstractConditional) -> AbstractConditional:
    """y ↦ the law of x given y, where x is from P and y from K given x. Source: Bayes' theorem.

    On a finite P it is exact, of a ``LinearNormal`` in closed form, and else what P weighted by the likelihood is.

    Raises:
        TypeError: P is not a Measure, or K not a Conditional.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> ill = mx.Categorical(probs=jnp.array([0.99, 0.01]))
        >>> test = mx.Conditional(lambda ill: mx.Bernoulli(probs=jnp.where(ill == 1, 0.9, 0.05)))
        >>> mx.posterior(ill, test)(1).expect(lambda ill: ill).item()
        0.15385
    """
    check_measure("posterior(P, K): P", P)
    if not isinstance(K, AbstractConditional):
        raise TypeError(f"posterior(P, K): K must be a Conditional, got {type(K).__name__}")
    known = K.inverse(P)
    return Posterior(P, K) if known is NotImplemented else known


def compose(K: AbstractConditional, L: AbstractConditional) -> AbstractConditional:
    """x ↦ ∫ L(y) K(x, dy): K, then L. Source: Chapman & Kolmogorov.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> flip = mx.Conditional(lambda bit: mx.Bernoulli(probs=jnp.where(bit == 1, 0.9, 0.1)))
        >>> mx.compose(flip, flip)(1).expect(lambda bit: bit).item()
        0.82
    """
    for name, kernel in (("K", K), ("L", L)):
        if not isinstance(kernel, AbstractConditional):
            raise TypeError(f"compose(K, L): {name} must be a Conditional, got {type(kernel).__name__}")
    known = K.then(L)
    return Composition(K, L) if known is NotImplemented else known


@pytree
class Composition(AbstractConditional):
    """x ↦ ∫ L(y) K(x, dy)."""

    K: AbstractConditional
    L: AbstractConditional

    def __call__(self, *x):
        return bind(self.K(*x), self.L)

    def family(self, x, lead):
        return bind(self.K.family(x, lead), self.L)


@pytree
class Posterior(AbstractConditional):
    """y ↦ P weighted by the likelihood of y."""

    P: Measure
    K: AbstractConditional

    def __call__(self, *y):
        return self.family(y, 0)

    def family(self, x, lead):
        (y,) = x
        # Divided by the evidence's scale, the likelihood does not underflow where it matters.
        log_scale = Bind(Joint(self.P, self.K)).scaled_density(y).log_scale
        weighted = Weighted(Likelihood(self.K, y, log_scale, jnp.ndim(y) - lead), self.P)
        return Scaled(1 / weighted.mass, weighted)  # NaN, not null, where no likelihood is left
