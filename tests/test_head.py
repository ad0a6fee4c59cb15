"""The linear head: value, every gradient and every mode against float64, in blocks that divide nothing, in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import measure_xent as mx
from measure_xent import log, log_partition
from measure_xent._kernels import head_function
from measure_xent._kernels.matrix import Matrix, block_rows

from . import oracle
from .sweeps import sweep

rng = np.random.default_rng(7)
f32 = lambda x: np.asarray(x, np.float32)
# float32 products of D ≤ 24 O(1) numbers and sums over N ≤ 40 rows: tens of ulp of 6e-8.
close = dict(rtol=2e-5, atol=2e-6)


def problem(N, V, D=6, scale=1.0):
    hidden, weight = f32(rng.normal(size=(N, D))), f32(scale * rng.normal(size=(D, V)))
    labels, weights = rng.integers(V, size=N), f32(rng.uniform(size=N) + 0.1)
    return hidden, weight, f32(rng.normal(size=V)), labels, weights


@pytest.mark.long
@sweep(("N", "V", "size"), [(1, 1, None), (17, 1, 5), (17, 7, 5), (40, 1009, 16), (3, 50257, 2)])
@sweep("class_axis", [0, 1])
def test_value_and_every_gradient(N, V, size, class_axis):
    """In hidden, weight, bias, row weights and softcap; a cotangent that is not 1; smoothed labels; a tied embedding."""
    hidden, weight, bias, labels, weights = problem(N, V)
    weights[N // 2] = 0.0 if N > 1 else 1.0

    def loss(h, w, b, m):
        Q = mx.LinearSoftmax(w if class_axis else w.T, b, 4.0, class_axis=class_axis, batch_size=size)
        smoothed = 0.75 * mx.Dirac(jnp.asarray(labels)) + 0.25 * mx.DiscreteUniform(V)
        return -2.5 * mx.joint(mx.Empirical(h, weights=m), smoothed).expect(log(Q))

    target = 0.75 * oracle.one_hot(labels, V) + 0.25 / V
    expected = oracle.head(hidden, weight, bias, target, weights, softcap=4.0)
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(hidden, weight, bias, weights)
    for got, exact in zip((value, *gradients), expected, strict=True):
        np.testing.assert_allclose(got, 2.5 * exact, **close)
    np.testing.assert_allclose(jax.jit(loss)(hidden, weight, bias, weights), 2.5 * expected[0], **close)


@sweep("scale", [1e-3, 1.0, 100.0])
@sweep("N", [1, 17, 1000])
@sweep("V", [1, 7, 32003, 50257])
def test_sizes_and_scales(N, V, scale):
    """Value and gradients, in the masses of the target's atoms too, from tiny logits to huge; a sum in float64, by chunks."""
    if N == 1000 and V > 7 and scale != 1:
        pytest.skip("seconds each, and the same code")
    hidden, weight, bias, labels, weights = problem(N, V, scale=scale)
    masses = f32(rng.uniform(size=N) + 0.5)
    value, dh, dw, db, dweights, dmasses = 0.0, [], 0.0, 0.0, [], []
    for i in range(0, N, 100):
        h, m, c = (x[i : i + 100].astype(np.float64) for x in (hidden, weights, masses))
        z, hot = h @ weight.astype(np.float64) + bias, oracle.one_hot(labels[i : i + 100], V)
        target = c[:, None] * hot + 0.25 / V
        losses, residual = oracle.rows(z, target), m[:, None] * oracle.rows_gradient(z, target)
        value, dw, db = value + m @ losses, dw + h.T @ residual, db + residual.sum(0)
        dh.append(residual @ weight.T.astype(np.float64))
        dweights.append(losses)
        dmasses.append(m * oracle.rows(z, hot))

    def loss(h, w, b, m, c):
        target = c * mx.Dirac(jnp.asarray(labels)) + 0.25 * mx.DiscreteUniform(V)
        return mx.cross_entropy(mx.joint(mx.Atoms(h, weights=m), target), mx.LinearSoftmax(w, b))

    expected = value, np.concatenate(dh), dw, db, np.concatenate(dweights), np.concatenate(dmasses)
    got = jax.jit(jax.value_and_grad(loss, range(5)))(hidden, weight, bias, weights, masses)
    # A logit is off by ulps of its products, each at most about 4·scale: that is what a probability is off by, relatively.
    error = 1e-5 + 2e-6 * scale
    for a, b in zip(jax.tree.leaves(got), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=5 * error, atol=error * max(np.abs(b).max(), 1e-30))


