"""The names people know: optax's losses and torch's, value for value, but where those are NaN or wrong."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax.losses
import pytest

import measure_xent as mx
from measure_xent import losses

from .sweeps import sweep

rng = np.random.default_rng(0)
inf, nan = np.inf, np.nan

Z = rng.normal(size=(3, 4, 5)) * 3
SOFT = rng.dirichlet(np.ones(5), size=(3, 4))
HOT = np.eye(5)[rng.integers(5, size=(3, 4))]
LABELS = HOT.argmax(-1)
BINARY = rng.integers(2, size=Z.shape).astype(float)
WHERE = (rng.random(Z.shape) < 0.7) | (HOT == 1)
MASKED = SOFT * WHERE
LOG_Q = np.log(rng.dirichlet(np.ones(5), size=(3, 4)))
WITH_ZEROS = np.where(SOFT < 0.1, 0, SOFT)

# Where optax is right: a name, its positional arguments, its keywords.
SAME = {
    "one-hot": ("softmax_cross_entropy", (Z, HOT), {}),
    "soft": ("softmax_cross_entropy", (Z, SOFT), {}),
    "of any sum": ("softmax_cross_entropy", (Z, 3 * SOFT), {}),
    "broadcast": ("softmax_cross_entropy", (Z, SOFT[0, 0]), {}),
    "axis 0": ("softmax_cross_entropy", (Z, SOFT), {"axis": 0}),
    "two axes": ("softmax_cross_entropy", (Z, SOFT), {"axis": (0, 2)}),
    "all axes": ("softmax_cross_entropy", (Z, SOFT), {"axis": None}),
    "where": ("softmax_cross_entropy", (Z, MASKED), {"where": WHERE}),
    "rows": ("softmax_cross_entropy", (Z, SOFT), {"where": WHERE[..., 0]}),
    "safe": ("safe_softmax_cross_entropy", (Z, SOFT), {}),
    "labels": ("softmax_cross_entropy_with_integer_labels", (Z, LABELS), {}),
    "labels, axis 1": (
        "softmax_cross_entropy_with_integer_labels",
        (Z, LABELS[:, 0, None] % 4 + 0 * LABELS[:, :1]),
        {},
    ),
    "labels, flat": ("softmax_cross_entropy_with_integer_labels", (Z, np.array([3, 19, 0])), {"axis": (1, 2)}),
    "labels, flat, turned": (
        "softmax_cross_entropy_with_integer_labels",
        (Z, np.array([3, 14, 0, 7])),
        {"axis": (2, 0)},
    ),
    "labels, where": ("softmax_cross_entropy_with_integer_labels", (Z, LABELS), {"where": WHERE}),
    "sigmoid": ("sigmoid_binary_cross_entropy", (Z, BINARY), {}),
    "sigmoid, soft": ("sigmoid_binary_cross_entropy", (Z, SOFT), {}),
    "sigmoid, broadcast": ("sigmoid_binary_cross_entropy", (Z, BINARY[0, 0]), {}),
    "sigmoid, integers": ("sigmoid_binary_cross_entropy", (Z, BINARY.astype(int)), {}),
    "focal": ("sigmoid_focal_loss", (Z, BINARY), {}),
    "focal, alpha": ("sigmoid_focal_loss", (Z, BINARY), {"alpha": 0.25, "gamma": 0.5}),
    "focal, soft": ("sigmoid_focal_loss", (Z, SOFT), {"alpha": 0.7, "gamma": 3.0}),
    "poly": ("poly_loss_cross_entropy", (Z, SOFT), {}),
    "poly, axis": ("poly_loss_cross_entropy", (Z, SOFT), {"epsilon": -1.0, "axis": 1}),
    "poly, where": ("poly_loss_cross_entropy", (Z, MASKED), {"where": WHERE}),
    "kl": ("kl_divergence", (LOG_Q, SOFT), {}),
    "kl, not normalised": ("kl_divergence", (Z, 2 * SOFT), {}),
    "kl, zeros": ("kl_divergence", (LOG_Q, WITH_ZEROS), {"axis": 0}),
    "kl, where": ("kl_divergence", (LOG_Q, SOFT), {"where": WHERE}),
    "log targets": ("kl_divergence_with_log_targets", (LOG_Q, np.log(SOFT)), {}),
    "log targets, axis": ("kl_divergence_with_log_targets", (LOG_Q, Z), {"axis": (0, 1), "where": WHERE}),
    "generalized": ("generalized_kl_divergence", (Z, 2 * SOFT), {}),
    "generalized, where": ("generalized_kl_divergence", (Z, SOFT), {"axis": -1, "where": WHERE}),
    "smooth": ("smooth_labels", (SOFT, 0.1), {}),
    "smooth, axes": ("smooth_labels", (SOFT, 0.1), {"axis": (0, 2)}),
    "sparsemax": ("sparsemax_loss", (Z, BINARY.astype(int)), {}),
    "multiclass sparsemax": ("multiclass_sparsemax_loss", (Z[0], LABELS[0]), {}),
    "hinge": ("hinge_loss", (Z, 2 * BINARY - 1), {}),
    "multiclass hinge": ("multiclass_hinge_loss", (Z, LABELS), {}),
}
SAME["labels, axis 1"] = ("softmax_cross_entropy_with_integer_labels", (Z, rng.integers(4, size=(3, 5))), {"axis": 1})


@pytest.mark.long
@pytest.mark.sweep(0.34)
@sweep("case", SAME, cost=0.1)
def test_the_numbers_of_optax(case):
    name, (first, second), options = SAME[case]
    ours, theirs = getattr(losses, name), getattr(optax.losses, name)
    differentiable = (
        (0, 1) if jnp.issubdtype(np.asarray(second).dtype, np.floating) and name != "smooth_labels" else (0,)
    )
    with jax.enable_x64(True):
        arguments = (jnp.asarray(first), jnp.asarray(second))
        cotangent = rng.normal(size=jax.eval_shape(functools.partial(theirs, **options), *arguments).shape)

        def value_and_gradients(f):
            pairing = lambda *x: (jnp.vdot(value := f(*x, **options), cotangent), value)
            (_, value), gradients = jax.jit(jax.value_and_grad(pairing, differentiable, has_aux=True))(*arguments)
            return value, gradients

        (ours_value, of_ours), (value, of_optax) = map(value_and_gradients, (ours, theirs))
        np.testing.assert_allclose(ours_value, value, rtol=1e-12, atol=1e-13)
        for a, b in zip(of_ours, of_optax, strict=True):
            # In a target of 0 optax has no derivative, or leaves out 0 · log 0; that of the focal loss in one of 1 is not its
            # difference quotient's. All else is rounding in float64.
            inside = (np.asarray(second) != 0) & ((name != "sigmoid_focal_loss") | (np.asarray(second) != 1))
            finite = np.isfinite(b) & (inside if b.shape == inside.shape and b is not of_optax[0] else True)
            np.testing.assert_allclose(np.where(finite, a, 0), np.where(finite, b, 0), rtol=1e-11, atol=1e-12)
    single = [jnp.asarray(x, np.float32 if np.asarray(x).dtype == float else np.int32) for x in (first, second)]
    np.testing.assert_allclose(jax.jit(functools.partial(ours, **options))(*single), value, rtol=3e-6, atol=3e-6)


def test_every_loss_of_classification_is_here_with_its_signature():
    margins = {"ctc_loss", "ctc_loss_with_forward_probs"}
    module = inspect.getmodule(optax.losses.softmax_cross_entropy)
    public = {
        name
        for name, f in inspect.getmembers(module, inspect.isfunction)
        if f.__module__ == module.__name__ and hasattr(optax.losses, name) and not hasattr(f, "__wrapped__")
    }
    public |= {"smooth_labels", "make_fenchel_young_loss"} | margins
    assert len(public) > 15
    for name in public:
        ours, theirs = (inspect.signature(getattr(m, name)).parameters.values() for m in (losses, optax.losses))
        assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs], name
    assert set(losses.__all__) == public | {"cross_entropy_loss", "linear_cross_entropy"}


def test_fenchel_young_with_arguments():
    soft_maximum = lambda z, t=1.0: t * jax.nn.logsumexp(z / t)
    ours = losses.make_fenchel_young_loss(soft_maximum)
    z, p = jnp.asarray(Z, jnp.float32), jnp.asarray(SOFT, jnp.float32)
    np.testing.assert_allclose(ours(z, p), optax.losses.make_fenchel_young_loss(soft_maximum)(z, p), rtol=1e-5)
    # optax's takes no further numbers, which its vectorize would map over
    theirs = optax.losses.make_fenchel_young_loss(functools.partial(soft_maximum, t=2.0))(z, p)
    np.testing.assert_allclose(ours(z, p, 2.0), theirs, rtol=1e-5)
    np.testing.assert_allclose(ours(z, p, t=2.0), theirs, rtol=1e-5)


def value_and_jacobians(loss, z):
    return jax.jit(lambda z: (loss(z), jax.jacfwd(loss)(z), jax.jacrev(loss)(z)))(z)


@pytest.mark.slow("every loss at both ends")
def test_where_optax_is_nan():
    """−inf logits of classes without mass: values and both Jacobians are those without the class."""
    z, p = jnp.array([-inf, 0.3, 1.2]), jnp.array([0.0, 0.25, 0.75])
    for name in ("softmax_cross_entropy", "safe_softmax_cross_entropy", "poly_loss_cross_entropy"):
        loss = getattr(losses, name)
        ours = value_and_jacobians(lambda z, loss=loss: loss(z, p), z)
        expected = value_and_jacobians(lambda z, loss=loss: loss(z, p[1:]), z[1:])
        assert ours[1][0] == ours[2][0] == 0
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a[1:] if a.ndim else a, b, rtol=1e-6)
    log_q = jnp.array([-inf, np.log(0.5), np.log(0.5)])
    for loss in (losses.kl_divergence, losses.generalized_kl_divergence):
        for x in value_and_jacobians(lambda z, loss=loss: loss(z, p), log_q):
            assert np.isfinite(x).all()
    both = lambda z: losses.kl_divergence_with_log_targets(z, jnp.array([-inf, 0.0, -inf]))
    assert both(log_q) == pytest.approx(np.log(2))
    assert np.isfinite(jax.grad(both)(log_q)).all()
    edge = jnp.array([inf, -inf])
    np.testing.assert_array_equal(losses.sigmoid_binary_cross_entropy(edge, jnp.array([1.0, 0.0])), [0, 0])
    np.testing.assert_array_equal(losses.sigmoid_focal_loss(edge, jnp.array([1.0, 0.0])), [0, 0])


def test_where_optax_is_wrong():
    z = jnp.array([[1.0, 2.0, 3.0]] * 2)
    by_label = losses.softmax_cross_entropy_with_integer_labels
    for label in (-1, -100, 3):
        value, gradient = jax.value_and_grad(lambda z, label=label: by_label(z, jnp.array([0, label]))[1])(z)
        assert value == inf
        assert np.isnan(gradient[1]).all()
        np.testing.assert_array_equal(gradient[0], 0)
    # the label that where leaves out; the row that it leaves out
    where = jnp.array([[False, True, True], [False, False, False]])
    np.testing.assert_array_equal(by_label(z, jnp.array([0, 0]), where=where), [inf, 0])
    np.testing.assert_array_equal(jax.grad(lambda z: by_label(z, jnp.array([1, 0]), where=where).sum())(z)[1], 0)
    assert by_label(jnp.array([20.0, 0, 0]), 0) == pytest.approx(2 * np.exp(-20), rel=1e-6)
    half = by_label(z.astype(jnp.bfloat16), jnp.array([0, 1]))
    assert half.dtype == jnp.float32
    smooth = losses.smooth_labels(jnp.array([1.0, 0.0, 0.0]), 0.2, where=jnp.array([True, True, False]))
    np.testing.assert_allclose(smooth, [0.9, 0.1, 0.0], rtol=1e-6)


def test_bad_input():
    z = jnp.zeros((4, 3))
    with pytest.raises(TypeError, match="logits"):
        losses.softmax_cross_entropy(jnp.zeros((4, 3), complex), z)
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        losses.softmax_cross_entropy(z, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="axis"):
        losses.softmax_cross_entropy(z, z, axis=2)
    with pytest.raises(ValueError, match="where"):
        losses.softmax_cross_entropy(z, z, where=jnp.ones((2, 3), bool))
    with pytest.raises(TypeError, match="integers"):
        losses.softmax_cross_entropy_with_integer_labels(z, jnp.zeros(4))
    with pytest.raises(ValueError, match="median"):
        losses.cross_entropy_loss(z, jnp.zeros(4, int), reduction="median")
    with pytest.raises(ValueError, match=r"target.*\(4,\)"):
        losses.cross_entropy_loss(z, jnp.zeros(5, int))
    with pytest.raises(ValueError, match=r"weight.*\(3,\)"):
        losses.cross_entropy_loss(z, jnp.zeros(4, int), jnp.ones(4))
    with pytest.raises(ValueError, match="D = 2"):
        losses.linear_cross_entropy(z, jnp.zeros((5, 2)), jnp.zeros(4, int))


SHAPES = {"one": (5,), "rows": (6, 5), "sequence": (3, 5, 4), "image": (2, 5, 3, 2)}  # the classes where torch has them


def torch_case(shape, of_classes, weighed, ignored):
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    z = rng.normal(size=shape) * rng.choice([0.1, 3.0, 30.0])
    if of_classes:
        target = rng.integers(5, size=rows)
        if ignored:
            target = np.where(rng.random(rows) < rng.choice([0.3, 1.0]), ignored, target)
    else:
        target = np.moveaxis(rng.dirichlet(np.ones(5), size=rows), -1, min(1, len(shape) - 1))
    weight = rng.choice([0.0, 0.5, 1.0, 4.0], size=5) if weighed else None
    return z, target, weight


def agree(ours, theirs, counts):
    """Torch's number where it is one; 0 where torch has divided 0 by 0, of nothing that counts."""
    theirs = np.asarray(theirs)
    if not counts:
        assert (np.isnan(theirs) | (theirs == 0)).all()
        theirs = np.zeros_like(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


KINDS = [(shape, False) for shape in SHAPES] + [("rows", True)]  # torch's head takes rows


@sweep("reduction", ("mean", "sum", "none"), cost=0.2)
@sweep(("shape", "linear"), KINDS, cost=0.2)
def test_the_numbers_of_torch(shape, linear, reduction, request):
    """720 draws of options and data, values and gradients; 2400 with ``--examples 10``."""
    torch = pytest.importorskip("torch")
    F, draws = torch.nn.functional, 2 * request.config.getoption("--examples")
    with jax.enable_x64(True):

        @functools.partial(jax.jit, static_argnames="smoothing")
        def ours(z, W, target, weight, ignore, eps, cotangent, smoothing):
            def loss(z, W):
                options = dict(ignore_index=ignore, reduction=reduction, label_smoothing=eps if smoothing else 0.0)
                if linear:
                    values = losses.linear_cross_entropy(z, W, target, weight=weight, **options)
                else:
                    values = losses.cross_entropy_loss(z, target, weight, **options)
                return jnp.vdot(values, cotangent), values

            (_, values), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(z, W)
            return values, *gradients

        for of_classes, weighed, smoothing in itertools.product((True, False), (True, False), (True, False)):
            for _ in range(draws):
                ignored = int(rng.choice([-100, 0, 3, 77] if of_classes else [-100, -1]))  # torch rejects others
                z, target, weight = torch_case(SHAPES[shape], of_classes, weighed, ignored)
                W, eps = rng.normal(size=(5, 5)), float(rng.choice([0.05, 0.3, 1.0]))
                tz, tW = (torch.tensor(a, requires_grad=True) for a in (z, W))
                options = dict(
                    weight=None if weight is None else torch.tensor(weight),
                    ignore_index=ignored,
                    reduction=reduction,
                    label_smoothing=eps if smoothing else 0.0,
                )
                theirs = F.cross_entropy(tz @ tW.T if linear else tz, torch.tensor(target), **options)
                cotangent = rng.normal(size=tuple(theirs.shape))
                (theirs * torch.tensor(cotangent)).sum().backward()
                result = ours(z, W, target, weight, ignored, eps, cotangent, smoothing)
                mass = np.where(target == ignored, 0, 1 if weight is None else weight[target % 5]) if of_classes else 1
                counts = reduction != "mean" or np.sum(mass) > 0
                agree(result[0], theirs.detach(), counts)
                agree(result[1], tz.grad, counts)
                if linear:
                    agree(result[2], tW.grad, counts)


@pytest.mark.long
@sweep("reduction", ["mean", "sum", "none"])
def test_linear_is_the_dense_loss(reduction):
    hidden, W, b = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in ((2, 6, 4), (9, 4), (9,)))
    target = jnp.asarray(rng.integers(9, size=(2, 6))).at[0, 1].set(-100)
    options = dict(weight=jnp.arange(1.0, 10.0), label_smoothing=0.2)
    lazy = losses.linear_cross_entropy(hidden, W, target, linear_bias=b, reduction=reduction, **options)
    dense = losses.cross_entropy_loss(hidden @ W.T + b, target, reduction=reduction, axis=-1, **options)
    np.testing.assert_allclose(lazy, dense, rtol=1e-5)


