"""Data-parallel integrals inside shard_map: 8 virtual CPU devices add totals and masses, and give one device's numbers."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as S
import measure_xent as mx
from measure_xent import log

assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
N, V, D = 8 * 1200, 1000, 16
h = jnp.asarray(rng.normal(size=(N, D)), jnp.float32)
y, mask = jnp.asarray(rng.integers(V, size=N)), jnp.asarray(rng.uniform(size=N) < np.linspace(0, 1, N), jnp.float32)
w = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)

KINDS = {
    "head": lambda h, w: (h, mx.LinearSoftmax(w)),
    "logits": lambda h, w: (h @ w, mx.Conditional(mx.Categorical)),
}

def loss(kind, h, y, mask, w, reduce=lambda x: x):
    x, Q = KINDS[kind](h, w)
    P = mx.Atoms((x, y), weights=mask)
    return reduce(-P.expect(log(Q))) / reduce(P.mass)

for kind in KINDS:
    sharded = jax.shard_map(
        lambda h, y, mask, w: loss(kind, h, y, mask, w, lambda x: jax.lax.psum(x, "data")),
        mesh=mesh, in_specs=(S("data"), S("data"), S("data"), S()), out_specs=S(),
    )
    value, gradients = jax.jit(jax.value_and_grad(lambda h, w: sharded(h, y, mask, w), (0, 1)))(h, w)
    expected, exact = jax.jit(jax.value_and_grad(lambda h, w: loss(kind, h, y, mask, w), (0, 1)))(h, w)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(gradients, exact):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)
print("the same")
"""


def test_ragged_batches_have_the_right_mean():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    out = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=600)
    assert out.stdout.strip() == "the same", out.stderr[-3000:]
