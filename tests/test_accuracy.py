"""The error of the loss and its gradient, in ulps, over classes, spreads, margins and dtypes, against float64 and mpmath.

The bound. A surprisal is (r − z) + log1p(Σ exp(z_j − r) without the reference's own term), r the maximum or z itself: sums
of non-negative terms, so relative errors add. With eps the spacing of the dtype sums are kept in,

- a difference z_j − r rounds by ½ eps·|z_j − r|, which exp turns into a relative error of its term: a term a margin from
  the reference carries ½·margin, and terms further below than their share of the sum lets them do not count;
- exp and log1p are good to 2 eps each, products and the last additions to 1;
- a sum of V terms of one sign in an order that a compiler chooses grows like a random walk, √V/2, in vector lanes less.

Together (5 + margin/2 + √V/2) eps, for the loss and, as it is made of the same numbers, for each entry of the gradient,
where margin is the largest difference whose term matters (at most ~90 in float32, where exp underflows).
"""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import measure_xent as mx
from measure_xent._kernels import blocks, log_sum, softmax
from measure_xent._kernels.classes import Classes

from .sweeps import sweep

CLASSES = [1, 2, 3, 10, 65, 1001, 50257]


def exact(z, y):
    """(loss, gradient) of one row at label y, from float64 logits, without cancellation: log1p of the others' ratios."""
    z = np.asarray(z, np.float64)
    others = np.delete(z, y) - z[y]
    if others.size == 0:
        return 0.0, np.zeros(1)
    top = max(others.max(), 0.0)
    ratios = np.exp(others - top).sum()
    loss = np.log1p(ratios) if top == 0 else top + np.log(np.exp(-top) + ratios)
    p = np.exp(z - z[y] - loss)
    p[y] = np.expm1(-loss)
    return loss, p


def bound(eps, margin, classes):
    return (5 + margin / 2 + np.sqrt(classes) / 2) * eps


def rows(classes, rng):
    """Logits of every spread and margin: (spread, margin) → one row with label y at the margin over the rest."""
    for spread in (1e-6, 1e-2, 1.0, 30.0, 1e4):
        for margin in (0.0, 1.0, 20.0, 80.0, 200.0):
            z = spread * rng.normal(size=classes)
            y = int(rng.integers(classes))
            z[y] = np.delete(z, y).max(initial=0.0) + margin
            yield margin, z, y


@pytest.mark.sweep(0.2)
@sweep("classes", CLASSES, cost=0.2)
@sweep("dtype", ["float32", "bfloat16", "float16"])
@sweep("how", ["cpu", "few logits", "many odd rows", "elsewhere"])
def test_loss_and_gradient_to_the_ulp(how, classes, dtype, monkeypatch):
    """On CPUs, where there are few logits, and many rows of few, and on other platforms."""
    if how == "few logits":
        monkeypatch.setattr(softmax, "FEW_LOGITS", 1 << 30)
    if how == "many odd rows":
        monkeypatch.setattr(blocks, "MANY_ROWS", 0)
    if how == "elsewhere":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, default, **_: default(*operands))
    rng = np.random.default_rng(classes)
    eps = float(jnp.finfo(jnp.float32).eps)
    _, logits, labels = zip(*rows(classes, rng), strict=True)
    z, y = jnp.asarray(np.stack(logits), dtype), jnp.asarray(labels)
    loss = jax.jit(lambda z: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z)))
    values = np.asarray(loss(z))
    assert values.dtype == np.float32
    # the gradient before it is rounded to the logits' dtype
    gradients = np.asarray(jax.jit(jax.grad(lambda z: loss(z).sum()))(z.astype(jnp.float32)))
    for row in range(len(labels)):
        expected, gradient = exact(np.asarray(z[row].astype(jnp.float32), np.float64), labels[row])
        if expected < 1e-34:  # exp underflows: float32 holds no such number
            assert values[row] <= 1e-34
            continue
        span = np.ptp(np.asarray(z[row].astype(jnp.float32), np.float64))
        tolerance = bound(eps, min(span, 90), classes)
        assert abs(values[row] - expected) <= tolerance * expected, (row, values[row], expected)
        normal = np.abs(gradient) > 1e-37
        error = np.abs(gradients[row] - gradient)[normal] / np.abs(gradient)[normal]
        assert error.max(initial=0) <= 2 * tolerance, row
        assert abs(gradients[row].astype(np.float64).sum()) <= 2 * tolerance * np.abs(gradient).sum()


