"""Proper scores beside the logarithm's, and the measures and losses that other entropies make of logits."""

import abc
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from .._forms.members import without_null
from .._forms.null_rows import stand_in
from .._integrands.density import RatioFunction, log, measure_at, model_of, values_by_point
from .._integrands.integrand import Integrand
from .._kernels.checks import real_array
from .._kernels.classes import Classes, accumulator
from .._kernels.log_sum import distance
from .._kernels.null import values_at
from .._kernels.scaled import Ratio
from .._kernels.softmax import log_softmax, softmax
from .._measures.categorical import Categorical
from .._measures.laws import Continuous
from .._measures.measure import Measure
from .._measures.shapes import enumerable
from .._measures.statistics import AbsoluteDeviation
from .._program import program
from .._pytree import pytree
from .._strict import custom_jvp
from .divergences import tsallis_entropy
from .information import functional


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
    if not enumerable(Q):
        return Q.expect(MeanDistance(Q))
    # 2 ∫ F (1 − F) dt, by sorting: no array has a number for each pair of atoms.
    x, p = _atoms(Q)
    order = jnp.argsort(x, axis=-1)
    x, p = (jnp.take_along_axis(a, order, axis=-1) for a in (x, p))
    below, above = jnp.cumsum(p, axis=-1), jnp.flip(jnp.cumsum(jnp.flip(p, -1), axis=-1), -1)
    return 2 * jnp.sum(jnp.diff(x, axis=-1) * below[..., :-1] * above[..., 1:], axis=-1)


def _atoms(Q: Measure) -> tuple[Array, Array]:
    """All atoms of a finite measure on numbers and their masses, [*family, k]; null ones may be anywhere."""
    parts = [part for form in Q.forms() for part in form.with_family_rank(len(Q.shape)).atom_lists()]
    listed = [(stand_in(x, p == 0).astype(jnp.promote_types(x.dtype, p.dtype)), p) for x, p, _ in parts]
    spread = lambda a: jnp.broadcast_to(a, (*Q.shape, a.shape[-1]))
    points, masses = (jnp.concatenate([spread(a) for a in column], axis=-1) for column in zip(*listed, strict=True))
    return points, masses


def _by_rank(Q, x):
    return x * (2 * Q.cdf(x) - 1)


@pytree
class MeanDistance(Integrand):
    """x ↦ E|X − x|."""

    Q: Any

    @property
    def shape(self):
        return self.Q.shape

    def __call__(self, *x):
        return self.Q.expect(AbsoluteDeviation(jnp.asarray(x[0], float)))

    def values(self, points, lead):
        return values_by_point(self, points, lead)


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
    Infinite logits are as of a ``Categorical``: −inf forbids a class, +inf share the whole mass equally, and a row of nothing
    but −inf is the null measure, with derivative 0.

    Args:
        logits: any finite or infinite numbers, the classes along the last axis.
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
    return Categorical(logits) if alpha == 1 else Categorical(probs=_argmax(float(alpha), logits))


def sparsemax(logits: Float[ArrayLike, "*family V"]) -> Measure:
    """The probabilities nearest to the logits: ``entmax`` at 2. Source: Martins & Astudillo (2016).

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.sparsemax(jnp.array([2., 0., 0.])).probs.tolist()
        [1.0, 0.0, 0.0]
    """
    return entmax(logits, 2)


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _entmax(alpha: float, z: Float[Array, "*family V"]) -> Float[Array, "*family V"]:
    r, top = alpha - 1, jnp.max(z, axis=-1, keepdims=True)
    null = top == -jnp.inf
    # Relative to the maximum; so far below it all have probability 0.
    z = jnp.maximum(-distance(top, z), -1 / r)
    if alpha == 2:
        project = jnp.vectorize(optax.projections.projection_simplex, signature="(v)->(v)")
        return jnp.where(null, 0, project(z))
    # p = (1 + r (z − τ))₊^(1/r), r = α − 1, whose sum falls from at least 1 at τ = 0 to at most 1 where the maximum has 1/V.
    # As exp(log1p(·)/r) it has all its digits for α near 1 too, where it is exp(z − τ).
    power = lambda shift: jnp.exp(jnp.log1p(jnp.maximum(r * (z - shift), -1)) / r)
    high = jnp.full_like(top, -math.expm1(-r * math.log(z.shape[-1])) / r)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        heavy = power(middle).sum(-1, keepdims=True) >= 1
        return jnp.where(heavy, middle, low), jnp.where(heavy, high, middle)

    low, _ = jax.lax.fori_loop(0, jnp.finfo(z.dtype).nmant + 2, halve, (0 * high, high))
    p = power(low)  # whose sum is at least 1
    return jnp.where(null, 0, p / p.sum(-1, keepdims=True))


