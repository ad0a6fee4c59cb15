"""Measures and their algebra: one node a combinator."""

import abc
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree, Shaped

from .._forms.batches import in_batches
from .._forms.form import Form, check_one_space
from .._forms.law_form import LawForm
from .._forms.members import by_members, deferred_families, without_null
from .._integrands.composites import Indicator
from .._integrands.density import LogDensity, RadonNikodym, along_the_path, relative_to
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand, as_integrand, is_number
from .._integrands.rules import integrate
from .._kernels.checks import real_array
from .._kernels.classes import Classes
from .._kernels.mesh import sum_over
from .._kernels.null import null_atoms, null_safe_product, without
from .._kernels.scaled import Ratio, ScaledNumber
from .._kernels.target import Target, expand
from .._program import program
from .._pytree import pytree, set_fields
from .._strict import at_home
from .shapes import arity, atom_axes, check_families, drawn, enumerable, family_of, sample_axes, shapes_of, static_mass
from .summaries import Summaries

_PROGRAMS = {"mass", "mode", "log_partition", "log_density"}  # beside the integrals

_SHOWN = {name for name in vars(Summaries) if not name.startswith("_")} | {
    *("shape", "mass", "expect", "integrate", "sample", "log_density", "mode"),
    *("normalize", "restrict", "reweight", "support", "log_partition", "logits", "probs", "covariance_matrix"),
}

# What distributions of other libraries call it.
_ELSEWHERE = {
    "log_prob": "log_density(x), or log(P)(x)",
    "prob": "exp(log_density(x))",
    "icdf": "quantile(u)",
    "rsample": "sample(key, shape)",
    "stddev": "std",
    "entropy": "entropy(P)",
    "kl_divergence": "kl_divergence(P, Q)",
    "batch_shape": "shape",
    "to_event": "independent(P)",
}


def _compile(cls: type) -> None:
    """Makes programs of what a class of measures computes outside of its integrals."""
    for name in _PROGRAMS.intersection(vars(cls)):
        member: Any = vars(cls)[name]
        if isinstance(member, property):
            getter: Any = member.fget
            setattr(cls, name, property(program(getter, numbers=True), doc=member.__doc__))
        else:
            setattr(cls, name, program(member, numbers=True))
    if "sample" in vars(cls):
        cls.sample = _sampler(cls.sample)
    if "quantile" in vars(cls) and hasattr(cls, "support"):
        cls.quantile = _quantile(cls.quantile)


def _quantile(of: Callable) -> Callable:
    """A law's quantile, of levels that are no probabilities NaN, or −1 of integers; the ends of the support at 0 and 1."""

    @functools.wraps(of)
    def checked(self, u):
        u = jnp.asarray(real_array("quantile(u)", u), float)
        x, (low, high) = of(self, u), self.support
        known = (u >= 0) & (u <= 1)
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.where(known, jnp.maximum(x, jnp.asarray(low).astype(int)), -1)
        return jnp.where(known, jnp.where(u == 0, low, jnp.where(u == 1, high, x)), jnp.nan)

    return checked


def _sampler(sample: Callable) -> Callable:
    """Takes 3 for the shape (3,), and says what is no key."""

    @functools.wraps(sample)
    def checked(self, key, shape=()):
        try:
            jax.eval_shape(jax.random.split, key)
        except (TypeError, ValueError):
            got = f"keys of shape {key.shape}" if hasattr(key, "shape") else type(key).__name__
            raise TypeError(f"sample(key): a jax.random.key(seed), got {got}") from None
        sizes = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        try:
            sizes = tuple(map(operator.index, sizes))
        except TypeError:
            sizes = (-1,)
        if any(n < 0 for n in sizes):
            raise ValueError(f"sample(shape): a number of points, or a tuple of such, got {shape!r}")
        return sample(self, key, sizes)

    return checked


