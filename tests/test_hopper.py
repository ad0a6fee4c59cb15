"""The kernel that makes scaled exponentials on Hopper GPUs: interpreted, with a look for races, and on such a GPU as it is.

The oracle is float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent._kernels import exponentials, head_function, hopper, partition
from measure_xent._kernels.matrix import Epilogue, Matrix

from .sweeps import sweep

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 11, 2), reason="Mosaic GPU's interpreter")
ON_GPU = jax.default_backend() == "gpu"
rng = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The GPU's program, on two multiprocessors that memory beyond an array's end gives anything."""
    from jax.experimental.pallas import mosaic_gpu as gpu

    monkeypatch.setattr(hopper, "SETTING", "1")
    if ON_GPU:
        yield
        return
    monkeypatch.setattr(hopper, "_multiprocessors", lambda: 2)
    monkeypatch.setattr(head_function, "_on_platform", lambda f, sizes, *operands: f("cuda", sizes["cuda"], *operands))
    # What is interpreted has effects in an order, which no partitioner takes.
    monkeypatch.setattr(partition, "may_be_spread", lambda arrays: False)
    races = gpu.InterpretGPUParams(detect_races=True, out_of_bounds_reads="uninitialized")
    with gpu.force_gpu_interpret_mode(races):
        yield


def bfloat16(*shape, scale=1.0):
    return jnp.asarray(scale * rng.normal(size=shape), jnp.bfloat16)


def wide(x):
    return np.asarray(x, np.float64)


