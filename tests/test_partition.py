"""Sharded arrays under plain jit on 8 virtual devices: layouts × kinds of mesh axes × operations, and one device's numbers."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as S

import measure_xent as mx
from measure_xent import log, log_partition
from measure_xent._kernels.layout import rows_of
from measure_xent._kernels.partition import partitioned

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
    P, Q = mx.Categorical(z), mx.Categorical(softcap * z)
    return jnp.sum(cotangents * (mx.kl_divergence(P, Q) + mx.entropy(Q)))


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


@pytest.mark.long
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


MIXTURE = lambda P, Q: 0.25 * P + 0.75 * Q
FUNCTIONALS = {
    "Jensen–Shannon": lambda P, Q, y: mx.jensen_shannon(P, Q),
    "total variation": lambda P, Q, y: mx.total_variation(P, Q),
    "χ²": lambda P, Q, y: mx.chi2(P, Q),
    "Rényi": lambda P, Q, y: mx.renyi_divergence(P, Q, 0.5),
    "entropy of a mixture": lambda P, Q, y: mx.entropy(MIXTURE(P, Q)),
    "a mixture at labels": lambda P, Q, y: mx.cross_entropy(mx.Dirac(y), MIXTURE(P, Q)),
    "Brier's score": lambda P, Q, y: P.expect(mx.brier(Q)),
    "confidence": lambda P, Q, y: Q.expect(mx.confidence(P)),
    "a callable": lambda P, Q, y: (P - Q).expect(jnp.cos) + Q.log_density(y),
}


@pytest.mark.long
@sweep("name", FUNCTIONALS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_functionals_of_logits_whose_classes_are_sharded(kind, name):
    def function(z, dense, cotangents, labels):
        return jnp.sum(cotangents * FUNCTIONALS[name](mx.Categorical(z), mx.Categorical(probs=dense), labels))

    arrays = f32(rng.normal(size=(N, V))), ARRAYS["soft"], ARRAYS["cotangents"], ARRAYS["labels"]
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    specs = S("data", "model"), S("data", "model"), S("data"), S("data")
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]
    function = jax.value_and_grad(function, (0, 1, 2))
    agree(jax.jit(function)(*placed), jax.jit(function)(*arrays))


def loss(weight, hidden, labels):
    return mx.cross_entropy(mx.Empirical((hidden, labels)), mx.LinearSoftmax(weight, batch_size=3))


def each_loss(weight, hidden, labels):
    return mx.cross_entropy(mx.Dirac(labels), mx.LinearSoftmax(weight, batch_size=3)(hidden))


TRANSFORMATIONS = {
    "jvp": lambda w, h, y: jax.jvp(lambda *wh: loss(*wh, y), (w, h), (jnp.sin(w), jnp.cos(h))),
    "jvp of a loss each": lambda w, h, y: jax.jvp(lambda *wh: each_loss(*wh, y), (w, h), (jnp.sin(w), jnp.cos(h))),
    "reverse over reverse": lambda w, h, y: jax.grad(lambda w: jnp.sum(jnp.cos(w) * jax.grad(loss)(w, h, y)))(w),
    "vmap": lambda w, h, y: jax.vmap(lambda c: jax.grad(loss, (0, 1))(w, c * h, y))(jnp.arange(1.0, 4.0)),
    "vmap of a loss each": lambda w, h, y: jax.vmap(lambda c: jax.grad(lambda w: each_loss(w, c * h, y).sum())(w))(
        jnp.arange(1.0, 4.0)
    ),
    "checkpoint": lambda w, h, y: jax.grad(jax.checkpoint(loss), (0, 1))(w, h, y),
    "scan": lambda w, h, y: jax.lax.scan(lambda w, _: (w - 0.1 * jax.grad(loss)(w, h, y), loss(w, h, y)), w, length=3),
    "value_and_grad of an Integral": lambda w, h, y: mx.value_and_grad(
        lambda w: mx.Atoms((h, y)).integrate(-log(mx.LinearSoftmax(w)))
    )(w),
    "what a loss closes over": lambda w, h, y: jax.grad(
        lambda c: mx.Empirical((h, y)).expect(-c * log(mx.LinearSoftmax(w)))
    )(2.0),
}


@pytest.mark.slow("a program a transformation and layout")
@sweep("name", TRANSFORMATIONS)
@sweep("layout", ["batch", "batch × classes", "features over the batch's axis"], cost=2)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_transformations(kind, layout, name):
    arrays = placed(layout, kind)
    got = jax.jit(TRANSFORMATIONS[name])(*(arrays[x] for x in ("weight", "hidden", "labels")))
    agree(got, jax.jit(TRANSFORMATIONS[name])(*(jnp.asarray(ARRAYS[x]) for x in ("weight", "hidden", "labels"))))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_plain_functions_at_atoms_that_are_sharded(kind):
    """Another atom stands in for those of weight 0, wherever it is."""
    x, weights = f32(rng.uniform(1, 2, size=(N, 3))), ARRAYS["mask"] * np.arange(N, dtype=np.float32)
    x[weights == 0] = 0
    spread = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(kind,)), S("data"))
    function = jax.value_and_grad(lambda x, w: mx.Empirical(x, weights=w).expect(lambda x: jnp.log(x).sum()), (0, 1))
    agree(jax.jit(function)(*jax.device_put((x, weights), spread)), jax.jit(function)(x, weights))


AUTO = lambda **sizes: jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


@pytest.mark.long
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_weights_of_labels_that_are_sharded(kind):
    """A mask times a family of point masses, each spread as the logits' rows are."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    z, y, w = rng.normal(size=(16, 40)).astype(np.float32), rng.integers(40, size=16), np.arange(16.0, dtype=np.float32)
    loss = lambda z, y, w: mx.cross_entropy(w * mx.Dirac(y), mx.Categorical(z)).sum()
    placed = [jax.device_put(x, NamedSharding(mesh, S("data"))) for x in (z, y, w)]
    for f in (loss, jax.grad(loss), jax.grad(loss, 2)):
        np.testing.assert_allclose(jax.jit(f)(*placed), jax.jit(f)(z, y, w), rtol=1e-5, atol=1e-6)


