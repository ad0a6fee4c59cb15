"""Inside shard_map on 8 virtual devices: rows over "data", classes over "model", and one device's numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as S

import measure_xent as mx
from measure_xent import log, log_partition

from . import oracle
from .sweeps import sweep

rng = np.random.default_rng(0)
N, D, V, DATA, MODEL = 24, 6, 40, 2, 4
f32 = lambda x: np.asarray(x, np.float32)
mesh = jax.make_mesh((DATA, MODEL), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
both = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
close = dict(rtol=2e-5, atol=2e-6)

hidden, weight, bias = f32(rng.normal(size=(N, D))), f32(2 * rng.normal(size=(D, V))), f32(rng.normal(size=V))
labels, mask = rng.integers(V, size=N), f32(rng.uniform(size=N) < np.linspace(0.1, 1, N))
teacher = f32(rng.dirichlet(np.ones(V), size=N))
labels[-1] = np.argmax(hidden[-1] @ weight + bias)
hidden[-1] *= 12  # a confident row, whose loss is tiny
ROWS, COLUMNS = S("data"), S(None, "model")


def target(kind, y, probs):
    return {
        "labels": lambda: mx.Dirac(y),
        "smoothed": lambda: 0.75 * mx.Dirac(y) + 0.25 * mx.DiscreteUniform(V),
        "dense": lambda: 0.5 * mx.Dirac(y) + 0.5 * mx.Categorical(probs=probs),
        "atoms": lambda: mx.Discrete((y[:, None] + 7 * jnp.arange(6)) % V, jnp.full((len(y), 6), 0.5)),
    }[kind]()


def integral(kind, class_axis=1, **axes):
    """The mean loss and more against the batch, as a function of everything that has a derivative."""

    def loss(h, w, b, c, m, probs, y):
        data, model = axes.get("data"), axes.get("model")
        Q = mx.LinearSoftmax(w, b, c, class_axis=class_axis, batch_size=5, axis_name=model)
        P = mx.joint(mx.Empirical(h, weights=m, axis_name=data), target(kind, y, probs))
        both = 0.25 * log_partition(Q) ** 2 + 0.125 * mx.entropy(Q)
        return P.expect(both + 0.25 * mx.confidence(Q) + 0.5 * mx.correct(Q) - log(Q))

    return loss


def each(kind, class_axis=1, **axes):
    """A loss a row, with a cotangent each."""

    def losses(h, w, b, c, m, probs, y):
        Q = mx.LinearSoftmax(w, b, c, class_axis=class_axis, batch_size=5, axis_name=axes.get("model"))
        total = jnp.dot(mx.cross_entropy(target(kind, y, probs), Q(h)), m)
        return jax.lax.psum(total, "data") if axes else total

    return losses


def sharded(loss, class_axis=1):
    specs = (ROWS, COLUMNS if class_axis else S("model"), S("model"), S(), ROWS, ROWS, ROWS)
    return jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=S())


@pytest.mark.slow("a program a placement")
@sweep("what", [integral, each])
@sweep(("kind", "class_axis"), [("labels", 1), ("smoothed", 0), ("dense", 1), ("atoms", 0)], cost=3)
def test_the_same_numbers_as_one_device(what, kind, class_axis):
    """Value, every gradient and a Hessian-vector product, with a ragged mask and one row that is not like the others."""
    w = weight if class_axis else weight.T
    arguments = [jnp.asarray(x) for x in (hidden, w, bias, 30.0, mask, teacher)]
    tangents = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in arguments]
    which = tuple(range(len(arguments)))

    def figures(loss):
        value_and_gradient = lambda *args: jax.value_and_grad(loss, which)(*args, jnp.asarray(labels))
        gradient = lambda *args: value_and_gradient(*args)[1]
        return lambda *args: (*value_and_gradient(*args), jax.jvp(gradient, args, tuple(tangents)))

    got = jax.jit(figures(sharded(what(kind, class_axis, data="data", model="model"), class_axis)))(*arguments)
    expected = jax.jit(figures(what(kind, class_axis)))(*arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.slow("a program a placement")
def test_gradients_taken_inside():
    """Of the loss on every device, as a training step takes them: sums over data have been taken."""
    loss, arguments = (
        integral("labels", data="data", model="model"),
        (hidden, weight, bias, 30.0, mask, teacher, labels),
    )
    step = jax.shard_map(
        lambda *args: jax.grad(loss, (0, 1, 2))(*args),
        mesh=mesh,
        in_specs=(ROWS, COLUMNS, S("model"), S(), ROWS, ROWS, ROWS),
        out_specs=(ROWS, COLUMNS, S("model")),
    )
    for a, b in zip(jax.jit(step)(*arguments), jax.grad(integral("labels"), (0, 1, 2))(*arguments), strict=True):
        np.testing.assert_allclose(a, b, **close)


def test_hidden_gathered_over_the_classes_devices():
    """Sequence parallelism: hidden states are all-gathered over the axis of the classes, and their gradient scattered back."""

    def loss(h, w, y):
        h = jax.lax.all_gather(h, "model", tiled=True)
        return mx.cross_entropy(mx.Empirical((h, y), axis_name="data"), mx.LinearSoftmax(w, axis_name="model"))

    specs = (S(("data", "model")), COLUMNS, ROWS)
    function = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=S())
    plain = lambda h, w, y: mx.cross_entropy(mx.Empirical((h, y)), mx.LinearSoftmax(w))
    got = jax.jit(jax.value_and_grad(function, (0, 1)))(hidden, weight, labels)
    expected = jax.value_and_grad(plain, (0, 1))(hidden, weight, labels)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **close)


@pytest.mark.slow("a program a placement")
@pytest.mark.parametrize("whole", [True, False])
def test_a_teacher_in_parts(whole):
    """A teacher with its classes on the same devices, and one that each device has the whole of."""

    def loss(h, w, u, y, axis_name=None):
        T = mx.LinearSoftmax(u, batch_size=5, axis_name=None if whole else axis_name)
        K = 0.5 * mx.Dirac(y) + 0.5 * T(0.5 * h)
        P = mx.joint(mx.Empirical(h, axis_name=axis_name and "data"), K)
        return -P.expect(log(mx.LinearSoftmax(w, batch_size=5, axis_name=axis_name)))

    specs = (ROWS, COLUMNS, S() if whole else COLUMNS, ROWS)
    function = jax.shard_map(lambda *args: loss(*args, "model"), mesh=mesh, in_specs=specs, out_specs=S())
    arguments = hidden, weight, f32(rng.normal(size=(D, V))), labels
    got = jax.jit(jax.value_and_grad(function, (0, 1, 2)))(*arguments)
    expected = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **close)


@pytest.mark.slow("a program a placement")
def test_a_teacher_in_parts_beside_a_whole_student():
    """Gradients taken inside: over the teacher's axis the student is the same on every device."""
    u = f32(rng.normal(size=(D, V)))

    def loss(w, u, h, data=None, model=None):
        return mx.cross_entropy(
            mx.joint(mx.Empirical(h, axis_name=data), mx.LinearSoftmax(u, axis_name=model)(h)), mx.LinearSoftmax(w)
        )

    inside = lambda *args: jax.value_and_grad(lambda *args: loss(*args, "data", "model"), (0, 1))(*args)
    function = jax.shard_map(inside, mesh=mesh, in_specs=(S(), COLUMNS, ROWS), out_specs=(S(), (S(), COLUMNS)))
    got = jax.jit(function)(weight, u, hidden)
    expected = jax.value_and_grad(loss, (0, 1))(weight, u, hidden)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **close)


