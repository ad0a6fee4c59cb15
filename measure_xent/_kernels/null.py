"""Products in which an atom of weight 0 contributes exactly 0, whatever the integrand is there."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped


@jax.custom_jvp
def null_safe_product(
    weight: Shaped[Array, "..."], value: Shaped[Array, "..."], original: Shaped[Array, "..."]
) -> Shaped[Array, "..."]:
    """weight · value, with 0 · ±inf = 0 · NaN = 0 in the value and in every derivative.

    ``value`` may have been computed at a point that stands in for a null atom's own, so that no cotangent meets
    an infinite derivative there; ``original`` is then the integrand at the atom itself (else pass ``value`` again).
    Only the derivative in the weight reads it, for there d/dw *is* the integrand, also at weight 0; where no weight
    is differentiated, a compiler drops its computation.
    """
    del original
    return jnp.where(weight == 0, 0, weight * value)


def _jvp(primals, tangents):
    weight, value, original = primals
    dweight, dvalue, doriginal = (differentiated(t) for t in tangents)
    out = null_safe_product(*primals)
    tangent = jnp.zeros_like(out)
    if dvalue is not None:
        # A product again, so that its derivative in the weight is that of the integrand also at weight 0.
        tangent += null_safe_product(weight, dvalue, dvalue if doriginal is None else doriginal)
    if dweight is not None:
        tangent += jnp.where(weight == 0, jnp.where(jnp.isfinite(original), original, 0), value) * dweight
    return out, tangent


null_safe_product.defjvp(_jvp, symbolic_zeros=True)


def differentiated(tangent):
    """The tangent, or None where its argument is absent or not differentiated."""
    return None if isinstance(tangent, jax.custom_derivatives.SymbolicZero) else tangent


@jax.custom_jvp
def where_supported(valid: Bool[Array, "..."], density: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The density, but 0 at points outside a measure's space, with derivative NaN there so that no run trains on."""
    return jnp.where(valid, density, 0)


@where_supported.defjvp
def _where_supported_jvp(primals, tangents):
    valid, density = primals
    return where_supported(valid, density), jnp.where(valid, 1, jnp.nan) * tangents[1]
