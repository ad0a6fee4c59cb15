"""Optax's nanolm: a language model of characters, in flax.nnx, here on the source of Python's own ``argparse``."""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from measure_xent import losses

BATCH, CONTEXT, WIDTH = 32, 32, 64


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm, self.other_norm = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.other_norm(x))))


class NanoLM(nnx.Module):
    def __init__(self, vocabulary: int, rngs: nnx.Rngs):
        self.embedding, self.place = nnx.Embed(vocabulary, WIDTH, rngs=rngs), nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.block, self.other_block = Block(rngs), Block(rngs)
        self.head = nnx.Linear(WIDTH, vocabulary, rngs=rngs)

    def __call__(self, tokens):
        x = self.embedding(tokens) + self.place(jnp.arange(tokens.shape[1]))
        return self.head(self.other_block(self.block(x)))


def loss_fn(model, tokens):
    logits = model(tokens[:, :-1])
    return losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@nnx.jit
def step(model, optimizer, tokens):
    value, gradient = nnx.value_and_grad(loss_fn)(model, tokens)
    optimizer.update(model, gradient)
    return value


def train(steps=50):
    """The loss of each step, nats a character."""
    text = Path(argparse.__file__).read_text(encoding="utf-8")
    characters = sorted(set(text))
    data = jnp.array([characters.index(c) for c in text])
    model = NanoLM(len(characters), nnx.Rngs(42))
    optimizer = nnx.Optimizer(model, optax.adamw(optax.cosine_decay_schedule(3e-3, steps)), wrt=nnx.Param)
    history = []
    for i in range(steps):
        starts = jax.random.randint(jax.random.key(i), (BATCH, 1), 0, len(data) - CONTEXT - 1)
        history.append(float(step(model, optimizer, data[starts + jnp.arange(CONTEXT + 1)])))
    return history


if __name__ == "__main__":
    history = train()
    print(f"nats a character {history[0]:.3f} → {history[-1]:.3f}")
