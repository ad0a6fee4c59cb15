"""Products of measures, on tuples of their points."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._forms.disintegration import Disintegration
from .._forms.form import Form
from .._forms.law_form import LawForm, has_law
from .._integrands.density import LogDensity
from .._integrands.integral import Integral
from .._integrands.integrand import as_tuple
from .._integrands.rules import integrate, rule
from .._kernels.null import null_safe_product
from .._kernels.scaled import ScaledNumber
from .._pytree import pytree
from .measure import Measure
from .nested import ConstantKernel, Nested
from .shapes import arity, family_of


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
    check_measure("product(P, Q): P", P)
    check_measure("product(P, Q): Q", Q)
    check_here("product(P, Q): Q", Q)
    return ProductMeasure(P, Q)


def power(P: Measure, n: int) -> Measure:
    """Pⁿ, n independent points of P, a measure on tuples of them.

    Examples:
        >>> import measure_xent as mx
        >>> mx.power(mx.DiscreteUniform(6), 3).expect(lambda a, b, c: a + b + c).item()
        7.5
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"power(P, n): a positive int, got {n!r}")
    return functools.reduce(product, [P] * n)


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
    def mesh_axes(self):
        return self.P.mesh_axes

    def forms(self):
        rank = len(self.shape)
        atoms, laws = atoms_and_laws(self.P, rank)
        return tuple(
            Disintegration(x, weights, _for_every_atom(q, rank), no_null_atoms)
            for x, weights, no_null_atoms in atoms
            for q in self.Q.forms()
        ) + tuple(nested(form, ConstantKernel(self.Q, rank), self.shape) for form in laws)

    @property
    def mass(self):
        return jnp.broadcast_to(self.P.mass * self.Q.mass, self.shape)

    @property
    def mean(self):
        return self._side_by_side("mean")

    @property
    def variance(self):
        return self._side_by_side("variance")

    @property
    def covariance(self):
        a, b = (jnp.broadcast_to(c, (*self.shape, *c.shape[-2:])) for c in (self.P.covariance, self.Q.covariance))
        across = jnp.zeros((*self.shape, a.shape[-1], b.shape[-1]))
        return jnp.block([[a, across], [jnp.swapaxes(across, -1, -2), b]])

    def _side_by_side(self, name: str) -> tuple:
        grown = lambda P, x: jnp.broadcast_to(x, (*self.shape, *x.shape[len(P.shape) :]))
        each = (as_tuple(jax.tree.map(functools.partial(grown, P), getattr(P, name))) for P in (self.P, self.Q))
        return tuple(itertools.chain(*each))

    def parts(self) -> Any:
        pairs = itertools.product(self.P.parts().items(), self.Q.parts().items())
        return {(*p, *q): ProductMeasure(P, Q) for (p, P), (q, Q) in pairs}

    def scaled_density(self, *x):
        n = arity(self.P)
        return scaled_product(self.P.scaled_density(*x[:n]), self.Q.scaled_density(*x[n:]))


arity.register(ProductMeasure, lambda P: arity(P.P) + arity(P.Q))


def scaled_product(a: tuple, b: tuple) -> ScaledNumber:
    return ScaledNumber(*a).times(ScaledNumber(*b))


def check_measure(name, P):
    if not isinstance(P, Measure):
        raise TypeError(f"{name} must be a Measure, got {type(P).__name__}")


def check_here(name, Q):
    if Q.mesh_axes:
        raise ValueError(f"{name} is a sum over the devices of {sorted(Q.mesh_axes)}, which only P may be")


def atoms_and_laws(P: Measure, rank: int) -> tuple[list[tuple[tuple, Float[Array, "*family k"], bool]], list[Any]]:
    """All atoms of P, lists of (points, weights, no_null_atoms), points a tuple of coordinates, with ``rank`` family axes; and
    the forms that have no list of atoms."""
    atoms, laws = [], []
    for form in P.forms():
        if has_law(form):
            laws.append(form)
            continue
        for points, weights, no_null_atoms in form.atom_lists():
            grow = lambda x, extra=rank + 1 - weights.ndim: x.reshape((1,) * extra + x.shape)
            atoms.append((*jax.tree.map(grow, (as_tuple(points), weights)), no_null_atoms))
    return atoms, laws


def nested(form: Any, K: Any, family: tuple[int, ...]) -> LawForm:
    return LawForm(Nested(form, K), jnp.ones(family))


def _for_every_atom(form: Form, rank: int) -> Form:
    """A family with an axis of size 1 behind its ``rank`` family axes: the same law given every atom."""
    return form.with_family_rank(rank).map_family(lambda x: jnp.expand_dims(x, rank))


@rule(ProductMeasure, LogDensity, ProductMeasure)
def of_a_product(P: ProductMeasure, f: LogDensity) -> Any:
    """∫ log q₁ q₂ d(p₁ ⊗ p₂) = p₂(1) ∫ log q₁ dp₁ + p₁(1) ∫ log q₂ dp₂."""
    Q: ProductMeasure = f.Q
    if arity(P.P) != arity(Q.P) or P.mesh_axes:
        return NotImplemented
    first, second = integrate(P.P, LogDensity(Q.P)), integrate(P.Q, LogDensity(Q.Q))
    return times_mass(P.Q.mass, first) + times_mass(P.P.mass, second)


def times_mass(mass: Any, total: Integral) -> Integral:
    """mass · total, 0 where the mass is."""
    product = null_safe_product(jnp.asarray(mass, float), jnp.asarray(total.value))
    error = total.error if isinstance(total.error, float) else jnp.abs(mass) * total.error
    return Integral(product, error, total.status)
