"""What a form is: a measure lowers to a tuple of them, whose sum it is.

NormalForm      Σ_j weights_j δ_{points_j} + background·(counting measure on classes) + dense, on one space, the dense part
                written out or deferred;
Disintegration  ∫ δ_x ⊗ P_x dμ(x), a measure on tuples kept as its marginal μ and the laws P_x of the last coordinate,
                so that a Markov kernel is evaluated once per x and never once per pair;
LawForm         T_*(c · Πf · law), a law with a density, weighted and seen through a map.
"""

import abc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._integrands.integral import Integral
from .._integrands.integrand import Integrand


class Form(abc.ABC):
    """A summand of a measure, a family by leading axes."""

    @property
    @abc.abstractmethod
    def family(self) -> tuple[int, ...]: ...

    @property
    @abc.abstractmethod
    def arity(self) -> int:
        """How many coordinates a point has."""

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        """The shape of a point, where that is one array."""
        return None

    @abc.abstractmethod
    def integrate(self, f: Integrand) -> Integral:
        """∫ f dP, pytree-valued where f is."""

    @abc.abstractmethod
    def using(self, method: Any) -> "Form":
        """The same, whose laws are to be integrated by a method; atoms are summed whatever it is."""

    @abc.abstractmethod
    def mass(self) -> Float[Array, "*family"]: ...

    @abc.abstractmethod
    def mass_and_error(self) -> tuple[Float[Array, "*family"], Float[Array, "*family"]]:
        """The mass, and what it may be off by where parts of both signs cancel."""

    def proposed(self) -> Float[Array, "*family"]:
        """The mass of what is drawn from, before the functions that weigh the draws."""
        return self.mass()

    @property
    @abc.abstractmethod
    def at_atoms(self) -> tuple[bool, ...]:
        """Of each coordinate whether it is at atoms, or has a density against Lebesgue measure."""

    @property
    @abc.abstractmethod
    def masses(self) -> tuple[Any, ...]:
        """All masses that are written out, with the family's axes in front."""

    @abc.abstractmethod
    def with_masses(self, *masses: Any) -> "Form": ...

    @abc.abstractmethod
    def scale(self, c: Any) -> "Form":
        """c · P."""

    @abc.abstractmethod
    def reweight(self, f: Integrand) -> "Form":
        """f · P. Null atoms stay null, whatever f is there."""

    @abc.abstractmethod
    def reweight_given(self, rows: Any, f: Integrand) -> "Form":
        """f(x, ·) · P, of a form that is the law given each x of the rows of a ``Disintegration``."""

    @abc.abstractmethod
    def push(self, transform: Any) -> tuple["Form", ...]:
        """The image under a map of points."""

    @abc.abstractmethod
    def density(self, *x: Any, mesh_axes: frozenset[str] = frozenset()) -> Float[Array, "*family"]:
        """The density against counting measure at x, the mass of {x}: this device's share, of a sum over ``mesh_axes``."""

    @abc.abstractmethod
    def draw(self, stream: Any) -> tuple[Any, Float[Array, "*family"]]:
        """A point and its weight: the mean of weight · f(point) is the integral of f."""

    @abc.abstractmethod
    def with_family_rank(self, rank: int = 0) -> "Form":
        """The same form with at least ``rank`` family axes, on every part."""

    @abc.abstractmethod
    def map_family(self, g: Callable) -> "Form":
        """g over the leading axes of every part of a form ``with_family_rank``."""

    @abc.abstractmethod
    def flat(self) -> tuple["Form", ...]:
        """The same with all pairs as atoms."""

    def atom_lists(self) -> Iterator[tuple[Any, Float[Array, "*family k"], bool]]:
        """(points, weights, whether no weight can be 0), list by list."""
        for form in self.flat():
            yield from form.atom_lists()

    def merge(self, other: Any) -> "Form | None":
        """The sum as one form, or None where it has none."""
        del other
        return None


def check_one_space(forms: Iterable[Any]) -> None:
    """Refuses points of different shapes: a number, a class, and vectors of each length."""
    shapes = {shape for form in forms if (shape := form.event_shape) is not None}
    if len(shapes) > 1:
        raise ValueError(
            f"P and Q: measures on one space, got points of shapes {' and '.join(map(str, sorted(shapes)))}; a label is an "
            "integer, and probabilities of classes are a measure: joint(Empirical(x), Discrete(weights=p))"
        )


def rounding(size: Array) -> Array:
    """What a sum may be off by whose terms are of so much without their signs."""
    return 4 * jnp.finfo(size.dtype).eps * jax.lax.stop_gradient(size)
