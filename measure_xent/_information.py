"""Functionals of measures, each its definition. Nats."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from jaxtyping import Array, Float

from ._conditional import AbstractConditional
from ._density import Entropy, log
from ._integrand import Integrand
from ._measure import Measure

_P = ParamSpec("_P")
_R = TypeVar("_R")


def of_measures(functional: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: arguments that are not what the annotations take are refused by name."""
    signature = inspect.signature(functional)

    @functools.wraps(functional)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for name, argument in signature.bind(*args, **kwargs).arguments.items():
            kind = signature.parameters[name].annotation
            if not isinstance(argument, kind):
                kinds = typing.get_args(kind) or (kind,)
                takes = " or ".join(kind.__name__.removeprefix("Abstract") for kind in kinds)
                raise TypeError(
                    f"{functional.__name__}: {name} must be a {takes}, got {type(argument).__name__}; labels are "
                    "Dirac(labels), logits Categorical(logits), a batch Empirical((x, labels))"
                )
        return functional(*args, **kwargs)

    return checked


@of_measures
def cross_entropy(P: Measure, Q: Measure | AbstractConditional) -> Float[Array, "*family"]:
    """H(P, Q) = −∫ log q dP, in nats: the average code length of words drawn from P under a code made for Q.

    Source: Cover & Thomas, *Elements of Information Theory*, §5.4. For a normalised empirical P this is the training
    loss; its value, gradients and memory are those of the kernel that the pair of measures lowers to.

    Args:
        P: the target: any measure, or a family of them.
        Q: the model: a measure or a family that broadcasts with P, or for P on tuples (x, y) a Conditional.

    Returns:
        One number a member of the family; +inf where P has mass that Q has not.

    Raises:
        TypeError, ValueError: P and Q are not on the same space, or their families do not broadcast.

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> labels, logits = jnp.array([0, 1]), jnp.array([[2., 0., 0.], [0., 1., 0.]])
        >>> mx.cross_entropy(mx.Dirac(labels), mx.Categorical(logits)).tolist()
        [0.2395, 0.5514]
    """
    return -P.expect(log(Q))


@of_measures
def entropy(P: Measure | AbstractConditional) -> Float[Array, "*family"] | Integrand:
    """H(P) = −∫ log p dP, in nats, with 0 · log 0 = 0. Source: Shannon (1948).

    Of a Conditional it is the function x ↦ H(P(x)) that ``expect`` looks into: of a softmax head it comes from the same pass
    over the logits as the loss, and its mean over x is the conditional entropy.

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.entropy(mx.DiscreteUniform(8)).item()  # 3 log 2
        2.0794
        >>> Q, P = mx.LinearSoftmax(jnp.zeros((2, 8))), mx.Empirical((jnp.ones((5, 2)), jnp.arange(5)))
        >>> P.expect((-mx.log(Q), mx.entropy(Q)))
        (Array(2.0794415, dtype=float32), Array(2.0794415, dtype=float32))
    """
    if isinstance(P, AbstractConditional):
        return Entropy(P)
    return -P.expect(log(P))


@of_measures
def kl_divergence(P: Measure, Q: Measure) -> Float[Array, "*family"]:
    """KL(P‖Q) = ∫ log(dP/dQ) dP + Q(1) − P(1), in nats: non-negative for finite measures, +inf unless P ≪ Q.

    Source: mathlib's ``InformationTheory.klDiv``; for probability measures the mass terms cancel.

    Example:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P, Q = mx.Categorical(probs=jnp.array([0.5, 0.5])), mx.Categorical(probs=jnp.array([0.25, 0.75]))
        >>> mx.kl_divergence(P, Q).item()
        0.1438
        >>> mx.kl_divergence(2 * P, P).item()  # 2 log 2 − 1
        0.3863
    """
    return P.expect(log(P / Q)) + Q.mass - P.mass
