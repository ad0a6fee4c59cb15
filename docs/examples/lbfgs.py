"""Optax's L-BFGS with its line search: multinomial logistic regression on the wines, to its optimum in a few steps."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler

from measure_xent import losses


def train(steps=15):
    """The loss before each step."""
    x, y = load_wine(return_X_y=True)
    x, y = jnp.asarray(StandardScaler().fit_transform(x)), jnp.asarray(y)

    def loss_fn(params):
        loss = losses.softmax_cross_entropy_with_integer_labels(x @ params["weight"] + params["bias"], y).mean()
        return loss + 1e-3 * (params["weight"] ** 2).sum()

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss_fn)
    params = {"weight": jnp.zeros((13, 3)), "bias": jnp.zeros(3)}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        value, gradient = value_and_grad(params, state=state)
        updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=loss_fn)
        return optax.apply_updates(params, updates), state, value

    history = []
    for _ in range(steps):
        params, state, value = step(params, state)
        history.append(float(value))
    return history


if __name__ == "__main__":
    history = train()
    print(f"loss {history[0]:.4f} → {history[-1]:.4f}")
