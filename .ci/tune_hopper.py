"""Times the kernel of ``_kernels/hopper.py`` by its tiles, on a Hopper GPU, beside the bare product.

With "--once" it runs once, for a sanitizer.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp

from measure_xent._kernels import hopper
from measure_xent._kernels.matrix import Matrix

CANDIDATES = [
    hopper.Tiles(),
    hopper.Tiles(outgoing=64),
    hopper.Tiles(outgoing=16),
    hopper.Tiles(width=4),
    hopper.Tiles(width=16),
    hopper.Tiles(rows=256, classes=128),
]


def programs(operands):
    """(name, compiled program): every candidate, and the product."""

    def kernel(hidden, weight, reference, labels):
        atoms = labels, labels[:, None]
        return hopper.exponentials(hidden, reference, *atoms, Matrix(weight, 1, None), None, total=False, keep=True)

    for tiles in CANDIDATES:
        hopper.TILES = tiles
        yield str(tiles), jax.jit(lambda *x: kernel(*x)).lower(*operands).compile()
    yield "the product", jax.jit(lambda hidden, weight, *_: hidden @ weight).lower(*operands).compile()


def operands(tokens, features, classes):
    keys = jax.random.split(jax.random.key(time.time_ns() & 0x7FFFFFFF), 3)
    hidden = jax.random.normal(keys[0], (tokens, features), jnp.bfloat16)
    weight = jax.random.normal(keys[1], (features, classes), jnp.bfloat16) / jnp.bfloat16(features**0.5)
    return hidden, weight, jnp.full(tokens, 3.0), jax.random.randint(keys[2], (tokens,), 0, classes)


if "--once" in sys.argv:
    CANDIDATES = CANDIDATES[:1]
    for _, program in programs(operands(392, 128, 832)):
        jax.block_until_ready(program(*operands(392, 128, 832)))
    sys.exit()
for shape in ((8192, 4096, 131072), (8192, 2048, 131072)):
    inputs = operands(*shape)
    compiled, times = dict(programs(inputs)), {}
    for turn in range(6):
        for name, program in compiled.items():
            start = time.perf_counter()
            for _ in range(5):
                out = program(*inputs)
            jax.block_until_ready(out)
            if turn:  # the first warms up
                times.setdefault(name, []).append((time.perf_counter() - start) / 5)
            del out
    for name, seconds in times.items():
        median = statistics.median(seconds)
        rate = 2 * shape[0] * shape[1] * shape[2] / median / 1e12
        print(f"{shape}: {1e3 * median:6.2f} ms, {rate:4.0f} TFLOP/s, {name}", flush=True)
