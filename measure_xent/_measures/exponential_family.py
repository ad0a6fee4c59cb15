"""Exponential families: statistics and natural parameters."""

import functools
from typing import Any

from jaxtyping import Array, Float

from .._integrands.integrand import Integrand
from .._pytree import pytree


class Statistic(Integrand):
    """A function whose mean some laws have in closed form."""

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Where it is not smooth."""
        return ()


@pytree
class Natural:
    """log p = Σ ηᵢ Tᵢ − A + Σ log h: an exponential family's natural parameters, sufficient statistics, log-partition and base.

    Examples:
        >>> import measure_xent as mx
        >>> family = mx.Poisson(2.).natural
        >>> [eta.item() for eta in family.parameters], family.log_partition.item()  # log 2, 2
        ([0.6931], 2.0)
    """

    parameters: tuple[Array, ...]
    statistics: tuple[Integrand, ...]
    log_partition: Float[Array, "*family"]
    log_base: tuple[Integrand, ...] = ()

    @property
    def log_density(self) -> Integrand:
        terms = [eta * T for eta, T in zip(self.parameters, self.statistics, strict=True)]
        return functools.reduce(lambda a, b: a + b, [*terms, *self.log_base]) - self.log_partition
