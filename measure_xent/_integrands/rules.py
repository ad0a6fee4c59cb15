"""Which rule integrates which integrand against which measure: one open table."""

import itertools
from collections.abc import Callable, Iterator
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
    the log-density of a Categorical. The rule that names more types wins, then the nearest classes of the integrand, then the
    nearest of the measure; ``object`` matches everything. Two rules that are equally near are an error.

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
    for function in _matches(type(P), tuple(type(part) for part in f.dispatch_on)):
        result = of_user(function)(P, f)
        if result is not NotImplemented:
            return result if isinstance(result, Integral) else Integral.exact(result)
    raise TypeError(f"expect: no rule integrates {type(f).__name__} against {type(P).__name__}; add one with @mx.rule")


def _matches(measure: type, integrand: tuple[type, ...]) -> Iterator[Callable]:
    """The rules that take the types, the most specific first: those that name more of them, then the nearer ones.

    Raises:
        TypeError: two rules are as near as each other.
    """
    types = (measure, *integrand)
    matches = [key for key in _RULES if len(key) <= len(types) and all(map(issubclass, types, key))]

    def distance(key):
        steps = [cls.__mro__.index(base) for cls, base in zip(types, key, strict=False)]
        return -len(key), sum(steps[1:]), steps[0]

    for _, keys in itertools.groupby(sorted(matches, key=distance), key=distance):
        key, *others = keys
        if others:
            rules = " and ".join(f"rule({_names(each)})" for each in (key, *others))
            raise TypeError(f"expect: {rules} are equally near to ({_names(types)}); add one that is nearer")
        yield _RULES[key]


def _names(types: tuple[type, ...]) -> str:
    return ", ".join(cls.__name__ for cls in types)
