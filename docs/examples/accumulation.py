"""Optax's gradient accumulation: three micro-batches for one large batch, and what happens once some rows are padding."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import measure_xent as mx
from measure_xent import losses

MICRO = 3


def init(key):
    return {"weight": 0.1 * jax.random.normal(key, (64, 10)), "bias": jnp.zeros(10)}


def loss_fn(params, x, y, mask):
    each = losses.softmax_cross_entropy_with_integer_labels(x @ params["weight"] + params["bias"], y)
    return (mask * each).sum() / mask.sum()


def integral(params, P):
    """The same sum, not yet divided: an Integral knows what it is a mean over."""
    return P.integrate(-mx.log(mx.LinearSoftmax(params["weight"], params["bias"])))


def data(ragged, steps, rows=32):
    """(images, labels, mask) of each step, [MICRO, rows, …]."""
    images, labels = load_digits(return_X_y=True)
    for i in range(steps):
        chosen = jax.random.permutation(jax.random.key(i), len(labels))[: MICRO * rows].reshape(MICRO, rows)
        real = jnp.array([rows, rows // 4, 1]) if ragged else jnp.full(MICRO, rows)
        yield jnp.asarray(images)[chosen] / 16, jnp.asarray(labels)[chosen], 1.0 * (jnp.arange(rows) < real[:, None])


def train(how, ragged=False, steps=20):
    """The loss of each large batch, before its step: by one gradient of it, by ``MultiSteps`` or by ``accumulate``."""
    sgd = optax.sgd(0.5, momentum=0.9)
    wrapped = {"MultiSteps": optax.MultiSteps, "accumulate": mx.accumulate}
    optimizer = wrapped[how](sgd, MICRO) if how in wrapped else sgd
    params = init(jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y, mask):
        if how == "accumulate":
            _, gradient = mx.value_and_grad(integral)(params, mx.Atoms((x, y), weights=mask))
        else:
            gradient = jax.grad(loss_fn)(params, x, y, mask)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    history = []
    for batches in data(ragged, steps):
        large = [part.reshape(-1, *part.shape[2:]) for part in batches]
        history.append(float(loss_fn(params, *large)))
        for micro in [large] if how == "one batch" else zip(*batches, strict=True):
            params, state = step(params, state, *micro)
    return history


if __name__ == "__main__":
    for ragged in False, True:
        print("ragged masks" if ragged else "full batches")
        for how in "one batch", "MultiSteps", "accumulate":
            print(f"  {how:12} loss {train(how, ragged)[-1]:.6f}")
