"""Laws on classes by logits or probabilities, and integrals against them."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._forms.normal_form import NormalForm
from .._integrands.density import LogDensity, relative_to
from .._integrands.integrand import Integrand
from .._integrands.rules import rule
from .._kernels import sigmoid
from .._kernels.checks import check_values, real_array
from .._kernels.classes import Classes, accumulator, class_index
from .._kernels.gumbel import Keys, draws
from .._kernels.null import values_at, where_supported
from .._kernels.ratio import log_ratio_of_softmaxes
from .._kernels.scaled import Ratio, ScaledNumber
from .._kernels.softmax import Rows, cross_entropy, log_softmax, rows, softmax
from .._kernels.target import Target, mass, mass_at
from .._program import program
from .._pytree import pytree, set_fields
from .measure import Measure
from .target import check_labels, masses, materialised_target, outcomes


@pytree
class Categorical(Measure):
    """The softmax measure of logits, or the distribution with given probabilities, on the classes 0..V−1.

    Leading axes of the parameter index a family, its last axis the classes. A logit −inf is a class of probability 0;
    a row of nothing but −inf, or of nothing but probabilities 0, is the null measure. In half precision, values are computed in
    float32.

    Args:
        logits: unnormalised log-probabilities, any finite or infinite numbers. Python's and NumPy's that sum to 1 are warned
            of: numpyro takes a first argument for probabilities.
        probs: instead of logits, non-negative numbers that sum to 1 over the last axis (a chex value assertion).

    Raises:
        TypeError: neither or both are given.
        ValueError: there is no class axis.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> labels, logits = jnp.array([0, 2]), jnp.array([[20., 0., 0.], [0., 0., 0.]])
        >>> mx.cross_entropy(mx.Dirac(labels), mx.Categorical(logits))
        Array([4.12231e-09, 1.09861e+00], dtype=float32)
    """

    logits: Float[Array, "*family V"] | None = None
    probs: Float[Array, "*family V"] | None = None

    def __post_init__(self):
        name = _one_of("Categorical", self.logits, self.probs)
        array = real_array(f"Categorical({name})", getattr(self, name), floating=True)
        if array.ndim == 0 or array.shape[-1] == 0:
            raise ValueError(f"Categorical({name}): needs a last axis of at least one class, got shape {array.shape}")
        sum_to_one = lambda x: np.all((x >= 0) & (abs(x.sum(-1, keepdims=True) - 1) < 1e-3))
        _look_like_probabilities("Categorical", self.logits, sum_to_one)
        if name == "probs":
            p = array.astype(accumulator(array.dtype))
            tolerance = 8 * jnp.finfo(array.dtype).eps * array.shape[-1] ** 0.5
            fine = jnp.all(p >= 0) & jnp.all((jnp.abs(p.sum(-1) - 1) <= tolerance) | (p.sum(-1) == 0))
            check_values(fine, "Categorical(probs): probabilities must be non-negative and sum to 1 over the last axis")
        set_fields(self, **{name: array})

    @property
    def classes(self) -> int:
        """V, the number of classes."""
        return self._parameter.shape[-1]

    @property
    def shape(self):
        return self._parameter.shape[:-1]

    @property
    def mass(self):
        nothing = 0 if self.logits is None else -jnp.inf
        return jnp.where(jnp.all(self._parameter == nothing, -1), 0.0, 1.0)

    @property
    def log_partition(self) -> Float[Array, "*family"]:
        """A in log q = logit − A, the log-sum-exp of the logits, in nats; 0 for probabilities."""
        return jnp.zeros(self.shape) if self.logits is None else rows(self.logits, Target()).log_partition

    def closest_to(self, P):
        probs = masses(P, self.classes, "Categorical")
        return Categorical(probs=probs) if self.logits is None else Categorical(jnp.log(probs))

    @property
    def mode(self) -> Int[Array, "*family"]:
        """The most probable class, the first of several."""
        return jnp.argmax(self._parameter, axis=-1).astype(jnp.int32)

    def heaviest(self, k: int) -> Int[Array, "*family k"]:
        """The k most probable classes, those first."""
        return Classes.of(self._parameter).heaviest(self._parameter, k)

    @program
    def sample(self, key, shape=()):
        z = self._parameter if self.probs is None else jnp.log(self.probs)
        at = draws(Classes.of(z), z, Keys.of(key, self.shape), math.prod(shape))
        return jnp.moveaxis(at, -1, 0).reshape(*shape, *self.shape)

    def forms(self):
        parameter = self._parameter.astype(accumulator(self._parameter.dtype))
        probs = parameter if self.logits is None else softmax(parameter)
        return (NormalForm(dense=probs, classes=self.classes),)

    def scaled_density(self, *x):
        (x,) = x
        x = class_index(x)
        if self.logits is None:
            return ScaledNumber.of(self._probability(x))
        # One log-softmax serves all the points that vmap may bring.
        z = self.logits.astype(accumulator(self.logits.dtype))
        log_p, inside = self._entry(log_softmax(Classes.of(z), z), x), (x >= 0) & (x < self.classes)
        factor = jnp.where(inside, 1, where_supported(inside, jnp.exp(log_p)))
        return ScaledNumber(jnp.where(inside, log_p, 0), factor)

    def log_density(self, *x):
        if self.logits is None:
            return ScaledNumber(*self.scaled_density(*x)).log
        (x,) = x
        x = class_index(x)
        target = Target(x[..., None], jnp.ones((*x.shape, 1), accumulator(self.logits.dtype)))
        return -cross_entropy(self.logits, target)

    def _probability(self, x):
        probs = self.probs.astype(accumulator(self.probs.dtype))
        return where_supported((x >= 0) & (x < self.classes), self._entry(probs, x))

    @staticmethod
    def _entry(row, x):
        return Classes.of(row).take(row, x[..., None])[..., 0]

    @property
    def _parameter(self) -> Any:
        return self.probs if self.logits is None else self.logits


@relative_to.register(Categorical)
def _of_softmaxes(P: Categorical, Q: Measure, *x: Any) -> Ratio | None:
    if not isinstance(Q, Categorical) or P.logits is None or Q.logits is None or P.classes != Q.classes:
        return None
    ratio = Ratio.of(P.scaled_density(*x), Q.scaled_density(*x))
    z, w = (R.logits.astype(accumulator(R.logits.dtype)) for R in (P, Q))
    return ratio.with_log(P._entry(log_ratio_of_softmaxes(z, w), class_index(x[0])))


@pytree
class Bernoulli(Measure):
    """The measure on {0, 1} with Q({1}) = sigmoid(logits), or with given probabilities. Multi-label targets are families.

    All axes of the parameter index the family. A logit ±inf is a certain outcome.

    Args:
        logits: log-odds of 1, any finite or infinite numbers. Python's and NumPy's numbers between 0 and 1 are warned of:
            numpyro takes a first argument for probabilities.
        probs: instead of logits, probabilities of 1 in [0, 1] (a chex value assertion); a soft label is one.

    Raises:
        TypeError: neither or both are given.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> labels, logits = jnp.array([1, 0, 1]), jnp.array([2., -40., jnp.inf])
        >>> mx.cross_entropy(mx.Dirac(labels), mx.Bernoulli(logits))
        Array([1.26928e-01, 4.24835e-18, 0.00000e+00], dtype=float32)
        >>> float(mx.cross_entropy(mx.Bernoulli(probs=0.75), mx.Bernoulli(0.)))  # log 2
        0.693147
    """

    logits: Float[Array, "*family"] | None = None
    probs: Float[Array, "*family"] | None = None

    def __post_init__(self):
        name = _one_of("Bernoulli", self.logits, self.probs)
        array = real_array(f"Bernoulli({name})", getattr(self, name), floating=True)
        _look_like_probabilities("Bernoulli", self.logits, lambda x: np.all((x > 0) & (x < 1)))
        if name == "probs":
            check_values(jnp.all((array >= 0) & (array <= 1)), "Bernoulli(probs): probabilities must be in [0, 1]")
        set_fields(self, **{name: array})

    @property
    def shape(self):
        return self._parameter.shape

    @property
    def mass(self):
        return jnp.ones(self.shape)

    @property
    def log_partition(self) -> Float[Array, "*family"]:
        """A in log q(y) = y · logit − A, the softplus of the logit, in nats; 0 for probabilities."""
        return jnp.zeros(self.shape) if self.logits is None else -self.log_density(jnp.zeros((), int))

    def closest_to(self, P):
        p0, p1 = jnp.moveaxis(masses(P, 2, "Bernoulli"), -1, 0)
        return Bernoulli(probs=p1) if self.logits is None else Bernoulli(jnp.log(p1) - jnp.log(p0))

    @property
    def mode(self) -> Int[Array, "*family"]:
        """The more probable outcome, 0 of both."""
        return jnp.where(self._parameter > (0.5 if self.logits is None else 0), 1, 0)

    def forms(self):
        return (NormalForm(dense=jnp.stack(self._masses(), axis=-1), classes=2),)

    def scaled_density(self, *x):
        (x,) = x
        x = class_index(x)
        if self.logits is None:
            p0, p1 = self._masses()
            return ScaledNumber.of(where_supported((x == 0) | (x == 1), jnp.where(x == 1, p1, p0)))
        z = self.logits.astype(accumulator(self.logits.dtype))
        outcomes = (x == 0, x == 1, (x != 0) & (x != 1))
        return ScaledNumber.exp(-sigmoid.cross_entropy(z, *(a.astype(z.dtype) for a in outcomes)))

    @property
    def _parameter(self) -> Any:
        return self.probs if self.logits is None else self.logits

    def _masses(self):
        if self.logits is None:
            p = self.probs.astype(accumulator(self.probs.dtype))
            return 1 - p, p
        z = self.logits.astype(accumulator(self.logits.dtype))
        return jax.nn.sigmoid(-z), jax.nn.sigmoid(z)


@rule(Measure, LogDensity, Bernoulli)
def log_sigmoid_against_target(P: Measure, f: LogDensity) -> Any:
    """∫ log σ(±z) dP, from the masses that P gives the two outcomes."""
    Q = f.Q
    if Q is None or Q.logits is None:
        return NotImplemented
    z = Q.logits.astype(accumulator(Q.logits.dtype))
    targets = (outcomes(materialised_target(form, 2, "Bernoulli"), z.dtype) for form in P.forms())
    return functools.reduce(jnp.add, (-sigmoid.cross_entropy(z, *masses) for masses in targets))


@rule(Measure, Integrand, Categorical)
def softmax_rows_against_target(P: Measure, f: Any) -> Any:
    """∫ f dP for functions of softmax(z), all from one kernel: log q is the pairing of the logits with P, less A times
    P's mass."""
    Q = f.model
    if Q is None or Q.logits is None:
        return NotImplemented
    total: Any = None
    for form in P.forms():
        check_labels(form, Q.shape, Q.classes)
        against = materialised_target(form, Q.classes, "Categorical")
        part = f.integrate_row(Row.of(against, rows(Q.logits, against, f.row_statistics), Classes.of(Q.logits)))
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total


