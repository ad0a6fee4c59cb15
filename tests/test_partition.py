"""Sharded arrays under plain jit on 8 virtual devices: layouts × kinds of mesh axes × operations, and one device's numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as S

import measure_xent as mx
from measure_xent import log, log_partition

from .sweeps import sweep

rng = np.random.default_rng(0)
N, D, V = 32, 16, 48
f32 = lambda x: np.asarray(x, np.float32)
BATCH = {
    "hidden": f32(rng.normal(size=(N, D))),
    "labels": rng.integers(V, size=N),
    "mask": f32(rng.uniform(size=N) < np.linspace(0.1, 1, N)),
    "cotangents": f32(rng.normal(size=N)),
    "soft": f32(rng.dirichlet(np.ones(V), size=N)),
}
PARAMETERS = {"weight": f32(rng.normal(size=(D, V))), "bias": f32(rng.normal(size=V)), "softcap": f32(7.0)}
ARRAYS = BATCH | PARAMETERS
FIGURES = tuple(name for name in ARRAYS if name != "labels")

# The mesh, and what is over which of its axes: rows, features and classes of the weight.
LAYOUTS = {
    "batch": ({"data": 8}, "data", None, None),
    "batch × classes": ({"data": 4, "model": 2}, "data", None, "model"),
    "two axes of rows": ({"data": 4, "fsdp": 2}, ("data", "fsdp"), "fsdp", None),
    "features over the batch's axis": ({"data": 8}, "data", "data", None),
    "classes over the batch's axis": ({"data": 8}, "data", None, "data"),
    "features over the batch's axis × classes": ({"data": 4, "model": 2}, "data", "data", "model"),
    "classes": ({"data": 1, "model": 8}, None, None, "model"),
    "classes over some of the rows' axes": ({"data": 4, "model": 2}, ("data", "model"), None, "model"),
}


def head(weight, bias, softcap, **options):
    return mx.LinearSoftmax(weight, bias, softcap, batch_size=3, **options)


def transposed(weight, bias, softcap):
    return mx.LinearSoftmax(weight.T, bias, softcap, class_axis=0, batch_size=3)


def integral(target, model=head):
    def loss(weight, bias, softcap, hidden, labels, mask, cotangents, soft):
        P = mx.joint(mx.Empirical(hidden, weights=mask), target(labels, soft, hidden, weight))
        return -P.expect(log(model(weight, bias, softcap)))

    return loss


def figures_of_rows(weight, bias, softcap, hidden, labels, mask, cotangents, soft):
    Q = head(weight, bias, softcap)
    f = 0.25 * log_partition(Q) ** 2 + 0.5 * mx.entropy(Q) + mx.confidence(Q) + mx.correct(Q) - log(Q)
    return mx.Empirical((hidden, labels), weights=mask).expect(f)


def each(target, model=head):
    def loss(weight, bias, softcap, hidden, labels, mask, cotangents, soft):
        P = target(labels, soft, hidden, weight)
        return jnp.sum(cotangents * mx.cross_entropy(P, model(weight, bias, softcap)(hidden)))

    return loss


def of_two_heads(weight, bias, softcap, hidden, labels, mask, cotangents, soft):
    P, Q = head(weight, None, None)(0.5 * hidden), head(weight, bias, softcap)(hidden)
    return jnp.sum(cotangents * mx.kl_divergence(P, Q) + mask * (mx.entropy(Q) + Q.log_partition))


def of_logits(weight, bias, softcap, hidden, labels, mask, cotangents, soft):
    P = 0.5 * mx.Dirac(labels) + 0.5 * mx.Categorical(probs=soft)
    return jnp.sum(cotangents * mx.cross_entropy(P, mx.Categorical(softcap * (hidden @ weight + bias))))


def divergence_of_logits(weight, bias, softcap, hidden, labels, mask, cotangents, soft):
    z = hidden @ weight + bias
    divergence = mx.kl_divergence(mx.Categorical(probs=soft), mx.Categorical(z)) + mx.entropy(mx.Categorical(z))
    return jnp.sum(cotangents * (divergence + mx.jensen_shannon(mx.Categorical(z), mx.Categorical(softcap * z))))


LABELS = lambda labels, soft, hidden, weight: mx.Dirac(labels)
SMOOTHED = lambda labels, soft, hidden, weight: 0.75 * mx.Dirac(labels) + 0.25 * mx.DiscreteUniform(V)
DENSE = lambda labels, soft, hidden, weight: 0.5 * mx.Dirac(labels) + 0.5 * mx.Categorical(probs=soft)
TEACHER = lambda labels, soft, hidden, weight: 0.5 * mx.Dirac(labels) + 0.5 * mx.LinearSoftmax(weight)(0.5 * hidden)
TOP = lambda labels, soft, hidden, weight: mx.Discrete(
    (labels[:, None] + 7 * jnp.arange(6)) % V, jnp.full((len(labels), 6), 0.5)
)
OPERATIONS = {
    "integral of labels": integral(LABELS),
    "integral of smoothed labels": integral(SMOOTHED, transposed),
    "integral of dense targets": integral(DENSE),
    "integral of top classes": integral(TOP),
    "integral against a teacher": integral(TEACHER),
    "figures of rows": figures_of_rows,
    "a loss each": each(LABELS),
    "a loss each, dense": each(DENSE, transposed),
    "two heads": of_two_heads,
    "logits": of_logits,
    "divergences of logits": divergence_of_logits,
}


def placed(layout, kind):
    sizes, rows, features, classes = LAYOUTS[layout]
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))
    specs = dict.fromkeys(BATCH, S(rows)) | {"weight": S(features, classes), "bias": S(classes), "softcap": S()}
    return {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in ARRAYS.items()}


def with_gradient(loss):
    def function(arrays):
        smooth = {name: arrays[name] for name in FIGURES}
        return jax.value_and_grad(lambda smooth: loss(**smooth, labels=arrays["labels"]))(smooth)

    return function


def with_second_derivative(loss):
    """The gradient's derivative along all of its arguments."""

    def function(arrays):
        smooth = {name: arrays[name] for name in FIGURES}
        gradient = jax.grad(lambda smooth: loss(**smooth, labels=arrays["labels"]))
        return jax.jvp(gradient, (smooth,), (jax.tree.map(jnp.cos, smooth),))

    return function


