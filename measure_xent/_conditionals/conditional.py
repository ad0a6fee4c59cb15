"""Markov kernels: functions into measures. (*Kernel* alone means a compute kernel everywhere else.)"""

import abc
import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from .._forms.disintegration import disintegrate
from .._forms.law_form import LawForm
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand
from .._integrands.rules import integrate, rule
from .._measures.laws import Law
from .._measures.measure import Lowered, Measure
from .._methods.quadrature import without_a_method
from .._pytree import as_node, pytree, set_fields
from .._strict import of_user


class AbstractConditional(abc.ABC):
    """A function x ↦ K(x) into measures. A subclass is a pytree that gives ``__call__``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> @mx.pytree
        ... class Noisy(mx.AbstractConditional):
        ...     p: float
        ...     def __call__(self, bit):
        ...         return (1 - self.p) * mx.Dirac(bit) + self.p * mx.Dirac(1 - bit)
        >>> mx.bind(mx.Dirac(1), Noisy(0.25)).expect(lambda bit: bit).item()
        0.75
    """

    @abc.abstractmethod
    def __call__(self, *x: Any) -> Measure:
        """The measure at a point (of coordinates, where x is a tuple)."""

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def family(self, x: tuple, lead: int) -> Measure:
        """The measures at an array of points: a family with the ``lead`` leading axes of the coordinates x."""

        def one(*x):
            measure = self(*x)
            if measure.shape:
                raise ValueError(
                    f"a Conditional must give one measure a point, gave a family of shape {measure.shape}; if a batch has "
                    "more than one axis, weights of its shape name them all, such as weights=jnp.ones((B, T))"
                )
            return measure

        for _ in range(lead):
            one = jax.vmap(one)
        return one(*x)

    def log_density(self, *x: Any) -> Float[Array, ""]:
        """log of the density of K(x…) at y, the last coordinate, in nats."""
        *given, y = x
        return self(*given).log_density(y)

    def after(self, P: Measure) -> Any:
        """∫ K(x) dP(x) where this kernel knows it in closed form, else NotImplemented."""
        return NotImplemented

    def inverse(self, P: Measure) -> Any:
        """y ↦ the law of x given y, x from P, where this kernel knows it in closed form, else NotImplemented."""
        return NotImplemented

    def then(self, L: "AbstractConditional") -> Any:
        """x ↦ ∫ L(y) K(x, dy) where this kernel knows it in closed form, else NotImplemented."""
        return NotImplemented

    def closest_to(self, P: Measure) -> Any:
        """As of a measure: the closest of this one's family to P, where that is known, else NotImplemented."""
        return NotImplemented

    def expect(self, f: Callable) -> Callable:
        """x ↦ ∫ f(y) K(x, dy)."""
        return lambda *x: self(*x).expect(f)


@pytree
class Conditional(AbstractConditional):
    """A Markov kernel from any function into measures. ``log(K)`` is the function (x, y) ↦ log K(x)(y).

    Args:
        function: a function of one point (of the coordinates, where x is a tuple) that gives one Measure. If it is a
            pytree, such as a module, its leaves are the node's; parameters it closes over are differentiated as usual.
            A Conditional made inside takes its x as data, ``Conditional(jax.tree_util.Partial(f, x))``.

    Raises:
        TypeError: function is not callable, or does not give a Measure.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> K = mx.Conditional(lambda x: mx.Categorical(jnp.array([0., 1., 2.]) * x))
        >>> P = mx.Empirical((jnp.array([0., 1.]), jnp.array([2, 2])))
        >>> mx.cross_entropy(P, K).item()  # the mean of log 3 and 0.4076
        0.7531
        >>> K.expect(lambda y: y)(1.0).item()
        1.5752
    """

    function: Callable[..., Measure]

    def __post_init__(self):
        if not callable(self.function):
            raise TypeError(f"Conditional(function): a function into measures, got {type(self.function).__name__}")
        set_fields(self, function=as_node(self.function))

    def __call__(self, *x):
        K = of_user(self.function)(*x)
        if not isinstance(K, Measure):
            raise TypeError(f"Conditional(function): must give a Measure, gave {type(K).__name__}")
        return K


@rule(Measure, Integrand, AbstractConditional)
def tower(P: Measure, f: Any) -> Any:
    """∫ f(x, y) dP(x, y) = ∫ (∫ f(x, y) P_x(dy)) dμ(x) for functions of K(x): one inner integral a row, all in one family."""

    inner = lambda x, target, lead: integrate(Lowered((target,)), f.given(f.model.family(x, lead)))
    part = lambda rows: rows.integrate(f) if isinstance(rows, LawForm) else rows.outer(inner)
    return functools.reduce(
        Integral.__add__, (part(rows) for form in P.forms() for rows in disintegrate(form, f.ignores_y))
    )


@rule(Law, Integrand, AbstractConditional)
def of_conditional(P: Law, f: Integrand) -> Integral:
    """∫ f dP for a function of a Conditional, point by point."""
    return without_a_method(P, f)
