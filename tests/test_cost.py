"""No cost for the abstraction: the measure line compiles to what a hand-written loss compiles to."""

import subprocess
import sys

import jax
import jax.numpy as jnp

import measure_xent as mx
from measure_xent import log


def compiled(function, *shapes):
    return jax.jit(function).lower(*shapes).compile()


def cost(function, *shapes):
    program = compiled(function, *shapes)
    analysis = program.cost_analysis()
    return analysis["flops"], analysis["bytes accessed"], program.memory_analysis().temp_size_in_bytes


LOGITS, LABELS = jax.ShapeDtypeStruct((512, 1000), jnp.float32), jax.ShapeDtypeStruct((512,), jnp.int32)


def by_hand(z, y):
    return jax.nn.logsumexp(z, axis=-1) - jnp.take_along_axis(z, y[:, None], axis=-1)[:, 0]


def by_measure(z, y):
    return mx.cross_entropy(mx.Dirac(y), mx.Categorical(z))


def test_value_costs_what_logsumexp_minus_gather_costs():
    ours, theirs = cost(by_measure, LOGITS, LABELS), cost(by_hand, LOGITS, LABELS)
    for what, a, b in zip(("flops", "bytes", "temporaries"), ours, theirs, strict=True):
        # 2 % for what the contract adds per row: ties, labels out of range
        assert a <= 1.02 * b + 4096, f"{what}: {a} by measure, {b} by hand"


def test_gradient_costs_what_logsumexp_minus_gather_costs():
    mean = lambda loss: lambda z, y: loss(z, y).mean()
    ours, theirs = (cost(jax.value_and_grad(mean(f)), LOGITS, LABELS) for f in (by_measure, by_hand))
    assert ours[1] <= 1.02 * theirs[1]
    assert ours[2] <= 1.02 * theirs[2] + 4096


def test_the_line_is_the_functional():
    """-P.expect(log(Q)) and cross_entropy(P, Q), with and without jit, are one program."""
    line = compiled(lambda z, y: -mx.Dirac(y).expect(log(mx.Categorical(z))), LOGITS, LABELS)
    call = compiled(by_measure, LOGITS, LABELS)
    assert line.cost_analysis() == call.cost_analysis()


def test_import_is_light():
    """After jax and optax, importing the package takes under 0.15 s: best of three fresh processes."""
    code = "import jax, optax, time; t = time.perf_counter(); import measure_xent; print(time.perf_counter() - t)"
    run = lambda: subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert min(float(run()) for _ in range(3)) < 0.15
