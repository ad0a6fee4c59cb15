"""Generators of f-divergences: convex f with f(1) = 0, each given by its perspective (p, q) ↦ q f(p/q).

Both singular parts are in it, f(0) = φ(0, 1) and f′(∞) = φ(1, 0), and neither argument is before the other: reverse KL of P
and Q is KL of Q and P. Source: Csiszár & Shields (2004), *Information Theory and Statistics*, §4; Combettes (2018).

``mx.f_divergence(P, Q, mx.generators.chi2)`` takes one; ``Generator(perspective)`` makes one.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from ._kernels.ratio import excess, excess_over, expm1_over, log_ratio, relative
from ._kernels.scaled import Ratio
from ._pytree import as_node, pytree, set_fields, static
from ._strict import of_user


@pytree
class Generator:
    """A convex f with f(1) = 0, as its perspective φ(p, q) = q f(p/q) on p, q ≥ 0 that are not both 0.

    Raises:
        ValueError: φ(1, 1) is not 0, or φ(t, 1) is not convex in t.

    Examples:
        >>> import measure_xent as mx
        >>> triangular = mx.generators.Generator(lambda p, q: (p - q) ** 2 / (p + q))
        >>> mx.f_divergence(mx.Dirac(0), mx.Dirac(1), triangular).item()
        2.0
    """

    perspective: Callable[[Any, Any], Any]

    def __post_init__(self):
        if not callable(self.perspective):
            raise TypeError(f"Generator(perspective): a function of p and q, got {type(self.perspective).__name__}")
        set_fields(self, perspective=as_node(self.perspective))
        _check("Generator(perspective): f", lambda t: of_user(self.perspective)(t, np.ones_like(t)))

    def of(self, ratio: Ratio) -> Array:
        """φ(p, q) / (p + q), the density of the divergence against P + Q."""
        return self.of_shares(*ratio.shares, ratio.log_inside)

    def of_shares(self, p: Array, q: Array, log_ratio: Array) -> Array:
        """The same of (p, q) / (p + q) and log p/q."""
        known: Any = self.perspective
        return known.of(p, q, log_ratio) if isinstance(known, _OfLogRatio) else of_user(known)(p, q)


def from_function(f: Callable, slope: float | None = None) -> Generator:
    """The generator of a function f of t = p/q, whose slope f′(∞) is told by ``jax.grad`` if it is not given."""
    if not callable(f):
        raise TypeError(f"f_divergence(f): a Generator or a function of t = p/q, got {type(f).__name__}")
    _check("f_divergence(f): f", f)
    derivative = jax.grad(lambda t: jnp.asarray(of_user(f)(t), float))
    if slope is None:
        slope = _slope_at_infinity([_concrete(lambda t=t: derivative(t)) for t in (1e12, 1e24, 1e36)])
    at_zero = _concrete(lambda: of_user(f)(jnp.asarray(0.0)))
    # t log t has a limit at 0 that t · log(t) has not.
    least = float(np.finfo(np.float32).tiny) if at_zero is not None and np.isnan(at_zero) else 0.0
    return Generator(Partial(_perspective, as_node(f), least, slope))


def _slope_at_infinity(slopes: list[Any]) -> float:
    """Of a convex function slopes only rise: to a limit, or on and on, at least as log t does."""
    if all(slope is not None and np.isfinite(slope) for slope in slopes[:2]):
        near, far, farthest = map(float, slopes)
        if abs(farthest - far) <= 1e-3 * (abs(far) + 1e-3):
            return farthest
        if not farthest - far < (far - near) / 2:
            return math.inf
    raise ValueError("f_divergence(f): jax.grad(f) does not tell f′(∞); pass slope=f′(∞), or a Generator")


def _perspective(f, least, slope, p, q):
    inside = q != 0
    value = jnp.where(inside, q, 1) * of_user(f)(jnp.maximum(jnp.where(inside, p, 1) / jnp.where(inside, q, 1), least))
    return jnp.where(inside, value, jnp.where(p == 0, 0, slope))


def _check(name: str, f: Callable) -> None:
    """f(1) = 0 and convexity on a grid, of an f whose values a trace can show."""
    t = np.logspace(-2, 2, 81)
    values = _concrete(lambda: of_user(f)(np.append(t, 1.0).astype(np.float32)))
    if values is None:  # made of traced parameters
        return
    *values, at_one = np.asarray(values, np.float64)
    if not abs(at_one) < 1e-5:
        raise ValueError(f"{name}(1) must be 0, got {at_one:.3g}")
    slopes = np.diff(values) / np.diff(t)
    rounding = 1e-6 * (1 + np.abs(values)) / np.gradient(t)  # of a slope, by some ulp of its values
    if not np.all(np.diff(slopes) >= -4 * rounding[1:-1]):
        raise ValueError(f"{name} must be convex, and is not between t = 0.01 and 100")


def _concrete(value: Callable) -> Any:
    """The value as an array of NumPy's, or None if it is traced."""
    with jax.ensure_compile_time_eval():
        result = value()
    return None if isinstance(result, jax.core.Tracer) else np.asarray(result)


@pytree
class _OfLogRatio:
    """A perspective that reads u = log p/q too: near 1 nothing is left of p − q, while q · (eᵘ − 1) has all its digits."""

    function: Callable

    def __call__(self, p, q):
        inside = (p != 0) & (q != 0)
        u = log_ratio(jnp.where(inside, p, 1), jnp.where(inside, q, 1))
        return self.of(p, q, jnp.where(inside, u, jnp.where(p == 0, -jnp.inf, jnp.inf)))

    def of(self, p, q, u):
        return self.function(p, q, u)


