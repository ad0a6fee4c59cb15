"""Distributions of other libraries as measures: numpyro, distrax, TensorFlow Probability on JAX."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._measure import Measure
from .._pytree import pytree
from .counts import Binomial, Geometric, Poisson
from .finite import Bernoulli, Categorical
from .intervals import Uniform
from .laws import Continuous, Integers, Law
from .line import Cauchy, Laplace, Normal, StudentT
from .positive import Beta, Exponential, Gamma, LogNormal
from .vectors import Dirichlet, MultivariateNormal, independent

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


def _ours(d: Any) -> Measure | None:
    names = [cls.__name__ for cls in type(d).__mro__]
    name = names[0].removesuffix("Probs").removesuffix("Logits")
    if name in _SAME:
        cls, names = _SAME[name]  # type: ignore[assignment]
        first = lambda options: next((x for n in options if (x := getattr(d, n, None)) is not None), None)
        parameters = {ours: first(theirs) for ours, theirs in names.items()}  # type: ignore[attr-defined]
        if any(x is None for x in parameters.values()):
            return None
        return _spread(cls(**parameters), d)
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
    if name in ("MultivariateNormal", "MultivariateNormalFullCovariance", "MultivariateNormalTriL"):
        factor = getattr(d, "scale_tril", None)
        covariance = d.covariance() if factor is None else None
        return MultivariateNormal(d.loc, covariance, scale_tril=factor() if callable(factor) else factor)
    if name in ("MultivariateNormalDiag", "Independent"):
        inner = getattr(d, "base_dist", None) or getattr(d, "distribution", None)
        if name == "MultivariateNormalDiag":
            return independent(Normal(d.mean(), d.stddev()))
        if inner is not None and len(d.event_shape) == 1 and isinstance(base := _ours(inner), Continuous | Integers):
            return independent(base)
    return None


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
        return ExternalVector(d)
    support = getattr(d, "support", None)
    no_bijector = getattr(d, "experimental_default_event_space_bijector", lambda: True)() is None
    if getattr(support, "is_discrete", False) or no_bijector or jnp.issubdtype(_dtype(d), jnp.integer):
        low = getattr(support, "lower_bound", 0)
        if not isinstance(low, Tracer) and np.any(np.asarray(low) < 0):
            raise NotImplementedError(f"from_distribution: integers from 0 on, but {type(d).__name__} starts at {low}")
        return ExternalIntegers(d)
    return External(d, *_ends(d))


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

    def at_rank(self, rank):
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

    def each(self):
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

    tame = False

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

    @property
    def mean(self):
        mean = self.distribution.mean
        return jnp.broadcast_to(jnp.asarray(mean() if callable(mean) else mean), self.shape)

    @property
    def variance(self):
        variance = self.distribution.variance
        return jnp.broadcast_to(jnp.asarray(variance() if callable(variance) else variance), self.shape)

    def each(self):
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
    """A distribution of vectors: for the methods that draw."""

    distribution: Any

    @property
    def dimension(self):  # type: ignore[override]
        return self.distribution.event_shape[0]

    def split(self):
        return None, self

    def log_density_of(self, x):
        return self._log_prob(x)
