"""Distances that know how far apart points are: by transport, by cdfs, by a kernel function of two points."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._forms.normal_form import NormalForm
from .._integrands.integral import align
from .._integrands.integrand import Integrand
from .._kernels.cumulative import just_below
from .._kernels.null import nan_where
from .._measures.intervals import Uniform
from .._measures.measure import Measure
from .._measures.product import check_measure, product
from .._measures.shapes import arity, enumerable, family_of
from .._program import program
from .._pytree import pytree, static


@program
def wasserstein(P: Measure, Q: Measure, p: float = 1) -> Float[Array, "*family"]:
    """(∫ |F⁻¹(u) − G⁻¹(u)|ᵖ du)^(1/p) over (0, 1), F and G the cdfs of P and Q: the cost of moving one to the other.

    On the line, in the units of the points, of the distributions P / P(1) and Q / Q(1); of order 1 it is ∫ |F − G| dx. Of atoms
    exact, in the time that sorting takes; with a law by adaptive integrals between the atoms, NaN where they do not converge.

    Args:
        p: the order, a number of at least 1.

    Raises:
        NotImplementedError: points are no numbers.

    Source: Villani (2003), *Topics in Optimal Transportation*, thm 2.18.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.wasserstein(mx.Empirical(jnp.array([0., 1.])), mx.Empirical(jnp.array([5., 7., 9.]))).item()
        6.5
        >>> mx.wasserstein(mx.Normal(0., 1.), mx.Normal(3., 5.), p=2).item()  # √(3² + 4²)
        5.0
    """
    _check_line("wasserstein", P, Q)
    if not isinstance(p, numbers.Real) or isinstance(p, bool) or not 1 <= p < math.inf:
        raise ValueError(f"wasserstein(p): a finite number of at least 1, got {p!r}")
    if enumerable(P) and enumerable(Q):
        total = _between_atoms(P, Q, p)
    else:
        total = _between_cdfs(P, Q, 1) if p == 1 else _between_quantiles(P, Q, float(p))
    return _root(_of_distributions(P, Q, total), p)


@program
def energy_distance(P: Measure, Q: Measure) -> Float[Array, "*family"]:
    """(2 E|X − Y| − E|X − X′| − E|Y − Y′|)^½, X and X′ of P, Y and Y′ of Q, independent: 0 if and only if P = Q.

    On the line that is (2 ∫ (F − G)² dx)^½, where nothing cancels: of atoms exact, in the time that sorting takes; with a
    law by adaptive integrals between the atoms. Of vectors it is ``maximum_mean_discrepancy`` by −|x − y|. In the root of the
    points' units, of the distributions P / P(1) and Q / Q(1).

    Source: Székely & Rizzo (2013), *Energy statistics*; scipy.stats.energy_distance.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.energy_distance(mx.Empirical(jnp.array([0., 2.])), mx.Dirac(1)).item()
        1.0
        >>> mx.energy_distance(mx.Normal(0., 1.), mx.Normal(0., 1.)).item()
        0.0
    """
    check_measure("energy_distance(P, Q): P", P)
    check_measure("energy_distance(P, Q): Q", Q)
    if P._is_of_numbers != Q._is_of_numbers or arity(P) != arity(Q):
        raise ValueError("energy_distance(P, Q): measures on one space, got points of different shapes")
    if not P._is_of_numbers:
        return maximum_mean_discrepancy(P, Q, _minus_distance)
    return _root(_of_distributions(P, Q, 2 * _between_cdfs(P, Q, 2)), 2)


@program
def maximum_mean_discrepancy(
    P: Measure, Q: Measure, k: Callable[[Any, Any], Float[Array, ""]], *, squared: bool = False, method: Any = None
) -> Float[Array, "*family"]:
    """(∫∫ k(x, y) dD(x) dD(y))^½, D = P − Q: the norm of the difference by a positive definite kernel function k of two points.

    Of the distributions P / P(1) and Q / Q(1), over all pairs of their points. The root has the derivative 0 where it is 0.

    Args:
        k: a function of two points, such as ``lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2))``; −|x − y| will do.
        squared: the square, which as a loss needs no root.
        method: how to integrate what has a density, as for ``expect``.

    Source: Gretton et al. (2012), *A kernel two-sample test*, lemma 6 (the biased estimate, of samples).

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> gaussian = lambda x, y: jnp.exp(-((x - y) ** 2))
        >>> mx.maximum_mean_discrepancy(mx.Dirac(0), mx.Dirac(1), gaussian, squared=True).item()  # 2 − 2/e
        1.26424
    """
    check_measure("maximum_mean_discrepancy(P, Q): P", P)
    check_measure("maximum_mean_discrepancy(P, Q): Q", Q)
    family_of(P, Q)
    if not callable(k):
        raise TypeError(f"maximum_mean_discrepancy(k): a function of two points, got {type(k).__name__}")
    P, Q = P.normalize(), Q.normalize()
    n, point = arity(P), lambda x: x[0] if len(x) == 1 else x
    mean = lambda P, Q: product(P, Q).expect(lambda *x: k(point(x[:n]), point(x[n:])), method=method)
    square = mean(P, P) + mean(Q, Q) - 2 * mean(P, Q)
    return square if squared else _root(jnp.maximum(square, 0), 2)


def _minus_distance(x, y):
    gaps = jax.tree.map(lambda x, y: jnp.asarray(x, float) - jnp.asarray(y, float), x, y)
    square = sum(jnp.sum(gap**2) for gap in jax.tree.leaves(gaps))
    return -jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _check_line(name: str, P: Measure, Q: Measure) -> None:
    for argument, R in (("P", P), ("Q", Q)):
        check_measure(f"{name}(P, Q): {argument}", R)
        if not R._is_of_numbers:
            raise NotImplementedError(
                f"{name}(P, Q): {argument} has points that are no numbers; take a coordinate's, with marginal({argument}, 0)"
            )
    family_of(P, Q)


def _of_distributions(P: Measure, Q: Measure, distance: Array) -> Array:
    """The distance, NaN where one of them is no distribution."""
    return nan_where(~((P.mass > 0) & (Q.mass > 0)), distance)


def _root(x: Array, p: float) -> Array:
    """The p-th root, with the derivative 0 at 0."""
    return x if p == 1 else jnp.where(x > 0, jnp.where(x > 0, x, 1) ** (1 / p), x)


def _atoms(P: Measure, family: tuple[int, ...]) -> tuple[Array, Array] | None:
    """(places, masses) of P's atoms, [*family, k]; null ones that hold no number are where another is."""
    lists = [atoms for form in P.forms() if isinstance(form, NormalForm) for atoms in form.atom_lists()]
    if not lists:
        return None
    grown = lambda a: jnp.broadcast_to(a, (*family, a.shape[-1])).astype(float)
    points = jnp.concatenate([grown(points) for points, _, _ in lists], axis=-1)
    weights = jnp.concatenate([grown(weights) for _, weights, _ in lists], axis=-1)
    there = jnp.argmax(weights != 0, axis=-1)[..., None]
    nowhere = (weights == 0) & ~jnp.isfinite(points)
    return jnp.where(nowhere, jnp.take_along_axis(points, there, axis=-1), points), weights


