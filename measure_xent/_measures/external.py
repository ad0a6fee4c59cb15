"""Distributions of other libraries as measures: numpyro, distrax, TensorFlow Probability on JAX."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._pytree import pytree, static
from .atoms import Atoms
from .categorical import Bernoulli, Categorical
from .counts import Binomial, Geometric, Poisson
from .dirichlet import Dirichlet
from .discrete import Dirac
from .intervals import Uniform
from .laws import Continuous, Integers, Law
from .line import Cauchy, Laplace, Normal, StudentT
from .measure import Measure
from .multivariate_normal import MultivariateNormal
from .positive import Beta, Exponential, Gamma, LogNormal
from .vectors import independent

# Families of ours, by the name that the others give them, with what they call our parameters, in our order. A parameter is the
# first of several names that is there.
_SAME: dict[str, tuple[type, dict[str, tuple[str, ...]]]] = {
    "Normal": (Normal, dict(loc=("loc",), scale=("scale",))),
    "Laplace": (Laplace, dict(loc=("loc",), scale=("scale",))),
    "Cauchy": (Cauchy, dict(loc=("loc",), scale=("scale",))),
    "StudentT": (StudentT, dict(df=("df",), loc=("loc",), scale=("scale",))),
    "LogNormal": (LogNormal, dict(loc=("loc",), scale=("scale",))),
    "Uniform": (Uniform, dict(low=("low",), high=("high",))),
    "Exponential": (Exponential, dict(rate=("rate",))),
    "Gamma": (Gamma, dict(concentration=("concentration",), rate=("rate",))),
    "Beta": (Beta, dict(concentration1=("concentration1", "alpha"), concentration0=("concentration0", "beta"))),
    "Dirichlet": (Dirichlet, dict(concentration=("concentration",))),
    "Poisson": (Poisson, dict(rate=("rate",))),
}
_BY_LOGITS = {"Categorical": Categorical, "Bernoulli": Bernoulli, "Geometric": Geometric}


def from_distribution(distribution: Any) -> Measure:
    """A distribution of numpyro, distrax or TensorFlow Probability as a measure; its batch shape is the family's.

    Families that are ours become ours, with their closed forms; ``Independent`` ones of them ``independent``. Any other is
    taken by its ``log_prob`` and sampler, on the support that it tells of (numpyro) or that its default bijector has (TFP);
    where the density's integral is not 1 there, its integrals say that they did not converge.

    Raises:
        TypeError: distribution has no log_prob and sampler.
        NotImplementedError: its points are arrays of more than one axis.

    Examples:
        >>> import numpyro.distributions as dist, measure_xent as mx  # doctest: +SKIP
        >>> mx.entropy(mx.from_distribution(dist.Gumbel(0., 1.))).item()  # doctest: +SKIP
        1.5772
    """
    if not (hasattr(distribution, "log_prob") and hasattr(distribution, "sample")):
        raise TypeError(
            "from_distribution(distribution): of numpyro, distrax or TFP, with log_prob and sample, got "
            f"{type(distribution).__name__}"
        )
    return _ours(distribution) or _wrapped(distribution)


def _names(d: Any) -> list[str]:
    """The distribution's classes up to the one that has its density: what derives from that says nothing else of it."""
    names = []
    for cls in type(d).__mro__:
        names.append(cls.__name__.removesuffix("Probs").removesuffix("Logits"))
        if {"log_prob", "_log_prob"} & set(vars(cls)):
            break
    return names


def _ours(d: Any) -> Measure | None:
    known = (_of_name(name, d) for name in _names(d))
    return next((measure for measure in known if measure is not None), None)


def _of_name(name: str, d: Any) -> Measure | None:
    if name in _SAME:
        cls, names = _SAME[name]
        first = lambda options: next((x for n in options if (x := getattr(d, n, None)) is not None), None)
        parameters = {ours: first(theirs) for ours, theirs in names.items()}
        if any(x is None for x in parameters.values()):
            return None
        return _spread(cls(**parameters), d)
    if name in ("Delta", "Deterministic", "VectorDeterministic"):
        return _point_mass(d)
    if name in _BY_LOGITS:
        # The parameter that was given, not the one that is made of it.
        given = {n: d.__dict__.get(n, d.__dict__.get(f"_{n}")) for n in ("logits", "probs")}
        logits, probs = (None if isinstance(x, property) else x for x in given.values())
        if name == "Geometric":
            return Geometric(jax.nn.sigmoid(jnp.asarray(logits)) if probs is None else probs)
        return _BY_LOGITS[name](logits) if logits is not None else _BY_LOGITS[name](probs=probs)
    if name == "Binomial":
        probs = d.probs if getattr(d, "probs", None) is not None else jax.nn.sigmoid(d.logits)
        return Binomial(d.total_count, probs)
    if name == "MultivariateNormalDiag":
        return independent(Normal(d.mean(), d.stddev()))
    if "MultivariateNormal" in name:
        factor = getattr(d, "scale_tril", None)
        covariance = getattr(d, "covariance_matrix" if hasattr(d, "covariance_matrix") else "covariance", None)
        given = [x() if callable(x) else x for x in (covariance, factor)]
        return MultivariateNormal(d.loc, given[0] if factor is None else None, scale_tril=given[1])
    if name == "Independent":
        inner = getattr(d, "base_dist", None) or getattr(d, "distribution", None)
        if inner is not None and len(d.event_shape) == 1 and isinstance(base := _ours(inner), Continuous | Integers):
            return independent(base)
    return None


