"""Optax's adversarial training: a flax.nnx network against the attack of Madry et al. 2017, by gradients in the images."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from measure_xent import losses

EPSILON, ATTACK_STEPS = 0.1, 5


class CNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 16, kernel_size=(3, 3), rngs=rngs)
        self.linear = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.conv(x)), (2, 2), strides=(2, 2))
        return self.linear(x.reshape(len(x), -1))


def loss_fn(model, images, labels):
    return losses.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def attack(model, images, labels):
    """Projected gradient ascent in the ball of radius EPSILON about the images."""
    change = jnp.zeros_like(images)
    for _ in range(ATTACK_STEPS):
        slope = jax.grad(lambda change: loss_fn(model, images + change, labels))(change)
        change = jnp.clip(change + 2 * EPSILON / ATTACK_STEPS * jnp.sign(slope), -EPSILON, EPSILON)
    return jnp.clip(images + change, 0, 1)


@nnx.jit
def step(model, optimizer, images, labels):
    value, gradient = nnx.value_and_grad(loss_fn)(model, attack(model, images, labels), labels)
    optimizer.update(model, gradient)
    return value


def train(steps=40, batch=128):
    """The loss on attacked images at each step."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images, jnp.float32).reshape(-1, 8, 8, 1) / 16, jnp.asarray(labels)
    model = CNN(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    history = []
    for i in range(steps):
        rows = jax.random.permutation(jax.random.key(i), len(labels))[:batch]
        history.append(float(step(model, optimizer, images[rows], labels[rows])))
    return history


if __name__ == "__main__":
    history = train()
    print(f"loss under attack {history[0]:.3f} → {history[-1]:.3f}")
