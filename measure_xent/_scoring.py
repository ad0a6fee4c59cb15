"""Proper scores beside the logarithm's, and the measures and losses that other entropies make of logits."""

import abc
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from ._density import RatioFunction, log, measure_at, model_of, values_by_point
from ._divergences import tsallis_entropy
from ._information import functional
from ._integrand import Integrand
from ._kernels.classes import accumulator
from ._measure import Measure
from ._measures.checks import real_array
from ._measures.finite import Categorical, masses
from ._measures.laws import Continuous
from ._measures.statistics import AbsoluteDeviation
from ._pytree import pytree
from ._scaled import Ratio


class Score(Integrand):
    """A function of the measure Q, or Q(x), and of the point that came: (x…, y) ↦ S(Q(x…), y), low for a good forecast."""

    Q: Any

    @property
    def shape(self):
        return self.Q.shape

    def __call__(self, *x):
        *given, y = x
        return self.of(measure_at(self.Q, given), y)

    @abc.abstractmethod
    def of(self, Q: Measure, y: Any) -> Float[Array, "*family"]:
        """The score of one measure at a point."""

    def values(self, points, lead):
        return values_by_point(self, points, lead)


def _density(ratio: Ratio) -> Array:
    return ratio.value


def _square_norm(Q: Measure) -> Array:
    """∫ q dQ."""
    return Q.expect(RatioFunction(Q, None, _density))


@pytree
class Brier(Score):
    """y ↦ Σ_c (q(c) − 1{c = y})²."""

    Q: Any

    def of(self, Q, y):
        return _square_norm(Q) - 2 * jnp.exp(Q.log_density(y)) + 1


@pytree
class Spherical(Score):
    """y ↦ −q(y) / √∫ q²."""

    Q: Any

    def of(self, Q, y):
        return -jnp.exp(Q.log_density(y)) / jnp.sqrt(_square_norm(Q))


@pytree
class ContinuousRanked(Score):
    """y ↦ E|X − y| − ½ E|X − X′|."""

    Q: Any

    def of(self, Q, y):
        return Q.expect(AbsoluteDeviation(jnp.asarray(y, float))) - _spread(Q) / 2


def _spread(Q: Measure) -> Array:
    """E|X − X′| of independent X and X′."""
    if isinstance(Q, Continuous):
        # E|X − X′| = 2 E X (2 F(X) − 1), which has no kink.
        law, _ = Q.centred()
        if law.shape:
            return jax.vmap(_spread)(jax.tree.map(lambda x: jnp.broadcast_to(x, law.shape), law))
        return 2 * law.expect(Partial(_by_rank, law))
    return Q.expect(Partial(_distance_to, Q))


def _by_rank(Q, x):
    return x * (2 * Q.cdf(x) - 1)


def _distance_to(Q, x):
    return Q.expect(AbsoluteDeviation(jnp.asarray(x, float)))


def brier(Q: Any) -> Integrand:
    """Brier's quadratic score, y ↦ Σ_c (q(c) − 1{c = y})² = ∫ q dQ − 2 q(y) + 1: its mean under P is least at Q = P.

    Source: Brier (1950); Gneiting & Raftery (2007), *Strictly proper scoring rules, prediction, and estimation*. Of a density
    it is the same formula. Arguments and errors are those of ``log``, which gives the logarithmic score, −log(Q).

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> Q = mx.Categorical(probs=jnp.array([0.5, 0.25, 0.25]))
        >>> mx.Dirac(0).expect(mx.brier(Q)).item()  # ¼ + 2 · 1/16
        0.375
    """
    return Brier(model_of("brier", Q))


def spherical(Q: Any) -> Integrand:
    """The spherical score, y ↦ −q(y) / √∫ q dQ: its mean under P is least at Q = P. Source: Good (1971); see ``brier``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.Dirac(0).expect(mx.spherical(mx.Categorical(probs=jnp.array([0.6, 0.8 - 0.4])))).item()
        -0.83205
    """
    return Spherical(model_of("spherical", Q))


def crps(Q: Any) -> Integrand:
    """The continuous ranked probability score, y ↦ ∫ (F(t) − 1{y ≤ t})² dt = E|X − y| − ½ E|X − X′|, of a Q on numbers.

    In the units of y; of a point mass the absolute error, of classes in their order the ranked probability score. Source:
    Gneiting & Raftery (2007), eq. 21. Arguments and errors are those of ``log``.

    Examples:
        >>> import measure_xent as mx
        >>> mx.Dirac(0.).expect(mx.crps(mx.Normal(0., 1.))).item()  # (√2 − 1)/√π
        0.2337
        >>> mx.Dirac(3.).expect(mx.crps(mx.Dirac(1.))).item()
        2.0
    """
    return ContinuousRanked(model_of("crps", Q))