@pytest.mark.slow("every loss, ours and theirs")
def test_ignored_rows_may_hold_anything():
    z = jnp.array([[1.0, 2.0], [nan, 3.0], [-inf, -inf]])
    loss = lambda z: losses.cross_entropy_loss(
        z, jnp.array([0, -100, -100]), jnp.array([2.0, 1.0]), label_smoothing=0.1
    )
    value, gradient = jax.value_and_grad(loss)(z)
    np.testing.assert_allclose(
        value, losses.cross_entropy_loss(z[:1], jnp.array([0]), jnp.array([2.0, 1.0]), label_smoothing=0.1)
    )
    np.testing.assert_array_equal(gradient[1:], 0)
    assert np.isfinite(gradient).all()
    all_ignored = lambda z: losses.cross_entropy_loss(z, jnp.full(3, -100))
    assert jax.value_and_grad(all_ignored)(z)[0] == 0


def test_labels_that_int32_does_not_hold_are_outside():
    """Nothing wraps: 2³² is no class 0."""
    labels = np.array([2**32, -(2**32), 2**40 + 1])
    losses_of = losses.softmax_cross_entropy_with_integer_labels(jnp.zeros((3, 3)), labels)
    assert (losses_of == jnp.inf).all()
    assert losses.cross_entropy_loss(jnp.zeros((3, 3)), labels) == jnp.inf
    assert (mx.cross_entropy(mx.Dirac(labels), mx.Categorical(jnp.zeros((3, 3)))) == jnp.inf).all()