@pytest.mark.slow("heads in several schedules, with gradients")
@pytest.mark.parametrize("integral", [True, False])
def test_every_mode(integral):
    """jvp, jacfwd, three kinds of hvp, vmap and checkpoint, of the integral and of a loss each with any cotangent."""
    N, V = 7, 9
    hidden, weight, bias, labels, weights = problem(N, V)
    y = jnp.asarray(labels)

    def loss(h, w, b):
        Q = mx.LinearSoftmax(w, b, batch_size=3)
        if integral:
            return mx.cross_entropy(mx.Atoms((h, y), weights=weights), Q)
        return jnp.dot(mx.cross_entropy(mx.Dirac(y), Q(h)), weights)

    def exact(h, w, b):
        z = h @ w + b
        return jnp.dot(jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, y[:, None], -1)[:, 0], weights)

    primals = [jnp.asarray(x) for x in (hidden, weight, bias)]
    tangents = [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in primals]

    def derivatives(loss):
        gradient = jax.grad(loss, (0, 1, 2))
        dot = lambda trees: sum(jnp.vdot(a, b) for a, b in zip(trees, tangents, strict=True))
        stacked = [jnp.stack([x, x + 0.5]) for x in primals]
        return lambda *primals: {
            "grad": gradient(*primals),
            "checkpoint": jax.grad(jax.checkpoint(loss), (0, 1, 2))(*primals),
            "jvp": jax.jvp(loss, primals, tuple(tangents)),
            "jacfwd": jax.jacfwd(loss, 2)(*primals),
            "hvp": jax.jvp(gradient, primals, tuple(tangents))[1],
            "hvp, reverse over reverse": jax.grad(lambda *p: dot(gradient(*p)), (0, 1, 2))(*primals),
            "hvp, reverse over forward": jax.grad(lambda *p: jax.jvp(loss, p, tuple(tangents))[1], (0, 1, 2))(*primals),
            "hessian": jax.hessian(loss, 2)(*primals),
            "vmap": jax.vmap(jax.value_and_grad(loss, (0, 1, 2)))(*stacked),
        }

    got = jax.jit(derivatives(loss))(*primals)
    with jax.enable_x64(True):
        primals, tangents = [[jnp.asarray(x, jnp.float64) for x in xs] for xs in (primals, tangents)]
        expected = jax.jit(derivatives(exact))(*primals)
    for name in got:
        for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.slow("heads in several schedules, with gradients")
def test_training_loops():
    """optax.MultiSteps over micro-batches, half-precision steps in a scan, and Gauss–Newton products."""
    hidden, weight, bias, labels, _ = problem(16, 11)
    y = jnp.asarray(labels)
    loss = lambda w, h, y: mx.cross_entropy(
        mx.Empirical((h, y)), mx.LinearSoftmax(w, bias.astype(w.dtype), batch_size=3)
    )

    whole, parts = optax.sgd(0.1), optax.MultiSteps(optax.sgd(0.1), 4)
    w = v = jnp.asarray(weight)
    state = parts.init(v)
    for i in range(0, 16, 4):
        updates, state = parts.update(jax.grad(loss)(v, hidden[i : i + 4], y[i : i + 4]), state, v)
        v = optax.apply_updates(v, updates)
    updates, _ = whole.update(jax.grad(loss)(w, hidden, y), whole.init(w), w)
    np.testing.assert_allclose(v, optax.apply_updates(w, updates), **close)

    def step(carry, _):
        w, state = carry
        value, gradient = jax.value_and_grad(loss)(w, jnp.asarray(hidden, jnp.bfloat16), y)
        updates, state = adam.update(gradient, state, w)
        return (optax.apply_updates(w, updates), state), value

    adam, half = optax.adam(0.05), jnp.asarray(weight, jnp.bfloat16)
    (half, _), values = jax.jit(lambda w: jax.lax.scan(step, (w, adam.init(w)), None, 60))(half)
    assert half.dtype == jnp.bfloat16
    assert values.dtype == jnp.float32
    assert values[-1] < 0.3 * values[0]

    # The logits are linear in the weight: its Gauss–Newton matrix is the Hessian, JᵀHJ with H of the losses in the logits.
    logits = lambda w: hidden @ w + bias
    along = jnp.asarray(rng.normal(size=weight.shape), jnp.float32)
    z, dz = jax.jvp(logits, (w,), (along,))
    p = np.exp(oracle.log_softmax(z))
    curved = p * (np.asarray(dz) - (p * np.asarray(dz)).sum(-1, keepdims=True)) / 16
    product = jax.jvp(lambda w: jax.grad(loss)(w, hidden, y), (w,), (along,))[1]
    np.testing.assert_allclose(product, hidden.T @ curved, **close)


