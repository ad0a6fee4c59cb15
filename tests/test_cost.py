"""No cost for the abstraction: the measure line compiles to what a hand-written loss compiles to."""

import os
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
    figures = {key: analysis[key] for key in ("flops", "transcendentals", "bytes accessed")}
    return figures | {"temporaries": program.memory_analysis().temp_size_in_bytes}


ROWS, CLASSES = 512, 1000
LOGITS, LABELS = jax.ShapeDtypeStruct((ROWS, CLASSES), jnp.float32), jax.ShapeDtypeStruct((ROWS,), jnp.int32)


def by_hand(z, y):
    return jax.nn.logsumexp(z, axis=-1) - jnp.take_along_axis(z, y[:, None], axis=-1)[:, 0]


def by_measure(z, y):
    return mx.cross_entropy(mx.Dirac(y), mx.Categorical(z))


def test_value_costs_what_logsumexp_minus_gather_costs():
    """The same bytes, exponentials and temporaries; five comparisons, selections and additions a logit more.

    These keep the maximum's own term out of the sum and count its ties, which is what a confident row's relative
    accuracy takes: a cost of the contract, not of the abstraction, hidden behind the reading of the logits.
    """
    ours, theirs = cost(by_measure, LOGITS, LABELS), cost(by_hand, LOGITS, LABELS)
    assert ours["flops"] <= theirs["flops"] + 5 * ROWS * CLASSES + 40 * ROWS
    assert ours["transcendentals"] <= theirs["transcendentals"] + 4 * ROWS
    assert ours["bytes accessed"] <= 1.02 * theirs["bytes accessed"]
    assert ours["temporaries"] <= theirs["temporaries"] + 64 * ROWS


def test_gradient_costs_what_logsumexp_minus_gather_costs():
    mean = lambda loss: lambda z, y: loss(z, y).mean()
    ours, theirs = (cost(jax.value_and_grad(mean(f)), LOGITS, LABELS) for f in (by_measure, by_hand))
    assert ours["bytes accessed"] <= 1.02 * theirs["bytes accessed"]
    assert ours["temporaries"] <= theirs["temporaries"] + 64 * ROWS


def test_the_line_is_the_functional():
    """-P.expect(log(Q)) and cross_entropy(P, Q), with and without jit, are one program."""
    line = compiled(lambda z, y: -mx.Dirac(y).expect(log(mx.Categorical(z))), LOGITS, LABELS)
    call = compiled(by_measure, LOGITS, LABELS)
    assert line.cost_analysis() == call.cost_analysis()


def test_import_is_light():
    """After jax and optax, importing the package takes under 0.15 s: best of five fresh processes, bytecode cached."""
    code = "import jax, optax, time; t = time.process_time(); import measure_xent; print(time.process_time() - t)"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    run = lambda: (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    )
    assert min(float(run()) for _ in range(5)) < 0.15
