"""BatchNorm in flax.nnx, data-parallel under plain jit: the model sees the batch, so the loss takes its logits."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as S
from sklearn.datasets import load_digits

import measure_xent as mx
from measure_xent import log

BATCH = 256


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first, self.norm = nnx.Linear(64, 128, rngs=rngs), nnx.BatchNorm(128, rngs=rngs)
        self.last = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        return self.last(nnx.relu(self.norm(self.first(images))))


def figures(model, images, labels, weights):
    """The mean loss and the share that is right, of a batch in which rows of weight 0 do not count."""
    Q = mx.Conditional(mx.Categorical)  # of logits; model(images) is one call, of the whole batch
    P = mx.Empirical((model(images), labels), weights=weights)
    return P.expect((-log(Q), mx.correct(Q)))


@nnx.jit
def step(model, optimizer, *batch):
    (loss, right), gradient = nnx.value_and_grad(figures, has_aux=True)(model, *batch)
    optimizer.update(model, gradient)
    return loss, right


def train(devices=None, steps=100):
    """The loss of each step, and the held-out accuracy."""
    devices = devices or jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    rows, everywhere = NamedSharding(mesh, S("data")), NamedSharding(mesh, S())
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images) / 16, jnp.asarray(labels)

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    for module in (model, optimizer):
        nnx.update(module, jax.device_put(nnx.state(module), everywhere))
    history = []
    for i in range(steps):
        chosen = jax.random.permutation(jax.random.key(i), 1400)[:BATCH]
        batch = jax.device_put((images[chosen], labels[chosen], jnp.ones(BATCH)), rows)
        history.append(float(step(model, optimizer, *batch)[0]))
    model.eval()  # the running means and variances
    held_out = images[1400:], labels[1400:], jnp.ones(len(labels) - 1400)
    return history, float(figures(model, *held_out)[1])


if __name__ == "__main__":
    history, accuracy = train()
    print(f"loss {history[0]:.3f} → {history[-1]:.3f}, held-out accuracy {accuracy:.1%}")
