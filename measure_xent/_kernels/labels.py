"""Losses of labels and their gradient from one exponential a logit, stored where the gradient goes: for CPUs.

Exponentials are relative to the row's maximum, and the label's own is left out of their sum T. A confident label is itself the
maximum, so that its loss is log1p(T), which 1 + T would round away, and its gradient −T / (1 + T). Any other label has a loss
above log 2, to which a rounding of T + exp(z_y − max) is one. So no maximum has to be looked for by its index, and no case is
left over: infinite logits and rows without mass take the same way.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .classes import entry, out_of_range
from .log_sum import above, distance

# Measured on x86 CPUs: of so few classes all are compared with the label quicker than one is set by its index. So they are of
# many logits, too: what is set does not take the place of logits that a program makes, and would be one matrix more.
SCATTERED, LARGE = 64, 1 << 22


def labels(
    z: Float[Array, "R V"], y: Int[Array, "R 1"], w: Float[Array, "R 1"]
) -> tuple[Float[Array, "R 1"], Float[Array, "R 1"], Float[Array, "R 1"], Float[Array, "R V"]]:
    """(w · loss, the maximum, the log-sum-exp less that, w · gradient in the logits) of each row's label, exactly 0 where w is.

    Of a label that is no class the loss is infinite, and nothing is known of the gradient.
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
