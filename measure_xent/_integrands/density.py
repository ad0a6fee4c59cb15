"""Functions of measures that ``expect`` can look into: log(Q), log_partition(Q), confidence(Q), correct(Q), P / Q."""

import abc
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._kernels.ratio import valued
from .._kernels.scaled import Ratio, ScaledNumber
from .._pytree import as_node, pytree, set_fields
from .._strict import of_user
from ..generators import kl
from .integrand import Integrand, at, density_terms, in_blocks, room_for


class RowFunction(Integrand):
    """A function of the measure Q(x), and perhaps of y, that a kernel gives from one pass over the row of logits.

    Sums, multiples and collections of them, of one and the same Q, are integrated in one pass together.
    """

    Q: Any

    @property
    def shape(self):
        return self.Q.shape

    @property
    def model(self):
        return self.Q

    @property
    def dispatch_on(self):
        return self, self.Q

    def values(self, points, lead):
        return values_by_point(self, points, lead)

    def given(self, Q):
        return type(self)(Q)  # type: ignore[call-arg]


def measure_at(Q: Any, x: Any) -> Any:
    """Q, or a Conditional's measure at x."""
    return Q(*x) if callable(Q) else Q


class OfRow(RowFunction):
    """A function of Q(x) alone: of points (x…, y), or of one x."""

    def __call__(self, *x):
        return self.of_measure(measure_at(self.Q, x[:-1] or x))

    @property
    def ignores_y(self):
        return True

    def integrate_row(self, row):
        return row.integrate(self.value_of_row)

    @abc.abstractmethod
    def of_measure(self, Q: Any) -> Float[Array, "*family"]:
        """The value of a measure."""

    @abc.abstractmethod
    def value_of_row(self, row: Any) -> Float[Array, "*family"]:
        """The value of a row of the kernel."""


@pytree
class LogDensity(RowFunction):
    """x ↦ log q(x) in nats, the mass at an atom, the density elsewhere; for a Conditional, (x…, y) ↦ log q(y | x…).

    What ``log(Q)`` gives, and what a rule for it matches on, as ``rule(P, LogDensity, Q)``.

    Examples:
        >>> import measure_xent as mx
        >>> isinstance(mx.log(mx.DiscreteUniform(6)), mx.LogDensity)
        True
    """

    Q: Any

    def __call__(self, *x):
        return self.Q.log_density(*x)

    def values(self, points, lead):
        return values_by_point(self if callable(self.Q) else RatioFunction(self.Q, None, _log), points, lead)

    def integrate_row(self, row):
        return -row.cross_entropy


@pytree
class LogPartition(OfRow):
    """x ↦ A(x), the log-partition of Q(x)."""

    Q: Any

    def of_measure(self, Q):
        if not hasattr(Q, "log_partition"):
            raise NotImplementedError(f"{type(Q).__name__} has no log-partition: Categorical and Bernoulli have")
        return Q.log_partition

    def value_of_row(self, row):
        return row.log_partition


@pytree
class Confidence(OfRow):
    """x ↦ max_y q(y | x)."""

    Q: Any

    @property
    def row_statistics(self):
        return ("mode",)

    def of_measure(self, Q):
        return jnp.exp(Q.log_density(Q.mode))

    def value_of_row(self, row):
        return jnp.exp(-row.surprisal)


@pytree
class Entropy(OfRow):
    """x ↦ H(Q(x)), in nats."""

    Q: Any

    @property
    def row_statistics(self):
        return ("entropy",)

    def of_measure(self, Q):
        return -Q.expect(log(Q))

    def value_of_row(self, row):
        return row.entropy


@pytree
class Correct(RowFunction):
    """(x…, y) ↦ 1 where y is the mode of Q(x…), else 0."""

    Q: Any

    @property
    def row_statistics(self):
        return ("mass_at_mode",)

    def __call__(self, *x):
        *x, y = x
        return jnp.where(y == measure_at(self.Q, x).mode, 1.0, 0.0)

    def integrate_row(self, row):
        return row.mass_at_mode


