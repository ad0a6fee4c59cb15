"""What one asks of a distribution: moments, each an integral, and quantiles, each the inverse of one."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree, Shaped

from .._forms.disintegration import Disintegration
from .._forms.form import Form
from .._forms.law_form import LawForm
from .._forms.normal_form import NormalForm
from .._integrands.integrand import Integrand
from .._kernels.checks import real_array
from .._kernels.cumulative import moving_end, quantile, share, without_derivative
from .._kernels.null import nan_where, null_safe_product
from .._program import parts_of, program
from .._pytree import pytree, static
from .shapes import arity
from .statistics import Identity, OnOneSide, SquaredDeviation

ROUNDING = 8  # what a cdf at an atom may be off by, in units of eps
Tails = Callable[[Array], tuple[Array, Array]]


@pytree
class SquaredDeviations(Integrand):
    """x ↦ ((x − c)/s)², entry by entry of points that are any pytree of arrays; or of all n entries zᵢ of (x − c)/s the
    (zᵢ + zⱼ)², [n, n]: a mean of zᵢzⱼ may be 0, which no quadrature converges to.
    """

    c: PyTree[Float[Array, "..."]]
    s: PyTree[Float[Array, "..."]]
    rank: int = static()
    pairs: bool = static()

    @property
    def shape(self):
        return jnp.shape(jax.tree.leaves(self.c)[0])[: self.rank]

    def __call__(self, *x):
        return self.values(x[0] if len(x) == 1 else x, 0)

    def values(self, points, lead):
        behind = tuple(range(self.rank, max(lead, self.rank)))  # the axis of atoms, and those of a larger family
        grow = lambda a: jnp.expand_dims(a, behind)
        z = jax.tree.map(lambda x, c, s: (jnp.asarray(x, float) - grow(c)) / grow(s), points, self.c, self.s)
        if not self.pairs:
            return jax.tree.map(jnp.square, z)
        z = jnp.concatenate([x.reshape(*x.shape[:lead], -1) for x in jax.tree.leaves(z)], axis=-1)
        return (z[..., :, None] + z[..., None, :]) ** 2


class Summaries:
    """Moments and quantiles of P / P.mass."""

    @property
    @program
    def mean(self: Any) -> PyTree[Float[Array, "..."]]:
        """∫ x dP / P(1): of vectors a vector, of tuples a tuple. NaN where there is none.

        Examples:
            >>> import jax.numpy as jnp, measure_xent as mx
            >>> mx.Empirical(jnp.array([1., 2., 6.]), weights=jnp.array([1., 1., 2.])).mean.item()
            3.75
        """
        return self.normalize().expect(Identity() if self._is_of_numbers else _point)

    @property
    @program
    def variance(self: Any) -> PyTree[Float[Array, "..."]]:
        """∫ (x − mean)² dP / P(1), entry by entry: that of the distribution itself, no estimate from a sample.

        Examples:
            >>> import measure_xent as mx
            >>> (0.5 * mx.Normal(-1., 1.) + 0.5 * mx.Normal(1., 2.)).variance.item()
            3.5
        """
        mean = self.mean
        if self._is_of_numbers:
            return self.normalize().expect(SquaredDeviation(mean))
        ones = jax.tree.map(jnp.ones_like, mean)
        return self.normalize().expect(SquaredDeviations(mean, ones, len(self.shape), False))

    @property
    def std(self: Any) -> PyTree[Float[Array, "..."]]:
        """The root of the variance, with the derivative 0 at 0."""
        return jax.tree.map(lambda v: jnp.where(v == 0, 0, jnp.sqrt(jnp.where(v == 0, 1, v))), self.variance)

    @property
    @program
    def covariance(self: Any) -> Float[Array, "*family n n"]:
        """∫ (x − mean)(x − mean)ᵀ dP / P(1), of the n numbers of which a point is made.

        Examples:
            >>> import jax.numpy as jnp, measure_xent as mx
            >>> mx.Empirical((jnp.array([0., 2.]), jnp.array([1., 5.]))).covariance.tolist()
            [[1.0, 2.0], [2.0, 4.0]]
        """
        if self._is_of_numbers:
            return self.variance[..., None, None]
        scale = jax.tree.map(lambda s: lax.stop_gradient(jnp.where(s > 0, s, 1)), self.std)
        pairs = self.normalize().expect(SquaredDeviations(self.mean, scale, len(self.shape), True))
        own = jnp.diagonal(pairs, axis1=-2, axis2=-1) / 4
        s = jnp.concatenate([s.reshape(*self.shape, -1) for s in jax.tree.leaves(scale)], axis=-1)
        return s[..., :, None] * s[..., None, :] * (pairs - own[..., :, None] - own[..., None, :]) / 2

    @program
    def cdf(self: Any, x: Float[Array, "*family"]) -> Float[Array, "*family"]:
        """P((−∞, x]) / P(1), of a measure on the line; x broadcasts with the family.

        Raises:
            NotImplementedError: points are no numbers.

        Examples:
            >>> import jax.numpy as jnp, measure_xent as mx
            >>> (0.5 * mx.Normal(0., 1.) + 0.5 * mx.Dirac(1)).cdf(jnp.array([0., 1.])).tolist()
            [0.25, 0.9207]
        """
        return share(*self._tails("cdf")(_on_the_line("cdf(x)", x)))

    @program
    def survival(self: Any, x: Float[Array, "*family"]) -> Float[Array, "*family"]:
        """P((x, ∞)) / P(1), with all its digits where it is small."""
        below, above = self._tails("survival")(_on_the_line("survival(x)", x))
        return share(above, below)

    @program
    def quantile(self: Any, u: Float[Array, "*family"]) -> Float[Array, "*family"]:
        """The least x with cdf(x) ≥ u, of 0 and 1 the ends of the support. NaN, and −1 of integers, where u is no probability
        or P not positive.

        Derivatives are those of the implicit function, and of an atom its own; of a pushforward without ``inverse`` NaN.

        Raises:
            NotImplementedError: points are no numbers, or P is a sum over devices.

        Examples:
            >>> import jax.numpy as jnp, measure_xent as mx
            >>> P = 0.5 * mx.Normal(-1., 1.) + 0.5 * mx.Normal(1., 1.)
            >>> P.quantile(jnp.array([0.05, 0.5])).tolist()
            [-2.28447, 0.0]
            >>> mx.Empirical(jnp.array([3, 1, 2, 4])).quantile(0.5).item()
            2
        """
        u = _on_the_line("quantile(u)", u)
        if self.mesh_axes:
            raise NotImplementedError(
                f"quantile: {type(self).__name__} is a sum over devices, {sorted(self.mesh_axes)}"
            )
        tails, forms = self._tails("quantile"), self.forms()
        u = jnp.broadcast_to(u, jnp.broadcast_shapes(u.shape, self.shape))
        u = u.astype(jnp.result_type(u, *jax.eval_shape(tails, u)))
        mass = sum(tails(jnp.zeros(())))
        known = functools.reduce(jnp.logical_and, map(_is_positive, forms)) & (mass > 0) & (u >= 0) & (u <= 1)
        lists = [atoms for form in forms if isinstance(form, NormalForm) for atoms in form.atom_lists()]
        if len(lists) == len(forms) == 1:  # sorted, it says where they are
            x = Sorted.of(*lists[0][:2], self.shape).quantile(u)
        else:
            x = quantile(tails, u, ROUNDING if lists else 0)
            for form in forms:
                x = _or_atom(form, x, self.shape) if isinstance(form, NormalForm) else _or_end(form, x, u)
        if all(map(_is_of_integers, forms)):
            return jnp.where(known, x.astype(int), -1)
        return nan_where(~known, x.astype(u.dtype))

    @property
    def median(self: Any) -> Float[Array, "*family"]:
        """The quantile of ½."""
        return self.quantile(jnp.full(self.shape, 0.5))

    def interval(self: Any, level: Float[Array, "*family"]) -> tuple[Float[Array, "*family"], Float[Array, "*family"]]:
        """(low, high) with (1 − level)/2 of the mass on either side.

        Examples:
            >>> import measure_xent as mx
            >>> low, high = mx.Normal(0., 1.).interval(0.95)
            >>> low.item(), high.item()
            (-1.96, 1.96)
        """
        level = jnp.asarray(level, float)
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    @property
    def _is_of_numbers(self: Any) -> bool:
        return arity(self) == 1 and all(form.event_shape == () for form in self.forms())

    def _tails(self: Any, name: str) -> Tails:
        """x ↦ (P((−∞, x]), P((x, ∞))), this measure's own numbers: not divided by its mass."""
        if not self._is_of_numbers:
            raise NotImplementedError(
                f"{name}: {type(self).__name__} has points that are no numbers; take a coordinate's, with marginal(P, 0)"
            )
        each = [tails_of(form, self.shape) for form in self.forms()]

        def tails(x):
            return self._sum_over_devices(_sums(tails(x) for tails in each))

        return tails


