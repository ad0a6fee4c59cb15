"""Draws of classes: argmax_c (z_c + g_c) is class c with probability softmax(z)_c, g standard Gumbel (Gumbel 1954, *Statistical
theory of extreme values*; Maddison, Tarlow & Minka 2014, "A* Sampling", §2)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from .classes import Classes, accumulator
from .layout import CLASSES, rows_of
from .log_sum import above
from .partition import explicit_mesh, partitioned


class Keys(NamedTuple):
    """A key for each member: its words, which are cut into blocks as other arrays are, and of which generator they are."""

    words: UInt32[Array, "*family words"]
    generator: Any

    @classmethod
    def of(cls, key: Array, shape: tuple[int, ...]) -> "Keys":
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)
        keys = jax.random.split(key, shape) if shape else key
        return cls(jax.random.key_data(keys), jax.random.key_impl(key))

    def each(self) -> Array:
        """They themselves, in one axis."""
        return jax.random.wrap_key_data(self.words.reshape(-1, self.words.shape[-1]), impl=self.generator)


def draws(classes: Classes, z: Float[Array, "*rows V"], keys: Keys, count: int) -> Int[Array, "*rows count"]:
    """So many independent classes a row, −1 of a row without mass or with a NaN; one pass over the logits each."""
    words, generator = keys
    if explicit_mesh((z, words)) is None:
        return _draws(classes, z, keys, count)
    rows = rows_of(z.ndim - 1)
    local = lambda axes: (
        lambda z, words: _draws(Classes.of(z, axes.get(CLASSES) or None), z, Keys(words, generator), count)
    )
    return partitioned(local, (z, words), ((*rows, CLASSES), (*rows, None)), lambda _: (*rows, None))


def _draws(classes, z, keys, count):
    z = lax.stop_gradient(z.astype(accumulator(z.dtype)))
    top, _ = classes.top(z, "default")
    nothing = (top == -jnp.inf) | (classes.all_parts(jnp.isnan(z).sum(-1, keepdims=True)) > 0)
    z = above(top, z)  # infinite logits share the mass, and there are more digits beside 0 than beside a large logit

    def one(i: Any) -> Array:
        key_of = lambda key: jax.random.fold_in(jax.random.fold_in(key, i), classes.first)
        noise = jax.vmap(lambda key: _gumbel(key_of(key), z.shape[-1], z.dtype))(keys.each())
        _, at = classes.top(z + noise.reshape(z.shape), "default")
        return jnp.where(nothing, -1, at)[..., 0]

    return jnp.moveaxis(lax.map(one, jnp.arange(count)), 0, -1)


def _gumbel(key: Array, n: int, dtype: Any) -> Float[Array, "n"]:
    """Standard Gumbel numbers. Of the 24 bits of a uniform float32 none is above 17, and a class e^−21 times as probable as the
    mode would never come; 32 bits, most where the numbers are large, cost no more."""
    if dtype != jnp.float32:
        return jax.random.gumbel(key, (n,), dtype)
    u = (jax.random.bits(key, (n,), jnp.uint32).astype(dtype) + 0.5) * 2.0**-32
    return -jnp.log(-jnp.log1p(-jnp.minimum(u, 1 - 2.0**-24)))