class OfDensities(Integrand):
    """A function of the densities of P and of Q at a point, by their ratio and scale; of P's alone where Q is None."""

    P: Any
    Q: Any

    @abc.abstractmethod
    def of(self, ratio: Ratio) -> Float[Array, "*family"]:
        """The value, from dP/dQ; from p/1 where there is no Q."""

    def __call__(self, *x):
        return self.of(self.at(*x))

    def at(self, *x: Any) -> Ratio:
        """The ratio at a point: of masses where either measure has an atom, else of densities."""
        if self.Q is not None and (near := relative_to(self.P, self.Q, *x)) is not None:
            return near
        if self.Q is None:
            return Ratio.of(_density(self.P, x), ScaledNumber.of(jnp.asarray(1.0)))
        parts = self.P.parts(), self.Q.parts()
        ratio_of = lambda kind: Ratio.of(*(_density(own.get(kind), x) for own in parts))
        return functools.reduce(_either, map(ratio_of, sorted({*parts[0], *parts[1]}, reverse=True)))

    @property
    def shape(self) -> tuple[int, ...]:
        shapes: list[tuple[int, ...]] = [R.shape for R in (self.P, self.Q) if R is not None]
        return jnp.broadcast_shapes(*shapes)

    @property
    def noise(self):
        return 0.0 if self.Q is None else 4.0

    def by_ratio(self):
        return None if self.Q is None else (RatioFunction(self.P, self.Q, _itself), self.of)

    def values(self, points, lead):
        return values_by_point(self, points, lead)


@pytree
class RadonNikodym(OfDensities):
    """dP/dQ as a function: P(x)/Q(x), 0 where only Q has mass, +inf where only P has, NaN where neither has.

    Source: https://en.wikipedia.org/wiki/Radon–Nikodym_theorem. ``(P / Q) * Q`` is P where P ≪ Q.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> ratio = mx.Categorical(probs=jnp.array([0.5, 0.5, 0.])) / mx.DiscreteUniform(3)
        >>> [float(ratio(x)) for x in range(3)]
        [1.5, 1.5, 0.0]
    """

    P: Any
    Q: Any

    def of(self, ratio):
        return ratio.value

    def scaled(self, *x):
        ratio = self.at(*x)
        return ratio.log_scale, ratio.p / ratio.q


@pytree
class LogRatio(OfDensities):
    """x ↦ log dP/dQ(x), in nats."""

    P: Any
    Q: Any

    def of(self, ratio):
        return ratio.log


@pytree
class RatioFunction(OfDensities):
    """x ↦ a function of the ratio dP/dQ(x), or of the density of P."""

    P: Any
    Q: Any
    function: Any

    def __post_init__(self):
        set_fields(self, function=as_node(self.function))

    def of(self, ratio):
        return of_user(self.function)(ratio)


@pytree
class KullbackLeibler(OfDensities):
    """x ↦ q (t log t − t + 1) / (p + q) with t = dP/dQ: against P + Q the integral is KL(P‖Q). It is nowhere negative.

    Rules for it match on both measures, as ``rule(Sum, KullbackLeibler, Normal, Normal)``.
    """

    P: Any
    Q: Any

    @property
    def dispatch_on(self):
        return self, self.P, self.Q

    def of(self, ratio):
        return kl.of(ratio)


@pytree
class Perspective(OfDensities):
    """x ↦ φ(p, q) / (p + q) with the perspective φ(p, q) = q f(p/q) of a generator: against P + Q the integral is D_f(P‖Q)."""

    P: Any
    Q: Any
    generator: Any

    @property
    def dispatch_on(self):
        return self, self.P, self.Q

    def of(self, ratio):
        return self.generator.of(ratio)