class Measure(Summaries, abc.ABC):
    """A measure: what integrates functions. ``P.expect(f)`` is ∫ f dP.

    Leading axes of the parameters index a family, ``shape``; families broadcast against each other, and results have
    the broadcast shape. A measure on tuples calls functions with the coordinates as arguments.

    A subclass is a frozen pytree that gives ``shape`` and ``forms()`` (of a measure made of atoms those; everything else
    follows) or rules for ``expect`` (see ``rule``) and ``scaled_density``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> @mx.pytree
        ... class Die(mx.Measure):
        ...     faces: int = mx.static()
        ...     @property
        ...     def shape(self):
        ...         return ()
        ...     def forms(self):
        ...         weights = jnp.full(self.faces, 1 / self.faces)
        ...         return (mx.NormalForm(1 + jnp.arange(self.faces), weights),)
        >>> float(Die(6).expect(lambda face: face)), float(mx.entropy(Die(6)))
        (3.5, 1.791759)
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        _compile(cls)

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The family axes; () for one measure."""

    def __getattr__(self, name):
        if name in _ELSEWHERE:
            raise AttributeError(f"{type(self).__name__} has no {name}: here it is {_ELSEWHERE[name]}")
        return object.__getattribute__(self, name)  # with the error of a property, where it was one

    def __dir__(self):
        """What a user may ask; how a measure is computed is for those who extend it."""
        of_class = {name for name in _SHOWN if hasattr(type(self), name)}
        elsewhere = {name for cls in type(self).__mro__ if not at_home(cls) for name in vars(cls)}
        return sorted(name for name in {*of_class, *elsewhere, *vars(self)} if not name.startswith("_"))

    def forms(self) -> tuple[Form, ...]:
        """The measure as a sum of forms: lists of atoms, rows, laws."""
        raise NotImplementedError(f"{type(self).__name__} has no finite form")

    def parts(self) -> dict[tuple[bool, ...], "Measure"]:
        """The parts of which each coordinate is at atoms, True, or has a density against Lebesgue measure, False: all that
        there are. The forms tell; a measure without forms has a density, or says otherwise here.
        """
        try:
            kinds = shapes_of(lambda: [form.at_atoms for form in self.forms()])
        except NotImplementedError:
            return {(False,): self}
        if len({*kinds}) == 1:
            return {kinds[0]: self}
        of_kind = lambda kind: Lowered(tuple(f for f, k in zip(self.forms(), kinds, strict=True) if k == kind))
        return {kind: of_kind(kind) for kind in dict.fromkeys(kinds)}

    def scaled_density(self, *x: Any) -> tuple[Float[Array, "*family"], Float[Array, "*family"]]:
        """(log_scale, factor) at a point: the density is factor · exp(log_scale), and need not underflow.

        It is against counting measure at an atom, against Lebesgue measure elsewhere.
        """
        return by_forms(self, x)

    def log_density(self, *x: Any) -> Float[Array, "*family"]:
        """log of the density at x, that of ``scaled_density``, in nats: −inf off the support, NaN where it is negative."""
        if (by_member := _log_density_by_members(self, *x)) is not NotImplemented:
            return by_member
        return ScaledNumber(*self.scaled_density(*x)).log

    @property
    def mode(self) -> Shaped[Array, "*family"]:
        """The point of the greatest mass, the first of several: the least class, or the first in the list of atoms."""
        if (by_member := by_members(lambda P: P.mode, self)) is not NotImplemented:
            return by_member
        if not enumerable(self):
            raise NotImplementedError(f"{type(self).__name__} has no mode: measures made of atoms have")
        flat: Any = [flat for form in self.forms() for flat in form.flat()]
        forms = [form.materialise() for form in flat]
        if classes := next((form.classes for form in forms if form.classes), None):
            targets = [Target(form.points, form.weights, form.background, form.dense) for form in forms]
            masses = sum(expand(Classes(classes), *target)[1] for target in targets)
            masses = jnp.broadcast_to(self._sum_over_devices(masses), (*self.shape, classes))
            return jnp.argmax(masses, axis=-1).astype(jnp.int32)
        points, weights = zip(
            *((x, w) for form in forms for x, w, _ in form.with_family_rank(len(self.shape)).atom_lists()), strict=True
        )
        masses = [LogDensity(self).values(x, w.ndim) for x, w in zip(points, weights, strict=True)]
        lead = len(self.shape)
        join = lambda *x: jnp.concatenate([jnp.broadcast_to(a, (*self.shape, *a.shape[lead:])) for a in x], axis=lead)
        at = jnp.argmax(join(*masses), axis=-1)
        take = lambda *x: jnp.take_along_axis(y := join(*x), at.reshape(*at.shape, *(1,) * (y.ndim - lead)), axis=lead)
        return jax.tree.map(lambda *x: jnp.squeeze(take(*x), axis=lead), *points)

    @property
    def mesh_axes(self) -> frozenset[str]:
        """The mesh axes of shard_map over whose devices the measure is a sum: ``forms`` are what this device has of it."""
        return frozenset()

    @property
    def mass(self) -> Float[Array, "*family"]:
        """P(1), the integral of 1.

        Examples:
            >>> import measure_xent as mx
            >>> float((3 * mx.Dirac(0) + 2 * mx.DiscreteUniform(10)).mass)
            5.0
        """
        if (by_member := by_members(lambda P: P.mass, self)) is not NotImplemented:
            return by_member
        return self._sum_over_devices(functools.reduce(jnp.add, [form.mass() for form in self.forms()]))

    def _sum_over_devices(self, share: Any) -> Any:
        # What a trace knows, such as an error of 0, is the same on every device.
        return jax.tree.map(lambda x: sum_over(x, self.mesh_axes) if hasattr(x, "dtype") else x, share)

    @program
    def expect(
        self, f: Callable | Integrand | dict | tuple | list, *, batch_size: int | None = None, method: Any = None
    ) -> PyTree[Shaped[Array, "..."]]:
        """∫ f dP: the integral, which for a probability measure is the expectation.

        Args:
            f: a function of one point (of the coordinates, on tuples), with a number, an array or a pytree for a value;
                or an Integrand such as log(Q), which is integrated in closed form where a rule knows how.
            batch_size: how many atoms of an empirical measure to hold at a time, forwards and backwards; all by default.
            method: how to integrate what has a density: ``Adaptive``, ``Quadrature``, ``MonteCarlo``, ``QuasiMonteCarlo``. By
                default exactly where there is a closed form, else adaptively. Atoms are summed whatever it is.

        Returns:
            ∫ f dP, with the family's axes first. Null atoms contribute exactly 0, to derivatives too. Half precision
            accumulates in, and gives, float32. NaN where a quadrature did not converge: ``integrate`` tells how far it came.

        Raises:
            TypeError: f is neither callable nor a number (the constant function), or does not take P's points.
            ValueError: the families of P and f do not broadcast, or the class counts differ.

        Examples:
            >>> import jax.numpy as jnp, measure_xent as mx
            >>> float(mx.DiscreteUniform(6).expect(lambda face: face + 1))
            3.5
            >>> mx.Empirical(jnp.array([[1., 2.], [3., 4.]])).expect(lambda x: {"mean": x, "square": x @ x})
            {'mean': Array([2., 3.], dtype=float32), 'square': Array(15., dtype=float32)}
        """
        return self._integral(f, batch_size, method).checked

    @program
    def integrate(
        self, f: Callable | Integrand | dict | tuple | list, *, batch_size: int | None = None, method: Any = None
    ) -> Integral:
        """∫ f dP with its error, its status and P's mass: what ``expect`` gives, and how much of it to believe.

        Arguments and errors are those of ``expect``, but what did not converge is a number here, and says so in ``status``.

        Examples:
            >>> import jax.numpy as jnp, measure_xent as mx
            >>> mx.Empirical(jnp.array([1., 2.])).integrate(jnp.square).value.item()
            2.5
        """
        total = self._integral(f, batch_size, method)
        error = jax.tree.map(lambda v, e: jnp.broadcast_to(e, jnp.shape(v)), total.value, total.error)
        return Integral(total.value, error, jnp.asarray(total.status), self.mass)

    def _integral(self, f, batch_size, method):
        f = as_integrand(f)
        check_families(self, f)
        if method is not None and not hasattr(method, "integrate"):
            raise TypeError(f"expect(method): such as MonteCarlo(key, n) or Quadrature(n), got {type(method).__name__}")
        if batch_size is None:
            total = integrate(self if method is None else using(self, method), f)
        else:
            batch = lambda form: integrate(Lowered((form if method is None else form.using(method),)), f)
            # A law has no atoms to take a few at a time.
            one = lambda form: batch(form) if isinstance(form, LawForm) else in_batches(batch, form, batch_size)
            total = functools.reduce(Integral.__add__, map(one, self.forms()))
        return self._sum_over_devices(total)

    @program
    def sample(self, key: Array, shape: Any = ()) -> PyTree[Shaped[Array, "..."]]:
        """Independent points of P / P.mass, each of the whole family: [*shape, *family, …], a tuple of coordinates on tuples.

        What members have in common, such as one law under a factor each, is drawn once for all of them. A restricted law is
        drawn from by rejection, without a derivative. Where there is nothing to draw, because a member is null, has negative
        mass, or a restriction leaves next to nothing of it, points are NaN, and −1 if they are integers.

        Args:
            key: a jax.random.key.
            shape: how many, such as 3 or (2, 3); () for one.

        Raises:
            TypeError: key is none.
            NotImplementedError: P is a law that a density weighs, or is summed over devices.

        Examples:
            >>> import jax, jax.numpy as jnp, measure_xent as mx
            >>> P = mx.joint(mx.Normal(0., 1.), mx.Conditional(lambda x: mx.Normal(x, 0.1)))
            >>> x, y = P.sample(jax.random.key(0), 1000)
            >>> x.shape, jnp.std(y - x).item()
            ((1000,), 0.1)
            >>> mx.DiscreteUniform(6).restrict(lambda face: face > 2).sample(jax.random.key(0), (2, 8)).min().item()
            3
        """
        return drawn(self, key, shape)

    def reweight(self, f: Callable | Integrand) -> "Measure":
        """f · P, the measure with density f against P. Source: dν = f dμ.

        Examples:
            >>> import jax.numpy as jnp, measure_xent as mx
            >>> class_weight = jnp.array([1., 3.])
            >>> P = mx.Empirical(jnp.array([0, 1, 0])).reweight(lambda y: class_weight[y]).normalize()
            >>> P.expect(lambda y: y).item()
            0.6
        """
        if not callable(f):
            raise TypeError(
                f"reweight(f): f must be a function of a point, such as lambda y: class_weight[y], got {type(f).__name__}; "
                "weights of samples are Empirical(x, weights=w), and c * P scales"
            )
        return Weighted(f, self)

    def restrict(self, A: Callable[..., Bool[Array, ""]]) -> "Measure":
        """1_A · P, the measure on the points where the predicate A holds. What A closes over has no derivative; the ends of
        ``truncate`` have. On a joint, y is the drawn coordinate: to leave out whole rows under soft targets, give them weight
        0 instead.

        Examples:
            >>> import jax.numpy as jnp, measure_xent as mx
            >>> P = mx.Empirical(jnp.array([2, -100, 4])).restrict(lambda y: y != -100).normalize()
            >>> float(P.expect(lambda y: y))
            3.0
        """
        if not callable(A):
            raise TypeError(
                f"restrict(A): A must be a predicate of a point, got {type(A).__name__}; a mask is weights=mask"
            )
        return Weighted(Indicator(A), self)

    def normalize(self) -> "Measure":
        """P / P.mass; the null measure stays null. NaN where masses of both signs cancel: there is a sum then, and no mean.

        Examples:
            >>> import measure_xent as mx
            >>> float((0 * mx.Dirac(1)).normalize().mass)
            0.0
        """
        return self if static_mass(self) == 1 else Normalized(self)

    def __add__(self, other: "Measure") -> "Measure":
        return Sum((self, other)) if isinstance(other, Measure) else NotImplemented

    def __radd__(self, other: Any) -> "Measure":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum([P, Q]) starts from 0

    def __sub__(self, other: "Measure") -> "Measure":
        return Sum((self, Scaled(-1.0, other))) if isinstance(other, Measure) else NotImplemented

    def __neg__(self) -> "Measure":
        return Scaled(-1.0, self)

    def __mul__(self, other: Any) -> "Measure":
        if is_number(other):
            return Scaled(other, self)
        return Weighted(other, self) if callable(other) else NotImplemented

    def __rmul__(self, other: Any) -> "Measure":
        return self * other

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Measure):
            return RadonNikodym(self, other)
        return Scaled(1 / other, self) if is_number(other) else NotImplemented

    # NumPy scalars and arrays then leave c * P to P.
    __array_ufunc__ = None


