"""Images of measures."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._forms.law_form import LawForm
from .._kernels.cumulative import just_below
from .._kernels.scaled import ScaledNumber
from .._pytree import as_node, pytree, set_fields
from .._strict import of_user
from .measure import Measure, Transformed, by_forms, of_parts, together
from .shapes import arity, enumerable


@pytree
class Pushforward(Transformed):
    """T_* P, the law of T(x) for x ~ P."""

    T: Callable
    P: Measure
    inverse: tuple[Callable, ...] = ()

    def __post_init__(self):
        set_fields(self, T=as_node(self.T), inverse=tuple(map(as_node, self.inverse)))

    @property
    def mass(self):
        return self.P.mass

    def forms(self):
        return tuple(image for form in self.P.forms() for image in form.push(self.T))

    def parts(self) -> Any:
        # Of a chosen coordinate what it had; of a function of them all a density, where any has one.
        n = 1 if self.inverse else arity(self)
        kind_of = getattr(self.T, "chosen", lambda kind: (all(kind),) * n)
        images: Any = [
            {kind_of(kind): Pushforward(self.T, part, self.inverse)} for kind, part in self.P.parts().items()
        ]
        return together(images) if len(images) > 1 else {next(iter(images[0])): self}

    def scaled_density(self, *x):
        if enumerable(self.P):
            return by_forms(self, x)
        if len(parts := self.parts()) > 1:
            return of_parts(parts, x)
        if not self.inverse:
            raise NotImplementedError(
                "the density of a pushforward: pass pushforward(T, P, inverse=…), or one for each branch"
            )
        (y,) = x
        return ScaledNumber.sum([self._branch(of_user(g), jnp.asarray(y)) for g in self.inverse])

    def _tails(self, name):
        if len(self.inverse) != 1 or enumerable(self.P) or arity(self.P) > 1 or not self._is_of_numbers:
            return super()._tails(name)
        of_P, g = self.P._tails(name), of_user(self.inverse[0])
        middle = lax.stop_gradient(of_user(self.T)(jnp.asarray(self.P.median, float)))
        slope = lambda y: lax.stop_gradient(jax.jvp(g, (y,), (jnp.ones_like(y),))[1])
        falls = slope(middle) < 0

        def tails(y):
            there = jnp.isfinite(g(lax.stop_gradient(y)))
            x = g(jnp.where(there, y, middle))
            # What the map does not reach is below all of it, or above.
            x = jnp.where(there, x, jnp.where((y > middle) ^ falls, jnp.inf, -jnp.inf))
            # Falling, the map takes [x, ∞) to what is up to y, and an atom at x is of it.
            x = jnp.where(falls, just_below(x), x)
            below, above = of_P(x)
            return jnp.where(falls, above, below), jnp.where(falls, below, above)

        return tails

    def _branch(self, g, y):
        """p(g(y)) |det g′(y)|, 0 where y has no g(y)."""
        event = next(form.event_rank for form in self.P.forms() if isinstance(form, LawForm))
        x = g(y) if not event else _mapped(g, y.ndim - 1)(y)
        if event:
            log_slope = _mapped(lambda y: jnp.linalg.slogdet(jax.jacfwd(g)(y))[1], y.ndim - 1)(y)
        else:
            log_slope = jnp.log(jnp.abs(jax.jvp(g, (y,), (jnp.ones_like(y),))[1]))
        exists = jnp.isfinite(x) if not event else jnp.all(jnp.isfinite(x), axis=-1)
        log_p, p = self.P.scaled_density(x)
        return ScaledNumber(jnp.where(exists, log_p + log_slope, -jnp.inf), p)


def _mapped(f, n):
    for _ in range(n):
        f = jax.vmap(f)
    return f


def pushforward(T: Callable, P: Measure, inverse: Callable | Sequence[Callable] = ()) -> Measure:
    """T_* P, the image measure: ``pushforward(T, P).expect(f)`` is ``P.expect(lambda *x: f(T(*x)))``.

    Args:
        T: a function of one point; a tuple for a value makes a measure on tuples.
        P: a measure.
        inverse: for the image's density, if P has one: the inverse of T, or one function for each branch of a T that is not
            injective, NaN where there is none. The determinant of its derivative is taken by differentiation.

    Raises:
        TypeError: P is not a Measure.
        NotImplementedError: the density is asked for, and there is no inverse.

    Source: https://en.wikipedia.org/wiki/Pushforward_measure.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> parity = mx.pushforward(lambda face: face % 2, mx.DiscreteUniform(5))
        >>> mx.log(parity)(jnp.array([0, 1])).tolist()  # log 3/5, log 2/5
        [-0.5108, -0.9163]
        >>> chi2 = mx.pushforward(jnp.square, mx.Normal(0., 1.), inverse=(jnp.sqrt, lambda y: -jnp.sqrt(y)))
        >>> chi2.expect(lambda y: y).item(), mx.entropy(chi2).item()
        (1.0, 0.7838)
    """
    if not isinstance(P, Measure):
        raise TypeError(f"pushforward(T, P): P must be a Measure, got {type(P).__name__}")
    return Pushforward(T, P, (inverse,) if callable(inverse) else tuple(inverse))
