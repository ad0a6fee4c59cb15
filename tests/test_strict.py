"""Under each of JAX's strict settings the package works, and a user's own functions see the setting."""

import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import measure_xent as mx
from measure_xent import log, losses

from .sweeps import sweep

SETTINGS = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "tracer leaks": jax.checking_leaks,
    "debug_nans": lambda: jax.debug_nans(True),
    "enable_checks": lambda: jax.enable_checks(True),
    "disable_jit": jax.disable_jit,
    "threefry": lambda: jax.threefry_partitionable(False),
    "matmul precision": lambda: jax.default_matmul_precision("float32"),
}

LOGITS, LABELS = np.array([[1.0, 2.0, -np.inf], [0.5, 0.0, 5.0]], np.float32), np.array([0, 2])
HIDDEN = np.array([[0.1, 0.2], [0.3, -0.1], [0.5, 0.4]], np.float32)
WEIGHT, BIAS, Y = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32), np.ones(3, np.float32), np.array([0, 1, 2])
CONDITIONAL = mx.Conditional(mx.Categorical)


def smoothed(y):
    return 0.9 * mx.Dirac(y) + 0.1 * mx.DiscreteUniform(3)


def head(P, dtype=jnp.float32):
    """The loss of a head and its gradients, compiled, as in training."""
    loss = lambda h, w: mx.cross_entropy(P(h), mx.LinearSoftmax(w, jnp.asarray(BIAS, dtype)))
    return jax.jit(jax.value_and_grad(loss, (0, 1)))(jnp.asarray(HIDDEN, dtype), jnp.asarray(WEIGHT, dtype))


def accumulated():
    """A step of two micro-batches of a half-precision model."""
    loss = lambda z, y: mx.Atoms(y).integrate(-log(mx.Categorical(z)))
    optimizer, z = mx.accumulate(optax.sgd(1.0), steps=2), jnp.zeros(3, jnp.bfloat16)
    state = optimizer.init(z)
    for y in (jnp.array([0, 1]), jnp.array([2])):
        update, state = optimizer.update(mx.value_and_grad(loss)(z, y)[1], state)
    return update


CALLS = {
    "optax's loss": lambda: losses.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS, where=LOGITS > -1),
    "softmax": lambda: jax.value_and_grad(lambda z: mx.cross_entropy(mx.Dirac(LABELS), mx.Categorical(z)).sum())(
        LOGITS
    ),
    "shared soft target": lambda: jax.jit(jax.grad(lambda z: losses.softmax_cross_entropy(z, np.eye(3)[1]).sum()))(
        LOGITS[:, :2].repeat(2, 1)[:, :3]
    ),
    "sigmoid": lambda: jax.grad(lambda z: losses.sigmoid_focal_loss(z, np.array([1.0, 0.0, 1.0])).sum())(
        jnp.array([1.0, -2.0, jnp.inf])
    ),
    "ignored rows": lambda: jax.grad(
        lambda z: (
            -mx.Empirical((z, np.array([0, -100])))
            .restrict(lambda _, y: y != -100)
            .normalize()
            .expect(log(CONDITIONAL))
        )
    )(LOGITS),
    "head": lambda: head(lambda h: mx.Empirical((h, Y))),
    "smoothed head in bfloat16": lambda: head(lambda h: mx.joint(mx.Empirical(h), smoothed(Y)), jnp.bfloat16),
    "family of heads": lambda: jax.grad(lambda w: mx.cross_entropy(smoothed(Y), mx.LinearSoftmax(w)(HIDDEN)).sum())(
        WEIGHT
    ),
    "quadrature": lambda: jax.grad(lambda s: mx.Normal(np.zeros(2), s).expect(lambda x: jnp.cos(x)).sum())(
        np.ones((2, 1))
    ),
    "a Gauss rule": lambda: mx.Normal(np.zeros(2), np.ones((3, 1))).expect(jnp.cos, method=mx.Quadrature(16)),
    "divergence of laws": lambda: mx.kl_divergence(mx.Normal(np.zeros(2), np.ones((3, 1))), mx.Laplace(0.0, 2.0)),
    **{
        divergence.__name__: lambda divergence=divergence: divergence(
            mx.Categorical(LOGITS[:1]), mx.Categorical(LOGITS[0])
        )
        for divergence in (mx.kl_divergence, mx.jensen_shannon, mx.total_variation, mx.hellinger)
    },
    "counts": lambda: mx.entropy(mx.Poisson(np.array([1.0, 3.0]))),
    "Monte Carlo": lambda: mx.Normal(np.zeros(2), 1.0).integrate(jnp.cos, method=mx.MonteCarlo(jax.random.key(0), 64)),
    "quasi-Monte Carlo": lambda: mx.MultivariateNormal(np.zeros(2), np.eye(2)).expect(
        lambda x: x @ x, method=mx.QuasiMonteCarlo(jax.random.key(0), 64)
    ),
    "scores": lambda: mx.Dirac(LABELS).expect((mx.brier(mx.Categorical(LOGITS)), mx.spherical(mx.Categorical(LOGITS)))),
    "accumulation": accumulated,
    "mutual information": lambda: mx.mutual_information(
        mx.joint(mx.DiscreteUniform(2), mx.Conditional(lambda x: mx.Bernoulli(probs=jnp.where(x == 1, 0.9, 0.1))))
    ),
}