@pytest.mark.slow("heads compiled for eight devices")
def test_where_shardings_are_named_later():
    """By in_shardings, by a constraint, outside of jit, under set_mesh."""
    mesh, arrays = AUTO(data=8), [jnp.asarray(ARRAYS[x]) for x in ("weight", "hidden", "labels")]
    spread = NamedSharding(mesh, S("data"))
    expected = jax.jit(jax.grad(loss))(*arrays)
    named = jax.jit(jax.grad(loss), in_shardings=(NamedSharding(mesh, S()), spread, spread))
    agree(named(*arrays), expected)
    assert not re.search("all-gather", named.lower(*arrays).compile().as_text())
    constrained = jax.jit(lambda w, h, y: jax.grad(loss)(w, jax.lax.with_sharding_constraint(h, spread), y))
    agree(constrained(*arrays), expected)
    agree(jax.grad(loss)(arrays[0], jax.device_put(arrays[1], spread), arrays[2]), expected)
    with jax.set_mesh(mesh):
        agree(jax.jit(jax.grad(loss))(arrays[0], jax.device_put(arrays[1], S("data")), arrays[2]), expected)


@pytest.mark.long
def test_some_axes_manual():
    """Rows by shard_map, classes by the compiler."""
    mesh, arrays = AUTO(data=4, model=2), [jnp.asarray(ARRAYS[x]) for x in ("weight", "hidden", "labels")]
    specs = S(), S("data"), S("data")
    mean = lambda *arrays: jax.lax.pmean(loss(*arrays), "data")
    part = jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=S(), axis_names={"data"})
    placed = [
        jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, (S(None, "model"), *specs[1:]), strict=True)
    ]
    agree(jax.jit(jax.value_and_grad(part))(*placed), jax.jit(jax.value_and_grad(loss))(*arrays))


@pytest.mark.long
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_and_classes_that_devices_do_not_divide(kind):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    weight, hidden, labels = (jnp.asarray(ARRAYS[x]) for x in ("weight", "hidden", "labels"))
    if kind == AxisType.Explicit:  # where JAX has no such arrays, the rest is on fewer axes
        arrays = weight[:, :45], hidden[:28], labels[:28] % 45
        specs, cut = (S(), S("data"), S("data")), lambda *arrays: arrays
    else:
        arrays, specs = (weight, hidden, labels % 45), (S(None, "model"), S("data"), S("data"))
        cut = lambda w, h, y: (w[:, :45], h[:29], y[:29])
    function = jax.value_and_grad(lambda *arrays: loss(*cut(*arrays)), (0, 1))
    placed = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, specs, strict=True)]
    agree(jax.jit(function)(*placed), jax.jit(function)(*arrays))


