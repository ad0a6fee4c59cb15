"""Scaled exponentials, the head's schedule on accelerators: each platform's program runs here, and so does its second try.

The oracle is float64: the same loss on all the logits, differentiated by JAX.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as S

import measure_xent as mx
from measure_xent import log, log_partition
from measure_xent._kernels import exponentials, head_function, summand

from .sweeps import sweep

# Two platforms and two tries make four cases of each, all alike.
pytestmark = [pytest.mark.usefixtures("platform", "attempt"), pytest.mark.sweep(1)]
N, D, V = 21, 6, 307
rng = np.random.default_rng(11)


@pytest.fixture(params=["tpu", "default"])
def platform(request, monkeypatch):
    """The program of that platform."""
    name = request.param
    monkeypatch.setattr(head_function, "_on_platform", lambda f, sizes, *operands: f(name, sizes[name], *operands))


@pytest.fixture(params=["first", "second"])
def attempt(request, monkeypatch):
    """The reference of the first try, or every block made again."""
    if request.param == "second":
        monkeypatch.setattr(exponentials, "LARGEST", -1e3)


def arrays(dtype, scale=1.0, bias_scale=1.0):
    hidden, weight = rng.normal(size=(N, D)), scale * rng.normal(size=(D, V))
    return [jnp.asarray(x, dtype) for x in (hidden, weight, bias_scale * rng.normal(size=V))]


def cross_entropy(z, target):
    """H(target, softmax(z)) with 0 · ∞ = 0."""
    log_q = jax.nn.log_softmax(z)
    return -jnp.sum(jnp.where(target == 0, 0, target * jnp.where(target == 0, 0, log_q)), axis=-1)


def check(ours, exact, operands, tolerance):
    """Value and gradients of both, relative to the largest entry of each gradient."""
    numbers = tuple(range(len(operands)))
    got = jax.jit(jax.value_and_grad(ours, numbers))(*operands)
    alone = jax.jit(ours)(*operands)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in operands]
        value, gradients = jax.jit(jax.value_and_grad(exact, numbers))(*wide)
    of_value = tolerance if tolerance < 1e-4 else 2e-5  # the loss is float32's, whatever the operands are
    np.testing.assert_allclose(got[0], value, rtol=of_value)
    np.testing.assert_allclose(alone, value, rtol=of_value)
    for a, b in zip(got[1], gradients, strict=True):
        assert a.dtype == operands[0].dtype
        largest = np.max(np.abs(np.where(np.isfinite(b), b, 0)))
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=tolerance, atol=tolerance * largest)


def hot(y):
    return jax.nn.one_hot(y, V)


LABELS, OTHERS = rng.integers(V, size=N), rng.integers(V, size=N)
OTHERS[3] = LABELS[3]  # two atoms of one class
MASK = np.where(np.arange(N) % 5 == 2, 0, rng.uniform(0.5, 1.5, size=N)).astype(np.float32)
TOP = np.stack([rng.permutation(V)[:6] for _ in range(N)])
MASSES = rng.dirichlet(np.ones(6), size=N).astype(np.float32)
TARGETS = {
    "labels": (lambda: mx.Dirac(LABELS), lambda: hot(LABELS)),
    "smoothed": (
        lambda: 0.9 * mx.Dirac(LABELS) + 0.1 * mx.DiscreteUniform(V),
        lambda: 0.9 * hot(LABELS) + 0.1 / V,
    ),
    "two": (lambda: 0.6 * mx.Dirac(LABELS) + 0.4 * mx.Dirac(OTHERS), lambda: 0.6 * hot(LABELS) + 0.4 * hot(OTHERS)),
    "top": (
        lambda: mx.Discrete(jnp.asarray(TOP), jnp.asarray(MASSES)),
        lambda: (MASSES[..., None] * (TOP[..., None] == np.arange(V))).sum(1),
    ),
    "nothing but a background": (lambda: 2.0 * mx.DiscreteUniform(V), lambda: jnp.full((N, V), 2 / V)),
}
TOLERANCE = {
    jnp.float32: 3e-5,
    jnp.bfloat16: 2e-2,
}  # of a gradient: sums of float32 products; bfloat16's 2⁻⁸ three times


@sweep("target", TARGETS, 12)
@sweep("dtype", TOLERANCE)
@sweep("class_axis", [0, 1])
@sweep("size", [None, 8])
def test_targets(target, dtype, class_axis, size):
    """Value and every gradient of Σ wᵢ (H(Pᵢ, Q) + z-loss), rows of weight 0 over NaN among them, in one block and in three."""
    measure, dense = TARGETS[target]
    operands = arrays(dtype)

    def ours(h, w, b):
        Q = mx.LinearSoftmax(w if class_axis else w.T, b, class_axis=class_axis, batch_size=size)
        h = jnp.where(jnp.asarray(MASK)[:, None] == 0, jnp.nan, h)
        P = mx.joint(mx.Atoms(h, weights=MASK), measure())
        return -2.5 * P.expect(log(Q) - 1e-2 * log_partition(Q) ** 2)

    def exact(h, w, b):
        z, target = h @ w + b, dense()
        each = cross_entropy(z, target) + 1e-2 * target.sum(-1) * jax.nn.logsumexp(z, -1) ** 2
        return 2.5 * jnp.sum(MASK * each)

    check(ours, exact, operands, TOLERANCE[dtype])


@sweep("target", TARGETS, 12)
@sweep("dtype", TOLERANCE)
@sweep("class_axis", [0, 1])
@sweep("size", [None, 8])
@sweep("kept", [0, 1 << 20])
def test_a_loss_a_row(target, dtype, class_axis, size, kept):
    """Each row's, times a number that comes later; rows that are left out of it hold NaN, and their gradient is 0."""
    measure, dense = TARGETS[target]
    operands = arrays(dtype)

    def ours(h, w, b):
        h = jnp.where(jnp.asarray(MASK)[:, None] == 0, jnp.nan, h)
        options = dict(class_axis=class_axis, batch_size=size, residual_bytes=kept)
        q = mx.LinearSoftmax(w if class_axis else w.T, b, **options)(h)
        each = 0.1 * q.log_partition - measure().expect(log(q))
        return 2.5 * jnp.sum(jnp.where(MASK == 0, 0, MASK * each))

    def exact(h, w, b):
        z = h @ w + b
        return 2.5 * jnp.sum(MASK * (0.1 * jax.nn.logsumexp(z, -1) + cross_entropy(z, dense())))

    check(ours, exact, operands, TOLERANCE[dtype])


