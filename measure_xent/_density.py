"""Functions of measures that ``expect`` can look into: log(Q), log_partition(Q), confidence(Q), correct(Q), P / Q."""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._integrand import Integrand, at
from ._pytree import pytree


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
    def pattern(self):
        return self, self.Q

    def values(self, points, lead):
        return _family_values(self, points, lead)

    def given(self, Q):
        return type(self)(Q)  # type: ignore[call-arg]


def _measure_at(Q: Any, x: Any) -> Any:
    """Q, or a Conditional's measure at x."""
    return Q(*x) if callable(Q) else Q


class OfRow(RowFunction):
    """A function of Q(x) alone: of points (x…, y), or of one x."""

    def __call__(self, *x):
        return self.of_measure(_measure_at(self.Q, x[:-1] or x))

    @property
    def of_x(self):
        return True

    def over_row(self, row):
        return row.integrate(self.of_row)

    @abc.abstractmethod
    def of_measure(self, Q: Any) -> Float[Array, "*family"]:
        """The value of a measure."""

    @abc.abstractmethod
    def of_row(self, row: Any) -> Float[Array, "*family"]:
        """The value of a row of the kernel."""


@pytree
class LogDensity(RowFunction):
    """x ↦ log q(x) in nats, the density of Q against counting measure; for a Conditional, (x…, y) ↦ log q(y | x…).

    What ``log(Q)`` gives, and what a rule for it matches on, as ``rule(P, LogDensity, Q)``.

    Example:
        >>> import measure_xent as mx
        >>> isinstance(mx.log(mx.DiscreteUniform(6)), mx.LogDensity)
        True
    """

    Q: Any

    def __call__(self, *x):
        return self.Q.log_density(*x)

    def over_row(self, row):
        return -row.cross_entropy


@pytree
class LogPartition(OfRow):
    """x ↦ A(x), the log-partition of Q(x)."""

    Q: Any

    def of_measure(self, Q):
        return Q.log_partition

    def of_row(self, row):
        return row.log_partition


@pytree
class Confidence(OfRow):
    """x ↦ max_y q(y | x)."""

    Q: Any

    @property
    def asked(self):
        return ("mode",)

    def of_measure(self, Q):
        return jnp.exp(Q.log_density(Q.mode))

    def of_row(self, row):
        return jnp.exp(-row.surprisal)


@pytree
class Entropy(OfRow):
    """x ↦ H(Q(x)), in nats."""

    Q: Any

    @property
    def asked(self):
        return ("entropy",)

    def of_measure(self, Q):
        return -Q.expect(log(Q))

    def of_row(self, row):
        return row.entropy


@pytree
class Correct(RowFunction):
    """(x…, y) ↦ 1 where y is the mode of Q(x…), else 0."""

    Q: Any

    @property
    def asked(self):
        return ("mode",)

    def __call__(self, *x):
        *x, y = x
        return jnp.where(y == _measure_at(self.Q, x).mode, 1.0, 0.0)

    def over_row(self, row):
        return row.mass_at_mode


@pytree
class RadonNikodym(Integrand):
    """dP/dQ as a function: P(x)/Q(x), 0 where only Q has mass, +inf where only P has, NaN where neither has.

    Source: https://en.wikipedia.org/wiki/Radon–Nikodym_theorem. ``(P / Q) * Q`` is P where P ≪ Q.

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> ratio = mx.Categorical(probs=jnp.array([0.5, 0.5, 0.])) / mx.DiscreteUniform(3)
        >>> [float(ratio(x)) for x in range(3)]
        [1.5, 1.5, 0.0]
    """

    P: Any
    Q: Any

    def __call__(self, *x):
        # The difference of logarithms holds where both densities underflow.
        log_ratio, sign = self.log_abs(*x)
        return sign * jnp.exp(log_ratio)

    def log_abs(self, *x: Any) -> tuple[Float[Array, "*family"], Float[Array, "*family"]]:
        """(log |dP/dQ|, sign): a ratio of masses where either measure has an atom, else of densities."""
        own = self.P.log_abs_ratio(self.Q, *x)
        if own is not None:
            return own
        p, q = self.P.split(), self.Q.split()
        atoms, densities = (self._log_abs(*pair, x) for pair in zip(p, q, strict=True))
        if atoms is None or densities is None:
            return atoms or densities  # type: ignore[return-value]
        at_atom = jnp.isfinite(atoms[0]) | jnp.isinf(atoms[0])
        return tuple(jnp.where(at_atom, a, d) for a, d in zip(atoms, densities, strict=True))  # type: ignore[return-value]

    @staticmethod
    def _log_abs(P, Q, x):
        if P is None and Q is None:
            return None
        nothing = -jnp.inf, 1.0
        (log_p, sign_p), (log_q, sign_q) = (nothing if R is None else R.log_abs_density(*x) for R in (P, Q))
        return log_p - log_q, sign_p * sign_q

    @property
    def shape(self) -> tuple[int, ...]:
        shapes: list[tuple[int, ...]] = [self.P.shape, self.Q.shape]
        return jnp.broadcast_shapes(*shapes)

    def values(self, points, lead):
        return _family_values(self, points, lead)