def values_by_point(f, points, lead):
    """The values of a function that broadcasts its family against points by itself: all but the atoms' axis.

    Those of mixtures take a number a part at every point: they are made of as many points at a time as there is room for.
    """
    function, terms = lambda point: at(f, point), density_terms(f)
    if not f.shape and terms == 0:
        return Integrand.values(f, points, lead)
    if f.shape:
        x = jax.tree.map(lambda x: jnp.moveaxis(x, lead - 1, 0), points)
        values = in_blocks(function, x, room_for(terms * math.prod(f.shape)))
        return jax.tree.map(lambda v: jnp.moveaxis(v, 0, -1), values)
    axes = jax.tree.leaves(points)[0].shape[:lead]
    x = jax.tree.map(lambda x: x.reshape(-1, *x.shape[lead:]), points)
    return jax.tree.map(lambda v: v.reshape(*axes, *v.shape[1:]), in_blocks(function, x, room_for(terms)))


def log(Q: Any, base: float | None = None) -> Integrand:
    """The log-density of a measure, a Markov kernel or a ratio P / Q, as a function that ``expect`` can look into.

    Args:
        Q: a Measure (its masses at atoms, its density elsewhere), a Conditional (log(K) is a function of (x…, y)), or P / Q.
        base: of the logarithm; by default e, for nats.

    Returns:
        An Integrand: call it on points, add and multiply it, integrate it.

    Raises:
        TypeError: Q is none of these.
        ValueError: base is not a number above 0 other than 1.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> from measure_xent import log
        >>> Q = mx.Categorical(probs=jnp.array([0.5, 0.25, 0.25]))
        >>> log(Q)(jnp.array([0, 1])).tolist(), log(Q, 2)(1).item()
        ([-0.6931, -1.3863], -2.0)
        >>> float(-mx.Dirac(1).expect(log(Q)))
        1.3863
    """
    if base is not None:
        return log(Q) / nats(base)
    if isinstance(Q, RadonNikodym):
        return LogRatio(Q.P, Q.Q)
    if hasattr(Q, "log_density"):
        return LogDensity(Q)
    raise TypeError(f"log(Q): Q must be a Measure, a Conditional or a ratio P / Q, got {type(Q).__name__}")


def nats(base: float | None) -> float:
    """How many nats a unit of a base is: 1 of e, log 2 of 2."""
    if base is None:
        return 1.0
    if not isinstance(base, int | float) or not 0 < base < math.inf or base == 1:
        raise ValueError(f"base: a number above 0 other than 1, such as 2 for bits, got {base!r}")
    return math.log(base)


def log2(Q: Any) -> Integrand:
    """log(Q) in bits: see ``log``.

    Examples:
        >>> import measure_xent as mx
        >>> float(-mx.Dirac(3).expect(mx.log2(mx.DiscreteUniform(8))))
        3.0
    """
    return log(Q, 2)


def log_partition(Q: Any) -> Integrand:
    """The log-partition A of Q = exp(logit − A), the log-sum-exp of the logits, as a function that ``expect`` looks into.

    Its square against the batch is the z-loss (Chowdhery et al. 2022, *PaLM*, §5), from the same pass as the loss. Arguments
    and errors are those of ``log``; Q is a softmax or sigmoid measure, or a Conditional of them.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> from measure_xent import log, log_partition
        >>> P = mx.Empirical((jnp.zeros((2, 3)), jnp.array([0, 1])))
        >>> Q = mx.Conditional(mx.Categorical)
        >>> loss = -P.expect(log(Q) - 1e-4 * log_partition(Q) ** 2)
        >>> loss.item()  # log 3 + 1e-4 (log 3)²
        1.09873
    """
    return LogPartition(model_of("log_partition", Q))