@sweep("target", [name for name in TARGETS if name != "top"], 4)
@sweep("dtype", TOLERANCE)
@sweep("size", [None, 8])
def test_accuracy_beside_the_loss(target, dtype, size):
    """The same loss and gradients, and the mass at the first of the largest logits."""
    measure, dense = TARGETS[target]
    operands = arrays(dtype)
    # Largest logits that are the label's alone, that it shares with one before and with one after, and that it has not.
    bias = np.zeros(V, np.float32)
    bias[[7, 40, 300]] = 9, 9, 8
    hidden = operands[0].at[:4].set(0)
    labels = jnp.asarray(LABELS).at[:4].set(jnp.asarray([7, 40, 300, -1]))

    def of(h, w, b):
        h = jnp.where(jnp.asarray(MASK)[:, None] == 0, jnp.nan, h)
        at = mx.Dirac(labels) if target == "labels" else measure()
        P = mx.joint(mx.Atoms(h, weights=jnp.asarray(MASK).at[3].set(0)), at)
        f = P.expect({"loss": -log(Q := mx.LinearSoftmax(w, b, batch_size=size)), "accuracy": mx.correct(Q)})
        return f["loss"] + 3 * f["accuracy"]

    def exact(h, w, b):
        z, masses = h @ w + b, hot(labels) if target == "labels" else dense()
        first = jnp.argmax(z, axis=-1)
        weights = jnp.asarray(MASK).at[3].set(0)
        right = jnp.sum(weights * masses[jnp.arange(N), first])
        return jnp.sum(weights * cross_entropy(z, masses)) + 3 * right

    operands = [hidden, operands[1], jnp.asarray(bias, dtype)]
    check(of, exact, operands, TOLERANCE[dtype])