class Row(NamedTuple):
    """What integrands over rows read: the kernel's figures, and the target's masses."""

    cross_entropy: Float[Array, "*family"]
    log_partition: Float[Array, "*rows"]
    mass: Float[Array, "*family"]  # of the target
    mode: Int[Array, "*rows"] | None  # of Q
    surprisal: Float[Array, "*rows"] | None  # of the mode
    mass_at_mode: Float[Array, "*family"] | None
    entropy: Float[Array, "*rows"] | None

    @classmethod
    def of(cls, target: Target, figures: Rows, classes: Classes, mass_at_mode: Any = None) -> "Row":
        total, at_mode = mass(target, classes), mass_at_mode
        undefined = jnp.isnan(figures.log_partition)  # a NaN logit
        if at_mode is None and figures.mode is not None:
            at_mode, undefined = mass_at(target, figures.mode, classes), figures.mode >= classes.count
        if at_mode is not None:
            at_mode = jnp.where(undefined & (total != 0), jnp.nan, at_mode)
        total = jnp.broadcast_to(total, figures.cross_entropy.shape)
        return cls(
            figures.cross_entropy,
            figures.log_partition,
            total,
            figures.mode,
            figures.surprisal,
            at_mode,
            figures.entropy,
        )

    def integrate(self, function: Callable[["Row"], Any]) -> Any:
        """The integral of a function of the row alone, 0 against a null target."""

        def stand_in(absent, row):  # a null row's figures may be anything
            clean = lambda x: None if x is None else jnp.where(absent, 0, x)
            figures = {"log_partition": row.log_partition, "surprisal": row.surprisal, "entropy": row.entropy}
            return (row._replace(**{name: clean(x) for name, x in figures.items()}),)

        values = values_at(function, self.mass, (self,), stand_in)
        return jax.tree.map(lambda value: self.mass * value, values)


def _look_like_probabilities(name: str, logits: Any, look: Callable[[np.ndarray], Any]) -> None:
    """Warns of what numpyro would take for probabilities, where the host knows it: an array of JAX's may not be there."""
    numbers = isinstance(logits, list | tuple) and all(isinstance(x, int | float) for x in logits)
    known = numbers or isinstance(logits, int | float | np.ndarray)
    if known and 0 < np.size(logits) <= 1 << 16 and look(np.asarray(logits, float)):
        warnings.warn(
            f"{name}({logits!r}): taken as logits; these look like probabilities, which are probs={logits!r}. "
            "A jnp.array of logits is taken as it is",
            stacklevel=5,
        )


def _one_of(name, logits, probs):
    if (logits is None) == (probs is None):
        raise TypeError(f"{name}(logits, *, probs): give exactly one of logits and probs")
    return "logits" if probs is None else "probs"