@pytest.fixture(scope="module")
def expected():
    """What the calls give under JAX's defaults, each computed once."""
    known = {}
    return lambda name: known[name] if name in known else known.setdefault(name, CALLS[name]())


@pytest.mark.sweep(0.25)
@pytest.mark.sweep(0.05)  # of a case: most load what another compiled
@sweep("setting", SETTINGS, cost=0.1)
@sweep("name", CALLS)
def test_works_and_gives_the_same(name, setting, expected):
    if setting == "disable_jit" and name in ("quadrature", "divergence of laws"):
        pytest.skip("a loop of many rounds in Python")
    want = expected(name)
    with SETTINGS[setting]():
        got = CALLS[name]()
    # The points drawn are others without partitionable keys, and operations one by one round otherwise than compiled ones.
    if not (setting == "threefry" and "Monte Carlo" in name):
        jax.tree.map(close, got, want)


def close(got, want):
    rtol = 2e-2 if want.dtype == jnp.bfloat16 else 2e-5
    np.testing.assert_allclose(np.float32(got), np.float32(want), rtol=rtol, atol=2e-6)


def promotes(*x):
    """A function that is not careful: ranks and dtypes are promoted."""
    return jnp.sum(jnp.ones((2, 3)) * jnp.ones(3, jnp.bfloat16)) + sum(jnp.sum(jnp.asarray(a, float)) for a in x)


@mx.pytree
class Careless(mx.Integrand):
    c: float

    def __call__(self, *x):
        return self.c * promotes(*x)


class Module:
    """As those of other libraries: a pytree that is called."""

    def __call__(self, *x):
        return promotes(*x)


jax.tree_util.register_pytree_node(Module, lambda m: ((), None), lambda *_: Module())