@sweep("wanted", [(0, 1), (0, 1, 2), (0, 1, 3)], 3)
def test_softcap(wanted):
    """Bounded logits, a gradient in the bound itself among them."""
    operands = [*arrays(jnp.float32), jnp.float32(3.0)]
    fixed = lambda f: lambda *moving: f(*(moving[wanted.index(i)] if i in wanted else operands[i] for i in range(4)))

    def ours(h, w, b, cap):
        return mx.cross_entropy(mx.Atoms((h, LABELS), weights=MASK), mx.LinearSoftmax(w, b, cap))

    def exact(h, w, b, cap):
        z = cap * jnp.tanh((h @ w + b) / cap)
        return jnp.sum(MASK * cross_entropy(z, hot(LABELS)))

    with jax.enable_x64(True):
        operands = [np.asarray(x) for x in operands]
    check(fixed(ours), fixed(exact), [jnp.asarray(operands[i]) for i in wanted], 3e-5)


@sweep("above", [0.0, 20.0, 88.0, 200.0, 1e4], 8)
@sweep("dtype", TOLERANCE)
def test_logits_far_above_the_label(above, dtype):
    """And far above, or below, the classes that the reference is taken of; the label itself far above, too."""
    h, w, b = arrays(dtype)
    b = b.at[5].set(above).at[V - 1].set(-above).at[V // 2].set(above / 2)
    labels = np.where(np.arange(N) < 7, 5, np.where(np.arange(N) < 14, V - 1, V // 2))
    ours = lambda h, w, b: mx.cross_entropy(mx.Empirical((h, labels), weights=MASK), mx.LinearSoftmax(w, b))
    exact = lambda h, w, b: jnp.sum(MASK * cross_entropy(h @ w + b, hot(labels))) / MASK.sum()
    check(ours, exact, (h, w, b), TOLERANCE[dtype])


@pytest.mark.long
def test_confident_rows():
    """Relative accuracy of losses of e⁻²⁰ and e⁻⁸⁰, and gradients of a row that sum to 0."""
    bias = jnp.zeros(V)
    for label in (0, V // 2):
        for logit in (20.0, 80.0):
            b = bias.at[label].set(logit)
            loss = lambda b, label=label: mx.cross_entropy(
                mx.Empirical((jnp.zeros((3, D)), jnp.full(3, label))), mx.LinearSoftmax(jnp.zeros((D, V)), b)
            )
            value, gradient = jax.jit(jax.value_and_grad(loss))(b)
            expected = np.log1p((V - 1) * np.exp(-np.float64(logit)))
            np.testing.assert_allclose(value, expected, rtol=1e-5)
            np.testing.assert_allclose(-gradient[label], np.delete(gradient, label).sum(), rtol=1e-5)
            np.testing.assert_allclose(-gradient[label], -np.expm1(-expected), rtol=1e-5)


def entropy(z):
    log_q = jax.nn.log_softmax(z)
    return -jnp.sum(jnp.exp(log_q) * jnp.where(log_q == -jnp.inf, 0, log_q), axis=-1)


@sweep("target", TARGETS, 8)
@sweep("dtype", TOLERANCE)
@sweep("size", [None, 8])
@sweep("how", ["mean", "pair", "each", "kept", "call"], 2)
def test_entropy_beside_the_loss(target, dtype, size, how):
    """Rows of weight 0 over NaN, a class that is forbidden, a confident row and one of equal logits among them."""
    measure, dense = TARGETS[target]
    h, w, b = arrays(dtype)
    h = h.at[0].multiply(20).at[1].set(0)
    forbidden = np.where(np.arange(V) == np.setdiff1d(np.arange(V), [*LABELS, *OTHERS, *TOP.ravel()])[0], -np.inf, 0)
    if target in ("smoothed", "nothing but a background"):
        forbidden[:] = 0

    def ours(h, w):
        h = jnp.where(jnp.asarray(MASK)[:, None] == 0, jnp.nan, h)
        Q = mx.LinearSoftmax(w, b + forbidden.astype(b.dtype), batch_size=size, residual_bytes=(how == "kept") << 20)
        P = mx.joint(mx.Atoms(h, weights=MASK), measure())
        if how == "mean":
            return P.expect(-log(Q) - 0.3 * mx.entropy(Q))
        if how == "pair":
            loss, bonus = P.expect((-log(Q), mx.entropy(Q)))
            return loss - 0.3 * bonus
        if how == "call":
            labels = mx.Atoms((h, jnp.asarray(LABELS)), weights=MASK)
            return labels.expect(lambda h, y: -log(Q)(h, y) - 0.3 * mx.entropy(Q)(h))
        each = -measure().expect(log(Q(h))) - 0.3 * measure().mass * mx.entropy(Q(h))
        return jnp.sum(jnp.where(MASK == 0, 0, MASK * each))

    def exact(h, w):
        z, masses = h @ w + np.asarray(b, np.float64) + forbidden, hot(LABELS) if how == "call" else dense()
        return jnp.sum(MASK * (cross_entropy(z, masses) - 0.3 * masses.sum(-1) * entropy(z)))

    check(ours, exact, (h, w), TOLERANCE[dtype])


@pytest.mark.long
def test_which_rows_are_right():
    """One row each: ties, −inf, NaN, labels out of range, a null measure; and the derivative in the row's weight."""
    h, none, out = jnp.zeros((1, D)), -jnp.inf, [-1, V]
    of_bias = {
        "ties": (jnp.zeros(V), [0, 1, V - 1, *out], [1, 0, 0, 0, 0]),
        "best": (jnp.zeros(V).at[5].set(100.0).at[9].set(100.0), [5, 9, 0], [1, 0, 0]),
        "forbidden": (jnp.zeros(V).at[0].set(none), [0, 1], [0, 1]),
        "NaN": (jnp.zeros(V).at[3].set(jnp.nan), [3, 0], [np.nan, np.nan]),
        "null measure": (jnp.full(V, none), [0, 1], [1, 0]),
    }
    right = lambda b, y, w: mx.Atoms((h, y[None]), weights=w[None]).expect(
        mx.correct(mx.LinearSoftmax(jnp.zeros((D, V)), b))
    )
    for name, (b, labels, expected) in of_bias.items():
        for y, is_right in zip(labels, expected, strict=True):
            value, slope = jax.jit(jax.value_and_grad(right, 2))(b, jnp.asarray(y), jnp.float32(2))
            np.testing.assert_array_equal(np.stack([value, slope]), [2.0 * is_right, is_right], err_msg=f"{name}, {y}")


@pytest.mark.long
def test_entropy_of_degenerate_rows():
    """0 of a null measure, of one class and of one that has all the mass; NaN of NaN."""
    zeros, nothing = jnp.zeros(V), jnp.full(V, -jnp.inf)
    of_bias = {"null": (nothing, 0), "one": (nothing.at[5].set(0.0), 0), "all": (zeros.at[3].set(jnp.inf), 0)}
    of_bias |= {"NaN": (zeros.at[2].set(jnp.nan), np.nan), "equal": (zeros, np.log(V))}
    head = lambda b: mx.LinearSoftmax(jnp.zeros((D, V)), b)
    alone = jax.jit(lambda b: mx.entropy(head(b)(jnp.zeros((2, D)))))
    mean = jax.jit(lambda b: mx.Empirical((jnp.zeros((2, D)), jnp.array([3, 5]))).expect(mx.entropy(head(b))))
    for name, (b, expected) in of_bias.items():
        np.testing.assert_allclose(alone(b), [expected] * 2, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(mean(b), expected, rtol=1e-6, err_msg=name)


@pytest.mark.long
def test_infinite_logits():
    """−inf forbids a class: +inf if it is the label, with a finite gradient; +inf takes all the mass."""
    h, w, b = arrays(jnp.float32)
    loss = lambda h, w, b, y: mx.cross_entropy(mx.Atoms((h, y)), mx.LinearSoftmax(w, b))
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    labels = jnp.asarray(LABELS)
    forbidden = b.at[LABELS[4]].set(-jnp.inf)
    value, gradients = gradient(h, w, forbidden, labels)
    assert value == jnp.inf
    z = np.asarray(h, np.float64) @ np.asarray(w, np.float64) + np.asarray(forbidden, np.float64)
    z -= z.max(-1, keepdims=True)
    residual = np.exp(z) / np.exp(z).sum(-1, keepdims=True) - np.asarray(hot(LABELS))
    np.testing.assert_allclose(gradients[0], residual @ np.asarray(w, np.float64).T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients[2], residual.sum(0), rtol=1e-4, atol=1e-4)
    value, gradients = gradient(h, w, b.at[7].set(jnp.inf), jnp.full(N, 7))
    assert value == 0
    np.testing.assert_array_equal(gradients[2], 0)
    assert gradient(h, w, b.at[7].set(jnp.inf), jnp.full(N, 8))[0] == jnp.inf
    value, gradients = gradient(h, w, jnp.full(V, -jnp.inf), labels)
    assert value == jnp.inf
    np.testing.assert_allclose(gradients[2], -np.bincount(LABELS, minlength=V), rtol=1e-6)  # the null measure: p is 0
    assert jnp.isnan(gradient(h.at[2, 0].set(jnp.nan), w, b, labels)[0])


def test_labels_out_of_range():
    """+inf and a gradient that is not a number, unless the weight is 0."""
    h, w, b = arrays(jnp.float32)
    loss = lambda h, w, b, y, m: mx.cross_entropy(mx.Empirical((h, y), weights=m), mx.LinearSoftmax(w, b))
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    for label in (-1, V, -100):
        y, mask = jnp.asarray(LABELS).at[4].set(label), jnp.ones(N)
        value, gradients = gradient(h, w, b, y, mask)
        assert value == jnp.inf
        assert np.isnan(gradients[0][4]).all()
        assert np.isfinite(np.delete(gradients[0], 4, axis=0)).all()
        assert np.isnan(gradients[1]).all()
        value, gradients = gradient(h, w, b, y, mask.at[4].set(0))
        keep = np.delete(np.arange(N), 4)
        np.testing.assert_allclose(value, gradient(h[keep], w, b, y[keep], mask[keep])[0], rtol=1e-6)
        assert all(np.isfinite(g).all() for g in gradients)
    value, gradients = gradient(h, w, b, y, jnp.zeros(N))  # nothing counts
    assert value == 0
    assert all((g == 0).all() for g in gradients)


def test_a_difference_of_logits():
    """A function whose gradient has no share of the softmax: log q at two classes, apart."""
    operands = arrays(jnp.float32)
    ours = lambda h, w, b: mx.joint(mx.Atoms(h), mx.Dirac(LABELS) - 1.0 * mx.Dirac(OTHERS)).expect(
        log(mx.LinearSoftmax(w, b))
    )

    def exact(h, w, b):
        z = h @ w + b
        return jnp.sum(z[np.arange(N), LABELS] - z[np.arange(N), OTHERS])

    check(ours, exact, operands, 3e-5)


@pytest.mark.slow("compiles derivatives of derivatives")
@pytest.mark.parametrize("label", [3, V // 2])
def test_further_derivatives_and_weights(label):
    """A jvp of the gradient, gradients in the rows' and the atoms' weights, a family under vmap: as on other platforms."""
    h, w, b = arrays(jnp.float32)
    y = jnp.full(N, label)

    def ours(h, w, b, m, c):
        return mx.cross_entropy(mx.joint(mx.Atoms(h, weights=m), c * mx.Dirac(y)), mx.LinearSoftmax(w, b, batch_size=8))

    def exact(h, w, b, m, c):
        z = h @ w + b
        return jnp.sum(m * c * (jax.nn.logsumexp(z, -1) - z[:, label]))

    primals = h, w, b, jnp.asarray(MASK), jnp.asarray(rng.uniform(0.5, 1, N), jnp.float32)
    tangents = tuple(jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in primals)

    def derivatives(f):
        gradient = jax.grad(f, range(5))
        stacked = [jnp.stack([x, x + 0.25]) for x in primals]
        return lambda: (
            jax.jvp(gradient, primals, tangents),
            jax.vmap(jax.value_and_grad(f, range(5)))(*stacked),
            jax.grad(jax.checkpoint(f), 1)(*primals),
        )

    got, expected = jax.jit(derivatives(ours))(), jax.jit(derivatives(exact))()
    for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4 * float(jnp.abs(e).max()))


@pytest.mark.slow("compiles derivatives of derivatives")
@pytest.mark.parametrize("axis", ["rows", "a head each", "one row's targets"])
@sweep("kept", [0, 1 << 20])
def test_every_derivative_of_a_loss_a_row(axis, kept):
    """Both modes, each over the other, in batches before and after, scanned, linearised: against JAX's own in float64."""
    h, w, b = arrays(jnp.float32)
    y, c = jnp.asarray(LABELS), jnp.asarray(rng.normal(size=N), jnp.float32)
    t = tuple(jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in (h, w, b))
    axes = {
        "rows": (0, None, None, 0, 0),
        "a head each": (0, 0, 0, None, 0),
        "one row's targets": (None, None, None, 0, 0),
    }[axis]
    ours = lambda h, w, b, y: mx.cross_entropy(mx.Dirac(y), mx.LinearSoftmax(w, b, batch_size=8)(h))
    exact = lambda h, w, b, y: jax.nn.logsumexp(z := h @ w + b, -1) - jnp.take_along_axis(z, y[..., None], -1)[..., 0]

    def derivatives(each):
        def run(h, w, b, c, t):
            loss = lambda h, w, b: jnp.sum(c * each(h, w, b, y) ** 2)
            gradient = jax.grad(loss, (0, 1, 2))
            stacked = [
                x if axis is None else jnp.stack([x, x[::-1]]) for x, axis in zip((h, w, b, y, c), axes, strict=True)
            ]
            total = lambda h, w, b, y, c: jnp.sum(c * each(h, w, b, y) ** 2)
            together = lambda h, w, b: jnp.sum(jax.vmap(total, axes)(h, w, b, *stacked[3:]))
            one = lambda carry, x: (carry + jnp.sum(each(*x) ** 2), None)
            scanned = lambda w: jax.lax.scan(
                one, 0.0, (h[:4, None], jnp.stack([w] * 4), jnp.stack([b] * 4), y[:4, None])
            )
            return (
                jax.jvp(lambda *x: each(*x, y), (h, w, b), t),
                jax.jvp(gradient, (h, w, b), t),
                jax.grad(lambda *x: sum(jnp.sum(g**2) for g in gradient(*x)), (0, 1, 2))(h, w, b),
                jax.grad(lambda w: jax.jvp(lambda h: each(h, w, b, y), (h,), t[:1])[1] @ c)(w),
                jax.vmap(jax.grad(total, (0, 1, 2)), axes)(*stacked),
                jax.grad(together, (0, 1, 2))(*stacked[:3]),
                jax.grad(jax.checkpoint(loss), 1)(h, w, b),
                jax.grad(lambda w: scanned(w)[0])(w),
                jax.linearize(lambda w: each(h, w, b, y), w)[1](t[1]),
                jax.jacfwd(lambda b: each(h, w, b, y)[:2])(b),
            )

        return run

    got = jax.jit(derivatives(ours))(h, w, b, c, t)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), (h, w, b, c, t))
        expected = jax.tree.map(np.asarray, jax.jit(derivatives(exact))(*wide))
    for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4 * np.abs(e).max())


@pytest.mark.long
@sweep("kind", [AxisType.Auto, AxisType.Explicit], 1)
@sweep("axes", [("data", None), ("data", "model"), (None, ("data", "model"))])
def test_on_a_mesh(kind, axes):
    """Rows, classes or both over eight devices: a label on one of them, its row's sums over all."""
    over_rows, over_classes = axes
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    h, w = jnp.asarray(rng.normal(size=(24, D)), jnp.float32), jnp.asarray(rng.normal(size=(D, 304)), jnp.float32)
    b, y = jnp.asarray(rng.normal(size=304), jnp.float32).at[5].set(70.0), jnp.asarray(rng.integers(304, size=24))
    specs = S(over_rows), S(None, over_classes), S(over_classes), S(over_rows)
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip((h, w, b, y), specs, strict=True)]
    ours = lambda h, w, b, y: mx.cross_entropy(mx.Empirical((h, y)), mx.LinearSoftmax(w, b, batch_size=4))
    exact = lambda h, w, b, y: jnp.mean(jax.nn.logsumexp(z := h @ w + b, -1) - z[jnp.arange(24), y])
    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(*placed)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (h, w, b)]
        expected, slopes = jax.jit(jax.value_and_grad(exact, (0, 1, 2)))(*wide, np.asarray(y))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    right = jax.jit(lambda h, w, b, y: mx.Empirical((h, y)).expect(mx.correct(mx.LinearSoftmax(w, b, batch_size=4))))
    best = (h @ w + b).argmax(-1)
    for labels in (y, best):
        assert right(*placed[:3], jax.device_put(labels, placed[3].sharding)) == np.mean(labels == best)
    head = functools.partial(mx.LinearSoftmax, batch_size=4)
    each = lambda kept, h, w, b, y: jnp.mean(mx.cross_entropy(mx.Dirac(y), head(w, b, residual_bytes=kept)(h)))
    alone = [jax.jit(jax.grad(functools.partial(each, kept), (0, 1, 2)))(*placed) for kept in (0, 1 << 20)]
    for got, *others, exact in zip(gradients, *alone, slopes, strict=True):
        for x in (got, *others):
            np.testing.assert_allclose(x, exact, atol=3e-5 * np.abs(exact).max())
            assert x.sharding.is_equivalent_to(got.sharding, got.ndim)

    candidates = lambda y: jnp.stack([y, (y + 100) % 304, (y + 200) % 304])
    at = lambda h, w, b, y: jnp.sum(jnp.sin(head(w, b)(h).log_density(candidates(y))))
    dense = lambda h, w, b, y: jnp.sum(
        jnp.sin(jnp.take_along_axis(jax.nn.log_softmax(h @ w + b), candidates(y).T, axis=-1))
    )
    slopes = jax.grad(at, (0, 1, 2)), jax.grad(dense, (0, 1, 2))
    for got, exact in zip(jax.jit(slopes[0])(*placed), slopes[1](h, w, b, y), strict=True):
        np.testing.assert_allclose(got, exact, atol=1e-4 * np.abs(exact).max())


def test_it_is_what_runs(monkeypatch):
    """The schedule of accelerators, and in one precision that has too few exponents the other."""
    seen = []
    monkeypatch.setattr(summand, "exponentials", lambda *a, **k: seen.append(a) or exponentials.exponentials(*a, **k))
    h, w, _ = arrays(jnp.float32)
    loss = lambda h, w: mx.cross_entropy(mx.Empirical((h, LABELS)), mx.LinearSoftmax(w))
    right = lambda h, w: mx.Empirical((h, LABELS)).expect(mx.correct(mx.LinearSoftmax(w)))
    for f in (jax.grad(loss), right):
        jax.make_jaxpr(f)(h, w)
        assert seen
        seen.clear()
    jax.make_jaxpr(jax.grad(loss))(h.astype(jnp.float16), w.astype(jnp.float16))
    assert not seen
