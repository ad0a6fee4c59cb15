"""f-divergences of measures on classes: Σ φ(p, q) of a generator's perspective φ."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._forms.members import by_members
from .._integrands.density import Perspective
from .._integrands.rules import integrate, rule
from .._kernels.classes import Classes
from .._kernels.ratio import difference, valued
from .._kernels.rowwise import rowwise
from .._kernels.scaled import Ratio, ScaledNumber
from .._kernels.softmax import log_softmax_of_few
from .._program import parts_of
from .measure import Measure, Sum
from .relative_entropy import class_masses, common_classes, is_sum_of, logits_of


@rule(Sum, Perspective, Measure, Measure)
def perspective_on_classes(S: Sum, f: Any) -> Any:
    """Σ φ(p, q) over the classes, if P and Q are on some."""
    P, Q = f.P, f.Q
    if not is_sum_of(S, f):
        return NotImplemented
    by_member = lambda P, Q, generator: integrate(P + Q, Perspective(P, Q, generator)).checked
    if (value := by_members(by_member, P, Q, f.generator)) is not NotImplemented:
        return value
    with contextlib.suppress(NotImplementedError):
        if (classes := common_classes(P, Q)) is not None:
            both = [_logits_or_masses(R, classes) for R in (P, Q)]
            return sum_of_perspectives(f.generator, both, Classes(classes))
    return NotImplemented


def _logits_or_masses(P: Measure, classes: int) -> tuple[Array, bool, Array]:
    if (z := logits_of(P)) is not None:
        return z, True, jnp.asarray(0.0)
    masses, _, outside = class_masses(P, classes)
    return masses, False, outside


def sum_of_perspectives(generator: Any, both: list[tuple[Array, bool, Array]], classes: Classes) -> Array:
    """Of two measures by (logits or masses of the classes here, which of these they are, the mass on no class)."""
    rows, are_logits, outside = zip(*both, strict=True)
    parts = parts_of(generator)
    arrays, make = ([], lambda _: generator) if parts is None else parts[:2]

    def of_rows(arrays, *rows):
        logs = [log_softmax_of_few(classes, z) if known else None for z, known in zip(rows, are_logits, strict=True)]
        numbers = [
            ScaledNumber.of(x) if log is None else ScaledNumber.exp(log) for x, log in zip(rows, logs, strict=True)
        ]
        weight = numbers[0].value + numbers[1].value
        if all(are_logits):
            ratio, log = _ratio_of_softmaxes(logs, lax.stop_gradient(difference(classes, *rows, *logs)))
        else:
            ratio = Ratio.of(*numbers)
            log = ratio.log_inside
        # Where neither has mass, or no more than rounds to 0, nothing is read.
        read = weight != 0
        ratio = Ratio(*(jnp.where(read, x, one) for one, x in zip((0, 1, 1), ratio, strict=True)))
        of_class = make(arrays).of_shares
        if any(map(jnp.ndim, arrays)):  # which are of the family
            of_class = jax.vmap(of_class, in_axes=-1, out_axes=-1)
        return classes.all_parts((weight * of_class(*ratio.shares, jnp.where(read, log, 0))).sum(-1))

    rows = jnp.broadcast_arrays(*rows)
    # What closes over arrays that nobody knows of has no rule of its own.
    total = of_rows(arrays, *rows) if parts is None else rowwise(of_rows, arrays, *rows)
    for mass, shares in zip(outside, ((1.0, 0.0), (0.0, 1.0)), strict=True):
        # Where there is none its cost, which may be infinite, is not looked at: nor are that one's derivatives.
        at = [jnp.where(mass == 0, 1.0, share) for share in shares]
        total = total + mass * generator.of(Ratio(jnp.zeros_like(at[0]), *at))
    return total


def _ratio_of_softmaxes(logs: list[Any], near: Array) -> tuple[Ratio, Array]:
    """The ratio and its logarithm, which has a value that is better than the difference of theirs."""
    log_p, log_q = logs
    has_p, has_q = log_p > -jnp.inf, log_q > -jnp.inf
    both = has_p & has_q
    log = jnp.where(both, valued(near, jnp.where(both, log_p, 0) - jnp.where(both, log_q, 0), both), 0)
    one = lambda has: has.astype(log.dtype)
    return Ratio(log, one(has_p), one(has_q)), jnp.where(both, log, jnp.where(has_p, jnp.inf, -jnp.inf))