@pytest.mark.slow("a program a placement")
def test_figures_of_families():
    """Log-partition, mass and KL of heads, in batches of atoms, and the density of a spread measure, differentiated."""
    u, x, w = f32(rng.normal(size=(D, V))), labels % 5, jnp.linspace(0.5, 1.5, N)

    def figures(h, weight, x, w, data=None, model=None):
        T, Q = mx.LinearSoftmax(jnp.asarray(u)), mx.LinearSoftmax(weight, axis_name=model)
        P = mx.Atoms(x, weights=w, axis_name=data)
        kl = (
            mx.kl_divergence(T(h), mx.LinearSoftmax(jnp.asarray(u) + 1.0 * jnp.arange(V))(h)).sum()
            + Q(h).log_partition.sum()
        )
        kl = jax.lax.psum(kl, data) if data else kl
        return kl + P.expect(lambda x: 1.0 * x**2, batch_size=5) + log(P)(jnp.array(3))

    spread = lambda *args: figures(*args, "data", "model")
    function = jax.shard_map(spread, mesh=mesh, in_specs=(ROWS, COLUMNS, ROWS, ROWS), out_specs=S())
    got = jax.jit(jax.value_and_grad(function, (0, 1, 3)))(hidden, weight, x, w)
    expected = jax.value_and_grad(figures, (0, 1, 3))(hidden, weight, x, w)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_contract():
    """NaN behind the mask, forbidden classes, confident rows, infinite losses, a batch that is masked out, of parts too."""
    h, b, y = hidden.copy(), bias.copy(), labels.copy()
    h[3], y[3], b[7] = np.nan, -100, -np.inf
    m = np.where(np.arange(N) == 3, 0, np.where(y == 7, 0, 1)).astype(np.float32)

    def loss(h, w, b, m, y):
        P = mx.Empirical((h, y), weights=m, axis_name="data")
        return mx.cross_entropy(P, mx.LinearSoftmax(w, b, batch_size=5, axis_name="model"))

    specs = (ROWS, COLUMNS, S("model"), ROWS, ROWS)
    function = jax.jit(jax.value_and_grad(jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=S()), (0, 1, 2)))
    plain = lambda h, w, b, m, y: mx.cross_entropy(mx.Empirical((h, y), weights=m), mx.LinearSoftmax(w, b))
    expected = jax.value_and_grad(plain, (0, 1, 2))(h, weight, b, m, jnp.asarray(y))
    for got, exact in zip(jax.tree.leaves(function(h, weight, b, m, y)), jax.tree.leaves(expected), strict=True):
        assert np.all(np.isfinite(got))
        np.testing.assert_allclose(got, exact, **close)
    for x in jax.tree.leaves(function(h, weight, b, 0 * m, y)):
        np.testing.assert_array_equal(x, 0)
    for bad in (-1, V):
        value, (_, dw, _) = function(hidden, weight, bias, m, np.full(N, bad))
        assert value == np.inf
        assert np.all(np.isnan(dw))
    only = np.eye(N, dtype=np.float32)[-1]
    z = (hidden[-1].astype(np.float64) @ weight + b) - (hidden[-1].astype(np.float64) @ weight + b)[y[-1]]
    value, _ = function(hidden, weight, b, only, y)
    tiny = np.log1p(np.exp(np.delete(z, y[-1])).sum())
    assert 0 < tiny < 1e-6
    np.testing.assert_allclose(value, tiny, rtol=1e-3)  # exp of a difference near 50 that float32 rounds by 4e-6


