"""Losses and their gradients from one exponential a logit, stored where the gradient goes: for CPUs.

Exponentials are relative to the row's maximum. What the loss's digits hang on is left out of their sum T: a confident label is
itself the maximum, so that its loss is log1p(T), which 1 + T would round away, and its gradient −T / (1 + T). Infinite logits
and rows without mass take the same way.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .classes import Classes, entry, out_of_range
from .log_sum import above, distance
from .target import Target, expand

# Measured on x86 CPUs: of so few classes all are compared with the label quicker than one is set by its index. So they are of
# many logits, too: what is set does not take the place of logits that a program makes, and would be one matrix more.
SCATTERED, LARGE = 64, 1 << 22


def of_labels(
    z: Float[Array, "R V"], y: Int[Array, "R 1"], w: Float[Array, "R 1"]
) -> tuple[Float[Array, "R 1"], Float[Array, "R 1"], Float[Array, "R 1"], Float[Array, "R V"]]:
    """(w · loss, the maximum, the log-sum-exp less that, w · gradient in the logits) of each row's label, exactly 0 where w is.

    Left out is the label's exponential. A label that is not the maximum has a loss above log 2, to which a rounding of
    T + exp(z_y − max) is one. So no maximum has to be looked for by its index. Of a label that is no class the loss is
    infinite, and nothing is known of the gradient.
    """
    v = z.shape[-1]
    infeasible, y = out_of_range(y, v), jnp.clip(y, 0, v - 1)
    top, own, is_label = jnp.max(z, axis=-1, keepdims=True), entry(z, y), lambda: jnp.arange(v) == y
    others = jnp.exp(above(top, z))
    if v <= SCATTERED or z.size > LARGE:
        others = jnp.where(is_label(), 0, others)
    else:
        others = others.at[jnp.arange(len(z))[:, None], y].set(0, unique_indices=True, mode="promise_in_bounds")
    tail, label = jnp.sum(others, axis=-1, keepdims=True), jnp.exp(above(top, own))
    total = tail + label
    # XLA's maximum passes over a NaN, and of a row without mass it is −inf.
    nothing = (top == -jnp.inf) & ~jnp.isnan(total)
    log_sum = jnp.where(tail <= label, jnp.log1p(tail), jnp.log(total))
    log_sum = jnp.where(nothing, jnp.inf, log_sum)
    loss = jnp.where(infeasible, jnp.inf, distance(top, own) + log_sum)
    scale = jnp.where(nothing, 0, w / total)
    # Once a row: a compiler that fuses these with what follows computes them again for every class.
    scale, at_label, null = lax.optimization_barrier((scale, jnp.where(nothing, -w, -scale * tail), w == 0))
    gradient = jnp.where(null, 0, jnp.where(is_label(), at_label, scale * others))
    return w * jnp.where(w == 0, 0, loss), top, log_sum, gradient


def of_masses(
    z: Float[Array, "R V"], target: Target
) -> tuple[Float[Array, "R"], Float[Array, "R 1"], Float[Array, "R 1"], Float[Array, "R V"]]:
    """The same of any target: (loss, the maximum, the log-sum-exp less that, gradient in the logits) of each row.

    Left out are the maximum's exponentials, told by their value, of which all but one are counted. A maximum that a compiler
    computes again with another last bit is not told, and summed with its rounding error.
    """
    classes = Classes.of(z)
    # Stored, each once: XLA's CPU compiler sums what is stored faster than what it makes while it sums.
    stored = lax.optimization_barrier
    sum_of = lambda x: stored(jnp.sum(stored(x), axis=-1, keepdims=True))
    total, masses = expand(classes, *target)
    top = stored(jnp.max(z, axis=-1, keepdims=True))
    # −1 for the maximum: one array for the exponentials and for which they are.
    others = stored(jnp.where(z == top, -1, jnp.exp(above(top, z))))
    tail = sum_of(jnp.where(others < 0, 0, others))
    tail = stored(tail + (jnp.round(tail - sum_of(others)) - 1))
    tail = jnp.where(tail < 0, 0, tail)
    nothing = (top == -jnp.inf) & ~jnp.isnan(tail)
    log_sum = stored(jnp.where(nothing, jnp.inf, jnp.log1p(tail)))
    loss = sum_of(masses * jnp.where(masses == 0, 0, distance(top, z) + log_sum))
    null = jnp.isnan(tail) & ~jnp.isnan(loss)  # masses that are not 0 have read the NaN
    if target.indices is not None and target.weights is not None:
        infeasible = out_of_range(target.indices, z.shape[-1]) & (target.weights != 0)
        at_none = jnp.where(infeasible, target.weights, 0) * jnp.where(infeasible, jnp.inf, 0)
        loss += jnp.sum(at_none, axis=-1, keepdims=True)
    # Where the maximum is confident, p − 1 is −T / (1 + T), and P less the mass what P has elsewhere.
    confident = ~nothing & (tail < 1)
    elsewhere, sparse = total, masses
    if target.dense is not None:
        elsewhere, sparse = expand(classes, *target._replace(dense=None))
        elsewhere += sum_of(jnp.where(others < 0, 0, target.dense))
    scale = jnp.where(nothing, 0, total / (1 + tail))
    rows = scale, jnp.where(confident, -scale * tail, scale), jnp.where(confident, elsewhere, 0), confident, null
    scale, at_top, elsewhere, confident, null = stored(rows)
    at_top += elsewhere - jnp.where(confident, sparse, masses)
    gradient = jnp.where(others < 0, at_top, scale * others - masses)
    return loss[..., 0], top, log_sum, jnp.where(null, 0, gradient)