@pytest.mark.slow("every loss, ours and theirs")
def test_no_rows_and_arrays_of_alpha():
    none = losses.softmax_cross_entropy(jnp.zeros((0, 3)), jnp.zeros((0, 3)))
    assert (
        none.shape
        == losses.softmax_cross_entropy_with_integer_labels(jnp.zeros((0, 3)), jnp.zeros(0, int)).shape
        == (0,)
    )
    z, y, alpha = jnp.asarray(rng.normal(size=(4, 2))), jnp.array([[0.0, 1.0]] * 4), jnp.array([0.2, 0.7])
    theirs = optax.losses.sigmoid_focal_loss(z, y, alpha=alpha)
    np.testing.assert_allclose(losses.sigmoid_focal_loss(z, y, alpha=alpha), theirs, rtol=1e-5)
    with pytest.raises(ValueError, match="twice"):
        losses.softmax_cross_entropy(z, z, axis=(1, -1))


@pytest.mark.slow("every loss, ours and theirs")
def test_the_focal_loss_of_infinite_logits():
    """The limits of finite ones: 0 and standing still for what came, the surprisal and its slope for what did not."""
    z, y, c = jnp.array([-jnp.inf, -jnp.inf, jnp.inf, jnp.inf]), jnp.array([0.0, 1.0, 0.0, 1.0]), jnp.arange(1.0, 5)
    loss = lambda z: losses.sigmoid_focal_loss(z, y, alpha=0.25, gamma=2.0)
    np.testing.assert_array_equal(loss(z), [0, jnp.inf, jnp.inf, 0])
    slopes = [0, -0.25, 0.75, 0]
    np.testing.assert_allclose(jax.jvp(loss, (z,), (c,))[1], c * jnp.array(slopes))
    np.testing.assert_allclose(jax.vjp(loss, z)[1](c)[0], c * jnp.array(slopes))
    far = jnp.array([-80.0, -80.0, 80.0, 80.0])
    np.testing.assert_allclose(jax.grad(lambda z: loss(z).sum())(far), slopes, atol=1e-6)


