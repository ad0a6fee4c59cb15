"""Measures on tuples: product, joint, bind, and what Bayes and Chapman make of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._conditional import AbstractConditional
from ._density import LogDensity
from ._dispatch import integrate, rule
from ._integral import Integral
from ._integrand import Integrand, as_integrand
from ._kernels.null import null_safe_product
from ._measure import Lowered, Measure, Scaled, Weighted, enumerable, family_of, pushforward
from ._measures.laws import Always, Blank, MassOf, Nested, draw_of
from ._normal_form import Disintegration, Form
from ._pytree import pytree, static
from ._scaled import ScaledNumber
from ._smooth_form import Smooth, is_smooth


def product(P: Measure, Q: Measure) -> Measure:
    """P ⊗ Q on tuples, the coordinates of P and then those of Q; families broadcast. Source: Fubini's theorem.

    Raises:
        TypeError: P or Q is not a Measure.
        ValueError: the families do not broadcast.

    Examples:
        >>> import measure_xent as mx
        >>> dice = mx.product(mx.DiscreteUniform(6), mx.DiscreteUniform(6))
        >>> float(dice.expect(lambda a, b: a + b + 2))
        7.0
    """
    _check_measure("product(P, Q): P", P)
    _check_measure("product(P, Q): Q", Q)
    _check_here("product(P, Q): Q", Q)
    return ProductMeasure(P, Q)


def joint(P: Measure, K: AbstractConditional | Measure) -> Measure:
    """P ⊗ K on tuples (x…, y): x from P, then y from K given x.

    Args:
        P: the measure of x.
        K: a Conditional, or a family of measures, one an atom of P: its axes are P's family axes, then the axes of P's
            atoms (of an Empirical: of its weights).

    Raises:
        ValueError: the axes of K are not those of P's atoms.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> hidden, labels = jnp.eye(3)[:2], jnp.array([0, 1])
        >>> smoothed = 0.9 * mx.Dirac(labels) + 0.1 * mx.DiscreteUniform(3)
        >>> P = mx.joint(mx.Empirical(hidden), smoothed)
        >>> mx.cross_entropy(P, mx.LinearSoftmax(jnp.eye(3))).item()
        0.6181
    """
    return Joint(*_checked(P, K))


def bind(P: Measure, K: AbstractConditional | Measure) -> Measure:
    """∫ K(x) dP(x), the law of y: the mixture of K over P, the last coordinate of ``joint(P, K)``.

    Source: the bind of the Giry monad, https://en.wikipedia.org/wiki/Giry_monad. Arguments and errors are those of ``joint``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> coin = mx.Conditional(lambda x: mx.Categorical(probs=jnp.where(x == 0, jnp.array([.5, .5]), jnp.array([.1, .9]))))
        >>> mx.bind(mx.DiscreteUniform(2), coin).expect(lambda y: y).item()
        0.7
    """
    P, K = _checked(P, K)
    known = NotImplemented if isinstance(K, Measure) else K.after(P)
    return Bind(Joint(P, K)) if known is NotImplemented else known


def marginal(P: Measure, *coordinates: int) -> Measure:
    """The law of some coordinates of a measure on tuples.

    Examples:
        >>> import measure_xent as mx
        >>> dice = mx.product(mx.DiscreteUniform(6), mx.DiscreteUniform(2))
        >>> mx.marginal(dice, 1).expect(lambda coin: coin).item()
        0.5
    """
    _check_measure("marginal(P): P", P)
    n = P.coordinates
    if not coordinates or not all(isinstance(i, int) and -n <= i < n for i in coordinates):
        raise ValueError(f"marginal(P, *coordinates): numbers of P's {n} coordinates, from 0, got {coordinates}")
    return _marginal(P, tuple(i % n for i in coordinates))


def _marginal(P: Measure, coordinates: tuple[int, ...]) -> Measure:
    """By the structure of what has a density, which an image would not have; any other by its atoms."""
    if coordinates == tuple(range(P.coordinates)):
        return P
    match P:
        case ProductMeasure(P=A, Q=B):
            n = A.coordinates
            ours, theirs = tuple(i for i in coordinates if i < n), tuple(i - n for i in coordinates if i >= n)
            if (*ours, *(i + n for i in theirs)) == coordinates:
                parts: Any = [_marginal(R, own) if own else R.mass for R, own in ((A, ours), (B, theirs))]
                return product(*parts) if ours and theirs else parts[0] * parts[1]
        case Joint(P=A, K=AbstractConditional() as K) if not enumerable(P):
            if coordinates == (A.coordinates,):
                return bind(A, K)
            if max(coordinates) < A.coordinates:
                return _marginal(A.reweight(MassOf(K)), coordinates)
    return pushforward(Coordinates(coordinates), P)


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
    _check_measure("posterior(P, K): P", P)
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


def _checked(P, K):
    _check_measure("joint(P, K): P", P)
    if not isinstance(K, AbstractConditional | Measure):
        raise TypeError(
            f"joint(P, K): K must be a Conditional or a family of measures such as Dirac(labels), got {type(K).__name__}"
        )
    if isinstance(K, Measure):
        _check_here("joint(P, K): K", K)
        axes = (*P.shape, *P.atoms)
        if len(K.shape) > len(axes) or any(k not in (1, n) for k, n in zip(K.shape[::-1], axes[::-1], strict=False)):
            raise ValueError(
                f"joint(P, K): K needs one measure for each atom of P, axes {axes}, but is a family {K.shape}; "
                "if a batch has more than one axis, weights of its shape name them all, such as weights=jnp.ones((B, T))"
            )
    return P, K


def _check_measure(name, P):
    if not isinstance(P, Measure):
        raise TypeError(f"{name} must be a Measure, got {type(P).__name__}")


def _check_here(name, Q):
    if Q.mesh_axes:
        raise ValueError(f"{name} is a sum over the devices of {sorted(Q.mesh_axes)}, which only P may be")


@pytree
class ProductMeasure(Measure):
    """P ⊗ Q."""

    P: Measure
    Q: Measure

    def __post_init__(self):
        family_of(self.P, self.Q)

    @property
    def shape(self):
        return jnp.broadcast_shapes(self.P.shape, self.Q.shape)

    @property
    def coordinates(self):
        return self.P.coordinates + self.Q.coordinates

    @property
    def mesh_axes(self):
        return self.P.mesh_axes

    def forms(self):
        rank = len(self.shape)
        atoms, laws = _sorted(self.P, rank)
        return tuple(
            Disintegration(x, weights, _for_every_atom(q, rank), certain)
            for x, weights, certain in atoms
            for q in self.Q.forms()
        ) + tuple(_nested(form, Always(self.Q, rank), self.shape) for form in laws)

    @property
    def mass(self):
        return jnp.broadcast_to(self.P.mass * self.Q.mass, self.shape)

    @property
    def kind(self):
        return self.P.kind, self.Q.kind

    def ratio_to(self, other, *x):
        n = self.P.coordinates
        if not isinstance(other, ProductMeasure) or other.P.coordinates != n:
            return None
        return (self.P / other.P).at(*x[:n]).times((self.Q / other.Q).at(*x[n:]))

    def scaled_density(self, *x):
        n = self.P.coordinates
        return _product(self.P.scaled_density(*x[:n]), self.Q.scaled_density(*x[n:]))


def _product(a: tuple, b: tuple) -> ScaledNumber:
    return ScaledNumber(*a).times(ScaledNumber(*b))


def _at(K: Any, x: tuple) -> Measure:
    return K(*x)


@pytree
class Joint(Measure):
    """P ⊗ K."""

    P: Measure
    K: AbstractConditional | Measure

    @property
    def shape(self):
        return self.P.shape

    @property
    def coordinates(self):
        return self.forms()[0].coordinates

    @property
    def mesh_axes(self):
        return self.P.mesh_axes

    def forms(self):
        rank = len(self.shape)
        atoms, laws_of_x = _sorted(self.P, rank)
        if isinstance(self.K, Measure):
            if laws_of_x:
                raise ValueError(
                    f"joint(P, K): P = {type(self.P).__name__} has no list of atoms to index a family; K is a Conditional"
                )
            (p,) = atoms  # a measure of several forms has no one list of atoms to index
            laws = [(p, _one_axis(form, (*self.P.shape, *self.P.atoms), rank)) for form in self.K.forms()]
        else:
            laws = [(p, form.at_rank(rank + 1)) for p in atoms for form in self.K.family(p[0], p[1].ndim).forms()]
        rows = tuple(Disintegration(x, weights, form, certain) for (x, weights, certain), form in laws)
        return rows + tuple(_nested(form, self.K, self.shape) for form in laws_of_x)

    @property
    def kind(self):
        return (False, True) if isinstance(self.K, Measure) else (self.P.kind,)

    def ratio_to(self, other, *x):
        if not isinstance(other, Joint) or any(isinstance(K, Measure) for K in (self.K, other.K)):
            return None
        n = self.P.coordinates
        return (self.P / other.P).at(*x[:n]).times((_at(self.K, x[:n]) / _at(other.K, x[:n])).at(*x[n:]))

    def scaled_density(self, *x):
        if isinstance(self.K, Measure):
            return super().scaled_density(*x)
        n = self.P.coordinates
        return _product(self.P.scaled_density(*x[:n]), self.K(*x[:n]).scaled_density(*x[n:]))


@pytree
class Coordinates:
    """(x₀, …) ↦ some of them."""

    which: tuple[int, ...] = static()

    def __call__(self, *x: Any) -> Any:
        chosen: list[Any] = [x[i] for i in self.which]
        return tuple(chosen) if len(chosen) > 1 else chosen[0]


@pytree
class Composition(AbstractConditional):
    """x ↦ ∫ L(y) K(x, dy)."""

    K: AbstractConditional
    L: AbstractConditional

    def __call__(self, *x):
        return bind(self.K(*x), self.L)


@pytree
class Posterior(AbstractConditional):
    """y ↦ P weighted by the likelihood of y."""

    P: Measure
    K: AbstractConditional

    def __call__(self, *y):
        (y,) = y
        weighted = Weighted(MixtureDensity(self.K, y, self._greatest(y)), self.P)
        return Scaled(1 / weighted.mass, weighted)  # NaN, not null, where no likelihood is left

    def _greatest(self, y):
        """The greatest log-likelihood among atoms, to be divided by, so that not all of them underflow."""
        atoms, _ = _sorted(self.P, len(self.P.shape))
        logs = [ScaledNumber(*self.K.family(points, w.ndim).scaled_density(y)).log for points, w, _ in atoms]
        greatest = [jnp.where(w == 0, -jnp.inf, log_k).max(-1) for (_, w, _), log_k in zip(atoms, logs, strict=True)]
        return jax.lax.stop_gradient(functools.reduce(jnp.maximum, greatest)) if atoms else jnp.zeros(())


@pytree
class MixtureDensity(Integrand):
    """x ↦ K(x)(y) / exp(scale)."""

    K: Any
    y: Any
    log_scale: Any

    def __call__(self, *x):
        return self._relative(self.K(*x).scaled_density(self.y), self.log_scale)

    @property
    def shape(self):
        return jnp.shape(self.log_scale)

    @property
    def marks(self):
        """Where the likelihood may have its bulk: near y, if K is noise."""
        return (self.y,) if jnp.ndim(self.y) == 0 else ()

    def values(self, points, lead):
        density = as_integrand(lambda *x: tuple(self.K(*x).scaled_density(self.y))).values(points, lead)
        return self._relative(density, jnp.asarray(self.log_scale)[..., None])

    @staticmethod
    def _relative(density, log_scale):
        log_density, factor = density
        return factor * jnp.exp(log_density - jnp.where(jnp.isfinite(log_scale), log_scale, 0))


@pytree
class Bind(Measure):
    """The law of the last coordinate of a joint."""

    joint: Joint

    @property
    def shape(self):
        return self.joint.shape

    @property
    def mesh_axes(self):
        return self.joint.mesh_axes

    def forms(self):
        return tuple(part for form in self.joint.forms() for part in form.marginal())

    def split(self):
        return (None, self) if self.has_density else (self, None)

    @property
    def has_density(self) -> bool:
        """Whether y has one, which it may not have where x has."""
        K = self.joint.K
        if isinstance(K, Measure) or enumerable(self.joint):
            return not enumerable(self.joint)
        x, _ = draw_of(self.joint.P, Blank())
        return not enumerable(K(*(x if isinstance(x, tuple) else (x,))))

    def scaled_density(self, *x):
        if isinstance(self.joint.K, Measure) or enumerable(self.joint):
            return super().scaled_density(*x)
        y, event = jnp.asarray(x[0]), max(getattr(form, "event_rank", 0) for form in self._laws_of_y())
        density = self._one_each
        for _ in range(jnp.ndim(y) - event - len(self.shape)):  # points of each member
            density = jax.vmap(density, in_axes=-1 - event, out_axes=-1)
        return density(y)

    def _laws_of_y(self):
        return [getattr(form, "target", form) for form in self.joint.forms()]

    def _one_each(self, y):
        """The mixture's density is the mean of its parts'; of atoms, as a sum of logarithms, which does not underflow."""
        K: Any = self.joint.K
        atoms, laws = _sorted(self.joint.P, len(self.shape))
        event = max(getattr(form, "event_rank", 0) for form in self._laws_of_y())
        terms = []
        for points, weights, _ in atoms:
            log_k, k = K.family(points, weights.ndim).scaled_density(jnp.expand_dims(y, jnp.ndim(y) - event))
            terms.append(ScaledNumber(log_k, weights * k).total())
        if laws:
            terms.append(ScaledNumber.of(Lowered(tuple(laws)).expect(MixtureDensity(K, y, jnp.zeros(())))))
        return ScaledNumber.sum(terms)


def _sorted(P: Measure, rank: int) -> tuple[list[tuple[tuple, Float[Array, "*family k"], bool]], list[Any]]:
    """All atoms of P as (points, weights, certain), points a tuple of coordinates, with ``rank`` family axes; the forms that
    have no list of atoms."""
    atoms, laws = [], []
    for form in P.forms():
        if is_smooth(form):
            laws.append(form)
            continue
        for flat in form.flat():
            for points, weights, certain in flat.parts():
                points = points if isinstance(points, tuple) else (points,)
                grow = lambda x, extra=rank + 1 - weights.ndim: x.reshape((1,) * extra + x.shape)
                atoms.append((*jax.tree.map(grow, (points, weights)), certain))
    return atoms, laws


def _nested(form: Any, K: Any, family: tuple[int, ...]) -> Smooth:
    return Smooth(Nested(form, K), jnp.ones(family))


def _for_every_atom(form: Form, rank: int) -> Form:
    """A family with an axis of size 1 behind its ``rank`` family axes: the same law given every atom."""
    return form.at_rank(rank).map_family(lambda x: jnp.expand_dims(x, rank))


def _one_axis(form: Form, axes: tuple[int, ...], rank: int) -> Form:
    """A family over ``axes`` with those behind its first ``rank`` merged into one, the axis of P's atoms."""

    def merge(x):
        own, rest = x.shape[: len(axes)], x.shape[len(axes) :]
        if all(n == 1 for n in own[rank:]):  # shared by all atoms
            return x.reshape(*own[:rank], 1, *rest)
        return jnp.broadcast_to(x, (*own[:rank], *axes[rank:], *rest)).reshape(*own[:rank], -1, *rest)

    return form.at_rank(len(axes)).map_family(merge)


@rule(ProductMeasure, LogDensity, ProductMeasure)
def of_a_product(P: ProductMeasure, f: LogDensity) -> Any:
    """∫ log q₁ q₂ d(p₁ ⊗ p₂) = p₂(1) ∫ log q₁ dp₁ + p₁(1) ∫ log q₂ dp₂."""
    Q: ProductMeasure = f.Q
    if P.P.coordinates != Q.P.coordinates or P.mesh_axes:
        return NotImplemented
    first, second = integrate(P.P, LogDensity(Q.P)), integrate(P.Q, LogDensity(Q.Q))
    return times_mass(P.Q.mass, first) + times_mass(P.P.mass, second)


def times_mass(mass: Any, total: Integral) -> Integral:
    """mass · total, 0 where the mass is."""
    product = null_safe_product(*jnp.broadcast_arrays(jnp.asarray(mass, float), *[jnp.asarray(total.value)] * 2))
    error = total.error if isinstance(total.error, float) else jnp.abs(mass) * total.error
    return Integral(product, error, total.status)