SPREAD = {
    "smoothed": lambda y, p, Q: mx.cross_entropy(0.75 * mx.Dirac(y) + 0.25 * mx.DiscreteUniform(p.shape[-1]), Q),
    "dense": lambda y, p, Q: mx.cross_entropy(0.5 * mx.Dirac(y) + 0.5 * mx.Categorical(probs=p), Q),
    "entropy": lambda y, p, Q: mx.entropy(Q),
}


@pytest.mark.long
@sweep("name", SPREAD, cost=0.5)
@pytest.mark.parametrize("classes", [320, 1009])
def test_sums_over_more_classes_than_are_summed_at_once(monkeypatch, classes, name):
    """In tiles of 32 here, and what is left over."""
    for module in (log_sum, softmax):
        monkeypatch.setattr(module, "LONGEST_SUM", 100)
    monkeypatch.setattr(log_sum, "TILE", 32)
    rng = np.random.default_rng(classes)
    z, p = 3 * rng.normal(size=(6, classes)), rng.dirichlet(np.ones(classes), size=6)
    z, p, y = z.astype(np.float32), p.astype(np.float32), rng.integers(classes, size=6)
    z[0, y[0]] = 40.0
    cotangents = np.linspace(-1, 2, 6)
    total = lambda z: cotangents @ SPREAD[name](y, p, mx.Categorical(z))
    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(z))
    z, p = z.astype(np.float64), p.astype(np.float64)
    log_q = z - z.max(-1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(-1, keepdims=True))
    hit = np.eye(classes)[y]
    target = {"smoothed": 0.75 * hit + 0.25 / classes, "dense": 0.5 * hit + 0.5 * p, "entropy": np.exp(log_q)}[name]
    mass = target.sum(-1, keepdims=True)
    slope = mass * np.exp(log_q) - target
    if name == "entropy":
        slope = -np.exp(log_q) * (log_q - (np.exp(log_q) * log_q).sum(-1, keepdims=True))
    np.testing.assert_allclose(value, cotangents @ -(target * log_q).sum(-1), rtol=3e-6)
    np.testing.assert_allclose(gradient, cotangents[:, None] * slope, rtol=2e-5, atol=2e-6 * np.abs(slope).max())


@sweep("classes", [100, 1009], cost=0.25)
@sweep("far", [8, 20, 31, 40, 65])
def test_labels_far_below_a_large_maximum(far, classes):
    """p of the others, which a reference as far away would round by half its distance: ½ far eps, as the bound has it."""
    rng = np.random.default_rng(far)
    z = (rng.normal(size=(20, classes)) * (np.arange(20) > 0)[:, None]).astype(np.float32)
    z[:, 3], z[:, 4], z[:, 7] = 0, far, far - 0.05 * np.arange(20)
    y = np.full(20, 3)
    got = jax.grad(lambda z: mx.cross_entropy(mx.Dirac(jnp.asarray(y)), mx.Categorical(z)).sum())(jnp.asarray(z))
    for row, gradient in zip(z, got, strict=True):
        expected = exact(row, 3)[1]
        limit = bound(float(jnp.finfo(jnp.float32).eps), min(far, 32), classes)
        np.testing.assert_allclose(np.asarray(gradient)[[3, 4, 7]], expected[[3, 4, 7]], rtol=limit)


