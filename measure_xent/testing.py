"""Checks that any measure passes, one's own too: ``check_measure(P)`` in a test."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._integrands.density import log
from ._integrands.integrand import as_integrand, as_tuple
from ._kernels.tanh_sinh import finite
from ._measures.laws import Continuous, Law, Line
from ._measures.measure import Measure
from ._measures.shapes import enumerable
from ._methods.quadrature import Adaptive
from ._methods.sampling import MonteCarlo


def check_measure(P: Measure, *, fixed: Sequence[str] = (), draws: int = 4096, seed: int = 0) -> None:
    """Holds each part of a measure against another: its mass and the integral of 1, derivatives and differences, and whether
    draws, cdf, quantiles, density, support and closed forms are of one law. Integrals are taken under ``vmap`` and ``jit``.

    Args:
        P: a measure whose mass is finite, or a family of them, with arrays for its parameters.
        fixed: fields in which there is no derivative, such as a count that is kept as a float.
        draws: how many of a law; means of them have to be within six of their standard errors.
        seed: of the draws.

    Raises:
        AssertionError: what does not fit, with both numbers.

    Examples:
        >>> import jax, jax.numpy as jnp, measure_xent as mx
        >>> from measure_xent.testing import check_measure
        >>> @mx.pytree
        ... class Logistic(mx.Continuous):
        ...     loc: jax.Array                                            # [*family]
        ...     @property
        ...     def centre(self):
        ...         return self.loc
        ...     @property
        ...     def width(self):
        ...         return jnp.ones_like(self.loc)
        ...     def log_density_of(self, x):
        ...         z = x - self.loc
        ...         return -z - 2 * jax.nn.softplus(-z)
        ...     def cdf(self, x):
        ...         return jax.nn.sigmoid(x - self.loc)
        >>> check_measure(Logistic(jnp.array([0., 1.])))
        >>> mx.entropy(Logistic(jnp.array(1.))).item()
        2.0
    """
    facts = jax.jit(lambda P, key: _facts(P, key, draws, fixed))(P, jax.random.key(seed))
    close = lambda one, other, within: bool(jnp.all((one == other) | (jnp.abs(one - other) <= within)))
    wrong = {what: fact for what, fact in facts.items() if not close(*fact)}
    assert not wrong, "\n".join(f"{what}: {a} and {b}, more than {c} apart" for what, (a, b, c) in wrong.items())


def _wave(*x: Any) -> Array:
    """A smooth bounded function of a point, whatever it is made of."""
    parts = [jnp.sum(jnp.tanh(jnp.asarray(leaf, float) / 3 + 0.2)) for leaf in jax.tree.leaves(x)]
    return jnp.cos(jnp.asarray(parts) @ jnp.arange(1.0, 1 + len(parts)) / len(parts))


def _facts(P: Measure, key: Array, draws: int, fixed: Sequence[str]) -> dict[str, tuple[Any, Any, Any]]:
    """Pairs of numbers that are the same, and within what."""
    line = isinstance(P, Line)

    def integrals(P: Measure) -> dict[str, Array]:
        f = {"f": as_integrand(_wave), "1": as_integrand(lambda *_: jnp.asarray(1.0))}
        return P.integrate(f | {"log p": log(P)} if line else f, method=Adaptive() if line else None).value

    inexact = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    step = lambda x: float(jnp.finfo(jnp.result_type(x)).eps) ** 0.25 * jnp.maximum(1, jnp.abs(x))

    def moved(c: Array) -> Measure:
        stays = lambda path, x: not inexact(x) or jax.tree_util.keystr(path[:1]).strip(".") in fixed
        one = lambda path, x: jnp.asarray(x) if stays(path, x) else jnp.asarray(x) + c * step(x)
        return jax.tree_util.tree_map_with_path(one, P)

    along = jax.vmap(lambda c: jax.jvp(lambda c: integrals(moved(c)), (c,), (jnp.ones_like(c),)))
    values, tangents = along(jnp.arange(-1.0, 2.0))
    below, known, above = (jax.tree.map(lambda x, i=i: x[i], values) for i in range(3))
    if known["f"].shape != P.shape:
        raise AssertionError(f"a family of shape {P.shape} has integrals of shape {known['f'].shape}")
    promised = lambda x: 8 * float(jnp.finfo(x.dtype).eps) ** 0.5 * (1 + jnp.abs(x))
    facts = {"the integral of 1, and the mass": (known["1"], P.mass, promised(P.mass))}
    for name, value in known.items():
        slope = (above[name] - below[name]) / 2
        facts[f"the derivative of the integral of {name}, and a difference"] = (
            tangents[name][1],
            slope,
            promised(value) / 32,
        )
    if isinstance(P, Law):
        shape = jax.tree.leaves(jax.eval_shape(lambda: P.sample(key, (draws,))))[0].shape
        if shape[: 1 + len(P.shape)] != (draws, *P.shape):
            raise AssertionError(f"sample(key, ({draws},)) of a family {P.shape} has shape {shape}")
        drawn = P.integrate(_wave, method=MonteCarlo(key, draws))
        facts["an integral, and the mean over draws"] = known["f"], drawn.value, 6 * jnp.asarray(drawn.error) + 1e-4
    if isinstance(P, Line):
        closed = P.expect(log(P))
        facts["the integral of log p by quadrature, and as P has it"] = (
            known["log p"],
            closed,
            1e-3 * (1 + jnp.abs(closed)),
        )
        facts |= _of_a_line(P, key, draws)
    if enumerable(P):
        facts |= _of_atoms(P)
    return facts


def _of_a_line(P: Line, key: Array, draws: int) -> dict[str, tuple[Any, Any, Any]]:
    (low, high), x, column = P.support, jnp.sort(P.sample(key, (draws,)), axis=0), P.with_point_axis()
    some = jnp.moveaxis(x[draws // 16 :: draws // 8], 0, -1)
    log_p = column.log_density_of(some)
    facts: dict[str, Any] = {
        "draws outside of the support": (jnp.sum((x < low) | (x > high), axis=0), 0, 1),
    }
    for end, beyond in ((low, -1.0), (high, 1.0)):
        if finite(end):
            outside = jnp.broadcast_to(end + beyond, P.shape)
            facts[f"log p beyond {end}"] = P.log_density_of(outside), jnp.full(P.shape, -jnp.inf), 1
    if P.affine is not None:
        facts["log p, and the same by statistics"] = (
            P.affine.values(some, some.ndim),
            log_p,
            1e-3 * (1 + jnp.abs(log_p)),
        )
    try:
        share = jnp.moveaxis(column.cdf(jnp.moveaxis(x, 0, -1)), -1, 0)
    except NotImplementedError:
        return facts
    if isinstance(P, Continuous):
        slope = jax.jvp(column.cdf, (some,), (jnp.ones_like(some),))[1]
        grid = (jnp.arange(draws).reshape(-1, *(1,) * len(P.shape)) + 0.5) / draws
        facts |= {
            "the derivative of the cdf, and the density": (slope, jnp.exp(log_p), 1e-3 * (1 + slope)),
            "a quantile of the cdf, and the point": (column.quantile(column.cdf(some)), some, 1e-3 * column.width),
            # Kolmogorov and Smirnov's bound, which one law in 10⁴ exceeds.
            "the cdf of draws in order, and even steps": (share, jnp.broadcast_to(grid, share.shape), 2.2 / draws**0.5),
        }
    else:
        before = jnp.where(some > 0, column.cdf(some - 1), 0)
        facts["a step of the cdf, and the mass"] = column.cdf(some) - before, jnp.exp(log_p), 1e-4
    return facts


def _of_atoms(P: Measure) -> dict[str, tuple[Any, Any, Any]]:
    """The density at an atom is what its atoms weigh."""
    facts = {}
    for i, (points, _, _) in enumerate(
        atoms for form in P.forms() for atoms in form.with_family_rank(len(P.shape)).atom_lists()
    ):
        first = as_tuple(jax.tree.map(lambda x: x[(*(0,) * len(P.shape), 0)], points))
        leaves = jax.tree.leaves(first)
        same = lambda *x, leaves=leaves: functools.reduce(
            jnp.logical_and, [jnp.all(a == b) for a, b in zip(jax.tree.leaves(x), leaves, strict=True)]
        )
        facts[f"the density at an atom of list {i}, and its mass"] = (
            jnp.exp(log(P)(*first)),
            P.restrict(same).mass,
            1e-5,
        )
    return facts