def confidence(Q: Any) -> Integrand:
    """The probability of Q's mode, as a function that ``expect`` looks into. Arguments and errors are those of ``log``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> Q = mx.Categorical(jnp.array([[2., 0.], [0., 0.]]))
        >>> mx.Dirac(0).expect(mx.confidence(Q)).tolist()
        [0.8808, 0.5]
    """
    return Confidence(model_of("confidence", Q))


def correct(Q: Any) -> Integrand:
    """1 where a point is Q's mode, the first of several, else 0: its mean over a batch is the accuracy, its sum the count.

    Arguments and errors are those of ``log``. A dict or tuple of functions of one Q is integrated in one pass.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> from measure_xent import correct, log
        >>> logits, labels = jnp.array([[2., 0.], [0., 1.], [3., 0.]]), jnp.array([0, 1, 1])
        >>> P, Q = mx.Empirical((logits, labels)), mx.Conditional(mx.Categorical)
        >>> P.expect({"loss": -log(Q), "accuracy": correct(Q)})
        {'accuracy': Array(0.666667, dtype=float32), 'loss': Array(1.162926, dtype=float32)}
    """
    return Correct(model_of("correct", Q))


def model_of(name: str, Q: Any) -> Any:
    """Q, or an error that names the function of it."""
    if not hasattr(Q, "log_density"):
        raise TypeError(f"{name}(Q): Q must be a Measure or a Conditional, got {type(Q).__name__}")
    return Q


def _log(ratio: Ratio) -> Float[Array, "*family"]:
    return ratio.log


def _itself(ratio: Ratio) -> Ratio:
    return ratio


def _either(atom: Ratio, density: Ratio) -> Ratio:
    """The ratio at an atom of either measure, else of the densities."""
    at_atom = (atom.p != 0) | (atom.q != 0)
    return Ratio(*(jnp.where(at_atom, a, d) for a, d in zip(atom, density, strict=True)))


@functools.singledispatch
def relative_to(P: Any, Q: Any, *x: Any) -> Ratio | None:
    """dP/dQ at a point of measures that are alike, with the digits that their densities' difference has not, else None: a case
    a type of P."""
    del P, Q, x
    return None


def along_the_path(P: Any, Q: Any, *x: Any) -> Ratio | None:
    """dP/dQ at a point of measures that are alike but for their parameters θ, with the digits that log p − log q has not.

    log p − log q is the integral of ∂/∂s log p(θ_Q + s (θ_P − θ_Q)), of numbers as small as it is. Near equality Gauss's rule
    of two points has it: where the middle point's agrees to the root of the precision, the two points' has all digits.
    """
    (ours, tree), (theirs, other) = jax.tree.flatten(P), jax.tree.flatten(Q)
    ours, theirs = (list(map(jnp.asarray, leaves)) for leaves in (ours, theirs))
    if tree != other or not all(jnp.issubdtype(a.dtype, jnp.inexact) for a in ours + theirs):
        return None
    fixed = [jax.lax.stop_gradient((a, b)) for a, b in zip(ours, theirs, strict=True)]
    point = jax.lax.stop_gradient(x)
    log_density = lambda s: tree.unflatten([b + s * (a - b) for a, b in fixed]).log_density(*point)
    nodes = 0.5 + jnp.asarray([-(3**-0.5), 0, 3**-0.5]) / 2
    low, middle, high = jax.vmap(lambda s: jax.jvp(log_density, (s,), (jnp.ones_like(s),))[1])(nodes)
    near, far = (low + high) / 2, Ratio.of(_density(P, x), _density(Q, x))
    close = jnp.abs(near - middle) <= jnp.finfo(near.dtype).eps ** 0.5 * jnp.abs(near)
    return far.with_log(valued(near, far.log_inside, close & jnp.isfinite(far.log_inside)))


def _density(P: Any, x: tuple) -> ScaledNumber:
    """The density at a point of a measure, or of none."""
    return ScaledNumber.of(jnp.asarray(0.0)) if P is None else ScaledNumber(*P.scaled_density(*x))