@pytest.mark.slow("heads in several schedules, with gradients")
@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_contract(junk):
    """Masked rows over NaN, an all-masked batch, forbidden classes, labels out of range, in value and gradients."""
    hidden, weight, bias, labels, _ = problem(6, 5)
    mask, labels[1], hidden[1] = f32([1, 0, 2, 1, 0, 1]), -100, junk
    bias[3], labels = -np.inf, np.where(labels == 3, 2, labels)
    keep = mask > 0

    def loss(h, w, b, m, y=labels):
        return mx.cross_entropy(mx.Empirical((h, jnp.asarray(y)), weights=m), mx.LinearSoftmax(w, b, batch_size=4))

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
    value, (dh, dw, db, dm) = gradient(hidden, weight, bias, mask)
    target = np.delete(oracle.one_hot(labels[keep], 5), 3, 1)
    allowed = [np.delete(x, 3, -1) for x in (weight, bias)]
    expected, eh, ew, eb, em = oracle.head(hidden[keep], *allowed, target, mask[keep])
    np.testing.assert_allclose(value, expected, **close)
    np.testing.assert_allclose(dh[keep], eh, **close)
    np.testing.assert_array_equal(dh[1], 0)
    np.testing.assert_allclose(np.delete(dw, 3, 1), ew, **close)
    np.testing.assert_array_equal(dw[:, 3], 0)
    np.testing.assert_allclose(np.delete(db, 3), eb, **close)
    np.testing.assert_allclose(dm[keep], em, **close)
    hvp = jax.jit(lambda w: jax.jvp(lambda w: jax.grad(loss, 1)(hidden, w, bias, mask), (w,), (w,))[1])(
        jnp.asarray(weight)
    )
    rows = lambda w: jax.grad(loss, 1)(hidden[keep], w, bias, mask[keep], labels[keep])
    np.testing.assert_allclose(hvp, jax.jvp(rows, (jnp.asarray(weight),) * 1, (jnp.asarray(weight),))[1], **close)
    value, gradients = gradient(hidden, weight, bias, np.zeros_like(mask))
    for x in (value, *gradients[:3]):
        np.testing.assert_array_equal(x, 0)
    for bad in (-1, 5):
        value, dw = jax.value_and_grad(lambda w, bad=bad: loss(jnp.ones((6, 6)), w, bias, mask, np.full(6, bad)))(
            weight
        )
        assert value == np.inf
        assert np.all(np.isnan(dw))


@pytest.mark.slow("heads in several schedules, with gradients")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_adds_up_in_float32(dtype):
    """2000 rows of nearly one gradient: a half-precision sum would stop growing at 256 of them; a loss each too."""
    N, V, D = 2000, 40, 4
    hidden, weight = (
        jnp.asarray(1 + 0.1 * rng.normal(size=(N, D)), dtype),
        jnp.asarray(0.1 * rng.normal(size=(D, V)), dtype),
    )
    y = jnp.zeros(N, int)
    exact = [np.asarray(x.astype(jnp.float32), np.float64) for x in (hidden, weight)]
    _, _, expected, *_ = oracle.head(*exact, np.zeros(V), oracle.one_hot(y, V), np.ones(N))
    sum_of = {
        "integral": lambda w: mx.cross_entropy(mx.Empirical((hidden, y)), mx.LinearSoftmax(w, batch_size=8)),
        "each": lambda w: mx.cross_entropy(mx.Dirac(y), mx.LinearSoftmax(w, batch_size=8)(hidden)).mean(),
    }
    for name, loss in sum_of.items():
        value, gradient = jax.jit(jax.value_and_grad(loss))(weight)
        assert value.dtype == jnp.float32
        assert gradient.dtype == dtype
        # The residuals are rounded to the products' dtype, a row each: errors of an ulp that average out, and one at the end.
        error = np.abs(gradient.astype(jnp.float32) - expected).max() / np.abs(expected).max()
        assert error < 2 * float(jnp.finfo(dtype).eps), name


