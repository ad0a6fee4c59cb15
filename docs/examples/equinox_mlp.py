"""Equinox, and the loss as a measure: classes weighed, labels smoothed, rows masked, one integral against the batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

import measure_xent as mx


def loss_fn(model, x, y, mask, class_weight):
    smoothed = 0.9 * mx.Dirac(y) + 0.1 * mx.DiscreteUniform(2)
    P = mx.joint(mx.Empirical(x, weights=mask * class_weight[y]), smoothed)
    return mx.cross_entropy(P, mx.Conditional(lambda x: mx.Categorical(model(x))))


def train(steps=150, batch=64):
    """(the loss of each step, the accuracy on the rows held out)."""
    x, y = load_breast_cancer(return_X_y=True)
    x, y = jnp.asarray(StandardScaler().fit_transform(x), jnp.float32), jnp.asarray(y)
    order = np.random.default_rng(0).permutation(len(y))
    train_rows, held_out = order[:450], order[450:]
    model = eqx.nn.MLP(30, 2, width_size=32, depth=1, key=jax.random.key(1))
    optimizer = optax.adamw(optax.linear_schedule(1e-2, 0.0, steps))
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    class_weight = len(y) / (2 * jnp.bincount(y, length=2))  # as many malignant as benign, in weight

    @eqx.filter_jit
    def step(model, state, x, y, mask):
        value, gradient = eqx.filter_value_and_grad(loss_fn)(model, x, y, mask, class_weight)
        updates, state = optimizer.update(gradient, state, model)
        return eqx.apply_updates(model, updates), state, value

    history = []
    for i in range(steps):
        rows = train_rows[i * batch % 450 :][:batch]
        mask = np.arange(batch) < len(rows)  # the last batch of an epoch is short: padded to one shape, and masked
        rows = np.resize(rows, batch)
        model, state, value = step(model, state, x[rows], y[rows], mask)
        history.append(float(value))

    P = mx.Empirical((x[held_out], y[held_out]))
    accuracy = P.expect(mx.correct(mx.Conditional(lambda x: mx.Categorical(model(x)))))
    return history, float(accuracy)


if __name__ == "__main__":
    history, accuracy = train()
    print(f"loss {history[0]:.3f} → {history[-1]:.3f}, {accuracy:.1%} of the rows held out")