@pytest.mark.long
@pytest.mark.parametrize("axes", [("data",), ("data", "seq")])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spread_over", ["integral", "each"])
def test_batches_of_sequences(spread_over, kind, axes):
    mesh = jax.make_mesh((4, 2), ("data", "seq"), axis_types=(kind,) * 2)
    hidden, labels = ARRAYS["hidden"].reshape(8, 4, D), jnp.asarray(ARRAYS["labels"].reshape(8, 4))
    cotangents = ARRAYS["cotangents"].reshape(8, 4)

    def function(w, h, y, c):
        if spread_over == "integral":
            return mx.Empirical((h, y), weights=c**2).expect(-log(mx.LinearSoftmax(w, batch_size=3)))
        return jnp.sum(c * each_loss(w, h, y))

    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, S(*spec)))
    arrays = place(ARRAYS["weight"]), *(place(x, *axes) for x in (hidden, labels, cotangents))
    step = jax.jit(jax.value_and_grad(function, (0, 1)))
    agree(step(*arrays), step(ARRAYS["weight"], hidden, labels, cotangents))
    assert jax.jit(each_loss)(*arrays[:3]).sharding.is_equivalent_to(arrays[2].sharding, 2)
    for name, size, _ in collectives(step.lower(*arrays).compile()):
        if name == "all-gather":
            assert size <= 4 * 2  # a device's weights
        elif name == "all-to-all":
            assert (spread_over, kind, axes) == ("integral", AxisType.Explicit, ("data", "seq"))


def collectives(compiled):
    """(kind, largest number of elements, whether it is inside of a loop)."""
    blocks = re.split(r"\n(?=(?:ENTRY )?%?[\w.-]+ \([^\n]*\{\n)", compiled.as_text())
    name = lambda block: re.match(r"(?:ENTRY )?%?([\w.-]+) \(", block.strip())
    computations = {name(b).group(1): b for b in blocks if name(b)}
    called = {n: set(re.findall(r"[={,] ?%?([\w.-]+)", b)) & computations.keys() - {n} for n, b in computations.items()}
    inside, todo = set(), [n for b in computations.values() for n in re.findall(r"body=%?([\w.-]+)", b)]
    while todo:
        inside.add(n := todo.pop())
        todo += called.get(n, set()) - inside
    found = []
    for n, block in computations.items():
        for shapes, kind in re.findall(
            r"= (\S+|\([^)]*\)) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(",
            block,
        ):
            sizes = [np.prod([int(d) for d in dims.split(",") if d]) for dims in re.findall(r"\[([\d,]*)\]", shapes)]
            found.append((kind, int(max(sizes)), n in inside))
    return found