@pytest.mark.slow("every loss at both ends")
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_at_both_ends(gamma, label):
    """0⁰ = 1: of an exponent of 0 it is the cross-entropy, at infinite logits too; a weight alpha of 0 is nothing."""
    right, wrong = jnp.where(label == 1, jnp.inf, -jnp.inf), jnp.where(label == 1, -jnp.inf, jnp.inf)
    loss = jax.jit(jax.value_and_grad(lambda z: losses.sigmoid_focal_loss(z, label, gamma=gamma)))
    assert loss(right) == (0, 0)
    assert loss(wrong) == (jnp.inf, 1 - 2 * label)
    nothing = lambda z: losses.sigmoid_focal_loss(z, label, alpha=1 - label, gamma=gamma)
    assert jax.value_and_grad(nothing)(wrong) == (0, 0)
    if gamma == 0:
        z = jnp.array([-30.0, -1.0, 3.0, 90.0])
        np.testing.assert_allclose(
            losses.sigmoid_focal_loss(z, label, gamma=0.0), losses.sigmoid_binary_cross_entropy(z, label), rtol=1e-6
        )


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (), (3, 3), (4,), (2, 3)])
def test_integer_labels_are_one_a_row(shape):
    """More axes than the rows have would be a loss for each pair of label and row, in silence."""
    z, labels = jnp.zeros((3, 4)), jnp.zeros(shape, int)
    for loss in (losses.softmax_cross_entropy_with_integer_labels, losses.multiclass_sparsemax_loss):
        with pytest.raises(ValueError, match=r"one a row, of shape \(3,\)"):
            loss(z, labels)
    with pytest.raises(ValueError, match="target"):
        losses.cross_entropy_loss(z, labels)
    assert losses.softmax_cross_entropy_with_integer_labels(z, jnp.zeros(1, int)).shape == (
        3,
    )  # broadcasts, as optax's


