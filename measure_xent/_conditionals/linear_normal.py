"""The linear Gaussian Markov kernel, whose mixtures, inverses and compositions are in closed form."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._kernels.checks import real_array
from .._measures.measure import Measure
from .._measures.multivariate_normal import MultivariateNormal, gaussian
from .._pytree import pytree, set_fields
from .conditional import AbstractConditional


@pytree
class LinearNormal(AbstractConditional):
    """The Markov kernel x ↦ N(x @ weight + bias, covariance_matrix).

    ``bind`` of a normal P, ``posterior`` and ``compose`` with another are normal again: the Kalman filter's prediction, its
    update, and its model.

    Args:
        weight: [d, k].
        bias: [k], 0 by default.
        covariance_matrix: [k, k]; or scale_tril, its Cholesky factor.

    Raises:
        ValueError: the shapes do not fit.

    Source: Bishop 2006, *Pattern Recognition and Machine Learning*, §2.3.3.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> one = jnp.eye(1)
        >>> prior, noisy = mx.MultivariateNormal(jnp.zeros(1), 4 * one), mx.LinearNormal(one, covariance_matrix=one)
        >>> mx.bind(prior, noisy).covariance_matrix.item(), mx.posterior(prior, noisy)(jnp.array([5.])).loc.item()
        (5.0, 4.0)
    """

    weight: Float[Array, "d k"]
    bias: Float[Array, "k"]
    scale_tril: Float[Array, "k k"]

    def __init__(self, weight: Any, bias: Any = None, covariance_matrix: Any = None, scale_tril: Any = None):
        weight = real_array("LinearNormal(weight)", weight, floating=True)
        if weight.ndim != 2:
            raise ValueError(f"LinearNormal(weight): [d, k], got shape {weight.shape}")
        bias = (
            jnp.zeros(weight.shape[1], weight.dtype)
            if bias is None
            else real_array("LinearNormal(bias)", bias, floating=True)
        )
        noise = MultivariateNormal(bias, covariance_matrix, scale_tril=scale_tril)
        if noise.loc.shape != weight.shape[1:] or noise.scale_tril.ndim != 2:
            raise ValueError(
                f"LinearNormal: weight [d, k], bias [k] and covariance_matrix [k, k], got {weight.shape}, {bias.shape} and "
                f"{noise.scale_tril.shape}"
            )
        set_fields(self, weight=weight, bias=noise.loc, scale_tril=noise.scale_tril)

    def __call__(self, *x):
        (x,) = x
        if jnp.shape(x)[-1:] != self.weight.shape[:1]:
            raise ValueError(f"LinearNormal(weight): x of length {self.weight.shape[0]}, got shape {jnp.shape(x)}")
        return MultivariateNormal(x @ self.weight + self.bias, scale_tril=self.scale_tril)

    @property
    def _noise(self):
        return self.scale_tril @ self.scale_tril.mT

    def after(self, P: Measure) -> Any:
        x = gaussian(P)
        if x is None:
            return NotImplemented
        spread = self.weight.mT @ x.scale_tril
        return MultivariateNormal(x.loc @ self.weight + self.bias, spread @ spread.mT + self._noise)

    def inverse(self, P: Measure) -> Any:
        y, x = self.after(P), gaussian(P)
        if x is None or x.shape:
            return NotImplemented
        gain = jnp.linalg.solve(y.covariance_matrix, self.weight.mT @ x.covariance_matrix)  # [k, d]
        rest = jnp.eye(x.dimension) - self.weight @ gain
        # Joseph's form, symmetric and positive whatever the rounding.
        covariance = rest.mT @ x.covariance_matrix @ rest + gain.mT @ self._noise @ gain
        return LinearNormal(gain, x.loc - y.loc @ gain, covariance)

    def then(self, L: AbstractConditional) -> Any:
        if not isinstance(L, LinearNormal):
            return NotImplemented
        spread = L.weight.mT @ self.scale_tril
        return LinearNormal(self.weight @ L.weight, self.bias @ L.weight + L.bias, spread @ spread.mT + L._noise)