@pytest.mark.slow("heads in several schedules, with gradients")
@pytest.mark.parametrize("scale", ["outside", "inside"])
def test_float16_with_a_loss_scale(scale):
    """1/N · p would underflow, were it rounded before the scale comes; of classes that are no label nothing else is left."""
    N, D, V, S = 4096, 16, 8192, 32768.0
    hidden, weight = (jnp.asarray(x, jnp.float16) for x in (rng.normal(size=(N, D)), 0.1 * rng.normal(size=(D, V))))
    bias, y = jnp.asarray(0.1 * rng.normal(size=V), jnp.float16), rng.integers(V // 2, size=N)

    def loss(h, w, b):
        P, f = mx.Empirical((h, jnp.asarray(y))), log(mx.LinearSoftmax(w, b))
        return -S * P.expect(f) if scale == "outside" else -P.reweight(lambda h, y: S).expect(f)

    got = [np.asarray(x, np.float64) for x in jax.jit(jax.grad(loss, (0, 1, 2)))(hidden, weight, bias)]
    exact = [np.asarray(x, np.float64) for x in (hidden, weight, bias)]
    of_hidden, of_weight, of_bias = np.zeros((N, D)), np.zeros((D, V)), np.zeros(V)
    for rows in np.split(np.arange(N), 8):
        h, w, b = exact[0][rows], *exact[1:]
        residual = oracle.rows_gradient(h @ w + b, oracle.one_hot(y[rows], V)) * S / N
        of_hidden[rows] = residual @ w.T
        of_weight += h.T @ residual
        of_bias += residual.sum(0)
    other = np.setdiff1d(np.arange(V), y)
    pairs = list(zip(got, (of_hidden, of_weight, of_bias), strict=True))
    pairs += [(got[1][:, other], of_weight[:, other]), (got[2][other], of_bias[other])]
    for a, b in pairs:  # an ulp is 1e-3, and rounding errors of half of one average a quarter
        assert np.linalg.norm(a - b) < 5e-4 * np.linalg.norm(b)


@pytest.mark.slow("heads in several schedules, with gradients")
def test_z_loss_and_counts_in_the_same_pass():
    hidden, weight, bias, labels, weights = problem(11, 13)

    def figures(w, c):
        P, Q = mx.Empirical((hidden, jnp.asarray(labels)), weights=weights), mx.LinearSoftmax(w, bias, batch_size=4)
        got = P.expect({"loss": c * log_partition(Q) ** 2 - log(Q), "accuracy": mx.correct(Q)})
        return got["loss"], got["accuracy"]

    z = hidden.astype(np.float64) @ weight + bias
    log_p, w = oracle.log_softmax(z), weights / weights.sum()
    lse = (z - log_p)[:, 0]
    one = oracle.one_hot(labels, 13)
    (loss, accuracy), (dw, dc) = jax.jit(jax.value_and_grad(figures, (0, 1), has_aux=True))(weight, 0.25)
    np.testing.assert_allclose(loss, w @ (0.25 * lse**2 - (one * log_p).sum(-1)), **close)
    np.testing.assert_allclose(accuracy, w @ (z.argmax(-1) == labels), **close)
    residual = w[:, None] * ((1 + 0.5 * lse)[:, None] * np.exp(log_p) - one)
    np.testing.assert_allclose(dw, hidden.T @ residual, **close)
    np.testing.assert_allclose(dc, w @ lse**2, **close)
    Q = mx.LinearSoftmax(weight, bias, batch_size=4)(hidden.reshape(11, 1, 6))
    np.testing.assert_allclose(Q.log_partition[:, 0], lse, **close)
    np.testing.assert_array_equal(Q.mode[:, 0], z.argmax(-1))


def test_class_weights_at_rows_of_weight_0():
    """A row that is left out has its own class weight still, in the derivative that would let it in."""
    hidden, weight, bias, labels, _ = problem(6, 5)
    mask, class_weight = f32([1, 0, 2, 0, 1, 0]), f32([0.5, 2.0, 1.0, 3.0, 0.7])
    y = jnp.asarray(labels)

    def loss(m):
        P = mx.joint(mx.Empirical(hidden, weights=m), 0.8 * mx.Dirac(y) + 0.2 * mx.DiscreteUniform(5))
        P = P.reweight(lambda h, y: jnp.asarray(class_weight)[y]).normalize()
        return mx.cross_entropy(P, mx.LinearSoftmax(weight, bias))

    target = (0.8 * oracle.one_hot(labels, 5) + 0.04) * class_weight
    expected = oracle.head(hidden, weight, bias, target, mask)
    np.testing.assert_allclose(loss(mask), expected[0], **close)
    np.testing.assert_allclose(jax.grad(loss)(mask), expected[4], **close)


@pytest.mark.slow("heads in several schedules, with gradients")
@pytest.mark.parametrize("alone", [True, False])
def test_a_teacher_that_is_a_head(alone):
    """Distillation with neither's logits: the integral, a loss each and their gradients, in the teacher's parts too."""
    N, V, D = 11, 23, 4
    hidden, weight, bias, labels, weights = problem(N, V)
    theirs, teacher, tbias = f32(rng.normal(size=(N, D))), f32(rng.normal(size=(D, V))), f32(rng.normal(size=V))
    weights[2], theirs[2], hidden[2] = 0, np.nan, np.nan
    y = jnp.asarray(labels)

    def loss(h, w, m, t, u, b, each=False):
        T, Q = mx.LinearSoftmax(u.T, b, 5.0, class_axis=0, batch_size=4), mx.LinearSoftmax(w, bias, batch_size=3)
        K = T(t) if alone else 0.25 * mx.Dirac(y) + 0.75 * T(t)
        if each:
            return jnp.dot(mx.cross_entropy(m * K, mx.LinearSoftmax(w, bias)(jnp.nan_to_num(h))), jnp.arange(N))
        return mx.joint(mx.Atoms(h, weights=m), K).expect(-log(Q) + 0.5 * mx.correct(Q))

    def exact(h, w, m, t, u, b, each=False):
        keep = jnp.asarray(np.arange(N) != 2)
        h, t = (jnp.where(keep[:, None], x, 0) for x in (h, t))
        p, z = jax.nn.softmax(5 * jnp.tanh((t @ u + b) / 5)), h @ w + bias
        target = p if alone else 0.25 * jax.nn.one_hot(labels, V, dtype=p.dtype) + 0.75 * p
        value = (target * (jax.nn.logsumexp(z, -1, keepdims=True) - z)).sum(-1)
        if each:
            return jnp.dot(jnp.where(keep, m, 0) * value, jnp.arange(N))
        value += 0.5 * jnp.take_along_axis(target, z.argmax(-1, keepdims=True), -1)[:, 0]
        return jnp.dot(jnp.where(keep, m, 0), value)

    arguments = [jnp.asarray(x) for x in (hidden, weight, weights, theirs, teacher, tbias)]
    for each in (False, True):
        got = jax.jit(jax.value_and_grad(lambda *a, each=each: loss(*a, each=each), range(6)))(*arguments)
        with jax.enable_x64(True):
            wide = [jnp.asarray(x, jnp.float64) for x in arguments]
            expected = jax.value_and_grad(lambda *a, each=each: exact(*a, each=each), range(6))(*wide)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            keep = np.arange(N) != 2 if len(np.shape(a)) and len(a) == N else ...
            np.testing.assert_allclose(np.asarray(a)[keep], np.asarray(b)[keep], rtol=1e-4, atol=2e-5)
            assert np.all(np.isfinite(a))
    keep = np.arange(N) != 2
    T, Q = mx.LinearSoftmax(teacher, tbias)(theirs[keep]), mx.LinearSoftmax(weight, bias)(hidden[keep])
    log_p = oracle.log_softmax(theirs[keep].astype(np.float64) @ teacher + tbias)
    log_q = oracle.log_softmax(hidden[keep].astype(np.float64) @ weight + bias)
    np.testing.assert_allclose(mx.kl_divergence(T, Q), (np.exp(log_p) * (log_p - log_q)).sum(-1), **close)
    np.testing.assert_allclose(mx.entropy(T), -(np.exp(log_p) * log_p).sum(-1), **close)
    np.testing.assert_allclose(T.mass, 1)
    # The teacher's measures are measures like others.
    np.testing.assert_allclose((0.5 * T).expect(lambda y: y), 0.5 * np.exp(log_p) @ np.arange(V), rtol=1e-5)
    np.testing.assert_allclose(mx.cross_entropy(T, mx.Categorical(log_q)), -(np.exp(log_p) * log_q).sum(-1), **close)


@pytest.mark.long
@sweep("each", [False, True], 1)
@sweep("dtype", [jnp.bfloat16, jnp.float16])
def test_products_of_another_dtype(each, dtype):
    """A float32 weight, and products in half precision: the gradient is the float32 sum, and second derivatives are float32."""
    hidden, weight, bias, labels, weights = problem(40, 309)
    rounded = lambda x: np.asarray(jnp.asarray(x, dtype), np.float64)

    def loss(h, w, b):
        Q = mx.LinearSoftmax(w, b, dtype=dtype, batch_size=16)
        if each:
            return jnp.vdot(mx.cross_entropy(mx.Dirac(jnp.asarray(labels)), Q(h)), weights) / weights.sum()
        return mx.cross_entropy(mx.Empirical((h, jnp.asarray(labels)), weights=weights), Q)

    primals = jnp.asarray(hidden, dtype), jnp.asarray(weight), jnp.asarray(bias)
    expected = oracle.head(rounded(hidden), rounded(weight), bias, oracle.one_hot(labels, 309), weights)
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*primals)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    assert [g.dtype for g in gradients] == [dtype, jnp.float32, jnp.float32]
    for got, exact in zip(gradients, expected[1:4], strict=True):
        # Residuals are rounded to half precision, 2⁻⁸ of a bfloat16.
        np.testing.assert_allclose(np.asarray(got, np.float64), exact, atol=5e-3 * np.abs(exact).max())
    assert jax.jvp(jax.grad(loss, 1), primals, primals)[1].dtype == jnp.float32
    with pytest.raises(TypeError, match=r"LinearSoftmax\(dtype\): a floating dtype, got int32"):
        mx.LinearSoftmax(weight, dtype=jnp.int32)
    with pytest.raises(TypeError, match=r"LinearSoftmax\(dtype\): a floating dtype, got 'half of it'"):
        mx.LinearSoftmax(weight, dtype="half of it")