@pytest.mark.slow("every loss, ours and theirs")
def test_no_classes():
    """An axis without elements has no mass: 0, as a sum over nothing; but a label is outside of it."""
    z = jnp.zeros((3, 0))
    for name in (
        "softmax_cross_entropy",
        "safe_softmax_cross_entropy",
        "poly_loss_cross_entropy",
        "kl_divergence",
        "kl_divergence_with_log_targets",
        "generalized_kl_divergence",
    ):
        np.testing.assert_array_equal(getattr(losses, name)(z, z), np.zeros(3))
        assert jax.grad(lambda z, name=name: getattr(losses, name)(z, z).sum())(z).shape == (3, 0)
    np.testing.assert_array_equal(losses.softmax_cross_entropy(z, z, axis=0), np.zeros(0))
    np.testing.assert_array_equal(losses.kl_divergence(jnp.zeros((0, 2)), jnp.zeros((0, 2)), axis=0), np.zeros(2))
    by_label = losses.softmax_cross_entropy_with_integer_labels
    np.testing.assert_array_equal(by_label(z, jnp.zeros(3, int)), np.full(3, inf))
    np.testing.assert_array_equal(by_label(z, jnp.zeros(3, int), where=jnp.zeros((3, 0), bool)), np.zeros(3))


def as_confident(z, t):
    """∂/∂z of the cross-entropy of softmax(t) under softmax(z), in 50 digits."""
    with mpmath.workdps(50):
        p, q = ([mpmath.exp(float(x)) for x in row] for row in (t, z))
        return np.array([float(b / sum(q) - a / sum(p)) for a, b in zip(p, q, strict=True)])