USES = {
    "integrand": lambda f: mx.DiscreteUniform(3).expect(f),
    "quadrature": lambda f: mx.Normal(0.0, 1.0).expect(f),
    "module": lambda f: mx.Normal(0.0, 1.0).expect(Module()),
    "Integrand": lambda f: mx.DiscreteUniform(3).expect(Careless(1.0) + 2 * log(mx.DiscreteUniform(3))),
    "map": lambda f: mx.DiscreteUniform(3).expect(log(mx.DiscreteUniform(3)).map(f)),
    "predicate": lambda f: mx.DiscreteUniform(3).restrict(lambda y: f(y) > 0).mass,
    "density": lambda f: mx.DiscreteUniform(3).reweight(f).mass,
    "pushforward": lambda f: mx.pushforward(f, mx.DiscreteUniform(3)).expect(lambda y: y),
    "Conditional": lambda f: mx.Conditional(lambda x: mx.Normal(f(x), 1.0))(jnp.ones(())).loc,
    "family": lambda f: mx.score(lambda m: mx.Normal(f(m), 2.0), 0.0)(3.0),
    "loss": lambda f: (
        mx.value_and_grad(lambda z: mx.Atoms(jnp.array([0, 1])).integrate(lambda y: z * f(y)))(1.0)[0].value
    ),
    "generator": lambda f: mx.f_divergence(mx.Dirac(0), mx.Dirac(1), lambda t: f() * jnp.abs(t - 1) / 12),
    "derivative": lambda f: jax.grad(lambda s: mx.DiscreteUniform(3).expect(lambda y: s * f(y)))(1.0),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("setting", ["rank promotion", "dtype promotion"])
def test_users_functions_see_the_setting(use, setting):
    USES[use](promotes)
    settings = jax.config.jax_numpy_rank_promotion, jax.config.jax_numpy_dtype_promotion
    with SETTINGS[setting](), pytest.raises((ValueError, TypeError), match=r"rank_promotion|dtype_promotion"):
        USES[use](promotes)
    assert settings == (jax.config.jax_numpy_rank_promotion, jax.config.jax_numpy_dtype_promotion)
    USES[use](promotes)  # and nothing of it is left


def test_what_a_user_sets_inside_of_a_function_holds_there():
    def careful(y):
        with jax.numpy_rank_promotion("allow"):
            return mx.DiscreteUniform(3).expect(promotes) + promotes(y)

    with jax.numpy_rank_promotion("raise"):
        assert mx.DiscreteUniform(3).expect(careful) == 3 * 6 / 3 + 6 + 1 + 1


@pytest.mark.slow("runs without compiled programs")
@pytest.mark.parametrize("setting", ["rank promotion", "dtype promotion"])
def test_rules_of_derivatives_promote_where_jax_calls_them_later(setting):
    z = jnp.asarray(LOGITS[:, :2], jnp.bfloat16)
    target = smoothed(np.array([0, 1])).restrict(lambda y: y < 2)
    loss = lambda z: mx.cross_entropy(target, mx.Categorical(jnp.concatenate([z, z[:, :1]], 1))).sum()
    want = jax.hessian(loss)(z)
    compiled, transposed = jax.jit(loss), jax.vjp(loss, z)[1]
    with SETTINGS[setting]():
        got = jax.hessian(compiled)(z)
        transposed(jnp.ones(()))
    np.testing.assert_allclose(np.float32(got), np.float32(want), atol=2e-2)


def test_every_way_in_promotes():
    package = pathlib.Path(mx.__file__).parent
    for module in (mx, losses):
        for name in module.__all__:
            function = getattr(module, name)
            if isinstance(function, types.FunctionType) and function.__module__.startswith("measure_xent"):
                assert function.__code__.co_name == "promotes", name
    for path in package.rglob("*.py"):
        if path.name != "_strict.py":
            assert "jax.custom_" not in path.read_text().replace("jax.custom_derivatives.", "").replace(
                "jax.custom_batching.", ""
            ), f"{path}: rules of derivatives promote as those of _strict.custom_jvp do"


INF = jnp.inf


def other():
    return mx.Categorical(jnp.array([np.log(3.0), 0.0, -INF]))


MASKED = {
    # A class of probability 0, a row of none, an ignored row: (function of logits, its value).
    "entropy": (lambda z: mx.entropy(mx.Categorical(z)), np.log(2)),
    "kl": (
        lambda z: mx.kl_divergence(mx.Categorical(z), other()),
        np.log(4 / 3) / 2,
    ),
    "hellinger": (
        lambda z: mx.hellinger(mx.Categorical(z), other()),
        np.sqrt(1 - (np.sqrt(3 / 8) + np.sqrt(1 / 8))),
    ),
    "total variation": (
        lambda z: mx.total_variation(mx.Categorical(z), other()),
        0.25,
    ),
    "jensen_shannon": (
        lambda z: mx.jensen_shannon(mx.Categorical(z), other()),
        (np.log(0.5 / 0.625) / 2 + np.log(0.5 / 0.375) / 2 + 0.75 * np.log(0.75 / 0.625) + 0.25 * np.log(0.25 / 0.375))
        / 2,
    ),
    "soft target": (lambda z: losses.softmax_cross_entropy(z, jnp.array([0.5, 0.5, 0.0])), np.log(2)),
    "where": (
        lambda z: losses.softmax_cross_entropy_with_integer_labels(
            jnp.stack([z, z]), jnp.array([0, 1]), where=jnp.array([[True, True, False], [False, False, False]])
        ).sum(),
        np.log(2),
    ),
    "ignore_index": (lambda z: losses.cross_entropy_loss(jnp.stack([z, z]), jnp.array([0, -100])), np.log(2)),
    "restricted": (
        lambda z: (
            -mx.Empirical((jnp.stack([z, z]), jnp.array([0, -100])))
            .restrict(lambda _, y: y != -100)
            .normalize()
            .expect(log(CONDITIONAL))
        ),
        np.log(2),
    ),
    "no class": (lambda z: mx.entropy(mx.Categorical(jnp.where(True, -INF, z))), 0.0),
    "certain": (lambda z: mx.cross_entropy(mx.Dirac(0), mx.Categorical(z.at[0].set(INF))), 0.0),
    "sigmoid": (lambda z: losses.sigmoid_binary_cross_entropy(z, jnp.array([0.5, 0.5, 0.0])).sum(), 2 * np.log(2)),
    "head": (
        lambda z: (
            -mx.Empirical((jnp.ones((2, 1)), jnp.array([0, -100])), weights=jnp.array([1.0, 0.0])).expect(
                log(mx.LinearSoftmax(jnp.zeros((1, 3)), bias=z))
            )
        ),
        np.log(2),
    ),
}


@pytest.mark.slow("programs without optimisations, step by step")
@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", MASKED)
def test_no_nan_inside_of_a_right_result(name):
    """jax_debug_nans sees every operation outside of jit, checkify those inside too."""
    f, value = MASKED[name]
    z = jnp.array([0.0, 0.0, -INF])
    with jax.debug_nans(True):
        got, gradient = jax.value_and_grad(f)(z)
    error, _ = checkify.checkify(jax.value_and_grad(f), errors=checkify.nan_checks)(z)
    assert error.get() is None
    np.testing.assert_allclose(got, value, rtol=2e-6, atol=1e-7)
    assert np.isfinite(gradient).all()


def test_a_label_outside_has_gradient_nan_all_the_same():
    for loss in (
        lambda z: mx.cross_entropy(mx.Dirac(np.array([0, 7])), mx.Categorical(z)).sum(),
        lambda z: -mx.Empirical((z, np.array([0, 7]))).expect(log(CONDITIONAL)),
        lambda z: -mx.Empirical((jnp.ones((2, 2)), np.array([0, 7]))).expect(log(mx.LinearSoftmax(z))),
    ):
        value, gradient = jax.value_and_grad(loss)(jnp.zeros((2, 3)))
        assert value == np.inf
        assert np.isnan(gradient[1]).all()