def _log_density_by_members(P: Measure, *x: Any) -> Any:
    """Of a family that exists in blocks, whose axes are the last ones of the points."""
    if not deferred_families((P,)):
        return NotImplemented
    shape = jnp.broadcast_shapes(P.shape, *map(jnp.shape, x))
    lead = len(shape) - len(P.shape)
    if shape[lead:] != P.shape:
        return NotImplemented
    points = [jnp.moveaxis(jnp.broadcast_to(a, shape).reshape(-1, *P.shape), 0, -1) for a in x]
    values = by_members(lambda P, *x: jax.vmap(P.log_density, -1, -1)(*x), P, *points)
    return values if values is NotImplemented else jnp.moveaxis(values, -1, 0).reshape(shape)


def by_forms(P: Measure, x: tuple) -> ScaledNumber:
    """The density of a measure as its forms have it."""
    share = {"mesh_axes": P.mesh_axes} if P.mesh_axes else {}
    densities = [form.density(*x, **share) for form in P.forms()]
    return ScaledNumber.of(P._sum_over_devices(functools.reduce(jnp.add, densities)))


def of_parts(parts: dict[tuple[bool, ...], Measure], x: tuple) -> ScaledNumber:
    """The mass of {x} where atoms have one, else the density."""

    def of_two(atom, density):
        at_atom = (atom.factor != 0) & (atom.log_scale > -jnp.inf)
        return ScaledNumber(*(jnp.where(at_atom, a, d) for a, d in zip(atom, density, strict=True)))

    return functools.reduce(of_two, (ScaledNumber(*parts[k].scaled_density(*x)) for k in sorted(parts, reverse=True)))