def test_by_products_of_parts():
    """Modes, counts and figures are of all the classes; ties go to the first."""
    tied = weight.copy()
    tied[:, 31] = tied[:, 5]

    def figures(h, w, y):
        Q = mx.LinearSoftmax(w, batch_size=7, axis_name="model")
        f = {"correct": mx.correct(Q), "confidence": mx.confidence(Q), "entropy": mx.entropy(Q), "A": log_partition(Q)}
        family = Q(h)
        return mx.Atoms((h, y), axis_name="data").expect(f), family.mode, family.dense.logits, family.log_partition

    specs = (ROWS, COLUMNS, ROWS)
    function = jax.shard_map(figures, mesh=mesh, in_specs=specs, out_specs=(S(), ROWS, ROWS, ROWS))
    got, mode, logits, lse = jax.jit(function)(hidden, tied, labels)
    z = hidden.astype(np.float64) @ tied
    exact_lse = np.logaddexp.reduce(z, axis=-1)
    p = np.exp(z - exact_lse[:, None])
    np.testing.assert_allclose(logits, z, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(mode, z.argmax(-1))
    np.testing.assert_allclose(lse, exact_lse, **close)
    exact = {"correct": (z.argmax(-1) == labels).sum(), "confidence": p.max(-1).sum(), "A": exact_lse.sum()}
    exact["entropy"] = (exact_lse - (p * z).sum(-1)).sum()
    for name, value in exact.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("dtype", [np.uint64, np.int64, np.uint32, np.uint8])
def test_labels_of_any_integers(dtype):
    """With x64 on, where an unsigned index less a signed one would be a float."""

    def loss(w, y):
        return mx.cross_entropy(mx.Empirical((jnp.asarray(hidden, w.dtype), y)), mx.LinearSoftmax(w, axis_name="model"))

    with jax.enable_x64(True):
        function = jax.shard_map(loss, mesh=mesh, in_specs=(COLUMNS, S()), out_specs=S())
        value, gradient = jax.jit(jax.value_and_grad(function))(weight.astype(np.float64), labels.astype(dtype))
        target = oracle.one_hot(labels, V)
        expected, _, of_weight, *_ = oracle.head(hidden, weight, np.zeros(V), target, np.ones(N))
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        np.testing.assert_allclose(gradient, of_weight, rtol=1e-8, atol=1e-12)


def test_collectives_grow_with_tokens_alone():
    """No collective carries tokens × classes, nor a token's logits: numbers a row, and the hidden states' gradient."""
    tokens, features, classes = 64, 16, 4096

    def loss(h, w, y):
        return mx.cross_entropy(mx.Empirical((h, y)), mx.LinearSoftmax(w, axis_name="model"))

    function = jax.shard_map(loss, mesh=mesh, in_specs=(S(), COLUMNS, S()), out_specs=S())
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((tokens, features), (features, classes))]
    shapes.append(jax.ShapeDtypeStruct((tokens,), jnp.int32))
    hlo = jax.jit(jax.value_and_grad(function, (0, 1))).lower(*shapes).compile().as_text()
    found = re.findall(r"= (\S+|\([^)]*\)) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\(", hlo)
    assert found
    sizes = [
        np.prod([int(n) for n in dims.split(",") if n])
        for shape, _ in found
        for dims in re.findall(r"\[([\d,]*)\]", shape)
    ]
    assert max(sizes) <= tokens * features
    assert sum(sizes) <= tokens * features + 10 * tokens