@pytest.mark.parametrize(
    ("features", "classes", "cpu", "default"),
    [(2560, 128_256, 256, 2048), (64, 128_256, 128, 2048), (256, 1000, 256, 65536), (4096, 32_000, 256, 2048)],
)
def test_rows_of_a_block(features, classes, cpu, default):
    """Equal blocks: on CPUs that fit the cache, on accelerators of 2048 rows, or as many as make 256 MiB of logits. Of scaled
    exponentials on TPUs 8192 and by a kernel 4096, or all where these are no larger than a block's and a sum of the weight's
    gradient beside it."""
    matrix = Matrix(jax.ShapeDtypeStruct((features, classes), jnp.bfloat16), 1, None)
    scaled = frozenset({"tpu", "cuda"})
    rows = {"cpu": cpu, "default": default, "tpu": max(8192, default), "cuda": max(4096, default)}
    assert block_rows(1 << 18, matrix) == {"cpu": cpu, "default": default, "tpu": default}
    assert block_rows(1 << 18, matrix, scaled=scaled) == rows
    assert set(block_rows(1 << 18, matrix, 512, scaled=scaled).values()) == {512}
    assert max(block_rows(10, matrix).values()) == 10
    assert block_rows(10, matrix, scaled=scaled)["cuda"] == 16
    for platform in scaled if default == 2048 else ():
        whole = rows[platform] + 2 * features
        assert block_rows(whole, matrix, scaled=scaled)[platform] == whole
        assert block_rows(whole + 1, matrix, scaled=scaled)[platform] <= rows[platform] + 8
        assert block_rows(whole, matrix, scaled=scaled, rounds=False)[platform] <= rows[platform]


