"""Connectionist temporal classification: the log-likelihood of a sequence of labels, a sum over its alignments with the frames.

A path has one class a frame, and spells what is left of it when equal neighbours are merged and then blanks are dropped.
Reading it is deterministic: after each frame it has spelled n of the N labels and is on a blank or on the n-th label, or it
has spelled something else and is lost. The log-probabilities of the first two are the recursion of Graves et al. (2006).
That of the third adds up beside it, out of positive terms alone, to lost = 1 − Q(labels): where it is small, −log1p(−lost) is
the loss to relative accuracy, as −log Q(labels) is not. Derivatives are those of the two sums.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num

from .._program import program
from .._strict import custom_jvp
from .checks import fitting, real_array
from .classes import Classes, accumulator, class_index, first_maximum, take
from .null import where_supported
from .softmax import log_softmax, softmax


@program
def ctc_loss(
    logits: Float[ArrayLike, "B T K"],
    logit_paddings: Num[ArrayLike, "B T"],
    labels: Int[ArrayLike, "B N"],
    label_paddings: Num[ArrayLike, "B N"],
    *,
    blank_id: int = 0,
    log_epsilon: Float[ArrayLike, ""] = -1e5,
) -> Float[Array, "B"]:
    """−log of the probability that frames of softmax measures spell the labels, one number a sequence, in nats.

    Source: Graves et al. (2006), *Connectionist temporal classification*; ``optax.losses.ctc_loss``.

    Args:
        logits: of the classes, blank among them, in each of T frames; −inf forbids a class.
        logit_paddings: 1 for a frame that does not count, which may hold anything, else 0.
        labels: classes other than blank.
        label_paddings: 1 for a label that does not count, else 0; all zeros of a row come first.
        blank_id: the class of no label.
        log_epsilon: of optax's signature; log 0 is −inf here.

    Returns:
        +inf, with a gradient of 0, where no path spells the labels; +inf, with a gradient of NaN, for a label that counts and
        is none: outside the classes, or the blank.

    Raises:
        TypeError, ValueError: a shape or dtype is none of these, or there is no class ``blank_id``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> logits, labels = jnp.array([[[0., 0.], [0., 0.]], [[0., 20.], [20., 0.]]]), jnp.array([[1], [1]])
        >>> loss = losses.ctc_loss(logits, jnp.zeros((2, 2)), labels, jnp.zeros((2, 1)))
        >>> loss  # −log ¾, of the paths 01, 10, 11; 1 − (1 − e⁻²⁰) = e⁻²⁰ of 00
        Array([2.87682e-01, 2.06115e-09], dtype=float32)
    """
    del log_epsilon
    return _forward(*_checked(logits, logit_paddings, labels, label_paddings, blank_id))[0]


@program
def ctc_loss_with_forward_probs(
    logits: Float[ArrayLike, "B T K"],
    logit_paddings: Num[ArrayLike, "B T"],
    labels: Int[ArrayLike, "B N"],
    label_paddings: Num[ArrayLike, "B N"],
    *,
    blank_id: int = 0,
    log_epsilon: Float[ArrayLike, ""] = -1e5,
) -> tuple[Float[Array, "B"], Float[Array, "T B N+1"], Float[Array, "T B N"]]:
    """``ctc_loss``, and the log-probabilities of having spelled n labels after t frames, the last of them a blank or the n-th.

    Source: ``optax.losses.ctc_loss_with_forward_probs``. Arguments and errors are those of ``ctc_loss``.

    Returns:
        The loss; log α_blank, n from 0, at the last frame that of blank or label together; log α_label, n from 1. −inf
        of what cannot be.

    Examples:
        >>> import jax.numpy as jnp
        >>> from measure_xent import losses
        >>> frames, labels = jnp.zeros((1, 2, 2)), jnp.array([[1]])
        >>> loss, blank, label = losses.ctc_loss_with_forward_probs(frames, jnp.zeros((1, 2)), labels, jnp.zeros((1, 1)))
        >>> jnp.exp(blank[:, 0]).tolist(), jnp.exp(label[:, 0]).tolist()
        ([[0.5, 0.0], [0.25, 0.75]], [[0.5], [0.5]])
    """
    del log_epsilon
    loss, blank, label = _forward(*_checked(logits, logit_paddings, labels, label_paddings, blank_id))
    return loss, jnp.concatenate([blank[:-1], jnp.logaddexp(blank[-1:], label[-1:])]), label[..., 1:]


def _checked(logits: Any, logit_paddings: Any, labels: Any, label_paddings: Any, blank_id: Any) -> tuple:
    z = real_array("ctc_loss(logits)", logits, floating=True)
    labels = class_index(fitting(labels))
    padded, unlabelled = (jnp.asarray(x) != 0 for x in (logit_paddings, label_paddings))
    shapes = (
        f"logits {z.shape}, logit_paddings {padded.shape}, labels {labels.shape}, label_paddings {unlabelled.shape}"
    )
    if z.ndim != 3 or labels.ndim != 2 or padded.shape != z.shape[:2] or unlabelled.shape != labels.shape:
        raise ValueError(f"ctc_loss: shapes [B, T, K], [B, T], [B, N] and [B, N], got {shapes}")
    if len(labels) != len(z):
        raise ValueError(f"ctc_loss: as many rows of labels as of logits, got {shapes}")
    if not 0 <= (blank := operator.index(blank_id)) < z.shape[-1]:
        raise ValueError(f"ctc_loss(blank_id): one of the {z.shape[-1]} classes, got {blank_id}")
    return z, padded, labels, unlabelled, blank


def _forward(
    logits: Float[Array, "B T K"],
    padded: Bool[Array, "B T"],
    labels: Int[Array, "B N"],
    unlabelled: Bool[Array, "B N"],
    blank: int,
) -> tuple[Float[Array, "B"], Float[Array, "T B N+1"], Float[Array, "T B N+1"]]:
    """(the loss, log α of n labels and a blank, log α of n labels of which the last is just said)."""
    z = jnp.where(padded[..., None], 0, logits.astype(accumulator(logits.dtype)))
    known = (labels >= 0) & (labels < z.shape[-1]) & (unlabelled | (labels != blank))
    fine = jnp.all(unlabelled | known, axis=-1)[:, None, None]
    z = where_supported(fine, z) + jnp.where(
        fine, 0, lax.stop_gradient(z)
    )  # z, of derivative NaN where a label is none
    log_p = _log_softmax(z)
    said = jnp.where(known[:, None], take(log_p, labels[:, None]), -jnp.inf)
    counts, length = ~unlabelled, jnp.sum(~unlabelled, axis=-1, keepdims=True)
    # What a path may say next is a blank and two labels at most. All else that is none of these is what the two most probable
    # labels and the rest have, less what may be said of it: never less than what is taken away, so that nothing cancels.
    label_p = jnp.where(jnp.arange(z.shape[-1]) == blank, 0, jnp.exp(log_p))
    _, top = lax.top_k(lax.stop_gradient(label_p), min(2, z.shape[-1]))
    in_top = jnp.any(jnp.arange(z.shape[-1])[:, None] == top[..., None, :], axis=-1)
    rest = jnp.sum(jnp.where(in_top, 0, label_p), axis=-1, keepdims=True)
    frames = said, log_p[..., blank, None], take(label_p, top), top, rest, padded[..., None]

    before = lambda x, fill: jnp.pad(x, [(0, 0), (1, 0)], constant_values=fill)  # of the label n, n from 0
    after = lambda x, fill: jnp.pad(x, [(0, 0), (0, 1)], constant_values=fill)  # of the label n + 1
    again = jnp.pad(labels[:, 1:] == labels[:, :-1], [(0, 0), (1, 1)])[:, : labels.shape[1] + 1]
    spelled = jnp.arange(labels.shape[1] + 1) <= length

    def step(carry, frame):
        on_blank, on_label, scale, lost = carry
        said, log_blank, top_p, top, rest, padded = frame
        chosen = [counts & (labels == top[:, i, None]) for i in range(top.shape[-1])]
        other = jnp.where(jnp.any(jnp.stack([~counts, *chosen]), axis=0), 0, jnp.exp(said))
        leaves = lambda taken, by: (
            rest - taken + sum(jnp.where(by(c), 0, top_p[:, i, None]) for i, c in enumerate(chosen))
        )
        from_blank = leaves(after(other, 0), lambda c: after(c, False))
        from_label = leaves(
            before(other, 0) + jnp.where(again, 0, after(other, 0)), lambda c: before(c, False) | after(c, False)
        )
        going = jnp.exp(on_blank + scale) * from_blank + jnp.exp(on_label + scale) * from_label
        going = jnp.sum(jnp.where(spelled, going, 0), axis=-1, keepdims=True)

        either = _log_add(on_blank, on_label)
        enters = jnp.where(again, on_blank, either)[:, :-1]
        moved = either + log_blank, before(_log_add(enters, on_label[:, 1:]) + said, -jnp.inf)
        # Relative to the most probable state: to that the weights of a gradient are exact, however small they all are.
        largest = lax.stop_gradient(jnp.max(jnp.maximum(*moved), axis=-1, keepdims=True))
        largest = jnp.where(largest == -jnp.inf, 0, largest)
        moved = moved[0] - largest, moved[1] - largest, scale + largest, lost + going
        carry = tuple(jnp.where(padded, old, new) for old, new in zip(carry, moved, strict=True))
        return carry, (carry[0] + carry[2], carry[1] + carry[2])

    nothing, zero = jnp.full(spelled.shape, -jnp.inf, z.dtype), jnp.zeros((len(z), 1), z.dtype)
    start = nothing.at[:, 0].set(0), nothing, zero, zero
    time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), frames)
    # A reversed scan keeps the states of each frame, and makes what is between them again.
    (on_blank, on_label, scale, lost), states = lax.scan(jax.checkpoint(step, prevent_cse=False), start, time_first)
    either = _log_add(on_blank, on_label) + scale
    log_q = jnp.take_along_axis(either, length, axis=-1)
    short = jnp.where(jnp.arange(either.shape[-1]) < length, jnp.exp(either), 0)
    likely = log_q > -jnp.log(2)
    lost = jnp.where(likely, lost + jnp.sum(short, axis=-1, keepdims=True), 0)
    return jnp.where(likely, -jnp.log1p(-lost), -log_q)[:, 0], *states


@custom_jvp
def _log_softmax(z: Float[Array, "B T K"]) -> Float[Array, "B T K"]:
    """log softmax whose transpose gives the most probable class of a frame minus the sum of the others' gradients."""
    return log_softmax(Classes.of(z), z)


@_log_softmax.defjvp
def _log_softmax_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    _, at = first_maximum(lax.stop_gradient(z))
    # The tangent relative to that class's own, which is 0 by its index: nothing of it is to be rounded into the sum.
    relative = jnp.where(jnp.arange(z.shape[-1]) == at, 0, dz - jnp.take_along_axis(dz, at, axis=-1))
    return _log_softmax(z), relative - jnp.sum(softmax(z) * relative, axis=-1, keepdims=True)


def _log_add(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(eᵃ + eᵇ); of nothing but −inf it is −inf, and stands still."""
    top = lax.stop_gradient(jnp.maximum(a, b))
    none = top == -jnp.inf
    top = jnp.where(none, 0, top)
    total = jnp.where(none, 1, jnp.exp(a - top) + jnp.exp(b - top))
    return jnp.where(none, -jnp.inf, top + jnp.log(total))