def _point(*x: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, float), x[0] if len(x) == 1 else x)


def _on_the_line(name: str, x: Any) -> Array:
    return jnp.asarray(real_array(name, x), float)


def tails_of(form: Form, family: tuple[int, ...]) -> Tails:
    """x ↦ (the mass up to x, the mass above it) of a form whose points are numbers."""
    if isinstance(form, NormalForm):
        each = [Sorted.of(points, weights, family).tails for points, weights, _ in form.atom_lists()]
        return lambda x: _sums(tails(x) for tails in each)
    if isinstance(form, Disintegration):  # a mixture of as many laws as there are atoms
        k = form.weights.shape[-1]
        of_each = tails_of(form.target, (*family, k))
        weighed = lambda tail: null_safe_product(form.weights, tail).sum(-1)

        def of_all(x):
            below, above = of_each(jnp.broadcast_to(x[..., None], (*x.shape, k)))
            return weighed(below), weighed(above)

        return of_all
    assert isinstance(form, LawForm)
    if _is_plain(form):
        return lambda x: (form.c * form.law.cdf(x), form.c * form.law.survival(x))

    def tails(x):  # each point has panels of its own
        return jax.vmap(tails)(x) if x.ndim > len(family) else _integrated(form, x)

    return tails


def _is_plain(form: LawForm) -> bool:
    return not form.factors and form.transform is None and hasattr(form.law, "cdf")


