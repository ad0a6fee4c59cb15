"""Laws of angles."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array, Float

from .._kernels.checks import parameters
from .._pytree import pytree
from .counts import not_negative
from .exponential_family import Statistic
from .laws import Continuous
from .statistics import OfParameters

NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)
FAR = 20.0  # half of how many nats below its largest a density need not be integrated


@pytree
class Versine(OfParameters):
    """x ↦ 1 − cos(x − c)."""

    c: Float[Array, "*family"]

    def __call__(self, *x):
        return 2 * jnp.sin((x[0] - self.c) / 2) ** 2


@pytree
class VonMises(Continuous):
    """The von Mises distribution of an angle, of density ∝ exp(concentration · cos(x − loc)) on [−π, π].

    Points are angles from −π to π, as numpyro draws them, so mean and variance are those of numbers; the mean direction is the
    angle of E cos x and E sin x.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P = mx.VonMises(3., 4.)
        >>> P.mean.item(), jnp.arctan2(P.expect(jnp.sin), P.expect(jnp.cos)).item()
        (0.5334, 3.0)
    """

    loc: Float[Array, "*family"]
    concentration: Float[Array, "*family"]

    def __post_init__(self):
        parameters(self, concentration=not_negative)

    @property
    def support(self):
        return -math.pi, math.pi

    @property
    def centre(self):
        return _wrapped(self.loc)

    @property
    def width(self):
        return 1 / jnp.sqrt(self.concentration + 0.5)

    def log_density_of(self, x):
        value = -self.concentration * Versine(self.loc)(x) - self._log_scale
        return jnp.where(jnp.abs(x) <= math.pi, value, -jnp.inf)

    @property
    def _log_scale(self):
        # At 0 JAX's own derivative is that of an even function, without what e^−κ has.
        return math.log(2 * math.pi) + jnp.log(special.i0e(self.concentration + 1e-30))

    def _turns(self, x):
        """(n, s) of the mass from an angle far back to x, n + s: whole turns, and what is small where a tail is."""
        angle = jnp.clip(x, -math.pi, math.pi) - self.loc
        turns = jnp.round(jax.lax.stop_gradient(angle) / (2 * math.pi))
        angle = angle - 2 * math.pi * turns
        ahead = angle > 0
        tail = self._tail(jnp.where(ahead, angle, -angle))
        return turns + ahead, jnp.where(ahead, -tail, tail)

    def _tail(self, a):
        """The mass at angles from a to π of loc, on one side: by Gauss's rule as far as the density matters."""
        k = self.concentration
        a = jnp.clip(a, 0, math.pi)
        far = jnp.sqrt(jnp.minimum(jnp.sin(a / 2) ** 2 + FAR / jnp.where(k == 0, 1, k), 1))
        end = jax.lax.stop_gradient(jnp.where(k == 0, math.pi, 2 * jnp.arcsin(far)))
        half = (end - a) / 2
        t = a + half * (1 + NODES.reshape(-1, *(1,) * jnp.ndim(half)).astype(half.dtype))
        density = jnp.exp(-2 * k * jnp.sin(t / 2) ** 2 - self._log_scale)
        return half * jnp.tensordot(jnp.asarray(WEIGHTS, half.dtype), density, axes=1)

    def _between(self, x, y):
        (n, s), (m, t) = self._turns(x), self._turns(y)
        return (m - n) + (t - s)

    def cdf(self, x):
        return self._between(jnp.full_like(x, -math.pi), x)

    def survival(self, x):
        return self._between(x, jnp.full_like(x, math.pi))

    @property
    def affine(self):
        return -self.concentration * Versine(self.loc) - self._log_scale

    def moment(self, statistic: Statistic):
        match statistic:
            case Versine(c=c):
                return self._spread + (1 - self._spread) * Versine(c)(self.loc)
        return NotImplemented

    @property
    def _spread(self):
        """1 − I₁(κ)/I₀(κ), the mean of 1 − cos(x − loc); far out by its expansion, for there the ratio rounds to 1."""
        k = self.concentration
        large = k > (25 if jnp.finfo(k.dtype).bits < 64 else 600)
        near, far = jnp.where(large, 1, k), jnp.where(large, k, 1)
        series = jnp.polyval(jnp.asarray([13 / 32, 25 / 128, 1 / 8, 1 / 8, 1 / 2, 0], k.dtype), 1 / far)
        return jnp.where(large, series, 1 - special.i1e(near) / special.i0e(near))


def _wrapped(x):
    return x - 2 * math.pi * jnp.round(jax.lax.stop_gradient(x) / (2 * math.pi))