@pytree
class LogRatio(Integrand):
    """x ↦ log dP/dQ(x), of measures with atoms and densities."""

    ratio: RadonNikodym

    def __call__(self, *x):
        log_ratio, sign = self.ratio.log_abs(*x)
        return jnp.where(sign < 0, jnp.nan, log_ratio)

    @property
    def shape(self):
        return self.ratio.shape

    def values(self, points, lead):
        return _family_values(self, points, lead)


def _family_values(f, points, lead):
    """The values of a function that broadcasts its family against points by itself: all but the atoms' axis."""
    if not f.shape:
        return Integrand.values(f, points, lead)
    return jax.vmap(lambda point: at(f, point), in_axes=lead - 1, out_axes=-1)(points)


def log(Q: Any) -> Integrand:
    """The log-density of a measure, a Markov kernel or a ratio P / Q, as a function that ``expect`` can look into.

    Args:
        Q: a Measure (density against counting measure), a Conditional (log(K) is a function of (x…, y)), or P / Q.

    Returns:
        An Integrand in nats: call it on points, add and multiply it, integrate it.

    Raises:
        TypeError: Q is none of these.

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> from measure_xent import log
        >>> Q = mx.Categorical(probs=jnp.array([0.5, 0.25, 0.25]))
        >>> log(Q)(jnp.array([0, 1])).tolist()
        [-0.6931, -1.3863]
        >>> float(-mx.Dirac(1).expect(log(Q)))
        1.3863
    """
    if isinstance(Q, RadonNikodym):
        # On one kind of space the logarithm of the ratio is the difference of two functions that rules know.
        return log(Q.P) - log(Q.Q) if Q.P.kind == Q.Q.kind and _unmixed(Q.P.kind) else LogRatio(Q)
    if hasattr(Q, "log_density"):
        return LogDensity(Q)
    raise TypeError(f"log(Q): Q must be a Measure, a Conditional or a ratio P / Q, got {type(Q).__name__}")


def _unmixed(kind: tuple) -> bool:
    """Whether nothing has both atoms and a density."""
    return all(map(_unmixed, kind)) if isinstance(kind[0], tuple) else True in kind


def log2(Q: Any) -> Integrand:
    """log(Q) in bits: see ``log``.

    Example:
        >>> import measure_xent as mx
        >>> float(-mx.Dirac(3).expect(mx.log2(mx.DiscreteUniform(8))))
        3.0
    """
    return log(Q) / math.log(2)


def log_partition(Q: Any) -> Integrand:
    """The log-partition A of Q = exp(logit − A), the log-sum-exp of the logits, as a function that ``expect`` looks into.

    Its square against the batch is the z-loss (Chowdhery et al. 2022, *PaLM*, §5), from the same pass as the loss. Arguments
    and errors are those of ``log``; Q is a softmax or sigmoid measure, or a Conditional of them.

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> from measure_xent import log, log_partition
        >>> P = mx.Empirical((jnp.zeros((2, 3)), jnp.array([0, 1])))
        >>> Q = mx.Conditional(mx.Categorical)
        >>> loss = -P.expect(log(Q) - 1e-4 * log_partition(Q) ** 2)
        >>> loss.item()  # log 3 + 1e-4 (log 3)²
        1.09873
    """
    return LogPartition(_checked("log_partition", Q))


def confidence(Q: Any) -> Integrand:
    """The probability of Q's mode, as a function that ``expect`` looks into. Arguments and errors are those of ``log``.

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> Q = mx.Categorical(jnp.array([[2., 0.], [0., 0.]]))
        >>> mx.Dirac(0).expect(mx.confidence(Q)).tolist()
        [0.8808, 0.5]
    """
    return Confidence(_checked("confidence", Q))


def correct(Q: Any) -> Integrand:
    """1 where a point is Q's mode, the first of several, else 0: its mean over a batch is the accuracy, its sum the count.

    Arguments and errors are those of ``log``. A dict or tuple of functions of one Q is integrated in one pass.

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> from measure_xent import correct, log
        >>> logits, labels = jnp.array([[2., 0.], [0., 1.], [3., 0.]]), jnp.array([0, 1, 1])
        >>> P, Q = mx.Empirical((logits, labels)), mx.Conditional(mx.Categorical)
        >>> P.expect({"loss": -log(Q), "accuracy": correct(Q)})
        {'accuracy': Array(0.666667, dtype=float32), 'loss': Array(1.162926, dtype=float32)}
    """
    return Correct(_checked("correct", Q))


def _checked(name: str, Q: Any) -> Any:
    if not hasattr(Q, "log_density"):
        raise TypeError(f"{name}(Q): Q must be a Measure or a Conditional, got {type(Q).__name__}")
    return Q


def log_abs(density: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(log|d|, sign d) of a density that may be signed."""
    return jnp.log(jnp.abs(density)), jnp.where(density < 0, -1, 1)