def _sums(pairs: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    below, above = zip(*pairs, strict=True)
    return functools.reduce(jnp.add, below), functools.reduce(jnp.add, above)


class Sorted(NamedTuple):
    """Atoms on the line in order, and the masses up to each and from it on."""

    points: Shaped[Array, "*family k"]
    below: Float[Array, "*family k+1"]
    above: Float[Array, "*family k+1"]

    @classmethod
    def of(cls, points: Shaped[Array, "*#family k"], weights: Float[Array, "*#family k"], family: Any) -> "Sorted":
        shape = *family, jnp.broadcast_shapes(points.shape, weights.shape)[-1]
        points, weights = (jnp.broadcast_to(a, shape) for a in (points, weights))
        order = jnp.argsort(points, axis=-1)
        points, weights = (jnp.take_along_axis(a, order, axis=-1) for a in (points, weights))
        weights = jnp.where((points != points) & (weights != 0), jnp.nan, weights)  # NaN is on neither side
        end = jnp.zeros((*family, 1), weights.dtype)
        below = jnp.concatenate([end, jnp.cumsum(weights, axis=-1)], axis=-1)
        above = jnp.concatenate([jnp.flip(jnp.cumsum(jnp.flip(weights, -1), axis=-1), -1), end], axis=-1)
        return cls(points, below, above)

    def tails(self, x: Array) -> tuple[Array, Array]:
        (at,), taken = self._places(x, "right")
        return tuple(nan_where(jnp.isnan(x), taken(sums, at)) for sums in (self.below, self.above))  # type: ignore[return-value]

    def quantile(self, u: Array) -> Array:
        rows, flat, taken = self._rows(u)
        slack = ROUNDING * jnp.finfo(u.dtype).eps * jnp.minimum(rows, 1 - rows)
        share = flat(self.below[..., 1:] / self.below[..., -1:])
        first = jax.vmap(jnp.searchsorted)(share, rows - slack)
        none = jax.vmap(lambda share: jnp.searchsorted(share, 0.0, side="right"))(share)[:, None]
        return taken(self.points, jnp.clip(jnp.maximum(first, none), 0, self.points.shape[-1] - 1))

    def at(self, x: Array) -> tuple[Array, Array]:
        """(the point of the first atom that is not below x, whether there is mass at x)."""
        (first, last), taken = self._places(x, "left", "right")
        point = taken(self.points, jnp.minimum(first, self.points.shape[-1] - 1))
        return point, taken(self.below, first) != taken(self.below, last)

    def _places(self, x: Array, *sides: str) -> tuple[list[Array], Callable[[Array, Array], Array]]:
        rows, flat, taken = self._rows(x)
        points = flat(lax.stop_gradient(self.points).astype(x.dtype))
        search = lambda side: jax.vmap(lambda points, x: jnp.searchsorted(points, x, side=side))(points, rows)
        return list(map(search, sides)), taken

    def _rows(self, x: Array) -> tuple[Array, Callable[[Array], Array], Callable[[Array, Array], Array]]:
        """Places or levels [members, n], the arrays of the atoms a member a row, and how to take what is at indices of them."""
        family = self.points.shape[:-1]
        family = jnp.broadcast_shapes(family, x.shape[max(0, x.ndim - len(family)) :])
        shape, members = jnp.broadcast_shapes(x.shape, family), math.prod(family)
        rows = jnp.broadcast_to(x, shape).reshape(-1, members).T
        flat = lambda a: jnp.broadcast_to(a, (*family, a.shape[-1])).reshape(members, -1)
        return rows, flat, lambda a, i: jnp.take_along_axis(flat(a), i, axis=-1).T.reshape(shape)


def _integrated(form: LawForm, x: Array) -> tuple[Array, Array]:
    """Both tails as integrals."""
    tails = [form.integrate(OnOneSide(lax.stop_gradient(x), above)) for above in (False, True)]
    mass = lax.stop_gradient(jnp.abs(tails[0].value) + jnp.abs(tails[1].value))
    # Of a tail of next to nothing it is enough to know that.
    known = [(tail.status == 0) | (tail.error <= 4 * jnp.finfo(mass.dtype).eps * mass) for tail in tails]
    below, above = (nan_where(~fine, tail.value) for fine, tail in zip(known, tails, strict=True))
    if form.transform is not None:  # nobody knows where the integrand jumps as the map's parameters move
        parts = parts_of(form)
        others = x, [] if parts is None else parts.arrays
        return without_derivative(below, others), without_derivative(above, others)
    moved = moving_end(functools.partial(_weighted_density, form), x)
    return below + moved, above - moved


def _weighted_density(form: LawForm, x: Array) -> Array:
    """The density at x [*points, *family] of a law that functions weigh."""
    extra = max(0, x.ndim - len(form.family))
    behind = jnp.moveaxis(x, range(extra), range(x.ndim - extra, x.ndim)).reshape(*x.shape[extra:], -1)
    factors = math.prod(f.values(behind, len(form.family) + 1) for f in form.factors)
    factors = jnp.moveaxis(factors, -1, 0).reshape(jnp.broadcast_shapes(x.shape, form.family))
    return null_safe_product(form.c * form.law.density_of(x), factors)


def _or_atom(form: NormalForm, x: Array, family: tuple[int, ...]) -> Array:
    """The atom at x, if there is one, with its derivative, else x."""
    for points, weights, _ in form.atom_lists():
        point, here = Sorted.of(points, weights, family).at(lax.stop_gradient(x))
        x = jnp.where(here, point.astype(x.dtype), x)
    return x


def _or_end(form: Form, x: Array, u: Array) -> Array:
    """Of u = 0 and 1 the ends of a law, before which its tails round to 0; an integer, where it has mass at x; else x."""
    each = form.target if isinstance(form, Disintegration) else form
    if not isinstance(each, LawForm) or not _is_plain(each):
        return x
    # On one more axis the laws of a mixture, or this one alone.
    law, c = each.law, each.c
    law, c = (law.with_point_axis(), c[..., None]) if each is form else (law, c * form.weights)  # type: ignore[attr-defined]
    low, high = (jnp.where(c > 0, end, x[..., None]) for end in law.support)
    low, high = low.min(-1), high.max(-1)
    x = jnp.where(u == 0, jnp.minimum(x, low), jnp.where(u == 1, jnp.maximum(x, high), x))
    if not _is_of_integers(form):
        return x
    whole = lax.stop_gradient(jnp.round(x)) + 0.0  # and no −0
    has_mass = (c * law.density_of(whole[..., None]) > 0).any(-1)
    at_atom = (jnp.abs(x - whole) <= jnp.finfo(x.dtype).tiny) & has_mass
    return jnp.where(at_atom, whole, x)


def _is_positive(form: Form) -> Array:
    if isinstance(form, Disintegration):
        return jnp.all((form.weights >= 0) & _is_positive(form.target), axis=-1)
    masses = [weights for _, weights, _ in form.atom_lists()] if isinstance(form, NormalForm) else [form.c[..., None]]  # type: ignore[attr-defined]
    return functools.reduce(jnp.logical_and, [jnp.all(masses >= 0, axis=-1) for masses in masses])


def _is_of_integers(form: Form) -> bool:
    if isinstance(form, NormalForm):
        return all(jnp.issubdtype(points.dtype, jnp.integer) for points, _, _ in form.atom_lists())
    if isinstance(form, Disintegration):
        return _is_of_integers(form.target)
    assert isinstance(form, LawForm)
    return jnp.issubdtype(form._point.dtype, jnp.integer)
