"""Measures on the classes 0..V−1, and point masses."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from .._forms.normal_form import Form, NormalForm
from .._forms.smooth_form import Smooth
from .._integrands.density import LogDensity
from .._integrands.integrand import Integrand
from .._integrands.rules import rule
from .._kernels import sigmoid
from .._kernels.checks import check_values, real_array
from .._kernels.classes import Classes, accumulator, class_index
from .._kernels.null import values_at, where_supported
from .._kernels.ratio import log_ratio_of_softmaxes
from .._kernels.scaled import Ratio, ScaledNumber
from .._kernels.softmax import Rows, cross_entropy, log_softmax, rows, softmax
from .._kernels.target import Target, expand, mass, mass_at
from .._pytree import pytree, set_fields, static
from .measure import Measure


@pytree
class Dirac(Measure):
    """δ_x, the unit mass at a point; an array of points is a family, one measure each.

    Args:
        point: the points; all axes are the family's. Against a Categorical they are class labels, integers; a one-hot row is
            ``Discrete(weights=row)``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.Dirac(jnp.array([3, 1])).expect(lambda x: x**2).tolist()
        [9.0, 1.0]
    """

    point: Num[Array, "*family"]

    def __post_init__(self):
        set_fields(self, point=real_array("Dirac(point)", self.point))

    @property
    def shape(self):
        return self.point.shape

    def forms(self):
        unit = jnp.broadcast_to(jnp.asarray(1.0), (*self.shape, 1))
        return (NormalForm(self.point[..., None], unit, certain=True),)


@pytree
class Discrete(Measure):
    """Σ_j w_j δ_{i_j}: finitely many atoms, the last axis; leading axes index a family. A sparse teacher is one.

    Args:
        indices: the atoms, [*family, k]; repeated atoms add up. Without them the atoms are the classes 0..k−1.
        weights: their masses, [*family, k], of any sum; a negative one makes a signed measure.

    Raises:
        TypeError: there are no weights.
        ValueError: the shapes do not broadcast, or there is no atom.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> teacher = mx.Discrete(jnp.array([7, 2]), jnp.array([0.75, 0.25]))
        >>> mx.cross_entropy(teacher, mx.Categorical(jnp.zeros(10))).item()  # log 10
        2.3026
        >>> mx.Discrete(weights=jnp.array([1., 2., 4.])).mass.item()
        7.0
    """

    indices: Num[Array, "*family k"] | None = None
    weights: Float[Array, "*family k"] | None = None

    def __post_init__(self):
        if self.weights is None:
            raise TypeError("Discrete(indices, weights): weights are missing, the masses of the atoms")
        weights = real_array("Discrete(weights)", self.weights, floating=True)
        indices = None if self.indices is None else real_array("Discrete(indices)", self.indices)
        for name, array in (("indices", indices), ("weights", weights)):
            if array is not None and array.ndim == 0:
                raise ValueError(f"Discrete({name}): needs a last axis for the atoms, got a scalar")
        if weights.shape[-1] == 0:
            raise ValueError("Discrete(weights): an empty list of atoms; the null measure is 0 * P")
        if indices is not None and indices.shape[-1] != weights.shape[-1]:
            raise ValueError(f"Discrete: {indices.shape[-1]} indices but {weights.shape[-1]} weights on the last axis")
        set_fields(self, indices=indices, weights=weights)
        try:
            _ = self.shape
        except ValueError:
            raise ValueError(
                f"Discrete: indices of shape {indices.shape} and weights of shape {weights.shape} do not broadcast"
            ) from None

    @property
    def shape(self):
        return jnp.broadcast_shapes(() if self.indices is None else self.indices.shape, self.weights.shape)[:-1]

    def forms(self):
        weights = self.weights.astype(accumulator(self.weights.dtype))
        if self.indices is None:
            return (NormalForm(dense=weights, classes=weights.shape[-1]),)
        shape = jnp.broadcast_shapes(self.indices.shape, self.weights.shape)
        return (NormalForm(jnp.broadcast_to(self.indices, shape), jnp.broadcast_to(weights, shape)),)


@pytree
class Counting(Measure):
    """Counting measure on the classes 0..V−1: mass 1 each. Its integral is the sum.

    Args:
        classes: V, a positive int.

    Examples:
        >>> import measure_xent as mx
        >>> float(mx.Counting(4).expect(lambda y: y**2))
        14.0
    """

    classes: int = static()

    def __post_init__(self):
        _check_classes("Counting(classes)", self.classes)

    @property
    def shape(self):
        return ()

    def forms(self):
        return (NormalForm(background=jnp.asarray(1.0), classes=self.classes, certain=True),)


@pytree
class DiscreteUniform(Measure):
    """The uniform distribution on the classes 0..V−1. Label smoothing mixes it in.

    Args:
        classes: V, a positive int.

    Examples:
        >>> import measure_xent as mx
        >>> smoothed = 0.9 * mx.Dirac(2) + 0.1 * mx.DiscreteUniform(5)
        >>> smoothed.expect(lambda y: y == 2).item()
        0.92
    """

    classes: int = static()

    def __post_init__(self):
        _check_classes("DiscreteUniform(classes)", self.classes)

    @property
    def shape(self):
        return ()

    def forms(self):
        return (NormalForm(background=jnp.asarray(1 / self.classes), classes=self.classes, certain=True),)


@pytree
class Categorical(Measure):
    """The softmax measure of logits, or the distribution with given probabilities, on the classes 0..V−1.

    Leading axes of the parameter index a family, its last axis the classes. A logit −inf is a class of probability 0;
    a row of nothing but −inf, or of nothing but probabilities 0, is the null measure. In half precision, values are computed in
    float32.

    Args:
        logits: unnormalised log-probabilities, any finite or infinite numbers.
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
            return super().log_density(*x)
        (x,) = x
        x = class_index(x)
        target = Target(x[..., None], jnp.ones((*x.shape, 1), accumulator(self.logits.dtype)))
        return -cross_entropy(self.logits, target)

    def relative_to(self, other, *x):
        if not isinstance(other, Categorical) or self.logits is None or other.logits is None:
            return None
        if self.classes != other.classes:
            return None
        ratio = Ratio.of(self.scaled_density(*x), other.scaled_density(*x))
        z, w = (R.logits.astype(accumulator(R.logits.dtype)) for R in (self, other))
        return ratio.with_log(self._entry(log_ratio_of_softmaxes(z, w), class_index(x[0])))

    def _probability(self, x):
        probs = self.probs.astype(accumulator(self.probs.dtype))
        return where_supported((x >= 0) & (x < self.classes), self._entry(probs, x))

    @staticmethod
    def _entry(row, x):
        return Classes.of(row).take(row, x[..., None])[..., 0]

    @property
    def _parameter(self) -> Any:
        return self.probs if self.logits is None else self.logits


