"""Rows and parameters over the same devices (FSDP), in flax.nnx under plain jit: a model of characters with a tied head."""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as S

import measure_xent as mx
from measure_xent import log

BATCH, CONTEXT, WIDTH = 32, 16, 64


class Model(nnx.Module):
    def __init__(self, vocabulary: int, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(vocabulary, WIDTH, rngs=rngs)
        self.recurrent, self.up = nnx.RNN(nnx.GRUCell(WIDTH, WIDTH, rngs=rngs)), nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, tokens):
        return self.up(self.recurrent(self.embedding(tokens)))


def loss_fn(model, tokens):
    hidden = model(tokens[:, :-1])
    P = mx.Empirical((hidden, tokens[:, 1:]), weights=jnp.ones(hidden.shape[:2]))  # [B, T]: both axes are rows
    return -P.expect(log(mx.LinearSoftmax(model.embedding.embedding[...], class_axis=0)))


@nnx.jit
def step(model, optimizer, tokens):
    value, gradient = nnx.value_and_grad(loss_fn)(model, tokens)
    optimizer.update(model, gradient)
    return value


def train(devices=None, steps=50):
    """The loss of each step, nats a character."""
    devices = devices or jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    text = Path(argparse.__file__).read_text(encoding="utf-8")
    characters = sorted(set(text))
    data = jnp.array([characters.index(c) for c in text])

    def spread(x):  # over the first axis that the devices divide
        axis = next((i for i, n in enumerate(x.shape) if n % devices == 0), None)
        return NamedSharding(mesh, S() if axis is None else S(*(None,) * axis, "data"))

    model = Model(len(characters), nnx.Rngs(42))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
    for module in (model, optimizer):
        state = nnx.state(module)
        nnx.update(module, jax.device_put(state, jax.tree.map(spread, state)))
    history = []
    for i in range(steps):
        starts = jax.random.randint(jax.random.key(i), (BATCH, 1), 0, len(data) - CONTEXT - 1)
        tokens = jax.device_put(data[starts + jnp.arange(CONTEXT + 1)], NamedSharding(mesh, S("data")))
        history.append(float(step(model, optimizer, tokens)))
    return history


if __name__ == "__main__":
    print(f"{train()[-1]:.4f} nats a character")