def at_candidates(Q, how):
    """log q at classes [N, k] of the rows of hidden [N, D], each in another way."""
    return {
        "a family": lambda h, c: Q(h).log_density(c.T).T,
        "a function": lambda h, c: jax.vmap(lambda h, c: log(Q)(h, c))(h, c),
        "a class at a time": lambda h, c: jax.vmap(lambda h, c: jax.vmap(lambda c: log(Q)(h, c))(c))(h, c),
        "a batch": lambda h, c: Q(h[:, None]).log_density(jnp.moveaxis(c, 1, 0)[..., None])[..., 0].T,
    }[how]


@pytest.mark.long
@sweep("how", ["a family", "a function", "a class at a time", "a batch"], 2)
@sweep("k", [1, 3, 70])
@sweep("kept", [0, 1 << 20])
@pytest.mark.parametrize("program", [None, "tpu", "default"])
def test_log_density_at_candidates(how, k, kept, program, monkeypatch):
    """Value and gradients in hidden, weight and bias under uneven cotangents; a confident class and a forbidden one among
    them, twice the same; each platform's program."""
    if program is not None:
        monkeypatch.setattr(
            head_function, "_on_platform", lambda f, sizes, *operands: f(program, sizes[program], *operands)
        )
    hidden, weight, bias, labels, _ = problem(17, 101)
    candidates = rng.integers(101, size=(17, k))
    candidates[:, -1], candidates[:, 0] = labels, labels
    candidates[4, 0], bias[7] = 7, -np.inf  # of no mass: no cotangent there
    bias[labels[3]] += 40
    cotangents = f32(rng.normal(size=(17, k)))
    cotangents[candidates == 7] = 0

    def ours(h, w, b):
        Q = mx.LinearSoftmax(w, b, batch_size=5, residual_bytes=kept)
        return jnp.sum(cotangents * jnp.where(candidates == 7, 0, at_candidates(Q, how)(h, jnp.asarray(candidates))))

    def exact(h, w, b):
        log_q = jnp.take_along_axis(jax.nn.log_softmax(h @ w + b), candidates, -1)
        return jnp.sum(cotangents * jnp.where(candidates == 7, 0, log_q))

    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(hidden, weight, bias)
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in (hidden, weight, bias)]
        expected = jax.tree.map(np.asarray, jax.value_and_grad(exact, (0, 1, 2))(*wide))
    for got, right in zip((value, *gradients), (expected[0], *expected[1]), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())
    values = jax.jit(
        lambda: at_candidates(mx.LinearSoftmax(weight, bias), how)(*map(jnp.asarray, (hidden, candidates)))
    )()
    assert np.all(np.asarray(values)[candidates == 7] == -np.inf)
    confident = np.asarray(values)[3, 0]  # of probability near 1, and the first of its row: relative accuracy
    np.testing.assert_allclose(confident, oracle_log_density(hidden, weight, bias)[3, labels[3]], rtol=1e-5)