def _between_atoms(P: Measure, Q: Measure, p: float) -> Array:
    """Σ |x − y|ᵖ over the pieces of mass that the levels of both cdfs cut: each is of one atom of P and one of Q."""
    family = family_of(P, Q)
    (x, levels_p), (y, levels_q) = (_in_order(*_atoms(R, family)) for R in (P, Q))  # type: ignore[misc]
    levels = jnp.concatenate([levels_p, levels_q], axis=-1)
    order = jnp.argsort(levels, axis=-1)  # stable: a null atom's piece is nothing, and its own
    levels, of_p = jnp.take_along_axis(levels, order, axis=-1), order < x.shape[-1]
    before = lambda of: jnp.cumsum(of, axis=-1) - of
    taken = lambda a, i: jnp.take_along_axis(a, jnp.minimum(i, a.shape[-1] - 1), axis=-1)
    cost = jnp.abs(taken(x, before(of_p)) - taken(y, before(~of_p))) ** p
    return (jnp.diff(levels, axis=-1, prepend=0) * cost).sum(-1)


def _in_order(points: Array, weights: Array) -> tuple[Array, Array]:
    """The points in order, and the cdf at each."""
    order = jnp.argsort(points, axis=-1)
    points, weights = (jnp.take_along_axis(a, order, axis=-1) for a in (points, weights))
    below = jnp.cumsum(weights, axis=-1)
    mass = below[..., -1:]
    return points, jnp.where(mass == 0, 0, below / jnp.where(mass == 0, 1, mass))