class Transformed(Measure):
    """A measure made of P, with its family and its devices: a subclass gives the forms, and ``parts``."""

    P: Measure

    @property
    def shape(self):
        return self.P.shape

    @property
    def mesh_axes(self):
        return self.P.mesh_axes

    @abc.abstractmethod
    def forms(self) -> Any: ...

    @abc.abstractmethod
    def parts(self) -> Any: ...


class Reweighted(Transformed):
    """Other masses at the points of P."""


arity.register(Reweighted, lambda P: arity(P.P))
atom_axes.register(Reweighted, lambda P: atom_axes(P.P))
sample_axes.register(Reweighted, lambda P: sample_axes(P.P))


def using(P: Measure, method: Any) -> Measure:
    """The same measure, whose laws are to be integrated by a method."""
    return Lowered(tuple(form.using(method) for form in P.forms()))


def together(parts: Sequence[dict[tuple[bool, ...], Measure]]) -> dict[tuple[bool, ...], Measure]:
    """The parts of a sum."""
    kinds = dict.fromkeys(kind for each in parts for kind in each)
    return {kind: Sum(tuple(each[kind] for each in parts if kind in each)) for kind in kinds}


@pytree
class Scaled(Reweighted):
    """c · P, one c a member of a family."""

    c: Float[ArrayLike, "*family"]
    P: Measure

    def __post_init__(self):
        try:
            jnp.broadcast_shapes(jnp.shape(self.c), self.P.shape)
        except ValueError:
            raise ValueError(
                f"c * P: c has shape {jnp.shape(self.c)}, which does not broadcast with P's family {self.P.shape}"
            ) from None

    @property
    def shape(self):
        return jnp.broadcast_shapes(jnp.shape(self.c), self.P.shape)

    def forms(self):
        if isinstance(self.c, int | float):
            return tuple(form.scale(self.c) for form in self.P.forms())
        rank = len(self.shape)
        c = jnp.asarray(self.c).reshape((1,) * (rank - jnp.ndim(self.c)) + jnp.shape(self.c))
        of = lambda P: [form.with_family_rank(rank) for form in P.forms()]
        absent, held = null_atoms(lambda: [form.masses for form in of(self.P)], c, ())
        pairs = zip(of(without_null(self.P, absent)), of(self.P), held, strict=True)
        # Points and whatever else is not a mass are the measure's own.
        return tuple(own.with_masses(*without(absent, form.masses, known)).scale(c) for form, own, known in pairs)

    def parts(self) -> Any:
        return {kind: Scaled(self.c, part) for kind, part in self.P.parts().items()}

    def scaled_density(self, *x):
        log_p, p = self.P.scaled_density(*x)
        return ScaledNumber(log_p, jnp.asarray(self.c) * p)