def oracle_log_density(hidden, weight, bias):
    z = hidden.astype(np.float64) @ weight.astype(np.float64) + bias
    one = lambda z, c: -np.log1p(np.sum(np.exp(np.delete(z, c) - z[c])))
    return np.array([[one(row, c) for c in range(len(row))] for row in z])


@pytest.mark.slow("second derivatives of heads")
def test_a_class_that_is_none_and_derivatives_of_candidates():
    """−inf, and a gradient that is not a number unless there is no cotangent; both modes, each over the other."""
    hidden, weight, bias, labels, _ = problem(6, 11)
    at = jnp.asarray(np.stack([labels, rng.integers(11, size=6)], -1)).at[2, 1].set(11)
    log_q = lambda w: mx.LinearSoftmax(w, bias, batch_size=4)(hidden).log_density(at.T).T
    assert log_q(weight)[2, 1] == -jnp.inf
    assert np.isfinite(np.delete(log_q(weight).ravel(), 5)).all()
    assert np.isnan(jax.grad(lambda w: jnp.where(at == 11, 2.0, 1.0).ravel() @ log_q(w).ravel())(weight)).any()
    total = lambda w: jnp.sum(jnp.sin(jnp.where(at == 11, 0, log_q(w))))
    dense = lambda w: jnp.sum(
        jnp.sin(jnp.where(at == 11, 0, jnp.take_along_axis(jax.nn.log_softmax(hidden @ w + bias), at, -1)))
    )
    for derivative in (
        jax.grad,
        lambda f: lambda w: jax.jvp(f, (w,), (jnp.cos(w),))[1],
        lambda f: lambda w: jax.jvp(jax.grad(f), (w,), (jnp.cos(w),))[1],
        lambda f: jax.grad(lambda w: jnp.sum(jax.grad(f)(w) ** 2)),
        lambda f: lambda w: jax.vmap(jax.grad(f))(jnp.stack([w, 2 * w])),
    ):
        expected = derivative(dense)(weight)
        np.testing.assert_allclose(derivative(total)(weight), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.long
@sweep("dtypes", ["bfloat16 bfloat16 bfloat16", "float32 float32 bfloat16", "float32 bfloat16 float16"])
def test_gradients_have_their_arrays_dtypes(dtypes):
    """Hidden, weight and bias of several, for a loss a row, log q and the mean."""
    hidden, weight, bias, labels, _ = problem(9, 40)
    arrays = [jnp.asarray(x, dtype) for x, dtype in zip((hidden, weight, bias), dtypes.split(), strict=True)]
    exact = jax.grad(lambda h, w, b: -jax.nn.log_softmax(h @ w + b)[jnp.arange(9), labels].sum(), (0, 1, 2))
    right = exact(*(x.astype(jnp.float32) for x in arrays))
    for loss in (
        lambda h, w, b: mx.cross_entropy(mx.Dirac(labels), mx.LinearSoftmax(w, b)(h)).sum(),
        lambda h, w, b: -jax.vmap(log(mx.LinearSoftmax(w, b)))(h, jnp.asarray(labels)).sum(),
        lambda h, w, b: mx.cross_entropy(mx.Atoms((h, jnp.asarray(labels))), mx.LinearSoftmax(w, b)),
    ):
        for got, exact, x in zip(jax.grad(loss, (0, 1, 2))(*arrays), right, arrays, strict=True):
            assert got.dtype == x.dtype
            np.testing.assert_allclose(np.asarray(got, np.float32), exact, atol=2e-2 * np.abs(exact).max())


@pytest.mark.slow("second derivatives of heads")
@pytest.mark.parametrize("how", ["a loss", "log q"])
def test_second_derivatives_at_null_rows(how):
    """A row of NaN that no cotangent comes to is in none; one whose cotangent is 0, and has a derivative, is."""
    hidden, weight, _, labels, _ = problem(7, 13)
    mask, along = np.arange(7) != 2, jnp.cos(jnp.asarray(weight))
    each = {
        "a loss": lambda h, w: mx.cross_entropy(mx.Dirac(labels), mx.LinearSoftmax(w, batch_size=3)(h)),
        "log q": lambda h, w: -mx.LinearSoftmax(w, batch_size=3)(h).log_density(labels),
    }[how]
    dense = lambda h, w: -jax.nn.log_softmax(h @ w)[jnp.arange(7), labels]
    hvp = lambda f: jax.jvp(jax.grad(f), (jnp.asarray(weight),), (along,))[1]
    got = hvp(lambda w: jnp.sum(jnp.where(mask, each(jnp.asarray(hidden).at[2].set(jnp.nan), w), 0)))
    np.testing.assert_allclose(got, hvp(lambda w: jnp.sum(mask * dense(hidden, w))), rtol=1e-4, atol=1e-5)
    squared = lambda f: hvp(lambda w: jnp.sum((f(hidden, w) - f(hidden, jnp.asarray(weight))) ** 2))
    np.testing.assert_allclose(squared(each), squared(dense), rtol=1e-4, atol=1e-4)


def test_no_candidates():
    hidden, weight, *_ = problem(7, 13)
    assert mx.LinearSoftmax(weight)(hidden).log_density(jnp.zeros((0, 7), int)).shape == (0, 7)


def test_errors():
    weight = jnp.zeros((3, 5))
    with pytest.raises(ValueError, match=r"class_axis\): 1 for a weight \[D, V\], 0 for \[V, D\], got 2"):
        mx.LinearSoftmax(weight, class_axis=2)
    with pytest.raises(ValueError, match=r"batch_size\): a positive int, got 0"):
        mx.LinearSoftmax(weight, batch_size=0)
    with pytest.raises(ValueError, match=r"residual_bytes\): a number of bytes, an int of at least 0, got -1"):
        mx.LinearSoftmax(weight, residual_bytes=-1)
    with pytest.raises(ValueError, match=r"at least one feature and one class, got shape \(3, 0\)"):
        mx.LinearSoftmax(jnp.zeros((3, 0)))
    with pytest.raises(ValueError, match=r"an empty batch, h has shape \(0, 3\)"):
        mx.LinearSoftmax(weight)(jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match="D = 3 features"):
        mx.cross_entropy(mx.Empirical((jnp.zeros((2, 4)), jnp.zeros(2, int))), mx.LinearSoftmax(weight))
    with pytest.raises(ValueError, match="on 4 classes"):
        mx.cross_entropy(mx.joint(mx.Empirical(jnp.zeros((2, 3))), mx.DiscreteUniform(4)), mx.LinearSoftmax(weight))
    with pytest.raises(ValueError, match="name them all"):
        mx.cross_entropy(mx.Empirical((jnp.zeros((2, 4, 3)), jnp.zeros((2, 4), int))), mx.LinearSoftmax(weight))
