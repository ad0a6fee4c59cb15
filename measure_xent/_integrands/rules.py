"""Which rule integrates which integrand against which measure: one open table."""

from collections.abc import Callable
from typing import Any

from .._program import depend_on
from .._strict import of_user
from .integral import Integral

_RULES: dict[tuple[type, ...], Callable] = {}


def rule(measure: type, *integrand: type) -> Callable[[Callable], Callable]:
    """Registers how to compute ∫ f dP for a type of measure and a type of integrand. Anyone may add one.

    The rule is called as ``rule(P, f)`` and gives ∫ f dP, an ``Integral`` if it has an error to tell of, or NotImplemented to
    pass on to the next best match. The
    integrand's type may be followed by the type of what it is made of: ``rule(Mine, LogDensity, Categorical)`` takes
    the log-density of a Categorical. The nearest class of the integrand wins, then the nearest class of the measure;
    ``object`` matches everything.

    Examples:
        >>> import measure_xent as mx
        >>> class Parity(mx.Integrand):
        ...     def __call__(self, x):
        ...         return x % 2
        >>> @mx.rule(mx.DiscreteUniform, Parity)
        ... def half(P, f):
        ...     return (P.classes // 2) / P.classes
        >>> float(mx.DiscreteUniform(7).expect(Parity()))
        0.428571
    """

    def register(function: Callable) -> Callable:
        _RULES[measure, *integrand] = function
        depend_on(function)
        return function

    return register


def integrate(P: Any, f: Any) -> Integral:
    """∫ f dP by the most specific rule that takes the pair."""
    for function in _matches(type(P), tuple(type(part) for part in f.pattern)):
        result = of_user(function)(P, f)
        if result is not NotImplemented:
            return result if isinstance(result, Integral) else Integral.exact(result)
    raise TypeError(f"expect: no rule integrates {type(f).__name__} against {type(P).__name__}; add one with @mx.rule")


def _matches(measure: type, pattern: tuple[type, ...]) -> list[Callable]:
    def distance(key):
        steps = [cls.__mro__.index(base) for cls, base in zip((measure, *pattern), key, strict=False)]
        return -len(key), sum(steps[1:]), steps[0]

    keys = [key for key in _RULES if len(key) <= 1 + len(pattern) and all(map(issubclass, (measure, *pattern), key))]
    return [_RULES[key] for key in sorted(keys, key=distance)]