def _point_mass(d: Any) -> Measure:
    """The mass at a point, a number or an array; numpyro's may be other than 1."""
    point = jnp.asarray(d.v if hasattr(d, "v") else d.loc)
    point = jnp.broadcast_to(point, (*d.batch_shape, *d.event_shape))
    one: Any = lambda x: Atoms(x[None])
    for _ in d.batch_shape:
        one = jax.vmap(one)
    P = one(point) if d.event_shape else Dirac(point)
    return jnp.exp(d.log_density) * P if hasattr(d, "log_density") else P


def _spread(law: Any, d: Any) -> Measure:
    """The law with the whole batch shape, which parameters alone may not have."""
    batch = tuple(d.batch_shape)
    if law.shape == batch:
        return law
    return type(law)(**{name: jnp.broadcast_to(x, batch) for name, x in law.__dict__.items()})


def _wrapped(d: Any) -> Law:
    if len(d.event_shape) > 1:
        raise NotImplementedError(
            f"from_distribution: points of shape {tuple(d.event_shape)}; numbers and vectors are taken"
        )
    if len(d.event_shape) == 1:
        return ExternalVector(d, _is_discrete(d))
    if _is_discrete(d):
        low = getattr(getattr(d, "support", None), "lower_bound", 0)
        if not isinstance(low, Tracer) and np.any(np.asarray(low) < 0):
            raise NotImplementedError(f"from_distribution: integers from 0 on, but {type(d).__name__} starts at {low}")
        return ExternalIntegers(d)
    return External(d, *_ends(d))


def _is_discrete(d: Any) -> bool:
    """Whether the points are integers, as numpyro says, TFP by having no bijector onto them, and others by their dtype."""
    no_bijector = getattr(d, "experimental_default_event_space_bijector", lambda: True)() is None
    known = getattr(getattr(d, "support", None), "is_discrete", False) or no_bijector
    return known or jnp.issubdtype(_dtype(d), jnp.integer)


def _dtype(d: Any) -> Any:
    return jax.eval_shape(lambda key: _sample(d, key, ()), jax.eval_shape(lambda: jax.random.key(0))).dtype


def _sample(d: Any, key: Array, shape: tuple[int, ...]) -> Array:
    if hasattr(d, "event_dim"):  # numpyro's
        return d.sample(key, shape)
    return d.sample(sample_shape=shape, seed=key)


class Wrapped(Law):
    """What any distribution gives: log_prob and sample. Its leaves are its own; families are handled by broadcasting alone."""

    distribution: Any

    @property
    def shape(self):
        return tuple(self.distribution.batch_shape)

    def with_family_rank(self, rank):
        if rank > len(self.shape) and self.shape:
            raise NotImplementedError(f"{self._name} as a family of shape {self.shape} beside one with more axes")
        return self

    def sample(self, key, shape=()):
        return _sample(self.distribution, key, shape)

    @property
    def _name(self) -> str:
        return type(self.distribution).__name__

    def _probe(self) -> Array:
        """Points that show where the mass is; which they are does not matter to any integral."""
        x = _sample(self.distribution, jax.random.key(0), (256,))
        return jax.lax.stop_gradient(jnp.sort(x, axis=0))

    def _log_prob(self, x: Array) -> Array:
        """log_prob, −inf off the support, where the distribution may give anything."""
        support = getattr(self.distribution, "support", None)
        if not callable(support):
            return self.distribution.log_prob(x)
        inside: Any = support(x)
        here = self._probe()[128]
        inside_x = jnp.where(inside.reshape(inside.shape + (1,) * (x.ndim - inside.ndim)), x, here)
        return jnp.where(inside, self.distribution.log_prob(inside_x), -jnp.inf)


