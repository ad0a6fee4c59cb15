"""The form of what has a law and no list of atoms: T_*(c · Πf · law)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._integrands.composites import Last, Pullback, Section, Times
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand, as_integrand
from .._integrands.rules import integrate
from .._kernels.null import null_safe_product
from .._pytree import pytree, replaced
from .._strict import custom_jvp
from .form import Form, rounding


@pytree
class LawForm(Form):
    """T_*(c · Πf · law): a law with one density, weighted by functions of its points, which are then seen through T.

    ``method`` says how to integrate; None leaves it to the rules.
    """

    law: Any
    c: Float[Array, "*family"]
    factors: tuple[Integrand, ...] = ()
    transform: Integrand | None = None
    method: Any = None

    @property
    def family(self) -> tuple[int, ...]:
        shapes: list[tuple[int, ...]] = [self.law.shape, jnp.shape(self.c), *(f.shape for f in self.factors)]
        return jnp.broadcast_shapes(*shapes)

    def integrate(self, f: Integrand) -> Integral:
        if self.method is not None:
            return self.method.integrate(self, f)
        return self.times_c(integrate(self.law, self.of_law(f)), f)

    def times_c(self, total: Integral, f: Integrand) -> Integral:
        """c · ∫ f, families broadcast from the right."""
        return total.scale(self.c, max(len(self.family), len(f.shape)))

    def of_law(self, f: Integrand) -> Integrand:
        """f and the factors as one function of the law's own points."""
        f = self.pull_back(f)
        return Times(self.factors, f) if self.factors else f

    def pull_back(self, f: Integrand) -> Integrand:
        return f if self.transform is None else Pullback(f, self.transform)

    def mass(self) -> Float[Array, "*family"]:
        if not self.factors:
            return jnp.broadcast_to(self.c * self.law.mass, self.family)
        return self.integrate(as_integrand(1.0)).checked

    def proposed(self) -> Float[Array, "*family"]:
        mass = self.law.proposed() if hasattr(self.law, "proposed") else self.law.mass
        return jnp.broadcast_to(self.c * mass, self.family)

    def mass_and_error(self) -> tuple[Float[Array, "*family"], Float[Array, "*family"]]:
        if not self.factors:
            return (mass := self.mass()), rounding(jnp.abs(mass))
        total = self.integrate(as_integrand(1.0))
        error = jnp.where(total.error > 4 * jnp.finfo(total.value.dtype).tiny, total.error, 0)  # that of nothing at all
        return total.checked, jnp.maximum(error, rounding(jnp.abs(total.value)))

    @property
    def at_atoms(self) -> tuple[bool, ...]:
        (kind,) = self.law.parts()
        return kind if self.transform is None else (all(kind),) * self.arity

    @property
    def masses(self) -> tuple[Any, ...]:
        return ()

    def with_masses(self, *masses: Any) -> "LawForm":
        del masses
        return self

    def scale(self, c: Any) -> "LawForm":
        return replaced(self, c=jnp.asarray(c) * self.c)

    def reweight(self, f: Integrand) -> "LawForm":
        return replaced(self, factors=(*self.factors, self.pull_back(f)))

    def reweight_given(self, rows: Any, f: Integrand) -> "LawForm":
        return self.reweight(Section(f, rows.points, jnp.zeros(rows.weights.shape)))

    def push(self, transform: Any) -> tuple["LawForm", ...]:
        return (replaced(self, transform=self.pull_back(as_integrand(transform))),)

    def using(self, method: Any) -> "LawForm":
        """The same, to be integrated by a method."""
        return replaced(self, method=method)

    def draw(self, stream: Any) -> tuple[Any, Float[Array, "*family"]]:
        """A point and its weight: the mean of weight · f(point) is the integral of f."""
        x, weight = stream.draw(self.law)
        lead = len(self.family)
        for f in self.factors:
            weight = null_safe_product(weight, jnp.asarray(f.values(x, lead), weight.dtype))
        return x if self.transform is None else self.transform.values(x, lead), self.c * weight

    def with_family_rank(self, rank: int = 0) -> "LawForm":
        """The same form with at least ``rank`` family axes, on every part."""
        law = self.law.with_family_rank(max(rank, len(self.family)))
        c = jnp.asarray(self.c)
        return replaced(self, law=law, c=c.reshape((1,) * (len(law.shape) - c.ndim) + c.shape))

    def map_family(self, g: Any) -> "LawForm":
        """g over the leading axes of every part of a form ``with_family_rank``."""

        def mapped(f):
            if f is None or not f.shape:
                return f
            if isinstance(f, Section) and not f.f.shape:
                return replaced(f, x=jax.tree.map(g, f.x), like=g(f.like))
            raise NotImplementedError(
                f"joint and product: {type(self.law).__name__} with a family of functions against it; give a Conditional"
            )

        changed = dict(factors=tuple(map(mapped, self.factors)), transform=mapped(self.transform))
        return replaced(self, law=jax.tree.map(g, self.law), c=g(self.c), **changed)

    def density(self, *x: Any, mesh_axes: frozenset[str] = frozenset()) -> Float[Array, "*family"]:
        raise NotImplementedError(f"the density of a measure made of {type(self.law).__name__} laws is not known here")

    def flat(self) -> tuple["LawForm", ...]:
        return (self,)

    def marginal(self) -> tuple["LawForm", ...]:
        """The law of the last coordinate."""
        return self.push(Last())

    @property
    def _point(self) -> Any:
        """The shapes of a point, one a member."""
        point, T, lead = self.law.one_point(), self.transform, len(self.family)
        return point if T is None else jax.eval_shape(lambda x: T.values(x, lead), point)

    @property
    def event_rank(self) -> int:
        """How many axes the last coordinate of a point has."""
        return jax.tree.leaves(self._point)[-1].ndim - len(self.family)

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        return None if self.arity > 1 else jax.tree.leaves(self._point)[0].shape[len(self.family) :]

    @property
    def arity(self) -> int:
        """How many coordinates a point has."""
        return len(self._point) if isinstance(self._point, tuple) else 1

    def atom_lists(self) -> Any:
        raise NotImplementedError(f"{type(self.law).__name__} has no list of atoms")


def has_law(form: Any) -> bool:
    """Whether somewhere in a form there is a law, and so no list of all its atoms."""
    return isinstance(form, LawForm) or (hasattr(form, "target") and has_law(form.target))


@custom_jvp
def score_weight(weight: Float[Array, "..."], log_p: Float[Array, "..."]) -> Float[Array, "..."]:
    """The weight, with the derivative of weight · exp(log_p − stop_gradient(log_p)): a point stays, its density moves."""
    del log_p
    return weight


@score_weight.defjvp
def _score_weight_jvp(primals, tangents):
    weight = score_weight(*primals)  # a carried weight again, so that all further derivatives are right too
    return weight, tangents[0] + weight * tangents[1]