KINDS = {
    "head": lambda h, w: (h, mx.LinearSoftmax(w)),
    "logits": lambda h, w: (h @ w, mx.Conditional(mx.Categorical)),
    "opaque": lambda h, w: (h, mx.Conditional(lambda h: mx.Categorical(h @ w))),
}


@pytest.mark.slow("a program a placement")
@pytest.mark.parametrize("kind", KINDS)
def test_ragged_batches_have_the_right_mean(kind):
    """Of 8 devices with few weights or many: by axis_name, and by sums and masses that the caller adds."""
    rows, classes = 8 * 1200, 1000
    h, w = f32(rng.normal(size=(rows, 16))), f32(rng.normal(size=(16, classes)))
    y, m = rng.integers(classes, size=rows), f32(rng.uniform(size=rows) < np.linspace(0, 1, rows))

    def mean(h, w, y, m, **axis):
        x, Q = KINDS[kind](h, w)
        return -mx.Empirical((x, y), weights=m, **axis).expect(log(Q))

    def by_hand(h, w, y, m):
        x, Q = KINDS[kind](h, w)
        P = mx.Atoms((x, y), weights=m)
        return jax.lax.psum(-P.expect(log(Q)), "data") / jax.lax.psum(P.mass, "data")

    expected = jax.jit(jax.value_and_grad(mean, (0, 1)))(h, w, y, m)
    for loss in (lambda *args: mean(*args, axis_name="data"), by_hand):
        function = jax.shard_map(loss, mesh=both, in_specs=(ROWS, S(), ROWS, ROWS), out_specs=S())
        got = jax.jit(jax.value_and_grad(function, (0, 1)))(h, w, y, m)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
        for a, b in zip(got[1], expected[1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)


@pytest.mark.long
def test_measures_over_devices():
    """Mass, constants, densities, reweighting, batches and bind of a measure that is a sum over devices."""
    x, w = jnp.asarray(labels % 5), jnp.asarray(mask)

    def figures(x, w, **axis):
        P = mx.Atoms(x, weights=w, **axis)
        R = P.reweight(lambda x: 1.0 + x).normalize()
        plain = mx.Empirical(x, **axis)
        return {
            "mass": P.mass,
            "constant": (2 * P).expect(3.0),
            "log density": log(P.normalize())(3),
            "mean": R.expect(lambda x: x),
            "sum": (P + 2 * P).expect(lambda x: x),
            "batches": P.expect(lambda x: x**2, batch_size=5),
            "tuple": P.expect({"one": 1.0, "x": lambda x: x}),
            "uniform": plain.expect(lambda x: x),
            "bind": mx.bind(plain, mx.Dirac(x)).expect(lambda y: y),
            "product": mx.product(plain, mx.DiscreteUniform(3)).expect(lambda x, y: x * y),
        }

    over_devices = jax.shard_map(
        lambda x, w: figures(x, w, axis_name=("data", "model")),
        mesh=mesh,
        in_specs=(S(("data", "model")),) * 2,
        out_specs=S(),
    )
    got = jax.jit(over_devices)(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), got, figures(x, w))


