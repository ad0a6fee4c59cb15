"""Optax's MNIST example: a multilayer perceptron of plain pytrees, Adam and a schedule, on scikit-learn's digits."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from measure_xent import losses


def init(key, sizes=(64, 128, 128, 10)):
    initial = jax.nn.initializers.he_normal()
    keys = jax.random.split(key, len(sizes) - 1)
    return [(initial(k, (m, n)), jnp.zeros(n)) for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def predict(params, x):
    *hidden, (w, b) = params
    for v, c in hidden:
        x = jax.nn.relu(x @ v + c)
    return x @ w + b


def loss_fn(params, x, y):
    logits = predict(params, x)
    loss = losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    smoothed = losses.softmax_cross_entropy(logits, losses.smooth_labels(jax.nn.one_hot(y, 10), 0.1)).mean()
    return 0.5 * (loss + smoothed)


def train(steps=100, batch=128):
    """The loss of each step."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images) / 16, jnp.asarray(labels)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 5e-3, steps // 10, steps))
    params = init(jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y):
        value, gradient = jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    history = []
    for i in range(steps):
        rows = jax.random.permutation(jax.random.key(i), len(labels))[:batch]
        params, state, value = step(params, state, images[rows], labels[rows])
        history.append(float(value))
    return history


if __name__ == "__main__":
    history = train()
    print(f"loss {history[0]:.3f} → {history[-1]:.3f}")
