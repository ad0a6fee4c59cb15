"""Functionals of one measure, of two, and of a joint measure's coordinates, each its definition. Nats."""

import functools
import inspect
import itertools
import typing
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from .._conditionals.bind import Bind, bind
from .._conditionals.conditional import AbstractConditional
from .._conditionals.joint import Joint, joint
from .._conditionals.marginal import by_coordinates, dimensions, marginal
from .._forms.law_form import LawForm
from .._integrands.density import Entropy, KullbackLeibler, log, nats
from .._integrands.integrand import Integrand, density_terms, room_for
from .._measures.measure import Measure
from .._measures.nested import count
from .._measures.product import ProductMeasure, product
from .._measures.relative_entropy import against_the_first
from .._measures.shapes import arity, enumerable
from .._measures.vectors import Vectors
from .._methods.mixtures import NODES

_P = ParamSpec("_P")
_R = TypeVar("_R")
_KINDS = (Measure, AbstractConditional)


def functional(formula: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorator: refuses by name what the annotations do not take, turns nats into units of ``base``, and shows the formula,
    LaTeX, in a notebook."""
    return lambda function: _shown(_checked(in_units(function)), formula)


def _shown(function: Callable[_P, _R], formula: str) -> Callable[_P, _R]:
    setattr(function, "_repr_latex_", lambda: f"${formula}$")  # noqa: B010
    return function


def in_units(functional: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator of what gives nats: with a ``base`` it tells them in units of that."""

    @functools.wraps(functional)
    def told(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        base: Any = kwargs.pop("base", None)
        unit = nats(base)
        value: Any = functional(*args, **kwargs)
        return value if base is None else value / unit

    return told


def _checked(functional: Callable[_P, _R]) -> Callable[_P, _R]:
    signature = inspect.signature(functional)

    @functools.wraps(functional)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{functional.__name__}({', '.join(signature.parameters)}): {error}") from None
        for name, argument in bound.arguments.items():
            kind = signature.parameters[name].annotation
            kinds = tuple(k for k in typing.get_args(kind) or (kind,) if isinstance(k, type) and issubclass(k, _KINDS))
            if kinds and not isinstance(argument, kind):
                takes = " or ".join(kind.__name__.removeprefix("Abstract") for kind in kinds)
                if hasattr(argument, "log_prob"):
                    raise TypeError(
                        f"{functional.__name__}: {name} must be a {takes}, got {type(argument).__name__}: distributions of "
                        f"numpyro, distrax and TFP are from_distribution({name})"
                    )
                raise TypeError(
                    f"{functional.__name__}: {name} must be a {takes}, got {type(argument).__name__}; labels are "
                    "Dirac(labels), logits Categorical(logits), a batch Empirical((x, labels)), a table p[x, y] "
                    "table(p), of counts table(p, normalize=True)"
                )
        return functional(*args, **kwargs)

    return checked


@functional(r"H(P, Q) = -\int \log q \, dP")
def cross_entropy(
    P: Measure, Q: Measure | AbstractConditional, *, base: float | None = None, method: Any = None
) -> Float[Array, "*family"]:
    """H(P, Q) = −∫ log q dP, in nats or units of ``base``: the average code length of words from P under a code made for Q.

    Source: Cover & Thomas, *Elements of Information Theory*, §5.4. For a normalised empirical P this is the training
    loss; its value, gradients and memory are those of the kernel that the pair of measures lowers to.

    Args:
        P: the target: any measure, or a family of them.
        Q: the model: a measure or a family that broadcasts with P, or for P on tuples (x, y) a Conditional.
        base: of the logarithm, 2 for bits.
        method: how to integrate what has a density, as for ``expect``: ``MonteCarlo(key, n)`` in many dimensions.

    Returns:
        One number a member of the family; +inf where P has mass that Q has not.

    Raises:
        TypeError, ValueError: P and Q are not on the same space, or their families do not broadcast.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> labels, logits = jnp.array([0, 1]), jnp.array([[2., 0., 0.], [0., 1., 0.]])
        >>> mx.cross_entropy(mx.Dirac(labels), mx.Categorical(logits)).tolist()
        [0.2395, 0.5514]
    """
    return -P.expect(log(Q), method=method)


@functional(r"H(P) = -\int \log p \, dP")
def entropy(
    P: Measure | AbstractConditional, *, base: float | None = None, method: Any = None
) -> Float[Array, "*family"] | Integrand:
    """H(P) = −∫ log p dP, with 0 · log 0 = 0, in nats or units of ``base``. Source: Shannon (1948).

    ``method`` is as for ``expect``. Of a Conditional it is the function x ↦ H(P(x)) that ``expect`` looks into: of a softmax
    head it comes from the same pass over the logits as the loss, and its mean over x is the conditional entropy.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.entropy(mx.DiscreteUniform(8)).item(), mx.entropy(mx.DiscreteUniform(8), base=2).item()  # 3 log 2
        (2.0794, 3.0)
        >>> Q, P = mx.LinearSoftmax(jnp.zeros((2, 8))), mx.Empirical((jnp.ones((5, 2)), jnp.arange(5)))
        >>> P.expect((-mx.log(Q), mx.entropy(Q)))
        (Array(2.0794415, dtype=float32), Array(2.0794415, dtype=float32))
    """
    if isinstance(P, AbstractConditional):
        return Entropy(P)
    return -P.expect(log(P), method=method)


@functional(r"\mathrm{KL}(P \,\|\, Q) = \int \log \frac{dP}{dQ} \, dP + Q(1) - P(1)")
def kl_divergence(
    P: Measure, Q: Measure | AbstractConditional, *, base: float | None = None, method: Any = None
) -> Float[Array, "*family"]:
    """KL(P‖Q) = ∫ log(dP/dQ) dP + Q(1) − P(1), in nats or units of ``base``; ``method`` as for ``expect``.

    At least 0, of finite measures too, and +inf unless P ≪ Q. It is the integral of t log t − t + 1 against Q, t = dP/dQ, which
    is nowhere negative, and of P's part outside Q; near equality it and its derivatives keep their digits. Of a P on tuples
    (x…, y) and a Conditional Q it is ∫ KL(P(· | x) ‖ Q(x)) dP(x), what P's marginal followed by Q is off by: the loss of
    distillation.
    Of a null member P it is Q(1): masked rows are ``mask * kl_divergence(P, Q)``.
    Source: mathlib's ``InformationTheory.klDiv``; for probability measures the mass terms cancel.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P, Q = mx.Categorical(probs=jnp.array([0.5, 0.5])), mx.Categorical(probs=jnp.array([0.25, 0.75]))
        >>> mx.kl_divergence(P, Q).item()
        0.1438
        >>> mx.kl_divergence(2 * P, P).item()  # 2 log 2 − 1
        0.3863
    """
    if isinstance(Q, AbstractConditional):
        return conditional_divergence(P, Q, method)
    return (P + Q).expect(KullbackLeibler(P, Q), method=method)


def conditional_divergence(P: Measure, Q: AbstractConditional, method: Any) -> Float[Array, "*family"]:
    """∫ KL(P(· | x) ‖ Q(x)) dP(x)."""
    n = arity(P) - 1
    if n < 1:
        raise TypeError(
            f"kl_divergence(P, Q): Q is a Conditional, so P must be a measure on tuples (x…, y), got {type(P).__name__}"
        )
    match P:
        case Joint(P=A, K=AbstractConditional() as K):
            return A.expect(Partial(_gap, K, Q), method=method)
    return kl_divergence(P, joint(marginal(P, *range(n)), Q), method=method)


def _gap(K, Q, *x):
    return kl_divergence(K(*x), Q(*x))


@functional(r"e^{H(P, Q)}")
def perplexity(
    P: Measure, Q: Measure | AbstractConditional | None = None, *, method: Any = None
) -> Float[Array, "*family"]:
    """exp H(P, Q), of P alone exp H(P), P normalised: as many equally probable words would be as hard to guess.

    ``method`` as for ``expect``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.perplexity(mx.DiscreteUniform(8)).item(), mx.perplexity(mx.Dirac(0), mx.DiscreteUniform(8)).item()
        (8.0, 8.0)
    """
    P = P.normalize()
    return jnp.exp(cross_entropy(P, P if Q is None else Q, method=method))


@functional(r"I(X; Y) = \mathrm{KL}(P_{XY} \,\|\, P_X \otimes P_Y)")
def mutual_information(
    P: Measure,
    K: AbstractConditional | None = None,
    *,
    X: Any = 0,
    Y: Any = 1,
    base: float | None = None,
    method: Any = None,
) -> Float[Array, "*family"]:
    """I(X; Y) = KL(P_XY ‖ P_X ⊗ P_Y), of two coordinates of a joint measure, or of x from P and y from K given x, P normalised.

    Source: Cover & Thomas, §2.3. In nats or units of ``base``.

    Args:
        P: a measure on tuples, or of vectors, whose entries are then the coordinates; or with a K the measure of x.
        X, Y: the numbers of the coordinates from 0, each one or a tuple of them.
        method: how to integrate what has a density, as for ``expect``.

    Raises:
        ValueError: P has not the coordinates.
        NotImplementedError: x and y have densities of more than two dimensions together, and no closed form is known.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> bit, noisy = mx.DiscreteUniform(2), mx.Conditional(lambda x: mx.Bernoulli(probs=jnp.where(x == 1, 0.89, 0.11)))
        >>> mx.mutual_information(bit, noisy, base=2).item(), mx.mutual_information(mx.joint(bit, noisy), base=2).item()
        (0.50008, 0.50008)
    """
    if K is not None:
        P = P.normalize()
        M = bind(P, K)
        if not isinstance(M, Bind) or not any(False in kind for kind in M.parts()):
            return P.expect(Partial(_gain, K, M), method=method)
        if enumerable(P):
            size = room_for(NODES * density_terms(M))
            return P.expect(Partial(_gain, K, M), batch_size=size, method=method)
        if method is None and any(count(form).laws > 2 for form in M.forms() if isinstance(form, LawForm)):
            raise NotImplementedError(
                "mutual_information(P, K): x and y have densities of more than two dimensions, and no closed form is known: "
                "that of normal noise is LinearNormal(weight, bias, covariance_matrix), with a MultivariateNormal P; or give "
                "P as atoms, such as the nodes and weights of a Gauss rule"
            )
        H: Any = entropy(M, method=method)
        return H - conditional_entropy(P, K, method=method)
    X, Y = sorted((_tuple(X), _tuple(Y)))  # it is symmetric
    match P:
        case Joint(P=A, K=AbstractConditional() as K) if not enumerable(P):
            if (tuple(range(n := arity(A))), (n,)) == (X, Y):
                return mutual_information(A, K, method=method)
    return kl_divergence(*_coupled(P, X, Y), method=method)


def _probability(P: Measure) -> Measure:
    """P normalised, such as a table of counts, by its structure."""
    match P:
        case Joint(P=A, K=AbstractConditional() as K):
            return joint(A.normalize(), K)
        case ProductMeasure(P=A, Q=B):
            return product(A.normalize(), B.normalize())
    return P.normalize()


def _coupled(P: Measure, *groups: tuple[int, ...]) -> tuple[Measure, Measure]:
    """(the law of some coordinates of P, its groups' own laws as independent)."""
    P = by_coordinates(_probability(P))
    M = marginal(P, *(i for group in groups for i in group))
    if isinstance(M, Vectors):
        return M, M.uncoupled(tuple(map(len, groups)))
    return M, functools.reduce(product, (marginal(P, *group) for group in groups))


def _gain(K, M, *x):
    """KL(K(x) ‖ M), what x says of y; K(x) ≪ M, so that all of it is an integral against K(x)."""
    return against_the_first(K(*x), M)


@functional(r"i(x; y) = \log \frac{dP_{XY}}{d(P_X \otimes P_Y)}(x, y)")
def pointwise_mutual_information(P: Measure, *, X: Any = 0, Y: Any = 1, base: float | None = None) -> Integrand:
    """(x, y) ↦ log dP_XY/d(P_X ⊗ P_Y), whose mean is the mutual information. Arguments and errors are its own.

    Source: Church & Hanks (1990).

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P = mx.Atoms((jnp.array([0, 1]), jnp.array([0, 1]))).normalize()
        >>> mx.pointwise_mutual_information(P, base=2)(0, 0).item()
        1.0
    """
    M, independent = _coupled(P, _tuple(X), _tuple(Y))
    return log(M / independent)


@functional(r"H(Y \mid X) = -\int \log p(y \mid x) \, dP(x, y)")
def conditional_entropy(
    P: Measure,
    K: AbstractConditional | None = None,
    *,
    X: Any = 0,
    Y: Any = 1,
    base: float | None = None,
    method: Any = None,
) -> Float[Array, "*family"]:
    """H(Y | X) = H(X, Y) − H(X), or ∫ H(K(x)) dP(x). Arguments and errors are those of ``mutual_information``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.conditional_entropy(mx.product(mx.DiscreteUniform(6), mx.DiscreteUniform(2)), base=2).item()
        1.0
    """
    P = _probability(P)
    if K is not None:
        mean_entropy: Any = entropy(K)
        return P.expect(mean_entropy, method=method)
    H: Any = functools.partial(entropy, method=method)
    return H(marginal(P, *sorted((*_tuple(X), *_tuple(Y))))) - H(marginal(P, *_tuple(X)))


@functional(r"I(X; Y \mid Z) = H(X, Z) + H(Y, Z) - H(X, Y, Z) - H(Z)")
def conditional_mutual_information(
    P: Measure, *, X: Any = 0, Y: Any = 1, Z: Any = 2, base: float | None = None, method: Any = None
) -> Float[Array, "*family"]:
    """I(X; Y | Z) = I(X; Y, Z) − I(X; Z), the chain rule. Arguments and errors are those of ``mutual_information``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> x, y = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])
        >>> P = mx.Empirical((x, y, x ^ y))
        >>> mx.mutual_information(P, base=2).item(), mx.conditional_mutual_information(P, base=2).item()
        (0.0, 1.0)
    """
    both = mutual_information(P, X=X, Y=(*_tuple(Y), *_tuple(Z)), method=method)
    return both - mutual_information(P, X=X, Y=Z, method=method)


@functional(r"\mathrm{KL}(P \,\|\, P_1 \otimes \cdots \otimes P_n)")
def total_correlation(P: Measure, *, base: float | None = None, method: Any = None) -> Float[Array, "*family"]:
    """KL(P ‖ ⊗ Pᵢ), of a joint measure and the product of its coordinates' own; ``method`` as for ``expect``.

    Source: Watanabe (1960).

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> x = jnp.arange(2)
        >>> mx.total_correlation(mx.Empirical((x, x, x)), base=2).item()
        2.0
    """
    return kl_divergence(*_coupled(P, *((i,) for i in range(dimensions(P)))), method=method)


@functional(r"I(X; Y; Z) = I(X; Y \mid Z) - I(X; Y)")
def interaction_information(P: Measure, *, base: float | None = None, method: Any = None) -> Float[Array, "*family"]:
    """−Σ (−1)^(n−|T|) H(P_T) over the sets T of P's n coordinates: of three, I(X; Y | Z) − I(X; Y); negative for redundancy.

    ``method`` as for ``expect``.
    Source: McGill (1954), *Multivariate information transmission*.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> x, y = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])
        >>> mx.interaction_information(mx.Empirical((x, y, x ^ y)), base=2).item()
        1.0
    """
    P, n = _probability(P), dimensions(P)
    sets = (T for size in range(1, n + 1) for T in itertools.combinations(range(n), size))
    total: Any = sum((-1) ** (n - len(T)) * entropy(marginal(P, *T), method=method) for T in sets)
    return -total


def _tuple(coordinates: Any) -> tuple[int, ...]:
    return coordinates if isinstance(coordinates, tuple) else (coordinates,)
