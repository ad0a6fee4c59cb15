"""No cost for the abstraction: the measure line compiles to what a hand-written loss compiles to."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import measure_xent as mx
from measure_xent import log
from measure_xent._kernels import softmax
from measure_xent._kernels.blocks import BLOCK_BYTES
from measure_xent._kernels.classes import Classes
from measure_xent._kernels.target import Target


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


def by_kernel(z, y):
    return softmax.cross_entropy(z, Target(y[:, None], jnp.ones((*y.shape, 1))))


def with_gradient(loss):
    return jax.value_and_grad(lambda z, y: loss(z, y).mean())


@pytest.mark.parametrize("wrap", [lambda f: f, with_gradient])
def test_the_line_costs_what_the_kernel_costs(wrap):
    """The measure line and the bare kernel on arrays are one program."""
    assert cost(wrap(by_measure), LOGITS, LABELS) == cost(wrap(by_kernel), LOGITS, LABELS)


def test_one_pass_costs_less_than_logsumexp_minus_gather():
    """Where no term overflows the kernel runs this pass alone, relative to the label's own logit: no maximum before it.

    As many exponentials, and four cheap operations a logit for the maximum, which keep the label's own term out of the sum: the
    relative accuracy of a confident row. Nothing of the logits' size is written.
    """
    options = dict(classes=Classes(CLASSES), plain=True)
    one_pass = lambda z, y: softmax._pass(z, Target(y[:, None], jnp.ones((ROWS, 1))), Target(), **options).cross_entropy
    ours, theirs = cost(one_pass, LOGITS, LABELS), cost(by_hand, LOGITS, LABELS)
    assert ours["flops"] <= theirs["flops"] + 3 * ROWS * CLASSES + 40 * ROWS
    assert ours["transcendentals"] <= theirs["transcendentals"] + 4 * ROWS
    assert ours["temporaries"] <= 64 * ROWS


@pytest.mark.parametrize("asked", [(), ("mode",), ("mode", "entropy")])
def test_sums_of_one_pass_each_write_nothing(asked):
    """Of dense targets and by-products: what the sums have in common is not written out, a number a logit.

    The first maximum is sought in the part of a row, of 25 classes here, whose own is the largest: a number a part.
    """
    dense = lambda z, p: softmax._pass(
        z, Target(dense=p), Target(), classes=Classes(CLASSES), row_statistics=asked, plain=True
    )
    assert cost(dense, LOGITS, LOGITS)["temporaries"] <= (96 + 4 * CLASSES // 25) * ROWS


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="its compiler for CPUs drops the barrier")
def test_logits_that_several_sums_read_are_made_once():
    """And not written out several times: a softcap and a bias, beside a dense target."""
    z, b = jax.ShapeDtypeStruct((8192, CLASSES), jnp.float32), jax.ShapeDtypeStruct((CLASSES,), jnp.float32)
    loss = lambda z, p, b: mx.cross_entropy(mx.Categorical(probs=p), mx.Categorical(30 * jnp.tanh(z / 30) + b))
    assert cost(loss, z, z, b)["temporaries"] <= 4 * 8192 * CLASSES + 2 * BLOCK_BYTES + 64 * 8192  # bytes a row


def test_the_line_is_the_functional():
    """-P.expect(log(Q)) and cross_entropy(P, Q), with and without jit, are one program."""
    line = compiled(lambda z, y: -mx.Dirac(y).expect(log(mx.Categorical(z))), LOGITS, LABELS)
    call = compiled(by_measure, LOGITS, LABELS)
    assert line.cost_analysis() == call.cost_analysis()


@pytest.mark.long
def test_import_is_light():
    """After jax and optax, the import brings no other package, starts no backend, and is a bounded number of calls."""
    code = (
        "import sys, cProfile, pstats, jax, jax.numpy, optax, chex, jaxtyping; before = set(sys.modules); "
        "profile = cProfile.Profile(); profile.enable(); import measure_xent; profile.disable(); "
        "from jax._src import xla_bridge; "
        "packages = lambda names: {name.partition('.')[0] for name in names}; "
        "new = packages(sys.modules) - packages(before) - sys.stdlib_module_names; "
        "print(pstats.Stats(profile).total_calls, len(xla_bridge._backends), *new)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    calls, backends, *new = out.split()
    assert backends == "0"
    assert {*new} <= {"measure_xent", "wadler_lindig"}  # jaxtyping's own, which it imports late
    assert int(calls) < 200_000  # 135 000 as measured
