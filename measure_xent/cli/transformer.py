"""A small decoder-only transformer: what gives the linear head its hidden states."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Parameters = dict[str, Array]

# The mesh axes of each parameter's axes: its wide axis over model, the other over fsdp.
AXES = {
    "embedding": ("model", "fsdp"),
    "attention": (None, "fsdp", "model"),
    "attention out": (None, "model", "fsdp"),
    "up": (None, "fsdp", "model"),
    "down": (None, "model", "fsdp"),
}


def init(key: Array, *, vocabulary: int, width: int, layers: int) -> Parameters:
    """Normal weights, scaled so that hidden states and logits start of order 1 and below; layers are stacked, to be scanned."""
    keys = iter(jax.random.split(key, 5))
    normal = lambda *shape, scale: scale * jax.random.normal(next(keys), shape)
    inside, outside = width**-0.5, (2 * layers * width) ** -0.5
    return {
        "embedding": normal(vocabulary, width, scale=0.02),
        "attention": normal(layers, width, 3 * width, scale=inside),
        "attention out": normal(layers, width, width, scale=outside),
        "up": normal(layers, width, 4 * width, scale=inside),
        "down": normal(layers, 4 * width, width, scale=outside / 2),
        "gains": jnp.ones((layers, 2, width)),
        "gain": jnp.ones(width),
    }


def hidden_states(parameters: Parameters, tokens: Int[Array, "B T"], heads: int) -> Float[Array, "B T D"]:
    """What the head makes its logits of, at every place of every sequence.

    Source: pre-normalised as in Xiong et al. 2020, with RMSNorm and rotary positions (Su et al. 2021).
    """
    embedding = parameters["embedding"]
    B, T, D = *tokens.shape, embedding.shape[1]

    def layer(x, weights):
        attention, out, up, down, gains = weights
        q, k, v = jnp.split((rms_norm(x, gains[0]) @ attention).reshape(B, T, 3 * heads, -1), 3, axis=2)
        mixed = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        x = x + mixed.reshape(B, T, D) @ out
        return x + jax.nn.gelu(rms_norm(x, gains[1]) @ up) @ down, None

    names = "attention", "attention out", "up", "down", "gains"
    x = embedding[tokens] * D**0.5
    x, _ = jax.lax.scan(jax.checkpoint(layer), x, tuple(parameters[name] for name in names))
    return rms_norm(x, parameters["gain"])


def rms_norm(x: Float[Array, "*n D"], gain: Float[Array, "D"]) -> Float[Array, "*n D"]:
    return gain * x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def rotated(x: Float[Array, "B T H d"]) -> Float[Array, "B T H d"]:
    """Each pair of features turned by an angle that grows with the place."""
    T, d = x.shape[1], x.shape[-1] // 2
    angles = jnp.arange(T)[:, None] * 10_000.0 ** (-jnp.arange(d) / d)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = x[..., :d], x[..., d:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
