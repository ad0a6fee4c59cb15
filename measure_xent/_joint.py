"""Measures on tuples: product, joint, bind."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._conditional import AbstractConditional
from ._measure import Measure, family_of
from ._normal_form import Disintegration, Form, coordinates
from ._pytree import pytree


def product(P: Measure, Q: Measure) -> Measure:
    """P ⊗ Q on tuples, the coordinates of P and then those of Q; families broadcast. Source: Fubini's theorem.

    Raises:
        TypeError: P or Q is not a Measure.
        ValueError: the families do not broadcast.

    Example:
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

    Example:
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

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> coin = mx.Conditional(lambda x: mx.Categorical(probs=jnp.where(x == 0, jnp.array([.5, .5]), jnp.array([.1, .9]))))
        >>> mx.bind(mx.DiscreteUniform(2), coin).expect(lambda y: y).item()
        0.7
    """
    return Bind(Joint(*_checked(P, K)))


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
        return tuple(
            Disintegration(x, weights, _for_every_atom(q, rank), certain)
            for x, weights, certain in _atoms(self.P, rank)
            for q in self.Q.forms()
        )

    def log_abs_density(self, *x):
        n = self.P.coordinates
        (log_p, sign_p), (log_q, sign_q) = self.P.log_abs_density(*x[:n]), self.Q.log_abs_density(*x[n:])
        return log_p + log_q, sign_p * sign_q


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
        return coordinates(jax.eval_shape(self.forms)[0])

    @property
    def mesh_axes(self):
        return self.P.mesh_axes

    def forms(self):
        rank = len(self.shape)
        atoms = _atoms(self.P, rank)
        if isinstance(self.K, Measure):
            (p,) = atoms  # a measure of several forms has no one list of atoms to index
            laws = [(p, _one_axis(form, (*self.P.shape, *self.P.atoms), rank)) for form in self.K.forms()]
        else:
            laws = [(p, form.at_rank(rank + 1)) for p in atoms for form in self.K.family(p[0], p[1].ndim).forms()]
        return tuple(Disintegration(x, weights, form, certain) for (x, weights, certain), form in laws)

    def log_abs_density(self, *x):
        if isinstance(self.K, Measure):
            return super().log_abs_density(*x)
        n = self.P.coordinates
        (log_p, sign_p), (log_k, sign_k) = self.P.log_abs_density(*x[:n]), self.K(*x[:n]).log_abs_density(*x[n:])
        return log_p + log_k, sign_p * sign_k


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


def _atoms(P: Measure, rank: int) -> list[tuple[tuple, Float[Array, "*family k"], bool]]:
    """All of P as (points, weights, certain), points a tuple of coordinates, with ``rank`` family axes."""
    atoms = []
    for form in P.forms():
        for flat in form.flat():
            for points, weights, certain in flat.parts():
                points = points if isinstance(points, tuple) else (points,)
                grow = lambda x, extra=rank + 1 - weights.ndim: x.reshape((1,) * extra + x.shape)
                atoms.append((*jax.tree.map(grow, (points, weights)), certain))
    return atoms


def _for_every_atom(form: Form, rank: int) -> Form:
    """A family with an axis of size 1 behind its ``rank`` family axes: the same law given every atom."""
    return jax.tree.map(lambda x: jnp.expand_dims(x, rank), form.at_rank(rank))


def _one_axis(form: Form, axes: tuple[int, ...], rank: int) -> Form:
    """A family over ``axes`` with those behind its first ``rank`` merged into one, the axis of P's atoms."""

    def merge(x):
        own, rest = x.shape[: len(axes)], x.shape[len(axes) :]
        if all(n == 1 for n in own[rank:]):  # shared by all atoms
            return x.reshape(*own[:rank], 1, *rest)
        return jnp.broadcast_to(x, (*own[:rank], *axes[rank:], *rest)).reshape(*own[:rank], -1, *rest)

    return jax.tree.map(merge, form.at_rank(len(axes)))
