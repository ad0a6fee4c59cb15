"""Rules for KL(P‖Q) that know both measures: on classes, of laws of one family, of products.

Every one is a sum of what is nowhere negative. Of an exponential family KL is the remainder of its log-partition A to second
order, A(η′) − A(η) − ⟨∇A(η), η′ − η⟩, which as a difference has lost its digits wherever A is large or η′ near η. As the
integral of A's curvature, or by eˣ − 1 − x, it has them all, and so have its derivatives, Fisher's information among them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .. import generators
from .._forms.members import by_members
from .._forms.normal_form import NormalForm
from .._integrands.density import KullbackLeibler, RatioFunction, log
from .._integrands.rules import integrate, rule
from .._kernels.classes import Classes, accumulator
from .._kernels.null import where_supported
from .._kernels.ratio import divergence_of_softmaxes, excess, log_ratio, relative
from .._kernels.scaled import Ratio
from .._kernels.softmax import log_softmax
from .._kernels.target import expand
from .categorical import Bernoulli, Categorical
from .counts import Geometric, Poisson
from .dirichlet import Dirichlet
from .intervals import Uniform
from .line import Cauchy, Laplace, Normal
from .measure import Measure, Sum
from .multivariate_normal import gaussian
from .positive import Beta, Exponential, Gamma, LogNormal
from .product import ProductMeasure, times_mass
from .shapes import arity, static_mass
from .target import materialised_target
from .vector_pairs import one_space
from .vectors import Independent, Vectors


def between(P: type, Q: type) -> Callable[[Callable], Callable]:
    """Registers KL(P‖Q) as a function of the two measures, or NotImplemented."""

    def register(function: Callable) -> Callable:
        @rule(Sum, KullbackLeibler, P, Q)
        def known(S: Sum, f: Any) -> Any:
            return function(f.P, f.Q) if is_sum_of(S, f) else NotImplemented

        return function

    return register


def is_sum_of(S: Sum, f: Any) -> bool:
    """Whether S is P + Q."""
    both = (f.P + f.Q).terms
    return len(S.terms) == len(both) and all(a is b for a, b in zip(S.terms, both, strict=True))


def divergence(P: Measure, Q: Measure) -> Any:
    """KL(P‖Q) as an Integral."""
    return integrate(P + Q, KullbackLeibler(P, Q))


# --- On classes ---


@between(Measure, Measure)
def on_classes(P: Measure, Q: Measure) -> Any:
    """Σ p log(p/q) − p + q over the classes, if P and Q are on some."""
    if (value := by_members(lambda P, Q: divergence(P, Q).checked, P, Q)) is not NotImplemented:
        return value
    try:
        classes = common_classes(P, Q)
    except NotImplementedError:  # integrated by rules alone, which know logarithms
        return P.expect(log(P) - log(Q)) + Q.mass - P.mass
    if classes is None:
        return NotImplemented
    logits: Any = logits_of(P), logits_of(Q)
    if not any(z is None for z in logits):
        return divergence_of_softmaxes(*jnp.broadcast_arrays(*logits))
    (p, log_p, p_outside), (q, log_q, q_outside) = (class_masses(R, classes) for R in (P, Q))
    if log_p is None and log_q is None:
        u = log_ratio(jnp.where(p == 0, 1, p), jnp.where(p == 0, 1, q))
    else:
        log_of = lambda x, log_x: jnp.where(p == 0, 0, jnp.log(jnp.where(p == 0, 1, x)) if log_x is None else log_x)
        u = log_of(p, log_p) - log_of(q, log_q)
    return sum_over_classes(p, q, u, p_outside) + q_outside


def common_classes(P: Measure, Q: Measure) -> int | None:
    """How many classes P and Q are on, and on nothing else but atoms of one of them; None if they are not."""
    forms: Any = [form for R in (P, Q) for form in R.forms()]
    if not all(isinstance(form, NormalForm) and not isinstance(form.points, tuple | dict | list) for form in forms):
        return None
    classes_of = lambda R: max((form.classes or 0 for form in R.forms()), default=0)
    classes = max(classes_of(P), classes_of(Q))
    if 0 < min(classes_of(P), classes_of(Q)) < classes:
        raise ValueError(f"P is a measure on {classes_of(P)} classes, Q = {type(Q).__name__} on {classes_of(Q)}")
    has_atoms: Any = lambda R: any(form.weights is not None for form in R.forms())
    points = [form.points for form in forms if form.weights is not None]
    integers = all(jnp.issubdtype(x.dtype, jnp.integer) for x in points)
    # Points outside of the classes may be the same ones.
    both_sparse = has_atoms(P) and has_atoms(Q)
    return classes if classes and integers and not both_sparse else None


def sum_over_classes(p: Array, q: Array, u: Array, outside: Array, classes: Classes | None = None) -> Array:
    """Σ p log(p/q) − p + q, of any u where p is 0; +inf where P has mass on no class, with no derivative."""
    u = jnp.where(p == 0, jnp.where(q == 0, 0, -jnp.inf), jnp.where(p * q < 0, jnp.nan, u))
    terms = relative(p, q, u)
    total = terms.sum(-1) if classes is None else classes.all_parts(terms.sum(-1))
    return where_supported(outside == 0, total) + jnp.where(outside == 0, 0, jnp.inf)


def class_masses(P: Measure, classes: int) -> tuple[Array, Array | None, Array]:
    """(masses, their logarithms where those are known better, the mass on no class)."""
    vector, outside = jnp.zeros(classes), jnp.asarray(0.0)
    for form in P.forms():
        target = materialised_target(form, classes, type(P).__name__)
        vector = vector + expand(Classes(classes), *target)[1]
        outside = outside + mass_outside(Classes(classes), target)
    z = logits_of(P)
    return vector, None if z is None else log_softmax(Classes.of(z), z), outside


def mass_outside(classes: Classes, target: Any) -> Array:
    """What the atoms that are no class weigh."""
    if target.weights is None:
        return jnp.asarray(0.0)
    return jnp.where(classes.excludes(target.indices), jnp.abs(target.weights), 0).sum(-1)


def logits_of(P: Measure) -> Array | None:
    if not isinstance(P, Categorical | Bernoulli) or P.logits is None:
        return None
    z = P.logits.astype(accumulator(P.logits.dtype))
    return z if isinstance(P, Categorical) else jnp.stack([jnp.zeros_like(z), z], axis=-1)


# --- Laws of one family ---


@between(Normal, Normal)
def normal(P: Normal, Q: Normal) -> Array:
    return ((P.loc - Q.loc) / Q.scale) ** 2 / 2 + excess(2 * log_ratio(P.scale, Q.scale)) / 2


@between(LogNormal, LogNormal)
def log_normal(P: LogNormal, Q: LogNormal) -> Array:
    return normal(Normal(P.loc, P.scale), Normal(Q.loc, Q.scale))


@between(Laplace, Laplace)
def laplace(P: Laplace, Q: Laplace) -> Array:
    gap = (P.loc - Q.loc) / P.scale
    gap = jnp.where(gap < 0, -gap, gap)  # with a slope at 0, where the square has a curvature
    return excess(log_ratio(P.scale, Q.scale)) + P.scale / Q.scale * excess(-gap)


@between(Cauchy, Cauchy)
def cauchy(P: Cauchy, Q: Cauchy) -> Array:
    """Source: Chyzak & Nielsen (2019), *A closed-form formula for the Kullback–Leibler divergence between Cauchy
    distributions*."""
    loc, scale = (P.loc - Q.loc) / P.scale, (P.scale - Q.scale) / P.scale
    return jnp.log1p((loc**2 + scale**2) * P.scale / Q.scale / 4)


@between(Exponential, Exponential)
def exponential(P: Exponential, Q: Exponential) -> Array:
    return excess(log_ratio(Q.rate, P.rate))


@between(Poisson, Poisson)
def poisson(P: Poisson, Q: Poisson) -> Array:
    return generators.kl.perspective(P.rate, Q.rate)


@between(Geometric, Geometric)
def geometric(P: Geometric, Q: Geometric) -> Array:
    """A KL of coins for every trial, of which there are 1/p."""
    p, q = jnp.broadcast_arrays(P.probs, Q.probs)
    inside = (p < 1) & (q < 1)
    rest = jnp.where(inside, jnp.log1p(jnp.where(inside, q - p, 0) / jnp.where(inside, 1 - q, 1)), 0)
    rest = jnp.where(inside, rest, jnp.where(p < 1, jnp.inf, -jnp.inf))
    failure = jnp.where((p == 1) & (q == 1), 0, relative(1 - p, 1 - q, jnp.where(q == p, 0, rest)))
    return (generators.kl.perspective(p, q) + failure) / p


@between(Uniform, Uniform)
def uniform(P: Uniform, Q: Uniform) -> Array:
    inside = (P.low >= Q.low) & (P.high <= Q.high)
    return jnp.where(inside, log_ratio(Q.high - Q.low, P.high - P.low), jnp.inf)


SHIFT = 16


def _curvature(x: Array) -> Array:
    """ψ′(x) − 1/x, the curvature of log Γ(x) − x log x: by its recurrence, then asymptotically (Abramowitz & Stegun 6.4.12)."""
    total = sum(1 / ((x + k) ** 2 * (x + k + 1)) for k in range(SHIFT))
    r = 1 / (x + SHIFT)
    series = 0.0
    for bernoulli in (7 / 6, -691 / 2730, 5 / 66, -1 / 30, 1 / 42, -1 / 30, 1 / 6):
        series = bernoulli + r**2 * series
    return total + r**2 / 2 + r**3 * series


def _remainder(b: Array, u: Array) -> Array:
    """∫ (b − x) (ψ′(x) − 1/x) dx from a to b, u = log b/a: by Gauss's rule in log x.

    That is what log Γ(x) − x log x has at b above its tangent at a.
    """
    nodes, weights = np.polynomial.legendre.leggauss(32)
    b, u = (x[..., None] for x in jnp.broadcast_arrays(b, u))
    left = u * jnp.asarray((1 - nodes) / 2, u.dtype)  # log b/x
    x = b * jnp.exp(-left)
    terms = b * -jnp.expm1(-left) * _curvature(x) * x * u
    return (terms * jnp.asarray(weights / 2, u.dtype)).sum(-1)


@between(Gamma, Gamma)
def gamma(P: Gamma, Q: Gamma) -> Array:
    a, b = P.concentration, Q.concentration
    u = log_ratio(b, a)
    return relative(b, a * (Q.rate / P.rate), u - log_ratio(Q.rate, P.rate)) + _remainder(b, u)


@between(Exponential, Gamma)
@between(Gamma, Exponential)
def exponential_as_gamma(P: Any, Q: Any) -> Array:
    as_gamma = lambda R: R if isinstance(R, Gamma) else Gamma(jnp.ones_like(R.rate), R.rate)
    return gamma(as_gamma(P), as_gamma(Q))


@between(Beta, Beta)
def beta(P: Beta, Q: Beta) -> Array:
    stack = lambda R: jnp.stack(jnp.broadcast_arrays(R.concentration1, R.concentration0), axis=-1)
    return dirichlet(Dirichlet(stack(P)), Dirichlet(stack(Q)))


@between(Dirichlet, Dirichlet)
def dirichlet(P: Dirichlet, Q: Dirichlet) -> Array:
    one_space(P, Q)
    a, b = P.concentration, Q.concentration
    n, m = a.sum(-1), b.sum(-1)
    # log m/n, where Σ b − Σ a would have lost the difference.
    whole = jnp.log1p(jnp.maximum((b - a).sum(-1) / n, -0.5))
    whole = jnp.where(jnp.abs(m - n) < n / 2, whole, jnp.log(m) - jnp.log(n))[..., None]
    u = log_ratio(b, a)
    means = relative(b, a * jnp.exp(whole), u - whole).sum(-1)
    return means + _remainder(b, u).sum(-1) - _remainder(m, whole[..., 0])


@between(Vectors, Vectors)
def vectors(P: Any, Q: Any) -> Any:
    """Of normals, of independent coordinates."""
    one_space(P, Q)
    p, q = gaussian(P), gaussian(Q)
    if p is not None and q is not None:
        shape = jnp.broadcast_shapes(p.scale_tril.shape, q.scale_tril.shape, (*p.loc.shape, 1), (*q.loc.shape, 1))
        ours, theirs = (jnp.broadcast_to(R.scale_tril, shape) for R in (p, q))
        gap = jnp.broadcast_to((p.loc - q.loc)[..., None], (*shape[:-1], 1))
        between = jnp.tril(solve_triangular(theirs, ours - theirs, lower=True), -1)  # L⁻¹(L′ − L), below the diagonal
        diagonal = log_ratio(*(jnp.diagonal(L, axis1=-2, axis2=-1) for L in (ours, theirs)))
        squares = (between**2).sum((-2, -1)) + (solve_triangular(theirs, gap, lower=True) ** 2).sum((-2, -1))
        return squares / 2 + excess(2 * diagonal).sum(-1) / 2
    if isinstance(P, Independent) and isinstance(Q, Independent) and static_mass(P) == static_mass(Q) == 1:
        total = divergence(P.P, Q.P)
        add = lambda x: x if isinstance(x, float | int) else jnp.broadcast_to(x, total.value.shape).sum(-1)
        return type(total)(*map(add, (total.value, total.error, total.status)))
    return NotImplemented


# --- Products ---


@between(ProductMeasure, ProductMeasure)
def product(P: ProductMeasure, Q: ProductMeasure) -> Any:
    """Of finite measures too: their masses' own share is (Q₁(1) − P₁(1)) (Q₂(1) − P₂(1))."""
    if arity(P.P) != arity(Q.P):
        return NotImplemented
    first, second = divergence(P.P, Q.P), divergence(P.Q, Q.Q)
    total = times_mass(P.Q.mass, first) + times_mass(P.P.mass, second)
    masses = (Q.P.mass - P.P.mass) * (Q.Q.mass - P.Q.mass)
    return type(total)(total.value + masses, total.error, total.status)


@between(Measure, ProductMeasure)
def of_a_costly_one(P: Measure, Q: Measure) -> Any:
    return against_the_first(P, Q)


def against_the_first(P: Measure, Q: Measure, method: Any = None) -> Any:
    """KL(P‖Q) from integrals against P alone: ∫ e⁻ᵘ − 1 + u dP, and Q's mass outside P.

    That is what ∫ u dP + Q(1) − P(1) has beside the first; if it is not more than rounding errors, it is none.
    """
    near, far = P.expect(RatioFunction(P, Q, _excess_and_log), method=method)
    masses = P.mass + Q.mass
    outside = far + Q.mass - P.mass - jnp.where(jnp.isfinite(near), near, 0)
    rounding = 4 * jnp.finfo(jnp.result_type(float, near)).eps * jax.lax.stop_gradient(masses)
    return near + jnp.where(outside > rounding, outside, 0)


def _excess_and_log(ratio: Ratio) -> tuple[Float[Array, "*family"], Float[Array, "*family"]]:
    u = ratio.log_inside
    return excess(-u), u