def test_errors():
    loss = lambda h, w, y: mx.cross_entropy(mx.Empirical((h, y)), mx.LinearSoftmax(w, axis_name="model"))
    arguments = hidden, weight, labels
    over = lambda f, specs, **options: jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=S(), **options)(*arguments)
    with pytest.raises(ValueError, match=r"'model' is no mesh axis here; it is one inside jax.shard_map"):
        loss(*arguments)
    for bad in (0, (), ("model", "model")):
        with pytest.raises(ValueError, match=r"LinearSoftmax\(axis_name\): the name of a mesh axis"):
            mx.LinearSoftmax(weight, axis_name=bad)
    with pytest.raises(ValueError, match="check_vma=True"):
        over(loss, (S(), COLUMNS, S()), check_vma=False)
    with pytest.raises(ValueError, match="weight is the same on every device"):
        over(loss, (S(), S(), S()))
    with pytest.raises(ValueError, match="target's indices vary over model"):
        over(loss, (S("model"), COLUMNS, S("model")))
    with pytest.raises(ValueError, match=r"Atoms\(axis_name\): 'data' is no mesh axis here"):
        mx.Empirical(labels, axis_name="data").expect(lambda x: x)
    with pytest.raises(ValueError, match="sums over the devices of the same mesh axes, got"):
        over(lambda h, w, y: (mx.Atoms(y, axis_name="data") + mx.Atoms(y)).mass, (ROWS, S(), ROWS))
    with pytest.raises(ValueError, match="which only P may be"):
        over(lambda h, w, y: mx.product(mx.Atoms(y), mx.Atoms(y, axis_name="data")).mass, (ROWS, S(), ROWS))