def entmax(logits: Float[ArrayLike, "*family V"], alpha: float = 1.5) -> Measure:
    """argmax_Q Q.expect(logits) + H_α(Q) / α with Tsallis' entropy: softmax at α = 1, sparsemax at 2, sparse for all α > 1.

    Source: Peters, Niculae & Martins (2019), *Sparse sequence-to-sequence models*. A temperature divides the logits.

    Args:
        logits: any numbers, the classes along the last axis.
        alpha: a number of at least 1.

    Returns:
        A Categorical; its derivative in the logits is that of the supporting classes.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.entmax(jnp.array([1., 0.8, -1.]), alpha=2).probs.tolist()
        [0.6, 0.4, 0.0]
    """
    logits = real_array("entmax(logits)", logits, floating=True)
    logits = logits.astype(accumulator(logits.dtype))
    _check_order("entmax", alpha)
    return Categorical(logits) if alpha == 1 else Categorical(probs=_entmax(float(alpha), logits))


def sparsemax(logits: Float[ArrayLike, "*family V"]) -> Measure:
    """The probabilities nearest to the logits: ``entmax`` at 2. Source: Martins & Astudillo (2016).

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.sparsemax(jnp.array([2., 0., 0.])).probs.tolist()
        [1.0, 0.0, 0.0]
    """
    return entmax(logits, 2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _entmax(alpha: float, z: Float[Array, "*family V"]) -> Float[Array, "*family V"]:
    z = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    if alpha == 2:
        project = jnp.vectorize(optax.projections.projection_simplex, signature="(v)->(v)")
        return project(z)
    # p = ((α − 1) z − τ)₊^(1/(α − 1)): its sum falls from at least 1 to at most 1 as τ rises through an interval of length 1.
    z = (alpha - 1) * z
    # τ + 1 from 0 to 1: z − τ keeps its digits where τ is near −1, as it is for α near 1.
    power = lambda rest: jnp.maximum(z + (1 - rest), 0) ** (1 / (alpha - 1))
    high = jnp.ones_like(z[..., :1])

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        heavy = power(middle).sum(-1, keepdims=True) >= 1
        return jnp.where(heavy, middle, low), jnp.where(heavy, high, middle)

    low, _ = jax.lax.fori_loop(0, jnp.finfo(z.dtype).nmant + 2, halve, (0 * high, high))
    p = power(low)  # whose sum is at least 1
    return p / p.sum(-1, keepdims=True)


@_entmax.defjvp
def _entmax_jvp(alpha, primals, tangents):
    (z,), (dz,) = primals, tangents
    p = _entmax(alpha, z)
    # Proposition 2 of the paper: diag(s) − s sᵀ / Σs with s = p^(2 − α) on the support.
    s = jnp.where(p > 0, jnp.where(p > 0, p, 1) ** (2 - alpha), 0)
    return p, s * (dz - jnp.sum(s * dz, axis=-1, keepdims=True) / s.sum(-1, keepdims=True))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _conjugate(alpha: float, z: Float[Array, "*family V"]) -> Float[Array, "*family"]:
    """max_Q [Q.expect(z) + H_α(Q)/α], whose derivative is the Q that reaches it (Danskin)."""
    Q = entmax(z, alpha)
    q = masses(Q, z.shape[-1], "Categorical")
    return jnp.sum(jnp.where(q == 0, 0, q * z), axis=-1) + tsallis_entropy(Q, alpha) / alpha


@_conjugate.defjvp
def _conjugate_jvp(alpha, primals, tangents):
    (z,), (dz,) = primals, tangents
    q = masses(entmax(z, alpha), z.shape[-1], "Categorical")
    return _conjugate(alpha, z), jnp.sum(q * dz, axis=-1)


@functional(
    r"\max_Q \left[\int z \, dQ + \frac{H_\alpha(Q)}{\alpha}\right] - \int z \, dP - \frac{H_\alpha(P)}{\alpha}"
)
def fenchel_young_loss(
    P: Measure, logits: Float[ArrayLike, "*family V"], alpha: float = 1.5
) -> Float[Array, "*family"]:
    """max_Q [Q.expect(logits) + H_α(Q)/α] − [P.expect(logits) + H_α(P)/α]: at least 0, and 0 where P is entmax.

    The KL divergence from softmax at α = 1, sparsemax's loss at 2; the gradient in the logits is entmax − P. Source: Blondel,
    Martins & Niculae (2020), *Learning with Fenchel–Young losses*. Arguments are those of ``entmax``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> logits = jnp.array([1., 0.8, -1.])
        >>> mx.fenchel_young_loss(mx.Dirac(0), logits, alpha=2).item()
        0.16
        >>> mx.fenchel_young_loss(mx.sparsemax(logits), logits, alpha=2).item()
        0.0
    """
    _check_order("fenchel_young_loss", alpha)
    logits = real_array("fenchel_young_loss(logits)", logits, floating=True)
    # log softmax is the logits less a constant, of which both sides have the same.
    log_p = jax.nn.log_softmax(logits.astype(accumulator(logits.dtype)))
    return _conjugate(float(alpha), log_p) - P.expect(log(Categorical(logits))) - tsallis_entropy(P, alpha) / alpha


def _check_order(name: str, alpha: Any) -> None:
    if not isinstance(alpha, int | float) or not alpha >= 1:
        raise ValueError(f"{name}(alpha): a number of at least 1, got {alpha!r}")