@pytree
class External(Wrapped, Continuous):
    """A distribution of real numbers."""

    distribution: Any
    low: Float[Array, "*family"] | None
    high: Float[Array, "*family"] | None

    @property
    def support(self):
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    @property
    def centre(self):
        return self._probe()[128]

    @property
    def width(self):
        probe = self._probe()
        return (probe[192] - probe[64]) / 2 + jnp.finfo(probe.dtype).tiny

    def with_point_axis(self):
        return Column(self)

    def log_density_of(self, x):
        return self._log_prob(x)

    def quantile(self, u):
        if hasattr(self.distribution, "icdf"):
            return self.distribution.icdf(u)
        if hasattr(self.distribution, "quantile"):
            return self.distribution.quantile(u)
        raise NotImplementedError(f"{self._name} has no quantiles: pass method=MonteCarlo(key, n)")


@pytree
class Column(Continuous):
    """A family with an axis behind its own, for the points of each member."""

    finite_derivatives = False

    P: Any

    @property
    def shape(self):
        return (*self.P.shape, 1)

    @property
    def support(self):
        low, high = (end if isinstance(end, float) else end[..., None] for end in self.P.support)
        return low, high

    @property
    def centre(self):
        return self.P.centre[..., None]

    @property
    def width(self):
        return self.P.width[..., None]

    def log_density_of(self, x):
        # Samples come first and batches last with those who made the distribution.
        return jnp.moveaxis(self.P.log_density_of(jnp.moveaxis(x, -1, 0)), 0, -1)

    def sample(self, key, shape=()):
        return self.P.sample(key, shape)[..., None]

    def quantile(self, u):
        return self.P.quantile(u[..., 0])[..., None]


def _ends(d: Any) -> tuple[Any, Any]:
    """The ends of the support, None where there is none: as numpyro says, or TFP's default bijector of the real line."""
    support: Any = getattr(d, "support", None)
    bijector = getattr(d, "experimental_default_event_space_bijector", None)
    if bijector is not None:
        with jax.ensure_compile_time_eval():
            ends = [bijector().forward(jnp.full(tuple(d.batch_shape), end)) for end in (-jnp.inf, jnp.inf)]
    else:
        ends = [getattr(support, f"{which}_bound", None) for which in ("lower", "upper")]
    # Of parameters that are being traced, nobody can say whether an end is there: the law's mass will tell if it is.
    known = [None if x is None or (isinstance(x, Tracer) and bijector is not None) else x for x in ends]
    infinite = lambda x: x is None or (not isinstance(x, Tracer) and bool(np.all(np.isinf(np.asarray(x)))))
    low, high = (None if infinite(x) else jnp.broadcast_to(jnp.asarray(x, float), tuple(d.batch_shape)) for x in known)
    return low, high


@pytree
class ExternalIntegers(Wrapped, Integers):
    """A distribution on the integers from 0."""

    distribution: Any

    mean, variance = Measure.mean, Measure.variance  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def centre(self):
        return self._moment("mean", lambda points: points.mean(0))

    @property
    def width(self):
        return jnp.sqrt(self._moment("variance", lambda points: points.var(0)))

    def _moment(self, name: str, of: Callable[[Array], Array]) -> Array:
        """A moment, which tells a sum where to look: that of draws where the distribution gives none that is finite."""
        drawn = of(self._probe().astype(float))
        try:
            known = getattr(self.distribution, name)
            known = known() if callable(known) else known
        except (AttributeError, NotImplementedError):
            return drawn
        known = jnp.broadcast_to(jnp.asarray(known, drawn.dtype), self.shape)
        return jnp.where(jnp.isfinite(known), known, drawn)

    def with_point_axis(self):
        return Column(self)

    def log_density_of(self, x):
        x = jnp.asarray(x)
        whole = (x >= 0) & (x == jnp.floor(x))
        log_p = self._log_prob(jnp.where(whole, x, 0).astype(_dtype(self.distribution)))
        return jnp.where(whole, log_p, -jnp.inf)

    def cdf(self, x):
        return self.distribution.cdf(x)


@pytree
class ExternalVector(Wrapped):
    """A distribution of vectors, of integers on a lattice: for the methods that draw."""

    distribution: Any
    lattice: bool = static(default=False)

    @property
    def pathwise(self):  # type: ignore[override]
        return not self.lattice

    @property
    def dimension(self):  # type: ignore[override]
        return self.distribution.event_shape[0]

    def parts(self):
        return {(self.lattice,): self}

    def log_density_of(self, x):
        if not self.lattice:
            return self._log_prob(x)
        x = jnp.asarray(x)
        whole = jnp.all(x == jnp.floor(x), axis=-1)
        log_p = self._log_prob(jnp.where(whole[..., None], x, self._probe()[0]).astype(_dtype(self.distribution)))
        return jnp.where(whole, log_p, -jnp.inf)