def _known(function: Callable) -> Generator:
    """One of p, q and log p/q that needs no check, which would start JAX's backend when this module is imported."""
    new = object.__new__(Generator)
    set_fields(new, perspective=_OfLogRatio(as_node(function)))
    return new


def _near(u: Array) -> tuple[Array, Array]:
    """(whether p is near q, log p/q there and 0 elsewhere)."""
    near = jnp.abs(u) < 1
    return near, jnp.where(near, u, 0)


def _difference(q: Array, p: Array, u: Array) -> Array:
    """p − q."""
    near, v = _near(u)
    return jnp.where(near, q * jnp.expm1(v), p - q)


def _sqrt(p: Array) -> Array:
    """√p, without its infinite derivative at 0."""
    return jnp.where(p == 0, 0, jnp.sqrt(jnp.where(p == 0, 1, p)))


@_known
def kl(p, q, u):
    """t log t − t + 1."""
    return relative(p, q, u)


@_known
def reverse_kl(p, q, u):
    """t − 1 − log t."""
    return relative(q, p, -u)


@_known
def total_variation(p, q, u):
    """|t − 1| / 2."""
    return jnp.abs(_difference(q, p, u)) / 2


@_known
def squared_hellinger(p, q, u):
    """(√t − 1)² / 2."""
    near, v = _near(u)
    return jnp.where(near, q * jnp.expm1(v / 2) ** 2, (_sqrt(p) - _sqrt(q)) ** 2) / 2


@_known
def chi2(p, q, u):
    """Pearson's (t − 1)²."""
    return _difference(q, p, u) ** 2 / q


@_known
def neyman(p, q, u):
    """(t − 1)² / t."""
    return _difference(q, p, u) ** 2 / p


@pytree
class _JensenShannon:
    """a KL(P‖M) + (1 − a) KL(Q‖M) of M = a P + (1 − a) Q."""

    a: Float[ArrayLike, "*family"]

    def __call__(self, p, q, u):
        a, b = self.a, 1 - self.a
        middle, (near, _) = a * p + b * q, _near(u)
        # log p/m is −log (1 + b (q/p − 1)). One exponential gives q/p − 1 and p/q − 1: as it is that of the smaller to the
        # larger, and where they are near the other, too. Far apart, the smaller one's logarithm is the larger's less |u|.
        below = jnp.expm1(-jnp.abs(u))
        above = jnp.where(near, -below / jnp.where(near, 1 + below, 1), 0)

        def to_middle(p, u, a, b):
            larger = u >= 0
            log = -jnp.log1p(jnp.where(larger, b * below, jnp.where(near, b * above, a * below)))
            return relative(p, middle, jnp.where(p == 0, -jnp.inf, jnp.where(larger | near, log, log + u)))

        return a * to_middle(p, u, a, b) + b * to_middle(q, -u, b, a)


@_known
def jensen_shannon(p, q, u):
    """½ (t log t − (1 + t) log ((1 + t)/2))."""
    return _JensenShannon(0.5)(p, q, u)


def mixed(a: Any) -> Generator:
    """a KL(P‖M) + (1 − a) KL(Q‖M) of M = a P + (1 − a) Q, a generator for each weight."""
    return _known(_JensenShannon(a))


@_known
def le_cam(p, q, u):
    """(t − 1)² / (2 (t + 1))."""
    return _difference(q, p, u) ** 2 / (2 * (p + q))


@pytree
class _Tsallis:
    """(tʳ⁺¹ − (r + 1) t + r) / r: KL as r goes to 0."""

    r: Float[ArrayLike, "*family"]

    def __call__(self, p, q, u):
        r, (near, v) = jnp.asarray(self.r), _near(u)
        close = p * (v * excess_over(r * v) + excess(-v))
        # Of infinite logarithms the limits, which unlike the formula have derivatives in the order.
        infinite = jnp.isinf(u)
        limit = jnp.where(u * r < 0, -1 / jnp.where(r == 0, 1, r), u)
        finite = jnp.where(infinite, 0, u)
        gain = jnp.where(infinite, limit, finite * expm1_over(r * finite))
        # At a p of 0 the slope is finite for an r above 0, and infinite, so not taken, for others.
        return jnp.where(near, close, p * (jnp.where((p == 0) & (r <= 0), 1, gain) - 1) + q)


def tsallis(r: Any) -> Generator:
    """(tʳ⁺¹ − (r + 1) t + r) / r, of an order r + 1 that may be an array."""
    return _known(_Tsallis(r))


def alpha(a: float) -> Generator:
    """(tᵃ − a t + a − 1) / (a (a − 1)): reverse KL at 0, 4 · Hellinger² at ½, KL at 1, χ²/2 at 2.

    Source: Cressie & Read (1984), *Multinomial goodness-of-fit tests*.

    Raises:
        ValueError: a is not a finite number.

    Examples:
        >>> import measure_xent as mx
        >>> P, Q = mx.Normal(0., 1.), mx.Normal(1., 1.)
        >>> [mx.f_divergence(P, Q, mx.generators.alpha(a)).item() for a in (0, 1, 2)]  # ½, ½, (e − 1)/2
        [0.5, 0.5, 0.8591]
    """
    if not (isinstance(a, int | float) and math.isfinite(a)):
        raise ValueError(f"alpha(a): a finite number, got {a!r}")
    return reverse_kl if a == 0 else kl if a == 1 else _known(_Alpha(float(a)))


@pytree
class _Alpha:
    a: float = static()

    def __call__(self, p, q, u):
        a = self.a
        return _Tsallis(-a)(q, p, -u) / (1 - a) if a < 0.5 else _Tsallis(a - 1)(p, q, u) / a
