"""Means over draws of another measure."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._forms.law_form import LawForm, has_law
from .._integrands.density import RadonNikodym
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand
from .._measures.measure import Measure
from .._pytree import pytree, static
from .leaves import weighted_leaves
from .method import Method
from .sampling import check_draws, mean_of

FEW = 10  # effective draws, of which no error is an estimate
FAR = 6  # standard errors


@pytree
class ImportanceSampling(Method):
    """∫ f dP = ∫ f dP/dR dR for a proposal R that P has a density against: the mean over draws of R, with its standard error.

    The status tells of weights dP/dR that cannot be trusted: fewer than 10 effective draws, one draw with a quarter of all
    squares, or a mean of the weights that is not P's mass, as where R has no mass and P has. Derivatives are those of f and of
    the weights, by P's parameters that its support does not move with; the proposal has none.

    Args:
        proposal: a measure of positive mass that can be sampled, on the points of P; of a pushforward, on those before the map.
        key: a jax.random.key.
        samples: how many draws.

    Source: Owen 2013, *Monte Carlo theory, methods and examples*, §9.

    Examples:
        >>> import jax, measure_xent as mx
        >>> P, tail = mx.Normal(0., 1.), mx.pushforward(lambda x: 4 + x, mx.Exponential(4.), inverse=lambda y: y - 4)
        >>> method = mx.ImportanceSampling(tail, jax.random.key(0), 10_000)
        >>> beyond = P.restrict(lambda x: x > 4).integrate(lambda x: 1., method=method)  # 3.167e-5
        >>> abs(beyond.value / 3.16712e-5 - 1).item() < 0.01
        True
        >>> wide = mx.ImportanceSampling(mx.Normal(0., 2.), jax.random.key(0), 10_000)
        >>> 6000 < wide.effective_samples(P).item() < 7000
        True
    """

    proposal: Any
    key: Array
    samples: int = static()

    def __post_init__(self):
        if not isinstance(self.proposal, Measure):
            raise TypeError(f"ImportanceSampling(proposal): a Measure, got {type(self.proposal).__name__}")
        check_draws("ImportanceSampling", self.key, self.samples)

    def integrate(self, form: LawForm, f: Integrand) -> Integral:
        points, weights = self._draws(form.law)
        rank = max(len(form.family), len(f.shape), weights.ndim - 1)
        one_more = lambda x: x.reshape((1,) * (rank + 1 - weights.ndim) + x.shape)
        points, weights = jax.tree.map(one_more, points), one_more(weights)
        terms, back = weighted_leaves(form.of_law(f).values(points, rank + 1), weights)
        found = mean_of(terms, back)
        beyond = _effective(weights) < FEW
        if not form.factors:  # else a restriction, which the proposal may be made for
            mass, known = weights.mean(-1), lax.stop_gradient(weights)
            spread = jnp.sqrt(((known - mass[..., None]) ** 2).sum(-1)) / self.samples
            exact = jnp.asarray(form.law.mass)
            beyond |= jnp.abs(lax.stop_gradient(mass - exact)) > FAR * spread + 1e-3 * jnp.abs(exact)
        return Integral(found.value, found.error, found.status | beyond.astype(jnp.int32)).scale(form.c, rank)

    def effective_samples(self, P: Measure) -> Float[Array, "*family"]:
        """(Σ w)² / Σ w² of the weights dP/dR at the draws that an integral takes: how many draws of P they are worth.

        Source: Kong 1992, *A note on importance sampling using standardized weights*.

        Raises:
            ValueError: P is made of atoms, or of several laws.
        """
        forms: Any = P.forms()
        if len(forms) != 1 or not isinstance(forms[0], LawForm):
            what = "atoms" if not any(map(has_law, forms)) else "several laws"
            raise ValueError(f"effective_samples(P): a measure with one law, got {type(P).__name__}, made of {what}")
        (form,) = forms
        points, weights = self._draws(form.law)
        for f in form.factors:
            weights = weights * f.values(points, weights.ndim)
        return _effective(weights)

    def _draws(self, law: Any) -> tuple[Any, Float[Array, "*family n"]]:
        """Points of the proposal, each with all members' weights; and dP/dR there."""
        R = jax.tree.map(lax.stop_gradient, self.proposal.normalize())
        x = lax.stop_gradient(R.sample(self.key, (self.samples,)))
        events = lambda point, family: [a.shape[len(family) :] for a in jax.tree.leaves(point)]
        own, theirs = events(law.one_point(), law.shape), events(jax.eval_shape(lambda: x), (0, *R.shape))
        if own != theirs:
            raise ValueError(f"ImportanceSampling(proposal): points of shapes {own}, as P's, got {theirs}")
        family = jnp.broadcast_shapes(law.shape, R.shape)
        rank = len(family)
        law = law.with_family_rank(rank)

        def spread(x):
            x = jnp.moveaxis(x, 0, len(R.shape))  # [*R's family, n, *event]
            return x.reshape((1,) * (rank - len(R.shape)) + x.shape)

        points = jax.tree.map(spread, x)
        shape = (*family, self.samples)
        full = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape[rank + 1 :])), points)
        return full, jnp.broadcast_to(RadonNikodym(law, R).values(full, rank + 1), shape)


def _effective(weights: Float[Array, "*family n"]) -> Float[Array, "*family"]:
    w = lax.stop_gradient(weights)
    squares = (w**2).sum(-1)
    return jnp.where(squares == 0, 0, w.sum(-1) ** 2 / jnp.where(squares == 0, 1, squares))
