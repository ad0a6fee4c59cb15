"""The classification losses of ``optax.losses`` and torch, under their names, each a line or two of measures.

    from measure_xent import losses  # in place of: from optax import losses

Values are optax's to rounding, and right where optax is NaN, cancels or trains on wrongly: a logit −inf has probability 0, a
confident row keeps its relative accuracy, a label outside the classes has loss +inf and gradient NaN. Half precision is
computed in float32, which is the dtype of the losses. All are nats. The margin losses (hinge, perceptron), which are of no
measure, are optax's own.

A mean of these losses over a batch, masked or weighted, is one integral against its empirical measure, with a faster kernel:
see ``Empirical``.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num
from optax.losses import (
    hinge_loss,
    multiclass_hinge_loss,
    multiclass_perceptron_loss,
    perceptron_loss,
)

from ._conditionals.conditional import AbstractConditional, Conditional
from ._conditionals.joint import joint
from ._conditionals.linear_softmax import LinearSoftmax
from ._functionals.information import cross_entropy
from ._functionals.scoring import fenchel_young_loss
from ._integrands.density import log, log_partition
from ._integrands.integral import Integral
from ._kernels.checks import fitting, real_array
from ._kernels.classes import accumulator, class_index
from ._kernels.ctc import ctc_loss, ctc_loss_with_forward_probs
from ._kernels.null import null_safe_product
from ._measures.atoms import Atoms
from ._measures.categorical import Bernoulli, Categorical
from ._measures.discrete import Dirac, Discrete, DiscreteUniform
from ._measures.measure import Measure
from ._measures.relative_entropy import sum_over_classes
from ._program import program
from ._strict import of_user

__all__ = [
    "cross_entropy_loss",
    "ctc_loss",
    "ctc_loss_with_forward_probs",
    "generalized_kl_divergence",
    "hinge_loss",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "linear_cross_entropy",
    "make_fenchel_young_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "perceptron_loss",
    "poly_loss_cross_entropy",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "sparsemax_loss",
]

Axis = int | tuple[int, ...] | None
Where = Bool[ArrayLike, "..."] | None


@program
def softmax_cross_entropy(
    logits: Float[ArrayLike, "..."], labels: Num[ArrayLike, "..."], axis: Axis = -1, where: Where = None
) -> Float[Array, "..."]:
    """−Σ_c labels_c log softmax(logits)_c, the cross-entropy from the measure with masses ``labels``, one a row.

    Source: ``optax.losses.softmax_cross_entropy``, with 0 · log 0 = 0.

    Args:
        logits: any numbers, of which −inf forbids a class.
        labels: one-hot or soft, non-negative; a sum other than 1 scales the loss. They broadcast with logits.
        axis: the class axis or axes; None for all.
        where: the elements that take part, of the shape of logits or of logits without ``axis``.

    Returns:
        The shape of logits without ``axis``; +inf where a label has mass on a class without.

    Raises:
        ValueError: axis is out of range, or the shapes do not broadcast.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> logits, labels = jnp.array([[2., 0., -jnp.inf], [20., 0., 0.]]), jnp.array([[1., 0., 0.], [1., 0., 0.]])
        >>> losses.softmax_cross_entropy(logits, labels)  # optax: nan, 0
        Array([1.26928e-01, 4.12231e-09], dtype=float32)
    """
    P, Q = _target_and_model(logits, labels, axis, where)
    return cross_entropy(P, Q)


@program
def safe_softmax_cross_entropy(
    logits: Float[ArrayLike, "*family V"], labels: Num[ArrayLike, "*family V"]
) -> Float[Array, "*family"]:
    """``softmax_cross_entropy`` over the last axis: which is safe, in forward mode too.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from measure_xent import losses
        >>> loss = lambda z: losses.safe_softmax_cross_entropy(z, jnp.array([0., 1., 0.]))
        >>> jax.jvp(loss, (jnp.array([-jnp.inf, 0., 0.]),), (jnp.array([0., 1., 0.]),))  # optax: nan
        (Array(0.693147, dtype=float32), Array(-0.5, dtype=float32))
    """
    return softmax_cross_entropy(logits, labels)


@program
def softmax_cross_entropy_with_integer_labels(
    logits: Float[ArrayLike, "..."],
    labels: Int[ArrayLike, "..."],
    axis: int | tuple[int, ...] = -1,
    where: Where = None,
) -> Float[Array, "..."]:
    """−log softmax(logits) at the label: the cross-entropy from Dirac(labels), one a row.

    Source: ``optax.losses.softmax_cross_entropy_with_integer_labels``. Arguments and errors are those of
    ``softmax_cross_entropy``, but for labels: of the shape of logits without ``axis``, flat indices where ``axis`` has several.

    Returns:
        +inf, with a gradient of NaN, for a label outside the classes; +inf for one that ``where`` leaves out, where optax
        gives a number; 0 where it leaves out the whole row.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1], [0.9, -1.2, 1.1]])
        >>> loss = losses.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1, -1]))
        >>> loss.tolist()  # optax: -1 is the last class
        [0.27613, 2.9518, inf]
    """
    z, mask = _classes_last(real_array("logits", logits, floating=True), axis, where)
    P = Dirac(_one_a_row(labels, z.shape[:-1]))
    return cross_entropy(
        P if where is None or mask is None else jnp.any(mask, -1) * P, Categorical(_restricted(z, mask))
    )


@program
def sigmoid_binary_cross_entropy(
    logits: Float[ArrayLike, "*family"], labels: Num[ArrayLike, "*family"]
) -> Float[Array, "*family"]:
    """−labels · log σ(logits) − (1 − labels) · log σ(−logits), elementwise: the cross-entropy between Bernoulli measures.

    Source: ``optax.losses.sigmoid_binary_cross_entropy``.

    Args:
        logits: log-odds of 1.
        labels: 0 or 1, or probabilities of 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> losses.sigmoid_binary_cross_entropy(jnp.array([2., -40., jnp.inf]), jnp.array([1., 0., 1.]))  # optax: nan
        Array([1.26928e-01, 4.24835e-18, 0.00000e+00], dtype=float32)
    """
    return cross_entropy(_outcome(logits, labels), Bernoulli(jnp.asarray(logits)))


@program
def sigmoid_focal_loss(
    logits: Float[ArrayLike, "*family"],
    labels: Num[ArrayLike, "*family"],
    *,
    alpha: Float[ArrayLike, ""] | None = None,
    gamma: Float[ArrayLike, ""] = 2.0,
) -> Float[Array, "*family"]:
    """(1 − p)^gamma · (−log p) for the probability p of what came, elementwise: rows that are right weigh less.

    Source: Lin et al. (2017), *Focal loss for dense object detection*, eq. 4 and 5; ``optax.losses.sigmoid_focal_loss``.

    Args:
        logits: log-odds of 1.
        labels: 0 or 1, or probabilities of 1.
        alpha: a further weight of the outcome 1, of which the outcome 0 has 1 − alpha.
        gamma: the exponent; 0 is ``sigmoid_binary_cross_entropy``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> losses.sigmoid_focal_loss(jnp.array([2., 0.]), jnp.array([1., 1.])).tolist()
        [0.001804, 0.173287]
    """
    P, z = _outcome(logits, labels), jnp.asarray(logits)
    one = P.expect(lambda y: y)
    miss = one * jax.nn.sigmoid(-z) + (1 - one) * jax.nn.sigmoid(z)  # ∫ 1 − p dP, without cancellation
    weight = jnp.exp(null_safe_product(jnp.asarray(gamma), jnp.where(miss == 0, -jnp.inf, _log_of_positive(miss))))
    surprisal, saturated = cross_entropy(P, Bernoulli(z)), jnp.isinf(z)
    # At infinite logits the weight stands still, which times an infinite surprisal would be NaN.
    end = jax.lax.stop_gradient(weight) * surprisal
    loss = jnp.where(saturated, end, weight * jnp.where(saturated, 0, surprisal))
    if alpha is None:
        return loss
    return null_safe_product(alpha * one + (1 - jnp.asarray(alpha)) * (1 - one), loss)


@program
def poly_loss_cross_entropy(
    logits: Float[ArrayLike, "..."],
    labels: Float[ArrayLike, "..."],
    *,
    epsilon: Float[ArrayLike, ""] = 2.0,
    axis: Axis = -1,
    where: Where = None,
) -> Float[Array, "..."]:
    """∫ −log q + epsilon · (1 − q) dP, the cross-entropy with another coefficient for its first polynomial term.

    Source: Leng et al. (2022), *PolyLoss*, eq. 5 (https://arxiv.org/abs/2204.12511). Arguments and errors are those of
    ``softmax_cross_entropy``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> losses.poly_loss_cross_entropy(jnp.array([0., 0.]), jnp.array([1., 0.]), epsilon=1.).item()  # log 2 + ½
        1.193147
    """
    P, Q = _target_and_model(logits, labels, axis, where)
    return cross_entropy(P, Q) - epsilon * P.expect(log(Q).map(jnp.expm1))


@program
def kl_divergence(
    log_predictions: Float[ArrayLike, "..."],
    targets: Float[ArrayLike, "..."],
    axis: Axis = -1,
    where: Where = None,
) -> Float[Array, "..."]:
    """Σ_c targets_c (log targets_c − log_predictions_c).

    Source: ``optax.losses.kl_divergence``. It keeps that function's habit: predictions count as they are, normalised or not.
    For measures that may not be, the divergence is ``generalized_kl_divergence``, and from logits it is
    ``mx.kl_divergence(P, Categorical(logits))``.

    Args:
        log_predictions: logarithms of the predicted masses.
        targets: the masses of the target.
        axis, where: as of ``softmax_cross_entropy``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> losses.kl_divergence(jnp.array([-jnp.inf, jnp.log(0.5), jnp.log(0.5)]), jnp.array([0., 0.25, 0.75])).item()
        0.130812
    """
    p, log_q = _masses_and_scores(log_predictions, targets, axis, where)
    return jnp.sum(null_safe_product(p, _log_of_positive(p) - log_q), axis=-1)


@program
def kl_divergence_with_log_targets(
    log_predictions: Float[ArrayLike, "..."],
    log_targets: Float[ArrayLike, "..."],
    axis: Axis = -1,
    where: Where = None,
) -> Float[Array, "..."]:
    """``kl_divergence`` with the target's masses given by their logarithms.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> log_p, log_q = jnp.log(jnp.array([0., 1.])), jnp.log(jnp.array([0.5, 0.5]))
        >>> losses.kl_divergence_with_log_targets(log_q, log_p).item()  # optax: nan
        0.693147
    """
    return kl_divergence(log_predictions, jnp.exp(log_targets), axis, where)


@program
def generalized_kl_divergence(
    log_predictions: Float[ArrayLike, "..."],
    targets: Float[ArrayLike, "..."],
    axis: Axis = -1,
    where: Where = None,
) -> Float[Array, "..."]:
    """∫ log(dP/dQ) dP + Q(1) − P(1), of any finite measures: at least 0, and 0 where they are equal.

    Source: ``optax.losses.generalized_kl_divergence``; it is ``mx.kl_divergence`` with predictions given by their logarithms.
    Arguments are those of ``kl_divergence``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> losses.generalized_kl_divergence(jnp.log(jnp.array([1., 1.])), jnp.array([2., 2.])).item()  # 2 (2 log 2 − 1)
        0.772589
    """
    p, log_q = _masses_and_scores(log_predictions, targets, axis, where)
    return sum_over_classes(p, jnp.exp(log_q), _log_of_positive(p) - log_q, jnp.asarray(0.0))


def smooth_labels(
    labels: Float[ArrayLike, "..."], alpha: Float[ArrayLike, ""], *, axis: Axis = -1, where: Where = None
) -> Float[Array, "..."]:
    """The masses of (1 − alpha) · P + alpha · the uniform measure on the classes that ``where`` leaves.

    Source: ``optax.losses.smooth_labels``, whose masses outside ``where`` are not 0. As a measure, which a kernel takes without
    writing it out, it is ``(1 - alpha) * Dirac(y) + alpha * DiscreteUniform(V)``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> losses.smooth_labels(jnp.array([1., 0., 0.]), 0.1, where=jnp.array([True, True, False])).tolist()
        [0.95, 0.05, 0.0]
    """
    labels = real_array("smooth_labels(labels)", labels, floating=True)
    takes_part = jnp.ones_like(labels) if where is None else jnp.asarray(where, labels.dtype)
    uniform = takes_part / jnp.maximum(jnp.sum(takes_part, axis, keepdims=True), 1)
    return labels * takes_part * (1 - alpha) + uniform * alpha


@program
def sparsemax_loss(logits: Float[ArrayLike, "*family"], labels: Int[ArrayLike, "*family"]) -> Float[Array, "*family"]:
    """The sparsemax loss of two classes, elementwise: 0 where a logit is beyond ±1 on the label's side.

    Source: Blondel, Martins & Niculae (2020), *Learning with Fenchel–Young losses*, §4.4; ``optax.losses.sparsemax_loss``.

    Args:
        logits: the score of the outcome 1 over that of 0.
        labels: 0 or 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> losses.sparsemax_loss(jnp.array([0., 2., -2.]), jnp.array([1, 1, 1])).tolist()
        [0.25, 0.0, 2.0]
    """
    logits = real_array("logits", logits, floating=True)
    logits, labels = jnp.broadcast_arrays(logits, jnp.asarray(labels).astype(int))
    return multiclass_sparsemax_loss(jnp.stack([jnp.zeros_like(logits), logits], axis=-1), labels)


@program
def multiclass_sparsemax_loss(
    scores: Float[ArrayLike, "*family V"], labels: Int[ArrayLike, "*family"]
) -> Float[Array, "*family"]:
    """The Fenchel–Young loss of sparsemax against Dirac(labels): ``mx.fenchel_young_loss`` at 2.

    Source: Martins & Astudillo (2016), *From softmax to sparsemax*, eq. 22; ``optax.losses.multiclass_sparsemax_loss``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> losses.multiclass_sparsemax_loss(jnp.array([[2., 0., 0.], [0., 0., 0.]]), jnp.array([0, 0])).tolist()
        [0.0, 0.333333]
    """
    scores = real_array("scores", scores, floating=True)
    return fenchel_young_loss(Dirac(_one_a_row(labels, scores.shape[:-1])), scores, alpha=2)


def make_fenchel_young_loss(max_fun: Callable[..., Any]) -> Callable[..., Float[Array, "*family"]]:
    """The loss (scores, targets, …) ↦ max_fun(scores, …) − P.expect(scores), where P has the masses ``targets``.

    Source: Blondel, Martins & Niculae (2020); ``optax.losses.make_fenchel_young_loss``. For the family of entropies of Tsallis,
    with its own maximum, it is ``mx.fenchel_young_loss``.

    Args:
        max_fun: of a vector of scores [V] and what else the loss is called with, to a number.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from measure_xent import losses
        >>> loss = losses.make_fenchel_young_loss(jax.nn.logsumexp)
        >>> loss(jnp.array([-jnp.inf, 0., 0.]), jnp.array([0., 1., 0.])).item()  # optax: nan
        0.693147
    """

    def loss(scores, targets, *args, **kwargs):
        scores = real_array("make_fenchel_young_loss: scores", scores, floating=True)
        greatest = jnp.vectorize(lambda z: of_user(max_fun)(z, *args, **kwargs), signature="(v)->()")(scores)
        P, Q = Discrete(weights=targets), Categorical(scores)
        return greatest - P.expect(log(Q) + log_partition(Q))

    return loss


Reduction = Literal["mean", "sum", "none"]


@program
def cross_entropy_loss(
    logits: Float[ArrayLike, "..."],
    target: Num[ArrayLike, "..."],
    weight: Float[ArrayLike, "C"] | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: Float[ArrayLike, ""] = 0.0,
    axis: int | None = None,
) -> Float[Array, "..."]:
    """``torch.nn.functional.cross_entropy``, option for option: values, gradients and its own ways of taking the mean.

    With class weights w, smoothing ε and C classes the target of a row is w · ((1 − ε) P + ε · uniform), P = Dirac(target) of
    integers and the measure with masses ``target`` of floats. The sum is divided by Σ w[target] over the rows that count
    of integers, by the number of rows of floats: the same data have two losses. The principled mean divides by the mass of
    the target: ``P.reweight(lambda h, y: w[y]).normalize()``.

    Where torch's number is NaN ours is the contract's: 0 with gradient 0 where all rows are ignored or weigh 0, and a NaN or
    −inf in an ignored row does no harm. A label outside the classes, an error of torch, is +inf with a gradient of NaN.

    Args:
        logits: [C], [N, C] or [N, C, d1, …], the class axis where torch has it, or at ``axis``.
        target: integers, of the shape of logits without the class axis; or floats, of the shape of logits.
        weight: of the classes.
        ignore_index: the integer target that counts nothing.
        reduction: "mean", "sum" or "none", a loss each of the shape of logits without the class axis.
        label_smoothing: ε in [0, 1].
        axis: the class axis; −1 is the habit of JAX.

    Raises:
        TypeError, ValueError: a shape, a dtype or the reduction is none of these.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent.losses import cross_entropy_loss
        >>> logits, target = jnp.array([[2., 0., 0.], [0., 1., 0.], [9., 9., 9.]]), jnp.array([0, 1, -100])
        >>> cross_entropy_loss(logits, target, jnp.array([1., 2., 3.]), label_smoothing=0.1).item()
        0.611018
    """
    logits = real_array("cross_entropy_loss(logits)", logits, floating=True)
    if logits.ndim == 0:
        raise ValueError("cross_entropy_loss(logits): needs an axis for the classes, got a scalar")
    axis = min(1, logits.ndim - 1) if axis is None else axis
    target = jnp.asarray(fitting(target))
    if jnp.issubdtype(target.dtype, jnp.floating) and target.ndim == logits.ndim:
        target = jnp.moveaxis(target, axis, -1)
    x = jnp.moveaxis(logits, axis, -1)
    return _torch_loss(
        Conditional(Categorical), x.shape[-1], x, target, weight, ignore_index, reduction, label_smoothing
    )


@program
def linear_cross_entropy(
    hidden: Float[ArrayLike, "*rows D"],
    linear_weight: Float[ArrayLike, "C D"],
    target: Num[ArrayLike, "..."],
    *,
    linear_bias: Float[ArrayLike, "C"] | None = None,
    weight: Float[ArrayLike, "C"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: Float[ArrayLike, ""] = 0.0,
    softcap: Float[ArrayLike, ""] | None = None,
) -> Float[Array, "..."]:
    """``torch.nn.functional.linear_cross_entropy``, of logits hidden @ linear_weightᵀ + linear_bias that never exist.

    A LinearSoftmax against the measure of ``cross_entropy_loss``, whose options, mean and errors it has; all derivatives, of
    every reduction.

    Args:
        hidden: [*rows, D].
        linear_weight: [C, D], as torch keeps it and as a tied embedding is; a head [D, C] is ``LinearSoftmax(weight)``.
        target: integers [*rows], or floats [*rows, C].
        linear_bias: [C].
        softcap: see ``LinearSoftmax``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent.losses import linear_cross_entropy
        >>> linear_cross_entropy(jnp.eye(3)[:2], jnp.eye(3), jnp.array([0, -100])).item()
        0.5514
    """
    optional = lambda x: None if x is None else jnp.asarray(x)
    head = LinearSoftmax(jnp.asarray(linear_weight), optional(linear_bias), optional(softcap), class_axis=0)
    hidden = real_array("linear_cross_entropy(hidden)", hidden, floating=True)
    return _torch_loss(
        head, head.classes, hidden, jnp.asarray(fitting(target)), weight, ignore_index, reduction, label_smoothing
    )


def _torch_loss(
    K: AbstractConditional,
    classes: int,
    x: Float[Array, "*rows D"],
    target: Num[Array, "..."],
    weight: Float[ArrayLike, "C"] | None,
    ignore_index: int,
    reduction: Reduction,
    label_smoothing: Float[ArrayLike, ""],
) -> Float[Array, "..."]:
    """The loss of a row's measure K(x) against its target, weighed and averaged as torch does."""
    rows = x.shape[:-1]
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction: one of {', '.join(get_args(Reduction))}, got {reduction!r}")
    of_classes = jnp.issubdtype(target.dtype, jnp.integer)
    if target.shape != (rows if of_classes else (*rows, classes)):
        raise ValueError(
            f"target: integers of shape {rows} or floats of shape {(*rows, classes)} (the classes moved last), "
            f"got {target.dtype} of shape {target.shape}"
        )
    if weight is not None and jnp.shape(weight) != (classes,):
        raise ValueError(f"weight: one number a class, shape {(classes,)}, got {jnp.shape(weight)}")

    x, target = (a.reshape(-1, *a.shape[len(rows) :]) for a in (x, target))
    counts = (target != ignore_index if of_classes else jnp.ones(len(x), bool)).astype(float)
    weighed = lambda P: P if weight is None else P.reweight(lambda c: jnp.asarray(weight)[c])
    plain = Dirac(target) if of_classes else Discrete(weights=target)
    P = weighed(_smoothed(plain, label_smoothing, classes))
    if reduction == "none":
        return cross_entropy(counts * P, K(x)).reshape(rows)
    integral = joint(Atoms(x, weights=counts), P).integrate(-log(K))
    if reduction == "sum":
        return integral.checked
    return Integral(integral.checked, 0.0, mass=jnp.sum(counts * weighed(plain).mass if of_classes else counts)).mean


def _smoothed(P: Measure, eps: Float[ArrayLike, ""], classes: int) -> Measure:
    return P if isinstance(eps, int | float) and eps == 0 else (1 - eps) * P + eps * DiscreteUniform(classes)


def _one_a_row(labels: Int[ArrayLike, "..."], rows: tuple[int, ...]) -> Int[Array, "..."]:
    """Integer labels with the axes of the rows: more, or fewer, would be a loss for each pair of them."""
    labels = class_index(fitting(labels))
    if labels.ndim != len(rows) or any(n not in (1, m) for n, m in zip(labels.shape, rows, strict=True)):
        raise ValueError(f"labels: one a row, of shape {rows}, got shape {labels.shape}")
    return labels


def _outcome(logits: Float[ArrayLike, "*family"], labels: Num[ArrayLike, "*family"]) -> Measure:
    """The measure of labels in {0, 1} or between."""
    dtype = real_array("logits", logits, floating=True).dtype
    return Bernoulli(probs=jnp.asarray(labels, dtype))


def _target_and_model(logits: Any, labels: Any, axis: Axis, where: Where) -> tuple[Measure, Categorical]:
    """(the measure with masses ``labels``, the softmax measure), both on the classes that ``where`` leaves."""
    masses, scores = _masses_and_scores(logits, labels, axis, where)
    return Discrete(weights=masses), Categorical(scores)


def _masses_and_scores(
    logits: Any, labels: Any, axis: Axis, where: Where
) -> tuple[Float[Array, "*family V"], Float[Array, "*family V"]]:
    """(labels, logits) with the class axis last, 0 and −inf at the classes that ``where`` leaves out."""
    logits = real_array("logits", logits, floating=True)
    labels = jnp.asarray(labels, accumulator(logits.dtype))
    try:
        labels = jnp.broadcast_to(labels, logits.shape)
    except ValueError:
        raise ValueError(f"labels of shape {labels.shape} do not broadcast to the logits' {logits.shape}") from None
    z, mask = _classes_last(logits, axis, where)
    masses, _ = _classes_last(labels, axis)
    return masses if mask is None else jnp.where(mask, masses, 0), _restricted(z, mask)


def _restricted(logits: Float[Array, "*family V"], where: Bool[Array, "*family V"] | None) -> Float[Array, "*family V"]:
    return logits if where is None else jnp.where(where, logits, -jnp.inf)


def _log_of_positive(p: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.log(jnp.where(p == 0, 1, p))


def _classes_last(array: Array, axis: Axis, where: Where = None) -> tuple[Array, Bool[Array, "*family V"] | None]:
    """The array and ``where`` with the class axes last, as one."""
    axes = tuple(range(array.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if not all(-array.ndim <= i < array.ndim for i in axes):
        raise ValueError(f"axis: {axis} is out of range for logits of shape {array.shape}")
    inner = {i % array.ndim for i in axes}
    if len(inner) < len(axes):
        raise ValueError(f"axis: {axis} names an axis of the logits, of shape {array.shape}, twice")
    outer_shape = [n for i, n in enumerate(array.shape) if i not in inner]
    classes = math.prod(array.shape[i] for i in inner)
    if classes == 0:  # no class at all: one that is left out
        return jnp.zeros((*outer_shape, 1), array.dtype), jnp.zeros((*outer_shape, 1), bool)
    move = lambda a: jnp.moveaxis(a, axes, tuple(range(-len(axes), 0))).reshape(*outer_shape, classes)
    if where is None:
        return move(array), None
    where = jnp.asarray(where, bool)
    where = jnp.expand_dims(where, axes) if where.ndim != array.ndim else where
    try:
        return move(array), move(jnp.broadcast_to(where, array.shape))
    except ValueError:
        raise ValueError(f"where: shape {where.shape} does not broadcast to the logits' {array.shape}") from None