@pytree
class Bernoulli(Measure):
    """The measure on {0, 1} with Q({1}) = sigmoid(logits), or with given probabilities. Multi-label targets are families.

    All axes of the parameter index the family. A logit ±inf is a certain outcome.

    Args:
        logits: log-odds of 1, any finite or infinite numbers.
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
    targets = (outcomes(written_target(form, 2, "Bernoulli"), z.dtype) for form in P.forms())
    return functools.reduce(jnp.add, (-sigmoid.cross_entropy(z, *masses) for masses in targets))


def outcomes(target: Target, dtype: jnp.dtype) -> tuple[Array, Array, Array]:
    """The masses of 0, of 1, and of anything else."""
    none = jnp.zeros((), dtype)
    p0, p1, other = none, none, none
    if target.weights is not None:
        weights = target.weights.astype(dtype)
        at = lambda outcome: jnp.sum(jnp.where(outcome, weights, 0), axis=-1)
        p0, p1 = at(target.indices == 0), at(target.indices == 1)
        other = jnp.sum(jnp.where((target.indices < 0) | (target.indices > 1), jnp.abs(weights), 0), axis=-1)
    if target.background is not None:
        p0, p1 = p0 + target.background.astype(dtype), p1 + target.background.astype(dtype)
    if target.dense is not None:
        p0, p1 = p0 + target.dense[..., 0].astype(dtype), p1 + target.dense[..., 1].astype(dtype)
    return p0, p1, other


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
        against = written_target(form, Q.classes, "Categorical")
        part = f.over_row(Row.of(against, rows(Q.logits, against, f.asked), Classes.of(Q.logits)))
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total


def check_labels(form: Form, rows: tuple[int, ...], classes: int) -> None:
    """Refuses one-hot rows in place of labels, where they would broadcast with as many rows of logits as there are classes."""
    if rows and isinstance(form, NormalForm) and form.points is not None and form.family == (*rows, classes):
        raise ValueError(
            f"point masses at labels of shape {form.family} against {rows} measures on {classes} classes: one-hot rows are "
            f"Discrete(weights=rows), and labels of that shape take logits of shape {(*rows, 1, classes)}"
        )


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
    def of(cls, target: Target, figures: Rows, classes: Classes) -> "Row":
        total, at_mode = mass(target, classes), None
        if figures.mode is not None:
            undefined = (figures.mode >= classes.count) & (total != 0)  # a NaN logit
            at_mode = jnp.where(undefined, jnp.nan, mass_at(target, figures.mode, classes))
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


def masses(P: Measure, classes: int, name: str) -> Float[Array, "*family V"]:
    """P's share of each class; they sum to less than 1 where P has mass on none."""
    vectors = [expand(Classes(classes), *written_target(form, classes, name)) for form in P.forms()]
    mass, vector = (functools.reduce(jnp.add, parts) for parts in zip(*vectors, strict=True))
    return vector / jnp.where(mass == 0, jnp.nan, mass)


def target(form: Form, classes: int, name: str) -> Target:
    """A form as the kernels take it, but for its deferred parts, checked against the number of classes."""
    if isinstance(form, Smooth):
        raise TypeError(
            f"log({name}) is a function of a class, but P has a density: {type(form.law).__name__} is not on classes"
        )
    if not isinstance(form, NormalForm) or isinstance(form.points, tuple | dict | list):
        raise TypeError(f"log({name}) is a function of a class, but P is a measure on tuples; take a Conditional")
    if form.classes not in (None, classes):
        hint = "; V counts the classes on all devices, of axis_name" if name == "LinearSoftmax" else ""
        raise ValueError(f"P is a measure on {form.classes} classes, Q = {name} on {classes}{hint}")
    points = None if form.weights is None else class_index(form.points)
    if points is not None and points.ndim != form.weights.ndim:
        raise ValueError(
            f"log({name}) is a function of one class, but the points of P have shape {points.shape[form.weights.ndim :]}: "
            "labels are integers with no axis of their own"
        )
    return Target(points, form.weights, form.background, form.dense)


def written_target(form: Form, classes: int, name: str) -> Target:
    """The same with every dense part written out."""
    return target(form.written() if isinstance(form, NormalForm) else form, classes, name)


def _one_of(name, logits, probs):
    if (logits is None) == (probs is None):
        raise TypeError(f"{name}(logits, *, probs): give exactly one of logits and probs")
    return "logits" if probs is None else "probs"


def _check_classes(name, classes):
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise ValueError(f"{name}: a positive int, got {classes!r}")