@pytest.mark.long
@sweep("kind", [AxisType.Auto, AxisType.Explicit], cost=0.34)
@sweep("layout", ["batch", "batch × classes", "features over the batch's axis"])
def test_what_travels(layout, kind):
    """Never the batch; the weight once, before the loop, its gradient once, after it; in the loop a few numbers a row."""
    rows, features, classes, block = 4096, 24, 320, 8
    sizes, batch, over_features, over_classes = LAYOUTS[layout]
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, S(*spec)))
    arrays = (
        place(f32(rng.normal(size=(features, classes))), over_features, over_classes),
        place(f32(rng.normal(size=(rows, features))), batch),
        place(rng.integers(classes, size=rows), batch),
    )
    mean = lambda w, h, y: mx.cross_entropy(mx.Empirical((h, y)), mx.LinearSoftmax(w, batch_size=block))
    each = lambda w, h, y: mx.cross_entropy(mx.Dirac(y), mx.LinearSoftmax(w, batch_size=block)(h)).sum()
    parts = sizes.get("model", 1)
    for function in (mean, each):
        step = jax.jit(jax.value_and_grad(function, (0, 1)))
        compiled = step.lower(*arrays).compile()
        found = collectives(compiled)
        of_weight = features * classes // parts
        assert found
        for kind_, size, looped in found:
            if looped:
                assert size <= max(block * features, 2 * block)
            elif kind_ == "all-gather":
                assert over_features
                assert size == of_weight
            else:
                assert size <= max(of_weight, rows // sizes["data"] * features * (parts > 1))
        reductions = [
            size
            for kind_, size, looped in found
            if not looped and kind_ != "all-gather" and size in (of_weight, of_weight // 8)
        ]
        assert len(reductions) == 1
        if over_features:
            assert "reduce-scatter" in {kind_ for kind_, size, _ in found if size == of_weight // sizes["data"]}
        own = rows // sizes["data"]
        shapes = (features, classes // parts), (own, features), (own,)
        share = [jax.ShapeDtypeStruct(s, x.dtype) for x, s in zip(arrays, shapes, strict=True)]
        alone = step.lower(*share).compile().memory_analysis().temp_size_in_bytes
        gathered = 4 * 2 * of_weight * bool(over_features)  # and the gradient before it is scattered
        packed = 4 * block * classes // parts  # what the buffers are packed into may be a block of logits more
        summed = 4 * own * features * (parts > 1)  # the hidden states' gradient, of a part of the classes
        assert compiled.memory_analysis().temp_size_in_bytes <= 1.1 * alone + gathered + summed + packed + 4096


@pytest.mark.long
def test_exported():
    """Along explicit axes each device does its share; along automatic ones what another process calls is right, and whole."""
    names = "weight", "hidden", "labels"
    expected = jax.jit(jax.grad(loss))(*(jnp.asarray(ARRAYS[x]) for x in names))
    for kind in (AxisType.Auto, AxisType.Explicit):
        arrays = [placed("batch", kind)[x] for x in names]
        agree(jax.jit(jax.export.export(jax.jit(jax.grad(loss)))(*arrays).call)(*arrays), expected)


def test_tpus_know_no_custom_partitioning():
    """Their compiler would refuse it: along automatic axes they get the whole program, along explicit ones each its share."""
    for kind, on_cpu in ((AxisType.Auto, True), (AxisType.Explicit, False)):
        arrays = [placed("batch", kind)[x] for x in ("weight", "hidden", "labels")]
        traced = jax.jit(jax.grad(loss)).trace(*arrays)
        texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu")}
        assert "CustomSPMDPartitioning" not in texts["tpu"]
        assert ("CustomSPMDPartitioning" in texts["cpu"]) == on_cpu


def test_the_precision_is_that_of_the_call():
    """What is compiled outside of a setting has been traced inside of it."""
    arrays = [placed("batch", AxisType.Auto)[x] for x in ("weight", "hidden", "labels")]
    with jax.default_matmul_precision("highest"):
        lowered = jax.jit(jax.grad(loss)).lower(*arrays)
    products = re.findall(r" dot\([^\n]*", lowered.compile().as_text())
    assert products
    assert all("operand_precision={highest,highest}" in product for product in products)


@pytest.mark.long
def test_half_precision_adds_up_wide():
    """Sums over devices are in float32: here a half's own would overflow on the way to 0."""
    spread = NamedSharding(AUTO(data=8), S("data"))
    hidden = np.full((2048, 8), 300, np.float16)
    labels = np.repeat([0, 1], 1024)
    each = jax.jit(jax.grad(lambda w, h, y: each_loss(w, h, y).sum()))
    got = each(np.zeros((8, 2), np.float16), jax.device_put(hidden, spread), jax.device_put(labels, spread))
    np.testing.assert_array_equal(got, 0)
    # And a block's residual is scaled by a power of two, for in the half's own exponents it would underflow.
    weight, hidden, labels = (ARRAYS[x] for x in ("weight", "hidden", "labels"))
    half = [jnp.asarray(x, jnp.float16) for x in (weight, hidden)]
    operands = half[0], jax.device_put(half[1], spread), jax.device_put(labels, spread)
    assert "partitioned" in jax.jit(jax.grad(loss)).lower(*operands).as_text()
    got = jax.jit(jax.grad(loss))(*operands)
    expected = jax.grad(loss)(*(x.astype(np.float32) for x in half), labels)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=3e-5)  # an ulp of the mean of |residual · hidden|


@pytest.mark.long
def test_a_mesh_around_arrays_that_are_on_none():
    arrays = [np.asarray(ARRAYS[x]) for x in ("weight", "hidden", "labels")]
    expected = jax.jit(loss)(*arrays)
    with jax.set_mesh(AUTO(data=4, model=2)):
        agree(jax.jit(loss)(*arrays), expected)
        constrained = lambda w, h, y: loss(w, jax.lax.with_sharding_constraint(h, S("data")), y)
        agree(jax.jit(constrained)(*arrays), expected)


@pytest.mark.slow("three heads in one program")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_teachers_of_other_widths_and_layouts_than_the_student(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    others = f32(rng.normal(size=(24, V))), f32(rng.normal(size=(12, V))), f32(rng.normal(size=(N, 12)))

    def loss(weight, wide, narrow, hidden, labels, h):
        K = 0.5 * mx.LinearSoftmax(wide)(jnp.concatenate([hidden, hidden[:, :8]], 1)) + 0.25 * mx.LinearSoftmax(narrow)(
            h
        )
        return -mx.joint(mx.Empirical(hidden), K + 0.25 * mx.Dirac(labels)).expect(log(mx.LinearSoftmax(weight)))

    arrays = ARRAYS["weight"], others[0], others[1], ARRAYS["hidden"], ARRAYS["labels"], others[2]
    specs = S("data"), S(None, "data"), S(), S("data"), S("data"), S("data")
    placed = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, specs, strict=True)]
    function = jax.grad(loss, (0, 1, 2, 3))
    agree(jax.jit(function)(*placed), jax.jit(function)(*arrays))


@pytest.mark.long
@sweep("specs", [((None, ("data", "model")), "data"), ((None, "model"), "model"), (("model", "data"), None)], cost=0.5)
def test_gradients_are_where_their_arrays_are(specs):
    """Explicit axes, the kernel having them elsewhere: classes over all devices, a mask on other ones than its rows."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, S(*spec)))

    def function(w, h, y, m):
        mean = lambda w, h, m: mx.cross_entropy(mx.Empirical((h, y), weights=m), mx.LinearSoftmax(w, batch_size=3))
        return jax.grad(mean, (0, 1, 2))(w, h, m)

    arrays = [ARRAYS[x] for x in ("weight", "hidden", "labels", "mask")]
    placed = [place(x, *s) for x, s in zip(arrays, (specs[0], ("data",), ("data",), (specs[1],)), strict=True)]
    got = jax.jit(function)(*placed)
    agree(got, jax.jit(function)(*arrays))
    for gradient, x in zip(got, (placed[0], placed[1], placed[3]), strict=True):
        assert gradient.sharding.is_equivalent_to(x.sharding, x.ndim)


def test_programs_are_told_apart_by_their_names():
    """A persistent cache that leaves JAX's pointer out of its key sees the name alone: the program's, in every process."""
    arrays = [placed("batch", AxisType.Auto)[x] for x in ("weight", "hidden", "labels")]

    def name(figure):
        jax.clear_caches()
        mean = lambda w, h, y: mx.Empirical((h, y)).expect(figure(mx.LinearSoftmax(w)))
        return re.findall(r"partitioned_\w+", jax.jit(mean).lower(*arrays).as_text())[0]

    names = [name(figure) for figure in (mx.confidence, mx.confidence, mx.entropy)]
    assert names[0] == names[1] != names[2]


def test_kernels_may_use_what_jax_replaces_late():
    """Newer JAX's ``ldexp`` is one of the primitives that it lowers once all derivatives have been taken: right, and whole."""
    of_rows = lambda axes: lambda x: jnp.sum(jnp.cos(jnp.ldexp(x, 3)))
    total = lambda x: partitioned(of_rows, (x,), (rows_of(1),), lambda _: ())
    x = jnp.linspace(0.0, 1.0, 16)
    spread = jax.device_put(x, NamedSharding(AUTO(data=8), S("data")))
    got = jax.jit(jax.value_and_grad(total))(spread)
    agree(got, (np.cos(8 * np.asarray(x, np.float64)).sum(), -8 * np.sin(8 * np.asarray(x, np.float64))))


ON_ONE_DEVICE = """
import jax, jax.numpy as jnp, numpy as np, measure_xent as mx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as S
assert jax.device_count() == 1
z, y = np.random.default_rng(0).normal(size=(8, 40)).astype("float32"), np.arange(8)
mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, S(*spec)))
def figures(z, y):
    P, Q = mx.Categorical(2 * z), mx.Categorical(z)
    each = mx.cross_entropy(mx.Dirac(y), Q) + mx.jensen_shannon(P, Q) + mx.LinearSoftmax(z.T)(z).log_partition
    return each.sum() + mx.cross_entropy(mx.Empirical((z, y)), mx.LinearSoftmax(z.T))
got = jax.jit(jax.value_and_grad(figures))(put(z, "data", None), put(y, "data"))
for a, b in zip(got, jax.jit(jax.value_and_grad(figures))(z, y)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow("a process of its own")
def test_explicit_axes_on_one_device():
    """As the examples of README and pages are run at home; all other tests here have eight."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    run = subprocess.run([sys.executable, "-c", ON_ONE_DEVICE], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