def _between_quantiles(P: Measure, Q: Measure, p: float) -> Array:
    """∫ |F⁻¹ − G⁻¹|ᵖ du, between the levels of the atoms."""
    family = family_of(P, Q)
    levels = jnp.sort(jnp.concatenate([*_levels(P, family), *_levels(Q, family)], axis=-1), axis=-1)
    pieces = jnp.moveaxis(levels[..., :-1], -1, 0), jnp.moveaxis(jnp.diff(levels, axis=-1), -1, 0)
    return _over_pieces(lambda low, gap: Between(P, Q, low, gap, p), *pieces)


def _levels(P: Measure, family: tuple[int, ...]) -> list[Array]:
    """Where P's quantile function jumps, or stands still: its cdf on both sides of its atoms; 0 and 1."""
    ends = jnp.broadcast_to(jnp.array([0.0, 1.0]), (*family, 2))
    if (atoms := _atoms(P, family)) is None:
        return [ends]
    at = jnp.moveaxis(atoms[0], -1, 0)
    return [ends, *(jnp.moveaxis(P.cdf(x), 0, -1) for x in (at, just_below(at)))]


def _apart(P: Measure, Q: Measure, p: float, u: Array) -> Array:
    return jnp.abs(jnp.asarray(P.quantile(u), float) - Q.quantile(u)) ** p


@pytree
class Between(Integrand):
    """v ↦ |F⁻¹(u) − G⁻¹(u)|ᵖ at u = low + v·gap."""

    P: Measure
    Q: Measure
    low: Float[Array, "*family"]
    gap: Float[Array, "*family"]
    p: float = static()

    @property
    def shape(self):
        return jnp.shape(self.low)

    def __call__(self, *x):
        u = self.low + x[0] * self.gap
        info = jnp.finfo(u.dtype)  # an end may be at infinity
        return _apart(self.P, self.Q, self.p, jnp.clip(u, info.tiny, 1 - info.epsneg))

    def values(self, points, lead):
        return jax.vmap(self, -1, -1)(points)


def _between_cdfs(P: Measure, Q: Measure, p: int) -> Array:
    """∫ |F − G|ᵖ dx, between the atoms and beyond the last of them."""
    family = family_of(P, Q)
    edges = [atoms[0] for R in (P, Q) if (atoms := _atoms(R, family)) is not None]
    whole = enumerable(P) and enumerable(Q)
    if not whole:  # and where each has its bulk
        many = sum(x.shape[-1] for x in edges) > MANY
        marks = jnp.asarray(np.sort([*MARKS, *FAR, *(1 - FAR)]) if many else MARKS, float)
        marks = marks.reshape(-1, *(1,) * len(family))
        edges += [jnp.moveaxis(lax.stop_gradient(jnp.asarray(R.quantile(marks), float)), 0, -1) for R in (P, Q)]
    edges = jnp.concatenate([jnp.broadcast_to(x, (*family, x.shape[-1])) for x in edges], axis=-1)
    edges = jnp.moveaxis(jnp.sort(edges, axis=-1), -1, 0)
    gaps = jnp.diff(edges, axis=0)
    if whole:
        return (jnp.abs(P.cdf(edges[:-1]) - Q.cdf(edges[:-1])) ** p * gaps).sum(0)
    size = lax.stop_gradient(edges[-1:] - edges[:1])
    size = jnp.where(size > 0, size, 1)
    low, step = jnp.concatenate([edges[:1], edges]), jnp.concatenate([-size, gaps, size])
    ends = jnp.zeros(len(low)).at[jnp.array([0, -1])].set(1)
    integrals = lambda which: _over_pieces(
        lambda low, step, far: CdfGap(P, Q, low, step, far, p), low[which], step[which], ends[which]
    )
    if len(gaps) <= MANY:
        return integrals(slice(None))
    beyond, (fine, coarse) = integrals(jnp.array([0, -1])), (_by_rule(P, Q, edges[:-1], gaps, p, n) for n in NODES)
    error = lax.stop_gradient(jnp.abs(fine - coarse) / (beyond + fine))
    good = jnp.all((error <= jnp.finfo(error.dtype).eps ** 0.5) | (fine == coarse))
    return beyond + lax.cond(good, lambda: fine, lambda: integrals(slice(1, -1)))