@pytest.mark.slow("every loss, ours and theirs")
def test_dense_targets_as_confident_as_the_model():
    """The gradient at the sure class is minus the sum of the others', to relative accuracy: entropies, teachers, KL."""
    z, t = np.float32([0, -20, -30]), np.float32([0, -21, -25])
    with mpmath.workdps(50):
        weights = [mpmath.exp(float(x)) for x in z]
        p = [w / sum(weights) for w in weights]
        H = -sum(x * mpmath.log(x) for x in p)
        expected = [float(-x * (mpmath.log(x) + H)) for x in p]
    assert expected[0] == pytest.approx(-4.1226e-8, rel=1e-4)
    gradient = jax.jit(jax.grad(lambda z: mx.entropy(mx.Categorical(z))))(z)
    np.testing.assert_allclose(gradient, expected, rtol=3e-6)
    soft = jnp.exp(mx.log(mx.Categorical(t))(jnp.arange(3)))
    for P in (mx.Categorical(t), mx.Discrete(weights=soft), 0.5 * mx.Categorical(t) + 0.5 * mx.Discrete(weights=soft)):
        gradient = jax.jit(jax.grad(lambda z, P=P: mx.cross_entropy(P, mx.Categorical(z))))(z)
        np.testing.assert_allclose(gradient, as_confident(z, t), rtol=3e-6)
        gradient = jax.jit(jax.grad(lambda z, P=P: mx.kl_divergence(P, mx.Categorical(z))))(z)
        np.testing.assert_allclose(gradient, as_confident(z, t), rtol=3e-6)