@pytest.mark.sweep(0.2)
@pytest.mark.parametrize("classes", [33, 1001, 4097])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "default"])
def test_relative_to_the_first_maximum(platform, dtype, classes):
    """What each platform is given, and the edges: the first of equal maxima, infinities, a NaN wherever it stands."""
    eps = float(jnp.finfo(jnp.float32).eps)
    # A CPU merges the terms of the one reduction one by one, half an ulp each; a GPU in a tree.
    relative_error = bound(eps, 90, classes) + (classes / 2 * eps if platform == "cuda" else 0)
    relative = jax.jit(lambda z: log_sum.relative_to_top(Classes(classes), z.astype("float32"), platform))
    rng = np.random.default_rng(classes)
    z = jnp.asarray(np.stack([logits for _, logits, _ in rows(classes, rng)]), dtype)
    got = jax.tree.map(lambda x: np.asarray(x)[:, 0], relative(z))
    z = np.asarray(z, np.float64)
    np.testing.assert_array_equal(got.at, z.argmax(-1))
    np.testing.assert_array_equal(got.reference, z.max(-1))
    for row, got_sum in zip(z, got.log_sum, strict=True):
        loss = exact(row, row.argmax())[0]
        assert abs(got_sum - loss) <= relative_error * loss + classes * float(jnp.finfo(jnp.float32).tiny)  # flushed

    z = np.tile(rng.normal(size=classes), (7, 1))
    z[0], z[0, [5, classes // 2, classes - 1]] = -90.0, 9.0
    z[1] = -np.inf
    z[2, [classes // 2, classes - 1]] = np.inf
    z[3, -1] = np.nan
    z[4], z[4, 0] = -np.inf, np.nan
    z[5, 7], z[5, 20] = np.inf, np.nan
    z[6], z[6, -1] = -np.inf, 2.0
    got = jax.tree.map(lambda x: np.asarray(x)[:, 0], relative(jnp.asarray(z, dtype)))
    np.testing.assert_array_equal(got.at, [5, 0, classes // 2, classes, classes, classes, classes - 1])
    np.testing.assert_array_equal(got.reference, [9, -np.inf, np.inf, np.nan, np.nan, np.nan, 2])
    np.testing.assert_array_equal(got.log_sum[[1, 3, 4, 5, 6]], [np.inf, np.nan, np.nan, np.nan, 0])
    np.testing.assert_allclose(got.log_sum[[0, 2]], [np.log(3), np.log(2)], rtol=1e-6)


@pytest.mark.slow("rows against mpmath")
@pytest.mark.parametrize("classes", [1, 2, 7, 200])
def test_float64_against_mpmath(classes):
    rng = np.random.default_rng(classes)
    with jax.enable_x64(True), mpmath.workdps(400):  # 1 + 1e-322 must not round
        for margin, z, y in rows(classes, rng):
            value, gradient = jax.value_and_grad(lambda z, y=y: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z)))(
                jnp.asarray(z)
            )
            assert value.dtype == jnp.float64
            shifted = [mpmath.mpf(float(x)) - mpmath.mpf(float(z[y])) for x in z]
            total = mpmath.fsum(mpmath.exp(x) for x in shifted)
            loss = mpmath.log(total)
            tolerance = bound(2**-52, min(np.ptp(z), 740), classes)
            assert abs(mpmath.mpf(float(value)) - loss) <= tolerance * loss, (margin, float(value), loss)
            for j in range(classes):
                p = mpmath.exp(shifted[j]) / total - (j == y)
                if abs(p) > 1e-300:
                    assert abs(mpmath.mpf(float(gradient[j])) - p) <= 2 * tolerance * abs(p)


def test_the_example_of_the_contract():
    z = jnp.array([20.0, 0.0, 0.0])
    for loss in (lambda z: mx.cross_entropy(mx.Dirac(0), mx.Categorical(z)), lambda z: _in_blocks(z)):
        value, gradient = jax.value_and_grad(loss)(z)
        np.testing.assert_allclose(value, np.log1p(2 * np.exp(-20.0)), rtol=1e-6)
        np.testing.assert_allclose(gradient.sum(), 0, atol=1e-6 * abs(float(gradient[0])))


def _in_blocks(z):
    """The same row, 40 000 times padded with forbidden classes, so that it takes the path in blocks."""
    wide = jnp.concatenate([z, jnp.full(97, -jnp.inf)])
    many = jnp.broadcast_to(wide, (40_000, 100))
    return mx.cross_entropy(mx.Dirac(jnp.zeros(40_000, int)), mx.Categorical(many)).mean()


@sweep("shape", [(3000, 1000), (701, 1001), (3, 300_001), (5, 7, 20_003)])
@sweep("dtype", ["float32", "bfloat16", "float16"])
def test_blocks_of_rows(shape, dtype):
    """Row counts and class counts that divide no block, every kind of target, values and gradients, under vmap too."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=shape) * 3, dtype)
    exact_z = np.asarray(z.astype(jnp.float32), np.float64)
    log_q = exact_z - exact_z.max(-1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(-1, keepdims=True))
    y = rng.integers(shape[-1], size=shape[:-1])
    lam = rng.uniform(size=shape[:-1]).astype(np.float32)
    cot = rng.normal(size=shape[:-1]).astype(np.float32)
    smoothed = lambda: jnp.asarray(lam) * mx.Dirac(jnp.asarray(y)) + 0.25 * mx.DiscreteUniform(shape[-1])
    loss = jax.jit(lambda z: mx.cross_entropy(smoothed(), mx.Categorical(z)))
    at_label = np.take_along_axis(log_q, y[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss(z), -lam * at_label - 0.25 * log_q.mean(-1), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda z: jnp.vdot(loss(z), jnp.asarray(cot))))(z)
    assert gradient.dtype == z.dtype
    expected = (lam + 0.25)[..., None] * np.exp(log_q) - 0.25 / shape[-1]
    np.put_along_axis(expected, y[..., None], np.take_along_axis(expected, y[..., None], -1) - lam[..., None], -1)
    expected *= cot[..., None]
    eps = float(jnp.finfo(z.dtype).eps)
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected, rtol=max(eps, 2e-4), atol=6e-8)
    mapped = jax.jit(jax.vmap(lambda z, y: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z))))(z, jnp.asarray(y))
    np.testing.assert_allclose(mapped, -at_label, rtol=1e-5)


@pytest.mark.long
@pytest.mark.sweep(1)
@pytest.mark.parametrize("classes", [5, 40])
def test_a_confident_class_that_is_not_the_first_atom(classes):
    """Null atoms, repeated ones and a dense part: where the mass is decides, not which atom is listed or heaviest."""
    z = jnp.zeros((2, classes)).at[:, 3].set(30.0)
    tail = (classes - 1) * np.exp(-30.0)
    one_hot = mx.Categorical(probs=jnp.zeros((2, classes)).at[:, 3].set(1.0))
    weight = jnp.array([0.5, 0.0])
    targets = {
        "null": weight * mx.Dirac(jnp.array([3, -100])) + (1 - weight) * one_hot,
        "two": 0.25 * mx.Dirac(jnp.array([3, 3])) + 0.25 * mx.Dirac(jnp.array([3, 3])) + 0.5 * one_hot,
    }
    for name, P in targets.items():
        value, gradient = jax.value_and_grad(lambda z, P=P: mx.cross_entropy(P, mx.Categorical(z))[1])(z)
        np.testing.assert_allclose(value, np.log1p(tail), rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(gradient[1, 3], -tail, rtol=1e-5, err_msg=name)
    counts = mx.Discrete(jnp.full(4000, 3).at[0].set(1), jnp.ones(4000))
    np.testing.assert_allclose(mx.cross_entropy(counts, mx.Categorical(z[0])), 30 + 4000 * tail, rtol=1e-6)
    lopsided = mx.Discrete(jnp.array([1, 3]), jnp.array([1e-9, 1.0]))
    np.testing.assert_allclose(mx.cross_entropy(lopsided, mx.Categorical(z[0])), 30e-9 + tail, rtol=1e-5)


@pytest.mark.parametrize("case", ["far below", "forbidden", "light", "undefined"])
def test_rows_that_the_label_s_logit_cannot_stand_for(case):
    """Of 40 classes, one row whose sum overflows, or whose mass is elsewhere, takes all rows relative to their maximum."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 40)).astype(np.float32)
    y = np.array([1, 5, 7])
    z[1, 5] = {"far below": -200.0, "forbidden": -np.inf, "light": 0.0, "undefined": np.nan}[case]
    P, dense = mx.Dirac(jnp.asarray(y)), 1.0 * (y[:, None] == np.arange(40))
    if case == "light":
        z[1, 9] = 25.0
        P = mx.Discrete(
            jnp.stack([jnp.asarray(y), jnp.full(3, 9)], -1), jnp.array([0.5, 0.5])
        ) + 4.0 * mx.DiscreteUniform(40)
        dense = 0.5 * (y[:, None] == np.arange(40)) + 0.5 * (np.arange(40) == 9) + 4.0 / 40
    exact_z = z.astype(np.float64)
    log_p = exact_z - np.log(np.exp(exact_z - exact_z.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_p -= exact_z.max(-1, keepdims=True)
    expected = np.where(dense == 0, 0, -dense * log_p).sum(-1)
    slope = dense.sum(-1, keepdims=True) * np.exp(log_p) - dense
    function = lambda z: mx.cross_entropy(P, mx.Categorical(z))
    value, gradient = jax.jit(lambda z: (function(z), jax.grad(lambda z: function(z).sum())(z)))(jnp.asarray(z))
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.slow("rows against mpmath")
@sweep("producer", ["softcap", "divided", "sine", "normalised", "polynomial"])
@pytest.mark.parametrize("shape", [(3, 20), (24, 40), (40, 300)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_that_a_compiler_makes_again(producer, shape, dtype):
    """In several loops and not bit for bit alike: the mode, and a probability, do not hang on equality with a maximum."""
    f = {
        "softcap": lambda x: 30 * jnp.tanh(x / 30),
        "divided": lambda x: x / jnp.asarray(0.7, x.dtype),
        "sine": lambda x: 5 * jnp.sin(x),
        "normalised": lambda x: 9 * x / jnp.linalg.norm(x, axis=-1, keepdims=True),
        "polynomial": lambda x: 1.7 * x + 0.3 * x**3 / 16,
    }[producer]
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        x, y = jnp.asarray(4 * rng.normal(size=shape), dtype), jnp.asarray(rng.integers(shape[1], size=shape[0]))
        c = jnp.asarray(rng.normal(size=shape[0]), jnp.promote_types(dtype, jnp.float32))
        integrands = lambda Q: (-mx.log(Q), mx.correct(Q), mx.confidence(Q), mx.entropy(Q), mx.log_partition(Q))
        figures = jax.jit(lambda x: mx.Dirac(y).expect(integrands(mx.Categorical(f(x)))))
        got, (gradient,) = figures(x), jax.jit(lambda x: jax.vjp(lambda x: figures(x)[2], x)[1](c))(x)
        z = np.asarray(f(x), np.float64)  # eagerly, operation by operation: within an ulp of what each loop makes
        lse = np.log(np.exp(z).sum(-1))
        p = np.exp(z - lse[:, None])
        rows = np.arange(len(z))
        expected = lse - z[rows, y], z.argmax(-1) == np.asarray(y), p.max(-1), -(p * np.log(p)).sum(-1), lse
        # Each loop's logits are rounded in a few operations, and an error of a logit is one of its probability's exponent.
        ulps = (10 + 4 * np.abs(z).max()) * float(jnp.finfo(dtype).eps)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=ulps, atol=ulps)
        # d max p = max p · (δ_mode − p) · dz, through the producer in float64
        direction = (c[:, None] * p.max(-1, keepdims=True)) * (np.eye(shape[1])[z.argmax(-1)] - p)
    with jax.enable_x64(True):
        (slope,) = jax.vjp(f, jnp.asarray(x, jnp.float64))[1](jnp.asarray(direction, jnp.float64))
    np.testing.assert_allclose(np.asarray(gradient, float), slope, atol=ulps * np.abs(slope).max())


@pytest.mark.sweep(1)
@sweep("dtype", ["float32", "bfloat16"], cost=0.34)
@sweep("kind", ["labels", "dense", "mode"])
def test_a_few_rows_at_the_edge_among_many(kind, dtype):
    """Rows of infinities, NaN and nothing but −inf do not touch the others, whatever pass they all then take."""
    rng = np.random.default_rng(1)
    n, classes = 70, 1001
    z, y, target = rng.normal(size=(n, classes)), rng.integers(classes, size=n), rng.dirichlet(np.ones(classes), size=n)
    z[3, :500], z[5], z[7, [4, 9]], z[11, 2] = -np.inf, -np.inf, np.inf, np.nan
    target[3, :500] = 0
    y[3], y[7] = 700, 9
    z = jnp.asarray(z, dtype)
    P = mx.Categorical(probs=jnp.asarray(target, jnp.float32)) if kind == "dense" else mx.Dirac(jnp.asarray(y))
    loss = jax.jit(
        lambda z: P.expect((-mx.log(mx.Categorical(z)), *([mx.confidence(mx.Categorical(z))] * (kind == "mode"))))
    )
    plain = np.asarray(z, np.float64)
    with np.errstate(divide="ignore"):
        lse = np.log(np.nansum(np.exp(plain), -1))
    mass = np.asarray(P.probs, np.float64) if kind == "dense" else np.eye(classes)[y]
    with np.errstate(invalid="ignore"):
        expected = np.where(mass == 0, 0, mass * (lse[:, None] - plain)).sum(-1)
    expected[5], expected[7], expected[11] = np.inf, np.inf if kind == "dense" else np.log(2), np.nan
    np.testing.assert_allclose(loss(z)[0], expected, rtol=1e-5)
    gradient = np.asarray(jax.jit(jax.grad(lambda z: jnp.sum(loss(z)[0][np.array([0, 1, 3, 60])])))(z), np.float64)
    for row in (0, 1, 3, 60):
        p = np.exp(plain[row] - lse[row])
        np.testing.assert_allclose(
            gradient[row], mass[row].sum() * p - mass[row], atol=1e-6 if dtype == "float32" else 5e-3
        )


@pytest.mark.slow("rows against mpmath")
@sweep("producer", ["norm", "softcap", "centred"])
@pytest.mark.parametrize("classes", [20, 33, 300])
def test_confident_rows_of_logits_made_again(producer, classes):
    """A loss far below an ulp of the logits, of targets that are dense, atoms or entropies: the reference is 0 from itself."""
    f = {
        "norm": lambda a: 5 * a / jnp.sqrt(jnp.mean(a * a, -1, keepdims=True)),
        "softcap": lambda a: 40 * jnp.tanh(a / 40),
        "centred": lambda a: a - a.mean(-1, keepdims=True),
    }[producer]
    rng = np.random.default_rng(classes)
    a = jnp.asarray(rng.normal(size=(64, classes)) + 20 * np.eye(classes)[0], jnp.float32)
    onehot = jnp.zeros(classes).at[0].set(1)
    targets = (
        mx.Dirac(0),
        mx.Categorical(probs=onehot),
        mx.Categorical(probs=jnp.broadcast_to(onehot, a.shape)),
        mx.Discrete(jnp.arange(3), jnp.array([1.0, 0.0, 0.0])),
        0.5 * mx.Dirac(0) + 0.5 * mx.Categorical(probs=onehot),
    )
    losses = jax.jit(lambda a: [mx.cross_entropy(P, mx.Categorical(f(a))) for P in targets])(a)
    z = np.asarray(f(a), np.float64)
    gaps = z[:, :1] - z[:, 1:]
    loss = np.log1p(np.exp(-gaps).sum(-1))
    rtol = (5 + 4 * np.abs(z).max()) * float(jnp.finfo(jnp.float32).eps)  # each loop rounds its logits
    for got in losses:
        np.testing.assert_allclose(got, loss, rtol=rtol)
    entropy = loss + (np.exp(-gaps - loss[:, None]) * gaps).sum(-1)
    Q = lambda a: mx.Categorical(f(a))
    for got in jax.jit(lambda a: (mx.entropy(Q(a)), mx.Dirac(0).expect(mx.entropy(Q(a)))))(a):
        np.testing.assert_allclose(got, entropy, rtol=rtol)


@pytest.mark.long
@pytest.mark.sweep(1)
@pytest.mark.parametrize("classes", [3, 33])
def test_one_target_for_all_rows(classes):
    z = np.random.default_rng(0).normal(size=(2, 5, classes))
    lq = z - np.log(np.exp(z).sum(-1, keepdims=True))
    cases = (
        (mx.Dirac(2), lq[..., 2]),
        (mx.Dirac(jnp.array([[2]])), lq[..., 2]),
        (0.9 * mx.Dirac(1) + 0.1 * mx.DiscreteUniform(classes), 0.9 * lq[..., 1] + 0.1 * lq.mean(-1)),
        (mx.Discrete(jnp.array([2, 1]), jnp.array([0.3, 0.7])), 0.3 * lq[..., 2] + 0.7 * lq[..., 1]),
        (mx.Dirac(1) - 0.5 * mx.Dirac(2), lq[..., 1] - 0.5 * lq[..., 2]),
    )
    for P, expected in cases:
        Q = mx.Categorical(jnp.asarray(z, jnp.float32))
        np.testing.assert_allclose(jax.jit(mx.cross_entropy)(P, Q), -expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [5, 40, 1001])
def test_a_nan_anywhere_makes_all_of_its_row_nan(classes):
    """In the first, the last and the label's column, whatever a compiler's maximum makes of it."""
    columns, y = np.array([0, classes - 1, 3, 1, classes // 2]), np.full(5, 3)
    z = np.random.default_rng(0).normal(size=(5, classes)).astype(np.float32)
    z[np.arange(5), columns] = np.nan
    weights = jnp.array([1.0, 1.0, 1.0, 0.0, 1.0])
    loss = lambda z: (weights * mx.cross_entropy(weights * mx.Dirac(y), mx.Categorical(z))).sum()
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(z))
    assert np.isnan(value)
    np.testing.assert_array_equal(np.isnan(gradient), np.repeat(np.asarray(weights)[:, None] != 0, classes, axis=1))
    assert not np.asarray(gradient[3]).any()


@pytest.mark.parametrize(("shape", "classes"), [((257,), 40), ((7, 43), 3)])
def test_many_rows_in_an_odd_number(shape, classes):
    """Each row's own, whatever a few more are computed beside them."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(*shape, classes)).astype(np.float32), rng.integers(classes, size=shape)
    loss = lambda z: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z))
    values, gradients = jax.jit(lambda z: (loss(z), jax.grad(lambda z: loss(z).sum())(z)))(z)
    for index in np.ndindex(shape):
        expected, gradient = exact(z[index], y[index])
        np.testing.assert_allclose(values[index], expected, rtol=1e-5)
        np.testing.assert_allclose(gradients[index], gradient, rtol=1e-5, atol=1e-7)