@relative_to.register(Scaled)
def _of_a_multiple(P: Scaled, Q: Measure, *x: Any) -> Ratio | None:
    c, Q = (Q.c, Q.P) if isinstance(Q, Scaled) else (1.0, Q)
    ratio = relative_to(P.P, Q, *x)
    return None if ratio is None else ratio._replace(p=ratio.p * jnp.asarray(P.c), q=ratio.q * jnp.asarray(c))


@pytree
class Sum(Measure):
    """Σ Pᵢ, the superposition."""

    terms: tuple[Measure, ...]

    def __post_init__(self):
        terms = tuple(t for P in self.terms for t in (P.terms if isinstance(P, Sum) else (P,)))
        set_fields(self, terms=terms)
        family_of(*terms)
        axes = [sorted(P.mesh_axes) for P in terms]
        if any(each != axes[0] for each in axes):
            raise ValueError(f"P + Q: sums over the devices of the same mesh axes, got {axes}; give each its axis_name")

    @property
    def shape(self):
        return jnp.broadcast_shapes(*(P.shape for P in self.terms))

    @property
    def mesh_axes(self):
        return self.terms[0].mesh_axes

    def forms(self):
        forms: list[Form] = []
        each = [form for P in self.terms for form in P.forms()]
        check_one_space(each)
        for form in each:
            merged = forms[-1].merge(form) if forms else None
            forms[-1:] = [merged] if merged is not None else [*forms[-1:], form]
        return tuple(forms)

    def parts(self) -> Any:
        return together([P.parts() for P in self.terms])

    def scaled_density(self, *x):
        if len(parts := self.parts()) > 1:
            return of_parts(parts, x)
        return ScaledNumber.sum([P.scaled_density(*x) for P in self.terms])