def _by_rule(P: Measure, Q: Measure, low: Array, gap: Array, p: int, nodes: int) -> Array:
    """Σ ∫ |F − G|ᵖ dx over many pieces from low to low + gap, each by Gauss's rule on both sides of where F and G are equal,
    which is known where one of them stands still."""
    middle = low + gap / 2
    if p == 1:
        for R, still in ((P, Q), (Q, P)):
            if enumerable(still):
                middle = jnp.asarray(R.quantile(still.cdf(low)), middle.dtype)
    high = low + gap
    middle = lax.stop_gradient(jnp.clip(jnp.where(jnp.isnan(middle), low, middle), low, high))
    t, w = np.polynomial.legendre.leggauss(nodes)
    axis = (-1, *(1,) * low.ndim)
    t, w = (jnp.asarray(x, low.dtype).reshape(axis) for x in (t, w))
    value = jnp.zeros((), low.dtype)
    for a, b in ((low, middle), (middle, high)):
        half = (b - a) / 2
        value += (w * half * cdf_gap(P, Q, a + half * (1 + t)) ** p).sum((0, 1))
    return value


def _over_pieces(f: Callable[..., Integrand], low: Array, step: Array, *more: Array) -> Array:
    """The sum of |step| · ∫ f(low, step, …) over (0, 1). NaN where not all of them converge, and the errors count."""
    total = jax.vmap(lambda *piece: Uniform().integrate(f(*piece)))(low, step, *more)
    there = step != 0
    value, error = (jnp.where(there, jnp.abs(step) * x, 0).sum(0) for x in (total.value, total.error))
    converged = jnp.all((align(total.status, step) == 0) | ~there, axis=0)
    eps, noise = jnp.finfo(error.dtype).eps, f(*(x[0] for x in (low, step, *more))).noise
    few = error <= eps**0.5 * value + noise * eps * jnp.abs(step).sum(0)
    return nan_where(~(converged | few), value)


def cdf_gap(P: Measure, Q: Measure, x: Array) -> Array:
    """|F − G| at x, by the tails on the side where they are small."""
    F, G = P.cdf(x), Q.cdf(x)
    return jnp.abs(jnp.where(F + G < 1, F - G, P.survival(x) - Q.survival(x)))


# Pieces between atoms, from where on a rule of a few nodes is tried on all of them at once.
MANY, NODES = 64, (8, 5)
MARKS = np.array([0.001, 0.02, 0.2, 0.5, 0.8, 0.98, 0.999])
FAR = np.array([1e-6, 1e-5, 1e-4, 0.005])


@pytree
class CdfGap(Integrand):
    """v ↦ |F(x) − G(x)|ᵖ dx/dv / |step| at x = low + v·step, or where ``far`` is 1 at low + v/(1 − v)·step, up to infinity."""

    P: Measure
    Q: Measure
    low: Float[Array, "*family"]
    step: Float[Array, "*family"]
    far: Float[Array, ""]
    p: int = static()

    @property
    def shape(self):
        return jnp.shape(self.low)

    @property
    def noise(self):
        return 4 * float(jnp.finfo(jnp.result_type(float)).eps) ** (self.p - 1)  # of two cdfs that are next to equal

    def __call__(self, *x):
        rest = 1 - self.far * jnp.minimum(x[0], 1 - jnp.finfo(x[0].dtype).epsneg)
        return cdf_gap(self.P, self.Q, self.low + x[0] / rest * self.step) ** self.p / rest**2

    def values(self, points, lead):
        return jax.vmap(self, -1, -1)(points)