@_entmax.defjvp
def _entmax_jvp(alpha, primals, tangents):
    (z,), (dz,) = primals, tangents
    p = _entmax(alpha, z)
    # Proposition 2 of the paper: diag(s) − s sᵀ / Σs with s = p^(2 − α) on the support.
    s = jnp.where(p > 0, jnp.where(p > 0, p, 1) ** (2 - alpha), 0)
    total = jnp.where(jnp.all(p == 0, axis=-1, keepdims=True), 1, s.sum(-1, keepdims=True))
    return p, s * (dz - jnp.sum(s * dz, axis=-1, keepdims=True) / total)


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _conjugate(alpha: float, z: Float[Array, "*family V"]) -> Float[Array, "*family"]:
    """max_Q [Q.expect(z) + H_α(Q)/α], whose derivative is the Q that reaches it (Danskin)."""
    Q = Categorical(probs=_argmax(alpha, z))
    return jnp.sum(Q.probs * jnp.where(Q.probs == 0, 0, z), axis=-1) + tsallis_entropy(Q, alpha) / alpha


@_conjugate.defjvp
def _conjugate_jvp(alpha, primals, tangents):
    (z,), (dz,) = primals, tangents
    return _conjugate(alpha, z), jnp.sum(_argmax(alpha, z) * dz, axis=-1)


@program
def _argmax(alpha: float, z: Float[Array, "*family V"]) -> Float[Array, "*family V"]:
    """The probabilities of ``entmax``."""
    return softmax(z) if alpha == 1 else _entmax(alpha, z)


@functional(
    r"\max_Q \left[\int z \, dQ + \frac{H_\alpha(Q)}{\alpha}\right] - \int z \, dP - \frac{H_\alpha(P)}{\alpha}"
)
@program
def fenchel_young_loss(
    P: Measure, logits: Float[ArrayLike, "*family V"], alpha: float = 1.5
) -> Float[Array, "*family"]:
    """max_Q [Q.expect(logits) + H_α(Q)/α] − [P.expect(logits) + H_α(P)/α]: at least 0, and 0 where P is entmax.

    The KL divergence from softmax at α = 1, sparsemax's loss at 2; the gradient in the logits is entmax − P. A P of mass m has
    m times the loss of P/m, so that a weight is a weight and a null P has no loss: the gradient is m · entmax − P. Source:
    Blondel, Martins & Niculae (2020), *Learning with Fenchel–Young losses*. Arguments are those of ``entmax``.

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
    Q: Any = Categorical(logits)
    mass = jnp.broadcast_to(P.mass, jnp.broadcast_shapes(P.shape, Q.shape))
    # Where P is null its logits may be anything.
    stand_in = lambda absent, Q: (without_null(Q, absent),)
    greatest = values_at(lambda Q: _greatest(float(alpha), Q.logits), mass, (Q,), stand_in)
    own = tsallis_entropy(P.normalize(), alpha) / alpha
    return mass * greatest - P.expect(log(Q)) - P.mass * own


def _greatest(alpha: float, z: Float[Array, "*family V"]) -> Float[Array, "*family"]:
    # log softmax is the logits less a constant, of which both sides have the same.
    z = z.astype(accumulator(z.dtype))
    return _conjugate(alpha, log_softmax(Classes.of(z), z))


def _check_order(name: str, alpha: Any) -> None:
    if not isinstance(alpha, int | float) or not alpha >= 1:
        raise ValueError(f"{name}(alpha): a number of at least 1, got {alpha!r}")