@pytest.mark.long
@sweep("shape", [(128, 64, 256), (200, 128, 448), (136, 192, 320)], 2)
@sweep("class_axis", [0, 1])
@sweep("atoms", [0, 1, 3])
@sweep("bias", [False, True])
@sweep("keep", [True, False])
def test_the_kernel(shape, class_axis, atoms, bias, keep):
    """E, its sums without the pivot, logits at the atoms, gaps: rows and classes that fill no tile, −inf, atoms elsewhere."""
    rows, features, classes = shape
    hidden, weight = bfloat16(rows, features), bfloat16(features, classes, scale=0.2)
    reference = jnp.asarray(rng.normal(size=rows), jnp.float32)
    indices = rng.integers(-1, classes, (rows, atoms)).astype(np.int32)
    at = (jnp.asarray(indices[:, 0]), jnp.asarray(indices)) if atoms else (None, None)
    b = rng.normal(size=classes).astype(np.float32)
    b[classes // 3] = -np.inf
    matrix = Matrix(weight if class_axis else weight.T, class_axis, None)
    total = not bias
    made = hopper.exponentials(hidden, reference, *at, matrix, jnp.asarray(b) if bias else None, total=total, keep=keep)
    if not ON_GPU:
        from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

        assert not interpret_pallas_call.get_races().races_found
    e, sums = made
    z = wide(hidden) @ wide(weight) + (wide(b) if bias else 0)
    expected = np.exp(z - wide(reference)[:, None])
    if atoms:
        here = np.flatnonzero(indices[:, 0] >= 0)
        expected[here, indices[here, 0]] = 0
        logits = np.where(indices < 0, 0, np.take_along_axis(z, np.maximum(indices, 0), 1))
        np.testing.assert_allclose(sums.logits, logits, rtol=1e-5, atol=1e-5)
    assert (e is not None) == keep
    if keep:
        np.testing.assert_allclose(wide(e), expected, rtol=2**-8)  # rounded once
    np.testing.assert_allclose(sums.exponentials, expected.sum(1), rtol=1e-5)
    if total:
        np.testing.assert_allclose(sums.gaps, (wide(reference)[:, None] - z).sum(1), rtol=1e-5, atol=1e-3)


MASK = np.where(np.arange(144) % 5 == 2, 0, rng.uniform(0.5, 1.5, 144)).astype(np.float32)


@pytest.mark.long
@sweep("above", [0.0, 88.0, 1e4], 3)
@sweep("of", ["the mean", "each"])
@sweep("target", ["labels", "smoothed", "two"])
@sweep("dtype", [None, jnp.bfloat16])
@sweep("rows", [144, 131])
@sweep("options", [{}, {"batch_size": 50}, {"residual_bytes": 1 << 20}])
def test_a_head(above, of, target, dtype, rows, options, monkeypatch):
    """Value and gradients by the kernel; where a logit is far above the reference, by what is done then, in blocks."""
    monkeypatch.setattr(exponentials, "AGAIN", 40)
    features, classes = 64, 320
    mask = MASK[:rows]
    h, w = bfloat16(rows, features), bfloat16(features, classes, scale=0.3)
    b = jnp.asarray(rng.normal(size=classes), jnp.float32).at[5].add(above).at[9].set(-jnp.inf)
    y, other = (10 + rng.integers(classes - 10, size=rows) for _ in range(2))
    background = 0.1 * mx.DiscreteUniform(classes)
    measures = {
        "labels": (mx.Dirac(y), np.eye(classes)[y]),
        "smoothed": (0.9 * mx.Dirac(y) + background, 0.9 * np.eye(classes)[y] + 0.1 / classes),
        "two": (0.7 * mx.Dirac(y) + 0.3 * mx.Dirac(other), 0.7 * np.eye(classes)[y] + 0.3 * np.eye(classes)[other]),
    }
    measure, dense = measures[target]
    if target == "smoothed":
        b = b.at[9].set(0)

    def loss(h, w, b):
        Q = mx.LinearSoftmax(w, b, dtype=dtype, **options)
        if of == "each":
            return -2.5 * jnp.vdot(mask, measure.expect(mx.log(Q(h))))
        return -2.5 * mx.joint(mx.Atoms(h, weights=mask), measure).expect(mx.log(Q))

    master = w if dtype is None else w.astype(jnp.float32)
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(h, master, b)
    z = wide(h) @ wide(w) + wide(b)
    log_q = z - z.max(1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(1, keepdims=True))
    np.testing.assert_allclose(
        value, -2.5 * mask @ np.where(dense == 0, 0, dense * np.where(dense == 0, 0, log_q)).sum(1), rtol=1e-5
    )
    slope = 2.5 * mask[:, None] * (np.exp(log_q) - dense)
    for got, exact in zip(gradients, (slope @ wide(w).T, wide(h).T @ slope, slope.sum(0)), strict=True):
        # E and the rows' weights are rounded to bfloat16, and so is the gradient.
        np.testing.assert_allclose(wide(got), exact, atol=1.2e-2 * np.abs(exact).max())
    assert [g.dtype for g in gradients] == [h.dtype, master.dtype, b.dtype]


EDGES = {  # (logit, at) of the bias, the label of all rows, the loss of a row of zeros
    "a confident row": ((80.0, 5), 5, 319 * np.exp(-80)),
    "a label far below": ((-1e4, 5), 5, 1e4 + np.log(319)),
    "a label of no mass": ((-np.inf, 5), 5, np.inf),
    "a label of all mass": ((np.inf, 5), 5, 0),
    "another of all mass": ((np.inf, 5), 6, np.inf),
    "none where the reference is": ((-np.inf, slice(96, 224)), 6, np.log(192)),
    "no mass at all": ((-np.inf, slice(None)), 6, np.inf),
    "a label out of range": ((0.0, 5), 320, np.inf),
    "not a number": ((np.nan, 5), 6, np.nan),
}


@pytest.mark.long
@sweep("edge", EDGES, 4)
def test_edges(edge):
    """Of the written contract, by the kernel or what is done where it fails; masked rows hold NaN."""
    (logit, at), label, expected = EDGES[edge]
    mask = jnp.arange(128) < 100
    hidden = jnp.where(mask[:, None], 0, jnp.nan).astype(jnp.bfloat16) * jnp.ones((1, 64), jnp.bfloat16)
    bias = jnp.zeros(320).at[at].set(logit)

    @jax.jit
    def loss(h, b):
        P = mx.Empirical((h, jnp.full(128, label)), weights=mask.astype(jnp.float32))
        return mx.cross_entropy(P, mx.LinearSoftmax(bfloat16(64, 320), b))

    value, gradients = jax.value_and_grad(loss, (0, 1))(hidden, bias)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    if not np.isnan(expected):
        np.testing.assert_array_equal(gradients[0][100:], 0)
    if np.isfinite(expected) and np.isfinite(logit):
        np.testing.assert_allclose(gradients[1][label], np.expm1(-expected), rtol=2**-8)  # rounded, as E is


def test_where_it_is_used(monkeypatch):
    """On Hopper GPUs, for bfloat16 heads whose arrays are in whole tiles, unless a setting says no."""
    array, half = jax.ShapeDtypeStruct, jnp.bfloat16

    def head(rows=256, features=128, classes=512, dtype=half, cap=None, hidden=half, products=None):
        matrix = Matrix(array((features, classes), dtype), 1, None, products)
        return hopper.takes(array((rows, features), hidden), matrix, Epilogue(softcap=cap))

    assert head()
    assert head(hidden=jnp.float32, products=half)
    others = dict(rows=100), dict(features=96), dict(classes=500), dict(dtype=jnp.float32), dict(cap=jnp.float32(3))
    assert not any(head(**other) for other in (*others, dict(hidden=jnp.float32), dict(hidden=jnp.float16)))
    monkeypatch.setattr(hopper, "SETTING", "0")
    assert not head()
    monkeypatch.setattr(hopper, "SETTING", "")
    monkeypatch.setattr(hopper, "_capability", lambda: "9.0")
    assert head(8192, 4096, 131072) == (jax.__version_info__ < (0, 12))
    assert not head(8192, 1024, 131072)  # not measured
    for setting in ("", "1"):
        monkeypatch.setattr(hopper, "SETTING", setting)
        monkeypatch.setattr(hopper, "_capability", lambda: "10.0")
        assert not head(8192, 4096, 131072)


def test_the_line_has_the_kernel():
    """And makes no float32 logits, but where that fails."""
    loss = lambda h, w, y: mx.cross_entropy(mx.Empirical((h, y)), mx.LinearSoftmax(w))
    program = jax.make_jaxpr(jax.grad(loss))(bfloat16(256, 64), bfloat16(64, 512), jnp.zeros(256, jnp.int32))
    seen = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            seen.append((equation.primitive.name, [x.aval for x in equation.outvars]))
            if equation.primitive.name not in ("cond", "mpmd_map"):
                jax.tree.map(look, [x for x in map(as_jaxpr, jax.tree.leaves(equation.params)) if x is not None])

    as_jaxpr = lambda x: getattr(x, "jaxpr", x if hasattr(x, "eqns") else None)
    look(program.jaxpr)
    assert [name for name, _ in seen].count("mpmd_map") == 1
    assert (256, 512) in {x.shape for _, out in seen for x in out}
    assert not [name for name, out in seen for x in out if x.shape == (256, 512) and x.dtype == jnp.float32]
