"""What heads take beside their results, by the compiler: blocks of logits, and never all of them."""

import jax
import jax.numpy as jnp
import pytest

import measure_xent as mx
from measure_xent import log

from .sweeps import sweep

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the bounds are of the blocks of CPUs")


def temporaries(loss, N, V, D=256):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((N, D), (D, V))] + [jax.ShapeDtypeStruct((N,), jnp.int32)]
    return jax.jit(loss).lower(*shapes).compile().memory_analysis().temp_size_in_bytes / 2**20


@pytest.mark.slow("heads in several schedules, with gradients")
def test_losses():
    """In value, a loss each, and first and second derivatives, whatever N."""
    loss = lambda h, w, y: -mx.Empirical((h, y)).expect(log(mx.LinearSoftmax(w)))
    gradient = jax.grad(loss, (0, 1))
    each = jax.grad(lambda h, w, y: mx.cross_entropy(mx.Dirac(y), mx.LinearSoftmax(w)(h)).sum(), (0, 1))
    hvp = lambda h, w, y: jax.jvp(lambda w: gradient(h, w, y), (w,), (w,))[1]
    jvp = lambda h, w, y: jax.jvp(lambda h, w: loss(h, w, y), (h, w), (h, w))
    in_pairs = lambda h, w, y: jax.vmap(gradient, (0, None, 0))(h.reshape(2, -1, 256), w, y.reshape(2, -1))

    def jacfwd(h, w, y):
        weighted = lambda m: -mx.Atoms((h, y), weights=m).expect(log(mx.LinearSoftmax(w)))
        return jax.jacfwd(weighted)(jnp.ones(len(y)))

    block, dweight = 256 * 8192 * 4 / 2**20, 256 * 8192 * 4 / 2**20
    dhidden = 4096 * 256 * 4 / 2**20
    assert temporaries(loss, 4096, 8192) <= block + 10
    assert temporaries(gradient, 4096, 8192) <= dweight + dhidden + 16
    assert temporaries(each, 4096, 8192) <= 2 * block + 2 * dweight + 2 * dhidden + 16
    assert temporaries(hvp, 4096, 8192) <= 5 * block + 5 * dweight + 6 * dhidden + 16
    assert temporaries(jvp, 4096, 8192) <= block + dweight + dhidden + 16
    assert temporaries(in_pairs, 4096, 8192) <= 2 * (2 * block + dweight) + dhidden + 24
    assert temporaries(jacfwd, 1024, 8192) <= block + 1024**2 * 4 / 2**20 + 16  # its 1024 directions
    assert temporaries(gradient, 1024, 32000) <= 256 * 32000 * 4 / 2**20 + 1 + 16

    def distil(h, w, y):
        P = mx.joint(mx.Empirical(h), mx.LinearSoftmax(2 * jax.lax.stop_gradient(w))(h))
        return -P.expect(log(mx.LinearSoftmax(w)))

    assert temporaries(jax.grad(distil, (0, 1)), 4096, 8192) <= 2 * dweight + dhidden + 4 * block + 16


CLIPPED = lambda log_q, advantage, old: jnp.minimum(
    jnp.exp(log_q - old) * advantage, jnp.clip(jnp.exp(log_q - old), 0.8, 1.2) * advantage
)
IS_ODD = lambda y: y % 2 == 1
TOP = jnp.zeros((2048, 3), int)
# (MiB, where all logits are 128, a function of two heads Q and T, their points and what rows have of their own)
ASKED = {
    "a clipped ratio": (
        18,
        lambda Q, T, h, g, y, advantage, old: mx.Empirical((h, y, advantage, old)).expect(
            lambda h, y, advantage, old: CLIPPED(log(Q)(h, y), advantage, old)
        ),
    ),
    "a function of log q": (18, lambda Q, T, h, g, y, *_: mx.Empirical((h, y)).expect(log(Q).map(jnp.exp))),
    "a function of the entropy": (60, lambda Q, T, h, *_: mx.Empirical(h).expect(lambda h: mx.entropy(Q(h)) ** 2)),
    "candidates": (30, lambda Q, T, h, g, y, *_: Q(h).log_density(jnp.stack([y, y + 1, y + 2]))),
    "Jensen–Shannon": (21, lambda Q, T, h, g, *_: mx.jensen_shannon(T(g), Q(h))),
    "of a few classes": (21, lambda Q, T, h, *_: mx.jensen_shannon(mx.Discrete(TOP, jnp.full(TOP.shape, 1 / 3)), Q(h))),
    "top k": (30, lambda Q, T, h, *_: mx.top_k(Q(h), 3).weights),
    "a table": (12, lambda Q, T, h, *_: Q(h).expect(lambda y: jnp.sin(1.0 * y))),
    "log q where restricted": (18, lambda Q, T, h, g, y, *_: Q(h).restrict(IS_ODD).normalize().log_density(y)),
    "entropy where restricted": (128, lambda Q, T, h, *_: mx.entropy(Q(h).restrict(IS_ODD).normalize())),
}


@pytest.mark.long
@sweep("name", ASKED, 0.5)
def test_families(name):
    """The gradients of what is asked of Q(h)."""
    bound, function = ASKED[name]
    loss = lambda h, w, g, u, *own: jnp.sum(function(mx.LinearSoftmax(w), mx.LinearSoftmax(u), h, g, *own))
    shapes = [(2048, 64), (64, 16384)] * 2 + [(2048,)] * 3
    arrays = [jax.ShapeDtypeStruct(shape, jnp.int32 if i == 4 else jnp.float32) for i, shape in enumerate(shapes)]
    compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < bound << 20


def test_samples():
    """Numbers for the noise beside the logits, of a block of rows."""
    draw = lambda h, w, y: mx.LinearSoftmax(w)(h).sample(jax.random.key(0), 2)
    assert temporaries(draw, 2048, 16384, 64) < 8