def agree(got, expected):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        scale = max(1e-3, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=3e-6 * scale, err_msg=jax.tree_util.keystr(path))


def not_of_jax(layout, kind, what):
    """What JAX refuses before this package sees it: a product that would be on an axis twice."""
    _, rows, _, classes = LAYOUTS[layout]
    return "logits" in what and kind == AxisType.Explicit and classes is not None and classes in np.atleast_1d(rows)


@sweep("what", OPERATIONS, cost=0.5)
@sweep("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_same_numbers_as_one_device(kind, layout, what):
    if not_of_jax(layout, kind, what):
        pytest.skip("jax.numpy's own product of these raises")
    arrays = placed(layout, kind)
    got = jax.jit(with_gradient(OPERATIONS[what]))(arrays)
    agree(got, jax.jit(with_gradient(OPERATIONS[what]))(ARRAYS))
    # Gradients are on the devices that their parameters are on, as types say it or as the compiler finds.
    for name in ("weight", "hidden") if "logits" not in what else ():
        assert got[1][name].sharding.is_equivalent_to(arrays[name].sharding, 2)


@pytest.mark.slow("the derivative of a gradient, on one device and on eight")
@sweep("what", OPERATIONS)
@sweep("layout", LAYOUTS, cost=3)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_second_derivatives(kind, layout, what):
    if not_of_jax(layout, kind, what):
        pytest.skip("jax.numpy's own product of these raises")
    function = with_second_derivative(OPERATIONS[what])
    agree(jax.jit(function)(placed(layout, kind)), jax.jit(function)(ARRAYS))