arity.register(Sum, lambda P: arity(P.terms[0]))


@relative_to.register(Sum)
def _of_a_sum(P: Sum, Q: Measure, *x: Any) -> Ratio | None:
    laws = all(isinstance(form, LawForm) and not form.factors for form in P.forms())
    return along_the_path(P, Q, *x) if laws and arity(P) == 1 else None


@pytree
class Weighted(Reweighted):
    """f · P, the measure with density f against P."""

    f: Any  # any callable when given, an Integrand when kept
    P: Measure

    def __post_init__(self):
        set_fields(self, f=as_integrand(self.f))
        check_families(self.P, self.f)

    @property
    def shape(self):
        family: tuple[int, ...] = self.f.shape
        return jnp.broadcast_shapes(family, self.P.shape)

    def forms(self):
        return tuple(form.reweight(self.f) for form in self.P.forms())

    def parts(self) -> Any:
        return {kind: Weighted(self.f, part) for kind, part in self.P.parts().items()}

    def scaled_density(self, *x):
        log_p, p = self.P.scaled_density(*x)
        # f need not exist where P has no mass: P / Q is NaN where neither lives.
        p = jnp.where(log_p == -jnp.inf, 0, p)
        log_f, f = map(jnp.asarray, self.f.scaled(*x))
        f, p = jnp.broadcast_arrays(f.astype(jnp.promote_types(f.dtype, jnp.bfloat16)), p)
        return ScaledNumber(log_p + jnp.where(p == 0, 0, log_f), null_safe_product(p, f))


@pytree
class Normalized(Reweighted):
    """P / P.mass, null where P is."""

    P: Measure

    def forms(self):
        return tuple(form.scale(self._scale()) for form in self.P.forms())

    def parts(self) -> Any:
        return {kind: Scaled(self._scale(), part) for kind, part in self.P.parts().items()}

    def scaled_density(self, *x):
        log_p, p = self.P.scaled_density(*x)
        return ScaledNumber(log_p, self._scale() * p)

    @property
    def mass(self):
        mass = self._mass()
        return jnp.where(jnp.isnan(mass), jnp.nan, jnp.where(mass == 0, 0.0, 1.0))

    def _tails(self, name):
        return self.P._tails(name)  # as they are: a sum of n weights 1 is n

    def _mass(self):
        """P(1), NaN where masses of both signs cancel: what is left is their errors, and there is no mean."""
        if type(self.P).mass is not Measure.mass:  # which the measure says itself, and nothing of it is negative
            return self.P.mass
        masses, errors = zip(*(form.mass_and_error() for form in self.P.forms()), strict=True)
        mass, error = self.P._sum_over_devices([functools.reduce(jnp.add, each) for each in (masses, errors)])
        return jnp.where((jnp.abs(mass) <= error) & (error > 0), jnp.nan, mass)

    def _scale(self):
        if (known := static_mass(self.P)) is not None:
            return 1 / known
        mass = self._mass()
        null = mass == 0
        return jnp.where(null, 0, 1 / jnp.where(null, 1, mass))


@pytree
class Lowered(Measure):
    """A measure given by its forms."""

    lowered: tuple[Form, ...]

    @property
    def shape(self):
        return jnp.broadcast_shapes(*(form.family for form in self.lowered))

    def forms(self):
        return self.lowered


_compile(Measure)
