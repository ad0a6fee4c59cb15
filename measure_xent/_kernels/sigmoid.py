"""Cross-entropy of any target on {0, 1} against a sigmoid of materialised logits, elementwise.

H = p₀·softplus(z) + p₁·softplus(−z), and its gradient p₀·σ(z) − p₁·σ(−z): both sums of terms that never cancel, with
exact tails. A logit ±inf is a certain outcome: surprisal 0 for it, +inf for the other, and a finite gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._strict import custom_jvp
from .null import differentiated, null_safe_product


@custom_jvp
def cross_entropy(
    z: Float[Array, "*family"],
    p0: Float[Array, "*family"],
    p1: Float[Array, "*family"],
    outside: Float[Array, "*family"],
) -> Float[Array, "*family"]:
    """The cross-entropy in nats of masses p0, p1 of the outcomes against σ(z) = Q({1}).

    ``outside`` is target mass on neither outcome: +inf if it is not 0, and a NaN gradient.
    """
    total = null_safe_product(p0, _softplus(z)) + null_safe_product(p1, _softplus(-z))
    return jnp.where(outside != 0, jnp.inf, total)


def _jvp(primals, tangents):
    z, p0, p1, outside = primals
    dz, dp0, dp1, doutside = (differentiated(t) for t in tangents)
    value = cross_entropy(*primals)
    tangent = jnp.zeros_like(value)
    # All derivatives of a null target are finite, but those at a NaN.
    undefined = (p0 == 0) & (p1 == 0) & jnp.isnan(z)
    z = jnp.where(undefined, 0, z)
    if dz is not None:
        gradient = jnp.where(undefined, 0, p0 * jax.nn.sigmoid(z) - p1 * jax.nn.sigmoid(-z))
        tangent += jnp.where(outside != 0, jnp.nan, gradient) * dz
    for p, dp, surprisal in ((p0, dp0, _softplus(z)), (p1, dp1, _softplus(-z))):
        if dp is not None:
            tangent += jnp.where(undefined | ((p == 0) & ~jnp.isfinite(surprisal)), 0, surprisal) * dp
    if doutside is not None:
        tangent += jnp.where(outside == 0, 0, jnp.inf) * doutside
    return value, tangent


cross_entropy.defjvp(_jvp, symbolic_zeros=True)


def _softplus(z):
    """log(1 + exp z), to the ulp in both tails; the derivative at ±inf is the limit too."""
    return jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z)))
